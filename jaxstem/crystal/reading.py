# SPDX-License-Identifier: GPL-3.0-or-later
"""Crystals from files: CIFs above all, POSCARs and pymatgen's JSON.

What a CIF states of its symmetry is right, or said to be open, or refused; it is never P 1 because
a spelling is not known. Where the file leaves origin or axes open, each setting that the cell
allows is tried, and the one is taken in which atoms are as far apart as atoms are; a warning says
so. Where several would do, the file is refused. pymatgen reads the file as well: where it finds the
same operators and other atoms, one of the two readers errs, and the file is refused.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import Float

from jaxstem.crystal.cell import Crystal, crystal_of, from_structure, standard_lattice
from jaxstem.crystal.cif import Stated, Symmetry, decoded, structure_of_cif
from jaxstem.crystal.packing import (
    MOST_OCCUPIED,
    Atoms,
    Packing,
    Sites,
    expanded,
    farthest,
    fingerprint,
    impossible,
    packed,
)
from jaxstem.crystal.spacegroups import (
    Setting,
    setting_of_operators,
    settings_of_hall,
    settings_of_number,
    settings_of_schoenflies,
    settings_of_symbol,
)
from jaxstem.errors import InputError

_SAME_METRIC, _NEAR_METRIC = 1e-3, 2e-2
"""Relative differences of a cell from what a group demands: rounding, and the most that is read."""

_CLEARLY = 0.06
"""By so much the strain of one setting is below another's where it is clearly the right one."""

_SAME_PLACE = 0.3
"""Distance (Å) up to which two readings of an atom are the same."""

_LARGEST_FILE = 100e6
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
    setting, atoms, notes = _understood(stated, lattice)
    if stated.plain:
        _compare_with_pymatgen(text, atoms, setting, lattice)
    crystal = crystal_of(name, stated.cell, atoms.positions, atoms.numbers, atoms.occupancies)
    if _order(settings_of_number(crystal.space_group)[0]) < _order(setting):
        notes.append(
            f"its atoms and cell have less symmetry than {setting.symbol}, which it states; what "
            "they have is taken"
        )
    volume = abs(float(np.linalg.det(lattice)))
    if stated.volume and not 0.98 < volume / stated.volume < 1.02:
        notes.append(
            f"the cell's volume is {volume:.4g} Å³, and the file states {stated.volume:.4g} Å³"
        )
    return crystal, [*stated.notes, *notes]


def _understood(
    stated: Stated, lattice: Float[np.ndarray, "3 3"]
) -> tuple[Setting, Atoms, list[str]]:
    """The setting that is meant, the atoms that it makes, and notes of what was open."""
    symmetry, sites = stated.symmetry, stated.sites
    if symmetry.operators:
        return _by_operators(stated, lattice)
    wordings, notes = _wordings(symmetry)
    if not wordings:
        setting = setting_of_operators(["x,y,z"])
        atoms = _packed_or_refused(sites, setting, lattice)
        n = len(atoms.numbers)
        listed = "1 atom is" if n == 1 else f"{n} atoms are"
        return setting, atoms, [f"it states no symmetry; {listed} taken as listed, as in P 1"]
    meant = _agreed(wordings)
    if symmetry.code:
        coded = [s for s in meant if symmetry.code in _codes(s)]
        meant = coded or meant
    fitting = _fitting(meant, lattice)
    short = _short_monoclinic(symmetry.symbols, fitting)
    said = " and ".join(wordings)
    if not fitting:
        raise InputError(
            f"its cell {', '.join(f'{x:g}' for x in stated.cell)} is none of {said}; correct the "
            "cell or the symmetry."
        )
    setting, atoms, open_notes = _chosen(short or fitting, stated, lattice, said)
    return setting, atoms, notes + open_notes


def _order(setting: Setting) -> int:
    """Of the point group."""
    return len(np.unique(setting.rotations, axis=0))


