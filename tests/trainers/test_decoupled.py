"""Weighted data for the policy alone, uniform data for the critics."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from raystitch.buffer.bridges import BridgeSet
from raystitch.data.episodes import EpisodeDataset
from raystitch.errors import UserError
from raystitch.shaping.config import ShapingConfig, WeightConfig
from raystitch.trainers import ALGORITHMS
from raystitch.trainers.batches import TransitionBatch
from raystitch.trainers.config import DataSpec, IQLConfig, TD3BCConfig, settings_json
from raystitch.trainers.data import build_data
from raystitch.trainers.loop import train_policy

SMALL: dict[str, Any] = {"train_steps": 4, "hidden": 16, "batch_size": 64}
CONFIGS = {"td3bc": TD3BCConfig(**SMALL), "iql": IQLConfig(**SMALL)}
TOP = ShapingConfig(weights=WeightConfig(name="top", share=0.1))


def spec(data: Any = "weighted", decoupled: bool = True, shaping: ShapingConfig = TOP) -> DataSpec:
    return DataSpec(kind="transitions", data=data, decoupled=decoupled, shaping=shaping, device="cpu")


@pytest.mark.parametrize("algo", sorted(CONFIGS))
def test_the_policy_alone_learns_from_the_weighted_part(
    drift: EpisodeDataset, algo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[TransitionBatch] = []
    algorithm = ALGORITHMS[algo]

    def watched(state: Any, batch: TransitionBatch, *rest: Any) -> Any:
        seen.append(batch)
        return algorithm.update(state, batch, *rest)

    monkeypatch.setitem(ALGORITHMS, algo, replace(algorithm, update=watched))
    data = build_data(drift, spec())
    train_policy(data, algo, CONFIGS[algo], "0:1")
    best = np.argsort(-drift.returns)[:4]
    of_best = torch.cat([data.observations[drift.obs_offsets[e] : drift.obs_offsets[e + 1]] for e in best])
    drawn = [torch.cat([of.obs[0] for of in batches]) for batches in (seen, [b.for_actor for b in seen])]
    shares = [float((obs[:, None] == of_best).all(-1).any(1).float().mean()) for obs in drawn]
    assert shares[0] < 0.4
    assert shares[1] == 1


@pytest.mark.parametrize("algo", sorted(CONFIGS))
def test_gradients_of_critics_do_not_see_the_policys_batch(drift: EpisodeDataset, algo: str) -> None:
    """One step on a batch with another one for the policy: the critics end where they end without it."""
    data = build_data(drift, spec(decoupled=False))
    algorithm, config = ALGORITHMS[algo], replace(CONFIGS[algo], **({"policy_delay": 1} if algo == "td3bc" else {}))
    ends: list[dict[str, torch.Tensor]] = []
    episode = torch.arange(32)[None] % len(data.augmented) + data.augmented.first_episode
    batch = data.transitions(episode, torch.zeros_like(episode))
    other = data.transitions(episode, torch.ones_like(episode))
    for given in (batch, replace(batch, actor=other), replace(batch, actor=batch)):
        from raystitch.trainers.loop import _networks  # pyright: ignore[reportPrivateUsage]
        from raystitch.trainers.ratio import Ratio

        state = algorithm.create(_networks(data, algorithm, config, Ratio(0, 1), [0]), config)
        algorithm.update(state, given, config, [torch.Generator().manual_seed(0)])
        parts = {name: part for name, part in state.parts().items() if isinstance(part, torch.nn.Module)}
        ends.append({name: torch.cat([p.flatten() for p in part.parameters()]) for name, part in parts.items()})
    for name in ends[0]:
        assert torch.equal(ends[0][name], ends[1][name]) == (name not in ("actor", "target_actor"))
        torch.testing.assert_close(ends[0][name], ends[2][name])


def test_decoupled_without_weights_or_off_changes_nothing(drift: EpisodeDataset, bridges: BridgeSet) -> None:
    for data in ("stitched", "duplicated", "original"):
        assert build_data(drift, spec(data, shaping=ShapingConfig()), bridges=bridges).actor is None
    assert build_data(drift, spec(decoupled=False)).actor is None
    built = build_data(drift, spec("stitched"), bridges=bridges)
    assert built.actor is not None
    assert len(built.actor) == len(built.augmented) == len(bridges) - sum(bridges.source_step >= 60)
    assert "decoupled" not in settings_json(TD3BCConfig())
    assert settings_json(IQLConfig(decoupled=True))["decoupled"] is True
    assert TD3BCConfig(decoupled=True).data_needs().decoupled


def test_weights_that_leave_the_policy_nothing_are_refused(drift: EpisodeDataset) -> None:
    data = build_data(drift, spec())
    assert data.actor is not None
    empty = replace(data, actor=replace(data.actor, cumulative=torch.zeros_like(data.actor.cumulative)))
    with pytest.raises(UserError, match="weights that leave none"):
        train_policy(empty, "td3bc", CONFIGS["td3bc"], "0:1")
