"""Taking stock of a buffer: which shards are there and whole, which files are damaged."""

from collections.abc import Callable, Container
from dataclasses import dataclass

from raystitch.buffer.shard_file import (
    BROKEN,
    MERGED,
    PART,
    SHARDS,
    ShardStats,
    parse_shard_file,
    part_name,
    read_shard_file,
    read_stats,
    write_file,
)
from raystitch.errors import StorageError, UserError
from raystitch.io.storage import Storage, StrPath


def list_shards(path: StrPath, without: Container[str] = ()) -> dict[int, str]:
    """Shard number -> file in ``shards/``, from the names alone; a merged file replaces the parts it holds.

    Args:
        without: names of files to look past.
    """
    return by_shard([name for name in Storage(path).names(SHARDS) if name not in without])


def by_shard(names: list[str]) -> dict[int, str]:
    """Shard number -> the file to read it from."""
    found = {int(match[1]): match[0] for name in names if (match := PART.fullmatch(name))}
    spans = [(int(match[1]), int(match[2]), match[0]) for name in names if (match := MERGED.fullmatch(name))]
    for first, last, name in sorted(spans, key=lambda span: span[1] - span[0]):
        found.update(dict.fromkeys(range(first, last + 1), name))
    return dict(sorted(found.items()))


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The whole shards and the damaged files of a buffer.

    Attributes:
        stats: of every shard that is whole, by number; of a damaged file with several shards those that are.
        damaged: file in ``shards/`` -> what is wrong with it.
    """

    stats: dict[int, ShardStats]
    damaged: dict[str, str]


def survey(path: StrPath, *, thorough: bool = True) -> Survey:
    """Find the shards that are there and whole.

    Args:
        thorough: checksum all data of a buffer on a local disk, one file after the other. On an object store only what
            a file says of itself is looked at, as always without this: that finds files that are cut short. Other
            damage there is found when the shard is read.

    Raises:
        StorageError: when a file cannot be read, or the storage does not answer; what cannot be read is not damaged.
    """
    storage = Storage(path)
    look = _check_rows if thorough and storage.local is not None else read_stats_of
    for _ in range(10):
        try:
            return _survey(storage, look)
        except FileNotFoundError:
            continue  # a file went between listing and reading: another process merged or removed it
    raise StorageError(f"{storage.where(SHARDS)} changes all the time, or names files that cannot be opened")


Look = Callable[[Storage, str], tuple[tuple[ShardStats, ...], str]]


def _survey(storage: Storage, look: Look) -> Survey:
    names = storage.names(SHARDS)
    stats: dict[int, ShardStats] = {}
    damaged: dict[str, str] = {}
    seen: set[str] = set()
    # A part that a damaged merged file hid is looked at in the next turn.
    while new := sorted(set(by_shard([n for n in names if n not in damaged]).values()) - seen):
        seen.update(new)
        for name, (whole, why) in zip(new, storage.each(lambda name: look(storage, name), new), strict=True):
            stats = {s.shard: s for s in whole} | stats
            if why:
                damaged[name] = why
    return Survey(stats=dict(sorted(stats.items())), damaged=damaged)


def read_stats_of(storage: Storage, name: str) -> tuple[tuple[ShardStats, ...], str]:
    """Return what a file says of itself, and what is wrong with it."""
    try:
        stats = read_stats(storage, name)
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        return (), str(error)
    expected = shards_of(name)
    found = range(stats[0].shard, stats[-1].shard + 1) if stats else range(0)
    if found != expected or len(stats) != len(expected):
        return (), "it holds other shards than its name says"
    return stats, ""


def _check_rows(storage: Storage, name: str) -> tuple[tuple[ShardStats, ...], str]:
    """Does the same with every byte looked at."""
    stats, why = read_stats_of(storage, name)
    if why:
        return stats, why
    try:
        if not read_shard_file(storage, name).damaged_shards():
            return stats, ""
        # Damaged only if a full read fails too: the mapping may have failed, or the file been replaced.
        wrong = parse_shard_file(name, storage.read_whole(f"{SHARDS}/{name}")).damaged_shards()
    except StorageError:
        raise
    except BROKEN as error:
        for missing in (error, error.__cause__):
            if isinstance(missing, FileNotFoundError):
                raise missing from error
        return (), "its rows cannot be read"
    if not wrong:
        return stats, ""
    which = f" of shard {', '.join(map(str, wrong))}" if len(stats) > 1 else ""
    return tuple(s for s in stats if s.shard not in wrong), f"the checksum{which} differs"


def shards_of(name: str) -> range:
    """The shards that a file holds by its name; none, if it is no file of shards."""
    if match := PART.fullmatch(name):
        return range(int(match[1]), int(match[1]) + 1)
    if match := MERGED.fullmatch(name):
        return range(int(match[1]), int(match[2]) + 1)
    return range(0)


def remove_damaged(path: StrPath, found: Survey) -> None:
    """Removes the damaged files, so that they hide nothing that is made anew.

    What is whole in a damaged file of several shards becomes files of their own first. On an object store a damaged
    part stays until it is written over: between looking and removing, another run may have made it again.

    Raises:
        StorageError: when a file cannot be read or removed.
    """
    storage = Storage(path)
    for name in found.damaged:
        if storage.local is None and PART.fullmatch(name):
            continue
        with storage.lock():
            look = _check_rows if storage.local is not None else read_stats_of
            try:
                whole, why = look(storage, name)
            except FileNotFoundError:
                continue  # another process removed it
            if not why:
                continue  # another process has made it again meanwhile
            if whole and MERGED.fullmatch(name):
                _salvage(storage, name, {s.shard for s in whole})
            storage.delete(f"{SHARDS}/{name}")


def _salvage(storage: Storage, name: str, whole: set[int]) -> None:
    for stats, rows in read_shard_file(storage, name).shards():
        if stats.shard in whole:
            write_file(storage, part_name(stats.shard), rows.replace_schema_metadata(None), [stats], durable=True)
