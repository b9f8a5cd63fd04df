# SPDX-License-Identifier: GPL-3.0-or-later
"""Figures that are written and not shown."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


@contextmanager
def drawn(
    path: Path, n_rows: int = 1, n_columns: int = 1, size: tuple[float, float] = (9, 4), **more: Any
) -> Iterator[tuple[Any, Any]]:
    """A figure of `size` [inch] and its panels, written to `path` when the block ends.

    `more` as for matplotlib's `subplots`.
    """
    figure, panels = plt.subplots(n_rows, n_columns, figsize=size, layout="constrained", **more)
    try:
        yield figure, panels
        figure.savefig(path, dpi=150)
    finally:
        plt.close(figure)
