# SPDX-License-Identifier: GPL-3.0-or-later
"""Signals that end the process do so by an exception, so that unfinished files are removed.

Python runs the handler of a signal in the main thread between any two of its steps. It may stand
where C has called it and does not survive an exception: within HDF5 (`files/hdf5_writing.py`), or
while a module of jaxlib is loaded. From there a signal is put off. Or it may stand where an
exception is told and goes no further, as in what tidies up after objects. From there it comes
again.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_FATAL = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Those of `kill` and batch systems, and of a terminal that is closed."""

IMPORTS = "<frozen importlib"
"""How the names of the files begin that hold Python's import of modules."""

_MOMENT = 0.05
"""Seconds after which a signal that was put off or lost comes again."""


class Ended(BaseException):
    """A signal ends the process; its argument is the signal's number."""


@contextmanager
def signals_unwind() -> Iterator[None]:
    """Within the block signals that would end the process raise `Ended`, the first one alone.

    Where one is ignored (nohup) or handled already, it stays so; outside the main thread all do.
    """
    came, tell = [], sys.unraisablehook

    def end(number: int, _: FrameType | None) -> None:
        came.append(number)
        if len(came) == 1:
            raise Ended(number)

    def come_again(lost) -> None:
        if isinstance(lost.exc_value, Ended):
            came.clear()
            _raise_soon(*lost.exc_value.args)
        elif isinstance(lost.exc_value, KeyboardInterrupt):
            _raise_soon(signal.SIGINT)
        else:
            tell(lost)

    caught = [number for number in _settable(_FATAL) if signal.getsignal(number) is signal.SIG_DFL]
    try:
        sys.unraisablehook = come_again
        for number in caught:
            signal.signal(number, end)
        yield
    finally:
        sys.unraisablehook = tell
        for number in caught:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def signals_put_off(where: str) -> Iterator[None]:
    """Within the block handlers of SIGINT and of signals that end the process do not run while code
    runs, called from the block, of a file whose name starts with `where`; the signal comes again.
    """
    block = sys._getframe(2)  # past this generator and contextlib's `__enter__`

    def careful(handler: Callable) -> Callable:
        def handle(number: int, frame: FrameType | None) -> None:
            inner = frame
            while inner is not None and inner is not block and not _stands(inner, where):
                inner = inner.f_back
            if inner is None or inner is block:
                handler(number, frame)
            else:
                _raise_soon(number)

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


def _stands(frame: FrameType, where: str) -> bool:
    return frame.f_code.co_filename.startswith(where)


def _raise_soon(number: int) -> None:
    timer = threading.Timer(_MOMENT, signal.raise_signal, [number])
    timer.daemon = True
    timer.start()


def _settable(numbers: list[int]) -> list[int]:
    return numbers if threading.current_thread() is threading.main_thread() else []
