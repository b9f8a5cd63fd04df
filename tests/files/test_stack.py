# SPDX-License-Identifier: GPL-3.0-or-later
"""Patterns in one row as a scan: its shape stated or asked for, each pattern in its place."""

from pathlib import Path

import numpy as np
import pytest
from helpers import assert_refused
from hypothesis import assume, given
from hypothesis import strategies as st

from jaxstem.files.cube import cube_from_array
from jaxstem.files.stack import Frames, framed, likely_scan_shape, stack_reader

PATH = Path("scan.mib")


def test_the_shape_that_is_given_wins():
    assert likely_scan_shape(15, (5, 3), (3, 5), PATH) == (3, 5)
    assert likely_scan_shape(15, (3, 5), None, PATH) == (3, 5)


@pytest.mark.parametrize(
    ("n_patterns", "stated", "given", "words"),
    [
        (15, None, None, ["15 patterns", "--scan-shape ROWS COLUMNS."]),
        (15, (4, 4), None, ["15 patterns", "does not state"]),
        (16, None, None, ["4 4 if it is square"]),
        (15, (3, 5), (4, 4), ["15 patterns", "4 × 4"]),
        (15, None, (-3, -5), ["15 patterns"]),
    ],
)
def test_shapes_are_never_guessed(n_patterns, stated, given, words):
    assert_refused(lambda path: likely_scan_shape(n_patterns, stated, given, path), PATH, *words)


@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        (slice(1, 3), slice(None)),
        (slice(0, 4, 2), slice(None)),
        (slice(2, None), slice(1, 4)),
        (slice(None), slice(0, None, 3)),
    ],
)
def test_patterns_lie_row_by_row(rows, columns):
    scan = np.arange(4 * 5 * 6).reshape(4, 5, 2, 3)
    stack = scan.reshape(-1, 2, 3)
    read = stack_reader(lambda part: stack[part], (4, 5))
    np.testing.assert_array_equal(read(rows, columns), scan[rows, columns])


@given(st.data())
def test_framing_is_slicing(draw):
    """Any frames and flyback of any cube give what slicing the array does, in any portion."""
    small = st.integers(1, 4)
    own = draw.draw(st.tuples(small, small))
    rows, columns, flyback = draw.draw(small), draw.draw(small), draw.draw(st.integers(0, 2))
    n, used = own[0] * own[1], rows * (columns + flyback)
    assume(used <= n)
    start = draw.draw(st.integers(0, n - used))
    data = np.arange(n * 64).reshape(*own, 8, 8)
    expected = data.reshape(-1, 8, 8)[start : start + used]
    expected = expected.reshape(rows, columns + flyback, 8, 8)[:, :columns]
    frames = Frames(start, start + used, flyback)
    stack = cube_from_array(data)
    stated = draw.draw(st.sampled_from([None, own]))
    assume(stated is None or used < n or (rows, columns + flyback) == own)
    cube = framed(stack, stated, (rows, columns), frames)
    assert cube.shape == expected.shape
    np.testing.assert_array_equal(cube.rows(0, rows), expected)
    step = draw.draw(small)
    some = slice(draw.draw(st.integers(0, rows - 1)), None), slice(step - 1, None, step)
    if expected[some].size:
        np.testing.assert_array_equal(cube.read(*some), expected[some])
