"""The plan of a run and what it will take on this machine."""

import heapq
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from raystitch.config import ResourceConfig, RunConfig
from raystitch.console import duration
from raystitch.data.episodes import EpisodeDataset
from raystitch.data.select import ALL
from raystitch.pipeline.generate.ledger import MOST_ROUNDS
from raystitch.pipeline.generate.pilot import num_pilot_pairs
from raystitch.pipeline.trials.groups import Group, group_trials
from raystitch.pipeline.trials.like import ImaginedCluster
from raystitch.pipeline.trials.plan import plan
from raystitch.pipeline.trials.rehearsal import RunPace, rehearse, valued
from raystitch.pipeline.trials.trial import Trial
from raystitch.pipeline.trials.trial_folder import finished
from raystitch.report.names import TRIALS

ACCEPTED = 0.5
"""Share of the candidates that is taken to be accepted."""
ROUND_SECONDS = 5.0
"""Between two chain rounds: values, pools and a new index."""
START_SECONDS, STAGE_SECONDS = 5.0, 10.0
"""Until a group begins to train, and of what a run does once: Ray's start, figures, validation, the report."""


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """The cost of a stage: ``seconds`` by the clock on the wall, and the seconds of CPUs and GPUs that it holds.

    ``beside``: what works side by side, in words.
    """

    seconds: float
    core_seconds: float
    gpu_seconds: float = 0.0
    beside: str = ""


@dataclass(frozen=True, kw_only=True)
class Machines:
    """The machines that a run may use.

    Attributes:
        cpus: of all machines. fit_cpus, fit_gpus: that the fit holds.
        cores: that generation computes on at once. actors_cpus, actors_gpus: that its actors hold. actors: in words.
        slots: groups of trials that run at once.
    """

    cpus: float
    fit_cpus: float
    cores: float
    actors_cpus: float
    slots: int
    fit_gpus: float = 0.0
    actors_gpus: float = 0.0
    actors: str = ""

    @classmethod
    def here(cls, config: RunConfig, num_cpus: float) -> "Machines":
        """Return one machine with so many CPUs."""
        cores = min(num_cpus, config.augment.num_actors or num_cpus)
        slots = trial_slots(config.resources, int(num_cpus / config.resources.trial_cpus))
        return cls(cpus=num_cpus, fit_cpus=num_cpus, cores=cores, actors_cpus=cores, slots=slots)


def trial_slots(resources: ResourceConfig, room: int) -> int:
    """Return how many groups run at once where there is room for so many."""
    return min(max(1, room), resources.max_concurrent_trials or max(1, room))


def augment_seconds(config: RunConfig, pace: RunPace, cores: float = 1.0) -> float:
    """Generation on some CPUs, if all bridges of ``chain_rounds: auto`` come in full rounds; its pilot before it."""
    made = config.augment.num_bridges / ACCEPTED * pace.candidate / cores + ROUND_SECONDS * _chain_rounds(config)
    return made + num_pilot_pairs(config.stitch.pairs) * pace.candidate


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


def plan_groups(resources: ResourceConfig, trials: Sequence[Trial], slots: int) -> list[Group]:
    """Return how trials are grouped where so many groups run at once."""
    return group_trials(trials, resources.stacked_seeds, slots, on_gpu=resources.trial_gpus > 0)


def estimate(config: RunConfig, groups: Sequence[Group], machines: Machines, pace: RunPace) -> dict[str, StageCost]:
    """Return what each stage costs; a search counts as if none of its cells were stopped early."""
    resources, slots = config.resources, machines.slots
    made = augment_seconds(config, pace, machines.cores)
    stages = {
        "fit": StageCost(
            seconds=pace.fit,
            core_seconds=pace.fit * machines.fit_cpus,
            gpu_seconds=pace.fit * machines.fit_gpus,
            beside="one machine",
        ),
        "augment": StageCost(
            seconds=made,
            core_seconds=made * machines.actors_cpus,
            gpu_seconds=made * machines.actors_gpus,
            beside=machines.actors,
        ),
    }

    def of_groups(seconds: Sequence[float], beside: str) -> StageCost:
        worked = sum(seconds)
        return StageCost(
            seconds=_side_by_side(seconds, slots),
            core_seconds=worked * resources.trial_cpus,
            gpu_seconds=worked * resources.trial_gpus,
            beside=beside,
        )

    search = config.search
    if search.algorithm != "none":
        cell = START_SECONDS + pace.group_seconds(config, search.algo, len(search.seeds))
        stages["search"] = of_groups([cell] * search.num_cells, f"{min(slots, search.num_cells)} cells at once")
    at_once = min(slots, len(groups))
    stages["trials"] = of_groups(_group_seconds(config, groups, pace), f"{at_once} of {len(groups)} groups at once")
    return stages | {"the rest": StageCost(seconds=STAGE_SECONDS, core_seconds=STAGE_SECONDS, beside="the driver")}


