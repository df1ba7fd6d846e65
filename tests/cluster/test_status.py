"""``raystitch status`` and ``raystitch report`` on a run that is not begun, at work, killed, damaged and finished."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from raystitch.bench.chaos.processes import Driver, until
from raystitch.buffer.opening import open_buffer
from raystitch.cli import main
from raystitch.config import RunConfig, load_run_config
from raystitch.data.load import load_dataset
from raystitch.io.lease import leased
from raystitch.io.storage import Storage
from raystitch.models.bundle import Bundle
from raystitch.pipeline.status.cells import PlannedTrial
from raystitch.pipeline.status.partial import partial_results
from raystitch.pipeline.status.progress import DriverNote, RunProgress, read_progress
from raystitch.pipeline.status.status import RunStatus, read_status
from raystitch.pipeline.status.trials import TrialState, time_left
from raystitch.pipeline.trials.plan import plan, planned, result_rows
from raystitch.pipeline.trials.run import run_planned
from raystitch.pipeline.trials.run_folder import write_config
from raystitch.pipeline.trials.trial import InputHashes, Trial
from raystitch.report.table import write_results
from tests.cluster.conftest import Prepared

SETTINGS = (
    "grid=[{algo: bc, data: original}, {algo: bc, data: stitched, ratio: ['1:1'], delta: ['off']}]",
    "headline=null",
    "seeds=[0, 1]",
    "algorithms.bc={train_steps: 20, batch_size: 16, hidden: 8}",
)
WORDS = ("finished", "running", "interrupted", "waiting", "failed")


@pytest.fixture
def run(prepared: Prepared, tmp_path: Path) -> Path:
    """A run with a fit and a buffer, and no driver."""
    folder = prepared.copy(tmp_path / "run")
    write_config(settings(prepared), folder)
    return folder


def settings(prepared: Prepared) -> RunConfig:
    return load_run_config("smoke", [*prepared.settings, *SETTINGS])


@pytest.fixture
def trials(prepared: Prepared, run: Path) -> list[Trial]:
    """The trials of the run's grid, seed by seed."""
    config = settings(prepared)
    inputs = InputHashes(
        dataset=load_dataset(config.dataset).fingerprint,
        bundle=Bundle.load(run / "stitcher", "cpu").hash,
        buffer=open_buffer(run / "buffer").hash,
    )
    return plan(config, inputs, run)


def states(run: Path) -> dict[str, str]:
    return {stage.name: stage.state for stage in read_status(run).stages}


def counts(status: RunStatus) -> list[int]:
    return [len(status.trials.of(word)) for word in WORDS]  # pyright: ignore[reportArgumentType]


def rows(*steps: int, seconds: float = 0.5) -> str:
    lines = [{"kind": "train", "step": at, "total_steps": 20, "seconds": seconds * at, "loss": 1} for at in steps]
    return "".join(json.dumps(line) + "\n" for line in lines)


def test_what_is_no_run_is_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, empty = tmp_path / "file", tmp_path / "empty"
    file.touch()
    empty.mkdir()
    broken, newer, locked = (shutil.copytree(run, tmp_path / name) for name in ("broken", "newer", "locked"))
    (broken / "config.yaml").unlink()
    (broken / "config.yaml").mkdir()
    (newer / "config.yaml").write_text((run / "config.yaml").read_text() + "hovercraft: {eels: 3}\n")
    (newer / "environment.json").write_text(json.dumps({"packages": {"raystitch": "9.1.0"}}))
    (locked / "progress.json").unlink(missing_ok=True)
    (locked / "stitcher/stitcher.json").unlink()
    for folder, says in (
        (tmp_path / "none", "does not exist; expected the folder of a run"),
        (file, "is a file"),
        (empty, "it has no config.yaml"),
        (broken, "config.yaml cannot be read: "),
        (newer, "a run of raystitch 9.1.0, this is "),
    ):
        for form in ([], ["--json"], ["--prometheus"], ["--watch", "1"]):
            assert main(["status", str(folder), *form]) == 2
            out, error = capsys.readouterr()
            assert out == ""
            assert len(error.splitlines()) == 1
            assert says in error and str(folder) in error, error
    with leased(empty / ".lock"):
        assert main(["status", str(empty)]) == 2
    assert "is starting a run there" in capsys.readouterr().err
    assert states(locked)["fit"] == "waiting"
    for wrong in (["--watch", "0"], ["--watch", "soon"], ["--json", "--prometheus"]):
        with pytest.raises(SystemExit) as refused:
            main(["status", str(run), *wrong])
        assert refused.value.code == 2
    assert main(["status", str(run), "--watch", "1", "--prometheus"]) == 2


