"""SIGINT, SIGTERM and SIGHUP, handled in order from a service's start to its end. Imports no Ray, to be quick."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from raystitch.cluster.private_ray import without_sigterm_handler

_Number = int


class Requests:
    """Requests made by signals.

    Attributes:
        stop, reload: whether it was requested.
        up: the service answers. Before that, a request to stop interrupts its start at once; a second one always does.
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
        """Delay a first request to stop to the end of the block (of imports, which may swallow an exception)."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        self.check()

    def check(self) -> None:
        """Interrupt a start whose interruption was swallowed, for example by a finaliser."""
        if self.stop:
            raise KeyboardInterrupt

    def on_reload(self, number: _Number, frame: FrameType | None) -> None:
        self.reload = True


@contextmanager
def requests() -> Iterator[Requests]:
    """Inside the block, SIGINT and SIGTERM request a stop and SIGHUP a reload."""
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
    """Keep this process's signal handlers while the block connects to Ray, which would set its own.

    Signals wait for the end of the block and then reach the handlers from before; a second SIGINT does not wait.
    If SIGTERM had no handler, it interrupts like SIGINT from then on: `ray job stop` and the end of a container send
    it, and Ray would dump a stack.
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
        with without_sigterm_handler():
            yield
    finally:
        for number, handler in before.items():
            unset = number == signal.SIGTERM and handler in (signal.SIG_DFL, None)
            signal.signal(number, signal.default_int_handler if unset else handler)
    for number in dict.fromkeys(waiting):
        signal.raise_signal(number)
