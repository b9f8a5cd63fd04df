# SPDX-License-Identifier: GPL-3.0-or-later
"""Space groups as people spell them, and the operators that each spelling means.

A spelling may leave something open: 'F d -3 m' has two origins, 'R -3 m' two sets of axes, the
number 14 nine settings. What a spelling can mean is therefore a list of `Setting`s, empty for a
spelling that is not known; which of them is meant, the cell and the atoms must tell.

Symbols are looked up in gemmi's table (Wojdyr, J. Open Source Softw. 7 (2022) 4200), which follows
International Tables B, 1.4.2 (S. R. Hall, R. W. Grosse-Kunstleve), and in spglib's, which has full
symbols and those with the glide e.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
import warnings
from collections.abc import Sequence
from fractions import Fraction
from functools import cache

import gemmi
import numpy as np
import spglib
from jaxtyping import Float, Int

from jaxstem.errors import InputError

_LARGEST_GROUP = 192 * 4
"""Operators of the largest group in a cell four times its own."""

_PARTS = 1200
"""Of a translation: whole numbers for 24ths and for two decimals."""

_TERM = re.compile(r"[+-]?(?:[xyz]|\d+(?:\.\d*)?|\.\d+|\d+/[1-9]\d*)")


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
    """A space group in one setting: positions x (fractional columns) go to R x + t.

    symbol: Hermann-Mauguin with the origin or axes. number: 1 … 230, None where it is not known.
    rotations: (n, 3, 3). translations: (n, 3), in 0 … 1, centring included. key: the operators, by
    which two settings are the same. qualifier: of cell choice, as International Tables name it.
    """

    symbol: str
    number: int | None
    rotations: Int[np.ndarray, "n 3 3"]
    translations: Float[np.ndarray, "n 3"]
    key: frozenset[tuple[int, ...]]
    qualifier: str = ""
    unique_axis: str = ""

    def same_operators(
        self, rotations: Int[np.ndarray, "m 3 3"], translations: Float[np.ndarray, "m 3"]
    ) -> bool:
        """Whether these are the operators of this setting, in whatever order."""
        return _codes(rotations, translations) == self.key


def settings_of_symbol(symbol: str) -> list[Setting]:
    """What a Hermann-Mauguin symbol can mean: short, full or old, with or without blanks, in any
    case, with origin or axes (`:1`, `:2`, `:H`, `:R`, `S`, `Z`) or without.
    """
    text = _plain(symbol)
    text, _, number = re.sub(
        r"\(?(?:no\.|#)(\d+)\)?$|\((?:no)?(\d{2,3})\)$", r"|\1\2", text
    ).partition("|")
    text = re.sub(r"[:,(]*origin(?:choice)?[:=]?([12])\)?$", r":\1", text)
    text = re.sub(r"\(([12hr])\)$", r":\1", text)
    base, _, extension = text.partition(":")
    table = _symbols()
    found = table.get(base, [])
    if not found and not extension:  # 'F d -3 m Z', 'R -3 m H', 'P n n n O2'
        trailing = re.fullmatch(r"(.+?)o?([12szhr]|hr)", base)
        if trailing:
            base, extension = trailing.groups()
            found = table.get(base, [])
            extension = extension or "?"
    extension = {"s": "1", "z": "2", "hr": "h", "o1": "1", "o2": "2"}.get(extension, extension)
    if extension:
        found = [
            setting
            for setting in found
            if extension in (setting.symbol.lower().partition(":")[2], setting.qualifier)
        ]
    if number:
        found = [setting for setting in found if setting.number == int(number)]
    # a short monoclinic symbol is of unique axis b, unless the cell tells of another
    return sorted(found, key=lambda setting: setting.unique_axis != "b")


def settings_of_number(number: int) -> list[Setting]:
    """The settings of a group of International Tables, by its number; empty beyond 1 … 230."""
    return [setting for setting in _tabulated() if setting.number == number]


def settings_of_schoenflies(symbol: str) -> list[Setting]:
    """The settings of a group by its Schoenflies symbol, such as `Oh^5` or `D2h.16`."""
    number = _schoenflies_numbers().get(re.sub(r"[\s_.^{}()]", "", symbol).lower())
    return settings_of_number(number) if number else []


@cache
def _schoenflies_numbers() -> dict[str, int]:
    kinds = [spglib.get_spacegroup_type(hall) for hall in range(1, 531)]
    return {kind.schoenflies.replace("^", "").lower(): kind.number for kind in kinds}


def settings_of_hall(symbol: str) -> list[Setting]:
    """What a Hall symbol means, with or without a shift of its origin; empty if it is not known.

    One setting; several only where blanks are missing and were needed (P32: `P 32`, `P 3 2`).
    """
    spaced = " ".join(re.sub(r"_", " ", symbol).split())
    table = _hall_symbols()
    if spaced in table:
        return table[spaced]
    try:
        group = gemmi.symops_from_hall(spaced)
    except (RuntimeError, ValueError):
        return table.get(spaced.replace(" ", ""), [])
    tight = table.get(spaced) if " " in spaced else table.get(spaced.replace(" ", ""))
    return tight or [_of_arrays(*_arrays_of(group))]


def setting_of_operators(triplets: Sequence[str]) -> Setting:
    """The group of operators such as `-x, y+1/2, -z`.

    Raises InputError where one is no operator, or where they are not all of a group.
    """
    pairs = [_operator(triplet) for triplet in triplets]
    unique = list({_code(*pair): pair for pair in pairs}.values())
    rotations, translations = (np.array(arrays) for arrays in zip(*unique, strict=True))
    if len(unique) > _LARGEST_GROUP or not _is_group(rotations, translations):
        raise InputError(
            f"its {len(unique)} symmetry operators are not all those of a group; complete them."
        )
    return _of_arrays(rotations, translations)


def _operator(triplet: str) -> tuple[np.ndarray, np.ndarray]:
    """R and t of one operator; translations near multiples of 1/24 are these. Raises InputError."""
    plain = re.sub(r"\s", "", triplet).lower()
    try:
        operator = gemmi.Op(plain)
        rotation = np.array(operator.rot) / gemmi.Op.DEN
        translation = np.array(operator.tran) / gemmi.Op.DEN
    except (RuntimeError, ValueError):
        terms = [re.findall(r"[+-]?[^+-]+", part) for part in plain.split(",")]
        if len(terms) != 3 or not all(_TERM.fullmatch(term) for part in terms for term in part):
            raise InputError(f"its symmetry operator {triplet!r} is none; correct it.") from None
        rotation = np.array([[_coefficient(part, axis) for axis in "xyz"] for part in terms])
        translation = np.array([_coefficient(part, "") for part in terms])
    if abs(abs(np.linalg.det(rotation)) - 1) > 1e-6 or np.any(rotation % 1):
        raise InputError(f"its symmetry operator {triplet!r} changes volumes; correct it.")
    return rotation.astype(np.int64), translation % 1


def _coefficient(terms: list[str], axis: str) -> float:
    """The sum of an axis' signs in one coordinate of an operator, of its numbers for axis ""."""
    if axis:
        return float(sum(-1 if "-" in term else 1 for term in terms if axis in term))
    numbers = [term for term in terms if term[-1] not in "xyz"]
    return sum(float(Fraction(term)) for term in numbers)


