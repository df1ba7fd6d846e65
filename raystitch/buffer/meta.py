"""``buffer.json``: written before the first shard, and again when a round or the whole generation is finished."""

import json
import os
import time
from typing import Any

from raystitch.buffer.schema import BufferMeta
from raystitch.buffer.storage import LOCK_FILE, Storage
from raystitch.errors import UserError
from raystitch.files import differences

META_FILE = "buffer.json"
OVERTAKEN = 10
"""Times that the file is read on an object store before it counts as damaged."""


def read_meta(storage: Storage) -> BufferMeta:
    """Raises: UserError when the folder is not a buffer."""
    where = storage.where(META_FILE)
    try:
        value = _read_json(storage)
    except FileNotFoundError as error:
        raise UserError(f"{storage.where()} is not a buffer: it has no {META_FILE}") from error
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{where} cannot be read as JSON: {error}") from error
    return BufferMeta.from_json(value, where)


def _read_json(storage: Storage) -> Any:
    """An object store is asked for a file's size and then for that much of it: what is replaced by something longer in
    between comes cut short, and is whole when it is read again."""
    attempts = 1 if storage.local is not None else OVERTAKEN
    while True:
        attempts -= 1
        try:
            return json.loads(storage.read(META_FILE).to_pybytes())
        except json.JSONDecodeError:
            if not attempts:
                raise
            time.sleep(0.05)


def write_meta(storage: Storage, meta: BufferMeta) -> None:
    """Waits until it is on the disk: unlike a shard, it cannot be made again from what it describes."""
    text = json.dumps(meta.to_json(), indent=2, allow_nan=False) + "\n"
    storage.write(META_FILE, text.encode(), durable=True)


def create_buffer(path: str | os.PathLike[str], meta: BufferMeta) -> BufferMeta:
    """Starts a buffer, or takes up one that was started with the same settings; returns what is on disk.

    Raises:
        UserError: when the folder holds something else, or a buffer of other settings (says which differ).
    """
    storage = Storage(path)
    with storage.lock():
        if not storage.exists(META_FILE) and not _started(storage):
            write_meta(storage, meta)
            return meta
    existing = read_meta(storage)
    _check_same(storage, existing, meta)
    return existing


def check_buffer(path: str | os.PathLike[str], meta: BufferMeta) -> None:
    """Raises what ``create_buffer`` would raise, and changes nothing."""
    storage = Storage(path)
    if storage.exists(META_FILE) or _started(storage):
        _check_same(storage, read_meta(storage), meta)


def _started(storage: Storage) -> bool:
    """False for an empty folder. True where there is a description after all: object stores have no lock, so another
    run may have started the buffer a moment ago.

    Raises:
        UserError: when the folder holds something else.
    """
    others = [name for name in storage.names() if name != LOCK_FILE and not _temporary(name)]
    if others and META_FILE not in others:
        raise UserError(f"{storage.where()} is not empty and not a buffer (no {META_FILE}); give another --out")
    return bool(others)


def _check_same(storage: Storage, existing: BufferMeta, meta: BufferMeta) -> None:
    differing = differences(existing.settings(), meta.settings())
    if differing:
        reads_anyway = all(key.startswith("stitch.qualify.delta ") for key in differing)
        hint = "; it can be read at any --delta by train, export and buffer info" if reads_anyway else ""
        raise UserError(
            f"{storage.where()} was generated with other settings: {', '.join(differing)}; give another --out{hint}"
        )
    if existing.complete is not None and existing.complete.num_bridges > meta.augment.num_bridges:
        raise UserError(
            f"{storage.where()} was generated for {existing.complete.num_bridges} bridges, more than the "
            f"{meta.augment.num_bridges} asked for; ask for at least as many or give another --out"
        )


def _temporary(name: str) -> bool:
    """What a killed process left of ``buffer.json``."""
    return name.startswith(f".{META_FILE}.") and name.endswith(".tmp")
