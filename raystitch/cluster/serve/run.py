"""``raystitch serve``: runs the endpoint until it is told to stop, and then finishes the requests that it accepted."""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import HTTPOptions
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ServeInstanceDetails

from raystitch.cluster.local_ray import temp_folder
from raystitch.cluster.private_ray import serve_details
from raystitch.cluster.resources import Need, require_copies
from raystitch.cluster.runtime import cluster_address, ensure_ray, is_local
from raystitch.cluster.serve.application import DEPLOYMENT, NAME, build
from raystitch.cluster.signals import Requests
from raystitch.cluster.waiting import Waiting
from raystitch.console import say
from raystitch.device import resolve_device
from raystitch.endpoint.config import EndpointConfig
from raystitch.endpoint.models import load_model
from raystitch.endpoint.tokens import TOKEN_FILE_VARIABLE, TOKEN_VARIABLE, read_tokens
from raystitch.errors import RunError, UserError
from raystitch.io.config_file import plain

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_POLL_SECONDS = 0.2
_ANSWER_SECONDS = 10.0
_LOAD_SECONDS = 300.0


@dataclass(frozen=True, kw_only=True)
class Address:
    """The address of an endpoint.

    Attributes:
        host, port: where this machine (on a cluster: each of its nodes) listens.
        name: the Serve application's. prefix: of all paths, ``/`` or for example ``/team``.
    """

    host: str
    port: int
    name: str = NAME
    prefix: str = "/"

    @property
    def path(self) -> str:
        """The prefix without a trailing slash."""
        return self.prefix.rstrip("/")


def run_endpoint(
    config: EndpointConfig,
    signals: Requests,
    *,
    host: str,
    port: int,
    ready: Callable[[str], None] = lambda url: None,
    **more: Any,
) -> None:
    """Serve until SIGINT or SIGTERM; SIGHUP reads the bundles again.

    Args:
        ready: called with the address when requests are answered.
        more: ``name``, ``prefix``, ``address`` and resources, as ``serving`` takes them.

    Raises:
        UserError: a bundle that cannot be read, a port that is taken, no cluster at ``address``.
        RunError: the application does not start.
    """
    tokens = read_tokens()
    for name, model in config.models.items():
        load_model(name, model, config.stitch, "cpu")  # so that a bad bundle is refused here, in one line
    if tokens is None and host not in LOOPBACK:
        say(f"warning: {host} can be reached from elsewhere, and there is no token: anybody may use this endpoint")

    def announce(line: str) -> None:
        signals.check()
        say(line)

    signals.check()
    with serving(config, host, port, announce=announce, **more) as service:
        service.check_tokens(tokens is not None)
        signals.up = True
        ready(service.url)
        _attend(service, signals)
        say("stopping; requests that were taken on are finished")
        service.drain()


def _attend(service: "Service", signals: Requests) -> None:
    """Wait for a request to stop; reload in the background when asked to."""
    reload: threading.Thread | None = None
    while not signals.stop:
        if signals.reload and not (reload and reload.is_alive()):
            signals.reload = False
            say("reading the bundles again")
            # A daemon thread: a bundle that is slow to load must not delay a request to stop.
            reload = threading.Thread(target=_reload, args=(service,), daemon=True)
            reload.start()
        time.sleep(_POLL_SECONDS)


def _reload(service: "Service") -> None:
    """Reload the bundles; if that fails, say so and keep serving the ones before."""
    try:
        service.configure(service.config)
    except Exception as error:
        say(f"the reload failed ({_last_line(error)}); what was served before is served on, and SIGHUP tries again")
    else:
        say("done; /v1/models says whether all of them could be read")


