"""``bench data``: the speed of reading and writing trajectories, next to copying memory."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from raystitch.bench.machine import Limits, Row, median_seconds
from raystitch.bench.synthetic import BenchOptions, make_walks
from raystitch.data.d4rl import read_d4rl, write_d4rl
from raystitch.data.normalise import Normalizer
from raystitch.data.returns import discounted_returns, returns_to_go

NUM_TRANSITIONS = 200_000


def rows(limits: Limits, options: BenchOptions) -> list[Row]:
    """Rows in transitions per second; the ratio compares bytes per second with copying memory."""
    import numpy as np

    dataset = make_walks(NUM_TRANSITIONS)
    num_bytes = dataset.observations.nbytes + dataset.actions.nbytes + dataset.rewards.nbytes
    normalizer = Normalizer.fit(dataset.observations)
    bootstrap = np.zeros(dataset.num_episodes, np.float32)

    def row(what: str, work: Callable[[], object], size: int, repeats: int = 3) -> Row:
        seconds = median_seconds(work, repeats=repeats, warmups=1)
        ratio = size / seconds / (limits.memcpy_gbytes_per_s * 1e9)
        return Row(what, dataset.num_transitions / seconds, "transitions/s", "memcpy", ratio)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "walks.hdf5"
        found = [
            row("write D4RL HDF5, compressed", lambda: write_d4rl(dataset, path), num_bytes, repeats=1),
            row("read D4RL HDF5, compressed", lambda: read_d4rl(path), num_bytes),
        ]
    found += [
        row("standardise observations", lambda: normalizer.encode(dataset.observations), dataset.observations.nbytes),
        row("returns-to-go", lambda: returns_to_go(dataset.rewards, dataset.offsets), dataset.rewards.nbytes),
        row(
            "discounted returns",
            lambda: discounted_returns(dataset.rewards, dataset.offsets, 0.99, bootstrap),
            dataset.rewards.nbytes,
        ),
    ]
    return found
