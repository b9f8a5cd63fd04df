# SPDX-License-Identifier: GPL-3.0-or-later
"""Crystals from files as people have them: right, or refused in one sentence."""

import functools
import re
from pathlib import Path

import numpy as np
import pytest
import spglib
from pymatgen.core import Lattice, Structure
from pymatgen.symmetry.groups import SpaceGroup

from jaxstem.crystal.cell import from_structure, standard_lattice
from jaxstem.crystal.identity import same_crystal
from jaxstem.crystal.reading import crystal_of_cif, read_cif
from jaxstem.crystal.spacegroups import settings_of_hall
from jaxstem.errors import InputError


@pytest.fixture(scope="module", autouse=True)
def kept_groups():
    """pymatgen keeps a group that it has made, which takes half a second, while anyone has it."""
    yield [SpaceGroup(symbol) for symbol in ("Fm-3m", "Fd-3m")]


GOLD = 2 * 1.36
"""Å: covalent diameter."""

CUBIC = "3.615 3.615 3.615 90 90 90"
DIAMOND = "5.431 5.431 5.431 90 90 90"
HEXAGONAL = "4.546 4.546 11.862 90 90 120"
CELL_TAGS = [
    f"_cell_{name}"
    for name in "length_a length_b length_c angle_alpha angle_beta angle_gamma".split()
]
WITH_OCCUPANCY = "label type_symbol fract_x fract_y fract_z occupancy"


def cif_of(cell, symmetry, sites, columns="label type_symbol fract_x fract_y fract_z", name="x"):
    """The text of a CIF; `symmetry` is what stands between cell and sites."""
    head = "".join(f"{tag} {value}\n" for tag, value in zip(CELL_TAGS, cell.split(), strict=True))
    loop = "loop_\n" + "".join(f"_atom_site_{column}\n" for column in columns.split())
    return f"data_{name}\n{head}{symmetry}\n{loop}" + "\n".join(sites) + "\n"


def hm(symbol):
    return f"_symmetry_space_group_name_H-M '{symbol}'"


def operators(*triplets, tag="_space_group_symop_operation_xyz"):
    return f"loop_\n{tag}\n" + "\n".join(f"'{triplet}'" for triplet in triplets)


def read(text):
    """The crystal and what is said of it."""
    return crystal_of_cif(text, "x")


def refusal(text):
    """What is said where a CIF is refused: one sentence or two, and no more."""
    with pytest.raises(InputError) as caught:
        read(text)
    said = str(caught.value)
    assert said.endswith(".") and ".." not in said and "\n" not in said and len(said) < 400
    return said


COPPER = ["Cu1 Cu 0 0 0"]


@functools.cache
def example(hall):
    """A cell that a setting allows (a, b, c, angles), a general position of gold in it, and all
    atoms that spglib's operators make of it.
    """
    random = np.random.default_rng(hall)
    found = spglib.get_symmetry_from_database(hall)
    rotations, translations = found["rotations"], found["translations"]
    basis = np.eye(3) + random.uniform(-0.12, 0.12, (3, 3))
    metric = basis @ basis.T
    metric = np.mean([r.T @ metric @ r for r in rotations], axis=0)
    metric *= (60 * len(rotations)) ** (2 / 3) / np.linalg.det(metric) ** (1 / 3)
    lengths = np.sqrt(np.diag(metric))
    cosines = [metric[i, j] / lengths[i] / lengths[j] for i, j in ((1, 2), (2, 0), (0, 1))]
    cell = np.round([*lengths, *np.rad2deg(np.arccos(cosines))], 5)
    lattice = standard_lattice(*cell)
    shifts = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3), -1).reshape(-1, 3)
    best = (0.0, None, None)
    for position in random.uniform(0.03, 0.97, (60, 3)).round(5):
        images = (rotations @ position + translations) % 1
        apart = images[:, None] - images[:1] + shifts
        distance = np.linalg.norm(apart @ lattice, axis=-1)
        distance[0, 13] = np.inf
        best = max(best, (distance.min(), tuple(position), images), key=lambda one: one[0])
    assert best[0] > 0.62 * GOLD
    return " ".join(f"{x:.5f}" for x in cell), best[1], best[2]


