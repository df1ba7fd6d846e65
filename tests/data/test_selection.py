"""Selections of episodes: how they are written, what they keep, and what they say about it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raystitch.data.d4rl import write_d4rl
from raystitch.data.episodes import EpisodeDataset
from raystitch.data.ref import DatasetRef
from raystitch.data.select import choose_episodes, select_episodes, selection_text
from raystitch.errors import UserError


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("all", "all"),
        ("best=0.5,clean", "best=0.5,clean"),
        ({"best": 0.50}, "best=0.5"),
        ([{"worst": 0.3}, "clean"], "worst=0.3,clean"),
        ({"returns": [100, 2000]}, "returns=[100,2000]"),
        ("returns=[-inf, 1e3], all", "returns=[-inf,1000]"),
        ({"episodes": [7, 5, 0, 6, 5]}, "episodes=[0,5-7]"),
        ("episodes=[0-2,9]", "episodes=[0-2,9]"),
        ({"diverse": 200.0}, "diverse=200"),
    ],
)
def test_a_selection_is_written_in_one_way_and_reads_back(written: Any, text: str) -> None:
    assert selection_text(written) == text
    assert selection_text(text) == text
    assert DatasetRef("demo:pointmaze", select=text).select == text


def test_a_file_of_episodes_is_written_as_its_numbers(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("3\n1\n\n2\n")
    assert selection_text(f"episodes={tmp_path}/good.txt") == "episodes=[1-3]"
    (tmp_path / "bad.txt").write_text("3\nsecret\n")
    for file, says in (
        ("bad.txt", r"bad.txt:2 is not an episode number$"),
        ("none.txt", "cannot be read: No such file"),
    ):
        with pytest.raises(UserError, match=says):
            selection_text({"episodes": str(tmp_path / file)})
    with pytest.raises(UserError, match="is not a file with a number per line"):
        selection_text("episodes=/dev/zero")


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("bets=0.5", "'bets' is not one of all, best, worst"),
        ("best", "best: needs a share"),
        ("best=0", "needs a share above 0 and up to 1, such as best=0.5, got 0"),
        ("best=1.5", "got 1.5"),
        ({"best": float("nan")}, "got nan"),
        ("clean=1", "clean: takes no value, got 1"),
        ("returns=[3,1]", "needs the lowest and the highest"),
        ("returns=3", "needs the lowest and the highest"),
        ("episodes=[1,-2]", "-2 is not an episode number"),
        ("episodes=[4-2]", "runs backwards"),
        ("episodes=[]", "names no episode"),
        ("diverse=0", "needs a whole number"),
        ("diverse=2.5", "needs a whole number"),
        ("best=", "write names with their values"),
        ([3], "neither a name, a mapping"),
    ],
)
def test_what_is_no_selection_is_refused(written: Any, says: str) -> None:
    with pytest.raises(UserError) as error:
        selection_text(written)
    assert says in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_best_and_worst_take_their_share_and_say_what_they_left(drift: EpisodeDataset) -> None:
    order = np.argsort(drift.returns)
    for name, kept in (("best", order[-20:]), ("worst", order[:20])):
        chosen = choose_episodes(drift, {name: 0.5})
        np.testing.assert_array_equal(chosen.dataset.episode_numbers, np.sort(kept))
        (out,) = chosen.left_out
        assert (out.step, out.num_episodes) == (f"{name}=0.5", 20)
        assert out.num_steps + chosen.dataset.num_transitions == drift.num_transitions
        assert chosen.notes == ()
        assert f"keeps 20 of 40 episodes, {chosen.dataset.num_transitions:,} of" in chosen.summary
        assert chosen.to_json()["left_out"][0]["episodes"] == 20


def test_a_range_of_returns_says_which_side(drift: EpisodeDataset) -> None:
    low, high = np.sort(drift.returns)[[10, 29]]
    chosen = choose_episodes(drift, {"returns": [float(low), float(high)]})
    assert chosen.dataset.returns.min() == low
    assert chosen.dataset.returns.max() == high
    assert [out.num_episodes for out in chosen.left_out] == [10, 10]
    assert [out.reason.split()[1] for out in chosen.left_out] == ["below", "above"]


def test_steps_are_applied_in_order_and_numbers_stay_those_of_the_whole(drift: EpisodeDataset) -> None:
    chosen = choose_episodes(drift, "episodes=[10-39],best=0.1")
    assert chosen.dataset.num_episodes == 3
    assert chosen.dataset.episode_numbers.min() >= 10
    assert chosen.dataset.selected_from is not None
    assert chosen.dataset.selected_from.select == "episodes=[10-39],best=0.1"
    again = choose_episodes(choose_episodes(drift, "episodes=[10-39]").dataset, "best=0.1").dataset
    assert again.fingerprint == chosen.dataset.fingerprint
    assert again.selected_from is not None
    assert again.selected_from.select == "episodes=[10-39],best=0.1"
    with pytest.raises(UserError, match="names episode 3, but the steps before leave it out"):
        select_episodes(drift, "episodes=[10-39],episodes=[3,12]")
    with pytest.raises(UserError, match="names episode 40, but it has episodes 0 to 39"):
        select_episodes(drift, "episodes=[3,40]")


def test_constant_returns_keep_the_first_by_index_with_a_note(drift: EpisodeDataset) -> None:
    flat = replace(drift, rewards=np.zeros_like(drift.rewards))
    for name in ("best", "worst"):
        chosen = choose_episodes(flat, {name: 0.25})
        assert chosen.dataset.episode_numbers.tolist() == list(range(10))
        assert "is arbitrary: every episode returns 0" in chosen.notes[0]


def test_too_little_is_refused(drift: EpisodeDataset) -> None:
    for written, says in (
        ("best=0.01", "best=0.01 is less than one of 40 episodes"),
        ("returns=[900,1000]", "keeps none of 40 episodes"),
        ("episodes=[7]", "keeps 1 of 40 episodes; at least 2 are needed"),
        ("diverse=1", "keeps 1 of 40 episodes"),
    ):
        with pytest.raises(UserError, match=says.replace("[", r"\[")):
            choose_episodes(drift, written)


def with_faults(drift: EpisodeDataset) -> EpisodeDataset:
    """Episode 3 holds a NaN, 5 an absurd value, and 39 is a copy of 2."""
    copied = drift.subset(np.array([*range(39), 2]))
    observations, rewards = copied.observations.copy(), copied.rewards.copy()
    rewards[copied.offsets[3] + 1] = np.nan
    observations[copied.obs_offsets[5] + 2, 0] = 1e30
    return replace(copied, observations=observations, rewards=rewards)


def test_clean_leaves_out_what_cannot_be_used_and_copies(drift: EpisodeDataset, tmp_path: Path) -> None:
    bad = with_faults(drift)
    chosen = choose_episodes(bad, "clean")
    assert sorted({*range(40)} - {*chosen.dataset.episode_numbers.tolist()}) == [3, 5, 39]
    reasons = [out.reason for out in chosen.left_out]
    assert reasons == ["a value is not finite", "an absurd value", "equal to an earlier episode"]
    write_d4rl(bad, tmp_path / "bad.hdf5")
    with pytest.raises(UserError, match="NaN"):
        DatasetRef(str(tmp_path / "bad.hdf5")).load()
    assert DatasetRef(str(tmp_path / "bad.hdf5"), select="clean,best=0.5").load().num_episodes == 19
    with pytest.raises(UserError, match="episode 3 has no finite return; put clean before best"):
        choose_episodes(bad, "best=0.5,clean")
    assert choose_episodes(drift, "clean").dataset is drift


def test_diverse_covers_the_data_better_than_the_best(drift: EpisodeDataset) -> None:
    def first(dataset: EpisodeDataset) -> np.ndarray:
        return dataset.observations[:, :2]

    chosen = choose_episodes(drift, "diverse=8", first).dataset
    points = np.stack([np.r_[e.observations[:, :2].mean(0), e.observations[[0, -1], :2].ravel()] for e in drift])

    def radius(kept: np.ndarray) -> float:
        return float(np.linalg.norm(points[:, None] - points[kept], axis=-1).min(1).max())

    others = [radius(np.random.default_rng(seed).permutation(40)[:8]) for seed in range(20)]
    assert radius(chosen.episode_numbers) < min(others)
    all_of_them = choose_episodes(drift, "diverse=99")
    assert all_of_them.dataset is drift
    assert "keeps all" in all_of_them.notes[0]
