"""What is refused before it is sent, and what an answer can be asked."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from raystitch.client import Candidate, Client, Result, Trajectory
from raystitch.client.wire import decode_json, plain_options
from tests.client.conftest import answer, candidate, encoded


def test_arrays_are_copied_as_float32_and_cannot_be_changed() -> None:
    observations = np.arange(6, dtype=np.float64).reshape(3, 2)
    trajectory = Trajectory(observations, torch.ones(2, 1), [1, 2], np.bool_(True))
    observations[0, 0] = 9
    assert trajectory.observations.dtype == np.float32
    assert trajectory.observations[0, 0] == 0
    assert trajectory.actions is not None and trajectory.rewards is not None
    assert (trajectory.actions.shape, trajectory.rewards.tolist()) == ((2, 1), [1, 2])
    assert trajectory.terminated is True
    with pytest.raises(ValueError, match="read-only"):
        trajectory.observations[0, 0] = 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observations": [1.0, 2.0]}, r"observations must be \[T, O\], got shape \(2,\)"),
        ({"observations": np.zeros((3, 0))}, r"observations must be \[T, O\], got shape \(3, 0\)"),
        ({"observations": [[1.0, 2.0]]}, "observations has 1 state, a trajectory needs at least 2"),
        ({"observations": [[1.0], [2.0, 3.0], [4.0]]}, "observations cannot be read as an array"),
        ({"observations": [["a"], ["b"], ["c"]]}, "observations must hold real numbers, got dtype <U1"),
        ({"observations": np.zeros((3, 2), complex)}, "observations must hold real numbers, got dtype complex128"),
        ({"observations": torch.ones(3, 2, requires_grad=True)}, "observations cannot be read as an array"),
        ({"observations": [[0, 1], [2, math.nan], [math.inf, 5]]}, r"observations\[1\]\[1\] is nan: every number"),
        ({"observations": [[0, 1], [2, 3], [1e39, 5]]}, r"observations\[2\]\[0\] is 1e\+39: too large for float32"),
        ({"actions": [[1.0]]}, "actions has 1 rows, but between 3 states lie 2 transitions"),
        ({"actions": [1.0, 2.0]}, r"actions must be \[T-1, A\], got shape \(2,\)"),
        ({"actions": [[0.0], [-math.inf]]}, r"actions\[1\]\[0\] is -inf"),
        ({"rewards": [1.0, 2.0, 3.0]}, "rewards has 3 rows, but between 3 states lie 2 transitions"),
        ({"rewards": [[1.0], [2.0]]}, r"rewards must be \[T-1\], got shape \(2, 1\)"),
        ({"rewards": [0.0, math.nan]}, r"rewards\[1\] is nan"),
        ({"terminated": 1}, "terminated must be True or False, got terminated=1"),
    ],
)
def test_a_wrong_trajectory_names_field_and_index(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Trajectory(**{"observations": np.zeros((3, 2)), "actions": np.zeros((2, 1)), "rewards": np.zeros(2)} | changes)


def test_trajectories_of_different_sizes_are_refused_without_a_server() -> None:
    two, three = np.zeros((3, 2)), np.zeros((3, 3))
    with Client("http://127.0.0.1:9") as client:
        with pytest.raises(ValueError, match=r"source\.observations has 2 columns, target\.observations has 3"):
            client.stitch(Trajectory(two), Trajectory(three))
        with pytest.raises(ValueError, match=r"source\.actions has 1 columns, target\.actions has 2"):
            client.stitch(Trajectory(two, np.zeros((2, 1))), Trajectory(two, np.zeros((2, 2))))


OPTIONS: dict[str, Any] = {
    "delta": None,
    "gap": None,
    "num_candidates": 16,
    "return_all": False,
    "seed": 0,
    "cut": "best",
    "model": "default",
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gap": 1.5}, "gap must be a whole number, got gap=1.5"),
        ({"seed": None}, "seed must be a whole number, got seed=None"),
        ({"num_candidates": "4"}, "num_candidates must be a whole number, got num_candidates='4'"),
        ({"delta": math.nan}, "delta must be a number >= 0"),
        ({"delta": -1}, "delta must be a number >= 0.*got delta=-1"),
        ({"cut": "start"}, "cut must be 'best' or 'ends', got cut='start'"),
    ],
)
def test_a_wrong_option_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plain_options(**OPTIONS | changes)


def test_options_of_numpy_become_plain() -> None:
    numbers: dict[str, Any] = {"gap": np.int32(3), "seed": np.int64(4), "delta": np.float32(0.5)}
    assert plain_options(**OPTIONS | numbers) == OPTIONS | {"gap": 3, "seed": 4, "delta": 0.5}


@pytest.mark.parametrize(
    ("changes", "delta", "accepted"),
    [
        ({}, 0.6, True),
        ({}, 0.5, False),
        ({}, None, True),
        ({"failed": ["residual"], "accepted": False}, 0.6, True),
        ({"failed": ["residual", "return"], "accepted": False}, 0.6, False),
        ({"residual_max": None}, 1e9, False),
    ],
)
def test_a_candidate_at_another_delta(changes: dict[str, Any], delta: float | None, accepted: bool) -> None:
    (only,) = _result([candidate(**changes)]).candidates or []
    assert isinstance(only, Candidate)
    assert only.accepted_at(delta) is accepted


def test_a_result_at_another_delta_keeps_the_order() -> None:
    residuals = (0.5, 0.1, 0.3)
    result = _result([candidate(pair=pair, residual_max=value) for pair, value in enumerate(residuals)])
    assert [each.pair for each in result.accepted_at(0.4)] == [1, 2]
    with pytest.raises(ValueError, match="ask with return_all=True"):
        _result(None).accepted_at(0.4)


def _result(candidates: list[dict[str, Any]] | None) -> Result:
    return decode_json(encoded(answer() | {"candidates": candidates}))