def stated(hall):
    """Ways to state a setting that leave nothing open."""
    kind = spglib.get_spacegroup_type(hall)
    symbol = settings_of_hall(kind.hall_symbol)[0].symbol
    found = spglib.get_symmetry_from_database(hall)
    triplets = [
        ",".join(
            "".join(("-" if n < 0 else "+") + axis for n, axis in zip(row, "xyz", strict=True) if n)
            + f"{t:+.4f}"
            for row, t in zip(r, translation, strict=True)
        )
        for r, translation in zip(found["rotations"], found["translations"], strict=True)
    ]
    yield f"_symmetry_space_group_name_Hall '{kind.hall_symbol}'"
    yield f"_space_group_name_Hall '{kind.hall_symbol}'\n_space_group_IT_number {kind.number}"
    yield f"_space_group_name_H-M_alt '{symbol}'"
    yield hm(symbol.replace(" ", "")) + f"\n_symmetry_Int_Tables_number {kind.number}"
    yield operators(*triplets)
    yield operators(*triplets, tag="_symmetry_equiv_pos_as_xyz") + "\n" + hm(symbol)


@pytest.fixture
def fast(monkeypatch):
    """Read by gemmi alone, which is what is asked."""
    monkeypatch.setattr("jaxstem.crystal.reading._compare_with_pymatgen", lambda *_: None)


def assert_atoms_of_its_operators(hall):
    cell, position, expected = example(hall)
    site = "Au1 Au {:.5f} {:.5f} {:.5f}".format(*position)
    for symmetry in stated(hall):
        crystal, notes = read(cif_of(cell, symmetry, [site]))
        assert notes == [], (hall, symmetry)
        assert len(crystal.positions) == len(expected), (hall, symmetry)
        apart = crystal.positions[:, None] - expected
        apart -= np.round(apart)
        assert np.abs(apart).max(-1).min(1).max() < 1e-3, (hall, symmetry)


def assert_right_or_refused_or_said(hall):
    kind = spglib.get_spacegroup_type(hall)
    cell, position, expected = example(hall)
    site = "Au1 Au {:.5f} {:.5f} {:.5f}".format(*position)
    for symbol in (kind.international_full, kind.international.split("=")[-1]):
        try:
            crystal, notes = read(cif_of(cell, hm(symbol.strip()), [site]))
        except InputError as error:
            assert "settings" in str(error), (hall, symbol)
            continue
        assert len(crystal.positions) == len(expected), (hall, symbol)
        apart = crystal.positions[:, None] - expected
        apart -= np.round(apart)
        assert notes or np.abs(apart).max(-1).min(1).max() < 1e-3, (hall, symbol)


@pytest.mark.usefixtures("fast")
def test_settings_give_the_atoms_of_their_operators(rng):
    """Some of the 530, others each time."""
    for hall in rng.choice(530, 24, replace=False) + 1:
        assert_atoms_of_its_operators(int(hall))


@pytest.mark.usefixtures("fast")
def test_what_may_be_open_is_right_or_refused_or_said(rng):
    """Full and short symbols: never fewer atoms in silence, and P 1 for none of them."""
    for hall in rng.choice(530, 40, replace=False) + 1:
        assert_right_or_refused_or_said(int(hall))


@pytest.mark.slow
@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("first", range(1, 531, 53))
def test_all_settings(first):
    for hall in range(first, first + 53):
        assert_atoms_of_its_operators(hall)
        assert_right_or_refused_or_said(hall)


