"""The Serve application: a replica of the endpoint, the deployment around it, and ``app``, which Serve configs name.

A replica is a few lines around ``raystitch.endpoint``. ``raystitch serve`` runs the application on this machine or a
cluster (see ``run.py``); ``serve run raystitch.cluster.serve:app stitcher=DIR`` and a Serve config such as
``deploy/serve.yaml`` run the same one. Without a bundle it serves the demo's, which is fitted first.
"""

import asyncio
import logging
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from starlette.types import ASGIApp, Receive, Scope, Send

from raystitch.config import default_out, load_run_config
from raystitch.console import Progress, duration, say
from raystitch.endpoint.app import create_app
from raystitch.endpoint.config import DEFAULT_MODEL, EndpointConfig, ModelConfig
from raystitch.endpoint.models import Models
from raystitch.endpoint.problems import Problem
from raystitch.endpoint.service import Endpoint
from raystitch.endpoint.tokens import read_tokens
from raystitch.endpoint.versions import Versions
from raystitch.errors import UserError
from raystitch.io.cache import cache_folder
from raystitch.io.config_file import load_config, parse_config, plain
from raystitch.models.bundle import STITCHER_FILE
from raystitch.models.fit import FitProgress, fit_bundle

logger = logging.getLogger(__name__)

NAME = "raystitch"
DEPLOYMENT = "StitchService"
_CHOOSE_SECONDS = 60.0
MAX_REFUSED = 128
"""Requests that a replica is given beyond those that it accepts: it refuses them itself and says when to try again.
In Serve's queue their deadlines would not count."""


@serve.ingress()
class StitchService:
    """One replica. Its configuration is Serve's ``user_config``; requests continue while a changed one is loaded."""

    def __init__(self) -> None:
        _log_like_serve()
        self._tokens = read_tokens()
        self._models = Models(Versions(cache_folder() / "bundles"))
        self._endpoint: Endpoint | None = None
        self._asgi: ASGIApp | None = None

    def __serve_build_asgi_app__(self) -> ASGIApp:
        # A function: uvicorn takes a bound method for the older protocol.
        async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                await self._live(receive, send)
                return
            assert self._asgi is not None, "Serve configures a replica before it sends requests"
            await self._asgi(scope, receive, send)

        return dispatch

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.shutdown" and self._endpoint is not None:
                await asyncio.to_thread(self._endpoint.close)
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Serve this configuration: read its bundles, then put them into service all at once."""
        config = parse_config(user_config, EndpointConfig)
        await asyncio.to_thread(self._load, config)
        if self._endpoint is None:
            from raystitch.cluster.serve.metrics import ServeMetrics, scrape

            self._endpoint = Endpoint(config, self._models, ServeMetrics(), scrape, choose=_choose, exits=True)
            await self._endpoint.warm_up()
        else:
            self._endpoint.configure(config)
        self._asgi = create_app(self._endpoint, self._tokens, behind_serve=True)

    def _load(self, config: EndpointConfig) -> None:
        import torch

        torch.set_num_threads(config.num_threads or max(1, int(_reserved_cpus())))
        self._models.load(config)
        for model in self._models:
            logger.info("model %s: %s%s", model.name, model.bundle.hash, f" ({model.error})" if model.error else "")

    async def choose(self, name: str, version: str) -> str | None:
        """Serve a version of a model that was served before; return why that is impossible, or None when done."""
        assert self._endpoint is not None
        try:
            await self._endpoint.choose_here(name, version)
        except UserError as error:
            return str(error)  # as text: Ray would wrap the exception
        return None

    def asks_for_token(self) -> bool:
        """Return True if callers must show a token."""
        return self._tokens is not None

    def drain(self) -> None:
        """Accept no new requests; accepted ones are finished."""
        if self._endpoint is not None:
            self._endpoint.stopping = True

    def ongoing(self) -> int:
        """Number of requests that are not answered yet."""
        return 0 if self._endpoint is None else self._endpoint.ongoing

    def usage(self) -> tuple[int, float]:
        """The replica's process id, and the CPU seconds of its sampler's thread."""
        return os.getpid(), 0.0 if self._endpoint is None else self._endpoint.batcher.cpu_seconds

    def check_health(self) -> None:
        """Let Serve replace the replica when its sampler hangs or is gone.

        Raises:
            RuntimeError: saying which.
        """
        try:
            if self._endpoint is not None:
                self._endpoint.check_health()
        except Problem as problem:
            raise RuntimeError(problem.detail) from None


async def _choose(name: str, version: str) -> None:
    """Make every replica serve this version of a model.

    Raises:
        UserError: the version is not kept where one of them runs.
    """
    application = serve.get_replica_context().app_name
    handle = serve.get_deployment_handle(DEPLOYMENT, application)
    # Here and not in a thread: with RAY_SERVE_THROUGHPUT_OPTIMIZED a handle works in the replica's event loop alone.
    refused = await handle.broadcast("choose", name, version).results_async(timeout_s=_CHOOSE_SECONDS)
    for why in refused:
        if why is not None:
            raise UserError(why)


def _reserved_cpus() -> float:
    import ray

    return float(ray.get_runtime_context().get_assigned_resources().get("CPU", 1))


def _log_like_serve() -> None:
    """Send our log lines where Serve writes the replica's."""
    ours, theirs = logging.getLogger("raystitch"), logging.getLogger("ray.serve")
    ours.handlers, ours.propagate = list(theirs.handlers), False
    ours.setLevel(logging.INFO)


