"""Two drivers on one buffer: what one has reported as finished stays there, however late the other one writes."""

import contextlib
import errno
import fcntl
import os
import random
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raystitch.buffer import meta as meta_module
from raystitch.buffer import rounds
from raystitch.buffer.maintain import compact, superseded, verify
from raystitch.buffer.meta import create_buffer, read_meta
from raystitch.buffer.opening import open_buffer
from raystitch.buffer.removal import GRACE_SECONDS, grace_seconds
from raystitch.buffer.rounds import finish
from raystitch.buffer.schema import BufferMeta, Complete, candidates_to_table
from raystitch.buffer.shard_file import write_shard
from raystitch.buffer.survey import list_shards, survey
from raystitch.errors import StorageError, UserError
from raystitch.io.storage import Storage
from raystitch.stitching.candidates import Candidates

MakeMeta = Callable[..., BufferMeta]
MakeCandidates = Callable[..., Candidates]

MANY, FEW = 40, 20


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "buffer")
    return f"{request.getfixturevalue('s3')}/{request.function.__name__}"


class Pause:
    """Stops one thread where it has read and not yet written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()
        self.thread: threading.Thread | None = None
        real = getattr(rounds, name)

        def paused(*args: object, **more: object) -> object:
            if threading.current_thread() is self.thread and not self.reached.is_set():
                self.reached.set()
                assert self.go_on.wait(60)
            return real(*args, **more)

        monkeypatch.setattr(rounds, name, paused)


def fill(uri: str, shards: range, make_candidates: MakeCandidates, manifest: str = "") -> None:
    for shard in shards:
        write_shard(uri, shard, candidates_to_table(make_candidates(shard), shard), manifest)


def test_the_slower_driver_takes_nothing_from_the_faster_one(
    s3: str, make_meta: MakeMeta, make_candidates: MakeCandidates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has read ``buffer.json`` and wants fewer bridges; before it writes, the other one finishes with more."""
    uri = f"{s3}/stale-finish"
    monkeypatch.setenv("RAYSTITCH_GRACE_SECONDS", "0")
    create_buffer(uri, make_meta(num_bridges=MANY))
    create_buffer(uri, make_meta(num_bridges=FEW))
    fill(uri, range(9), make_candidates)
    pause, slow = Pause(monkeypatch, "prefix_length"), list[Complete | None]()
    pause.thread = threading.Thread(target=lambda: slow.append(finish(uri, FEW)))
    pause.thread.start()
    assert pause.reached.wait(60)
    finished = finish(uri, MANY)
    assert finished is not None and finished.num_accepted >= MANY
    pause.go_on.set()
    pause.thread.join(60)
    assert slow == [finished]
    assert read_meta(Storage(uri)).complete == finished
    assert list(list_shards(uri)) == list(range(finished.num_shards))
    assert verify(uri) == []
    assert open_buffer(uri).num_accepted() == finished.num_accepted