MAGNESIUM = "3.2094 3.2094 5.2105 90 90 120"
SPINEL = "8.0806 8.0806 8.0806 90 90 90"
ANATASE = "3.7845 3.7845 9.5143 90 90 90"
TO_FCC = ("x,y,z", "x+1/2,y+1/2,z", "x+1/2,y,z+1/2", "x,y+1/2,z+1/2")
RIGHT = {
    "no blanks, old": (CUBIC, hm("Fm3m"), COPPER, 225, 4),
    "full": (CUBIC, hm("F 4/m -3 2/m"), COPPER, 225, 4),
    "capitals": (CUBIC, hm("FM-3M"), COPPER, 225, 4),
    "tags in capitals": (CUBIC, hm("F m -3 m").upper(), COPPER, 225, 4),
    "Hall": (CUBIC, "_symmetry_space_group_name_Hall '-F 4 2 3'", COPPER, 225, 4),
    "Schoenflies": (CUBIC, "_space_group_name_Schoenflies 'Oh^5'", COPPER, 225, 4),
    "number": (CUBIC, "_space_group_IT_number 225", COPPER, 225, 4),
    "text field": (CUBIC, "_symmetry_space_group_name_H-M\n;\nF m -3 m\n;", COPPER, 225, 4),
    "no quotes": (CUBIC, "_symmetry_space_group_name_H-M F m -3 m", COPPER, 225, 4),
    "operators": (CUBIC, operators(*TO_FCC), COPPER, 225, 4),
    "old tag": (CUBIC, operators(*TO_FCC, tag="_symmetry_equiv_pos_as_xyz"), COPPER, 225, 4),
    "operators without quotes": (
        CUBIC,
        "loop_\n_symmetry_equiv_pos_site_id\n_symmetry_equiv_pos_as_xyz\n"
        + "\n".join(f"{n} {t.replace(',', ', ')}" for n, t in enumerate(TO_FCC)),
        COPPER,
        225,
        4,
    ),
    "all atoms and the symbol": (
        CUBIC,
        operators("x,y,z") + "\n" + hm("F m -3 m"),
        [*COPPER, "Cu2 Cu 0 .5 .5", "Cu3 Cu .5 0 .5", "Cu4 Cu .5 .5 0"],
        225,
        4,
    ),
    "rounded thirds": (MAGNESIUM, hm("P 63/m m c"), ["Mg Mg 0.333 0.667 0.25"], 194, 2),
    "two digits": (MAGNESIUM, hm("P63/mmc"), ["Mg Mg .33 .67 .25"], 194, 2),
    "fractions": (MAGNESIUM, hm("P6(3)/mmc"), ["Mg Mg 1/3 2/3 1/4"], 194, 2),
    "nearly special": (CUBIC, hm("F m -3 m"), ["Cu Cu 0.003 0 0.9985"], 225, 4),
    "hexagonal axes": (HEXAGONAL, hm("R -3 m"), ["Bi Bi 0 0 0.2339"], 166, 6),
    "hexagonal axes, H": (HEXAGONAL, hm("R -3 m H"), ["Bi Bi 0 0 0.2339"], 166, 6),
    "rhombohedral axes": (
        "4.7459 4.7459 4.7459 57.24 57.24 57.24",
        hm("R -3 m"),
        ["Bi Bi 0.2339 0.2339 0.2339"],
        166,
        2,
    ),
    "rhombohedral axes, number": (
        "4.7459 4.7459 4.7459 57.24 57.24 57.24",
        "_space_group_IT_number 166",
        ["Bi Bi 0.2339 0.2339 0.2339"],
        166,
        2,
    ),
    "second origin, Z": (DIAMOND, hm("F d -3 m Z"), ["Si Si .125 .125 .125"], 227, 8),
    "origin by its code": (
        DIAMOND,
        "_space_group_IT_number 227\n_space_group_IT_coordinate_system_code 2",
        ["Si Si .125 .125 .125"],
        227,
        8,
    ),
    "oxidation numbers": (
        "5.64 5.64 5.64 90 90 90",
        hm("F m -3 m"),
        ["Na1 Na1+ 0 0 0", "Cl1 Cl-1 .5 .5 .5"],
        225,
        8,
    ),
    "standard uncertainties": (
        "3.615(1) 3.6150(12) 3.615(1) 90.0 90 90",
        hm("F m -3 m"),
        ["Cu1 Cu 0.0000(3) 0 0"],
        225,
        4,
    ),
    "deuterium": (CUBIC, hm("F m -3 m"), ["Ni Ni 0 0 0", "D1 D .5 .5 .5"], 225, 8),
}


