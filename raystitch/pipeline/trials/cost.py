"""A rough estimate of what a run costs, from the sizes in its configuration."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from raystitch.config import ResourceConfig, RunConfig
from raystitch.console import duration
from raystitch.data.select import ALL
from raystitch.models.config import HeadConfig
from raystitch.pipeline.generate.ledger import MOST_ROUNDS
from raystitch.pipeline.trials.groups import Group, group_trials
from raystitch.pipeline.trials.plan import plan
from raystitch.pipeline.trials.trial import Trial
from raystitch.pipeline.trials.trial_folder import finished
from raystitch.report.files import TRIALS
from raystitch.trainers.config import TrainerSettings, flops_of

# Orders of magnitude for one thread of a server CPU; a GPU changes all of them.
FLOPS_PER_SECOND = 5e10
STEP_OVERHEAD_SECONDS = 0.003
UNET_FLOPS_FACTOR = 450.0
CANDIDATES_PER_SECOND = 200.0
ROUND_SECONDS = 5.0
"""Between two chain rounds: values, pools and a new index; it grows with the data, whose size is not looked at here."""
START_SECONDS = 5.0
EVALUATION_SECONDS = 8.0


def fit_seconds(config: RunConfig) -> float:
    """All parts of the bundle on one CPU."""
    diffusion = config.fit.diffusion
    scale = sum(m**2 for m in diffusion.multipliers) / 21 * len(diffusion.multipliers) / 3
    flops = UNET_FLOPS_FACTOR * diffusion.width**2 * diffusion.horizon * diffusion.batch_size * scale
    heads = [head for head in config.fit.heads.values() if isinstance(head, HeadConfig)]
    return diffusion.train_steps * (STEP_OVERHEAD_SECONDS + flops / FLOPS_PER_SECOND) + sum(map(_head_seconds, heads))


def _head_seconds(head: HeadConfig) -> float:
    flops = 6.0 * head.num_members * head.num_layers * head.hidden**2 * head.batch_size
    return head.train_steps * (STEP_OVERHEAD_SECONDS + flops / FLOPS_PER_SECOND)


def augment_seconds(config: RunConfig) -> float:
    """Generation on one CPU, if half of the candidates are accepted and all bridges of ``chain_rounds: auto`` come in
    full rounds."""
    sampler, diffusion = config.stitch.sampler, config.fit.diffusion
    size = sampler.num_steps / 5 * (diffusion.width / 32) ** 2 * diffusion.horizon / 32
    return 2 * config.augment.num_bridges / CANDIDATES_PER_SECOND * size + ROUND_SECONDS * _chain_rounds(config)


def _chain_rounds(config: RunConfig) -> int:
    """The chain rounds of a generation, at most where they are ``auto``."""
    augment = config.augment.resolved(config.stitch.pairs.split == "value")
    if augment.chain_rounds != "auto":
        return augment.chain_rounds
    return min(MOST_ROUNDS, -(-augment.num_bridges // augment.bridges_per_round) - 1)


def _rounds_text(config: RunConfig) -> str:
    augment = config.augment.resolved(config.stitch.pairs.split == "value")
    if augment.chain_rounds == "auto":
        return f" in at most {_chain_rounds(config) + 1} rounds"
    return f" in {augment.chain_rounds + 1} rounds" if augment.chain_rounds else ""


def group_seconds(config: TrainerSettings, num_seeds: int = 1) -> float | None:
    """Return the seconds that the policies of stacked seeds take on one CPU, in training and evaluation.

    They share the start and the overhead of steps, not the arithmetic. None where the settings have no ``flops``.
    """
    flops = flops_of(config)
    if flops is None:
        return None
    step = STEP_OVERHEAD_SECONDS + num_seeds * flops / FLOPS_PER_SECOND
    return START_SECONDS + num_seeds * EVALUATION_SECONDS + config.train_steps * step


def plan_groups(resources: ResourceConfig, trials: Sequence[Trial], num_cpus: float) -> tuple[list[Group], int]:
    """How trials are grouped on ``num_cpus`` CPUs, and how many groups run at once."""
    slots = max(1, int(num_cpus / resources.trial_cpus))
    slots = min(slots, resources.max_concurrent_trials or slots)
    return group_trials(trials, resources.stacked_seeds, slots, on_gpu=resources.trial_gpus > 0), slots


def estimate(config: RunConfig, trials: Sequence[Trial], num_cpus: float) -> Mapping[str, float]:
    """Return the seconds per stage on ``num_cpus`` CPUs, without the algorithms of ``unknown_cost``; a search counts as
    if none of its cells were stopped early."""
    groups, slots = plan_groups(config.resources, trials, num_cpus)
    of_groups = [group_seconds(group[0].settings, len(group)) for group in groups]
    seconds = [known for known in of_groups if known is not None]
    stages = {"fit": fit_seconds(config) / min(num_cpus, 2.0), "augment": augment_seconds(config) / min(num_cpus, 2.0)}
    search = config.search
    if search.algorithm != "none":
        cell = group_seconds(config.algorithms.of(search.algo), len(search.seeds))
        if cell is not None:
            stages["search"] = cell * max(1.0, search.num_cells / slots)
    return stages | {"trials": max(sum(seconds) / slots, max(seconds, default=0.0))}


def unknown_cost(config: RunConfig, trials: Sequence[Trial]) -> list[str]:
    """Return the algorithms that ``estimate`` leaves out: their settings have no ``flops``."""
    algos = dict.fromkeys(trial.algo for trial in trials)
    if config.search.algorithm != "none":
        algos |= {config.search.algo: None}
    return [algo for algo in algos if flops_of(config.algorithms.of(algo)) is None]


def _cell_table(config: RunConfig, trials: Sequence[Trial]) -> Table:
    """Return a row per cell; the column of what is done to their data only where something is."""
    shaped = any(trial.shaping.text for trial in trials)
    cells: dict[tuple[str, ...], int] = {}
    for trial in trials:
        key = (trial.algo, trial.data, trial.ratio, trial.delta or "-", *[trial.shaping.text or "-"] * shaped)
        cells[key] = cells.get(key, 0) + 1
    table = Table(title=f"{config.name}: {len(trials)} trials")
    for head in ("algo", "data", "ratio", "delta", *["shaping"] * shaped, "seeds", "steps each"):
        table.add_column(head)
    for key, seeds in cells.items():
        table.add_row(*key, str(seeds), f"{config.algorithms.of(key[0]).train_steps:,}")
    return table


def print_plan(config: RunConfig, folder: Path) -> None:
    """Prints the cells of the grid, their groups and a rough estimate; looks into ``folder``, which need not exist."""
    trials = plan(config)
    console = Console()
    console.print(_cell_table(config, trials))
    num_cpus = os.cpu_count() or 1
    costs = estimate(config, trials, num_cpus)
    groups, _ = plan_groups(config.resources, trials, num_cpus)
    stages = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in costs.items())
    done = sum(1 for path in (folder / TRIALS).glob("*") if finished(path) is not None)
    if config.search.algorithm != "none":
        search = config.search
        console.print(
            f"before them a search: {search.num_cells} cells by {search.algorithm} with {search.scheduler}, "
            f"{search.algo} on {len(search.seeds)} seeds of its own; the best joins the grid",
            highlight=False,
        )
    console.print(f"{len(trials)} trials in {len(groups)} groups of stacked seeds", highlight=False)
    part = "" if config.select == ALL else f", select {config.select}"
    bridges = f"{config.augment.num_bridges:,} bridges{_rounds_text(config)}"
    console.print(f"dataset {config.dataset}{part}; {bridges}; into {folder}", highlight=False)
    console.print(
        f"rough estimate on {num_cpus} CPUs: {stages}; {duration(sum(costs.values()))} in all", highlight=False
    )
    unknown = unknown_cost(config, trials)
    if unknown:
        console.print(
            f"without the trials of {', '.join(unknown)}, whose settings do not say what a step computes",
            highlight=False,
        )
    if done:
        console.print(f"{done} finished trials are in {folder} and are used where they still fit", highlight=False)
