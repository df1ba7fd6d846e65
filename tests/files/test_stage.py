"""A stage publishes whole objects in an order; what is killed meanwhile leaves a folder as some moment had it."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from raystitch.errors import RunError, StorageError, UserError
from raystitch.io import stage as stage_module
from raystitch.io.cache import cache_folder
from raystitch.io.stage import STAGES, Stage, local_copy, stage_folder
from raystitch.io.storage import Storage

ORDER = ("*.pt", "*policy.json", "*returns.json")


def contents(uri: str) -> dict[str, str]:
    storage = Storage(uri)
    return {name: storage.read_whole(name).to_pybytes().decode() for name in sorted(storage.tree())}


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def place(s3: str, request: pytest.FixtureRequest) -> str:
    return f"{s3}/stages/{re.sub(r'[^a-z_]', '', request.node.name)}"


def test_what_changes_is_published_once_and_what_is_gone_is_removed(place: str, tmp_path: Path) -> None:
    stage = Stage(place, tmp_path / "run", order=ORDER)
    (tmp_path / "run").mkdir()
    write(stage.folder, a="1", trials__x__state="2", **{".lock": "", ".results.tmp": "", ".tune__state": ""})
    assert stage.put() == 2
    assert contents(place) == {"a": "1", "trials/x/state": "2"}
    assert stage.put() == 0
    write(stage.folder, a="3")
    shutil.rmtree(stage.folder / "trials")
    assert stage.put() == 1
    assert contents(place) == {"a": "3"}
    other = Stage(place, tmp_path / "other")
    assert other.get() == ["a"]
    assert (tmp_path / "other/a").read_text() == "3"
    assert other.put() == 0  # not what it has just copied
    write(other.folder, b="4")
    assert other.put() == 1
    assert contents(place) == {"a": "3", "b": "4"}


def test_only_what_is_its_own_is_published_or_removed(place: str, tmp_path: Path) -> None:
    Storage(place).write("trials/x/returns.json", b"kept")
    stage = Stage(place, tmp_path / "run", mine=lambda name: not name.startswith("trials/"))
    stage.get()
    write(stage.folder, trials__y__returns="mine", report="page")
    shutil.rmtree(stage.folder / "trials/x")
    assert stage.put() == 1
    assert contents(place) == {"report": "page", "trials/x/returns.json": "kept"}


def test_the_last_rank_is_sent_last_and_never_speaks_of_what_is_not_there(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(place, tmp_path, order=ORDER)
    sent: list[str] = []
    written = Storage.write

    def note(storage: Storage, name: str, data: Any, **more: Any) -> None:
        sent.append(name)
        written(storage, name, data, **more)
        if name == "checkpoint/state.pt":
            # Training goes on while its checkpoint is on the way: none of this is sent before the next time.
            write(tmp_path, **{"policy__policy.json": "p", "returns.json": "r"})
            shutil.rmtree(tmp_path / "checkpoint")

    monkeypatch.setattr(Storage, "write", note)
    write(tmp_path, **{"checkpoint__state.pt": "s", "metrics.jsonl": "m"})
    stage.put()
    assert sent == ["metrics.jsonl", "checkpoint/state.pt"]
    assert contents(place) == {"checkpoint/state.pt": "s", "metrics.jsonl": "m"}  # the checkpoint is still needed
    stage.put()
    assert sent[2:] == ["policy/policy.json", "returns.json"]
    assert contents(place) == {"metrics.jsonl": "m", "policy/policy.json": "p", "returns.json": "r"}


def test_a_checkpoint_that_is_being_replaced_is_not_removed(place: str, tmp_path: Path) -> None:
    stage = Stage(place, tmp_path, order=ORDER)
    write(tmp_path, **{"checkpoint__state.pt": "1"})
    stage.put()
    (tmp_path / "checkpoint/state.pt").rename(tmp_path / "checkpoint/state.before.pt")
    stage.put()
    assert contents(place) == {"checkpoint/state.pt": "1"}
    write(tmp_path, **{"checkpoint__state.pt": "2"})
    stage.put()
    assert contents(place) == {"checkpoint/state.pt": "2"}  # the one before stays here


def test_files_for_people_and_errors_name_the_uri(place: str, tmp_path: Path) -> None:
    stage = Stage(place, tmp_path / "run", readable=("*.html",))
    write(stage.folder, **{"report.html": f"--out {stage.folder}", "raw": f"{stage.folder}"})
    stage.put()
    assert contents(place) == {"report.html": f"--out {place}", "raw": f"{stage.folder}"}
    with pytest.raises(StorageError, match=f"^cannot read {place}/x$"), stage.named():
        raise StorageError(f"cannot read {stage.folder}/x")


def test_a_checkpoint_is_published_soon_and_everything_at_the_end(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_module, "LOOK_SECONDS", 0.05)
    stage = Stage(place, tmp_path, order=ORDER)

    def work() -> None:
        write(tmp_path, **{"metrics.jsonl": "m"})
        time.sleep(0.3)
        assert contents(place) == {}  # it grows all the time
        write(tmp_path, **{"checkpoint__state.pt": "s"})
        deadline = time.monotonic() + 20
        while len(contents(place)) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        write(tmp_path, **{"error.txt": "e"})
        raise RunError("no more")

    with pytest.raises(RunError, match="no more"), stage.publishing():
        work()
    assert contents(place) == {"checkpoint/state.pt": "s", "error.txt": "e", "metrics.jsonl": "m"}


def test_a_process_that_lost_its_lease_publishes_nothing(place: str, tmp_path: Path) -> None:
    def lost() -> None:
        raise RunError("the lock was lost")

    stage = Stage(place, tmp_path, check=lost)
    write(tmp_path, a="1")
    with pytest.raises(RunError, match="the lock was lost"):
        stage.put()
    assert contents(place) == {}


def test_what_a_killed_process_staged_is_removed_by_the_next(place: str) -> None:
    code = (
        "import sys, time; from raystitch.io.stage import stage_folder\n"
        "with stage_folder(sys.argv[1]) as folder: print(folder, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, place], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    folder = Path(process.stdout.readline().strip())
    assert folder.name == place.rpartition("/")[2]
    with stage_folder(place) as mine:
        assert folder.is_dir() and mine != folder
    process.send_signal(signal.SIGKILL)
    process.wait()
    with stage_folder(place):
        assert not folder.exists()
    assert not list((cache_folder() / STAGES).iterdir())


def test_a_copy_of_a_bundle_is_made_once_per_content(place: str) -> None:
    storage = Storage(place)
    with pytest.raises(UserError, match=f"{place} is not a bundle: it has no stitcher.json"):
        local_copy(place, "stitcher.json", "a bundle")
    storage.write("stitcher.json", b"1")
    storage.write("unet.safetensors", b"a")
    storage.write(".fit/unet.pt", b"not part of it")
    first = local_copy(place, "stitcher.json", "a bundle")
    assert sorted(path.name for path in first.iterdir()) == ["stitcher.json", "unet.safetensors"]
    inode = os.stat(first / "unet.safetensors").st_ino
    assert local_copy(place, "stitcher.json", "a bundle") == first
    assert os.stat(first / "unet.safetensors").st_ino == inode
    storage.write("unet.safetensors", b"b")
    storage.write("stitcher.json", b"2")
    second = local_copy(place, "stitcher.json", "a bundle")
    assert second != first and (second / "unet.safetensors").read_text() == "b"


def test_a_copy_has_the_time_of_what_it_was_copied_from(place: str, tmp_path: Path) -> None:
    """Who compares times of files, such as of a table and of the trials in it, has to see those of the store."""
    storage = Storage(place)
    storage.write("results.parquet", b"1")
    time.sleep(1.1)  # stores count whole seconds
    storage.write("trials/x/returns.json", b"2")
    stage = Stage(place, tmp_path)
    stage.get()
    for name, (_, at) in storage.tree().items():
        assert (tmp_path / name).stat().st_mtime_ns == at
    assert stage.put() == 0


def test_what_others_have_removed_goes_here_too(place: str, tmp_path: Path) -> None:
    storage = Storage(place)
    storage.write("trials/x/error.txt", b"1")
    storage.write("trials/y/error.txt", b"1")
    stage = Stage(place, tmp_path, mine=lambda name: not name.startswith("trials/"))
    stage.get()
    storage.delete("trials/x/error.txt")
    storage.delete("trials/y/error.txt")
    stage.get(under="trials/x")
    assert not (tmp_path / "trials/x/error.txt").exists() and (tmp_path / "trials/y/error.txt").exists()
    stage.get(under="trials/x")
    storage.write("trials/x/error.txt", b"2")
    stage.get(under="trials/x")
    assert (tmp_path / "trials/x/error.txt").read_text() == "2"


def test_a_checkpoint_stays_until_the_result_is_there(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result is written and the checkpoint removed between the two looks of a publication."""
    stage = Stage(place, tmp_path, order=ORDER)
    (tmp_path / "x").mkdir()
    (tmp_path / "x/state.pt").write_text("1")
    stage.put()
    look, looks = stage._look, [0]

    def between() -> Any:
        looks[0] += 1
        if looks[0] == 2:
            (tmp_path / "x/returns.json").write_text("2")
        found = look()
        if looks[0] == 1:
            (tmp_path / "x/state.pt").unlink()
            found.pop("x/state.pt", None)
        return found

    monkeypatch.setattr(stage, "_look", between)
    stage.put()
    assert "x/state.pt" in contents(place) and "x/returns.json" not in contents(place)
    stage.put()
    assert "x/state.pt" not in contents(place) and "x/returns.json" in contents(place)
