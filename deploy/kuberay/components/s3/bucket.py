"""A folder and its copy in a bucket, for nodes that share no volume.

    python bucket.py get FOLDER                 copies from the bucket what FOLDER lacks
    python bucket.py run FOLDER -- COMMAND...   the same, runs COMMAND, and copies what changes to the bucket, every
                                                few minutes and when COMMAND has ended; exits as COMMAND does

The copy of $RAYSTITCH_SHARED/NAME (default /mnt/raystitch) is $RAYSTITCH_BUCKET/NAME, such as s3://bucket/prefix/NAME.
Nothing is removed from the bucket because of a folder that cannot be read, or of one that was full and is empty now: a
disk that is not mounted looks like that. RAYSTITCH_BUCKET_EMPTY=1 says that it is meant to be empty.
"""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.fs as fs

from raystitch.io.storage import Storage

LOCAL = fs.LocalFileSystem()


class Mirror:
    """Copies between ``folder`` and its place in the bucket; knows which files are there as they are here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        name = folder.relative_to(os.environ.get("RAYSTITCH_SHARED", "/mnt/raystitch"))
        self.store = Storage(f"{os.environ['RAYSTITCH_BUCKET'].rstrip('/')}/{name}")
        self._there: dict[str, tuple[int, int]] = {}

    def get(self) -> int:
        """Returns the number of files copied; a file that is here already stays as it is."""
        remote, root = self.store.location("")
        copied = 0
        for info in remote.get_file_info(fs.FileSelector(root, allow_not_found=True, recursive=True)):
            name = info.path.removeprefix(f"{root}/")
            target = self.folder / name
            if info.type != fs.FileType.File or target.exists():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            half = target.with_name(f".{target.name}.tmp")
            fs.copy_files(info.path, str(half), source_filesystem=remote, destination_filesystem=LOCAL)
            half.replace(target)
            self._there[name] = _state(target)
            copied += 1
        return copied

    def put(self) -> int:
        """Copies what is new or changed, removes from the bucket what is gone here; returns the number of copied files.

        Oldest first: a file that describes others is written after them.

        Raises:
            OSError: when something could not be read. What could be was copied, and nothing was removed.
        """
        here, problems = self._look()
        changed = sorted((name for name, state in here.items() if self._there.get(name) != state), key=here.__getitem__)
        copied = 0
        for name in changed:
            remote, path = self.store.location(name)
            try:
                fs.copy_files(str(self.folder / name), path, source_filesystem=LOCAL, destination_filesystem=remote)
            except OSError as error:
                if os.path.lexists(self.folder / name):
                    problems.append(error)
                continue  # gone, or replaced, since we looked: the next time
            self._there[name] = here[name]
            copied += 1
        gone = [name for name in self._there.keys() - here.keys() if not os.path.lexists(self.folder / name)]
        if gone and not here and os.environ.get("RAYSTITCH_BUCKET_EMPTY") != "1":
            problems.append(
                OSError(
                    f"{self.folder} had {len(gone)} files and is empty now; RAYSTITCH_BUCKET_EMPTY=1 if it should be"
                )
            )
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise OSError(f"{problems[0]}{more}; nothing was removed from the bucket")
        for name in gone:
            self.store.delete(name)
            del self._there[name]
        return copied

    def _look(self) -> tuple[dict[str, tuple[int, int]], list[OSError]]:
        """What belongs to a run (no locks, no half-written files, not Tune's own state), and what cannot be read."""
        found: dict[str, tuple[int, int]] = {}
        problems: list[OSError] = []
        if not self.folder.exists() and not self._there:
            return found, problems  # the command has not made it yet
        for parent, folders, names in os.walk(self.folder, onerror=problems.append):
            folders[:] = [name for name in folders if name != ".tune"]
            for name in names:
                if name.endswith((".lock", ".tmp")):
                    continue
                path = Path(parent, name)
                with contextlib.suppress(FileNotFoundError):  # gone since it was listed, or a link that leads nowhere
                    found[str(path.relative_to(self.folder))] = _state(path)
        return found, problems


def _state(path: Path) -> tuple[int, int]:
    info = path.stat()
    return info.st_mtime_ns, info.st_size


def run(folder: Path, command: list[str], seconds: float) -> int:
    """Returns the exit status of ``command``, or 1 when what it wrote could not be copied at the end."""
    mirror = Mirror(folder)
    print(f"bucket: {mirror.get()} files from {mirror.store.where()}", flush=True)
    child = subprocess.Popen(command)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    while True:
        try:
            status = child.wait(seconds)
            break
        except subprocess.TimeoutExpired:
            _put(mirror)
    return (status if status >= 0 else 128 - status) if _put(mirror) else status or 1


def _put(mirror: Mirror) -> bool:
    try:
        if copied := mirror.put():
            print(f"bucket: {copied} files to {mirror.store.where()}", flush=True)
        return True
    except Exception as error:  # the run goes on, and the next time may succeed
        print(f"bucket: cannot copy to {mirror.store.where()}: {error}", file=sys.stderr, flush=True)
        return False


def main(args: list[str]) -> int:
    if args[:1] == ["get"] and len(args) == 2:
        mirror = Mirror(Path(args[1]))
        print(f"bucket: {mirror.get()} files from {mirror.store.where()}")
        return 0
    if args[:1] == ["run"] and len(args) > 3 and args[2] == "--":
        return run(Path(args[1]), args[3:], float(os.environ.get("RAYSTITCH_BUCKET_SECONDS", "300")))
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
