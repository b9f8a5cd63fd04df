# SPDX-License-Identifier: GPL-3.0-or-later
"""The search around a candidate: a cosine score, and levels of ever finer lattices.

*A score for the search.* The cosine between measured and re-simulated disks: each predicted disk
takes its best measured partner within a Gaussian kernel, and both sides enter to a low power,
because dynamical intensities are unreliable and positions are not. A disk is predicted as two-beam
theory does, averaged over thickness, so that strong reflections are expected farther from the Ewald
sphere than weak ones.

*A search without derivatives.* Turning a crystal about the beam turns the pattern; tilting it
changes excitation errors and hardly moves a disk. The partners therefore depend on the in-plane
angle alone and the predicted intensities on the tilt alone: the angle comes from least squares
over the positions, and then one small table of intensities scores all tilts around a candidate. A
few such levels, ever finer, polish a candidate from several degrees to a tenth.

On the way many candidates come to one place: of four that a search without regard for it likes
best there are no more than two that differ, as a rule. Only one of them goes on, which leaves room
for rivals.

Shapes: `K` measured disks, `M` reflections that a cell can excite, `T` tilts.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from jaxstem.diffraction.geometry import Disks, excitation_error
from jaxstem.diffraction.two_beam import expected_intensity
from jaxstem.orientation import rotations
from jaxstem.runtime.reductions import largest_of_rows, totals, turned
from jaxstem.verification.config import Level, Limit, ScoreConfig
from jaxstem.verification.likelihood import Observed
from jaxstem.verification.ranking import Forward


class Pattern(NamedTuple):
    """One measured pattern ready for verification.

    log_weight: logarithm of intensity^power over its norm (padding: -1e4), for the cosine;
    observed: the disks as the likelihood sees them.
    """

    log_weight: Float[Array, " K"]
    observed: Observed


def pattern_of(
    disks: Disks,
    incident: Float[ArrayLike, ""],
    incident_sigma: Float[ArrayLike, ""],
    is_cut: Bool[ArrayLike, ""],
    limit: Limit,
    power: float,
) -> Pattern:
    """Prepare disks (K,); `incident` is the beam's intensity in the disks' units, known to
    `incident_sigma` in its logarithm; `is_cut`: weaker disks than those listed were left out.
    """
    weight = jnp.where(disks.mask, jnp.maximum(disks.intensity, 1e-12) ** power, 0.0)
    norm = jnp.sqrt(jnp.sum(weight**2, axis=-1, keepdims=True))
    relative = weight / jnp.maximum(norm, 1e-12)
    log_share = jnp.log(jnp.maximum(disks.intensity / incident, 1e-9))
    weakest = jnp.where(is_cut, jnp.where(disks.mask, log_share, jnp.inf).min(), -jnp.inf)
    strongest = jnp.where(disks.mask, log_share, -jnp.inf).max()
    of_pattern = jnp.maximum(weakest, strongest + limit.log_ratio)
    log_limit = jnp.maximum(limit.log_share, of_pattern)
    return Pattern(
        jnp.where(disks.mask, jnp.log(relative + 1e-12), -1e4),
        Observed(disks.qx, disks.qy, log_share, disks.mask, log_limit, incident_sigma),
    )


def _agreement(
    pattern: Pattern, x: Float[Array, " M"], y: Float[Array, " M"], kernel: Float[Array, ""] | float
) -> tuple[Float[Array, "K M"], Float[Array, "K M"], Float[Array, "K M"]]:
    """How far each disk lies from each predicted position [1/Å], along x and y, and the logarithm
    of its weight within a Gaussian `kernel` of σ in 1/Å.
    """
    dx, dy = pattern.observed.qx[:, None] - x, pattern.observed.qy[:, None] - y
    return dx, dy, pattern.log_weight[:, None] - (dx**2 + dy**2) * (0.5 / kernel**2)


def cosine_score(
    pattern: Pattern,
    x: Float[Array, " M"],
    y: Float[Array, " M"],
    predicted: Float[Array, "T M"],
    kernel: Float[Array, ""] | float,
) -> Float[Array, " T"]:
    """Cosine score, 0 … 1, of predicted intensities (to their power) at these positions [1/Å].

    Where overlapping reflections share a measured disk it can exceed one.
    """
    partner = jnp.exp(largest_of_rows(_agreement(pattern, x, y, kernel)[2]))
    agreeing, norm = totals(predicted * partner, predicted**2)
    return agreeing * jax.lax.rsqrt(norm + 1e-12)


def _turned_about_beam(
    x: Float[Array, " M"], y: Float[Array, " M"], angle: Float[Array, ""]
) -> tuple[Float[Array, " M"], Float[Array, " M"]]:
    """Positions in the pattern of a crystal turned about the beam by `angle` [rad]."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return cos * x + sin * y, cos * y - sin * x


def search_lattice(
    orientation: Float[Array, "3 3"],
    pattern: Pattern,
    forward: Forward,
    wavelength: float,
    k_max: Float[ArrayLike, ""],
    level: Level,
    config: ScoreConfig,
) -> tuple[Float[Array, "3 3"], Float[Array, ""]]:
    """The best orientation on one level's lattice around `orientation`, and its cosine score.

    A small rotation vector ω in the lab frame turns g_lab by -ω × g_lab: its z part turns positions
    in-plane, its x and y parts change s by ω_y q_x - ω_x q_y. The in-plane angle is that of least
    squares over the distances between disks and reflections, weighted by their agreement.
    """
    strength = forward.inverse_extinction[: level.n_visible]
    g_lab = turned(forward.g[: level.n_visible], orientation)
    x, y, s = g_lab[:, 0], g_lab[:, 1], excitation_error(g_lab, wavelength)
    inside = x**2 + y**2 <= k_max**2
    expected = jnp.sqrt(expected_intensity(s, strength, level.floor)) * inside

    angle, most = jnp.zeros((), s.dtype), jnp.deg2rad(level.angle)
    for _ in range(level.n_turns):
        now = _turned_about_beam(x, y, angle)
        dx, dy, agrees = _agreement(pattern, *now, level.kernel)
        weight = jnp.exp(agrees) * expected
        pull, stiffness = totals(weight * (dx * now[1] - dy * now[0]), weight * (x**2 + y**2))
        angle += pull.sum() / (stiffness.sum() + 1e-9)
        angle = jnp.clip(angle, -most, most)

    axis = jnp.deg2rad(jnp.linspace(-level.tilt, level.tilt, level.n_tilts))
    tilt_x, tilt_y = (t.reshape(-1, 1) for t in jnp.meshgrid(axis, axis, indexing="ij"))
    tilted = s + tilt_y * x - tilt_x * y
    intensity = expected_intensity(tilted, strength, level.floor)
    root = config.predicted_power == 0.5  # many times as fast as a power on a processor
    predicted = jnp.sqrt(intensity) if root else jnp.power(intensity, config.predicted_power)
    predicted = predicted * inside
    scores = cosine_score(pattern, *_turned_about_beam(x, y, angle), predicted, level.kernel)
    best = jnp.argmax(scores)
    vector = jnp.stack([tilt_x[best, 0], tilt_y[best, 0], angle])
    return orientation @ rotations.rotation_vector_to_matrix(vector), scores[best]
