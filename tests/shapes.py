# SPDX-License-Identifier: GPL-3.0-or-later
"""Shapes and types that public functions of the package state, checked at each call."""

from collections.abc import Callable

from beartype import BeartypeConf, beartype

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # a whole number will do for a float


def checked(function: Callable) -> Callable:
    """The function with its annotations checked, if it is public: one within another would be made
    ready anew at each call of that.
    """
    name = function.__qualname__
    return function if "<locals>" in name or name.startswith("_") else _check(function)
