"""Logs of trials: what is in them, after a resumed run too, and that none of them can stop a training."""

import csv
import importlib
import importlib.util
import struct
from pathlib import Path
from typing import Any

import pytest

from raystitch.config import LoggerName, RunConfig, load_run_config
from raystitch.errors import RunError, UserError
from raystitch.io.config_file import parse_config
from raystitch.pipeline.trials.loggers import LOGGERS, NEEDS, check_loggers, log_name, trial_logs
from raystitch.pipeline.trials.plan import plan
from raystitch.pipeline.trials.trial import Trial

NAMES: tuple[LoggerName, ...] = ("csv", "tensorboard")
EVENTS: Any = importlib.import_module("tensorboardX.proto.event_pb2")


@pytest.fixture
def trials() -> list[Trial]:
    grid = [{"algo": "dt", "data": "stitched", "ratio": ["1:1"], "delta": [0.1]}]
    return plan(parse_config({"dataset": "demo:pointmaze", "seeds": [0, 1], "grid": grid}, RunConfig))


def train_row(step: int, loss: float) -> dict[str, Any]:
    return {"kind": "train", "step": step, "total_steps": 300, "seconds": 1.0, "loss": loss}


def returned(success: float) -> dict[str, Any]:
    evaluation = {
        "target_return": 1.0,
        "return_mean": success,
        "success_rate": success,
        "score": None,
        "returns": [1.0],
    }
    return {"train_steps": 300, "evaluations": [evaluation, {**evaluation, "return_mean": -1.0}]}


def log(run: Path, trials: list[Trial], first: int, notes: list[str]) -> None:
    """Log two trials from a step on; the second fails at its end."""
    with trial_logs(NAMES, run, trials, notes.append) as logs:
        for step in range(first, 301, 100):
            logs.row(0, train_row(step, step / 100))
            logs.row(1, train_row(step, -step / 100))
        logs.row(0, {"kind": "eval", "step": 300, "return_mean": 0.5, "prompt": "max", "success_rate": None})
        logs.result(0, returned(0.75))
        logs.result(1, RunError("the loss is not finite"))


def lines(run: Path, trial: Trial) -> list[list[str]]:
    with (run / "logs/csv" / f"{log_name(trial)}.csv").open(newline="") as file:
        return list(csv.reader(file))


def events(run: Path, trial: Trial) -> list[Any]:
    """Read event files: records of a length, its checksum, the content and its checksum."""
    found: list[Any] = []
    for file in sorted((run / "logs/tensorboard" / log_name(trial)).glob("events*")):
        content, at = file.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            found.append(EVENTS.Event.FromString(content[at + 12 : at + 12 + length]))
            at += length + 16
    return found


def test_a_log_has_every_number_of_its_trial(trials: list[Trial], tmp_path: Path) -> None:
    notes: list[str] = []
    log(tmp_path, trials, 100, notes)
    assert notes == []
    head, *rows = lines(tmp_path, trials[0])
    assert head == ["step", "kind", "name", "value"]
    assert [row for row in rows if row[2] == "loss"] == [[f"{at}00", "train", "loss", f"{at}.0"] for at in (1, 2, 3)]
    assert ["300", "eval", "return_mean", "0.5"] in rows and ["300", "final", "success_rate", "0.75"] in rows
    assert {row[1] for row in lines(tmp_path, trials[1])[1:]} == {"train"}
    values = [(event.step, value) for event in events(tmp_path, trials[0]) for value in event.summary.value]
    scalars = {(step, value.tag): value.simple_value for step, value in values}
    assert scalars[200, "train/loss"] == 2 and scalars[300, "final/success_rate"] == 0.75
    texts = [value.tensor.string_val[0] for _, value in values if "settings" in value.tag]
    assert len(texts) == 1 and trials[0].trial_id.encode() in texts[0]


def test_a_trial_that_goes_on_from_a_checkpoint_logs_later_steps_again(trials: list[Trial], tmp_path: Path) -> None:
    notes: list[str] = []
    log(tmp_path, trials, 100, notes)
    whole = lines(tmp_path, trials[0])
    with (tmp_path / "logs/csv" / f"{log_name(trials[0])}.csv").open("a") as file:
        file.write("300,train,lo")  # killed while it wrote
    log(tmp_path, trials, 200, notes)
    assert lines(tmp_path, trials[0]) == whole
    # TensorBoard leaves out what came before such an event, from its step on.
    assert 200 in [event.step for event in events(tmp_path, trials[0]) if event.HasField("session_log")]
    assert notes == []


def test_no_training_fails_because_its_log_cannot_be_written(trials: list[Trial], tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/csv").write_text("in the way")
    notes: list[str] = []
    log(tmp_path, trials, 100, notes)
    assert [note.split(":")[0] for note in notes] == ["CsvLogger stopped"] * 2
    assert events(tmp_path, trials[1])


def test_names_are_those_of_files_and_differ(trials: list[Trial]) -> None:
    names = [log_name(trial) for trial in trials]
    assert names[0].startswith("dt-stitched-1_1-delta-0.1-seed-0-")
    assert len(set(names)) == len(trials)


def test_a_missing_package_and_an_unknown_logger_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(NEEDS) == set(LOGGERS)
    check_loggers(NAMES)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"logging: wandb needs a package that is not installed: pip install wandb"):
        check_loggers(("csv", "wandb"))
    with pytest.raises(UserError, match=r"logging.0: input should be 'csv', 'tensorboard' or 'wandb'"):
        load_run_config("smoke", ["logging=[tensorbord]"])
    assert "logging" not in load_run_config("smoke").to_yaml()
