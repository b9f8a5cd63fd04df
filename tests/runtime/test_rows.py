# SPDX-License-Identifier: GPL-3.0-or-later
"""Rows a few at a time, and only where they are needed, give what all at once give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstem.runtime.rows import map_rows, map_rows_where


def rows_and_results(rng, n):
    """Rows of several arrays, a function of one of them, and what stands where it is not needed."""
    rows = {
        "x": jnp.asarray(rng.normal(size=(n, 3)), jnp.float32),
        "k": jnp.asarray(rng.integers(0, 1 << 23, n), jnp.int32),
        "flag": jnp.asarray(rng.random((n, 2)) < 0.5),
    }

    def f(row):
        return row["x"] ** 2, row["k"] - 1, ~row["flag"]

    otherwise = rows["x"], rows["k"], rows["flag"]
    return rows, f, otherwise


@pytest.mark.parametrize("at_once", [None, 1, 4, 7, 50])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_turns_are_all_rows_at_once(at_once, share, rng):
    n = int(rng.integers(1, 20))
    rows, f, otherwise = rows_and_results(rng, n)
    needed = jnp.asarray(rng.random(n) < share)
    everywhere = jax.vmap(f)(rows)
    chosen = map_rows_where(f, rows, needed, otherwise, at_once)
    turns = map_rows(f, rows, at_once)
    for found, whole, other, turned in zip(chosen, everywhere, otherwise, turns, strict=True):
        assert found.dtype == whole.dtype
        np.testing.assert_array_equal(turned, whole)
        for i in range(n):
            np.testing.assert_array_equal(found[i], whole[i] if needed[i] else other[i])


def test_what_is_not_needed_is_not_computed():
    """As many turns as the needed rows fill, whatever lies between them."""
    calls = []

    def f(row):
        jax.debug.callback(lambda: calls.append(1))
        return row + 1.0

    needed = jnp.zeros(40, bool).at[jnp.array([3, 17, 18, 30, 39])].set(True)
    found = jax.jit(lambda x: map_rows_where(f, x, needed, x, 2))(jnp.zeros(40))
    jax.effects_barrier()
    np.testing.assert_array_equal(found, needed)
    assert len(calls) == 3  # turns of two rows each
