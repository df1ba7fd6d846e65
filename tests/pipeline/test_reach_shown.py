"""What stitched episodes reach, where it is shown: the file, ``buffer info``, the figures, the cost of a run."""

import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from raystitch.buffer.config import AugmentConfig
from raystitch.buffer.opening import open_buffer
from raystitch.buffer.reach_file import REACH_FILE, Reach, read_reach, write_reach
from raystitch.cli import main
from raystitch.config import RunConfig
from raystitch.data.episodes import EpisodeDataset
from raystitch.errors import DamagedError
from raystitch.io.config_file import parse_config
from raystitch.models.bundle import Bundle
from raystitch.models.config import DiffusionConfig, EmbeddingConfig, FitConfig, HeadConfig
from raystitch.models.fit import fit_bundle
from raystitch.pipeline.generate.augment import augment_local
from raystitch.pipeline.trials.cost import augment_seconds, print_plan
from raystitch.pipeline.trials.figures import write_figures
from raystitch.pipeline.trials.rehearsal import RunPace
from raystitch.stitching.config import PairConfig, QualifyConfig, StitchConfig

STITCH = StitchConfig(
    pairs=PairConfig(split="value", terminal_margin=2, value_check=False),
    qualify=QualifyConfig(delta="off", termination_max=None, value_check=False),
)
CONFIG = AugmentConfig(num_bridges=60, pairs_per_shard=20, bridges_per_round=20)


def entry(num_rounds: int, share: float = 0.5) -> Reach:
    return Reach(
        num_rounds=num_rounds,
        goal="goal",
        num_starts=64,
        share=share,
        own_share=0.0,
        promised=-217.5,
        own=-1970.0,
        steps=218.0,
        longest_chain=12,
        num_sources=4897,
        num_targets=4005,
    )


@pytest.fixture(scope="module")
def bundle(drift: EpisodeDataset) -> Bundle:
    head = HeadConfig(num_members=1, hidden=16, num_layers=1, train_steps=20, batch_size=32)
    config = FitConfig(
        diffusion=DiffusionConfig(
            horizon=16, width=8, multipliers=(1, 2), gap_min=2, gap_max=8, train_steps=20, batch_size=16
        ),
        dynamics=replace(head, num_members=3),
        num_judges=2,
        inverse=head,
        reward=head,
        termination=head,
        value=head,
        embedding=EmbeddingConfig(size=4, hidden=16, num_layers=1, train_steps=20, batch_size=32),
        calibration_windows=60,
    )
    return fit_bundle(drift, config, None, device="cpu")


