"""How far a run is: its driver, its stages, its bridges and its trials."""

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Literal, get_args

from raystitch import __version__
from raystitch.buffer.meta import META_FILE, read_meta
from raystitch.buffer.rounds import current_round
from raystitch.buffer.schema import BufferMeta
from raystitch.buffer.survey import survey
from raystitch.config import RunConfig
from raystitch.console import duration
from raystitch.errors import RunError, UserError
from raystitch.io.config_file import current_names, parse_config, read_value
from raystitch.io.lease import LeaseHolder
from raystitch.io.object_lease import lock_holder
from raystitch.io.storage import Storage, StrPath
from raystitch.pipeline.status.files import RunFolder
from raystitch.pipeline.status.progress import DriverNote, StageTimes, read_progress
from raystitch.pipeline.status.trials import TimeLeft, TrialStates, TrialWord, read_trials, time_left
from raystitch.report.names import (
    BUFFER,
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    LOCK_FILE,
    REPORT_FILE,
    RESULTS_FILE,
    RETURNS_FILE,
    SEARCH_FILE,
    STITCHER,
    TRIALS,
    VALIDATION_FILE,
)

StageWord = Literal["done", "running", "waiting", "stale"]
FIT, AUGMENT, VALIDATE, SEARCH, TRIALS_STAGE, REPORT = "fit", "augment", "validate", "search", "trials", "report"
STAGES = (FIT, AUGMENT, VALIDATE, SEARCH, TRIALS_STAGE, REPORT)
PART_OF = {"figures": VALIDATE, "generalise": REPORT}
"""Stages that the driver counts by themselves -> the one they are shown in."""
CLOCK_SECONDS = 1.0
"""Times of files are compared to this many seconds: ages are taken one after the other."""
STITCHER_FILE, FIT_FOLDER = "stitcher.json", ".fit"


@dataclass(frozen=True, kw_only=True)
class StageState:
    """One stage of a run.

    Attributes:
        state: ``stale``: begun and nobody is at work on it, or older than what it was made from.
        began, ended: Unix times; ended of a stage that is done is when its file was written.
        seconds: spent on it by all drivers, of one that is running by the one at work; None where nobody wrote it down.
        about: what it is at, or why it is stale; empty where there is nothing to say.
    """

    name: str
    state: StageWord
    began: float | None = None
    ended: float | None = None
    seconds: float | None = None
    about: str = ""


@dataclass(frozen=True, kw_only=True)
class BridgeCount:
    """Accepted bridges of all rounds: ``made`` of those ``wanted``, from ``candidates``, in round ``chain_round``.

    ``per_second`` and ``seconds_left`` are the driver's, None where it does not say.
    """

    made: int
    wanted: int
    candidates: int = 0
    chain_round: int = 0
    per_second: float | None = None
    seconds_left: float | None = None


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """How far a run is.

    Attributes:
        version: of raystitch, that the run was begun or finished with; empty where it does not say.
        state: ``finished``: the report is there and shows every trial.
        driver: at work, or the last one if it died; None where there is none, or it ended properly.
        left: of the trials, once they are at hand.
        notes: files that could not be made sense of.
    """

    uri: str
    config: RunConfig
    version: str
    state: Literal["finished", "running", "stopped"]
    driver: LeaseHolder | None
    stages: Sequence[StageState]
    bridges: BridgeCount
    trials: TrialStates
    left: TimeLeft
    notes: Sequence[str]

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def at_work(self) -> bool:
        return self.driver is not None and self.driver.alive

    def stage(self, name: str) -> StageState:
        return next(stage for stage in self.stages if stage.name == name)

    def to_json(self) -> dict[str, Any]:
        """Plain data, as ``raystitch status --json`` prints it; docs/watching.md describes the keys."""
        trials = self.trials
        return {
            "schema_version": 1,
            "run": self.uri,
            "name": self.name,
            "version": self.version,
            "state": self.state,
            "driver": None
            if self.driver is None
            else {**asdict(self.driver), "seconds": round(self.driver.seconds, 1)},
            "stages": [
                {**asdict(stage), "began": _iso(stage.began), "ended": _iso(stage.ended)} for stage in self.stages
            ],
            "bridges": asdict(self.bridges),
            "trials": {
                "planned": len(trials.trials),
                **{word: len(trials.of(word)) for word in get_args(TrialWord)},
                "others": trials.num_others,
                "unfinished": [
                    {
                        **asdict(one.trial),
                        **{name: getattr(one, name) for name in ("state", "doing", "holder", "step", "steps")},
                        "steps_per_second": one.steps_per_second,
                        "reason": one.reason,
                    }
                    for one in trials.trials
                    if one.state != "finished"
                ],
            },
            "seconds_left": self.left.seconds,
            "notes": list(self.notes),
        }


