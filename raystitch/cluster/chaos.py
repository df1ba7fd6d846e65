"""What ``augment`` does when something dies under it: each fault done for real, and the buffer compared with the one
that nothing disturbed.

The driver is a process of its own, ``raystitch augment``; only what was started here is killed, by number.
"""

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import yaml

from raystitch.buffer.config import AugmentConfig
from raystitch.buffer.maintain import verify
from raystitch.buffer.reader import open_buffer
from raystitch.cluster.processes import Driver, Process, actors, descendants, small_disk, until
from raystitch.config_file import plain
from raystitch.errors import RunError
from raystitch.stitching.config import StitchConfig

T = TypeVar("T")
SAMPLER, QUALIFIER = "Sampler", "Qualifier"
DECISIONS = ("seed", "source_episode", "source_step", "target_episode", "target_step", "gap", "attempt", "accepted")


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is augmented while things die.

    Attributes:
        ref: the dataset. stitcher: the bundle's folder. undisturbed: the buffer as one process makes it.
        address: a Ray cluster that all drivers use; None: each starts its own.
        patience: seconds that anything may take.
    """

    ref: str
    stitcher: Path
    stitch: StitchConfig
    num_bridges: int
    pairs_per_shard: int
    seed: int
    undisturbed: Path
    address: str | None = None
    patience: float = 120.0

    @property
    def config(self) -> AugmentConfig:
        """As the undisturbed buffer is made."""
        return AugmentConfig(num_bridges=self.num_bridges, pairs_per_shard=self.pairs_per_shard)


@dataclass(frozen=True, kw_only=True)
class FaultResult:
    """What a fault did to a buffer.

    Attributes:
        ids: candidates of the undisturbed buffer; ``lost`` of them are missing from the other one, ``doubled`` are
            there more than once, ``changed`` were decided differently or should not be there.
        problems: what ``verify`` found.
        seconds_to_recover: from the fault until the first shard written by what took the place of what died.
        new_shards: shards that were written after the fault. impossible: why the fault could not be tried here.
    """

    fault: str
    what_happened: str
    ids: int = 0
    lost: int = 0
    doubled: int = 0
    changed: int = 0
    problems: tuple[str, ...] = ()
    seconds_to_recover: float | None = None
    new_shards: int = 0
    impossible: str = ""

    @property
    def survived(self) -> bool:
        return not (self.lost or self.doubled or self.changed or self.problems or self.impossible)


def run_fault(name: str, folder: Path, target: Target) -> FaultResult:
    """One fault; ``folder`` is emptied first and holds the buffer afterwards.

    Raises:
        RunError: when a run does not survive the fault, or nothing happens for too long.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return FAULTS[name](name, folder, target)


def _kill_actor(name: str, folder: Path, target: Target) -> FaultResult:
    """SIGKILL of the only actor of a kind while it works; the run goes on by itself."""
    kind, out = {"sampler": SAMPLER, "qualifier": QUALIFIER}[name], folder / "buffer"
    with Driver(_arguments(target, out)) as driver:
        _wait_for_shards(driver, out, 2, target)
        before = actors(os.getpid(), kind)
        victim = until(lambda: _busy(actors(os.getpid(), kind).values()), f"a {name} works", target.patience)
        victim.kill()
        killed, killed_at = time.monotonic(), time.time_ns()
        heir = _found(lambda: actors(os.getpid(), kind).keys() - before.keys(), driver, target)
        replaced, replaced_at = time.monotonic(), time.time_ns()
        recovered = _found(lambda: _written_since(out, replaced_at), driver, target) if heir else None
        seconds = time.monotonic() - killed if recovered else None
        _finish(driver, target)
        happened = f"killed pid {victim.pid}; " + (
            f"a new {name} after {replaced - killed:.1f} s, the run went on"
            if heir
            else "the others finished the run before a new one was needed"
        )
    return _compare(name, happened, out, target, seconds, killed_at)


def _kill_driver(name: str, folder: Path, target: Target) -> FaultResult:
    """SIGKILL of the driver, and the same command again."""
    out = folder / "buffer"
    there = _interrupted(out, target)
    killed, killed_at = time.monotonic(), time.time_ns()
    with Driver(_arguments(target, out)) as again:
        _found(lambda: _written_since(out, killed_at), again, target)
        seconds = time.monotonic() - killed
        _finish(again, target)
    return _compare(name, f"killed with {there} shards there; run again", out, target, seconds, killed_at)


