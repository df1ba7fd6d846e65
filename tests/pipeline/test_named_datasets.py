"""Datasets with the ids, spaces and habits of Minari's own go the first steps: load, inspect, check, fit, stitch, and
back into Minari and the D4RL layout."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Literal

import h5py
import minari
import numpy as np
import pytest
from gymnasium import spaces

import raystitch as rs
from raystitch.buffer.config import AugmentConfig
from raystitch.buffer.export import export
from raystitch.buffer.reader import Buffer
from raystitch.data.context import still_dimensions
from raystitch.data.episodes import EpisodeDataset
from raystitch.data.load import load_dataset
from raystitch.errors import UserError
from raystitch.pipeline.generate.augment import augment_local
from raystitch.stitching.config import PairConfig, QualifyConfig, SamplerConfig, StitchConfig
from tests.conftest import Run
from tests.data.named_datasets import HOPPER, PEN, UMAZE, make_named

pytestmark = pytest.mark.filterwarnings("ignore::raystitch.data.load.DatasetWarning")

GOALS = f"{UMAZE}#observation,desired_goal"
SIZES = {HOPPER: 10_000, PEN: 5_000, UMAZE: 4_000}  # the pen's is its real one
LOOSE = QualifyConfig(delta="off", termination_max=None, value_check=False)
GIB = 2**30


@pytest.fixture(autouse=True)
def root(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One Minari root for the tests of ordinary size; a test of real size has its own."""
    path = tmp_path_factory.getbasetemp() / "named"
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(path))
    return path


def loaded(ref: str) -> EpisodeDataset:
    name = ref.partition("#")[0]
    make_named(name, SIZES[name])
    return load_dataset(ref)


def stitched(dataset: EpisodeDataset, bundle: rs.Bundle, out: Path, context: Literal["match", "ignore"]) -> Buffer:
    """About ten bridges, whatever they are worth."""
    pairs = PairConfig(context=context)
    settings = StitchConfig(sampler=SamplerConfig(num_steps=2), qualify=LOOSE, pairs=pairs)
    sizes = AugmentConfig(num_bridges=10, pairs_per_shard=16, chain_rounds=0)
    augment_local(dataset, bundle, settings, sizes, out=out)
    return rs.open_buffer(out)


@pytest.fixture(scope="module")
def fitted(tiny_fit: rs.FitConfig) -> Callable[[str], rs.Bundle]:
    """A tiny stitcher of a dataset, fitted once."""
    return cache(lambda ref: rs.fit(loaded(ref), tiny_fit, device="cpu"))


@pytest.mark.parametrize(
    ("ref", "sizes", "env_id", "limit", "reference"),
    [
        (HOPPER, (11, 3), "Hopper-v5", 1000, (20.0, 3800.0)),
        (PEN, (45, 24), "AdroitHandPen-v1", 200, (95.0, 3000.0)),
        (UMAZE, (4, 2), "PointMaze_UMaze-v3", 1_000_000, (23.85, 161.86)),
        (GOALS, (6, 2), "PointMaze_UMaze-v3", 1_000_000, (23.85, 161.86)),
    ],
)
def test_what_is_loaded(
    ref: str, sizes: tuple[int, int], env_id: str, limit: int, reference: tuple[float, float]
) -> None:
    dataset = loaded(ref)
    stored = minari.load_dataset(ref.partition("#")[0])
    assert (dataset.obs_dim, dataset.act_dim) == sizes
    assert (dataset.num_episodes, dataset.num_transitions) == (stored.total_episodes, stored.total_steps)
    assert dataset.env is not None
    assert (dataset.env.env_id, dataset.env.max_episode_steps) == (env_id, limit)
    assert dataset.env.reference == reference
    assert dataset.env.for_evaluation().max_episode_steps == (300 if UMAZE in ref else limit)
    np.testing.assert_array_equal(dataset.action_high, np.ones(sizes[1]))
    returns = [episode.rewards.sum() for episode in stored.iterate_episodes()]
    np.testing.assert_allclose(dataset.returns, returns, rtol=1e-5)


