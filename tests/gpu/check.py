"""Check raystitch on one GPU, in about ten minutes: ``python -m tests.gpu.check --out OUT``.

It needs torch, numpy and scipy, and no data: Ray, pyarrow, Minari and Gymnasium are not imported. Every finding is a
line of ``OUT/results.jsonl`` as soon as it is known. Every part is a process of its own with a time limit, so that one
that hangs or breaks the GPU stops no other; a second run with the same OUT goes on with the parts that are missing.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from tests.gpu import parts_correct, parts_fit, parts_speed
from tests.gpu.record import RESULTS, TINY, Record, Sizes, Task

PARTS: Mapping[str, tuple[Callable[[Task], None], float]] = {
    "machine": (parts_fit.machine, 40),
    "fit": (parts_fit.fit, 110),
    "correct": (parts_correct.correct, 90),
    "engine": (parts_speed.engine, 110),
    "trainers": (parts_speed.trainers, 110),
    "memory": (parts_correct.memory, 50),
    "compiled": (parts_speed.compiled, 300),
}
"""Part -> its function and the most seconds that it may take; all of them together take at most ``TOTAL_SECONDS``."""
TOTAL_SECONDS = 590.0


def main(argv: list[str] | None = None) -> int:
    """Run the parts; 0 if every check held and nothing failed, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="OUT", help="folder of the findings")
    parser.add_argument("--device", default="cuda:0", help="cuda:N or cpu (default: %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="sizes for a test on a CPU, whose numbers mean nothing")
    parser.add_argument("--parts", default=",".join(PARTS), help="which, separated by commas (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=TOTAL_SECONDS, help="for all parts (default: %(default)s)")
    parser.add_argument("--here", action="store_true", help="all in this process, without time limits")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    names = options.parts.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"no part is called {', '.join(unknown)}; there are: {', '.join(PARTS)}")
    if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device here; --device cpu --tiny tries the script itself")
    if options.part is not None:
        run_part(options.part, task(options, options.part))
        return 0
    return run_all(names, options)


def task(options: argparse.Namespace, name: str) -> Task:
    """Return what part ``name`` is given."""
    sizes = TINY if options.tiny else Sizes()
    return Task(device=torch.device(options.device), sizes=sizes, record=Record(folder=options.out, part=name))


def run_part(name: str, given: Task) -> None:
    """Run one part in this process; an error of the part itself becomes a line."""
    torch.manual_seed(0)
    with given.record.section(name):
        PARTS[name][0](given)
    given.record.line("ended", name)


def run_all(names: list[str], options: argparse.Namespace) -> int:
    """Run each part in a process of its own, and write what became of them."""
    began = time.monotonic()
    record = Record(folder=options.out, part="all")
    done = {line["part"] for line in lines_of(options.out) if line["kind"] == "ended"}
    for name in names:
        if name in done:
            continue
        left = options.seconds - (time.monotonic() - began)
        if options.here:
            run_part(name, task(options, name))
            continue
        limit = min(PARTS[name][1], left)
        if limit < 1:
            record.line("failed", name, error="no time was left for it")
            continue
        command = [sys.executable, "-m", "tests.gpu.check", "--out", str(options.out), "--device", options.device]
        command += ["--part", name, *(["--tiny"] if options.tiny else [])]
        try:
            status = subprocess.run(command, timeout=limit, check=False).returncode
        except subprocess.TimeoutExpired:
            record.line("failed", name, error=f"stopped after {limit:.0f} s; its lines so far count")
        else:
            if status:
                record.line("failed", name, error=f"its process ended with status {status}")
    return summarise(options.out, names)


def lines_of(folder: Path) -> list[dict[str, object]]:
    """Return the findings so far."""
    path = folder / RESULTS
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def summarise(folder: Path, names: list[str]) -> int:
    """Write and print how many checks held and what failed."""
    lines = lines_of(folder)
    checks = [line for line in lines if line["kind"] == "check"]
    wrong = [line for line in checks if not line["ok"]]
    failed = [line for line in lines if line["kind"] == "failed"]
    missing = [name for name in names if not any(x["kind"] == "ended" and x["part"] == name for x in lines)]
    summary = {"checks": len(checks), "wrong": wrong, "failed": failed, "parts_missing": missing}
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    print(f"{len(checks)} checks, {len(wrong)} wrong; {len(failed)} failures; {folder / RESULTS}", flush=True)
    for line in wrong + failed:
        print("  ", json.dumps(line), flush=True)
    return 1 if wrong or failed or missing or not checks else 0


if __name__ == "__main__":
    sys.exit(main())
