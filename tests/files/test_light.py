# SPDX-License-Identifier: GPL-3.0-or-later
"""Counts in one byte: as exact as is said, in order, and of the positions that are asked for."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxstem.files.light import BRIGHT, Detector, Light, ScanLight, decoded, encoded


@settings(deadline=None)
@given(st.lists(st.floats(0.0, BRIGHT, width=32), min_size=2, max_size=50))
def test_a_byte_holds_counts_to_a_fortieth_or_a_tenth(counts):
    counts = np.sort(np.asarray(counts, np.float32))
    code = np.asarray(encoded(counts))
    assert code.dtype == np.uint8
    assert (np.diff(code.astype(int)) >= 0).all()
    assert (np.abs(np.asarray(decoded(code)) - counts) <= 0.1 + 0.026 * counts).all()


def test_what_is_out_of_range_is_taken_for_the_nearest():
    code = np.asarray(encoded(np.array([-5.0, 0.0, BRIGHT, 1e9], np.float32)))
    np.testing.assert_array_equal(code, [0, 0, 255, 255])


def test_positions_are_those_that_are_asked_for(rng):
    sums = rng.integers(0, 255, (6, 5, 4)).astype(np.uint8)
    light = Light(sums, rng.random((6, 2, 2)), rng.random((6, 2)))
    shared = Detector(*range(6))
    some = ScanLight(light, shared).at(np.array([4, 1]))
    assert some.detector is shared
    for mine, whole in zip(some.light, light, strict=True):
        np.testing.assert_array_equal(mine, whole[[4, 1]])
