"""Parts ``machine`` and ``fit``: the limits of the GPU; the time of a training step of every model, and of a fit."""

import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from raystitch.bench.machine import Row, describe_machine
from raystitch.bench.synthetic import tiny_fit
from raystitch.data.select import holdout_split
from raystitch.device import uses_bf16
from raystitch.models.config import PARTS, FitConfig
from raystitch.models.fit import fit_bundle
from raystitch.models.loop import FitPart, train_part
from raystitch.models.parts import FitJob
from raystitch.seeding import derive_seed
from tests.gpu.peaks import data_sheet, measured_peaks
from tests.gpu.record import Task


def machine(task: Task) -> None:
    """Describe the machine and measure its limits."""
    task.record.line("machine", "this machine", **describe_machine(), device=str(task.device), cuda=torch.version.cuda)
    for precision, tflops in measured_peaks(task).items():
        known = data_sheet(precision)
        share = None if known is None else tflops / known
        what = f"matrix product {task.sizes.matmul}, {precision}"
        task.record.row(Row(what, tflops, "TFLOP/s", f"data sheet, {known} TFLOP/s" if known else None, share))
    with task.record.section("copies"):
        host = torch.empty(64 << 20, dtype=torch.uint8)
        for name, source in (("pageable", host), ("pinned", host.pin_memory() if task.is_cuda else host)):
            seconds = task.seconds(lambda source=source: source.to(task.device, copy=True))
            task.record.number(f"copy to the device, {name} memory", len(host) / seconds / 1e9, "GB/s")


def shortened(config: FitConfig, share: float) -> FitConfig:
    """The settings with this share of every model's training steps."""
    few: dict[str, Any] = {}
    for name in PARTS:
        part = getattr(config, name)
        few[name] = replace(part, train_steps=max(2, round(part.train_steps * share)))
    return replace(config, **few)


def fit(task: Task) -> None:
    """Time a step of every model's training, then fit all of them for the parts that follow."""
    dataset, config = task.dataset(), tiny_fit() if task.sizes.small_networks else FitConfig()
    train, _ = holdout_split(dataset.num_episodes, config.holdout_fraction, derive_seed(config.seed, "holdout"))
    for precision in ("float32", "bf16"):
        with task.record.section(f"training steps, {precision}"):
            whole = 0.0
            for part in FitJob(dataset, config, train, task.device).parts():
                seconds = step_seconds(task, part, precision == "bf16")
                whole += seconds * part.train_steps
                task.record.number(f"{part.name}: a training step, {precision}", seconds * 1e3, "ms")
            task.record.number(f"whole fit, calculated from the steps, {precision}", whole, "s")
    with task.record.section("fit"):
        started = time.perf_counter()
        bundle = fit_bundle(dataset, shortened(config, task.sizes.fit_share), device=str(task.device))
        task.record.number(f"fit of {task.sizes.fit_share:g} of the default steps", time.perf_counter() - started, "s")
        automatic = "bf16" if uses_bf16("auto", task.device) else "float32"
        task.record.line("note", f"precision auto is {automatic} here")
        task.save_bundle(replace(bundle, device=torch.device("cpu")))


def step_seconds(task: Task, part: FitPart, bf16: bool) -> float:
    """Return the mean seconds of a training step, by the clock of the second half of some steps."""
    steps = min(part.train_steps, task.sizes.timed_steps)
    marks: dict[int, float] = {}

    def watched(step: int, generator: torch.Generator) -> Tensor:
        if step in (steps // 2, steps - 1):
            task.wait()
            marks[step] = time.perf_counter()
        return part.loss(step, generator)

    train_part(
        replace(part, train_steps=steps, loss=watched),
        seed=0,
        checkpoint=None,
        checkpoint_every=10**9,
        progress=None,
        bf16=bf16,
    )
    return (marks[steps - 1] - marks[steps // 2]) / max(steps - 1 - steps // 2, 1)
