"""Episodes from arrays in memory."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from raystitch.data.episodes import Episode, EpisodeDataset, from_episodes
from raystitch.errors import UserError


def f32(values: Any) -> Any:
    return np.asarray(values, np.float32)


PLAIN = Episode(f32(np.arange(12).reshape(4, 3)), f32(np.ones((3, 2))), f32(np.arange(3)), False, True)


def put_together(*episodes: Any, low: Any = -1, high: Any = 1) -> EpisodeDataset:
    return from_episodes(episodes, name="mine", action_low=low, action_high=high)


@pytest.mark.parametrize(
    "change",
    [
        {"rewards": np.arange(3.0).reshape(3, 1)},
        {"rewards": np.arange(3.0).reshape(1, 3, 1)},
        {"rewards": [0, 1, 2]},
        {"observations": PLAIN.observations.tolist(), "actions": [[1, 1]] * 3},
        {"terminated": np.array([False]), "truncated": np.bool_(True)},
    ],
    ids=["column", "three_axes", "list", "lists", "flags"],
)
def test_shapes_whose_meaning_is_certain(change: dict[str, Any]) -> None:
    assert put_together(PLAIN, replace(PLAIN, **change)).fingerprint == put_together(PLAIN, PLAIN).fingerprint


def test_vectors_of_one_number() -> None:
    one = Episode(f32(np.arange(4)), f32(np.arange(3) / 4), f32(np.zeros(3)), True, False)
    dataset = put_together(one)
    assert (dataset.observations.shape, dataset.actions.shape) == ((4, 1), (3, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards": np.zeros((3, 2))}, r"rewards must have one number for each of 3 actions, got shape \(3, 2\)"),
        ({"rewards": np.zeros(4)}, r"rewards must have one number for each of 3 actions, got shape \(4,\)"),
        ({"rewards": 0.0}, r"rewards must have one number for each of 3 actions, got shape \(\)"),
        ({"rewards": ["much"] * 3}, "rewards must be an array of numbers, got <U4"),
        ({"observations": np.zeros((3, 3))}, r"observations must have 4 rows of one vector each, got shape \(3, 3\)"),
        ({"observations": np.zeros((4, 8, 8))}, r"observations must have 4 rows of one vector each, got shape \(4, 8"),
        ({"observations": [[0.0], [0.0, 1.0]]}, "observations must be an array of numbers, got rows of different"),
        (
            {"actions": np.array([0, 1, 0])},
            r"actions must have .* got shape \(3,\); discrete actions have to be one-hot",
        ),
        ({"actions": None}, "actions must be an array of numbers, got object"),
        ({"observations": np.zeros((4, 2))}, "episode 1 has observations of 2 numbers, but episode 0 of 3"),
        ({"actions": np.zeros((3, 1))}, "episode 1 has actions of 1 numbers, but episode 0 of 2"),
    ],
)
def test_shapes_that_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"mine: (episode 1: )?{message}"):
        put_together(PLAIN, replace(PLAIN, **change))


def test_nothing_and_no_bounds() -> None:
    with pytest.raises(UserError, match="mine: there are no episodes"):
        put_together()
    dataset = put_together(PLAIN, low=-np.inf, high=[np.inf, np.inf])
    np.testing.assert_array_equal([dataset.action_low, dataset.action_high], [[0, 0], [2, 2]])
    assert [problem["kind"] for problem in dataset.found] == ["wide_action_bounds"]


def test_a_dataset_whose_columns_have_another_shape(drift: EpisodeDataset) -> None:
    for column in ("rewards", "terminated"):
        with pytest.raises(UserError, match=rf"drift: {column} must have 1 axes, got shape \(\d+, 1\)"):
            replace(drift, **{column: getattr(drift, column)[:, None]})
    with pytest.raises(UserError, match=r"drift: actions must have 2 axes, got shape \(\d+,\)"):
        replace(drift, actions=drift.actions[:, 0])
