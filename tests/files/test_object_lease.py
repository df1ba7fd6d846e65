"""A lock in one object: of one holder at a time, and of none that is gone."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from raystitch.errors import RunError, UserError
from raystitch.io.object_lease import held_by_process_here, lock_holder, object_leased
from raystitch.io.storage import Storage

ELSEWHERE = {"holder": "lost, process 7", "token": "x", "seconds": 0.5, "state": "held"}


@pytest.fixture
def place(s3: str, request: pytest.FixtureRequest) -> Storage:
    return Storage(f"{s3}/leases/{request.node.name}")


def test_one_holds_it_and_the_next_is_told_or_waits(place: Storage) -> None:
    order: list[str] = []

    def second() -> None:
        with object_leased(place, ".lock", seconds=1.0):
            order.append("second")

    with object_leased(place, ".lock", seconds=1.0) as first:
        assert held_by_process_here(place, ".lock")
        with pytest.raises(UserError, match="busy"), object_leased(place, ".lock", seconds=1.0, busy="busy"):
            pass
        waiting = threading.Thread(target=second)
        waiting.start()
        time.sleep(2.5)  # longer than the lease, which is renewed
        order.append("first")
        first.check()
    waiting.join(10)
    assert order == ["first", "second"]
    assert not held_by_process_here(place, ".lock")


def test_a_holder_on_another_machine_is_waited_for_until_it_is_certain_that_it_is_gone(place: Storage) -> None:
    place.write(".lock", json.dumps(ELSEWHERE).encode())
    waits: list[str] = []
    began = time.monotonic()
    with object_leased(place, ".lock", seconds=1.0, busy="busy", on_wait=waits.append):
        assert time.monotonic() - began >= 1.0
    assert waits == ["lost, process 7"]


def test_a_holder_whose_heart_beats_elsewhere_is_busy(place: Storage) -> None:
    beats = 0

    def beat(_: bytes | None) -> bytes:
        nonlocal beats
        beats += 1
        return json.dumps({**ELSEWHERE, "beat": beats}).encode()

    done = threading.Event()

    def live() -> None:
        while not done.wait(0.1):
            place.update(".lock", beat)

    place.update(".lock", beat)
    thread = threading.Thread(target=live)
    thread.start()
    try:
        with pytest.raises(UserError, match="busy"), object_leased(place, ".lock", seconds=2.0, busy="busy"):
            pass
    finally:
        done.set()
        thread.join()


def test_the_lock_of_a_killed_process_of_this_machine_is_free_at_once(place: Storage) -> None:
    code = (
        "import sys, time\nfrom raystitch.io.object_lease import object_leased\n"
        "from raystitch.io.storage import Storage\n"
        "with object_leased(Storage(sys.argv[1]), '.lock'): print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, place.uri], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    with pytest.raises(UserError, match="busy"), object_leased(place, ".lock", busy="busy"):
        pass
    process.kill()
    process.wait()
    began = time.monotonic()
    with object_leased(place, ".lock", busy="busy"):
        assert time.monotonic() - began < 5


def test_a_lease_that_another_took_over_is_lost_and_not_released(place: Storage) -> None:
    with object_leased(place, ".lock", seconds=0.6) as lease:
        place.write(".lock", json.dumps(ELSEWHERE).encode())
        time.sleep(0.5)
        with pytest.raises(RunError, match=r"the lock s3://.*/\.lock was lost"):
            lease.check()
    assert json.loads(place.read_whole(".lock").to_pybytes()) == ELSEWHERE


def test_of_many_that_begin_at_once_one_at_a_time_holds_it(place: Storage) -> None:
    inside, most = 0, 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal inside, most
        with object_leased(place, ".lock", seconds=5.0):
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0.05)
            with lock:
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (most, inside) == (1, 0)


def test_who_only_looks_is_told_the_holder(place: Storage) -> None:
    assert lock_holder(place, ".lock") is None
    with object_leased(place, ".lock", seconds=5.0):
        holder = lock_holder(place, ".lock")
        assert holder is not None and holder.alive and "process" in holder.name
    assert lock_holder(place, ".lock") is None
    place.write(".lock", json.dumps(ELSEWHERE).encode())
    time.sleep(1.6)  # a store's times are whole seconds
    holder = lock_holder(place, ".lock")
    assert holder is not None and not holder.alive and holder.name == "lost, process 7"
    place.write(".lock", b"[]")
    assert lock_holder(place, ".lock") is None


def test_a_lease_whose_answer_was_lost_is_held(place: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store has taken the object, the answer does not come, and the same is asked again."""
    update = Storage.update

    def twice(self: Storage, name: str, change: Callable[[bytes | None], bytes | None]) -> None:
        update(self, name, change)
        update(self, name, change)

    with monkeypatch.context() as patched:
        patched.setattr(Storage, "update", twice)
        with object_leased(place, ".lock", seconds=5.0, busy="busy") as lease:
            patched.undo()
            lease.check()