def build(
    config: EndpointConfig,
    *,
    replicas: tuple[int, int] = (1, 1),
    num_cpus: float = 1,
    num_gpus: float = 0,
) -> Application:
    """Build the application.

    Args:
        replicas: the smallest and the largest number; Serve adds and removes replicas between them.
        num_cpus, num_gpus: of one replica; fractions share a GPU.
    """
    limits, (least, most) = config.limits, replicas
    max_ongoing = config.batching.max_requests + MAX_REFUSED
    options: dict[str, Any] = {"num_replicas": least}
    if most > least:
        options = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=least,
                max_replicas=most,
                target_ongoing_requests=8,
                upscale_delay_s=5,
                downscale_delay_s=120,
            )
        }
    # Typed as if it were always a decorator without arguments.
    make_deployment: Any = serve.deployment
    deployment = make_deployment(StitchService, name=DEPLOYMENT).options(
        user_config=plain(asdict(config)),
        max_ongoing_requests=max_ongoing,
        max_queued_requests=2 * max_ongoing,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        # Retries do not help an unreadable bundle, but they may help a machine that is short of memory.
        max_constructor_retry_count=3,
        health_check_period_s=2,
        health_check_timeout_s=10,
        # As long as the last accepted request may need.
        graceful_shutdown_timeout_s=math.ceil(limits.body_seconds + limits.deadline_seconds) + 5,
        graceful_shutdown_wait_loop_s=0.5,
        ray_actor_options={"num_cpus": num_cpus, "num_gpus": num_gpus},
        logging_config={"enable_access_log": False},
        **options,
    )
    return deployment.bind()


def app(args: Mapping[str, Any]) -> Application:
    """Build the application for ``serve run raystitch.cluster.serve:app KEY=VALUE ..`` and Serve config files.

    Args:
        args: ``stitcher`` (a bundle's folder; without it and without ``models``, the demo's), ``dataset``, ``env``;
            ``num_cpus`` and ``num_gpus`` of a replica; every other key is a setting of ``EndpointConfig``
            (``limits.max_steps=500``). A deployment's ``user_config`` replaces all of them.

    Raises:
        UserError: for a key or value that is wrong.
    """
    settings = dict(args)
    model = {name: settings.pop(name) for name in ("stitcher", "dataset", "env") if name in settings}
    resources: dict[str, Any] = {
        name: float(settings.pop(name)) for name in ("num_cpus", "num_gpus") if name in settings
    }
    nested = {name: settings.pop(name) for name in list(settings) if isinstance(settings[name], Mapping)}
    config = load_config(
        None,
        EndpointConfig,
        [f"{key}={value}" for key, value in settings.items()],
        preset=parse_config(nested, EndpointConfig),
    )
    if model and "stitcher" not in model:
        raise UserError(f"{', '.join(model)} without stitcher; name the bundle's folder with stitcher=DIR")
    if model:
        config = replace(config, models={**config.models, DEFAULT_MODEL: ModelConfig(**model)})
    return build(with_demo(config), **resources)


def with_demo(config: EndpointConfig) -> EndpointConfig:
    """Return the configuration, with the demo's bundle if it names no model; fit that first if there is none."""
    if config.models:
        return config
    folder, dataset = demo_bundle()
    return replace(config, models={DEFAULT_MODEL: ModelConfig(stitcher=str(folder), dataset=dataset)})


def demo_bundle(device: str = "auto") -> tuple[Path, str]:
    """Fit the demo's bundle if there is none; return its folder (absolute) and the reference of its dataset.

    Raises:
        UserError, RunError: as ``fit_bundle``.
    """
    config = load_run_config("demo", [])
    run = default_out(config)
    if isinstance(run, str):
        raise UserError(f"RAYSTITCH_RUNS: the demo's bundle is not fitted into {run}; name a bundle with --stitcher")
    folder = (run / "stitcher").absolute()
    if not (folder / STITCHER_FILE).is_file():
        say(f"fitting the demo's models into {folder}; this is done once and takes some minutes")
        with Progress() as progress:

            def show(at: FitProgress) -> None:
                note = f"loss {at.loss:.4g}, {duration(at.seconds_left)} left"
                progress.update(at.part, at.step, at.total_steps, note)

            fit_bundle(config.dataset_ref.load(), config.fit, folder, device=device, progress=show)
    return folder, config.dataset
