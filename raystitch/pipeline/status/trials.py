"""The state of every trial of a run's grid, from the trials' own folders."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from raystitch.config import RunConfig
from raystitch.io.config_file import parse_config
from raystitch.io.object_lease import lock_holder
from raystitch.pipeline.status.cells import Key, PlannedTrial, planned_trials
from raystitch.pipeline.status.files import RunFolder, parsed
from raystitch.report.names import ERROR_FILE, LOCK_FILE, METRICS_FILE, RETURNS_FILE, SETTINGS_FILE, TRIALS
from raystitch.shaping.config import ShapingConfig
from raystitch.trainers.config import settings_json

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
    there = {name for name in run.names(TRIALS) if not name.startswith(".")}
    if any(trial.trial_id is None for trial in planned) and there:
        planned = _found(run, config, planned, there)
    found = run.storage.each(lambda trial: _look(run, config, trial, trial.trial_id in there), planned)
    mine = {trial.trial_id for trial in planned}
    notes = [one.note for one in found if one.note]
    return TrialStates(trials=_with_pace(found), num_others=len(there - mine), notes=notes)


def _found(
    run: RunFolder, config: RunConfig, planned: Sequence[PlannedTrial], there: Iterable[str]
) -> list[PlannedTrial]:
    """Give trials the ids of the folders that are about them; of several the one that was written last."""
    ids: dict[Key, tuple[float, str]] = {}

    def about(name: str) -> tuple[str, Key | None, float]:
        return name, _key(run, config, name), run.written(f"{TRIALS}/{name}/{SETTINGS_FILE}") or 0.0

    for name, key, at in run.storage.each(about, sorted(there)):
        if key is not None:
            ids[key] = max(ids.get(key, (0.0, "")), (at, name))
    return [replace(one, trial_id=ids[one.key][1]) if one.key in ids else one for one in planned]


def _key(run: RunFolder, config: RunConfig, trial_id: str) -> Key | None:
    """Return what tells a trial's folder apart; None where its algorithm has other settings now."""
    content = run.object(f"{TRIALS}/{trial_id}/{SETTINGS_FILE}")
    try:
        assert content is not None
        shaping = parse_config(content.get("shaping", {}), ShapingConfig).text
        delta = content["record"].get("delta")
        if content["config"] != settings_json(config.algorithms.of(content["algo"])):
            return None
        return content["algo"], content["data"], content["ratio"], delta, shaping, int(content["seed"])
    except (AssertionError, KeyError, TypeError, ValueError, AttributeError):
        return None


@dataclass(frozen=True, kw_only=True)
class _Look:
    """What is seen of one trial: ``rows`` are the last ones of one that is being trained, ``note`` a damaged file."""

    state: TrialState
    rows: Sequence[Mapping[str, Any]] = ()
    note: str = ""


def _look(run: RunFolder, config: RunConfig, trial: PlannedTrial, begun: bool) -> _Look:
    steps = config.algorithms.of(trial.algo).train_steps
    if not begun:
        return _Look(state=TrialState(trial=trial, state="waiting", steps=steps))
    folder = f"{TRIALS}/{trial.trial_id}"
    content = run.content(f"{folder}/{RETURNS_FILE}")
    returns = parsed(content) or {}
    trained = returns.keys() >= {"train_steps", "train_seconds", "evaluations"}
    if trained and returns["evaluations"]:
        return _Look(state=TrialState(trial=trial, state="finished", step=steps, steps=steps, returns=returns))
    damaged = f"{run.storage.where(folder)}/{RETURNS_FILE} is damaged: the trial counts as not finished"
    note = damaged if not trained and content is not None else ""
    holder = lock_holder(run.storage, f"{folder}/{LOCK_FILE}")
    last_rows = _rows(run, folder)
    step = steps if trained else int(last_rows[-1]["step"]) if last_rows else 0
    if holder is not None and holder.alive:
        doing = EVALUATING if trained or step >= steps else TRAINING if step else STARTING
        state = TrialState(trial=trial, state="running", doing=doing, holder=holder.name, step=step, steps=steps)
        return _Look(state=state, rows=last_rows if doing == TRAINING else (), note=note)
    reason = (run.tail(f"{folder}/{ERROR_FILE}") or [""])[-1].strip()
    word = "failed" if reason else "interrupted" if step else "waiting"
    return _Look(state=TrialState(trial=trial, state=word, step=step, steps=steps, reason=reason), note=note)


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


def _together(states: Iterable[TrialState]) -> Counter[tuple[str, str]]:
    """Count the running seeds of a cell in one process, which share its time."""
    return Counter((state.holder, state.cell) for state in states if state.state == "running")


def _with_pace(found: Sequence[_Look]) -> list[TrialState]:
    """Return the states, with steps per second of the trials that are being trained."""
    together = _together(one.state for one in found)
    states: list[TrialState] = []
    for one in found:
        pace = _pace(one.rows, together[one.state.holder, one.state.cell]) if one.rows else None
        states.append(one.state if pace is None else replace(one.state, steps_per_second=pace))
    return states


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
        slots: groups of trials that may run at once.
    """
    known = _KnownSeconds(states)
    groups: dict[object, float] = {}
    """Seconds left of each running group, and of each other trial, whose group is not known yet."""
    for number, state in enumerate(states):
        if state.state in ("finished", "failed"):
            continue
        whole = known.of(state)
        if whole is None:
            return TimeLeft(seconds=None, unknown=f"no trial of {state.trial.algo} has come far enough")
        share = state.step / state.steps if state.steps and state.doing != EVALUATING else 1.0 * (state.step > 0)
        group = (state.holder, state.cell) if state.state == "running" else number
        groups[group] = groups.get(group, 0.0) + whole * max(0.0, 1.0 - share)
    at_once = max(1, min(slots, len(groups)))
    return TimeLeft(seconds=max(sum(groups.values()) / at_once, max(groups.values(), default=0.0)))


class _KnownSeconds:
    """What trials take, as others did: a running one counts as it is trained."""

    def __init__(self, states: Sequence[TrialState]) -> None:
        by: dict[str, dict[str, list[float]]] = {"cell": {}, "algo": {}, "pace": {}}
        together = _together(states)
        for state in states:
            algo = state.trial.algo
            if state.seconds is not None:
                by["cell"].setdefault(state.cell, []).append(state.seconds)
                by["algo"].setdefault(algo, []).append(state.seconds)
            if state.steps_per_second:
                seconds = state.steps / state.steps_per_second / together[state.holder, state.cell]
                by["pace"].setdefault(algo, []).append(seconds)
        self._means = {
            kind: {name: sum(values) / len(values) for name, values in found.items()} for kind, found in by.items()
        }

    def of(self, state: TrialState) -> float | None:
        """Return the seconds that a trial takes, its share of the time of its group; None while nobody knows."""
        means, algo = self._means, state.trial.algo
        return means["cell"].get(state.cell, means["algo"].get(algo, means["pace"].get(algo)))
