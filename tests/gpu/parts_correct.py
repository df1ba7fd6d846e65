"""Parts ``correct`` and ``memory``: the CPU's numbers, rows that do not depend on each other, memory that runs out.

Limits are generous for float32 rounding and far below what a wrong device, a race or a lost seed would bring.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import torch

from raystitch.models.bundle import Bundle
from raystitch.models.samplers import SAMPLERS, seeded_noise
from raystitch.stitching.candidates import Candidates, Pairs
from raystitch.stitching.config import StitchConfig
from raystitch.stitching.pairs import SourceIndex
from raystitch.stitching.stitcher import Stitcher
from raystitch.trainers import loop
from raystitch.trainers.batches import RatioSampler, TrainData
from raystitch.trainers.config import BCConfig, DataSpec, DTConfig, IQLConfig, TD3BCConfig
from raystitch.trainers.data import build_data
from raystitch.trainers.loop import Checkpoints, train_policies, train_policy
from raystitch.trainers.policy import Policy
from raystitch.trainers.ratio import Ratio
from raystitch.trainers.registry import ALGORITHMS
from raystitch.trainers.stacked import stack
from tests.gpu.peaks import set_precision
from tests.gpu.record import Task

CPU = torch.device("cpu")
ROUNDING = 1e-3
"""Largest difference of standardised numbers that float32 explains."""
CHANGED = 0.02
"""Largest share of decisions that may change: residuals close to delta may fall on either side."""
UPDATES = 5


def plain_config(**sampler: Any) -> StitchConfig:
    """The default settings in float32, not compiled."""
    config = StitchConfig()
    return replace(config, sampler=replace(config.sampler, precision="float32", compile="off", **sampler))


def correct(task: Task) -> None:
    """Compare the device with the CPU, and with itself."""
    set_precision("float32")
    on_cpu, on_device, dataset = task.bundle(CPU), task.bundle(), task.dataset()
    with task.record.section("networks"):
        networks(task, on_cpu, on_device)
    with task.record.section("samplers"):
        samplers(task, on_cpu, on_device)
    config = plain_config()
    seeds = np.arange(task.sizes.compared_pairs)
    pairs = SourceIndex(dataset, on_cpu, config).select(seeds)
    with task.record.section("stitching"):
        stitching(task, on_cpu, on_device, config, pairs, seeds)
    for name in ("td3bc", "iql", "bc", "dt"):
        with task.record.section(f"updates of {name}"):
            updates(task, name)
    with task.record.section("seeds together and alone"):
        together(task)
    with task.record.section("resumed"):
        resumed(task)


def difference(one: Any, other: Any) -> float:
    """Return the largest absolute difference; infinite where one is not a number and the other is."""
    values = (x.detach().cpu() if isinstance(x, torch.Tensor) else x for x in (one, other))
    first, second = (np.asarray(value, np.float64) for value in values)
    if not first.size:
        return 0.0
    same_nan = np.isnan(first) & np.isnan(second)
    return float(np.nan_to_num(np.where(same_nan, 0.0, np.abs(first - second)), nan=np.inf).max())


@torch.inference_mode()
def networks(task: Task, on_cpu: Bundle, on_device: Bundle) -> None:
    """Every model's output at the same inputs."""
    generator = torch.Generator().manual_seed(0)
    obs, next_obs = (torch.randn(512, on_cpu.obs_dim, generator=generator) for _ in range(2))
    next_obs = obs + 0.1 * next_obs
    act = torch.rand(512, on_cpu.act_dim, generator=generator) * 2 - 1
    there = [tensor.to(task.device) for tensor in (obs, act, next_obs)]

    def outputs(models: Bundle, s: Any, a: Any, after: Any) -> dict[str, Any]:
        return {
            "dynamics": models.standardizer.encode(models.dynamics.member_next(s, a)),
            "derivatives": models.dynamics.derivatives(s, a, "proposers")[0],
            "inverse": models.inverse(s, after),
            "reward": models.reward(s, a, after)[0] / models.reward.std,
            "termination": models.termination(after),
            "value": models.value(s) / models.value.std,
            "embedding": models.embedding(s) / 10,
        }

    expected, found = outputs(on_cpu, obs, act, next_obs), outputs(on_device, *there)
    for name, value in expected.items():
        task.record.check(f"{name}: largest difference to the CPU", difference(value, found[name]), ROUNDING)


