"""Datasets like the standard ones go all the way: inspect, fit, augment, train, export and back, a whole sweep."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from raystitch.data.load import load_dataset
from tests.conftest import Run
from tests.data.families import FAMILIES, Family, make_family

pytestmark = pytest.mark.filterwarnings("ignore::raystitch.data.load.DatasetWarning")
SWEEP = (
    "evaluation={num_episodes: 1, num_envs: 1}",
    "validation.enabled=false",
    "augment.num_bridges=10",
    "resources.max_concurrent_trials=1",
)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The settings of ``smoke``, as a dictionary."""
    path = Path(__file__).parents[2] / "tune_configs" / "smoke.yaml"
    smoke = yaml.safe_load(path.read_text())
    smoke["augment"]["num_actors"] = 1  # one takes longer to start than so few bridges
    return smoke


@pytest.mark.slow
@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_goes_all_the_way(
    name: str, data_format: str, run: Run, smoke: dict[str, Any], ray_session: None, tmp_path: Path
) -> None:
    family, ref = FAMILIES[name], make_family(name, data_format)
    status, out, err = run("data", "inspect", ref, "--json")
    assert status == 0, err
    assert json.loads(out)["obs_dim"] == family.sizes[0]

    config = tmp_path / "smoke.yaml"
    config.write_text(yaml.safe_dump(smoke | {"dataset": f"minari:{ref}"}))
    status, _, err = run("fit", ref, "--out", tmp_path / "stitcher", "--config", config)
    assert status == 0, err
    buffer = tmp_path / "buffer"
    options = ["--stitcher", tmp_path / "stitcher", "--out", buffer, "--num-bridges", 10, "--config", config]
    settings = [part for setting in family.settings for part in ("--set", setting.removeprefix("stitch."))]
    status, _, err = run("augment", ref, *options, *settings)
    assert status == 0, err

    status, _, err = run(
        "train", ref, "--algo", "bc", "--buffer", buffer, "--ratio", "1:1", "--delta", "off", "--out", tmp_path / "bc",
        "--num-episodes", 1, "--set", "train_steps=10",
    )  # fmt: skip
    assert status == 0, err
    assert (tmp_path / "bc" / "policy").is_dir()
    assert family.runs or "the policy is trained and saved" in err

    _comes_back(ref, buffer, f"families/{name}-{data_format}-back-v0", tmp_path, run)
    _sweeps(ref, family, tmp_path / "run", run)


def _comes_back(ref: str, buffer: Path, exported: str, tmp_path: Path, run: Run) -> None:
    """Exported as episodes, to Minari and to the D4RL layout, and read again."""
    original = load_dataset(ref)
    for form, out, back in (
        ("minari", exported, exported),
        ("d4rl", tmp_path / "back.hdf5", str(tmp_path / "back.hdf5")),
    ):
        status, _, err = run("export", buffer, "--format", form, "--out", out, "--what", "episodes", "--delta", "off")
        assert status == 0, err
        again = load_dataset(back)
        assert (again.obs_dim, again.act_dim) == (original.obs_dim, original.act_dim)
        assert again.env == original.env
        assert again.num_episodes >= 10


def _sweeps(ref: str, family: Family, out: Path, run: Run) -> None:
    asked = (f"dataset=minari:{ref}", *SWEEP, *family.settings)
    settings = [part for setting in asked for part in ("--set", setting)]
    dry, _, said = run("sweep", "smoke", "--out", out, "--dry-run", *settings)
    status, _, err = run("sweep", "smoke", "--out", out, *settings)
    assert dry == status == (0 if family.runs else 2), err
    if family.runs:
        table = pq.read_table(out / "results.parquet")
        assert set(table["status"].to_pylist()) == {"ok"}
    else:
        assert said.splitlines()[-1] == err.splitlines()[-1]
        assert "FrankaKitchen-v1" in err
        assert not out.exists() or not any(out.iterdir())