@pytest.fixture(scope="module")
def once(drift: EpisodeDataset, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reach") / "buffer"
    # Without an environment the task starts where the episodes do, some of which gain something.
    augment_local(replace(drift, env=None), bundle, STITCH, CONFIG, out=folder, seed=0)
    return folder


@pytest.fixture
def folder(once: Path, tmp_path: Path) -> Path:
    """A finished buffer of several rounds."""
    shutil.copytree(once, tmp_path / "buffer")
    return tmp_path / "buffer"


def test_the_file_keeps_a_line_per_round_and_tells_damage_from_absence(tmp_path: Path) -> None:
    assert read_reach(tmp_path) == []
    for num_rounds in (1, 2, 3):
        write_reach(tmp_path, entry(num_rounds))
    write_reach(tmp_path, entry(2, share=1.0))  # the rounds after the second are made anew
    assert read_reach(tmp_path) == [entry(1), entry(2, share=1.0)]
    for text in ("[{", "3", '[{"num_rounds": 1}]', json.dumps([entry(1).to_json() | {"share": "half"}])):
        (tmp_path / REACH_FILE).write_text(text)
        with pytest.raises(DamagedError, match=r"reach\.json is damaged; run `raystitch augment`"):
            read_reach(tmp_path)


def test_augment_writes_it_again_where_it_is_damaged_or_lost(
    drift: EpisodeDataset, bundle: Bundle, folder: Path
) -> None:
    text = (folder / REACH_FILE).read_text()
    assert [found.num_rounds for found in read_reach(folder)] == [*range(1, len(open_buffer(folder).meta.rounds) + 2)]
    for broken in (text[:-9], None):
        (folder / REACH_FILE).unlink()
        if broken is not None:
            (folder / REACH_FILE).write_text(broken)
        augment_local(drift, bundle, STITCH, CONFIG, out=folder, seed=0)
        assert json.loads((folder / REACH_FILE).read_text()) == json.loads(text)[-1:]


def test_buffer_info_shows_every_round_and_warns_where_nothing_is_reached(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_reach(folder, entry(8))
    write_reach(folder, entry(9, share=0.0))
    assert main(["buffer", "info", str(folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["reach"] == [found.to_json() for found in read_reach(folder)]
    assert told["reach_problem"] is None
    assert main(["buffer", "info", str(folder)]) == 0
    text = capsys.readouterr().out
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "8 50 % 0 % -217.5 -1970 218 12 4,897 4,005" in rows
    assert "reach of 64 start states: the share from which a stitched episode, or a record, reaches the goal" in text
    assert "warning: no stitched episode leads from a start state to the goal" in text
    assert "from the data alone" not in text
    (folder / REACH_FILE).write_text("{")
    assert main(["buffer", "info", str(folder)]) == 0
    assert "reach.json is damaged; run `raystitch augment`" in capsys.readouterr().out


def test_the_advice_for_training_follows_from_what_is_reached() -> None:
    assert entry(9).advice == (
        "from the data alone: train at ratio 0:1 (recorded episodes hardly ever lead there), a Decision Transformer "
        "with target return -217.5"
    )
    assert "ratio 1:1 (recorded episodes lead there too)" in replace(entry(9), own_share=0.1).advice
    assert entry(9, share=0.0).advice.startswith("warning: no stitched episode leads")
    assert replace(entry(9), goal="top decile of returns").advice == ""


def test_figures_hold_the_most_promising_episode_piece_by_piece(
    drift: EpisodeDataset, folder: Path, tmp_path: Path
) -> None:
    buffer = open_buffer(folder)
    far = np.intersect1d(buffer.accepted_rows(), np.flatnonzero(buffer.column("source_step") > 2))[-1]
    last = replace(entry(99), best_bridge=buffer.table["bridge_id"][int(far)].as_py(), best_step=2)
    write_reach(folder, last)
    write_figures(drift, buffer, tmp_path / "figures")
    table = pq.read_table(tmp_path / "figures/episode.parquet").to_pandas()
    pieces = [piece for _, piece in table.groupby("line", sort=True)]
    kinds = [piece["part"].iloc[0] for piece in pieces]
    assert "bridge" in kinds
    assert all(before != after for before, after in pairwise(kinds))
    source = drift.episode(int(buffer.column("source_episode")[far])).observations
    points = [piece[["x", "y"]].to_numpy() for piece in pieces]
    np.testing.assert_allclose(points[0][0], source[last.best_step, :2], rtol=1e-6)
    for before, after in pairwise(points):  # no gap between the pieces
        np.testing.assert_array_equal(before[-1], after[0])
    assert len(pq.read_table(tmp_path / "figures/states.parquet")) == len(drift.observations)


def test_nothing_is_drawn_where_no_start_state_takes_a_bridge(
    drift: EpisodeDataset, folder: Path, tmp_path: Path
) -> None:
    write_reach(folder, entry(99))
    write_figures(drift, open_buffer(folder), tmp_path / "figures")
    assert len(pq.read_table(tmp_path / "figures/episode.parquet")) == 0


def plan_of(tmp_path: Path, capsys: pytest.CaptureFixture[str], **augment: int | str) -> tuple[float, str]:
    split = {"split": augment.pop("split")} if "split" in augment else {}
    grid = [{"algo": "bc", "data": "original"}]
    values = {"dataset": "demo:pointmaze", "augment": augment, "stitch": {"pairs": split}, "grid": grid}
    config = parse_config(values, RunConfig)
    print_plan(config, tmp_path)
    pace = RunPace(fit=1, candidate=0.01, group_step={}, episode={}, environment=0)
    return augment_seconds(config, pace), " ".join(capsys.readouterr().out.split())


def test_a_plan_says_the_rounds_and_counts_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = {"num_bridges": 20000, "bridges_per_round": 1000}
    none, text = plan_of(tmp_path, capsys, **size, chain_rounds=0)
    assert "20,000 bridges; into" in text
    two, text = plan_of(tmp_path, capsys, **size, chain_rounds=2)
    assert "20,000 bridges in 3 rounds; into" in text
    most, text = plan_of(tmp_path, capsys, **size, split="value")
    assert "20,000 bridges in at most 20 rounds; into" in text
    assert none < two < most
    by_return, text = plan_of(tmp_path, capsys, **size, split="return")
    assert "20,000 bridges; into" in text
    assert by_return == none
