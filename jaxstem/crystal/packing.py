# SPDX-License-Identifier: GPL-3.0-or-later
"""From sites to all atoms of the cell, and whether atoms can be where they are then.

Sites are rounded in files: 0.333 for a third. A site that lies near a symmetry element is moved
onto it (the mean of its images nearby), so that no atom has a twin at 0.001 of the cell. The scale
for distances is the sum of covalent radii (B. Cordero et al., Dalton Trans. (2008) 2832, as gemmi
lists them): nearest atoms of real crystals are at 0.6 … 1.4 of it.
"""

from __future__ import annotations

import dataclasses

import gemmi
import numpy as np
from jaxtyping import Float, Int

from jaxstem.crystal.spacegroups import Setting
from jaxstem.errors import InputError

MOST_OCCUPIED = 1.02
"""Of the occupancies of one place, which are rounded."""

_SAME = 0.1
"""Distance (Å) of a site from its own image up to which it lies on the symmetry element between."""

_ROUNDED, _ROUNDED_FAR = 0.004, 0.3
"""Such a difference of fractional coordinates is rounding as well, up to this distance (Å)."""

_SPLIT = 0.03
"""Distance (Å) from which on a site and its images, where only one of them is ever there, are the
places of a split atom."""

SAME_PLACE = 0.3
"""Distance (Å) up to which two readings of an atom are the same."""

_ONE_PLACE = 0.02
"""Distance (Å) up to which two sites are one place."""

_TOO_NEAR = 0.6
"""As a share of the sum of covalent radii: atoms as near as this are not both there."""

_DENSITIES = (0.3, 25.0)
"""g/cm³: less than of any solid, and more than osmium's 22.6."""

_G_PER_CM3 = 1.66053907
"""Atomic mass units per Å³ in g/cm³."""


@dataclasses.dataclass(frozen=True, eq=False)
class Sites:
    """Sites as a file lists them, one element each.

    labels: (n,). numbers: (n,) atomic numbers. positions: (n, 3) fractional. occupancies: (n,).
    multiplicities: (n,) atoms of the site in the cell as stated, 0 where nothing is.
    """

    labels: tuple[str, ...]
    numbers: Int[np.ndarray, " n"]
    positions: Float[np.ndarray, "n 3"]
    occupancies: Float[np.ndarray, " n"]
    multiplicities: Int[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True, eq=False)
class Atoms:
    """All atoms of a cell: `site` (n,) tells from which of the sites each comes."""

    numbers: Int[np.ndarray, " n"]
    positions: Float[np.ndarray, "n 3"]
    occupancies: Float[np.ndarray, " n"]
    site: Int[np.ndarray, " n"]


def expanded(sites: Sites, setting: Setting, lattice: Float[np.ndarray, "3 3"]) -> Atoms:
    """All atoms that the operators make of the sites; rows of `lattice` are a, b, c in Å.

    Raises InputError where one place is occupied more than once, naming the sites.
    """
    orbits: list[np.ndarray] = []
    placed = np.zeros((len(sites.labels) * len(setting.rotations), 3))
    whose = np.zeros(len(placed), dtype=np.int64)
    n = 0
    for label, position, occupancy in zip(
        sites.labels, sites.positions, sites.occupancies, strict=True
    ):
        orbit = _orbit(position, occupancy, setting, lattice, label)
        here = _distances(orbit[:1], placed[:n], lattice)[0] < _ONE_PLACE
        if here.any():  # a place has one position, whichever site is there
            orbit = orbits[whose[np.argmax(here)]]
        placed[n : n + len(orbit)], whose[n : n + len(orbit)] = orbit, len(orbits)
        n += len(orbit)
        orbits.append(orbit)
    site = np.repeat(np.arange(len(orbits)), [len(orbit) for orbit in orbits])
    atoms = Atoms(
        numbers=sites.numbers[site],
        positions=np.concatenate(orbits),
        occupancies=sites.occupancies[site],
        site=site,
    )
    _, place = np.unique(atoms.positions, axis=0, return_inverse=True)
    place = place.ravel()
    total = np.bincount(place, atoms.occupancies)
    if total.max() > MOST_OCCUPIED:
        sharing = sorted(set(site[place == np.argmax(total)].tolist()))
        names = " and ".join(sites.labels[one] for one in sharing)
        raise InputError(
            f"the occupancies of {names} at one place sum to {total.max():.4g}; "
            "correct them, and list each symmetric site once."
        )
    return dataclasses.replace(atoms, occupancies=atoms.occupancies / np.maximum(total, 1)[place])


def _orbit(
    position: Float[np.ndarray, " 3"],
    occupancy: float,
    setting: Setting,
    lattice: np.ndarray,
    label: str,
) -> Float[np.ndarray, "n 3"]:
    """Images of one site, in 0 … 1, each once."""
    for _ in range(5):
        images = position @ setting.rotations.transpose(0, 2, 1) + setting.translations
        apart = images - position
        apart -= np.round(apart)
        length = np.linalg.norm(apart @ lattice, axis=1)
        near = length < _SAME
        near |= (np.abs(apart).max(1) < _ROUNDED) & (length < _ROUNDED_FAR)
        if near.sum() * occupancy <= MOST_OCCUPIED:
            near = length < _SPLIT
        shift = apart[near].mean(0)
        position = position + shift
        if np.abs(shift).max() < 1e-12:
            break
    images = (position @ setting.rotations.transpose(0, 2, 1) + setting.translations) % 1.0
    images[images > 1 - 1e-9] = 0.0
    new = []
    left = np.ones(len(images), bool)
    while left.any():
        first = int(np.argmax(left))
        new.append(images[first])
        left &= _distances(images[first : first + 1], images, lattice)[0] > _ONE_PLACE
    if len(new) * near.sum() != len(images):
        raise InputError(
            f"the site {label} lies near symmetry elements, but not near enough to be on them; "
            "give its coordinates to more digits."
        )
    return np.array(new)