def _wordings(symmetry: Symmetry) -> tuple[dict[str, list[Setting]], list[str]]:
    """What each statement but the operators can mean, and notes of those that are not known.

    Raises InputError where the others do not make up for these.
    """
    found: dict[str, list[Setting]] = {}
    for symbol in symmetry.symbols:
        found[f"the symbol {symbol}"] = settings_of_symbol(symbol)
    if symmetry.hall:
        found[f"the Hall symbol {symmetry.hall}"] = settings_of_hall(symmetry.hall)
    if symmetry.number:
        found[f"the number {symmetry.number}"] = settings_of_number(symmetry.number)
    if symmetry.schoenflies:
        found[f"the symbol {symmetry.schoenflies}"] = settings_of_schoenflies(symmetry.schoenflies)
    unknown = [words for words, settings in found.items() if not settings]
    known = {words: settings for words, settings in found.items() if settings}
    # where the tables list one setting of a number, it needs no symbol
    exact = any("number" not in words or len(meant) == 1 for words, meant in known.items())
    if unknown and not (exact or symmetry.operators):
        raise InputError(
            f"{unknown[0]} is no space group that is known; correct it, or add the operators "
            "(_space_group_symop_operation_xyz)."
        )
    return known, [f"{words} is not known; {' and '.join(known)} is taken" for words in unknown]


def _agreed(wordings: dict[str, list[Setting]]) -> list[Setting]:
    """Settings that all statements allow. Raises InputError where they contradict each other."""
    (first, meant), *others = sorted(wordings.items(), key=lambda item: "number" in item[0])
    for words, settings in others:
        keys = {setting.key for setting in settings}
        numbers = {setting.number for setting in settings}
        if "number" in words:  # of tables that list fewer settings
            common = [setting for setting in meant if setting.number in numbers]
        else:
            common = [setting for setting in meant if setting.key in keys]
        if not common:
            raise InputError(f"it states {first} and {words}, which differ; remove the wrong one.")
        meant = common
    return meant


def _codes(setting: Setting) -> tuple[str, ...]:
    return (setting.qualifier, setting.symbol.lower().partition(":")[2])


def _short_monoclinic(symbols: tuple[str, ...], fitting: list[Setting]) -> list[Setting]:
    """Those of unique axis b, which a short symbol such as P 21/n means where the cell leaves it
    open."""
    if symbols and {setting.unique_axis for setting in fitting} > {"b"}:
        return [setting for setting in fitting if setting.unique_axis == "b"]
    return []


def _misfit(setting: Setting, lattice: Float[np.ndarray, "3 3"]) -> float:
    """By how much an operator changes lengths and angles of the cell; 0 where it is a symmetry."""
    metric = lattice @ lattice.T
    scale = np.sqrt(np.outer(np.diag(metric), np.diag(metric)))
    rotations = setting.rotations
    changed = rotations.transpose(0, 2, 1) @ metric @ rotations
    return float(np.abs((changed - metric) / scale).max())


def _fitting(settings: list[Setting], lattice: Float[np.ndarray, "3 3"]) -> list[Setting]:
    """The settings whose demands the cell meets, by rounding if any does, else nearly."""
    misfits = [_misfit(setting, lattice) for setting in settings]
    for limit in (_SAME_METRIC, _NEAR_METRIC):
        fitting = [s for s, misfit in zip(settings, misfits, strict=True) if misfit < limit]
        if fitting:
            return fitting
    return []


def _by_operators(
    stated: Stated, lattice: Float[np.ndarray, "3 3"]
) -> tuple[Setting, Atoms, list[str]]:
    """Of a file that lists its operators; they are believed, unless something else is stated."""
    symmetry = stated.symmetry
    setting = setting_of_operators(symmetry.operators)
    if not _fitting([setting], lattice):
        raise InputError(
            f"its cell {', '.join(f'{x:g}' for x in stated.cell)} does not have the symmetry of "
            f"its operators ({setting.symbol}); correct one of them."
        )
    atoms = _packed_or_refused(stated.sites, setting, lattice)
    notes = []
    for words, settings in _wordings(symmetry)[0].items():
        if setting.number in {other.number for other in settings}:
            if setting.key not in {s.key for s in settings} and "number" not in words:
                notes.append(f"its operators are those of {setting.symbol}, not of {words}")
        elif not any(_is_symmetric(atoms, other, lattice) for other in settings):
            raise InputError(
                f"it states {words} and the operators of {setting.symbol}, which differ; remove "
                "the wrong ones."
            )
    return setting, atoms, notes


