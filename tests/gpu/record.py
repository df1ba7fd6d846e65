"""What the check has found, as JSON lines that are on the disk as soon as they are known; and what a part is given."""

import json
import os
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from raystitch.bench.machine import Row
from raystitch.data.episodes import EpisodeDataset
from raystitch.models.bundle import Bundle
from tests.gpu.world import make_world

RESULTS, BUNDLE = "results.jsonl", "bundle.pt"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is done: on a GPU within minutes, or (``TINY``) on a CPU within seconds."""

    num_episodes: int = 300
    episode_length: int = 100
    fit_share: float = 0.3
    """Of the default training steps of every model."""
    timed_steps: int = 200
    matmul: int = 8192
    pairs: tuple[int, ...] = (64, 256, 1024, 4096, 16384)
    compared_pairs: int = 256
    crowd: int = 32768
    """Pairs that do not fit into the memory allowed."""
    crowd_gib: float = 1.5
    stacked: tuple[int, ...] = (1, 5, 20)
    log_every: int = 100
    """Training steps between two reports of the loop; trainers are timed over three of these, after the first."""
    repeats: int = 3
    small_networks: bool = False


TINY = Sizes(
    num_episodes=24,
    episode_length=40,
    fit_share=1.0,
    timed_steps=5,
    matmul=128,
    pairs=(8, 16),
    compared_pairs=8,
    crowd=16,
    stacked=(1, 2),
    log_every=1,
    repeats=1,
    small_networks=True,
)


@dataclass(kw_only=True)
class Record:
    """Lines about one part of the check, appended to ``results.jsonl`` and printed."""

    folder: Path
    part: str
    began: float = field(default_factory=time.perf_counter)

    def line(self, kind: str, what: str, **values: Any) -> None:
        """Write one line; it is on the disk when this returns."""
        seconds = round(time.perf_counter() - self.began, 2)
        text = json.dumps({"part": self.part, "kind": kind, "what": what, **values, "at_seconds": seconds})
        print(text, flush=True)
        with (self.folder / RESULTS).open("a", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())

    def row(self, row: Row) -> None:
        """Write a measured number."""
        values = {name: value for name, value in row.to_json().items() if name != "what"}
        self.line("measured", row.what, **values)

    def number(self, what: str, value: float, unit: str) -> None:
        """Write a measured number that is compared with nothing."""
        self.row(Row(what, value, unit))

    def check(self, what: str, value: float, limit: float) -> None:
        """Write whether a number that should be small is."""
        self.line("check", what, ok=bool(value <= limit), value=value, limit=limit)

    def skip(self, what: str, why: str) -> None:
        """Write what was not done."""
        self.line("skipped", what, why=why)

    @contextmanager
    def section(self, what: str) -> Iterator[None]:
        """Write an error inside the block as a line, and go on after it."""
        try:
            yield
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(place.filename).name}:{place.lineno}"
            self.line("failed", what, error=f"{type(error).__name__}: {error}"[:500], where=where)
        finally:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a part is given: where, how much, and where its lines go."""

    device: torch.device
    sizes: Sizes
    record: Record

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def precisions(self) -> tuple[str, ...]:
        """``tf32`` is a GPU's float32 with rounded factors."""
        return ("float32", "tf32", "bf16") if self.is_cuda else ("float32", "bf16")

    def dataset(self) -> EpisodeDataset:
        """Make the data; the same in every part."""
        return make_world(self.sizes.num_episodes, self.sizes.episode_length)

    def wait(self) -> None:
        """Wait until the device has finished."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object], repeats: int | None = None) -> float:
        """Return the shortest wall-clock time of ``work`` after one warm-up."""
        work()
        times: list[float] = []
        for _ in range(repeats or self.sizes.repeats):
            self.wait()
            started = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - started)
        return min(times)

    def save_bundle(self, bundle: Bundle) -> None:
        """Keep the fitted models for the parts after this one."""
        torch.save(bundle, self.record.folder / BUNDLE)

    def bundle(self, device: torch.device | None = None) -> Bundle:
        """Load the models that the part ``fit`` has kept; they are this check's own file.

        Raises:
            FileNotFoundError: when that part has not come so far.
        """
        place = self.device if device is None else device
        kept: Bundle = torch.load(self.record.folder / BUNDLE, map_location="cpu", weights_only=False)
        for name in ("standardizer", "still"):
            vars(kept).pop(name, None)
        return replace(kept, device=place)
