# SPDX-License-Identifier: GPL-3.0-or-later
"""The crystal: its unit cell, its symmetry and the reflections it can give.

A `Crystal` is the unit cell exactly as a CIF states it, never reduced or re-oriented to a standard
setting. Rows of `lattice` are a, b, c (Å) in the crystal's Cartesian frame, which has x along a and
b in the xy plane, so that z is along c*. Rows of the reciprocal lattice are a*, b*, c* (1/Å,
without 2 pi), so `g = hkl @ reciprocal_lattice(lattice)`, and `cartesian = fractional @ lattice`.

A site that several elements share is listed once for each of them, at the same position, with its
occupancy. Symmetry is found from the atoms (not from what the CIF claims), in the cell's own
setting, and handed out as rotation matrices in the Cartesian frame. Diffraction patterns are nearly
the same for g and -g (Friedel's law), so the group that matters for indexing is the Laue group:
the point group with the inversion added. Of either group only the proper rotations (det +1) can
turn one orientation into an equivalent one.

Everything here is set-up work on the host: NumPy, float64, no randomness.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import spglib
from jaxtyping import Complex, Float, Int

from jaxstem.crystal.scattering import lobato_factor, lobato_parameters
from jaxstem.errors import InputError

if TYPE_CHECKING:
    from pymatgen.core import Structure


_SYMMETRY_TOLERANCE = 0.01
"""How far (Å) atoms may lie from their symmetric places and still count as symmetric."""

_ABSENCE_TOLERANCE = 1e-4
"""Reflections whose |F| is a smaller fraction than this of all atoms scattering in phase at the
same |g| are absent: what is left of an extinction after the rounding of coordinates."""

_MOST_OCCUPIED = 1.02
"""Of the occupancies of one place, which are rounded."""

_LAUE_GROUPS = {
    "-1": ("1", "-1"),
    "2/m": ("2", "m", "2/m"),
    "mmm": ("222", "mm2", "mmm"),
    "4/m": ("4", "-4", "4/m"),
    "4/mmm": ("422", "4mm", "-42m", "-4m2", "4/mmm"),
    "-3": ("3", "-3"),
    "-3m": ("32", "3m", "-3m"),
    "6/m": ("6", "-6", "6/m"),
    "6/mmm": ("622", "6mm", "-6m2", "-62m", "6/mmm"),
    "m-3": ("23", "m-3"),
    "m-3m": ("432", "-43m", "m-3m"),
}
"""The 11 Laue groups, each with the point groups that become it when the inversion is added."""


@dataclasses.dataclass(frozen=True, eq=False)
class Crystal:
    """A unit cell with its atoms and symmetry; see the module's docstring for the frames.

    name: what the phase is called in maps and reports.
    lattice: (3, 3) rows a, b, c in Å. positions: (n, 3) fractional. numbers: (n,) atomic numbers.
    occupancies: (n,) in 0 … 1. point_group, laue_group: Hermann-Mauguin. space_group: 1 … 230.
    """

    name: str
    lattice: Float[np.ndarray, "3 3"]
    positions: Float[np.ndarray, "n 3"]
    numbers: Int[np.ndarray, " n"]
    occupancies: Float[np.ndarray, " n"]
    point_group: str
    laue_group: str
    space_group: int

    def to_dict(self) -> dict[str, Any]:
        """The crystal as plain lists, numbers and strings that JSON can hold."""
        return {
            key: value.tolist() if isinstance(value, np.ndarray) else value
            for key, value in vars(self).items()
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Crystal":
        """The inverse of `to_dict`, bit for bit. Raises ValueError where that is no crystal."""
        arrays = {
            "lattice": np.asarray(fields["lattice"], dtype=np.float64).reshape(3, 3),
            "positions": np.asarray(fields["positions"], dtype=np.float64).reshape(-1, 3),
            "numbers": np.asarray(fields["numbers"], dtype=np.int64),
            "occupancies": np.asarray(fields["occupancies"], dtype=np.float64),
        }
        stated = {**fields, **arrays}
        problem = _problem(stated)
        if problem:
            raise ValueError(f"the crystal's {problem}")
        return cls(**stated)


def _problem(stated: dict[str, Any]) -> str | None:
    """What is wrong with the fields of a crystal, None for nothing."""
    numbers, lattice = stated["numbers"], stated["lattice"]
    n = len(stated["positions"])
    if not n or numbers.shape != (n,) or stated["occupancies"].shape != (n,):
        return "atoms differ in number"
    if not all(np.isfinite(stated[name]).all() for name in ("lattice", "positions", "occupancies")):
        return "numbers are not finite"
    if abs(np.linalg.det(lattice)) < 1e-6:
        return "cell has no volume"
    if not set(numbers.tolist()) <= lobato_parameters().keys():
        return "atoms are no elements"
    if stated["laue_group"] not in _LAUE_GROUPS or stated["space_group"] not in range(1, 231):
        return "symmetry is not known"
    return None


@dataclasses.dataclass(frozen=True, eq=False)
class Reflections:
    """Reflections by rising |g|, without (000) and without absences.

    hkl: (n, 3) Miller indices. g: (n, 3) scattering vectors, 1/Å, crystal Cartesian frame.
    structure_factor: (n,) complex F in Å (not divided by the cell's volume).
    """

    hkl: Int[np.ndarray, "n 3"]
    g: Float[np.ndarray, "n 3"]
    structure_factor: Complex[np.ndarray, " n"]


def from_structure(structure: Structure, name: str) -> Crystal:
    """A pymatgen structure as a Crystal: same cell, our Cartesian frame, symmetry determined.

    Raises InputError for an element without scattering factors and for atoms on top of each other.
    """
    sites = [
        (site.frac_coords, species.symbol, getattr(species, "Z", 0), occupancy)
        for site in structure
        for species, occupancy in site.species.items()
    ]
    unknown = sorted({symbol for _, symbol, z, _ in sites if z not in lobato_parameters()})
    if unknown:
        raise InputError(
            f"no electron scattering factors are known for {', '.join(unknown)}; "
            "name the atoms by element."
        )
    lattice = structure.lattice
    # in a left-handed cell the same atoms have the opposite coordinates on the opposite axes
    hand = -1.0 if np.linalg.det(lattice.matrix) < 0 else 1.0
    return crystal_of(
        name,
        (*lattice.abc, *lattice.angles),
        hand * np.array([position for position, *_ in sites], dtype=np.float64),
        np.array([z for *_, z, _ in sites], dtype=np.int64),
        np.array([occupancy for *_, occupancy in sites], dtype=np.float64),
    )


_FARTHEST = 1e4
"""Cells by which atoms may be away from the first one; farther ones come of damage."""


def crystal_of(
    name: str,
    cell: Sequence[float],
    positions: Float[np.ndarray, "n 3"],
    numbers: Int[np.ndarray, " n"],
    occupancies: Float[np.ndarray, " n"],
) -> Crystal:
    """A Crystal of atoms in a cell a, b, c (Å), alpha, beta, gamma (degrees); symmetry determined.

    Fractional positions, atomic numbers and occupancies are those of all atoms in the cell. Raises
    InputError for a cell without volume, for an element without scattering factors, and for atoms
    on top of each other.
    """
    if not np.all(np.abs(positions) < _FARTHEST):
        raise InputError(
            "an atom's coordinates are no finite numbers, or far away from the cell; correct them."
        )
    unknown = sorted(set(numbers.tolist()) - lobato_parameters().keys())
    if unknown:
        raise InputError(f"no electron scattering factors are known for the element {unknown[0]}.")
    unfinished = Crystal(
        name=name,
        lattice=standard_lattice(*cell),
        positions=positions,
        numbers=numbers,
        occupancies=occupancies,
        point_group="",
        laue_group="",
        space_group=0,
    )
    symmetry = _symmetry(unfinished)[1]
    return dataclasses.replace(
        unfinished,
        point_group=symmetry.pointgroup,
        laue_group=laue_group_of(symmetry.pointgroup),
        space_group=symmetry.number,
    )


def standard_lattice(
    a: float, b: float, c: float, alpha: float, beta: float, gamma: float
) -> Float[np.ndarray, "3 3"]:
    """Rows a, b, c (Å) with x along a, b in the xy plane (y > 0), z along c*; angles in degrees.

    Raises InputError for lengths and angles that enclose no volume.
    """
    cell = np.array([a, b, c, alpha, beta, gamma])
    if not (np.all(np.isfinite(cell) & (cell > 0)) and _shape_volume(alpha, beta, gamma) > 1e-6):
        raise InputError(
            f"the cell {', '.join(f'{value:g}' for value in cell)} (a, b, c in Å and three angles "
            "in degrees) encloses no volume; correct it."
        )
    cosines = np.cos(np.deg2rad([alpha, beta, gamma]))
    cosines[np.abs(cosines) < 1e-15] = 0
    cos_alpha, cos_beta, cos_gamma = cosines
    sin_gamma = np.sqrt(1 - cos_gamma**2)
    c_y = (cos_alpha - cos_beta * cos_gamma) / sin_gamma
    c_z = np.sqrt(1 - cos_beta**2 - c_y**2)
    return np.array(
        [
            [a, 0, 0],
            [b * cos_gamma, b * sin_gamma, 0],
            [c * cos_beta, c * c_y, c * c_z],
        ]
    )


def _shape_volume(alpha: float, beta: float, gamma: float) -> float:
    """(V / abc)² of a cell with these angles (degrees); negative for impossible angles."""
    cosines = np.cos(np.deg2rad([alpha, beta, gamma]))
    return float(1 + 2 * np.prod(cosines) - np.sum(cosines**2))


def reciprocal_lattice(lattice: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "3 3"]:
    """Rows a*, b*, c* (1/Å, without 2 pi) of the lattice whose rows are a, b, c (Å)."""
    return np.linalg.inv(lattice).T


def laue_group_of(point_group: str) -> str:
    """The Laue group (Hermann-Mauguin) that a point group becomes when inversion is added."""
    return next(laue for laue, members in _LAUE_GROUPS.items() if point_group in members)


def structure_factors(
    crystal: Crystal, hkl: Int[np.ndarray, "n 3"], u_iso: float = 0.0
) -> Complex[np.ndarray, " n"]:
    """Structure factors F (Å) of the reflections hkl.

    F = sum_j o_j f_e,j(|g|) exp(2 pi i h·r_j) exp(-2 pi² u |g|²), where u (`u_iso`, Å²) is the
    mean square displacement of the atoms along any one direction (B = 8 pi² u; C. J. Humphreys,
    Rep. Prog. Phys. 42 (1979) 1825).
    """
    length = np.linalg.norm(hkl @ reciprocal_lattice(crystal.lattice), axis=-1)
    factor = {z: lobato_factor(z, length) for z in np.unique(crystal.numbers).tolist()}
    total = np.zeros(len(hkl), dtype=np.complex128)
    for z, occupancy, position in zip(
        crystal.numbers, crystal.occupancies, crystal.positions, strict=True
    ):
        total += occupancy * factor[int(z)] * np.exp(2j * np.pi * (hkl @ position))
    return total * debye_waller(length, u_iso)


def debye_waller(length: Float[np.ndarray, "..."], u_iso: float) -> Float[np.ndarray, "..."]:
    """exp(-2 pi² u |g|²), by which thermal motion weakens an amplitude at |g| = length (1/Å)."""
    return np.exp(-2 * np.pi**2 * u_iso * np.square(length))


def reflections(crystal: Crystal, k_max: float, u_iso: float = 0.0) -> Reflections:
    """All reflections with 0 < |g| <= k_max (1/Å) that are not absent, by rising |g|.

    `u_iso` (Å²) is the mean square displacement of `structure_factors`; it does not change which
    reflections there are. Raises InputError when no reflection lies below k_max.
    """
    if not (np.isfinite(k_max) and k_max > 0):
        raise InputError(f"k_max is {k_max} 1/Å: give a positive number.")
    reciprocal = reciprocal_lattice(crystal.lattice)
    # |h| = |g·a| <= k_max |a|, and so on
    limits = np.floor(k_max * np.linalg.norm(crystal.lattice, axis=1) + 1e-9).astype(int)
    axes = [np.arange(-limit, limit + 1) for limit in limits]
    hkl = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    length = np.linalg.norm(hkl @ reciprocal, axis=1)
    inside = (length <= k_max + 1e-9) & np.any(hkl != 0, axis=1)
    hkl, length = hkl[inside], length[inside]

    factor = structure_factors(crystal, hkl)
    in_phase = np.zeros(len(hkl))
    for z in np.unique(crystal.numbers).tolist():
        atoms = crystal.occupancies[crystal.numbers == z].sum()
        in_phase += atoms * np.abs(lobato_factor(z, length))
    present = np.abs(factor) > _ABSENCE_TOLERANCE * in_phase
    hkl, length, factor = hkl[present], length[present], factor[present]
    if len(hkl) == 0:
        raise InputError(
            f"{crystal.name} has no reflection with |g| up to k_max = {k_max} 1/Å: "
            "give a larger k_max."
        )
    order = np.lexsort((-hkl[:, 2], -hkl[:, 1], -hkl[:, 0], np.round(length, 9)))
    return Reflections(
        hkl=hkl[order],
        g=hkl[order] @ reciprocal,
        structure_factor=(factor * debye_waller(length, u_iso))[order],
    )


def symmetry_operations(crystal: Crystal, laue: bool = True) -> Float[np.ndarray, "n 3 3"]:
    """Proper symmetry rotations in the crystal's Cartesian frame, the identity first.

    Of the Laue group by default; with `laue=False` those that the point group itself has (zinc
    blende, -43m: 24 and 12). Orthogonal matrices with det +1, to be multiplied from the left:
    `O @ R` is the same orientation as R. The order is by rising angle of rotation and is the same
    in every run.
    """
    lattice, symmetry = _symmetry(crystal)
    # integer matrices in the primitive cell tell the operations apart exactly
    indices = symmetry.rotations
    rotations = lattice.T @ indices @ np.linalg.inv(lattice.T)
    handedness = np.linalg.det(indices).round()[:, None, None]
    if laue:
        indices, rotations = indices * handedness, rotations * handedness
    else:
        is_proper = handedness[:, 0, 0] > 0
        indices, rotations = indices[is_proper], rotations[is_proper]
    keys = np.column_stack([-np.trace(indices, axis1=1, axis2=2), -indices.reshape(-1, 9)])
    _, first = np.unique(keys, axis=0, return_index=True)
    u, _, vh = np.linalg.svd(rotations[first])  # exactly orthogonal, however the cell was rounded
    return u @ vh + 0.0


@functools.lru_cache(maxsize=32)
def _symmetry(
    crystal: Crystal,
) -> tuple[Float[np.ndarray, "3 3"], spglib.SpglibDataset]:
    """A primitive cell that is not turned, a, b, c in Å as rows, and its symmetry.

    Only a primitive cell is mapped onto itself by every operation of the point group: a supercell,
    or fcc in a tetragonal cell, would hide some of them.
    """
    # what shares a place is one atom, of a kind for each mixture
    places: dict[tuple[float, ...], dict[int, float]] = {}
    for z, occupancy, position in zip(
        crystal.numbers, crystal.occupancies, crystal.positions, strict=True
    ):
        place = places.setdefault(tuple(position.tolist()), {})
        place[int(z)] = place.get(int(z), 0.0) + float(occupancy)
    mixtures = list(places.values())
    if max(sum(mixture.values()) for mixture in mixtures) > _MOST_OCCUPIED:
        raise _without_symmetry(crystal.name)
    kinds = np.array([mixtures.index(mixture) for mixture in mixtures])
    positions = np.array(list(places))

    whole = _dataset(crystal.name, crystal.lattice, positions, kinds)
    _, first = np.unique(whole.mapping_to_primitive, return_index=True)
    lattice = np.asarray(whole.primitive_lattice)
    cartesian = positions[first] @ crystal.lattice
    primitive = cartesian @ np.linalg.inv(lattice)
    return lattice, _dataset(crystal.name, lattice, primitive, kinds[first])


def _dataset(name: str, lattice, positions, kinds) -> spglib.SpglibDataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of how it will report failures one day
        try:
            found = spglib.get_symmetry_dataset((lattice, positions, kinds), _SYMMETRY_TOLERANCE)
        except spglib.SpglibError:
            found = None
    if found is None:
        raise _without_symmetry(name)
    return found


def _without_symmetry(name: str) -> InputError:
    return InputError(
        f"the symmetry of {name} cannot be determined; look for atoms on top of each other in its "
        "cell."
    )
