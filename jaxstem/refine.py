# SPDX-License-Identifier: GPL-3.0-or-later
"""Verification: candidate orientations against the forward model, polished and ranked.

The score of an orientation is a cosine between measured and re-simulated disks: each predicted disk
takes its best measured partner within a Gaussian kernel, intensities enter to a low power on both
sides (dynamical intensities are unreliable, positions are not), and both vectors are normalised.
It is differentiable in the orientation, so that a few damped Newton steps on the rotation vector
polish a candidate. A pattern looks nearly the same from pseudo-symmetric orientations: the crystal
turned by 180° about the beam, or about a low-index zone axis near the beam; those siblings of each
candidate are scored too.

What depends on the crystal alone is tabulated once for each cell of the orientation grid
(`CandidateTables`), so that nothing here loops over patterns, candidates or disks. Shapes: `K`
measured disks, `M` reflections that a cell can excite, `C` candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxstem import so3
from jaxstem.grid import nearest_cells
from jaxstem.kinematic import Disks, Reflectors, excitation_error

BEAM_TURN = np.diag([-1.0, -1.0, 1.0])
"""R @ BEAM_TURN is R with the crystal turned by 180° about the beam."""

SIBLING_REACH = 15.0
"""How far [degrees] a zone axis may lie from the beam for a turn about it to go unnoticed."""


@dataclass(frozen=True)
class ScoreConfig:
    """What counts as agreement.

    power: of the intensities, both sides; kernel: σ [1/Å] of the position kernel; coarse_kernel:
    the same for unpolished candidates; sigma: width of the shape function [1/Å].
    """

    power: float = 0.25
    kernel: float = 0.03
    coarse_kernel: float = 0.08
    sigma: float = 0.02
    n_modes: int = 16
    n_polished: int = 12
    coarse_steps: int = 2
    fine_steps: int = 4


class CandidateTables(NamedTuple):
    """What each cell of the grid can excite, its neighbours and its pseudo-symmetric siblings.

    visible: indices of the reflections worth simulating near the cell; neighbours: nearest cells,
    the cell itself first; offsets: rotation vector [rad] from the cell to each neighbour, in the
    lab frame of the cell (R_neighbour ~ R_cell exp(v)); sibling: cells nearest to the cell turned
    about low-index zone axes (its own index where there is none), with `sibling_turn`, the matrix T
    that takes an orientation near the cell to T @ R near the sibling cell.
    """

    visible: Int[Array, "n_cells M"]
    neighbours: Int[Array, "n_cells N"]
    offsets: Float[Array, "n_cells N 3"]
    sibling: Int[Array, "n_cells S"]
    sibling_turn: Float[Array, "n_cells S 3 3"]


class Target(NamedTuple):
    """One measured pattern ready for scoring: positions [1/Å], log of intensity^power / norm."""

    qx: Float[Array, " K"]
    qy: Float[Array, " K"]
    log_weight: Float[Array, " K"]


def target(disks: Disks, power: float) -> Target:
    """Prepare a pattern (..., K) for `score`; padding weighs nothing."""
    weight = jnp.where(disks.mask, jnp.maximum(disks.intensity, 1e-12) ** power, 0.0)
    norm = jnp.sqrt(jnp.sum(weight**2, axis=-1, keepdims=True))
    relative = weight / jnp.maximum(norm, 1e-12)
    return Target(disks.qx, disks.qy, jnp.where(disks.mask, jnp.log(relative + 1e-12), -1e4))


def score(
    orientation: Float[Array, "3 3"],
    pattern: Target,
    g: Float[Array, "M 3"],
    weight: Float[Array, " M"],
    wavelength: float,
    k_max: float,
    kernel: float,
    config: ScoreConfig,
) -> Float[Array, ""]:
    """Cosine, 0 … 1, between the pattern and the disks that `orientation` predicts.

    `g` [1/Å] and `weight` (|F|^2 to the power) are the reflections worth simulating. Predicted
    disks beyond `k_max` [1/Å] count for nothing, as the measured ones do.
    """
    g_lab = g @ orientation
    s = excitation_error(g_lab, wavelength)
    inside = g_lab[:, 0] ** 2 + g_lab[:, 1] ** 2 <= k_max**2
    predicted = weight * jnp.exp(-0.5 * config.power * (s / config.sigma) ** 2) * inside
    dx = g_lab[:, 0, None] - pattern.qx
    dy = g_lab[:, 1, None] - pattern.qy
    partner = jnp.max(pattern.log_weight - (dx**2 + dy**2) / (2 * kernel**2), axis=-1)
    norm = jnp.sqrt(jnp.sum(predicted**2) + 1e-12)
    return predicted @ jnp.exp(partner) / norm


def newton_step(value_at, vector, damping, largest):
    """One damped Newton step that climbs `value_at` from the rotation vector `vector` [rad].

    The Hessian is shifted to be negative definite (Levenberg–Marquardt damping with Gershgorin's
    bound) and the step is at most `largest` rad long; a step that does not climb is refused.
    Returns the new vector and damping.
    """
    gradient = jax.grad(value_at)(vector)
    hessian = jax.hessian(value_at)(vector)
    radius = jnp.sum(jnp.abs(hessian), axis=1) - jnp.abs(jnp.diagonal(hessian))
    top = jnp.max(jnp.diagonal(hessian) + radius)
    shifted = (jnp.maximum(top, 0.0) + damping) * jnp.eye(3) - hessian
    step = solve3(shifted, gradient)
    length = jnp.sqrt(step @ step + 1e-20)
    step = step * jnp.minimum(1.0, largest / length)
    better = value_at(vector + step) > value_at(vector)
    return (
        jnp.where(better, vector + step, vector),
        jnp.where(better, damping * 0.3, damping * 8.0),
    )


def solve3(a: Float[Array, "3 3"], b: Float[Array, " 3"]) -> Float[Array, " 3"]:
    """Solve a x = b for a symmetric positive 3×3 matrix by cofactors (Cramer's rule)."""
    c0, c1, c2 = jnp.cross(a[1], a[2]), jnp.cross(a[2], a[0]), jnp.cross(a[0], a[1])
    determinant = a[0] @ c0
    return (c0 * b[0] + c1 * b[1] + c2 * b[2]) / jnp.where(
        jnp.abs(determinant) < 1e-20, 1e-20, determinant
    )


def polish(
    orientation: Float[Array, "3 3"],
    score_at,
    steps: int,
    largest: float,
) -> tuple[Float[Array, "3 3"], Float[Array, ""]]:
    """Climb `score_at(R)` from `orientation`; the polished orientation and its score.

    At most `steps` Newton steps of at most `largest` rad; the score never falls.
    """
    value_at = lambda v: score_at(  # noqa: E731
        orientation @ so3.rotation_vector_to_matrix(v)
    )

    def body(carry, _):
        return newton_step(value_at, *carry, largest), None

    start = (jnp.zeros(3, orientation.dtype), jnp.asarray(1.0, orientation.dtype))
    (vector, _), _ = jax.lax.scan(body, start, None, length=steps)
    return orientation @ so3.rotation_vector_to_matrix(vector), value_at(vector)


class Ranked(NamedTuple):
    """Verified candidates of a pattern, best first: orientations and cosine scores.

    prior: log-probability that the network gave the mode from which each candidate came.
    """

    orientation: Float[Array, "C 3 3"]
    score: Float[Array, " C"]
    prior: Float[Array, " C"]


def modes(
    log_probability: Float[Array, " n_cells"],
    cells: Float[Array, "n_cells 3 3"],
    tables: CandidateTables,
    n_modes: int,
    n_cells: int = 64,
) -> tuple[Int[Array, " C"], Float[Array, "C 3 3"], Float[Array, " C"]]:
    """The peaks of a distribution: cell, orientation between the cells, log of the mass around.

    Of the `n_cells` likeliest cells those without a likelier neighbour come first; the orientation
    is the posterior mean over the neighbourhood.
    """
    value, index = jax.lax.top_k(log_probability, n_cells)
    around = log_probability[tables.neighbours[index]]
    is_peak = jnp.all(around[:, :1] >= around, axis=1)
    _, order = jax.lax.top_k(jnp.where(is_peak, value, value - 1e3), n_modes)
    cell, around = index[order], around[order]
    share = jax.nn.softmax(around, axis=-1)
    shift = jnp.einsum("cn,cnv->cv", share, tables.offsets[cell])
    orientation = cells[cell] @ so3.rotation_vector_to_matrix(shift)
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
    about_beam = all_orientations @ jnp.asarray(BEAM_TURN, orientation.dtype)
    copies = 2 * (1 + tables.sibling.shape[1])
    return (
        jnp.concatenate([all_cells, all_cells]),
        jnp.concatenate([all_orientations, about_beam]),
        jnp.tile(prior, copies),
    )


def verify(
    disks: Disks,
    log_probability: Float[Array, " n_cells"],
    cells: Float[Array, "n_cells 3 3"],
    reflectors: Reflectors,
    tables: CandidateTables,
    wavelength: float,
    k_max: float,
    config: ScoreConfig,
) -> Ranked:
    """Candidates of one pattern (disks of shape (K,)) from the network's distribution, verified.

    Peaks and their siblings are polished with the coarse kernel, the best `n_polished` again with
    the fine one, and ranked by its score.
    """
    pattern = target(disks, config.power)
    weights = reflectors.intensity**config.power
    cell, orientation, prior = with_siblings(
        *modes(log_probability, cells, tables, config.n_modes), tables
    )

    def polish_one(cell, orientation, kernel, steps, largest):
        visible = tables.visible[cell]
        g, weight = reflectors.g[visible], weights[visible]
        score_at = lambda r: score(  # noqa: E731
            r, pattern, g, weight, wavelength, k_max, kernel, config
        )
        return polish(orientation, score_at, steps, largest)

    coarse = jax.vmap(
        lambda c, r: polish_one(c, r, config.coarse_kernel, config.coarse_steps, 0.05)
    )
    orientation, value = coarse(cell, orientation)
    _, keep = jax.lax.top_k(value, config.n_polished)
    cell, orientation, prior = cell[keep], orientation[keep], prior[keep]
    fine = jax.vmap(lambda c, r: polish_one(c, r, config.kernel, config.fine_steps, 0.02))
    orientation, value = fine(cell, orientation)
    value, order = jax.lax.top_k(value, config.n_polished)
    return Ranked(orientation[order], value, prior[order])


def candidate_tables(
    grid: Float[np.ndarray, "n_cells 4"],
    operations: Float[np.ndarray, "n_operations 3 3"],
    reflectors: Reflectors,
    wavelength: float,
    lattice: Float[np.ndarray, "3 3"],
    config: ScoreConfig,
    n_visible: int = 48,
    n_neighbours: int = 15,
    n_siblings: int = 2,
) -> CandidateTables:
    """Tabulate a grid (quaternions); set-up work, a few seconds for thousands of cells.

    `lattice` holds a, b, c in Å as rows (for the low-index zone axes); `wavelength` in Å.
    """
    grid = jnp.asarray(grid, jnp.float32)
    operations = jnp.asarray(operations, jnp.float32)
    cells = so3.quaternion_to_matrix(grid)
    op_q = so3.matrix_to_quaternion(operations)
    n_visible = min(n_visible, len(reflectors.g))

    @jax.jit
    def visible_of(cell):
        s = excitation_error(reflectors.g @ cell, wavelength)
        weight = reflectors.intensity**config.power
        reach = jnp.maximum(jnp.abs(s) - 0.03 * jnp.linalg.norm(reflectors.g, axis=1), 0.0)
        return jax.lax.top_k(
            weight * jnp.exp(-0.5 * config.power * (reach / config.sigma) ** 2), n_visible
        )[1]

    neighbours, operation = nearest_cells(grid, grid, op_q, n_neighbours)
    near = operations[operation] @ cells[neighbours]
    offsets = so3.matrix_to_rotation_vector(jnp.swapaxes(cells, -1, -2)[:, None] @ near)

    turns, axes = zone_axis_turns(lattice, np.asarray(operations))
    n_siblings = min(n_siblings, len(axes))
    cosine, axis = jax.lax.top_k(jnp.abs(cells[:, :, 2] @ axes.T), n_siblings)
    is_near = cosine > np.cos(np.deg2rad(SIBLING_REACH))
    turned = turns[axis] @ cells[:, None]
    index, operation = nearest_cells(so3.matrix_to_quaternion(turned).reshape(-1, 4), grid, op_q, 1)
    shape = is_near.shape
    back = jnp.swapaxes(operations, -1, -2)[operation[:, 0].reshape(shape)]
    sibling = jnp.where(is_near, index[:, 0].reshape(shape), jnp.arange(len(grid))[:, None])
    sibling_turn = jnp.where(is_near[..., None, None], back @ turns[axis], jnp.eye(3))
    visible = jax.lax.map(visible_of, cells, batch_size=256)
    return CandidateTables(visible, neighbours, offsets, sibling, sibling_turn)


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
