"""A buffer on a real S3 server (moto), with connections that break off and processes that are killed."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raystitch.buffer.maintain import compact, verify
from raystitch.buffer.meta import create_buffer, read_meta, write_meta
from raystitch.buffer.opening import open_buffer
from raystitch.buffer.rounds import finish
from raystitch.buffer.schema import BufferMeta, Complete, candidates_to_table
from raystitch.buffer.shard_file import SHARDS, write_shard
from raystitch.buffer.survey import list_shards, remove_damaged, survey
from raystitch.errors import StorageError, UserError
from raystitch.io import storage as storage_module
from raystitch.io.cache import cache_folder
from raystitch.io.storage import Storage
from raystitch.stitching.candidates import Candidates

MakeMeta = Callable[..., BufferMeta]
MakeCandidates = Callable[..., Candidates]


class Proxy:
    """Passes TCP connections on to the S3 server; the first ``breaks`` are cut after ``cut_after`` bytes sent."""

    def __init__(self, cut_after: int, breaks: int) -> None:
        self.cut_after, self.breaks = cut_after, breaks
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.upstream = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://").split(":")
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.create_connection((self.upstream[0], int(self.upstream[1])))
            threading.Thread(target=self._pump, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, False), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, count: bool) -> None:
        passed = 0
        try:
            while data := source.recv(65536):
                passed += len(data)
                if count and passed > self.cut_after and self.breaks > 0:
                    self.breaks -= 1
                    break
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy() -> Iterator[Callable[..., Proxy]]:
    made: list[Proxy] = []

    def make(cut_after: int, breaks: int) -> Proxy:
        made.append(Proxy(cut_after, breaks))
        return made[-1]

    yield make
    for one in made:
        one.listener.close()


def fill(uri: str, shards: range, make_candidates: MakeCandidates) -> None:
    for shard in shards:
        write_shard(uri, shard, candidates_to_table(make_candidates(shard), shard))


def test_a_buffer_on_s3_is_the_one_on_disk(
    s3: str, tmp_path: Path, make_meta: MakeMeta, make_candidates: MakeCandidates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYSTITCH_GRACE_SECONDS", "0")
    uri = f"{s3}/same"
    for path in (uri, str(tmp_path / "b")):
        create_buffer(path, make_meta(num_bridges=20))
        fill(path, range(5), make_candidates)
        assert finish(path, 20) is not None
    there, here = open_buffer(uri), open_buffer(tmp_path / "b")
    assert there.table.equals(here.table)
    assert there.stats == here.stats
    assert verify(uri) == []
    assert survey(uri) == survey(tmp_path / "b")
    allocated = pa.total_allocated_bytes()
    assert open_buffer(uri).table.nbytes > pa.total_allocated_bytes() - allocated  # mapped, from the cache
    assert compact(uri) == (len(here.stats), 1)
    assert compact(uri) == (1, 1)
    merged = open_buffer(uri)
    assert merged.table.combine_chunks().equals(here.table.combine_chunks())
    assert merged.stats == here.stats
    assert verify(uri) == []
    assert create_buffer(uri, make_meta(num_bridges=30)).complete is not None
    with pytest.raises(UserError, match="generated with other settings: seed"):
        create_buffer(uri, make_meta(seed=1))


def test_a_uri_with_a_query_names_its_files(s3: str, make_meta: MakeMeta, make_candidates: MakeCandidates) -> None:
    endpoint = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
    uri = f"s3://test:test@{s3.removeprefix('s3://')}/query?scheme=http&endpoint_override={endpoint}"
    storage = Storage(Storage(uri).uri)
    create_buffer(uri, make_meta())
    fill(uri, range(1), make_candidates)
    assert storage.names() == ["buffer.json", "shards"]
    assert list_shards(f"{s3}/query") == {0: "part-000000.arrow"}
    assert storage.where("shards/x") == f"{s3}/query/shards/x"  # no key, no query


def test_a_truncated_object_is_found_named_and_made_again(
    s3: str, make_meta: MakeMeta, make_candidates: MakeCandidates
) -> None:
    uri = f"{s3}/truncated"
    create_buffer(uri, make_meta())
    fill(uri, range(3), make_candidates)
    storage, name = Storage(uri), f"{SHARDS}/part-000001.arrow"
    whole = storage.read(name).to_pybytes()
    storage.write(name, whole[: len(whole) // 2])
    found = survey(uri)
    assert list(found.stats) == [0, 2]
    assert list(found.damaged) == ["part-000001.arrow"]
    remove_damaged(uri, found)  # nothing: it may have been made again by now, and is written over if not
    assert list(list_shards(uri)) == [0, 1, 2]
    fill(uri, range(1, 2), make_candidates)
    assert survey(uri).damaged == {}
    assert finish(uri, 20) is not None
    # A changed byte within is found when the shard is read, and not served from the cache once it is right again.
    flipped = bytearray(whole)
    flipped[whole.index(np.asarray(make_candidates(1).actions[1, 1]).tobytes())] ^= 1
    storage.write(name, bytes(flipped))
    with pytest.raises(UserError, match=r"truncated/shards/part-000001\.arrow is damaged: its checksum differs"):
        open_buffer(uri).bridges()
    storage.write(name, whole)
    assert len(open_buffer(uri).bridges()) >= 20


def test_two_writers_of_the_same_shards(s3: str, make_meta: MakeMeta, make_candidates: MakeCandidates) -> None:
    uri, failures = f"{s3}/two", list[BaseException]()

    def run(num_bridges: int) -> None:
        try:
            create_buffer(uri, make_meta(num_bridges=num_bridges))
            while finish(uri, num_bridges) is None:
                missing = [shard for shard in range(5) if shard not in survey(uri).stats][:1]
                fill(uri, range(missing[0], missing[0] + 1) if missing else range(0), make_candidates)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(20,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert verify(uri) == []


def test_settings_that_are_replaced_while_they_are_read(s3: str, make_meta: MakeMeta) -> None:
    storage, failures = Storage(f"{s3}/replaced"), list[BaseException]()
    short = make_meta()
    long = replace(short, complete=Complete(num_bridges=9, num_shards=9, num_accepted=9, num_candidates=9))
    write_meta(storage, short)
    done = threading.Event()

    def replace_all_the_time() -> None:
        try:
            while not done.is_set():
                write_meta(storage, long)
                write_meta(storage, short)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=replace_all_the_time)
    thread.start()
    try:
        read = [read_meta(storage) for _ in range(150)]
    finally:
        done.set()
        thread.join(60)
    assert failures == []
    assert {meta.complete for meta in read} == {None, long.complete}


@pytest.mark.parametrize("size", [1 << 20, 12 << 20])
def test_an_upload_that_breaks_off_leaves_no_object(
    s3: str, proxy: Callable[..., Proxy], monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(storage_module, "BACK_OFF_SECONDS", 0.01)
    monkeypatch.setattr(storage_module, "ATTEMPTS", 1)
    broken = proxy(cut_after=size // 2, breaks=1000)
    name = f"{SHARDS}/part-{size:06d}.arrow"
    through = Storage(f"{s3}/cut?scheme=http&endpoint_override={broken.address}")
    data = np.random.default_rng(0).bytes(size)
    with pytest.raises(StorageError, match=rf"cannot write {s3}/cut/{name}") as caught:
        through.write(name, data)
    assert "\n" not in str(caught.value)
    assert not Storage(f"{s3}/cut").exists(name)
    broken.breaks = 0
    through.write(name, data)
    assert Storage(f"{s3}/cut").read(name).to_pybytes() == data


def test_a_connection_that_breaks_once_is_tried_again(s3: str, proxy: Callable[..., Proxy]) -> None:
    broken = proxy(cut_after=1 << 19, breaks=1)
    through = Storage(f"{s3}/once?scheme=http&endpoint_override={broken.address}")
    data = np.random.default_rng(0).bytes(1 << 20)
    through.write("shards/a.arrow", data)
    assert broken.breaks == 0
    assert through.read("shards/a.arrow").to_pybytes() == data


def test_an_exception_while_writing_leaves_no_object(s3: str) -> None:
    storage = Storage(f"{s3}/interrupted")

    def write() -> None:
        with storage.create("shards/a.arrow") as sink:
            sink.write(b"x" * (12 << 20))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert not storage.exists("shards/a.arrow")


def test_killed_during_an_upload(s3: str, proxy: Callable[..., Proxy]) -> None:
    slow: Any = proxy(cut_after=1 << 40, breaks=0)
    uri = f"{s3}/killed?scheme=http&endpoint_override={slow.address}"
    program = (
        "import sys; from raystitch.io.storage import Storage; s = Storage(sys.argv[1]); print('go', flush=True)\n"
        "s.write('shards/a.arrow', bytes(200 << 20))"
    )
    writer = subprocess.Popen([sys.executable, "-c", program, uri], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    writer.stdout.readline()
    time.sleep(0.3)
    assert writer.poll() is None
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    storage = Storage(f"{s3}/killed")
    assert not storage.exists("shards/a.arrow")
    storage.write("shards/a.arrow", b"whole")
    assert storage.read("shards/a.arrow").to_pybytes() == b"whole"


def test_a_missing_bucket_is_one_clear_line(s3: str, make_meta: MakeMeta) -> None:
    with pytest.raises(
        UserError, match=r"cannot write s3://raystitch-nowhere/b/buffer\.json: the bucket does not exist"
    ):
        create_buffer("s3://raystitch-nowhere/b", make_meta())
    with pytest.raises(UserError, match="is not a buffer"):
        open_buffer("s3://raystitch-nowhere/b")


def test_the_cache_stays_within_its_size(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSTITCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RAYSTITCH_CACHE_GIB", str(2.5 / 1024))
    storage = Storage(f"{s3}/cached")
    names = [f"shards/part-{n:06d}.arrow" for n in range(4)]
    for number, name in enumerate(names):
        storage.write(name, bytes([number]) * (1 << 20))
    mapped = [storage.read(name) for name in names]
    assert sum(path.stat().st_size for path in cache_folder().iterdir()) == 2 << 20
    assert [buffer.to_pybytes()[0] for buffer in mapped] == [0, 1, 2, 3]  # mappings outlive the files
    kept = {path: path.stat().st_ino for path in cache_folder().iterdir()}
    storage.read(names[3])
    assert {path: path.stat().st_ino for path in cache_folder().iterdir()} == kept
    for wrong in ("much", "-1", "0"):
        monkeypatch.setenv("RAYSTITCH_CACHE_GIB", wrong)
        with pytest.raises(UserError, match=f"RAYSTITCH_CACHE_GIB must be a positive number of GiB, got '{wrong}'"):
            storage.read(names[0])
