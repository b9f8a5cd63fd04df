# SPDX-License-Identifier: GPL-3.0-or-later
"""Spellings of space groups, beside spglib's Hall database."""

import functools
import re

import gemmi
import numpy as np
import pytest
import spglib

from jaxstem.crystal.spacegroups import (
    setting_of_operators,
    settings_of_hall,
    settings_of_number,
    settings_of_schoenflies,
    settings_of_symbol,
)
from jaxstem.errors import InputError

HALLS = range(1, 531)


@functools.cache
def reference(hall):
    """Rotations and translations of spglib's database, and what it calls the setting."""
    found = spglib.get_symmetry_from_database(hall)
    return found["rotations"], found["translations"], spglib.get_spacegroup_type(hall)


def is_reference(setting, hall):
    rotations, translations, kind = reference(hall)
    return setting.number == kind.number and setting.same_operators(rotations, translations)


@functools.cache
def entry(hall):
    """gemmi's line for spglib's setting, found by its operators."""
    return gemmi.find_spacegroup_by_ops(gemmi.symops_from_hall(reference(hall)[2].hall_symbol))


def spellings(symbol):
    yield symbol
    yield symbol.replace(" ", "")
    yield symbol.lower()
    yield symbol.replace(" ", "").upper()
    yield re.sub(r"([2346])([1-5])(?=[/ ]|$)", r"\1_\2", symbol)
    yield re.sub(r"([2346])([1-5])(?=[/ ]|$)", r"\1~\2~", symbol)
    yield symbol.replace("-", "\u2212")


@pytest.mark.parametrize("hall", HALLS)
def test_every_setting_is_found_by_each_of_its_names(hall):
    kind = reference(hall)[2]
    hm, extension = entry(hall).hm, entry(hall).ext.strip("\0")
    # one that tells the setting; ":1" and ":H" as gemmi, S, Z and H as ICSD append them
    exact = [hm + tail for tail in ([f":{extension}", f" :{extension}"] if extension else [""])]
    exact += [
        f"{hm} {tail}" for tail in {"1": "S", "2": "Z", "H": "H", "R": "R"}.get(extension, "")
    ]
    for symbol in exact:
        for spelled in spellings(symbol):
            found = settings_of_symbol(spelled)
            assert len(found) == 1 and is_reference(found[0], hall), spelled
    # one that may leave something open
    older = re.sub(r"(?<=[mnad/] )-3|(?<=[mnad])-3", "3", hm) if kind.number > 194 else hm
    for symbol in (hm, older, kind.international_full, kind.international.split("=")[-1].strip()):
        for spelled in spellings(symbol):
            found = settings_of_symbol(spelled)
            assert any(is_reference(setting, hall) for setting in found), spelled
            assert {setting.number for setting in found} == {kind.number}, spelled
    assert is_reference(settings_of_hall(kind.hall_symbol)[0], hall)
    assert any(is_reference(s, hall) for s in settings_of_hall(kind.hall_symbol.replace(" ", "")))
    assert any(is_reference(setting, hall) for setting in settings_of_number(kind.number))
    assert any(is_reference(s, hall) for s in settings_of_schoenflies(kind.schoenflies))
    triplets = [operator.triplet() for operator in gemmi.symops_from_hall(kind.hall_symbol)]
    assert is_reference(setting_of_operators(triplets[::-1]), hall)


@pytest.mark.parametrize(
    ("symbol", "number", "n"),
    [
        ("Fm3m", 225, 1),
        ("F 4/m 3 2/m", 225, 1),
        ("F m \u0305 3 m".replace(" \u0305 3", " 3\u0305"), 225, 1),
        (r"Fm\bar{3}m", 225, 1),
        ("P6<sub>3</sub>/mmc", 194, 1),
        ("Fd-3m (227)", 227, 2),
        ("Fd-3m (No. 227)", 227, 2),
        ("F d -3 m (origin choice 2)", 227, 1),
        ("F d -3 m O1", 227, 1),
        ("F d -3 m", 227, 2),
        ("R -3 m", 166, 2),
        ("H -3 m", 166, 1),
        ("R3c", 161, 2),
        ("P 21/n", 14, 3),
        ("P 21/c", 14, 2),
        ("C 2/c:b1", 15, 1),
        ("Cmce", 64, 1),
        ("C m c a", 64, 1),
        ("C 2/m 2/c 21/a", 64, 1),
        ("A e m 2", 39, 1),
        ("P 3 1 2", 149, 1),
        ("P 31", 144, 1),
        ("Fm-3m (229)", None, 0),
        ("F d -3 m :3", None, 0),
        ("F m -3 q", None, 0),
        ("Fm", None, 0),
        ("", None, 0),
        ("?", None, 0),
    ],
)
def test_symbols_as_people_write_them(symbol, number, n):
    found = settings_of_symbol(symbol)
    assert len(found) == n
    assert {setting.number for setting in found} == ({number} if n else set())


def test_a_symbol_never_means_two_groups():
    symbols = {e.hm for e in gemmi.spacegroup_table()} | {e.xhm() for e in gemmi.spacegroup_table()}
    for symbol in symbols:
        for spelled in spellings(symbol):
            assert len({setting.number for setting in settings_of_symbol(spelled)}) == 1, spelled


def test_what_is_no_hall_symbol_number_or_schoenflies_symbol():
    assert settings_of_hall("nonsense") == settings_of_hall("") == []
    assert settings_of_number(0) == settings_of_number(231) == settings_of_schoenflies("Q7") == []
    shifted = settings_of_hall("-P 2ybc (x+1/4,y,z)")[0]
    assert (shifted.number, len(shifted.rotations)) == (14, 4)
    # without its blank this is P 32 or P 3 1 2
    assert {setting.number for setting in settings_of_hall("P32")} == {145, 149}


@pytest.mark.parametrize(
    "written",
    ["x+.5,y,z+0.5", "X+1/2, Y, Z+1/2", "1/2+x,y,1/2+z", "x-1/2,y,z+3/2", " x+0.5 ,y,.5+z"],
)
def test_operators_as_people_write_them(written):
    found = setting_of_operators(["x,y,z", written])
    assert found.translations.tolist() == [[0, 0, 0], [0.5, 0, 0.5]]
    assert (found.rotations == np.eye(3)).all()
    thirds = ["x,y,z", "-y,x-y,z+0.3333", "-x+y,-x,z+.66667"]
    assert setting_of_operators(thirds).symbol == "P 31"


@pytest.mark.parametrize("shift", ["11/25", "0.44", ".4400", "0.123", "7/13"])
def test_an_origin_may_be_anywhere(shift):
    found = setting_of_operators(["x,y,z", f"-x+{shift},-y,1/2+z"])
    assert (found.number, found.symbol) == (4, "P2_1 in a setting of its own")


@pytest.mark.parametrize(
    ("operators", "said"),
    [
        (["x,y,z", "x+1/3,y,z"], "not all those of a group"),
        (["-x,-y,-z"], "not all those of a group"),
        (["x,y,z", "-y,x,z"], "not all those of a group"),
        (["x,y,z", "2x,y,z"], "is none"),
        (["x,y,z", "x,y"], "is none"),
        (["x,y,z", "x/2,y,z"], "changes volumes"),
        (["x,y,z", "x,x,z"], "changes volumes"),
        (["x1,x2,x3,x4"], "is none"),
    ],
)
def test_operators_that_are_no_group_are_refused(operators, said):
    with pytest.raises(InputError, match=said):
        setting_of_operators(operators)
