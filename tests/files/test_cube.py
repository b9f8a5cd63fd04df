# SPDX-License-Identifier: GPL-3.0-or-later
"""Data cubes in pieces and samples: every pattern once, from everywhere."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxstem.errors import InputError
from jaxstem.files.cube import chunks, cube_from_array, sample


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"scan_step": np.nan}, "scan_step nan"),
        ({"scan_step": -2.0}, "scan_step -2"),
        ({"scan_step": 0}, "scan_step 0"),
        ({"scan_units": "furlongs"}, "scan_units 'furlongs'"),
        ({"scan_units": ""}, "scan_units ''"),
    ],
)
def test_steps_that_make_no_sense_are_refused(given, words):
    with pytest.raises(InputError, match=words):
        cube_from_array(np.ones((2, 2, 8, 8)), **given)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 6), columns=st.integers(1, 7), size=st.integers(1, 50))
def test_chunks_hold_every_pattern_once(rows, columns, size):
    data = np.arange(rows * columns * 64).reshape(rows, columns, 8, 8)
    pieces = list(chunks(cube_from_array(data), size))
    starts = [start for start, _ in pieces]
    assert starts == np.cumsum([0, *(len(p) for _, p in pieces[:-1])]).tolist()
    np.testing.assert_array_equal(np.concatenate([p for _, p in pieces]), data.reshape(-1, 8, 8))
    assert max(len(p) for _, p in pieces) <= size


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 40), columns=st.integers(1, 40), n=st.integers(1, 300))
def test_samples_are_spread_over_the_scan(rows, columns, n):
    number = np.arange(rows * columns).reshape(rows, columns, 1, 1)
    data = np.broadcast_to(number, (rows, columns, 8, 8))
    found = sample(cube_from_array(data), n)[:, 0, 0]
    assert len(set(found)) == len(found)
    assert min(n, rows * columns) / 3 <= len(found) <= 3 * n + columns
    if rows >= 20 and n >= 100:
        assert np.ptp(found // columns) > 0.8 * rows
