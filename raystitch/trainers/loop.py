"""The training loop that all algorithms share: batches, metrics, checkpoints."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from raystitch.console import say
from raystitch.errors import RunError, UserError
from raystitch.io.checkpoints import CheckpointFile
from raystitch.io.journal import Journal
from raystitch.seeding import derive_seed
from raystitch.trainers.batches import RatioSampler, TrainData, TransitionBatch, WindowBatch
from raystitch.trainers.config import TrainerSettings, settings_json
from raystitch.trainers.policy import Policy, PolicyMeta
from raystitch.trainers.ratio import Ratio, parse_ratio
from raystitch.trainers.registry import find_algorithm
from raystitch.trainers.stacked import stack, unstack
from raystitch.trainers.state import Algorithm, Metrics, TrainState

LOG_EVERY = 100
CHECKPOINT_SECONDS = 30.0

Log = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """The place where a run saves its state, and the seconds of work that an interruption may cost at most.

    Attributes:
        settings: what the state belongs to; a checkpoint of other settings is not used.
        journal: grows with the training; a checkpoint is used only where the journal still begins as it did then.
        note: gets a line for every checkpoint that cannot be used.
    """

    path: Path
    seconds: float = CHECKPOINT_SECONDS
    settings: str = ""
    journal: Journal | None = None
    note: Callable[[str], None] = say

    @property
    def _file(self) -> CheckpointFile:
        return CheckpointFile(path=self.path, settings=self.settings, note=self.note)

    def save(self, state: Mapping[str, Any]) -> None:
        """Save a state, and on the disk before it the content of the journal."""
        extent = None if self.journal is None else self.journal.extent()
        self._file.save({**state, "journal": extent})

    def load(self) -> dict[str, Any] | None:
        """Return the newest sound state, None where there is none; others are named and set aside."""
        return self._file.load(check=None if self.journal is None else self._problem)

    def step(self) -> int:
        """Return the step to go on from, 0 when nothing was saved."""
        saved = self.load()
        return 0 if saved is None else int(saved["state"]["step"])

    def extent(self) -> dict[str, Any] | None:
        """Return how far the journal reached when the state to go on from was saved."""
        saved = self.load()
        return None if saved is None else saved["journal"]

    def _problem(self, state: Mapping[str, Any]) -> str | None:
        assert self.journal is not None
        return self.journal.problem(state["journal"])


def train_policy(
    data: TrainData,
    algo: str,
    config: TrainerSettings,
    ratio: Ratio | str = "1:0",
    seed: int = 0,
    *,
    log: Log | None = None,
    checkpoints: Checkpoints | None = None,
    every: int = 0,
    on_every: Callable[[int, Policy], None] | None = None,
    record: Mapping[str, Any] | None = None,
) -> Policy:
    """Train one policy; the same arguments give the same policy, interrupted or not.

    Args:
        log: gets a row {step, total_steps, seconds, loss, ..} every 100 steps (means) and at the last step.
        checkpoints: resume from here when it exists.
        on_every: called with (step, policy) after every ``every`` steps, except the last.
        record: goes into the policy's file.

    Raises:
        UserError: for an unknown algorithm, or a part with a positive share that is empty.
        RunError: when the loss is not finite, naming the step.
    """
    (policy,) = train_policies(
        data,
        algo,
        config,
        ratio,
        (seed,),
        log=None if log is None else lambda index, row: log(row),
        checkpoints=None if checkpoints is None else (checkpoints,),
        every=every,
        on_every=None if on_every is None else lambda step, policies: on_every(step, policies[0]),
        records=None if record is None else (record,),
    )
    if isinstance(policy, RunError):
        raise policy
    return policy


def train_policies(
    data: TrainData,
    algo: str,
    config: TrainerSettings,
    ratio: Ratio | str,
    seeds: Sequence[int],
    *,
    log: Callable[[int, dict[str, Any]], None] | None = None,
    checkpoints: Sequence[Checkpoints] | None = None,
    every: int = 0,
    on_every: Callable[[int, dict[int, Policy]], None] | None = None,
    records: Sequence[Mapping[str, Any]] | None = None,
) -> list[Policy | RunError]:
    """Train the policies of several seeds side by side: stacked parameters, batched products (see ``stacked``).

    A seed's result is the one it has alone, up to float error. ``seconds`` in its rows are its share of the time.

    Args:
        log, on_every: as of ``train_policy``, with the position in ``seeds``; ``on_every`` gets those still going on.
        checkpoints, records: one per seed; the checkpoints that exist must all be at one step.

    Returns:
        A policy per seed, or the error that ended it (loss not finite) while the others went on.

    Raises:
        UserError: as ``train_policy``.
    """
    clock = _Clock(len(seeds))
    run = _start(data, algo, config, parse_ratio(ratio), seeds, records)
    clock.before = _resume(run.state, run.generators, checkpoints)
    interval: list[Metrics] = []
    saved = time.monotonic()
    while run.state.step < config.train_steps and len(run.failed) < len(seeds):
        interval.append(run.advance())
        step, last = run.state.step, run.state.step == config.train_steps
        if step % LOG_EVERY == 0 or last:
            rows = _means(interval, step, algo, run.failed)
            interval = []
            times = {"step": step, "total_steps": config.train_steps, "seconds": round(clock.share(), 3)}
            if log is not None:
                for index, row in rows.items():
                    log(index, {**times, **row})
        if every and on_every is not None and step % every == 0 and not last:
            with clock.paused():
                on_every(step, run.policies())
        # Only where no metrics are pending, so that a resumed run logs the same rows.
        if checkpoints is not None and not interval and not last and time.monotonic() - saved >= checkpoints[0].seconds:
            _save(run.state, run.generators, checkpoints, run.going(), clock.share())
            saved = time.monotonic()
    results: dict[int, Policy | RunError] = {**run.policies(), **run.failed}
    return [results[index] for index in range(len(seeds))]


@dataclass(kw_only=True)
class _Run:
    """Seeds in training.

    Attributes:
        draw: the next batch.
        metas: one per seed.
        failed: the errors of the seeds that ended, by position.
    """

    algorithm: Algorithm
    config: TrainerSettings
    state: TrainState
    draw: Callable[[], TransitionBatch | WindowBatch]
    generators: Sequence[torch.Generator]
    metas: Sequence[PolicyMeta]
    failed: dict[int, RunError] = field(default_factory=dict[int, RunError])

    def advance(self) -> Metrics:
        """Do one step on a new batch."""
        return self.algorithm.update(self.state, self.draw(), self.config, self.generators)

    def going(self) -> list[int]:
        """Return the positions of the seeds that have not failed."""
        return [index for index in range(len(self.metas)) if index not in self.failed]

    def policies(self) -> dict[int, Policy]:
        """Return the present policies of the seeds that have not failed, by position."""
        network = self.algorithm.actor(self.state)
        return {index: self.algorithm.policy(self.metas[index], unstack(network, index)) for index in self.going()}


def _start(
    data: TrainData,
    algo: str,
    config: TrainerSettings,
    ratio: Ratio,
    seeds: Sequence[int],
    records: Sequence[Mapping[str, Any]] | None,
) -> _Run:
    """Return the seeds before their first step."""
    algorithm = find_algorithm(algo)
    if algorithm.kind != data.kind:
        raise UserError(f"algo={algo} trains on {algorithm.kind}, but the data was built for {data.kind}")
    data = _prepared(data, algorithm, config, seeds)
    generators = _generators(data, seeds, "batches")
    sampler = RatioSampler(data, ratio, config.batch_size, generators)
    state: TrainState = algorithm.create(_networks(data, algorithm, config, ratio, seeds), config)
    arguments = algorithm.actor(state).arguments
    metas = [
        _meta(data, algo, arguments, config, ratio, {"seed": seed, **record})
        for seed, record in zip(seeds, records or [{}] * len(seeds), strict=True)
    ]
    draw = _batches(data, sampler, config.data_needs().context)
    return _Run(algorithm=algorithm, config=config, state=state, draw=draw, generators=generators, metas=metas)


def _prepared(data: TrainData, algorithm: Algorithm, config: TrainerSettings, seeds: Sequence[int]) -> TrainData:
    """Return the data that the algorithm makes of ``data``; a function of the arguments, so that runs can resume."""
    if algorithm.prepare is None:
        return data
    with torch.random.fork_rng(devices=[data.device] if data.device.type == "cuda" else []):
        made = algorithm.prepare(data, config, _generators(data, seeds, "prepare"))
    return data if made is None else made


def _generators(data: TrainData, seeds: Sequence[int], purpose: str) -> list[torch.Generator]:
    """Return one generator per seed."""
    return [torch.Generator(data.device).manual_seed(derive_seed(seed, purpose)) for seed in seeds]


def _batches(
    data: TrainData, sampler: RatioSampler, context: int | None
) -> Callable[[], TransitionBatch | WindowBatch]:
    """Return the function that draws the next batch."""
    if data.kind == "sequences":
        if context is None:
            raise ValueError("an algorithm on sequences must name a context in its data_needs()")
        return lambda: data.windows(*sampler.draw(), context)

    def transitions() -> TransitionBatch:
        episode, step, _ = sampler.draw()
        return data.transitions(episode, step)

    def decoupled() -> TransitionBatch:
        batch = transitions()
        episode, step, _ = weighted.draw()
        return replace(batch, actor=data.transitions(episode, step))

    if data.actor is None:
        return transitions
    weighted = sampler.over(data.actor)
    return decoupled


class _Clock:
    """Seconds of ``num_seeds`` seeds at work, shared evenly; ``before``: a seed's share before an interruption."""

    def __init__(self, num_seeds: int) -> None:
        self.num_seeds, self.before, self._started = num_seeds, 0.0, time.monotonic()

    def share(self) -> float:
        """Return the seconds of one seed."""
        return self.before + (time.monotonic() - self._started) / self.num_seeds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time spent inside."""
        begin = time.monotonic()
        yield
        self._started += time.monotonic() - begin


def _networks(
    data: TrainData, algorithm: Algorithm, config: TrainerSettings, ratio: Ratio, seeds: Sequence[int]
) -> dict[str, nn.Module]:
    """Return the networks of all seeds, stacked; each is what its seed alone gives."""
    single: list[dict[str, nn.Module]] = []
    for seed in seeds:
        with torch.random.fork_rng(devices=[data.device] if data.device.type == "cuda" else []):
            torch.manual_seed(derive_seed(seed, "weights"))
            single.append(algorithm.networks(data, ratio, config))
    return {name: stack([networks[name] for networks in single]).to(data.device) for name in single[0]}


def _meta(
    data: TrainData,
    algo: str,
    arguments: Mapping[str, Any],
    config: TrainerSettings,
    ratio: Ratio,
    record: Mapping[str, Any],
) -> PolicyMeta:
    return PolicyMeta(
        algo=algo,
        network=arguments,
        obs_mean=data.normalizer.mean,
        obs_std=data.normalizer.std,
        action_low=data.action_low,
        action_high=data.action_high,
        rtg_scale=data.rtg_scale,
        return_max=data.return_max,
        env=data.env,
        return_rule=data.return_rule,
        record={
            "dataset": data.dataset_name,
            "dataset_fingerprint": data.dataset_fingerprint,
            "ratio": str(ratio),
            "config": settings_json(config),
            **record,
        },
    )


def _means(interval: list[Metrics], step: int, algo: str, failed: dict[int, RunError]) -> dict[int, dict[str, float]]:
    """Return the means of the interval that ends at ``step`` by seed, in one transfer from the device; adds to
    ``failed``."""
    names = list({name: None for metrics in interval for name in metrics})
    columns = [torch.stack([metrics[name] for metrics in interval if name in metrics]).float() for name in names]
    finite = torch.isfinite(torch.stack([metrics["loss"] for metrics in interval])).all(0)
    means = torch.stack([column.mean(0) for column in columns] + [finite.float()]).T.tolist()
    rows: dict[int, dict[str, float]] = {}
    for index, (*values, is_finite) in enumerate(means):
        if index in failed:
            continue
        if is_finite:
            rows[index] = dict(zip(names, values, strict=True))
        else:
            losses = [float(metrics["loss"][index]) for metrics in interval]
            first = next(at for at, loss in enumerate(losses) if not math.isfinite(loss))
            failed[index] = RunError(
                f"the loss of {algo} became {losses[first]} at step {step - len(interval) + 1 + first}; lower its "
                "learning_rate, or look for outliers with `raystitch data inspect`"
            )
    return rows


def _save(
    state: TrainState,
    generators: Sequence[torch.Generator],
    checkpoints: Sequence[Checkpoints],
    going: Sequence[int],
    seconds: float,
) -> None:
    """Save the seeds that are ``going`` on."""
    for index in going:
        value = {"state": state.state_dict(index), "generator": generators[index].get_state(), "seconds": seconds}
        checkpoints[index].save(value)


def _resume(
    state: TrainState, generators: Sequence[torch.Generator], checkpoints: Sequence[Checkpoints] | None
) -> float:
    """Load the checkpoints if there are any and return a seed's share of the seconds already spent."""
    saved = [checkpoint.load() for checkpoint in checkpoints or ()]
    there = [value for value in saved if value is not None]
    if not there:
        return 0.0
    if len(there) < len(saved) or len({value["state"]["step"] for value in there}) > 1:
        raise ValueError("the checkpoints are at different steps; train those of one step together")
    state.load_state_dicts([value["state"] for value in there])
    for generator, value in zip(generators, there, strict=True):
        generator.set_state(value["generator"])
    return float(np.mean([value["seconds"] for value in there]))
