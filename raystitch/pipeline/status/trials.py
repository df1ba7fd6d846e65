"""The state of every trial of a run's grid, from the trials' own folders."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from raystitch.config import RunConfig
from raystitch.io.config_file import parse_config
from raystitch.io.object_lease import lock_holder
from raystitch.pipeline.status.cells import Key, PlannedTrial, planned_trials
from raystitch.pipeline.status.files import RunFolder
from raystitch.report.names import ERROR_FILE, LOCK_FILE, METRICS_FILE, RETURNS_FILE, SETTINGS_FILE, TRIALS
from raystitch.shaping.config import ShapingConfig

TrialWord = Literal["finished", "failed", "running", "interrupted", "waiting"]
STARTING, TRAINING, EVALUATING = "starting", "training", "evaluating"


@dataclass(frozen=True, kw_only=True)
class TrialState:
    """One trial of the grid.

    Attributes:
        state: ``interrupted``: begun, and nobody is at work on it now; it goes on from its last checkpoint.
        doing: of a running one: starting, training or evaluating. holder: of a running one, host and process.
        step, steps: of training, as far as is known; steps_per_second: by the clock on the wall, of all seeds that are
            trained together.
        reason: of a failed one, in a line.
        returns: of a finished one, the content of ``returns.json``.
    """

    trial: PlannedTrial
    state: TrialWord
    doing: str = ""
    holder: str = ""
    step: int = 0
    steps: int = 0
    steps_per_second: float | None = None
    reason: str = ""
    returns: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def cell(self) -> str:
        """The cell's name, without the seed."""
        one = self.trial
        delta = None if one.delta is None else f"delta {one.delta}"
        return " ".join(part for part in (one.algo, one.data, one.ratio, delta, one.shaping) if part)

    @property
    def seconds(self) -> float | None:
        """Training and evaluation of a finished one: its share of the time of its group."""
        if self.state != "finished":
            return None
        return float(self.returns["train_seconds"]) + float(self.returns.get("eval_seconds", 0.0))


@dataclass(frozen=True, kw_only=True)
class TrialStates:
    """The trials of the grid in its order, and how many other trials lie in the folder (of a search, or another grid).

    ``notes`` has a line for each file that could not be made sense of.
    """

    trials: Sequence[TrialState]
    num_others: int
    notes: Sequence[str]

    def of(self, *words: TrialWord) -> list[TrialState]:
        """Return those in one of some states."""
        return [trial for trial in self.trials if trial.state in words]


def read_trials(run: RunFolder, config: RunConfig) -> TrialStates:
    """Look at every trial of the grid.

    Raises:
        UserError: when a file is there but cannot be read.
    """
    planned = planned_trials(config, run.storage)
    there = [name for name in run.names(TRIALS) if not name.startswith(".")]
    notes: list[str] = []
    if any(trial.trial_id is None for trial in planned) and there:
        planned = _found(run, planned, there)
    states = [_state(run, config, trial, trial.trial_id in there, notes) for trial in planned]
    mine = {trial.trial_id for trial in planned}
    return TrialStates(trials=_with_pace(run, states), num_others=sum(name not in mine for name in there), notes=notes)


def _found(run: RunFolder, planned: Sequence[PlannedTrial], there: Sequence[str]) -> list[PlannedTrial]:
    """Give trials the ids of the folders that are about them; of several the one that was written last."""
    ids: dict[Key, tuple[float, str]] = {}
    for name in there:
        key, at = _key(run, name), run.written(f"{TRIALS}/{name}/{SETTINGS_FILE}") or 0.0
        if key is not None:
            ids[key] = max(ids.get(key, (0.0, "")), (at, name))
    return [replace(one, trial_id=ids[one.key][1]) if one.key in ids else one for one in planned]


def _key(run: RunFolder, trial_id: str) -> Key | None:
    content = run.object(f"{TRIALS}/{trial_id}/{SETTINGS_FILE}")
    try:
        assert content is not None
        shaping = parse_config(content.get("shaping", {}), ShapingConfig).text
        delta = content["record"].get("delta")
        return content["algo"], content["data"], content["ratio"], delta, shaping, int(content["seed"])
    except (AssertionError, KeyError, TypeError, ValueError, AttributeError):
        return None


