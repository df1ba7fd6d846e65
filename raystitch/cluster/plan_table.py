"""The output of ``raystitch sweep --dry-run``: the trials of a run and roughly what they cost."""

import os
from pathlib import Path

from rich.console import Console
from rich.table import Table

from raystitch.config import RunConfig
from raystitch.console import duration
from raystitch.pipeline.cost import estimate, plan_groups
from raystitch.pipeline.sweep_plan import finished, plan


def print_plan(config: RunConfig, folder: Path) -> None:
    """Prints the cells of the grid, their groups and a rough estimate; looks into ``folder``, which need not exist."""
    trials = plan(config)
    cells: dict[tuple[str, str, str, str], int] = {}
    for trial in trials:
        key = (trial.algo, trial.data, trial.ratio, trial.delta or "-")
        cells[key] = cells.get(key, 0) + 1
    table = Table(title=f"{config.name}: {len(trials)} trials")
    for head in ("algo", "data", "ratio", "delta", "seeds", "steps each"):
        table.add_column(head)
    for key, seeds in cells.items():
        table.add_row(*key, str(seeds), f"{getattr(config.algorithms, key[0]).train_steps:,}")
    console = Console()
    console.print(table)
    num_cpus = os.cpu_count() or 1
    costs = estimate(config, trials, num_cpus)
    groups, _ = plan_groups(config, trials, num_cpus)
    stages = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in costs.items())
    done = sum(1 for path in (folder / "trials").glob("*") if finished(path) is not None)
    if config.search.algorithm != "none":
        search = config.search
        console.print(
            f"before them a search: {search.num_cells} cells by {search.algorithm} with {search.scheduler}, "
            f"{search.algo} on {len(search.seeds)} seeds of its own; the best joins the grid",
            highlight=False,
        )
    console.print(f"{len(trials)} trials in {len(groups)} groups of stacked seeds", highlight=False)
    console.print(f"dataset {config.dataset}; {config.augment.num_bridges:,} bridges; into {folder}", highlight=False)
    console.print(
        f"rough estimate on {num_cpus} CPUs: {stages}; {duration(sum(costs.values()))} in all", highlight=False
    )
    if done:
        console.print(f"{done} finished trials are in {folder} and are used where they still fit", highlight=False)