def _damage(name: str, folder: Path, target: Target) -> FaultResult:
    """A bit of one shard flipped and another cut in half, between two runs."""
    out = folder / "buffer"
    _interrupted(out, target)
    files = _shards(out)
    flipped, cut = files[0], files[1]
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    hurt, hurt_at = time.monotonic(), time.time_ns()
    with Driver(_arguments(target, out)) as again:
        _found(lambda: {flipped, cut} <= set(_written_since(out, hurt_at)), again, target)
        seconds = time.monotonic() - hurt
        _finish(again, target)
        said = [line for line in again.lines() if "damaged" in line]
    named = [file.name for file in (flipped, cut) if any(file.name in line for line in said)]
    happened = f"one bit of {flipped.name}, half of {cut.name}; named: {', '.join(named) or 'none'}; made again"
    return _compare(name, happened, out, target, seconds, hurt_at)


def _fill_disk(name: str, folder: Path, target: Target) -> FaultResult:
    """A disk that half the buffer fits on; room is made and the command run again."""
    disk, whole = folder / "disk", sum(file.stat().st_size for file in _shards(target.undisturbed)) // 1024
    try:
        with small_disk(disk, max(64, whole // 2)) as resize:
            out = disk / "buffer"
            with Driver(_arguments(target, out)) as driver:
                status, said, output = driver.wait(target.patience), driver.last_line(), driver.lines()
            if status != 1 or any(line.startswith("Traceback") for line in output):
                raise RunError(f"{name}: not one clear line and exit 1, but exit {status} and: {said}")
            there = len(_shards(out))
            resize(4 * whole + 1024)
            made, made_at = time.monotonic(), time.time_ns()
            with Driver(_arguments(target, out)) as again:
                _found(lambda: _written_since(out, made_at), again, target)
                seconds = time.monotonic() - made
                _finish(again, target)
            happened = f"exit 1 with {there} shards there: {said}; run again with room"
            return _compare(name, happened, out, target, seconds, made_at)
    except PermissionError as error:
        return FaultResult(fault=name, what_happened=f"not possible here: {error}", impossible=str(error))


def _lose_node(name: str, folder: Path, target: Target) -> FaultResult:
    """One of three machines that compute vanishes with the actors on it."""
    out = folder / "buffer"
    with three_nodes() as (address, remove_node_of):
        settings = {"num_actors": "2", "sampler.num_cpus": "0.5", "qualifier.num_cpus": "0.5"}
        with Driver(_arguments(target, out, settings, address=address)) as driver:
            _wait_for_shards(driver, out, 2, target)
            before = actors(os.getpid(), SAMPLER)
            victim = until(lambda: _busy(actors(os.getpid(), SAMPLER).values()), "a sampler works", target.patience)
            lost = remove_node_of(victim.pid)
            killed, killed_at = time.monotonic(), time.time_ns()
            heir = _found(lambda: actors(os.getpid(), SAMPLER).keys() - before.keys(), driver, target)
            replaced_at = time.time_ns()
            recovered = _found(lambda: _written_since(out, replaced_at), driver, target) if heir else None
            seconds = time.monotonic() - killed if recovered else None
            _finish(driver, target)
    return _compare(name, f"removed a node with {lost}; the run went on", out, target, seconds, killed_at)


def _two_drivers(name: str, folder: Path, target: Target) -> FaultResult:
    """Two drivers fill one buffer at once; the second wants half as many bridges, or with ``(same)`` as many."""
    out, started_at = folder / "buffer", time.time_ns()
    fewer = target.num_bridges if "same" in name else target.num_bridges // 2
    with Driver(_arguments(target, out)) as first, Driver(_arguments(target, out, num_bridges=fewer)) as second:
        ended = [driver.wait(target.patience) for driver in (first, second)]
        said = [driver.last_line() for driver in (first, second)]
    if ended[0] != 0:
        raise RunError(f"{name}: the first driver ended with {ended[0]}: {said[0]}")
    happened = f"exit {ended[0]} and {ended[1]}" + (f" ({said[1]})" if ended[1] else "")
    return _compare(
        name, f"{target.num_bridges} and {fewer} bridges at once: {happened}", out, target, None, started_at
    )


FAULTS: Mapping[str, Callable[[str, Path, Target], FaultResult]] = {
    "sampler": _kill_actor,
    "qualifier": _kill_actor,
    "driver": _kill_driver,
    "node": _lose_node,
    "full disk": _fill_disk,
    "damage": _damage,
    "two drivers (same)": _two_drivers,
    "two drivers (different)": _two_drivers,
}


def _arguments(
    target: Target,
    out: Path,
    settings: Mapping[str, str] | None = None,
    *,
    num_bridges: int | None = None,
    address: str | None = None,
) -> list[str]:
    """The command line of a driver; the stitch settings travel in a file beside the stitcher."""
    config = target.stitcher.parent / "stitch.yaml"
    config.write_text(yaml.safe_dump(plain(asdict(target.stitch))), encoding="utf-8")
    settings = {"pairs_per_shard": str(target.pairs_per_shard), "num_actors": "1", "num_qualifiers": "1"} | {
        **(settings or {})
    }
    address = address or target.address
    return [
        *("augment", target.ref, "--stitcher", str(target.stitcher), "--out", str(out)),
        *("--num-bridges", str(num_bridges or target.num_bridges), "--seed", str(target.seed)),
        *("--config", str(config), "--device", "cpu"),
        *([] if address is None else ["--address", address]),
        *(part for name, value in settings.items() for part in ("--set", f"augment.{name}={value}")),
    ]


def _shards(out: Path) -> list[Path]:
    """The files of shards there are, by number."""
    return sorted(out.glob("shards/part-*.arrow"))


def _written_since(out: Path, nanoseconds: int) -> list[Path]:
    """Those written after a time."""
    found: list[Path] = []
    for file in _shards(out):
        with suppress(FileNotFoundError):
            if file.stat().st_mtime_ns >= nanoseconds:
                found.append(file)
    return found


def _wait_for_shards(driver: Driver, out: Path, count: int, target: Target) -> None:
    def there() -> bool:
        if driver.status is not None:
            raise RunError(f"the driver ended too early, with {driver.status}: {driver.last_line()}")
        return len(_shards(out)) >= count

    until(there, f"{count} shards are there", target.patience)


def _found(look: Callable[[], T], driver: Driver, target: Target) -> T | None:
    """What ``look`` finds, or None when the driver ends without."""

    def found() -> tuple[T] | str | None:
        return (value,) if (value := look()) else "ended" if driver.status is not None else None

    result = until(found, "the run recovers", target.patience)
    return None if isinstance(result, str) else result[0]


def _busy(found: Iterable[Process]) -> Process | None:
    """One that works on a shard at the moment: Ray adds the method to its title."""
    return next((process for process in found if not process.title.endswith(")")), None)


def _interrupted(out: Path, target: Target) -> int:
    """Leaves the buffer of a driver that was killed; returns how many shards it made."""
    with Driver(_arguments(target, out)) as driver:
        _wait_for_shards(driver, out, 3, target)
        driver.kill()
        return len(_shards(out))


def _finish(driver: Driver, target: Target) -> None:
    status = driver.wait(target.patience)
    if status != 0:
        raise RunError(f"the driver ended with {status}: {driver.last_line()}")


def _records(out: Path) -> tuple[list[str], dict[str, tuple[object, ...]]]:
    """All ids of a buffer, and what was decided about each."""
    table = open_buffer(out).table
    ids = table["bridge_id"].to_pylist()
    decided = zip(*(table[name].to_pylist() for name in DECISIONS), strict=True)
    return ids, dict(zip(ids, decided, strict=True))


def _compare(
    fault: str, what_happened: str, out: Path, target: Target, seconds: float | None, since: int
) -> FaultResult:
    ids, decided = _records(out)
    expected_ids, expected = _records(target.undisturbed)
    return FaultResult(
        fault=fault,
        what_happened=what_happened,
        ids=len(expected_ids),
        lost=len(expected.keys() - decided.keys()),
        doubled=sum(count - 1 for count in Counter(ids).values()),
        changed=len({i for i in decided if decided[i] != expected.get(i)}),
        problems=tuple(verify(out)),
        seconds_to_recover=seconds,
        new_shards=len(_written_since(out, since)),
    )


@contextmanager
def three_nodes() -> Iterator[tuple[str, Callable[[int], str]]]:
    """A Ray of a head and three nodes of one CPU each, on this machine; its address, and a function that removes the
    node on which a process runs and says what else was there."""
    from ray.cluster_utils import Cluster

    memory = 100 * 2**20
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": memory}
    )
    try:
        nodes = [cluster.add_node(num_cpus=1, object_store_memory=memory) for _ in range(3)]
        cluster.wait_for_nodes()

        def remove_node_of(pid: int) -> str:
            for node in nodes:
                raylet = node.all_processes["raylet"][0].process.pid
                there = _kinds_below(raylet)
                if any(process.pid == pid for process in descendants(raylet)):
                    cluster.remove_node(node, allow_graceful=False)
                    return " and ".join(sorted(there.values()))
            raise RunError(f"process {pid} is on none of the nodes")

        yield str(cluster.address), remove_node_of
    finally:
        cluster.shutdown()


def _kinds_below(root: int) -> dict[int, str]:
    return {pid: f"a {kind.lower()}" for kind in (SAMPLER, QUALIFIER) for pid in actors(root, kind)}