def read_status(run: StrPath) -> RunStatus:
    """Look at a run: before anything is finished, while it works, after it was killed, and when it is finished.

    Args:
        run: its folder, or a URI.

    Raises:
        UserError: when there is no such folder, it is no run or one of a version that cannot be read, or a file is
            there but cannot be read.
    """
    folder = RunFolder(run)
    config, version = read_config(folder)
    progress, driver = read_progress(folder.storage), lock_holder(folder.storage, LOCK_FILE)
    trials = read_trials(folder, config)
    alive = driver is not None and driver.alive
    hand = PART_OF.get(progress.stage or "", progress.stage) if alive else None
    look = _Look(folder, config, progress, trials, alive, hand)
    bridges, buffered = look.bridges()
    stages = look.stages(bridges, buffered)
    finished = all(stage.state == "done" for stage in stages) and not alive
    slots = progress.slots or len({one.holder for one in trials.of("running")})
    return RunStatus(
        uri=folder.uri,
        config=config,
        version=version,
        state="running" if alive else "finished" if finished else "stopped",
        driver=driver,
        stages=stages,
        bridges=bridges,
        trials=trials,
        left=time_left(trials.trials, slots),
        notes=trials.notes,
    )


def read_config(folder: RunFolder) -> tuple[RunConfig, str]:
    """Return the settings of a run, and the version of raystitch that it names (empty where it names none).

    Raises:
        UserError: when they cannot be read; says which version wrote them if it was another one.
    """
    environment = folder.object(ENVIRONMENT_FILE) or {}
    packages = environment.get("packages")
    version = str(packages.get("raystitch", "")) if isinstance(packages, Mapping) else ""
    where = folder.storage.where(CONFIG_FILE)
    try:
        text = (folder.content(CONFIG_FILE) or b"").decode()
        return parse_config(current_names(read_value(text), RunConfig), RunConfig), version
    except UserError as error:
        if str(error).startswith(str(where)):
            raise
        why = f"a run of raystitch {version}, this is {__version__}: " if version not in ("", __version__) else ""
        raise UserError(f"{where}: {why}{error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is damaged: it is no text") from error


