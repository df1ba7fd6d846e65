"""Parts ``engine``, ``compiled`` and ``trainers``: how fast the engine and the trainers are, and why."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from raystitch.bench.machine import Row
from raystitch.bench.products import STEPS, products_of
from raystitch.bench.stages import STAGES, stage_seconds
from raystitch.models.bundle import Bundle
from raystitch.models.denoise import Denoiser
from raystitch.stitching.config import StitchConfig
from raystitch.stitching.pairs import SourceIndex
from raystitch.stitching.stitcher import Stitcher
from raystitch.trainers import loop
from raystitch.trainers.config import ALGORITHM_CONFIGS
from raystitch.trainers.loop import train_policies
from tests.gpu.parts_correct import data_for, reduced
from tests.gpu.peaks import data_sheet, measured_peaks, set_precision
from tests.gpu.record import Task
from tests.gpu.world import true_bridges


def settings(precision: str, pairs: int, compile: str = "off") -> StitchConfig:
    """The default settings in one precision, all pairs in one batch."""
    config, named = StitchConfig(), "bf16" if precision == "bf16" else "float32"
    sampler = replace(config.sampler, precision=named, compile=compile, micro_batch=pairs)  # pyright: ignore
    # A target may be entered as often as there are pairs: the data are few.
    return replace(config, sampler=sampler, pairs=replace(config.pairs, max_target_reuse=0))


def engine(task: Task) -> None:
    """Candidates, accepted and true bridges per second by batch size and precision; the networks next to the peak."""
    bundle, dataset = task.bundle(), task.dataset()
    peaks = measured_peaks(task)
    for precision in task.precisions:
        set_precision(precision)
        index = SourceIndex(dataset, bundle, settings(precision, 1))
        for count in task.sizes.pairs:
            with task.record.section(f"{count} pairs, {precision}"):
                stitched(task, bundle, index, precision, count)
        with task.record.section(f"networks, {precision}"):
            network_shares(task, bundle, precision, peaks[precision])
    set_precision("float32")


def stitched(task: Task, bundle: Bundle, index: SourceIndex, precision: str, count: int) -> None:
    """Stitch ``count`` pairs a few times and write the fastest."""
    stitcher, seeds = Stitcher(bundle, settings(precision, count)), np.arange(count)
    runs = [stage_seconds(stitcher, index, seeds) for _ in range(task.sizes.repeats + 1)][1:]
    candidates, seconds = min(runs, key=lambda run: run[1]["whole"])
    accepted = candidates.take(candidates.accepted)
    _, first = np.unique(accepted.first_row, return_index=True)
    counted = accepted.take(first)
    true = int(true_bridges(counted, bundle.normalizer).sum())
    whole, name = seconds["whole"], f"{count} pairs, {precision}"
    task.record.number(f"{name}: candidates", count / whole, "candidates/s")
    without = whole - seconds["select"]
    task.record.number(f"{name}: candidates, selection left out", count / without, "candidates/s")
    task.record.row(Row(f"{name}: accepted", len(counted) / whole, "bridges/s", "candidates", len(counted) / count))
    task.record.row(Row(f"{name}: true", true / whole, "bridges/s", "candidates", true / count))
    for stage in STAGES:
        task.record.row(Row(f"{name}: {stage}", seconds[stage] * 1e3, "ms", "all stages", seconds[stage] / whole))
    if task.is_cuda:
        task.record.number(f"{name}: largest memory", torch.cuda.max_memory_allocated() / 2**30, "GiB")
        torch.cuda.reset_peak_memory_stats()


def windows(bundle: Bundle, count: int) -> tuple[torch.Tensor, ...]:
    """Noisy and known windows, mask and diffusion step for a call of the denoiser."""
    shape = (count, bundle.horizon, bundle.obs_dim)
    noisy, known = torch.randn(2, *shape, device=bundle.device)
    mask = torch.zeros(shape[:2], device=bundle.device)
    mask[:, :2] = mask[:, 14:] = 1
    return noisy, known, mask, torch.full((count,), bundle.schedule.num_steps // 2, device=bundle.device)


def network_shares(task: Task, bundle: Bundle, precision: str, peak: float) -> None:
    """The speed of the U-Net and of the dynamics at the largest batch, next to the measured matrix product."""
    count = task.sizes.pairs[-1]
    bf16 = precision == "bf16"
    denoise = bundle.denoiser(precision="bf16" if bf16 else "float32", compile="off")
    inputs = windows(bundle, count)
    obs = torch.randn(15 * count, bundle.obs_dim, device=bundle.device)
    act = torch.rand(15 * count, bundle.act_dim, device=bundle.device)

    def dynamics() -> None:
        with torch.autocast(bundle.device.type, torch.bfloat16, enabled=bf16):
            bundle.dynamics.member_next(obs, act)

    works: dict[str, Callable[[], Any]] = {"U-Net": lambda: denoise(*inputs), "dynamics": dynamics}
    for name, work in works.items():
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            work()
        with torch.inference_mode():
            tflops = counter.get_total_flops() / task.seconds(work) / 1e12
        task.record.row(Row(f"{name}, {count} rows, {precision}", tflops, "TFLOP/s", "measured product", tflops / peak))
        known = data_sheet(precision)
        if known is not None:
            task.record.row(Row(f"{name}, {count} rows, {precision}", tflops, "TFLOP/s", "data sheet", tflops / known))


def compiled(task: Task) -> None:
    """A call of the network as it is, compiled and as a CUDA graph; the engine when it compiles by itself."""
    bundle = task.bundle()
    for count in task.sizes.pairs:
        inputs = windows(bundle, count)
        for precision in ("float32", "bf16"):
            bf16 = precision == "bf16"
            plain = replace(bundle.denoiser(precision="float32", compile="off"), bf16=bf16)
            what = f"U-Net, {count} windows, {precision}"
            with task.record.section(what), torch.inference_mode():
                before = task.seconds(partial(plain, *inputs))
                task.record.number(f"{what}: as it is", before * 1e3, "ms")
                graph = captured(task, plain, inputs)
                if graph is not None:
                    after = task.seconds(graph)
                    task.record.row(Row(f"{what}: as a CUDA graph", after * 1e3, "ms", "as it is", after / before))
    modes: tuple[dict[str, Any], ...] = ({"backend": "eager"},)
    if task.is_cuda:
        modes = ({}, {"mode": "reduce-overhead"})
    for mode in modes:
        with task.record.section(f"compiled {mode}"):
            torch._dynamo.reset()
            call_compiled(task, bundle, mode)
    if task.is_cuda:
        with task.record.section("the engine, compiled"):
            engine_compiled(task, bundle)


def captured(task: Task, denoise: Denoiser, inputs: tuple[torch.Tensor, ...]) -> Callable[[], None] | None:
    """Capture a call as a CUDA graph; None on a CPU."""
    if not task.is_cuda:
        task.record.skip("CUDA graph", "there is no CUDA here")
        return None
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            denoise(*inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        denoise(*inputs)
    return graph.replay


def call_compiled(task: Task, bundle: Bundle, mode: dict[str, Any]) -> None:
    """Compile the network once and call it with every batch size, in bf16 where that is the default."""
    plain = bundle.denoiser(compile="off")
    network = torch.compile(bundle.diffusion, **mode)
    denoise = replace(plain, network=network)
    for count in task.sizes.pairs:
        inputs = windows(bundle, count)
        started = time.perf_counter()
        denoise(*inputs)
        task.wait()
        first = time.perf_counter() - started
        before = task.seconds(partial(plain, *inputs))
        after = task.seconds(partial(denoise, *inputs))
        what = f"U-Net, {count} windows, compiled {mode}"
        task.record.number(f"{what}: first call", first, "s")
        task.record.row(Row(what, after * 1e3, "ms", "as it is", after / before))


def engine_compiled(task: Task, bundle: Bundle) -> None:
    """The whole engine with ``sampler.compile: on``, its first call included: repairs have any number of rows."""
    index = SourceIndex(task.dataset(), bundle, settings("bf16", 1))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for count in task.sizes.pairs[1:4]:
        stitcher, seeds = Stitcher(bundle, settings("bf16", count, "on")), np.arange(count)
        started = time.perf_counter()
        stage_seconds(stitcher, index, seeds)
        task.record.number(f"{count} pairs, bf16, compiled: first time", time.perf_counter() - started, "s")
        seconds = min(stage_seconds(stitcher, index, seeds)[1]["whole"] for _ in range(task.sizes.repeats))
        task.record.number(f"{count} pairs, bf16, compiled: candidates", count / seconds, "candidates/s")
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    task.record.check("graphs compiled for all numbers of rows", graphs, 3)


def trainers(task: Task) -> None:
    """Milliseconds of a training step of one, five and twenty seeds side by side."""
    set_precision("float32")
    for algo in ("td3bc", "dt", "iql"):
        config = reduced(task, ALGORITHM_CONFIGS[algo]())
        data = data_for(task, algo, task.device)
        for precision in task.precisions:
            set_precision(precision)
            one = 0.0
            for seeds in task.sizes.stacked:
                what = f"{algo}, {seeds} seeds, {precision}"
                with task.record.section(what):
                    named = "bf16" if precision == "bf16" else "float32"
                    seconds = training_step(task, data, algo, replace(config, precision=named), seeds)
                    one = seconds if seeds == 1 else one
                    ratio = seconds / one if one else None
                    task.record.row(Row(f"{what}: a step of all", seconds * 1e3, "ms", "one seed", ratio))
                    flops = sum(n * shape.flops for shape, n in products_of(config, data.obs_dim, data.act_dim).items())
                    tflops = seeds * flops / STEPS / seconds / 1e12
                    known = data_sheet(precision)
                    share = None if known is None else tflops / known
                    task.record.row(Row(f"{what}: products", tflops, "TFLOP/s", "data sheet" if known else None, share))
    set_precision("float32")


def training_step(task: Task, data: Any, algo: str, config: Any, seeds: int) -> float:
    """Return the seconds of a step of all seeds, by the loop's own clock between its first and its last report.

    The loop fetches the losses before it looks at the clock, so all work is done by then.
    """
    marks: dict[int, float] = {}

    def log(index: int, row: dict[str, Any]) -> None:
        if index == 0:
            marks[row["step"]] = row["seconds"]

    report = task.sizes.log_every
    with mock.patch.object(loop, "LOG_EVERY", report):
        train_policies(data, algo, replace(config, train_steps=4 * report), "1:1", range(seeds), log=log)
    return max(marks[4 * report] - marks[report], 1e-9) * seeds / (3 * report)
