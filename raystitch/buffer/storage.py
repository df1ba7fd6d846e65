"""A folder that may be local or on an object store, with whole-or-nothing writes."""

import os
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from raystitch.errors import RunError, UserError
from raystitch.files import atomic_path


class Storage:
    """A folder; names are relative to it and use ``/``.

    Raises:
        UserError: for a URI whose scheme pyarrow does not know.
    """

    def __init__(self, uri: str | os.PathLike[str]) -> None:
        text = os.fspath(uri)
        if "://" in text and not text.startswith("file://"):
            try:
                self._fs, root = fs.FileSystem.from_uri(text)
            except (pa.ArrowInvalid, OSError) as error:
                raise UserError(f"{text} is not a path or URI that can be opened: {error}") from error
            self._root, self.local = root.rstrip("/"), None
        else:
            path = Path(text.removeprefix("file://")).expanduser().absolute()
            self._fs, self._root, self.local = fs.LocalFileSystem(), str(path), path
        self.uri = text

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def names(self, folder: str = "") -> list[str]:
        """Names of the files directly in ``folder``, sorted; empty where the folder does not exist."""
        selector = fs.FileSelector(self._path(folder), allow_not_found=True)
        try:
            return sorted(info.base_name for info in self._fs.get_file_info(selector))
        except OSError as error:
            raise UserError(f"{self.uri} cannot be listed: {error}") from error

    def exists(self, name: str) -> bool:
        return self._fs.get_file_info(self._path(name)).type == fs.FileType.File

    def read(self, name: str) -> pa.Buffer:
        """The whole file; memory-mapped when it is local.

        Raises:
            OSError: when it is missing or unreadable.
        """
        if self.local is not None:
            with pa.memory_map(self._path(name)) as source:
                return source.read_buffer()
        with self._fs.open_input_file(self._path(name)) as source:
            return source.read_buffer()

    def size(self, name: str) -> int:
        return self._fs.get_file_info(self._path(name)).size or 0

    def write(self, name: str, data: bytes | pa.Buffer) -> None:
        """Writes the file whole or not at all: temporary name and rename, or one request on an object store.

        Raises:
            RunError: when it cannot be written.
        """
        if self.local is not None:
            with atomic_path(self.local / name) as temporary, temporary.open("wb") as file:
                file.write(memoryview(data))
            return
        try:
            with self._fs.open_output_stream(self._path(name)) as sink:
                sink.write(data)
        except OSError as error:
            raise RunError(f"cannot write {self.uri}/{name}: {error}") from error

    def delete(self, name: str) -> None:
        """Removes a file; one that is gone already is fine."""
        try:
            self._fs.delete_file(self._path(name))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise RunError(f"cannot remove {self.uri}/{name}: {error}") from error

    def location(self, name: str) -> tuple[fs.FileSystem, str]:
        """The pyarrow file system and path of a file."""
        return self._fs, self._path(name)
