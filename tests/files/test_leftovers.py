"""Temporary files and locks of other containers, which share a folder and a host name but no process numbers."""

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from raystitch.errors import UserError
from raystitch.io.files import atomic_folder, atomic_path, is_leftover, locked

WRITER = """
import sys, time
from pathlib import Path
from raystitch.io import files, holders
if sys.argv[2] == "no locks":
    def refuse(handle, operation):
        raise OSError(95, "Operation not supported")
    holders.fcntl.flock = refuse
    files.TOUCH_SECONDS = 0.1
with files.atomic_path(Path(sys.argv[1]) / "file") as temporary:
    print(temporary, flush=True)
    sys.stdin.readline()
    temporary.write_text("whole")
print("done", flush=True)
"""

LOCKER = """
import sys
from raystitch.io.files import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
"""

HOURS_AGO = 2 * 3600.0


@contextmanager
def container(script: str, *arguments: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Runs a script with process numbers of its own, as in another container; gives its first line too."""
    unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("process namespaces cannot be made here")
    command = [*unshare, sys.executable, "-c", script, *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_a_file_that_a_living_container_writes_is_no_leftover_however_old(tmp_path: Path) -> None:
    with container(WRITER, str(tmp_path), "locks") as (process, name):
        temporary = Path(name)
        number = re.search(r"-(\d+)-[0-9a-f]{8}\.", temporary.name)
        assert number is not None
        assert int(number[1]) < 20  # a number that means another process here, or none
        age(temporary, HOURS_AGO)
        assert not is_leftover(temporary)
        output, _ = process.communicate("\n")
        assert output.strip() == "done"
    assert (tmp_path / "file").read_text() == "whole"


def test_what_a_dead_container_left_goes_after_an_hour(tmp_path: Path) -> None:
    with container(WRITER, str(tmp_path), "locks") as (process, name):
        process.kill()
        process.wait()
        deadline = time.monotonic() + 10
        age(Path(name), HOURS_AGO)
        while not is_leftover(Path(name)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        age(Path(name), 0)
        assert not is_leftover(Path(name))


def test_without_locks_a_living_writer_keeps_its_file_young(tmp_path: Path) -> None:
    with container(WRITER, str(tmp_path), "no locks") as (process, name):
        age(Path(name), HOURS_AGO)
        deadline = time.monotonic() + 10
        while is_leftover(Path(name)):  # until it is touched again
            assert time.monotonic() < deadline
            time.sleep(0.05)
        output, _ = process.communicate("\n")
        assert output.strip() == "done"


def test_what_a_killed_process_of_this_machine_left_goes_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path), "locks"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    temporary = Path(process.stdout.readline().strip())
    assert not is_leftover(temporary)
    process.kill()
    process.communicate()
    assert is_leftover(temporary)
    # Another process has the number by now: it started at another time.
    reused = temporary.with_name(temporary.name.replace(f"-{process.pid}-", f"-{os.getpid()}-"))
    temporary.rename(reused)
    assert is_leftover(reused)


def test_my_own_are_none_and_the_clock_of_the_storage_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = tmp_path / ".file.elsewhere-7-0badcafe.1.1-0123abcd.tmp"
    older_name = tmp_path / ".file.elsewhere-7-0123abcd.tmp"
    foreign.touch()
    older_name.touch()
    with atomic_path(tmp_path / "file") as file, atomic_folder(tmp_path / "folder") as folder:
        real = time.time
        for hours in (-2, 0, 2):
            monkeypatch.setattr(time, "time", lambda hours=hours: real() + 3600 * hours)
            assert not any(map(is_leftover, (foreign, older_name, file, folder)))
    monkeypatch.undo()
    for path in (foreign, older_name):
        age(path, HOURS_AGO)
        assert is_leftover(path)
    assert not is_leftover(tmp_path / "gone.tmp")


def test_a_lock_that_another_container_holds_is_held(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with container(LOCKER, str(path)) as (process, said):
        assert said == "held"
        with pytest.raises(UserError, match="busy"), locked(path, busy="busy"):
            pytest.fail("two have it")
        process.communicate("\n")
        with locked(path, busy="busy"):
            pass


def test_a_lock_file_that_was_removed_meanwhile_keeps_nobody_out(tmp_path: Path) -> None:
    path, entered = tmp_path / ".lock", threading.Event()

    def wait() -> None:
        with locked(path):
            entered.set()
            with pytest.raises(UserError, match="busy"), locked(path, busy="busy"):
                pytest.fail("two have it")

    with locked(path):
        waiting = threading.Thread(target=wait)
        waiting.start()
        time.sleep(0.2)
        path.unlink()
    waiting.join(10)
    assert entered.is_set()
    assert path.exists()
