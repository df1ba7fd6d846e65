"""A sweep that is refused has changed nothing, a dry run refuses the same, and a narrower grid drops no result."""

import hashlib
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from raystitch.cli import main
from raystitch.config import load_run_config
from raystitch.data.d4rl import write_d4rl
from raystitch.pipeline.trials.rerun import rerun
from tests.cluster.conftest import Prepared, make_swings

BC = "algorithms.bc={train_steps: 20, batch_size: 16, hidden: 8}"
TWO = "grid=[{algo: bc, data: original}, {algo: bc, data: duplicated}]"
# No bridge has a residual of zero, so its trials fail.
FAILS = "{algo: bc, data: stitched, delta: [0]}"
QUICK = (BC, "headline=null", "seeds=[0]", "resources={num_retries: 0, max_concurrent_trials: 1}")


def tree(folder: Path) -> dict[str, tuple[str, int]]:
    """Every file with its content and time."""
    return {
        str(path.relative_to(folder)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def sweep(run: Path, *settings: str, options: tuple[str, ...] = ()) -> int:
    return main(["sweep", "smoke", "--out", str(run), *options, *(f"--set={text}" for text in settings)])


def rows(run: Path) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["data"], row["status"]): row for row in pq.read_table(run / "results.parquet").to_pylist()}


@pytest.fixture
def finished_run(prepared: Prepared, tmp_path: Path) -> Path:
    """As a finished run looks from outside: what a refused one must not touch."""
    run = prepared.copy(tmp_path / "run")
    config = load_run_config("smoke", [*prepared.settings, TWO, *QUICK])
    (run / "config.yaml").write_text(config.to_yaml())
    (run / "environment.json").write_text('{"finished_at": "yesterday"}')
    (run / "results.parquet").write_bytes(b"the table")
    (run / "report.html").write_text("the page")
    return run


