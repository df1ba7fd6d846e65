"""The training loop that all algorithms share: batches, metrics, checkpoints."""

import pickle
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from raystitch.errors import RunError, UserError
from raystitch.files import atomic_path
from raystitch.seeding import derive_seed
from raystitch.trainers.batches import RatioSampler, TrainData
from raystitch.trainers.config import AlgorithmConfig, DTConfig
from raystitch.trainers.policy import Policy, PolicyMeta
from raystitch.trainers.ratio import Ratio, parse_ratio
from raystitch.trainers.registry import ALGORITHMS
from raystitch.trainers.state import Algorithm, Metrics, TrainState

LOG_EVERY = 100
CHECKPOINT_SECONDS = 30.0

Log = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """Where a run saves its state, and how many seconds of work at most an interruption may cost."""

    path: Path
    seconds: float = CHECKPOINT_SECONDS

    def load(self) -> dict[str, Any] | None:
        """What was saved, None when nothing was.

        Raises:
            UserError: when the file is damaged.
        """
        if not self.path.is_file():
            return None
        damaged = f"{self.path} cannot be resumed from: it is damaged; delete it to start again"
        if not zipfile.is_zipfile(self.path):
            raise UserError(damaged)
        try:
            return torch.load(self.path, weights_only=True, map_location="cpu")
        except (RuntimeError, pickle.UnpicklingError) as error:
            raise UserError(damaged) from error

    def step(self) -> int:
        """The step to go on from, 0 when nothing was saved."""
        saved = self.load()
        return 0 if saved is None else int(saved["state"]["step"])


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
    algorithm, ratio = find_algorithm(algo), parse_ratio(ratio)
    if algorithm.kind != data.kind:
        raise UserError(f"algo={algo} trains on {algorithm.kind}, but the data was built for {data.kind}")
    generator = torch.Generator(data.device)
    generator.manual_seed(derive_seed(seed, "batches"))
    sampler = RatioSampler(data, ratio, config.batch_size, generator)
    with torch.random.fork_rng(devices=[data.device] if data.device.type == "cuda" else []):
        torch.manual_seed(derive_seed(seed, "weights"))
        state = algorithm.create(data, ratio, config)
    seconds_before = _resume(state, generator, checkpoints)
    policy = _policy(data, algo, algorithm, config, ratio, state, {"seed": seed, **(record or {})})

    interval: list[Metrics] = []
    started = saved = time.monotonic()
    while state.step < config.train_steps:
        drawn = sampler.draw()
        if isinstance(config, DTConfig):
            batch = data.windows(*drawn, config.context)
        else:
            batch = data.transitions(drawn[0], drawn[1])
        interval.append(algorithm.update(state, batch, config, generator))
        step, last = state.step, state.step == config.train_steps
        if step % LOG_EVERY == 0 or last:
            row = _means(interval, step, algo)
            interval = []
            seconds = seconds_before + time.monotonic() - started
            if log is not None:
                log({"step": step, "total_steps": config.train_steps, "seconds": round(seconds, 3), **row})
        if every and on_every is not None and step % every == 0 and not last:
            paused = time.monotonic()
            on_every(step, policy)
            started += time.monotonic() - paused
        # Only where no metrics are pending, so that a resumed run logs the same rows.
        if checkpoints is not None and not interval and not last and time.monotonic() - saved >= checkpoints.seconds:
            _save(state, generator, checkpoints, seconds_before + time.monotonic() - started)
            saved = time.monotonic()
    return policy


def _policy(
    data: TrainData,
    algo: str,
    algorithm: Algorithm,
    config: AlgorithmConfig,
    ratio: Ratio,
    state: TrainState,
    record: Mapping[str, Any],
) -> Policy:
    """The policy of the state's live network."""
    network, arguments = algorithm.policy_network(state)
    meta = PolicyMeta(
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
    return algorithm.policy(meta, network)


def _means(interval: list[Metrics], step: int, algo: str) -> dict[str, float]:
    """Means of the interval that ends at ``step``; one transfer from the device."""
    losses = torch.stack([metrics["loss"] for metrics in interval])
    bad = (~torch.isfinite(losses)).nonzero()
    if len(bad):
        first = step - len(interval) + 1 + int(bad[0])
        raise RunError(
            f"the loss of {algo} became {float(losses[bad[0]])} at step {first}; lower its learning_rate, or look for "
            "outliers with `raystitch data inspect`"
        )
    names = {name: None for metrics in interval for name in metrics}
    columns = {name: [metrics[name] for metrics in interval if name in metrics] for name in names}
    return {name: float(torch.stack(values).float().mean()) for name, values in columns.items()}


def _save(state: TrainState, generator: torch.Generator, checkpoints: Checkpoints, seconds: float) -> None:
    with atomic_path(checkpoints.path) as temporary:
        value = {"state": state.state_dict(), "generator": generator.get_state(), "seconds": seconds}
        torch.save(value, temporary)


def _resume(state: TrainState, generator: torch.Generator, checkpoints: Checkpoints | None) -> float:
    """Loads the checkpoint if there is one; returns the seconds already spent."""
    saved = None if checkpoints is None else checkpoints.load()
    if saved is None:
        return 0.0
    state.load_state_dict(saved["state"])
    generator.set_state(saved["generator"])
    return float(saved["seconds"])
