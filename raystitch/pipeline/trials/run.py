"""Runs planned trials, in whatever process; one folder is written by one process at a time."""

import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from raystitch.console import say
from raystitch.errors import RunError
from raystitch.io.lease import leased
from raystitch.pipeline.trials.inputs import LoadDataset, load_dataset_once, load_inputs
from raystitch.pipeline.trials.train import OnEval, run_trials
from raystitch.pipeline.trials.trial import Trial
from raystitch.pipeline.trials.trial_folder import finished
from raystitch.report.names import ERROR_FILE, LOCK_FILE


def run_planned(
    trials: Sequence[Trial],
    *,
    log: Callable[[int, dict[str, Any]], None] | None = None,
    on_eval: OnEval | None = None,
    note: Callable[[str], None] = say,
    load: LoadDataset = load_dataset_once,
) -> list[dict[str, Any] | RunError]:
    """Train and evaluate trials of one cell together; return the content of each one's ``returns.json``.

    Finished trials are read. A trial that fails alone has its error in the list and in its ``error.txt``. A failure of
    all of them is raised and leaves its trace in the ``error.txt`` of the unfinished ones. Data and buffer stay open
    between the calls of a process.

    Every trial's folder is leased meanwhile: a worker of a killed driver that is not dead yet and one of the next
    driver never write to the same folder, and one that was lost with its machine is waited for no longer than a lease.

    Args:
        log: gets (place in ``trials``, row of metrics.jsonl). on_eval: gets (step, result per trial) during training.
        note: gets a line for every damaged file that a trial does without. load: gets the trials' dataset.

    Raises:
        RunError: when the dataset is not the one the run began with.
    """
    import torch

    if trials[0].threads is not None:
        torch.set_num_threads(trials[0].threads)
    outs = [Path(trial.folder) for trial in trials]
    with ExitStack() as stack:
        # In one order everywhere, so that two processes cannot wait for each other.
        leases = [stack.enter_context(leased(out / LOCK_FILE)) for out in sorted(outs)]

        def watched(index: int, row: dict[str, Any]) -> None:
            for lease in leases:
                lease.check()
            if log is not None:
                log(index, row)

        for out in outs:
            (out / ERROR_FILE).unlink(missing_ok=True)
        try:
            results = run_trials(trials, load_inputs(trials[0], load), log=watched, on_eval=on_eval, note=note)
        except Exception:
            for out in outs:
                if finished(out) is None:
                    (out / ERROR_FILE).write_text(traceback.format_exc(), encoding="utf-8")
            raise
        for out, result in zip(outs, results, strict=True):
            if isinstance(result, RunError):
                (out / ERROR_FILE).write_text(f"{type(result).__name__}: {result}\n", encoding="utf-8")
        return results


def leave_error(trial_dir: str | Path, reason: str) -> None:
    """Write why a trial failed into its ``error.txt``, where its process could not."""
    folder = Path(trial_dir)
    with suppress(OSError):  # only who looks on misses it
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ERROR_FILE).write_text(f"{reason}\n", encoding="utf-8")


def error_of(trial_dir: str | Path) -> str | None:
    """Return the last line of a failed trial's ``error.txt``, None where it left none."""
    trace = Path(trial_dir) / ERROR_FILE
    lines = trace.read_text(encoding="utf-8").split("\n") if trace.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), None)
