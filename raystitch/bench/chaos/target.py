"""The parts that all faults share: a target, a driver that works on it, and a comparison with an undisturbed run."""

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import yaml

from raystitch.bench.chaos.processes import Driver, until
from raystitch.buffer.config import AugmentConfig
from raystitch.buffer.maintain import verify
from raystitch.buffer.reader import open_buffer
from raystitch.errors import RunError
from raystitch.io.config_file import plain
from raystitch.stitching.config import StitchConfig

T = TypeVar("T")
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
    patience: float = 300.0

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


def arguments(
    target: Target,
    out: Path | str,
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


def shard_files(out: Path) -> list[Path]:
    """The files of shards there are, by number."""
    return sorted(out.glob("shards/part-*.arrow"))


def written_since(out: Path, nanoseconds: int) -> list[Path]:
    """Those written after a time."""
    found: list[Path] = []
    for file in shard_files(out):
        with suppress(FileNotFoundError):
            if file.stat().st_mtime_ns >= nanoseconds:
                found.append(file)
    return found


def wait_for_shards(driver: Driver, out: Path, count: int, target: Target) -> None:
    """Raises: RunError when the driver ends before that many shards are there."""

    def there() -> bool:
        if driver.status is not None:
            raise RunError(f"the driver ended too early, with {driver.status}: {driver.last_line()}")
        return len(shard_files(out)) >= count

    until(there, f"{count} shards are there", target.patience)


def found_by(look: Callable[[], T], driver: Driver, target: Target) -> T | None:
    """What ``look`` finds, or None when the driver ends without."""

    def found() -> tuple[T] | str | None:
        return (value,) if (value := look()) else "ended" if driver.status is not None else None

    result = until(found, "the run recovers", target.patience)
    return None if isinstance(result, str) else result[0]


def interrupted(out: Path, target: Target) -> int:
    """Leaves the buffer of a driver that was killed; returns how many shards it made."""
    with Driver(arguments(target, out)) as driver:
        wait_for_shards(driver, out, 3, target)
        driver.kill()
        return len(shard_files(out))


def finish_run(driver: Driver, target: Target) -> None:
    """Raises: RunError when the driver does not end well."""
    status = driver.wait(target.patience)
    if status != 0:
        raise RunError(f"the driver ended with {status}: {driver.last_line()}")


def _records(out: Path | str) -> tuple[list[str], dict[str, tuple[object, ...]]]:
    """All ids of a buffer, and what was decided about each."""
    table = open_buffer(out).table
    ids = table["bridge_id"].to_pylist()
    decided = zip(*(table[name].to_pylist() for name in DECISIONS), strict=True)
    return ids, dict(zip(ids, decided, strict=True))


def compare(
    fault: str, what_happened: str, out: Path | str, target: Target, seconds: float | None, since: int
) -> FaultResult:
    """The buffer at ``out``, which may be a URI, against the undisturbed one; ``since``: time of the fault in ns."""
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
        new_shards=len(written_since(out, since)) if isinstance(out, Path) else 0,
    )
