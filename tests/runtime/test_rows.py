# SPDX-License-Identifier: GPL-3.0-or-later
"""Rows a few at a time, and only where they are needed, give what all at once give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstem.runtime.rows import map_rows, map_rows_where

pytestmark = pytest.mark.usefixtures("quick_compile")


def make_rows(rng, n):
    """Rows of several arrays."""
    return {
        "x": jnp.asarray(rng.normal(size=(n, 3)), jnp.float32),
        "k": jnp.asarray(rng.integers(0, 1 << 23, n), jnp.int32),
        "flag": jnp.asarray(rng.random((n, 2)) < 0.5),
    }


def of_row(row):
    return row["x"] ** 2, row["k"] - 1, ~row["flag"]


@pytest.mark.parametrize("at_once", [None, 1, 4, 7, 50])
def test_turns_are_all_rows_at_once(at_once, rng):
    n = int(rng.integers(1, 20))
    rows = make_rows(rng, n)
    otherwise = rows["x"], rows["k"], rows["flag"]

    @jax.jit
    def both(rows, needed, otherwise):
        return map_rows(of_row, rows, at_once), map_rows_where(
            of_row, rows, needed, otherwise, at_once
        )

    everywhere = jax.vmap(of_row)(rows)
    for share in (0.0, 0.3, 1.0):
        needed = rng.random(n) < share
        for turned, found, whole, other in zip(
            *both(rows, needed, otherwise), everywhere, otherwise, strict=True
        ):
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
