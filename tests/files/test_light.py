# SPDX-License-Identifier: GPL-3.0-or-later
"""Counts in one byte: as exact as is said, in order, between what is kept, and of the positions
that are asked for.
"""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from jaxstem.files.light import (
    Detector,
    Light,
    ScanLight,
    decoded,
    decoded_factor,
    encoded,
    encoded_factor,
    everywhere,
    light_everywhere,
)

pytestmark = pytest.mark.usefixtures("quick_compile")


@settings(deadline=None)
@given(st.lists(st.floats(0.0, 1e6, width=32), min_size=2, max_size=50))
def test_a_byte_holds_counts_to_half_their_noise_or_a_fiftieth(counts):
    counts = np.sort(np.resize(np.asarray(counts, np.float32), 50))  # one shape for all
    code = np.asarray(jax.jit(encoded)(counts))
    assert code.dtype == np.uint8
    assert (np.diff(code.astype(int)) >= 0).all()
    off = np.abs(np.asarray(jax.jit(decoded)(code)) - counts)
    assert (off <= 0.51 * np.sqrt(counts + (0.04 * counts) ** 2) + 0.3).all()


def test_what_is_out_of_range_is_taken_for_the_nearest():
    code = np.asarray(encoded(np.array([-5.0, 0.0, 1e9, np.inf], np.float32)))
    np.testing.assert_array_equal(code, [0, 0, 255, 255])


def test_factors_are_held_to_a_share(rng):
    factor = np.exp(rng.uniform(np.log(0.03), np.log(40), 200))
    held = jax.jit(lambda factor: decoded_factor(encoded_factor(factor)))(factor)
    np.testing.assert_allclose(held, factor, rtol=0.016)


@pytest.mark.parametrize("shape", [(40, 31), (17, 24)])
def test_between_the_places_kept_light_follows_from_them(rng, shape):
    """Where it is as smooth as a disk makes it; where all places are kept nothing is changed."""
    image = 1e4 * np.exp(gaussian_filter(rng.normal(size=shape), 2.0))
    code = np.asarray(jax.jit(encoded)(image))
    every = np.asarray(light_everywhere(code, shape))
    np.testing.assert_array_equal(every, decoded(code))
    filled = jax.jit(everywhere, static_argnums=1)
    found = np.asarray(filled(every[::2, ::2], shape))
    of_codes = jax.jit(light_everywhere, static_argnums=1)(code[::2, ::2], shape)
    np.testing.assert_allclose(of_codes, found, rtol=1e-6)
    np.testing.assert_array_equal(found[::2, ::2], every[::2, ::2])
    inside = (slice(6, -6),) * 2
    np.testing.assert_allclose(found[inside], image[inside], rtol=0.06)


def test_positions_are_those_that_are_asked_for(rng):
    sums = rng.integers(0, 255, (6, 5, 4)).astype(np.uint8)
    factor = rng.integers(0, 255, (6, 2, 2)).astype(np.uint8)
    light = Light(sums, factor, rng.random((6, 2)))
    shared = Detector(*range(7))
    some = ScanLight(light, shared).at(np.array([4, 1]))
    assert some.detector is shared
    for mine, whole in zip(some.light, light, strict=True):
        np.testing.assert_array_equal(mine, whole[[4, 1]])