@pytest.mark.parametrize("kind", RIGHT)
def test_as_people_write_them(kind):
    cell, symmetry, sites, number, n = RIGHT[kind]
    crystal, notes = read(cif_of(cell, symmetry, sites))
    assert (crystal.space_group, len(crystal.numbers), notes) == (number, n, [])


OPEN = {
    "Si, first origin": (DIAMOND, hm("F d 3 m"), ["Si Si 0 0 0"], "F d -3 m:1", 8, "2.35"),
    "Si, second origin": (
        DIAMOND,
        "_space_group_IT_number 227",
        ["Si Si .125 .125 .125"],
        "F d -3 m:2",
        8,
        "2.35",
    ),
    "spinel": (
        SPINEL,
        "_space_group_IT_number 227",
        ["Mg Mg .125 .125 .125", "Al Al .5 .5 .5", "O O .2624 .2624 .2624"],
        "F d -3 m:2",
        56,
        "1.92",
    ),
    "spinel, first origin": (
        SPINEL,
        hm("Fd-3m"),
        ["Mg Mg 0 0 0", "Al Al .625 .625 .625", "O O .3874 .3874 .3874"],
        "F d -3 m:1",
        56,
        "1.92",
    ),
    "anatase": (
        ANATASE,
        hm("I41/amd"),
        ["Ti Ti 0 0 0", "O O 0 0 .2081"],
        "I 41/a m d:1",
        12,
        "1.93",
    ),
    "anatase, second origin": (
        ANATASE,
        hm("I41/amd"),
        ["Ti Ti 0 .25 .375", "O O 0 .25 .1669"],
        "I 41/a m d:2",
        12,
        "1.93",
    ),
    "litharge": (
        "3.964 3.964 5.008 90 90 90",
        hm("P 4/n m m"),
        ["Pb Pb 0 .5 .2385", "O O 0 0 0"],
        "P 4/n m m:1",
        4,
        "2.31",
    ),
}


@pytest.mark.parametrize("kind", OPEN)
def test_an_open_setting_is_the_one_with_atoms_at_their_distance_and_said(kind):
    cell, symmetry, sites, setting, n, nearest = OPEN[kind]
    crystal, notes = read(cif_of(cell, symmetry, sites))
    assert len(crystal.numbers) == n
    assert len(notes) == 1 and f"{setting} is taken" in notes[0] and f"{nearest} Å" in notes[0]


CUPRITE = ["Cu Cu .25 .25 .25", "O O 0 0 0"]


def test_several_plausible_settings_are_refused_unless_the_contents_tell():
    """One origin makes Cu2O of this, the other CuO2."""
    cell, symbol = "4.2696 4.2696 4.2696 90 90 90", hm("P n -3 m")
    assert "P n -3 m:2, P n -3 m:1" in refusal(cif_of(cell, symbol, CUPRITE))
    contents = "\n_chemical_formula_sum 'Cu2 O1'"
    crystal, notes = read(cif_of(cell, symbol + contents, CUPRITE))
    units = "\n_cell_formula_units_Z 2"
    assert same_crystal(read(cif_of(cell, symbol + contents + units, CUPRITE))[0], crystal)
    assert np.bincount(crystal.numbers)[[8, 29]].tolist() == [2, 4] and len(notes) == 1
    columns = "label type_symbol fract_x fract_y fract_z symmetry_multiplicity"
    sites = [f"{site} {n}" for site, n in zip(CUPRITE, (4, 2), strict=True)]
    other, _ = read(cif_of(cell, symbol, sites, columns))
    assert same_crystal(crystal, other)


def test_what_states_no_symmetry_is_taken_as_it_stands_and_said():
    crystal, notes = read(cif_of(CUBIC, "_symmetry_space_group_name_H-M ?", COPPER))
    assert len(crystal.numbers) == 1 and "states no symmetry; 1 atom is" in notes[0]
    assert read(cif_of(CUBIC, hm("P 1"), COPPER))[1] == []


