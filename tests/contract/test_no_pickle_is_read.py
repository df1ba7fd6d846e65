"""Pickles in Arrow files, checkpoints and requests are not unpickled; names in requests open nothing."""

import asyncio
import io
import json
import os
import pickle
import zipfile
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from raystitch.cli import main
from raystitch.data.episodes import EpisodeDataset
from raystitch.endpoint.app import create_app
from raystitch.endpoint.config import EndpointConfig, ModelConfig
from raystitch.endpoint.metrics import NoRecorder
from raystitch.endpoint.models import Models
from raystitch.endpoint.service import Endpoint
from raystitch.errors import RunError, UserError
from raystitch.models.config import FitConfig
from raystitch.models.fit import fit_bundle
from tests.contract.canary import MODULE, Canary, attempt, command


def disguised(canary: Canary, rows: int) -> tuple[pa.Field, pa.Array]:
    """A column of pickles that says it is one of Ray Data's, which unpickles it when it is read."""
    metadata = {"ARROW:extension:name": "ray.data.arrow_pickled_object", "ARROW:extension:metadata": ""}
    return pa.field("reason", pa.large_binary(), metadata=metadata), pa.array(
        [canary.pickled] * rows, pa.large_binary()
    )


@pytest.fixture
def _ray_data() -> None:
    """Ray Data's types are known to Arrow, as in the driver of an augmentation."""
    import_module("ray.data")


@pytest.mark.usefixtures("_ray_data")
def test_pickles_in_arrow_files(canary: Canary, sent: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in sorted((sent / "buffer" / "shards").glob("*.arrow")):
        with pa.ipc.open_file(path) as reader:
            batch, metadata = reader.get_batch(0), reader.schema.metadata
        field, column = disguised(canary, batch.num_rows)
        at = batch.schema.get_field_index("reason")
        schema = batch.schema.set(at, field).with_metadata(metadata)
        columns = [column if index == at else item for index, item in enumerate(batch.columns)]
        with pa.ipc.new_file(path, schema) as writer:
            writer.write_table(pa.table(columns, schema=schema))
    for argv in (["buffer", "info"], ["buffer", "show"], ["buffer", "verify"], ["validate"]):
        command(*argv, sent / "buffer", capsys=capsys)
    field, column = disguised(canary, 3)
    table = pa.table([column], schema=pa.schema([field]))
    pq.write_table(table, sent / "results.parquet")
    (sent / "config.yaml").write_text("name: run\ndataset: demo:pointmaze\ngrid:\n- {algo: bc, data: original}\n")
    command("report", sent, capsys=capsys)


def test_pickles_in_archives_of_arrays(canary: Canary, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where NumPy would unpickle them, were it allowed to."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    for name in ("observations", "actions", "terminals"):
        arrays: dict[str, Any] = {"observations": np.ones((3, 2)), "actions": np.ones((3, 2)), "terminals": np.ones(3)}
        del arrays[name]
        np.savez(tmp_path / "x.npz", **arrays)
        with zipfile.ZipFile(tmp_path / "x.npz", "a") as archive:
            archive.writestr(f"{name}.npy", head.getvalue() + canary.pickled)
        command("data", "inspect", tmp_path / "x.npz", "--env", "raystitch/PointMaze-v0", capsys=capsys)


def test_pickles_in_checkpoints(
    canary: Canary, drift: EpisodeDataset, sent: Path, tiny_fit: FitConfig, tmp_path: Path
) -> None:
    class Runs:
        def __reduce__(self) -> Any:
            return os.system, (canary.command,)

    resumed = tmp_path / "resumed"
    attempt(partial(fit_bundle, drift, tiny_fit, resumed, "cpu", checkpoint_every=10, progress=_stop))
    checkpoints = [*resumed.rglob("*.pt"), resumed / ".fit" / "diffusion.pt"]
    for path in checkpoints:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"state": Runs(), "step": 5}, path)
    with suppress(UserError, RunError, pickle.UnpicklingError):
        fit_bundle(drift, tiny_fit, resumed, "cpu")
    state = sent / "trial" / "checkpoint" / "state.pt"
    state.parent.mkdir(parents=True)
    torch.save({"state": {"step": Runs()}}, state)
    (sent / "trial" / "config.json").write_text("{}")
    argv = ["train", str(sent / "drift.hdf5"), "--algo", "bc", "--out", str(sent / "trial"), "--num-episodes", "1"]
    main([*argv, "--set", "train_steps=2"])


def _stop(at: Any) -> None:
    raise RunError("stopped")


@pytest.mark.usefixtures("_ray_data")
def test_requests(canary: Canary, fitted: Path) -> None:
    models = Models()
    models.load(EndpointConfig(models={"default": ModelConfig(stitcher=str(fitted / "stitcher"))}, device="cpu"))
    endpoint = Endpoint(EndpointConfig(device="cpu"), models, NoRecorder())
    states = np.zeros((6, 4)).tolist()
    names = (f"{MODULE}:Env-v0", "os:system", str(canary.secret), f"file://{canary.secret}", "http://127.0.0.1:9/x")
    bodies: list[tuple[str, bytes]] = []
    for name in names:
        trajectory = {"observations": states, "actions": None, "rewards": None, "terminated": False}
        documents = (
            {"source": trajectory, "target": trajectory, "options": {"model": name}},
            {"source": trajectory, "target": trajectory, "options": {"entry_point": name, "env_id": name}},
            {"source": name, "target": trajectory},
            {"source": trajectory | {"observations": name}, "target": trajectory, "env_id": name},
        )
        bodies += [("application/json", json.dumps(document).encode()) for document in documents]
        bodies.append(("application/vnd.apache.arrow.stream", stream(canary, {"model": name}, planted=False)))
    bodies.append(("application/vnd.apache.arrow.stream", stream(canary, {}, planted=True)))
    bodies += [("application/octet-stream", canary.pickled), ("application/vnd.apache.arrow.stream", canary.pickled)]

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(create_app(endpoint, None))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:
            answers = [
                await client.post("/v1/stitch", content=body, headers={"Content-Type": kind}) for kind, body in bodies
            ]
            return answers + [await client.get(f"/v1/models/{name}") for name in names]

    loop = asyncio.new_event_loop()
    try:
        answers = loop.run_until_complete(ask())
    finally:
        loop.close()
        endpoint.close()
    assert {answer.status_code for answer in answers} <= {200, 400, 404, 415, 422}
    assert all(answer.status_code != 200 for answer in answers[-len(names) :])


def stream(canary: Canary, options: dict[str, Any], planted: bool) -> bytes:
    states = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(48, np.float32)), 4)
    role = pa.array(["source"] * 6 + ["target"] * 6)
    columns: list[Any] = [role, pa.array([*range(6), *range(6)], pa.int32()), states]
    fields = [pa.field("role", pa.string()), pa.field("step", pa.int32()), pa.field("observation", states.type)]
    if planted:
        field, column = disguised(canary, 12)
        fields, columns = [*fields, field.with_name("action")], [*columns, column]
    schema = pa.schema(fields, metadata={"options": json.dumps(options)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_table(pa.table(columns, schema=schema))
    return sink.getvalue().to_pybytes()
