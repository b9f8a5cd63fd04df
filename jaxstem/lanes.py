# SPDX-License-Identifier: GPL-3.0-or-later
"""Reductions along the last axis that a processor does many at a time.

XLA on CPUs computes what is reduced together with its reduction, one number after the other where
the last axis is reduced, and in vector registers where the last axis stays: three to four times as
fast. So the last axis is folded, its rows are reduced first, and the few lanes that remain last.
What takes part must not branch: a `hypot` among it, which looks for infinities, makes all of it
eight times as slow.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

LANES = 8
"""Numbers of single precision in a vector register."""


def filled(x: Array, lanes: int = LANES, fill: float = 0) -> Array:
    """The last axis filled up to a multiple of so many lanes."""
    spare = [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % lanes)]
    return jnp.pad(x, spare, constant_values=fill)


def fold(
    x: Float[Array, "... M"], lanes: int = LANES, fill: float = 0.0
) -> Float[Array, "... rows lanes"]:
    """The last axis in rows of so many lanes, the last row filled up."""
    return filled(x, lanes, fill).reshape(*x.shape[:-1], -1, lanes)


def totals(*parts: Float[Array, "... M"]) -> list[Float[Array, "..."]]:
    """The sums over the last axis of arrays of one shape, in one pass.

    Two arrays at least: XLA gives a sum of one to a library that first writes down what is summed.
    """
    zeros = tuple(jnp.zeros((), x.dtype) for x in parts)
    add = lambda a, b: tuple(map(jnp.add, a, b))  # noqa: E731
    folded = tuple(map(fold, parts))
    rows = jax.lax.reduce(folded, zeros, add, (folded[0].ndim - 2,))
    return [row.sum(axis=-1) for row in rows]


def radius(x: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."]:
    """The root of x² + y², for numbers whose squares are neither too large nor too small."""
    return jnp.sqrt(x**2 + y**2)


def turned(g: Float[Array, "M 3"], orientation: Float[Array, "3 3"]) -> Float[Array, "M 3"]:
    """g @ orientation, as part of what is done with it and not as a matrix product, which for many
    small matrices takes longer than all that.
    """
    x, y, z = g[:, 0], g[:, 1], g[:, 2]
    return jnp.stack([x * a + y * b + z * c for a, b, c in orientation.T], axis=-1)
