"""A dataset, a bundle and a buffer made by the command line itself, once per session."""

from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from raystitch.cli import main
from raystitch.data.episodes import EpisodeDataset
from raystitch.data.minari_io import write_minari
from raystitch.io.config_file import plain
from raystitch.models.config import FitConfig


@pytest.fixture(scope="session")
def ref(drift: EpisodeDataset) -> str:
    write_minari(drift, "cli/drift-v0")
    return "minari:cli/drift-v0"


@pytest.fixture(scope="session")
def config_file(ref: str, tiny_fit: FitConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's configuration with tiny settings that accept nearly every candidate."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    settings = {
        "dataset": ref,
        "grid": [{"algo": "bc", "data": "original"}],
        "fit": plain(asdict(tiny_fit)),
        "stitch": {
            "sampler": {"num_steps": 2},
            "qualify": {"delta": "off", "value_check": False, "termination_max": None},
        },
        "augment": {"pairs_per_shard": 20, "chain_rounds": 0, "num_actors": 1},
        "algorithms": {"td3bc": {"train_steps": 20, "hidden": 16, "batch_size": 16}},
        "evaluation": {"num_episodes": 2, "num_envs": 2},
    }
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture(scope="session")
def stitcher(ref: str, config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "stitcher"
    assert main(["fit", ref, "--out", str(out), "--config", str(config_file)]) == 0
    return out


@pytest.fixture(scope="session")
def buffer(ref: str, stitcher: Path, config_file: Path, ray_session: object) -> Path:
    out = stitcher.parent / "buffer"
    options = ["--out", str(out), "--num-bridges", "30", "--config", str(config_file)]
    assert main(["augment", ref, "--stitcher", str(stitcher), *options]) == 0
    return out