REFUSALS = {
    "dataset": (("dataset=d4rl:{other}",), "holds a fit with other settings: dataset (there"),
    "fit": (("fit.gamma=0.5",), "holds a fit with other settings: gamma (there 0.99, asked 0.5)"),
    "buffer": (("stitch.sampler.num_steps=3",), "was generated with other settings: stitch.sampler.num_steps"),
    "fewer bridges": (("augment.num_bridges=10",), "was generated for 20 bridges, more than the 10 asked for"),
    "environment": (("env=Hopper-v5",), "but Hopper-v5 has 11 and 3"),
    "resources": (("resources.trial_cpus=99",), "no machine here has what a trial asks for: CPU 99"),
    "memory": (("resources.trial_memory_gib=9999",), "no machine here has what a trial asks for: CPU 1, memory 1e+04"),
    "batches": (("algorithms.bc.batch_size=1",), "cannot hold both parts of ratio 1:1"),
    "disk": (("augment.num_bridges=1e14",), "make room or choose another place"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_a_refused_sweep_changes_nothing_and_a_dry_run_refuses_the_same(
    what: str, prepared: Prepared, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, says = REFUSALS[what]
    other = tmp_path / "other.hdf5"
    write_d4rl(make_swings(num_episodes=9), other)
    asked = (*prepared.settings, TWO, *QUICK, *(text.format(other=other) for text in settings))
    before = tree(finished_run)
    refused: list[tuple[int, str]] = []
    for options in ((), ("--dry-run",)):
        status = sweep(finished_run, *asked, options=options)
        last = capsys.readouterr().err.splitlines()[-1]
        refused.append((status, re.sub(r"[\d,.]+ MiB are free", "N MiB are free", last)))
        assert tree(finished_run) == before
    assert refused[0] == refused[1]
    assert refused[0][0] in (1, 2)
    assert says in refused[0][1]


def test_damage_in_the_folder_is_told_before_anything_changes(
    prepared: Prepared, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = (*prepared.settings, TWO, *QUICK)
    # A damaged bundle is made again, so it is no reason to refuse.
    for name, status, says in (
        ("buffer/buffer.json", 2, "buffer.json cannot be read as JSON"),
        ("stitcher/stitcher.json", 0, "stitcher.json is damaged"),
    ):
        path = finished_run / name
        kept = path.read_bytes()
        path.write_text("{")
        before = tree(finished_run)
        for options in ((), ("--dry-run",)) if status else (("--dry-run",),):
            assert sweep(finished_run, *asked, options=options) == status
            error = capsys.readouterr().err
            assert says in error and "Traceback" not in error
            assert tree(finished_run) == before
        path.write_bytes(kept)


def test_what_cannot_be_stitched_is_refused_before_the_fit(
    prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, ends = (*prepared.settings, TWO, *QUICK), tmp_path / "ends.hdf5"
    swings = make_swings()
    write_d4rl(replace(swings, terminated=~swings.terminated), ends)
    for options in ((), ("--dry-run",)):
        assert sweep(tmp_path / "new", *settings, "fit.diffusion.horizon=512", options=options) == 2
        assert "is longer than every episode" in capsys.readouterr().err
        margin = ("stitch.pairs.terminal_margin=200", f"dataset=d4rl:{ends}")
        assert sweep(tmp_path / "new", *settings, *margin, options=options) == 2
        assert "no state to leave in the" in capsys.readouterr().err
        assert sweep(tmp_path / "new", *settings, "stitch.sampler.return_weight=1", options=options) == 2
        assert "return_weight=1.0 needs a stitcher whose network takes a return" in capsys.readouterr().err
        assert not (tmp_path / "new").exists()


def test_a_dry_run_that_finds_nothing_writes_nothing(
    prepared: Prepared, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(finished_run)
    # Whether a fit will have an auto cannot be known before it.
    for run, more in ((finished_run, ()), (tmp_path / "new", ()), (tmp_path / "new", ("stitch.qualify.delta=auto",))):
        assert sweep(run, *prepared.settings, TWO, *QUICK, *more, options=("--dry-run",)) == 0
        shown = capsys.readouterr()
        assert "2 trials" in shown.out and "nothing stands in the way of this run" in shown.err
    assert tree(finished_run) == before
    assert not (tmp_path / "new").exists()


def test_no_result_leaves_the_table_and_failed_trials_have_a_status_of_their_own(
    prepared: Prepared, ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = prepared.copy(tmp_path / "run")
    wide = TWO.replace("]", f", {FAILS}]")
    assert sweep(run, *prepared.settings, *QUICK, wide) == 3
    assert "1 of 3 trials failed, the first with: raystitch.errors.UserError: ratio 1:1" in capsys.readouterr().err
    first, asked = rows(run), (run / "config.yaml").read_text()
    assert all(row["in_grid"] for row in first.values())

    narrow = f"grid=[{{algo: bc, data: original}}, {FAILS}]"
    assert sweep(run, *prepared.settings, *QUICK, narrow, options=("--allow-failed",)) == 0
    second = rows(run)
    assert {key: row["in_grid"] for key, row in second.items()} == {
        ("original", "ok"): True,
        ("duplicated", "ok"): False,
        ("stitched", "failed"): True,
    }
    for key, row in second.items():
        assert row | {"in_grid": True} == first[key]
    page, other = (run / "report.html").read_text(), second["duplicated", "ok"]["trial_id"]
    assert "<h2>Trials of other grids</h2>" in page and other in page
    assert "1 trial of other grids in the folder" in capsys.readouterr().out
    (kept,) = (run / "earlier").glob("config-*.yaml")
    assert kept.read_text() == asked
    _repeat(run, other)

    # The table is made of what lies in trials/, whatever became of the table itself. A trial that cannot be described
    # is named and left alone.
    (run / "results.parquet").write_bytes(b"PAR1 but not really")
    stranger = shutil.copytree(run / "trials" / other, run / "trials" / "stranger")
    (stranger / "config.json").unlink()
    before = tree(stranger)
    only = f"grid=[{FAILS}]"
    assert sweep(run, *prepared.settings, *QUICK, only, options=("--allow-failed",)) == 1
    said = capsys.readouterr().err
    assert "all 1 trials failed" in said
    assert "results.parquet is damaged" in said
    assert f"{stranger}/config.json does not exist; it is left as it is" in said
    assert tree(stranger) == before
    assert next((run / "earlier").glob("results-*.parquet")).read_bytes() == b"PAR1 but not really"
    third = rows(run)
    assert third["duplicated", "ok"] == second["duplicated", "ok"]
    assert {key: row["in_grid"] for key, row in third.items()} == {
        ("stitched", "failed"): True,
        ("original", "ok"): False,
        ("duplicated", "ok"): False,
    }


def _repeat(run: Path, trial_id: str) -> None:
    """A trial of an earlier grid can be trained again, and a rerun that breaks off leaves the last one."""
    first = rerun(run, trial_id)
    assert first.stored is not None and first.trial.data == "duplicated"
    kept = tree(first.folder)

    class Broken(Exception):
        pass

    def fail(row: dict[str, Any]) -> None:
        raise Broken

    with pytest.raises(Broken):
        rerun(run, trial_id, fail)
    assert tree(first.folder) == kept
    second = rerun(run, trial_id)
    assert second.folder == first.folder
    assert (second.folder / "returns.json").is_file()
