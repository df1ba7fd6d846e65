"""Logs of Weights & Biases and of MLflow, written by the packages themselves, without a network.

Each test needs an extra: ``pip install 'raystitch[wandb,mlflow]'``.
"""

import json
import os
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raystitch.config import LoggerName, RunConfig, load_run_config
from raystitch.errors import RunError
from raystitch.models.loop import FitProgress
from raystitch.pipeline.trials.loggers import MLFLOW_DATABASE, check_loggers
from raystitch.pipeline.trials.logs import fit_log, log_report, logged_stage, trial_logs
from raystitch.pipeline.trials.plan import plan, result_rows
from raystitch.pipeline.trials.run_folder import RESULTS_FILE, write_config
from raystitch.pipeline.trials.trial import Trial
from raystitch.report.table import write_results
from tests.pipeline.log_files import wandb_records, wandb_rows

GRID = "grid=[{algo: dt, data: stitched, ratio: ['1:1'], delta: ['off']}]"
HEADLINE = "dt stitched 1:1, delta off/success_rate"


@pytest.fixture
def config() -> RunConfig:
    return load_run_config("smoke", [GRID, "seeds=[0, 1]", "logging=[wandb, mlflow]"])


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's folder; whatever the tools keep elsewhere lies beside it."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "runs" / "my run"
    folder.mkdir(parents=True)
    return folder


def with_logger(config: RunConfig, name: LoggerName) -> RunConfig:
    return replace(config, logging=(name,))


def returned(success: float) -> dict[str, Any]:
    evaluation = {
        "headline": True,
        "target_return": 1.0,
        "return_mean": success,
        "return_std": 0.0,
        "success_rate": success,
        "score": None,
        "num_eval_episodes": 2,
    }
    return {"train_steps": 300, "train_seconds": 1.0, "evaluations": [evaluation]}


def log_trials(config: RunConfig, run: Path, first: int, last: int) -> list[Trial]:
    """Log two trials for some steps; at 300 the first has a result and the second fails."""
    trials = plan(config, run=run)
    with trial_logs(config.logging, run, trials, pytest.fail) as logs:
        for step in range(first, last + 1, 100):
            for index in range(2):
                logs.row(index, {"kind": "train", "step": step, "loss": step / 100, "seconds": 1.0})
        if last == 300:
            logs.row(0, {"kind": "eval", "step": 300, "return_mean": 0.5, "score": None})
            logs.result(0, returned(0.75))
            logs.result(1, RunError("the loss is not finite"))
    return trials


def finish_run(config: RunConfig, run: Path) -> Path:
    """Write the results of a run and a page, and log them."""
    write_config(config, run)
    trials = plan(config, run=run)
    for seed, trial in enumerate(trials):
        Path(trial.folder).mkdir(parents=True, exist_ok=True)
        (Path(trial.folder) / "returns.json").write_text(json.dumps(returned(0.5 + 0.5 * seed)))
    write_results(result_rows(trials, {}, lambda delta: None), run / RESULTS_FILE)
    page = run / "report.html"
    page.write_text("<p>results</p>")
    log_report(config, run, page, pytest.fail)
    return page


def interrupted_fit(config: RunConfig, run: Path, steps: tuple[int, ...]) -> None:
    with suppress(RuntimeError), fit_log(config, run, pytest.fail) as log:
        for step in steps:
            log(FitProgress(part="diffusion", step=step, total_steps=40, loss=1 / step, seconds_left=0.0))
        raise RuntimeError("killed")


