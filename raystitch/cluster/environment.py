"""Versions and machine, as ``environment.json`` of a run has them."""

import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import ray

PACKAGES = ("raystitch", "ray", "torch", "numpy", "gymnasium", "gymnasium-robotics", "mujoco", "minari", "pyarrow")


def environment() -> dict[str, Any]:
    """Return versions and machine, for environment.json."""
    packages: dict[str, str] = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
    resources = ray.cluster_resources() if ray.is_initialized() else {}
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "machine": platform.processor() or platform.machine(),
        "cpus": resources.get("CPU", float(os.cpu_count() or 1)),
        "gpus": resources.get("GPU", 0.0),
        "packages": packages,
    }


def now_text() -> str:
    """Return the date and time, in UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
