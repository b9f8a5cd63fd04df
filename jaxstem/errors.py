# SPDX-License-Identifier: GPL-3.0-or-later
"""The one error that users are meant to see."""

from __future__ import annotations


class InputError(ValueError):
    """Input that cannot be used: one sentence naming the file, what is wrong and what to do.

    The command line prints the message alone and exits with status 2.
    """
