"""Whatever is read, nothing in it runs: every reader gets files and requests with a canary planted in them.

The canaries are a module that must not be imported, a command that must not be run, a file beside the input that must
not be opened, and the network. Links out of an HDF5 file have a test of their own, with the reader of those files.
"""

import asyncio
import ctypes
import hashlib
import json
import os
import pickle
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import h5py
import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from raystitch.buffer.config import AugmentConfig
from raystitch.cli import main
from raystitch.data.d4rl import write_d4rl
from raystitch.data.episodes import EpisodeDataset
from raystitch.data.load import load_dataset
from raystitch.data.minari_io import write_minari
from raystitch.endpoint.app import create_app
from raystitch.endpoint.config import EndpointConfig, ModelConfig
from raystitch.endpoint.metrics import NoRecorder
from raystitch.endpoint.models import Models
from raystitch.endpoint.service import Endpoint
from raystitch.envs.make import make_env
from raystitch.envs.simulator import open_simulator
from raystitch.errors import RunError, UserError
from raystitch.models.bundle import Bundle
from raystitch.models.config import FitConfig
from raystitch.models.fit import fit_bundle
from raystitch.pipeline.generate.augment import augment_local
from raystitch.stitching.config import QualifyConfig, StitchConfig
from raystitch.trainers.config import BCConfig, DataSpec
from raystitch.trainers.data import build_data
from raystitch.trainers.loop import train_policy

MODULE, COMMAND = "raystitch_canary", "canary-command-ran"
FIRED: list[str] = []
_watching = False
IN_OPEN = 0x20


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if not _watching:
        return
    if event == "import" and str(args[0]).split(".")[0] == MODULE:
        FIRED.append(f"import of {args[0]}")
    elif event in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn") and COMMAND in str(args):
        FIRED.append(f"{event} {str(args)[:200]}")
    elif event == "pickle.find_class" and args[0] in ("os", "posix"):
        FIRED.append(f"unpickling of {args[0]}.{args[1]}")
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        FIRED.append(f"{event} {args[0]}")
    elif event == "socket.connect" and args[0].family != socket.AF_UNIX:
        FIRED.append(f"connection to {args[1]}")


sys.addaudithook(_audit)


