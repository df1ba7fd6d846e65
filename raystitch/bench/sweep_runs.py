"""Runs of any number of tiny trials: a maze with its stitcher and buffer, and the folders of trials that are finished.

The folders are written by the project's own writers, so planning, resuming and the report can be measured without
training each of them.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raystitch.buffer.opening import open_buffer
from raystitch.config import RunConfig, load_run_config
from raystitch.data.d4rl import write_d4rl
from raystitch.data.demo import make_pointmaze
from raystitch.data.load import load_dataset
from raystitch.models.bundle import Bundle
from raystitch.models.fit import fit_bundle
from raystitch.pipeline.generate.augment import augment_local
from raystitch.pipeline.trials.plan import plan
from raystitch.pipeline.trials.train import train, trial_settings
from raystitch.pipeline.trials.trial import STITCHER, InputHashes, LoadedInputs, Trial
from raystitch.pipeline.trials.trial_folder import TrialFolder, TrialMetrics
from raystitch.report.files import BUFFER
from raystitch.seeding import numpy_rng
from raystitch.trainers.evaluate import EvalResult

CELLS = (
    "{algo: bc, data: original}",
    "{algo: bc, data: joined}",
    "{algo: bc, data: stitched, ratio: ['1:1', '3:1', '1:3', '0:1'], delta: ['off']}",
    "{algo: td3bc, data: original}",
    "{algo: td3bc, data: joined}",
    "{algo: td3bc, data: stitched, ratio: ['1:1', '3:1', '1:3', '0:1'], delta: ['off']}",
)
NUM_CELLS = 12
TRAIN_STEPS = 6
NUM_EVALUATIONS, NUM_EPISODES = 5, 5
"""Of a finished trial that was not trained: evaluations during training, and episodes of the last one."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A run that has a stitcher and a buffer and no trials.

    Attributes:
        settings: over the configuration ``smoke``, without seeds.
    """

    folder: Path
    settings: tuple[str, ...]

    def config(self, num_seeds: int, *more: str) -> RunConfig:
        """Return the run of ``NUM_CELLS`` cells with so many seeds each."""
        return load_run_config("smoke", self.arguments(num_seeds, *more))

    def arguments(self, num_seeds: int, *more: str) -> list[str]:
        return [*self.settings, f"seeds={list(range(num_seeds))}", *more]

    def copy(self, folder: Path) -> Path:
        shutil.copytree(self.folder, folder)
        return folder


def prepare(folder: Path) -> Prepared:
    """Make a small maze, its stitcher and buffer under ``folder``; takes some seconds."""
    write_d4rl(make_pointmaze(num_steps=2000, seed=0), folder / "maze.hdf5")
    steps = f"{{train_steps: {TRAIN_STEPS}, batch_size: 16, hidden: 8}}"
    prepared = Prepared(
        folder=folder / "prepared",
        settings=(
            f"dataset=d4rl:{folder / 'maze.hdf5'}",
            f"grid=[{', '.join(CELLS)}]",
            f"algorithms.bc={steps}",
            f"algorithms.td3bc={steps}",
            "evaluation={num_episodes: 1, num_envs: 1, max_episode_steps: 20}",
            "validation.enabled=false",
        ),
    )
    config = prepared.config(1)
    dataset = load_dataset(config.dataset)
    bundle = fit_bundle(dataset, config.fit, prepared.folder / STITCHER, device="cpu")
    config = config.for_dataset(dataset)
    augment_local(dataset, bundle, config.stitch, config.augment, out=prepared.folder / BUFFER, seed=config.seed)
    return prepared


def inputs_of(config: RunConfig, folder: Path) -> InputHashes:
    """Return the hashes that trials of the run depend on."""
    return InputHashes(
        dataset=load_dataset(config.dataset).fingerprint,
        bundle=Bundle.load(folder / STITCHER, "cpu").hash,
        buffer=open_buffer(folder / BUFFER).hash,
    )


def write_finished(config: RunConfig, folder: Path) -> list[Trial]:
    """Write the folders of all trials of a run as if they were finished, with made-up results; return the trials.

    All policies of an algorithm are one that was trained for a moment.
    """
    dataset = load_dataset(config.dataset)
    trials = plan(config.for_dataset(dataset), inputs_of(config, folder), folder)
    loaded = LoadedInputs(dataset=dataset)
    policies = {algo: train(dataset, algo, config=config.algorithms.of(algo), device="cpu") for algo in ("bc", "td3bc")}
    cells = list(dict.fromkeys(trial.cell for trial in trials))
    for trial in trials:
        made = TrialFolder(Path(trial.folder), trial.seed, trial_settings(trial, loaded))
        made.prepare()
        rows = TrialMetrics(made.journal, None)
        level = cells.index(trial.cell) / len(cells)
        results = _made_up(level, numpy_rng(trial.seed, "bench", trial.cell))
        for number, result in enumerate(results[:-1], 1):
            step = number * trial.settings.train_steps // NUM_EVALUATIONS
            rows.train_row({"step": step, "loss": 1 / number, "seconds": float(number)})
            rows.evaluated(step, result)
        policies[trial.algo].save(made.out / "policy")
        made.finish(results[-1:], rows, trial.settings.train_steps, num_stacked=1)
    return trials


def _made_up(level: float, rng: np.random.Generator) -> Sequence[EvalResult]:
    """Return evaluations during training and, last, the one at its end."""
    found: list[EvalResult] = []
    for _ in range(NUM_EVALUATIONS):
        successes = rng.random(NUM_EPISODES) < level
        returns = successes + rng.normal(0, 0.01, NUM_EPISODES)
        lengths = np.full(NUM_EPISODES, 20)
        found.append(EvalResult(target_return=None, returns=returns, lengths=lengths, successes=successes, score=None))
    return found