def _group_seconds(config: RunConfig, groups: Sequence[Group], pace: RunPace) -> list[float]:
    """Return what each group takes; V that returns-to-go are relabelled by is fitted by the first of a cell."""
    fitted: set[str] = set()
    found: list[float] = []
    for group in groups:
        seconds = START_SECONDS + pace.group_seconds(config, group[0].algo, len(group))
        if valued(group[0]) and group[0].cell not in fitted:
            fitted.add(group[0].cell)
            seconds += pace.values.get(valued(group[0]), 0.0)
        found.append(seconds)
    return found


def _side_by_side(seconds: Sequence[float], slots: int) -> float:
    """Return how long groups take that start in order as slots become free."""
    free = [0.0] * max(1, min(slots, len(seconds)))
    for one in seconds:
        heapq.heapreplace(free, free[0] + one)
    return max(free)


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


def print_plan(config: RunConfig, folder: Path, slots: int | None = None, where: str = "") -> None:
    """Prints the cells of the grid and their groups; looks into ``folder``, which need not exist.

    Args:
        slots: groups that run at once; None for as many as this machine has room for.
        where: what to call the folder, if not by its path.
    """
    trials = plan(config)
    console = Console()
    console.print(_cell_table(config, trials))
    groups = plan_groups(config.resources, trials, slots or Machines.here(config, _num_cpus()).slots)
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
    num_cpus = _num_cpus()
    machines = Machines.here(config, num_cpus)
    groups = plan_groups(config.resources, plan(config), machines.slots)
    costs = estimate(config, groups, machines, rehearse(config, dataset, groups))
    stages = ", ".join(f"{stage} {duration(cost.seconds)}" for stage, cost in costs.items())
    Console().print(
        f"rough estimate from a few steps of each on {num_cpus} CPUs like these: {stages}; "
        f"{duration(sum(cost.seconds for cost in costs.values()))} in all, "
        f"{_hours(sum(cost.core_seconds for cost in costs.values()))} core-hours",
        highlight=False,
    )


def print_cluster_estimate(
    config: RunConfig, dataset: EpisodeDataset, machines: Machines, cluster: ImaginedCluster
) -> None:
    """Prints what a whole run will take on a cluster that is not at hand, by a rehearsal on this machine."""
    groups = plan_groups(config.resources, plan(config), machines.slots)
    pace = rehearse(config, dataset, groups)
    costs = estimate(config, groups, machines, pace)
    table = Table(title=f"on {cluster}: {cluster.text}", title_justify="left")
    table.add_column("stage")
    table.add_column("side by side")
    for head in ("time", "core-hours", *["GPU-hours"] * bool(cluster.gpus)):
        table.add_column(head, justify="right")
    for stage, cost in costs.items():
        gpus = [_hours(cost.gpu_seconds)] * bool(cluster.gpus)
        table.add_row(stage, cost.beside, duration(cost.seconds), _hours(cost.core_seconds), *gpus)
    seconds = sum(cost.seconds for cost in costs.values())
    spent = [sum(cost.core_seconds for cost in costs.values()), sum(cost.gpu_seconds for cost in costs.values())]
    gpus = [_hours(spent[1])] * bool(cluster.gpus)
    table.add_row("in all", "", duration(seconds), _hours(spent[0]), *gpus, style="bold")
    console = Console()
    console.print(table)
    held = f"{_hours(seconds * cluster.cpus)} core-hours"
    held += f" and {_hours(seconds * cluster.gpus)} GPU-hours" if cluster.gpus else ""
    lines = [f"held from beginning to end, that cluster is {held}"]
    if machines.slots > len(groups):
        room = f"{machines.slots} groups of trials would have room at once, there are {len(groups)}"
        more = "; resources.stacked_seeds=1 makes more of them" if any(len(group) > 1 for group in groups) else ""
        lines.append(f"{room}{more}")
    lines.append(_where_measured(cluster, pace, config))
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _where_measured(cluster: ImaginedCluster, pace: RunPace, config: RunConfig) -> str:
    """Say where the times come from, and what they therefore do not know."""
    text = f"times are those of a few steps of each on this machine ({_num_cpus()} CPUs, as busy as they are)"
    text += ": other CPUs differ, and the fit is not taken to be faster on more of them"
    if not cluster.gpus:
        return text
    if pace.trials_on == "cuda":
        return f"{text}; trials were timed on this machine's GPU, fit and augment on its CPUs"
    on_gpu = "fit, augment and trials" if config.resources.trial_gpus else "fit and augment"
    return f"{text}; GPUs were not measured: {on_gpu} on GPUs are given the time that CPUs take"


def _hours(seconds: float) -> str:
    hours = seconds / 3600
    return "0" if not hours else f"{hours:,.0f}" if hours >= 100 else f"{hours:.2g}" if hours >= 0.01 else "< 0.01"


def _num_cpus() -> int:
    return os.cpu_count() or 1
