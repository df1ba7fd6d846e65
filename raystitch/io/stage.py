"""A local folder that stands for one on an object store: what is needed is copied here, what changes is published.

Work that appends to files, renames and maps them cannot be done on an object store. It is done here, and whole objects
go to the store, in an order that leaves it as a local folder would be left at some moment: what a file of a later rank
speaks of is there before it. A process that is killed loses what it has not published yet, nothing else.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from urllib.parse import urlsplit

from raystitch.console import say
from raystitch.errors import RunError, StorageError, UserError
from raystitch.io.cache import Scratch, cache_folder
from raystitch.io.digest import digest
from raystitch.io.files import cannot_write, remove, scratch_folder
from raystitch.io.storage import Storage

STAGES = "stages"
"""Folder of the cache for what is staged."""
COPIES = "copies"
"""Folder of the cache for copies of folders that never change."""
LOOK_SECONDS, REST_SECONDS = 2.0, 30.0
"""Between looks for files of a rank that changed; between publications of other files."""

NEW_SECONDS = 10

Wanted = Callable[[str], bool]
"""Whether a file, by its name from the folder, is meant."""
_State = tuple[int, int, int]


def everything(name: str) -> bool:
    """Name every file as wanted."""
    return True


class Stage:
    """A folder on this machine and its place on an object store. Nobody else writes to the folder.

    Args:
        order: patterns of names, in the order of publication; files that none matches go first. Of a name that several
            match the last counts.
        readable: patterns of files for people: the folder's path in them is published as the URI.
        mine: files that are published; others are only copied here.
        check: raises when this process must not write any more.
    """

    def __init__(
        self,
        uri: str,
        folder: Path,
        *,
        order: Sequence[str] = (),
        readable: Sequence[str] = (),
        mine: Wanted = everything,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.storage, self.folder, self.check = Storage(uri), folder, check
        self._order, self._readable, self._mine = order, readable, mine
        self._there: dict[str, _State] = {}
        self._copied: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()

    def get(self, wanted: Wanted = everything, under: str = "") -> list[str]:
        """Copy files from the store, in place of those here, and return their names: one listing, then many at once.
        What was copied before is copied again only if it has changed, and goes if others have removed it. A copy has
        the time of what it was copied from.

        Args:
            under: folder to list.

        Raises:
            UserError: when the store refuses for good.
            StorageError: when it does not answer, or the copies cannot be written.
        """
        found = self.storage.tree(under)
        now = time.time_ns()
        names = [name for name in found if wanted(name) and not _skipped(name)]
        names = [name for name in names if self._copied.get(name) != found[name] or _is_new(found[name][1], now)]
        for name in [name for name in self._copied if name not in found and _is_below(name, under)]:
            if wanted(name) and not self._mine(name):
                del self._copied[name]
                remove(self.folder / name)
        self.storage.each(lambda name: self._get(name, found[name][1]), names)
        self._copied |= {name: found[name] for name in names}
        return names

    def _get(self, name: str, time_ns: int) -> None:
        target = self.folder / name
        half = target.with_name(f".{target.name}.tmp")
        try:
            content = self.storage.read_whole(name)
        except FileNotFoundError:
            return  # removed since it was listed
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            half.write_bytes(content)
            os.utime(half, ns=(time_ns, time_ns))
            half.replace(target)
            self._there[name] = _state(os.stat(target))
        except OSError as error:
            raise StorageError(f"{cannot_write(target, error)}; set RAYSTITCH_CACHE to a folder with room") from error

    def put(self) -> int:
        """Publish what changed, then remove what is gone here; return the number of files published.

        Files of the last rank are read first and sent last, so what is sent never speaks of more than is there.

        Raises:
            RunError: when ``check`` refuses, or the store does not answer.
            UserError: when the store refuses for good.
        """
        with self._lock:
            before = self._look()
            ranked = sorted((name for name in before if self._rank(name)), key=self._rank, reverse=True)
            contents = self._read(before, ranked)
            now = self._look()
            contents |= self._read(now, (name for name in now if not self._rank(name)))
            for rank in range(len(self._order) + 1):
                names = [name for name in contents if self._rank(name) == rank]
                if names:
                    self.check()  # each time: a slow upload may outlive a lease
                self.storage.each(lambda name: self.storage.write(name, contents[name][1]), names)
                self._there |= {name: contents[name][0] for name in names}
            known = list(self._there)  # copies may come meanwhile
            gone = [name for name in known if name not in before and name not in now and self._is_gone(name)]
            # What made a file superfluous may not be sent yet: a checkpoint goes after the result.
            if any(self._rank(name) and self._there.get(name) != state for name, state in now.items()):
                gone = []
            if gone:
                self.check()
            for name in gone:
                self.storage.delete(name)
                del self._there[name]
            return len(contents)

    def _is_gone(self, name: str) -> bool:
        path = self.folder / name
        # While a checkpoint is replaced, only the one before it is there.
        replaced = path.with_name(f"{path.stem}.before{path.suffix}").exists()
        return self._mine(name) and self.folder.is_dir() and not os.path.lexists(path) and not replaced

    def _look(self) -> dict[str, _State]:
        """Return the files here that are published, as they are now."""
        found: dict[str, _State] = {}
        for parent, folders, names in os.walk(self.folder):
            folders[:] = [name for name in folders if not _skipped(f"{name}/")]
            for name in names:
                path = Path(parent, name)
                relative = path.relative_to(self.folder).as_posix()
                if self._mine(relative) and not _skipped(relative):
                    with suppress(FileNotFoundError):  # replaced or removed since it was listed
                        found[relative] = _state(path.stat())
        return found

    def _read(self, found: Mapping[str, _State], names: Iterable[str]) -> dict[str, tuple[_State, bytes]]:
        """Return those that the store does not have as they are; of a file that grows, what is there now."""
        contents: dict[str, tuple[_State, bytes]] = {}
        for name in names:
            if self._there.get(name) == found[name]:
                continue
            with suppress(FileNotFoundError), (self.folder / name).open("rb") as file:
                state = _state(os.fstat(file.fileno()))
                contents[name] = state, self._as_read_elsewhere(name, file.read())
        return contents

    def _as_read_elsewhere(self, name: str, content: bytes) -> bytes:
        if not any(fnmatch(name, pattern) for pattern in self._readable):
            return content
        return content.replace(str(self.folder).encode(), self.storage.where().encode())

    def _rank(self, name: str) -> int:
        return max((rank for rank, pattern in enumerate(self._order, 1) if fnmatch(name, pattern)), default=0)

    def told(self, text: str) -> str:
        """Return a text for people with the URI in place of this folder's path."""
        return text.replace(str(self.folder), self.storage.where())

    @contextmanager
    def publishing(self, note: Callable[[str], None] = say) -> Iterator[None]:
        """Publish files of a rank soon after they change, others now and then, and everything at the end.

        Args:
            note: gets a line when the store does not answer meanwhile; publishing is tried again.

        Raises:
            RunError, UserError: when it cannot be published at the end; errors of the block go first.
        """
        done = threading.Event()

        def keep() -> None:
            last, said = time.monotonic(), False
            while not done.wait(LOOK_SECONDS):
                try:
                    due = time.monotonic() - last >= REST_SECONDS
                    if not due and not any(
                        self._rank(name) and self._there.get(name) != state for name, state in self._look().items()
                    ):
                        continue
                    self.put()
                    last, said = time.monotonic(), False
                except Exception as error:  # whatever it is, the next time may succeed; the last one is not in here
                    if not said:
                        note(f"{self.told(str(error))}; tried again")
                    said = True

        thread = threading.Thread(target=keep, name=f"publishing to {self.storage.where()}", daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            done.set()
            thread.join()
            with suppress(RunError, UserError, OSError):
                self.put()
            raise
        done.set()
        thread.join()
        self.put()

    @contextmanager
    def named(self) -> Iterator[None]:
        """Errors of the block name the URI where they name this folder."""
        try:
            yield
        except (UserError, RunError) as error:
            if str(self.folder) not in str(error):
                raise
            raise type(error)(self.told(str(error))) from error


def checked_uri(uri: str) -> str:
    """Return the URI of a folder that is written to.

    Raises:
        UserError: with credentials, which files and lists of processes would show; without a folder in the bucket.
    """
    parts = urlsplit(uri)
    if "@" in parts.netloc:
        raise UserError(
            f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}: leave the credentials out of the URI, "
            "which jobs and files show; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile or role"
        )
    if not parts.path.strip("/"):
        raise UserError(f"{uri}: name a folder in the bucket, such as {uri.rstrip('/')}/runs/demo")
    path, mark, query = uri.partition("?")
    return f"{path.rstrip('/')}{mark}{query}"


