"""How fast buffers fill: plain loops of one thread, and Ray with one and two proposers, start-up apart."""

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
"""Every pair is accepted, so what is learnt does not matter; sampling, guidance and repair are the defaults."""
PLAIN, ONE = "plain loop, one thread", "Ray, one proposer and one qualifier"


@dataclass(frozen=True, kw_only=True)
class AugmentSizes:
    """How much is measured.

    Attributes:
        shard_seconds: a shard takes about this long in a plain loop.
        num_shards: shards per proposer or process between the two looks at the clock.
        tiny_shards: the driver's load is that between these numbers of tiny shards.
    """

    shard_seconds: float = 20.0
    num_shards: int = 2
    tiny_shards: tuple[int, int] = (20, 150)


@dataclass(frozen=True)
class _Run:
    """``rate``: pairs/s once every proposer has brought its first shard, which took ``first_seconds``."""

    rate: float
    first_seconds: float
    bytes_per_pair: float


def rows(limits: Limits, options: BenchOptions) -> list[Row]:
    """Making bridges, a calculation for up to a thousand GPUs, and reading and writing buffers."""
    dataset = make_walks(10_000)
    found = examine(dataset, make_bundle(dataset), AugmentSizes())
    return [*found, *buffer_io.write_rows(limits), *buffer_io.read_rows(limits)]


def examine(dataset: EpisodeDataset, bundle: Bundle, sizes: AugmentSizes) -> list[Row]:
    """The rates of plain loops and of Ray, the driver's load, and the calculation; some minutes with the defaults."""
    # The actors' lower priority is for users at the same machine; here both have to meet other load alike.
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
    """The clock runs from the arrival of the ``proposers``-th shard, when each has brought one, to that of the last."""
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
            num_bridges=(wanted - 1) * pairs + 1,  # all of the last shard but one are not needed
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