def _state(run: RunFolder, config: RunConfig, trial: PlannedTrial, begun: bool, notes: list[str]) -> TrialState:
    steps = config.algorithms.of(trial.algo).train_steps
    if not begun:
        return TrialState(trial=trial, state="waiting", steps=steps)
    folder = f"{TRIALS}/{trial.trial_id}"
    returns = run.object(f"{folder}/{RETURNS_FILE}") or {}
    trained = returns.keys() >= {"train_steps", "train_seconds", "evaluations"}
    if trained and returns["evaluations"]:
        return TrialState(trial=trial, state="finished", step=steps, steps=steps, returns=returns)
    if not trained and run.content(f"{folder}/{RETURNS_FILE}") is not None:
        notes.append(f"{run.storage.where(folder)}/{RETURNS_FILE} is damaged: the trial counts as not finished")
    holder = lock_holder(run.storage, f"{folder}/{LOCK_FILE}")
    last = (_rows(run, folder) or [{}])[-1]
    step = steps if trained else int(last.get("step", 0))
    if holder is not None and holder.alive:
        doing = EVALUATING if trained or step >= steps else TRAINING if step else STARTING
        return TrialState(trial=trial, state="running", doing=doing, holder=holder.name, step=step, steps=steps)
    reason = (run.tail(f"{folder}/{ERROR_FILE}") or [""])[-1].strip()
    word = "failed" if reason else "interrupted" if step else "waiting"
    return TrialState(trial=trial, state=word, step=step, steps=steps, reason=reason)


def _rows(run: RunFolder, folder: str) -> list[Mapping[str, Any]]:
    """Return the last rows of training of a trial; a killed one may leave half a line."""
    found: list[Mapping[str, Any]] = []
    for line in run.tail(f"{folder}/{METRICS_FILE}"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and row.get("kind") == "train" and isinstance(row.get("step"), int):
            found.append(row)
    return found


def _with_pace(run: RunFolder, states: Sequence[TrialState]) -> list[TrialState]:
    """Add the steps per second of running trials: seeds of a cell in one process share its time."""
    together = Counter((state.holder, state.cell) for state in states if state.state == "running")
    found: list[TrialState] = []
    for state in states:
        pace = None
        if state.doing == TRAINING:
            pace = _pace(_rows(run, f"{TRIALS}/{state.trial.trial_id}"), together[state.holder, state.cell])
        found.append(state if pace is None else replace(state, steps_per_second=pace))
    return found


def _pace(rows: Sequence[Mapping[str, Any]], num_seeds: int) -> float | None:
    """Return steps per second of the last rows; their seconds are a seed's share of the time of ``num_seeds``."""
    places = [(row["step"], row["seconds"]) for row in rows if isinstance(row.get("seconds"), int | float)]
    if not places:
        return None
    first = places[0] if len(places) > 1 else (0, 0.0)
    steps, seconds = places[-1][0] - first[0], places[-1][1] - first[1]
    return steps / (seconds * num_seeds) if steps > 0 and seconds > 0 else None


@dataclass(frozen=True, kw_only=True)
class TimeLeft:
    """How long the trials will still take: ``seconds``, None while that cannot be told, because of ``unknown``."""

    seconds: float | None
    unknown: str = ""


def time_left(states: Sequence[TrialState], slots: int) -> TimeLeft:
    """Estimate the time left from the trials of the same cell, else algorithm, that are finished or well under way.

    Args:
        slots: groups of trials that run at once.
    """
    left = [state for state in states if state.state not in ("finished", "failed")]
    total = 0.0
    for state in left:
        whole = _whole_seconds(state, states)
        if whole is None:
            return TimeLeft(seconds=None, unknown=f"no trial of {state.trial.algo} has come far enough")
        share = state.step / state.steps if state.steps and state.doing != EVALUATING else 1.0 * (state.step > 0)
        total += whole * max(0.0, 1.0 - share)
    return TimeLeft(seconds=total / max(1, slots))


def _whole_seconds(of: TrialState, states: Sequence[TrialState]) -> float | None:
    """Return the seconds that a trial takes, as others like it did; a running one counts as it is trained."""
    for alike in (
        lambda other: other.cell == of.cell,
        lambda other: other.trial.algo == of.trial.algo,
    ):
        known = [other.seconds for other in states if alike(other) and other.seconds is not None]
        if known:
            return sum(known) / len(known)
    together = Counter((state.holder, state.cell) for state in states if state.state == "running")
    paces = [
        (other.steps / other.steps_per_second) / together[other.holder, other.cell]
        for other in states
        if other.trial.algo == of.trial.algo and other.steps_per_second
    ]
    return sum(paces) / len(paces) if paces else None
