"""deploy/ as tests see it: its scripts as modules, its overlays rendered, KubeRay's definitions where there are any."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

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
def bucket() -> ModuleType:
    """deploy/kuberay/components/s3/bucket.py."""
    return load("kuberay/components/s3/bucket.py")


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
