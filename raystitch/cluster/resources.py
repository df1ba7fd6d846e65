"""Resources that tasks and actors need, and whether a cluster has or can add them.

If a cluster of fixed size lacks something, the command is refused at once. If an autoscaler may add the node, the wait
is announced, and it ends when Ray's autoscaler says that no kind of node it can start would do.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from raystitch.buffer.config import ActorConfig, AugmentConfig
from raystitch.cluster.actor_pools import Node, plan_pools
from raystitch.cluster.private_ray import (
    autoscaler_report,
    cluster_status,
    declared_node_groups,
    machine_resources,
)
from raystitch.cluster.runtime import is_local
from raystitch.config import ResourceConfig, RunConfig
from raystitch.console import duration, say
from raystitch.data.episodes import EpisodeDataset
from raystitch.errors import UserError
from raystitch.pipeline.trials.cost import Machines, trial_slots
from raystitch.pipeline.trials.groups import group_bytes
from raystitch.pipeline.trials.like import MEMORY, ImaginedCluster

GRACE_SECONDS = 2.0
"""The nodes of a cluster that was just started, and its autoscaler's first report, may come a little later."""
NOTE_SECONDS = 10.0
ASK_SECONDS = 6.0
"""The autoscaler looks at pending requests every five seconds."""
NO_SUCH_NODE = "and the cluster's autoscaler can add none that has it"
UNMANAGED_NODE = re.compile(r"node_[0-9a-f]{20,}")
"""The type that Ray gives a node that was started by hand."""


@dataclass(frozen=True, kw_only=True)
class Need:
    """The resources that one task or actor reserves.

    Attributes:
        who: its name in messages. advice: what to set when the resources cannot be had.
    """

    who: str
    resources: Mapping[str, float]
    advice: str

    def fits(self, node: Node) -> bool:
        return all(node.get(name, 0.0) >= amount for name, amount in self.resources.items())

    def __str__(self) -> str:
        return amounts(self.resources)


def amounts(resources: Mapping[str, float]) -> str:
    """Resources in words: ``CPU 2, GPU 1, memory 0.7 GiB``."""
    return ", ".join(_amount(name, amount) for name, amount in resources.items() if amount) or "nothing"


def _amount(name: str, amount: float) -> str:
    return f"{name} {amount / 2**30:.3g} GiB" if name == MEMORY else f"{name} {amount:g}"


def fit_need(device: str) -> Need:
    """The least that fitting needs; it takes all CPUs of a node if it can."""
    gpu = {"GPU": 1.0} if device.startswith("cuda") else {}
    return Need(who="fit", resources={"CPU": 1.0, **gpu}, advice="set resources.device: cpu" if gpu else "add CPUs")


def fit_held(device: str, nodes: Sequence[Node]) -> tuple[float, float]:
    """Return the CPUs and GPUs that a fit holds: all CPUs of the largest node, of those with a GPU if it wants one."""
    with_gpu = [node for node in nodes if device != "cpu" and node.get("GPU", 0.0) >= 1]
    return max([1.0, *(node.get("CPU", 0.0) for node in with_gpu or nodes)]), float(bool(with_gpu))


def augment_held(config: AugmentConfig) -> tuple[float, float]:
    """Return the CPUs and GPUs that all actors of a generation hold on the connected cluster."""
    pools = plan_pools([node for node in live_nodes() if node.get("CPU", 0) > 0], config)
    return (
        sum(pool.max_size * pool.num_cpus for pool in pools),
        sum(pool.max_size * pool.num_gpus for pool in pools),
    )


def actor_needs(config: AugmentConfig, device: str) -> list[Need]:
    """The needs of one proposer and one qualifier; open settings are worked out from the cluster and always fit."""

    def need(kind: str, actor: ActorConfig, cuda: bool) -> Need:
        asked = {"CPU": actor.num_cpus, "GPU": actor.num_gpus, **actor.resources}
        known = {"CPU": 0.001} | {name: amount for name, amount in asked.items() if amount}
        advice = f"lower augment.{kind}.num_cpus, num_gpus or resources"
        if cuda and actor.num_gpus is None:
            known["GPU"], advice = 1.0, f"set resources.device: cpu (augment: --device cpu), or augment.{kind}.num_gpus"
        return Need(who=f"augment.{kind}", resources=known, advice=advice)

    return [
        need("proposer", config.proposer, device.startswith("cuda")),
        need("qualifier", config.qualifier, False),
    ]


