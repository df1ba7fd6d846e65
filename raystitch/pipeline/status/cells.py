"""The trials that a run's settings ask for, and their ids as far as ``plan.json`` has them."""

import json
from dataclasses import dataclass

from raystitch.config import RunConfig
from raystitch.errors import RunError, UserError
from raystitch.io.digest import digest
from raystitch.io.storage import Storage
from raystitch.models.calibration import Delta, delta_text
from raystitch.report.names import CONFIG_FILE, PLAN_FILE
from raystitch.trainers.config import DataMode
from raystitch.trainers.ratio import parse_ratio

Key = tuple[str, str, str, str | None, str, int]
"""Algorithm, data, ratio, delta, shaping and seed: what tells the trials of a grid apart."""


@dataclass(frozen=True, kw_only=True)
class PlannedTrial:
    """A trial of a grid. ``delta`` and ``shaping`` are as in results.parquet; ``trial_id`` is None while unknown."""

    trial_id: str | None = None
    algo: str
    data: str
    ratio: str
    delta: str | None
    shaping: str
    seed: int

    @property
    def key(self) -> Key:
        return self.algo, self.data, self.ratio, self.delta, self.shaping, self.seed


def settled_cell(data: DataMode, ratio: str, delta: Delta) -> tuple[DataMode, str, str | None]:
    """Return data, ratio and delta of a cell as trials and results.parquet have them.

    Nothing is augmented at 1:0: every such cell is the original data, which runs once.
    """
    shares = parse_ratio(ratio)
    if not shares.augmented:
        return "original", "1:0", None
    return data, str(shares), delta_text(delta) if data == "stitched" else None


def planned_trials(config: RunConfig, storage: Storage) -> list[PlannedTrial]:
    """Return the trials of the grid, seed by seed; with their ids where the driver has written these settings' plan."""
    found: dict[Key, PlannedTrial] = {}
    for seed in config.seeds:
        for line in config.grid:
            for cell in line.cells:
                data, ratio, delta = settled_cell(cell.data, cell.ratio, cell.delta)
                trial = PlannedTrial(
                    algo=cell.algo, data=data, ratio=ratio, delta=delta, shaping=cell.shaping.text, seed=seed
                )
                found.setdefault(trial.key, trial)
    written = {trial.key: trial for trial in _written(storage)}
    return [written[key] for key in found] if written.keys() == found.keys() else list(found.values())


def _written(storage: Storage) -> list[PlannedTrial]:
    """Return the trials in ``plan.json``; none where it is missing, damaged, or of other settings."""
    try:
        plan = json.loads(storage.read_whole(PLAN_FILE).to_pybytes())
        if plan["settings"] != digest(storage.read_whole(CONFIG_FILE).to_pybytes()):
            return []
        return [PlannedTrial(**row) for row in plan["trials"]]
    except (OSError, RunError, UserError, ValueError, KeyError, TypeError):
        return []