def test_before_anything_is_trained(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = read_status(run)
    assert states(run) == {"fit": "done", "augment": "done", "trials": "waiting", "report": "waiting"}
    assert (status.state, status.driver, counts(status)) == ("stopped", None, [0, 0, 0, 4, 0])
    assert status.bridges.made >= status.bridges.wanted == 20
    assert main(["status", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "no driver is at work" in shown
    assert "0 of 4 trials are finished" in shown


def test_a_driver_at_work_is_named_and_so_is_its_stage(run: Path) -> None:
    with leased(run / ".lock"):
        track = RunProgress(run)
        assert states(run)["trials"] == "waiting"
        with track.stage("fit", cpus=2):
            track.now(part="dynamics", step=300, total_steps=1000)
            fit = read_status(run).stage("fit")
            assert (fit.state, fit.about) == ("running", "dynamics 300/1,000")
        with track.stage("generalise"):
            assert states(run)["report"] == "running"
        status = read_status(run)
        assert status.state == "running" and status.driver is not None
        assert status.driver.name.endswith(f"process {os.getpid()}")
    assert read_status(run).driver is None


def test_a_driver_that_was_killed_is_seen_at_once(run: Path) -> None:
    code = (
        "import sys, time\nfrom raystitch.io.lease import leased\nfrom raystitch.pipeline.status.progress import "
        "RunProgress\nrun = sys.argv[1]\nwith leased(run + '/.lock'), RunProgress(run).stage('trials', cpus=0.0):\n"
        "    print('held', flush=True)\n    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(run)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        assert states(run)["trials"] == "running"
        process.send_signal(signal.SIGKILL)
    status = read_status(run)
    assert status.driver is not None and not status.driver.alive and not status.at_work
    assert status.state == "stopped"
    assert (status.stage("trials").state, status.stage("trials").about) == ("stale", "interrupted, 0 of 4")


def test_of_a_driver_on_another_machine_the_lease_says_whether_it_lives(run: Path) -> None:
    lease = run / ".00000007.lock"
    note = {"holder": "elsewhere, process 7", "seconds": 30.0, "beat": 4, "state": "held", "place": None}
    lease.write_text(json.dumps(note).ljust(512))
    assert read_status(run).at_work
    old = time.time() - 31
    os.utime(lease, (old, old))
    status = read_status(run)
    assert status.driver is not None and not status.at_work
    assert 31 <= status.driver.seconds < 60
    for half in ("", '{"holder": "elsewh', "[1, 2]", json.dumps({**note, "process": {"pid": 3}})):
        lease.write_text(half)
        assert read_status(run).driver is None


def test_running_trials_have_step_and_rate(run: Path, trials: list[Trial]) -> None:
    RunProgress(run).plan(planned(trials), 1)
    first, second, third = (Path(trial.folder) for trial in (trials[0], trials[2], trials[1]))
    assert (trials[0].cell, trials[0].seed + 1) == (trials[2].cell, trials[2].seed)
    with leased(first / ".lock"), leased(second / ".lock"), leased(third / ".lock"):
        (first / "metrics.jsonl").write_text(rows(4, 8, 12) + '{"kind": "train", "st')
        (second / "metrics.jsonl").write_text(rows(4, 8, 12) + '{"kind": "eval", "step": 12}\n[1]\n')
        (third / "returns.json").write_text(
            json.dumps({"train_steps": 20, "train_seconds": 9.0, "evaluations": [], "status": "not evaluated"})
        )
        status = read_status(run)
        assert counts(status) == [0, 3, 0, 1, 0]
        found = {one.trial.trial_id: one for one in status.trials.trials}
        for trial in (trials[0], trials[2]):
            one = found[trial.trial_id]
            assert (one.doing, one.step, one.steps) == ("training", 12, 20)
            assert one.steps_per_second == pytest.approx(1.0)  # two seeds, half a second a step for each
        assert found[trials[1].trial_id].doing == "evaluating"
    (second / "metrics.jsonl").write_text("")
    assert counts(read_status(run)) == [0, 0, 2, 2, 0]  # left alone; of one without a row nothing is begun


def test_finished_failed_and_damaged_trials(run: Path, trials: list[Trial]) -> None:
    RunProgress(run).plan(planned(trials), 2)
    run_planned([trials[0], trials[2]])
    failed = Path(trials[1].folder)
    failed.mkdir(parents=True)
    (failed / "error.txt").write_text("Traceback\n  somewhere\nRunError: the loss became nan\n\n")
    status = read_status(run)
    assert counts(status) == [2, 0, 0, 1, 1]
    assert status.trials.of("failed")[0].reason == "RunError: the loss became nan"
    assert status.stage("trials").about == "interrupted, 2 of 4, 1 failed"
    assert status.left.seconds is not None  # as long as another cell of the algorithm took
    returns = Path(trials[0].folder) / "returns.json"
    returns.write_bytes(returns.read_bytes()[:-30])
    status = read_status(run)
    assert counts(status)[0] == 1
    assert "returns.json is damaged" in status.notes[0]


def test_trials_are_found_without_a_plan(run: Path, trials: list[Trial]) -> None:
    run_planned([trials[3]])
    assert not (run / "plan.json").exists()
    status = read_status(run)
    assert counts(status) == [1, 0, 0, 3, 0]
    assert status.trials.of("finished")[0].trial.trial_id == trials[3].trial_id
    (run / "plan.json").write_text('{"trials": [{"algo": ')
    assert counts(read_status(run)) == [1, 0, 0, 3, 0]
    other = planned(trials)[:1]
    RunProgress(run).plan(other, 1)  # of another grid
    assert counts(read_status(run)) == [1, 0, 0, 3, 0]


def test_trials_of_other_settings_do_not_count(run: Path, trials: list[Trial], prepared: Prepared) -> None:
    """The same command with longer training, before its driver has come to its trials."""
    run_planned([trials[0]])
    RunProgress(run).plan(planned(trials), 1)
    assert counts(read_status(run)) == [1, 0, 0, 3, 0]
    longer = "algorithms.bc={train_steps: 40, batch_size: 16, hidden: 8}"
    write_config(load_run_config("smoke", [*prepared.settings, *SETTINGS, longer]), run)
    assert counts(read_status(run)) == [0, 0, 0, 4, 0]


def test_an_error_longer_than_what_is_read_is_one(run: Path, trials: list[Trial]) -> None:
    RunProgress(run).plan(planned(trials), 1)
    folder = Path(trials[0].folder)
    folder.mkdir(parents=True)
    (folder / "error.txt").write_text("x" * 20_000 + " the end\n")
    (failed,) = read_status(run).trials.of("failed")
    assert failed.reason.endswith("the end")


def test_a_table_is_known_by_its_content(run: Path, trials: list[Trial]) -> None:
    """Times say little of a run that was copied, and a table may be of a grid with other cells."""
    run_planned([trials[0], trials[2]])
    run_planned([trials[1], trials[3]])
    found = result_rows(trials, {}, lambda delta: None)
    write_results(found, run / "results.parquet")
    now = time.time()
    os.utime(run / "results.parquet", (now - 100, now - 100))
    assert partial_results(run, run) is None
    write_results(found[:-1], run / "results.parquet")
    assert partial_results(run, run) is not None
    write_results([*found, found[0] | {"trial_id": "dropped"}], run / "results.parquet")
    partial = partial_results(run, run)
    assert partial is not None and [row["in_grid"] for row in partial.rows] == [True] * 4 + [False]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema_version": 99}', '{"schema_version": 1, "now": 3}'])
def test_a_damaged_progress_file_is_as_none(run: Path, text: str) -> None:
    (run / "progress.json").write_text(text)
    assert read_progress(Storage(run)) == DriverNote()
    assert states(run)["fit"] == "done"
    with RunProgress(run).stage("validate"):
        pass
    assert set(read_progress(Storage(run)).stages) == {"validate"}


def test_what_stages_took_adds_up_over_drivers(run: Path) -> None:
    for _ in range(2):
        with suppress(KeyboardInterrupt), RunProgress(run).stage("augment", cpus=4, gpus=0.5):
            time.sleep(0.1)
            raise KeyboardInterrupt
    times = read_progress(Storage(run)).stages["augment"]
    assert times.ended is None
    assert 0.2 <= times.seconds < 5
    assert times.core_seconds == pytest.approx(4 * times.seconds, abs=0.4)
    assert times.gpu_seconds == pytest.approx(0.5 * times.seconds, abs=0.2)


def test_a_run_whose_progress_cannot_be_written_goes_on(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "progress.json").mkdir()
    track = RunProgress(run)
    for name in ("fit", "augment"):
        with track.stage(name):
            pass
    assert capsys.readouterr().err.count("will not know what this run is at") == 1


def test_the_time_left_is_what_trials_alike_took() -> None:
    def state(algo: str, word: Any, **more: Any) -> TrialState:
        trial = PlannedTrial(algo=algo, data="original", ratio="1:0", delta=None, shaping="", seed=0)
        return TrialState(trial=trial, state=word, steps=100, **more)

    done = state("dt", "finished", returns={"train_seconds": 80.0, "eval_seconds": 20.0})
    half = state("dt", "running", step=50, doing="training", holder="a")
    assert time_left([done, half, state("dt", "waiting")], 1).seconds == pytest.approx(150)
    assert time_left([done, half, state("dt", "waiting")], 2).seconds == pytest.approx(100)
    assert time_left([done, half], 64).seconds == pytest.approx(50), "one trial on a large cluster takes its time"
    assert time_left([done], 2).seconds == 0
    unknown = time_left([done, state("iql", "waiting")], 2)
    assert unknown.seconds is None and "iql" in unknown.unknown
    paced = state("iql", "running", step=50, doing="training", holder="a", steps_per_second=2.0)
    assert time_left([paced, state("iql", "waiting")], 1).seconds == pytest.approx(75)


def test_json_and_prometheus_say_the_same(run: Path, trials: list[Trial], capsys: pytest.CaptureFixture[str]) -> None:
    RunProgress(run).plan(planned(trials), 2)
    run_planned([trials[0]])
    with leased(run / ".lock"), leased(Path(trials[1].folder) / ".lock"):
        (Path(trials[1].folder) / "metrics.jsonl").write_text(rows(4, 8))
        assert main(["status", str(run), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert main(["status", str(run), "--prometheus"]) == 0
        text = capsys.readouterr().out
    samples = {
        (sample.name, *(value for name, value in sorted(sample.labels.items()) if name != "run")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    for word in WORDS:
        assert samples["raystitch_run_trials", word] == found["trials"][word]
    assert samples["raystitch_run_trials", "finished"] == 1
    assert samples["raystitch_run_driver_up",] == 1 and found["driver"]["alive"]
    assert samples["raystitch_run_bridges",] == found["bridges"]["made"]
    assert samples["raystitch_run_stage", "fit", "done"] == 1
    step = [value for (name, *_), value in samples.items() if name == "raystitch_run_trial_step"]
    assert step == [8]
    running = [one for one in found["trials"]["unfinished"] if one["state"] == "running"]
    assert [one["step"] for one in running] == [8]
    assert {stage["name"]: stage["state"] for stage in found["stages"]}["augment"] == "done"


def test_the_report_of_an_unfinished_run(run: Path, trials: list[Trial], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run)]) == 0
    assert "0 of 4 trials are finished." in capsys.readouterr().out
    run_planned([trials[0], trials[2]])
    run_planned([trials[1]])
    assert main(["report", str(run)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    page = unescape((run / "report.html").read_text())
    for text in ("3 of 4 trials are finished", "BC, stitched 1:1, delta off (1 of 2)", "No driver is at work"):
        assert text in page and text in shown
    assert "no verdict yet: 1 trial that decides it has no result" in page
    assert states(run)["report"] == "waiting"  # a page of an unfinished run is not its report
    found = partial_results(run, run)
    assert found is not None
    assert [row["status"] for row in found.rows] == ["ok", "ok", "ok", "unfinished"]
    assert not (run / "results.parquet").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_real_run_is_watched_killed_and_finished(prepared: Prepared, tmp_path: Path) -> None:
    run = prepared.copy(tmp_path / "run")
    longer = "algorithms.bc={train_steps: 3000, batch_size: 16, hidden: 8}"
    command = ["sweep", "smoke", "--out", str(run), *(f"--set={text}" for text in (*prepared.settings, *SETTINGS))]
    command += [f"--set={longer}", "--set=resources={stacked_seeds: 1, max_concurrent_trials: 1}"]

    def seen(what: Callable[[RunStatus], bool]) -> bool:
        return (run / "config.yaml").exists() and what(read_status(run))

    with Driver(command) as driver:
        until(lambda: seen(lambda status: 1 <= counts(status)[0] < 4), "a trial is finished", 240)
        until(lambda: seen(lambda status: counts(status)[1] > 0), "another is at work", 60)
        status = read_status(run)
        assert status.at_work and status.driver is not None and f"process {driver.pid}" in status.driver.name
        assert status.stage("trials").state == "running" and status.left.seconds is not None
        driver.kill()
        status = read_status(run)
        assert not status.at_work and status.state == "stopped"
        assert main(["report", str(run)]) == 0
        assert "This run is not finished" in (run / "report.html").read_text()
    until(lambda: seen(lambda status: counts(status)[1] == 0), "its worker is gone", 60)
    with Driver(command) as driver:
        assert driver.wait(240) == 0, driver.lines()
    status = read_status(run)
    assert status.state == "finished" and counts(status) == [4, 0, 0, 0, 0]
    assert set(states(run).values()) == {"done"}
    assert partial_results(run, run) is None
    assert "<h2>Cost</h2>" in (run / "report.html").read_text()
    for path in run.glob("trials/*/returns.json"):
        assert json.loads(path.read_text())["eval_seconds"] > 0
