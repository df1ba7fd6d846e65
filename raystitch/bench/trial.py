"""The time of a trial outside training: start, data, files and evaluation."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from raystitch.bench.machine import Row
from raystitch.bench.synthetic import make_walks
from raystitch.data.d4rl import read_d4rl, write_d4rl
from raystitch.data.demo import make_pointmaze
from raystitch.pipeline.trials.train import run_trials
from raystitch.pipeline.trials.trial import LoadedInputs, Trial
from raystitch.trainers.config import DataSpec, EvalConfig, TD3BCConfig
from raystitch.trainers.data import build_data
from raystitch.trainers.evaluate import evaluate
from raystitch.trainers.loop import train_policy

NUM_TRANSITIONS = 200_000
MAZE_STEPS = 2000
ALLOWED_SECONDS = 5.0


def _seconds(work: Callable[[], object], repeats: int = 2) -> float:
    """Return the shortest processor time of this process and its children."""
    times: list[float] = []
    for _ in range(repeats):
        started = sum(os.times()[:4])
        work()
        times.append(sum(os.times()[:4]) - started)
    return min(times)


def trial_rows(train_seconds: float, num_seeds: int) -> list[Row]:
    """Rows in processor seconds of a TD3+BC trial with default settings, whose training takes ``train_seconds``.

    A trial of a single step measures the start and the end of a trial, which a group of ``num_seeds`` seeds shares.
    Evaluation is in the point maze.
    """
    walks = make_walks(NUM_TRANSITIONS, 1000)
    maze = make_pointmaze(MAZE_STEPS)
    assert maze.env is not None
    config, evaluation = replace(TD3BCConfig(), train_steps=1), EvalConfig()
    with tempfile.TemporaryDirectory() as folder:
        path, attempts = Path(folder) / "walks.hdf5", iter(range(1000))
        write_d4rl(walks, path)
        load = _seconds(lambda: read_d4rl(path))
        dataset = read_d4rl(path)

        def group(seeds: range) -> None:
            shared = Trial(algo="td3bc", config=config, evaluate=False, device="cpu")
            trials = [replace(shared, folder=f"{folder}/{next(attempts)}", seed=seed) for seed in seeds]
            run_trials(trials, LoadedInputs(dataset=dataset, env=maze.env))

        alone = _seconds(lambda: group(range(1)), repeats=3)
        together = _seconds(lambda: group(range(num_seeds)), repeats=3)
    build = _seconds(lambda: build_data(dataset, DataSpec(kind="transitions", device="cpu")), repeats=3)
    imports = [sys.executable, "-c", "import raystitch.pipeline.trials.train"]
    start = _seconds(lambda: subprocess.run(imports, check=True))
    policy = train_policy(build_data(maze, DataSpec(kind="transitions", device="cpu")), "td3bc", config)
    spec, episodes, envs = maze.env, evaluation.num_episodes, evaluation.num_envs
    evaluated = _seconds(lambda: evaluate(policy, spec, episodes, envs, 0, None), repeats=1)

    training = f"training, {TD3BCConfig().train_steps:,} steps"
    data = f"{NUM_TRANSITIONS:,} transitions"
    whole = start + load + alone

    def row(what: str, seconds: float) -> Row:
        return Row(what, seconds, "s", training, seconds / train_seconds)

    return [
        row("trial: a new process and its imports", start),
        row(f"trial: read {data} (compressed HDF5)", load),
        row(f"trial: {data} made ready to draw from", build),
        row("trial: first and last of it, files included", max(alone - build, 0.0)),
        row("trial: all that is not training or evaluation", whole),
        Row("  the same, against what is allowed", whole, "s", "allowed", whole / ALLOWED_SECONDS),
        row(f"trial: the same for each of {num_seeds} seeds in one process", (start + load + together) / num_seeds),
        row(f"trial: evaluation, {episodes} episodes in the point maze, {envs} side by side", evaluated),
    ]
