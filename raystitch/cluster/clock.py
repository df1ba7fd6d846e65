"""A clock that can be set back under running Python processes without touching the machine's: for the fault tests.

The processes start with a module that takes an hour off the time of day while a file is there. Steady clocks, the times
of files, and what is not Python (Ray's own servers) keep the machine's: C code that waits until a time of day would
otherwise never wait.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

SWITCH = "RAYSTITCH_CLOCK_BACK"
MODULE = f"""
import os
import time

_time, _time_ns = time.time, time.time_ns


def _back():
    return 3600 if os.path.exists(os.environ.get("{SWITCH}", "")) else 0


time.time = lambda: _time() - _back()
time.time_ns = lambda: _time_ns() - _back() * 10**9
"""


@contextlib.contextmanager
def settable_clock(folder: Path) -> Iterator[Callable[[], None]]:
    """Python processes started in the block have such a clock; yields a function that sets it back, for good."""
    place, switch = folder / "clock", folder / "clock.back"
    place.mkdir()
    (place / "sitecustomize.py").write_text(MODULE, encoding="utf-8")
    before = {name: os.environ.get(name) for name in ("PYTHONPATH", SWITCH)}
    path = [str(place), *(before["PYTHONPATH"] or "").split(os.pathsep)]
    os.environ |= {"PYTHONPATH": os.pathsep.join(filter(None, path)), SWITCH: str(switch)}
    try:
        yield switch.touch
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
