"""The faults of ``augment``, each done for real; the buffer is compared with an undisturbed one.

The driver is a process of its own, ``raystitch augment``; only processes started here are killed, by process id.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from raystitch.bench.chaos.augment_target import (
    AugmentFault,
    AugmentTarget,
    arguments,
    compare,
    finish_run,
    found_by,
    interrupted,
    shard_files,
    wait_for_shards,
    written_since,
)
from raystitch.bench.chaos.processes import Driver, Process, actors, descendants, host_address, small_disk, until
from raystitch.bench.chaos.storage_faults import stale_read, unreadable_folder
from raystitch.errors import RunError

PROPOSER, QUALIFIER = "Proposer", "Qualifier"


def run_augment_fault(name: str, folder: Path, target: AugmentTarget) -> AugmentFault:
    """Do one fault; ``folder`` is emptied first and holds the buffer afterwards.

    Raises:
        RunError: when a run does not survive the fault, or nothing happens for too long.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return AUGMENT_FAULTS[name](name, folder, target)


def _kill_actor(name: str, folder: Path, target: AugmentTarget) -> AugmentFault:
    """Kill the only actor of a kind while it works; the run continues by itself."""
    kind, out = {"proposer": PROPOSER, "qualifier": QUALIFIER}[name], folder / "buffer"
    with Driver(arguments(target, out)) as driver:
        wait_for_shards(driver, out, 2, target)
        before = actors(os.getpid(), kind)
        victim = until(lambda: _busy(actors(os.getpid(), kind).values()), f"a {name} works", target.patience)
        victim.kill()
        killed, killed_at = time.monotonic(), time.time_ns()
        heir = found_by(lambda: actors(os.getpid(), kind).keys() - before.keys(), driver, target)
        replaced, replaced_at = time.monotonic(), time.time_ns()
        recovered = found_by(lambda: written_since(out, replaced_at), driver, target) if heir else None
        seconds = time.monotonic() - killed if recovered else None
        finish_run(driver, target)
        happened = f"killed pid {victim.pid}; " + (
            f"a new {name} after {replaced - killed:.1f} s, the run went on"
            if heir
            else "the others finished the run before a new one was needed"
        )
    return compare(name, happened, out, target, seconds, killed_at)


def _kill_driver(name: str, folder: Path, target: AugmentTarget) -> AugmentFault:
    """Kill the driver and run the same command again."""
    out = folder / "buffer"
    there = interrupted(out, target)
    killed, killed_at = time.monotonic(), time.time_ns()
    with Driver(arguments(target, out)) as again:
        found_by(lambda: written_since(out, killed_at), again, target)
        seconds = time.monotonic() - killed
        finish_run(again, target)
    return compare(name, f"killed with {there} shards there; run again", out, target, seconds, killed_at)


def _damage(name: str, folder: Path, target: AugmentTarget) -> AugmentFault:
    """Flip a bit of one shard and cut another in half, between two runs."""
    out = folder / "buffer"
    interrupted(out, target)
    files = shard_files(out)
    flipped, cut = files[0], files[1]
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    hurt, hurt_at = time.monotonic(), time.time_ns()
    with Driver(arguments(target, out)) as again:
        found_by(lambda: {flipped, cut} <= set(written_since(out, hurt_at)), again, target)
        seconds = time.monotonic() - hurt
        finish_run(again, target)
        said = [line for line in again.lines() if "damaged" in line]
    named = [file.name for file in (flipped, cut) if any(file.name in line for line in said)]
    happened = f"one bit of {flipped.name}, half of {cut.name}; named: {', '.join(named) or 'none'}; made again"
    return compare(name, happened, out, target, seconds, hurt_at)


