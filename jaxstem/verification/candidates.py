# SPDX-License-Identifier: GPL-3.0-or-later
"""Where candidates come from: the modes of the network's distribution over an orientation grid.

A pattern looks nearly the same from pseudo-symmetric orientations: the crystal turned by 180° about
the beam, or about a low-index zone axis near the beam. The distribution has a mode at each of them,
as a rule; a thorough search (tables with siblings) adds them in any case. What depends on the
crystal alone is tabulated once for each cell of its grid (`CandidateTables`, one for each phase).
Every phase proposes candidates of its own; from there on a candidate is an orientation with the
reflections worth simulating near it, whatever its phase.

Shapes: `C` candidates, `M` reflections that a cell can excite.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from jaxstem.diffraction.geometry import Reflectors, excitation_error
from jaxstem.diffraction.two_beam import expected_intensity
from jaxstem.orientation import rotations
from jaxstem.orientation.space import nearest_cells
from jaxstem.runtime.reductions import turned
from jaxstem.verification.ranking import BEHIND, Candidates, Forward

_FAR = 1e3
"""Where [1/Å] the reflections lie that fill up short lists: nothing excites them."""

SIBLING_REACH = 15.0
"""How far [degrees] a zone axis may lie from the beam for a turn about it to go unnoticed."""

GROUPS = 256
"""Into which the cells of a grid are dealt to find the likeliest."""

_VISIBLE_REACH = 3.0
"""How far [degrees] a candidate may be tilted from its cell and keep the cell's reflections."""


class CandidateTables(NamedTuple):
    """A phase's grid: what each cell can excite, its neighbours and pseudo-symmetric siblings.

    cells: orientations of the grid; reflections: all of the crystal; visible: indices of those
    worth simulating near the cell; neighbours: nearest cells, the cell itself first; offsets:
    rotation vector [rad] from the cell to each neighbour, in the lab frame of the cell
    (R_neighbour ~ R_cell exp(v)); sibling: cells nearest to the cell turned about low-index zone
    axes (its own index where there is none), with `sibling_turn`, the matrix T that takes an
    orientation near the cell to T @ R near the sibling cell; None where siblings are left out.
    """

    cells: Float[Array, "n_cells 3 3"]
    reflections: Forward
    visible: Int[Array, "n_cells M"]
    neighbours: Int[Array, "n_cells n_neighbours"]
    offsets: Float[Array, "n_cells n_neighbours 3"]
    sibling: Int[Array, "n_cells S"] | None
    sibling_turn: Float[Array, "n_cells S 3 3"] | None


