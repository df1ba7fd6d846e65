"""Faults done to ``augment``, several times each: what happened, what was lost, how long it took to go on."""

import os
import tempfile
from pathlib import Path

from raystitch.bench.chaos_sweep import sweep_rows
from raystitch.bench.machine import Limits, Row
from raystitch.bench.subject import BenchOptions
from raystitch.bench.synthetic import make_walks, tiny_fit
from raystitch.buffer.reader import open_buffer
from raystitch.cluster.chaos import FAULTS, run_fault
from raystitch.cluster.chaos_run import FaultResult, Target
from raystitch.console import say, table
from raystitch.data.d4rl import write_d4rl
from raystitch.errors import RunError
from raystitch.models.bundle import Bundle
from raystitch.models.fit import fit_bundle
from raystitch.pipeline.augment import augment_local
from raystitch.stitching.config import GuidanceConfig, QualifyConfig, SamplerConfig, StitchConfig

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
    bad = {result.fault for result in results if not (result.survived or result.impossible)}
    if bad:
        raise RunError(f"these faults did not leave the undisturbed buffer: {', '.join(sorted(bad))}")
    found = [row for fault in FAULTS for row in _fault_rows(fault, [r for r in results if r.fault == fault])]
    return found + sweep_rows(ROUNDS)


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


def _fault_rows(fault: str, results: list[FaultResult]) -> list[Row]:
    tried = [result for result in results if not result.impossible]
    if not tried:
        return []
    seconds = [r.seconds_to_recover for r in tried if r.seconds_to_recover is not None]
    found = [
        Row(f"{fault}: times done", len(tried), "runs"),
        Row(f"{fault}: ids lost", sum(r.lost + r.changed for r in tried), "ids"),
        Row(f"{fault}: ids doubled", sum(r.doubled for r in tried), "ids"),
    ]
    return found + ([Row(f"{fault}: longest recovery", max(seconds), "s")] if seconds else [])
