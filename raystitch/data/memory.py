"""How much memory reading may take: a file says how large its arrays are before anything of them is read."""

import os
from contextlib import suppress
from pathlib import Path

from raystitch.errors import UserError

GIB = 2**30


def free_memory() -> int:
    """Bytes that this process can still take: the machine's free memory, or less where a container's limit is lower."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        with suppress(OSError, ValueError):  # no such limit, or the word "max"
            free = min(free, int(Path(limit).read_text("ascii")) - int(Path(used).read_text("ascii")))
    return max(free, 0)


class MemoryBudget:
    """Counts what reading one dataset takes, and refuses what does not fit before it is allocated."""

    def __init__(self, where: str, limit: int | None = None) -> None:
        self.where = where
        self.limit = free_memory() if limit is None else limit
        self.taken = 0

    def take(self, num_bytes: int) -> None:
        """Raises:
        UserError: when everything taken so far does not fit into the memory that was free at the start.
        """
        self.taken += num_bytes
        if self.taken > self.limit:
            raise UserError(
                f"{self.where}: reading it takes {self.taken / GIB:,.1f} GiB or more, but {self.limit / GIB:,.1f} GiB "
                "of memory are free; read fewer episodes, or use a machine with more memory"
            )