def stop_endpoint(name: str, address: str | None) -> None:
    """Stop an endpoint that runs on a cluster, whoever started it; leave other applications alone.

    Raises:
        UserError: there is no cluster, no such application, or it is not one of raystitch.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with ensure_ray(cluster_address(address) or "auto"):
        applications = serve.status().applications
        if name not in applications:
            ours = [known for known, about in applications.items() if DEPLOYMENT in about.deployments]
            there = f"there is: {', '.join(ours)}" if ours else "there is none of raystitch"
            raise UserError(f"no endpoint named {name!r} runs on this cluster; {there}")
        if DEPLOYMENT not in applications[name].deployments:
            raise UserError(
                f"the application {name!r} on this cluster is not an endpoint of raystitch; it is left alone"
            )
        serve.delete(name)
        say(f"stopped the endpoint {name!r}")


class Service:
    """The application on a connected Ray; while it waits for room on the cluster, it says so.

    Raises:
        RunError: it does not start.
    """

    def __init__(self, config: EndpointConfig, place: Address, resources: Mapping[str, Any]) -> None:
        self.config = config
        try:
            with Waiting([_replica_need(**resources)], say).said():
                self._handle = serve.run(build(config, **resources), name=place.name, route_prefix=place.prefix)
        except (RayError, RuntimeError) as error:
            raise _not_started(error) from error
        # Serve may already be running, with its own host and port.
        http = _serve_details().http_options
        host, port = (place.host, place.port) if http is None else (http.host, http.port)
        self.url = f"http://{_reached_at(host)}:{port}{place.path}"

    def check_tokens(self, wanted: bool) -> None:
        """Refuse to go on if a token is set here and not where the replicas run, or the other way round.

        Raises:
            UserError: saying where it is set.
        """
        for there in self.ask("asks_for_token"):
            if there != wanted:
                known, unknown = ("where the replicas run", "here") if there else ("here", "where the replicas run")
                raise UserError(
                    f"a token is set {known} and not {unknown}; set {TOKEN_VARIABLE} or {TOKEN_FILE_VARIABLE} in both "
                    "places (on a cluster, on its nodes)"
                )

    def configure(self, config: EndpointConfig) -> None:
        """Give the running replicas a configuration; they answer with the old bundles while they read the new ones."""
        self._handle.broadcast("reconfigure", plain(asdict(config))).results(timeout_s=_LOAD_SECONDS)

    def ask(self, method: str) -> list[Any]:
        """Call a method of ``StitchService`` on every replica; return all results."""
        return self._handle.broadcast(method).results(timeout_s=_ANSWER_SECONDS)

    def drain(self) -> None:
        """Stop accepting requests and wait until the accepted ones are answered; dead replicas have none."""
        try:
            self.ask("drain")
            until = time.monotonic() + _longest(self.config)
            while sum(self.ask("ongoing")) and time.monotonic() < until:
                time.sleep(_POLL_SECONDS)
        except (RayError, RayServeException, TimeoutError) as error:
            say(f"note: a replica did not say what it has left to finish ({_last_line(error)})")
        # The last answers are on their way through the proxy.
        time.sleep(_POLL_SECONDS)


@contextmanager
def serving(
    config: EndpointConfig,
    host: str,
    port: int,
    *,
    name: str = NAME,
    prefix: str = "/",
    address: str | None = None,
    announce: Callable[[str], None] | None = None,
    **resources: Any,
) -> Iterator[Service]:
    """The endpoint runs inside the block, on a Ray that is connected already, at ``address``, or started here.

    At the end only the endpoint is removed. Other applications continue, and so does Serve itself, unless this process
    started Ray and nothing else is served.

    Args:
        host, port, name, prefix: as in ``Address``.
        announce: is called with a description of the Ray.
        resources: ``replicas``, ``num_cpus`` and ``num_gpus`` of ``build``.

    Raises:
        UserError: a device that is not there, a port that is taken, no cluster at ``address``, or one without room for
            the replicas or with an application of that name or prefix already.
        RunError: the application does not start.
    """
    place = Address(host=host, port=port, name=name, prefix=prefix)
    starts_ray = cluster_address(address) is None and not ray.is_initialized()
    if starts_ray:
        resolve_device(config.device)
        _check_port(host, port)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    # Ray gives a proxy five seconds to start, and then starts another; a busy machine needs longer.
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "30")
    # Nothing here blocks a replica's event loop, so neither it nor the proxy needs a second one. Read by the processes
    # that Ray starts; a running cluster has its own setting.
    os.environ.setdefault("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1")
    options = HTTPOptions(host=host, port=port, request_timeout_s=_longest(config))
    with ensure_ray(address, announce=announce):
        require_copies(_replica_need(**resources), resources.get("replicas", (1, 1))[0])
        _check_free(place, address)
        try:
            try:
                serve.start(proxy_location="HeadOnly" if starts_ray else "EveryNode", http_options=options)
            except (RayError, RuntimeError, TimeoutError) as error:
                raise _not_started(error) from error
            yield Service(config, place, resources)
        finally:
            _remove(name)


def _remove(name: str) -> None:
    """Remove one application, and Serve too if this process started Ray and nothing else is served."""
    if name in _serve_details().applications:
        serve.delete(name)
    if is_local() and not _serve_details().applications:
        serve.shutdown()


def _serve_details() -> ServeInstanceDetails:
    """Return what runs on the cluster's Serve and where it listens; empty if there is no Serve."""
    return ServeInstanceDetails(**(serve_details() or {"proxies": {}, "applications": {}}))


def _check_free(place: Address, address: str | None) -> None:
    """Refuse a name or prefix that an application on the cluster has already.

    Raises:
        UserError: saying what has it and what to do.
    """
    details = _serve_details()
    at = f" --address {address}" if address else ""
    other = "--name and --route-prefix run another one beside it"
    for name, application in details.applications.items():
        if name == place.name and DEPLOYMENT in application.deployments:
            raise UserError(
                f"an endpoint named {name!r} runs on this cluster already, or was left by a `raystitch serve` that was "
                f"killed: `raystitch serve --stop --name {name}{at}` stops it; {other}"
            )
        if name == place.name:
            raise UserError(f"another application named {name!r} runs on this cluster already; {other}")
        if application.route_prefix == place.prefix:
            raise UserError(
                f"the application {name!r} on this cluster answers at {place.prefix} already; choose another "
                "--route-prefix"
            )
    if details.http_options is not None and details.proxies:
        http = details.http_options
        if (http.host, http.port) != (place.host, place.port):
            say(f"note: Ray Serve runs on this cluster already, and listens on {http.host}:{http.port}")


def _reached_at(host: str) -> str:
    """Return the host of a URL for a listening address: a loopback one for all addresses, brackets for IPv6."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def _replica_need(num_cpus: float = 1, num_gpus: float = 0, **_: Any) -> Need:
    asked = {"CPU": num_cpus, "GPU": num_gpus}
    resources = {name: amount for name, amount in asked.items() if amount}
    return Need(who="a replica", resources=resources, advice="lower --num-cpus or --num-gpus")


def _not_started(error: Exception) -> RunError:
    logs = temp_folder() / "ray/session_latest/logs/serve"
    return RunError(f"the endpoint did not start: {_last_line(error)}; Ray's log says more: {logs}")


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def _longest(config: EndpointConfig) -> float:
    """Return the seconds after which any accepted request has been answered."""
    return config.limits.body_seconds + config.limits.deadline_seconds + 5


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--host {host} --port {port}: {reason}; stop what is there or choose another port") from error