def test_a_round_that_another_driver_closed_and_built_on_stays(
    s3: str, make_meta: MakeMeta, make_candidates: MakeCandidates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both close round 0; the slower one only writes when the other has made and finished the next round."""
    uri = f"{s3}/stale-round"
    monkeypatch.setenv("RAYSTITCH_GRACE_SECONDS", "0")
    create_buffer(uri, make_meta(num_bridges=FEW, chain_rounds=1))
    fill(uri, range(4), make_candidates)
    pause = Pause(monkeypatch, "prefix_length")
    slow = pause.thread = threading.Thread(target=lambda: rounds.close_round(uri, (), FEW // 2))
    slow.start()
    assert pause.reached.wait(60)
    closed = rounds.close_round(uri, (), FEW // 2)
    assert closed is not None
    fill(uri, range(closed.end, closed.end + 3), make_candidates, closed.hash)
    finished = finish(uri, FEW)
    assert finished is not None
    pause.go_on.set()
    slow.join(60)
    meta = read_meta(Storage(uri))
    assert (meta.rounds, meta.complete) == ((closed,), finished)
    assert verify(uri) == []


@pytest.mark.parametrize("place", ["local", "s3"], indirect=True)
def test_a_driver_that_wants_fewer_leaves_the_shards_of_one_that_wants_more(
    place: str, make_meta: MakeMeta, make_candidates: MakeCandidates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYSTITCH_GRACE_SECONDS", "0")
    create_buffer(place, make_meta(num_bridges=FEW))
    assert create_buffer(place, make_meta(num_bridges=MANY)).augment.num_bridges == MANY
    assert create_buffer(place, make_meta(num_bridges=FEW)).augment.num_bridges == MANY
    fill(place, range(5), make_candidates)
    few = finish(place, FEW)
    assert few is not None and few.num_shards < 5
    assert list(list_shards(place)) == list(range(5))
    assert open_buffer(place).num_accepted() == few.num_accepted
    fill(place, range(5, 9), make_candidates)
    many = finish(place, MANY)
    assert many is not None
    assert list(list_shards(place)) == list(range(many.num_shards))
    assert verify(place) == []


@pytest.mark.parametrize("place", ["local", "s3"], indirect=True)
def test_what_is_over_stays_for_the_grace_period(
    place: str, make_meta: MakeMeta, make_candidates: MakeCandidates, monkeypatch: pytest.MonkeyPatch
) -> None:
    grace = 0.7 if place.startswith("/") else 2.0  # times on S3 are whole seconds
    monkeypatch.setenv("RAYSTITCH_GRACE_SECONDS", str(grace))
    create_buffer(place, make_meta(num_bridges=FEW))
    fill(place, range(5), make_candidates)
    began = time.monotonic()
    complete = finish(place, FEW)
    assert complete is not None and complete.num_shards < 5
    assert list(list_shards(place)) == list(range(5))
    assert compact(place) == (complete.num_shards, 1)
    assert len(superseded(place)) in (0, complete.num_shards)
    parts = [name for name in Storage(place).names("shards") if name.startswith("part")]
    assert len(parts) == 5 or time.monotonic() - began > grace - 1
    time.sleep(grace + 0.2)
    assert finish(place, FEW) == complete
    assert compact(place) == (1, 1)
    assert Storage(place).names("shards") == [f"merged-000000-{complete.num_shards - 1:06d}.arrow"]
    assert verify(place) == []
    monkeypatch.setenv("RAYSTITCH_GRACE_SECONDS", "soon")
    fill(place, range(4, 5), make_candidates)
    with pytest.raises(UserError, match="RAYSTITCH_GRACE_SECONDS must be a number of seconds >= 0, got 'soon'"):
        finish(place, FEW)


def test_the_grace_period_where_nobody_says(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAYSTITCH_GRACE_SECONDS", raising=False)
    assert grace_seconds(Storage(f"{s3}/x")) == GRACE_SECONDS
    assert grace_seconds(Storage(tmp_path)) == 0


def test_a_file_system_without_locks_is_one_line(
    tmp_path: Path, make_meta: MakeMeta, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(StorageError, match=r"cannot lock .*\.buffer\.lock: No locks available; mount the folder with"):
        create_buffer(tmp_path / "b", make_meta())


def test_one_of_two_that_start_the_same_buffer_takes_up_the_other_s(
    s3: str, make_meta: MakeMeta, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, failures = f"{s3}/start", list[BaseException]()
    barrier = threading.Barrier(2)
    real = meta_module._require_empty

    def both_have_seen_nothing(storage: Storage) -> None:
        real(storage)
        barrier.wait(30)

    monkeypatch.setattr(meta_module, "_require_empty", both_have_seen_nothing)

    def start(seed: int) -> None:
        try:
            create_buffer(uri, make_meta(seed=seed))
        except UserError as error:
            failures.append(error)

    threads = [threading.Thread(target=start, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(failures) == 1
    assert "was generated with other settings: seed" in str(failures[0])


def test_a_change_that_was_made_though_its_answer_was_lost_is_not_made_twice(s3: str) -> None:
    storage, asked = Storage(f"{s3}/lost-answer"), list[bytes | None]()

    def add(content: bytes | None) -> bytes:
        asked.append(content)
        return content if content == b"2" else b"2"

    storage.update("buffer.json", lambda _: b"1")
    storage.update("buffer.json", add)
    storage.update("buffer.json", add)
    assert asked == [b"1", b"2"]
    assert storage.read("buffer.json").to_pybytes() == b"2"
    assert storage.names() == ["buffer.json"]  # the probe is gone


class Careless(socketserver.BaseRequestHandler):
    """Passes requests on to the S3 server: without their conditions, or answers 501 to those that have one."""

    knows = True

    def handle(self) -> None:
        host, port = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as server:
            back = threading.Thread(target=self.pump, args=(server, self.request, False), daemon=True)
            back.start()
            self.pump(self.request, server, True)
            back.join(10)

    def pump(self, source: socket.socket, sink: socket.socket, is_request: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 20):
                without = data.replace(b"if-none-match:", b"x--none-match:").replace(b"if-match:", b"x--match:")
                if is_request and without != data and not self.knows:
                    body = b"<Error><Code>NotImplemented</Code><Message>no</Message></Error>"
                    source.sendall(b"HTTP/1.1 501 Not Implemented\r\nContent-Length: %d\r\n" % len(body))
                    source.sendall(b"Connection: close\r\n\r\n" + body)
                    break
                sink.sendall(without if is_request else data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(("knows", "why"), [(True, "it ignores If-None-Match"), (False, "it does not know If-None-")])
def test_a_store_that_does_not_compare_is_recognised_and_loses_nothing(
    s3: str,
    make_meta: MakeMeta,
    make_candidates: MakeCandidates,
    monkeypatch: pytest.MonkeyPatch,
    knows: bool,
    why: str,
) -> None:
    monkeypatch.setenv("RAYSTITCH_GRACE_SECONDS", "0")
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), type("Handler", (Careless,), {"knows": knows}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        port = server.server_address[1]
        uri = f"{s3}/careless-{knows}?scheme=http&endpoint_override=127.0.0.1:{port}"
        create_buffer(uri, make_meta(num_bridges=FEW))
        assert Storage(uri).unguarded("buffer.json").startswith(why)
        fill(uri, range(5), make_candidates)
        complete = finish(uri, FEW)
        assert complete is not None and complete.num_shards < 5
        assert read_meta(Storage(uri)).complete == complete
        assert list(list_shards(uri)) == list(range(5))
    finally:
        server.shutdown()
        server.server_close()


def drive(uri: str, meta: BufferMeta, make_candidates: MakeCandidates, seed: int) -> Complete:
    """What a driver does, with pauses of any length in between, until it reports success."""
    rng, wanted = random.Random(seed), meta.augment.num_bridges
    create_buffer(uri, meta)
    while (complete := finish(uri, wanted)) is None:
        there = survey(uri).stats
        shard = next(number for number in range(20) if number not in there)
        time.sleep(rng.uniform(0, 0.05))
        fill(uri, range(shard, shard + rng.choice((1, 2))), make_candidates)
    return complete


@pytest.mark.parametrize("times", [2, pytest.param(60, marks=pytest.mark.slow)])
@pytest.mark.timeout(600)
def test_two_drivers_of_any_speed(
    s3: str, make_meta: MakeMeta, make_candidates: MakeCandidates, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """One wants half as many bridges; whoever ends last, what the larger one reported is what is there."""
    monkeypatch.setenv("RAYSTITCH_GRACE_SECONDS", "0")
    for number in range(times):
        uri = f"{s3}/stress-{times}-{number}"

        def run(task: tuple[int, int], uri: str = uri) -> Complete | str:
            num_bridges, seed = task
            try:
                return drive(uri, make_meta(num_bridges=num_bridges), make_candidates, seed)
            except UserError as error:
                return str(error)

        tasks = [(MANY, 2 * number), (FEW, 2 * number + 1)]
        with ThreadPoolExecutor(2) as pool:
            many, few = pool.map(run, tasks if number % 2 else tasks[::-1])
        if number % 2 == 0:
            many, few = few, many
        assert isinstance(many, Complete)
        assert isinstance(few, Complete) or "was generated for 40 bridges" in few  # the other one was done already
        assert read_meta(Storage(uri)).complete == many
        assert set(list_shards(uri)) >= set(range(many.num_shards))
        assert verify(uri) == []
