"""Which trials are trained together: seeds of one cell of the grid, stacked in one process."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from raystitch.config import RunConfig
from raystitch.data.episodes import EpisodeDataset
from raystitch.pipeline.trials.trial import Trial
from raystitch.shaping.config import ShapingConfig
from raystitch.trainers.config import flops_of

Group = tuple[Trial, ...]
"""Trials that differ in their seed only."""

StackedSeeds = int | Literal["auto"]


def group_trials(trials: Sequence[Trial], stacked_seeds: StackedSeeds, slots: int, on_gpu: bool) -> list[Group]:
    """Group the seeds of a cell; whole tables first: the first seeds of every cell come before the next.

    A trial's id and result do not depend on its group, so an interrupted run may group what is left in another way.

    Args:
        stacked_seeds: most trials of a group. ``auto`` on a GPU: all seeds of a cell, which it computes in one call; on
            CPUs the most that leaves two groups for every slot, so that no core stands idle while another works.
        slots: groups that run at once.
    """
    cells: dict[tuple[str | ShapingConfig, ...], list[Trial]] = {}
    for trial in trials:
        key = (trial.algo, trial.data, trial.ratio, trial.delta or "", trial.shaping)
        cells.setdefault(key, []).append(trial)
    sizes = [len(cell) for cell in cells.values()]
    largest = max(sizes, default=1)
    if stacked_seeds != "auto":
        most = stacked_seeds
    elif on_gpu:
        most = largest
    else:
        enough = (k for k in range(largest, 0, -1) if sum(-(-size // k) for size in sizes) >= 2 * slots)
        most = next(enough, 1)
    split = [_split(cell, most) for cell in cells.values()]
    rounds = max(map(len, split), default=0)
    return [groups[index] for index in range(rounds) for groups in split if index < len(groups)]


def _split(cell: Sequence[Trial], most: int) -> list[Group]:
    """Split a cell into as few groups as possible, of sizes as equal as possible."""
    count = -(-len(cell) // most)
    edges = [index * len(cell) // count for index in range(count + 1)]
    return [tuple(cell[first:last]) for first, last in pairwise(edges)]


PROCESS_BYTES = 600 * 2**20
ENV_BYTES = 2 * 2**20
NETWORK_BYTES_PER_FLOP = 0.01
"""Weights, optimiser and activations, by what a gradient step of one seed computes; further stacked seeds take less."""
COPIES = 2
"""Of the dataset and of the training data, while they are read and put together."""


def group_bytes(config: RunConfig, dataset: EpisodeDataset, num_seeds: int) -> int:
    """Return the bytes that the largest group of ``num_seeds`` stacked seeds takes."""
    columns = (dataset.observations, dataset.actions, dataset.rewards, dataset.offsets)
    algos = {cell.algo for cell in config.grid} | ({config.search.algo} if config.search.algorithm != "none" else set())
    # An algorithm that does not say what a step computes is taken to be no larger than the others.
    flops = max(flops_of(config.algorithms.of(algo)) or 0.0 for algo in algos)
    pool = _pool_bytes(dataset, config.augment.num_bridges, config.fit.diffusion.gap_max)
    return int(
        PROCESS_BYTES
        + COPIES * sum(column.nbytes for column in columns)
        + COPIES * min(pool, config.resources.memory_gib * 2**30)
        + config.evaluation.num_envs * ENV_BYTES
        + (0.75 + 0.25 * num_seeds) * flops * NETWORK_BYTES_PER_FLOP
    )


def _pool_bytes(dataset: EpisodeDataset, num_bridges: int, gap: int) -> float:
    """Return the bytes of the training data with so many bridges."""
    return (dataset.num_transitions + num_bridges * (gap + 2)) * 4.0 * (dataset.obs_dim + dataset.act_dim + 5)
