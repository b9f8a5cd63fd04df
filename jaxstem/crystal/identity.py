# SPDX-License-Identifier: GPL-3.0-or-later
"""Which crystal it is: in one line for people, and whether two are the same for electrons."""

from __future__ import annotations

from functools import cache

import numpy as np
import spglib

from jaxstem.crystal.cell import Crystal, reflections
from jaxstem.crystal.scattering import symbols

_SAME_LATTICE = 5e-4
"""Relative difference of cells that a diffraction pattern cannot tell apart."""

_SAME_FACTOR = 5e-3
"""Difference of structure factors, as a share of the largest, that intensities do not show."""

_NONMETALS = "Rn Xe Kr B Si C Sb As P N H Te Se S At I Br Cl O F".split()
"""In the order of IUPAC's Nomenclature of Inorganic Chemistry, 1990, I-2.8.3.1."""


def crystal_summary(crystal: Crystal) -> str:
    """Name, formula, space group, cell and atoms of a crystal, in one line."""
    lengths = np.linalg.norm(crystal.lattice, axis=1)
    unit = crystal.lattice / lengths[:, None]
    pairs = ((1, 2), (2, 0), (0, 1))
    angles = [float(np.rad2deg(np.arccos(unit[i] @ unit[j]))) for i, j in pairs]
    if np.ptp(lengths) < 1e-4 * lengths[0]:
        cell = f"a = {lengths[0]:.4f} Å"
    else:
        cell = ", ".join(f"{name} = {x:.4f}" for name, x in zip("abc", lengths, strict=True)) + " Å"
    for name, angle in zip("αβγ", angles, strict=True):
        if abs(angle - 90) > 1e-3:
            cell += f", {name} = {angle:.2f}°"
    total = crystal.occupancies.sum()
    n_atoms = f"{total:.4g} atom{'' if total == 1 else 's'}"
    symbol = _international_symbol(crystal.space_group)
    return f"{crystal.name} ({formula(crystal)}, {symbol}, {cell}, {n_atoms} in the cell)"


def formula(crystal: Crystal) -> str:
    """Elements and how many of each are in the cell, divided by their greatest common divisor where
    they are whole; metals first, then nonmetals as chemists order them.
    """
    numbers, place = np.unique(crystal.numbers, return_inverse=True)
    counts = np.bincount(place, crystal.occupancies)
    whole = np.round(counts).astype(int)
    if np.allclose(counts, whole, atol=0.01) and whole.min() > 0:
        counts = whole / np.gcd.reduce(whole)
    names = [symbols()[number] for number in numbers.tolist()]
    rank = lambda of: (_NONMETALS.index(of[0]) if of[0] in _NONMETALS else -1, of[0])  # noqa: E731
    elements = sorted(zip(names, counts.tolist(), strict=True), key=rank)
    return "".join(f"{name}{'' if abs(n - 1) < 5e-3 else f'{n:.3g}'}" for name, n in elements)


@cache
def _international_symbol(number: int) -> str:
    """The short Hermann-Mauguin symbol of a space group in its usual setting."""
    found = (spglib.get_spacegroup_type(hall) for hall in range(1, 531))
    return next(kind.international_short for kind in found if kind.number == number)


def same_crystal(a: Crystal, b: Crystal, k_max: float = 1.5) -> bool:
    """Whether two crystals are in the same cell and diffract the same up to `k_max` [1/Å].

    Names, the origin and the order of the atoms do not matter.
    """
    longest = np.linalg.norm(a.lattice, axis=1).max()
    if np.abs(a.lattice - b.lattice).max() > _SAME_LATTICE * longest:
        return False
    # where a cell is near k_max, a reflection at the rim may be in one list and not in the other
    within = (1 + 2 * _SAME_LATTICE) * k_max
    factors = [
        {
            tuple(hkl): abs(factor)
            for hkl, factor in zip(x.hkl.tolist(), x.structure_factor, strict=True)
        }
        for x in (reflections(a, within), reflections(b, within))
    ]
    largest = max(factors[0].values())
    inner = {tuple(hkl) for hkl in reflections(a, k_max).hkl.tolist()}
    inner |= {tuple(hkl) for hkl in reflections(b, k_max).hkl.tolist()}
    return all(
        abs(factors[0].get(hkl, 0.0) - factors[1].get(hkl, 0.0)) < _SAME_FACTOR * largest
        for hkl in inner
    )