@contextmanager
def stage_folder(uri: str) -> Iterator[Path]:
    """Yield an empty folder of this process for a ``Stage``, with the name of the URI's last part.

    Raises:
        StorageError: when the cache cannot be written.
    """
    name = Storage(uri).where().rstrip("/").rpartition("/")[2]
    with scratch_folder(cache_folder() / STAGES, name) as folder:
        yield folder


def local_copy(uri: str, marker: str, what: str) -> Path:
    """Return a copy of a folder that is complete and never changes, known by the content of one of its files.

    Args:
        marker: that file, which tells the others' hashes. what: the folder is, for messages.

    Raises:
        UserError: when it has no such file; when the store refuses for good.
        StorageError: when the store does not answer, or the cache cannot be written.
    """
    storage = Storage(uri)
    try:
        content = storage.read_whole(marker)
    except FileNotFoundError as error:
        raise UserError(f"{storage.where()} is not {what}: it has no {marker}") from error

    def write(folder: Path) -> None:
        Stage(uri, folder).get(lambda name: "/" not in name and name != marker)
        (folder / marker).write_bytes(content)  # as it was when the copy got its name

    return Scratch(COPIES).folder(digest(content).removeprefix("xxh3:"), write)


def _skipped(name: str) -> bool:
    """Return True for what belongs to a process and not to the folder: locks, half-written files, Tune's state, and
    checkpoints that another has replaced."""
    return name.endswith((".lock", ".tmp", ".before.pt")) or ".tune/" in name


def _is_below(name: str, folder: str) -> bool:
    return not folder or name.startswith(f"{folder.rstrip('/')}/")


def _is_new(time_ns: int, now_ns: int) -> bool:
    """Return True if a file may have been written again at the same time: stores count whole seconds."""
    return abs(now_ns - time_ns) < NEW_SECONDS * 10**9


def _state(info: os.stat_result) -> _State:
    return info.st_mtime_ns, info.st_size, info.st_ino
