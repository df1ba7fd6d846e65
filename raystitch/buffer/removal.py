"""Removal of files of shards that a buffer does not name any more: never before a grace period is over.

``buffer.json`` names what a run can rely on: the closed rounds, the shards of the finished buffer, and by the largest
number of bridges that a run was started with whether more are still wanted. Something may go only when a version of it
that was won names it no longer, and has stood for the grace period.
"""

import os
import time
from collections.abc import Iterable
from pathlib import Path

from raystitch.buffer.meta import META_FILE, read_meta
from raystitch.buffer.schema import BufferMeta
from raystitch.buffer.shard_file import SHARDS
from raystitch.errors import UserError
from raystitch.io.storage import Storage

VARIABLE = "RAYSTITCH_GRACE_SECONDS"
GRACE_SECONDS = 900.0
"""Grace period where several machines write and no lock holds between them."""
LOOK_SECONDS = 1.0
"""Time after which ``buffer.json`` is read again while files are removed."""
_SHARED = ("nfs", "cifs", "smb", "fuse", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "9p", "virtiofs", "ocfs2")
"""Beginnings of the types of file systems that several machines may share."""


def grace_seconds(storage: Storage) -> float:
    """Return how long a file stays that is not named any more.

    It is ``$RAYSTITCH_GRACE_SECONDS``, else 15 minutes on object stores and network file systems, and no time on a
    disk of this machine, where a lock keeps others out.

    Raises:
        UserError: when the variable is no number of seconds.
    """
    text = os.environ.get(VARIABLE, "")
    if not text:
        return 0.0 if storage.local is not None and not _is_shared(storage.local) else GRACE_SECONDS
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise UserError(f"{VARIABLE} must be a number of seconds >= 0, got {text!r}")
    return seconds


def remove_unnamed(storage: Storage, meta: BufferMeta, names: Iterable[str], since: str = META_FILE) -> list[str]:
    """Removes files of ``shards/`` that have been out of use for the grace period; returns those that stay.

    On an object store that does not compare before it writes all stay: nobody can know what another run relies on.

    Args:
        meta: as it was won or read; once it is another one, no more is removed.
        since: the file that took their place. It has to be as old as the grace period, and so have they.
    """
    left = list(names)
    if not left or storage.unguarded(META_FILE):
        return left
    grace = grace_seconds(storage)
    storage.settle([since])
    if not _old(storage, since, grace):
        return left
    kept: list[str] = []
    looked = float("-inf")
    for number, name in enumerate(left):
        if time.monotonic() - looked > LOOK_SECONDS:
            if read_meta(storage) != meta:
                return kept + left[number:]
            looked = time.monotonic()
        if _old(storage, f"{SHARDS}/{name}", grace):
            storage.delete(f"{SHARDS}/{name}")
        else:
            kept.append(name)
    return kept


def _old(storage: Storage, name: str, grace: float) -> bool:
    if grace == 0:
        return True
    age = storage.age(name)
    return age is not None and age >= grace


def _is_shared(folder: Path) -> bool:
    """Return True if the folder is on a file system that other machines may also mount. Linux only."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    found, kind = Path("/"), ""
    here = Path(os.path.realpath(folder))
    for line in mounts:
        before, _, after = line.partition(" - ")
        point = Path(before.split()[4].encode().decode("unicode_escape"))
        if here.is_relative_to(point) and point.is_relative_to(found):
            found, kind = point, after.split()[0]
    return kind.startswith(_SHARED)
