"""Settings of the Decision Transformer for long ways: what came before the bridge, and Fourier features."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from raystitch.data.episodes import EpisodeDataset
from raystitch.trainers.config import DTConfig, settings_json
from raystitch.trainers.dt_model import DecisionTransformer, FourierFeatures
from raystitch.trainers.segments import Segments


def test_a_prefix_keeps_so_many_steps_before_the_bridge() -> None:
    episodes = Segments(
        start=np.array([[10, 100, 50], [0, 200, 70]]), length=np.array([[6, 3, 4], [2, 5, 0]]), weight=np.ones(2)
    )
    bridge = np.array([1, 1])
    kept = episodes.led_in(bridge, 3)
    assert kept.start[0].tolist() == [13, 100, 50]
    assert kept.length.tolist() == [[3, 3, 4], [2, 5, 0]]
    assert episodes.led_in(bridge, 0).length.tolist() == [[0, 3, 4], [0, 5, 0]]
    assert episodes.led_in(bridge, None) is episodes


def test_settings_are_checked_and_older_trials_keep_their_ids() -> None:
    assert not {"prefix", "fourier"} & set(settings_json(DTConfig()))
    assert settings_json(DTConfig(prefix=0, fourier=1.0))["prefix"] == 0
    for wrong in ({"prefix": -1}, {"fourier": -0.5}, {"fourier": float("nan")}):
        with pytest.raises(ValueError, match="prefix and fourier must be >= 0"):
            replace(DTConfig(), **wrong)  # type: ignore[arg-type]


def test_fourier_features_are_the_same_for_every_policy(drift: EpisodeDataset) -> None:
    first, second = (FourierFeatures(drift.obs_dim, 1.5) for _ in range(2))
    states = torch.from_numpy(drift.observations[:7])
    assert torch.equal(first(states), second(states))
    assert first(states).shape == (7, first.size)
    assert torch.equal(first(states)[:, : drift.obs_dim], states)
    waves = first(states)[:, drift.obs_dim :]
    assert float(waves.abs().max()) <= 1
    assert torch.allclose(waves[:, : first.COUNT] ** 2 + waves[:, first.COUNT :] ** 2, torch.ones(7, first.COUNT))


def test_a_network_without_them_is_as_it_was() -> None:
    sizes: dict[str, Any] = {
        "obs_dim": 3,
        "act_dim": 2,
        "width": 8,
        "num_layers": 1,
        "num_heads": 1,
        "context": 2,
        "max_time": 5,
    }
    plain, with_features = (DecisionTransformer(**sizes, rate=0.0, fourier=std) for std in (0.0, 1.0))
    assert "fourier" not in plain.arguments
    assert with_features.arguments["fourier"] == 1.0
    shapes = {name: tuple(value.shape) for name, value in plain.state_dict().items()}
    other = {name: tuple(value.shape) for name, value in with_features.state_dict().items()}
    assert {name for name in shapes if shapes[name] != other[name]} == {"embed_state.weight"}
