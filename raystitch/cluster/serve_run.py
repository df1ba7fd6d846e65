"""``raystitch serve``: the endpoint up, until it is told to stop; what was taken on is finished."""

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from types import FrameType
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import HTTPOptions

from raystitch.cluster.resources import Need, check_copies
from raystitch.cluster.runtime import cluster_address, ensure_ray
from raystitch.cluster.serve import NAME, build
from raystitch.config_file import plain
from raystitch.console import say
from raystitch.device import resolve_device
from raystitch.endpoint.config import EndpointConfig
from raystitch.endpoint.models import load_model
from raystitch.endpoint.security import read_token
from raystitch.errors import RunError, UserError

_POLL_SECONDS = 0.2
_ANSWER_SECONDS = 10.0
_LOAD_SECONDS = 300.0


def run_endpoint(
    config: EndpointConfig,
    *,
    host: str,
    port: int,
    address: str | None = None,
    ready: Callable[[str], None] = lambda url: None,
    **resources: Any,
) -> None:
    """Serves until SIGINT or SIGTERM; SIGHUP reads the bundles again.

    Args:
        host, port: where this machine (on a cluster: each of its nodes) listens.
        resources: ``replicas``, ``num_cpus``, ``num_gpus`` of ``build``.
        ready: called with the address when requests are answered.

    Raises:
        UserError: a bundle that cannot be read, a port that is taken, no cluster at ``address``.
        RunError: the application does not start.
    """
    token = read_token()
    for name, model in config.models.items():
        load_model(name, model, config.stitch, "cpu")  # what is wrong with it is said here, in one line
    if token is None and host not in ("127.0.0.1", "localhost", "::1"):
        say(f"warning: {host} can be reached from elsewhere, and there is no token: anybody may use this endpoint")
    # In this order: connecting to Ray has signal handlers of its own.
    with serving(config, host, port, address=address, announce=say, **resources) as service, _signals() as asked:
        ready(service.url)
        while "stop" not in asked:
            if "reload" in asked:
                asked.discard("reload")
                say("reading the bundles again")
                service.configure(config)
                say("done; /v1/models says whether all of them could be read")
            time.sleep(_POLL_SECONDS)
        say("stopping; requests that were taken on are finished")
        service.drain()


class Service:
    """The application on a connected Ray.

    Raises:
        RunError: it does not start.
    """

    def __init__(self, config: EndpointConfig, url: str, resources: Mapping[str, Any]) -> None:
        self.config = config
        self.url = url
        try:
            self._handle = serve.run(build(config, **resources), name=NAME, route_prefix="/")
        except (RayError, RuntimeError) as error:
            raise _not_started(error) from error

    def configure(self, config: EndpointConfig) -> None:
        """Gives the running replicas a configuration; they read its bundles while requests go on with the old ones."""
        self._handle.broadcast("reconfigure", plain(asdict(config))).results(timeout_s=_LOAD_SECONDS)

    def ask(self, method: str) -> list[Any]:
        """What a method of ``StitchService`` returns, of every replica."""
        return self._handle.broadcast(method).results(timeout_s=_ANSWER_SECONDS)

    def drain(self) -> None:
        """Nothing new is taken on; waits until what was is answered."""
        self.ask("drain")
        until = time.monotonic() + _longest(self.config)
        while sum(self.ask("ongoing")) and time.monotonic() < until:
            time.sleep(_POLL_SECONDS)
        # The last answers are on their way through the proxy.
        time.sleep(_POLL_SECONDS)


@contextmanager
def serving(
    config: EndpointConfig,
    host: str,
    port: int,
    *,
    address: str | None = None,
    announce: Callable[[str], None] | None = None,
    **resources: Any,
) -> Iterator[Service]:
    """The endpoint is up inside the block, on a Ray that is there already, at ``address``, or started here.

    Args:
        announce: is told which Ray it is. resources: ``replicas``, ``num_cpus``, ``num_gpus`` of ``build``.

    Raises:
        UserError: a device that is not there, a port that is taken, no cluster at ``address``, or one without room for
            the replicas or with an endpoint already.
        RunError: the application does not start.
    """
    is_local = cluster_address(address) is None and not ray.is_initialized()
    if is_local:
        resolve_device(config.device)
        _check_port(host, port)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    # Ray gives a proxy five seconds to start, and then starts another; a busy machine needs longer.
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "30")
    # Nothing here blocks a replica's event loop, so it needs no second one, nor does the proxy (read by the processes
    # that Ray starts; a cluster's are told when it is started).
    os.environ.setdefault("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1")
    options = HTTPOptions(host=host, port=port, request_timeout_s=_longest(config))
    with ensure_ray(address, announce=announce):
        check_copies(_replica_need(**resources), resources.get("replicas", (1, 1))[0])
        status = serve.status()
        if NAME in status.applications:
            raise UserError(
                "an endpoint of raystitch runs on this cluster already; stop it, or configure it with `serve deploy`"
            )
        was_running = bool(status.proxies)
        if was_running:
            say("note: Ray Serve runs on this cluster already and keeps the host and port that it was started with")
        try:
            try:
                serve.start(proxy_location="HeadOnly" if is_local else "EveryNode", http_options=options)
            except (RayError, RuntimeError, TimeoutError) as error:
                raise _not_started(error) from error
            yield Service(config, f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}", resources)
        finally:
            serve.delete(NAME)
            if not was_running:
                serve.shutdown()


def _replica_need(num_cpus: float = 1, num_gpus: float = 0, **_: Any) -> Need:
    asked = {"CPU": num_cpus, "GPU": num_gpus}
    resources = {name: amount for name, amount in asked.items() if amount}
    return Need(who="a replica", resources=resources, advice="lower --num-cpus or --num-gpus")


def _not_started(error: Exception) -> RunError:
    last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    return RunError(f"the endpoint did not start: {last}; Ray's log says more: /tmp/ray/session_latest/logs/serve")


def _longest(config: EndpointConfig) -> float:
    """Seconds after which any request has been answered."""
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


@contextmanager
def _signals() -> Iterator[set[str]]:
    """What signals ask for: ``stop``, ``reload``; a second request to stop is an interrupt at once."""
    asked: set[str] = set()

    def stop(number: int, frame: FrameType | None) -> None:
        if "stop" in asked:
            raise KeyboardInterrupt
        asked.add("stop")

    def reload(number: int, frame: FrameType | None) -> None:
        asked.add("reload")

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    handlers = {signal.SIGINT: stop, signal.SIGTERM: stop, signal.SIGHUP: reload}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
