"""Whatever is read, nothing in it runs: every reader gets files and requests with a canary planted in them.

The canaries are a module that must not be imported, a command that must not be run, a file beside the input that must
not be opened, and the network. Links out of an HDF5 file have a test of their own, with the reader of those files.
"""

import hashlib
import json
import os
import socket
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from raystitch.cli import main
from raystitch.data.d4rl import write_d4rl
from raystitch.data.episodes import EpisodeDataset
from raystitch.data.load import load_dataset
from raystitch.data.minari_io import write_minari
from raystitch.data.ref import DatasetRef
from raystitch.endpoint.config import EndpointConfig, ModelConfig
from raystitch.endpoint.models import Models
from raystitch.envs.spec import EnvSpec
from raystitch.errors import UserError
from raystitch.models.bundle import Bundle
from tests.contract.canary import COMMAND, FIRED, MODULE, Canary, attempt, command, gymnasiums, own, used
from tests.data.ogbench_files import along, write


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


def test_ogbench(spec: dict[str, Any], tmp_path: Path) -> None:
    """The task of a file comes from the environment of a bundle, which a stranger may have written."""
    path = write(tmp_path / "planted.npz", along(5, 6, 7), along(4, 5, 6))
    env = attempt(partial(EnvSpec.from_json, own(spec)))
    if env is not None:
        used(attempt(partial(DatasetRef(f"ogbench:{path}").load_recorded, env)))


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
