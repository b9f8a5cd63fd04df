# SPDX-License-Identifier: GPL-3.0-or-later
"""The one error that users are meant to see, and the commonest reason for it."""

from numbers import Integral
from typing import Any


class InputError(ValueError):
    """Input that cannot be used: one sentence naming the file, what is wrong and what to do.

    The command line prints the message alone and exits with status 2.
    """


class NotStated(InputError):
    """A file does not state something that an option can give.

    what: that something, in words; option: its name (of `ReadOptions`); stand_in: a value with
    which reading goes on, to see what else is not stated.
    """

    def __init__(self, sentence: str, *, what: str, option: str, stand_in: Any):
        super().__init__(sentence)
        self.what, self.option, self.stand_in = what, option, stand_in


def require_between(
    name: str, value: float, low: float, high: float, unit: str = "", whole: bool = False
) -> None:
    """Raise InputError unless low <= value <= high, and a whole number if so asked; `name` is that
    of the setting or its option.
    """
    try:
        fits, shown = bool(low <= value <= high), f"{value:g}"
    except (TypeError, ValueError):  # of text, None or arrays
        fits, shown = False, repr(value)
    if not fits or (whole and not isinstance(value, Integral)):
        number = "whole number" if whole else "number"
        wanted = f"{number} from {low:g} to {high:g} {unit}".rstrip()
        raise InputError(f"{name} {shown}: give a {wanted}.")
