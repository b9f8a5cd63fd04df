# SPDX-License-Identifier: GPL-3.0-or-later
"""Folded reductions against the plain ones of numpy."""

import jax
import jax.numpy as jnp
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


@pytest.mark.parametrize("n", [1, 7, 8, 9, 40, 64])
def test_totals_are_sums(rng, n):
    x, y = rng.normal(size=(2, 3, 5, n))
    found = jax.jit(totals)(jnp.asarray(x), jnp.asarray(y))
    for one, values in zip(found, (x, y), strict=True):
        np.testing.assert_allclose(one, values.sum(axis=-1), rtol=1e-4, atol=1e-5)
    mapped = jax.vmap(totals)(jnp.asarray(x), jnp.asarray(y))
    np.testing.assert_allclose(mapped[0], found[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n", [1, 4, 6, 17])
def test_rows_are_added_and_compared(rng, n):
    x, y = rng.normal(size=(2, 3, n, 5)).astype(np.float32) - 3  # all negative: filling is not seen
    for one, values in zip(totals_of_rows(jnp.asarray(x), jnp.asarray(y)), (x, y), strict=True):
        np.testing.assert_allclose(one, values.sum(axis=-2), rtol=1e-5)
    np.testing.assert_allclose(totals_of_rows(jnp.asarray(x))[0], x.sum(axis=-2), rtol=1e-5)
    np.testing.assert_array_equal(jax.vmap(largest_of_rows)(jnp.asarray(x)), x.max(axis=-2))


@pytest.mark.parametrize("n", [1, 8, 13])
def test_folding_keeps_everything_and_fills_up(rng, n):
    x = rng.normal(size=(2, n)).astype(np.float32)
    rows = np.asarray(fold(jnp.asarray(x), LANES, -1.0))
    assert rows.shape == (2, -(-n // LANES), LANES)
    flat = rows.reshape(2, -1)
    np.testing.assert_array_equal(flat[:, :n], x)
    np.testing.assert_array_equal(flat[:, n:], -1.0)
    np.testing.assert_array_equal(np.asarray(filled(jnp.asarray(x), LANES, -1.0)), flat)


@pytest.mark.parametrize("n", [1, 40, 200, 999])
def test_logarithm_of_a_product_neither_overflows_nor_loses(rng, n):
    least = 0.03
    most = np.full(n, 1 / least, np.float32)
    np.testing.assert_allclose(log_of_product(jnp.asarray(most), least), n * -np.log(least), 1e-5)
    factors = 1 / rng.uniform(least, 1, size=(4, n)).astype(np.float32)
    found = log_of_product(jnp.asarray(factors), least)
    np.testing.assert_allclose(found, np.log(factors.astype(float)).sum(axis=-1), rtol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 7, 24])
def test_logarithms_of_rows_neither_overflow_nor_lose(rng, n):
    factors = np.exp(rng.uniform(0, np.log(MOST_OF_TWO), size=(3, n, 5))).astype(np.float32)
    factors[0] = MOST_OF_TWO
    found = log_of_rows(jnp.asarray(factors))
    np.testing.assert_allclose(found, np.log(factors.astype(float)).sum(axis=-2), rtol=1e-5)


def test_radius_and_turn(rng):
    x, y = rng.normal(size=(2, 50))
    np.testing.assert_allclose(radius(jnp.asarray(x), jnp.asarray(y)), np.hypot(x, y), rtol=1e-6)
    g, matrix = rng.normal(size=(30, 3)), rng.normal(size=(3, 3))
    np.testing.assert_allclose(
        turned(jnp.asarray(g), jnp.asarray(matrix)), g @ matrix, rtol=1e-4, atol=1e-5
    )
