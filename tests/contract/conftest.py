"""Planted canaries, and a bundle, a buffer and a policy to plant them in."""

import ctypes
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raystitch.buffer.config import AugmentConfig
from raystitch.data.d4rl import write_d4rl
from raystitch.data.episodes import EpisodeDataset
from raystitch.data.load import load_dataset
from raystitch.models.config import FitConfig
from raystitch.models.fit import fit_bundle
from raystitch.pipeline.generate.augment import augment_local
from raystitch.stitching.config import QualifyConfig, StitchConfig
from raystitch.trainers.config import BCConfig, DataSpec
from raystitch.trainers.data import build_data
from raystitch.trainers.loop import train_policy
from tests.contract.canary import COMMAND, FIRED, IN_OPEN, MODULE, PLANTS, WATCHING, Canary


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Canary]:
    """Planted for one test, which fails when anything of it fires; ``inotify`` sees files opened by C code too."""
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
    WATCHING.set()
    try:
        yield planted
    finally:
        WATCHING.clear()
        found = planted.fired()
        os.close(notifier)
        sys.modules.pop(MODULE, None)
    assert found == []


@pytest.fixture(params=PLANTS)
def spec(request: pytest.FixtureRequest, canary: Canary) -> dict[str, Any]:
    return PLANTS[request.param](canary)


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