def samplers(task: Task, on_cpu: Bundle, on_device: Bundle) -> None:
    """Windows of every sampler from the same noise."""
    rows, horizon = 16, on_cpu.horizon
    known = torch.randn(rows, horizon, on_cpu.obs_dim, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(rows, horizon)
    mask[:, :2] = mask[:, 14:] = 1
    shape = (horizon, on_cpu.obs_dim)
    for name, sampler in SAMPLERS.items():
        windows: list[torch.Tensor] = []
        for models in (on_cpu, on_device):
            place = models.device
            noise = seeded_noise(np.arange(rows), shape, place)
            denoise = models.denoiser(precision="float32", compile="off")
            windows.append(sampler(denoise, known.to(place), mask.to(place), noise, models.schedule, 5, 1.0))
        task.record.check(f"{name}: largest difference to the CPU", difference(*windows), 10 * ROUNDING)


def stitching(
    task: Task, on_cpu: Bundle, on_device: Bundle, config: StitchConfig, pairs: Pairs, seeds: np.ndarray
) -> None:
    """Whole candidates: as on the CPU, the same twice, and the same alone as among others."""
    expected = first_attempts(Stitcher(on_cpu, config).stitch(pairs, seeds))
    stitcher = Stitcher(on_device, config)
    found = first_attempts(stitcher.stitch(pairs, seeds))
    compare(task, "to the CPU", expected, found, on_cpu)
    compare(task, "between two runs", found, first_attempts(stitcher.stitch(pairs, seeds)), on_cpu)
    few = np.arange(0, len(seeds), max(1, len(seeds) // 8))
    alone = [first_attempts(stitcher.stitch(pairs.take(few[[at]]), seeds[few[[at]]])) for at in range(len(few))]
    for name in ("observations", "accepted", "residual_max"):
        values = np.concatenate([getattr(one, name) for one in alone])
        wrong = difference(values, getattr(found, name)[few])
        task.record.check(f"rows alone and among {len(seeds)}: {name}", wrong, 0.0 if name == "accepted" else 0.01)


def first_attempts(candidates: Candidates) -> Candidates:
    """The first attempt of every pair; a repair may happen on one device and not on the other."""
    return candidates.take(candidates.attempt == 0)


def compare(task: Task, what: str, expected: Candidates, found: Candidates, bundle: Bundle) -> None:
    """Check the states (in standard deviations, but for the worst row in a hundred) and the decisions."""
    apart = np.abs((expected.observations - found.observations) / bundle.normalizer.std).max((1, 2))
    task.record.check(f"states, difference {what}: 99 % of rows below", float(np.quantile(apart, 0.99)), 0.05)
    task.record.check(f"states, difference {what}: half of the rows below", float(np.median(apart)), ROUNDING)
    changed = float((expected.accepted != found.accepted).mean())
    task.record.check(f"decisions, share that differs {what}", changed, CHANGED)


def reduced(task: Task, config: Any) -> Any:
    """The settings, with networks of another size where only the script is tried."""
    if not task.sizes.small_networks:
        return config
    return replace(config, batch_size=8, **({"width": 16} if isinstance(config, DTConfig) else {"hidden": 16}))


def small(task: Task, algo: str) -> Any:
    """Settings without noise or dropout: generators of the CPU and of a GPU draw other numbers."""
    settings: Any = {
        "td3bc": TD3BCConfig(policy_noise=0.0, train_steps=UPDATES, batch_size=64, precision="float32"),
        "iql": IQLConfig(train_steps=UPDATES, batch_size=64, precision="float32"),
        "bc": BCConfig(train_steps=UPDATES, batch_size=64, precision="float32"),
        "dt": DTConfig(train_steps=UPDATES, batch_size=16, dropout=0.0, precision="float32"),
    }[algo]
    return reduced(task, settings)


def data_for(task: Task, algo: str, device: torch.device) -> TrainData:
    """Original data and, as the augmented part, the same weighted by return."""
    return build_data(task.dataset(), DataSpec(kind=ALGORITHMS[algo].kind, data="weighted", device=str(device)))


def updates(task: Task, algo: str) -> None:
    """Losses of some updates on the same batches, two seeds side by side."""
    algorithm, config = ALGORITHMS[algo], small(task, algo)
    losses: list[list[list[float]]] = []
    here = data_for(task, algo, CPU)
    ratio = Ratio(1, 1)
    for place in (CPU, task.device):
        data = data_for(task, algo, place)
        # The batches are drawn on the CPU for both.
        sampler = RatioSampler(here, ratio, config.batch_size, [torch.Generator().manual_seed(s) for s in (0, 1)])
        singles = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            singles.append(algorithm.networks(here, ratio, config))
        nets = {name: stack([networks[name] for networks in singles]).to(place) for name in singles[0]}
        state = algorithm.create(nets, config)
        generators = [torch.Generator(place).manual_seed(s) for s in (0, 1)]
        found: list[list[float]] = []
        for _ in range(UPDATES):
            episode, step, length = (drawn.to(place) for drawn in sampler.draw())
            context = config.data_needs().context
            batch = data.transitions(episode, step) if context is None else data.windows(episode, step, length, context)
            found.append(algorithm.update(state, batch, config, generators)["loss"].tolist())
        losses.append(found)
    relative = difference(np.array(losses[1]) / np.array(losses[0]), np.ones((UPDATES, 2)))
    task.record.check(f"{algo}: relative difference of {UPDATES} losses to the CPU", relative, 10 * ROUNDING)


def together(task: Task) -> None:
    """Actions of a seed trained alone and beside another."""
    config = replace(small(task, "td3bc"), train_steps=3 if task.sizes.small_networks else 20)
    data = data_for(task, "td3bc", task.device)
    both = train_policies(data, "td3bc", config, "1:1", (0, 1))
    alone = train_policy(data, "td3bc", config, "1:1", 1)
    states = task.dataset().observations[:256]
    assert isinstance(both[1], Policy)
    apart = difference(both[1].act(states), alone.act(states))
    task.record.check("td3bc: actions of a seed alone and beside another", apart, 0.01)


class _Interrupted(Exception):
    pass


def resumed(task: Task) -> None:
    """Actions after an interruption and without one."""
    try:
        import xxhash  # noqa: F401
    except ImportError:
        task.record.skip("resumed and uninterrupted", "xxhash, which checkpoints need, is not installed")
        return
    config = replace(small(task, "td3bc"), train_steps=2 * task.sizes.log_every)
    data, states = data_for(task, "td3bc", task.device), task.dataset().observations[:256]
    whole = train_policy(data, "td3bc", config, "1:1", 3).act(states)
    checkpoints = Checkpoints(path=task.record.folder / "resumed" / "state.pt", seconds=0.0)

    def interrupt(step: int, policy: Policy) -> None:
        raise _Interrupted

    report = task.sizes.log_every
    with mock.patch.object(loop, "LOG_EVERY", report):
        with suppress(_Interrupted):
            train_policy(data, "td3bc", config, "1:1", 3, checkpoints=checkpoints, every=report + 1, on_every=interrupt)
        assert checkpoints.step() == report
        again = train_policy(data, "td3bc", config, "1:1", 3, checkpoints=checkpoints)
    task.record.check("td3bc: actions resumed and uninterrupted", difference(again.act(states), whole), ROUNDING)


def memory(task: Task) -> None:
    """Ask for more pairs at once than the allowed memory holds: portions are halved, and the result is the same."""
    bundle, dataset, sizes = task.bundle(), task.dataset(), task.sizes
    crowd = plain_config(micro_batch=sizes.crowd)
    seeds = np.arange(sizes.compared_pairs)
    few = SourceIndex(dataset, bundle, crowd).select(seeds)
    at = np.arange(sizes.crowd) % len(seeds)
    stitcher = Stitcher(bundle, crowd)
    with task.record.section("out of memory"), allowed_memory(task, sizes.crowd_gib):
        found = first_attempts(stitcher.stitch(few.take(at), seeds[at]))
        expected = first_attempts(Stitcher(bundle, plain_config()).stitch(few, seeds))
        size = stitcher._micro_batches.size
        task.record.number(f"rows at once of {sizes.crowd:,} asked for, within {sizes.crowd_gib} GiB", size, "rows")
        if task.is_cuda:
            task.record.number("largest memory", torch.cuda.max_memory_allocated() / 2**30, "GiB")
            task.record.check("rows at once, as a share of those asked for", size / sizes.crowd, 0.5)
        else:
            task.record.skip("portions are halved", "memory is limited on a GPU only")
        compare(task, "of rows in halved portions", expected, found.take(np.arange(len(seeds))), bundle)
        task.record.check("pairs without a first attempt", float(sizes.crowd - len(found)), 0.0)


@contextmanager
def allowed_memory(task: Task, gib: float) -> Iterator[None]:
    """Let this process have so much of the GPU's memory inside the block."""
    if not task.is_cuda:
        yield
        return
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(task.device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, gib * 2**30 / total), task.device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, task.device)
