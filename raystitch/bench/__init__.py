"""Measurements behind ``raystitch bench``: speed next to a limit of the same machine, measured in the same run.

A benchmark is one file with a function ``rows(limits, options) -> list[Row]`` and one line in ``BENCHMARKS``.
tests/bench tells when one broke.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from raystitch.bench.machine import Limits, Row, describe_machine, measure_limits
from raystitch.bench.synthetic import BenchOptions
from raystitch.device import resolve_device
from raystitch.errors import UserError

BENCHMARKS = {
    "engine": "raystitch.bench.engine",
    "fit": "raystitch.bench.fit",
    "augment": "raystitch.bench.augment",
    "trainers": "raystitch.bench.trainers",
    "serve": "raystitch.bench.serve",
    "data": "raystitch.bench.data",
    "sweep": "raystitch.bench.sweep",
    "chaos": "raystitch.bench.chaos.rows",
}
ONLY_WHEN_NAMED = ("sweep", "chaos")
"""Benchmarks that take long; chaos kills processes."""
TAKE_OPTIONS = ("engine", "fit", "serve")
"""Benchmarks that can run on the user's dataset."""


def check_names(names: Sequence[str]) -> list[str]:
    """Return the benchmarks to run: the named ones, or without names all but ``ONLY_WHEN_NAMED``.

    Raises:
        UserError: for an unknown name.
    """
    for name in names:
        if name not in BENCHMARKS:
            raise UserError(f"no benchmark is called {name!r}; there are: {', '.join(BENCHMARKS)}")
    return list(names) or [name for name in BENCHMARKS if name not in ONLY_WHEN_NAMED]


def run_benchmark(name: str, options: BenchOptions | None = None) -> dict[str, Any]:
    """Run a benchmark, return the JSON object that ``raystitch bench`` prints; only ``TAKE_OPTIONS`` use options."""
    limits: Limits = measure_limits(resolve_device().type)
    rows: list[Row] = import_module(BENCHMARKS[name]).rows(limits, options or BenchOptions())
    return {
        "name": name,
        "machine": describe_machine(),
        "limit": limits.to_json(),
        "rows": [row.to_json() for row in rows],
    }
