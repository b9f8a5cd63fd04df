# SPDX-License-Identifier: GPL-3.0-or-later
"""Patterns of a raw scan added up, where one alone shows too little.

A sum of counts is a pattern of as many more electrons, whose noise is Poisson's as before, so that
disks are found in it by the same search. Which positions belong together is said by others
(`scan.pooling`); patterns whose beams lie apart are not added up, for their disks would blur.

Shapes: a scan of `ny` × `nx` positions; `n` × `n` positions, n odd, around each.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, Num

from jaxstem.files.cube import Cube

KEPT_BYTES = 1 << 30
"""Of patterns that are kept, at most, for the rows that come next need them again."""

COLUMNS = 256
"""Scan columns that are read at once."""


STEADY = 0.5
"""How far apart [px], along an axis, the direct beams of patterns may lie that are added up."""


def where_steady(
    members: Bool[np.ndarray, "ny nx n n"], origin: Float[np.ndarray, "ny nx 2"]
) -> Bool[np.ndarray, "ny nx n n"]:
    """The `members` whose direct beam (`origin`, px) falls where that of the position does."""
    radius, shape = members.shape[2] // 2, origin.shape[:2]
    wide = np.pad(origin, ((radius, radius), (radius, radius), (0, 0)), constant_values=np.inf)
    steady = np.empty_like(members)
    for y, x in np.ndindex(*members.shape[2:]):
        there = wide[y : y + shape[0], x : x + shape[1]]
        steady[:, :, y, x] = (np.abs(there - origin) <= STEADY).all(axis=-1)
    return members & steady


def without_pedestal(cube: Cube, pedestal: float) -> Cube:
    """The scan with what stands for no electron taken off its numbers, float32 then; itself where
    that is 0.
    """
    if pedestal == 0:
        return cube

    def read(rows: slice, columns: slice) -> Num[np.ndarray, "rows columns H W"]:
        return cube.read(rows, columns).astype(np.float32) - np.float32(pedestal)

    return replace(cube, dtype=np.dtype(np.float32), read=read)


def pooled_cube(cube: Cube, members: Bool[np.ndarray, "ny nx n n"]) -> Cube:
    """The scan whose pattern at each position is the sum of those of its `members`, positions
    around it in rows and columns, itself in the middle; what lies beyond the scan's edge counts as
    none. Stored numbers of more than 16 bits are added up as float32. Reading raises InputError as
    the cube's does.
    """
    radius = members.shape[2] // 2
    exact = cube.dtype.kind in "iu" and cube.dtype.itemsize <= 2
    dtype = np.dtype(f"{cube.dtype.kind}4") if exact else np.dtype(np.float32)
    n_rows, n_columns = cube.scan_shape
    block_bytes = min(COLUMNS, n_columns) * math.prod(cube.detector_shape) * cube.dtype.itemsize
    needed = members.shape[2] * math.ceil(n_columns / COLUMNS)

    @lru_cache(min(needed, max(KEPT_BYTES // block_bytes, 1)))
    def block(row: int, number: int) -> Num[np.ndarray, "columns H W"]:
        first = number * COLUMNS
        return cube.read(slice(row, row + 1), slice(first, min(first + COLUMNS, n_columns)))[0]

    def line(row: int, first: int, last: int) -> Num[np.ndarray, "columns H W"]:
        numbers = range(first // COLUMNS, (last - 1) // COLUMNS + 1)
        parts = [block(row, number) for number in numbers]
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return whole[first - numbers[0] * COLUMNS :][: last - first]

    def read(rows: slice, columns: slice) -> Num[np.ndarray, "rows columns H W"]:
        chosen = np.arange(n_columns)[columns]
        first, last = max(chosen[0] - radius, 0), min(chosen[-1] + radius + 1, n_columns)

        def pooled(row: int) -> Num[np.ndarray, "columns H W"]:
            total = np.zeros((len(chosen), *cube.detector_shape), dtype)
            for y in range(max(row - radius, 0), min(row + radius + 1, n_rows)):
                around = line(y, first, last)
                for x in range(-radius, radius + 1):
                    there = chosen + x
                    belongs = members[row, chosen, y - row + radius, x + radius]
                    own = np.flatnonzero(belongs & (there >= 0) & (there < n_columns))
                    total[own] += around[there[own] - first].astype(dtype)
            return total

        return np.stack([pooled(row) for row in range(*rows.indices(n_rows))])

    return replace(cube, dtype=dtype, read=read)
