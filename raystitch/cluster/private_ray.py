"""The parts of Ray that raystitch needs and that have no public equivalent; no other module looks them up.

They are tried with Ray 2.60.0 alone, the newest release at the time of writing, and pyproject.toml therefore bounds Ray
below 2.61. Before the bound is raised, ``tests/cluster/test_private_ray.py`` says which names a new Ray lacks and what
depends on each; ``test_local_ray.py``, ``test_attach.py`` and ``test_waiting.py`` try the rest.

Public ways that do not do: the state API (``ray.util.state``) needs a dashboard, which a local Ray is started without;
``ray.autoscaler.v2.sdk.get_cluster_status`` leaves out requests that no node can serve; ``serve.status`` leaves out
route prefixes and the port. Imports Ray when called, to be quick (see signals.py).
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from raystitch.errors import RunError

SUPPORTED = ">=2.60,<2.61"
"""The versions of Ray that pyproject.toml allows."""

NEEDED_FOR: Mapping[str, str] = {
    "ray._private.resource_and_label_spec:ResourceAndLabelSpec": "to know this machine's resources before Ray starts",
    "ray._private.state:state.get_cluster_config": "to know which nodes an autoscaler may add",
    "ray._private.state:jobs": "to name the other jobs of a busy cluster",
    "ray._private.ray_constants:DEBUG_AUTOSCALING_STATUS": "to know whether a cluster has an autoscaler",
    "ray.experimental.internal_kv:_internal_kv_get": "to know whether a cluster has an autoscaler",
    "ray._private.worker:global_worker": "to see what waits for room on a cluster",
    "ray.core.generated.autoscaler_pb2:GetClusterStatusReply": "to see what waits for room on a cluster",
    "ray._private.grpc_utils:init_grpc_channel": "to try an address before connecting to it",
    "ray.core.generated.gcs_service_pb2:CheckAliveRequest": "to try an address before connecting to it",
    "ray.core.generated.gcs_service_pb2_grpc:NodeInfoGcsServiceStub": "to try an address before connecting to it",
    "ray._private.ray_constants:ENABLE_RAY_CLUSTER": "to keep a local Ray on 127.0.0.1",
    "ray._private.utils:set_sigterm_handler": "to stop in order on SIGTERM",
    "ray.serve.context:_get_global_client": "to see what runs on Ray Serve already",
}
"""``module:attribute`` -> the feature that fails without it."""


def lookup(name: str) -> Any:
    """Return the value of a name in ``NEEDED_FOR``.

    Raises:
        RunError: when this Ray does not have it, saying which feature needs it and which versions have it.
    """
    module, _, path = name.partition(":")
    try:
        value: Any = import_module(module)
        for attribute in path.split("."):
            value = getattr(value, attribute)
    except (ImportError, AttributeError) as error:
        raise _missing(name, NEEDED_FOR[name]) from error
    return value


def _missing(what: str, needed: str) -> RunError:
    import ray

    return RunError(
        f"Ray {ray.__version__} has no {what.replace(':', '.')}, which raystitch needs {needed}; install a version "
        f"that it was tried with: pip install 'ray{SUPPORTED}'"
    )


@dataclass(frozen=True, kw_only=True)
class NodeRoom:
    """The resources of one node of a cluster, and how much of each is free."""

    address: str
    total: Mapping[str, float]
    free: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class ClusterStatus:
    """The nodes of the connected cluster and the requests for resources that it has not met.

    Attributes:
        autoscaled: the second version of Ray's autoscaler runs.
        pending: resources of each task or actor that waits for room.
        infeasible: resources that this autoscaler has found no kind of node for.
    """

    autoscaled: bool
    nodes: list[NodeRoom]
    pending: list[dict[str, float]]
    infeasible: list[dict[str, float]]


def cluster_status() -> ClusterStatus:
    """Return the state of the connected cluster.

    Raises:
        RunError: when this Ray does not say it in the known form.
        RuntimeError: when this process is not connected to a cluster any more.
    """
    reply = lookup("ray.core.generated.autoscaler_pb2:GetClusterStatusReply")()
    worker = lookup("ray._private.worker:global_worker")
    try:
        reply.ParseFromString(worker.gcs_client.get_cluster_status())
        resources = reply.cluster_resource_state
        return ClusterStatus(
            autoscaled=reply.HasField("autoscaling_state"),
            nodes=[
                NodeRoom(
                    address=node.node_ip_address,
                    total=dict(node.total_resources),
                    free=dict(node.available_resources),
                )
                for node in resources.node_states
            ],
            pending=[dict(pending.request.resources_bundle) for pending in resources.pending_resource_requests],
            infeasible=[
                dict(request.resources_bundle) for request in reply.autoscaling_state.infeasible_resource_requests
            ],
        )
    except (AttributeError, ValueError) as error:
        import ray

        if not ray.is_initialized():
            raise RuntimeError("this process has left its cluster") from error
        needed = "to see what waits for room on a cluster"
        raise _missing(f"cluster status of the known form ({error})", needed) from error


def machine_resources() -> dict[str, float]:
    """CPU, GPU and memory (bytes) that a Ray started on this machine will have."""
    spec = lookup("ray._private.resource_and_label_spec:ResourceAndLabelSpec")
    found = spec(object_store_memory=0).resolve(is_head=False, node_ip_address="127.0.0.1")
    return {"CPU": float(found.num_cpus or 0), "GPU": float(found.num_gpus or 0), "memory": float(found.memory or 0)}


def declared_node_groups() -> list[dict[str, float]] | None:
    """Resources of each kind of node that the cluster's configuration lets it add; None where it declares no kinds."""
    config = lookup("ray._private.state:state.get_cluster_config")()
    if config is None or not config.node_group_configs:
        return None
    return [dict(group.resources) for group in config.node_group_configs if group.max_count != 0]


