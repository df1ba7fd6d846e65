"""Reading a run's files while others write them: what is missing, half written or damaged is no error."""

import json
import time
from collections.abc import Mapping
from typing import Any

from raystitch.errors import UserError
from raystitch.io.digest import KEY, sealed
from raystitch.io.object_lease import lock_holder
from raystitch.io.storage import Storage, StrPath
from raystitch.report.names import CONFIG_FILE, LOCK_FILE

TAIL_BYTES = 8192


class RunFolder:
    """The folder of a run, to be looked at.

    Attributes:
        storage: the folder. uri: as given.

    Raises:
        UserError: when there is no such folder, or it is no run.
    """

    def __init__(self, run: StrPath) -> None:
        self.storage = Storage(run)
        self.uri = self.storage.uri
        local = self.storage.local
        what = "a run of `raystitch sweep`"
        if local is not None and not local.exists():
            raise UserError(f"{self.uri} does not exist; expected the folder of {what}")
        if local is not None and not local.is_dir():
            raise UserError(f"{self.uri} is a file; expected the folder of {what}")
        if CONFIG_FILE not in self.names():
            driver = lock_holder(self.storage, LOCK_FILE)
            if driver is not None and driver.alive:
                raise UserError(f"{self.uri} has no {CONFIG_FILE} yet: {driver.name} is starting a run there")
            raise UserError(f"{self.uri} is not {what}: it has no {CONFIG_FILE}")

    def names(self, folder: str = "") -> list[str]:
        """Return what lies in a folder, nothing where there is none.

        Raises:
            UserError: when it cannot be listed.
        """
        try:
            return self.storage.names(folder)
        except OSError as error:
            raise UserError(f"{self.storage.where(folder)} cannot be listed: {error.strerror or error}") from error

    def content(self, name: str) -> bytes | None:
        """Return a file, None where it is missing.

        Raises:
            UserError: when it is there but cannot be read.
        """
        try:
            return self.storage.read_whole(name).to_pybytes()
        except FileNotFoundError:
            return None
        except (OSError, RuntimeError) as error:
            raise UserError(f"{self.storage.where(name)} cannot be read: {_why(error)}") from error

    def object(self, name: str) -> Mapping[str, Any] | None:
        """Return a JSON object; None where the file is missing, half written or damaged."""
        return parsed(self.content(name))

    def tail(self, name: str) -> list[str]:
        """Return the last whole lines of a file, at most ``TAIL_BYTES`` of them, or the end of a line that is longer;
        none where it is missing."""
        try:
            if not self.storage.size(name):
                return []
            with self.storage.open(name) as file:
                size = file.size()
                file.seek(max(0, size - TAIL_BYTES))
                text = file.read().decode("utf-8", errors="replace")
        except FileNotFoundError:
            return []
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(f"{self.storage.where(name)} cannot be read: {_why(error)}") from error
        lines = text.split("\n")
        whole = [line for line in lines[1 if size > TAIL_BYTES else 0 :] if line.strip()]
        return whole or [line for line in lines if line.strip()][-1:]  # one line that is longer than all that is read

    def written(self, name: str) -> float | None:
        """Return the Unix time at which a file was written, None where it is missing."""
        age = self.storage.age(name)
        return None if age is None else time.time() - age


def parsed(content: bytes | None) -> Mapping[str, Any] | None:
    """Return the JSON object of a file's content; None where there is none, or it is half written or damaged."""
    try:
        value = json.loads(content or b"")
        sound = isinstance(value, dict) and (KEY not in value or sealed(value)[KEY] == value[KEY])
    except ValueError:
        return None
    return value if sound else None


def _why(error: Exception) -> str:
    cause = error if isinstance(error, OSError) else error.__cause__
    return (cause.strerror if isinstance(cause, OSError) and cause.strerror else str(error)) or type(error).__name__
