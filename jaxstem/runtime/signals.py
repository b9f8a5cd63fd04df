# SPDX-License-Identifier: GPL-3.0-or-later
"""Signals that end the process do so by an exception, so that unfinished files are removed.

Python runs the handler of a signal in the main thread between any two of its steps. It may stand
where C has called it and does not survive an exception: within HDF5 (`files/hdf5_writing.py`), or
while a module of jaxlib is loaded. From there a signal is put off.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType

_FATAL = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Those of `kill` and batch systems, and of a terminal that is closed."""

_MOMENT = 0.05
"""Seconds after which a signal that was put off comes again."""


class Ended(BaseException):
    """A signal ends the process; its argument is the signal's number."""


@contextmanager
def signals_unwind() -> Iterator[None]:
    """Within the block signals that would end the process raise `Ended`, the first one alone.

    Where one is ignored (nohup) or handled already, it stays so; outside the main thread all do.
    """
    came = []

    def end(number: int, _: FrameType | None) -> None:
        came.append(number)
        if len(came) == 1:
            raise Ended(number)

    caught = [number for number in _settable(_FATAL) if signal.getsignal(number) is signal.SIG_DFL]
    try:
        for number in caught:
            signal.signal(number, end)
        yield
    finally:
        for number in caught:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def signals_put_off(within: Callable[[CodeType], bool]) -> Iterator[None]:
    """Within the block handlers of SIGINT and of signals that end the process do not run while any
    code runs, between there and the block, of which `within` is true; the signal comes again then.
    """
    block = sys._getframe(2)  # past this generator and contextlib's `__enter__`

    def careful(handler: Callable) -> Callable:
        def handle(number: int, frame: FrameType | None) -> None:
            inner = frame
            while inner is not None and inner is not block and not within(inner.f_code):
                inner = inner.f_back
            if inner is None or inner is block:
                return handler(number, frame)
            again = threading.Timer(_MOMENT, signal.raise_signal, [number])
            again.daemon = True
            again.start()

        return handle

    handlers = {each: signal.getsignal(each) for each in _settable([signal.SIGINT, *_FATAL])}
    before = {number: handler for number, handler in handlers.items() if callable(handler)}
    try:
        for number, handler in before.items():
            signal.signal(number, careful(handler))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def imports(code: CodeType) -> bool:
    """Whether this is of Python's own import of modules."""
    return code.co_filename.startswith("<frozen importlib")


def _settable(numbers: list[int]) -> list[int]:
    return numbers if threading.current_thread() is threading.main_thread() else []