@pytest.mark.parametrize(
    ("ref", "kinds"),
    [
        (HOPPER, set[str]()),
        (PEN, {"context_dimension", "no_terminal_flag"}),
        (UMAZE, {"goal_left_out", "no_terminal_flag"}),
        (GOALS, {"late_goal", "context_dimension", "no_terminal_flag"}),
    ],
)
def test_what_inspect_says(ref: str, kinds: set[str], run: Run) -> None:
    dataset = loaded(ref)
    status, out, err = run("data", "inspect", ref, "--json")
    found = json.loads(out)
    assert status == 0, err
    found_kinds = {problem["kind"] for problem in found["problems"]}
    assert found_kinds - {"one_step_episode"} == kinds  # a new goal may lie a step ahead
    assert found["num_transitions"] == dataset.num_transitions
    assert found["lengths"]["max"] == dataset.lengths.max()


@pytest.mark.slow  # times a few steps of every stage
@pytest.mark.parametrize("ref", [HOPPER, PEN, GOALS])
def test_a_sweep_plans_on_it(ref: str, run: Run, tmp_path: Path) -> None:
    """The checks before a run: the environment fits, the data can be fitted, stitched and trained on."""
    loaded(ref)
    settings = [f"dataset=minari:{ref}", "evaluation={num_episodes: 1, num_envs: 1}"]
    settings += ["stitch.pairs.context=ignore"] if ref == PEN else []
    options = [part for setting in settings for part in ("--set", setting)]
    status, out, err = run("sweep", "smoke", "--out", tmp_path / "run", "--dry-run", *options)
    assert status == 0, err
    assert "4 trials" in out


def test_goals_of_a_walk_without_an_end_are_contexts() -> None:
    """The first state of an episode holds the goal that the episode before has reached; its own goal is a context."""
    dataset = loaded(GOALS)
    recorded = [episode.observations["desired_goal"] for episode in minari.load_dataset(UMAZE).iterate_episodes()]
    for before, goal in pairwise(recorded):
        np.testing.assert_array_equal(goal[0], before[-1])
        assert (goal[0] != goal[1]).any()
    assert still_dimensions(dataset)[1].tolist() == [False] * 4 + [True] * 2
    for episode, goal in zip(dataset, recorded, strict=True):
        np.testing.assert_array_equal(episode.observations[:, 4:], goal[[1, *range(1, len(goal))]].astype(np.float32))
    (found,) = [problem for problem in dataset.found if problem["kind"] == "late_goal"]
    assert found["count"] == dataset.num_episodes - 1
    assert found["message"].startswith(f"{dataset.num_episodes - 1} of {dataset.num_episodes} episodes begin with")


def test_a_pen_of_few_people_has_no_two_episodes_of_one_target(
    fitted: Callable[[str], rs.Bundle], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"dimensions 36, 37, 38 are a context, 25 different ones.*context: ignore"):
        stitched(loaded(PEN), fitted(PEN), tmp_path / "buffer", "match")


