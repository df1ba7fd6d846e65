"""The folder of one trial.

``config.json`` first, ``metrics.jsonl`` and ``checkpoint/`` while it trains, ``policy/``, and
``returns.json`` last: a trial is finished when that file is there.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from raystitch.console import say
from raystitch.errors import DamagedError, UserError
from raystitch.io.digest import KEY as DIGEST
from raystitch.io.digest import json_digest, read_sealed, sealed
from raystitch.io.files import differences, set_aside, write_json
from raystitch.io.journal import Journal
from raystitch.report.names import METRICS_FILE, RETURNS_FILE, SETTINGS_FILE
from raystitch.trainers.evaluate import EvalResult
from raystitch.trainers.loop import CHECKPOINT_SECONDS, Checkpoints, Log

SCHEMA_VERSION = 1
CURVE_COLUMNS = ("target_return", "return_mean", "return_std", "success_rate", "score", "num_eval_episodes")

_INSTEAD = {
    SETTINGS_FILE: "it is written again where the rest of the folder belongs to these settings",
    RETURNS_FILE: "the trial is not finished, it is done again",
}


def finished(trial_dir: str | Path) -> dict[str, Any] | None:
    """Return the content of ``returns.json``, None while the trial is not finished: also where the file is damaged.

    Raises:
        UserError: when the file is there but cannot be read, which says nothing about the trial.
    """
    path = Path(trial_dir) / RETURNS_FILE
    if not path.is_file():  # a folder in its place is set aside when the trial is done again
        return None
    try:
        value = read_sealed(path)
    except DamagedError:
        return None
    whole = value.keys() >= {"train_steps", "train_seconds", "evaluations"}
    return value if whole and value["evaluations"] else None


@dataclass(frozen=True)
class TrialFolder:
    """Reads and writes the folder of one trial.

    Attributes:
        note: gets a line for every damaged file that the trial does without.
    """

    out: Path
    seed: int
    settings: Mapping[str, Any]
    note: Callable[[str], None] = say

    @cached_property
    def journal(self) -> Journal:
        return Journal(self.out / METRICS_FILE)

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(
            path=self.out / "checkpoint" / "state.pt",
            seconds=CHECKPOINT_SECONDS,
            settings=json_digest(self.settings),
            journal=self.journal,
            note=self.note,
        )

    def take_up(self) -> dict[str, Any] | None:
        """Return the ``returns.json`` of a trial with these settings that was trained, None when there is work to do.

        A file that is damaged is named and set aside; without its ``returns.json`` the trial is done again.

        Raises:
            UserError: when the folder holds a trial with other settings.
        """
        config = self._sound(SETTINGS_FILE)
        differing = [] if config is None else differences(_unsealed(config), _unsealed(sealed(self.settings)))
        if differing:
            raise UserError(
                f"{self.out} holds a trial with other settings: {', '.join(differing)}; choose another folder or "
                "delete this one"
            )
        returns = self._sound(RETURNS_FILE)
        if returns is None:
            return None
        if config is None and returns.get("settings") != json_digest(self.settings):
            self.redo(f"{self.out / RETURNS_FILE} may belong to other settings, as there is no sound {SETTINGS_FILE}")
            return None
        if config is None:
            self.prepare()
        shutil.rmtree(self.checkpoints.path.parent, ignore_errors=True)
        return returns

    def redo(self, why: str) -> None:
        """Take the result away, so that the trial is done again."""
        self.note(f"{why}; the trial is done again ({set_aside(self.out / RETURNS_FILE)} is kept)")

    def _sound(self, name: str) -> dict[str, Any] | None:
        path = self.out / name
        if not path.exists():
            return None
        try:
            return read_sealed(path)
        except UserError as error:
            self.note(f"{error}; {_INSTEAD[name]} ({set_aside(path)} is kept)")
            return None

    def prepare(self) -> None:
        """Write ``config.json``."""
        write_json(self.out / SETTINGS_FILE, sealed(self.settings))

    def finish(
        self,
        results: Sequence[EvalResult],
        metrics: "TrialMetrics",
        train_steps: int,
        num_stacked: int,
        threads: int | None = None,
    ) -> dict[str, Any]:
        """Write ``returns.json``, last of all; the checkpoints go when everything else is on the disk.

        Args:
            results: one per target return, the headline first; none where the policy is yet to be evaluated.
            num_stacked: seeds that were trained together. threads: that they computed with, None where not known.
        """
        for result in results:
            metrics.evaluated(train_steps, result)
        returns: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "status": "ok" if results else "not evaluated",
            "train_steps": train_steps,
            "train_seconds": metrics.train_seconds,
            "eval_seconds": round(metrics.eval_seconds, 3),
            "threads": threads,
            "num_stacked": num_stacked,
            "evaluations": [{"headline": index == 0, **result.to_json()} for index, result in enumerate(results)],
            "settings": json_digest(self.settings),
            **({"shaping": self.settings["shaping"]} if "shaping" in self.settings else {}),
        }
        extent = self.journal.extent()
        returns = sealed(returns if results else {**returns, "metrics": extent})
        write_json(self.out / RETURNS_FILE, returns)
        shutil.rmtree(self.checkpoints.path.parent, ignore_errors=True)
        return returns


class TrialMetrics:
    """Appends rows to ``metrics.jsonl`` and hands them on; counts the seconds of training and evaluation."""

    def __init__(self, journal: Journal, log: Log | None) -> None:
        self.journal, self.log = journal, log
        self.train_seconds, self.eval_seconds = 0.0, 0.0

    def __call__(self, row: dict[str, Any]) -> None:
        self.journal.append(row)
        if self.log is not None:
            self.log(row)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Count the time inside as evaluation."""
        began = time.monotonic()
        yield
        self.eval_seconds += time.monotonic() - began

    def train_row(self, row: dict[str, Any]) -> None:
        self.train_seconds = row["seconds"]
        self({"kind": "train", **row})

    def evaluated(self, step: int, result: EvalResult) -> None:
        row = result.to_json()
        self({"kind": "eval", "step": step, **{name: row[name] for name in (*CURVE_COLUMNS, "prompt") if name in row}})


def _unsealed(value: Mapping[str, Any]) -> dict[str, Any]:
    return {name: item for name, item in value.items() if name != DIGEST}
