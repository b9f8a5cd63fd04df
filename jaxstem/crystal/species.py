# SPDX-License-Identifier: GPL-3.0-or-later
"""Which atoms a site of a CIF holds, by its type symbol or, where there is none, by its label."""

from __future__ import annotations

import re
from functools import cache

from jaxstem.crystal.scattering import symbols
from jaxstem.errors import InputError

_VACANCIES = {"va", "vac", "vacancy", "vacant", "void", "□", "vc"}
_SPECIAL = {"cval": "C", "siva": "Si", "hiso": "H", "d": "H", "wat": "O", "hoh": "O"}
"""Scatterers of International Tables C beside the elements, deuterium, and water's oxygen."""

_ONE_LETTER = "HBCNOFPSKVYIWU"

_TWO_WAYS = set("CA CD CE CF CO CS HE HF HG HO NA NB ND NE NP OS PA PB PO SC SN".split())
"""Labels of two capitals that can be an element or an atom of the first letter's (CA, HO)."""

_CHARGE = r"[\s_]*\(?((?:\d*\.?\d+)?[+-]+|[+-]+(?:\d+\.?\d*)?|\d*|[ivxIVX]+)\)?\.?"
"""2+, +2, 3-, (III), or a number without sign."""


def species_of(
    type_symbol: str | None, label: str | None, formula: frozenset[str] = frozenset()
) -> dict[int, float]:
    """Atomic numbers at a site and their shares of its occupancy; empty for a vacancy.

    `formula` is the set of elements that the file names elsewhere, which tells what the label CA1
    is. Raises InputError for what is no element.
    """
    if type_symbol:
        mixture = _mixture(type_symbol)
        if mixture:
            return mixture
        found = _element(type_symbol)
        if found is None:
            raise InputError(
                f"the type symbol {type_symbol!r} of the site {label or ''} is no element; name "
                "the element, and give a line to each where several share a site."
            )
    else:
        found = _element_of_label(label or "", formula)
        if found is None:
            raise InputError(
                f"the site {label or '?'} has no type symbol, and its label does not tell the "
                "element; add _atom_site_type_symbol."
            )
    return {} if found == "" else {_numbers()[found]: 1.0}


def _element(word: str) -> str | None:
    """The element of a type symbol, "" for a vacancy, None for neither."""
    match = re.fullmatch(r"([A-Za-z□]+)" + _CHARGE, word.strip())
    if not match:
        return None
    letters = match[1]
    if letters.lower() in _VACANCIES:
        return ""
    name = _SPECIAL.get(letters.lower(), letters.capitalize())
    return name if name in _numbers() else None


def _element_of_label(label: str, formula: frozenset[str]) -> str | None:
    letters = re.match(r"[A-Za-z□]*", label)[0]
    two = letters[:2].capitalize()
    one = letters[:1].upper()
    known = [name for name in (two, one) if name in formula]
    if known and not (letters.lower() in _VACANCIES and "V" not in formula):
        return known[0]
    if letters.lower() in _VACANCIES:
        return ""
    if letters.lower() in _SPECIAL:
        return _SPECIAL[letters.lower()]
    if len(two) == 2 and two in _numbers():
        return None if letters[:2] in _TWO_WAYS else two
    # Ow is an oxygen; Wat, Oct and the like are no elements
    return one if len(letters) <= 2 and one in _ONE_LETTER and one else None


def _mixture(word: str) -> dict[int, float] | None:
    """Shares of a symbol such as Fe0.5Ni0.5, which states each of them; None for other symbols."""
    parts = re.findall(r"([A-Z][a-z]?)(0?\.\d+)", word)
    if len(parts) < 2 or "".join(map("".join, parts)) != re.sub(r"\s", "", word):
        return None
    if any(name not in _numbers() for name, _ in parts):
        return None
    return {_numbers()[name]: float(share) for name, share in parts}


def elements_of(formula: str) -> frozenset[str]:
    """Elements in a chemical formula, or in a list of type symbols, written with blanks or not."""
    found = re.findall(r"[A-Z][a-z]?", formula)
    names = (_SPECIAL.get(name.lower(), name) for name in found)
    return frozenset(name for name in names if name in _numbers())


def counts_of(formula: str) -> dict[int, float]:
    """Atoms of each element in a sum formula such as `Cu2 O`; empty where it is not that simple."""
    words = re.findall(r"([A-Z][a-z]?)(\d*\.?\d*)", formula)
    if "".join(map("".join, words)) != re.sub(r"\s", "", formula):
        return {}
    counts: dict[int, float] = {}
    for name, count in words:
        name = _SPECIAL.get(name.lower(), name)
        if name not in _numbers():
            return {}
        counts[_numbers()[name]] = counts.get(_numbers()[name], 0.0) + float(count or 1)
    return counts


@cache
def _numbers() -> dict[str, int]:
    return {name: number for number, name in symbols().items()}
