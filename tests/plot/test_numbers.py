"""Pictures of numbers add up to the numbers; matplotlib is imported late, and nothing needs a display."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

import raystitch as rs
from raystitch.buffer.reader import Buffer
from raystitch.stitching.candidates import Candidates


def bars(ax: Axes) -> list[Rectangle]:
    return [patch for patch in ax.patches if isinstance(patch, Rectangle)]


@pytest.mark.parametrize("delta", ["generation", "q90", 1e-9])
def test_outcomes_are_those_of_the_buffer_at_a_delta(buffer: Buffer, delta: float | str) -> None:
    ax = rs.plot.acceptance(buffer, delta)
    counted = {reason: count for reason, count in buffer.reasons(delta).items() if count}
    texts = [text.get_text() for text in ax.texts]
    assert [int(text.split(" ")[0].replace(",", "")) for text in texts] == list(counted.values())
    assert sum(bar.get_width() for bar in bars(ax)) == buffer.num_candidates


@pytest.mark.parametrize("draw", [rs.plot.residuals, rs.plot.gaps])
def test_histograms_hold_every_candidate(draw: "type", buffer: Buffer, candidates: Candidates) -> None:
    assert sum(bar.get_height() for bar in bars(draw(buffer))) == buffer.num_candidates
    assert sum(bar.get_height() for bar in bars(draw(candidates))) == len(candidates)


def test_delta_is_shown_where_it_is_known(buffer: Buffer, candidates: Candidates) -> None:
    assert len(rs.plot.residuals(candidates).get_lines()) == 0
    assert len(rs.plot.residuals(buffer, "off").get_lines()) == 0
    (shown,) = rs.plot.residuals(buffer, 0.25).get_lines()
    assert np.asarray(shown.get_xdata()).tolist() == [0.25, 0.25]
    ax = rs.plot.residuals(buffer)  # made at q50
    gap = np.array([round(float(np.median(buffer.column("gap"))))])
    assert np.asarray(ax.get_lines()[0].get_xdata())[0] == buffer.calibration.threshold("q50", gap)[0]
    assert ax.get_xlabel().endswith("dashed: delta q50")


def test_returns_of_groups_and_their_means(drift: rs.EpisodeDataset) -> None:
    ax = rs.plot.returns({"original": drift, "none": np.zeros(3)})
    assert [len(np.asarray(dots.get_offsets())) for dots in ax.collections] == [drift.num_episodes, 3]
    assert [text.get_text() for text in ax.texts] == [f"{drift.returns.mean():.3g}", "0"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["original", "none"]


def test_wrong_input_is_refused_in_one_line(buffer: Buffer, candidates: Candidates, drift: rs.EpisodeDataset) -> None:
    wrong = [
        (lambda: rs.plot.acceptance(buffer, "q101"), "delta='q101'"),
        (lambda: rs.plot.gaps(candidates, "q90"), "candidates were decided on when they were made; delta=q90"),
        (lambda: rs.plot.residuals(drift), "drawn from a buffer or from candidates, got EpisodeDataset"),  # pyright: ignore[reportArgumentType]
        (lambda: rs.plot.returns({}), "at least one group"),
        (lambda: rs.plot.returns({"bad": [1.0, np.nan]}), "the returns of 'bad' must be finite"),
        (lambda: rs.plot.returns({"empty": []}), "the returns of 'empty' must be finite numbers, at least one"),
    ]
    for draw, says in wrong:
        with pytest.raises(rs.UserError, match=says) as refused:
            draw()
        assert len(str(refused.value).splitlines()) == 1
    assert plt.get_fignums() == []


LATE = """
import sys
import raystitch as rs
assert "matplotlib" not in sys.modules
rs.plot.returns
assert "matplotlib.pyplot" not in sys.modules
ax = rs.plot.returns({"some": [0.0, 1.0]})
ax.figure.savefig(sys.argv[1])
"""


def test_pyplot_is_imported_by_the_first_figure_which_needs_no_display(tmp_path: Path) -> None:
    file, environment = tmp_path / "returns.png", {"PATH": "", "HOME": str(tmp_path)}
    environment["PYTHONPATH"] = str(Path(rs.__file__).parents[1])
    subprocess.run([sys.executable, "-c", LATE, str(file)], check=True, env=environment)
    assert file.read_bytes().startswith(b"\x89PNG")
