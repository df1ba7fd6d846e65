"""Pictures of states: what is drawn are the states themselves, and what does not fit is refused in one line."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from numpy.typing import NDArray

import raystitch as rs
from raystitch.buffer.reader import Buffer
from raystitch.data.plane import plane_of
from raystitch.stitching.candidates import Candidates

DIMS = (2, 0)


def line(ax: Axes, label: str) -> NDArray[np.float64]:
    (found,) = [drawn for drawn in ax.get_lines() if drawn.get_label() == label]
    return np.stack([np.asarray(found.get_xdata()), np.asarray(found.get_ydata())], 1)


def stored(buffer: Buffer, row: int) -> NDArray[np.float32]:
    return np.array(buffer.table["observations"][row].as_py(), np.float32)


def test_a_bridge_of_a_buffer_is_drawn_state_by_state_between_its_episodes(
    buffer: Buffer, drift: rs.EpisodeDataset
) -> None:
    row = int(np.flatnonzero((buffer.column("chain_round") == 0) & (buffer.column("source_step") > 0))[0])
    ax = rs.plot.bridge(buffer, row, drift, dims=DIMS)
    bridge, source, target = (line(ax, label) for label in ("bridge (generated)", "source", "target"))
    np.testing.assert_allclose(bridge, stored(buffer, row)[:, DIMS])
    left = drift.episode(int(buffer.column("source_episode")[row])).observations
    np.testing.assert_allclose(source, left[: buffer.column("source_step")[row] + 1, DIMS])
    np.testing.assert_array_equal(source[-1], bridge[0])
    np.testing.assert_array_equal(bridge[-1], target[0])
    assert ax.get_title().startswith(f"Bridge {buffer.table['bridge_id'][row].as_py()}: gap {len(bridge) - 2}")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("observation[2]", "observation[0]")


def test_every_candidate_can_be_drawn_and_chained_ones_go_on_without_a_leap(
    buffer: Buffer, drift: rs.EpisodeDataset
) -> None:
    chained = np.flatnonzero(np.maximum(*buffer.parents) >= 0)
    rejected = np.setdiff1d(np.arange(buffer.num_candidates), buffer.accepted_rows())
    assert len(chained)
    assert len(rejected)
    for row in {*chained[:5].tolist(), *rejected[:5].tolist()}:
        ax = rs.plot.bridge(buffer, row, drift, dims=(0, 1), ax=plt.figure().subplots())
        drawn = {str(found.get_label()) for found in ax.get_lines()}
        bridge = line(ax, "bridge (generated)")
        np.testing.assert_allclose(bridge, stored(buffer, row)[:, :2])
        if "source" in drawn:
            np.testing.assert_array_equal(line(ax, "source")[-1], bridge[0])
        if "target" in drawn:
            np.testing.assert_array_equal(line(ax, "target")[0], bridge[-1])


def test_an_id_names_the_same_bridge_and_none_the_first_accepted_one(buffer: Buffer) -> None:
    row = int(buffer.accepted_rows()[0])
    names = (None, row, np.int64(row), buffer.table["bridge_id"][row].as_py())
    titles = {rs.plot.bridge(buffer, name).get_title() for name in names}
    assert len(titles) == 1
    assert titles.pop().startswith("Bridge ")


def test_context_shortens_what_is_drawn_around(buffer: Buffer, drift: rs.EpisodeDataset) -> None:
    row = int(buffer.column("source_step").argmax())
    whole, short = (line(rs.plot.bridge(buffer, row, drift, context=context), "source") for context in (None, 2))
    np.testing.assert_array_equal(short, whole[-3:])


def test_without_the_dataset_the_bridge_stands_alone(buffer: Buffer) -> None:
    ax = rs.plot.bridge(buffer)
    assert [found.get_label() for found in ax.get_lines()] == ["bridge (generated)"]
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["bridge (generated)", "state left", "state entered"]


def test_candidates_are_drawn_with_their_dataset_or_with_the_trajectories_that_were_given(
    candidates: Candidates, own: Candidates, drift: rs.EpisodeDataset
) -> None:
    row = int(candidates.source_step.argmax())
    source = line(rs.plot.bridge(candidates, row, drift, dims=DIMS, context=3), "source")
    before = drift.episode(int(candidates.source_episode[row])).observations[: candidates.source_step[row] + 1]
    np.testing.assert_allclose(source, before[-4:, DIMS])
    row = int(own.target_step.argmin())
    first, second = drift.episode(1), drift.episode(2)
    for given in ((first, second), (first.observations, second.observations)):
        ax = rs.plot.bridge(own, row, source=given[0], target=given[1], dims=DIMS)
        np.testing.assert_allclose(line(ax, "target"), second.observations[own.target_step[row] :, DIMS])


def test_the_plane_is_the_floor_of_the_maze_or_the_main_directions(drift: rs.EpisodeDataset) -> None:
    floor = rs.plot.episodes(drift, count=3)  # its environment is a maze
    assert (floor.get_xlabel(), len(floor.patches)) == ("x", len(plane_of(drift).ground.walls))
    assert floor.patches
    unknown = replace(drift, env=None)
    assert rs.plot.episodes(unknown).get_ylabel() == "second principal component (standardised)"


def test_many_bridges_are_drawn_at_a_delta(buffer: Buffer, drift: rs.EpisodeDataset) -> None:
    ax = rs.plot.bridges(buffer, drift, count=7, dims=(0, 1))
    assert [len(drawn.get_segments()) for drawn in ax.collections[:3]] == [7, 7, 7]  # pyright: ignore[reportAttributeAccessIssue]
    few = rs.plot.bridges(buffer, drift, 1e-9)
    assert len(few.collections[0].get_segments()) == 0  # pyright: ignore[reportAttributeAccessIssue]


def test_axes_of_the_caller_are_drawn_on_and_no_figure_is_opened(buffer: Buffer, drift: rs.EpisodeDataset) -> None:
    _, (left, right) = plt.subplots(1, 2)
    assert rs.plot.episodes(drift, ax=left) is left
    assert rs.plot.bridge(buffer, dataset=drift, ax=right) is right
    assert len(plt.get_fignums()) == 1


Draw = Callable[[Buffer, Candidates, Candidates, rs.EpisodeDataset], object]


@pytest.mark.parametrize(
    ("draw", "says"),
    [
        (lambda b, c, o, d: rs.plot.bridge(b, 10**6), "there is no candidate 1000000: the rows of .* are 0 .. "),
        (lambda b, c, o, d: rs.plot.bridge(c, -1), "there is no candidate -1: the rows of these candidates are 0 .. "),
        (lambda b, c, o, d: rs.plot.bridge(b, "000000-9999-0"), "has no bridge '000000-9999-0'; ids look like"),
        (lambda b, c, o, d: rs.plot.bridge(c, "000000-0000-0"), "give a row instead of '000000-0000-0'"),
        (lambda b, c, o, d: rs.plot.bridge(d), "drawn from a buffer or from candidates, got EpisodeDataset"),
        (lambda b, c, o, d: rs.plot.bridge(b, 0, replace(d, rewards=d.rewards + 1)), "holds other trajectories"),
        (lambda b, c, o, d: rs.plot.bridges(b, replace(d, rewards=d.rewards + 1)), "holds other trajectories"),
        (lambda b, c, o, d: rs.plot.bridges(c, d), "takes Buffer, got Candidates"),
        (lambda b, c, o, d: rs.plot.bridge(c, 0, d.subset(np.arange(39, -1, -1))), "it joins others"),
        (lambda b, c, o, d: rs.plot.bridge(c, 0, d.subset(np.arange(1))), "it joins others|has 1 episodes"),
        (lambda b, c, o, d: rs.plot.bridge(c, 0, replace(d, observations=d.observations[:, :3])), "it joins others|3"),
        (lambda b, c, o, d: rs.plot.bridge(b, 0, d, dims=(0, 4)), r"dims=\(0, 4\) must be .* 0 .. 3"),
        (lambda b, c, o, d: rs.plot.bridge(b, 0, dims=(1,)), r"dims=\(1\) must be two dimensions"),
        (lambda b, c, o, d: rs.plot.episodes(d, dims=(-1, 0)), r"dims=\(-1, 0\) must be two dimensions"),
        (lambda b, c, o, d: rs.plot.episodes(d, count=-1), "count must be >= 0, got count=-1"),
        (lambda b, c, o, d: rs.plot.bridge(b, 0, d, source=d.episode(0)), "source and target are for candidates"),
        (lambda b, c, o, d: rs.plot.bridge(c, 0, source=d.episode(0)), "source is for trajectories that are in no"),
        (lambda b, c, o, d: rs.plot.bridge(o, 0, source=d.episode(7)), "leaves a state that is not step .* of source"),
        (lambda b, c, o, d: rs.plot.bridge(o, 0, target=np.zeros(4)), r"target has observations of shape \(4,\)"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    draw: Draw, says: str, buffer: Buffer, candidates: Candidates, own: Candidates, drift: rs.EpisodeDataset
) -> None:
    with pytest.raises(rs.UserError, match=says) as refused:
        draw(buffer, candidates, own, drift)
    assert len(str(refused.value).splitlines()) == 1
    assert plt.get_fignums() == []


def test_no_accepted_bridge_is_said(candidates: Candidates) -> None:
    with pytest.raises(rs.UserError, match="no bridge of these candidates is accepted; name any candidate by its row"):
        rs.plot.bridge(candidates.take(~candidates.accepted))
