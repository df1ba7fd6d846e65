"""The folder of one trial.

``config.json`` first, ``metrics.jsonl`` and ``checkpoint/`` while it trains, ``policy/``, and
``returns.json`` last: a trial is finished when that file is there.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raystitch.errors import RunError, UserError
from raystitch.files import atomic_path, differences, read_json, write_json
from raystitch.trainers.evaluate import EvalResult
from raystitch.trainers.loop import CHECKPOINT_SECONDS, Checkpoints

SCHEMA_VERSION = 1
CURVE_COLUMNS = ("target_return", "return_mean", "return_std", "success_rate", "score", "num_eval_episodes")

Log = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class TrialFolder:
    """The folder of one trial."""

    out: Path
    seed: int
    settings: Mapping[str, Any]

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(path=self.out / "checkpoint" / "state.pt", seconds=CHECKPOINT_SECONDS)

    def finished(self) -> dict[str, Any] | None:
        """The result of a finished trial with these settings, None when there is work to do.

        Raises:
            UserError: when the folder holds a trial with other settings.
        """
        if not (self.out / "config.json").is_file():
            return None
        differing = differences(read_json(self.out / "config.json"), json.loads(json.dumps(self.settings)))
        if differing:
            raise UserError(
                f"{self.out} holds a trial with other settings: {', '.join(differing)}; choose another folder or "
                "delete this one"
            )
        return read_json(self.out / "returns.json") if (self.out / "returns.json").is_file() else None

    def prepare(self) -> Path:
        """Writes ``config.json``; returns the path of the metrics."""
        write_json(self.out / "config.json", self.settings)
        return self.out / "metrics.jsonl"

    def finish(
        self, results: Sequence[EvalResult], metrics: "TrialMetrics", train_steps: int, num_stacked: int
    ) -> dict[str, Any]:
        """Writes ``returns.json``, last of all.

        Args:
            results: one per target return, the headline first; none where the policy could not be evaluated.
            num_stacked: seeds that were trained together.
        """
        for result in results:
            metrics.evaluated(train_steps, result)
        returns = {
            "schema_version": SCHEMA_VERSION,
            "status": "ok" if results else "not evaluated",
            "train_steps": train_steps,
            "train_seconds": metrics.train_seconds,
            "num_stacked": num_stacked,
            "evaluations": [{"headline": index == 0, **result.to_json()} for index, result in enumerate(results)],
        }
        write_json(self.out / "returns.json", returns)
        shutil.rmtree(self.checkpoints.path.parent, ignore_errors=True)
        return returns


class TrialMetrics:
    """Appends rows to ``metrics.jsonl`` and hands them on."""

    def __init__(self, path: Path, log: Log | None, resumed_step: int) -> None:
        """Rows after ``resumed_step`` are dropped: they are about to be made again."""
        self.path, self.log, self.train_seconds = path, log, 0.0
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= resumed_step]
        with atomic_path(path) as temporary:
            temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def __call__(self, row: dict[str, Any]) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise RunError(f"cannot write {self.path}: {error.strerror or error}") from error
        if self.log is not None:
            self.log(row)

    def train_row(self, row: dict[str, Any]) -> None:
        self.train_seconds = row["seconds"]
        self({"kind": "train", **row})

    def evaluated(self, step: int, result: EvalResult) -> None:
        row = result.to_json()
        self({"kind": "eval", "step": step, **{name: row[name] for name in CURVE_COLUMNS}})
