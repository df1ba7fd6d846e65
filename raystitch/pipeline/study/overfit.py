"""G4: errors on data that were trained on, next to errors on data that were not.

Legend: N transitions, B rows, K steps, A action size.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from raystitch.data.episodes import EpisodeDataset, Floats, Ints
from raystitch.data.returns import discounted_returns, returns_to_go
from raystitch.models.bundle import Bundle
from raystitch.pipeline.study.parts import StudyParts, skipped
from raystitch.pipeline.validate.rank import spearman
from raystitch.seeding import numpy_rng
from raystitch.trainers.policy import MAX, Policy

NUM_TRANSITIONS = 2_000
NUM_WINDOWS, MAX_CONTEXT = 256, 5
"""Windows for a policy that looks at several steps, and how many it sees: each step is another pass of its network."""
PART_NAMES = ("train", "held_out")


def generator_errors(bundle: Bundle, parts: StudyParts, gamma: float, seed: int) -> Mapping[str, Any]:
    """Return the key ``generator``: the fitted models on the two parts of the data.

    Q(s, a) is the predicted reward plus the discounted value of the predicted next state, by the judges.
    """
    rng = numpy_rng(seed, "study", "generator")
    dataset = parts.dataset
    returns = discounted_returns(dataset.rewards, dataset.offsets, gamma)
    found: dict[str, dict[str, Any]] = {}
    for name in PART_NAMES:
        steps = _transitions(dataset, getattr(parts, name), NUM_TRANSITIONS, rng)
        rows = dataset.obs_index[steps]
        with torch.inference_mode():
            columns = (dataset.observations[rows], dataset.actions[steps], dataset.observations[rows + 1])
            obs, act, next_obs = (torch.from_numpy(column).to(bundle.device) for column in columns)
            half = torch.from_numpy((bundle.action_high - bundle.action_low) / 2).to(bundle.device)
            action = ((bundle.inverse(obs, next_obs) - act) / half).square().mean()
            residual = bundle.dynamics.residual(obs, act, next_obs, "judges").mean()
            predicted = bundle.dynamics.predict(obs, act, "judges")
            alive = 1 - bundle.termination(predicted)
            value = bundle.reward(obs, act, predicted)[0] + gamma * alive * bundle.value(predicted)
        ranks = spearman(value.cpu().numpy().astype(np.float64), returns[steps].astype(np.float64), rng)
        found[name] = {"action": float(action), "dynamics": float(residual), "ranks": ranks}
    return {
        **{name: _pair(*(found[part][name] for part in PART_NAMES)) for name in ("action", "dynamics")},
        "ranks": {part: found[part]["ranks"] for part in PART_NAMES},
    }


def _transitions(dataset: EpisodeDataset, episodes: Ints, most: int, rng: np.random.Generator) -> Ints:
    """Draw transitions of ``episodes`` whose next state is recorded, int64, ascending."""
    steps = np.flatnonzero(np.isin(dataset.episode_of, episodes) & dataset.next_observed)
    return np.sort(rng.permutation(steps)[:most])


def _pair(train: float, held_out: float) -> dict[str, float | None]:
    return {"train": train, "held_out": held_out, "ratio": held_out / train if train > 0 else None}


@dataclass(frozen=True, kw_only=True, eq=False)
class ActionWindows:
    """Real steps that policies are asked about; the same ones for every policy, and worked out once for all of them.

    Attributes:
        episodes: int64, where they come from.
    """

    dataset: EpisodeDataset
    episodes: Ints
    seed: int
    _drawn: dict[int, Ints] = field(default_factory=dict[int, Ints], repr=False)

    @cached_property
    def returns_to_go(self) -> Floats:
        return returns_to_go(self.dataset.rewards, self.dataset.offsets)

    def draw(self, context: int) -> Ints:
        """Return int64 [B, K]: runs of ``context`` transitions of one episode, or shorter where none is as long."""
        if context not in self._drawn:
            self._drawn[context] = self._draw(context)
        return self._drawn[context]

    def _draw(self, context: int) -> Ints:
        dataset, rng = self.dataset, numpy_rng(self.seed, "study", "actions", context)
        longest = int(dataset.lengths[self.episodes].max(initial=0))
        context = min(context, longest)
        usable = np.flatnonzero(np.isin(dataset.episode_of, self.episodes))
        ends = dataset.offsets[1:][dataset.episode_of[usable]]
        usable = usable[usable + context <= ends]
        first = np.sort(rng.permutation(usable)[: NUM_TRANSITIONS if context == 1 else NUM_WINDOWS])
        return first[:, None] + np.arange(context)


def action_error(policy: Policy, windows: ActionWindows) -> float:
    """Return the mean squared error of a policy's actions, scaled to [-1, 1].

    A policy that looks back acts through a window of real states as in an episode that begins there, with its own
    earlier actions; a return-conditioned one is asked for what was received from there on, or for what it promises
    itself. The last action counts.
    """
    dataset = windows.dataset
    steps_BK = windows.draw(min(int(policy.meta.network.get("context", 1)), MAX_CONTEXT))
    asked = policy.default_target
    policy.reset(len(steps_BK), asked if asked == MAX else 0.0)
    policy.observe(-windows.returns_to_go[steps_BK[:, 0]])
    action_BA = np.zeros((0, dataset.act_dim), np.float32)
    for step_B in steps_BK.T:
        action_BA = policy.act(dataset.observations[dataset.obs_index[step_B]])
        policy.observe(dataset.rewards[step_B])
    half = (policy.meta.action_high - policy.meta.action_low) / 2
    error = (action_BA - dataset.actions[steps_BK[:, -1]]) / half
    return float((error.astype(np.float64) ** 2).mean())


def action_windows(parts: StudyParts, seed: int) -> dict[str, ActionWindows]:
    """Return the windows of each of ``PART_NAMES``, for ``policy_errors`` of any number of policies."""
    return {name: ActionWindows(dataset=parts.dataset, episodes=getattr(parts, name), seed=seed) for name in PART_NAMES}


def policy_errors(policy: Policy, windows: Mapping[str, ActionWindows]) -> dict[str, float | None]:
    """Return ``train, held_out, ratio`` of a policy's action error."""
    return _pair(*(action_error(policy, windows[name]) for name in PART_NAMES))


def no_bundle() -> Mapping[str, Any]:
    """Return the key ``generator`` where no bundle is at hand."""
    return skipped("no bundle: name the one that the buffer was made with (--stitcher DIR)")
