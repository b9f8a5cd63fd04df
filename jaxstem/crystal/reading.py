# SPDX-License-Identifier: GPL-3.0-or-later
"""Crystals from files: CIFs above all, POSCARs and pymatgen's JSON.

What a CIF states of its symmetry is right, or said to be open, or refused (`understanding`); it is
never P 1 because a spelling is not known. pymatgen reads the file as well: where it finds the same
operators and other atoms, one of the two readers errs, and the file is refused.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import Float

from jaxstem.crystal.cell import Crystal, crystal_of, from_structure, standard_lattice
from jaxstem.crystal.cif import Stated, decoded, structure_of_cif
from jaxstem.crystal.packing import (
    MOST_OCCUPIED,
    SAME_PLACE,
    Atoms,
    farthest,
    impossible,
    packed,
)
from jaxstem.crystal.scattering import symbols
from jaxstem.crystal.spacegroups import Setting, settings_of_number
from jaxstem.crystal.understanding import understood
from jaxstem.errors import InputError

_LARGEST_FILE = 30e6
"""Bytes of a file that may hold a crystal."""


def read_cif(path: str | Path) -> Crystal:
    """The structure in a CIF, a POSCAR or a JSON of pymatgen, in its own cell, named after the
    file.

    Raises InputError when the file is missing or unreadable, holds no structure or several, when
    its symmetry is not known, contradicts itself or leaves open what cannot be told from the atoms,
    when atoms cannot be where they would be, and for an element without scattering factors. Warns
    of what the file does not state, and of what was left out.
    """
    path = Path(path)
    try:
        large = path.stat().st_size > _LARGEST_FILE
        content = b"" if large else path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; give the path of a CIF.") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a CIF.") from None
    try:
        if large:
            raise InputError("there is no crystal structure in a file so large; give a CIF.")
        text = decoded(content)
        if text.lstrip().startswith(("{", "[")):
            crystal, notes = _of_pymatgen(text, "json", path.stem)
        elif _is_poscar(text, path):
            crystal, notes = _of_pymatgen(text, "poscar", path.stem)
        else:
            crystal, notes = crystal_of_cif(text, path.stem)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    for note in notes:
        warnings.warn(f"{path}: {note}.", stacklevel=2)
    return crystal


def crystal_of_cif(text: str, name: str) -> tuple[Crystal, list[str]]:
    """The crystal that the text of a CIF states, and what there is to say of it.

    Raises InputError as `read_cif` does.
    """
    stated = structure_of_cif(text)
    lattice = standard_lattice(*stated.cell)
    setting, atoms, notes = understood(stated, lattice)
    if stated.plain:
        _compare_with_pymatgen(text, atoms, setting, lattice)
    crystal = crystal_of(name, stated.cell, atoms.positions, atoms.numbers, atoms.occupancies)
    if _order(settings_of_number(crystal.space_group)[0]) < _order(setting):
        notes.append(
            f"its atoms and cell have less symmetry than {setting.symbol}, which it states; what "
            "they have is taken"
        )
    return crystal, [*stated.notes, *notes, *_disagreements(stated, setting, atoms, lattice)]


def _disagreements(
    stated: Stated, setting: Setting, atoms: Atoms, lattice: Float[np.ndarray, "3 3"]
) -> list[str]:
    """What the file states of volume, density, formula and multiplicities and is not so."""
    notes = []
    volume = abs(float(np.linalg.det(lattice)))
    if stated.volume and not 0.98 < volume / stated.volume < 1.02:
        notes.append(
            f"the cell's volume is {volume:.4g} Å³, and the file states {stated.volume:.4g} Å³"
        )
    density = packed(atoms, lattice).density
    if stated.density and not 0.9 < density / stated.density < 1.1:
        notes.append(
            f"the density is {density:.3g} g/cm³, and the file states {stated.density:.3g} g/cm³"
        )
    for z, n in stated.formula.items():
        held = float(atoms.occupancies[atoms.numbers == z].sum())
        expected = [n * times for times in stated.formulae()]
        # hydrogen is often not located
        if expected and z > 1 and not np.isclose(expected, held, rtol=0.1).any():
            notes.append(
                f"there are {held:.4g} atoms of {symbols()[z]} in the cell, and by the formula "
                f"that the file states {expected[0]:.4g}"
            )
            break
    sites = stated.sites
    found = np.bincount(atoms.site, minlength=len(sites.labels))
    for label, n, times in zip(sites.labels, found, sites.multiplicities, strict=True):
        # some programs write the order of the site's symmetry instead
        if times and times != n and times * n != len(setting.rotations):
            notes.append(f"there are {n} atoms of {label} in the cell, and the file states {times}")
            break
    return notes


def _order(setting: Setting) -> int:
    """Of the point group."""
    return len(np.unique(setting.rotations, axis=0))


def _compare_with_pymatgen(
    text: str, atoms: Atoms, setting: Setting, lattice: Float[np.ndarray, "3 3"]
) -> None:
    """Raises InputError where pymatgen makes other atoms with the same operators.

    pymatgen takes P 1 where it does not know a symbol, and does not see that a cell is
    rhombohedral: what it makes with other operators is no second opinion. It keeps twins of atoms
    near symmetry elements, which are at one place here.
    """
    from pymatgen.io.cif import CifParser

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parser = CifParser.from_str(
                text, occupancy_tolerance=MOST_OCCUPIED, site_tolerance=4e-3
            )
            structure = parser.parse_structures(primitive=False, on_error="raise")[0]
        operators = parser.symmetry_operations
        rotations = np.array(
            [operator.rotation_matrix.round().astype(int) for operator in operators]
        )
        translations = np.array([operator.translation_vector for operator in operators])
    except Exception:  # pymatgen raises whatever its parsing trips over; that is no opinion
        return
    if not setting.same_operators(rotations, translations):
        return
    listed = [
        (getattr(species, "Z", 0), site.frac_coords, occupancy)
        for site in structure
        for species, occupancy in site.species.items()
    ]
    numbers, positions, occupancies = zip(*listed, strict=True)
    theirs = Atoms(
        numbers=np.array(numbers, dtype=np.int64),
        positions=np.array(positions, dtype=np.float64),
        occupancies=np.array(occupancies, dtype=np.float64),
        site=np.arange(len(listed)),
    )
    if farthest(atoms, theirs, lattice) > SAME_PLACE:
        raise InputError(
            "gemmi and pymatgen, by the same operators, read other atoms in it "
            f"({len(atoms.numbers)} and {len(listed)}); name the elements in "
            "_atom_site_type_symbol, and list each site once."
        )


def _is_poscar(text: str, path: Path) -> bool:
    """By the name, or by a scale in the second line and vectors in the next three."""
    name = path.name.lower()
    if name.endswith(".cif"):
        return False
    lines = [line.split() for line in text.split("\n", 6)[1:5]]
    try:
        numbers = [[float(word) for word in line[:3]] for line in lines]
    except ValueError:
        return False
    return [len(line) for line in numbers[1:]] == [3, 3, 3] and len(numbers[0]) in (1, 3)


def _of_pymatgen(text: str, form: str, name: str) -> tuple[Crystal, list[str]]:
    """The crystal in a POSCAR or in JSON, read by pymatgen. Raises InputError as `read_cif`."""
    from pymatgen.core import Structure

    if form == "poscar" and not any(c.isalpha() for c in "".join(text.split("\n")[5:6])):
        raise InputError("the POSCAR does not name its elements in the sixth line; add them.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if form == "json":
                structure = Structure.from_dict(json.loads(text))
            else:
                structure = Structure.from_str(text, fmt=form)
    except Exception as error:  # pymatgen raises whatever its parsing trips over
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise InputError(
            f"pymatgen finds no crystal structure in it ({reason[:160]}); give a valid CIF."
        ) from None
    if not len(structure):
        raise InputError("there is no crystal structure in it: it lists no atoms.")
    crystal = from_structure(structure, name)
    atoms = Atoms(
        crystal.numbers, crystal.positions, crystal.occupancies, np.arange(len(crystal.numbers))
    )
    labels = tuple(site.species_string for site in structure for _ in site.species)
    why = impossible(packed(atoms, crystal.lattice), labels)
    if why:
        raise InputError(f"{why}.")
    return crystal, []