@dataclass(frozen=True)
class Canary:
    """What is planted; ``fired`` says what of it happened."""

    secret: Path
    command_ran: Path
    imported: Path
    notifier: int

    @property
    def command(self) -> str:
        return f"touch {self.command_ran}"

    @property
    def pickled(self) -> bytes:
        """Unpickling it runs the command."""

        class Runs:
            def __reduce__(_self) -> Any:
                return os.system, (self.command,)

        return pickle.dumps(Runs())

    def fired(self) -> list[str]:
        found = list(FIRED)
        found += [f"{path} was written" for path in (self.command_ran, self.imported) if path.exists()]
        try:
            os.read(self.notifier, 4096)
            found.append(f"{self.secret} was opened")
        except BlockingIOError:
            pass
        return found


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Canary]:
    """Planted for one test, which fails when anything of it fires; ``inotify`` sees files opened by C code too."""
    global _watching
    modules, outside = tmp_path / "modules", tmp_path / "outside"
    modules.mkdir()
    outside.mkdir()
    secret, imported = outside / "secret.xml", tmp_path / "imported"
    secret.write_text('<mujoco><worldbody><body><geom size="1"/></body></worldbody></mujoco>')
    (modules / f"{MODULE}.py").write_text(f"open({str(imported)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(str(modules))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    libc = ctypes.CDLL(None, use_errno=True)
    notifier = libc.inotify_init1(os.O_NONBLOCK)
    assert libc.inotify_add_watch(notifier, str(secret).encode(), IN_OPEN) >= 0
    planted = Canary(secret, tmp_path / COMMAND, imported, notifier)
    FIRED.clear()
    _watching = True
    try:
        yield planted
    finally:
        _watching = False
        found = planted.fired()
        os.close(notifier)
        sys.modules.pop(MODULE, None)
    assert found == []


def test_the_canaries_fire(canary: Canary, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them, or the other tests would say nothing."""
    os.system(canary.command)
    __import__(MODULE)  # unlike import_module, seen by the audit hook as well as by the file that it writes
    canary.secret.read_bytes()
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
    found = " ".join(canary.fired())
    for text in ("os.system", f"import of {MODULE}", COMMAND, "imported was", "secret.xml", "connection to"):
        assert text in found
    FIRED.clear()
    canary.command_ran.unlink()
    canary.imported.unlink()


Plant = Callable[[Canary], dict[str, Any]]

PLANTS: dict[str, Plant] = {
    "module in the id": lambda c: {"id": f"{MODULE}:Env-v0", "kwargs": {}},
    "maze with a module": lambda c: {"id": f"{MODULE}:PointMaze-v0", "kwargs": {}},
    "entry point of a module": lambda c: {"id": "Planted-v0", "entry_point": f"{MODULE}:Env"},
    "entry point of a command": lambda c: {
        "id": "Planted-v0",
        "entry_point": "os:system",
        "kwargs": {"command": c.command},
    },
    "vector entry point": lambda c: {"id": "Planted-v0", "vector_entry_point": f"{MODULE}:Env"},
    "wrapper of a module": lambda c: {"id": "Pendulum-v1", "additional_wrappers": [_wrapper("W", f"{MODULE}:W")]},
    "wrapper that calls itself Gymnasium's": lambda c: {
        "id": "Pendulum-v1",
        "additional_wrappers": [_wrapper("ClipAction", f"{MODULE}:ClipAction")],
    },
    "wrapper that is not allowed": lambda c: {
        "id": "Pendulum-v1",
        "additional_wrappers": [_wrapper("TransformReward", "gymnasium.wrappers:TransformReward", func="os:system")],
    },
    "model file": lambda c: {"id": "Hopper-v5", "kwargs": {"xml_file": str(c.secret)}},
    "model file of a maze": lambda c: {"id": "AntMaze_UMaze-v5", "kwargs": {"xml_file": str(c.secret)}},
    "model file by a relative path": lambda c: {
        "id": "Hopper-v5",
        "kwargs": {"xml_file": os.path.relpath(c.secret, "/usr")},
    },
    "spec inside the arguments": lambda c: {
        "id": "Pendulum-v1",
        "kwargs": {"g": {"env_spec": [{"id": "X-v0", "entry_point": f"{MODULE}:Env"}]}},
    },
    "evaluation environment": lambda c: {
        "id": "Pendulum-v1",
        "evaluation": {"id": "Planted-v0", "entry_point": f"{MODULE}:Env"},
    },
}


def _wrapper(name: str, entry_point: str, **kwargs: Any) -> dict[str, Any]:
    return {"name": name, "entry_point": entry_point, "kwargs": kwargs}


def own(spec: dict[str, Any]) -> dict[str, Any]:
    """The same in raystitch's own layout, with every name a file could try."""
    wrappers = [item | {"name": item["entry_point"]} for item in spec.get("additional_wrappers", [])]
    value = {name: item for name, item in spec.items() if name not in ("id", "evaluation")}
    value |= {"env_id": spec["id"], "kwargs": spec.get("kwargs", {}), "max_episode_steps": 50, "named": True}
    value |= {"observation_keys": None, "module": MODULE, "wrappers": wrappers}
    return value | ({"evaluation": own(spec["evaluation"])} if "evaluation" in spec else {})


def gymnasiums(spec: dict[str, Any]) -> str:
    """The same as Gymnasium writes it into a Minari dataset."""
    usual = {"reward_threshold": None, "nondeterministic": False, "max_episode_steps": 50, "order_enforce": True}
    usual |= {"entry_point": None, "disable_env_checker": False, "kwargs": {}, "additional_wrappers": []}
    usual |= {"vector_entry_point": None}
    return json.dumps(usual | {name: value for name, value in spec.items() if name != "evaluation"})


def attempt(call: Callable[[], Any]) -> Any:
    """Runs it; a refusal is fine, anything that nobody meant is not."""
    try:
        return call()
    except (UserError, RunError):
        return None


def command(*argv: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(arg) for arg in argv]) in (0, 1, 2, None)
    assert "unexpected" not in capsys.readouterr().err


def used(dataset: EpisodeDataset | None) -> None:
    """What training, evaluation, validation and export do with a dataset's environment."""
    if dataset is None or dataset.env is None:
        return
    for env in (dataset.env, getattr(dataset.env, "evaluation", None) or dataset.env):
        made = attempt(partial(make_env, env))
        if made is not None:
            made.close()
    attempt(partial(open_simulator, dataset.env))
    attempt(partial(write_minari, dataset, "again/x-v0"))


@pytest.fixture(params=PLANTS)
def spec(request: pytest.FixtureRequest, canary: Canary) -> dict[str, Any]:
    return PLANTS[request.param](canary)


def test_d4rl(spec: dict[str, Any], drift: EpisodeDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for attributes in ({"env_id": spec["id"]}, {"env_id": spec["id"], "env_spec": json.dumps(own(spec))}):
        path = tmp_path / "planted.hdf5"
        write_d4rl(replace(drift, env=None), path)
        with h5py.File(path, "a") as file:
            del file.attrs["action_low"]  # then the environment would have to say the bounds
            file.attrs.update(attributes)
        command("data", "inspect", path, capsys=capsys)
        command("data", "import", path, "--id", "planted/x-v0", "--overwrite", capsys=capsys)
        used(attempt(partial(load_dataset, str(path))))


@pytest.mark.parametrize("storage", ["hdf5", "arrow"])
@pytest.mark.parametrize("spaces", ["written", "left out"])
def test_minari(
    storage: str,
    spaces: str,
    spec: dict[str, Any],
    drift: EpisodeDataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import minari
    from minari.data_collector import EpisodeBuffer

    first = drift.episode(0)
    ends = np.arange(len(first.rewards)) == len(first.rewards) - 1
    columns: dict[str, Any] = {name: getattr(first, name) for name in ("observations", "actions", "rewards")}
    buffer = EpisodeBuffer(**columns, terminations=ends & False, truncations=ends)
    from gymnasium.spaces import Box

    minari.create_dataset_from_buffers(
        "planted/x-v0",
        [buffer, buffer],
        observation_space=Box(-np.inf, np.inf, (4,)),
        action_space=Box(-1, 1, (2,)),
        data_format=storage,
        author="x",
        algorithm_name="x",
    )
    metadata_path = tmp_path / "minari" / "planted" / "x-v0" / "data" / "metadata.json"
    metadata = json.loads(metadata_path.read_text())
    if spaces == "left out":
        del metadata["observation_space"], metadata["action_space"]
    evaluation = spec.get("evaluation", spec)
    planted = {"env_spec": gymnasiums(spec), "eval_env_spec": gymnasiums(evaluation), "entry_point": "os:system"}
    for plant in (planted, {"raystitch": {"env": own(spec)}}, planted | {"env_spec": spec}):
        metadata_path.write_text(json.dumps(metadata | plant))
        command("data", "inspect", "planted/x-v0", capsys=capsys)
        used(attempt(partial(load_dataset, "planted/x-v0")))


def test_spaces_of_minari_metadata(canary: Canary, drift: EpisodeDataset, tmp_path: Path) -> None:
    write_minari(drift, "planted/x-v0")
    path = tmp_path / "minari" / "planted" / "x-v0" / "data" / "metadata.json"
    metadata = json.loads(path.read_text())
    nested = '{"type": "Tuple", "subspaces": [' * 5000 + "]}" * 5000
    for space in (
        {"type": f"{MODULE}:Space"},
        {"type": "Box", "dtype": f"{MODULE}:X", "shape": [4], "low": [0] * 4, "high": [1] * 4},
        {"type": "Box", "dtype": "object", "shape": [4], "low": ["os:system"] * 4, "high": [1] * 4},
        {"type": "Box", "dtype": "float32", "shape": [10**12], "low": 0, "high": 1},
        {"type": "Dict", "subspaces": {"x": {"type": "Text", "entry_point": "os:system"}}},
        nested,
        "os:system",
    ):
        path.write_text(
            json.dumps(metadata | {"observation_space": space if isinstance(space, str) else json.dumps(space)})
        )
        with pytest.raises(UserError, match="observation_space cannot be read"):
            load_dataset("planted/x-v0")


@pytest.fixture(scope="module")
def fitted(drift: EpisodeDataset, tiny_fit: FitConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A D4RL file, a bundle of it and a buffer, as they would be sent to somebody."""
    root = tmp_path_factory.mktemp("sent")
    write_d4rl(drift, root / "drift.hdf5")
    dataset = load_dataset(str(root / "drift.hdf5"))
    bundle = fit_bundle(dataset, tiny_fit, root / "stitcher", "cpu")
    stitch = StitchConfig(qualify=QualifyConfig(delta="off", termination_max=None, value_check=False))
    augment_local(dataset, bundle, stitch, AugmentConfig(num_bridges=4, pairs_per_shard=8), out=root / "buffer")
    policy = train_policy(
        build_data(dataset, DataSpec(kind="transitions", device="cpu")), "bc", BCConfig(train_steps=2, hidden=8)
    )
    policy.save(root / "policy")
    return root


@pytest.fixture
def sent(fitted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(fitted, tmp_path / "sent"))


def plant_in_bundle(folder: Path, env: dict[str, Any]) -> None:
    description = json.loads((folder / "stitcher.json").read_text())
    description["dataset"]["env"] = env
    del description["hash"]
    text = json.dumps(description, sort_keys=True, separators=(",", ":"))
    description["hash"] = "sha256:" + hashlib.sha256(text.encode()).hexdigest()
    (folder / "stitcher.json").write_text(json.dumps(description))


def test_bundle(spec: dict[str, Any], sent: Path) -> None:
    plant_in_bundle(sent / "stitcher", own(spec))
    write_d4rl(replace(load_dataset(str(sent / "drift.hdf5")), env=None), sent / "bare.hdf5")
    attempt(lambda: Bundle.load(sent / "stitcher", "cpu"))
    for dataset in (None, f"d4rl:{sent / 'drift.hdf5'}", f"d4rl:{sent / 'bare.hdf5'}"):
        models = Models()
        config = EndpointConfig(models={"default": ModelConfig(stitcher=str(sent / "stitcher"), dataset=dataset)})
        attempt(partial(models.load, config))
        for model in models:
            model.describe(config.limits)  # GET /v1/models


def test_buffer(spec: dict[str, Any], sent: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = sent / "buffer" / "buffer.json"
    meta = json.loads(path.read_text()) | {"env": own(spec)}
    write_d4rl(replace(load_dataset(str(sent / "drift.hdf5")), env=None), sent / "bare.hdf5")
    for name in (f"d4rl:{sent / 'drift.hdf5'}", f"d4rl:{sent / 'bare.hdf5'}"):
        path.write_text(json.dumps(meta | {"dataset_name": name}))
        command("buffer", "info", sent / "buffer", capsys=capsys)
        command("export", sent / "buffer", "--format", "minari", "--out", "planted/out-v0", capsys=capsys)
        command("validate", sent / "buffer", "--max-bridges", 2, capsys=capsys)


def test_a_buffer_s_dataset_is_not_downloaded(canary: Canary, sent: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = sent / "buffer" / "buffer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dataset_name": "minari:planted/elsewhere-v0"}))
    assert main(["export", str(sent / "buffer"), "--format", "parquet", "--out", str(sent / "x")]) == 2
    assert "not downloaded" in capsys.readouterr().err


def test_policy(spec: dict[str, Any], sent: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = sent / "policy" / "policy.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"env": own(spec)}))
    command("evaluate", sent / "policy", "--num-episodes", 1, "--max-episode-steps", 2, capsys=capsys)


@pytest.mark.parametrize("env", [f"{MODULE}:Env-v0", f"{MODULE}:PointMaze-v0"])
def test_run_folder(env: str, canary: Canary, sent: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (f"d4rl:{sent / 'drift.hdf5'}", "minari:planted/elsewhere-v0"):
        (sent / "config.yaml").write_text(
            f"name: run\ndataset: {name}\nenv: {env}\nseeds: [0]\ngrid:\n- {{algo: bc, data: original}}\n"
        )
        assert main(["sweep", "--rerun", "0", "--out", str(sent)]) == 2
        assert "unexpected" not in capsys.readouterr().err
    (sent / "config.yaml").write_text(
        f"name: !!python/object/apply:os.system ['{canary.command}']\ndataset: demo:pointmaze\ngrid: []\n"
    )
    command("sweep", "--rerun", "0", "--out", sent, capsys=capsys)
    command("sweep", sent / "config.yaml", "--dry-run", capsys=capsys)


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
