"""A run's plan for a cluster that is not at hand: what each stage would hold there, and whether it fits."""

from raystitch.cluster.actor_pools import plan_pools
from raystitch.cluster.resources import MEMORY, amounts, run_needs, trial_need
from raystitch.config import RunConfig
from raystitch.data.episodes import EpisodeDataset
from raystitch.errors import UserError
from raystitch.pipeline.trials.cost import Machines, trial_slots
from raystitch.pipeline.trials.groups import group_bytes
from raystitch.pipeline.trials.like import ImaginedCluster


def machines_of(config: RunConfig, dataset: EpisodeDataset, cluster: ImaginedCluster) -> Machines:
    """Return what a run would use of a cluster.

    Raises:
        UserError: when a stage asks for what no node has.
    """
    for need in run_needs(config):
        if not cluster.room(need.resources):
            asks = f"no node of {cluster.text} has what {need.who} asks for: {need}"
            raise UserError(f"{asks}; {need.advice}, or add a node that has it")
    pools = plan_pools(cluster.nodes, config.augment)
    held = sum(pool.max_size * pool.num_cpus for pool in pools)
    if held > cluster.cpus + 1e-6:
        raise UserError(
            f"augment starts {pools[0].max_size} proposers and {pools[1].max_size} qualifiers that ask for "
            f"{amounts({'CPU': held})} together, but all nodes of {cluster.text} have {cluster.cpus:g}; lower "
            "augment.num_actors or what augment.proposer and augment.qualifier ask for"
        )
    largest = max(cluster.nodes, key=lambda node: (bool(node["GPU"]), node["CPU"]))
    on_gpu = config.resources.device != "cpu" and largest["GPU"] > 0
    need = dict(trial_need(config.resources).resources)
    if config.resources.trial_memory_gib == "auto":
        most = len(config.seeds) if config.resources.stacked_seeds == "auto" else config.resources.stacked_seeds
        roomiest = max((node.get(MEMORY, 0.0) for node in cluster.nodes), default=0.0)
        need[MEMORY] = min(float(group_bytes(config, dataset, most)), roomiest)  # an estimate never refuses a run
    return Machines(
        cpus=cluster.cpus,
        fit_cpus=largest["CPU"] if on_gpu else max(node["CPU"] for node in cluster.nodes),
        fit_gpus=1.0 if on_gpu else 0.0,
        cores=min(cluster.cpus, pools[0].max_size * pools[0].threads),
        actors_cpus=held,
        actors_gpus=sum(pool.max_size * pool.num_gpus for pool in pools),
        actors=f"{_many(pools[0].max_size, 'proposer')}, {_many(pools[1].max_size, 'qualifier')}",
        slots=trial_slots(config.resources, cluster.room(need)),
    )


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"
