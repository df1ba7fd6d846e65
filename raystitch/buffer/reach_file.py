"""``reach.json`` of a buffer: after each round, what stitched episodes lead to from where the task starts.

Generation writes it; ``buffer info``, the report and a sweep read it.
"""

import json
import math
import os
from dataclasses import asdict, dataclass, fields
from typing import Any

from raystitch.errors import DamagedError
from raystitch.io.storage import Storage

REACH_FILE = "reach.json"
GOAL = "goal"
RARE_SHARE = 0.1
"""Share of the start states below which recorded episodes hardly ever reach the goal."""
COLUMNS = (
    "rounds",
    "reached",
    "by records",
    "promised return",
    "own return",
    "steps",
    "longest chain",
    "sources",
    "targets",
)
"""Heads of a table of ``Reach.cells``."""


@dataclass(frozen=True, kw_only=True)
class Reach:
    """The reach of a buffer after some rounds: what its best trajectories lead to from where the task starts.

    Attributes:
        num_rounds: rounds that count.
        goal: what is to be reached: ``goal``, a termination with the largest reward; or ``top decile of returns``, of
            the recorded ones, where terminations are no goal.
        num_starts: states in which the task starts; the first states of the episodes where those are not known.
        share: of these, from which a stitched episode reaches it; ``own_share``: from which a recorded one does.
        promised: median over starts of the undiscounted return that the best trajectory promises; of those that reach
            it, where any do. ``own``: median of what the records of the same states returned.
        steps: median number of steps of the same trajectories.
        longest_chain: most bridges in one trajectory, of all.
        num_sources, num_targets: distinct recorded episodes that bridges leave and enter.
        best_bridge: the first bridge of the most promising trajectory from a start; None where none takes a bridge.
        best_step: step of that bridge's source episode at which the trajectory begins.
    """

    num_rounds: int
    goal: str
    num_starts: int
    share: float
    own_share: float
    promised: float
    own: float
    steps: float
    longest_chain: int
    num_sources: int
    num_targets: int
    best_bridge: str | None = None
    best_step: int = 0

    @property
    def cells(self) -> list[str]:
        """Return the numbers as texts, a line of a table."""
        return [
            f"{self.num_rounds}",
            f"{100 * self.share:.0f} %",
            f"{100 * self.own_share:.0f} %",
            f"{self.promised:.4g}",
            f"{self.own:.4g}",
            f"{self.steps:.0f}",
            f"{self.longest_chain}",
            f"{self.num_sources:,}",
            f"{self.num_targets:,}",
        ]

    @property
    def advice(self) -> str:
        """The advice for training that follows from the data alone, one line: a warning where no stitched episode from
        a start state gets there; empty where there is none to give."""
        if not self.share:
            return (
                f"warning: no stitched episode leads from a start state to the {self.goal}, so a policy trained on "
                "them will hardly do better: raise augment.num_bridges or augment.bridges_per_round, fit longer, or "
                "raise fit.gamma, below which far goals are worth nothing"
            )
        if self.goal != GOAL:
            return ""
        rare = self.own_share < RARE_SHARE
        return (
            f"from the data alone: train at ratio {'0:1' if rare else '1:1'} (recorded episodes "
            f"{'hardly ever ' * rare}lead there{' too' * (not rare)}), a Decision Transformer with target return "
            f"{self.promised:.4g}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"after {self.num_rounds} round{'s' * (self.num_rounds != 1)}: from {self.share:.0%} of {self.num_starts} "
            f"start states a stitched episode reaches the {self.goal} (recorded ones: {self.own_share:.0%}), promised "
            f"return {self.promised:.4g} in {self.steps:.0f} steps (their own records {self.own:.4g}); longest chain "
            f"{self.longest_chain} bridges, {self.num_sources:,} sources, {self.num_targets:,} targets"
        )


def write_reach(path: str | os.PathLike[str], found: Reach) -> None:
    """Write ``found`` into the ``reach.json`` of the buffer at ``path``, in place of what it says of as many rounds and
    more."""
    try:
        others = [entry for entry in read_reach(path) if entry.num_rounds < found.num_rounds]
    except DamagedError:  # damaged: what is known now is written
        others = []
    text = json.dumps([entry.to_json() for entry in (*others, found)], indent=2) + "\n"
    Storage(path).write(REACH_FILE, text.encode())


def reach_is_known(path: str | os.PathLike[str], num_rounds: int) -> bool:
    """Return True if ``reach.json`` says what so many rounds lead to; a run may have been killed before it wrote it."""
    try:
        return any(found.num_rounds == num_rounds for found in read_reach(path))
    except DamagedError:
        return False


def read_reach(path: str | os.PathLike[str]) -> list[Reach]:
    """Return what ``reach.json`` of a buffer says, by number of rounds; nothing where there is none.

    Raises:
        DamagedError: when it is not what was written.
    """
    storage = Storage(path)
    try:
        content = storage.read(REACH_FILE).to_pybytes()
    except FileNotFoundError:
        return []
    try:
        return [_entry(entry) for entry in json.loads(content)]
    except (TypeError, ValueError) as error:
        raise DamagedError(
            f"{storage.where(REACH_FILE)} is damaged; run `raystitch augment`, or the sweep, with the same arguments "
            "to write it again"
        ) from error


def _entry(value: Any) -> Reach:
    """Raises: TypeError, ValueError when it is not one."""
    found = Reach(**value)
    for field in fields(found):
        at = getattr(found, field.name)
        texts = field.name in ("goal", "best_bridge")
        if not (isinstance(at, str) or (at is None and field.name == "best_bridge") if texts else math.isfinite(at)):
            raise ValueError(f"{field.name}={at}")
    return found
