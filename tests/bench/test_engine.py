"""``raystitch bench engine``: its rows add up, the clock takes nothing twice, options are checked."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from raystitch.bench import engine, networks, published, stages
from raystitch.bench.machine import Limits
from raystitch.bench.published import PublishedSampler, num_parameters
from raystitch.bench.stages import StageClock, replaced
from raystitch.bench.synthetic import BenchOptions
from raystitch.bench.truth import candidate_windows
from raystitch.cli import main
from raystitch.data.episodes import EpisodeDataset
from raystitch.models.bundle import Bundle, build_unet
from raystitch.models.config import FitConfig
from raystitch.models.fit import fit_bundle
from raystitch.presets import PRESETS
from raystitch.stitching.config import GuidanceConfig, PairConfig, RepairConfig, StitchConfig
from raystitch.stitching.pairs import SourceIndex
from raystitch.stitching.stitcher import Stitcher

SEEDS = np.arange(24, dtype=np.int64)
HOPPER_OBS_DIM = 11
CONFIG = StitchConfig(
    pairs=PairConfig(mode="random"),  # finds no gap, so there is one to choose
    guidance=GuidanceConfig(schedule="constant"),
    repair=RepairConfig(rounds=1, repair_delta=0.0),
)


@pytest.fixture(scope="module")
def maze_bundle(maze: EpisodeDataset, tiny_fit: FitConfig) -> Bundle:
    return fit_bundle(maze, tiny_fit)


@pytest.fixture(scope="module")
def published_fit(tiny_fit: FitConfig) -> FitConfig:
    """The tiny network as the published one is used: predicts noise, takes a return."""
    return replace(tiny_fit, diffusion=replace(tiny_fit.diffusion, prediction="noise", return_dropout=0.25))


def test_published_network_is_of_the_published_size() -> None:
    unet = build_unet(HOPPER_OBS_DIM, PRESETS["diffstitch"].fit)
    assert sum(parameter.numel() for parameter in unet.parameters()) == pytest.approx(59.7e6, rel=0.08)


def test_watching_changes_nothing_and_every_stage_is_seen(maze: EpisodeDataset, maze_bundle: Bundle) -> None:
    stitcher, index = Stitcher(maze_bundle, CONFIG), SourceIndex(maze, maze_bundle, CONFIG)
    alone = stitcher.stitch(index.select(SEEDS), SEEDS)
    watched, seconds = engine.stage_seconds(stitcher, index, SEEDS)
    np.testing.assert_array_equal(watched.observations, alone.observations)
    np.testing.assert_array_equal(watched.accepted, alone.accepted)
    assert set(seconds) == {*engine.STAGES, "whole"}
    assert min(seconds.values()) > 0
    assert sum(seconds[stage] for stage in engine.STAGES) == pytest.approx(seconds["whole"], rel=0.02)
    again = stitcher.stitch(index.select(SEEDS), SEEDS)  # what was replaced is back
    np.testing.assert_array_equal(again.observations, alone.observations)


def test_nested_stages_count_once_and_errors_leave_nothing_replaced() -> None:
    clock = StageClock()
    inner = clock.timed("inner", lambda: 3)
    assert clock.time("outer", inner) == 3
    assert list(clock.seconds) == ["outer"]
    before = Stitcher.propose
    with pytest.raises(ZeroDivisionError), replaced([(Stitcher, "propose", inner)]):
        raise ZeroDivisionError
    assert Stitcher.propose is before


def test_published_time_is_scaled_to_all_steps(
    maze: EpisodeDataset, maze_bundle: Bundle, published_fit: FitConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock here counts what the network is asked, not seconds: other load on the machine changes nothing."""
    calls: list[int] = []
    counted = SimpleNamespace(perf_counter=lambda: float(len(calls)))
    monkeypatch.setattr(published, "time", counted)
    monkeypatch.setattr(stages, "time", counted)
    seconds = []
    for steps in (5, 20):
        sampler = PublishedSampler.of(maze, maze_bundle, fit=published_fit, num_pairs=4, timed_steps=steps)
        assert num_parameters(sampler.bundle) != num_parameters(maze_bundle)  # it takes a return
        hook = sampler.bundle.diffusion.register_forward_hook(lambda *_: calls.append(1))
        seconds.append(sampler.seconds())
        hook.remove()
    # Two samplings of 100 steps; a call has the windows with the return and those without.
    assert seconds == [200, 200]
    assert len(calls) == 2 * (5 + 20)


def test_candidates_are_windows_of_their_own_steps(maze: EpisodeDataset, maze_bundle: Bundle) -> None:
    candidates = Stitcher(maze_bundle, CONFIG).stitch(SourceIndex(maze, maze_bundle, CONFIG).select(SEEDS), SEEDS)
    windows = candidate_windows(candidates)
    assert len(windows.window) == (candidates.gap + 1).sum()
    last = windows.starts + windows.gap
    rows = np.arange(len(candidates))
    np.testing.assert_array_equal(windows.next_observations[last], candidates.observations[rows, candidates.gap + 1])
    np.testing.assert_array_equal(windows.step[last], candidates.gap)


def test_rows_of_the_engine(
    maze: EpisodeDataset,
    maze_bundle: Bundle,
    published_fit: FitConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    maze_bundle.save(tmp_path / "stitcher")
    tiny = PublishedSampler.of(maze, maze_bundle, fit=published_fit, num_pairs=2)
    monkeypatch.setattr(engine.PublishedSampler, "of", lambda *_: tiny)
    monkeypatch.setattr(networks, "ROUNDS", 1)
    monkeypatch.setattr(engine, "ROUNDS", 1)
    found = engine.rows(
        Limits(1.0, 2.0, 3.0), BenchOptions(dataset=maze, stitcher=tmp_path / "stitcher", num_pairs=len(SEEDS))
    )
    json.dumps([row.to_json() for row in found], allow_nan=False)
    for name in engine.CONTENDERS:
        shares = [row.ratio for row in found if row.ratio_to == f"{name}, all stages"]
        assert len(shares) == len(engine.STAGES)
        assert sum(share for share in shares if share is not None) == pytest.approx(1)
        (candidates,) = [row for row in found if row.what.startswith(f"{name}: candidates")]
        assert "not fitted by this preset" in candidates.what
        assert candidates.ratio_to == engine.PUBLISHED


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["data", "--num-pairs", "3"], "--num-pairs is for the benchmark engine; data always take"),
        (["engine", "--stitcher", "nowhere"], "--stitcher and --env need --dataset"),
        (["engine", "--dataset", "demo:pointmaze", "--stitcher", "nowhere"], "nowhere does not exist"),
    ],
)
def test_options_are_checked(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *argv]) == 2
    assert message in capsys.readouterr().err
