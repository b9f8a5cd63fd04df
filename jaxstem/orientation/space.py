# SPDX-License-Identifier: GPL-3.0-or-later
"""Phases and their orientations modulo symmetry as one space with a grid over it.

A distribution over orientations is a number for each cell of a near-uniform grid on the quotient of
SO(3) by the crystal's proper operations. The quotient has no boundary: a cell at the edge of the
fundamental zone has neighbours at the opposite edge, which `nearest_cells` finds through the
operations. Several phases have their cells side by side, phase 0's first, and one more outcome
comes last: no crystal. Cells are unit quaternions, scalar first; angles in radians.

Shapes: `P` phases, `n_cells` of all phases together, `n_operations` of the most symmetric phase.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from jaxstem.orientation import rotations

_LABEL_NEIGHBOURS = 64
"""Cells that can share a label: those within about 2.5 spacings."""


class Label(NamedTuple):
    """What a pattern truly shows.

    phase: index of its crystal, or the number of phases where there is no crystal; orientation: of
    the crystal, without meaning where there is none.
    """

    phase: Int[Array, "..."]
    orientation: Float[Array, "... 3 3"]


class OrientationSpace(NamedTuple):
    """Orientations modulo symmetry, of one phase or several, and the grid over them.

    operations: proper operations of each phase as matrices, repeated to one number for all;
    operation_quaternions: the same as quaternions; cells: grid orientations as quaternions (empty
    for a head without grid); phase: of each cell; neighbours: the nearest cells of each cell,
    itself first; label_width: width [rad] of the Gaussian by which a true orientation is shared
    among the cells near it, for each phase.
    """

    operations: Float[Array, "P n_operations 3 3"]
    operation_quaternions: Float[Array, "P n_operations 4"]
    cells: Float[Array, "n_cells 4"]
    phase: Int[Array, " n_cells"]
    neighbours: Int[Array, "n_cells n_near"]
    label_width: Float[Array, " P"]

    @property
    def n_phases(self) -> int:
        """P, which as the phase of a label means no crystal."""
        return len(self.operations)


def orientation_space(operations, cells, label_width: float) -> OrientationSpace:
    """One phase's space: `operations` (n, 3, 3), grid quaternions `cells` (m, 4), width in rad."""
    operations = jnp.asarray(operations, jnp.float32)
    operation_quaternions = rotations.matrix_to_quaternion(operations)
    cells = jnp.asarray(cells, jnp.float32).reshape(-1, 4)
    n_near = min(_LABEL_NEIGHBOURS, len(cells))
    neighbours = (
        nearest_cells(cells, cells, operation_quaternions, n_near)[0]
        if n_near
        else np.zeros((0, 0), int)
    )
    return OrientationSpace(
        operations[None],
        operation_quaternions[None],
        cells,
        jnp.zeros(len(cells), jnp.int32),
        jnp.asarray(neighbours, jnp.int32),
        jnp.asarray([label_width], jnp.float32),
    )


def joint_space(spaces: Sequence[OrientationSpace]) -> OrientationSpace:
    """The space of several phases from that of each.

    Operations are repeated cyclically up to the longest list, which changes no minimum over them.
    """
    n_operations = max(space.operations.shape[1] for space in spaces)
    n_near = min(space.neighbours.shape[1] for space in spaces)
    first = np.cumsum([0, *(len(space.cells) for space in spaces)])
    join = lambda arrays: jnp.concatenate(list(arrays))  # noqa: E731
    repeat = lambda x: jnp.resize(x[0], (1, n_operations, *x.shape[2:]))  # noqa: E731
    return OrientationSpace(
        join(repeat(space.operations) for space in spaces),
        join(repeat(space.operation_quaternions) for space in spaces),
        join(space.cells for space in spaces),
        join(space.phase + i for i, space in enumerate(spaces)),
        join(
            space.neighbours[:, :n_near] + start
            for start, space in zip(first, spaces, strict=False)
        ),
        join(space.label_width for space in spaces),
    )


def half_angle_cosine(
    q: Float[Array, " 4"], cells: Float[Array, "m 4"], operation_quaternions: Float[Array, "n 4"]
) -> Float[Array, " m"]:
    """Cosine of half the misorientation between q and each cell: max over O of |q_cell · O q|.

    The quaternion form of the disorientation (Morawiec, Orientations and Rotations, 2004, ch. 3).
    """
    equivalents = rotations.quaternion_multiply(operation_quaternions, q)
    return jnp.abs(equivalents @ cells.T).max(axis=0)


def nearest_cells(
    q: Float[ArrayLike, "b 4"],
    cells: Float[ArrayLike, "m 4"],
    operation_quaternions: Float[ArrayLike, "n 4"],
    n_near: int,
) -> tuple[Int[np.ndarray, "b n_near"], Int[np.ndarray, "b n_near"]]:
    """The `n_near` cells nearest to each q, nearest first, and for each the operation O that
    brings it there: O @ R_cell is the equivalent of the cell next to q.

    Set-up work on the host, by a tree over all equivalents of all cells: the chord between unit
    quaternions grows with the angle between rotations, q and -q being the same rotation.
    """
    from scipy.spatial import cKDTree  # as in grids.so3_grid

    cells, operations = np.asarray(cells, float), np.asarray(operation_quaternions, float)
    equivalents = np.asarray(rotations.quaternion_multiply(operations[:, None], cells[None]))
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
    label: Label, space: OrientationSpace
) -> tuple[Int[Array, " n_near"], Float[Array, " n_near"]]:
    """A true orientation shared among the cells near it: indices of outcomes, weights of sum 1.

    Weights are exp(-θ² / 2w²) with θ the misorientation from the label. Only the neighbourhood of
    the cell nearest in the fundamental zone is looked at, beyond which weights vanish. No crystal
    is the outcome after the last cell.
    """
    empty = label.phase >= space.n_phases
    phase = jnp.minimum(label.phase, space.n_phases - 1)
    operations = space.operation_quaternions[phase]
    q = rotations.matrix_to_quaternion(label.orientation)
    equivalents = rotations.quaternion_multiply(operations, q)
    reduced = equivalents[jnp.argmax(jnp.abs(equivalents[:, 0]))]
    closeness = jnp.where(space.phase == phase, jnp.abs(space.cells @ reduced), -1.0)
    near = space.neighbours[jnp.argmax(closeness)]
    cosine = half_angle_cosine(q, space.cells[near], operations)
    angle = 2.0 * jnp.arccos(jnp.minimum(cosine, 1.0))
    weight = jax.nn.softmax(-0.5 * (angle / space.label_width[phase]) ** 2)
    first = jnp.arange(len(near)) == 0
    return jnp.where(empty, len(space.cells), near), jnp.where(empty, first, weight)
