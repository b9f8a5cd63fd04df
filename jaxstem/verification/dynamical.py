# SPDX-License-Identifier: GPL-3.0-or-later
"""The verdict by full dynamical theory: Bloch waves around each candidate, thickness included.

Two-beam theory (`likelihood.py`) is right to a few tens of per cent; Bloch waves averaged over the
illumination cone are right to a few per cent, which settles the tilt to a few hundredths of a
degree and the thickness to a few ångström. Each evaluation is one eigen-decomposition that serves
all thicknesses and the cone; a candidate takes nine tilts on each of a few ever finer lattices.
Only candidates that are still in the running are worth that.

The result is as good as what it assumes: atoms' vibrations (`u_iso`), a crystal of even thickness,
unbent within the probe. `intensity_scatter` is what is allowed for the rest.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from jaxstem.diffraction.bloch import BlochTables, bloch_intensities
from jaxstem.diffraction.illumination import disk_tilts
from jaxstem.diffraction.propagation import cone_steps
from jaxstem.orientation import rotations
from jaxstem.verification.climb import LATTICE, summit
from jaxstem.verification.config import FARTHEST, DynamicalConfig, LikelihoodConfig
from jaxstem.verification.likelihood import (
    Expected,
    Observed,
    Polished,
    limit_at,
    log_likelihood,
    pair,
)


def climb_dynamically(
    orientation: Float[Array, "3 3"],
    observed: Observed,
    tables: BlochTables,
    k_min: float,
    k_max: Float[ArrayLike, ""],
    config: DynamicalConfig,
    statistics: LikelihoodConfig,
) -> Polished:
    """Climb the dynamical likelihood from `orientation`, a few tenths of a degree at most.

    `k_min`, `k_max` [1/Å] bound the disks that count.
    """
    statistics = replace(statistics, intensity_scatter=config.intensity_scatter)
    thickness = np.linspace(*config.thickness, config.n_thicknesses)
    cone = disk_tilts(statistics.semi_angle) if statistics.semi_angle > 0 else None
    n_steps = cone_steps(thickness, cone, FARTHEST) if cone is not None else 1

    def value(orientation):
        beams = bloch_intensities(
            orientation, thickness, tables, config.n_beams, config.n_weak, None, cone, n_steps
        )
        q = jnp.hypot(beams.qx, beams.qy)
        inside = (q > k_min) & (q <= k_max)
        intensity = jnp.where(inside, beams.intensity + 1e-9, 1e-9)
        log_expected = jnp.log(intensity.max(axis=0))
        pairing = pair(observed, beams.qx, beams.qy, log_expected, k_max, statistics)
        damping = jnp.asarray(config.damping)[:, None, None]
        everything = Expected(
            intensity * jnp.exp(-damping * q**2), limit_at(q, observed.log_limit, k_max), inside
        )
        own = jax.tree.map(lambda x: x[..., pairing.reflection], everything)
        own = own._replace(intensity=jnp.swapaxes(own.intensity, -1, -2))
        value = log_likelihood(
            pairing, observed.log_share, own, everything, observed.incident_sigma, statistics
        )
        return jax.nn.logsumexp(value, axis=0) - jnp.log(len(config.damping))

    def step(orientation, width):
        tilt = jnp.pad(width * jnp.asarray(LATTICE, orientation.dtype), ((0, 0), (0, 1)))
        around = orientation @ jax.vmap(rotations.rotation_vector_to_matrix)(tilt)
        values = jax.lax.map(value, around)
        total = jax.nn.logsumexp(values, axis=1) - jnp.log(len(thickness))
        best = jnp.argmax(total)
        vector = jnp.append(width * summit(total), jnp.zeros((), width.dtype))
        turned = orientation @ rotations.rotation_vector_to_matrix(vector)
        likeliest = jnp.asarray(thickness, width.dtype)[jnp.argmax(values[best])]
        return turned, (total[best], likeliest)

    widths = jnp.deg2rad(jnp.asarray(config.steps, orientation.dtype))
    orientation, (total, likeliest) = jax.lax.scan(step, orientation, widths)
    return Polished(orientation, total[-1], likeliest[-1])
