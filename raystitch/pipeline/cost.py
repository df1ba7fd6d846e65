"""A rough estimate of what a run costs, from the sizes in its configuration."""

from collections.abc import Mapping, Sequence

from raystitch.config import RunConfig
from raystitch.models.config import HeadConfig
from raystitch.pipeline.sweep_plan import Trial
from raystitch.trainers.config import AlgorithmConfig

# Orders of magnitude for one thread of a server CPU; a GPU changes all of them.
FLOPS_PER_SECOND = 5e10
STEP_OVERHEAD_SECONDS = 0.003
UNET_FLOPS_FACTOR = 450.0
CANDIDATES_PER_SECOND = 200.0
START_SECONDS = 5.0
EVALUATION_SECONDS = 8.0


def fit_seconds(config: RunConfig) -> float:
    """All parts of the bundle on one CPU."""
    diffusion = config.fit.diffusion
    scale = sum(m**2 for m in diffusion.multipliers) / 21 * len(diffusion.multipliers) / 3
    flops = UNET_FLOPS_FACTOR * diffusion.width**2 * diffusion.horizon * diffusion.batch_size * scale
    heads = (config.fit.dynamics, config.fit.inverse, config.fit.reward, config.fit.termination, config.fit.value)
    return diffusion.train_steps * (STEP_OVERHEAD_SECONDS + flops / FLOPS_PER_SECOND) + sum(map(_head_seconds, heads))


def _head_seconds(head: HeadConfig) -> float:
    flops = 6.0 * head.num_members * head.num_layers * head.hidden**2 * head.batch_size
    return head.train_steps * (STEP_OVERHEAD_SECONDS + flops / FLOPS_PER_SECOND)


def augment_seconds(config: RunConfig) -> float:
    """Generation on one CPU, if half of the candidates are accepted."""
    sampler, diffusion = config.stitch.sampler, config.fit.diffusion
    size = sampler.num_steps / 5 * (diffusion.width / 32) ** 2 * diffusion.horizon / 32
    return 2 * config.augment.num_bridges / CANDIDATES_PER_SECOND * size


def trial_seconds(config: AlgorithmConfig) -> float:
    """Training and evaluating one policy on one CPU."""
    step = STEP_OVERHEAD_SECONDS + config.flops / FLOPS_PER_SECOND
    return START_SECONDS + EVALUATION_SECONDS + config.train_steps * step


def estimate(config: RunConfig, trials: Sequence[Trial], num_cpus: float) -> Mapping[str, float]:
    """Seconds per stage on ``num_cpus`` CPUs."""
    parallel = max(1, int(num_cpus / config.resources.trial_cpus))
    if config.resources.max_concurrent_trials is not None:
        parallel = min(parallel, config.resources.max_concurrent_trials)
    training = sum(trial_seconds(getattr(config.algorithms, trial.algo)) for trial in trials)
    return {
        "fit": fit_seconds(config) / min(num_cpus, 2.0),
        "augment": augment_seconds(config) / min(num_cpus, 2.0),
        "trials": training / min(parallel, max(len(trials), 1)),
    }
