# SPDX-License-Identifier: GPL-3.0-or-later
"""Rows of a scan shared among the processes of a cluster, and what each found of its own ones given
to all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxstem.errors import InputError

Block = tuple[int, Any]
"""Some rows: the first one, and a pytree of arrays whose leading axis is that of rows."""


def own_rows(n_rows: int) -> tuple[int, int]:
    """The first of this process's rows and the one after its last: of P processes the p-th has the
    p-th of P ranges.
    """
    bounds = np.linspace(0, n_rows, jax.process_count() + 1).astype(int)
    return int(bounds[jax.process_index()]), int(bounds[jax.process_index() + 1])


def shared(blocks: Iterator[Block], like: Any) -> Iterator[Block]:
    """The blocks of all processes, in each process; `like` has the most rows that a block has.

    In rounds: all give their next block, or an empty one if they have no more, filled up. An
    InputError of one process ends all: it is raised there, and another one in its place elsewhere.
    A lone process has its own.
    """
    if jax.process_count() == 1:
        yield from blocks
        return
    failure, more = None, True
    most_rows = _n_rows(like)
    while more:
        row, block, n_rows = 0, like, 0
        try:
            row, block = next(blocks, (0, None))
            n_rows = 0 if block is None else _n_rows(block)
            block = like if block is None else block
        except InputError as error:
            failure = error
        filled = jax.tree.map(lambda x, n=n_rows: _filled(x[:n], most_rows), block)
        state = np.array([row, n_rows, failure is not None], np.int32)
        states, gathered = multihost_utils.process_allgather((state, filled))
        if failure is not None:
            raise failure
        if states[:, 2].any():
            raise InputError("Another process could not read its share of the scan; see there.")
        for process, (row, n_rows, _) in enumerate(states.tolist()):
            if n_rows:
                own = lambda x, p=process, n=n_rows: np.asarray(x[p][:n])  # noqa: E731
                yield row, jax.tree.map(own, gathered)
        more = bool(states[:, 1].any())


def _n_rows(block: Any) -> int:
    return len(jax.tree.leaves(block)[0])


def _filled(x: np.ndarray, n_rows: int) -> np.ndarray:
    return np.pad(x, [(0, n_rows - len(x))] + [(0, 0)] * (x.ndim - 1))
