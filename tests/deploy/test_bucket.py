"""A run folder kept in a bucket: what the node loses is there, and only what belongs to a run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.fs as fs
import pytest

from raystitch.io.storage import Storage


@pytest.fixture
def place(s3: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The run's URI; its folder is NODE/runs/demo."""
    monkeypatch.setenv("RAYSTITCH_BUCKET", f"{s3}/{request.node.name}")
    monkeypatch.setenv("RAYSTITCH_SHARED", str(tmp_path / "node"))
    return f"{s3}/{request.node.name}/runs/demo"


def command(deploy: Path, folder: Path, script: str) -> list[str]:
    file = deploy / "kuberay/components/s3/bucket.py"
    return [sys.executable, str(file), "run", str(folder), "--", sys.executable, "-c", script]


def contents(uri: str) -> dict[str, str]:
    filesystem, root = Storage(uri).location("")
    found = filesystem.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True))
    files = [info.path for info in found if info.type == fs.FileType.File]
    return {
        path.removeprefix(f"{root}/"): Storage(uri).read(path.removeprefix(f"{root}/")).to_pybytes().decode()
        for path in files
    }


def test_another_node_goes_on_where_a_lost_one_was(
    bucket: ModuleType, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "node/runs/demo"
    (here / "trials/1").mkdir(parents=True)
    (here / "config.yaml").write_text("seed: 0")
    (here / "trials/1/metrics.jsonl").write_text("1\n")
    (here / ".lock").touch()
    (here / ".tune").mkdir()
    (here / ".tune/state").touch()
    (here / ".results.json.host-1-a.tmp").touch()
    mirror = bucket.Mirror(here)
    assert mirror.put() == 2
    assert contents(place) == {"config.yaml": "seed: 0", "trials/1/metrics.jsonl": "1\n"}
    assert mirror.put() == 0
    (here / "trials/1/metrics.jsonl").write_text("1\n2\n")
    (here / "config.yaml").unlink()
    assert mirror.put() == 1
    assert contents(place) == {"trials/1/metrics.jsonl": "1\n2\n"}

    monkeypatch.setenv("RAYSTITCH_SHARED", str(tmp_path / "other"))
    there = tmp_path / "other/runs/demo"
    (there / "trials/2").mkdir(parents=True)
    (there / "trials/2/new").write_text("mine")
    other = bucket.Mirror(there)
    assert other.get() == 1
    assert (there / "trials/1/metrics.jsonl").read_text() == "1\n2\n"
    assert other.get() == 0
    assert other.put() == 1  # not what it has just fetched
    assert contents(place).keys() == {"trials/1/metrics.jsonl", "trials/2/new"}


def test_a_file_that_is_here_is_not_overwritten(bucket: ModuleType, place: str, tmp_path: Path) -> None:
    Storage(place).write("a", b"old")
    here = tmp_path / "node/runs/demo"
    here.mkdir(parents=True)
    (here / "a").write_text("new")
    mirror = bucket.Mirror(here)
    assert mirror.get() == 0
    assert mirror.put() == 1
    assert contents(place) == {"a": "new"}


def test_a_command_runs_in_between_and_its_status_is_kept(place: str, tmp_path: Path, deploy: Path) -> None:
    here = tmp_path / "node/runs/demo"
    Storage(place).write("before", b"x")
    script = f"import pathlib, sys; p = pathlib.Path({str(here)!r}); p.joinpath('after').write_text('y'); "
    failed = subprocess.run(
        command(deploy, here, script + "sys.exit(3 if p.joinpath('before').exists() else 4)"), check=False
    )
    assert failed.returncode == 3
    assert contents(place) == {"before": "x", "after": "y"}


def test_it_copies_while_the_command_runs_and_when_it_is_told_to_stop(place: str, tmp_path: Path, deploy: Path) -> None:
    here = tmp_path / "node/runs/demo"
    script = f"""
import pathlib, signal, sys, time
p = pathlib.Path({str(here)!r}); p.mkdir(parents=True)
def stop(*_):
    p.joinpath("last").write_text("z")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
p.joinpath("first").write_text("a")
time.sleep(60)
"""
    process = subprocess.Popen(command(deploy, here, script), env={**os.environ, "RAYSTITCH_BUCKET_SECONDS": "0.2"})
    try:
        deadline = time.monotonic() + 20
        while "first" not in contents(place):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
    assert contents(place) == {"first": "a", "last": "z"}


def test_a_run_that_cannot_be_kept_has_failed(
    tmp_path: Path, deploy: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYSTITCH_BUCKET", f"{s3}-missing/x")
    monkeypatch.setenv("RAYSTITCH_SHARED", str(tmp_path))
    script = (
        f"import pathlib; pathlib.Path({str(tmp_path / 'runs')!r}).mkdir(); open({str(tmp_path / 'runs/a')!r}, 'w')"
    )
    done = subprocess.run(command(deploy, tmp_path / "runs", script), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "missing" in done.stderr


def test_usage(bucket: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert bucket.main(["run", "folder", "sweep"]) == 2
    assert "COMMAND" in capsys.readouterr().err


def filled(bucket: ModuleType, tmp_path: Path) -> tuple[Any, Path]:
    """A mirror of a run of three files that are in the bucket."""
    here = tmp_path / "node/runs/demo"
    (here / "trials/1").mkdir(parents=True)
    for name in ("config.yaml", "trials/1/metrics.jsonl", "trials/1/returns.json"):
        (here / name).write_text(name)
    mirror = bucket.Mirror(here)
    assert mirror.put() == 3
    return mirror, here


def test_an_unreadable_folder_is_not_an_empty_one(bucket: ModuleType, place: str, tmp_path: Path) -> None:
    mirror, here = filled(bucket, tmp_path)
    before = contents(place)
    (here / "new").write_text("new")
    (here / "config.yaml").unlink()
    (here / "trials").chmod(0)
    was = os.geteuid()
    if was == 0:  # permissions count for others than root
        for path in (tmp_path, *tmp_path.parents):
            if not path.stat().st_mode & 0o001:
                path.chmod(0o711)
        os.seteuid(65534)
    try:
        with pytest.raises(OSError, match=r"Permission denied: .*/trials'; nothing was removed from the bucket"):
            mirror.put()
    finally:
        os.seteuid(was)
        (here / "trials").chmod(0o755)
    assert contents(place) == before | {"new": "new"}  # what can be read is kept
    assert mirror.put() == 0
    del before["config.yaml"]  # now it is certain that it is gone
    assert contents(place) == before | {"new": "new"}


def test_an_empty_folder_that_was_full_is_refused_unless_it_is_told(
    bucket: ModuleType, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror, here = filled(bucket, tmp_path)
    before = contents(place)
    here.rename(tmp_path / "elsewhere")
    for make in (lambda: None, here.touch, here.unlink, here.mkdir):  # not there, a file in its place, empty
        make()
        with pytest.raises(OSError, match="nothing was removed from the bucket"):
            mirror.put()
        assert contents(place) == before
    with pytest.raises(OSError, match="had 3 files and is empty now; RAYSTITCH_BUCKET_EMPTY=1 if it should be"):
        mirror.put()
    monkeypatch.setenv("RAYSTITCH_BUCKET_EMPTY", "1")
    assert mirror.put() == 0
    assert contents(place) == {}


def test_a_link_that_leads_nowhere_is_not_gone(bucket: ModuleType, place: str, tmp_path: Path) -> None:
    mirror, here = filled(bucket, tmp_path)
    before = contents(place)
    (here / "config.yaml").unlink()
    (here / "config.yaml").symlink_to(tmp_path / "not-mounted/config.yaml")
    assert mirror.put() == 0
    assert contents(place) == before
