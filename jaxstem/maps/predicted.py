# SPDX-License-Identifier: GPL-3.0-or-later
"""The disks that a map's answers predict, for the report to lay over the patterns.

Those of two-beam theory averaged over the illumination cone: at the thickness that the map states,
or where it states none averaged over the thicknesses that verification considers.

Shapes: `m` positions, `K` disks predicted for each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxstem.crystal.cell import Crystal, reflections
from jaxstem.diffraction.geometry import excitation_error
from jaxstem.diffraction.material import inverse_extinction
from jaxstem.diffraction.settings import Microscope, Specimen
from jaxstem.diffraction.two_beam import two_beam_intensity
from jaxstem.maps.payload import ABSENT
from jaxstem.maps.texture import CHUNK
from jaxstem.verification.config import LikelihoodConfig


@dataclass(frozen=True)
class ReportConfig:
    """most_drawn: positions along a side of the maps; most_kept: positions with pattern and disks;
    pattern_pixels: of all patterns together, which are binned to it; n_predicted: disks predicted
    for an answer; weakest: of them, as a share of the incident beam; n_counted: reflections
    whose counts are listed for an answer.
    """

    most_drawn: int = 512
    most_kept: int = 4096
    pattern_pixels: int = 18_000_000
    n_predicted: int = 32
    weakest: float = 0.002
    n_counted: int = 24


class Predicted(NamedTuple):
    """Disks that an orientation predicts, strongest first.

    reflection: number in `crystal.reflections` of its phase, `ABSENT` beyond the last; strength:
    0 … 255, the logarithm of the intensity from the weakest that counts to the whole beam.
    """

    reflection: Int[np.ndarray, "kept K"]
    strength: Int[np.ndarray, "kept K"]


def predict(
    orientation: Float[np.ndarray, "kept 3 3"],
    thickness: Float[np.ndarray, " kept"],
    unit_cell: Crystal,
    microscope: Microscope,
    specimen: Specimen,
    config: ReportConfig,
) -> Predicted:
    """The disks of two-beam theory for orientations of one crystal.

    `thickness` [Å], NaN: averaged over the specimen's as verification does.
    """
    found = reflections(unit_cell, microscope.k_max, specimen.u_iso)
    g = jnp.asarray(found.g, jnp.float32)
    inverse = inverse_extinction(unit_cell, found.structure_factor, microscope.voltage_kv)
    inverse = jnp.asarray(inverse, jnp.float32)
    several = np.asarray(LikelihoodConfig(thickness=specimen.thickness).thicknesses())
    thicknesses = np.where(np.isnan(thickness)[:, None], several, thickness[:, None])
    n_disks = min(config.n_predicted, len(g))
    index, value = [], []
    for start in range(0, len(orientation), CHUNK):
        part = slice(start, start + CHUNK)
        room = [(0, CHUNK - len(orientation[part]))]
        top, which = _strongest(
            jnp.asarray(np.pad(orientation[part], [*room, (0, 0), (0, 0)]), jnp.float32),
            jnp.asarray(np.pad(thicknesses[part], [*room, (0, 0)]), jnp.float32),
            g,
            inverse,
            microscope.wavelength,
            microscope.semi_angle_mrad,
            n_disks,
        )
        value.append(np.asarray(top)[: len(orientation[part])])
        index.append(np.asarray(which)[: len(orientation[part])])
    value = np.concatenate(value) if value else np.zeros((0, n_disks))
    index = np.concatenate(index) if index else np.zeros((0, n_disks), int)
    strength = 255 * (1 - np.log(np.maximum(value, 1e-9)) / np.log(config.weakest))
    seen = value >= config.weakest
    return Predicted(np.where(seen, index, ABSENT), np.where(seen, np.round(strength), 0))


@jax.jit(static_argnames="n_disks")
def _strongest(orientation, thickness, g, inverse, wavelength, semi_angle, n_disks):
    g_lab = jnp.einsum("...ji,nj->...ni", orientation, g, precision="highest")
    s = excitation_error(g_lab, wavelength)
    q = jnp.hypot(g_lab[..., 0], g_lab[..., 1])
    at = lambda t: two_beam_intensity(s, inverse, q, t[:, None], semi_angle)  # noqa: E731
    return jax.lax.top_k(jax.lax.map(at, thickness.T).mean(axis=0), n_disks)
