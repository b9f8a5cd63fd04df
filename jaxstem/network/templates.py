# SPDX-License-Identifier: GPL-3.0-or-later
"""Exhaustive matching: every cell of the orientation grid against a pattern, in one matrix product.

It needs no training: a crystal and a voltage are enough. A network learns to correct it
(`transformer.py`), or it stands alone as the source of candidates for verification.

*Templates are rates.* A pattern is a handful of points. For each cell a template states how many
disks are to be expected there, a rate λ(q) [disks per 1/Å²]: each reflection contributes the
probability that it is detected, spread by the scatter of positions and by the extent of the cell
(the average over orientations near its centre). False disks come from everywhere with a small
constant rate.

*The score is a likelihood.* For points that appear independently at a rate λ (a Poisson process),

    log p(pattern | cell) = Σ_disks log λ_cell(q) - ∫ λ_cell d²q

so disks that a cell does not explain count against it, and so do reflections that it expects in
vain. The sum is linear in the pattern: with the plane cut into bins, a batch of patterns times a
table of log λ gives all scores at once. Rates of different crystals compare, and so does the rate
of false disks alone, which is what a place without crystal gives (Daley & Vere-Jones, An
Introduction to the Theory of Point Processes, 2003, section 7.1).

Intensities enter through the detection probability only: dynamical ones say little before the
orientation is known to better than a cell. Weighting disks by them, or rates for weak and strong
disks apart, did not make the candidates better.

Disks are not independent, least of all where the model errs, so the likelihood is too sure which
cell it is; `MatchConfig.sureness` flattens it, so that it serves as a log-probability. All numbers
in `MatchConfig` were chosen on simulated patterns of Cu (Bloch waves and acquisition).

Shapes: `K` disks, `F` bins of the raster, `n` bins along an axis, `C` cells, `S` orientations
averaged for a cell, `M` reflections that a cell can excite.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr
from jaxtyping import Array, Float, Int

from jaxstem.diffraction.geometry import Reflectors, excitation_error
from jaxstem.diffraction.material import Material, grid_content
from jaxstem.diffraction.two_beam import expected_intensity
from jaxstem.orientation import rotations
from jaxstem.runtime.cache import cached


@dataclass(frozen=True)
class Raster:
    """Square bins over the disk |q| <= k_max of the detector; lengths in 1/Å."""

    k_max: float
    pitch: float

    @property
    def axis(self) -> Float[np.ndarray, " n"]:
        """Centres of the bins along qx, and along qy [1/Å]."""
        half = int(np.ceil(self.k_max / self.pitch)) + 1
        return self.pitch * np.arange(-half, half + 1)

    @property
    def inside(self) -> Int[np.ndarray, " F"]:
        """Flat indices of the bins that a disk within k_max touches."""
        radius = np.hypot(*np.meshgrid(self.axis, self.axis, indexing="ij"))
        return np.flatnonzero(radius <= self.k_max + np.sqrt(2) * self.pitch)


class Templates(NamedTuple):
    """What patterns are compared with.

    log_rate: log λ in each bin, of each cell [log(disks per 1/Å²)]; log_weight: what is added to
    the sum over disks: minus the number of disks expected, and the logarithm of a cell's prior;
    beyond: how many of these lie outside of radii evenly spaced from 0 to k_max. The cells of all
    phases come one after the other and then no crystal.
    """

    log_rate: Float[Array, "F C"]
    log_weight: Float[Array, " C"]
    beyond: Float[Array, "R C"]


N_RADII = 33
"""Radii outside of which the expected disks are counted."""


def rasterise(
    qx: Float[Array, " K"], qy: Float[Array, " K"], weight: Float[Array, " K"], raster: Raster
) -> Float[Array, " F"]:
    """Weights of points summed in bins, each shared bilinearly between the four nearest ones.

    Positions in 1/Å.
    """
    axis = jnp.asarray(raster.axis, qx.dtype)
    share = lambda q: jnp.maximum(1 - jnp.abs(q[:, None] - axis) / raster.pitch, 0.0)  # noqa: E731
    return (share(qx).T @ (share(qy) * weight[:, None])).ravel()[raster.inside]


def nearby_turns(n_samples: int, sigma: float) -> Float[np.ndarray, "S 3 3"]:
    """Small rotations whose vectors are spread normally and evenly, `sigma` [rad] on each axis."""
    from scipy.stats import norm, qmc  # half a second, not needed where templates are kept

    even = qmc.Halton(3, scramble=False).random(n_samples + 1)[1:]
    vectors = jnp.asarray(sigma * norm.ppf(even), jnp.float32)
    return np.asarray(rotations.rotation_vector_to_matrix(vectors))


@partial(jax.jit, static_argnames=("raster", "config"))
def detection_rates(
    cells: Float[Array, "C 3 3"],
    turns: Float[Array, "S 3 3"],
    reflectors: Reflectors,
    wavelength: Float[Array, ""] | float,
    reach: Float[Array, ""] | float,
    raster: Raster,
    config: MatchConfig,
) -> Float[Array, "C F"]:
    """True disks to be expected in each bin from each cell; `wavelength` in Å.

    Averaged over the orientations cell @ turn. A reflection of two-beam intensity I is detected
    with probability Φ(ln(I / cutoff) / scatter). `reach` [rad] is how far turns bring reflections
    closer to the Ewald sphere; only those that this excites most are followed.
    """
    n_visible = min(config.n_visible, len(reflectors.g))

    def intensity(s, inverse_extinction):
        return expected_intensity(s, inverse_extinction, config.floor)

    def one(cell):
        s = excitation_error(reflectors.g @ cell, wavelength)
        nearest = jnp.maximum(jnp.abs(s) - reach * jnp.linalg.norm(reflectors.g, axis=1), 0.0)
        _, visible = jax.lax.top_k(intensity(nearest, reflectors.inverse_extinction), n_visible)
        g_lab = jnp.einsum("mi,ij,sjk->smk", reflectors.g[visible], cell, turns)
        strength = intensity(
            excitation_error(g_lab, wavelength), reflectors.inverse_extinction[visible]
        )
        seen = ndtr((jnp.log(strength + 1e-9) - jnp.log(config.cutoff)) / config.scatter)
        q = g_lab.reshape(-1, 3)
        on_detector = q[:, 0] ** 2 + q[:, 1] ** 2 <= raster.k_max**2
        weight = jnp.where(on_detector, seen.ravel(), 0.0) / len(turns)
        return rasterise(q[:, 0], q[:, 1], weight, raster)

    return jax.lax.map(one, cells, batch_size=16)


def make_templates(materials: Sequence[Material], config: MatchConfig) -> Templates:
    """Templates of all cells of all materials, and of no crystal; seconds for each material.

    Every phase has the same prior, shared evenly among its cells; so has the last template, which
    expects false disks only. The materials share one k_max.
    """
    raster = Raster(materials[0].k_max, config.pitch)
    radius = np.hypot(*np.meshgrid(raster.axis, raster.axis, indexing="ij")).ravel()
    outside = radius[raster.inside] > np.linspace(0.0, raster.k_max, N_RADII)[:, None]
    outside[-1] = False  # bins there hold shares of disks from within
    outside = outside.astype(np.float32)
    false = config.false_rate / (np.pi * raster.k_max**2)
    log_rate, log_weight, beyond = [], [], []
    for m in materials:
        found = detection_rates(
            rotations.quaternion_to_matrix(jnp.asarray(m.grid, jnp.float32)),
            jnp.asarray(nearby_turns(config.n_samples, config.spread * m.spacing)),
            m.reflectors(),
            m.wavelength,
            2 * config.spread * m.spacing,
            raster,
            config,
        )
        log_rate.append(jnp.log(found.T / config.pitch**2 + false))
        log_weight.append(-found.sum(axis=1) - np.log(len(m.grid)))
        beyond.append(outside @ found.T)
    log_rate.append(jnp.full((len(raster.inside), 1), np.log(false), jnp.float32))
    log_weight.append(jnp.zeros(1))
    beyond.append(jnp.zeros((N_RADII, 1)))
    return Templates(
        jnp.concatenate(log_rate, axis=1),
        jnp.concatenate(log_weight),
        jnp.concatenate(beyond, axis=1),
    )


def cached_templates(
    materials: Sequence[Material], config: MatchConfig, cache: Path | None
) -> Templates:
    """`make_templates`, from the folder `cache` where an earlier run left them, 21 MB for a crystal
    of 3,700 cells up to 2 1/Å.
    """
    content = {
        "materials": list(map(grid_content, materials)),
        "config": dataclasses.asdict(config),
    }
    make = lambda: make_templates(materials, config)  # noqa: E731
    made = cached(cache, "templates", content, make, like=Templates(*Templates._fields))
    return jax.tree.map(jnp.asarray, made)


@dataclass(frozen=True)
class MatchConfig:
    """How templates are made.

    pitch: of the raster [1/Å], which is also how far positions may scatter; spread: σ of the
    orientations that a template averages, per axis, in units of the grid's spacing; n_samples: how
    many of them; n_visible: reflections followed for each cell; floor: of the excitation error
    [1/Å]; cutoff: intensity that is detected half the time, a share of the incident beam; scatter:
    of ln I about two-beam theory; false_rate: false disks a pattern; sureness: by which the
    log-likelihood is multiplied.
    """

    pitch: float = 0.1
    spread: float = 0.3
    n_samples: int = 32
    n_visible: int = 128
    floor: float = 0.003
    cutoff: float = 0.004
    scatter: float = 1.5
    false_rate: float = 1.0
    sureness: float = 0.45
