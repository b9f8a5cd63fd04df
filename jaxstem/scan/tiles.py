# SPDX-License-Identifier: GPL-3.0-or-later
"""A scan cut into tiles of a few sizes, so that a program fits scans of any shape and memory holds
a few tiles.

Tiles overlap by a margin on each side, as wide as neighbours are heard from, and what is found of a
position does not depend on how the scan was cut. What lies outside of the scan is not looked at.
Shapes: a scan of `ny` × `nx` positions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool

from jaxstem.inference.batching import no_labels
from jaxstem.inference.stream import workers
from jaxstem.inference.verdict import Labels

SIDES = (36, 84)
"""Positions along a tile, its margins included."""


class Tile(NamedTuple):
    """A square of a scan: its first row and column, and those of the part without margins, before
    and after.
    """

    row: int
    column: int
    rows: tuple[int, int]
    columns: tuple[int, int]


class Tiling(NamedTuple):
    """All tiles of a scan, row by row, and their common side and margin [positions]."""

    scan_shape: tuple[int, int]
    side: int
    margin: int
    tiles: tuple[Tile, ...]


def tiled(scan_shape: tuple[int, int], margin: int, sides: Sequence[int] = SIDES) -> Tiling:
    """The tiles of a scan: a single one without margin where one of these sides holds all of it,
    otherwise those of the largest.
    """
    whole = [side for side in sides if max(scan_shape) <= side]
    side, margin = (min(whole), 0) if whole else (max(sides), margin)
    step = side - 2 * margin
    starts = [range(0, n, step) for n in scan_shape]
    ends = [[min(start + step, n) for start in x] for x, n in zip(starts, scan_shape, strict=True)]
    rows, columns = (list(zip(*x, strict=True)) for x in zip(starts, ends, strict=True))
    tiles = [Tile(r[0] - margin, c[0] - margin, r, c) for r in rows for c in columns]
    return Tiling(tuple(scan_shape), side, margin, tuple(tiles))


def cut(labels: Labels, tile: Tile, side: int) -> Labels:
    """The labels (side, side) of a tile of a scan's labels (ny, nx)."""
    nowhere = no_labels(np.full(side * side, -1), labels.phase.shape[-1])
    into = _overlap(labels.phase.shape[:2], tile, side)
    here = tuple(slice(a + x.start, a + x.stop) for a, x in zip(tile[:2], into, strict=True))

    def of_tile(x, outside):
        square = outside.reshape(side, side, *outside.shape[1:])
        square[into] = x[here]
        return square

    return Labels(*map(of_tile, labels, nowhere))


def inside(tiling: Tiling, tile: Tile) -> Bool[np.ndarray, "side side"]:
    """Which positions of a tile are its own and not of a margin or outside of the scan."""
    own = np.zeros((tiling.side, tiling.side), bool)
    own[
        tile.rows[0] - tile.row : tile.rows[1] - tile.row,
        tile.columns[0] - tile.column : tile.columns[1] - tile.column,
    ] = True
    return own


def _overlap(scan_shape: tuple[int, int], tile: Tile, side: int) -> tuple[slice, slice]:
    """Which rows and columns of a tile lie in the scan."""
    return tuple(
        slice(max(0, -first), min(side, n - first))
        for first, n in zip(tile[:2], scan_shape, strict=True)
    )


OfTile = Labels | tuple[Labels, ...]
"""The labels of a tile, of one scan of its positions or of several."""


def stacked(labels: Callable[[Tile], OfTile], tiles: Sequence[Tile], n: int) -> OfTile:
    """The labels (n, side, side) of tiles, the last repeated."""
    of_each = [labels(tile) for tile in tiles]
    of_each += of_each[-1:] * (n - len(tiles))
    return jax.tree.map(lambda *x: np.stack(x), *of_each)


def over_tiles(
    program: Callable[[OfTile], Any],
    labels: Callable[[Tile], OfTile],
    tiling: Tiling,
    mesh: Mesh,
) -> Iterator[tuple[int, Any]]:
    """What `program` makes of labels (devices, side, side), some rows (rows, nx) of the scan at a
    time, by the first of them; it gives all of a tile but its margins.
    """
    n = mesh.size
    lots = [tiling.tiles[i : i + n] for i in range(0, len(tiling.tiles), n)]

    def work(tiles: Sequence[Tile]) -> list[Any]:
        found = jax.device_get(program(stacked(labels, tiles, n)))

        def own(i: int, tile: Tile):
            height, width = (b - a for a, b in (tile.rows, tile.columns))
            return jax.tree.map(lambda x: x[i, :height, :width], found)

        return [own(i, tile) for i, tile in enumerate(tiles)]

    band: list[Any] = []
    for lot, found in _in_order(work, lots, workers(mesh)):
        for tile, part in zip(lot, found, strict=True):
            band.append(part)
            if tile.columns[1] == tiling.scan_shape[1]:
                yield tile.rows[0], jax.tree.map(lambda *x: np.concatenate(x, axis=1), *band)
                band = []


def _in_order(work: Callable, items: Sequence[Any], n_workers: int) -> Iterator[tuple[Any, Any]]:
    """Each item and what `work` makes of it, in order, by so many threads that are a few ahead."""
    with ThreadPoolExecutor(n_workers) as crew:
        pending: deque = deque()
        for item in items:
            pending.append((item, crew.submit(work, item)))
            if len(pending) > 2 * n_workers:
                item, future = pending.popleft()
                yield item, future.result()
        while pending:
            item, future = pending.popleft()
            yield item, future.result()
