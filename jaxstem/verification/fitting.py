# SPDX-License-Identifier: GPL-3.0-or-later
"""The verdict where intensities can be trusted: tilt and thickness fitted to them by Bloch waves.

Positions cannot tell a crystal from itself turned by 180° about the beam; intensities differ, but
often by less than a per cent, and a lattice of tilts does not follow them so far. Here tilt and
thickness come from least squares (K. Levenberg, Q. Appl. Math. 2 (1944) 164; D. W. Marquardt,
J. SIAM 11 (1963) 431) on the logarithms of intensities, with two numbers more: the incident beam,
and the damping c of exp(-c q²). Intensities oscillate with tilt, the faster the thicker the
crystal, so that a fit converges from within a twentieth of a degree only: it starts from the best
points of a coarse fit, all tilts within a degree or so on a lattice as fine as that, at all
thicknesses, with weak disks counting little.

How far intensities can be trusted is not known beforehand, and what decides is how much better one
candidate can be fitted than another. So the verdict is the most probable of a few scatters of ln I;
with a scatter smaller by a factor, four fitted numbers leave room for a volume smaller by the
fourth power of that factor (Laplace's method; D. J. C. MacKay, Neural Comput. 4 (1992) 415).
Measured intensities, good to 5 or 10 %, are not judged otherwise than before.

Shapes: `K` measured disks, `B` beams, `T` thicknesses.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxstem.diffraction.bloch import Beams, BlochTables, bloch_intensities
from jaxstem.diffraction.illumination import disk_tilts
from jaxstem.diffraction.propagation import cone_steps
from jaxstem.orientation import rotations
from jaxstem.verification.config import FARTHEST, FitConfig, LikelihoodConfig
from jaxstem.verification.likelihood import (
    REACH,
    Expected,
    Observed,
    Polished,
    limit_at,
    log_likelihood,
    pair,
)

_UNITS = (np.deg2rad(0.01), np.deg2rad(0.01), 1.0, 0.02, 0.02)
"""Of what is fitted: two tilts [rad], thickness [Å], ln of the incident beam, damping c [Å²]."""

LARGEST = (10.0, 10.0, 8.0, 10.0, 10.0)
"""The largest step of a fit, in `_UNITS`."""

_SLOPE = 0.2
"""Over how much, in `_UNITS`, slopes are taken."""

_WEAK_PRIOR = 0.01
"""What keeps incident beam and damping where no disk tells them, as a scatter of ln I."""


class Scene(NamedTuple):
    """What a candidate is fitted to: disks, its crystal, the range of radii [1/Å] that count, and
    the measurement's statistics.
    """

    observed: Observed
    tables: BlochTables
    k_min: float
    k_max: float
    statistics: LikelihoodConfig


class Fitted(NamedTuple):
    """Where a fit has come: orientation, thickness [Å], ln of the incident beam, damping [Å²], and
    the sum of squares.
    """

    orientation: Float[Array, "... 3 3"]
    thickness: Float[Array, "..."]
    offset: Float[Array, "..."]
    damping: Float[Array, "..."]
    cost: Float[Array, "..."]


def beams_at(
    orientation: Float[Array, "3 3"],
    thickness: Float[Array, " T"],
    scene: Scene,
    n_beams: tuple[int, int],
    thickest: np.ndarray,
) -> Beams:
    """Bloch waves with the scene's illumination; `thickest` are known numbers [Å], no nearer to
    each other than the thicknesses, that tell the steps of the cone.
    """
    if scene.statistics.semi_angle <= 0:
        return bloch_intensities(orientation, thickness, scene.tables, *n_beams)
    cone = disk_tilts(scene.statistics.semi_angle)
    n_steps = cone_steps(thickest, cone, FARTHEST)
    return bloch_intensities(orientation, thickness, scene.tables, *n_beams, None, cone, n_steps)


def deviations(
    beams: Beams,
    offset: Float[Array, ""],
    damping: Float[Array, ""],
    softening: float,
    scene: Scene,
) -> Float[Array, "T K_and_B"]:
    """How far ln I is from what was measured, for each disk, then for each beam without one.

    A disk holds the beams nearest to it, within the reach of position errors; one that holds none
    is taken for false. A beam without a disk deviates by what it exceeds the detection limit.
    Half the limit is added to all intensities, or `softening` of the strongest disk if that is
    more. `offset` is added to ln I, and `damping` [Å²] is c.
    """
    observed, k_max = scene.observed, scene.k_max
    q = jnp.hypot(beams.qx, beams.qy)
    inside = (q > scene.k_min) & (q <= k_max)
    distance = (observed.qx[:, None] - beams.qx) ** 2 + (observed.qy[:, None] - beams.qy) ** 2
    distance = jnp.where(observed.mask[:, None], distance, jnp.inf)
    nearest = jnp.arange(len(distance))[:, None] == distance.argmin(axis=0)
    own = nearest & (distance < (REACH * scene.statistics.position_sigma) ** 2) & inside

    share = jnp.exp(observed.log_share)
    least = softening * jnp.max(jnp.where(observed.mask, share, 0.0))
    at_disk = jnp.exp(limit_at(jnp.hypot(observed.qx, observed.qy), observed.log_limit, k_max))
    added = jnp.maximum(0.5 * at_disk, least)
    intensity = beams.intensity * jnp.exp(offset - damping * q**2)
    ratio = jnp.log((intensity @ own.T.astype(q.dtype) + added) / (share + added))
    of_disks = jnp.where(observed.mask & own.any(axis=1), ratio, 0.0)

    limit = jnp.exp(limit_at(q, observed.log_limit, k_max))
    over = jnp.maximum(intensity - limit, 0.0) / (limit + jnp.maximum(0.5 * limit, least))
    of_beams = jnp.where(inside & ~own.any(axis=0), jnp.log1p(over), 0.0)
    return jnp.concatenate([of_disks, of_beams], axis=-1)


def coarse_fit(
    orientation: Float[Array, "3 3"], scene: Scene, config: FitConfig
) -> tuple[Float[Array, "S 3 3"], Float[Array, " S"]]:
    """Where fits start: the best of all tilts around `orientation`, and of all thicknesses."""
    thickness = np.arange(*config.thickness, config.thickness_step)
    half = round(config.half_width / config.spacing)
    axis = np.deg2rad(config.spacing) * np.arange(-half, half + 1)
    tilts = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    tilts = jnp.asarray(tilts, orientation.dtype)

    def turned(tilt):
        return orientation @ rotations.rotation_vector_to_matrix(jnp.pad(tilt, (0, 1)))

    def cost(tilt):
        beams = beams_at(turned(tilt), jnp.asarray(thickness), scene, config.rough_beams, thickness)
        off = deviations(beams, jnp.zeros(()), jnp.zeros(()), config.softening, scene)
        return jnp.sum(off**2, axis=-1)

    near, close = np.deg2rad(config.apart[0]), config.apart[1]
    grid = jnp.asarray(thickness, orientation.dtype)

    def next_best(costs, _):
        which, t = jnp.divmod(costs.argmin(), len(thickness))
        beside = jnp.sum((tilts - tilts[which]) ** 2, axis=1) < near**2
        same = beside[:, None] & (jnp.abs(grid - grid[t]) < close)
        return jnp.where(same, jnp.inf, costs), (turned(tilts[which]), grid[t])

    return jax.lax.scan(next_best, jax.lax.map(cost, tilts), length=config.n_starts)[1]


def fit(
    start: Fitted,
    scene: Scene,
    softening: float,
    n_beams: tuple[int, int],
    n_steps: int,
    config: FitConfig,
) -> Fitted:
    """Levenberg-Marquardt from `start`, slopes by differences."""
    dtype = start.orientation.dtype
    units, largest = jnp.asarray(_UNITS, dtype), jnp.asarray(LARGEST, dtype)
    moves = _SLOPE * jnp.eye(len(_UNITS), dtype=dtype)
    origin = jnp.array([0.0, 0.0, start.thickness, start.offset, start.damping], dtype)

    def place(p):
        tilt_x, tilt_y, thickness, offset, damping = origin + p * units
        vector = jnp.stack([tilt_x, tilt_y, jnp.zeros_like(tilt_x)])
        turned = start.orientation @ rotations.rotation_vector_to_matrix(vector)
        thickness = jnp.clip(thickness, *config.thickness)
        return Fitted(turned, thickness, offset, damping, start.cost)

    def waves(p):
        """At a thickness and, for the slope, a little more."""
        at = place(p)
        two = jnp.stack([at.thickness, at.thickness + _SLOPE * units[2]])
        thickest = np.array([config.thickness[1]])
        return beams_at(at.orientation, two, scene, n_beams, thickest)

    def off(beams, p):
        at = place(p)
        found = deviations(beams, at.offset, at.damping, softening, scene)
        prior = jnp.stack([at.offset / scene.observed.incident_sigma, at.damping / 0.1])
        return jnp.concatenate([found, jnp.tile(_WEAK_PRIOR * prior, (2, 1))], axis=-1)

    def linear(p):
        around = jax.lax.map(waves, p + jnp.pad(moves[:2], ((1, 0), (0, 0))))
        here, tilted_x, tilted_y = (jax.tree.map(lambda x: x[i], around) for i in range(3))  # noqa: B023
        value, thicker = off(here, p)
        others = [off(tilted_x, p)[0], off(tilted_y, p)[0], thicker]
        others += [off(here, p + move)[0] for move in moves[3:]]
        return value, (jnp.stack(others, axis=1) - value[:, None]) / _SLOPE

    def step(state, _):
        p, value, slope, damped = state
        normal = slope.T @ slope
        stiff = normal + damped * jnp.diag(jnp.diagonal(normal)) + 1e-9 * jnp.eye(len(p))
        move = jnp.linalg.solve(stiff, slope.T @ value)
        tried = p - jnp.clip(move, -largest, largest)
        found = (tried, *linear(tried))
        better = jnp.sum(found[1] ** 2) < jnp.sum(value**2)
        kept = jax.tree.map(lambda a, b: jnp.where(better, a, b), found, (p, value, slope))
        return (*kept, jnp.where(better, damped / 5, damped * 4)), None

    p = jnp.zeros(len(_UNITS), dtype)
    state = (p, *linear(p), jnp.asarray(1e-2, dtype))
    (p, value, *_), _ = jax.lax.scan(step, state, length=n_steps)
    cost = jnp.sum(value**2)
    return place(p)._replace(cost=jnp.where(jnp.isfinite(cost), cost, jnp.inf))


def evidence(at: Fitted, scene: Scene, config: FitConfig) -> Float[Array, ""]:
    """Log-probability [nat] of the disks by a fit, at the scatter that makes it largest."""
    observed, k_max = scene.observed, scene.k_max
    thickness = at.thickness[None]
    thickest = np.array([config.thickness[1]])
    beams = beams_at(at.orientation, thickness, scene, config.beams, thickest)
    q = jnp.hypot(beams.qx, beams.qy)
    inside = (q > scene.k_min) & (q <= k_max)
    intensity = jnp.where(inside, beams.intensity * jnp.exp(-at.damping * q**2) + 1e-9, 1e-9)
    pairing = pair(observed, beams.qx, beams.qy, jnp.log(intensity[0]), k_max, scene.statistics)
    everything = Expected(intensity, limit_at(q, observed.log_limit, k_max), inside)
    own = jax.tree.map(lambda x: x[..., pairing.reflection], everything)
    own = own._replace(intensity=own.intensity.T)
    values = []
    for scatter in config.scatters:
        finer = scatter / config.scatters[0]
        statistics = replace(
            scene.statistics,
            intensity_scatter=scatter,
            noise_at_limit=finer * scene.statistics.noise_at_limit,
        )
        given = (pairing, observed.log_share, own, everything, observed.incident_sigma)
        values.append(log_likelihood(*given, statistics)[0] + 4 * np.log(finer))
    return jnp.max(jnp.stack(values))


def best_fit(start: Polished, scene: Scene, config: FitConfig) -> Polished:
    """The best fit of a candidate that `dynamical.climb` has judged, and its log-probability [nat]:
    that of the fit and of the climb together.
    """
    orientation, thickness = coarse_fit(start.orientation, scene, config)
    orientation = jnp.concatenate([orientation, start.orientation[None]])
    thickness = jnp.append(thickness, start.thickness)
    nothing = jnp.zeros_like(thickness)
    starts = Fitted(orientation, thickness, nothing, nothing, nothing)
    rough = jax.lax.map(
        lambda at: fit(at, scene, config.softening, config.rough_beams, config.rough_steps, config),
        starts,
    )
    _, best = jax.lax.top_k(-rough.cost, config.n_fine)
    fine = jax.lax.map(
        lambda at: fit(at, scene, 0.0, config.beams, config.steps, config),
        jax.tree.map(lambda x: x[best], rough),
    )
    value = jax.lax.map(lambda at: evidence(at, scene, config), fine)
    value = jnp.where(jnp.isfinite(fine.cost) & jnp.isfinite(value), value, -jnp.inf)
    best = jnp.argmax(value)
    total = jnp.logaddexp(start.log_likelihood, value[best])
    found = Polished(fine.orientation[best], total, fine.thickness[best])
    better = value[best] > start.log_likelihood
    return jax.tree.map(lambda a, b: jnp.where(better, a, b), found, start)
