"""What Tune and the progress display are told about trials while they run."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.tune import TuneError
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.search.variant_generator import generate_variants

from raystitch.cluster import trial_reports
from raystitch.cluster.node_losses import LOOK_SECONDS, MAX_LOSSES, NODE_LOST, NodeLosses, failure_text
from raystitch.cluster.trial_reports import Reports, Running, param_space
from raystitch.pipeline.trials.groups import Group
from raystitch.pipeline.trials.trial import Trial
from raystitch.shaping.config import RewardConfig, ShapingConfig
from raystitch.trainers.config import BCConfig


def group_of(data: str, num_seeds: int = 2, steps: int = 100) -> Group:
    trial = Trial(algo="bc", data=data, ratio="1:1", config=BCConfig(train_steps=steps))  # pyright: ignore[reportArgumentType]
    return tuple(replace(trial, seed=seed) for seed in range(num_seeds))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The reports that Tune gets; a worker of Tune's own is needed to send them."""
    reports: list[dict[str, Any]] = []
    monkeypatch.setattr("ray.tune.report", reports.append)
    monkeypatch.setattr(trial_reports, "REPORT_SECONDS", 0.0)
    return reports


def loss(step: int, value: float) -> dict[str, Any]:
    return {"kind": "train", "step": step, "total_steps": 100, "seconds": 1.0, "loss": value, "name": "no number"}


def score(step: int, value: float, **more: Any) -> dict[str, Any]:
    return {"kind": "eval", "step": step, "return_mean": value, "success_rate": None, **more}


def test_tune_tries_each_group_once_and_shows_what_is_swept() -> None:
    shaped = replace(group_of("stitched")[0], delta="q99", shaping=ShapingConfig(rewards=RewardConfig(name="zero")))
    found = list(generate_variants(param_space([(shaped, replace(shaped, seed=5)), group_of("original")])))
    assert [config for _, config in found] == [
        {
            "group": 0,
            "algo": "bc",
            "data": "stitched",
            "ratio": "1:1",
            "delta": "q99",
            "shaping": "rewards zero",
            "seeds": "0, 5",
        },
        {
            "group": 1,
            "algo": "bc",
            "data": "original",
            "ratio": "1:1",
            "delta": "-",
            "shaping": "-",
            "seeds": "0, 1",
        },
    ]
    assert {name for (name,) in found[0][0]} == set(found[0][1])  # what Tune's own table and loggers show


def test_means_over_seeds_are_reported(told: list[dict[str, Any]]) -> None:
    reports = Reports(group_of("original"))
    for seed, value in enumerate((1.0, 3.0)):
        reports.row(seed, loss(20, value))
    for seed in (0, 1):
        reports.row(seed, score(20, 5.0 + seed))
        reports.row(seed, score(20, 99.0, target_return=7.0))  # not the headline
    assert told == [{"step": 20, "steps": 100, "doing": "training", "train/loss": 2.0}]
    for seed in (0, 1):
        reports.row(seed, loss(100, 7.0))
    assert told[1:] == [
        {"step": 20, "steps": 100, "doing": "training", "eval/return_mean": 5.5},
        {"step": 100, "steps": 100, "doing": "evaluating", "train/loss": 7.0},
    ]


def test_a_seed_that_fails_silences_no_other(told: list[dict[str, Any]]) -> None:
    reports = Reports(group_of("original", num_seeds=3))
    for seed in (0, 1):  # the last one has failed
        reports.row(seed, loss(20, 2.0))
    reports.row(0, loss(30, 1.0))
    assert [report["step"] for report in told] == [20]


def test_seeds_at_another_checkpoint_are_not_mixed(told: list[dict[str, Any]]) -> None:
    reports = Reports(group_of("original", num_seeds=3))
    for row in (loss(90, 4.0), loss(100, 4.0)):  # the first one stood at a later checkpoint
        reports.row(0, row)
    for step in (10, 20):
        for seed in (1, 2):
            reports.row(seed, loss(step, 1.0))
    assert [(report["step"], report["train/loss"]) for report in told] == [(90, 4.0), (100, 4.0), (10, 1.0)]


def test_losses_are_reported_now_and_then_and_evaluations_always(
    told: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_reports, "REPORT_SECONDS", 1000.0)
    reports = Reports(group_of("original", num_seeds=1))
    for row in (loss(10, 1.0), loss(20, 1.0), score(20, 5.0), loss(30, 1.0), loss(40, 1.0), loss(100, 1.0)):
        reports.row(0, row)
    assert [(report["step"], report["doing"]) for report in told] == [(20, "training"), (100, "evaluating")]
    assert "eval/return_mean" in told[0]