def _is_group(rotations: np.ndarray, translations: np.ndarray) -> bool:
    """Whether products of operators are there as well (in a finite set, this suffices)."""
    codes = _codes(rotations, translations)
    return all(
        _codes(rotation @ rotations, translations @ rotation.T + translation) <= codes
        for rotation, translation in zip(rotations, translations, strict=True)
    )


def _codes(rotations: np.ndarray, translations: np.ndarray) -> frozenset[tuple[int, ...]]:
    """Operators as whole numbers, which can be compared."""
    parts = np.round(translations * _PARTS).astype(np.int64) % _PARTS
    return frozenset(map(tuple, np.concatenate([rotations.reshape(-1, 9), parts], 1).tolist()))


def _code(rotation: np.ndarray, translation: np.ndarray) -> tuple[int, ...]:
    return next(iter(_codes(rotation[None], translation[None])))


def _of_arrays(rotations: np.ndarray, translations: np.ndarray) -> Setting:
    """A setting of the tables where it is one, else one of its own."""
    key = _codes(rotations, translations)
    if key in _keys():
        return _keys()[key]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of how it will report failures one day
        kind = spglib.get_spacegroup_type_from_symmetry(rotations, translations, symprec=1e-3)
    return Setting(
        symbol=f"{kind.international_short} in a setting of its own" if kind else "a group",
        number=kind.number if kind else None,
        rotations=rotations,
        translations=translations,
        key=key,
    )


