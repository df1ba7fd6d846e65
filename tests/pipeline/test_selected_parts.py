"""Bundles and buffers of a part of a dataset, used with the whole, and the other way round."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raystitch.buffer.config import AugmentConfig
from raystitch.buffer.episodes import on_dataset, rebuild
from raystitch.buffer.export import export
from raystitch.buffer.opening import open_buffer
from raystitch.buffer.reader import Buffer
from raystitch.data.episodes import EpisodeDataset, Ints
from raystitch.data.select import EPISODE_SELECTORS, select_episodes
from raystitch.data.selectors import Embed, EpisodeSelector, Kept
from raystitch.errors import UserError
from raystitch.models.bundle import Bundle
from raystitch.models.config import FitConfig
from raystitch.models.fit import fit_bundle
from raystitch.pipeline.generate.augment import augment_local
from raystitch.pipeline.trials.train import train
from raystitch.pipeline.validate.truth import validate
from raystitch.stitching.config import QualifyConfig, StitchConfig
from raystitch.trainers.config import BCConfig, DTConfig

BC = BCConfig(train_steps=3, hidden=8)
DT = DTConfig(train_steps=3, batch_size=8, context=4, width=16, num_layers=1)
STITCH = StitchConfig(qualify=QualifyConfig(delta="off", termination_max=None, value_check=False))


def odd_numbers(dataset: EpisodeDataset) -> Ints:
    return np.arange(1, dataset.num_episodes, 2)


def every_second(dataset: EpisodeDataset, value: Any, embed: Embed) -> Kept:
    """Keep the episodes of odd numbers."""
    return Kept(episodes=odd_numbers(dataset))


@pytest.fixture
def part(drift: EpisodeDataset, monkeypatch: pytest.MonkeyPatch) -> EpisodeDataset:
    monkeypatch.setitem(EPISODE_SELECTORS, "every_second", EpisodeSelector(every_second))
    return select_episodes(drift, "every_second")


def augmented(dataset: EpisodeDataset, bundle: Bundle, folder: Path, chain_rounds: int = 0) -> Buffer:
    config = AugmentConfig(num_bridges=24, pairs_per_shard=16, chain_rounds=chain_rounds)
    augment_local(dataset, bundle, STITCH, config, out=folder, seed=0)
    return open_buffer(folder)


def test_a_bundle_of_a_part_stitches_the_whole_and_the_other_way_round(
    drift: EpisodeDataset, part: EpisodeDataset, tiny_fit: FitConfig, tmp_path: Path
) -> None:
    for number, (fitted, used) in enumerate(((part, drift), (drift, part))):
        fit_bundle(fitted, tiny_fit, tmp_path / f"stitcher-{number}", "cpu")
        bundle = Bundle.load(tmp_path / f"stitcher-{number}", "cpu")
        augmented(used, bundle, tmp_path / f"buffer-{number}")
        with pytest.raises(UserError, match="holds other trajectories"):
            bundle.check_dataset(replace(drift, rewards=drift.rewards + 1))
        with pytest.raises(UserError, match="holds other trajectories"):  # a dataset of its own, not a part
            bundle.check_dataset(drift.subset(odd_numbers(drift)))
    with pytest.raises(UserError, match="holds a fit with other settings: dataset"):
        fit_bundle(drift, tiny_fit, tmp_path / "stitcher-0", "cpu")


@pytest.mark.parametrize("chain_rounds", [0, 1])
def test_a_buffer_of_a_part_names_episodes_of_the_whole_and_trains_with_both(
    drift: EpisodeDataset, part: EpisodeDataset, tiny_fit: FitConfig, tmp_path: Path, chain_rounds: int
) -> None:
    bundle = fit_bundle(part, tiny_fit, tmp_path / "stitcher", "cpu")
    buffer = augmented(part, bundle, tmp_path / "buffer", chain_rounds)
    numbers = np.stack([buffer.column("source_episode"), buffer.column("target_episode")])
    assert (numbers % 2 == 1).all()
    assert numbers.max() > part.num_episodes
    with_whole, with_part = (
        rebuild(dataset, on_dataset(buffer, dataset).bridges()).episodes for dataset in (drift, part)
    )
    assert with_whole.fingerprint == with_part.fingerprint
    for dataset in (drift, part):
        for algo, config in (("bc", BC), ("dt", DT)):
            train(dataset, algo, tmp_path / "buffer", "1:1", config=config, device="cpu")
        export(buffer, dataset, "d4rl", tmp_path / f"{dataset.num_episodes}.hdf5")
    for other in (drift.subset(odd_numbers(drift)), replace(drift, rewards=drift.rewards + 1)):
        with pytest.raises(UserError, match="holds other trajectories"):
            train(other, "bc", tmp_path / "buffer", "1:1", config=BC, device="cpu")


def test_a_buffer_of_the_whole_is_refused_where_the_part_lacks_its_episodes(
    drift: EpisodeDataset, part: EpisodeDataset, tiny_fit: FitConfig, tmp_path: Path
) -> None:
    buffer = augmented(drift, fit_bundle(drift, tiny_fit, device="cpu"), tmp_path / "buffer")
    with pytest.raises(UserError, match=r"refers to episode \d+ of drift, which is not among those selected"):
        train(part, "bc", tmp_path / "buffer", "1:1", config=BC, device="cpu")
    named = np.unique([buffer.column("source_episode"), buffer.column("target_episode")])
    train(drift.select(named), "bc", tmp_path / "buffer", "1:1", config=BC, device="cpu")


def test_only_what_counts_at_the_delta_has_to_be_among_the_selected(
    drift: EpisodeDataset, tiny_fit: FitConfig, tmp_path: Path
) -> None:
    buffer = augmented(drift, fit_bundle(drift, tiny_fit, device="cpu"), tmp_path / "buffer")
    delta = float(np.quantile(buffer.column("residual_max"), 0.3))
    rows = buffer.accepted_rows(delta)
    assert 0 < len(rows) < buffer.num_accepted("off")
    named = np.unique([buffer.column("source_episode")[rows], buffer.column("target_episode")[rows]])
    part = drift.select(named)
    opened = on_dataset(buffer, part)
    assert (~opened.has_episodes).any()
    ours = rebuild(part, opened.bridges(delta)).episodes
    assert ours.fingerprint == rebuild(drift, buffer.bridges(delta)).episodes.fingerprint
    for read in (lambda: opened.bridges("off"), lambda: opened.take(np.flatnonzero(~opened.has_episodes)[:1])):
        with pytest.raises(UserError, match="which is not among those selected"):
            read()


def test_a_buffer_begun_on_a_part_is_not_filled_from_another(
    drift: EpisodeDataset, part: EpisodeDataset, tiny_fit: FitConfig, tmp_path: Path
) -> None:
    bundle = fit_bundle(part, tiny_fit, device="cpu")
    augmented(part, bundle, tmp_path / "buffer")
    with pytest.raises(UserError, match="generated with other settings: dataset_fingerprint"):
        augmented(drift, bundle, tmp_path / "buffer")


def test_validation_needs_the_episodes_that_the_stitcher_held_out(
    drift: EpisodeDataset, part: EpisodeDataset, tiny_fit: FitConfig, tmp_path: Path
) -> None:
    bundle = fit_bundle(part, tiny_fit, device="cpu")
    buffer = augmented(part, bundle, tmp_path / "buffer")
    with pytest.raises(UserError, match=r"fitted on another selection of the episodes of drift.* give that selection"):
        validate(buffer, drift, bundle, max_bridges=4)
    found = validate(on_dataset(buffer, part), part, bundle, max_bridges=4)
    assert found["novelty"]["bridges"]["count"] > 0
