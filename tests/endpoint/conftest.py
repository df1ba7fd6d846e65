"""One tiny fitted bundle behind the endpoint's ASGI application, called in process or through real sockets."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
import uvicorn
from starlette.types import ASGIApp

from raystitch.data.d4rl import write_d4rl
from raystitch.data.episodes import EpisodeDataset, Floats
from raystitch.data.load import load_dataset
from raystitch.endpoint.app import create_app
from raystitch.endpoint.config import EndpointConfig, ModelConfig
from raystitch.endpoint.metrics import NoRecorder
from raystitch.endpoint.models import Models
from raystitch.endpoint.service import Endpoint
from raystitch.endpoint.tokens import Tokens
from raystitch.models.config import FitConfig
from raystitch.models.fit import fit_bundle

ARROW, JSON, PROBLEM = "application/vnd.apache.arrow.stream", "application/json", "application/problem+json"
STITCH = "/v1/stitch"


class Counts(NoRecorder):
    """Remembers what was recorded."""

    def __init__(self) -> None:
        self.outcomes: list[str] = []
        self.calls: list[tuple[int, int]] = []
        self.faults: list[list[str]] = []
        self.refusals: list[str] = []
        self.names: list[str] = []

    def answered(self, outcome: str, seconds: float) -> None:
        self.outcomes.append(outcome)

    def called(self, requests: int, candidates: int, seconds: float) -> None:
        self.calls.append((requests, candidates))

    def refused(self, reason: str) -> None:
        self.refusals.append(reason)

    def let_in(self, token: str) -> None:
        self.names.append(token)

    def fault(self, error: BaseException, request_ids: Any) -> None:
        self.faults.append(list(request_ids))


@dataclass
class Served:
    """An endpoint and its application."""

    endpoint: Endpoint
    app: ASGIApp
    counts: Counts
    headers: dict[str, str] = field(default_factory=dict[str, str])

    def request(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        """One request on an event loop of its own. What the application raises is raised here."""
        return self.together([lambda client: client.request(method, path, **kwargs)])[0]

    def get(self, path: str, **kwargs: Any) -> httpx.Response:
        return self.request("GET", path, **kwargs)

    def post(self, content: Any, **kwargs: Any) -> httpx.Response:
        """To ``/v1/stitch``: a dict as JSON, bytes as Arrow unless ``headers`` say otherwise."""
        if isinstance(content, bytes):
            kwargs["headers"] = {"Content-Type": ARROW, **kwargs.get("headers", {})}
            return self.request("POST", STITCH, content=content, **kwargs)
        return self.request("POST", STITCH, json=content, **kwargs)

    def together(self, requests: list[Callable[[httpx.AsyncClient], Any]]) -> list[Any]:
        """Several requests at once, on one event loop."""

        async def run() -> list[Any]:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(
                transport=transport, base_url="http://localhost", headers=self.headers, timeout=60
            ) as client:
                return list(await asyncio.gather(*[request(client) for request in requests]))

        return asyncio.run(run())

    def counted(self) -> tuple[int, int, int]:
        """Candidates that are queued, requests that are received and unanswered."""
        return self.endpoint.batcher.num_queued, self.endpoint.receiving, self.endpoint.ongoing

    def is_idle(self, seconds: float = 5) -> bool:
        """Whether all of these come back to 0: what is being computed is finished, whoever left."""
        until = time.monotonic() + seconds
        while self.counted() != (0, 0, 0) and time.monotonic() < until:
            time.sleep(0.002)
        return self.counted() == (0, 0, 0)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory, drift: EpisodeDataset, tiny_fit: FitConfig) -> ModelConfig:
    """A bundle's folder and the D4RL file that it was fitted on."""
    root = tmp_path_factory.mktemp("endpoint")
    dataset = f"d4rl:{root / 'drift.hdf5'}"
    write_d4rl(drift, root / "drift.hdf5")
    fit_bundle(load_dataset(dataset), tiny_fit, root / "stitcher", "cpu")
    return ModelConfig(stitcher=str(root / "stitcher"), dataset=dataset)


@pytest.fixture(scope="session")
def models(files: ModelConfig) -> Models:
    """That bundle as ``default`` and, without its dataset, as ``bare``."""
    models = Models()
    bare = replace(files, dataset=None)
    models.load(EndpointConfig(models={"default": files, "bare": bare}, device="cpu"))
    return models


Serve = Callable[..., Served]


@contextmanager
def serving(models: Models, token: str | None = None, tokens: Tokens | None = None, **config: Any) -> Iterator[Served]:
    """An endpoint of its own over models that are loaded already."""
    counts = Counts()
    endpoint = Endpoint(EndpointConfig(device="cpu", **config), models, counts)
    try:
        yield Served(endpoint, create_app(endpoint, tokens or (Tokens.one(token) if token else None)), counts)
    finally:
        endpoint.close()


