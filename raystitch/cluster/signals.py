"""SIGINT, SIGTERM and SIGHUP of a service: in order from its first moment to its last. Imports no Ray, to be quick."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_Number = int


class Requests:
    """The requests that signals have made.

    Attributes:
        stop, reload: asked for. up: the service answers; until then a request to stop interrupts its start at once, and
            a second one always does.
    """

    def __init__(self) -> None:
        self.stop = self.reload = self.up = False
        self._held = False

    def on_stop(self, number: _Number, frame: FrameType | None) -> None:
        again, self.stop = self.stop, True
        if again or not (self.up or self._held):
            raise KeyboardInterrupt

    @contextmanager
    def held(self) -> Iterator[None]:
        """A first request to stop waits for the end of the block: of imports, where an exception is easily lost."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        self.check()

    def check(self) -> None:
        """Interrupts a start that was to be interrupted in a place that swallows exceptions, such as a finaliser."""
        if self.stop:
            raise KeyboardInterrupt

    def on_reload(self, number: _Number, frame: FrameType | None) -> None:
        self.reload = True


@contextmanager
def requests() -> Iterator[Requests]:
    """SIGINT and SIGTERM ask to stop, SIGHUP to reload, inside the block."""
    asked = Requests()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    handlers = {signal.SIGINT: asked.on_stop, signal.SIGTERM: asked.on_stop, signal.SIGHUP: asked.on_reload}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def kept_through_ray() -> Iterator[None]:
    """Ray is connected to in the block, which sets handlers of its own: signals wait until its end, and then meet the
    handlers from before. A second SIGINT does not wait.

    SIGTERM without a handler interrupts as SIGINT does from then on, for `ray job stop` and a container's end send it;
    Ray itself would dump a stack.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[_Number] = []

    def wait(number: _Number, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in waiting:
            raise KeyboardInterrupt
        waiting.append(number)

    before = {number: signal.signal(number, wait) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        with _not_replaced():
            yield
    finally:
        for number, handler in before.items():
            unset = number == signal.SIGTERM and handler in (signal.SIG_DFL, None)
            signal.signal(number, signal.default_int_handler if unset else handler)
    for number in dict.fromkeys(waiting):
        signal.raise_signal(number)


@contextmanager
def _not_replaced() -> Iterator[None]:
    """Ray's Python code sets no handler of SIGTERM in the block."""
    from ray._private import utils

    before, utils.set_sigterm_handler = utils.set_sigterm_handler, lambda _: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = before