def trial_need(resources: ResourceConfig) -> Need:
    asked = {"CPU": resources.trial_cpus, "GPU": resources.trial_gpus}
    advice = f"lower resources.trial_cpus={resources.trial_cpus:g}, resources.trial_gpus={resources.trial_gpus:g}"
    if isinstance(resources.trial_memory_gib, float | int):
        asked[MEMORY] = int(resources.trial_memory_gib * 2**30)
        advice += f", resources.trial_memory_gib={resources.trial_memory_gib:g}"
    return Need(
        who="a trial",
        resources={name: amount for name, amount in asked.items() if amount},
        advice=advice,
    )


def run_needs(config: RunConfig) -> list[Need]:
    """The needs of every stage of a sweep."""
    device = config.resources.device
    return [fit_need(device), *actor_needs(config.augment, device), trial_need(config.resources)]


def require_resources(needs: Sequence[Need], augment: AugmentConfig | None = None) -> None:
    """Refuse what the connected cluster can never place; where an autoscaler decides that, ask it with idle tasks.

    Args:
        augment: its actors must fit all at once, where the cluster's size is fixed.

    Raises:
        UserError: within seconds, saying what is needed, what the largest node has and what to set.
    """
    _refuse_misfits(needs, augment)
    missing = [need for need in needs if not any(need.fits(node) for node in live_nodes())]
    if missing and node_groups() is None and cluster_status().autoscaled:
        _ask_autoscaler(missing)


def _refuse_misfits(needs: Sequence[Need], augment: AugmentConfig | None) -> None:
    """Compare needs with the nodes that are there and those that are declared; nodes may appear within seconds.

    Raises:
        UserError: see ``require_resources``.
    """
    deadline = time.monotonic() + (0.0 if is_local() else GRACE_SECONDS)
    while lacking := _lacking(needs, augment):
        if time.monotonic() >= deadline:
            raise UserError(lacking)
        time.sleep(0.5)


def _ask_autoscaler(needs: Sequence[Need]) -> None:
    """Start idle tasks, which make the second version of Ray's autoscaler say when no node it can start would do.

    Raises:
        UserError: when it says so within ``ASK_SECONDS``.
    """
    placed = [_place(need) for need in needs]
    deadline = time.monotonic() + ASK_SECONDS
    try:
        while time.monotonic() < deadline:
            for need in needs:
                if _infeasible(need):
                    raise UserError(_refusal(need, NO_SUCH_NODE))
            time.sleep(0.5)
    finally:
        for reference in placed:
            ray.cancel(reference)  # by force, one that is just finishing would end this process: Ray's own check fails


def require_copies(need: Need, count: int) -> None:
    """Refuse ``count`` of a need at once where the connected cluster's size is fixed and has no room for them.

    Raises:
        UserError: saying how many fit.
    """
    require_resources([need])
    if node_groups() != []:
        return
    asked = {name: amount for name, amount in need.resources.items() if amount}
    if not asked:
        return
    nodes = live_nodes()
    room = sum(min(int(node.get(name, 0.0) / amount + 1e-9) for name, amount in asked.items()) for node in nodes)
    if room < count:
        raise UserError(
            f"{count} times {need.who} with {need} do not fit: there is room for {room}; ask for fewer or {need.advice}"
            f"{_or_add()}"
        )


def await_node(need: Need, note: Callable[[str], None] = say, seconds: float = float("inf")) -> None:
    """Wait until a node fits the need, saying so every ten seconds while the cluster adds it on demand.

    Raises:
        UserError: when no node fits and none can be added, or none was added within ``seconds``.
    """
    if any(need.fits(node) for node in live_nodes()):
        return
    require_resources([need])
    placed = _place(need)  # something has to ask for the node, or none is added
    began = time.monotonic()
    try:
        while not any(need.fits(node) for node in live_nodes()):
            waited = time.monotonic() - began
            if _infeasible(need) or waited > seconds:
                raise UserError(_refusal(need, NO_SUCH_NODE))
            note(
                f"waiting for a node with {need} for {need.who}, which the cluster adds on demand: "
                f"{duration(waited)} so far (Ctrl-C or `ray job stop` ends it)"
            )
            for _ in range(int(NOTE_SECONDS / 0.5)):
                ready, _ = ray.wait([placed], timeout=0.5)
                if ready:
                    return
    except BaseException:
        ray.cancel(placed)
        raise  # otherwise the task runs on the new node and ends at once; see ``_ask_autoscaler``


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
    fit_cpus, fit_gpus = fit_held(config.resources.device, cluster.nodes)
    need = dict(trial_need(config.resources).resources)
    if config.resources.trial_memory_gib == "auto":
        most = len(config.seeds) if config.resources.stacked_seeds == "auto" else config.resources.stacked_seeds
        roomiest = max((node.get(MEMORY, 0.0) for node in cluster.nodes), default=0.0)
        need[MEMORY] = min(float(group_bytes(config, dataset, most)), roomiest)  # an estimate never refuses a run
    return Machines(
        cpus=cluster.cpus,
        fit_cpus=fit_cpus,
        fit_gpus=fit_gpus,
        cores=min(cluster.cpus, pools[0].max_size * pools[0].threads),
        actors_cpus=held,
        actors_gpus=sum(pool.max_size * pool.num_gpus for pool in pools),
        actors=f"{_many(pools[0].max_size, 'proposer')}, {_many(pools[1].max_size, 'qualifier')}",
        slots=trial_slots(config.resources, cluster.room(need)),
    )


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def live_nodes() -> list[Node]:
    """The resources of every live node; of this machine before Ray is started."""
    if not ray.is_initialized():
        return [machine_resources()]
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def node_groups() -> Sequence[Node] | None:
    """Kinds of nodes that may be added: empty for a cluster of fixed size, None where an autoscaler does not say."""
    if is_local():
        return []
    declared = declared_node_groups()
    if declared is not None:
        return declared
    return None if _autoscaler_acts() else []


