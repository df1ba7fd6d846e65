"""A folder that may be local or on an object store, with whole-or-nothing writes.

On a local disk a file gets a temporary name and is renamed. On an object store it is one upload of complete data: an
upload that breaks off, whatever the reason, leaves no object (at most parts that only the bucket's own life-cycle rules
see and remove).
"""

import errno
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from pyarrow import fs

from raystitch.errors import StorageError, UserError
from raystitch.io.cache import fetch, forget
from raystitch.io.files import atomic_path, cannot_write, is_leftover, locked, sync
from raystitch.io.guarded import Found, LastWins, LocalGuard, ObjectGuard, ReplaceGuard, object_guard

LOCK_FILE = ".buffer.lock"
ATTEMPTS = 4
BACK_OFF_SECONDS = 0.5
REQUESTS = 16
"""To an object store at once: what takes time there is the way to it."""
OVERTAKEN = 50
"""Times that a change is tried while others change the same file."""
_REFUSALS = {
    "NO_SUCH_BUCKET": "the bucket does not exist; make it or name another",
    "ACCESS_DENIED": "access is denied; check the credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY or a profile)",
    "INVALID_ACCESS_KEY_ID": "the access key is not known there; check AWS_ACCESS_KEY_ID",
    "SIGNATURE_DOES_NOT_MATCH": "the secret key is wrong; check AWS_SECRET_ACCESS_KEY",
    "UNRECOGNIZED_CLIENT": "the credentials are not known there; check AWS_ACCESS_KEY_ID",
}
"""By Arrow's names for the codes of S3; the server's own are written without the underscores."""
_UNGUARDED: dict[str, str] = {}
"""Folder on an object store -> why the store does not compare; it is asked once per process."""
Item = TypeVar("Item")
Result = TypeVar("Result")
StrPath = str | os.PathLike[str]


