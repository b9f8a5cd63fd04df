# SPDX-License-Identifier: GPL-3.0-or-later
"""Orientations modulo symmetry as a space with a grid over it.

A distribution over orientations is a number for each cell of a near-uniform grid on the quotient of
SO(3) by the crystal's proper operations. The quotient has no boundary: a cell at the edge of the
fundamental zone has neighbours at the opposite edge, which `nearest_cells` finds through the
operations. Cells are unit quaternions, scalar first; angles in radians.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy.spatial import cKDTree

from jaxstem import so3

LABEL_NEIGHBOURS = 64
"""Cells that can share a label: those within about 2.5 spacings."""


class OrientationSpace(NamedTuple):
    """Orientations modulo symmetry, and the grid over them.

    operations: proper operations as matrices; operation_quaternions: the same as quaternions;
    cells: grid orientations as quaternions (empty for a head without grid); neighbours: the nearest
    cells of each cell, itself first; label_width: width [rad] of the Gaussian by which a true
    orientation is shared among the cells near it.
    """

    operations: Float[Array, "n_operations 3 3"]
    operation_quaternions: Float[Array, "n_operations 4"]
    cells: Float[Array, "n_cells 4"]
    neighbours: Int[Array, "n_cells n_near"]
    label_width: Float[Array, ""]


def orientation_space(operations, cells, label_width: float) -> OrientationSpace:
    """The space of `operations` (n, 3, 3) with grid quaternions `cells` (m, 4); width in rad."""
    operations = jnp.asarray(operations, jnp.float32)
    operation_quaternions = so3.matrix_to_quaternion(operations)
    cells = jnp.asarray(cells, jnp.float32).reshape(-1, 4)
    n_near = min(LABEL_NEIGHBOURS, len(cells))
    neighbours = (
        nearest_cells(cells, cells, operation_quaternions, n_near)[0]
        if n_near
        else np.zeros((0, 0), int)
    )
    return OrientationSpace(
        operations,
        operation_quaternions,
        cells,
        jnp.asarray(neighbours, jnp.int32),
        jnp.asarray(label_width, jnp.float32),
    )


def half_angle_cosine(
    q: Float[Array, " 4"], cells: Float[Array, "m 4"], operation_quaternions: Float[Array, "n 4"]
) -> Float[Array, " m"]:
    """Cosine of half the misorientation between q and each cell: max over O of |q_cell · O q|.

    The quaternion form of the disorientation (Morawiec, Orientations and Rotations, 2004, ch. 3).
    """
    equivalents = so3.quaternion_multiply(operation_quaternions, q)
    return jnp.abs(equivalents @ cells.T).max(axis=0)


def nearest_cells(
    q: Float[np.ndarray, "b 4"],
    cells: Float[np.ndarray, "m 4"],
    operation_quaternions: Float[np.ndarray, "n 4"],
    n_near: int,
) -> tuple[Int[np.ndarray, "b n_near"], Int[np.ndarray, "b n_near"]]:
    """The `n_near` cells nearest to each q, nearest first, and for each the operation O that
    brings it there: O @ R_cell is the equivalent of the cell next to q.

    Set-up work on the host, by a tree over all equivalents of all cells: the chord between unit
    quaternions grows with the angle between rotations, q and -q being the same rotation.
    """
    cells, operations = np.asarray(cells, float), np.asarray(operation_quaternions, float)
    equivalents = np.asarray(so3.quaternion_multiply(operations[:, None], cells[None]))
    points = np.concatenate([equivalents, -equivalents]).reshape(-1, 4)
    # on a coarse grid a cell can be met through two operations; only its nearer equivalent counts
    n_asked = min(2 * n_near, len(points))
    _, found = cKDTree(points).query(np.asarray(q, float), k=np.arange(1, n_asked + 1))
    operation, cell = np.divmod(found % (len(points) // 2), len(cells))
    earlier = np.tril(np.ones((n_asked, n_asked), bool), -1)
    again = np.concatenate(
        [
            ((part[:, :, None] == part[:, None, :]) & earlier).any(axis=2)
            for part in np.array_split(cell, max(1, len(cell) // 512))
        ]
    )
    first = np.argsort(again, axis=1, kind="stable")[:, :n_near]
    return np.take_along_axis(cell, first, 1), np.take_along_axis(operation, first, 1)


def soft_labels(
    label: Float[Array, "3 3"], space: OrientationSpace
) -> tuple[Int[Array, " n_near"], Float[Array, " n_near"]]:
    """A true orientation shared among the cells near it: their indices and weights, of sum 1.

    Weights are exp(-θ² / 2w²) with θ the misorientation from the label. Only the neighbourhood of
    the cell nearest in the fundamental zone is looked at, beyond which weights vanish.
    """
    q = so3.matrix_to_quaternion(label)
    equivalents = so3.quaternion_multiply(space.operation_quaternions, q)
    reduced = equivalents[jnp.argmax(jnp.abs(equivalents[:, 0]))]
    near = space.neighbours[jnp.argmax(jnp.abs(space.cells @ reduced))]
    cosine = half_angle_cosine(q, space.cells[near], space.operation_quaternions)
    angle = 2.0 * jnp.arccos(jnp.minimum(cosine, 1.0))
    return near, jax.nn.softmax(-0.5 * (angle / space.label_width) ** 2)
