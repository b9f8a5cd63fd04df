# SPDX-License-Identifier: GPL-3.0-or-later
"""Verification: candidate orientations against the forward model, polished and ranked.

Three ideas carry this module.

*A score for the search.* The cosine between measured and re-simulated disks: each predicted disk
takes its best measured partner within a Gaussian kernel, and both sides enter to a low power,
because dynamical intensities are unreliable and positions are not. A disk is predicted as two-beam
theory does, averaged over thickness, so that strong reflections are expected farther from the Ewald
sphere than weak ones.

*A search without derivatives.* Turning a crystal about the beam turns the pattern; tilting it
changes excitation errors and hardly moves a disk. The partners therefore depend on the in-plane
angle alone and the predicted intensities on the tilt alone, so that all in-plane angles times all
tilts around a candidate are one small matrix product. A few such levels, ever finer, polish a
candidate from several degrees to a tenth.

*A likelihood for the verdict.* Polished candidates are compared by the probability of the pattern:
every expected disk may be missed, every measured one may be false, positions scatter normally and
log intensities with heavy tails.

A pattern looks nearly the same from pseudo-symmetric orientations: the crystal turned by 180° about
the beam, or about a low-index zone axis near the beam; those siblings of each candidate are
verified too. What depends on the crystal alone is tabulated once for each cell of the orientation
grid (`CandidateTables`). Shapes: `K` measured disks, `M` reflections that a cell can excite, `C`
candidates, `A` in-plane angles, `T` tilts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxstem import so3
from jaxstem.grid import nearest_cells
from jaxstem.kinematic import Disks, Reflectors, excitation_error

SIBLING_REACH = 15.0
"""How far [degrees] a zone axis may lie from the beam for a turn about it to go unnoticed."""


RARE_FALSE = 0.007
"""Density per nat of ln I of false disks far above the detection limit: 5 % over seven nats."""

VISIBLE_REACH = 3.0
"""How far [degrees] a candidate may be tilted from its cell and keep the cell's reflections."""


@dataclass(frozen=True)
class Level:
    """One level of the search: kernel width σ [1/Å], width of the excitation-error floor [1/Å],
    half-range [degrees] and number of in-plane angles and of tilts along each axis, how many of the
    cell's reflections are simulated, and how many candidates enter the level.
    """

    kernel: float
    floor: float
    angle: float
    n_angles: int
    tilt: float
    n_tilts: int
    n_visible: int
    n_candidates: int


@dataclass(frozen=True)
class ScoreConfig:
    """What counts as agreement, and how it is searched.

    measured_power, predicted_power: of the intensities in the cosine; n_modes: peaks of the
    distribution that are verified; levels: of the search; n_final: candidates that are judged by
    likelihood. For the likelihood: n_judged: strongest reflections that are expected;
    position_sigma [1/Å]; intensity_scatter: of ln I about two-beam theory; false_rate: false disks
    a pattern; false_decay: by how much ln I of a false disk exceeds the detection limit on average;
    detection: the most that a reflection can be certain to be seen.
    """

    measured_power: float = 0.25
    predicted_power: float = 0.5
    n_modes: int = 16
    levels: tuple[Level, ...] = (
        Level(0.06, 0.02, 3.0, 7, 3.2, 5, 40, 128),
        Level(0.04, 0.008, 1.0, 5, 1.5, 7, 64, 40),
        Level(0.03, 0.003, 0.4, 5, 0.5, 7, 64, 28),
        Level(0.03, 0.003, 0.15, 5, 0.15, 5, 64, 20),
    )
    n_final: int = 16
    n_judged: int = 56
    position_sigma: float = 0.015
    intensity_scatter: float = 1.0
    false_rate: float = 2.0
    false_decay: float = 0.5
    detection: float = 0.97


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