class Storage:
    """A folder; names are relative to it and use ``/``.

    Attributes:
        uri: as given, with what follows ``?``; names the same folder again.
        local: the folder, None on an object store.

    Raises:
        UserError: for a URI whose scheme pyarrow does not know.
    """

    def __init__(self, uri: StrPath) -> None:
        text = os.fspath(uri)
        if "://" in text and not text.startswith("file://"):
            try:
                self._located = _with_endpoint(text)
                self._fs, root = fs.FileSystem.from_uri(self._located)
            except (pa.ArrowInvalid, OSError) as error:
                raise UserError(f"{text} is not a path or URI that can be opened: {error}") from error
            self._root, self.local = root.rstrip("/"), None
            self._shown = f"{text.split('://')[0]}://{self._root}"
        else:
            path = Path(text.removeprefix("file://")).expanduser().absolute()
            self._fs, self._root, self.local = fs.LocalFileSystem(), str(path), path
            self._shown = text.rstrip("/")
        self.uri = text

    def where(self, name: str = "") -> str:
        """The full name of a file for messages; without the query and the credentials that a URI may have."""
        return f"{self._shown}/{name}" if name else self._shown

    def below(self, name: str) -> str:
        """The URI, or the path, of a file or folder in this one."""
        path, mark, query = self.uri.partition("?") if self.local is None else (str(self.local), "", "")
        return f"{path.rstrip('/')}/{name}{mark}{query}"

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def names(self, folder: str = "") -> list[str]:
        """Names of what lies directly in ``folder``, sorted; empty where the folder does not exist.

        Raises:
            UserError: when the store refuses to list it.
            StorageError: when it cannot be listed: no permission, not a folder, storage that does not answer.
        """
        return sorted(info.base_name for info in self._listed(folder, recursive=False))

    def tree(self, folder: str = "") -> dict[str, tuple[int, int]]:
        """Return size and time (ns) of every file below ``folder``, however deep, by its name from here.

        Raises:
            UserError, StorageError: as ``names``.
        """
        files = [info for info in self._listed(folder, recursive=True) if info.type == fs.FileType.File]
        return {info.path.removeprefix(f"{self._root}/"): (info.size or 0, info.mtime_ns or 0) for info in files}

    def _listed(self, folder: str, recursive: bool) -> list[fs.FileInfo]:
        selector = fs.FileSelector(self._path(folder), allow_not_found=True, recursive=recursive)
        try:
            return self._patiently("list", folder, lambda: self._fs.get_file_info(selector))
        except StorageError as error:
            raise UserError(f"{self.where()} cannot be listed: {error}") from error
        except OSError as error:
            raise self._unreadable("list", folder, error) from error

    def require_bucket(self) -> None:
        """Raises: UserError when the bucket of an object store does not exist; listings of it are empty."""
        bucket = "" if self.local is not None else self._root.partition("/")[0]
        found = fs.FileType.Directory
        if bucket:
            found = self._patiently("look at", "", lambda: self._fs.get_file_info(bucket)).type
        if found == fs.FileType.NotFound:
            raise UserError(f"{self.where()} cannot be reached: {_REFUSALS['NO_SUCH_BUCKET']}")

    def exists(self, name: str) -> bool:
        return self._info(name).type == fs.FileType.File

    def size(self, name: str) -> int:
        return self._info(name).size or 0

    def age(self, name: str) -> float | None:
        """Seconds since a file was written, by this machine's clock and the storage's; None where there is none."""
        info = self._info(name)
        return None if info.type != fs.FileType.File else time.time() - info.mtime_ns / 1e9

    def _info(self, name: str) -> fs.FileInfo:
        return self._patiently("look at", name, lambda: self._fs.get_file_info(self._path(name)))

    def read(self, name: str) -> pa.Buffer:
        """The whole file, memory-mapped: where it lies when it is local, a local copy of it when it is a shard on an
        object store (see ``io.cache``).

        Raises:
            OSError: when it is missing or unreadable.
            StorageError: when the storage does not answer.
        """
        if self.local is not None:
            return _map(self.local / name)
        if not name.endswith(".arrow"):
            return self._patiently("read", name, lambda: self._read_whole(name))
        return self._patiently("read", name, lambda: _map(self._fetch(name)))

    def read_whole(self, name: str) -> pa.Buffer:
        """Every byte of the file as it is there now, in memory: neither mapped nor from the cache.

        Raises:
            FileNotFoundError: when it is missing.
            UserError: when the store refuses for good.
            StorageError: when it cannot be read.
        """
        try:
            if self.local is not None:
                return pa.py_buffer((self.local / name).read_bytes())
            return self._patiently("read", name, lambda: self._read_whole(name))
        except FileNotFoundError:
            raise
        except OSError as error:
            raise self._unreadable("read", name, error) from error

    def open(self, name: str) -> pa.NativeFile:
        """The file for reading parts of it; the caller closes it. Raises as ``read`` does."""
        if self.local is not None:
            return pa.memory_map(self._path(name))
        return self._patiently("read", name, lambda: self._fs.open_input_file(self._path(name)))

    def forget_copy(self, name: str) -> None:
        """Removes the local copy of a file that turned out to be damaged, so that the next ``read`` looks again."""
        if self.local is None and name.endswith(".arrow"):
            forget(self._key(self._info(name)))

    def _read_whole(self, name: str) -> pa.Buffer:
        with self._fs.open_input_file(self._path(name)) as source:
            return source.read_buffer()

    def _fetch(self, name: str) -> Path:
        info = self._fs.get_file_info(self._path(name))
        if info.type != fs.FileType.File:
            raise FileNotFoundError(f"{self.where(name)} does not exist")
        return fetch(self._key(info), info.size, lambda: self._fs.open_input_stream(info.path))

    def _key(self, info: fs.FileInfo) -> str:
        return f"{self.uri} {info.path} {info.size} {info.mtime_ns}"

    def write(self, name: str, data: bytes | pa.Buffer, *, durable: bool = False) -> None:
        """Writes the file whole or not at all.

        Raises:
            StorageError: when it cannot be written.
        """
        with self.create(name, durable=durable) as sink:
            sink.write(data)

    @contextmanager
    def create(self, name: str, *, durable: bool = False) -> Iterator[pa.NativeFile]:
        """A sink for a file that is there, whole, once the block ends without an exception, and not otherwise.

        On an object store the data is collected in memory: closing pyarrow's stream, which an exception does too,
        commits what was sent so far, so the stream is not opened before all is there.

        Args:
            durable: on a local disk, wait until it is on the disk.

        Raises:
            StorageError: when it cannot be written.
        """
        if self.local is not None:
            # Appended to the empty file: if opening truncated it, ext4 would write it to the disk on closing.
            with atomic_path(self.local / name, durable=durable) as temporary, pa.OSFile(str(temporary), "ab") as sink:
                yield sink
            return
        collected = pa.BufferOutputStream()
        yield collected
        data = collected.getvalue()

        def put() -> None:
            with self._fs.open_output_stream(self._path(name)) as sink:
                sink.write(data)

        try:
            self._patiently("write", name, put)
        except FileNotFoundError as error:
            raise StorageError(f"cannot write {self.where(name)}: there is no such bucket or folder") from error
        # Times on S3 are whole seconds: what was written within one would be taken for the same file.
        self.forget_copy(name)

    def each(self, action: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Return what ``action``, which reads or writes some files here, returns for each item; many at once on an
        object store."""
        if self.local is not None:
            return [action(item) for item in items]
        with ThreadPoolExecutor(REQUESTS) as pool:
            return list(pool.map(action, items))

    def settle(self, names: Iterable[str]) -> None:
        """Waits until files that were written without ``durable``, and their names, are on the disk.

        Raises:
            StorageError: when one cannot be reached any more.
        """
        if self.local is None:
            return  # an acknowledged upload is complete
        paths = [self.local / name for name in names]
        try:
            for path in [*paths, *{path.parent for path in paths}]:
                sync(path)
        except OSError as error:
            raise cannot_write(error.filename or self.where(), error) from error

    def delete(self, name: str) -> None:
        """Removes a file; one that is gone already is fine.

        Raises:
            StorageError: when it cannot be removed.
        """
        try:
            self._patiently("remove", name, lambda: self._fs.delete_file(self._path(name)))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StorageError(f"cannot remove {self.where(name)}: {error}") from error

    def is_leftover(self, name: str) -> bool:
        """Return True if a process that died left this temporary file; object stores have none."""
        return self.local is not None and is_leftover(self.local / name)

    def update(self, name: str, change: Callable[[bytes | None], bytes | None]) -> None:
        """Reads a small file, changes it and writes it as one step: nothing that another process wrote in between is
        lost. On a local disk the caller holds ``lock``; it is durable when this returns.

        Args:
            change: from the content (None: no file) to the new one (None: leave it). It is asked again, with what is
                there by then, when another process was faster.

        Raises:
            StorageError: when it cannot be read or written, or changes all the time.
        """
        guard = self._guard(name)
        for attempt in range(OVERTAKEN):
            try:
                found = self._patiently("read", name, lambda: guard.read(name))
            except OSError as error:
                raise self._unreadable("read", name, error) from error
            content = change(found.content)
            if content is None or content == found.content:
                return
            if self._replace(guard, name, found, content):
                return
            time.sleep(random.uniform(0, min(0.5, 0.01 * 2**attempt)))  # not in step with the other process
        raise StorageError(f"{self.where(name)} keeps being changed by other runs; run again when they have finished")

    def _replace(self, guard: ReplaceGuard, name: str, found: Found, content: bytes) -> bool:
        return self._patiently("write", name, lambda: guard.replace(name, found, content))

    def unguarded(self, name: str) -> str:
        """Return why two runs could undo each other's changes: the store does not compare. Empty where it does."""
        return self._guard(name).unguarded

    def _guard(self, name: str) -> ReplaceGuard:
        """Return the guard that replaces a file only if it is still as read; ``name`` is for messages."""
        if self.local is not None:
            return LocalGuard(self.local)
        guard = self._object_guard
        if self._shown not in _UNGUARDED:
            why = "it is neither s3:// nor gs://" if guard is None else self._patiently("write", name, guard.probe)
            _UNGUARDED[self._shown] = why
        if guard is not None and not _UNGUARDED[self._shown]:
            return guard
        return LastWins(_UNGUARDED[self._shown], lambda name: self._read_whole(name).to_pybytes(), self.write)

    @cached_property
    def _object_guard(self) -> ObjectGuard | None:
        return object_guard(self._located, self._root, getattr(self._fs, "region", None))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other processes from changing the folder's description meanwhile; not re-entrant.

        Local disks only, through a lock on the file ``.buffer.lock`` that ends with the process. On an object store
        there is none: ``update`` does without.

        Raises:
            StorageError: where the file system has no locks.
        """
        if self.local is None:
            yield
            return
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(self.local / LOCK_FILE))
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                    raise
                raise StorageError(
                    f"cannot lock {self.where(LOCK_FILE)}: {os.strerror(error.errno)}; mount the folder with locks "
                    "(NFS: without nolock), or use another place"
                ) from error
            yield

    def location(self, name: str) -> tuple[fs.FileSystem, str]:
        """The pyarrow file system and path of a file."""
        return self._fs, self._path(name)

    def _unreadable(self, verb: str, name: str, error: OSError) -> StorageError:
        why = os.strerror(error.errno) if error.errno else " ".join(str(error).split())
        return StorageError(f"cannot {verb} {self.where(name)}: {why}; nothing was removed")

    def _patiently(self, verb: str, name: str, action: Callable[[], Result]) -> Result:
        """Tries a request again where the object store may answer later; local disks are asked once.

        Raises:
            UserError: when the store refuses for good: no such bucket, wrong credentials.
            StorageError: when it did not answer.
            OSError: as it comes, from a local disk; everywhere where the file is missing.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return action()
            except FileNotFoundError:
                raise
            except OSError as error:
                if self.local is not None:
                    raise
                text = " ".join(str(error).split())
                for code, advice in _REFUSALS.items():
                    if code in text or code.replace("_", "") in text.upper():
                        raise UserError(f"cannot {verb} {self.where(name)}: {advice}") from error
                if attempt == ATTEMPTS:
                    raise StorageError(f"cannot {verb} {self.where(name)} ({attempt} attempts): {text}") from error
                time.sleep(BACK_OFF_SECONDS * 2 ** (attempt - 1))
        raise AssertionError


def _map(path: Path) -> pa.Buffer:
    with pa.memory_map(str(path)) as source:
        return source.read_buffer()


def _with_endpoint(uri: str) -> str:
    """An ``s3://`` URI with the address in ``$AWS_ENDPOINT_URL``, where it names none itself."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not uri.startswith("s3://") or not endpoint or "endpoint_override=" in uri:
        return uri
    scheme, _, host = endpoint.rpartition("://")
    return f"{uri}{'&' if '?' in uri else '?'}scheme={scheme or 'https'}&endpoint_override={host.rstrip('/')}"
