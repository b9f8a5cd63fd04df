# SPDX-License-Identifier: GPL-3.0-or-later
"""Losses between the network's output for a pattern and the pattern's true orientation.

A loss is a pure function of one pattern, `(output, label, space) -> scalar`: `output` is what the
head gave (nine numbers, or a logit for each cell of the orientation grid), `label` the true
orientation matrix, `space` the symmetry and the grid. `batched` vmaps it. To add a loss, write the
function and name it in `LOSSES`, with the head that it wants.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxstem import so3


class OrientationSpace(NamedTuple):
    """Orientations modulo symmetry, and the grid over them.

    operations: proper operations as matrices; operation_quaternions: the same as quaternions;
    cells: grid orientations as quaternions (empty for a head without grid); label_width: width
    [rad] of the Gaussian by which a true orientation is shared among the cells near it.
    """

    operations: Float[Array, "n_operations 3 3"]
    operation_quaternions: Float[Array, "n_operations 4"]
    cells: Float[Array, "n_cells 4"]
    label_width: Float[Array, ""]


def orientation_space(operations, grid, label_width: float) -> OrientationSpace:
    """The space of `operations` (n, 3, 3) with the cells of `grid` (m, 3, 3); width in rad."""
    operations = jnp.asarray(operations, jnp.float32)
    return OrientationSpace(
        operations,
        so3.matrix_to_quaternion(operations),
        so3.matrix_to_quaternion(jnp.asarray(grid, jnp.float32).reshape(-1, 3, 3)),
        jnp.asarray(label_width, jnp.float32),
    )


def half_angle_cosine(
    label: Float[Array, "3 3"], space: OrientationSpace
) -> Float[Array, " n_cells"]:
    """Cosine of half the misorientation of each grid cell from `label`: max |q_cell · O q_label|.

    The quaternion form of the disorientation (Morawiec, Orientations and Rotations, 2004, ch. 3).
    """
    equivalents = so3.quaternion_multiply(
        space.operation_quaternions, so3.matrix_to_quaternion(label)
    )
    return jnp.abs(equivalents @ space.cells.T).max(axis=0)


def soft_labels(label: Float[Array, "3 3"], space: OrientationSpace) -> Float[Array, " n_cells"]:
    """The true orientation shared among the cells: exp(-θ² / 2w²), normalised to sum 1."""
    cosine = half_angle_cosine(label, space)
    angle = 2.0 * jnp.arccos(jnp.minimum(cosine, 1.0))
    return jax.nn.softmax(-0.5 * (angle / space.label_width) ** 2)


def grid_cross_entropy(
    output: Float[Array, " n_cells"], label: Float[Array, "3 3"], space: OrientationSpace
) -> Float[Array, ""]:
    """Cross-entropy [nat] between the soft label and the distribution of the logits."""
    target = jax.lax.stop_gradient(soft_labels(label, space))
    return jax.nn.logsumexp(output) - target @ output


def geodesic(
    output: Float[Array, " 9"], label: Float[Array, "3 3"], space: OrientationSpace
) -> Float[Array, ""]:
    """Symmetry-minimum geodesic angle [rad] between the rotation nearest the 9 numbers and label.

    min over O of the angle of R^T O·label, by atan2 (Je et al., arXiv 2602.12420). The gradient is
    that of the operation that attains the minimum.
    """
    rotation = so3.nearest_rotation(output.reshape(3, 3))
    angle = lambda operation: so3.geodesic_angle(rotation, operation @ label)  # noqa: E731
    return jax.vmap(angle)(space.operations).min()


LossFn = Callable[[Float[Array, " n_out"], Float[Array, "3 3"], OrientationSpace], Float[Array, ""]]


class Loss(NamedTuple):
    """A loss and the head ("grid" or "matrix") whose output it takes."""

    function: LossFn
    head: str


LOSSES: dict[str, Loss] = {
    "grid_cross_entropy": Loss(grid_cross_entropy, head="grid"),
    "geodesic": Loss(geodesic, head="matrix"),
}

DEFAULT_LOSS = {"grid": "grid_cross_entropy", "matrix": "geodesic"}


def batched(name: str) -> LossFn:
    """The named loss over a batch: (B, n_out), (B, 3, 3), space → (B,). KeyError if unknown."""
    return jax.vmap(LOSSES[name].function, in_axes=(0, 0, None))
