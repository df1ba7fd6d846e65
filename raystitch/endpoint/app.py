"""The endpoint as a FastAPI application: the routes. Everything that does not need HTTP is in service.py."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

import fastapi_offline
import numpy as np
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from raystitch.data.episodes import EpisodeDataset
from raystitch.endpoint import documents, json_wire
from raystitch.endpoint.problems import FieldError, Problem
from raystitch.endpoint.security import Guard, HostCheck, TokenCheck, fault_problem
from raystitch.endpoint.service import Endpoint
from raystitch.endpoint.tokens import Tokens

STUDIO = Path(__file__).parent.parent / "studio"
_VIEWER = Path(fastapi_offline.__file__).parent / "static"
_COMPRESS_FROM = 16 * 1024


def create_app(endpoint: Endpoint, tokens: Tokens | None = None, *, behind_serve: bool = False) -> ASGIApp:
    """The ASGI application.

    Args:
        tokens: callers must show one of them; None lets everybody in.
        behind_serve: Ray Serve's proxy writes the request's id into the answer, and its replica ends the endpoint.
    """
    config = endpoint.config

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        if not behind_serve:
            await asyncio.to_thread(endpoint.close)

    app = FastAPI(
        title="raystitch",
        version=version("raystitch"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # it would redirect callers to any host that they name
    )
    if tokens is not None:
        app.add_middleware(TokenCheck, tokens=tokens, config=config, recorder=endpoint.recorder)
    app.add_middleware(GZipMiddleware, minimum_size=_COMPRESS_FROM, compresslevel=1)
    if config.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(config.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "content-encoding", "prefer", "x-request-id"],
            expose_headers=["retry-after", "x-request-id"],
        )
    app.add_middleware(PrefixRoot)
    app.add_middleware(HostCheck, allowed=config.allowed_hosts, recorder=endpoint.recorder)
    _add_errors(app)
    _add_stitching(app, endpoint)
    _add_models(app, endpoint)
    _add_episodes(app, endpoint)
    _add_versions(app, endpoint, protected=tokens is not None)
    _add_operation(app, endpoint)
    _add_pages(app)
    make = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = documents.document(make(), protected=tokens is not None)
        return app.openapi_schema

    app.openapi = openapi
    return Guard(app, sends_id=not behind_serve)


class PrefixRoot:
    """Redirect a prefix without its slash to the page there, because the page's own addresses are relative."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        root = scope.get("root_path", "")
        if scope["type"] == "http" and root and scope["path"] == root:
            # The redirect is relative too: a proxy in front of this may add its own prefix.
            redirect = Response(status_code=307, headers={"Location": f"{quote(root.rpartition('/')[2])}/"})
            await redirect(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _add_errors(app: FastAPI) -> None:
    """Answer all errors in one shape."""

    async def problem(request: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)
        return error.response(request.state.request_id)

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        detail = f"{request.method} {request.scope['path'][:200]}: {error.detail}"
        return Problem(error.status_code, detail, headers=dict(error.headers or {})).response(request.state.request_id)

    async def query(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        errors = [FieldError(".".join(str(part) for part in e["loc"][1:]), e["msg"]) for e in error.errors()]
        detail = f"{errors[0].field}: {errors[0].message}"
        return Problem(422, detail, errors).response(request.state.request_id)

    async def fault(request: Request, _: Exception) -> Response:
        return fault_problem().response(request.state.request_id)  # ``Guard`` logs it

    app.add_exception_handler(Problem, problem)
    app.add_exception_handler(Exception, fault)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, query)


def _add_stitching(app: FastAPI, endpoint: Endpoint) -> None:
    @app.post(
        "/v1/stitch",
        responses=documents.refusals(400, 401, 406, 408, 413, 415, 421, 422, 429, 503, 504),
        openapi_extra=documents.stitch_extra(endpoint.config.limits),
        summary="The bridge between two trajectories",
    )
    async def stitch(request: Request) -> Response:
        return await endpoint.stitch(request)


def _json(content: Any) -> Response:
    return Response(json_wire.write_json(content), media_type=json_wire.MEDIA_TYPE)


def _add_models(app: FastAPI, endpoint: Endpoint) -> None:
    @app.get("/v1/models", response_model=documents.ModelsBody, responses=documents.refusals(401, 421, 429))
    def models() -> Response:
        return _json({"models": [model.describe(endpoint.config.limits) for model in endpoint.models]})

    @app.get("/v1/models/{name}", response_model=documents.ModelBody, responses=documents.refusals(401, 404, 421, 429))
    def model(name: str) -> Response:
        return _json(endpoint.models.get(name).describe(endpoint.config.limits))


def _add_episodes(app: FastAPI, endpoint: Endpoint) -> None:
    def dataset_of(name: str) -> EpisodeDataset:
        model = endpoint.models.get(name)
        if model.dataset is None:
            raise Problem(404, f"no dataset is served with the model {name!r}; start the endpoint with --dataset REF")
        return model.dataset

    @app.get(
        "/v1/models/{name}/episodes",
        response_model=documents.EpisodesBody,
        responses=documents.refusals(401, 404, 421, 422, 429),
    )
    def episodes(
        name: str,
        order: Literal["return", "length", "index"] = "index",
        descending: bool = False,
        offset: Annotated[int, Query(ge=0, le=10**12)] = 0,
        limit: Annotated[int, Query(ge=1, le=500)] = 50,
    ) -> Response:
        dataset = dataset_of(name)
        keys = {"return": dataset.returns, "length": dataset.lengths, "index": np.arange(dataset.num_episodes)}
        order_of = np.argsort(-keys[order] if descending else keys[order], kind="stable")
        shown = [
            {
                "index": int(index),
                "steps": int(dataset.lengths[index]),
                "return": float(dataset.returns[index]),
                "terminated": bool(dataset.terminated[index]),
            }
            for index in order_of[offset : offset + limit]
        ]
        return _json({"total": dataset.num_episodes, "episodes": shown})

    @app.get(
        "/v1/models/{name}/episodes/{index}",
        response_model=documents.EpisodeBody,
        responses=documents.refusals(401, 404, 421, 422, 429),
    )
    def episode(name: str, index: int) -> Response:
        dataset = dataset_of(name)
        if not 0 <= index < dataset.num_episodes:
            raise Problem(404, f"there is no episode {index}; there are 0 .. {dataset.num_episodes - 1}")
        one = dataset.episode(index)
        return _json(
            {
                "index": index,
                "return": float(dataset.returns[index]),
                "observations": one.observations,
                "actions": one.actions,
                "rewards": one.rewards,
                "terminated": one.terminated,
            }
        )


def _add_versions(app: FastAPI, endpoint: Endpoint, *, protected: bool) -> None:
    @app.put(
        "/v1/models/{name}/version",
        response_model=documents.ModelBody,
        responses=documents.refusals(400, 401, 403, 404, 408, 413, 422, 429, 503),
        openapi_extra=documents.version_extra(),
        summary="Serve another version of a model, such as the one before",
    )
    async def choose(name: str, request: Request) -> Response:
        if not protected:
            raise Problem(
                403,
                "changing the served version requires a token; start the endpoint with RAYSTITCH_TOKEN",
            )
        model = await endpoint.choose_version(name, request)
        return _json(model.describe(endpoint.config.limits))


def _add_operation(app: FastAPI, endpoint: Endpoint) -> None:
    @app.get("/healthz", response_model=documents.StateBody, responses=documents.refusals(503))
    async def healthz() -> Any:
        endpoint.check_health()
        return {"status": "ok"}

    @app.get("/readyz", response_model=documents.StateBody, responses=documents.refusals(503))
    async def readyz() -> Any:
        endpoint.check_ready()
        return {"status": "ready"}

    @app.get("/metrics", response_class=PlainTextResponse, responses=documents.refusals(401, 404, 421, 429, 503))
    async def metrics() -> Response:
        if endpoint.scrape is None:
            raise Problem(404, "this server has no metrics; `raystitch serve` has")
        return Response(await endpoint.scrape(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_pages(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def studio() -> Response:
        return FileResponse(STUDIO / "index.html", headers={"Cache-Control": "no-cache"})

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        # The viewer sets styles on elements; scripts come from here alone.
        policy = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; object-src 'none'"
        return FileResponse(STUDIO / "docs.html", headers={"Content-Security-Policy": policy})

    app.mount("/docs/viewer", StaticFiles(directory=_VIEWER))
    app.mount("/studio", _StudioFiles(directory=STUDIO))


class _StudioFiles(StaticFiles):
    """The studio's files. Browsers revalidate them each time, so that an upgrade is seen at once."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        if path.endswith(".py"):
            raise HTTPException(404)
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "no-cache"
        return response