def autoscaler_report() -> Mapping[str, Any]:
    """The last report of the first version of the autoscaler; empty without one."""
    key = lookup("ray._private.ray_constants:DEBUG_AUTOSCALING_STATUS")
    text = lookup("ray.experimental.internal_kv:_internal_kv_get")(key)
    return (json.loads(text).get("autoscaler_report") or {}) if text else {}


def cluster_jobs() -> list[Mapping[str, Any]]:
    """Every driver that the cluster knows, dead ones too: ``JobID``, ``IsDead``, ``DriverPid``, .."""
    return lookup("ray._private.state:jobs")()


def version_at(address: str, seconds: float) -> str:
    """The version of the Ray whose cluster answers at ``HOST:PORT``.

    Raises:
        grpc.RpcError, ray.exceptions.AuthenticationError: nothing answers in time, not Ray, or Ray asks for a token.
    """
    request = lookup("ray.core.generated.gcs_service_pb2:CheckAliveRequest")()
    stub = lookup("ray.core.generated.gcs_service_pb2_grpc:NodeInfoGcsServiceStub")
    channel = lookup("ray._private.grpc_utils:init_grpc_channel")(address, options=[("grpc.enable_http_proxy", 0)])
    try:
        return stub(channel).CheckAlive(request, timeout=seconds).ray_version
    finally:
        channel.close()


def serve_details() -> Mapping[str, Any] | None:
    """The cluster's Serve as its REST API describes it; None where there is no Serve."""
    client = lookup("ray.serve.context:_get_global_client")(raise_if_no_controller_running=False)
    return None if client is None else client.get_serve_details()


@contextmanager
def on_loopback() -> Iterator[None]:
    """A Ray that is started in the block listens on 127.0.0.1 alone, as it does by itself on other systems."""
    with _replaced("ray._private.ray_constants:ENABLE_RAY_CLUSTER", False):
        yield


@contextmanager
def without_sigterm_handler() -> Iterator[None]:
    """Ray's Python code sets no handler of SIGTERM in the block."""
    with _replaced("ray._private.utils:set_sigterm_handler", lambda _: None):
        yield


@contextmanager
def _replaced(name: str, value: Any) -> Iterator[None]:
    before = lookup(name)
    module, _, attribute = name.partition(":")
    setattr(import_module(module), attribute, value)
    try:
        yield
    finally:
        setattr(import_module(module), attribute, before)
