"""Hundreds of finished trials: planning, resuming, results and report do work in proportion, counted and not timed."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from raystitch.bench.sweep_runs import NUM_CELLS, Prepared, inputs_of, prepare, write_finished
from raystitch.buffer.episodes import on_dataset
from raystitch.buffer.opening import open_buffer
from raystitch.buffer.reader import Buffer
from raystitch.cluster.sweep import delta_values
from raystitch.data.load import load_dataset
from raystitch.models.bundle import Bundle
from raystitch.pipeline.study.generalise import study_run
from raystitch.pipeline.trials.groups import group_trials
from raystitch.pipeline.trials.plan import plan, result_rows
from raystitch.pipeline.trials.run_folder import RESULTS_FILE, other_rows, write_config
from raystitch.pipeline.trials.trial_folder import finished
from raystitch.report.page import build_report
from raystitch.report.table import write_results
from raystitch.report.terminal import print_summary

FEW, MANY = 20, 67
"""Seeds per cell: 240 and 804 trials."""


@dataclass
class Work:
    """What was done: files of the run that were opened, by name, and functions called."""

    opened: Counter[str] = field(default_factory=Counter[str])
    calls: int = 0


_counting: list[tuple[str, Work]] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _counting:
        root, work = _counting[-1]
        path = str(arguments[0])
        if path.startswith(root):
            work.opened[Path(path).name] += 1


sys.addaudithook(_hook)  # cannot be taken away again; it does nothing while nothing is counted


@contextmanager
def counted(run: Path, calls: bool = True) -> Iterator[Work]:
    work = Work()

    def called(frame: Any, event: str, argument: Any) -> None:
        work.calls += event == "call"

    _counting.append((str(run), work))
    sys.setprofile(called if calls else None)  # it takes three times as long
    try:
        yield work
    finally:
        sys.setprofile(None)
        _counting.pop()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(tmp_path_factory.mktemp("many"))


def work_of(prepared: Prepared, num_seeds: int, run: Path) -> dict[str, Work]:
    """Do what a run of which all is finished does, and count."""
    prepared.copy(run)
    asked = prepared.config(num_seeds)
    dataset = load_dataset(asked.dataset)
    write_finished(asked, run)
    write_config(asked, run)
    config, inputs = asked.for_dataset(dataset), inputs_of(asked, run)
    bundle, buffer = Bundle.load(run / "stitcher", "cpu"), on_dataset(open_buffer(run / "buffer"), dataset)
    found: dict[str, Work] = {}

    def step(name: str, do: Callable[[], Any]) -> Any:
        with counted(run, calls=not name.startswith("study")) as found[name]:
            return do()

    trials = step("plan", lambda: plan(config, inputs, run))
    assert len(trials) == NUM_CELLS * num_seeds
    step("group", lambda: group_trials(trials, "auto", 2, on_gpu=False))
    assert step("resume", lambda: [trial for trial in trials if finished(trial.folder) is None]) == []
    values = delta_values(buffer)
    rows = step("rows", lambda: result_rows(trials, {}, values))
    others, notes = step("others", lambda: other_rows(run, {row["trial_id"] for row in rows}, inputs, values))
    assert (others, notes) == ([], [])
    step("table", lambda: write_results(rows, run / RESULTS_FILE))
    step("study", lambda: study_run(run, dataset, bundle, buffer))
    step("study again", lambda: study_run(run, dataset, bundle, buffer))
    step("report", lambda: build_report(run))
    step("summary", lambda: print_summary(run))
    return found


@pytest.mark.slow
def test_the_work_is_in_proportion_to_the_number_of_trials(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raystitch.io.files.sync", lambda path: None)  # so many files are not worth the wait
    monkeypatch.setattr("raystitch.io.journal.sync", lambda path: None)
    measured: list[str] = []
    monkeypatch.setattr(
        Buffer,
        "accepted_rows",
        lambda self, *args, before=Buffer.accepted_rows: measured.append("") or before(self, *args),
    )
    few, many = (work_of(prepared, seeds, tmp_path / str(seeds)) for seeds in (FEW, MANY))
    times, num_trials = MANY / FEW, NUM_CELLS * MANY
    for name, work in many.items():
        print(f"{name}: {few[name].calls:,} and {work.calls:,} calls, {work.opened.total():,} files")
        assert work.calls <= 1.5 * times * few[name].calls, name  # what is sorted takes a little more
        assert work.opened.total() <= 1.1 * times * few[name].opened.total(), name
    for name in ("plan", "group", "table"):
        assert many[name].opened["returns.json"] == 0
    for name in ("resume", "rows"):
        assert many[name].opened == {"returns.json": num_trials}
    for name, files in (("report", 2), ("summary", 1)):  # the page says what trials cost
        assert many[name].opened["metrics.jsonl"] == num_trials
        assert many[name].opened.total() < files * num_trials + 30
    assert many["study"].opened["policy.json"] == num_trials
    assert many["study again"].opened["policy.json"] == 0
    assert len(measured) < 60, "a delta is worked out for every trial"
    assert len(pq.read_table(tmp_path / str(MANY) / RESULTS_FILE)) == num_trials
    pages = [(tmp_path / str(seeds) / "report.html").read_text() for seeds in (FEW, MANY)]
    assert len(pages[1]) < 2 * len(pages[0]) < 600_000  # 50 dots a cell in place of 20
    for page in pages:
        assert "Every cell" in page and "Every seed" not in page
        assert page.count("--rerun") == 1
    assert f"<summary>TD3+BC: {num_trials // 2:,} trials</summary>" in pages[1]
