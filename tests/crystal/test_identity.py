# SPDX-License-Identifier: GPL-3.0-or-later
"""A crystal in one line, and sameness: of origin, order and names nothing, of atoms everything."""

from dataclasses import replace

import numpy as np
import pytest
from pymatgen.core import Composition

from jaxstem.crystal.identity import crystal_summary, formula, same_crystal


def test_summaries(crystals):
    assert crystal_summary(crystals["Cu"]) == "Cu (Cu, Fm-3m, a = 3.6150 Å, 4 atoms in the cell)"
    mg = crystal_summary(crystals["Mg"])
    assert mg.startswith("Mg (Mg, P6_3/mmc, a = 3.2") and "γ = 120.00°, 2 atoms in the" in mg
    assert ", b = 3.2" in mg and ", c = 5.2" in mg


def test_formulae_are_pymatgens(crystals):
    for crystal in crystals.values():
        cell = Composition(formula(crystal)).reduced_composition
        assert cell.almost_equals(
            Composition.from_dict(
                {
                    int(z): crystal.occupancies[crystal.numbers == z].sum()
                    for z in np.unique(crystal.numbers)
                }
            ).reduced_composition,
            rtol=0.02,
        )


def test_names_origin_and_order_do_not_matter(crystals, rng):
    for crystal in crystals.values():
        order = rng.permutation(len(crystal.numbers))
        moved = replace(
            crystal,
            name="another",
            positions=(crystal.positions + rng.uniform(size=3))[order],
            numbers=crystal.numbers[order],
            occupancies=crystal.occupancies[order],
            lattice=crystal.lattice * (1 + 1e-5),
        )
        assert same_crystal(crystal, moved) and same_crystal(moved, crystal)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: {"lattice": c.lattice * 1.002},
        lambda c: {"numbers": c.numbers + 1},
        lambda c: {"occupancies": c.occupancies * np.linspace(0.5, 1, len(c.numbers))},
        lambda c: {"positions": c.positions + 0.02 * np.arange(len(c.numbers))[:, None] ** 2},
    ],
)
def test_cell_elements_occupancies_and_places_matter(crystals, change):
    crystal = crystals["Cu2O"]
    other = replace(crystal, **change(crystal))
    assert not same_crystal(crystal, other) and not same_crystal(other, crystal)
