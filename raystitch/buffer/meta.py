"""``buffer.json``: written before the first shard, and again when a round or the whole generation is finished."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace

from raystitch.buffer.schema import BufferMeta
from raystitch.errors import UserError
from raystitch.io.files import differences
from raystitch.io.holders import is_temporary
from raystitch.io.storage import LOCK_FILE, Storage

META_FILE = "buffer.json"
OVERTAKEN = 10
"""Times that the file is read on an object store before it counts as damaged."""


def read_meta(storage: Storage) -> BufferMeta:
    """Raises: UserError when the folder is not a buffer."""
    attempts = 1 if storage.local is not None else OVERTAKEN
    while True:
        attempts -= 1
        content = _content(storage)
        try:
            return _parse(storage, content)
        except UserError as error:
            # pyarrow asks an object store for a file's size and then reads that many bytes. If another file replaces it
            # in between, the read is cut short, or ends in bytes that are nobody's; reading again returns the whole.
            if not attempts or not isinstance(error.__cause__, json.JSONDecodeError | UnicodeDecodeError):
                raise
            time.sleep(0.05)


def _content(storage: Storage) -> bytes | None:
    try:
        return storage.read(META_FILE).to_pybytes()
    except FileNotFoundError:
        return None
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{storage.where(META_FILE)} cannot be read: {error}") from error


def write_meta(storage: Storage, meta: BufferMeta) -> None:
    """Writes it whatever is there, for a buffer that nobody else knows of yet; durable when this returns."""
    storage.write(META_FILE, _text(meta), durable=True)


def update_meta(storage: Storage, change: Callable[[BufferMeta], BufferMeta | None]) -> None:
    """Changes ``buffer.json`` in one step (see ``Storage.update``); on a local disk the caller holds the lock.

    Args:
        change: to what it shall be, or None to leave it; asked again when another process was faster.

    Raises:
        UserError: when the folder is not a buffer.
        StorageError: when it cannot be read or written.
    """

    def in_text(content: bytes | None) -> bytes | None:
        meta = change(_parse(storage, content))
        return None if meta is None else _text(meta)

    storage.update(META_FILE, in_text)


def create_buffer(path: str | os.PathLike[str], meta: BufferMeta) -> BufferMeta:
    """Starts a buffer, or takes up one that was started with the same settings; returns what is on disk.

    A run that wants more bridges than ``buffer.json`` says is entered there: until it has finished, nothing that it
    may need is removed by others.

    Raises:
        UserError: when the folder holds something else, or a buffer of other settings (says which differ).
    """
    storage, taken_up = Storage(path), list[BufferMeta]()

    def start_or_take_up(content: bytes | None) -> bytes | None:
        if content is None:
            _require_empty(storage)
            taken_up[:] = [meta]
            return _text(meta)
        existing = _parse(storage, content)
        _require_same(storage, existing, meta)
        claimed = existing
        if existing.augment.num_bridges < meta.augment.num_bridges:
            more = replace(existing.augment, num_bridges=meta.augment.num_bridges)
            claimed = replace(existing, augment=more)
        taken_up[:] = [claimed]
        return None if claimed is existing else _text(claimed)

    with storage.lock():
        storage.update(META_FILE, start_or_take_up)
    return taken_up[0]


def check_buffer(path: str | os.PathLike[str], meta: BufferMeta) -> None:
    """Raises what ``create_buffer`` would raise, and changes nothing."""
    storage = Storage(path)
    _require_empty(storage)
    if storage.exists(META_FILE):
        _require_same(storage, read_meta(storage), meta)


def _require_empty(storage: Storage) -> None:
    # On an object store another run may have started the buffer a moment ago; then this one takes it up.
    others = [
        name for name in storage.names() if name not in (LOCK_FILE, META_FILE) and not is_temporary(name, META_FILE)
    ]
    if others and not storage.exists(META_FILE):
        raise UserError(f"{storage.where()} is not empty and not a buffer (no {META_FILE}); give another --out")


def _require_same(storage: Storage, existing: BufferMeta, meta: BufferMeta) -> None:
    asked = replace(meta, schema_version=existing.schema_version)  # a buffer goes on in the schema it was begun with
    differing = differences(existing.settings(), asked.settings())
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


def _text(meta: BufferMeta) -> bytes:
    return (json.dumps(meta.to_json(), indent=2, allow_nan=False) + "\n").encode()


def _parse(storage: Storage, content: bytes | None) -> BufferMeta:
    if content is None:
        raise UserError(f"{storage.where()} is not a buffer: it has no {META_FILE}")
    where = storage.where(META_FILE)
    try:
        value = json.loads(content)
    except ValueError as error:
        raise UserError(f"{where} cannot be read as JSON: {error}") from error
    return BufferMeta.from_json(value, where)
