"""Logs of trials: what is in them, after a resumed run too, and that none of them can stop a training."""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from raystitch.config import LoggerName, RunConfig, load_run_config
from raystitch.errors import RunError, UserError
from raystitch.io.config_file import parse_config
from raystitch.pipeline.trials.loggers import LOGGERS, NEEDS, check_loggers
from raystitch.pipeline.trials.logs import logged_trial, trial_logs
from raystitch.pipeline.trials.plan import plan
from raystitch.pipeline.trials.trial import Trial
from tests.pipeline.log_files import events, lines

NAMES: tuple[LoggerName, ...] = ("csv", "tensorboard")


@pytest.fixture
def trials(tmp_path: Path) -> list[Trial]:
    grid = [{"algo": "dt", "data": "stitched", "ratio": ["1:1"], "delta": [0.1]}]
    return plan(parse_config({"dataset": "demo:pointmaze", "seeds": [0, 1], "grid": grid}, RunConfig), run=tmp_path)


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
    return {
        "train_steps": 300,
        "train_seconds": 1.0,
        "evaluations": [evaluation, {**evaluation, "return_mean": -1.0}],
    }


def log(run: Path, trials: Sequence[Trial], first: int, notes: list[str], names: Sequence[LoggerName] = NAMES) -> None:
    """Log two trials from a step on; the second fails at its end."""
    with trial_logs(names, run, trials, notes.append) as logs:
        for step in range(first, 301, 100):
            logs.row(0, train_row(step, step / 100))
            logs.row(1, train_row(step, -step / 100))
        logs.row(0, {"kind": "eval", "step": 300, "return_mean": 0.5, "prompt": "max", "success_rate": None})
        logs.result(0, returned(0.75))
        logs.result(1, RunError("the loss is not finite"))


def file_of(trial: Trial) -> str:
    return logged_trial(trial).file


def test_a_log_has_every_number_of_its_trial(trials: list[Trial], tmp_path: Path) -> None:
    notes: list[str] = []
    log(tmp_path, trials, 100, notes)
    assert notes == []
    head, *rows = lines(tmp_path, file_of(trials[0]))
    assert head == ["step", "kind", "name", "value"]
    assert [row for row in rows if row[2] == "loss"] == [[f"{at}00", "train", "loss", f"{at}.0"] for at in (1, 2, 3)]
    assert ["300", "eval", "return_mean", "0.5"] in rows and ["300", "final", "success_rate", "0.75"] in rows
    assert {row[1] for row in lines(tmp_path, file_of(trials[1]))[1:]} == {"train"}
    values = [(event.step, value) for event in events(tmp_path, file_of(trials[0])) for value in event.summary.value]
    scalars = {(step, value.tag): value.simple_value for step, value in values}
    assert scalars[200, "train/loss"] == 2 and scalars[300, "final/success_rate"] == 0.75
    texts = [value.tensor.string_val[0] for _, value in values if "settings" in value.tag]
    assert len(texts) == 1 and trials[0].trial_id.encode() in texts[0]


def test_a_trial_that_goes_on_from_a_checkpoint_logs_later_steps_again(trials: list[Trial], tmp_path: Path) -> None:
    notes: list[str] = []
    log(tmp_path, trials, 100, notes)
    whole = lines(tmp_path, file_of(trials[0]))
    with (tmp_path / "logs/csv" / f"{file_of(trials[0])}.csv").open("a") as file:
        file.write("300,train,lo")  # killed while it wrote
    log(tmp_path, trials, 200, notes)
    assert lines(tmp_path, file_of(trials[0])) == whole
    # TensorBoard leaves out what came before such an event, from its step on.
    assert 200 in [event.step for event in events(tmp_path, file_of(trials[0])) if event.HasField("session_log")]
    assert notes == []


def test_a_policy_that_is_evaluated_later_keeps_what_its_training_logged(trials: list[Trial], tmp_path: Path) -> None:
    notes: list[str] = []
    log(tmp_path, trials, 100, notes)
    whole = lines(tmp_path, file_of(trials[1]))
    with trial_logs(NAMES, tmp_path, trials, notes.append) as logs:
        logs.result(1, returned(0.25))
    after = lines(tmp_path, file_of(trials[1]))
    assert after[: len(whole)] == whole
    assert {row[1] for row in after[len(whole) :]} == {"final"}
    assert notes == []


def test_the_log_of_a_finished_trial_is_left_as_it_is(trials: list[Trial], tmp_path: Path) -> None:
    notes: list[str] = []
    log(tmp_path, trials, 100, notes)
    content = {path: path.read_bytes() for path in (tmp_path / "logs").rglob("*") if path.is_file()}
    folder = Path(trials[0].folder)
    folder.mkdir(parents=True)
    (folder / "returns.json").write_text(json.dumps(returned(0.75)))
    with trial_logs(NAMES, tmp_path, trials[:1], notes.append) as logs:  # as a group that is tried again reads it
        logs.result(0, returned(0.75))
    assert {path: path.read_bytes() for path in (tmp_path / "logs").rglob("*") if path.is_file()} == content


def test_no_training_fails_because_its_log_cannot_be_written(trials: list[Trial], tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/csv").write_text("in the way")
    notes: list[str] = []
    log(tmp_path, trials, 100, notes)
    stopped = [f"logging: csv stopped for {trial.label}: " for trial in trials]
    assert [note[: len(start)] for note, start in zip(notes, stopped, strict=True)] == stopped
    assert not any("\n" in note for note in notes)
    assert events(tmp_path, file_of(trials[1]))


def test_names_are_those_of_files_and_differ(trials: list[Trial]) -> None:
    names = [file_of(trial) for trial in trials]
    assert names[0].startswith("dt-stitched-1_1-delta-0.1-seed-0-")
    assert len(set(names)) == len(trials)


def test_a_trial_outside_of_a_run_has_a_key_of_its_own() -> None:
    keys = [logged_trial(Trial(algo="bc", seed=seed)).key for seed in (0, 0, 1)]
    assert keys[0] == keys[1] != keys[2] and len(keys[0]) > 8


def test_what_cannot_work_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert set(NEEDS) == set(LOGGERS)
    check_loggers(NAMES, tmp_path / "new")
    with pytest.raises(UserError, match=r"logging.0: input should be 'csv', 'tensorboard', 'wandb' or 'mlflow'"):
        load_run_config("smoke", ["logging=[tensorbord]"])
    assert "logging" not in load_run_config("smoke").to_yaml()
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/csv").write_text("in the way")
    with pytest.raises(UserError, match=r"logging: .*/logs/csv is no folder that can be written; move it away, or"):
        check_loggers(NAMES, tmp_path)
    check_loggers(("tensorboard",), tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in ("wandb", "mlflow"):
        with pytest.raises(
            UserError, match=rf"{name} needs a package .* \({name}\): pip install 'raystitch\[{name}\]'"
        ):
            check_loggers(("csv", name), tmp_path / "new")
