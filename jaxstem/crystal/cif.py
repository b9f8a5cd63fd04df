# SPDX-License-Identifier: GPL-3.0-or-later
"""What a CIF states: the cell, the sites, and the symmetry in each of the ways to state it.

Tags of all dialects are one here: `_symmetry_…` of old files and `_space_group_…` of new ones, with
a dot after the category or an underscore, in any case (S. R. Hall, F. H. Allen & I. D. Brown,
Acta Cryst. A47 (1991) 655; International Tables G).
"""

from __future__ import annotations

import codecs
import dataclasses
import re
import unicodedata

import numpy as np
from gemmi import cif

from jaxstem.crystal.packing import Sites
from jaxstem.crystal.species import counts_of, elements_of, species_of
from jaxstem.errors import InputError

_CELL = tuple(
    f"_cell_{name}"
    for name in ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
)
_XYZ = tuple(f"_atom_site_fract_{axis}" for axis in "xyz")
_OPERATORS = (
    "_space_group_symop_operation_xyz",
    "_symmetry_equiv_pos_as_xyz",
    "_symmetry_equiv_as_xyz",
)
_HERMANN_MAUGUIN = (
    "_space_group_name_h-m_alt",
    "_symmetry_space_group_name_h-m",
    "_space_group_name_h-m_full",
    "_symmetry_space_group_name_h-m_full",
    "_space_group_name_h-m_ref",
    "_space_group_name_h-m",
)
_HALL = ("_space_group_name_hall", "_symmetry_space_group_name_hall")
_NUMBER = ("_space_group_it_number", "_symmetry_int_tables_number")
_SCHOENFLIES = ("_space_group_name_schoenflies", "_symmetry_space_group_name_schoenflies")
_CODE = "_space_group_it_coordinate_system_code"

_BARE_OPERATOR = r"^([ \t]*(?:\d+[ \t]+)?)([xyz\d+\-/.* \t]+(?:,[xyz\d+\-/.* \t]+){2})$"
_BARE_OPERATOR = f"(?i:{_BARE_OPERATOR})"
_BARE_WORDS = r"^([ \t]*_\S+[ \t]+)([^'\";#\s][^'\"#\n]*[ \t][^'\"#\n]*)$"
"""Lines whose values have blanks, and should have quotes."""

_NO_GROUP = re.compile(r"_(?:symmetry|space_group|symop)")
_SAYS_LITTLE = re.compile(r"cell_setting|crystal_system|bravais|_id$|laue|patterson|point_group")


@dataclasses.dataclass(frozen=True, eq=False)
class Symmetry:
    """What a file states of its symmetry, each in the file's own words; empty for nothing."""

    operators: tuple[str, ...] = ()
    symbols: tuple[str, ...] = ()
    hall: str = ""
    number: int | None = None
    schoenflies: str = ""
    code: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Stated:
    """One structure of a CIF.

    cell: a, b, c in Å, alpha, beta, gamma in degrees. formula: atoms of each atomic number in the
    sum formula, empty where there is none. units: formula units in the cell, volume: of the cell in
    Å³, density: in g/cm³, None where they are not stated. notes: what was left out, in words.
    plain: whether every line of the list of atoms is an atom of one element.
    """

    cell: tuple[float, ...]
    sites: Sites
    symmetry: Symmetry
    formula: dict[int, float]
    units: float | None
    volume: float | None
    density: float | None
    notes: tuple[str, ...]
    plain: bool

    def formulae(self) -> list[float]:
        """How many sum formulae are in the cell, as far as that is stated: several numbers where it
        can be read in several ways, none where nothing is.

        A sum formula is of one formula unit; pymatgen writes that of the cell.
        """
        if not (self.formula and self.units):
            return []
        whole = all(abs(n / self.units % 1) < 1e-6 for n in self.formula.values())
        return [self.units, 1.0] if whole else [self.units]


