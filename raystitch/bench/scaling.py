"""Where the bottleneck of ``augment`` is with more GPUs than there are here: a calculation from what was measured."""

from dataclasses import dataclass

from raystitch.bench.machine import Row
from raystitch.cluster.actor_pools import IN_FLIGHT

NUM_GPUS = (1, 10, 100, 1000)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one machine says.

    Attributes:
        pairs_per_second: of one CPU core that proposes, judges and writes.
        driver_seconds: the driver's own work per shard; no second driver shares it.
        bytes_per_pair: on storage.
        start_seconds: until an actor begins its first shard.
    """

    pairs_per_second: float
    driver_seconds: float
    bytes_per_pair: float
    start_seconds: float


@dataclass(frozen=True, kw_only=True)
class Assumed:
    """What nothing here can measure.

    Attributes:
        speed_up: of a GPU to one CPU core. storage_bytes_per_second: of all nodes together.
        run_seconds: length of the run if every GPU computed all the time; more GPUs make more bridges.
    """

    speed_up: float = 50.0
    storage_bytes_per_second: float = 1e9
    run_seconds: float = 3600.0


@dataclass(frozen=True)
class Estimate:
    """``efficiency``: pairs per second to those of ``num_gpus`` GPUs that never wait. ``bottleneck``: what takes
    longest. ``pairs_per_second``: over the whole run."""

    num_gpus: int
    efficiency: float
    pairs_per_second: float
    bottleneck: str


def estimate(num_gpus: int, pairs_per_shard: int, measured: Measured, assumed: Assumed) -> Estimate:
    """A run on ``num_gpus`` samplers.

    GPUs, driver and storage work at the same time, so the slowest of them counts; start-up and the end are added. At
    the end everything an actor was given counts as thrown away, which is the worst case.
    """
    gpu_rate = measured.pairs_per_second * assumed.speed_up
    shard_seconds = pairs_per_shard / gpu_rate
    num_shards = num_gpus * assumed.run_seconds / shard_seconds
    num_bytes = num_shards * pairs_per_shard * measured.bytes_per_pair
    steady = {
        "the GPUs": assumed.run_seconds,
        "the driver": num_shards * measured.driver_seconds,
        "storage": num_bytes / assumed.storage_bytes_per_second,
    }
    around = {"start-up": measured.start_seconds, "shards thrown away at the end": IN_FLIGHT * shard_seconds}
    seconds = max(steady.values()) + sum(around.values())
    times = {**steady, **around}
    return Estimate(
        num_gpus,
        assumed.run_seconds / seconds,
        num_shards * pairs_per_shard / seconds,
        max(times, key=lambda what: times[what]),
    )


def rows(measured: Measured, pairs_per_shard: int, assumed: Assumed | None = None) -> list[Row]:
    """With shards of the default size and with larger ones that last a GPU twenty seconds."""
    assumed = assumed or Assumed()
    gpu_rate = measured.pairs_per_second * assumed.speed_up
    given = (
        f"assumed {assumed.speed_up:g} x a core, storage {assumed.storage_bytes_per_second / 1e9:g} GB/s, a run of "
        f"{assumed.run_seconds / 3600:g} h"
    )
    found: list[Row] = []
    for size in (pairs_per_shard, max(1, round(20 * gpu_rate))):
        feeds = size / gpu_rate / measured.driver_seconds
        found.append(Row(f"calculated: GPUs that one driver keeps busy, shards of {size:,} pairs", feeds, "GPUs"))
        for num_gpus in NUM_GPUS:
            at = estimate(num_gpus, size, measured, assumed)
            what = f"calculated: {num_gpus:,} GPUs ({given}), shards of {size:,} pairs; bottleneck: {at.bottleneck}"
            found.append(Row(what, at.pairs_per_second, "pairs/s", "as many GPUs that never wait", at.efficiency))
    storage = assumed.storage_bytes_per_second / (measured.bytes_per_pair * gpu_rate)
    return [*found, Row("calculated: GPUs that storage keeps up with", storage, "GPUs")]
