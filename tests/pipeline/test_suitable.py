from dataclasses import replace

import numpy as np
import pytest

from raystitch.data.episodes import EpisodeDataset
from raystitch.errors import UserError
from raystitch.pipeline.trials.checks import check_suitable


def test_a_good_dataset_is_passed_over_in_silence(drift: EpisodeDataset) -> None:
    assert check_suitable(drift) == []


def test_nothing_to_stitch_and_nothing_to_improve_are_refused(drift: EpisodeDataset) -> None:
    with pytest.raises(UserError, match=r"drift has 1 episode; .* needs at least 2"):
        check_suitable(drift.subset(np.array([3])))
    with pytest.raises(UserError, match="drift: every reward is 0"):
        check_suitable(replace(drift, rewards=np.zeros_like(drift.rewards)))


def test_actions_outside_the_bounds_are_counted_and_placed(drift: EpisodeDataset) -> None:
    actions = drift.actions.copy()
    actions[[17, 40]] = 1.5
    (note,) = check_suitable(replace(drift, actions=actions))
    assert note.startswith("drift: 2 transitions have an action outside its bounds (by up to 0.5), the first in row 17")
    assert "trained on as recorded" in note


def test_equal_returns_and_missing_final_observations_are_noted(drift: EpisodeDataset) -> None:
    observed = np.arange(drift.num_episodes) > 1
    (note,) = check_suitable(replace(drift, final_observed=observed))
    assert note.startswith("drift: 2 episodes lack the observation after their last action")
    assert check_suitable(replace(drift, final_observed=np.zeros_like(observed))) == []
    rewards = np.zeros_like(drift.rewards)
    rewards[drift.offsets[1:] - 1] = 1
    (note,) = check_suitable(replace(drift, rewards=rewards))
    assert note.startswith("drift: all 40 episodes have the return 1, so none is better than another")