WRONG = {
    "symbol and operators": (hm("F m -3 m") + "\n" + operators("x,y,z"), "which differ"),
    "operators without centring": (
        hm("F m -3 m") + "\n" + operators("x,y,z", "-x,-y,-z"),
        "operators of P -1, which differ",
    ),
    "number and operators": (
        "_space_group_IT_number 225\n" + operators("x,y,z"),
        "the number 225 and the operators of P 1",
    ),
    "symbol and number": (hm("F m -3 m") + "\n_space_group_IT_number 229", "229, which differ"),
    "symbol and Hall symbol": (
        hm("F m -3 m") + "\n_space_group_name_Hall '-I 4 2 3'",
        "the Hall symbol -I 4 2 3, which differ",
    ),
    "unknown symbol": (hm("Q m -3 m"), "the symbol Q m -3 m is no space group"),
    "unknown number": ("_space_group_IT_number 231", "number 231 is not within"),
    "no group": (operators("x,y,z", "x+1/3,y,z"), "not all those of a group"),
    "no operator": (operators("x,y,z", "x,y"), "is none"),
    "magnetic": (
        "_space_group_magn.name_BNS Fm-3m",
        "_space_group_magn_name_bns, which is not read",
    ),
    "hexagonal group": (hm("P 63/m m c"), "is none of the symbol P 63/m m c"),
    "two values": (hm("F m -3 m") + "\n_cell_length_a 4", "_cell_length_a twice"),
    "no end of a quote": ("_symmetry_space_group_name_H-M 'F m -3 m", "unterminated"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_symmetry_that_is_wrong_is_refused(kind):
    symmetry, said = WRONG[kind]
    assert said in refusal(cif_of(CUBIC, symmetry, COPPER))


ATOMS = {
    "nm": ("0.3615 0.3615 0.3615 90 90 90", COPPER, "0.26 Å apart.*in nm"),
    "pm": ("361.5 361.5 361.5 90 90 90", COPPER, "8.93e-06 g/cm³"),
    "too near": (CUBIC, ["Cu1 Cu 0.05 0 0"], "atoms of Cu1 would be 0.26 Å apart"),
    "two too near": (CUBIC, [*COPPER, "O1 O 0.2 0 0"], "Cu1 and O1 would be 0.72 Å apart"),
    "listed twice": (CUBIC, [*COPPER, "Cu2 Cu 0.5 0.5 0"], "Cu1 and Cu2 at one place sum to 2"),
    "overfull": (CUBIC, ["Mn1 Mn 0 0 0 .7", "Al1 Al 0 0 0 .5"], "Mn1 and Al1 .* sum to 1.2"),
    "per cent": (CUBIC, ["Cu1 Cu 0 0 0 100"], "occupancy 100 of Cu1"),
    "negative": (CUBIC, ["Cu1 Cu 0 0 0 -1"], "occupancy -1 of Cu1"),
    "no number": (CUBIC, ["Cu1 Cu 0 zero 0"], "coordinate zero of Cu1"),
    "decimal comma": ("3,6 3,6 3,6 90 90 90", COPPER, "'3,6', which is no number"),
    "no angle": ("3.6 3.6 3.6 90 90 ?", COPPER, "no value for _cell_angle_gamma"),
    "mixture": (CUBIC, ["M1 Fe/Ni 0 0 0"], "'Fe/Ni' of the site M1 is no element"),
    "unknown element": (CUBIC, ["Zz1 Zz 0 0 0"], "'Zz' of the site Zz1 is no element"),
    "a missing value": (CUBIC, ["Cu1 Cu 0 0"], "Wrong number of values"),
}


@pytest.mark.parametrize("kind", ATOMS)
def test_atoms_that_cannot_be_are_refused(kind):
    cell, sites, said = ATOMS[kind]
    columns = WITH_OCCUPANCY if len(sites[0].split()) == 6 else WITH_OCCUPANCY[:-10]
    assert re.search(said, refusal(cif_of(cell, hm("F m -3 m"), sites, columns)))


def test_solid_solutions_and_vacancies():
    alloy = ["Cu1 Cu 0 0 0 .7", "Ni1 Ni .5 .5 0 .3"]  # at one place by symmetry
    one, notes = read(cif_of(CUBIC, hm("F m -3 m"), alloy, WITH_OCCUPANCY))
    assert len(one.numbers) == 8 and one.space_group == 225 and not notes
    other, _ = read(cif_of(CUBIC, hm("F m -3 m"), ["M1 Cu0.7Ni0.3 0 0 0"]))
    assert same_crystal(one, other)
    for word in ("Va", "Vac", "Vacancy", "va"):
        sites = ["Fe1 Fe 0 0 0 1", f"X1 {word} .5 .5 0 .1"]
        iron, notes = read(cif_of("2.866 2.866 2.866 90 90 90", hm("Im-3m"), sites, WITH_OCCUPANCY))
        assert np.bincount(iron.numbers).nonzero()[0].tolist() == [26] and "vacancy" in notes[0]
    # atoms of which only one is there may be near each other
    split = ["Au Au .5 .5 .5 1", "C1 C 0 0 0 .5", "C2 C .05 0 0 .5"]
    assert len(read(cif_of("4 4 4 90 90 90", hm("P 1"), split, WITH_OCCUPANCY))[0].numbers) == 3


def test_split_sites_are_not_rounded_ones():
    """0.05 Å off a mirror: one atom if it is always there, two if half of the time."""
    for occupancy, n in ((1, 1), (0.5, 2)):
        sites = [f"Au1 Au 0.005 .2 .3 {occupancy}"]
        mirror = operators("x,y,z", "-x,y,z")
        crystal, _ = read(cif_of("5 5 5 90 90 90", mirror, sites, WITH_OCCUPANCY))
        assert len(crystal.numbers) == n and crystal.occupancies.sum() == 1
    # thirds with two digits in a large cell, where other atoms share the place
    alloy = ["Pb1 Pb .33 .67 .25 .5", "Bi1 Bi .33 .67 .25 .5"]
    crystal, _ = read(cif_of("9 9 5 90 90 120", hm("P 63/m m c"), alloy, WITH_OCCUPANCY))
    assert len(crystal.numbers) == 4


def test_what_is_no_atom_is_left_out():
    sites = ["Cu1 Cu 0 0 0 .", "Q1 X .1 .1 .1 dum"]
    columns = "label type_symbol fract_x fract_y fract_z calc_flag"
    assert len(read(cif_of(CUBIC, hm("F m -3 m"), sites, columns))[0].numbers) == 4
    crystal, notes = read(cif_of(CUBIC, hm("F m -3 m"), [*COPPER, "H1 H ? ? ?"]))
    assert len(crystal.numbers) == 4 and notes == ["H1 has no coordinates and is left out"]


def test_what_the_file_says_of_itself_is_compared():
    notes = read(cif_of(CUBIC, hm("F m -3 m") + "\n_cell_volume 94.5", COPPER))[1]
    assert notes == ["the cell's volume is 47.24 Å³, and the file states 94.5 Å³"]
    dense = hm("F m -3 m") + "\n_exptl_crystal_density_diffrn 2.2"
    assert "8.93 g/cm³, and the file states 2.2" in read(cif_of(CUBIC, dense, COPPER))[1][0]
    formula = hm("P 1") + "\n_chemical_formula_sum Cu\n_cell_formula_units_Z 4"
    assert (
        "1 atoms of Cu in the cell, and by the formula"
        in read(cif_of(CUBIC, formula, COPPER))[1][0]
    )
    assert read(cif_of(CUBIC, formula.replace("P 1", "F m -3 m"), COPPER))[1] == []
    columns = "label type_symbol fract_x fract_y fract_z symmetry_multiplicity"
    for times, said in ((4, 0), (48, 0), (8, 1)):
        notes = read(cif_of(CUBIC, hm("F m -3 m"), [f"{COPPER[0]} {times}"], columns))[1]
        assert len(notes) == said and all("4 atoms of Cu1" in note for note in notes)
    other = (
        hm("P 1 21/c 1")
        + "\n"
        + operators("x,y,z", "-x,-y,-z", "-x+1/2,y+1/2,-z+1/2", "x+1/2,-y+1/2,z+1/2")
    )
    gold = ["Au Au .1 .2 .3"]
    notes = read(cif_of("6 7 8 90 100 90", other, gold))[1]
    assert notes == []  # of a type: operators are believed
    strained = read(cif_of("4 4 4.03 90 90 90", hm("F m -3 m"), COPPER))[1]
    assert "less symmetry than F m -3 m" in strained[0]


def test_pymatgens_other_reading_is_refused(monkeypatch):
    from pymatgen.io.cif import CifParser

    whole = CifParser.parse_structures

    def other(self, **options):
        (found,) = whole(self, **options)
        found.translate_sites([0], [0.2, 0, 0])
        return [found]

    text = cif_of(CUBIC, hm("F m -3 m"), COPPER)
    assert read(text)[1] == []
    monkeypatch.setattr(CifParser, "parse_structures", other)
    assert "gemmi and pymatgen" in refusal(text)


def test_blocks():
    copper, silver = (
        cif_of(CUBIC, hm("F m -3 m"), [f"{name} {name} 0 0 0"], name=name) for name in ("Cu", "Ag")
    )
    assert len(read("data_global\n_publ_section_title 'x'\n" + copper)[0].numbers) == 4
    assert len(read(copper + "data_\n_audit_creation_method x\n")[0].numbers) == 4
    assert "2 structures in it (Cu, Ag)" in refusal(copper + silver)


ENCODINGS = {
    "BOM": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "UTF-16": lambda text: text.encode("utf-16"),
    "UTF-16 without mark": lambda text: text.encode("utf-16-le"),
    "Latin-1": lambda text: ("# \xc5ngstr\xf6m\n" + text).encode("latin-1"),
    "Windows": lambda text: text.replace("\n", "\r\n").encode(),
    "old Mac": lambda text: text.replace("\n", "\r").encode(),
    "minus": lambda text: text.replace("-3", "\u22123").encode(),
    "bar": lambda text: text.replace("-3", "3\u0305").encode(),
}


@pytest.mark.parametrize("kind", ENCODINGS)
def test_encodings(kind, tmp_path):
    path = tmp_path / "Cu.cif"
    path.write_bytes(ENCODINGS[kind](cif_of(CUBIC, hm("F m -3 m"), COPPER)))
    crystal = read_cif(path)
    assert (crystal.name, len(crystal.numbers), crystal.space_group) == ("Cu", 4, 225)


def test_a_warning_names_the_file(tmp_path):
    path = tmp_path / "bare.cif"
    path.write_text(cif_of(CUBIC, "", COPPER))
    with pytest.warns(UserWarning, match=r"bare\.cif: it states no symmetry; 1 atom is .*P 1\.$"):
        read_cif(path)


@pytest.fixture
def silicon():
    return Structure.from_spacegroup("Fd-3m", Lattice.cubic(5.431), ["Si"], [[0, 0, 0]])


@pytest.mark.parametrize("name", ["POSCAR", "silicon.vasp", "silicon.json"])
def test_poscar_and_json_of_pymatgen(name, silicon, tmp_path):
    path = tmp_path / name
    path.write_text(silicon.to(fmt="json" if name.endswith("json") else "poscar"))
    crystal = read_cif(path)
    assert (crystal.space_group, len(crystal.numbers)) == (227, 8)
    silicon.scale_lattice(silicon.volume / 1000)  # as if in nm
    path.write_text(silicon.to(fmt="json" if name.endswith("json") else "poscar"))
    with pytest.raises(InputError, match="0.24 Å apart.*in nm"):
        read_cif(path)


def test_a_left_handed_cell_keeps_its_hand():
    """The same atoms by a, b, c and by a, b, -c are one crystal, not its mirror image."""
    sites = np.array([[0.1, 0.05, 0.0], [0.55, 0.1, 0.1], [0.2, 0.6, 0.15], [0.0, 0.1, 0.4]])
    matrix = np.diag([5.0, 6.0, 7.0]) + 0.3
    found = []
    for sign in (1, -1):
        flip = np.diag([1, 1, sign])
        structure = Structure(flip @ matrix, ["Au", "Cu", "Si", "C"], sites @ flip)
        crystal = from_structure(structure, "x")
        apart = crystal.positions[1:] - crystal.positions[:1]
        apart -= np.round(apart)
        found.append(np.sign(np.linalg.det(apart @ crystal.lattice)))
        assert np.linalg.det(crystal.lattice) > 0
    cartesian = (sites[1:] - sites[:1] - np.round(sites[1:] - sites[:1])) @ matrix
    assert found == [np.sign(np.linalg.det(cartesian))] * 2


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "old.vasp",
            "Si\n1\n5 0 0\n0 5 0\n0 0 5\n2\nDirect\n0 0 0\n.2 .2 .2\n",
            "name its elements",
        ),
        ("x.json", '{"a": 1}', "no crystal structure"),
        ("x.json", '{"a": ', "no crystal structure"),
        ("x.json", "[1, 2]", "no crystal structure"),
        ("x.html", "<html>404</html>", "no crystal structure"),
        ("x.xyz", "1\nx\nCu 0 0 0\n", "no crystal structure"),
        ("x.bin", bytes(range(256)) * 2000, "no crystal structure"),
        ("x.cif", "", "no crystal structure"),
    ],
)
def test_other_files_are_refused(name, content, said, tmp_path):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=said) as caught:
        read_cif(path)
    assert str(caught.value).startswith(str(path)) and len(str(caught.value)) < 400


