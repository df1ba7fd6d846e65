"""An algorithm may make its own training data, once, before the first step."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raystitch.data.episodes import EpisodeDataset
from raystitch.trainers import ALGORITHMS
from raystitch.trainers.batches import TrainData, WindowBatch
from raystitch.trainers.config import DataSpec, DTConfig
from raystitch.trainers.data import build_data
from raystitch.trainers.loop import Checkpoints, train_policies, train_policy
from raystitch.trainers.policy import Policy

CONFIG = DTConfig(train_steps=250, batch_size=8, context=4, width=16, num_layers=1)


@pytest.fixture
def data(drift: EpisodeDataset) -> TrainData:
    return build_data(drift, DataSpec(kind="sequences", device="cpu"))


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[WindowBatch]:
    """A Decision Transformer that invents returns-to-go, each seed its own; the batches that it is trained on."""
    algorithm, seen = ALGORITHMS["dt"], list[WindowBatch]()

    def prepare(data: TrainData, config: DTConfig, generators: Sequence[torch.Generator]) -> TrainData:
        assert config.context == 4
        torch.rand(3)  # what it draws from torch's own generator is taken back
        invented = [1000 + torch.rand(len(data.rtg), generator=generator) for generator in generators]
        return dataclasses.replace(data, rtg=torch.stack(invented), rtg_offset=torch.zeros_like(data.rtg_offset))

    def update(state: Any, batch: WindowBatch, *rest: Any) -> Any:
        seen.append(batch)
        return algorithm.update(state, batch, *rest)

    monkeypatch.setitem(ALGORITHMS, "dt", dataclasses.replace(algorithm, prepare=prepare, update=update))
    return seen


def actions(policy: Any) -> np.ndarray[Any, Any]:
    assert isinstance(policy, Policy)
    policy.reset(3, 5.0)
    return policy.act(np.random.default_rng(0).normal(size=(3, policy.obs_dim)))


def test_what_was_prepared_is_trained_on(data: TrainData, batches: list[WindowBatch]) -> None:
    before = torch.get_rng_state()
    config = dataclasses.replace(CONFIG, train_steps=3)
    train_policies(data, "dt", config, "1:0", (3, 4))
    assert torch.equal(before, torch.get_rng_state())
    assert len(batches) == 3
    for batch in batches:
        returns = batch.rtg * data.rtg_scale
        assert ((returns > 999.9) & (returns < 1001.1)).all()
    # Rows that both seeds drew have other returns: each has its own.
    assert not torch.equal(batches[0].rtg[0], batches[0].rtg[1])
    assert data.rtg.dim() == 1  # the caller's data are as they were


def test_none_leaves_the_data_as_they_are(data: TrainData, monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(CONFIG, train_steps=3)
    plain = train_policy(data, "dt", config)
    monkeypatch.setitem(ALGORITHMS, "dt", dataclasses.replace(ALGORITHMS["dt"], prepare=lambda *_: None))
    np.testing.assert_array_equal(actions(train_policy(data, "dt", config)), actions(plain))


def test_a_seed_is_prepared_the_same_alone_and_among_others(data: TrainData, batches: list[WindowBatch]) -> None:
    config = dataclasses.replace(CONFIG, train_steps=5)
    together = train_policies(data, "dt", config, "1:0", (3, 4))
    first = batches[0].rtg[1]
    batches.clear()
    alone = train_policy(data, "dt", config, "1:0", 4)
    assert torch.equal(batches[0].rtg[0], first)
    np.testing.assert_allclose(actions(alone), actions(together[1]), atol=1e-4)


def test_resumed_equals_uninterrupted(data: TrainData, batches: list[WindowBatch], tmp_path: Path) -> None:
    checkpoints = Checkpoints(path=tmp_path / "state.pt", seconds=0)

    class Stop(Exception):
        pass

    def stop(row: dict[str, Any]) -> None:
        if row["step"] == 200:
            raise Stop

    whole = train_policy(data, "dt", CONFIG)
    last = batches[-1].rtg
    with pytest.raises(Stop):
        train_policy(data, "dt", CONFIG, log=stop, checkpoints=checkpoints)
    batches.clear()
    resumed = train_policy(data, "dt", CONFIG, checkpoints=checkpoints)
    assert len(batches) == 150
    assert torch.equal(batches[-1].rtg, last)
    np.testing.assert_array_equal(actions(whole), actions(resumed))