def decoded(content: bytes) -> str:
    """Text of a file in whatever encoding, with line ends of Unix."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = content.decode("utf-16", errors="replace")
    elif content[:200].count(b"\0") > 20:  # UTF-16 without its mark
        big = content[:2].startswith(b"\0")
        text = content.decode("utf-16-be" if big else "utf-16-le", errors="replace")
    else:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = content.decode("cp1252", errors="replace")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def structure_of_cif(text: str) -> Stated:
    """The one structure in a CIF. Raises InputError where there is none, more than one, or where
    what is stated cannot be understood.
    """
    blocks = [(block.name, _tags(block)) for block in _document(text)]
    whole = [
        (name, tags)
        for name, tags in blocks
        if any(tags.get(tag) for tag in _CELL) and any(tags.get(tag) for tag in _XYZ)
    ]
    if not whole:
        if any(tag.startswith("_atom_site_cartn") for _, tags in blocks for tag in tags):
            raise InputError(
                "there is no crystal structure in it with fractional coordinates "
                "(_atom_site_fract_x): convert the Cartesian ones."
            )
        raise InputError(
            "there is no crystal structure in it (a cell and atoms with fractional coordinates in "
            "one data block); give a valid CIF."
        )
    if len(whole) > 1:
        names = ", ".join(name for name, _ in whole[:6]) + (", …" if len(whole) > 6 else "")
        raise InputError(
            f"there are {len(whole)} structures in it ({names}); keep one in a file of its own."
        )
    tags = whole[0][1]
    sites, notes = _sites(tags)
    return Stated(
        cell=tuple(_required(tags, tag) for tag in _CELL),
        sites=sites,
        symmetry=_symmetry(tags),
        formula=counts_of(_one(tags, "_chemical_formula_sum") or ""),
        units=_number(_one(tags, "_cell_formula_units_z")),
        volume=_number(_one(tags, "_cell_volume")),
        density=_number(_one(tags, "_exptl_crystal_density_diffrn")),
        notes=tuple(notes),
        plain=len(sites.labels) == max(len(tags.get(tag, [])) for tag in _XYZ),
    )


def _document(text: str) -> cif.Document:
    """Raises InputError where it is no CIF, also not with quotes where blanks need them."""
    plain = re.sub(_BARE_OPERATOR, r"\1'\2'", _ascii(text), flags=re.MULTILINE)
    try:
        return cif.read_string(plain, check_level=0)
    except (RuntimeError, ValueError, IndexError) as error:
        first = str(error)
    try:
        return cif.read_string(_quoted(plain), check_level=0)
    except (RuntimeError, ValueError, IndexError):
        place = re.match(r"string:(\d+)\S*\s*(?:in data_\S*:?)?(.*)", first, re.DOTALL)
        where = f" in line {place[1]}: {' '.join(place[2].split())[:80]}" if place else ""
        raise InputError(
            f"there is no crystal structure in it that can be read ({'no CIF' + where}); correct "
            "it or give a valid CIF."
        ) from None


def _ascii(text: str) -> str:
    """Without what CIFs may not hold, letters of other alphabets and other kinds of minus."""
    text = re.sub(r"[\u2212\u2010-\u2015]", "-", text.replace("□", "Va"))
    text = re.sub(r"(\d)[\u0304\u0305]", r"-\1", unicodedata.normalize("NFKD", text))
    text = text.replace("\u2044", "/")
    return re.sub(r"[^\t\n -~]", "?", text)


def _quoted(text: str) -> str:
    """Values of several words that stand on the line of their tag, set in quotes."""
    return re.sub(_BARE_WORDS, r"\1'\2'", text, flags=re.MULTILINE)


def _tags(block: cif.Block) -> dict[str, list[str | None]]:
    """Values of each tag, None for those not known; a tag that comes twice must say the same."""
    tags: dict[str, list[str | None]] = {}
    for item in block:
        if item.pair:
            columns = [(item.pair[0], [item.pair[1]])]
        elif item.loop:
            width = item.loop.width()
            columns = [(t, item.loop.values[i::width]) for i, t in enumerate(item.loop.tags)]
        else:
            continue
        for tag, values in columns:
            tag = tag.lower().replace(".", "_")
            read = [None if cif.is_null(v) else cif.as_string(v).strip() or None for v in values]
            if tags.setdefault(tag, read) != read and tag in _ALL:
                raise InputError(f"it states {tag} twice, differently; remove the wrong one.")
    return tags


_ALL = {*_CELL, *_XYZ, *_OPERATORS, *_HERMANN_MAUGUIN, *_HALL, *_NUMBER, *_SCHOENFLIES}


def _one(tags: dict[str, list[str | None]], *names: str) -> str | None:
    return next((tags[name][0] for name in names if name in tags and tags[name][0]), None)


def _number(text: str | None) -> float | None:
    """A number without its standard uncertainty; fractions such as 1/3 are read; else None."""
    match = re.fullmatch(
        r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(?:\(\d*\.?\d*\))?", text or ""
    )
    if match:
        return float(match[1])
    match = re.fullmatch(r"([+-]?\d+)/([1-9]\d*)", text or "")
    return int(match[1]) / int(match[2]) if match else None


def _required(tags: dict[str, list[str | None]], tag: str) -> float:
    text = _one(tags, tag)
    found = _number(text)
    if found is None:
        what = f"{text!r}, which is no number" if text else "no value"
        raise InputError(f"it states {what} for {tag}; correct it.")
    return found


def _sites(tags: dict[str, list[str | None]]) -> tuple[Sites, list[str]]:
    """Sites that hold atoms, one element each, and notes of what was left out."""
    n = max(len(tags.get(tag, [])) for tag in _XYZ)
    columns = {
        name: tags.get(f"_atom_site_{name}") or [None] * n
        for name in (
            "label type_symbol occupancy calc_flag symmetry_multiplicity "
            "fract_x fract_y fract_z disorder_group"
        ).split()
    }
    if any(len(column) != n for column in columns.values()):
        raise InputError("its columns of _atom_site_ differ in length; put them in one loop_.")
    stated = " ".join(filter(None, tags.get("_atom_type_symbol", [])))
    formula = elements_of(f"{_one(tags, '_chemical_formula_sum') or ''} {stated}")
    found, notes = [], []
    for row in zip(*columns.values(), strict=True):
        label, symbol, occupancy, flag, multiplicity, *xyz, _ = row
        name = label or symbol or f"number {len(found) + 1}"
        if (flag or "").lower() == "dum":
            continue
        share = species_of(symbol, label, formula)
        if not share:
            notes.append(f"{name} is a vacancy and left out")
            continue
        if all(value is None for value in xyz):
            notes.append(f"{name} has no coordinates and is left out")
            continue
        position = [_number(value) for value in xyz]
        if None in position:
            wrong = xyz[position.index(None)]
            raise InputError(f"the coordinate {wrong or '?'} of {name} is no number; correct it.")
        filled = 1.0 if occupancy is None else _number(occupancy)
        if filled is None or not 0 <= filled <= 1.02:
            raise InputError(
                f"the occupancy {occupancy} of {name} is not within 0 and 1; correct it."
            )
        if filled == 0:
            notes.append(f"{name} has no occupancy and is left out")
            continue
        times = int(_number(multiplicity) or 0)
        found += [(name, z, position, filled * part, times) for z, part in share.items()]
    if not found:
        raise InputError("there is no crystal structure in it: it lists no atoms.")
    labels, numbers, positions, occupancies, multiplicities = zip(*found, strict=True)
    return (
        Sites(
            labels=labels,
            numbers=np.array(numbers, dtype=np.int64),
            positions=np.array(positions, dtype=np.float64),
            occupancies=np.array(occupancies, dtype=np.float64),
            multiplicities=np.array(multiplicities, dtype=np.int64),
        ),
        notes,
    )


def _symmetry(tags: dict[str, list[str | None]]) -> Symmetry:
    """Raises InputError for symmetry that is stated in none of the ways that are known."""
    operators: list[str] = []
    for tag in _OPERATORS:
        if any(tags.get(tag, [])):
            operators = [value for value in tags[tag] if value]
            break
    said = _one(tags, *_NUMBER)
    number = _number(said)
    if said and number not in range(1, 231):
        raise InputError(f"its space-group number {said} is not within 1 … 230; correct it.")
    found = Symmetry(
        operators=tuple(operators),
        symbols=tuple(dict.fromkeys(s for t in _HERMANN_MAUGUIN if (s := _one(tags, t)))),
        hall=_one(tags, *_HALL) or "",
        number=int(number) if number else None,
        schoenflies=_one(tags, *_SCHOENFLIES) or "",
        code=(_one(tags, _CODE) or "").lower(),
    )
    if not (operators or found.symbols or found.hall or number or found.schoenflies):
        others = [
            tag
            for tag, values in tags.items()
            if _NO_GROUP.search(tag) and not _SAYS_LITTLE.search(tag) and any(values)
        ]
        others = [tag for tag in others if not tag.startswith("_atom")]
        if others:
            raise InputError(
                f"it states its symmetry as {others[0]}, which is not read; add "
                "_space_group_symop_operation_xyz or _space_group_name_H-M_alt."
            )
    return found
