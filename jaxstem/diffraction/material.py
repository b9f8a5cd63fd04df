# SPDX-License-Identifier: GPL-3.0-or-later
"""A crystal as the microscope sees it: voltage, reflections, symmetry, orientation grid."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Complex, Float

from jaxstem.crystal.cell import Crystal, reflections, symmetry_operations
from jaxstem.crystal.electron import ELECTRON_REST_ENERGY, electron_wavelength
from jaxstem.diffraction.geometry import Reflectors
from jaxstem.diffraction.settings import Microscope, Specimen
from jaxstem.errors import InputError
from jaxstem.orientation import grids, rotations
from jaxstem.orientation.space import OrientationSpace, joint_space, orientation_space


def material_content(material: Material) -> dict[str, Any]:
    """What decides how a material diffracts; its name does not."""
    return {
        "crystal": material.crystal.to_dict() | {"name": None},
        "microscope": asdict(material.microscope),
        "specimen": asdict(material.specimen),
    }


def grid_content(material: Material) -> dict[str, Any]:
    """What decides the patterns at the orientations of its grid, and which orientations are one."""
    both = np.asarray(material.grid).tobytes() + np.asarray(material.operations).tobytes()
    return material_content(material) | {"grid": hashlib.sha256(both).hexdigest()}


MOST_CELLS = 8_000

_LABEL_WIDTH = 0.55
"""Width of the soft labels in units of the grid's spacing."""


@dataclass(frozen=True, eq=False)
class Material:
    """A crystal as the microscope sees it: reflections, symmetry, orientation grid.

    operations: (n, 3, 3) proper operations of the Laue group; grid: (m, 4) quaternions.
    """

    crystal: Crystal
    microscope: Microscope
    specimen: Specimen
    operations: Float[np.ndarray, "n 3 3"]
    grid: Float[np.ndarray, "m 4"]

    @property
    def voltage_kv(self) -> float:
        """Accelerating voltage [kV]."""
        return self.microscope.voltage_kv

    @property
    def wavelength(self) -> float:
        """Electron wavelength [Å]."""
        return self.microscope.wavelength

    @property
    def k_max(self) -> float:
        """Radius [1/Å] beyond which disks are not used."""
        return self.microscope.k_max

    @property
    def u_iso(self) -> float:
        """Mean square displacement of the atoms [Å²]."""
        return self.specimen.u_iso

    def reflectors(self, k_max: float | None = None) -> Reflectors:
        """Reflections up to k_max [1/Å], the microscope's if not said, as device arrays."""
        found = reflections(self.crystal, k_max or self.k_max, self.u_iso)
        return Reflectors(
            jnp.asarray(found.g, jnp.float32),
            jnp.asarray(np.abs(found.structure_factor) ** 2, jnp.float32),
            jnp.asarray(
                inverse_extinction(self.crystal, found.structure_factor, self.voltage_kv),
                jnp.float32,
            ),
        )

    @functools.cached_property
    def k_min(self) -> float:
        """Radius [1/Å] inside which a disk is the direct beam: 0.6 of the first reflection."""
        return direct_beam_radius(self.crystal, self.k_max)

    @property
    def spacing(self) -> float:
        """Mean spacing of the grid's cells [rad]."""
        return float(grids.volume_spacing(len(self.grid), len(self.operations)))

    def space(self) -> OrientationSpace:
        """Symmetry and grid for the losses."""
        return orientation_space(self.operations, self.grid, _LABEL_WIDTH * self.spacing)


def direct_beam_radius(crystal: Crystal, k_max: float) -> float:
    """Radius [1/Å] inside which a disk is the direct beam: 0.6 of the first reflection, which must
    lie within `k_max` [1/Å].
    """
    return 0.6 * float(np.linalg.norm(reflections(crystal, k_max).g, axis=1).min())


def inverse_extinction(
    crystal: Crystal, structure_factor: Complex[np.ndarray, " n"], voltage_kv: float
) -> Float[np.ndarray, " n"]:
    """1/ξ_g = λ γ |F| / (π V) [1/Å], F in Å for an electron at rest, V the cell's volume.

    Williams & Carter, Transmission Electron Microscopy, eq. 13.4, at the Bragg angle's cosine of
    one; γ is the relativistic mass ratio.
    """
    wavelength = electron_wavelength(voltage_kv * 1e3)
    gamma = 1.0 + voltage_kv * 1e3 / ELECTRON_REST_ENERGY
    volume = abs(np.linalg.det(crystal.lattice))
    return wavelength * gamma * np.abs(structure_factor) / (np.pi * volume)


def make_material(
    crystal: Crystal, microscope: Microscope, specimen: Specimen, spacing_deg: float
) -> Material:
    """The material of a crystal, its grid about `spacing_deg` degrees apart.

    A crystal of low symmetry has more orientations to tell apart: its grid is coarsened to at most
    `MOST_CELLS` cells, between which refinement finds its way.

    Raises InputError when the microscope's k_max lies below the first reflection.
    """
    reflections(crystal, microscope.k_max)
    operations = symmetry_operations(crystal, laue=True)
    finest = np.rad2deg(grids.volume_spacing(MOST_CELLS, len(operations)))
    grid = grids.so3_grid(operations, max(spacing_deg, finest))
    quaternions = np.asarray(rotations.matrix_to_quaternion(jnp.asarray(grid)), np.float32)
    return Material(crystal, microscope, specimen, operations, quaternions)


def check_materials(materials: Sequence[Material]) -> None:
    """Raise InputError unless the materials can be the phases of one model.

    There must be one at least, names must differ, the microscope must not.
    """
    if not materials:
        raise InputError("a model needs one crystal at least; name its CIF.")
    name, count = Counter(m.crystal.name for m in materials).most_common(1)[0]
    if count > 1:
        raise InputError(
            f"{count} phases are called {name}; give their CIFs names that differ, for phases are "
            "named after them."
        )
    if len({m.microscope for m in materials}) > 1:
        raise InputError(
            "the phases differ in voltage, k_max or beam; make them all for one microscope."
        )


def phases_space(materials: Sequence[Material]) -> OrientationSpace:
    """Symmetries and grids of all phases for the losses."""
    return joint_space([m.space() for m in materials])