def _fill_disk(name: str, folder: Path, target: AugmentTarget) -> AugmentFault:
    """Fill a disk on which half the buffer fits, then make room and run the command again."""
    disk, whole = folder / "disk", sum(file.stat().st_size for file in shard_files(target.undisturbed)) // 1024
    try:
        with small_disk(disk, max(64, whole // 2)) as resize:
            out = disk / "buffer"
            with Driver(arguments(target, out)) as driver:
                status, said, output = driver.wait(target.patience), driver.last_line(), driver.lines()
            if status != 1 or any(line.startswith("Traceback") for line in output):
                raise RunError(f"{name}: not one clear line and exit 1, but exit {status} and: {said}")
            there = len(shard_files(out))
            resize(4 * whole + 1024)
            made, made_at = time.monotonic(), time.time_ns()
            with Driver(arguments(target, out)) as again:
                found_by(lambda: written_since(out, made_at), again, target)
                seconds = time.monotonic() - made
                finish_run(again, target)
            happened = f"exit 1 with {there} shards there: {said}; run again with room"
            return compare(name, happened, out, target, seconds, made_at)
    except PermissionError as error:
        return AugmentFault(fault=name, what_happened=f"not possible here: {error}", impossible=str(error))


def _lose_node(name: str, folder: Path, target: AugmentTarget) -> AugmentFault:
    """Remove one of three nodes with the actors on it."""
    out = folder / "buffer"
    with three_nodes() as (address, remove_node_of):
        settings = {"num_actors": "2", "proposer.num_cpus": "0.5", "qualifier.num_cpus": "0.5"}
        with Driver(arguments(target, out, settings, address=address)) as driver:
            wait_for_shards(driver, out, 2, target)
            before = actors(os.getpid(), PROPOSER)
            victim = until(lambda: _busy(actors(os.getpid(), PROPOSER).values()), "a proposer works", target.patience)
            lost = remove_node_of(victim.pid)
            killed, killed_at = time.monotonic(), time.time_ns()
            heir = found_by(lambda: actors(os.getpid(), PROPOSER).keys() - before.keys(), driver, target)
            replaced_at = time.time_ns()
            recovered = found_by(lambda: written_since(out, replaced_at), driver, target) if heir else None
            seconds = time.monotonic() - killed if recovered else None
            finish_run(driver, target)
    return compare(name, f"removed a node with {lost}; the run went on", out, target, seconds, killed_at)


def _two_drivers(name: str, folder: Path, target: AugmentTarget) -> AugmentFault:
    """Fill one buffer with two drivers at once; the second wants half as many bridges or, in ``(same)``, as many."""
    out, started_at = folder / "buffer", time.time_ns()
    fewer = target.num_bridges if "same" in name else target.num_bridges // 2
    with Driver(arguments(target, out)) as first, Driver(arguments(target, out, num_bridges=fewer)) as second:
        ended = [driver.wait(target.patience) for driver in (first, second)]
        said = [driver.last_line() for driver in (first, second)]
    if ended[0] != 0:
        raise RunError(f"{name}: the first driver ended with {ended[0]}: {said[0]}")
    happened = f"exit {ended[0]} and {ended[1]}" + (f" ({said[1]})" if ended[1] else "")
    return compare(name, f"{target.num_bridges} and {fewer} bridges at once: {happened}", out, target, None, started_at)


AUGMENT_FAULTS: Mapping[str, Callable[[str, Path, AugmentTarget], AugmentFault]] = {
    "proposer": _kill_actor,
    "qualifier": _kill_actor,
    "driver": _kill_driver,
    "node": _lose_node,
    "full disk": _fill_disk,
    "damage": _damage,
    "two drivers (same)": _two_drivers,
    "two drivers (different)": _two_drivers,
    "two drivers on S3 (stale read)": stale_read,
    "unreadable folder": unreadable_folder,
}


def _busy(found: Iterable[Process]) -> Process | None:
    """Find a process that works on a shard at the moment: Ray adds the method to its title."""
    return next((process for process in found if not process.title.endswith(")")), None)


@contextmanager
def three_nodes() -> Iterator[tuple[str, Callable[[int], str]]]:
    """Start a Ray of a head and three nodes of one CPU each, on this machine.

    Yields its address, and a function that removes the node of a process and says which actors were on it.
    """
    from ray.cluster_utils import Cluster

    node = {"node_ip_address": host_address(), "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=node | {"num_cpus": 0, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=1, **node) for _ in range(3)]
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
    return {pid: f"a {kind.lower()}" for kind in (PROPOSER, QUALIFIER) for pid in actors(root, kind)}
