# SPDX-License-Identifier: GPL-3.0-or-later
"""The lengths that patterns are padded to: least work, against all choices."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxstem.inference.exposure import MIN_DISKS
from jaxstem.inference.lengths import choose_lengths, length_of

pytestmark = pytest.mark.usefixtures("quick_compile")

LENGTHS = (4, 6, 9, 12, 20)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=60),
    program=st.floats(1, 300),
    beside=st.floats(0, 30),
)
def test_lengths_make_the_work_least(counts, program, beside):
    """Against all subsets of the lengths."""
    counts = np.array(counts)
    found = choose_lengths(counts, LENGTHS, program, beside)
    if not (counts >= MIN_DISKS).any():
        assert found == ()
        return
    longest = LENGTHS[length_of(counts, LENGTHS).max()]

    def work(lengths):
        place = length_of(counts, lengths)
        each = np.asarray(lengths)[place[place >= 0]] + beside
        return each.sum() + program * len(lengths)

    subsets = itertools.chain.from_iterable(
        itertools.combinations(LENGTHS, n) for n in range(1, len(LENGTHS) + 1)
    )
    possible = [lengths for lengths in subsets if lengths[-1] >= longest]
    assert work(found) == pytest.approx(min(map(work, possible)))


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(0, 40), max_size=60))
def test_patterns_fit_their_lengths(counts):
    counts = np.array(counts, int)
    place = length_of(counts, LENGTHS)
    np.testing.assert_array_equal(place < 0, counts < MIN_DISKS)
    for count, i in zip(counts[place >= 0], place[place >= 0], strict=True):
        assert count <= LENGTHS[i] or i == len(LENGTHS) - 1
        assert i == 0 or count > LENGTHS[i - 1]
