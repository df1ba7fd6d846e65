"""The buffer that the faults of ``augment`` disturb, its driver, and the comparison with an undisturbed buffer."""

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import yaml

from raystitch.bench.chaos.processes import Driver, until
from raystitch.bench.synthetic import make_walks, tiny_fit
from raystitch.buffer.config import AugmentConfig
from raystitch.buffer.maintain import verify
from raystitch.buffer.opening import open_buffer
from raystitch.data.d4rl import write_d4rl
from raystitch.errors import RunError
from raystitch.io.config_file import plain
from raystitch.models.bundle import Bundle
from raystitch.models.fit import fit_bundle
from raystitch.pipeline.generate.augment import augment_local
from raystitch.stitching.config import GuidanceConfig, PairConfig, QualifyConfig, SamplerConfig, StitchConfig

T = TypeVar("T")
DECISIONS = ("seed", "source_episode", "source_step", "target_episode", "target_step", "gap", "attempt", "accepted")


@dataclass(frozen=True, kw_only=True)
class AugmentTarget:
    """The work that the faults disturb.

    Attributes:
        ref: the dataset. stitcher: the bundle's folder. undisturbed: the buffer as one process makes it.
        address: a Ray cluster that all drivers use; with None each driver starts its own.
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
        """The settings with which the undisturbed buffer is made."""
        return AugmentConfig(num_bridges=self.num_bridges, pairs_per_shard=self.pairs_per_shard)


@dataclass(frozen=True, kw_only=True)
class AugmentFault:
    """The effect of one fault on a buffer.

    Attributes:
        ids: candidates of the undisturbed buffer; ``lost`` of them are missing from the other one, ``doubled`` are
            in it more than once, ``changed`` were decided differently or should not be in it.
        problems: findings of ``verify``.
        seconds_to_recover: from the fault until the replacement of what died has written its first shard.
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


def make_augment_target(
    folder: Path, *, num_shards: int, pairs_per_shard: int = 256, address: str | None = None
) -> AugmentTarget:
    """Make random walks, small networks fitted for a moment, and the undisturbed buffer, under ``folder``.

    Nearly every candidate is accepted, so about ``num_shards`` shards are made; sampling in many steps takes the time.
    """
    dataset = make_walks(4000)
    write_d4rl(dataset, folder / "walks.hdf5")
    fit_bundle(dataset, tiny_fit(), folder / "stitcher", device="cpu")
    stitch = StitchConfig(
        pairs=PairConfig(split="value"),  # rounds are closed meanwhile
        sampler=SamplerConfig(num_steps=20, precision="float32"),
        guidance=GuidanceConfig(schedule="off"),
        qualify=QualifyConfig(delta="q90", termination_max=None, value_check=False),
    )
    target = AugmentTarget(
        ref=f"d4rl:{folder / 'walks.hdf5'}",
        stitcher=folder / "stitcher",
        stitch=stitch,
        num_bridges=(num_shards - 1) * pairs_per_shard,
        pairs_per_shard=pairs_per_shard,
        seed=3,
        undisturbed=folder / "undisturbed",
        address=address,
    )
    bundle = Bundle.load(target.stitcher, "cpu")
    augment_local(dataset, bundle, stitch, target.config, out=target.undisturbed, seed=target.seed)
    return target


def arguments(
    target: AugmentTarget,
    out: Path | str,
    settings: Mapping[str, str] | None = None,
    *,
    num_bridges: int | None = None,
    address: str | None = None,
) -> list[str]:
    """Return the command line of a driver; writes the stitch settings into a file beside the stitcher."""
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
    """The shard files of a buffer, by number."""
    return sorted(out.glob("shards/part-*.arrow"))


def written_since(out: Path, nanoseconds: int) -> list[Path]:
    """The shard files that were written after a time."""
    found: list[Path] = []
    for file in shard_files(out):
        with suppress(FileNotFoundError):
            if file.stat().st_mtime_ns >= nanoseconds:
                found.append(file)
    return found


def wait_for_shards(driver: Driver, out: Path, count: int, target: AugmentTarget) -> None:
    """Wait until a buffer has this many shards.

    Raises:
        RunError: the driver ends before.
    """

    def there() -> bool:
        if driver.status is not None:
            raise RunError(f"the driver ended too early, with {driver.status}: {driver.last_line()}")
        return len(shard_files(out)) >= count

    until(there, f"{count} shards are there", target.patience)


def found_by(look: Callable[[], T], driver: Driver, target: AugmentTarget) -> T | None:
    """Wait until ``look`` finds something and return it; None if the driver ends first."""

    def found() -> tuple[T] | str | None:
        return (value,) if (value := look()) else "ended" if driver.status is not None else None

    result = until(found, "the run recovers", target.patience)
    return None if isinstance(result, str) else result[0]


def interrupted(out: Path, target: AugmentTarget) -> int:
    """Run a driver, kill it after a few shards and return how many it made."""
    with Driver(arguments(target, out)) as driver:
        wait_for_shards(driver, out, 3, target)
        driver.kill()
        return len(shard_files(out))


def finish_run(driver: Driver, target: AugmentTarget) -> None:
    """Wait for the end of a driver.

    Raises:
        RunError: its exit status is not 0.
    """
    status = driver.wait(target.patience)
    if status != 0:
        raise RunError(f"the driver ended with {status}: {driver.last_line()}")


def _records(out: Path | str) -> tuple[list[str], dict[str, tuple[object, ...]]]:
    """All ids of a buffer, and the decisions about each."""
    table = open_buffer(out).table
    ids = table["bridge_id"].to_pylist()
    decided = zip(*(table[name].to_pylist() for name in DECISIONS), strict=True)
    return ids, dict(zip(ids, decided, strict=True))


def compare(
    fault: str, what_happened: str, out: Path | str, target: AugmentTarget, seconds: float | None, since: int
) -> AugmentFault:
    """Compare the buffer at ``out`` (may be a URI) with the undisturbed one; ``since``: time of the fault in ns."""
    ids, decided = _records(out)
    expected_ids, expected = _records(target.undisturbed)
    return AugmentFault(
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
