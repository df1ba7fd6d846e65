"""A sweep whose run lies in a bucket: the same files and results as in a folder, whatever is killed meanwhile."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from raystitch.bench.chaos.processes import Driver, until
from raystitch.cli import main
from raystitch.cluster.sweep import run_sweep
from raystitch.config import RunConfig, load_run_config
from raystitch.io.object_lease import object_leased
from raystitch.io.storage import Storage
from raystitch.pipeline.trials.place import open_place
from raystitch.pipeline.trials.run import LOCK_FILE, error_of
from raystitch.pipeline.trials.trial import Trial
from tests.cluster.bucket_files import files, finished_trials, synced, trial_files, upload
from tests.cluster.conftest import Prepared
from tests.cluster.two_nodes import RAY
from tests.conftest import Run

REPOSITORY = Path(__file__).parents[2]

GRID = (
    "grid=[{algo: bc, data: original}, {algo: bc, data: stitched, delta: ['off']}, {algo: bc, data: joined}]",
    "headline=null",
    "seeds=[0, 1]",
    "resources={stacked_seeds: 2, max_concurrent_trials: 1}",
)
OWN = {"environment.json", "report.html", "results.parquet", "validate.json"}
"""Files in which times, or the place, are told."""


def results(folder: Path) -> list[dict[str, Any]]:
    rows = pq.read_table(folder / "results.parquet").to_pylist()
    return [{name: value for name, value in row.items() if name != "train_seconds"} for row in rows]


@dataclass(frozen=True, kw_only=True)
class Both:
    """One run twice, in a folder and in a bucket."""

    config: RunConfig
    here: Path
    uri: str


@pytest.fixture(scope="module")
def both(prepared: Prepared, s3: str, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Both:
    here, uri = tmp_path_factory.mktemp("both") / "same", f"{s3}/runs/same"
    config = load_run_config("smoke", [*prepared.settings, *GRID, "logging=[csv]"])
    upload(prepared.folder, uri)  # fitted already, as the run in the folder
    prepared.copy(here)
    for out in (here, uri):
        run_sweep(config, out)
    return Both(config=config, here=here, uri=uri)


def test_a_run_in_a_bucket_is_the_run_in_a_folder(
    both: Both, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = synced(both.uri, tmp_path / "same")
    assert files(there) == files(both.here)
    assert results(there) == results(both.here)
    assert f"--out {both.uri}<" in (there / "report.html").read_text()
    for name in files(there):
        assert b"/stages/" not in (there / name).read_bytes(), name
    # The same command again trains nothing, and a synchronised copy is a run.
    stamps = trial_files(both.uri)
    run_sweep(both.config, both.uri)
    shown = capsys.readouterr()
    assert "6 of 6 trials are finished already" in shown.err and f"{both.uri}/report.html  (" in shown.out
    assert trial_files(both.uri) == stamps
    run_sweep(both.config, there)
    assert "6 of 6 trials are finished already" in capsys.readouterr().err


def test_commands_read_a_run_in_a_bucket_and_add_to_it(both: Both, run: Run) -> None:
    storage, before = Storage(both.uri), trial_files(both.uri)
    storage.delete("report.html")
    status, said, _ = run("report", both.uri)
    assert status == 0 and said.endswith(f"\n{both.uri}/report.html\n")
    assert f"--out {both.uri}<" in storage.read_whole("report.html").to_pybytes().decode()
    trial = next(name for name in before if name.endswith("returns.json")).split("/")[1]
    status, said, _ = run("sweep", "--rerun", trial, "--out", both.uri)
    assert status == 0 and f"repeated in {both.uri}/reruns/{trial}" in said
    assert storage.exists(f"reruns/{trial}/returns.json")
    status, said, _ = run("study", "generalise", both.uri, "--num-starts", 1, "--max-episode-steps", 3, "--json")
    assert status == 0 and json.loads(said)["buffer"] == f"{both.uri}/buffer"
    assert json.loads(storage.read_whole("generalise.json").to_pybytes())["buffer"] == f"{both.uri}/buffer"
    status, said, _ = run("evaluate", f"{both.uri}/trials/{trial}", "--num-episodes", 1, "--json")
    assert status == 0 and json.loads(said)["policy"] == f"{both.uri}/trials/{trial}/policy"
    status, said, _ = run("validate", f"{both.uri}/buffer", "--max-bridges", 5, "--json")
    assert status == 0 and json.loads(said)["real_accepted_share"] is not None  # with the bundle beside it
    assert trial_files(both.uri) == before


def test_what_is_no_run_in_a_bucket_is_said(s3: str, run: Run) -> None:
    nowhere = f"{s3}/runs/nowhere"
    for command, lacks in (
        (("report", nowhere), "config.yaml"),
        (("sweep", "--rerun", "x", "--out", nowhere), "config.yaml"),
        (("study", "generalise", nowhere), "config.yaml"),
        (("evaluate", nowhere), "policy.json"),
        (("serve", "--stitcher", nowhere), "stitcher.json"),
        (("augment", "demo:pointmaze", "--stitcher", nowhere, "--out", nowhere, "--num-bridges", 5), "stitcher.json"),
    ):
        status, _, said = run(*command)
        assert status == 2 and nowhere in said and f"no {lacks}" in said.replace("has no", "no"), said
    assert not Storage(nowhere).tree()


def test_a_run_in_a_bucket_is_of_one_sweep(prepared: Prepared, s3: str, run: Run) -> None:
    uri = f"{s3}/runs/busy"
    command = ["sweep", "smoke", "--out", uri, *(f"--set={text}" for text in (*prepared.settings, *GRID))]
    with object_leased(Storage(uri), LOCK_FILE):
        status, _, said = run(*command)
    assert status == 2 and f"another `raystitch sweep` is at work in {uri}; wait for it" in said
    assert set(Storage(uri).tree()) == {LOCK_FILE}


def test_what_cannot_be_a_run_in_a_bucket_is_refused_before_work_begins(
    prepared: Prepared, s3: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    settings = [f"--set={text}" for text in (*prepared.settings, *GRID)]
    for out, more, message in (
        ("s3://me:secret@bucket/runs/x", (), r"s3://bucket/runs/x: leave the credentials out of the URI"),
        ("s3://bucket", (), r"s3://bucket: name a folder in the bucket, such as s3://bucket/runs/demo"),
        ("s3://raystitch-nowhere/runs/x", (), r"the bucket does not exist"),
        (f"{s3}/runs/mlflow", ("--set=logging=[mlflow]",), r"logging: mlflow keeps its database in the run's folder"),
        ("wrong://bucket/x", (), r"wrong://bucket/x is not a path or URI that can be opened"),
    ):
        status, _, said = run("sweep", "smoke", "--out", out, *settings, *more)
        assert status == 2 and re.search(message, said), said
        assert "secret" not in said
    assert not Storage(f"{s3}/runs/mlflow").tree()
    status, said, _ = run("sweep", "smoke", "--out", f"{s3}/runs/plan", *settings, "--dry-run")
    assert status == 0 and f"into {s3}/runs/plan" in said
    assert not Storage(f"{s3}/runs/plan").tree()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_driver_that_is_killed_again_and_again_repeats_no_finished_trial(
    prepared: Prepared, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{s3}/runs/killed"
    upload(prepared.folder, uri)
    settings = (*prepared.settings, *GRID, "resources={stacked_seeds: 1, max_concurrent_trials: 1}")
    command = ["sweep", "smoke", "--out", uri, *(f"--set={text}" for text in settings)]
    before: dict[str, tuple[int, int]] = {}
    for enough in (1, 3):
        with Driver(command) as driver:
            until(lambda enough=enough: len(finished_trials(uri)) >= enough, f"{enough} trials are done", 120)
            driver.kill()
        now = finished_trials(uri)
        assert {name: now[name] for name in before} == before
        before = now
    with Driver(command) as driver:
        assert driver.wait(200) == 0, driver.lines()
        assert any(re.match(rf"{len(before)} of 6 trials are finished already", line) for line in driver.lines())
    after = finished_trials(uri)
    assert {name: after[name] for name in before} == before and len(after) == 6
    there = synced(uri, tmp_path / "there")
    assert [row["status"] for row in results(there)] == ["ok"] * 6


def on_two_nodes(what: str, prepared: Prepared, copies: Path, *more: str) -> str:
    """What `bucket_faults` says in two network namespaces, with a worker whose `/tmp` and cache no other node sees."""
    folder = Path("/tmp") / f"rs{os.getpid()}b"
    own = Path("/var/tmp") / folder.name  # the dataset: every node has it
    own.mkdir()
    shutil.copy(prepared.folder.parent / "swings.hdf5", own)
    settings = [text.replace(str(prepared.folder.parent), str(own)) for text in prepared.settings]
    port = "5555"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {
        "RAY": str(RAY),
        "HIDE": "/tmp",
        "AWS_ENDPOINT_URL": f"http://10.77.0.1:{port}",
        "RAYSTITCH_CACHE": "/tmp/raystitch-cache-of-a-node",
        "PYTHONPATH": str(REPOSITORY),
        "RS_COPIES": str(copies),
    }
    command = ["sh", str(REPOSITORY / "tests/cluster/netns_two_nodes.sh"), str(folder), sys.executable, "-m"]
    arguments = ["smoke", *(f"--set={text}" for text in (*settings, *more))]
    try:
        done = subprocess.run(
            [*command, "tests.cluster.bucket_faults", what, port, *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=2400,
            check=False,
            cwd=REPOSITORY,
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(own, ignore_errors=True)
        shutil.rmtree("/tmp/raystitch-cache-of-a-node", ignore_errors=True)
    print(done.stdout)
    if done.returncode == 77:
        pytest.skip(done.stdout.strip().splitlines()[-1])
    assert done.returncode == 0, done.stdout
    assert "trained again: []" in done.stdout
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(2700)
def test_nodes_with_nothing_but_a_bucket_between_them(prepared: Prepared, tmp_path: Path) -> None:
    few = "grid=[{algo: bc, data: original}, {algo: bc, data: stitched, delta: ['off']}]"
    alone = "resources={stacked_seeds: 1, num_retries: 5}"
    on_two_nodes("faults", prepared, tmp_path, few, *GRID[1:-1], alone)
    assert results(tmp_path / "disturbed") == results(tmp_path / "calm")
    calm, disturbed = (
        # Shards past the last one that counts stay for the grace period.
        {name for name in files(tmp_path / run) if not name.startswith("buffer/shards/")}
        for run in ("calm", "disturbed")
    )
    assert disturbed == calm
    assert [row["status"] for row in results(tmp_path / "calm")] == ["ok"] * 4


@pytest.mark.slow
@pytest.mark.timeout(2700)
def test_hundreds_of_trials_with_nothing_but_a_bucket_between_nodes(prepared: Prepared, tmp_path: Path) -> None:
    cells = (
        "grid=[{algo: bc, data: original}, {algo: bc, data: stitched, delta: ['off'], ratio: ['1:1', '1:2', '0:1']}]"
    )
    said = on_two_nodes(
        "hundreds", prepared, tmp_path, cells, "headline=null", f"seeds={[*range(50)]}", "resources={stacked_seeds: 10}"
    )
    assert "again: 200 of 200 trials are finished already" in said
    rows = results(tmp_path / "hundreds")
    assert [row["status"] for row in rows] == ["ok"] * 200
    assert len({(row["ratio"], row["delta"], row["seed"]) for row in rows}) == 200


def test_the_report_of_a_run_at_work_says_who_works(
    both: Both, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = Storage(both.uri)
    assert main(["report", both.uri]) == 0
    assert "not finished" not in storage.read_whole("report.html").to_pybytes().decode()
    assert main(["status", both.uri]) == 0
    assert "finished; 6 of 6 trials" in " ".join(capsys.readouterr().out.split())
    uri = f"{both.uri}-at-work"
    upload(synced(both.uri, tmp_path / "copy"), uri)
    there = Storage(uri)
    trial = next(name for name in there.tree("trials") if name.endswith("/returns.json"))
    there.delete(trial)
    with object_leased(there, ".lock"):
        assert main(["report", uri]) == 0
        page = there.read_whole("report.html").to_pybytes().decode()
        assert "5 of 6 trials are finished" in page and "No driver is at work" not in page


def test_why_a_process_died_is_left_in_the_bucket(s3: str) -> None:
    uri = f"{s3}/runs/died"
    with open_place(uri) as place:
        place.leave_error(
            Trial(algo="bc", trial_id="x", folder=str(place.folder / "trials/x")), "its process died: killed"
        )
        place.refresh_trials(["x"])
        assert error_of(place.folder / "trials/x") == "its process died: killed"
        assert Storage(uri).read_whole("trials/x/error.txt").to_pybytes() == b"its process died: killed\n"
        Storage(uri).delete("trials/x/error.txt")  # the next attempt
        place.refresh_trials(["x"])
        assert error_of(place.folder / "trials/x") is None
