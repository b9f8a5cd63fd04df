# SPDX-License-Identifier: GPL-3.0-or-later
"""A function of one row for many rows, a few of them at a time, and only where it is needed.

All rows at once suit an accelerator. A processor's cache holds a few, and what a processor leaves
out it has gained. Either way a row's result depends on that row alone, whatever is computed beside
it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float


def map_rows(f: Callable[[Any], Any], rows: Any, at_once: int | None) -> Any:
    """`f` of each row (the leading axis of each array in `rows`), `at_once` rows at a time; of all
    at once if it is None.
    """
    return jax.vmap(f)(rows) if at_once is None else jax.lax.map(f, rows, batch_size=at_once)


def in_lots(f: Callable[[Any], Any], rows: Any, lot: int) -> Any:
    """`f` of many rows, always of so many at once, the last lot filled up with its last row.

    For an `f` that takes rows together, as matrix products do: how a processor sums depends on how
    many there are, so that only a fixed number makes a row's result independent of the others.
    """
    n = len(jax.tree.leaves(rows)[0])
    spare = -n % lot
    fill = lambda x: jnp.concatenate([x, jnp.repeat(x[-1:], spare, axis=0)])  # noqa: E731
    filled = jax.tree.map(fill, rows) if spare else rows
    lots = jax.tree.map(lambda x: x.reshape(-1, lot, *x.shape[1:]), filled)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:n], jax.lax.map(f, lots))


def map_rows_where(
    f: Callable[[Any], Any],
    rows: Any,
    needed: Bool[Array, " n"],
    otherwise: Any,
    at_once: int | None,
) -> Any:
    """`f` of the rows that need it and `otherwise`, which has the shapes of the result, elsewhere.

    With `at_once` the rows that do not need it are left out of the work: as many turns are taken as
    the others fill. Without, all are computed.
    """
    n, fits = len(needed), lambda x: needed.reshape(-1, *[1] * (x.ndim - 1))
    if at_once is None:
        found = jax.vmap(f)(rows)
        return jax.tree.map(lambda a, b: jnp.where(fits(a), a, b), found, otherwise)
    in_order = jnp.nonzero(needed, size=n, fill_value=0)[0]
    in_order = jnp.pad(in_order, (0, -n % at_once))
    given, one_of = packed(rows)
    kept, result_of = packed(otherwise)

    def turn(i, done):
        these = jax.lax.dynamic_slice_in_dim(in_order, i * at_once, at_once)
        found, _ = packed(jax.vmap(lambda row: f(one_of(row)))(given[these]))
        return jax.lax.dynamic_update_slice_in_dim(done, found, i * at_once, 0)

    # one after the other and put back in the end, for a processor scatters slowly
    room = jnp.zeros((len(in_order), kept.shape[1]), kept.dtype)
    done = jax.lax.fori_loop(0, (needed.sum() + at_once - 1) // at_once, turn, room)
    place = jnp.cumsum(needed) - 1
    return jax.vmap(result_of)(jnp.where(needed[:, None], done[place], kept))


def packed(rows: Any) -> tuple[Float[Array, "n size"], Callable[[Float[Array, " size"]], Any]]:
    """All of a row in one array of numbers, and what makes one row of it again: a few large arrays
    are moved faster than many small ones. Whole numbers must be below 2^24.
    """
    one_of = ravel_pytree(jax.tree.map(lambda x: x[0], rows))[1]
    return jax.vmap(lambda row: ravel_pytree(row)[0])(rows), one_of