class TestWandb:
    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("wandb")

    def test_a_trial_is_a_run_that_goes_on(self, config: RunConfig, run: Path) -> None:
        config = with_logger(config, "wandb")
        check_loggers(config.logging, run)
        log_trials(config, run, 100, 200)
        trials = log_trials(config, run, 200, 300)
        first = wandb_rows(run, trials[0].trial_id)
        assert [(row["_step"], row["train/loss"]) for row in first] == [(100, 1), (200, 2), (300, 3)]
        assert first[-1]["eval/return_mean"] == 0.5 and first[-1]["final/success_rate"] == 0.75
        records = wandb_records(run, trials[0].trial_id)
        (begun, _) = [record.run for record in records if record.HasField("run")]
        assert (begun.project, begun.display_name, begun.run_group) == ("my run", trials[0].label, trials[0].cell)
        settings = {item.key or "/".join(item.nested_key): item.value_json for item in begun.config.update}
        assert settings["trial_id"] == f'"{trials[0].trial_id}"'
        codes = [
            [record.exit.exit_code for record in wandb_records(run, trial.trial_id) if record.HasField("exit")]
            for trial in trials
        ]
        assert codes == [[1, 0], [1, 1]]

    def test_a_fit_is_a_run_beside_them(self, config: RunConfig, run: Path) -> None:
        config = with_logger(config, "wandb")
        for steps in ((20,), (20, 40)):
            interrupted_fit(config, run, steps)
        rows = wandb_rows(run, logged_stage(config, "fit").key)
        assert [(row["_step"], row["diffusion/loss"]) for row in rows] == [(20, 1 / 20), (40, 1 / 40)]

    def test_the_report_is_an_artifact_that_lies_in_the_run(self, config: RunConfig, run: Path) -> None:
        config = with_logger(config, "wandb")
        page = finish_run(config, run)
        records = wandb_records(run, logged_stage(config, "report").key)
        (artifact,) = [r.request.log_artifact.artifact for r in records if r.request.HasField("log_artifact")] or [
            r.artifact for r in records if r.HasField("artifact")
        ]
        (entry,) = artifact.manifest.contents
        assert (artifact.name, artifact.type, entry.path) == ("report", "report", "report.html")
        assert Path(entry.local_path).is_relative_to(run / "logs") and Path(entry.local_path) != page
        assert Path(entry.local_path).read_text() == "<p>results</p>"
        summaries = [record.summary for record in records if record.HasField("summary")]
        values = {item.key or item.nested_key[0]: item.value_json for s in summaries for item in s.update}
        assert json.loads(values[HEADLINE]) == 0.75

    def test_without_a_key_it_is_refused_before_anything_starts(self, tmp_path: Path) -> None:
        # In a process of its own: wandb reads its variables once.
        command = ["train", "demo:pointmaze", "--algo", "bc", "--out", str(tmp_path / "trial"), "--logging", "wandb"]
        found = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
        variables = {**found, "WANDB_MODE": "online", "NETRC": str(tmp_path / "none"), "HOME": str(tmp_path)}
        said = subprocess.run(
            [sys.executable, "-m", "raystitch.cli", *command],
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert said.returncode == 2
        assert "wandb has no API key: run `wandb login`, or set WANDB_MODE=offline" in said.stderr
        assert "Traceback" not in said.stderr and not (tmp_path / "trial").exists()


class TestMlflow:
    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        for package in ("mlflow", "sqlalchemy", "alembic"):
            pytest.importorskip(package)

    def client(self, run: Path) -> Any:
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]

        return MlflowClient(tracking_uri=f"sqlite:///{run / 'logs/mlflow' / MLFLOW_DATABASE}")

    def runs(self, client: Any) -> dict[str, Any]:
        experiment = client.get_experiment_by_name("my run")
        return {found.info.run_name: found for found in client.search_runs([experiment.experiment_id])}

    def history(self, client: Any, found: Any, name: str) -> list[tuple[int, float]]:
        return [(metric.step, metric.value) for metric in client.get_metric_history(found.info.run_id, name)]

    def test_trials_fit_and_report_are_runs_that_go_on(self, config: RunConfig, run: Path) -> None:
        config = with_logger(config, "mlflow")
        check_loggers(config.logging, run)
        interrupted_fit(config, run, (20,))
        interrupted_fit(config, run, (20, 40))
        log_trials(config, run, 100, 200)
        trials = log_trials(config, run, 200, 300)
        finish_run(config, run)
        finish_run(config, run)
        client = self.client(run)
        runs = self.runs(client)
        assert runs.keys() == {"fit", "report", *(trial.label for trial in trials)}
        states = {name: found.info.status for name, found in runs.items()}
        assert states == {
            "fit": "FAILED",
            trials[0].label: "FINISHED",
            trials[1].label: "FAILED",
            "report": "FINISHED",
        }
        first = runs[trials[0].label]
        assert self.history(client, first, "train/loss") == [(100, 1), (200, 2), (300, 3)]
        assert self.history(client, first, "final/success_rate") == [(300, 0.75)]
        assert first.data.params["settings.train_steps"] == "20" and first.data.params["ratio"] == "1:1"
        assert first.data.tags["group"] == trials[0].cell
        assert self.history(client, runs["fit"], "diffusion/loss") == [(20, 1 / 20), (40, 1 / 40)]
        assert runs["fit"].data.params["fit.diffusion.train_steps"] == "40"
        assert self.history(client, runs["report"], HEADLINE.replace(",", "")) == [(0, 0.75)]
        (artifact,) = client.list_artifacts(runs["report"].info.run_id)
        (stored,) = (run / "logs/mlflow").rglob(artifact.path)
        assert stored.name == "report.html" and stored.read_text() == "<p>results</p>"

    def test_another_store_is_used_where_the_variable_names_one(
        self, config: RunConfig, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]

        uri = f"sqlite:///{tmp_path / 'shared.db'}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        interrupted_fit(with_logger(config, "mlflow"), run, (20, 40))
        assert self.runs(MlflowClient(tracking_uri=uri)).keys() == {"fit"}
        assert not (run / "logs").exists()

    def test_a_server_that_is_away_costs_a_line_and_no_fit(
        self, config: RunConfig, run: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free.getsockname()[1]}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        notes: list[str] = []
        with fit_log(with_logger(config, "mlflow"), run, notes.append) as log:
            for step in (20, 40):
                log(FitProgress(part="diffusion", step=step, total_steps=40, loss=1.0, seconds_left=0.0))
        assert len(notes) == 1 and notes[0].startswith("logging: mlflow stopped for fit: MlflowException: ")
