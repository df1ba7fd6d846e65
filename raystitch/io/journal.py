"""Files of JSON lines that grow while a process works, and that are cut back to where its checkpoint stands."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raystitch.errors import DamagedError, RunError
from raystitch.io.digest import digest
from raystitch.io.files import atomic_path, set_aside, sync


class Journal:
    """Rows of one process; nothing waits for the disk but ``extent``."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def append(self, row: Mapping[str, Any]) -> None:
        """Raises: RunError when it cannot be written."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise RunError(f"cannot write {self.path}: {error.strerror or error}") from error

    def extent(self) -> dict[str, Any]:
        """Wait until all rows are on the disk, and return their bytes and digest."""
        if not self.path.exists():
            return {"bytes": 0, "digest": digest()}
        sync(self.path)
        content = self.path.read_bytes()
        return {"bytes": len(content), "digest": digest(content)}

    def problem(self, extent: Mapping[str, Any]) -> str | None:
        """Return why the journal does not begin with what it was at ``extent``; None when it does."""
        try:
            content = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            return f"{self.path.name} cannot be read ({os.strerror(error.errno or 0)})"
        if len(content) < extent["bytes"]:
            return f"{self.path.name} is shorter than it was then"
        if digest(content[: extent["bytes"]]) != extent["digest"]:
            return f"{self.path.name} is damaged: it is not what it was then"
        return None

    def cut(self, extent: Mapping[str, Any] | None) -> None:
        """Cuts it back to an extent without a ``problem``; to nothing without one."""
        kept = self.path.read_bytes()[: extent["bytes"]] if extent is not None and self.path.exists() else b""
        self._replace(kept)

    def rewind(self, extent: Mapping[str, Any]) -> None:
        """Cuts it back to an extent.

        Raises:
            DamagedError: when it does not begin with what it was then.
        """
        if why := self.problem(extent):
            raise DamagedError(f"{self.path.parent}: {why}")
        self.cut(extent)

    def _replace(self, content: bytes) -> None:
        if self.path.is_dir():
            set_aside(self.path)
        with atomic_path(self.path) as temporary:
            temporary.write_bytes(content)
