"""The cost of the driver of ``augment`` itself, measured with shards so small that nothing else matters."""

import os
import time
from pathlib import Path

from raystitch.bench.machine import Row, peak_memory_mib
from raystitch.bench.synthetic import make_walks, tiny_fit
from raystitch.buffer.config import ActorConfig, AugmentConfig
from raystitch.cluster.augment import augment
from raystitch.models.fit import fit_bundle
from raystitch.pipeline.generate.progress import AugmentProgress
from raystitch.stitching.config import StitchConfig

PAIRS_PER_SHARD = 8
ONE_THREAD = ActorConfig(num_cpus=0.3)
"""An actor that computes with one thread on any machine; three fit on one CPU."""


def driver_seconds_and_growth(folder: Path, config: StitchConfig, first: int, last: int) -> tuple[float, float]:
    """Measure the driver's CPU seconds per shard, and the growth of its memory in MiB, between two shards.

    Ray has to be running already, or its start counts too.
    """
    dataset = make_walks(2000)
    fit_bundle(dataset, tiny_fit(), folder / "tiny", device="cpu")
    seen: dict[int, tuple[float, float]] = {}

    def watch(at: AugmentProgress) -> None:
        if at.shards in (first, last):
            seen.setdefault(at.shards, (time.process_time(), resident_mib()))

    augment(
        dataset,
        folder / "tiny",
        out=folder / "small-shards",
        stitch_config=config,
        config=AugmentConfig(
            num_bridges=(last - 1) * PAIRS_PER_SHARD + 1,
            pairs_per_shard=PAIRS_PER_SHARD,
            num_actors=1,
            num_qualifiers=1,
            proposer=ONE_THREAD,
            qualifier=ONE_THREAD,
        ),
        device="cpu",
        progress=watch,
    )
    (cpu, memory), (cpu_after, memory_after) = seen[first], seen[last]
    return (cpu_after - cpu) / (last - first), memory_after - memory


def driver_rows(seconds: float, growth: float, first: int, last: int) -> list[Row]:
    return [
        Row(f"driver, CPU seconds per shard (shards {first} to {last})", seconds, "s"),
        Row(f"driver, memory growth from {first} to {last} shards", growth, "MiB"),
    ]


def resident_mib() -> float:
    """Return the memory of this process now; except on Linux, the most that it ever had."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return peak_memory_mib()
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
