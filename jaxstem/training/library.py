# SPDX-License-Identifier: GPL-3.0-or-later
"""Where training patterns come from: a library of dynamical patterns kept on the device.

Turning the crystal about the beam turns the pattern, and one Bloch-wave decomposition serves every
thickness. So zone axes are simulated once, dense and jittered over the sector of the proper Laue
group, and each training pattern picks an axis, a thickness and an in-plane angle. Together these
cover every orientation: the sector of m-3m, for one, is the standard triangle and its mirror image.

The illumination's convergence belongs to the pattern as much as the thickness does: in thick foils
it fills the zeros of the rocking curves. A library can be kept for the next run (`cached`), and is
then read instead of made.

Two-beam patterns of random orientations (`TwoBeam`) need no library and are the cheaper, poorer
alternative. Shapes: `M` zone axes, `T` thicknesses, `B` beams without the direct one.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray
from tqdm import tqdm

from jaxstem.diffraction.bloch import bloch_library, prepare
from jaxstem.diffraction.geometry import Disks, Reflectors, strongest
from jaxstem.diffraction.illumination import disk_tilts, ring_tilts
from jaxstem.diffraction.material import Material, material_content
from jaxstem.diffraction.propagation import cone_steps
from jaxstem.diffraction.settings import Microscope
from jaxstem.diffraction.two_beam import two_beam_pattern
from jaxstem.orientation import grids, rotations
from jaxstem.runtime.cache import cached


@dataclass(frozen=True)
class LibraryConfig:
    """n_axes: zone axes; n_thicknesses: over the specimen's range, spaced evenly in the logarithm;
    n_beams, n_weak: strong beams and Bethe beams; beam_k_max: of the beams that take part in
    scattering [1/Å]; absorption: share of the Einstein model's. Illumination and thicknesses are
    those of the material.
    """

    n_axes: int = 12_000
    n_thicknesses: int = 16
    n_beams: int = 64
    n_weak: int = 200
    beam_k_max: float = 3.0
    absorption: float = 0.0


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
    axes = jnp.asarray(grids.zone_axis_grid(operations, spacing), jnp.float32)
    axes = axes + 0.5 * np.deg2rad(spacing) * jax.random.normal(key, axes.shape)
    z = axes / jnp.linalg.norm(axes, axis=-1, keepdims=True)
    helper = jnp.eye(3)[jnp.argmin(jnp.abs(z), axis=-1)]
    x = jnp.cross(helper, z)
    x = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
    return jnp.stack([x, jnp.cross(z, x), z], axis=-1)


def build_library(
    material: Material,
    config: LibraryConfig,
    seed: int = 0,
    progress: bool | None = None,
    cache: Path | None = None,
) -> Library:
    """Bloch-wave patterns of a material; some seconds to a minute on a CPU.

    Takes `M B (2 T + 9) + 36 M` bytes: 2 for each intensity, that is 126 for each zone axis and
    thickness, 9 for each beam's place and 36 for an orientation; by default 31 MB. Convergence
    doubles the time, precession takes 24 times as long. `progress` None shows a bar on a terminal
    only.

    `cache` is a folder (`default_cache`) that keeps the library for the next time; None keeps
    nothing.
    """
    content = library_content(material, config, seed)
    make = lambda: _make_library(material, config, seed, progress)  # noqa: E731
    made = cached(cache, "library", content, make, like=Library(*Library._fields))
    return jax.tree.map(jnp.asarray, made)


def library_content(material: Material, config: LibraryConfig, seed: int) -> dict[str, Any]:
    """What decides a library besides the environment, in what JSON can hold."""
    return material_content(material) | {"library": dataclasses.asdict(config), "seed": seed}


def _make_library(
    material: Material, config: LibraryConfig, seed: int, progress: bool | None
) -> Library:
    tables = prepare(
        material.crystal,
        material.voltage_kv,
        max(config.beam_k_max, material.k_max),
        material.u_iso,
        absorption=config.absorption,
    )
    orientation = zone_axis_orientations(jax.random.key(seed), material.operations, config.n_axes)
    thickness = np.geomspace(*material.specimen.thickness, config.n_thicknesses)
    ring, cone, n_steps = _illumination(material.microscope, thickness)
    parts = []
    chunk = 1_000
    at_once = None if jax.default_backend() == "cpu" else chunk // 4
    disable = None if progress is None else not progress
    with tqdm(total=len(orientation), unit="zone axis", disable=disable, leave=False) as bar:
        for start in range(0, len(orientation), chunk):
            part = jnp.resize(orientation[start : start + chunk], (chunk, 3, 3))
            beams = bloch_library(
                part, thickness, tables, config.n_beams, config.n_weak, at_once, ring, cone, n_steps
            )
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


def _illumination(microscope: Microscope, thickness: Float[np.ndarray, " T"]):
    """Tilts of precession, tilts of the cone around each, and the cone's steps.

    Over the cone's radius the phase of a disk at `k_max` turns by as much as thickness times angle
    times k_max; each ring of the quadrature serves one turn or so (intensities of the thickest foil
    right to a tenth).
    """
    ring = ring_tilts(microscope.precession_deg) if microscope.precession_deg else None
    if not microscope.semi_angle_mrad:
        return ring, None, 1
    turns = 1e-3 * microscope.semi_angle_mrad * np.max(thickness) * microscope.k_max
    cone = disk_tilts(microscope.semi_angle_mrad, max(1, int(np.ceil(turns / 1.25))))
    return ring, cone, cone_steps(thickness, cone, microscope.k_max)


def sample_pattern(
    key: PRNGKeyArray, source: Library | TwoBeam, n_disks: int
) -> tuple[Disks, Float[Array, "3 3"]]:
    """A perfect pattern of a random orientation and thickness, and that orientation.

    From a library all beams come, from two-beam theory the strongest `n_disks`.
    """
    if isinstance(source, TwoBeam):
        key_orientation, key_thickness = jax.random.split(key)
        orientation = rotations.random_rotations(key_orientation, ())
        low, high = source.log_thickness
        thickness = jnp.exp(jax.random.uniform(key_thickness, minval=low, maxval=high))
        qx, qy, intensity = two_beam_pattern(
            orientation, source.reflectors, source.wavelength, thickness
        )
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
