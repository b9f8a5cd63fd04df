# SPDX-License-Identifier: GPL-3.0-or-later
"""Reductions along the last axis that a processor does many at a time.

XLA on CPUs computes what is reduced together with its reduction, one number after the other where
the last axis is reduced, and in vector registers where the last axis stays: three to four times as
fast. So the last axis is folded, its rows are reduced first, and the few lanes that remain last.
What takes part must not branch: a `hypot` among it, which looks for infinities, makes all of it
eight times as slow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

LANES = 8
"""Numbers of single precision in a vector register."""

ROWS = 4
"""Rows that XLA adds up without a loop, which would not be vectorised."""

MOST_OF_TWO = 1e19
"""Numbers whose product is one of single precision, still."""


def filled(
    x: Shaped[Array, "... M"], lanes: int = LANES, fill: float = 0
) -> Shaped[Array, "... N"]:
    """The last axis filled up to a multiple of so many lanes."""
    spare = [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % lanes)]
    return jnp.pad(x, spare, constant_values=fill)


def fold(
    x: Float[Array, "... M"], lanes: int = LANES, fill: float = 0.0
) -> Float[Array, "... rows lanes"]:
    """The last axis in rows of so many lanes, the last row filled up."""
    return filled(x, lanes, fill).reshape(*x.shape[:-1], -1, lanes)


def totals(*parts: Float[Array, "... M"]) -> list[Float[Array, "..."]]:
    """The sums over the last axis of arrays of one shape, in one pass."""
    return [row.sum(axis=-1) for row in _add_rows(tuple(map(fold, parts)))]


def totals_of_rows(*parts: Float[Array, "... M lanes"]) -> list[Float[Array, "... lanes"]]:
    """The sums over the last axis but one of arrays of one shape, in one pass."""
    few = _add_rows([_in_rows(x, 0.0) for x in parts])
    return [_joined(rows, jnp.add) for rows in few]


def largest_of_rows(x: Float[Array, "... M lanes"]) -> Float[Array, "... lanes"]:
    """The largest along the last axis but one."""
    rows = _in_rows(x, -jnp.inf)
    # a maximum that XLA does not know for one, see `_add_rows`
    larger = lambda a, b: jnp.where(a > b, a, b)  # noqa: E731
    least = jnp.full((), -jnp.inf, x.dtype)
    return _joined(jax.lax.reduce(rows, least, larger, (rows.ndim - 2,)), jnp.maximum)


def log_of_rows(x: Float[Array, "... M lanes"], at_once: int = 2) -> Float[Array, "... lanes"]:
    """The sum over the last axis but one of the logarithms of numbers whose product single
    precision holds, of so many of them at once: two up to `MOST_OF_TWO`.
    """
    products = _in_rows(x, 1.0, at_once).prod(axis=-2)
    return _joined(jnp.log(products), jnp.add)


def _joined(
    rows: Float[Array, "... n lanes"], join: Callable[[Array, Array], Array]
) -> Float[Array, "... lanes"]:
    """A few rows joined two by two, written out: a sum over so few is more work to begin than to do
    for the library to which XLA would give it.
    """
    parts = [rows[..., i, :] for i in range(rows.shape[-2])]
    while len(parts) > 1:
        rest = parts[-1:] if len(parts) % 2 else []
        parts = [join(a, b) for a, b in zip(parts[::2], parts[1::2], strict=False)] + rest
    return parts[0]


def _in_rows(
    x: Float[Array, "... M lanes"], fill: float, rows: int = ROWS
) -> Float[Array, "... n rows lanes"]:
    spare = [(0, 0)] * (x.ndim - 2) + [(0, -x.shape[-2] % rows), (0, 0)]
    x = jnp.pad(x, spare, constant_values=fill)
    return x.reshape(*x.shape[:-2], -1, rows, x.shape[-1])


def _add_rows(parts: Sequence[Array]) -> list[Array]:
    """Sums over the last axis but one, which XLA does not know for sums: it would give them to a
    library that first writes down what is summed.
    """
    zeros = tuple(jnp.zeros((), x.dtype) for x in (*parts, parts[0]))
    add = lambda a, b: tuple(map(jnp.add, a, b))  # noqa: E731
    rows = jax.lax.reduce((*parts, jnp.zeros_like(parts[0])), zeros, add, (parts[0].ndim - 2,))
    return list(rows[:-1])


def radius(x: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."]:
    """The root of x² + y², for numbers whose squares are neither too large nor too small."""
    return jnp.sqrt(x**2 + y**2)


def turned(g: Float[Array, "M 3"], orientation: Float[Array, "3 3"]) -> Float[Array, "M 3"]:
    """g @ orientation, as part of what is done with it and not as a matrix product, which for many
    small matrices takes longer than all that.
    """
    x, y, z = g[:, 0], g[:, 1], g[:, 2]
    return jnp.stack([x * a + y * b + z * c for a, b, c in orientation.T], axis=-1)
