# SPDX-License-Identifier: GPL-3.0-or-later
"""The structures on which finalists are taught are what their names say."""

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from experiments.accuracy.laue_classes import PROTOTYPES
from experiments.training.any_crystal import STRUCTURES


@pytest.mark.parametrize("name", STRUCTURES)
def test_structures_have_their_groups_and_no_atoms_that_collide(name):
    group, cell, atoms = STRUCTURES[name]
    species, *places = zip(*atoms, strict=True)
    lattice = Lattice.from_parameters(*cell)
    structure = Structure.from_spacegroup(group, lattice, species, np.transpose(places))
    assert structure.get_space_group_info()[1] == group
    apart = structure.distance_matrix + 10 * np.eye(len(structure))
    assert apart.min() > 1.5


def test_what_judges_them_is_not_among_them():
    assert not set(STRUCTURES) & {*PROTOTYPES, "Cu2O"}
