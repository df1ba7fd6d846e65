"""``raystitch serve``: the endpoint up, until it is told to stop; what was taken on is finished."""

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.config import HTTPOptions

from raystitch.cluster.runtime import ensure_ray
from raystitch.cluster.serve import NAME, build
from raystitch.console import say
from raystitch.endpoint.config import EndpointConfig
from raystitch.endpoint.models import load_model
from raystitch.endpoint.security import read_token
from raystitch.errors import RunError, UserError

_POLL_SECONDS = 0.2


def run_endpoint(
    config: EndpointConfig,
    *,
    host: str,
    port: int,
    replicas: tuple[int, int] = (1, 1),
    num_cpus: float = 1,
    num_gpus: float = 0,
    address: str | None = None,
    ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serves until SIGINT or SIGTERM; SIGHUP reads the bundles again.

    Args:
        host, port: where this machine (on a cluster: each of its nodes) listens.
        replicas: the least and the most.
        ready: called with the address when requests are answered.

    Raises:
        UserError: a bundle that cannot be read, a port that is taken, no cluster at ``address``.
        RunError: the application does not start.
    """
    token = read_token()
    for name, model in config.models.items():
        load_model(name, model, config.stitch, "cpu")  # what is wrong with it is said here, in one line
    if address is None and "RAY_ADDRESS" not in os.environ:
        _check_port(host, port)
    if token is None and host not in ("127.0.0.1", "localhost", "::1"):
        say(f"warning: {host} can be reached from elsewhere, and there is no token: anybody may use this endpoint")
    longest = config.limits.body_seconds + config.limits.deadline_seconds + 5
    options = HTTPOptions(host=host, port=port, request_timeout_s=longest)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    # Ray gives a proxy five seconds to start, and then starts another; a busy machine needs longer.
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "30")
    with ensure_ray(address), _signals() as asked:
        try:
            serve.start(proxy_location="HeadOnly" if address is None else "EveryNode", http_options=options)
            resources = {"replicas": replicas, "num_cpus": num_cpus, "num_gpus": num_gpus}
            handle = serve.run(build(config, **resources), name=NAME, route_prefix="/")
        except (RayError, RuntimeError) as error:
            raise RunError(f"the endpoint did not start: {str(error).strip().splitlines()[-1]}") from error
        try:
            ready(f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}")
            generation = 0
            while "stop" not in asked:
                if "reload" in asked:
                    asked.discard("reload")
                    generation += 1
                    say("reading the bundles again")
                    again = replace(config, reload=f"{config.reload}-{generation}")
                    serve.run(build(again, **resources), name=NAME, route_prefix="/")
                    say("done; /v1/models says whether all of them could be read")
                time.sleep(_POLL_SECONDS)
            say("stopping; requests that were taken on are finished")
            _drain(handle, longest)
        finally:
            serve.delete(NAME)
            serve.shutdown()


def _drain(handle: Any, seconds: float) -> None:
    """Nothing new is taken on; waits until what was is answered."""
    handle.broadcast("drain").results(timeout_s=10)
    until = time.monotonic() + seconds
    while sum(handle.broadcast("ongoing").results(timeout_s=10)) and time.monotonic() < until:
        time.sleep(_POLL_SECONDS)
    # The last answers are on their way through the proxy.
    time.sleep(_POLL_SECONDS)


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
