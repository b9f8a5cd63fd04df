# SPDX-License-Identifier: GPL-3.0-or-later
"""Folded reductions against the plain ones of numpy."""

import jax
import numpy as np
import pytest

from jaxstem.runtime.reductions import (
    LANES,
    MOST_OF_TWO,
    filled,
    fold,
    largest_of_rows,
    log_of_rows,
    radius,
    totals,
    totals_of_rows,
    turned,
)
from jaxstem.verification.likelihood import log_of_product


@jax.jit
def along_lanes(x, y):
    whole = totals(x, y)
    return whole, jax.vmap(totals)(x, y), fold(x, LANES, -1.0), filled(x, LANES, -1.0)


@pytest.mark.parametrize("n", [1, 7, 8, 9, 40])
def test_totals_are_sums_and_folding_fills_up(rng, n):
    x, y = rng.normal(size=(2, 3, 5, n)).astype(np.float32)
    sums, mapped, rows, flat = along_lanes(x, y)
    for one, again, values in zip(sums, mapped, (x, y), strict=True):
        np.testing.assert_allclose(one, values.sum(axis=-1), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(again, one, rtol=1e-4, atol=1e-5)
    assert rows.shape == (3, 5, -(-n // LANES), LANES)
    np.testing.assert_array_equal(flat, rows.reshape(3, 5, -1))
    np.testing.assert_array_equal(flat[..., :n], x)
    np.testing.assert_array_equal(flat[..., n:], -1.0)


@jax.jit
def along_rows(x, y, factors):
    both, alone = totals_of_rows(x, y), totals_of_rows(x)
    return both, alone, jax.vmap(largest_of_rows)(x), log_of_rows(factors)


@pytest.mark.parametrize("n", [1, 4, 6, 17])
def test_rows_are_added_compared_and_multiplied(rng, n):
    """Logarithms of products neither overflow nor lose."""
    x, y = rng.normal(size=(2, 3, n, 5)).astype(np.float32) - 3  # all negative: filling is not seen
    factors = np.exp(rng.uniform(0, np.log(MOST_OF_TWO), size=(3, n, 5))).astype(np.float32)
    factors[0] = MOST_OF_TWO
    both, alone, largest, logarithm = along_rows(x, y, factors)
    for one, values in zip((*both, *alone), (x, y, x), strict=True):
        np.testing.assert_allclose(one, values.sum(axis=-2), rtol=1e-5)
    np.testing.assert_array_equal(largest, x.max(axis=-2))
    np.testing.assert_allclose(logarithm, np.log(factors.astype(float)).sum(axis=-2), rtol=1e-5)


@pytest.mark.parametrize("n", [1, 40, 999])
def test_logarithm_of_a_product_neither_overflows_nor_loses(rng, n):
    least = 0.03
    factors = 1 / rng.uniform(least, 1, size=(4, n)).astype(np.float32)
    factors[0] = 1 / least
    found = jax.jit(log_of_product, static_argnums=1)(factors, least)
    np.testing.assert_allclose(found, np.log(factors.astype(float)).sum(axis=-1), rtol=1e-5)


def test_radius_and_turn(rng):
    x, y = rng.normal(size=(2, 50)).astype(np.float32)
    np.testing.assert_allclose(jax.jit(radius)(x, y), np.hypot(x, y), rtol=1e-6)
    g, matrix = rng.normal(size=(30, 3)), rng.normal(size=(3, 3))
    np.testing.assert_allclose(jax.jit(turned)(g, matrix), g @ matrix, rtol=1e-4, atol=1e-5)
