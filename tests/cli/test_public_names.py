"""``import raystitch as rs``: the names that users and notebooks rely on."""

import importlib.metadata
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import raystitch as rs
from raystitch.trainers.config import BCConfig

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", rs.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(rs, name) is not None
    assert name in dir(rs)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        rs.nonsense  # noqa: B018 # pyright: ignore[reportAttributeAccessIssue]


def test_the_version_is_the_packages() -> None:
    assert rs.__version__ == importlib.metadata.version("raystitch")


def test_the_wheel_holds_the_configurations_and_the_type_marker(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "raystitch/py.typed" in names
    inside, configs = "raystitch/_tune_configs/", ROOT / "tune_configs"
    shipped = {name.removeprefix(inside) for name in names if name.startswith(inside)}
    assert shipped == {path.relative_to(configs).as_posix() for path in configs.rglob("*.yaml")}
    assert not [name for name in names if not name.startswith(("raystitch/", "raystitch-"))]


WITHOUT_RAY = """
import sys
sys.modules["ray"] = None  # importing it is an error
import raystitch as rs
for name in rs.__all__:
    getattr(rs, name)
"""


def test_the_public_names_need_no_ray() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_RAY], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_library_fits_and_trains(drift: rs.EpisodeDataset, tiny_fit: rs.FitConfig) -> None:
    bundle = rs.fit(drift, tiny_fit)
    assert rs.Stitcher(bundle).bundle is bundle
    config = BCConfig(train_steps=5, hidden=8, batch_size=8)
    policy = rs.train(drift, "bc", config=config)
    policy.reset(3)
    assert policy.act(drift.observations[:3]).shape == (3, 2)
