"""Logs of fit and augment: rows made of their progress, once each, however often the work is interrupted."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from raystitch.buffer.reach_file import GOAL, Reach, write_reach
from raystitch.config import RunConfig, load_run_config
from raystitch.models.config import PARTS, FitConfig
from raystitch.models.loop import CHECK_EVERY, FitProgress
from raystitch.pipeline.generate.progress import AugmentProgress
from raystitch.pipeline.trials.logs import MOST_ROWS, augment_log, fit_log, log_report, logged_stage
from tests.pipeline.log_files import events, lines


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return load_run_config("smoke", ["logging=[csv]", "fit.diffusion.train_steps=8000", "fit.reward.train_steps=50"])


def fit_progress(fit: FitConfig, part: str, after: int = 0) -> Iterable[FitProgress]:
    """The reports of a part that goes on after a step; its loss is its step."""
    total = fit.diffusion.train_steps if part == "diffusion" else fit.heads[part].train_steps
    for step in range(after + 1, total + 1):
        if step % CHECK_EVERY == 0 or step == total:
            yield FitProgress(part=part, step=step, total_steps=total, loss=step, seconds_left=0.0)


def test_every_part_of_a_fit_is_logged_one_after_the_other(config: RunConfig, tmp_path: Path) -> None:
    notes: list[str] = []
    with fit_log(config, tmp_path, notes.append) as log:
        for part in PARTS:
            for at in fit_progress(config.fit, part):
                log(at)
    rows = lines(tmp_path, "fit")[1:]
    steps = [int(row[0]) for row in rows]
    assert steps == sorted(set(steps))
    assert list(dict.fromkeys(row[1] for row in rows)) == list(PARTS)
    first = [row for row in rows if row[1] == "diffusion"]
    assert len(first) == MOST_ROWS and first[0] == ["40", "diffusion", "loss", "30.0"]  # the mean of two reports
    reward = [[int(row[0]), float(row[3])] for row in rows if row[1] == "reward"]
    before = 8000 + config.fit.dynamics.train_steps + config.fit.inverse.train_steps
    assert reward == [[before + step, step] for step in (20, 40, 50)]
    assert notes == []


def test_a_fit_that_goes_on_is_logged_as_one_that_was_not_interrupted(config: RunConfig, tmp_path: Path) -> None:
    reports = list(fit_progress(config.fit, "diffusion"))
    with fit_log(config, tmp_path / "whole", pytest.fail) as log:
        for at in reports:
            log(at)
    with suppress(KeyboardInterrupt), fit_log(config, tmp_path / "cut", pytest.fail) as log:
        for at in reports[:301]:
            log(at)
        raise KeyboardInterrupt
    with fit_log(config, tmp_path / "cut", pytest.fail) as log:
        for at in fit_progress(config.fit, "diffusion", after=4000):  # from its last checkpoint
            log(at)
    assert lines(tmp_path / "cut", "fit") == lines(tmp_path / "whole", "fit")
    with fit_log(config, tmp_path / "died", pytest.fail) as log:  # its process alone died: the log stays open
        for at in [*reports[:301], *fit_progress(config.fit, "diffusion", after=4000)]:
            log(at)
    assert [row[0] for row in lines(tmp_path / "died", "fit")] == [row[0] for row in lines(tmp_path / "whole", "fit")]


def test_event_files_say_from_where_a_fit_went_on(config: RunConfig, tmp_path: Path) -> None:
    config = replace(config, logging=("tensorboard",))
    for after in (0, 20):  # a killed one, and one that goes on
        with fit_log(config, tmp_path, pytest.fail) as log:
            for at in fit_progress(config.fit, "reward", after):
                log(at)
    found = events(tmp_path, "fit")
    before = 8000 + config.fit.dynamics.train_steps + config.fit.inverse.train_steps
    assert {(event.step - before, value.tag) for event in found for value in event.summary.value} >= {
        (step, "reward/loss") for step in (20, 40, 50)
    }
    # TensorBoard leaves out what came before such an event, from its step on.
    assert before + 40 in [event.step for event in found if event.HasField("session_log")]


def augment_progress(accepted: int, seconds: float, chain_round: int = 0) -> AugmentProgress:
    return AugmentProgress(
        accepted=accepted,
        wanted=100,
        shards=accepted // 5,
        candidates=2 * accepted,
        reasons={"ok": accepted, "residual": accepted // 2, "return": accepted - accepted // 2},
        chain_round=chain_round,
        seconds=seconds,
        bridges_per_second=3.0 if accepted else None,
    )


def reach(num_rounds: int, share: float) -> Reach:
    return Reach(
        num_rounds=num_rounds,
        goal=GOAL,
        num_starts=10,
        share=share,
        own_share=0.0,
        promised=1.0,
        own=0.0,
        steps=40.0,
        longest_chain=num_rounds,
        num_sources=5,
        num_targets=5,
        best_bridge="0-1",
    )


def column(run: Path, name: str) -> list[tuple[int, float]]:
    return [(int(row[0]), float(row[3])) for row in lines(run, "augment")[1:] if row[2] == name]


def test_augment_logs_its_rates_and_the_reach_of_every_round(config: RunConfig, tmp_path: Path) -> None:
    buffer = tmp_path / "buffer"
    with augment_log(config, tmp_path, pytest.fail) as log:
        for accepted, seconds in ((0, 0.0), (10, 1.0), (20, 1.5), (30, 4.0), (40, 5.0)):
            log(augment_progress(accepted, seconds))
        write_reach(buffer, reach(1, 0.5))
        log(augment_progress(40, 6.0, chain_round=1))
        log(augment_progress(60, 8.0, chain_round=1))
    # One row in two seconds, and the last of a round.
    assert column(tmp_path, "bridges_per_second") == [(10, 3), (30, 3), (40, 3), (60, 3)]
    assert column(tmp_path, "share_accepted") == [(at, 0.5) for at in (10, 30, 40, 60)]
    assert column(tmp_path, "share_residual") == [(at, 0.25) for at in (10, 30, 40, 60)]
    assert column(tmp_path, "round") == [(10, 1), (30, 1), (40, 1), (60, 2)]
    assert column(tmp_path, "share") == [(40, 0.5)]
    # It goes on with one shard less than it had said, and ends.
    with augment_log(config, tmp_path, pytest.fail) as log:
        for accepted in (55, 80, 100):
            log(augment_progress(accepted, float(accepted), chain_round=1))
        write_reach(buffer, reach(2, 1.0))
    assert column(tmp_path, "bridges") == [(at, at) for at in (10, 30, 40, 60, 80, 100)]
    assert column(tmp_path, "share") == [(40, 0.5), (100, 1)]
    assert not [row for row in lines(tmp_path, "augment") if row[2].startswith("best_")]
    content = (tmp_path / "logs/csv/augment.csv").read_bytes()
    with augment_log(config, tmp_path, pytest.fail) as log:  # the same command again: nothing is left to do
        log(augment_progress(100, 0.0, chain_round=1))
    assert (tmp_path / "logs/csv/augment.csv").read_bytes() == content


def test_a_stage_does_not_fail_because_its_log_cannot_be_written(config: RunConfig, tmp_path: Path) -> None:
    config = replace(config, logging=("csv", "tensorboard"))
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/csv").write_text("in the way")
    notes: list[str] = []
    with fit_log(config, tmp_path, notes.append) as log:
        for at in fit_progress(config.fit, "reward"):
            log(at)
    assert len(notes) == 1 and notes[0].startswith("logging: csv stopped for fit: ")
    assert events(tmp_path, "fit")
    (tmp_path / "buffer").mkdir()
    (tmp_path / "buffer/reach.json").write_text("[{")
    with augment_log(config, tmp_path, notes.append) as log:
        log(augment_progress(0, 0.0))
        log(augment_progress(100, 1.0))
    assert len(notes) == 2 and events(tmp_path, "augment")


def test_what_a_stage_depends_on_is_its_key(config: RunConfig) -> None:
    grid = load_run_config("smoke", ["fit.diffusion.train_steps=8000", "fit.reward.train_steps=50", "seeds=[1, 2]"])
    sampler = load_run_config("smoke", ["fit.diffusion.train_steps=8000", "fit.reward.train_steps=50", "seed=1"])
    for stage, other, same in (("fit", grid, True), ("fit", sampler, True), ("augment", sampler, False)):
        assert (logged_stage(config, stage).key == logged_stage(other, stage).key) == same
    assert logged_stage(config, "fit").settings["fit"]["diffusion"]["train_steps"] == 8000


def test_tables_and_event_files_hold_no_page(config: RunConfig, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text("<p>")
    log_report(replace(config, logging=("csv", "tensorboard")), tmp_path, page, pytest.fail)
    assert not (tmp_path / "logs").exists()
