"""Copies of the bundles that were served, so that an earlier version can be brought back.

A bundle's folder is fitted into again and again. Its earlier bundles lie here by hash, on this machine, with a note for
each folder: the order of its versions, and the version that was chosen instead of the current one.
"""

import hashlib
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raystitch.errors import RunError, StorageError, UserError
from raystitch.io.files import locked, read_json, write_json
from raystitch.models.bundle import STITCHER_FILE, Bundle

logger = logging.getLogger(__name__)

KEPT = 3
"""Number of versions that are kept of one folder."""
SCHEMA_VERSION = 1


class Versions:
    """The copies below one folder of this machine; all replicas on the machine share them."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def keep(self, folder: str, bundle: Bundle) -> list[str]:
        """Copy the folder's bundle, unless the copy is here already. Return the hashes of the folder's versions, the
        current one last."""
        try:
            with self._notes(folder) as notes:
                others = [known for known in notes["versions"] if known != bundle.hash]
                if not self._is_kept(bundle.hash):
                    bundle.save(self.path(bundle.hash))
                notes["versions"] = [*others[-(KEPT - 1) :], bundle.hash]
                for dropped in others[: -(KEPT - 1)]:
                    shutil.rmtree(self.path(dropped), ignore_errors=True)
                return list(notes["versions"])
        except (StorageError, RunError, OSError) as error:
            logger.warning("no copy of %s is kept, so it cannot be brought back later: %s", folder, error)
            return [bundle.hash]

    def path(self, version: str) -> Path:
        """Return the path of a version's copy."""
        return self._root / version.removeprefix("sha256:")

    def _is_kept(self, version: str) -> bool:
        # This file is written last, so a folder without it is an interrupted copy.
        return (self.path(version) / STITCHER_FILE).exists()

    def chosen(self, folder: str, latest: str) -> str | None:
        """Return the version that is served instead of the folder's latest; None after the folder was fitted into
        again."""
        try:
            with self._notes(folder) as notes:
                return notes["chosen"].get(latest)
        except (StorageError, OSError):
            return None

    def choose(self, folder: str, version: str) -> None:
        """From now on serve this version for the folder, as long as its content stays the same.

        Raises:
            UserError: the version is not kept here.
            StorageError: that cannot be noted.
        """
        with self._notes(folder) as notes:
            known: list[str] = notes["versions"]
            if version not in known or not self._is_kept(version):
                raise UserError(f"the version {version} of {folder} is not kept here; there is: {', '.join(known)}")
            notes["chosen"] = {known[-1]: version}

    @contextmanager
    def _notes(self, folder: str) -> Iterator[dict[str, Any]]:
        """Yield the notes about a folder, and write them back if they were changed."""
        name = hashlib.sha256(folder.encode()).hexdigest()[:16]
        file = self._root / f"{name}.json"
        with locked(self._root / f"{name}.lock"):
            stored = read_json(file) if file.exists() else {}
            notes = {"schema_version": SCHEMA_VERSION, "folder": folder, "versions": [], "chosen": {}, **stored}
            before = repr(notes)
            yield notes
            if repr(notes) != before:
                write_json(file, notes)