def test_what_runs_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    first, second, third = group_of("original"), group_of("duplicated"), group_of("weighted", num_seeds=4, steps=50)
    running = Running([first, second, third])
    running.reported(first, {"step": 0, "steps": 100})
    assert running.text == "bc original 1:1 0/100"  # too early to say
    now += 60
    running.reported(first, {"step": 50, "steps": 100, "doing": "training"})
    running.reported(second, {"step": 100, "steps": 100, "doing": "evaluating"})  # goes on from a checkpoint
    running.reported(third, {"failed": 4})
    assert running.text == "bc original 1:1 50/100, bc duplicated 1:1 being evaluated, about 3 min 0 s left"
    running.ended(second)
    running.stopped(first)  # its process died
    assert running.text == "about 3 min 0 s left"
    running.ended(third)  # failed at once: nothing of it was done, and nothing is left
    assert running.text == "about 1 min 0 s left"
    running.ended(first)
    assert running.text == ""


def test_only_some_of_many_groups_are_named() -> None:
    groups = [group_of("original", num_seeds=number) for number in range(1, 6)]
    running = Running(groups)
    for group in groups:
        running.reported(group, {"step": 1, "steps": 100})
    assert running.text.endswith("bc original 1:1 1/100, and 2 more")


class TuneTrialHere(TuneTrial):
    """A trial of Tune's that writes about its failures into a folder of the test: by itself it asks Ray for one."""

    folder = ""

    @property
    def local_path(self) -> str:
        return self.folder


def failed_trial(folder: Path, *failures: str, max_failures: int = 0, status: str = TuneTrial.RUNNING) -> TuneTrial:
    trial = TuneTrialHere("none", stub=True, max_failures=max_failures)
    folder.mkdir(exist_ok=True)
    trial.folder = str(folder)
    trial.set_status(status)
    for failure in failures:
        trial.handle_error(TuneError(failure))
    return trial


LOST = f"The actor died because {NODE_LOST}. Node Id: 7"


def test_a_group_that_gets_further_may_lose_any_number_of_nodes(tmp_path: Path) -> None:
    losses, group = NodeLosses(2), group_of("original")
    trial = failed_trial(tmp_path, "RunError: the loss is not finite", LOST)
    assert failure_text(trial) == LOST and not trial.should_recover()
    for step in (10, 20):
        losses.reached(group, step)
        assert all(losses.tries_again(group, trial) for _ in range(MAX_LOSSES))
    losses.reached(group, 20)  # it came as far as before
    assert not losses.tries_again(group, trial)
    losses.reached(group, 30)
    losses.recovered(group, trial)
    assert trial.max_failures == 1 and losses.tries_again(group, trial)
    trial.handle_error(TuneError("RunError: the loss is not finite"))
    assert not losses.tries_again(group, trial)
    losses.recovered(group, trial)
    assert trial.max_failures == 1


def test_a_group_that_tune_gives_up_while_it_starts_is_tried_again(tmp_path: Path) -> None:
    """Tune never does, however often a trial may fail."""
    losses, group = NodeLosses(2), group_of("original")
    trial = failed_trial(tmp_path, "The actor is unavailable", max_failures=1, status=TuneTrial.PENDING)
    assert [losses.tries_again(group, trial) for _ in range(3)] == [True, True, False], "num_retries times"
    lost = failed_trial(tmp_path / "lost", LOST, max_failures=1, status=TuneTrial.PENDING)
    assert all(losses.tries_again(group, lost) for _ in range(MAX_LOSSES)), "counted apart"
    assert failure_text(failed_trial(tmp_path / "other")) == ""


def test_a_worker_ends_with_the_process_that_started_it() -> None:
    """A raylet that is killed may leave its workers behind."""
    worker = (
        "import time; from raystitch.cluster import node_losses; node_losses.GRACE_SECONDS = 1; "
        "node_losses.end_with_node(); node_losses.end_with_node(); print('at work', flush=True); time.sleep(60)"
    )
    raylet = (
        "import subprocess, sys, time\n"
        "process = subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdout=subprocess.PIPE)\n"
        "process.stdout.readline(); print(process.pid, flush=True); time.sleep(60)"
    )
    started = subprocess.Popen([sys.executable, "-c", raylet, worker], stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    pid = int(started.stdout.readline())
    time.sleep(2 * LOOK_SECONDS)
    assert psutil.pid_exists(pid), "it works as long as the other does"
    started.kill()
    started.wait()
    end = time.monotonic() + 30
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE and time.monotonic() < end:
        time.sleep(0.1)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
