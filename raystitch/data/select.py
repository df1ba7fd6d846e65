"""Which episodes of a dataset are meant, which are sources, which are targets, and which no model is fitted on."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from raystitch.data.checks import check_finite, check_magnitudes
from raystitch.data.episodes import EpisodeDataset, Ints
from raystitch.data.selection import Spec, Value, step_text, steps_of_spec
from raystitch.data.selectors import BUILT_IN, Embed, EpisodeSelector, Kept, standardised
from raystitch.errors import UserError, check_choice
from raystitch.seeding import numpy_rng

ALL = "all"
MIN_EPISODES = 2
"""One episode to leave and another to enter, and one to hold out: fewer are refused."""

EPISODE_SELECTORS: dict[str, EpisodeSelector] = dict(BUILT_IN)
"""By the name that ``DatasetRef.select`` and ``select:`` take."""


@dataclass(frozen=True)
class LeftOut:
    """Says how many episodes, of how many steps in all, one step of a selection left out, and why."""

    step: str
    reason: str
    num_episodes: int
    num_steps: int


@dataclass(frozen=True, kw_only=True, eq=False)
class SelectedEpisodes:
    """A part of a dataset, and how it came about.

    Attributes:
        select: the selection as text. dataset: the part.
        num_episodes, num_steps: of the dataset that was selected from.
        notes: what a user should know, one line each.
    """

    select: str
    dataset: EpisodeDataset
    num_episodes: int
    num_steps: int
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """Say in one line what was kept, and why the rest was not."""
        part = self.dataset
        kept = f"{part.num_episodes:,} of {self.num_episodes:,} episodes, {part.num_transitions:,} of "
        reasons = "; ".join(
            f"{out.step}: without {out.num_episodes:,} ({out.num_steps:,} steps), {out.reason}" for out in self.left_out
        )
        return f"select {self.select} keeps {kept}{self.num_steps:,} steps" + (f" ({reasons})" if reasons else "")

    @property
    def lines(self) -> list[str]:
        """Lines for the user: none where everything was asked for."""
        return [] if self.select == ALL else [f"{self.dataset.name}: {line}" for line in (self.summary, *self.notes)]

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "select": self.select,
            "num_episodes": self.num_episodes,
            "num_transitions": self.num_steps,
            "kept_episodes": self.dataset.num_episodes,
            "kept_transitions": self.dataset.num_transitions,
            "left_out": [
                {"step": o.step, "reason": o.reason, "episodes": o.num_episodes, "transitions": o.num_steps}
                for o in self.left_out
            ],
            "notes": list(self.notes),
        }


def read_selection(spec: Spec) -> list[tuple[str, Value]]:
    """Return the names and checked values of a selection, in order, without those that keep everything.

    Raises:
        UserError: for a name that there is not (lists those there are), or a value that is not one.
    """
    steps = [(name, find_selector(name).read(name, value)) for name, value in steps_of_spec(spec)]
    return [(name, value) for name, value in steps if name != ALL]


def selection_text(spec: Spec) -> str:
    """Return the one way to write a selection, ``best=0.5,clean``; a file of episodes is written as its numbers.

    Raises:
        UserError: as ``read_selection``.
    """
    return ",".join(step_text(name, value) for name, value in read_selection(spec)) or ALL


def mends(spec: Spec) -> bool:
    """Say whether the selection leaves out what is not finite, so that a dataset with such values may be read."""
    return any(find_selector(name).mends for name, _ in read_selection(spec))


def select_episodes(dataset: EpisodeDataset, spec: Spec) -> EpisodeDataset:
    """Return the part of a dataset that a selection keeps; the dataset itself where that is all of it.

    Raises:
        UserError: as ``choose_episodes``.
    """
    return choose_episodes(dataset, spec).dataset


def choose_episodes(dataset: EpisodeDataset, spec: Spec, embed: Embed = standardised) -> SelectedEpisodes:
    """Apply a selection, step by step, and say what each step left out.

    Args:
        embed: for selectors that compare states; anything but the default is no function of the dataset alone.

    Raises:
        UserError: an unknown selector, a value that does not suit the dataset, fewer than two episodes left, or values
            that are not finite in what is left.
    """
    part, left_out, notes = dataset, list[LeftOut](), list[str]()
    steps = read_selection(spec)
    for name, value in steps:
        text = step_text(name, value)
        kept = find_selector(name).choose(part, value, embed)
        assert kept.episodes.dtype == np.int64 and (np.diff(kept.episodes) > 0).all(), f"{name}: not ascending int64"
        _check_enough(dataset, text, len(kept.episodes), part.num_episodes)
        left_out += _left_out(part, text, kept)
        notes += kept.notes
        if len(kept.episodes) < part.num_episodes:
            part = part.select(kept.episodes)
    if part is not dataset:
        part = _named(part, dataset, selection_text(spec))
    if mends(spec):
        columns = {name: getattr(part, name) for name in ("observations", "actions", "rewards")}
        check_finite(columns, part.name)
        check_magnitudes(columns, part.name)
    return SelectedEpisodes(
        select=selection_text(spec),
        dataset=part,
        num_episodes=dataset.num_episodes,
        num_steps=dataset.num_transitions,
        left_out=tuple(left_out),
        notes=tuple(notes),
    )


def _check_enough(dataset: EpisodeDataset, step: str, kept: int, of: int) -> None:
    if not kept:
        raise UserError(f"{dataset.name}: select={step} keeps none of {of} episodes")
    if kept < MIN_EPISODES and dataset.num_episodes >= MIN_EPISODES:
        raise UserError(
            f"{dataset.name}: select={step} keeps 1 of {of} episodes; at least {MIN_EPISODES} are needed, one to leave "
            "and one to enter"
        )


def _left_out(part: EpisodeDataset, step: str, kept: Kept) -> list[LeftOut]:
    out = np.ones(part.num_episodes, np.bool_)
    out[kept.episodes] = False
    found: list[LeftOut] = []
    for reason, where in (kept.reasons | {"not chosen": out}).items():
        of_reason = out & where
        if of_reason.any():
            found.append(LeftOut(step, reason, int(of_reason.sum()), int(part.lengths[of_reason].sum())))
        out &= ~where
    return found


def _named(part: EpisodeDataset, whole: EpisodeDataset, text: str) -> EpisodeDataset:
    """Return the part with the selection that leads from the whole recording to it."""
    assert part.selected_from is not None
    before = None if whole.selected_from is None else whole.selected_from.select
    known = whole.selected_from is None or before is not None
    select = (text if before is None else f"{before},{text}") if known else None
    return replace(part, selected_from=replace(part.selected_from, select=select))


def find_selector(name: str) -> EpisodeSelector:
    """Return the selector of a name.

    Raises:
        UserError: when there is none; lists those there are.
    """
    check_choice("select", name, EPISODE_SELECTORS)
    return EPISODE_SELECTORS[name]


def low_high_split(dataset: EpisodeDataset, source_fraction: float, target_fraction: float) -> tuple[Ints, Ints]:
    """Split off the episodes with the lowest and with the highest returns.

    Args:
        source_fraction, target_fraction: shares of the episodes, in (0, 1]; each gives at least one. They may overlap.

    Returns:
        int64 source episodes and int64 target episodes, ascending by return, equal returns by index.
    """
    by_return = np.argsort(dataset.returns, kind="stable").astype(np.int64)
    by_return = by_return[dataset.lengths[by_return] > 0]
    num_sources = max(1, round(source_fraction * len(by_return)))
    num_targets = max(1, round(target_fraction * len(by_return)))
    return by_return[:num_sources], by_return[len(by_return) - num_targets :]


def holdout_split(num_episodes: int, fraction: float, seed: int) -> tuple[Ints, Ints]:
    """Split whole episodes at random; each part gets at least one.

    Returns:
        int64 episodes to fit on and int64 episodes held out, both ascending.

    Raises:
        UserError: when there are fewer than two episodes.
    """
    if num_episodes < 2:
        raise UserError(f"the dataset has {num_episodes} episode(s); at least 2 are needed to hold one out")
    shuffled = numpy_rng(seed, "holdout").permutation(num_episodes).astype(np.int64)
    num_held_out = min(max(1, round(fraction * num_episodes)), num_episodes - 1)
    return np.sort(shuffled[num_held_out:]), np.sort(shuffled[:num_held_out])
