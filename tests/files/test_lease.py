"""The lease on shared storage: a lost holder is waited for, a living one is respected, and no clock has to be right."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from raystitch.errors import RunError, UserError
from raystitch.io import holders, lease
from raystitch.io.files import locked
from raystitch.io.lease import Lease, leased

SECONDS = 0.8

HOLDER = """
import sys, time
from raystitch.io import holders
from raystitch.io.lease import leased
if sys.argv[3] == "elsewhere":  # another kernel, on a file system that does not pass locks on
    import fcntl
    holders.kernel = lambda: "0badcafe"
    fcntl.flock = lambda handle, operation: None
with leased(sys.argv[1], seconds=float(sys.argv[2])) as mine:
    print(mine.number, flush=True)
    sys.stdin.readline()
    mine.check()
print("released", flush=True)
"""


@contextmanager
def holder(path: Path, where: str = "here", seconds: float = SECONDS) -> Iterator["subprocess.Popen[str]"]:
    """A process that has the lease."""
    command = [sys.executable, "-c", HOLDER, str(path), str(seconds), where]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip().isdigit()
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def refused() -> "pytest.RaisesExc[UserError]":
    return pytest.raises(UserError, match="busy")


def seconds_to_take(path: Path) -> float:
    began = time.monotonic()
    with leased(path, seconds=SECONDS):
        return time.monotonic() - began


def test_numbers_grow_and_one_file_stays(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        with leased(tmp_path / "run" / ".lock", seconds=SECONDS) as mine:
            assert mine.number == number
            mine.check()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".00000003.lock", ".lock"]


def test_a_holder_of_this_machine_that_was_killed_is_not_waited_for(tmp_path: Path) -> None:
    with holder(tmp_path / ".lock", seconds=60) as process:
        process.kill()
        process.wait()
        assert seconds_to_take(tmp_path / ".lock") < 1


def test_a_living_holder_is_refused_at_once_here_and_after_a_heartbeat_elsewhere(tmp_path: Path) -> None:
    for where in ("here", "elsewhere"):
        path = tmp_path / where
        with holder(path, where), refused(), leased(path, seconds=SECONDS, busy="busy"):
            pytest.fail("two have it")


def test_a_holder_that_was_lost_with_its_machine_is_waited_for_and_not_refused(tmp_path: Path) -> None:
    told: list[str] = []
    with holder(tmp_path / ".lock", "elsewhere") as process:
        process.kill()  # whatever lock it had stays behind on the server
        with locked(tmp_path / ".lock"):
            began = time.monotonic()
            with leased(tmp_path / ".lock", seconds=SECONDS, busy="busy", on_wait=told.append) as mine:
                assert time.monotonic() - began >= SECONDS
                assert mine.number == 2
                mine.check()
    assert told
    assert f"process {process.pid}" in told[0]


def test_a_living_holder_elsewhere_keeps_it_for_many_times_its_seconds(tmp_path: Path) -> None:
    with holder(tmp_path / ".lock", "elsewhere") as process:
        taken = threading.Event()

        def wait() -> None:
            with leased(tmp_path / ".lock", seconds=SECONDS):
                taken.set()

        waiting = threading.Thread(target=wait)
        waiting.start()
        assert not taken.wait(4 * SECONDS)
        output, errors = process.communicate("\n")
        assert (output.strip(), errors) == ("released", "")
        waiting.join(10)
        assert taken.is_set()


@pytest.mark.parametrize("hours", [-1, 1])
def test_no_clock_has_to_be_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: int) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3600 * hours)
    with holder(tmp_path / ".lock", "elsewhere") as process:
        for path in tmp_path.iterdir():  # neither the watcher's clock nor the server's
            os.utime(path, (real() - 7200 * hours, real() - 7200 * hours))
        with refused(), leased(tmp_path / ".lock", seconds=SECONDS, busy="busy"):
            pytest.fail("two have it")
        process.kill()
        assert SECONDS <= seconds_to_take(tmp_path / ".lock") < 10


def test_a_holder_that_stood_still_knows_that_it_lost_the_lease(tmp_path: Path) -> None:
    with holder(tmp_path / ".lock", "elsewhere") as process:
        process.send_signal(signal.SIGSTOP)
        with leased(tmp_path / ".lock", seconds=SECONDS) as mine:
            process.send_signal(signal.SIGCONT)
            _, errors = process.communicate("\n")
            assert "RunError: the lock" in errors
            assert "was lost" in errors
            mine.check()
        assert json.loads((tmp_path / ".00000002.lock").read_text())["state"] == "released"


def test_only_one_of_many_takes_a_lost_lease(tmp_path: Path) -> None:
    with holder(tmp_path / ".lock", "elsewhere") as process:
        process.kill()
        process.wait()
    at_work, most, numbers = 0, 0, []

    def work() -> None:
        nonlocal at_work, most
        with leased(tmp_path / ".lock", seconds=SECONDS) as mine:
            at_work += 1
            most = max(most, at_work)
            numbers.append(mine.number)
            time.sleep(0.05)
            at_work -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most == 1
    assert sorted(numbers) == list(range(2, 8))


def test_a_late_taker_of_an_old_number_gives_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        with leased(tmp_path / ".lock", seconds=SECONDS):
            pass
    real, late = lease._Watch.next_number, iter([1])
    monkeypatch.setattr(lease._Watch, "next_number", lambda self, handle: next(late, None) or real(self, handle))
    with leased(tmp_path / ".lock", seconds=SECONDS) as mine:
        assert mine.number == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [".00000003.lock", ".lock"]


def test_a_file_system_without_locks_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(holders.fcntl, "flock", refuse)
    path = tmp_path / ".lock"
    with leased(path, seconds=SECONDS), refused(), leased(path, seconds=SECONDS, busy="busy"):
        pytest.fail("two have it")
    assert seconds_to_take(tmp_path / ".lock") < SECONDS


def test_a_lease_that_cannot_be_renewed_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Lease, state: str) -> None:
        raise OSError(5, "Input/output error")

    with leased(tmp_path / ".lock", seconds=SECONDS) as mine:
        mine.check()
        monkeypatch.setattr(Lease, "_write", fail)
        time.sleep(SECONDS + 0.2)
        with pytest.raises(RunError, match="this process could not renew it"):
            mine.check()
