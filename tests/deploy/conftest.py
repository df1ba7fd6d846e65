"""deploy/ as tests see it: its scripts as modules, its overlays rendered, KubeRay's definitions where there are any."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
import yaml

from raystitch.data.d4rl import write_d4rl
from raystitch.data.episodes import EpisodeDataset
from raystitch.data.load import load_dataset
from raystitch.endpoint.config import EndpointConfig, ModelConfig
from raystitch.endpoint.models import Models
from raystitch.models.config import FitConfig
from raystitch.models.fit import fit_bundle
from tests.deploy.nginx import QUICK, Live, Recorder, ingress
from tests.endpoint.conftest import (
    listening,
    serving,
)

Overlay = dict[str, dict[str, Any]]
DEPLOY = Path(__file__).parents[2] / "deploy"
CRDS = Path(os.environ.get("KUBERAY_CRDS") or DEPLOY.parents[1] / "shared" / "kuberay-crds")


@cache
def load(file: str) -> ModuleType:
    """A script of deploy/ as a module."""
    spec = importlib.util.spec_from_file_location(Path(file).stem, DEPLOY / file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def deploy() -> Path:
    return DEPLOY


@pytest.fixture(scope="session")
def check() -> ModuleType:
    """deploy/check.py."""
    return load("check.py")


@pytest.fixture(scope="session")
def lock() -> ModuleType:
    """deploy/lock.py."""
    return load("lock.py")


@pytest.fixture(scope="session")
def crds(check: ModuleType) -> Any:
    """KubeRay's definitions, read by the checker."""
    if not any(CRDS.glob("*.yaml")):
        pytest.skip(f"no KubeRay definitions in {CRDS}; KUBERAY_CRDS names a folder of them")
    return check.load_crds(CRDS)


@cache
def render(folder: Path) -> str:
    if shutil.which("kubectl") is None:
        pytest.skip("rendering overlays needs kubectl")
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def rendered() -> Callable[[Path], Overlay]:
    """The objects of a kustomization's folder, by kind and name."""

    def objects(folder: Path) -> Overlay:
        found = yaml.load_all(render(folder), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        return {f"{one['kind']}/{one['metadata']['name']}": one for one in found}

    return objects


@pytest.fixture(params=["pvc", "s3", "production"])
def storage(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def overlay(storage: str, rendered: Callable[[Path], Overlay]) -> Overlay:
    return rendered(DEPLOY / "kuberay" / "overlays" / storage)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, drift: EpisodeDataset, tiny_fit: FitConfig) -> Models:
    root = tmp_path_factory.mktemp("ingress")
    write_d4rl(drift, root / "drift.hdf5")
    dataset = f"d4rl:{root / 'drift.hdf5'}"
    fit_bundle(load_dataset(dataset), tiny_fit, root / "stitcher", "cpu")
    models = Models()
    served = ModelConfig(stitcher=str(root / "stitcher"), dataset=dataset)
    models.load(EndpointConfig(models={"default": served}, device="cpu"))
    return models


@pytest.fixture(scope="module")
def live(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with serving(models, cors_origins=["https://page.example"]) as served:
        recorder = Recorder(served.app)
        with (
            listening(recorder) as port,
            ingress(tmp_path_factory.mktemp("nginx"), port, [QUICK]) as front,
            httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as direct,
        ):
            yield Live(direct, front, recorder)


@pytest.fixture
def reached(live: Live) -> Recorder:
    """The recorder, empty."""
    live.recorder.heads.clear()
    live.recorder.num_bytes = 0
    return live.recorder
