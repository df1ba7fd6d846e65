"""What cannot be read is neither damaged nor missing: one line says so, and nothing is removed."""

import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raystitch.buffer.maintain import compact, verify
from raystitch.buffer.meta import create_buffer
from raystitch.buffer.opening import open_buffer
from raystitch.buffer.rounds import finish
from raystitch.buffer.schema import BufferMeta, candidates_to_table
from raystitch.buffer.shard_file import SHARDS, write_shard
from raystitch.buffer.survey import list_shards, remove_damaged, survey
from raystitch.errors import RunError, StorageError
from raystitch.io import storage as storage_module
from raystitch.io.storage import Storage
from raystitch.stitching.candidates import Candidates

MakeMeta = Callable[..., BufferMeta]
MakeCandidates = Callable[..., Candidates]
NOBODY = 65534


@pytest.fixture
def place(make_meta: MakeMeta, make_candidates: MakeCandidates) -> Iterator[Path]:
    """A finished buffer of three shards, where anybody may look."""
    folder = Path(os.path.realpath("/tmp")) / f"raystitch-unreadable-{os.getpid()}"
    path = folder / "buffer"
    create_buffer(path, make_meta())
    for shard in range(3):
        write_shard(path, shard, candidates_to_table(make_candidates(shard), shard))
    assert finish(path, 20) is not None
    yield path
    shutil.rmtree(folder)


@pytest.fixture
def not_root(place: Path) -> Iterator[Callable[[], None]]:
    """A function that makes this process nobody, who owns the buffer, so that permissions count for it."""
    for file in [place, *place.rglob("*")]:
        os.chown(file, NOBODY, NOBODY) if os.geteuid() == 0 else None
    was = os.geteuid()
    yield lambda: os.seteuid(NOBODY if was == 0 else was)
    os.seteuid(was)


def contents(path: Path) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in (path / SHARDS).iterdir()}


@pytest.mark.parametrize("what", ["shard", "folder"])
def test_no_permission_is_no_damage(place: Path, not_root: Callable[[], None], what: str) -> None:
    before = contents(place)
    hidden = place / SHARDS / "part-000001.arrow" if what == "shard" else place / SHARDS
    mode = hidden.stat().st_mode
    hidden.chmod(0)
    not_root()
    said = rf"cannot (read|list) {hidden}: Permission denied; nothing was removed"
    for action in (survey, verify, lambda path: finish(path, 20), lambda path: open_buffer(path).bridges(), compact):
        with pytest.raises(StorageError, match=said) as caught:
            action(place)
        assert "\n" not in str(caught.value)
    hidden.chmod(mode)
    assert contents(place) == before
    assert verify(place) == []


def test_a_folder_in_the_place_of_a_shard_and_a_file_in_the_place_of_the_folder(place: Path) -> None:
    shard, moved = place / SHARDS / "part-000001.arrow", place / "elsewhere"
    shard.rename(moved)
    shard.mkdir()
    for action in (survey, lambda path: finish(path, 20)):
        with pytest.raises(StorageError, match=rf"cannot read {shard}: Is a directory"):
            action(place)
    assert list(list_shards(place)) == [0, 1, 2]
    shard.rmdir()
    moved.rename(shard)
    (place / SHARDS).rename(moved)
    (place / SHARDS).touch()
    for action in (survey, list_shards, lambda path: finish(path, 20)):
        with pytest.raises(StorageError, match=rf"cannot list {place / SHARDS}: "):
            action(place)
    (place / SHARDS).unlink()
    moved.rename(place / SHARDS)
    assert verify(place) == []


def test_a_link_that_leads_nowhere_is_not_removed(place: Path) -> None:
    shard = place / SHARDS / "part-000001.arrow"
    shard.rename(place / "elsewhere")
    shard.symlink_to(place / "not-mounted")
    found = survey(place)
    assert (list(found.stats), found.damaged) == ([0, 2], {})
    remove_damaged(place, found)
    assert finish(place, 20) is None
    assert shard.is_symlink()


def test_what_is_wrong_when_it_was_read_whole_is_damaged(place: Path) -> None:
    shard = place / SHARDS / "part-000001.arrow"
    shard.write_bytes(shard.read_bytes()[:100])
    found = survey(place)
    assert list(found.damaged) == [shard.name]
    remove_damaged(place, found)
    assert not shard.exists()


def test_other_files_in_the_folder_of_shards_are_nobody_s_leftovers(place: Path) -> None:
    notes = place / SHARDS / "notes.txt"
    notes.write_text("mine")
    os.utime(notes, (0, 0))
    assert finish(place, 20) is not None
    assert notes.exists()


class Failing:
    """Passes connections on to the S3 server, but answers 500 to whoever gets the content of a shard."""

    def __init__(self) -> None:
        self.fails = True
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        host, port = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://").split(":")
        with client, socket.create_connection((host, int(port))) as server:
            threading.Thread(target=self._back, args=(server, client), daemon=True).start()
            try:
                while data := client.recv(1 << 20):
                    if self.fails and data.startswith(b"GET") and b"part-" in data.split(b"\r\n")[0]:
                        body = b"<Error><Code>InternalError</Code><Message>We are sorry</Message></Error>"
                        head = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: %d\r\n\r\n" % len(body)
                        client.sendall(head + body)
                    else:
                        server.sendall(data)
            except OSError:
                return

    def _back(self, server: socket.socket, client: socket.socket) -> None:
        try:
            while data := server.recv(1 << 20):
                client.sendall(data)
        except OSError:
            return


def test_a_store_that_fails_is_no_damage(
    s3: str, make_meta: MakeMeta, make_candidates: MakeCandidates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_module, "ATTEMPTS", 1)
    plain, failing = f"{s3}/failing", Failing()
    uri = f"{plain}?scheme=http&endpoint_override={failing.address}"
    try:
        create_buffer(plain, make_meta())
        write_shard(plain, 0, candidates_to_table(make_candidates(0), 0))
        with pytest.raises(RunError, match=r"cannot read .*part-000000\.arrow \(1 attempts\): .*"):
            survey(uri)
        failing.fails = False
        found = survey(uri)
        assert (list(found.stats), found.damaged) == ([0], {})
    finally:
        failing.listener.close()


def test_settings_that_cannot_be_read_are_not_written_over(
    place: Path, not_root: Callable[[], None], make_meta: MakeMeta
) -> None:
    file = place / "buffer.json"
    before = file.read_bytes()
    file.chmod(0)
    not_root()
    with pytest.raises(StorageError, match=r"cannot read .*buffer\.json: Permission denied"):
        create_buffer(place, make_meta(num_bridges=99))
    file.chmod(0o644)
    assert file.read_bytes() == before
    assert Storage(place).names() == [".buffer.lock", "buffer.json", "shards"]
