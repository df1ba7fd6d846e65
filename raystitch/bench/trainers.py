"""How fast policies train on one thread: each algorithm in several variants, against its products and a reference.

Everything of one algorithm is measured in turn, several times over, and the shortest time of each counts, so that what
else the machine does meets all alike. Times are the processor's. What every call costs once is taken off.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from raystitch.bench.machine import Limits, Row
from raystitch.bench.products import STEPS, Products, products_of
from raystitch.bench.reference_dt import ReferenceDT
from raystitch.bench.reference_td3bc import ReferenceTD3BC
from raystitch.bench.synthetic import BenchOptions, make_walks
from raystitch.bench.trial import trial_rows
from raystitch.data.episodes import EpisodeDataset
from raystitch.device import uses_bf16
from raystitch.trainers.config import ALGORITHM_CONFIGS, AlgorithmConfig, DataSpec
from raystitch.trainers.data import build_data
from raystitch.trainers.loop import train_policies
from raystitch.trainers.registry import ALGORITHMS, find_algorithm

ROUNDS = 3
NUM_SEEDS = 5
STEPS_OF_SEEDS = 80
"""Gradient steps per round: of one seed, or of all seeds together; DT does a sixteenth of that."""
DT_FRACTION = 16
REFERENCES: dict[str, Callable[[EpisodeDataset, Any], Any]] = {"td3bc": ReferenceTD3BC, "dt": ReferenceDT}
Work = Callable[[], object]


@dataclass(frozen=True)
class Variant:
    """A way to train: its precision, how many seeds together, whether its networks are compiled."""

    precision: str
    num_seeds: int = 1
    compiled: bool = False

    @property
    def name(self) -> str:
        seeds = f"{self.num_seeds} seeds stacked, " if self.num_seeds > 1 else ""
        return f"{seeds}{self.precision}{', compiled' if self.compiled else ''}"


def rows(limits: Limits, options: BenchOptions) -> list[Row]:
    """Steps per second per seed, by variant; ratios to the reference, to one seed, and to the bound by the products."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        dataset = make_walks(100_000, 1000)
        found: list[Row] = []
        for algo in ALGORITHMS:
            found += algorithm_rows(dataset, algo, ALGORITHM_CONFIGS[algo]())
        if not _has_compiler():
            found.append(Row("compiled: left out, there is no C++ compiler", 0, ""))
        per_second = next(row.value for row in found if row.unit == "steps/s")
        return found + trial_rows(ALGORITHM_CONFIGS["td3bc"]().train_steps / per_second, NUM_SEEDS)
    finally:
        torch.set_num_threads(threads)


def algorithm_rows(
    dataset: EpisodeDataset,
    algo: str,
    config: AlgorithmConfig,
    *,
    variants: Sequence[Variant] | None = None,
    rounds: int = ROUNDS,
    steps: int | None = None,
) -> list[Row]:
    """The variants of one algorithm, one seed in float32 among them; ``steps`` of all seeds together per round."""
    steps = steps or max(STEPS_OF_SEEDS // (DT_FRACTION if algo == "dt" else 1), NUM_SEEDS)
    products = products_of(config, dataset.obs_dim, dataset.act_dim)
    variants = _variants(config) if variants is None else variants
    works: dict[Any, Work] = {}
    for variant in variants:
        works[variant, "many"] = _training(dataset, algo, config, variant, _steps(steps, variant) + 1)
        works[variant, "one"] = _training(dataset, algo, config, variant, 1)
    if algo in REFERENCES:
        reference = REFERENCES[algo](dataset, config)
        works["reference"] = lambda: [reference.step() for _ in range(steps)]
    for precision in {variant.precision for variant in variants}:
        works |= _products(products, precision)
    seconds = shortest(works, rounds)
    per_step = {
        variant: (seconds[variant, "many"] - seconds[variant, "one"]) / _steps(steps, variant) for variant in variants
    }
    return _rows(algo, per_step, seconds, products, seconds["reference"] / steps if algo in REFERENCES else None)


def _rows(
    algo: str,
    per_step: Mapping[Variant, float],
    seconds: Mapping[Any, float],
    products: Products,
    reference: float | None,
) -> list[Row]:
    found: list[Row] = []
    for variant, step in per_step.items():
        name = f"{algo}, {variant.name}"
        bound = _bound(products, seconds, variant.precision)
        share = bound * variant.num_seeds / step
        found.append(Row(name, variant.num_seeds / step, "steps/s", "its products alone", share))
        if variant.num_seeds > 1:
            one = per_step[replace(variant, num_seeds=1)]
            found.append(Row(f"  {name}: time", step / one, "x", "one seed", step / one))
        elif variant != (plain := Variant("float32")):
            found.append(Row(f"  {name}: speed", per_step[plain] / step, "x", "float32", per_step[plain] / step))
        if reference is not None and variant.num_seeds == 1:
            found.append(Row(f"  {name}: speed", reference / step, "x", "reference", reference / step))
    if reference is not None:
        bound = _bound(products, seconds, "float32")
        found.append(Row(f"{algo}, reference", 1 / reference, "steps/s", "products", bound / reference))
    return found


def shortest(works: Mapping[Any, Work], rounds: int) -> dict[Any, float]:
    """Shortest processor time of each work, after one warm-up: all of them in turn, ``rounds`` times."""
    best: dict[Any, float] = {}
    for number in range(rounds + 1):
        for name, work in works.items():
            started = time.process_time()
            work()
            spent = time.process_time() - started
            if number:
                best[name] = min(spent, best.get(name, spent))
    return best


def _variants(config: AlgorithmConfig) -> list[Variant]:
    """float32 first; bf16 where the algorithm can and the machine multiplies it."""
    has_bf16 = hasattr(config, "precision") and uses_bf16("auto", torch.device("cpu"))
    found = [Variant(precision, seeds) for precision in ("float32", "bf16")[: 1 + has_bf16] for seeds in (1, NUM_SEEDS)]
    if _has_compiler():
        found.append(Variant("float32", compiled=True))
    return found


def _has_compiler() -> bool:
    return any(shutil.which(name) for name in ("g++", "clang++", "c++"))


def _steps(steps: int, variant: Variant) -> int:
    return steps // variant.num_seeds


def _training(dataset: EpisodeDataset, algo: str, config: Any, variant: Variant, steps: int) -> Work:
    precision = {"precision": variant.precision} if hasattr(config, "precision") else {}
    config = replace(config, train_steps=steps, **precision)
    data = build_data(dataset, DataSpec(kind=find_algorithm(algo).kind, device="cpu"))

    def train() -> None:
        with _compiled(algo) if variant.compiled else _as_it_is():
            train_policies(data, algo, config, "1:0", range(variant.num_seeds))

    return train


def _products(products: Products, precision: str) -> dict[Any, Work]:
    """One work per shape, named by it and the precision."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return {(shape, precision): shape.work(dtype) for shape in products}


def _bound(products: Products, seconds: Mapping[Any, float], precision: str) -> float:
    """Seconds of one step's products."""
    return sum(count * seconds[shape, precision] / shape.repeats for shape, count in products.items()) / STEPS


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield


@contextmanager
def _compiled(algo: str) -> Iterator[None]:
    """The networks of ``algo`` go through ``torch.compile``."""
    original = ALGORITHMS[algo]

    def create(nets: Mapping[str, nn.Module], config: Any) -> Any:
        state = original.create(nets, config)
        for part in state.parts().values():
            if isinstance(part, nn.Module):
                part.compile()
        return state

    ALGORITHMS[algo] = replace(original, create=create)
    try:
        yield
    finally:
        ALGORITHMS[algo] = original
