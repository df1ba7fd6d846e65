"""The whole pipeline on an object store: what was interrupted here Ray's actors continue there, damage is found."""

from pathlib import Path
from typing import Any

import pyarrow.fs as fs
import pytest

from raystitch.buffer.maintain import verify
from raystitch.buffer.opening import open_buffer
from raystitch.buffer.shard_file import SHARDS
from raystitch.io.storage import Storage

Walks = Any
"""See conftest.py, which cannot be imported from here."""


class Stop(Exception):
    pass


def test_a_buffer_on_s3_is_the_buffer_on_disk(walks: Walks, undisturbed: Path, s3: str, ray_session: None) -> None:
    out, notes = f"{s3}/augment", list[str]()

    def stop_after_two(at: Any) -> None:
        if at.shards >= 2:
            raise Stop

    with pytest.raises(Stop):
        walks.augment_local(out, progress=stop_after_two)
    assert len(Storage(out).names(SHARDS)) >= 2
    # One object is cut short, as no upload leaves it but a careless copy may.
    storage = Storage(out)
    filesystem, path = storage.location(f"{SHARDS}/{storage.names(SHARDS)[0]}")
    assert isinstance(filesystem, fs.FileSystem)
    with filesystem.open_input_file(path) as file:
        half = file.read(file.size() // 2)
    with filesystem.open_output_stream(path) as sink:
        sink.write(half)
    summary = walks.augment(out, progress=lambda at: notes.append(at.message))
    assert any("is damaged" in note and "part-000000.arrow" in note for note in notes)
    assert 0 < summary.new_shards <= summary.num_shards
    walks.assert_same(out, undisturbed)
    assert verify(out) == []
    assert open_buffer(out).uri == out
