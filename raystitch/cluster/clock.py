"""A clock that can be set back under running processes without touching the machine's: what the fault tests need.

The processes are started with a small library before all others, which takes an hour off the time of day while a file
is there. Steady clocks and the times of files are the machine's own. Needs a C compiler; Linux only.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

SECONDS_BACK = 3600
SOURCE = f"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static long back(void) {{
  const char *file = getenv("RAYSTITCH_CLOCK_BACK");
  return file && access(file, F_OK) == 0 ? {SECONDS_BACK} : 0;
}}
int clock_gettime(clockid_t clock, struct timespec *at) {{
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = (int (*)(clockid_t, struct timespec *)) dlsym(RTLD_NEXT, "clock_gettime");
  int failed = real(clock, at);
  if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) at->tv_sec -= back();
  return failed;
}}
int gettimeofday(struct timeval *at, void *zone) {{
  struct timespec now;
  (void) zone;
  if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
  at->tv_sec = now.tv_sec;
  at->tv_usec = now.tv_nsec / 1000;
  return 0;
}}
time_t time(time_t *at) {{
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (at) *at = now.tv_sec;
  return now.tv_sec;
}}
"""


@contextlib.contextmanager
def settable_clock(folder: Path) -> Iterator[Callable[[], None]]:
    """Processes started in the block have such a clock; yields a function that sets it back, for good.

    Raises:
        PermissionError: where there is no C compiler.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        raise PermissionError("setting the clock needs a C compiler, and there is none")
    source, library, switch = folder / "clock.c", folder / "clock.so", folder / "clock.back"
    source.write_text(SOURCE, encoding="utf-8")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    before = {name: os.environ.get(name) for name in ("LD_PRELOAD", "RAYSTITCH_CLOCK_BACK")}
    os.environ |= {"LD_PRELOAD": str(library), "RAYSTITCH_CLOCK_BACK": str(switch)}
    try:
        yield switch.touch
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