def _arrays_of(group: gemmi.GroupOps) -> tuple[np.ndarray, np.ndarray]:
    operators = [operator.wrap() for operator in group]
    rotations = np.array([operator.rot for operator in operators]) // gemmi.Op.DEN
    return rotations, np.array([operator.tran for operator in operators]) / gemmi.Op.DEN


@cache
def _keys() -> dict[frozenset[tuple[int, ...]], Setting]:
    settings = [_of_entry(entry) for entry in gemmi.spacegroup_table()]
    return {setting.key: setting for setting in reversed(settings)}


@cache
def _of_hall(hall: str, symbol: str, number: int, qualifier: str, axis: str) -> Setting:
    rotations, translations = _arrays_of(gemmi.symops_from_hall(hall))
    key = _codes(rotations, translations)
    return Setting(symbol, number, rotations, translations, key, qualifier, axis)


def _of_entry(entry: gemmi.SpaceGroup) -> Setting:
    axis = entry.monoclinic_unique_axis().strip("\0")
    return _of_hall(entry.hall, entry.xhm(), entry.number, entry.qualifier, axis)


@cache
def _hall_symbols() -> dict[str, list[Setting]]:
    """Settings by their Hall symbols, and by these without blanks where that is something else."""
    exact = {entry.hall: _of_entry(entry) for entry in reversed(list(gemmi.spacegroup_table()))}
    tight: dict[str, list[Setting]] = {}
    for hall, setting in exact.items():
        tight.setdefault(hall.replace(" ", ""), []).append(setting)
    return tight | {hall: [setting] for hall, setting in exact.items()}


@cache
def _tabulated() -> tuple[Setting, ...]:
    """The 530 settings that International Tables and spglib list."""
    return tuple(
        settings_of_hall(spglib.get_spacegroup_type(hall).hall_symbol)[0] for hall in range(1, 531)
    )


@cache
def _symbols() -> dict[str, list[Setting]]:
    """What each spelling of a symbol, in the form of `_plain`, can mean; without extensions."""
    table: dict[str, dict[frozenset[tuple[int, ...]], Setting]] = {}

    def add(symbol: str, setting: Setting, shorten: bool = True) -> None:
        spellings = {symbol.strip()}
        if setting.unique_axis and shorten:  # P 1 21/c 1 is P 21/c
            lattice, *parts = symbol.split()
            spellings.add(" ".join([lattice, *(part for part in parts if part != "1")]))
        for spelling in spellings:
            table.setdefault(_plain(spelling), {}).setdefault(setting.key, setting)

    for hall, setting in enumerate(_tabulated(), start=1):
        kind = spglib.get_spacegroup_type(hall)
        full = kind.international_full
        add(full, setting)
        add(kind.international.split("=")[-1], setting)
        if "e" in full:  # C 2/m 2/c 21/e was C 2/m 2/c 21/a
            letters = setting.symbol.partition(":")[0].split()
            parts = zip(full.split(), letters, strict=True)
            add(" ".join(part.replace("e", letter) for part, letter in parts), setting)
    for entry in gemmi.spacegroup_table():
        setting = _of_entry(entry)
        add(entry.hm, setting, shorten=False)
        if entry.hm.startswith("R"):  # H 3 2 of CCP4 and the Protein Data Bank
            add(entry.short_name(), setting)
    return {symbol: list(settings.values()) for symbol, settings in table.items()}


def _plain(symbol: str) -> str:
    """Lower case without blanks and marks of subscripts; bars as minus, m3m as m-3m."""
    text = unicodedata.normalize("NFD", symbol)
    text = re.sub(r"[\u2212\u2010-\u2015]", "-", text)
    text = re.sub(r"(\d)[\u0304\u0305]", r"-\1", text)
    text = re.sub(r"\\(?:bar|overline)\s*\{?(\d)\}?", r"-\1", text)
    text = re.sub(r"(\d)\s*\(([1-5])\)(?=\s*[\d/a-zA-Z(]|\s*$)", r"\1\2", text)  # P 2(1)/c
    text = re.sub(r"</?su[bp]>|[\s_~^{}$'\"]", "", text).lower()
    return re.sub(r"(?<=[mnabcd])3", "-3", text) if text[:1] != "r" else text