@pytest.mark.parametrize(
    ("ref", "note"),
    [
        (HOPPER, ""),
        (PEN, ""),
        (UMAZE, "observations are one Box, not the Dict of PointMaze_UMaze-v3: the entry 'observation' alone"),
        (GOALS, "PointMaze_UMaze-v3: the entries 'observation', 'desired_goal', joined"),
    ],
)
def test_an_export_is_what_it_says(
    ref: str, note: str, fitted: Callable[[str], rs.Bundle], run: Run, tmp_path: Path
) -> None:
    dataset = loaded(ref)
    assert dataset.env is not None
    buffer = stitched(dataset, fitted(ref), tmp_path / "buffer", "ignore" if ref == PEN else "match")
    if ref == GOALS:
        stays_with_one_goal(dataset, buffer)
    name = f"local/stitched-{ref.partition('/')[0]}-{dataset.obs_dim}-v0"
    status, out, err = run("export", tmp_path / "buffer", "--format", "minari", "--out", name, "--delta", "off")
    assert status == 0, err
    assert note in err
    stored = minari.load_dataset(name)
    assert out.startswith(f"{name}: {stored.total_episodes} episodes, ")
    assert isinstance(stored.observation_space, spaces.Box)
    assert stored.observation_space.shape == (dataset.obs_dim,)
    about = stored.storage.metadata
    assert about["description"].endswith(note)
    assert (about["ref_min_score"], about["ref_max_score"]) == dataset.env.reference
    assert stored.env_spec is not None and stored.env_spec.id == dataset.env.env_id
    again = load_dataset(name)
    assert again.env == dataset.env
    assert again.found == ()
    for mine, theirs in zip(again, stored.iterate_episodes(), strict=True):
        np.testing.assert_array_equal(mine.observations, theirs.observations)
        assert theirs.observations.dtype == theirs.actions.dtype == np.float32

    export(buffer, dataset, "d4rl", tmp_path / "mixed.hdf5", "off", "mixed", ratio=(1000, 1))
    with h5py.File(tmp_path / "mixed.hdf5") as file:
        arrays = {key: np.asarray(file[key]) for key in file}
    kept = dataset.num_transitions
    np.testing.assert_array_equal(arrays["observations"][:kept], dataset.observations[dataset.obs_index])
    ends = arrays["terminals"] | arrays["timeouts"]
    assert ends.sum() == load_dataset(tmp_path / "mixed.hdf5").num_episodes > dataset.num_episodes
    inside = ~ends[:-1]
    np.testing.assert_array_equal(arrays["next_observations"][:-1][inside], arrays["observations"][1:][inside])


def stays_with_one_goal(dataset: EpisodeDataset, buffer: Buffer) -> None:
    bridges = buffer.bridges()
    left, entered = (
        dataset.observations[dataset.obs_offsets[episodes], 4:]
        for episodes in (bridges.source_episode, bridges.target_episode)
    )
    assert (np.abs(left - entered) <= 0.25 * dataset.observations[:, 4:].std(0) + 1e-6).all()
    assert (bridges.source_episode != bridges.target_episode).any()


REAL = {HOPPER: 999_404, UMAZE: 1_000_000}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("ref", [HOPPER, GOALS])
def test_real_sizes(ref: str, tiny_fit: rs.FitConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million steps: every row arrives, and reading takes a small multiple of what they are as float32."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    name = ref.partition("#")[0]
    stored = minari.load_dataset(make_named(name, REAL[name]))
    assert REAL[name] - 1000 <= stored.total_steps <= REAL[name]
    found = json.loads(measured("data", "inspect", ref, "--json"))
    assert (found["num_episodes"], found["num_transitions"]) == (stored.total_episodes, stored.total_steps)

    dataset = load_dataset(ref)
    assert dataset.num_transitions == stored.total_steps
    buffer = stitched(dataset, rs.fit(dataset, tiny_fit, device="cpu"), tmp_path / "buffer", "match")
    back = "local/back-v0"
    written = export(buffer, dataset, "minari", back, "off", "mixed", ratio=(1_000_000, 100))
    again = minari.load_dataset(back)
    assert (again.total_episodes, again.total_steps) == (written.num_episodes, written.num_transitions)
    assert written.num_transitions > stored.total_steps
    assert load_dataset(back).subset(np.arange(dataset.num_episodes)).fingerprint == dataset.fingerprint


def measured(*argv: str) -> str:
    """Runs a command in a process of its own, which may take no more than a GiB, and returns what it prints."""
    command = [sys.executable, "-c", PEAK, *argv]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    peak = int(done.stderr.splitlines()[-1]) * 1024
    assert peak < GIB, f"{peak / GIB:.2f} GiB"
    return done.stdout


PEAK = r"""
import re, sys
from raystitch.cli import main
status = main(sys.argv[1:])
print(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1], file=sys.stderr)
sys.exit(status)
"""
