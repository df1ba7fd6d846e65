"""How fast buffers fill: in one process, and on Ray with one sampler actor, start-up apart."""

import tempfile
import time
from pathlib import Path

from raystitch.bench.machine import Limits, Row
from raystitch.bench.subject import BenchOptions
from raystitch.bench.synthetic import make_bundle, make_walks
from raystitch.buffer.config import AugmentConfig
from raystitch.cluster.augment import augment
from raystitch.cluster.runtime import ensure_ray
from raystitch.pipeline.augment import augment_local
from raystitch.stitching.config import QualifyConfig, SamplerConfig, StitchConfig

NUM_BRIDGES = 800
CONFIG = StitchConfig(
    sampler=SamplerConfig(num_steps=2), qualify=QualifyConfig(delta="off", termination_max=None, value_check=False)
)
"""Every candidate is accepted, so accepted bridges are candidates: what is learnt does not matter."""


def rows(limits: Limits, options: BenchOptions) -> list[Row]:
    """Bridges per second until they are on disk; Ray's ratio is to the plain loop in one process."""
    dataset = make_walks(10_000)
    sizes = AugmentConfig(num_bridges=NUM_BRIDGES, pairs_per_shard=200)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = make_bundle(dataset)
        bundle.save(folder / "bundle")
        alone = augment_local(dataset, bundle, CONFIG, sizes, out=folder / "alone")
        started = time.perf_counter()
        with ensure_ray():
            start_up = time.perf_counter() - started
            on_ray = augment(dataset, folder / "bundle", out=folder / "ray", stitch_config=CONFIG, config=sizes)
    local_rate = alone.num_accepted / alone.seconds
    ray_rate = on_ray.num_accepted / on_ray.seconds
    return [
        Row("one process", local_rate, "bridges/s"),
        Row("Ray Data, one sampler actor", ray_rate, "bridges/s", "one process", ray_rate / local_rate),
        Row("starting Ray", start_up, "s"),
    ]
