# SPDX-License-Identifier: GPL-3.0-or-later
"""Which setting of which space group a file means, and the atoms that it makes.

Operators are believed, unless a symbol or number that is stated as well is of another group and the
atoms have not got it. Without operators the other statements must agree; where they leave origin or
axes open, each setting that the cell allows is tried, and the one is taken in which atoms are as
far apart as atoms are. Where several would do, the file is refused.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from jaxstem.crystal.cif import Stated, Symmetry
from jaxstem.crystal.packing import (
    SAME_PLACE,
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


def understood(
    stated: Stated, lattice: Float[np.ndarray, "3 3"]
) -> tuple[Setting, Atoms, list[str]]:
    """The setting that is meant, the atoms that it makes, and notes of what was open; rows of
    `lattice` are a, b, c in Å.

    Raises InputError for symmetry that is not known, contradicts itself or the cell, or leaves open
    what the atoms do not tell, and for atoms that cannot be where they would be.
    """
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
        words = f"the Schoenflies symbol {symmetry.schoenflies}"
        found[words] = settings_of_schoenflies(symmetry.schoenflies)
    unknown = [words for words, settings in found.items() if not settings]
    known = {words: settings for words, settings in found.items() if settings}
    # a type is enough where the tables list one setting of it
    exact = any(
        len(meant) == 1 or words.startswith(("the symbol", "the Hall symbol"))
        for words, meant in known.items()
    )
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
    for words, settings in _wordings(symmetry)[0].items():
        of_type = setting.number in {other.number for other in settings}
        if not (of_type or any(_is_symmetric(atoms, other, lattice) for other in settings)):
            raise InputError(
                f"it states {words} and the operators of {setting.symbol}, which differ; remove "
                "the wrong ones."
            )
    return setting, atoms, []


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
        < SAME_PLACE
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
        contents = {tuple(np.bincount(atoms.numbers).tolist()) for _, atoms, _ in left}
        or_formula = ", or the formula (_chemical_formula_sum)" if len(contents) > 1 else ""
        raise InputError(
            f"{said} can mean several settings ({names}), and the atoms do not tell which; state "
            "the operators (_space_group_symop_operation_xyz), or the symbol with its origin and "
            f"axes{or_formula}."
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
    if not stated.formula or not (found == times)[said].all():
        return bool(said.any()) and bool((found == times)[said].all())
    units = [
        float(atoms.occupancies[atoms.numbers == z].sum()) / stated.formula.get(z, 1e-9)
        for z in set(atoms.numbers.tolist())
    ]
    expected = stated.formulae() or [units[0]]
    return any(np.allclose(units, number, rtol=0.05) for number in expected)
