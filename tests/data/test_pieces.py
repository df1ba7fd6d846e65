"""Steps that are cut out of episodes, and connections that are spared."""

from dataclasses import replace

import numpy as np
import pytest

from raystitch.data.episodes import Episode, EpisodeDataset, from_episodes
from raystitch.data.pieces import connecting, without_steps
from raystitch.errors import UserError


def walks(*paths: list[float]) -> EpisodeDataset:
    """Episodes of positions on a line, cut at their ends."""
    episodes = [
        Episode(
            np.array(states, np.float32)[:, None],
            np.zeros((len(states) - 1, 1), np.float32),
            np.ones(len(states) - 1, np.float32),
            False,
            True,
        )
        for states in paths
    ]
    return from_episodes(episodes, name="walks", action_low=-1, action_high=1)


def steps(dataset: EpisodeDataset, *numbers: int) -> np.ndarray:
    return np.isin(np.arange(dataset.num_transitions), numbers)


def test_pieces_are_the_recorded_steps_with_their_own_next_states(drift: EpisodeDataset) -> None:
    rng = np.random.default_rng(0)
    removed = rng.random(drift.num_transitions) < 0.1
    removed[drift.offsets[4] : drift.offsets[5]] = True  # an episode that is gone as a whole
    left = without_steps(drift, removed)
    assert left.num_transitions == (~removed).sum()
    np.testing.assert_array_equal(left.actions, drift.actions[~removed])
    for side in (0, 1):
        np.testing.assert_array_equal(
            left.observations[left.obs_index + side], drift.observations[drift.obs_index[~removed] + side]
        )
    last = np.flatnonzero(~removed)[left.offsets[1:] - 1]
    at_the_end = np.isin(last, drift.offsets[1:] - 1)
    np.testing.assert_array_equal(left.terminated, drift.terminated[drift.episode_of[last]] & at_the_end)
    np.testing.assert_array_equal(left.truncated, ~left.terminated)
    assert left.final_observed.all()
    assert left.env == drift.env
    assert left.selected_from is None


def test_a_last_state_that_is_not_recorded_matters_only_at_the_end(drift: EpisodeDataset) -> None:
    unknown = replace(drift, final_observed=np.zeros(40, np.bool_))
    left = without_steps(unknown, steps(unknown, 3))
    assert left.num_episodes == 41
    assert left.final_observed.tolist() == [True] + [False] * 40


def test_nothing_removed_is_all_and_everything_removed_is_refused(drift: EpisodeDataset) -> None:
    nothing = np.zeros(drift.num_transitions, np.bool_)
    assert without_steps(drift, nothing).fingerprint == drift.fingerprint
    assert not connecting(drift, nothing).any()
    with pytest.raises(UserError, match="no step is left"):
        without_steps(drift, ~nothing)


LEFT, RIGHT = [0.0, 1.0, 2.0, 1.1, 0.1], [10.0, 11.0, 12.0, 11.1, 10.1]


def test_the_only_way_between_two_regions_is_spared() -> None:
    data = walks([0.05, 1.05, 2.05, 10.05, 11.05], LEFT, RIGHT)
    assert connecting(data, steps(data, 2)).tolist() == steps(data, 2).tolist()
    assert not connecting(data, steps(data, 1)).any()  # LEFT goes there as well


def test_one_of_two_ways_is_not_needed() -> None:
    data = walks([0.05, 1.05, 2.05, 10.05, 11.05], LEFT, RIGHT, [0.02, 1.02, 2.02, 10.02, 11.02])
    assert not connecting(data, steps(data, 2)).any()
    both = steps(data, 2, 14)
    assert connecting(data, both).tolist() == both.tolist()  # each is judged without the other


def test_the_way_back_is_another_way() -> None:
    """The second episode leads from right to left only."""
    data = walks([0.05, 1.05, 2.05, 10.05, 11.05], LEFT, RIGHT, [11.02, 10.02, 2.02, 1.02])
    assert connecting(data, steps(data, 2)).tolist() == steps(data, 2).tolist()


def test_a_tail_is_spared_up_to_where_it_leads() -> None:
    """Steps 2 to 5 are a tail: over the gap, into the region, and on to where nothing else goes."""
    data = walks([0.05, 1.05, 2.05, 10.05, 11.05, 20.0, 21.0], LEFT, RIGHT)
    assert np.flatnonzero(connecting(data, steps(data, 2, 3, 4, 5))).tolist() == [2, 3]
    apart = walks([0.05, 1.05, 2.05, 30.0, 31.0], LEFT, RIGHT)
    assert not connecting(apart, steps(apart, 2, 3)).any()  # it leads nowhere that others go


def test_what_comes_before_every_state_connects_nothing() -> None:
    data = walks([0.05, 1.05, 2.05, 10.05, 11.05], LEFT, RIGHT)
    assert not connecting(data, steps(data, 0)).any()
