import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from raystitch.data.episodes import EpisodeDataset
from raystitch.envs.spec import EnvSpec
from raystitch.errors import UserError
from raystitch.models.bundle import PARTS, Bundle
from raystitch.models.config import FitConfig
from raystitch.models.fit import fit_bundle


@pytest.fixture
def folder(bundle: Bundle, tmp_path: Path) -> Path:
    bundle.save(tmp_path / "bundle")
    return tmp_path / "bundle"


def test_what_is_saved_is_what_is_loaded(bundle: Bundle, folder: Path) -> None:
    state = torch.get_rng_state()
    loaded = Bundle.load(folder, device="cpu")
    assert torch.equal(torch.get_rng_state(), state)
    assert loaded.hash == bundle.hash
    assert loaded.config == bundle.config
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["stitcher.json", *(f"{part}.safetensors" for part in PARTS)]
    )
    obs, act = torch.randn(5, 4), torch.randn(5, 2)
    window, mask, k = torch.randn(2, 16, 4), torch.ones(2, 16), torch.tensor([3, 9])
    mask[:, 4:9] = 0
    for mine, theirs in (
        tuple(b.denoiser(precision="float32", compile="off")(window, window, mask, k) for b in (bundle, loaded)),
        (bundle.dynamics.residual(obs, act, obs, "judges"), loaded.dynamics.residual(obs, act, obs, "judges")),
        (bundle.inverse(obs, obs + 0.1), loaded.inverse(obs, obs + 0.1)),
        (bundle.reward(obs, act, obs)[0], loaded.reward(obs, act, obs)[0]),
        (bundle.termination(obs), loaded.termination(obs)),
        (bundle.value(obs), loaded.value(obs)),
        (bundle.standardizer.encode(obs), loaded.standardizer.encode(obs)),
    ):
        assert torch.equal(mine, theirs)
    gaps = np.arange(2, 9)
    np.testing.assert_array_equal(loaded.calibration.threshold("q99", gaps), bundle.calibration.threshold("q99", gaps))


def test_environment_and_few_reward_levels_survive(
    dataset: EpisodeDataset, tiny_config: Callable[..., FitConfig], tmp_path: Path
) -> None:
    env = EnvSpec(env_id="Hopper-v5", kwargs={"frame_skip": 4}, max_episode_steps=50, observation_keys=("observation",))
    sparse = replace(dataset, rewards=(dataset.rewards > 0.8).astype(np.float32), env=env)
    fitted = fit_bundle(sparse, tiny_config(5), tmp_path, device="cpu")
    loaded = Bundle.load(tmp_path)
    assert loaded.env == env
    assert loaded.max_episode_steps == 50
    assert fitted.reward.levels.tolist() == loaded.reward.levels.tolist() == [0.0, 1.0]


def test_damage_is_found(folder: Path) -> None:
    def expect(message: str) -> None:
        with pytest.raises(UserError, match=message):
            Bundle.load(folder)

    weights = folder / "inverse.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    expect("inverse.safetensors is damaged")
    weights.unlink()
    expect("incomplete")
    weights.write_bytes(content)
    description = json.loads((folder / "stitcher.json").read_text())
    (folder / "stitcher.json").write_text(json.dumps({**description, "reward_high": 9.0}))
    expect("was changed")
    (folder / "stitcher.json").write_text(json.dumps({**description, "schema_version": 99}))
    expect("schema_version is 99")
    (folder / "stitcher.json").write_text("{")
    expect("cannot be read as JSON")
    (folder / "stitcher.json").unlink()
    expect("not a stitcher bundle")


def test_other_data_is_refused(bundle: Bundle, dataset: EpisodeDataset) -> None:
    bundle.check_dataset(dataset)
    with pytest.raises(UserError, match="holds other trajectories"):
        bundle.check_dataset(dataset.subset(np.arange(10)))
    wide = replace(dataset, observations=np.repeat(dataset.observations, 2, 1))
    with pytest.raises(UserError, match="observation size 4, but demo:point-mass has observation size 8"):
        bundle.check_dataset(wide)
    narrow = replace(dataset, actions=dataset.actions[:, :1])
    with pytest.raises(UserError, match="action size 2"):
        bundle.check_dataset(narrow)


def test_what_is_not_finite_stays_so_at_the_end_of_a_sensor(bundle: Bundle) -> None:
    ended = replace(bundle, dynamics=deepcopy(bundle.dynamics))
    ended.dynamics.high[0], ended.dynamics.low[0] = 1.0, -1.0
    states = np.zeros((4, bundle.obs_dim), np.float32)
    states[:, 0] = [2, -2, np.inf, np.nan]
    np.testing.assert_array_equal(ended.within_sensors(states)[:, 0], np.array([1, -1, np.inf, np.nan], np.float32))
    np.testing.assert_array_equal(bundle.within_sensors(states), states)  # its data end nowhere