SHARED = Path(__file__).parents[3] / "shared" / "data" / "cif"
"""What people's CIFs are like, beside a working copy; not of the project."""

ATOMS_OF_SHARED = {
    **dict.fromkeys("Cu IT_only esd_HM_only crlf Cu_Fm3m_nospace Cu_fullHM".split(), (225, 4)),
    **dict.fromkeys("Cu_hall old_m3m shelx two_blocks_meta bom".split(), (225, 4)),
    **dict.fromkeys("Si_old_Fd3m Si_origin2_Z Si_IT227_origin2".split(), (227, 8)),
    **dict.fromkeys("Bi_hex Bi_hex_H hm_H_ops".split(), (166, 6)),
    **dict.fromkeys("Bi_rhombo Bi_rhombo_HMplain".split(), (166, 2)),
    **dict.fromkeys(["vacancy", "old_ops"], (229, 2)),
    "no_symmetry": (221, 1),
    "charges": (225, 8),
    "mono_P21n": (14, 24),
    "rounded_third": (194, 2),
    "mono_P21n_ITonly": "P 1 21/n 1",
    "two_structures": "Cu, Ag",
    "disorder": "Mn1 and Al1",
    "dup_sites": "Cu1 and Cu2",
    "cell_nm": "0.26 Å",
}