def _distances(first: np.ndarray, second: np.ndarray, lattice: np.ndarray) -> np.ndarray:
    """(n, m) distances in Å of near positions modulo the lattice (right where they are small)."""
    apart = second[None] - first[:, None]
    apart -= np.round(apart)
    return np.linalg.norm(apart @ lattice, axis=-1)


def farthest(first: Atoms, second: Atoms, lattice: Float[np.ndarray, "3 3"]) -> float:
    """The largest distance (Å) of an atom of `first` to the nearest of its kind in `second`, or the
    other way round; infinite where there is none. Of a kind are element and occupancy."""
    largest = 0.0
    for these, those in ((first, second), (second, first)):
        for start in range(0, len(these.numbers), 256):  # a block at a time, for memory
            rows = slice(start, start + 256)
            distance = _distances(these.positions[rows], those.positions, lattice)
            other = these.numbers[rows, None] != those.numbers
            other |= np.abs(these.occupancies[rows, None] - those.occupancies) > 0.02
            distance[other] = np.inf
            largest = max(largest, float(distance.min(1).max()))
    return largest


@dataclasses.dataclass(frozen=True)
class Packing:
    """How atoms are packed.

    density: g/cm³. nearest: least distance in Å of two atoms that may both be there, relative to
    the sum of their radii in `ratio`, between the sites `pair`. strain: mean over atoms of
    |log| of that ratio for each atom's nearest neighbour, 0 where all touch.
    """

    density: float
    nearest: float
    ratio: float
    pair: tuple[int, int]
    strain: float


_NOTHING = 1e-2
"""Share of the least density below which no neighbours are looked for."""


def packed(atoms: Atoms, lattice: Float[np.ndarray, "3 3"]) -> Packing:
    """Density and nearest neighbours of atoms in a cell with rows a, b, c in Å."""
    from pymatgen.optimization.neighbors import find_points_in_spheres

    volume = abs(float(np.linalg.det(lattice)))
    elements = {z: gemmi.Element(z) for z in np.unique(atoms.numbers).tolist()}
    weight = np.array([elements[z].weight for z in atoms.numbers.tolist()])
    radius = np.array([elements[z].covalent_r for z in atoms.numbers.tolist()], float)
    density = float(atoms.occupancies @ weight) / volume * _G_PER_CM3
    if density < _NOTHING * _DENSITIES[0]:  # neighbours would be looked for in an empty space
        return Packing(density, float("inf"), float("inf"), (0, 0), 0.0)
    room = (volume / max(len(np.unique(atoms.positions, axis=0)), 1)) ** (1 / 3)
    reach = min(2 * radius.max() * 1.2, 3 * room)
    # cells away from the first one would be gone through, one by one
    cartesian = np.ascontiguousarray((atoms.positions % 1.0) @ lattice)
    one, other, _, distance = find_points_in_spheres(
        cartesian,
        cartesian,
        r=float(reach),
        pbc=np.ones(3, dtype=np.int64),
        lattice=np.ascontiguousarray(lattice, dtype=float),
        tol=1e-8,
    )
    # what is at one place, or is there only in the other's absence, is no neighbour
    both = atoms.occupancies[one] + atoms.occupancies[other] > MOST_OCCUPIED
    real = (distance > _ONE_PLACE) & (both | (one == other))
    one, other, distance = one[real], other[real], distance[real]
    ratio = distance / (radius[one] + radius[other])
    own = np.full(len(atoms.numbers), 1.5)
    np.minimum.at(own, one, ratio)
    least = int(np.argmin(ratio)) if len(ratio) else None
    return Packing(
        density=density,
        nearest=float(distance[least]) if least is not None else float("inf"),
        ratio=float(ratio[least]) if least is not None else float("inf"),
        pair=(int(atoms.site[one[least]]), int(atoms.site[other[least]]))
        if least is not None
        else (0, 0),
        strain=float(np.abs(np.log(own)).mean()),
    )


def impossible(found: Packing, labels: tuple[str, ...]) -> str | None:
    """Why atoms cannot be packed so, None where they can."""
    first, second = (labels[site] for site in found.pair)
    names = f"{first} and {second}" if first != second else f"atoms of {first}"
    low, high = _DENSITIES
    if found.ratio < _TOO_NEAR:
        nm = "; is the cell in nm? Correct" if found.density > 10 * high else "; correct"
        return (
            f"{names} would be {found.nearest:.2f} Å apart, with a density of "
            f"{found.density:.3g} g/cm³{nm} the cell, its symmetry or coordinates"
        )
    if not low <= found.density <= high:
        return (
            f"the density would be {found.density:.3g} g/cm³, beyond all solids' ({low:g} … "
            f"{high:g}); correct the cell (lengths in Å), its symmetry or its atoms"
        )
    return None


def fingerprint(atoms: Atoms) -> Float[np.ndarray, " n"]:
    """What is the same for one crystal with another origin: |sum Z exp(2 pi i h.x)| for small h."""
    axis = np.arange(-3, 4)
    hkl = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    waves = np.exp(2j * np.pi * (hkl @ atoms.positions.T))
    return np.abs(waves @ (atoms.numbers * atoms.occupancies))
