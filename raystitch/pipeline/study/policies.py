"""G3, G4 and G6 of a run: every trained policy on the two parts of the data, and what cells differ by."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from raystitch.envs.simulator import Unavailable
from raystitch.errors import RunError, UserError
from raystitch.io.files import read_json, write_json
from raystitch.pipeline.study.overfit import ActionWindows, action_windows, policy_errors
from raystitch.pipeline.study.parts import StudyParts, skipped
from raystitch.pipeline.study.recovery import LOW_SHARE, PoorStarts, RecoveryConfig, recovery
from raystitch.report.files import RunFiles, trial_path
from raystitch.report.stats import compare
from raystitch.report.summary import Headline, cell_label, summarise
from raystitch.report.table import asked_for
from raystitch.trainers.policy import Policy
from raystitch.trainers.registry import load_policy

STUDY = "study"
"""Folder of a run: what a study has measured so far, so that an interrupted one goes on."""
MEASURES = ("success_rate", "return_mean")
CELL = ("algo", "data", "ratio", "delta", "shaping")

OnPolicy = Callable[[int, int, str], None]
"""(number measured, number of all, label) before each policy."""


def measure_policies(
    run: RunFiles,
    parts: StudyParts,
    asked: RecoveryConfig | None,
    stored: Mapping[str, Any] | None,
    seed: int,
    progress: OnPolicy | None = None,
) -> Mapping[str, Any]:
    """Return the key ``policies`` of generalise.json; see generalise.py.

    Args:
        asked: None to measure no recovery, and to keep what an earlier study measured.
        stored: the key's value in the run's file, None where there is none. Action errors in it are kept for a policy
            whose result is still the same: only new policies are read.
    """
    rows = [row for row in run.final_rows if row["headline"] and row["status"] == "ok"]
    if not rows:
        return skipped("the run has no finished trial")
    began = _Recovery.begin(run.folder, parts, asked, stored, seed)
    measure = MEASURES[0] if all(row["success_rate"] is not None for row in rows) else MEASURES[1]
    windows = action_windows(parts, seed)
    known = {row["trial_id"]: row for row in (stored or {}).get("rows", ())}
    measured: list[dict[str, Any]] = []
    for place, row in enumerate(rows):
        if progress is not None:
            progress(place, len(rows), f"{row['algo']} {cell_label(row)}, seed {row['seed']}")
        measured.append(_measured(run, row, known.get(row["trial_id"], {}), windows, began, measure))
    return {
        "saw_held_out": True,
        "measure": measure,
        "recovery": began.to_json(),
        "rows": measured,
        "comparisons": compare_cells(measured, run.headline),
    }


class _Unreadable(Exception):
    """A policy that cannot be loaded."""


def _measured(
    run: RunFiles,
    row: Mapping[str, Any],
    known: Mapping[str, Any],
    windows: Mapping[str, ActionWindows],
    began: "_Recovery",
    measure: str,
) -> dict[str, Any]:
    """Return the row of one policy; None for what could not be measured.

    Args:
        known: its row in an earlier study, empty where there is none.
    """
    found: dict[str, Any] = {name: row[name] for name in ("trial_id", *CELL, "seed")}
    found |= {"usual": row[measure], "action_error": None, "held_out": None, "train": None}
    asked: Any = asked_for(row)

    @cache
    def policy() -> Policy:
        try:
            return load_policy(trial_path(run.folder, row["trial_id"]) / "policy", "cpu")
        except UserError as error:
            raise _Unreadable from error

    try:
        same = known.get("usual") == row[measure] and known.get("action_error") is not None
        found["action_error"] = known["action_error"] if same else policy_errors(policy(), windows)
        values = began.of(row, lambda starts, config: recovery(policy(), starts, config, row["seed"], asked))
    except _Unreadable:
        return found  # named where the run is used: by evaluate and --rerun
    if values is not None:
        found |= {name: values[name][measure] for name in ("held_out", "train")}
    return found


@dataclass(frozen=True, kw_only=True, eq=False)
class _Recovery:
    """The measurement of recovery of a run's policies, one file per trial below ``study/recovery``.

    Attributes:
        config: None where nothing was ever asked for. starts: None where nothing new is measured.
        about: what the numbers depend on besides the policy; kept ones of anything else do not count.
        reason: why nothing is measured.
    """

    folder: Path
    config: RecoveryConfig | None
    starts: PoorStarts | None
    about: Mapping[str, Any]
    reason: str | None = None

    @classmethod
    def begin(
        cls,
        run: Path,
        parts: StudyParts,
        asked: RecoveryConfig | None,
        stored: Mapping[str, Any] | None,
        seed: int,
    ) -> "_Recovery":
        folder = run / STUDY / "recovery"
        before = (stored or {}).get("recovery") or {}
        if asked is None:
            if "settings" in before:
                config = RecoveryConfig(**before["settings"])
                return cls(folder=folder, config=config, starts=None, about=before)
            reason = f"not measured yet: `raystitch study generalise {run}` does"
            return cls(folder=folder, config=None, starts=None, about={}, reason=reason)
        try:
            starts = PoorStarts.of(parts, asked, seed)
        except Unavailable as error:
            return cls(folder=folder, config=None, starts=None, about={}, reason=str(error))
        about = {
            "settings": asdict(asked),
            "low_share": LOW_SHARE,
            "return_below": starts.return_below,
            "starts": starts.digest,
        }
        return cls(folder=folder, config=asked, starts=starts, about=about)

    def of(
        self, row: Mapping[str, Any], measure: Callable[[PoorStarts, RecoveryConfig], dict[str, Any]]
    ) -> dict[str, Any] | None:
        """Return the recovery of a trial's policy: what the run's folder has, or measured now and kept there."""
        if self.config is None:
            return None
        path, about = self.folder / f"{row['trial_id']}.json", dict(self.about)
        if path.is_file():
            try:
                kept = read_json(path)
                if kept["about"] == about:
                    return kept["values"]
            except (UserError, KeyError, TypeError):
                pass  # damaged: measured again
        if self.starts is None:
            return None
        try:
            values = measure(self.starts, self.config)
        except RunError:
            return None  # an episode without an end, or actions that are not finite
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(path, {"schema_version": 1, "about": about, "values": values})
        return values

    def to_json(self) -> Mapping[str, Any]:
        return skipped(self.reason) if self.reason is not None else self.about


def compare_cells(rows: Sequence[Mapping[str, Any]], headline: Headline) -> list[dict[str, Any]]:
    """Compare the headline's stitched cell with the original data, per algorithm: the usual start and recovery.

    Returns:
        Rows of ``algo, cell``, and ``usual, held_out, train`` as ``value, low, high, sign, num_seeds`` of the
        difference over seeds; None where either side was not measured.
    """
    found: list[dict[str, Any]] = []
    ratio, delta, *shaping = headline
    chosen = ("stitched", ratio, delta, *(shaping or [""]))
    for algo in dict.fromkeys(row["algo"] for row in rows):
        own = [row for row in rows if row["algo"] == algo]
        ours = [row for row in own if tuple(row[name] for name in CELL[1:]) == chosen]
        base = [row for row in own if row["data"] == "original" and not row["shaping"]]
        if not ours or not base:
            continue
        entry: dict[str, Any] = {"algo": algo, "cell": cell_label(ours[0])}
        for name in ("usual", "held_out", "train"):
            left, right = (
                {row["seed"]: float(row[name]) for row in side if row[name] is not None} for side in (ours, base)
            )
            result = compare(left, right)
            entry[name] = None if result is None else asdict(result.difference)
        found.append(entry)
    return found


def trained_on_bridges_alone(run: RunFiles) -> Sequence[Mapping[str, Any]] | Mapping[str, Any]:
    """Return the key ``alone`` (G6): the cells of the grid at ratio 0:1, next to the original data."""
    summary = summarise(run.final_rows, run.headline)
    found: list[dict[str, Any]] = []
    for line in summary.lines:
        if line.ratio == "0:1" and line.data == "stitched" and line.iqm is not None:
            over = line.over_original
            found.append(
                {
                    "algo": line.algo,
                    "cell": line.label,
                    "metric": summary.metric.column,
                    "value": line.iqm.value,
                    "over_original": None if over is None else asdict(over.difference),
                }
            )
    return found or skipped("the grid has no stitched cell at ratio 0:1")
