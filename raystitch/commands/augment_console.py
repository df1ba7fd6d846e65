"""What ``raystitch augment`` shows while it works: a bar on a terminal, JSON lines elsewhere; always on stderr."""

import json
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

from raystitch.console import Progress, say

if TYPE_CHECKING:
    from raystitch.pipeline.progress import AugmentProgress

INTERVAL_SECONDS = 10.0


class AugmentConsole:
    """``show`` is the progress callback of ``augment``; used as a context manager.

    Elsewhere than on a terminal every line is a JSON object (``AugmentProgress.to_json``): the first state, one every
    ten seconds, every note at once, and the last state.
    """

    def __init__(self) -> None:
        self._bar = Progress() if sys.stderr.isatty() else None
        self._last = float("-inf")
        self._unsaid: AugmentProgress | None = None

    def __enter__(self) -> "AugmentConsole":
        if self._bar is not None:
            self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.__exit__(kind, error, trace)
        elif self._unsaid is not None:
            say(json.dumps(self._unsaid.to_json()))

    def show(self, at: "AugmentProgress") -> None:
        """Shows the state, or the note that it carries."""
        if self._bar is not None:
            if at.event == "note":
                self._bar.note(at.message)
            self._bar.update("augment", at.accepted, at.wanted, at.text)
            return
        now = time.monotonic()
        if at.event == "note" or now - self._last >= INTERVAL_SECONDS:
            say(json.dumps(at.to_json()))
            self._unsaid = None
            self._last = now if at.event != "note" else self._last
        else:
            self._unsaid = at
