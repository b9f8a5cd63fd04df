# SPDX-License-Identifier: GPL-3.0-or-later
"""Where training patterns come from: a library of dynamical patterns kept on the device.

Turning the crystal about the beam turns the pattern, and one Bloch-wave decomposition serves every
thickness. So zone axes are simulated once, dense and jittered over the sector of the proper Laue
group, and each training pattern picks an axis, a thickness and an in-plane angle. Together these
cover every orientation: the sector of m-3m, for one, is the standard triangle and its mirror image.

Two-beam patterns of random orientations (`TwoBeam`) need no library and are the cheaper, poorer
alternative. Shapes: `M` zone axes, `T` thicknesses, `B` beams without the direct one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray
from tqdm import tqdm

from jaxstem import so3
from jaxstem.bloch import bloch_library, prepare
from jaxstem.kinematic import Disks, Reflectors, strongest, two_beam
from jaxstem.model import Material


@dataclass(frozen=True)
class LibraryConfig:
    """n_axes: zone axes; thickness: lowest and highest [Å], n_thicknesses between them spaced
    evenly in the logarithm; n_beams, n_weak: strong beams and Bethe beams; beam_k_max: of the
    beams that take part in scattering [1/Å].
    """

    n_axes: int = 12_000
    thickness: tuple[float, float] = (30.0, 400.0)
    n_thicknesses: int = 16
    n_beams: int = 64
    n_weak: int = 200
    beam_k_max: float = 3.0


class Library(NamedTuple):
    """Dynamical patterns on the device.

    orientation: of each zone axis at in-plane angle zero; qx, qy [1/Å]; inside: whether a beam lies
    within the model's k_max; intensity: share of the incident beam (float16).
    """

    orientation: Float[Array, "M 3 3"]
    qx: Float[Array, "M B"]
    qy: Float[Array, "M B"]
    inside: Bool[Array, "M B"]
    intensity: Float[Array, "M T B"]


class TwoBeam(NamedTuple):
    """Two-beam patterns made as they are needed: reflections, wavelength [Å], and the logarithm of
    the lowest and highest thickness [Å].
    """

    reflectors: Reflectors
    wavelength: Float[Array, ""]
    log_thickness: Float[Array, " 2"]


def zone_axis_orientations(
    key: PRNGKeyArray, operations: Float[np.ndarray, "n 3 3"], n_axes: int
) -> Float[Array, "M 3 3"]:
    """About `n_axes` orientations whose beam directions cover the sector, jittered by half their
    spacing; the in-plane angle is arbitrary.
    """
    spacing = np.rad2deg(np.sqrt(4 * np.pi / (len(operations) * n_axes)))
    axes = jnp.asarray(so3.zone_axis_grid(operations, spacing), jnp.float32)
    axes = axes + 0.5 * np.deg2rad(spacing) * jax.random.normal(key, axes.shape)
    z = axes / jnp.linalg.norm(axes, axis=-1, keepdims=True)
    helper = jnp.eye(3)[jnp.argmin(jnp.abs(z), axis=-1)]
    x = jnp.cross(helper, z)
    x = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
    return jnp.stack([x, jnp.cross(z, x), z], axis=-1)


def build_library(
    material: Material, config: LibraryConfig, seed: int = 0, progress: bool | None = None
) -> Library:
    """Bloch-wave patterns of a material; some seconds to a minute on a CPU.

    Takes `M T B` 2-byte numbers of memory (24 MB by default). `progress` None shows a bar on a
    terminal only.
    """
    tables = prepare(
        material.crystal,
        material.voltage_kv,
        max(config.beam_k_max, material.k_max),
        material.u_iso,
    )
    orientation = zone_axis_orientations(jax.random.key(seed), material.operations, config.n_axes)
    thickness = jnp.geomspace(*config.thickness, config.n_thicknesses)
    parts = []
    chunk = 1_000
    disable = None if progress is None else not progress
    with tqdm(total=len(orientation), unit="zone axis", disable=disable, leave=False) as bar:
        for start in range(0, len(orientation), chunk):
            part = jnp.resize(orientation[start : start + chunk], (chunk, 3, 3))
            beams = bloch_library(part, thickness, tables, config.n_beams, config.n_weak)
            size = min(chunk, len(orientation) - start)
            parts.append(
                [
                    np.asarray(beams.qx[:size, 1:]),
                    np.asarray(beams.qy[:size, 1:]),
                    np.asarray(beams.intensity[:size, :, 1:], np.float16),
                ]
            )
            bar.update(size)
    qx, qy, intensity = (jnp.asarray(np.concatenate(part)) for part in zip(*parts, strict=True))
    inside = qx**2 + qy**2 <= material.k_max**2
    return Library(orientation, qx, qy, inside, intensity)


def sample_pattern(
    key: PRNGKeyArray, source: Library | TwoBeam, n_disks: int
) -> tuple[Disks, Float[Array, "3 3"]]:
    """A perfect pattern of a random orientation and thickness, and that orientation.

    From a library all beams come, from two-beam theory the strongest `n_disks`.
    """
    if isinstance(source, TwoBeam):
        key_orientation, key_thickness = jax.random.split(key)
        orientation = so3.random_rotations(key_orientation, ())
        low, high = source.log_thickness
        thickness = jnp.exp(jax.random.uniform(key_thickness, minval=low, maxval=high))
        qx, qy, intensity = two_beam(orientation, source.reflectors, source.wavelength, thickness)
        return strongest(qx, qy, intensity, n_disks), orientation
    key_axis, key_thickness, key_angle = jax.random.split(key, 3)
    n_axes, n_thicknesses, _ = source.intensity.shape
    axis = jax.random.randint(key_axis, (), 0, n_axes)
    layer = jax.random.randint(key_thickness, (), 0, n_thicknesses)
    angle = jax.random.uniform(key_angle, maxval=2 * jnp.pi)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    zero, one = jnp.zeros(()), jnp.ones(())
    turn = jnp.stack(
        [jnp.stack([cos, -sin, zero]), jnp.stack([sin, cos, zero]), jnp.stack([zero, zero, one])]
    )
    qx, qy = source.qx[axis], source.qy[axis]
    intensity = source.intensity[axis, layer].astype(jnp.float32)
    inside = source.inside[axis]
    disks = Disks(
        cos * qx + sin * qy, cos * qy - sin * qx, jnp.where(inside, intensity, 0.0), inside
    )
    return disks, source.orientation[axis] @ turn
