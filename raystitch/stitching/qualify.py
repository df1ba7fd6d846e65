"""The numbers behind every criterion, by dynamics members that no proposal has seen (DiffStitch, qualification).

Legend: N rows, G largest gap, O observation size, A action size. A bridge of gap g has g + 1 steps.
"""

from dataclasses import replace

import numpy as np
import torch

from raystitch.data.episodes import Floats, Ints
from raystitch.models.bundle import Bundle
from raystitch.models.heads import Members
from raystitch.stitching.acceptance import passes
from raystitch.stitching.candidates import Candidates
from raystitch.stitching.config import QualifyConfig
from raystitch.stitching.wrapup import step_states, steps_of


def step_residuals(
    bundle: Bundle, bridges: Floats, actions: Floats, gap: Ints, members: Members
) -> tuple[Floats, Floats]:
    """Residual of each step and disagreement of the members (both squared L2, standardised), float32 [N, G + 1]; NaN
    past gap + 1 steps."""
    steps = steps_of(bridges, gap)
    residuals, spreads = np.full(steps.shape, np.nan, np.float32), np.full(steps.shape, np.nan, np.float32)
    with torch.inference_mode():
        obs, next_obs = step_states(bundle, bridges, steps)
        act = torch.from_numpy(actions[steps]).to(bundle.device)
        residual, spread = bundle.dynamics.residual_and_spread(obs, act, next_obs, members)
    residuals[steps], spreads[steps] = residual.cpu().numpy(), spread.cpu().numpy()
    return residuals, spreads


def largest_residual(bundle: Bundle, bridges: Floats, actions: Floats, gap: Ints, members: Members) -> Floats:
    """Largest residual of each bridge's steps, float32 [N]; inf where one is not finite."""
    residuals = step_residuals(bundle, bridges, actions, gap, members)[0]
    known = np.where(np.isfinite(residuals), residuals, np.inf)
    return np.where(steps_of(bridges, gap), known, 0.0).max(1, initial=0.0).astype(np.float32)


def rollout_deviation(bundle: Bundle, bridges: Floats, actions: Floats, gap: Ints) -> Floats:
    """Squared L2 distance (standardised) between the state entered and where the judges' own roll-out of the actions
    ends, float32 [N]: single-step residuals miss errors that add up."""
    # Longest bridges first: the rows still on their way are a prefix at every step, and no others are computed.
    order = np.argsort(-gap, kind="stable")
    lengths = gap[order] + 1
    with torch.inference_mode():
        state_NO = torch.from_numpy(np.ascontiguousarray(bridges[order, 0])).to(bundle.device)
        act_NTA = torch.from_numpy(actions[order]).to(bundle.device)
        for step in range(int(lengths.max(initial=0))):
            count = int(np.searchsorted(-lengths, -step, side="left"))
            state_NO[:count] = bundle.dynamics.predict(state_NO[:count], act_NTA[:count, step], "judges")
        rolled = np.empty_like(bridges[:, 0])
        rolled[order] = state_NO.cpu().numpy()
    entered = np.take_along_axis(bridges, (gap + 1)[:, None, None], 1)[:, 0]
    difference = (rolled - entered) / bundle.normalizer.std * bundle.normalizer.active
    return (difference.astype(np.float64) ** 2).sum(-1).astype(np.float32)


def termination_max(bundle: Bundle, bridges: Floats, gap: Ints) -> Floats:
    """Largest predicted termination probability of a generated state, float32 [N]."""
    states = np.arange(bridges.shape[1])
    generated = (states >= 1) & (states <= gap[:, None])
    probability = np.zeros(generated.shape, np.float32)
    with torch.inference_mode():
        next_obs = torch.from_numpy(bridges[generated]).to(bundle.device)
        probability[generated] = bundle.termination(next_obs).cpu().numpy()
    return probability.max(1, initial=0.0)


def qualify(bundle: Bundle, candidates: Candidates, config: QualifyConfig) -> Candidates:
    """The candidates with every criterion's number, the decision and its reason filled in."""
    bridges, actions, gap = candidates.observations, candidates.actions, candidates.gap
    residuals, spreads = step_residuals(bundle, bridges, actions, gap, "judges")
    exists = steps_of(bridges, gap)
    residual_max = np.where(exists, residuals, -np.inf).max(1, initial=-np.inf)  # a NaN step makes the row NaN
    judged = replace(
        candidates,
        residual_max=residual_max,
        residual_mean=np.where(exists, residuals, 0.0).sum(1) / (gap + 1).astype(np.float32),
        residuals=residuals,
        spreads=spreads,
        spread_max=np.where(exists, spreads, -np.inf).max(1, initial=-np.inf),
        rollout_deviation=rollout_deviation(bundle, bridges, actions, gap),
        termination_max=termination_max(bundle, bridges, gap),
    )
    accepted, reason = passes(lambda name: getattr(judged, name), config.delta, bundle.calibration, config)
    return replace(judged, accepted=accepted, reason=reason)
