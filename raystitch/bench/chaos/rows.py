"""Faults done to ``augment`` and ``sweep``, several times each: what was lost, how long it took to go on."""

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from raystitch.bench.chaos.augment_faults import FAULTS, run_fault
from raystitch.bench.chaos.sweep_faults import SWEEP_FAULTS, SweepFault, SweepTarget, run_sweep_fault, undisturbed_run
from raystitch.bench.chaos.target import FaultResult, Target
from raystitch.bench.machine import Limits, Row
from raystitch.bench.synthetic import BenchOptions, make_walks, tiny_fit
from raystitch.buffer.reader import open_buffer
from raystitch.config import load_run_config
from raystitch.console import say, table
from raystitch.data.d4rl import write_d4rl
from raystitch.data.demo import make_pointmaze
from raystitch.data.load import load_dataset
from raystitch.errors import RunError
from raystitch.models.bundle import Bundle
from raystitch.models.fit import fit_bundle
from raystitch.pipeline.generate.augment import augment_local
from raystitch.stitching.config import GuidanceConfig, QualifyConfig, SamplerConfig, StitchConfig

Result = TypeVar("Result", FaultResult, SweepFault)

ROUNDS = 3
NUM_SHARDS = 40
"""Of a run, about; a fault meets it after the first few."""