def likeliest(
    log_probability: Float[Array, " n_cells"], n: int
) -> tuple[Float[Array, " n"], Int[Array, " n"]]:
    """The `n` likeliest cells, their log-probability and their indices, in order.

    Of many cells the two likeliest of each of `GROUPS` groups are compared, half the work on a
    processor. Cells next to each other lie in different groups; of 40 cells 0.1 is missed, as a
    rule, which is third in its group.
    """
    size = -(-len(log_probability) // GROUPS)
    if len(log_probability) < 8 * GROUPS or n > GROUPS // 4:
        return tuple(jax.lax.top_k(log_probability, n))
    short = size * GROUPS - len(log_probability)
    rows = jnp.pad(log_probability, (0, short), constant_values=-jnp.inf).reshape(size, GROUPS)
    first = jnp.argmax(rows, axis=0)
    others = jnp.where(jnp.arange(size)[:, None] == first, -jnp.inf, rows)
    cells = jnp.stack([first, jnp.argmax(others, axis=0)]) * GROUPS + jnp.arange(GROUPS)
    value, place = jax.lax.top_k(jnp.concatenate([rows.max(axis=0), others.max(axis=0)]), n)
    return value, cells.ravel()[place]


def modes(
    log_probability: Float[Array, " n_cells"],
    tables: CandidateTables,
    n_modes: int,
    n_cells: int = 40,
) -> tuple[Int[Array, " C"], Float[Array, "C 3 3"], Float[Array, " C"]]:
    """The peaks of a phase's distribution: cell, orientation between cells, log of the mass around.

    Of the `n_cells` likeliest cells those without a likelier neighbour come first; the orientation
    is the posterior mean over the neighbourhood.
    """
    value, index = likeliest(log_probability, min(n_cells, len(log_probability)))
    around = log_probability[tables.neighbours[index]]
    is_peak = jnp.all(around[:, :1] >= around, axis=1)
    _, order = jax.lax.top_k(jnp.where(is_peak, value, value - BEHIND), min(n_modes, len(value)))
    cell, around = index[order], around[order]
    share = jax.nn.softmax(around, axis=-1)
    shift = jnp.einsum("cn,cnv->cv", share, tables.offsets[cell])
    orientation = tables.cells[cell] @ rotations.rotation_vector_to_matrix(shift)
    return cell, orientation, jax.nn.logsumexp(around, axis=-1)


def with_siblings(
    cell: Int[Array, " C"],
    orientation: Float[Array, "C 3 3"],
    prior: Float[Array, " C"],
    tables: CandidateTables,
) -> tuple[Int[Array, " C4"], Float[Array, "C4 3 3"], Float[Array, " C4"]]:
    """Candidates followed by their turns about near zone axes, then all turned about the beam."""
    turned = jnp.einsum("csij,cjk->scik", tables.sibling_turn[cell], orientation)
    all_cells = jnp.concatenate([cell, tables.sibling[cell].T.reshape(-1)])
    all_orientations = jnp.concatenate([orientation, turned.reshape(-1, 3, 3)])
    about_beam = all_orientations @ jnp.asarray(rotations.HALF_TURN_ABOUT_BEAM, orientation.dtype)
    copies = 2 * (1 + tables.sibling.shape[1])
    return (
        jnp.concatenate([all_cells, all_cells]),
        jnp.concatenate([all_orientations, about_beam]),
        jnp.tile(prior, copies),
    )


def padded(forwards: Sequence[Forward]) -> list[Forward]:
    """Lists of reflections along the last axis but one of g, filled up to one length.

    The filling has no strength and lies so far away that nothing excites it.
    """
    longest = max(f.g.shape[-2] for f in forwards)

    def fill(f: Forward) -> Forward:
        ahead = [(0, 0)] * (f.g.ndim - 2)
        short = (0, longest - f.g.shape[-2])
        return Forward(
            jnp.pad(f.g, [*ahead, short, (0, 0)], constant_values=_FAR),
            jnp.pad(f.inverse_extinction, [*ahead, short]),
        )

    return [fill(f) for f in forwards]


def propose(
    log_probability: Float[Array, " n_cells"],
    phases: Sequence[CandidateTables],
    n_modes: int,
) -> Candidates:
    """The modes of each phase's part of the distribution, phase after phase, with their siblings
    where the tables have them.
    """
    found, forwards, start = [], [], 0
    for phase, tables in enumerate(phases):
        part = log_probability[start : start + len(tables.cells)]
        start += len(tables.cells)
        cell, orientation, prior = modes(part, tables, n_modes)
        if tables.sibling is not None:
            cell, orientation, prior = with_siblings(cell, orientation, prior, tables)
        found.append((orientation, jnp.full(len(cell), phase), prior))
        near = tables.visible[cell]
        forwards.append(jax.tree.map(lambda x, near=near: x[near], tables.reflections))
    join = lambda *x: jnp.concatenate(x)  # noqa: E731
    return Candidates(*jax.tree.map(join, *found), jax.tree.map(join, *padded(forwards)))


def near_reflections(
    orientation: Float[Array, "3 3"], reflections: Forward, wavelength: float, n: int = 64
) -> Forward:
    """Of all `reflections` of a crystal the `n` that this orientation is likeliest to excite, as a
    cell's list has them; `wavelength` in Å.
    """
    s = excitation_error(turned(reflections.g, orientation), wavelength)
    expected = expected_intensity(s, reflections.inverse_extinction, 0.003)
    best = jax.lax.top_k(expected, min(n, len(s)))[1]
    return jax.tree.map(lambda x: x[best], reflections)


def within_reach(tables: CandidateTables, reach: Float[ArrayLike, ""]) -> CandidateTables:
    """The same with the reflections within `reach` [1/Å] first in each cell's list, so that a
    search that looks at the first of them looks at those that a scan can list.
    """
    beyond = jnp.linalg.norm(tables.reflections.g, axis=1) > reach
    order = jnp.argsort(beyond[tables.visible], axis=1, stable=True)
    return tables._replace(visible=jnp.take_along_axis(tables.visible, order, axis=1))


def candidate_tables(
    grid: Float[np.ndarray, "n_cells 4"],
    operations: Float[np.ndarray, "n_operations 3 3"],
    reflectors: Reflectors,
    wavelength: float,
    lattice: Float[np.ndarray, "3 3"],
    n_visible: int = 96,
    n_neighbours: int = 15,
    n_siblings: int = 2,
) -> CandidateTables:
    """Tabulate a phase's grid (quaternions); set-up work, a few seconds for thousands of cells.

    Without siblings if `n_siblings` is 0. `lattice` holds a, b, c in Å as rows (for the low-index
    zone axes); `wavelength` in Å.
    """
    grid = jnp.asarray(grid, jnp.float32)
    operations = jnp.asarray(operations, jnp.float32)
    cells = rotations.quaternion_to_matrix(grid)
    op_q = rotations.matrix_to_quaternion(operations)
    n_visible = min(n_visible, len(reflectors.g))

    @jax.jit
    def visible_of(cell):
        s = excitation_error(reflectors.g @ cell, wavelength)
        nearby = np.deg2rad(_VISIBLE_REACH) * jnp.linalg.norm(reflectors.g, axis=1)
        nearest = jnp.maximum(jnp.abs(s) - nearby, 0.0)
        intensity = expected_intensity(nearest, reflectors.inverse_extinction, 0.003)
        return jax.lax.top_k(intensity, n_visible)[1]

    neighbours, operation = nearest_cells(grid, grid, op_q, n_neighbours)
    near = operations[operation] @ cells[neighbours]
    offsets = rotations.matrix_to_rotation_vector(jnp.swapaxes(cells, -1, -2)[:, None] @ near)

    visible = jax.lax.map(visible_of, cells, batch_size=256)
    found = (Forward(reflectors.g, reflectors.inverse_extinction), visible, jnp.asarray(neighbours))
    turns, axes = zone_axis_turns(lattice, np.asarray(operations))
    n_siblings = min(n_siblings, len(axes))
    if n_siblings == 0:
        return CandidateTables(cells, *found, offsets, None, None)
    cosine, axis = jax.lax.top_k(jnp.abs(cells[:, :, 2] @ axes.T), n_siblings)
    is_near = cosine > np.cos(np.deg2rad(SIBLING_REACH))
    turned = turns[axis] @ cells[:, None]
    index, operation = nearest_cells(
        rotations.matrix_to_quaternion(turned).reshape(-1, 4), grid, op_q, 1
    )
    shape = is_near.shape
    back = jnp.swapaxes(operations, -1, -2)[operation.reshape(shape)]
    sibling = jnp.where(is_near, index.reshape(shape), jnp.arange(len(grid))[:, None])
    sibling_turn = jnp.where(is_near[..., None, None], back @ turns[axis], jnp.eye(3))
    return CandidateTables(cells, *found, offsets, sibling, sibling_turn)


def zone_axis_turns(
    lattice: Float[np.ndarray, "3 3"],
    operations: Float[np.ndarray, "n_operations 3 3"],
    largest_index: int = 2,
) -> tuple[Float[Array, "n 3 3"], Float[Array, "n 3"]]:
    """Turns by 180° about the zone axes [uvw] of indices up to `largest_index`, and those axes.

    Turns that are symmetry operations of the crystal are left out, for they change nothing.
    `lattice` in Å; axes are unit vectors in crystal Cartesian coordinates.
    """
    span = np.arange(-largest_index, largest_index + 1)
    uvw = np.stack(np.meshgrid(span, span, span, indexing="ij"), -1).reshape(-1, 3)
    uvw = uvw[np.gcd.reduce(uvw, axis=1) == 1]
    first = np.array([row[np.flatnonzero(row)[0]] > 0 for row in uvw])
    axes = uvw[first] @ lattice
    axes = axes / np.linalg.norm(axes, axis=1, keepdims=True)
    turns = 2 * axes[:, :, None] * axes[:, None, :] - np.eye(3)
    difference = np.abs(turns[:, None] - operations[None]).max(axis=(2, 3)).min(axis=1)
    keep = difference > 1e-3
    return jnp.asarray(turns[keep], jnp.float32), jnp.asarray(axes[keep], jnp.float32)
