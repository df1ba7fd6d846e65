from dataclasses import replace

import pytest
from torch.utils.flop_counter import FlopCounterMode

from raystitch.bench.products import STEPS, products_of
from raystitch.bench.trainers import Variant, algorithm_rows
from raystitch.data.episodes import EpisodeDataset
from raystitch.trainers.config import ALGORITHM_CONFIGS, DataSpec, TD3BCConfig
from raystitch.trainers.data import build_data
from raystitch.trainers.loop import train_policy
from raystitch.trainers.registry import find_algorithm


@pytest.mark.parametrize("algo", ALGORITHM_CONFIGS)
def test_the_products_counted_are_those_that_a_step_makes(algo: str, drift: EpisodeDataset) -> None:
    config = replace(ALGORITHM_CONFIGS[algo](), batch_size=16)
    products = products_of(config, drift.obs_dim, drift.act_dim)
    counted = sum(shape.flops * number for shape, number in products.items())
    data = build_data(drift, DataSpec(kind=find_algorithm(algo).kind, device="cpu"))
    with FlopCounterMode(display=False) as counter:
        train_policy(data, algo, replace(config, train_steps=STEPS))
    # Narrow ones may be made as sums, and a few more than needed.
    assert 0.97 * counter.get_total_flops() <= counted <= 1.01 * counter.get_total_flops()


@pytest.mark.slow
def test_speed_is_told_next_to_the_products_one_seed_and_the_reference(drift: EpisodeDataset) -> None:
    config = TD3BCConfig(batch_size=32, hidden=16)
    variants = (Variant("float32"), Variant("float32", num_seeds=5), Variant("bf16"))
    rows = {
        row.what.strip(): row for row in algorithm_rows(drift, "td3bc", config, variants=variants, rounds=2, steps=40)
    }
    assert rows["td3bc, float32"].unit == "steps/s"
    for row in rows.values():
        assert row.value > 0
        assert row.ratio is not None
    share = rows["td3bc, float32"].ratio
    assert share is not None
    assert share < 1
    assert rows["td3bc, 5 seeds stacked, float32: time"].ratio_to == "one seed"
    assert rows["td3bc, float32: speed"].ratio_to == "reference"