@pytest.fixture(scope="session")
def served(models: Models) -> Iterator[Served]:
    """The endpoint as it is without any setting."""
    with serving(models) as served:
        yield served


@pytest.fixture
def idle(served: Served) -> Iterator[None]:
    """Checks that a test leaves nothing behind."""
    yield
    assert served.is_idle()


@contextmanager
def listening(app: ASGIApp) -> Iterator[int]:
    """The application behind uvicorn on a port of its own, with its lifespan."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, lifespan="on", timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="uvicorn")
    thread.start()
    while not server.started:
        thread.join(0.01)
        assert thread.is_alive()
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)
    assert not thread.is_alive()


def walk(num_states: int, seed: int, obs_dim: int = 4) -> Floats:
    """float32 [num_states, obs_dim]: steps like those of the dataset."""
    rng = np.random.default_rng(seed)
    return np.cumsum(rng.normal(0, 0.1, (num_states, obs_dim)), 0).astype(np.float32)


def full(num_states: int, seed: int) -> dict[str, Any]:
    """A trajectory with all its columns, as JSON."""
    rng = np.random.default_rng(seed + 1000)
    return {
        "observations": walk(num_states, seed).tolist(),
        "actions": rng.uniform(-1, 1, (num_states - 1, 2)).astype(np.float32).tolist(),
        "rewards": rng.normal(size=num_states - 1).astype(np.float32).tolist(),
    }


def body(source: int = 14, target: int = 12, seed: int = 0, **options: Any) -> dict[str, Any]:
    """A request as JSON: trajectories with that many states."""
    return {"source": full(source, seed), "target": full(target, seed + 1), "options": options}


def table(request: dict[str, Any]) -> pa.Table:
    """The request as the table of ``/v1/stitch``."""
    columns: dict[str, list[Any]] = {"role": [], "step": [], "observation": [], "action": [], "reward": []}
    options = dict(request.get("options", {}))
    for role in ("source", "target"):
        given = request[role]
        count = len(given["observations"])
        columns["role"] += [role] * count
        columns["step"] += range(count)
        columns["observation"] += given["observations"]
        columns["action"] += [*(given.get("actions") or [None] * (count - 1)), None]
        columns["reward"] += [*(given.get("rewards") or [None] * (count - 1)), None]
        if given.get("terminated"):
            options[f"{role}_terminated"] = True
    types = {
        "role": pa.utf8(),
        "step": pa.int32(),
        "observation": pa.list_(pa.float32(), len(columns["observation"][0])),
        "action": pa.list_(pa.float32(), 2),
        "reward": pa.float32(),
    }
    made = pa.table({name: pa.array(values, types[name]) for name, values in columns.items()})
    return made.replace_schema_metadata({"options": json.dumps(options)})


def stream(content: pa.Table, chunk: int | None = None, options: pa.ipc.IpcWriteOptions | None = None) -> bytes:
    """An Arrow IPC stream, in batches of at most ``chunk`` rows."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, content.schema, options=options) as writer:
        writer.write_table(content, max_chunksize=chunk)
    return sink.getvalue().to_pybytes()


def read_stream(content: bytes) -> dict[str, Any]:
    """An Arrow answer as the JSON answer would be."""
    made = pa.ipc.open_stream(content).read_all()
    result = json.loads(made.schema.metadata[b"result"])
    rows = made.to_pydict()
    assert rows["step"] == list(range(made.num_rows))
    assert rows["action"][-1] is rows["reward"][-1] is rows["is_synthetic"][-1] is None
    return {
        **result,
        "trajectory": {
            "observations": rows["observation"],
            "actions": rows["action"][:-1],
            "rewards": rows["reward"][:-1],
            "is_synthetic": rows["is_synthetic"][:-1],
        },
    }


def assert_same(one: Any, other: Any, path: str = "answer") -> None:
    """Equal but for the request's id; floats to 1e-4."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for name in one:
            if name != "request_id":
                assert_same(one[name], other[name], f"{path}.{name}")
    elif isinstance(one, list):
        assert len(one) == len(other), path
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{path}[{index}]")
    elif isinstance(one, float):
        assert other == pytest.approx(one, rel=1e-4, abs=1e-4), path
    else:
        assert one == other, path


def refused(response: httpx.Response, status: int) -> dict[str, Any]:
    """The problem that a refusal says, checked for its form."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == PROBLEM
    problem = response.json()
    assert problem["status"] == status
    assert problem["request_id"] == response.headers["x-request-id"]
    assert problem["title"] and problem["detail"] and "Traceback" not in response.text
    assert ("errors" in problem) == (status == 422)
    return problem


def folder_of(files: ModelConfig) -> Path:
    return Path(files.stitcher)
