"""Values that go to the server and come back. The legend of shapes is in ``__init__.py``."""

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats: TypeAlias = NDArray[np.float32]
Bools: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True, eq=False, init=False)
class Trajectory:
    """Part of an episode, checked, and kept as read-only copies.

    Attributes:
        observations: float32 [T, O], T >= 2; given as anything that ``np.asarray`` takes, as are the others.
        actions: float32 [T-1, A]; None: the server's models fill them in.
        rewards: float32 [T-1]; None likewise.
        terminated: the environment ended the episode in the last state; it was not cut there.

    Raises:
        ValueError: not real numbers, wrong shape, or not finite; names the field and its first bad index.
    """

    observations: Floats
    actions: Floats | None
    rewards: Floats | None
    terminated: bool

    def __init__(
        self,
        observations: ArrayLike,
        actions: ArrayLike | None = None,
        rewards: ArrayLike | None = None,
        terminated: bool | np.bool_ = False,
    ) -> None:
        states = _numbers("observations", observations, "[T, O]")
        if len(states) < 2:
            raise ValueError(f"observations has {len(states)} state, a trajectory needs at least 2")
        if not isinstance(terminated, bool | np.bool_):
            raise ValueError(f"terminated must be True or False, got terminated={terminated!r}")
        set_field = object.__setattr__
        set_field(self, "observations", states)
        set_field(self, "actions", _transitions("actions", actions, "[T-1, A]", len(states)))
        set_field(self, "rewards", _transitions("rewards", rewards, "[T-1]", len(states)))
        set_field(self, "terminated", bool(terminated))


@dataclass(frozen=True, eq=False, kw_only=True)
class StitchedTrajectory:
    """Start of the source, generated states, end of the target.

    Attributes:
        observations: float32 [M+1, O].
        actions: float32 [M, A].
        rewards: float32 [M].
        is_synthetic: bool [M], one per transition; gap+1 of them are.
    """

    observations: Floats
    actions: Floats
    rewards: Floats
    is_synthetic: Bools


@dataclass(frozen=True, eq=False, kw_only=True)
class Bridge:
    """The facts about a bridge. A number that is not finite is NaN.

    Attributes:
        reason: ``ok``, or why it is not accepted.
        gap: number of generated states, between source state ``source_step`` and target state ``target_step``.
        delta: threshold of the residuals; None: off.
        return_source: discounted return of the source, from ``source_step`` on.
        return_stitched: a pessimistic estimate of the same over the bridge and the target.
        residuals: float32 [gap+1], squared distance of each next state to its prediction, standardised units.
    """

    accepted: bool
    reason: str
    gap: int
    source_step: int
    target_step: int
    delta: float | None
    return_source: float
    return_stitched: float
    residuals: Floats = field(repr=False)


@dataclass(frozen=True, eq=False, kw_only=True)
class Candidate(Bridge):
    """One bridge that was tried.

    Attributes:
        attempt: 0, or the repair that it comes from.
        pair: which of the ``num_candidates``.
        failed: every criterion that it fails.
        observations: float32 [gap+2, O].
        actions: float32 [gap+1, A].
        rewards: float32 [gap+1].
    """

    attempt: int
    pair: int
    failed: tuple[str, ...]
    residual_max: float
    spread_max: float
    rollout_deviation: float
    termination_max: float
    observations: Floats = field(repr=False)
    actions: Floats = field(repr=False)
    rewards: Floats = field(repr=False)

    def accepted_at(self, delta: float | None) -> bool:
        """Return True if it would be accepted at another threshold; with None, whatever its residuals."""
        others = set(self.failed) - {"residual"}
        return not others and (delta is None or self.residual_max < delta)


@dataclass(frozen=True, eq=False, kw_only=True)
class Result(Bridge):
    """The best candidate, accepted or not, and the whole trajectory that it makes.

    Attributes:
        num_candidates, num_accepted: of all that were tried, repairs included.
        inferred: what was left out and filled in by models, such as ``source.actions``.
        model: hash of the model.
        candidates: the best first, where ``return_all`` asked for them.
    """

    num_candidates: int
    num_accepted: int
    inferred: tuple[str, ...]
    model: str
    seed: int
    request_id: str
    trajectory: StitchedTrajectory = field(repr=False)
    candidates: list[Candidate] | None = field(repr=False)

    def accepted_at(self, delta: float | None) -> list[Candidate]:
        """The candidates that pass at another threshold, the best first, without asking the server again.

        Raises:
            ValueError: when the request did not ask for all candidates.
        """
        if self.candidates is None:
            raise ValueError("this result has no candidates: ask with return_all=True")
        return [candidate for candidate in self.candidates if candidate.accepted_at(delta)]


def check_pair(source: Trajectory, target: Trajectory) -> None:
    """Raises: ValueError unless both have observations of one size, and actions too."""
    for name in ("observations", "actions"):
        ours, theirs = getattr(source, name), getattr(target, name)
        if ours is not None and theirs is not None and ours.shape[1] != theirs.shape[1]:
            raise ValueError(f"source.{name} has {ours.shape[1]} columns, target.{name} has {theirs.shape[1]}")


def _transitions(name: str, value: ArrayLike | None, shape: str, num_states: int) -> Floats | None:
    if value is None:
        return None
    rows = _numbers(name, value, shape)
    if len(rows) != num_states - 1:
        raise ValueError(
            f"{name} has {len(rows)} rows, but between {num_states} states lie {num_states - 1} transitions"
        )
    return rows


def _numbers(name: str, value: Any, shape: str) -> Floats:
    """A float32 copy of ``value`` that cannot be written to, with as many dimensions as ``shape`` names."""
    try:
        given = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists; tensors on a GPU or with a gradient
        raise ValueError(f"{name} cannot be read as an array: {error}") from error
    if given.dtype.kind not in "fiub":
        raise ValueError(f"{name} must hold real numbers, got dtype {given.dtype}")
    if given.ndim != shape.count(",") + 1 or given.size == 0:
        raise ValueError(f"{name} must be {shape}, got shape {given.shape}")
    with np.errstate(over="ignore"):
        array = given.astype(np.float32)
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        index = tuple(int(i) for i in bad[0])
        place = name + "".join(f"[{i}]" for i in index)
        why = "too large for float32" if np.isfinite(given[index]) else "every number must be finite"
        raise ValueError(f"{place} is {given[index]}: {why}")
    array.setflags(write=False)
    return array