class Pattern(NamedTuple):
    """One measured pattern ready for verification.

    qx, qy [1/Å]; log_weight: logarithm of intensity^power over its norm (padding: -1e4);
    log_share: logarithm of the intensity as a share of the incident beam; mask; log_cutoff: of the
    weakest share that disk detection finds.
    """

    qx: Float[Array, " K"]
    qy: Float[Array, " K"]
    log_weight: Float[Array, " K"]
    log_share: Float[Array, " K"]
    mask: Bool[Array, " K"]
    log_cutoff: Float[Array, ""]


def pattern_of(
    disks: Disks, incident: Float[Array, ""], cutoff: Float[Array, ""], power: float
) -> Pattern:
    """Prepare disks (K,); `incident` is the beam's intensity in the disks' units, `cutoff` the
    weakest share of it that is detected.
    """
    weight = jnp.where(disks.mask, jnp.maximum(disks.intensity, 1e-12) ** power, 0.0)
    norm = jnp.sqrt(jnp.sum(weight**2, axis=-1, keepdims=True))
    relative = weight / jnp.maximum(norm, 1e-12)
    share = jnp.maximum(disks.intensity / incident, 1e-9)
    return Pattern(
        disks.qx,
        disks.qy,
        jnp.where(disks.mask, jnp.log(relative + 1e-12), -1e4),
        jnp.log(share),
        disks.mask,
        jnp.log(cutoff),
    )


def expected_intensity(
    s: Float[Array, "..."], inverse_extinction: Float[Array, "..."], floor: float
) -> Float[Array, "..."]:
    """Two-beam intensity averaged over thickness, a share of the incident beam.

    (1/ξ)^2 / 2 / (s^2 + 1/ξ^2 + floor^2): the mean of sin^2 is one half; `floor` [1/Å] stands for
    the finite thickness (about 1/(π t)), or for a coarse search (Hirsch et al., Electron Microscopy
    of Thin Crystals, 1965, ch. 8).
    """
    return 0.5 * inverse_extinction**2 / (s**2 + inverse_extinction**2 + floor**2)


def cosine(
    pattern: Pattern,
    qx: Float[Array, "A M"],
    qy: Float[Array, "A M"],
    predicted: Float[Array, "T M"],
    kernel: float,
) -> Float[Array, "A T"]:
    """Cosine score, 0 … 1, of all in-plane angles (predicted positions, 1/Å) times all tilts
    (predicted intensities to their power); `kernel` σ in 1/Å. Where overlapping reflections share
    a measured disk it can exceed one.
    """
    # disks come first, so that the maximum over them runs along whole vectors of reflections
    dx = qx - pattern.qx[:, None, None]
    dy = qy - pattern.qy[:, None, None]
    agreement = pattern.log_weight[:, None, None] - (dx**2 + dy**2) * (0.5 / kernel**2)
    partner = jnp.exp(jnp.max(agreement, axis=0))
    norm = jnp.sqrt(jnp.sum(predicted**2, axis=-1) + 1e-12)
    return (partner @ predicted.T) / norm


class Forward(NamedTuple):
    """The reflections worth simulating near a candidate: g [1/Å] and 1/ξ [1/Å]."""

    g: Float[Array, "M 3"]
    inverse_extinction: Float[Array, " M"]


