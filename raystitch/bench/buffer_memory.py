"""The memory that each use of a buffer takes, beyond the memory for a tiny one, measured from outside.

``python -m raystitch.bench.buffer_memory USER TINY BUFFER`` is the process that is measured: it does the work on TINY,
says so, does it on BUFFER and says so again.
"""

import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from raystitch.bench.synthetic import make_walks
from raystitch.buffer.export import export
from raystitch.buffer.maintain import describe, verify
from raystitch.buffer.opening import open_buffer
from raystitch.data.episodes import EpisodeDataset
from raystitch.io.cache import Scratch
from raystitch.pipeline.trials.figures import write_figures
from raystitch.pipeline.validate.truth import validate
from raystitch.trainers.batches import Kind, RatioSampler
from raystitch.trainers.config import DataSpec
from raystitch.trainers.data import build_data
from raystitch.trainers.ratio import parse_ratio

POLL_SECONDS = 0.002
NUM_BATCHES = 50


@dataclass(frozen=True)
class Use:
    """Memory and time of one use.

    Attributes:
        peak_bytes: largest anonymous memory, less what was in use after the work on the tiny buffer.
        seconds: wall clock.
    """

    peak_bytes: int
    seconds: float


def dataset() -> EpisodeDataset:
    """The trajectories that the synthetic buffers refer to."""
    return make_walks(20_000)


def _filter(path: Path, folder: Path) -> None:
    open_buffer(path).num_accepted("q70")


def _info(path: Path, folder: Path) -> None:
    describe(path)


def _verify(path: Path, folder: Path) -> None:
    if verify(path):
        raise RuntimeError(f"{path} is damaged")


def _train(kind: Kind, path: Path, folder: Path) -> None:
    data = build_data(
        dataset(),
        DataSpec(kind=kind, data="stitched", device="cpu", memory_gib=0),
        bridges=open_buffer(path).mapped(),
        scratch=Scratch("pools", parent=folder / "pools"),
    )
    sampler = RatioSampler(data, parse_ratio("1:1"), 256, [torch.Generator()])
    for _ in range(NUM_BATCHES):
        drawn = sampler.draw()
        if kind == "transitions":
            data.transitions(drawn[0], drawn[1])
        else:
            data.windows(*drawn, 20)


def _batches(path: Path, folder: Path) -> None:
    for _ in open_buffer(path).batches(256, seed=0, num_batches=NUM_BATCHES):
        pass


def _figures(path: Path, folder: Path) -> None:
    write_figures(dataset(), open_buffer(path), folder / "figures")


def _validate(path: Path, folder: Path) -> None:
    validate(open_buffer(path), dataset(), None)


USERS: dict[str, Callable[[Path, Path], None]] = {
    "open and filter": _filter,
    "buffer info": _info,
    "buffer verify": _verify,
    "random batches": _batches,
    "train on transitions": lambda path, folder: _train("transitions", path, folder),
    "train on sequences": lambda path, folder: _train("sequences", path, folder),
    "figures": _figures,
    "validate": _validate,
    "export to Parquet": lambda path, folder: _export("parquet", path, folder),
    "export to D4RL HDF5": lambda path, folder: _export("d4rl", path, folder),
}


def _export(format: str, path: Path, folder: Path) -> None:
    out = folder / f"{path.name}.{format}"
    export(open_buffer(path), dataset(), format, out, what="bridges")  # pyright: ignore[reportArgumentType]
    out.unlink()


def measure(user: str, tiny: Path, buffer: Path) -> Use:
    """Run ``user`` on a tiny buffer and then on another, in a process of its own.

    Raises:
        RuntimeError: when the process fails.
    """
    command = [sys.executable, "-m", "raystitch.bench.buffer_memory", user, str(tiny), str(buffer)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        ready = process.stdout.readline()
        base = peak = _anonymous(process.pid)
        started = time.perf_counter()
        process.stdout.flush()
        while ready and not select.select([process.stdout], [], [], POLL_SECONDS)[0]:
            peak = max(peak, _anonymous(process.pid))
        seconds = time.perf_counter() - started
        if not ready or not process.stdout.readline() or process.wait():
            raise RuntimeError(f"{user} failed on {buffer}")
    return Use(peak - base, seconds)


def _anonymous(process: int) -> int:
    """Return the process's memory that is not backed by files, in bytes."""
    try:
        for line in Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("RssAnon:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    return 0


def main() -> None:
    user, tiny, buffer = sys.argv[1:]
    with tempfile.TemporaryDirectory(dir=Path(buffer).parent) as folder:
        for path in (tiny, buffer):
            USERS[user](Path(path), Path(folder))
            print("done", flush=True)


if __name__ == "__main__":
    main()
