"""A rough estimate of the memory that a group of trials takes, from the sizes in the configuration.

Measured on one CPU: a process that has imported everything takes 430 MiB, 520 once it has trained; every simulated
environment one more. The estimate is meant to be high, as what it is too low by may end another process.
"""

from raystitch.config import RunConfig
from raystitch.data.episodes import EpisodeDataset

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
    flops = max(getattr(config.algorithms, algo).flops for algo in algos)
    return int(
        PROCESS_BYTES
        + COPIES * sum(column.nbytes for column in columns)
        + COPIES * min(_pool_bytes(config, dataset), config.resources.memory_gib * 2**30)
        + config.evaluation.num_envs * ENV_BYTES
        + (0.75 + 0.25 * num_seeds) * flops * NETWORK_BYTES_PER_FLOP
    )


def _pool_bytes(config: RunConfig, dataset: EpisodeDataset) -> float:
    """The training data with every bridge that is asked for, each of the longest gap."""
    bridges = config.augment.num_bridges * (config.fit.diffusion.gap_max + 2)
    return (dataset.num_transitions + bridges) * 4.0 * (dataset.obs_dim + dataset.act_dim + 5)