def search(
    orientation: Float[Array, "3 3"],
    pattern: Pattern,
    forward: Forward,
    wavelength: float,
    k_max: float,
    level: Level,
    config: ScoreConfig,
) -> tuple[Float[Array, "3 3"], Float[Array, ""]]:
    """The best orientation on one level's lattice around `orientation`, and its cosine score.

    A small rotation vector ω in the lab frame turns g_lab by -ω × g_lab: its z part turns positions
    in-plane, its x and y parts change s by ω_y q_x - ω_x q_y.
    """
    g_lab = forward.g[: level.n_visible] @ orientation
    x, y = g_lab[:, 0], g_lab[:, 1]
    angles = jnp.deg2rad(jnp.linspace(-level.angle, level.angle, level.n_angles))
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    axis = jnp.deg2rad(jnp.linspace(-level.tilt, level.tilt, level.n_tilts))
    tilt_x, tilt_y = (t.reshape(-1, 1) for t in jnp.meshgrid(axis, axis, indexing="ij"))
    s = excitation_error(g_lab, wavelength) + tilt_y * x - tilt_x * y
    strength = forward.inverse_extinction[: level.n_visible]
    intensity = expected_intensity(s, strength, level.floor)
    predicted = jnp.power(intensity, config.predicted_power) * (x**2 + y**2 <= k_max**2)
    scores = cosine(pattern, cos * x + sin * y, cos * y - sin * x, predicted, level.kernel)
    best = jnp.argmax(scores)
    i, j = best // scores.shape[1], best % scores.shape[1]
    vector = jnp.stack([tilt_x[j, 0], tilt_y[j, 0], angles[i]])
    return orientation @ so3.rotation_vector_to_matrix(vector), scores[i, j]


def log_likelihood(
    pattern: Pattern,
    qx: Float[Array, " M"],
    qy: Float[Array, " M"],
    intensity: Float[Array, " M"],
    k_max: float,
    scatter: float,
    config: ScoreConfig,
) -> Float[Array, ""]:
    """Log-probability [nat] of a pattern, relative to all its disks being false.

    Predicted are positions [1/Å] and intensities (shares of the incident beam), known to within a
    factor of logarithmic width σ = `scatter`. A reflection expected at ln I = μ is detected with
    probability p = Φ((μ - ln cutoff) / σ). Each measured disk is explained by the reflection that
    gains most over a false disk: normal in position, Student's t with three degrees of freedom in
    ln I; false disks are uniform in area and few are much above the cutoff. Every reflection left
    without a disk costs ln(1 - p).
    """
    mean = jnp.log(intensity + 1e-9)
    inside = qx**2 + qy**2 <= k_max**2
    seen = jax.scipy.stats.norm.cdf((mean - pattern.log_cutoff) / scatter)
    absent = jnp.where(inside, jnp.log1p(-jnp.minimum(seen, config.detection)), 0.0)
    sigma = config.position_sigma
    distance = (qx - pattern.qx[:, None]) ** 2 + (qy - pattern.qy[:, None]) ** 2
    position = -distance / (2 * sigma**2) - jnp.log(2 * jnp.pi * sigma**2)
    deviation = (pattern.log_share[:, None] - mean) / scatter
    likeness = -2.0 * jnp.log1p(deviation**2 / 3.0) - 1.0 - jnp.log(scatter)
    above = jnp.maximum(pattern.log_share - pattern.log_cutoff, 0.0) / config.false_decay
    decay = jnp.logaddexp(-above - jnp.log(config.false_decay), jnp.log(RARE_FALSE))
    false = jnp.log(config.false_rate / (jnp.pi * k_max**2)) + decay
    gain = jnp.where(inside, position + likeness - false[:, None], -1e3)
    best = jnp.argmax(gain - absent, axis=1)
    chosen = best[:, None] == jnp.arange(len(mean))
    chosen &= (gain - absent > 0) & pattern.mask[:, None]
    # a reflection explains one disk; a second one that it would explain is false
    explained = jnp.max(jnp.where(chosen, gain, -jnp.inf), axis=0)
    return jnp.where(chosen.any(axis=0), explained, absent).sum()


def two_beam_likelihood(
    orientation: Float[Array, "3 3"],
    pattern: Pattern,
    forward: Forward,
    wavelength: float,
    k_max: float,
    config: ScoreConfig,
) -> Float[Array, ""]:
    """`log_likelihood` under two-beam intensities averaged over thickness.

    `forward` holds all reflections of the crystal, of which the `n_judged` strongest count.
    """
    g_lab = forward.g @ orientation
    s = excitation_error(g_lab, wavelength)
    intensity = expected_intensity(s, forward.inverse_extinction, config.levels[-1].floor)
    inside = g_lab[:, 0] ** 2 + g_lab[:, 1] ** 2 <= k_max**2
    n_judged = min(config.n_judged, len(intensity))
    intensity, index = jax.lax.top_k(jnp.where(inside, intensity, 0.0), n_judged)
    qx, qy = g_lab[index, 0], g_lab[index, 1]
    return log_likelihood(pattern, qx, qy, intensity, k_max, config.intensity_scatter, config)


