"""The training loop that all algorithms share: batches, metrics, checkpoints."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
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
from raystitch.trainers.batches import RatioSampler, TrainData
from raystitch.trainers.config import AlgorithmConfig
from raystitch.trainers.policy import Policy, PolicyMeta
from raystitch.trainers.ratio import Ratio, parse_ratio
from raystitch.trainers.registry import ALGORITHMS
from raystitch.trainers.stacked import stack, unstack
from raystitch.trainers.state import Algorithm, Metrics, TrainState

LOG_EVERY = 100
CHECKPOINT_SECONDS = 30.0

Log = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """Where a run saves its state, and how many seconds of work at most an interruption may cost.

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
        """Saves a state, and on the disk before it what the journal holds."""
        extent = None if self.journal is None else self.journal.extent()
        self._file.save({**state, "journal": extent})

    def load(self) -> dict[str, Any] | None:
        """The newest state that is sound, None where there is none; what cannot be used is named and set aside."""
        return self._file.load(check=None if self.journal is None else self._problem)

    def step(self) -> int:
        """The step to go on from, 0 when nothing was saved."""
        saved = self.load()
        return 0 if saved is None else int(saved["state"]["step"])

    def extent(self) -> dict[str, Any] | None:
        """How far the journal reached when the state was saved that is gone on from."""
        saved = self.load()
        return None if saved is None else saved["journal"]

    def _problem(self, state: Mapping[str, Any]) -> str | None:
        assert self.journal is not None
        return self.journal.problem(state["journal"])


def find_algorithm(algo: str) -> Algorithm:
    """An algorithm by name.

    Raises:
        UserError: for an unknown one.
    """
    if algo not in ALGORITHMS:
        raise UserError(f"algo={algo!r} is not one of {', '.join(ALGORITHMS)}")
    return ALGORITHMS[algo]


def train_policy(
    data: TrainData,
    algo: str,
    config: AlgorithmConfig,
    ratio: Ratio | str = "1:0",
    seed: int = 0,
    *,
    log: Log | None = None,
    checkpoints: Checkpoints | None = None,
    every: int = 0,
    on_every: Callable[[int, Policy], None] | None = None,
    record: Mapping[str, Any] | None = None,
) -> Policy:
    """Trains one policy; the same arguments give the same policy, interrupted or not.

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
    config: AlgorithmConfig,
    ratio: Ratio | str,
    seeds: Sequence[int],
    *,
    log: Callable[[int, dict[str, Any]], None] | None = None,
    checkpoints: Sequence[Checkpoints] | None = None,
    every: int = 0,
    on_every: Callable[[int, dict[int, Policy]], None] | None = None,
    records: Sequence[Mapping[str, Any]] | None = None,
) -> list[Policy | RunError]:
    """Trains the policies of several seeds side by side: stacked parameters, batched products (see ``stacked``).

    A seed's result is the one it has alone, up to float error. ``seconds`` in its rows are its share of the time.

    Args:
        log, on_every: as of ``train_policy``, with the position in ``seeds``; ``on_every`` gets those still going on.
        checkpoints, records: one per seed; what is there of the checkpoints must all be at one step.

    Returns:
        A policy per seed, or the error that ended it (loss not finite) while the others went on.

    Raises:
        UserError: as ``train_policy``.
    """
    algorithm, ratio = find_algorithm(algo), parse_ratio(ratio)
    if algorithm.kind != data.kind:
        raise UserError(f"algo={algo} trains on {algorithm.kind}, but the data was built for {data.kind}")
    generators = [torch.Generator(data.device) for _ in seeds]
    for generator, seed in zip(generators, seeds, strict=True):
        generator.manual_seed(derive_seed(seed, "batches"))
    sampler = RatioSampler(data, ratio, config.batch_size, generators)
    state: TrainState = algorithm.create(_networks(data, algorithm, config, ratio, seeds), config)
    seconds = _resume(state, generators, checkpoints)
    metas = [
        _meta(data, algo, vars(state)[algorithm.acts].arguments, config, ratio, {"seed": seed, **record})
        for seed, record in zip(seeds, records or [{}] * len(seeds), strict=True)
    ]
    failed: dict[int, RunError] = {}

    def policies() -> dict[int, Policy]:
        network = vars(state)[algorithm.acts]
        return {
            index: algorithm.policy(meta, unstack(network, index))
            for index, meta in enumerate(metas)
            if index not in failed
        }

    interval: list[Metrics] = []
    started = saved = time.monotonic()
    while state.step < config.train_steps and len(failed) < len(seeds):
        drawn = sampler.draw()
        if data.kind == "sequences":
            batch = data.windows(*drawn, vars(config)["context"])
        else:
            batch = data.transitions(drawn[0], drawn[1])
        interval.append(algorithm.update(state, batch, config, generators))
        step, last = state.step, state.step == config.train_steps
        if step % LOG_EVERY == 0 or last:
            rows = _means(interval, step, algo, failed)
            interval = []
            share = round(seconds + (time.monotonic() - started) / len(seeds), 3)
            if log is not None:
                for index, row in rows.items():
                    log(index, {"step": step, "total_steps": config.train_steps, "seconds": share, **row})
        if every and on_every is not None and step % every == 0 and not last:
            paused = time.monotonic()
            on_every(step, policies())
            started += time.monotonic() - paused
        # Only where no metrics are pending, so that a resumed run logs the same rows.
        if checkpoints is not None and not interval and not last and time.monotonic() - saved >= checkpoints[0].seconds:
            going = [index for index in range(len(seeds)) if index not in failed]
            _save(state, generators, checkpoints, going, seconds + (time.monotonic() - started) / len(seeds))
            saved = time.monotonic()
    results: dict[int, Policy | RunError] = {**policies(), **failed}
    return [results[index] for index in range(len(seeds))]


def _networks(
    data: TrainData, algorithm: Algorithm, config: AlgorithmConfig, ratio: Ratio, seeds: Sequence[int]
) -> dict[str, nn.Module]:
    """The networks of all seeds, stacked; each is what its seed alone gives."""
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
    config: AlgorithmConfig,
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
        record={
            "dataset": data.dataset_name,
            "dataset_fingerprint": data.dataset_fingerprint,
            "ratio": str(ratio),
            "config": asdict(config),
            **record,
        },
    )


def _means(interval: list[Metrics], step: int, algo: str, failed: dict[int, RunError]) -> dict[int, dict[str, float]]:
    """Means of the interval that ends at ``step``, by seed, in one transfer from the device; adds to ``failed``."""
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
    """Saves the seeds that are ``going`` on."""
    for index in going:
        value = {"state": state.state_dict(index), "generator": generators[index].get_state(), "seconds": seconds}
        checkpoints[index].save(value)


def _resume(
    state: TrainState, generators: Sequence[torch.Generator], checkpoints: Sequence[Checkpoints] | None
) -> float:
    """Loads the checkpoints if there are any; returns a seed's share of the seconds already spent."""
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
