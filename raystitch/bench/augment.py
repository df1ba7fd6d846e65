"""``bench augment``: the speed at which buffers fill, by plain loops of one thread and by Ray, without start-up."""

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from raystitch.bench import buffer_io, scaling
from raystitch.bench.driver import ONE_THREAD, driver_rows, driver_seconds_and_growth
from raystitch.bench.loops import PlainLoops
from raystitch.bench.machine import Limits, Row
from raystitch.bench.synthetic import BenchOptions, make_bundle, make_walks
from raystitch.buffer.config import AugmentConfig
from raystitch.cluster.augment import augment
from raystitch.cluster.runtime import ensure_ray
from raystitch.data.episodes import EpisodeDataset
from raystitch.models.bundle import Bundle
from raystitch.pipeline.generate.progress import AugmentProgress
from raystitch.stitching.config import QualifyConfig, StitchConfig

CONFIG = StitchConfig(qualify=QualifyConfig(delta="off", termination_max=None, value_check=False))
"""Every pair is accepted, so the fit does not matter; sampling, guidance and repair are the defaults."""
PLAIN, ONE = "plain loop, one thread", "Ray, one proposer and one qualifier"


@dataclass(frozen=True, kw_only=True)
class AugmentSizes:
    """The amount of work that is measured.

    Attributes:
        shard_seconds: about the time of a shard in a plain loop.
        num_shards: shards per proposer or process between the two readings of the clock.
        tiny_shards: the driver's load is measured between these numbers of tiny shards.
    """

    shard_seconds: float = 20.0
    num_shards: int = 2
    tiny_shards: tuple[int, int] = (20, 150)


@dataclass(frozen=True)
class _Run:
    """One run on Ray.

    Attributes:
        rate: pairs per second, once every proposer has finished its first shard. first_seconds: until the first shard.
    """

    rate: float
    first_seconds: float
    bytes_per_pair: float


def rows(limits: Limits, options: BenchOptions) -> list[Row]:
    """Rows about making bridges, a calculation for up to a thousand GPUs, and reading and writing buffers."""
    dataset = make_walks(10_000)
    found = examine(dataset, make_bundle(dataset), AugmentSizes())
    return [*found, *buffer_io.write_rows(limits), *buffer_io.read_rows(limits)]


def examine(dataset: EpisodeDataset, bundle: Bundle, sizes: AugmentSizes) -> list[Row]:
    """Measure plain loops, Ray and the driver's load, and calculate scaling; some minutes with the defaults."""
    # Actors have a lower priority for the sake of users at the same machine; here it would favour the plain loops.
    os.environ.setdefault("RAY_worker_niceness", "0")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle.save(folder / "bundle")
        with PlainLoops(dataset, folder / "bundle", CONFIG, folder / "plain") as loops:
            pairs = loops.pairs_for(sizes.shard_seconds)
            before = loops.rate(1, pairs, sizes.num_shards)
            started = time.perf_counter()
            with ensure_ray():
                ray_seconds = time.perf_counter() - started
                one, two = (_on_ray(dataset, folder, proposers, pairs, sizes.num_shards) for proposers in (1, 2))
                driver, growth = driver_seconds_and_growth(folder, CONFIG, *sizes.tiny_shards)
            both = loops.rate(2, pairs, sizes.num_shards)
            after = loops.rate(1, pairs, sizes.num_shards)
    plain = (before + after) / 2
    two_proposers, ceiling = "Ray, two proposers and one qualifier", "two plain loops at once"
    measured = scaling.Measured(
        pairs_per_second=plain,
        driver_seconds=driver,
        bytes_per_pair=one.bytes_per_pair,
        start_seconds=ray_seconds + max(0.0, one.first_seconds - pairs / plain),
    )
    return [
        Row(PLAIN, plain, "pairs/s"),
        Row("plain loop, second measurement", after, "pairs/s", "the first one", after / before),
        Row(f"shard of {pairs:,} pairs in a plain loop", pairs / plain, "s"),
        Row(ONE, one.rate, "pairs/s", PLAIN, one.rate / plain),
        Row(two_proposers, two.rate, "pairs/s", ONE, two.rate / one.rate),
        Row(two_proposers, two.rate, "pairs/s", PLAIN, two.rate / plain),
        Row(ceiling, both, "pairs/s", PLAIN, both / plain),
        Row(two_proposers, two.rate, "pairs/s", ceiling, two.rate / both),
        Row("starting Ray", ray_seconds, "s"),
        Row("from the call to the first shard, one proposer", one.first_seconds, "s"),
        Row("buffer, bytes per pair", one.bytes_per_pair, "B"),
        *driver_rows(driver, growth, *sizes.tiny_shards),
        *scaling.rows(measured, AugmentConfig().pairs_per_shard),
    ]


def _on_ray(dataset: EpisodeDataset, folder: Path, proposers: int, pairs: int, num_shards: int) -> _Run:
    """Time ``augment`` from the arrival of shard number ``proposers``, when each has made one, to that of the last."""
    arrivals: list[float] = []

    def watch(at: AugmentProgress) -> None:
        arrivals.extend([time.perf_counter()] * (at.shards - len(arrivals)))

    wanted, out = proposers * (num_shards + 1), folder / f"ray-{proposers}"
    began = time.perf_counter()
    summary = augment(
        dataset,
        folder / "bundle",
        out=out,
        stitch_config=CONFIG,
        config=AugmentConfig(
            num_bridges=(wanted - 1) * pairs + 1,  # of the last shard, one bridge is needed
            pairs_per_shard=pairs,
            num_actors=proposers,
            num_qualifiers=1,
            proposer=ONE_THREAD,
            qualifier=ONE_THREAD,
        ),
        device="cpu",
        progress=watch,
    )
    seconds = arrivals[wanted - 1] - arrivals[proposers - 1]
    size = sum(file.stat().st_size for file in (out / "shards").iterdir())
    return _Run((wanted - proposers) * pairs / seconds, arrivals[0] - began, size / (summary.num_shards * pairs))
