"""What the machine is asked for."""

import subprocess
import sys

import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_freed_memory_is_given_back() -> None:
    """In a process of its own: many small arrays, of which one in the middle stays, are what the C library keeps."""
    code = """
import numpy as np
from raystitch.device import give_memory_back

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

arrays = [np.ones(2_000) for _ in range(10_000)]
kept = arrays[-1]
full = resident()
del arrays
give_memory_back()
print(full - resident())
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(found.stdout) > 100  # of 153 MiB
