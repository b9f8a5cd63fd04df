# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables and paragraphs of Markdown."""

import re
from collections.abc import Iterable


def line(cells: Iterable[object]) -> str:
    """One row of a table."""
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def heading(*names: str) -> str:
    """The first two lines of a table."""
    return f"{line(names)}\n{line('---' for _ in names)}"


def table(names: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A heading and its rows."""
    return "\n".join([heading(*names), *(line(row) for row in rows)])


def flowed(text: str) -> str:
    """Paragraphs with each on one line."""
    return re.sub(r"(?<!\n)\n(?!\n)", " ", text.strip("\n"))
