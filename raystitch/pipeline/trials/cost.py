"""The plan of a run and what it will take on this machine."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from raystitch.config import ResourceConfig, RunConfig
from raystitch.console import duration
from raystitch.data.episodes import EpisodeDataset
from raystitch.data.select import ALL
from raystitch.pipeline.generate.ledger import MOST_ROUNDS
from raystitch.pipeline.trials.groups import Group, group_trials
from raystitch.pipeline.trials.plan import plan
from raystitch.pipeline.trials.rehearsal import RunPace, rehearse
from raystitch.pipeline.trials.trial import Trial
from raystitch.pipeline.trials.trial_folder import finished
from raystitch.report.files import TRIALS

ACCEPTED = 0.5
"""Share of the candidates that is taken to be accepted."""
ROUND_SECONDS = 5.0
"""Between two chain rounds: values, pools and a new index."""
START_SECONDS, STAGE_SECONDS = 5.0, 10.0
"""Until a group begins to train, and of what a run does once: Ray's start, figures, validation, the report."""


def augment_seconds(config: RunConfig, pace: RunPace) -> float:
    """Generation on one CPU, if all bridges of ``chain_rounds: auto`` come in full rounds."""
    return config.augment.num_bridges / ACCEPTED * pace.candidate + ROUND_SECONDS * _chain_rounds(config)


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


def plan_groups(resources: ResourceConfig, trials: Sequence[Trial], num_cpus: float) -> tuple[list[Group], int]:
    """How trials are grouped on ``num_cpus`` CPUs, and how many groups run at once."""
    slots = max(1, int(num_cpus / resources.trial_cpus))
    slots = min(slots, resources.max_concurrent_trials or slots)
    return group_trials(trials, resources.stacked_seeds, slots, on_gpu=resources.trial_gpus > 0), slots


def estimate(config: RunConfig, trials: Sequence[Trial], num_cpus: float, pace: RunPace) -> Mapping[str, float]:
    """Return the seconds per stage on ``num_cpus`` CPUs; a search counts as if none of its cells were stopped early."""
    groups, slots = plan_groups(config.resources, trials, num_cpus)
    seconds = [START_SECONDS + pace.group_seconds(config, group[0].algo, len(group)) for group in groups]
    num_actors = min(num_cpus, config.augment.num_actors or num_cpus)
    stages = {"fit": pace.fit, "augment": augment_seconds(config, pace) / num_actors}
    search = config.search
    if search.algorithm != "none":
        cell = START_SECONDS + pace.group_seconds(config, search.algo, len(search.seeds))
        stages["search"] = cell * max(1.0, search.num_cells / slots)
    return stages | {"trials": max(sum(seconds) / slots, max(seconds, default=0.0)), "the rest": STAGE_SECONDS}


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


def print_plan(config: RunConfig, folder: Path, where: str = "") -> None:
    """Prints the cells of the grid and their groups; looks into ``folder``, which need not exist.

    Args:
        where: what to call the folder, if not by its path.
    """
    trials = plan(config)
    console = Console()
    console.print(_cell_table(config, trials))
    groups, _ = plan_groups(config.resources, trials, _num_cpus())
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
    console.print(f"dataset {config.dataset}{part}; {bridges}; into {where or folder}", highlight=False)
    if done:
        console.print(
            f"{done} finished trials are in {where or folder} and are used where they still fit", highlight=False
        )


def print_estimate(config: RunConfig, dataset: EpisodeDataset) -> None:
    """Prints what a whole run will take, by a rehearsal on this machine."""
    trials, num_cpus = plan(config), _num_cpus()
    groups, _ = plan_groups(config.resources, trials, num_cpus)
    costs = estimate(config, trials, num_cpus, rehearse(config, dataset, groups))
    stages = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in costs.items())
    Console().print(
        f"rough estimate from a few steps of each on {num_cpus} CPUs like these: {stages}; "
        f"{duration(sum(costs.values()))} in all",
        highlight=False,
    )


def _num_cpus() -> int:
    return os.cpu_count() or 1
