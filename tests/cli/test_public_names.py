"""``import raystitch as rs``: the names that users and notebooks rely on."""

import importlib.metadata
import site
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


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_runs_where_it_is_installed(wheel: Path, tmp_path: Path) -> None:
    """In an environment of its own, which borrows the packages that this one has, but for raystitch."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    (packages,) = (tmp_path / "venv/lib").glob("*/site-packages")
    packages.joinpath("borrowed.pth").write_text(f"{site.getsitepackages()[0]}\n")
    zipfile.ZipFile(wheel).extractall(packages)  # comes before what is borrowed
    python = str(tmp_path / "venv/bin/python")
    told = {"cwd": tmp_path, "capture_output": True, "text": True}
    found = subprocess.run([python, "-P", "-c", "import raystitch; print(raystitch.__file__)"], check=True, **told)
    assert Path(found.stdout.strip()).is_relative_to(packages)
    done = subprocess.run([python, "-P", "-m", "raystitch.sweep", "smoke", "--out", "run"], check=False, **told)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/report.html").is_file()


def test_the_wheel_holds_the_configurations_and_the_type_marker(wheel: Path) -> None:
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
