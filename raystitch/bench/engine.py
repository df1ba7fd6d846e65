"""``bench engine``: the speed of presets in one process, next to the published sampler, stage by stage."""

import statistics
import time
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from raystitch.bench.machine import Limits, Row, peak_memory_mib
from raystitch.bench.networks import network_rows
from raystitch.bench.published import PublishedSampler, num_parameters
from raystitch.bench.stages import STAGES, stage_seconds
from raystitch.bench.synthetic import BenchOptions, Subject, find_subject
from raystitch.bench.truth import truth_rows
from raystitch.data.episodes import Ints
from raystitch.envs.simulator import Simulator, Unavailable
from raystitch.pipeline.validate.simulated import open_for
from raystitch.presets import PRESETS
from raystitch.stitching.candidates import Candidates
from raystitch.stitching.config import StitchConfig
from raystitch.stitching.pairs import SourceIndex
from raystitch.stitching.stitcher import Stitcher

CONTENDERS = ("fast", "balanced")
ROUNDS = 3
PUBLISHED = "published sampler"


@dataclass(eq=False)
class Contender:
    """Generation by one preset on the subject; ``run`` adds to ``times`` the seconds of every stage and ``whole``."""

    name: str
    about: str
    stitcher: Stitcher
    index: SourceIndex
    seeds: Ints
    candidates: Candidates
    times: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def run(self) -> None:
        """Generate all pairs once."""
        for stage, seconds in stage_seconds(self.stitcher, self.index, self.seeds)[1].items():
            self.times[stage].append(seconds)

    @property
    def per_second(self) -> float:
        return len(self.seeds) / statistics.median(self.times["whole"])

    @property
    def counted(self) -> Candidates:
        """The first accepted attempt of every pair that has one."""
        accepted = np.flatnonzero(self.candidates.accepted)
        _, first = np.unique(self.candidates.first_row[accepted], return_index=True)  # attempts are in order
        return self.candidates.take(accepted[first])


def rows(limits: Limits, options: BenchOptions) -> list[Row]:
    """Rows in candidates per second; ratios are to the published sampler and to peaks, measured in turn."""
    subject = find_subject(options)
    found = [
        Row("matmul float32", limits.matmul_gflops, "GFLOP/s"),
        Row("matmul bf16", limits.matmul_bf16_gflops, "GFLOP/s", "matmul float32", _bf16_gain(limits)),
        Row("memcpy", limits.memcpy_gbytes_per_s, "GB/s"),
        _index_row(subject),
    ]
    contenders = [_contender(name, subject, options.num_pairs) for name in CONTENDERS]
    found.append(Row("peak resident memory, presets only", peak_memory_mib(), "MiB"))
    published = PublishedSampler.of(subject.dataset, subject.bundle)
    found += network_rows(subject.bundle, published.bundle, 2 * published.num_pairs)
    published_times: list[float] = []
    for _ in range(ROUNDS):
        published_times.append(published.seconds())
        for contender in contenders:
            contender.run()
    published_per_second = published.num_pairs / statistics.median(published_times)
    found += _published_rows(published, published_per_second)
    simulator = _simulator(subject)
    for contender in contenders:
        found += _contender_rows(contender, subject, published_per_second, simulator)
    if simulator is not None:
        simulator.close()
    found.append(Row("peak resident memory, published sampler too", peak_memory_mib(), "MiB"))
    return found


def _bf16_gain(limits: Limits) -> float:
    return limits.matmul_bf16_gflops / limits.matmul_gflops


def _index_row(subject: Subject) -> Row:
    started = time.perf_counter()
    index = SourceIndex(subject.dataset, subject.bundle, StitchConfig())
    index.select(np.zeros(1, np.int64))  # the search tree and the returns are made when first asked for
    what = f"SourceIndex and its first pair; {subject.dataset.num_transitions} transitions"
    return Row(what, time.perf_counter() - started, "s")


def _contender(name: str, subject: Subject, num_pairs: int) -> Contender:
    """Make a contender and run it once, which warms everything up and shows how many candidates are accepted."""
    preset = PRESETS[name]
    stitcher = Stitcher(subject.bundle, preset.stitch)
    index = SourceIndex(subject.dataset, subject.bundle, preset.stitch)
    seeds = np.arange(num_pairs, dtype=np.int64)
    fitted_so = subject.bundle.config == preset.fit
    about = subject.about if fitted_so else f"its stitch settings; {subject.about}, is not fitted by this preset"
    return Contender(name, about, stitcher, index, seeds, stage_seconds(stitcher, index, seeds)[0])


def _published_rows(published: PublishedSampler, per_second: float) -> list[Row]:
    sampler = PRESETS["diffstitch"].stitch.sampler
    what = (
        f"{PUBLISHED}: {published.num_pairs} pairs, step estimation and stitching with and without return, "
        f"{published.timed_steps} of {sampler.num_steps} steps timed and scaled"
    )
    return [
        Row(f"{PUBLISHED}: untrained network", num_parameters(published.bundle), "parameters"),
        Row(what, per_second, "candidates/s"),
        Row(f"{PUBLISHED}: one stitch", 1 / per_second, "s"),
    ]


def _simulator(subject: Subject) -> Simulator | None:
    try:
        return open_for(subject.dataset)
    except Unavailable:
        return None


def _contender_rows(
    contender: Contender, subject: Subject, published_per_second: float, simulator: Simulator | None
) -> list[Row]:
    name, rate, num_pairs = contender.name, contender.per_second, len(contender.seeds)
    counted = contender.counted
    accepted_share = len(counted) / num_pairs
    first = float((counted.attempt == 0).sum()) / num_pairs
    found = [
        Row(f"{name}: candidates ({contender.about})", rate, "candidates/s", PUBLISHED, rate / published_per_second),
        Row(f"{name}: accepted bridges", rate * accepted_share, "bridges/s", f"{name}, candidates", accepted_share),
        Row(f"  {name}: accepted first attempts", rate * first, "bridges/s", f"{name}, candidates", first),
        Row(
            f"  {name}: pairs rescued by repair",
            rate * (accepted_share - first),
            "bridges/s",
            f"{name}, candidates",
            accepted_share - first,
        ),
        Row(f"  {name}: mean gap", float(contender.candidates.gap[:num_pairs].mean()), "states"),
    ]
    seconds = {stage: statistics.median(contender.times[stage]) for stage in STAGES}
    whole = sum(seconds.values())
    found += [
        Row(f"  {name}: {stage}", value / num_pairs * 1e3, "ms/candidate", f"{name}, all stages", value / whole)
        for stage, value in seconds.items()
    ]
    if simulator is not None:
        found += truth_rows(name, counted, rate * accepted_share, simulator, subject.bundle.normalizer)
    return found
