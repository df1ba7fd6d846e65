"""Rows of ``raystitch bench chaos``: every fault is done several times; what was lost, and how long recovery took."""

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from raystitch.bench.chaos.augment_faults import AUGMENT_FAULTS, run_augment_fault
from raystitch.bench.chaos.augment_target import AugmentFault, make_augment_target
from raystitch.bench.chaos.sweep_faults import SWEEP_FAULTS, run_sweep_fault
from raystitch.bench.chaos.sweep_target import SweepFault, make_sweep_target
from raystitch.bench.machine import Limits, Row
from raystitch.bench.synthetic import BenchOptions
from raystitch.buffer.opening import open_buffer
from raystitch.console import say, table
from raystitch.errors import RunError

Fault = TypeVar("Fault", AugmentFault, SweepFault)

ROUNDS = 3
NUM_SHARDS = 40
"""About the number of shards of a run; a fault hits it after the first few."""


def rows(limits: Limits, options: BenchOptions) -> list[Row]:
    """The worst of several rounds of each fault; the tables of all rounds go to stderr."""
    os.environ.setdefault("RAY_worker_niceness", "0")  # otherwise other work on this machine starves actors and trials
    return augment_rows(ROUNDS) + sweep_rows(ROUNDS)


def augment_rows(rounds: int) -> list[Row]:
    """The faults of ``augment``.

    Raises:
        RunError: when ids were lost, doubled or changed, naming the faults.
    """
    with tempfile.TemporaryDirectory(prefix="raystitch-chaos-") as name:
        folder = Path(name)
        target = make_augment_target(folder, num_shards=NUM_SHARDS)
        say(f"undisturbed: {open_buffer(target.undisturbed).meta.complete}")

        def run(fault: str) -> AugmentFault:
            return run_augment_fault(fault, folder / "disturbed", target)

        def say_result(result: AugmentFault) -> str:
            counts = f"{result.lost} lost, {result.doubled} doubled, {result.changed} changed"
            return f"{result.what_happened}; of {result.ids} ids {counts}"

        results = _several_rounds(AUGMENT_FAULTS, rounds, run, say_result)
    say(augment_table(results))
    _refuse(results, "the undisturbed buffer")
    counts: dict[str, Callable[[AugmentFault], int]] = {
        "lost": lambda r: r.lost + r.changed,
        "doubled": lambda r: r.doubled,
    }
    return _fault_rows(AUGMENT_FAULTS, results, "ids", counts)


def sweep_rows(rounds: int) -> list[Row]:
    """The faults of ``sweep``.

    Raises:
        RunError: when trials were repeated, lost, doubled or changed, naming the faults.
    """
    with tempfile.TemporaryDirectory(prefix="raystitch-chaos-") as name:
        target = make_sweep_target(Path(name))

        def run(fault: str) -> SweepFault:
            result = run_sweep_fault(fault, Path(name) / "disturbed", target)
            return replace(result, what_happened=result.what_happened.replace(f"{name}/", ""))

        def say_result(result: SweepFault) -> str:
            counts = (
                f"{result.repeated} repeated, {result.lost} lost, {result.doubled} doubled, {result.changed} changed"
            )
            return f"{result.what_happened}; of {result.trials} trials {counts}"

        results = _several_rounds(SWEEP_FAULTS, rounds, run, say_result)
    say(sweep_table(results))
    _refuse(results, "the undisturbed result")
    counts: dict[str, Callable[[SweepFault], int]] = {
        "lost or changed": lambda r: r.lost + r.changed,
        "repeated or doubled": lambda r: r.repeated + r.doubled,
    }
    return _fault_rows(SWEEP_FAULTS, results, "trials", counts)


def augment_table(results: Sequence[AugmentFault]) -> str:
    """A table with one line per fault done to ``augment``."""
    return table(
        ["fault", "what happened", "ids", "lost", "doubled", "changed", "seconds to recover"],
        [
            [r.fault, r.what_happened, r.ids, r.lost, r.doubled, r.changed, _rounded(r.seconds_to_recover)]
            for r in results
        ],
    )


def sweep_table(results: Sequence[SweepFault]) -> str:
    """A table with one line per fault done to ``sweep``."""
    return table(
        ["fault", "what happened", "trials", "repeated", "lost", "doubled", "changed", "seconds to recover"],
        [
            [
                *(r.fault, r.what_happened, r.trials, r.repeated, r.lost, r.doubled, r.changed),
                _rounded(r.seconds_to_recover),
            ]
            for r in results
        ],
    )


def _several_rounds(
    faults: Iterable[str], rounds: int, run: Callable[[str], Fault], describe: Callable[[Fault], str]
) -> list[Fault]:
    """Do every fault ``rounds`` times, or once where it is impossible; say each result."""
    results: list[Fault] = []
    for fault in faults:
        for number in range(rounds):
            result = run(fault)
            say(f"{fault} {number + 1}/{rounds}: {describe(result)}")
            results.append(result)
            if result.impossible:
                break
    return results


def _refuse(results: Sequence[AugmentFault | SweepFault], expected: str) -> None:
    """Raise RunError naming the faults that did not leave what was expected."""
    bad = {result.fault for result in results if not (result.survived or result.impossible)}
    if bad:
        raise RunError(f"these faults did not leave {expected}: {', '.join(sorted(bad))}")


def _fault_rows(
    faults: Iterable[str], results: Sequence[Fault], unit: str, counts: Mapping[str, Callable[[Fault], int]]
) -> list[Row]:
    """The sums of every fault's ``counts`` over its rounds, and its longest recovery; none where it was impossible."""
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


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)
