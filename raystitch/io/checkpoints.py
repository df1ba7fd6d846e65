"""Checkpoints that are checked before anything goes on from them, and the one before each in case it is damaged.

A checkpoint is one line, ``raystitch-checkpoint SCHEMA DIGEST``, and what ``torch.save`` makes of the state and the
settings that it belongs to. The digest is over the schema and all that follows the line.
"""

import contextlib
import io
import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from raystitch.console import say
from raystitch.errors import DamagedError
from raystitch.io.digest import digest
from raystitch.io.files import atomic_path, set_aside, sync

SCHEMA_VERSION = 1
_MAGIC = b"raystitch-checkpoint"


@dataclass(frozen=True, kw_only=True)
class CheckpointFile:
    """A checkpoint and the one before it, ``NAME.before.pt``.

    Attributes:
        settings: what the state belongs to, as a text; a checkpoint of anything else is not used.
        note: gets a line for every checkpoint that cannot be used.
    """

    path: Path
    settings: str = ""
    note: Callable[[str], None] = say

    @property
    def before(self) -> Path:
        return self.path.with_name(f"{self.path.stem}.before{self.path.suffix}")

    def save(self, state: Mapping[str, Any]) -> None:
        """Writes a checkpoint; it is on the disk when this returns. The last one becomes the one before.

        Raises:
            StorageError: when it cannot be written.
        """
        buffer = io.BytesIO()
        torch.save({"settings": self.settings, "state": dict(state)}, buffer)
        schema, payload = str(SCHEMA_VERSION).encode(), buffer.getbuffer()
        with atomic_path(self.path) as temporary:
            with temporary.open("wb") as file:
                file.write(b" ".join([_MAGIC, schema, digest(schema, payload).encode()]) + b"\n")
                file.write(payload)
            sync(temporary)  # a full disk may show only now, and then the last one stays where it is
            with contextlib.suppress(FileNotFoundError):
                self.path.replace(self.before)

    def load(
        self, device: str | torch.device = "cpu", check: Callable[[Mapping[str, Any]], str | None] | None = None
    ) -> dict[str, Any] | None:
        """The newest state that is sound, None where there is none.

        A file that cannot be used is named to ``note`` and kept under another name.

        Args:
            check: says why a state cannot be used after all, None when it can.

        Raises:
            StorageError: when a file that cannot be used cannot be renamed either.
        """
        refused: list[tuple[Path, str]] = []
        found: dict[str, Any] | None = None
        for path in (self.path, self.before):
            try:
                found = self._read(path, device)
                if found is not None and check is not None and (why := check(found)):
                    raise DamagedError(why)
            except DamagedError as error:
                refused.append((path, str(error)))
                found = None
            if found is not None:
                break
        instead = "training starts again" if found is None else "training goes on from the checkpoint before it"
        for path, why in refused:
            self.note(f"{path} cannot be resumed from: {why}; {instead} ({set_aside(path)} is kept)")
        return found

    def _read(self, path: Path, device: str | torch.device) -> dict[str, Any] | None:
        """Raises: DamagedError saying why the file cannot be used."""
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except IsADirectoryError:
            raise DamagedError("it is a folder") from None
        except OSError as error:
            raise DamagedError(f"it cannot be read ({os.strerror(error.errno or 0)})") from None
        line, newline, _ = content.partition(b"\n")
        payload = memoryview(content)[len(line) + 1 :]
        fields = line.split(b" ")
        if not content.strip(b"\0"):
            raise DamagedError("it is empty")
        if content.startswith(b"PK"):
            raise DamagedError("an older raystitch wrote it, without a digest")
        if not newline or len(fields) != 3 or fields[0] != _MAGIC or digest(fields[1], payload).encode() != fields[2]:
            raise DamagedError("it is damaged: its digest is not that of its content")
        if fields[1] != str(SCHEMA_VERSION).encode():
            schema = fields[1].decode(errors="replace")
            raise DamagedError(f"another raystitch wrote it, with schema {schema}; this one reads {SCHEMA_VERSION}")
        try:
            value = torch.load(io.BytesIO(payload), map_location=device, weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise DamagedError(f"torch cannot read it ({' '.join(str(error).split())[:100]})") from None
        if value["settings"] != self.settings:
            raise DamagedError("it belongs to other settings")
        return value["state"]