def make_target(folder: Path, *, num_shards: int, pairs_per_shard: int = 256, address: str | None = None) -> Target:
    """Random walks, small networks fitted for a moment, and the undisturbed buffer, under ``folder``.

    Nearly every candidate is accepted, so about ``num_shards`` shards are made; what takes time is sampling in many
    steps.
    """
    dataset = make_walks(4000)
    write_d4rl(dataset, folder / "walks.hdf5")
    fit_bundle(dataset, tiny_fit(), folder / "stitcher", device="cpu")
    stitch = StitchConfig(
        sampler=SamplerConfig(num_steps=20, precision="float32"),
        guidance=GuidanceConfig(schedule="off"),
        qualify=QualifyConfig(delta="q90", termination_max=None, value_check=False),
    )
    target = Target(
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


def rows(limits: Limits, options: BenchOptions) -> list[Row]:
    """The worst of several rounds of each fault; the table of all of them goes to stderr.

    Raises:
        RunError: when ids were lost, doubled or changed, naming the faults.
    """
    os.environ.setdefault("RAY_worker_niceness", "0")  # else whatever else runs here starves the actors
    results: list[FaultResult] = []
    with tempfile.TemporaryDirectory(prefix="raystitch-chaos-") as name:
        folder = Path(name)
        target = make_target(folder, num_shards=NUM_SHARDS)
        say(f"undisturbed: {open_buffer(target.undisturbed).meta.complete}")
        for fault in FAULTS:
            for number in range(ROUNDS):
                result = run_fault(fault, folder / "disturbed", target)
                say(f"{fault} {number + 1}/{ROUNDS}: {result.what_happened}; {_counts(result)}")
                results.append(result)
                if result.impossible:
                    break
    say(chaos_table(results))
    _refuse(results, "the undisturbed buffer")
    counts: dict[str, Callable[[FaultResult], int]] = {
        "lost": lambda r: r.lost + r.changed,
        "doubled": lambda r: r.doubled,
    }
    return _fault_rows(FAULTS, results, "ids", counts) + sweep_rows(ROUNDS)


def chaos_table(results: list[FaultResult]) -> str:
    """One line per fault done."""
    return table(
        ["fault", "what happened", "ids", "lost", "doubled", "changed", "seconds to recover"],
        [
            [r.fault, r.what_happened, r.ids, r.lost, r.doubled, r.changed, _rounded(r.seconds_to_recover)]
            for r in results
        ],
    )


def _counts(result: FaultResult) -> str:
    return f"of {result.ids} ids {result.lost} lost, {result.doubled} doubled, {result.changed} changed"


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


def _refuse(results: Sequence[FaultResult | SweepFault], expected: str) -> None:
    """Raise RunError naming the faults that did not leave what was expected."""
    bad = {result.fault for result in results if not (result.survived or result.impossible)}
    if bad:
        raise RunError(f"these faults did not leave {expected}: {', '.join(sorted(bad))}")


def _fault_rows(
    faults: Iterable[str], results: Sequence[Result], unit: str, counts: Mapping[str, Callable[[Result], int]]
) -> list[Row]:
    """The sums of every fault's ``counts`` over its rounds and its longest recovery; none where it was impossible."""
    rows: list[Row] = []
    for fault in faults:
        tried = [result for result in results if result.fault == fault and not result.impossible]
        if not tried:
            continue
        rows.append(Row(f"{fault}: times done", len(tried), "runs"))
        rows += [Row(f"{fault}: {unit} {name}", sum(map(count, tried)), unit) for name, count in counts.items()]
        seconds = [result.seconds_to_recover for result in tried if result.seconds_to_recover is not None]
        rows += [Row(f"{fault}: longest recovery", max(seconds), "s")] if seconds else []
    return rows


TRAIN_STEPS = 4000
LONG_STEPS = 450
"""Of a trial with networks so large that it lasts until it writes a checkpoint, which it does after 30 s."""
LONG_HIDDEN = 512


def make_sweep_target(folder: Path, *, train_steps: int = TRAIN_STEPS, long_steps: int = LONG_STEPS) -> SweepTarget:
    """A small maze, a stitcher and a buffer of it, and the runs that nothing disturbs, under ``folder``.

    Args:
        long_steps: of the trial that lasts until a checkpoint; 0 leaves its undisturbed run out.
    """
    write_d4rl(make_pointmaze(num_steps=2000, seed=0), folder / "maze.hdf5")
    cells = "{algo: td3bc, data: original}, {algo: td3bc, data: stitched, delta: ['off']}, {algo: bc, data: original}"
    settings = (
        f"dataset=d4rl:{folder / 'maze.hdf5'}",
        f"grid=[{cells}]",
        "headline=null",
        "seeds=[0, 1]",
        f"algorithms.td3bc={{train_steps: {train_steps}, batch_size: 32, hidden: 16}}",
        f"algorithms.bc={{train_steps: {train_steps}, batch_size: 32, hidden: 16}}",
        "evaluation={num_episodes: 4, num_envs: 4}",
        "validation.enabled=false",
        "resources={stacked_seeds: 1, num_retries: 1}",
    )
    large = f"{{train_steps: {long_steps}, batch_size: 256, hidden: {LONG_HIDDEN}}}"
    target = SweepTarget(
        prepared=folder / "prepared",
        undisturbed=folder / "undisturbed",
        settings=settings,
        long_settings=("grid=[{algo: td3bc, data: original}]", "seeds=[0]", f"algorithms.td3bc={large}"),
        long_undisturbed=folder / "long",
    )
    config = load_run_config("smoke", list(settings))
    dataset = load_dataset(config.dataset)
    bundle = fit_bundle(dataset, config.fit, target.prepared / "stitcher", device="cpu")
    out = target.prepared / "buffer"
    augment_local(dataset, bundle, config.stitch, config.augment, out=out, seed=config.seed)
    undisturbed_run(target, target.undisturbed)
    if long_steps:
        undisturbed_run(target, target.long_undisturbed, long=True)
    return target


def sweep_rows(rounds: int) -> list[Row]:
    """The worst of several rounds of each fault; the table of all of them goes to stderr.

    Raises:
        RunError: when trials were repeated, lost, doubled or changed, naming the faults.
    """
    os.environ.setdefault("RAY_worker_niceness", "0")  # otherwise other work on this machine starves the trials
    results: list[SweepFault] = []
    with tempfile.TemporaryDirectory(prefix="raystitch-chaos-") as name:
        target = make_sweep_target(Path(name))
        for fault in SWEEP_FAULTS:
            for number in range(rounds):
                result = run_sweep_fault(fault, Path(name) / "disturbed", target)
                result = replace(result, what_happened=result.what_happened.replace(f"{name}/", ""))
                say(f"{fault} {number + 1}/{rounds}: {result.what_happened}")
                results.append(result)
                if result.impossible:
                    break
    say(sweep_chaos_table(results))
    _refuse(results, "the undisturbed result")
    counts: dict[str, Callable[[SweepFault], int]] = {
        "lost or changed": lambda r: r.lost + r.changed,
        "repeated or doubled": lambda r: r.repeated + r.doubled,
    }
    return _fault_rows(SWEEP_FAULTS, results, "trials", counts)


def sweep_chaos_table(results: Sequence[SweepFault]) -> str:
    """One line per fault done."""
    return table(
        ["fault", "what happened", "trials", "repeated", "lost", "doubled", "changed", "seconds to recover"],
        [
            [
                *(r.fault, r.what_happened, r.trials, r.repeated, r.lost, r.doubled, r.changed),
                None if r.seconds_to_recover is None else round(r.seconds_to_recover, 1),
            ]
            for r in results
        ],
    )