class Ranked(NamedTuple):
    """Verified candidates of a pattern, best cosine first.

    score: cosine, cut at one; log_likelihood [nat]; prior: log-probability that the network gave
    the mode from which the candidate came.
    """

    orientation: Float[Array, "C 3 3"]
    score: Float[Array, " C"]
    log_likelihood: Float[Array, " C"]
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
    about_beam = all_orientations @ jnp.asarray(so3.HALF_TURN_ABOUT_BEAM, orientation.dtype)
    copies = 2 * (1 + tables.sibling.shape[1])
    return (
        jnp.concatenate([all_cells, all_cells]),
        jnp.concatenate([all_orientations, about_beam]),
        jnp.tile(prior, copies),
    )


def verify(
    pattern: Pattern,
    log_probability: Float[Array, " n_cells"],
    cells: Float[Array, "n_cells 3 3"],
    reflectors: Reflectors,
    tables: CandidateTables,
    wavelength: float,
    k_max: float,
    config: ScoreConfig,
) -> Ranked:
    """Candidates of one pattern from the network's distribution, polished and verified.

    `wavelength` in Å, `k_max` in 1/Å.
    """
    cell, orientation, prior = with_siblings(
        *modes(log_probability, cells, tables, config.n_modes), tables
    )
    visible = tables.visible[cell]
    forward = Forward(reflectors.g[visible], reflectors.inverse_extinction[visible])
    score = None
    for level in config.levels:
        if score is not None and level.n_candidates < len(score):
            score, keep = jax.lax.top_k(score, level.n_candidates)
            orientation, prior = orientation[keep], prior[keep]
            forward = jax.tree.map(lambda x, keep=keep: x[keep], forward)
        on_level = lambda r, f, level=level: search(  # noqa: E731
            r, pattern, f, wavelength, k_max, level, config
        )
        orientation, score = jax.vmap(on_level)(orientation, forward)
    score, keep = jax.lax.top_k(score, min(config.n_final, len(score)))
    orientation, prior = orientation[keep], prior[keep]
    everything = Forward(reflectors.g, reflectors.inverse_extinction)
    probability = jax.vmap(
        lambda r: two_beam_likelihood(r, pattern, everything, wavelength, k_max, config)
    )(orientation)
    return Ranked(orientation, jnp.minimum(score, 1.0), probability, prior)


def candidate_tables(
    grid: Float[np.ndarray, "n_cells 4"],
    operations: Float[np.ndarray, "n_operations 3 3"],
    reflectors: Reflectors,
    wavelength: float,
    lattice: Float[np.ndarray, "3 3"],
    n_visible: int = 64,
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
        nearby = np.deg2rad(VISIBLE_REACH) * jnp.linalg.norm(reflectors.g, axis=1)
        nearest = jnp.maximum(jnp.abs(s) - nearby, 0.0)
        intensity = expected_intensity(nearest, reflectors.inverse_extinction, 0.003)
        return jax.lax.top_k(intensity, n_visible)[1]

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
    back = jnp.swapaxes(operations, -1, -2)[operation.reshape(shape)]
    sibling = jnp.where(is_near, index.reshape(shape), jnp.arange(len(grid))[:, None])
    sibling_turn = jnp.where(is_near[..., None, None], back @ turns[axis], jnp.eye(3))
    visible = jax.lax.map(visible_of, cells, batch_size=256)
    return CandidateTables(visible, jnp.asarray(neighbours), offsets, sibling, sibling_turn)


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
