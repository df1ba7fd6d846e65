"""References to datasets, and what every selection of episodes has to do."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raystitch.data.d4rl import write_d4rl
from raystitch.data.episodes import EpisodeDataset
from raystitch.data.ref import DatasetRef
from raystitch.data.select import EPISODE_SELECTORS, select_episodes
from raystitch.data.selectors import Embed, EpisodeSelector, Kept, standardised
from raystitch.errors import UserError


def second_half(dataset: EpisodeDataset, value: Any, embed: Embed) -> Kept:
    return Kept(episodes=np.arange(dataset.num_episodes // 2, dataset.num_episodes))


VALUES = {"best": 0.5, "worst": 0.3, "returns": [-10.0, 10.0], "episodes": [0, 5, 7], "diverse": 6}


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a selector that only this test knows."""
    monkeypatch.setitem(EPISODE_SELECTORS, "second_half", EpisodeSelector(second_half))
    return "second_half"


@pytest.mark.parametrize("name", list(EPISODE_SELECTORS))
def test_every_selector_keeps_some_episodes_in_order_and_is_a_function_of_the_data(
    name: str, drift: EpisodeDataset
) -> None:
    selector = EPISODE_SELECTORS[name]
    value = selector.read(name, VALUES.get(name))
    kept = selector.choose(drift, value, standardised).episodes
    assert kept.dtype == np.int64
    assert 0 < len(kept) <= drift.num_episodes
    assert kept[0] >= 0
    assert kept[-1] < drift.num_episodes
    assert (np.diff(kept) > 0).all()
    np.testing.assert_array_equal(selector.choose(replace(drift), value, standardised).episodes, kept)
    selected = select_episodes(drift, {name: VALUES.get(name)})
    np.testing.assert_array_equal(selected.episode_numbers, kept)
    assert selected.whole_fingerprint == drift.fingerprint
    for row, number in enumerate(kept.tolist()):
        np.testing.assert_array_equal(selected.episode(row).observations, drift.episode(number).observations)


def test_all_is_the_dataset_itself(drift: EpisodeDataset) -> None:
    assert select_episodes(drift, "all") is drift
    np.testing.assert_array_equal(drift.episode_numbers, np.arange(40))
    assert drift.whole_fingerprint == drift.fingerprint


def test_a_part_keeps_the_numbers_of_the_whole_also_a_part_of_a_part(drift: EpisodeDataset, half: str) -> None:
    part = select_episodes(drift, half)
    assert (part.num_episodes, part.whole_fingerprint) == (20, drift.fingerprint)
    assert part.fingerprint == drift.subset(np.arange(20, 40)).fingerprint != drift.fingerprint
    quarter = select_episodes(part, half)
    assert quarter.episode_numbers.tolist() == list(range(30, 40))
    assert quarter.whole_fingerprint == drift.fingerprint
    assert quarter.rows_of(np.array([35, 3, 30, 99, -1])).tolist() == [5, -1, 0, -1, -1]


def test_selectors_that_are_not_there_or_keep_nothing(drift: EpisodeDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="select='bets' is not one of all"):
        DatasetRef("demo:pointmaze", select="bets")
    nothing = Kept(episodes=np.zeros(0, np.int64))
    monkeypatch.setitem(EPISODE_SELECTORS, "none", EpisodeSelector(lambda dataset, value, embed: nothing))
    with pytest.raises(UserError, match="drift: select=none keeps none of 40 episodes"):
        select_episodes(drift, "none")


def test_a_reference_is_a_value_and_loads_the_same_data(
    drift: EpisodeDataset, half: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_d4rl(drift, tmp_path / "drift.hdf5")
    monkeypatch.chdir(tmp_path)
    ref = DatasetRef("drift.hdf5", select=half).absolute()
    assert ref == DatasetRef(f"d4rl:{tmp_path / 'drift.hdf5'}", select=half)
    monkeypatch.chdir("/")
    travelled = copy.deepcopy(ref)
    assert travelled == ref
    assert hash(travelled) == hash(ref)
    assert travelled.load().episode_numbers.tolist() == list(range(20, 40))
    assert DatasetRef("demo:pointmaze").absolute() == DatasetRef("demo:pointmaze")
