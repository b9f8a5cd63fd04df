# SPDX-License-Identifier: GPL-3.0-or-later
"""Tiles hold each position of a scan once, whatever its shape, and nothing from outside."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxstem.runtime import parallel
from jaxstem.scan.tiles import SIDES, cut, inside, over_tiles, stacked, tiled

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 40))
SMALL = (6, 13)


def numbered(make_labels, shape):
    """Labels of which each number is that of its position."""
    number = np.arange(np.prod(shape), dtype=float).reshape(shape)
    quaternion = np.repeat(number[..., None, None], 2, axis=2).repeat(4, axis=3)
    labels = make_labels(quaternion, quaternion[..., 0], number)
    return labels._replace(score=quaternion[..., 0].astype(np.float32)), number


@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, margin=st.integers(0, 5))
def test_each_position_is_some_tiles_own_once(shape, margin):
    """And all that is a margin away lies in that tile too."""
    tiling = tiled(shape, margin, SMALL)
    assert tiling.side == (6 if max(shape) <= 6 else 13) and tiling.scan_shape == shape
    times = np.zeros(shape, int)
    for tile in tiling.tiles:
        own = inside(tiling, tile)
        rows, columns = np.argwhere(own).T + np.array([[tile.row], [tile.column]])
        assert own.any() and min(rows.min(), columns.min()) >= 0
        times[rows, columns] += 1
        assert (rows.min(), rows.max() + 1) == tile.rows
        assert (columns.min(), columns.max() + 1) == tile.columns
        for first, last, start, n in (
            (*tile.rows, tile.row, shape[0]),
            (*tile.columns, tile.column, shape[1]),
        ):
            assert start <= max(0, first - margin)
            assert start + tiling.side >= min(n, last + margin)
    np.testing.assert_array_equal(times, 1)


def test_one_tile_where_a_side_holds_the_scan():
    for shape, side in (((36, 1), 36), ((2, 37), 84), ((84, 84), 84)):
        tiling = tiled(shape, 10)
        assert (tiling.side, tiling.margin, len(tiling.tiles)) == (side, 0, 1)
    assert SIDES == (36, 84) and tiled((85, 1), 10).margin == 10


@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, margin=st.integers(0, 5))
def test_what_lies_outside_says_nothing(make_labels, shape, margin):
    labels, number = numbered(make_labels, shape)
    tiling = tiled(shape, margin, SMALL)
    for tile in tiling.tiles:
        found = cut(labels, tile, tiling.side)
        assert {x.shape[:2] for x in found} == {(tiling.side, tiling.side)}
        assert [x.dtype for x in found] == [x.dtype for x in labels]
        rows, columns = np.ogrid[: tiling.side, : tiling.side]
        rows, columns = rows + tile.row, columns + tile.column
        within = (rows >= 0) & (rows < shape[0]) & (columns >= 0) & (columns < shape[1])
        expected = number[rows.clip(0, shape[0] - 1), columns.clip(0, shape[1] - 1)]
        np.testing.assert_array_equal(found.no_crystal, np.where(within, expected, np.nan))
        for values in (found.quaternion[..., 2], found.log_odds, found.score):
            same = np.where(within[..., None], values == expected[..., None], True)
            assert same.all()
        assert (found.phase[~within] == -1).all() and np.isneginf(found.log_odds[~within]).all()
        assert np.isnan(found.score[~within]).all()


@settings(max_examples=25, deadline=None)
@given(shape=SHAPES, margin=st.integers(0, 5), devices=st.integers(1, 8))
def test_rows_come_in_order_and_as_they_were(make_labels, shape, margin, devices):
    """Some at a time, whatever the number of devices, each of which has a tile."""
    labels, number = numbered(make_labels, shape)
    tiling = tiled(shape, margin, SMALL)
    mesh, sizes = parallel.make_mesh(jax.devices()[:devices]), set()
    middle = slice(tiling.margin, tiling.side - tiling.margin)

    def program(lot):
        sizes.add(len(lot.no_crystal))
        return lot.no_crystal[:, middle, middle], lot.quaternion[:, middle, middle]

    found = list(over_tiles(program, lambda x: cut(labels, x, tiling.side), tiling, mesh))
    starts = [row for row, _ in found]
    assert starts == sorted({tile.rows[0] for tile in tiling.tiles}) and sizes == {devices}
    for i, expected in enumerate((number, labels.quaternion)):
        whole = np.concatenate([parts[i] for _, parts in found])
        np.testing.assert_array_equal(whole, expected)


def test_a_failure_on_the_way_is_told(make_labels):
    labels, _ = numbered(make_labels, (20, 20))
    tiling = tiled((20, 20), 2, SMALL)

    def program(lot):
        raise OSError("no room")

    mesh = parallel.make_mesh(jax.devices()[:1])
    with pytest.raises(OSError, match="no room"):
        list(over_tiles(program, lambda x: cut(labels, x, tiling.side), tiling, mesh))


def test_stacks_are_filled_up_with_the_last_tile(make_labels):
    labels, _ = numbered(make_labels, (20, 20))
    tiling = tiled((20, 20), 2, SMALL)
    tiles = tiling.tiles[:2]
    found = stacked(lambda x: cut(labels, x, tiling.side), tiles, 4)
    each = [cut(labels, tile, tiling.side).no_crystal for tile in tiles]
    np.testing.assert_array_equal(found.no_crystal, np.stack([each[0], *[each[1]] * 3]))