def _is_symmetric(atoms: Atoms, setting: Setting, lattice: Float[np.ndarray, "3 3"]) -> bool:
    """Whether each operator brings all atoms onto atoms of their kind."""
    if not _fitting([setting], lattice):
        return False
    return all(
        farthest(
            dataclasses.replace(atoms, positions=atoms.positions @ rotation.T + translation),
            atoms,
            lattice,
        )
        < _SAME_PLACE
        for rotation, translation in zip(setting.rotations, setting.translations, strict=True)
    )


def _packed_or_refused(sites: Sites, setting: Setting, lattice: np.ndarray) -> Atoms:
    atoms = expanded(sites, setting, lattice)
    why = impossible(packed(atoms, lattice), sites.labels)
    if why:
        raise InputError(f"{why}.")
    return atoms


def _chosen(
    settings: list[Setting], stated: Stated, lattice: Float[np.ndarray, "3 3"], said: str
) -> tuple[Setting, Atoms, list[str]]:
    """The one setting in which atoms are where they can be. Raises InputError where that is none
    or several."""
    if len(settings) == 1:
        return settings[0], _packed_or_refused(stated.sites, settings[0], lattice), []
    possible: list[tuple[Setting, Atoms, Packing]] = []
    whys = []
    for setting in settings:
        try:
            atoms = expanded(stated.sites, setting, lattice)
        except InputError as error:
            whys.append((setting.symbol, str(error).rstrip(".")))
            continue
        found = packed(atoms, lattice)
        why = impossible(found, stated.sites.labels)
        if why:
            whys.append((setting.symbol, why))
        else:
            possible.append((setting, atoms, found))
    if not possible:
        symbol, why = whys[0]
        raise InputError(f"{said} can mean {len(settings)} settings; in {symbol}, {why}.")
    different = _different(possible)
    if len(different) == 1 and not whys:
        return different[0][0], different[0][1], []
    consistent = [one for one in different if _as_stated(one[1], stated)]
    left = sorted(consistent or different, key=lambda one: one[2].strain)
    best = left[0]
    if len(left) > 1 and left[1][2].strain < best[2].strain + _CLEARLY:
        names = ", ".join(setting.symbol for setting, *_ in left[:4])
        raise InputError(
            f"{said} can mean several settings ({names}), and the atoms do not tell which; state "
            "the operators (_space_group_symop_operation_xyz), the symbol with its origin and "
            "axes, or the formula with _cell_formula_units_Z."
        )
    note = (
        f"{said} leaves the setting open; {best[0].symbol} is taken, in which nearest atoms are "
        f"{best[2].nearest:.2f} Å apart"
    )
    return best[0], best[1], [note]


def _different(
    possible: list[tuple[Setting, Atoms, Packing]],
) -> list[tuple[Setting, Atoms, Packing]]:
    """The first of those that make the same crystal, up to its origin."""
    kept: list[tuple[tuple[Setting, Atoms, Packing], np.ndarray]] = []
    for one in possible:
        marks = fingerprint(one[1])
        if not any(np.allclose(marks, other, rtol=0, atol=2e-3 * other.max()) for _, other in kept):
            kept.append((one, marks))
    return [one for one, _ in kept]


def _as_stated(atoms: Atoms, stated: Stated) -> bool:
    """Whether all that the file states of numbers of atoms, which is something, is so."""
    times = stated.sites.multiplicities
    found = np.bincount(atoms.site, minlength=len(times))
    said = times > 0
    counts = {
        z: float(atoms.occupancies[atoms.numbers == z].sum()) for z in set(atoms.numbers.tolist())
    }
    content = stated.content
    agrees = all(abs(content.get(z, 0.0) - n) < 0.05 * n + 0.05 for z, n in counts.items())
    return (
        (said.any() or bool(content))
        and bool((found == times)[said].all())
        and (not content or agrees)
    )


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
    if farthest(atoms, theirs, lattice) > _SAME_PLACE:
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
    crystal = from_structure(structure, name)
    atoms = Atoms(
        crystal.numbers, crystal.positions, crystal.occupancies, np.arange(len(crystal.numbers))
    )
    labels = tuple(site.species_string for site in structure for _ in site.species)
    why = impossible(packed(atoms, crystal.lattice), labels)
    if why:
        raise InputError(f"{why}.")
    return crystal, []
