"""Cells that a search tries, their values, and ``search.json``, which is up to date at every moment."""

import importlib.util
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from raystitch.config import GridCell, HeadlineConfig, RunConfig
from raystitch.console import say
from raystitch.errors import DamagedError, RunError, UserError
from raystitch.io.digest import read_sealed, sealed
from raystitch.io.files import set_aside, write_json
from raystitch.models.calibration import check_delta, delta_text
from raystitch.pipeline.trials.plan import blank_row, make_trial, result_rows
from raystitch.pipeline.trials.run import error_of
from raystitch.pipeline.trials.run_folder import keep_earlier
from raystitch.pipeline.trials.trial import InputHashes, Trial, default_config
from raystitch.pipeline.trials.trial_folder import CURVE_COLUMNS, finished
from raystitch.report.files import read_metrics
from raystitch.report.names import SEARCH_FILE
from raystitch.report.table import PROMPT
from raystitch.search_config import RatioRange, SearchConfig
from raystitch.seeding import derive_seed
from raystitch.trainers.config import settings_json
from raystitch.trainers.ratio import parse_ratio
from raystitch.trainers.shaped import check_shaping

METRICS = ("score", "success_rate", "return_mean")
"""The first that an evaluation has is what is searched for, as in the report."""


class Cell(NamedTuple):
    """A ratio and a delta, both as results.parquet has them."""

    ratio: str
    delta: str


def make_cell(ratio: str | float, delta: float | str | None) -> Cell:
    """Return a cell; a number is augmented rows per original row, kept to three digits: its text is its value."""
    text = ratio if isinstance(ratio, str) else f"1:{float(f'{ratio:.3g}'):g}"
    return Cell(str(parse_ratio(text)), delta_text(delta))


def draw_cells(search: SearchConfig, seed: int) -> list[Cell]:
    """Draw the cells of a random search, distinct; the same list for the same arguments."""
    rng = np.random.default_rng(derive_seed(seed, "search"))
    deltas = list(search.delta)
    if not isinstance(search.ratio, RatioRange):
        everything = list(dict.fromkeys(make_cell(*pair) for pair in product(search.ratio, deltas)))
        return [everything[index] for index in rng.permutation(len(everything))[: search.num_samples]]
    low, high = np.log([search.ratio.low, search.ratio.high])
    drawn: dict[Cell, None] = {}
    for _ in range(100 * search.num_samples):  # a range narrower than three digits has only so many values
        drawn[make_cell(float(np.exp(rng.uniform(low, high))), deltas[rng.integers(len(deltas))])] = None
        if len(drawn) == search.num_samples:
            break
    return list(drawn)


def cell_trials(config: RunConfig, inputs: InputHashes | None, cell: Cell, run: str | Path = "") -> list[Trial]:
    """Return the trials whose mean is the value of a cell: one per seed of the search."""
    of = {"algo": config.search.algo, "data": "stitched", **cell._asdict(), "shaping": config.search.shaping}
    return [make_trial(config, inputs, run, **of, seed=seed) for seed in config.search.seeds]


def value_of(evaluations: Iterable[Mapping[str, Any]]) -> float:
    """Return the mean over seeds of one evaluation each: of the score, else success, else the return."""
    rows = list(evaluations)
    metric = next(name for name in METRICS if rows[0][name] is not None)
    return float(np.mean([row[metric] for row in rows]))


def check_search(search: SearchConfig) -> None:
    """Refuse a search that needs what is not installed.

    Raises:
        UserError: naming what to install.
    """
    if search.algorithm == "optuna" and importlib.util.find_spec("optuna") is None:
        raise UserError(
            "search.algorithm: optuna needs a package that is not installed: pip install 'raystitch[search]', "
            "or choose random"
        )


def with_chosen(config: RunConfig, cell: Cell) -> RunConfig:
    """Return the run with the chosen cell as its headline.

    The cell joins the grid for the algorithm of the search and for every other that is trained on stitched data.
    """
    delta = check_delta(cell.delta)
    search = config.search
    chosen = HeadlineConfig(cell.ratio, "off" if delta is None else delta, search.shaping.text)
    stitched = [line for line in config.grid if line.data == "stitched"]
    algos = dict.fromkeys([search.algo, *(line.algo for line in stitched if _reads(line.algo, search))])
    rules = {hook: getattr(search, hook) for hook in search.shaping.changed()}
    there = {(of.algo, of.ratio, of.delta, of.shaping) for line in stitched for of in line.cells}
    grid = config.grid + tuple(
        GridCell(algo=algo, data="stitched", ratio=(chosen.ratio,), delta=(chosen.delta,), **rules)
        for algo in algos
        if (algo, chosen.ratio, chosen.delta, search.shaping) not in there
    )
    return replace(config, grid=grid, headline=chosen)


def _reads(algo: str, search: SearchConfig) -> bool:
    """Say whether an algorithm can be trained on the data of the search's cells: not all read returns-to-go."""
    try:
        check_shaping(search.shaping, algo, default_config(algo), "stitched")
    except UserError:
        return False
    return True


def read_search(folder: str | Path) -> dict[str, Any]:
    """Read ``search.json`` of a run, empty where there is none.

    Raises:
        DamagedError: when it is not what was written.
        UserError: when it cannot be read.
    """
    path = Path(folder) / SEARCH_FILE
    if not path.exists():
        return {}
    found = read_sealed(path)
    if not isinstance(found.get("trials"), list):
        raise DamagedError(f"{path} is damaged: it lists no trials")
    return found


Status = Literal["running", "ok", "stopped", "failed"]


