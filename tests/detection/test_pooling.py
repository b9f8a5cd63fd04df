# SPDX-License-Identifier: GPL-3.0-or-later
"""Patterns added up: those that were asked for, each once, and disks found in the sums."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import patterns_of_disks

from jaxstem.detection import pooling
from jaxstem.detection.opening import disks_of
from jaxstem.detection.pooling import STEADY, pooled_cube, where_steady
from jaxstem.detection.scan import plan_search
from jaxstem.files.cube import cube_from_array, sample


def added_up(patterns, members):
    """The same, one position after the other."""
    radius = members.shape[2] // 2
    total = np.zeros(patterns.shape, float)
    for y, x, a, b in np.argwhere(members):
        row, column = y + a - radius, x + b - radius
        if 0 <= row < patterns.shape[0] and 0 <= column < patterns.shape[1]:
            total[y, x] += patterns[row, column]
    return total


@pytest.mark.parametrize(
    ("dtype", "summed"),
    [("u2", "u4"), ("i2", "i4"), ("u1", "u4"), ("u4", "f4"), ("f4", "f4"), (">u2", "u4")],
)
@pytest.mark.parametrize("radius", [1, 3])
def test_sums_are_those_of_the_members(dtype, summed, radius, rng, monkeypatch):
    """Of all scans, in whatever pieces they are read, also where sums exceed the file's numbers."""
    monkeypatch.setattr(pooling, "COLUMNS", 4)
    shape = (int(rng.integers(1, 6)), int(rng.integers(1, 11)), 8, 9)
    most = 255 if dtype == "u1" else 30_000
    patterns = rng.integers(0, most, shape).astype(dtype)
    members = rng.random((*shape[:2], *[2 * radius + 1] * 2)) < 0.4
    cube = pooled_cube(cube_from_array(patterns, 0.03), members)
    assert cube.dtype == np.dtype(summed) and cube.shape == shape and cube.pixel_size == 0.03
    expected = added_up(patterns, members)
    np.testing.assert_allclose(cube.rows(0, shape[0]), expected, rtol=1e-6)
    row, column = (int(rng.integers(n)) for n in shape[:2])
    piece = cube.read(slice(row, row + 2), slice(column, None, 3))
    np.testing.assert_allclose(piece, expected[row : row + 2, column::3], rtol=1e-6)
    assert piece.dtype == np.dtype(summed)
    few = sample(cube, 3)
    assert len(few) and all((x == cube.rows(0, shape[0])).all((2, 3)).any() for x in few)


def test_each_row_is_read_once(rng, monkeypatch):
    patterns = rng.integers(0, 9, (9, 5, 8, 8)).astype("u2")
    cube, rows = cube_from_array(patterns), []
    read = lambda r, c: (rows.append(r.start), cube.read(r, c))[1]  # noqa: E731
    sums = pooled_cube(replace(cube, read=read), np.ones((9, 5, 5, 5), bool))
    for row in range(9):
        sums.rows(row, row + 1)
    assert sorted(rows) == list(range(9))


def test_patterns_whose_beams_lie_apart_are_not_added_up(rng):
    origin = np.zeros((4, 5, 2))
    origin[2:, :, 0] = 1.2 * STEADY  # further down the beam has moved
    origin[:, 4, 1] = 0.8 * STEADY
    asked = rng.random((4, 5, 3, 3)) < 0.8
    steady = where_steady(asked, origin)
    row, column = np.mgrid[:4, :5]
    for y, x in np.ndindex(3, 3):
        a, b = row + y - 1, column + x - 1
        inside = (a >= 0) & (a < 4) & (b >= 0) & (b < 5)
        same = inside & ((a >= 2) == (row >= 2))
        np.testing.assert_array_equal(steady[:, :, y, x], asked[:, :, y, x] & same)


@pytest.mark.usefixtures("quick_compile")
def test_disks_of_sums(settings, rng):
    """A pattern that is alone is as it was; three of the same add up, and show weaker disks."""
    expected, *_ = patterns_of_disks(rng)
    counts = rng.poisson(0.01 * np.repeat(expected[:6, None], 3, axis=1)).astype("u2")
    cube = cube_from_array(counts, 0.03, voltage_kv=300.0)
    source = disks_of(plan_search(cube, settings), progress=False)
    each = source.whole()
    alone = np.zeros((6, 3, 3, 3), bool)
    alone[:, :, 1, 1] = True
    again = source.pooled(alone, alone[0, 0])
    assert again.instrument == source.instrument and again.pooled is None
    np.testing.assert_array_equal(again.whole().offsets, each.offsets)
    np.testing.assert_allclose(again.whole().qx, each.qx, atol=1e-4)
    line = np.zeros((6, 3, 3, 3), bool)
    line[:, :, 1] = True
    of_three = source.pooled(line, line[0, 0]).whole()
    beam = lambda scan: np.maximum.reduceat(scan.intensity, scan.offsets[:-1])  # noqa: E731
    np.testing.assert_allclose(beam(of_three)[1::3] / beam(each)[1::3], 3.0, rtol=0.1)
    assert len(of_three.qx) > len(each.qx)
    # how they are searched hangs on no member: the same sum is the same in any company
    other = line.copy()
    other[3:] = alone[3:]
    mixed = source.pooled(other, line[0, 0]).whole()
    n_same = of_three.offsets[9]
    np.testing.assert_array_equal(mixed.offsets[:10], of_three.offsets[:10])
    np.testing.assert_array_equal(mixed.intensity[:n_same], of_three.intensity[:n_same])
    assert source.at([0, 2], [1]).pooled is None
