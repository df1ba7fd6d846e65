"""Keeps what a study found: python docs/results/collect.py RUN NAME [--seams DELTA]

Copies the run's rows to docs/results/NAME.parquet, without its failed trials' texts. --seams, for mazes, adds
NAME.json: how far bridges reach at a delta, and, where the run has joined fragments, how far apart the states are where
they are joined; and how many cross each line of the gap maze.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from raystitch import load_dataset, open_buffer
from raystitch.buffer.episodes import joined_index
from raystitch.config import RunConfig, load_run_config
from raystitch.data.gap import LINES
from raystitch.models.bundle import Bundle
from raystitch.pipeline.trials.inputs import load_inputs
from raystitch.pipeline.trials.plan import plan
from raystitch.pipeline.trials.run_folder import RESULTS_FILE
from raystitch.pipeline.trials.trial import STITCHER, InputHashes
from raystitch.report.files import BUFFER
from raystitch.report.table import IN_GRID, read_rows, write_results

HERE = Path(__file__).parent


def crossings(before: Any, after: Any) -> list[int]:
    """Count the pairs of places [B, 2] on either side of each line."""
    return [int(((before[:, 0] < line) != (after[:, 0] < line)).sum()) for line in LINES]


def seams(run: Path, config: RunConfig, delta: str) -> dict[str, Any]:
    """Measure the bridges at a delta and the seams of joined fragments, in metres of the plane."""
    dataset = load_dataset(config.dataset)
    buffer = open_buffer(str(run / BUFFER))
    bridges = buffer.bridges(delta)
    start = bridges.observations[bridges.obs_offsets[:-1], :2]
    end = bridges.observations[bridges.obs_offsets[1:] - 1, :2]
    found = {
        "bridges": len(bridges),
        "bridge_reach": _longest(start, end),
        "bridge_crossings": crossings(start, end),
    }
    hashes = InputHashes(dataset=dataset.fingerprint, bundle=Bundle.load(run / STITCHER).hash, buffer=buffer.hash)
    trials = [trial for trial in plan(config.for_dataset(dataset), hashes, run) if trial.data == "joined"]
    if not trials:
        return found
    joined = load_inputs(trials[0]).joined
    assert joined is not None
    index = joined_index(dataset, joined)
    first = index.offsets[:-1] + np.arange(len(index.seam))
    left = dataset.obs_index[dataset.offsets[joined.source_episode] + joined.source_step]
    before, after = dataset.observations[left, :2], dataset.observations[index.observation[first + index.seam], :2]
    return found | {
        "joins": len(left),
        "join_reach": _longest(before, after),
        "join_crossings": crossings(before, after),
    }


def _longest(before: Any, after: Any) -> float:
    return round(float(np.linalg.norm(after - before, axis=1).max()), 3)


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--seams", metavar="DELTA")
    args = parser.parse_args()
    rows = [row for row in read_rows(args.run / RESULTS_FILE) if row[IN_GRID]]
    write_results(rows, HERE / f"{args.name}.parquet")
    if args.seams:
        found = seams(args.run, load_run_config(args.run / "config.yaml"), args.seams)
        (HERE / f"{args.name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