class SearchLog:
    """Keeps ``search.json`` of a run: {algorithm, scheduler, algo, seeds, trials, chosen, settings}.

    ``trials`` are rows {ratio, delta, value, num_seeds, status, step}. Rows of a search with other settings or on other
    bridges are not used; before the file is written over it is kept in ``earlier/``.
    """

    def __init__(self, folder: str | Path, config: RunConfig, inputs: InputHashes) -> None:
        self.path = Path(folder) / SEARCH_FILE
        self.search = config.search
        self._shaping = {"shaping": config.search.shaping.text} if config.search.shaping.changed() else {}
        self.settings = json.loads(
            json.dumps(
                {
                    "search": _settings(config.search),
                    "config": settings_json(config.algorithms.of(config.search.algo)),
                    "evaluation": config.evaluation.to_json(),
                    "env": config.env,
                    **asdict(inputs),
                }
            )
        )
        try:
            found = read_search(folder)
        except DamagedError as error:
            # Finished trials have their own folders, so little is repeated.
            say(f"{error}; the search starts again ({set_aside(self.path)} is kept)")
            found = {}
        self.rows: list[dict[str, Any]] = found["trials"] if found.get("settings") == self.settings else []
        self._other = bool(found) and not self.rows

    @property
    def complete(self) -> bool:
        return len(self._ended()) >= self.search.num_cells

    def resume(self, *, failed: bool = True) -> list[Cell]:
        """Take the cells that were interrupted, and those that ``failed``, out of the log, to be tried again."""
        words = ("running", "failed") if failed else ("running",)
        again = [row for row in self.rows if row["status"] in words]
        self.rows = [row for row in self.rows if row not in again]
        return [Cell(row["ratio"], row["delta"]) for row in again]

    def start(self, cell: Cell) -> int:
        """Note that a cell is being tried; return its place."""
        blank = {"value": None, "num_seeds": 0, "status": "running", "step": 0}
        self.rows.append({"ratio": cell.ratio, "delta": cell.delta, **blank})
        self._write()
        return len(self.rows) - 1

    def end(self, place: int, status: Status, value: float | None, step: int) -> None:
        """Note how it ended. A failed cell has no value."""
        num_seeds = 0 if value is None else len(self.search.seeds)
        self.rows[place] |= {"status": status, "value": value, "num_seeds": num_seeds, "step": step}
        self._write()

    def choose(self) -> Cell:
        """Return the best cell that was trained to its end, and note it as chosen.

        Raises:
            RunError: when there is none.
        """
        ended = [row for row in self.rows if row["status"] == "ok"]
        if not ended:
            raise RunError(f"the search has nothing to choose from: all of its {len(self.rows)} cells failed")
        best = max(ended, key=lambda row: row["value"])
        chosen = Cell(best["ratio"], best["delta"])
        self._write(chosen)
        return chosen

    def cells(self, *statuses: Status) -> Sequence[tuple[Cell, dict[str, Any]]]:
        """Return cells with one of these statuses, and their rows."""
        return [(Cell(row["ratio"], row["delta"]), row) for row in self.rows if row["status"] in statuses]

    def _ended(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["status"] != "running"]

    def _write(self, chosen: Cell | None = None) -> None:
        content = {
            "algorithm": self.search.algorithm,
            "scheduler": self.search.scheduler,
            "algo": self.search.algo,
            "seeds": list(self.search.seeds),
            "trials": self.rows,
            "chosen": None if chosen is None else chosen._asdict() | self._shaping,
            "settings": self.settings,
        }
        if self._other:
            keep_earlier(self.path)
            self._other = False
        write_json(self.path, sealed(content))


def _settings(search: SearchConfig) -> dict[str, Any]:
    """Return the search's settings; the hooks only where they change something, as in files before there were any."""
    named = {name: value for name, value in asdict(search).items() if name not in ("weights", "rewards", "returns")}
    return named | ({"shaping": search.shaping.to_json()} if search.shaping.changed() else {})


def search_rows(
    config: RunConfig, inputs: InputHashes, folder: str | Path, delta_value: Callable[[str], float | None]
) -> list[dict[str, Any]]:
    """Return the rows of the search's own trials for results.parquet; stopped ones have what they had reached."""
    rows: list[dict[str, Any]] = []
    tried = dict(SearchLog(folder, config, inputs).cells("ok", "stopped", "failed"))
    for cell, found in tried.items():
        trials = cell_trials(config, inputs, cell, folder)
        open_trials = [trial for trial in trials if finished(trial.folder) is None]
        errors: dict[str, str] = {}
        if found["status"] == "failed":
            reasons = {trial.trial_id: error_of(trial.folder) for trial in open_trials}
            errors = {trial_id: reason or "its process died" for trial_id, reason in reasons.items()}
        rows += result_rows(trials, errors, delta_value)
        if found["status"] == "stopped":
            for trial in open_trials:
                fixed = {"headline": True, "status": "stopped"}
                reached = _reached(Path(trial.folder))
                rows.append(blank_row(trial, delta_value(cell.delta)) | fixed | reached)
    return rows


def _reached(trial_dir: Path) -> dict[str, Any]:
    """Return steps and seconds of an unfinished trial, and its last evaluation during training."""
    rows = read_metrics(trial_dir)
    trained = [row for row in rows if row["kind"] == "train"]
    evaluated = [row for row in rows if row["kind"] == "eval"]
    reached = {"train_steps": trained[-1]["step"], "train_seconds": trained[-1]["seconds"]} if trained else {}
    if evaluated:
        headline = next(row for row in evaluated if row["step"] == evaluated[-1]["step"])
        reached |= {name: headline.get(name) for name in (*CURVE_COLUMNS, PROMPT)}
    return reached