def _autoscaler_acts() -> bool:
    """Return True if an autoscaler starts and stops nodes, rather than a person."""
    if cluster_status().autoscaled:
        return True
    said = autoscaler_report()
    types = {*said.get("active_nodes", {}), *(said.get("node_type_mapping") or {}).values()}
    return any(not UNMANAGED_NODE.fullmatch(name) for name in types)


def _infeasible(need: Need) -> bool:
    """Return True if the second version of the autoscaler has found that no node it can start would do."""
    asked = cluster_status().infeasible
    return any(all(bundle.get(name) == amount for name, amount in need.resources.items()) for bundle in asked)


def _lacking(needs: Sequence[Need], augment: AugmentConfig | None) -> str | None:
    """Return the message that refuses what fits nowhere; None if everything fits or an autoscaler decides."""
    nodes, groups = live_nodes(), node_groups()
    if groups is None:
        return None
    for need in needs:
        if not any(need.fits(node) for node in (*nodes, *groups)):
            return _refusal(need)
    return None if augment is None or groups else _no_room(augment, nodes)


def _no_room(config: AugmentConfig, nodes: Sequence[Node]) -> str | None:
    """Return why the actors do not all fit. If proposers take every slot, no qualifier can start: deadlock."""
    pools = plan_pools([node for node in nodes if node.get("CPU", 0) > 0], config)
    wanted: dict[str, float] = {}
    for pool in pools:
        for name, amount in {"CPU": pool.num_cpus, "GPU": pool.num_gpus, **pool.resources}.items():
            wanted[name] = wanted.get(name, 0.0) + pool.min_size * amount
    there = {name: sum(node.get(name, 0.0) for node in nodes) for name in wanted}
    if all(amount <= there[name] + 1e-6 for name, amount in wanted.items()):
        return None
    sizes = [f"{pool.min_size} {name}" for pool, name in zip(pools, ("proposers", "qualifiers"), strict=True)]
    return (
        f"augment starts {' and '.join(sizes)} that ask for {amounts(wanted)} together, but all nodes have "
        f"{amounts(there)}; lower augment.num_actors or what augment.proposer and augment.qualifier ask for"
        f"{_or_add()}"
    )


def _refusal(need: Need, more: str = "") -> str:
    nodes = live_nodes()
    shown = [*dict.fromkeys(["CPU", "GPU", *need.resources])]
    best = max(nodes, key=lambda node: [node.get(name, 0.0) for name in (*need.resources, *shown)], default={})
    largest = ", ".join(_amount(name, best.get(name, 0.0)) for name in shown)
    return (
        f"no machine here has what {need.who} asks for: {need}{f' {more}' if more else ''}; the largest has {largest}; "
        f"{need.advice}{_or_add()}"
    )


def _or_add() -> str:
    return "" if is_local() else ", or add a node that has it"


def _place(need: Need) -> Any:
    """Start a task that does nothing and reserves the need; the autoscaler sees its request."""
    remote: Any = ray.remote(_nothing)
    more = {name: amount for name, amount in need.resources.items() if name not in ("CPU", "GPU", MEMORY)}
    return remote.options(
        num_cpus=need.resources.get("CPU", 0),
        num_gpus=need.resources.get("GPU", 0),
        memory=need.resources.get(MEMORY),
        resources=more,
    ).remote()


def _nothing() -> None:
    """Do nothing, on a node that has the reserved resources."""
