# SPDX-License-Identifier: GPL-3.0-or-later
"""The published kind of test set: uniformly random orientations with Bloch-wave intensities.

Je et al. (arXiv 2602.12420) do not state its thicknesses. Here they are uniform from 40 to 300 Å;
disks under 0.004 of the strongest are dropped, as published; there is no further noise. The direct
beam is listed, as it is in any scan, and left out by the network as in the published method.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.common.patterns import scan_of
from jaxstem.diffraction.bloch import bloch_intensities, prepare
from jaxstem.diffraction.geometry import Disks
from jaxstem.diffraction.illumination import disk_tilts
from jaxstem.diffraction.material import Material
from jaxstem.diffraction.propagation import cone_steps
from jaxstem.files.scan import DiskScan
from jaxstem.orientation import rotations

THICKNESS = (40.0, 300.0)  # Å
THRESHOLD = 0.004  # of the strongest disk
BEAM_K_MAX = 3.0  # 1/Å, of the beams that take part in scattering


class TestSet(NamedTuple):
    """Patterns (n, K), the direct beam first, their orientations and thicknesses [Å]."""

    disks: Disks
    orientation: Float[np.ndarray, "n 3 3"]
    thickness: Float[np.ndarray, " n"]

    def scan(self, voltage_kv: float) -> DiskScan:
        """The patterns as a scan of one row."""
        return scan_of(self.disks, voltage_kv)


@partial(jax.jit, static_argnames=("n_beams", "n_steps"))
def _patterns(orientation, thickness, tables, cone, n_beams, n_steps):
    def one(position):
        rotation, t = position
        return bloch_intensities(rotation, t[None], tables, n_beams, 200, None, cone, n_steps)

    beams = jax.lax.map(one, (orientation, thickness))
    return Disks(beams.qx, beams.qy, beams.intensity[:, 0], beams.intensity[:, 0] > 0)


def bloch_patterns(
    orientation: Float[Array, "n 3 3"],
    thickness: Float[Array, " n"],
    material: Material,
    convergence_mrad: float = 0.0,
    threshold: float = THRESHOLD,
    n_beams: int = 80,
    chunk: int = 512,
) -> Disks:
    """Bloch-wave patterns (n, K), strongest disk after the direct beam first.

    Disks within the material's k_max, none under `threshold` of the strongest one; intensities are
    shares of the incident beam; thickness in Å.
    """
    tables = prepare(material.crystal, material.voltage_kv, BEAM_K_MAX, material.u_iso)
    cone, n_steps = None, 1
    if convergence_mrad:
        turns = 1e-3 * convergence_mrad * float(np.max(thickness)) * material.k_max
        cone = disk_tilts(convergence_mrad, max(1, int(np.ceil(turns / 1.25))))
        n_steps = cone_steps(np.asarray(thickness), cone, material.k_max)
    parts = []
    for start in range(0, len(orientation), chunk):
        index = np.resize(np.arange(start, min(start + chunk, len(orientation))), chunk)
        found = _patterns(orientation[index], thickness[index], tables, cone, n_beams, n_steps)
        n_left = len(orientation) - start
        parts.append(jax.tree.map(lambda x, n=n_left: np.asarray(x)[:n], found))
    disks = Disks(*map(np.concatenate, zip(*parts, strict=True)))
    return selected(disks, material.k_max, threshold)


def selected(disks: Disks, k_max: float, threshold: float) -> Disks:
    """Disks within k_max [1/Å] and not under `threshold` of the strongest but the direct beam."""
    intensity = np.where(disks.qx**2 + disks.qy**2 <= k_max**2, disks.intensity, 0.0)
    strongest = intensity[:, 1:].max(axis=1, keepdims=True)
    mask = intensity >= np.maximum(threshold * strongest, 1e-9)
    rank = np.where(np.arange(intensity.shape[1]) == 0, np.inf, intensity * mask)
    order = np.argsort(-rank, axis=1, kind="stable")[:, : max(2, mask.sum(axis=1).max())]
    take = lambda x: np.take_along_axis(np.where(mask, x, x.dtype.type(0)), order, axis=1)  # noqa: E731
    return Disks(take(disks.qx), take(disks.qy), take(disks.intensity), take(mask))


def random_test_set(
    material: Material,
    n: int,
    seed: int = 0,
    convergence_mrad: float = 0.0,
    n_beams: int = 80,
) -> TestSet:
    """`n` patterns of uniformly random orientation and thickness; see the module's docstring."""
    key_orientation, key_thickness = jax.random.split(jax.random.key(seed))
    orientation = rotations.random_rotations(key_orientation, (n,))
    low, high = THICKNESS
    thickness = jax.random.uniform(key_thickness, (n,), minval=low, maxval=high)
    disks = bloch_patterns(
        orientation,
        jnp.asarray(thickness),
        material,
        convergence_mrad,
        n_beams=n_beams,
        chunk=min(512, n),
    )
    return TestSet(disks, np.asarray(orientation), np.asarray(thickness))