class _Look:
    """One look at a run; ``hand`` is the stage that a living driver says it is at."""

    def __init__(
        self,
        run: RunFolder,
        config: RunConfig,
        progress: DriverNote,
        trials: TrialStates,
        alive: bool,
        hand: str | None,
    ) -> None:
        self.run, self.config, self.progress, self.trials = run, config, progress, trials
        self.alive, self.hand = alive, hand

    def bridges(self) -> tuple[BridgeCount, bool]:
        """Count the bridges, and say whether there are enough."""
        wanted = self.config.augment.num_bridges
        storage = Storage(self.run.storage.below(BUFFER))
        with contextlib.suppress(UserError, RunError, OSError):
            if storage.exists(META_FILE):
                return self._counted(storage, read_meta(storage), wanted)
        return BridgeCount(made=0, wanted=wanted), False

    def _counted(self, storage: Storage, meta: BufferMeta, wanted: int) -> tuple[BridgeCount, bool]:
        complete = meta.complete
        if complete is not None and complete.num_bridges >= wanted:
            count = BridgeCount(
                made=complete.num_accepted,
                wanted=wanted,
                candidates=complete.num_candidates,
                chain_round=len(meta.rounds),
            )
            return count, True
        stats = survey(storage.uri, thorough=False).stats
        made = sum(closed.num_accepted for closed in meta.rounds)
        made += sum(shard.accepted for shard in current_round(stats, meta.rounds).values())
        now = self.progress.now if self.hand == AUGMENT else {}
        count = BridgeCount(
            made=made,
            wanted=wanted,
            candidates=sum(shard.rows for shard in stats.values()),
            chain_round=len(meta.rounds),
            per_second=now.get("bridges_per_second"),
            seconds_left=now.get("seconds_left"),
        )
        return count, False

    def stages(self, bridges: BridgeCount, buffered: bool) -> list[StageState]:
        """Return every stage that the settings ask for."""
        made = self.run.written
        fitted, filled = made(f"{STITCHER}/{STITCHER_FILE}"), made(f"{BUFFER}/{META_FILE}")
        fitting = FIT_FOLDER in self.run.names(STITCHER)
        found = [
            self._stage(FIT, fitted, begun=fitting, about=self._fit_text()),
            self._stage(AUGMENT, filled if buffered else None, begun=bool(filled), about=_bridges_text(bridges)),
        ]
        if self.config.validation.enabled:
            validated = made(VALIDATION_FILE)
            older = bool(buffered and filled and validated and validated < filled - CLOCK_SECONDS)
            found.append(self._stage(VALIDATE, validated, older="the buffer is newer" if older else ""))
        if self.config.search.algorithm != "none":
            searched = self.run.object(SEARCH_FILE) or {}
            tried = [row for row in searched.get("trials", ()) if row.get("status") in ("ok", "stopped")]
            text = f"{len(tried)} of {self.config.search.num_cells} cells"
            done = made(SEARCH_FILE) if searched.get("chosen") else None
            found.append(self._stage(SEARCH, done, begun=bool(searched), about=text))
        found += [self._trials(), self._report()]
        return found

    def _fit_text(self) -> str:
        now = self.progress.now if self.progress.stage == FIT else {}
        return f"{now['part']} {now['step']:,}/{now['total_steps']:,}" if "part" in now else ""

    def _trials(self) -> StageState:
        trials = self.trials
        ended = trials.of("finished", "failed")
        done = max(self._returned.values(), default=time.time()) if len(ended) == len(trials.trials) else None
        failed = len(trials.of("failed"))
        text = f"{len(trials.of('finished'))} of {len(trials.trials)}" + (f", {failed} failed" if failed else "")
        begun = bool(ended or trials.of("running", "interrupted"))
        running = bool(trials.of("running"))
        return self._stage(TRIALS_STAGE, done, begun=begun, about=text, running=running)

    @cached_property
    def _returned(self) -> dict[str | None, float]:
        """When each finished trial had its result."""
        finished = [one.trial.trial_id for one in self.trials.of("finished")]
        return {name: self.run.written(f"{TRIALS}/{name}/{RETURNS_FILE}") or 0.0 for name in finished}

    def _lacks(self, table: float) -> str:
        """Say what a table of that time lacks; empty for nothing."""
        newer = sum(at > table + CLOCK_SECONDS for at in self._returned.values())
        if newer:
            return f"{newer} trials are newer"
        return "of an earlier grid" if self.trials.of("running", "interrupted", "waiting") else ""

    def _report(self) -> StageState:
        reported, table = self.run.written(REPORT_FILE), self.run.written(RESULTS_FILE)
        if table is None:  # a page of a run that was not finished
            return self._stage(REPORT, None)
        older = self._lacks(table)
        if not older and reported is not None and reported < table - CLOCK_SECONDS:
            older = f"{RESULTS_FILE} is newer"
        return self._stage(REPORT, reported, older=older)

    def _stage(
        self,
        name: str,
        done: float | None,
        *,
        begun: bool = False,
        about: str = "",
        older: str = "",
        running: bool = False,
    ) -> StageState:
        """Put together a stage. ``done``: when its file was written; ``older``: why that does not count."""
        times: StageTimes | None = self.progress.stages.get(name)
        seconds = None if times is None else times.seconds
        began = None if times is None else times.began
        if self.hand == name or running:
            if self.alive and self.hand == name:
                now = self.progress.stages.get(self.progress.stage or "", times)
                began = None if now is None else now.began
                seconds = None if began is None else max(0.0, time.time() - began)
            return StageState(name=name, state="running", began=began, seconds=seconds, about=about)
        if done is not None and not older:
            return StageState(name=name, state="done", began=began, ended=done, seconds=seconds, about=about)
        if done is not None:
            return StageState(name=name, state="stale", began=began, ended=done, seconds=seconds, about=older)
        unfinished = begun or (times is not None and times.ended is None)
        if not unfinished or self.alive:
            return StageState(name=name, state="waiting", seconds=seconds, about=about if begun else "")
        text = ", ".join(part for part in ("interrupted", about) if part)
        return StageState(name=name, state="stale", began=began, seconds=seconds, about=text)


def _bridges_text(bridges: BridgeCount) -> str:
    if not bridges.made and not bridges.candidates:
        return ""
    if bridges.made >= bridges.wanted:
        return f"{bridges.made:,} bridges of {bridges.candidates:,} candidates"
    text = f"{bridges.made:,} of {bridges.wanted:,} bridges"
    if bridges.chain_round:
        text += f", round {bridges.chain_round + 1}"
    if bridges.per_second is not None:
        text += f", {bridges.per_second:,.0f}/s"
    if bridges.seconds_left is not None:
        text += f", {duration(bridges.seconds_left)} left"
    return text


def _iso(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