@pytest.mark.skipif(not SHARED.is_dir(), reason="the files are not here")
@pytest.mark.parametrize("name", ATOMS_OF_SHARED)
@pytest.mark.filterwarnings("ignore:.*cif:UserWarning")
def test_files_of_people(name):
    expected = ATOMS_OF_SHARED[name]
    if isinstance(expected, str):
        with pytest.raises(InputError, match=expected):
            read_cif(SHARED / f"{name}.cif")
    else:
        crystal = read_cif(SHARED / f"{name}.cif")
        assert (crystal.space_group, len(crystal.numbers)) == expected


@pytest.mark.parametrize(
    ("edge", "coordinate", "words"),
    [(3.6, 2147483648.5, "far away"), (3.6, "nan", "finite"), (1e5, 0.5, "beyond all solids'")],
)
def test_damaged_numbers_of_a_poscar_take_no_time(tmp_path, edge, coordinate, words):
    path = tmp_path / "POSCAR"
    path.write_text(
        f"Cu\n1.0\n{edge} 0 0\n0 {edge} 0\n0 0 3.6\nCu\n4\nDirect\n"
        f"0 0 0\n0 0.5 {coordinate}\n0.5 0 0.5\n0.5 0.5 0\n"
    )
    with pytest.raises(InputError, match=words):
        read_cif(path)
