# SPDX-License-Identifier: GPL-3.0-or-later
"""The one error that users are meant to see, and the commonest reason for it."""


class InputError(ValueError):
    """Input that cannot be used: one sentence naming the file, what is wrong and what to do.

    The command line prints the message alone and exits with status 2.
    """


def require_between(name: str, value: float, low: float, high: float, unit: str = "") -> None:
    """Raise InputError unless low <= value <= high; `name` is that of the setting or its option."""
    if not low <= value <= high:
        raise InputError(
            f"{name} {value:g}: give a number from {low:g} to {high:g} {unit}".rstrip() + "."
        )
