# SPDX-License-Identifier: GPL-3.0-or-later
"""Which setting is meant where a file leaves it open, on known structures."""

import gzip
import json
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import spglib
from pymatgen.core import Structure

from jaxstem.crystal.cif import Stated, Symmetry
from jaxstem.crystal.packing import Atoms, Sites, fingerprint, impossible, packed
from jaxstem.crystal.understanding import understood
from jaxstem.errors import InputError

PROTOTYPES = Path(find_spec("pymatgen.analysis.prototypes").origin).with_name(
    "aflow_prototypes.json.gz"
)
"""M. J. Mehl et al., Comput. Mater. Sci. 136 (2017) S1, as pymatgen carries them; its own module
takes ten seconds to load.
"""

HALLS = defaultdict(list)
"""Settings of a space group by its number."""
for hall in range(1, 531):
    HALLS[spglib.get_spacegroup_type(hall).number].append(hall)


def standard(structure, hall):
    """Atoms of a structure in a setting of its group, its lattice there, and one of each orbit."""
    cell = (structure.lattice.matrix, structure.frac_coords, structure.atomic_numbers)
    found = spglib.get_symmetry_dataset(cell, 1e-3, hall_number=hall)
    ops = spglib.get_symmetry_from_database(hall)
    positions, left, first = found.std_positions, set(range(len(found.std_types))), []
    while left:
        first.append(min(left))
        images = ops["rotations"] @ positions[first[-1]] + ops["translations"]
        apart = positions[:, None] - images
        apart -= np.round(apart)
        left -= set(np.flatnonzero((np.abs(apart).max(-1) < 1e-3).any(1)).tolist())
    atoms = Atoms(
        numbers=np.array(found.std_types, dtype=np.int64),
        positions=positions,
        occupancies=np.ones(len(positions)),
        site=np.arange(len(positions)),
    )
    return atoms, np.array(found.std_lattice), first


def known(every):
    """Some of the prototypes whose group has several settings, each in one of them."""
    random = np.random.default_rng(every)
    entries = json.loads(gzip.decompress(PROTOTYPES.read_bytes()))
    for entry in entries[::every]:
        structure = Structure.from_dict(entry["snl"])
        cell = (structure.lattice.matrix, structure.frac_coords, structure.atomic_numbers)
        found = spglib.get_symmetry_dataset(cell, 1e-3)
        if found is None or len(HALLS[found.number]) == 1 or len(structure) > 60:
            continue
        rhombohedral = 143 <= found.number <= 167
        halls = HALLS[found.number][: 1 if rhombohedral else None]
        atoms, lattice, first = standard(structure, int(random.choice(halls)))
        labels = tuple(map(str, range(len(atoms.numbers))))
        if impossible(packed(atoms, lattice), labels) is None:
            yield found.number, atoms, lattice, first


@pytest.mark.filterwarnings("ignore")
def test_of_known_structures_none_is_misread_where_the_number_alone_is_stated():
    right = refused = 0
    for number, atoms, lattice, first in known(every=3):
        stated = Stated(
            cell=(),
            sites=Sites(
                labels=tuple(map(str, first)),
                numbers=atoms.numbers[first],
                positions=atoms.positions[first].round(5),
                occupancies=np.ones(len(first)),
                multiplicities=np.zeros(len(first), dtype=np.int64),
            ),
            symmetry=Symmetry(number=number),
            formula={},
            units=None,
            volume=None,
            density=None,
            notes=(),
            plain=True,
        )
        try:
            _, read, _ = understood(stated, lattice)
        except InputError as error:
            assert "can mean several settings" in str(error)
            refused += 1
            continue
        wanted = fingerprint(atoms)
        assert len(read.numbers) == len(atoms.numbers)
        np.testing.assert_allclose(fingerprint(read), wanted, atol=5e-3 * wanted.max())
        right += 1
    assert right > 1.5 * refused and right > 20
