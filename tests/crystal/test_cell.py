# SPDX-License-Identifier: GPL-3.0-or-later
"""Crystals against py4DSTEM's numbers, group theory, and hand-made structures of every class."""

import json
import re

import numpy as np
import pytest
from helpers import FIXTURES
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure

from jaxstem.crystal.cell import (
    Crystal,
    from_structure,
    reciprocal_lattice,
    reflections,
    standard_lattice,
    structure_factors,
    symmetry_operations,
)
from jaxstem.crystal.reading import read_cif
from jaxstem.crystal.scattering import lobato_factor
from jaxstem.errors import InputError

CRYSTALS = ("Cu", "Cu2O", "Mg", "TiO2", "ZrO2")

# point group: (a space group, its Laue group, proper operations of the Laue group, own proper ones)
POINT_GROUPS = {
    "1": ("P1", "-1", 1, 1),
    "-1": ("P-1", "-1", 1, 1),
    "2": ("P2_1", "2/m", 2, 2),
    "m": ("Cc", "2/m", 2, 1),
    "2/m": ("C2/c", "2/m", 2, 2),
    "222": ("P2_12_12_1", "mmm", 4, 4),
    "mm2": ("Fdd2", "mmm", 4, 2),
    "mmm": ("Pnma", "mmm", 4, 4),
    "4": ("P4_1", "4/m", 4, 4),
    "-4": ("I-4", "4/m", 4, 2),
    "4/m": ("I4_1/a", "4/m", 4, 4),
    "422": ("P4_32_12", "4/mmm", 8, 8),
    "4mm": ("I4_1md", "4/mmm", 8, 4),
    "-42m": ("I-42d", "4/mmm", 8, 4),
    "4/mmm": ("P4_2/mnm", "4/mmm", 8, 8),
    "3": ("P3_1", "-3", 3, 3),
    "-3": ("R-3", "-3", 3, 3),
    "32": ("P3_221", "-3m", 6, 6),
    "3m": ("R3c", "-3m", 6, 3),
    "-3m": ("R-3c", "-3m", 6, 6),
    "6": ("P6_3", "6/m", 6, 6),
    "-6": ("P-6", "6/m", 6, 3),
    "6/m": ("P6_3/m", "6/m", 6, 6),
    "622": ("P6_122", "6/mmm", 12, 12),
    "6mm": ("P6_3mc", "6/mmm", 12, 6),
    "-6m2": ("P-6m2", "6/mmm", 12, 6),
    "6/mmm": ("P6_3/mmc", "6/mmm", 12, 12),
    "23": ("P2_13", "m-3", 12, 12),
    "m-3": ("Ia-3", "m-3", 12, 12),
    "432": ("P4_132", "m-3m", 24, 24),
    "-43m": ("I-43d", "m-3m", 24, 12),
    "m-3m": ("Pn-3m", "m-3m", 24, 24),
}
LATTICES = {
    "-1": Lattice.from_parameters(4.1, 5.2, 6.3, 81, 97, 104),
    "2/m": Lattice.monoclinic(5.1, 4.2, 6.3, 99),
    "mmm": Lattice.orthorhombic(4.1, 5.2, 6.3),
    "4/m": Lattice.tetragonal(4.1, 6.3),
    "4/mmm": Lattice.tetragonal(4.1, 6.3),
    "-3": Lattice.hexagonal(4.1, 6.3),
    "-3m": Lattice.hexagonal(4.1, 6.3),
    "6/m": Lattice.hexagonal(4.1, 6.3),
    "6/mmm": Lattice.hexagonal(4.1, 6.3),
    "m-3": Lattice.cubic(5.3),
    "m-3m": Lattice.cubic(5.3),
}


def cell_volume(crystal):
    return np.linalg.det(crystal.lattice)


def rotation_angle_deg(rotation):
    return np.rad2deg(np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1)))


def rotation_axis(rotation):
    """Axis (either sign) of a rotation by 180 degrees."""
    values, vectors = np.linalg.eigh((rotation + rotation.T) / 2)
    return vectors[:, np.argmax(values)]


def assert_is_group_of_proper_rotations(matrices):
    np.testing.assert_allclose(
        matrices @ np.swapaxes(matrices, 1, 2),
        np.broadcast_to(np.eye(3), matrices.shape),
        atol=1e-12,
    )
    np.testing.assert_allclose(np.linalg.det(matrices), 1, atol=1e-12)
    np.testing.assert_allclose(matrices[0], np.eye(3), atol=1e-12)
    products = (matrices[:, None] @ matrices[None]).reshape(-1, 9)
    distances = np.abs(products[:, None] - matrices.reshape(1, -1, 9)).max(-1)
    assert np.all((distances < 1e-9).sum(1) == 1), "not closed, or an operation listed twice"


def assert_preserves_reflections(crystal, matrices, k_max):
    """Each operation sends reciprocal vectors to reciprocal vectors of the same |F|."""
    found = reflections(crystal, k_max)
    turned = np.einsum("oij,nj->oni", matrices, found.g) @ crystal.lattice.T
    np.testing.assert_allclose(turned, turned.round(), atol=1e-6)
    amplitude = np.abs(found.structure_factor)
    for hkl in turned.round().astype(int):
        np.testing.assert_allclose(
            np.abs(structure_factors(crystal, hkl)), amplitude, rtol=1e-6, atol=1e-9
        )


@pytest.mark.parametrize("name", CRYSTALS)
def test_structure_factors_are_py4dstems_times_the_volume(name, crystals, py4dstem):
    crystal = crystals[name]
    ours = reflections(crystal, float(py4dstem["pattern/k_max"]))
    mine = {
        tuple(hkl): factor / cell_volume(crystal)
        for hkl, factor in zip(ours.hkl.tolist(), ours.structure_factor, strict=True)
    }
    theirs = {
        tuple(hkl): factor
        for hkl, factor in zip(
            py4dstem[f"{name}/hkl"].tolist(), py4dstem[f"{name}/structure_factor"], strict=True
        )
        if any(hkl)
    }
    assert theirs.keys() <= mine.keys()
    threshold = 1e-4  # 1/Å², below which py4DSTEM drops reflections
    assert all(np.abs(mine[hkl]) < 1.01 * threshold for hkl in mine.keys() - theirs.keys())
    a = np.array([mine[hkl] for hkl in theirs])
    b = np.array(list(theirs.values()))
    np.testing.assert_allclose(np.abs(a), np.abs(b), rtol=0.001)  # complex64 on their side
    np.testing.assert_allclose(a, b, rtol=0.001)


@pytest.mark.parametrize("name", CRYSTALS)
def test_cartesian_frame_is_py4dstems(name, crystals, py4dstem):
    np.testing.assert_allclose(crystals[name].lattice, py4dstem[f"{name}/lat_real"], atol=1e-9)


def test_crystals_of_the_fixtures(crystals):
    expected = {
        "Cu": (225, "m-3m", 4),
        "Cu2O": (224, "m-3m", 6),
        "Mg": (194, "6/mmm", 2),
        "TiO2": (136, "4/mmm", 6),
        "ZrO2": (14, "2/m", 12),
    }
    found = {
        name: (crystal.space_group, crystal.point_group, len(crystal.numbers))
        for name, crystal in crystals.items()
    }
    assert found == expected
    assert [crystal.name for crystal in crystals.values()] == list(CRYSTALS)


@pytest.mark.parametrize("point_group", POINT_GROUPS)
def test_operations_of_all_point_groups(point_group):
    space_group, laue_group, n_laue, n_own = POINT_GROUPS[point_group]
    positions = np.random.default_rng(0).uniform(0.05, 0.45, size=(2, 3))
    structure = Structure.from_spacegroup(space_group, LATTICES[laue_group], ["Cu", "O"], positions)
    crystal = from_structure(structure, space_group)
    assert crystal.laue_group == laue_group
    assert crystal.point_group == point_group
    laue, own = symmetry_operations(crystal), symmetry_operations(crystal, laue=False)
    assert (len(laue), len(own)) == (n_laue, n_own)
    for matrices in (laue, own):
        assert_is_group_of_proper_rotations(matrices)
    assert_preserves_reflections(crystal, laue, k_max=0.6)
    angles = np.array([rotation_angle_deg(o) for o in laue])
    assert np.all(np.diff(angles) > -1e-6)
    np.testing.assert_array_equal(laue, symmetry_operations(crystal))


@pytest.mark.parametrize("name", CRYSTALS)
def test_operations_preserve_the_reflections_of_real_crystals(name, crystals):
    assert_preserves_reflections(crystals[name], symmetry_operations(crystals[name]), k_max=1.0)


def test_zinc_blende_has_twelve_operations_of_its_own():
    structure = Structure.from_spacegroup(
        "F-43m", Lattice.cubic(5.653), ["Ga", "As"], [[0, 0, 0], [0.25, 0.25, 0.25]]
    )
    crystal = from_structure(structure, "GaAs")
    assert (crystal.point_group, crystal.laue_group) == ("-43m", "m-3m")
    laue, own = symmetry_operations(crystal), symmetry_operations(crystal, laue=False)
    assert (len(laue), len(own)) == (24, 12)
    distances = np.abs(own[:, None] - laue[None]).max((-1, -2))
    assert np.all(distances.min(1) < 1e-12)
    assert not any(abs(rotation_angle_deg(o) - 90) < 1 for o in own)
    assert sum(abs(rotation_angle_deg(o) - 90) < 1e-6 for o in laue) == 6


@pytest.mark.parametrize("unique", [0, 1, 2])
def test_monoclinic_two_fold_is_along_the_unique_axis(unique):
    """The cell of P2/m-like structures with unique axis a, b or c, all from the same atoms."""
    angles = [90.0, 90.0, 90.0]
    angles[unique] = 103.0
    lattice = Lattice.from_parameters(4.1, 5.2, 6.3, *angles)
    mate = -np.ones(3)
    mate[unique] = 1
    atoms = np.array([[0.11, 0.23, 0.37], [0.41, 0.12, 0.29]])
    positions = np.concatenate([atoms, atoms * mate, -atoms, -atoms * mate]) % 1
    crystal = from_structure(Structure(lattice, ["Cu", "O"] * 4, positions), "setting")
    assert crystal.point_group == "2/m"
    found = symmetry_operations(crystal)
    assert len(found) == 2
    direction = crystal.lattice[unique] / np.linalg.norm(crystal.lattice[unique])
    assert abs(rotation_axis(found[1]) @ direction) == pytest.approx(1, abs=1e-9)
    assert_preserves_reflections(crystal, found, k_max=0.6)


@pytest.mark.parametrize(("space_group", "along_a"), [("P321", True), ("P312", False)])
def test_trigonal_two_folds_keep_their_setting(space_group, along_a):
    structure = Structure.from_spacegroup(
        space_group, Lattice.hexagonal(4.9, 5.4), ["Si"], [[0.13, 0.27, 0.19]]
    )
    crystal = from_structure(structure, space_group)
    turns = [o for o in symmetry_operations(crystal, laue=False) if rotation_angle_deg(o) > 179]
    assert len(turns) == 3
    assert any(np.allclose(o @ crystal.lattice[0], crystal.lattice[0]) for o in turns) == along_a


def test_rhombohedral_and_hexagonal_axes_describe_one_crystal():
    hexagonal = Structure.from_spacegroup(
        "R-3c", Lattice.hexagonal(4.7602, 12.9933), ["Al", "O"], [[0, 0, 0.3522], [0.3063, 0, 0.25]]
    )
    rows = np.array([[2, 1, 1], [-1, 1, 1], [-1, -2, 1]]) / 3  # obverse setting
    lattice = Lattice(rows @ hexagonal.lattice.matrix)
    sites, kept = [], []
    for site in hexagonal:
        position = lattice.get_fractional_coords(site.coords) % 1
        apart = [np.abs((position - p + 0.5) % 1 - 0.5).max() for p in kept]
        if not apart or min(apart) > 1e-3:
            kept.append(position)
            sites.append(site.specie)
    rhombohedral = Structure(lattice, sites, kept)
    assert len(rhombohedral) == len(hexagonal) / 3

    first = from_structure(hexagonal, "hexagonal axes")
    second = from_structure(rhombohedral, "rhombohedral axes")
    assert (first.space_group, second.space_group) == (167, 167)
    # turns the second cell's frame into the first's: both know where the three axes point
    turn = np.linalg.solve(second.lattice, rows @ first.lattice).T
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-9)
    a, b = symmetry_operations(first), turn @ symmetry_operations(second) @ turn.T
    assert len(a) == len(b) == 6
    assert np.all(np.abs(a[:, None] - b[None]).max((-1, -2)).min(1) < 1e-9)
    three_fold = next(
        o for o in symmetry_operations(second) if abs(rotation_angle_deg(o) - 120) < 1
    )
    np.testing.assert_allclose(three_fold @ second.lattice.sum(0), second.lattice.sum(0), atol=1e-9)

    g_first, g_second = reflections(first, 0.8), reflections(second, 0.8)
    g_turned = g_second.g @ turn.T
    assert len(g_first.g) == len(g_turned)
    distances = np.linalg.norm(g_turned[:, None] - g_first.g[None], axis=-1)
    assert distances.min(1).max() < 1e-9
    np.testing.assert_allclose(
        np.abs(g_first.structure_factor)[distances.argmin(1)],
        3 * np.abs(g_second.structure_factor),
        rtol=1e-6,
    )


@pytest.mark.parametrize(
    "cell",
    [
        np.diag([1, 1, 2]),
        np.array([[0.5, -0.5, 0], [0.5, 0.5, 0], [0, 0, 1]]),
        np.array([[0.5, 0.5, 0], [0, 0.5, 0.5], [0.5, 0, 0.5]]),
        np.array([[1, 1, 0], [0, 1, 2], [1, 0, 3]]),
    ],
    ids=["1x1x2", "tetragonal", "primitive", "skew"],
)
def test_fcc_keeps_its_symmetry_in_any_cell(cell, crystals):
    lattice = Lattice(cell @ (3.615 * np.eye(3)))
    fcc = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    shifts = np.stack(np.meshgrid(*[np.arange(-4, 5)] * 3), -1).reshape(-1, 1, 3)
    positions = ((shifts + fcc).reshape(-1, 3) @ np.linalg.inv(cell)) % 1
    positions = np.unique(positions.round(6) % 1, axis=0)
    assert len(positions) == round(4 * abs(np.linalg.det(cell)))
    crystal = from_structure(Structure(lattice, ["Cu"] * len(positions), positions), "Cu")
    assert (crystal.space_group, crystal.point_group) == (225, "m-3m")
    found = symmetry_operations(crystal)
    assert len(found) == 24
    assert_is_group_of_proper_rotations(found)
    assert_preserves_reflections(crystal, found, k_max=1.0)
    ours = np.linalg.norm(reflections(crystal, 1.0).g, axis=1)
    expected = np.linalg.norm(reflections(crystals["Cu"], 1.0).g, axis=1)
    np.testing.assert_allclose(ours, expected, atol=1e-9)


def test_slightly_distorted_cell_still_gives_rotations():
    lattice = Lattice.orthorhombic(3.615, 3.6158, 3.6144)
    fcc = [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]
    found = symmetry_operations(from_structure(Structure(lattice, ["Cu"] * 4, fcc), "Cu"))
    assert len(found) == 24
    np.testing.assert_allclose(found @ np.swapaxes(found, 1, 2), [np.eye(3)] * 24, atol=1e-12)


def test_systematic_absences(crystals):
    h, k, l = reflections(crystals["Cu"], 2.0).hkl.T  # noqa: E741
    assert np.all((h % 2 == k % 2) & (k % 2 == l % 2))
    h, k, l = reflections(crystals["Mg"], 2.0).hkl.T  # noqa: E741
    assert not np.any(((h + 2 * k) % 3 == 0) & (l % 2 == 1))
    assert np.any(((h + 2 * k) % 3 == 1) & (l % 2 == 1))
    h, k, l = reflections(crystals["Cu2O"], 2.0).hkl.T  # noqa: E741
    assert not np.any((h == 0) & ((k + l) % 2 == 1))  # n glide of Pn-3m
    mixed = ~((h % 2 == k % 2) & (k % 2 == l % 2))
    assert not np.any(((h + k + l) % 2 == 1) & mixed)
    assert np.any(((h + k + l) % 2 == 0) & mixed)
    assert np.any((h == 0) & (k == 1) & (l == 1))
    h, k, l = reflections(crystals["TiO2"], 2.0).hkl.T  # noqa: E741
    assert not np.any((h == 0) & ((k + l) % 2 == 1))
    h, k, l = reflections(crystals["ZrO2"], 2.0).hkl.T  # noqa: E741
    assert not np.any((k == 0) & (l % 2 == 1))
    assert not np.any((h == 0) & (l == 0) & (k % 2 == 1))
    assert np.any((h == 0) & (l == 1))


@pytest.mark.parametrize("name", CRYSTALS)
def test_reflections_are_complete_sorted_and_friedel_paired(name, crystals):
    crystal, k_max = crystals[name], 1.3
    found = reflections(crystal, k_max)
    length = np.linalg.norm(found.g, axis=1)
    assert np.all(np.diff(length) > -1e-8) and length[0] > 0 and length[-1] <= k_max + 1e-8
    np.testing.assert_allclose(found.g, found.hkl @ np.linalg.inv(crystal.lattice).T)
    factors = dict(zip(map(tuple, found.hkl.tolist()), found.structure_factor, strict=True))
    assert len(factors) == len(found.hkl)
    for (h, k, l), factor in factors.items():  # noqa: E741
        assert factors[-h, -k, -l] == pytest.approx(np.conj(factor), abs=1e-9)
    everything = np.stack(np.meshgrid(*[np.arange(-12, 13)] * 3), -1).reshape(-1, 3)
    size = np.linalg.norm(everything @ reciprocal_lattice(crystal.lattice), axis=1)
    inside = everything[(size > 0) & (size <= k_max)]
    left_out = np.array([hkl for hkl in inside.tolist() if tuple(hkl) not in factors])
    strongest = np.abs(found.structure_factor).max()
    if len(left_out):
        assert np.abs(structure_factors(crystal, left_out)).max() < 1e-3 * strongest


def test_displacement_damps_amplitudes(crystals):
    u_iso = 0.0064  # Å²: 0.08 Å along each direction
    still, moving = (reflections(crystals["Cu"], 2.0, u) for u in (0.0, u_iso))
    np.testing.assert_array_equal(still.hkl, moving.hkl)
    s = np.linalg.norm(still.g, axis=1) / 2  # sin(theta) / lambda
    b = 8 * np.pi**2 * u_iso
    ratio = moving.structure_factor / still.structure_factor
    np.testing.assert_allclose(ratio, np.exp(-b * s**2), rtol=1e-9)


def cif_of(sites, cell="4 4 4 90 90 90"):
    names = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
    header = "".join(f"_cell_{n} {v}\n" for n, v in zip(names, cell.split(), strict=True))
    columns = ("type_symbol", "label", "fract_x", "fract_y", "fract_z", "occupancy")
    loop = "loop_\n" + "".join(f"_atom_site_{column}\n" for column in columns)
    return f"data_test\n{header}_symmetry_space_group_name_H-M 'P 1'\n{loop}" + "\n".join(sites)


def test_partial_occupancy_enters_the_structure_factors(tmp_path):
    sites = [
        "Cu Cu1 0 0 0 0.75",
        "Au Au1 0 0 0 0.25",
        "Cu Cu2 0.5 0.5 0.5 0.75",
        "Au Au2 0.5 0.5 0.5 0.25",
        "O O1 0.5 0.5 0 0.4",
        "O O2 0.5 0 0.5 0.4",
        "O O3 0 0.5 0.5 0.4",
        "O O4 0.5 0 0 0.4",
        "O O5 0 0.5 0 0.4",
        "O O6 0 0 0.5 0.4",
    ]
    (tmp_path / "alloy.cif").write_text(cif_of(sites))
    crystal = read_cif(tmp_path / "alloy.cif")
    assert crystal.space_group == 229 and len(symmetry_operations(crystal)) == 24
    assert sorted(crystal.numbers.tolist()) == [8] * 6 + [29] * 2 + [79] * 2
    hkl = np.array([[1, 1, 0], [2, 0, 0], [1, 0, 0]])
    g = np.linalg.norm(hkl, axis=1) / 4
    metal = 0.75 * lobato_factor(29, g) + 0.25 * lobato_factor(79, g)
    oxygen = 0.4 * lobato_factor(8, g)
    expected = [2 * metal[0] - 2 * oxygen[0], 2 * metal[1] + 6 * oxygen[1], 0]
    np.testing.assert_allclose(structure_factors(crystal, hkl), expected, atol=1e-9)


def test_rounded_occupancies_are_scaled_to_a_full_site(tmp_path):
    sites = [f"{element} {element}1 0 0 0 0.335" for element in ("Cu", "Ag", "Au")]
    (tmp_path / "thirds.cif").write_text(cif_of(sites))
    np.testing.assert_allclose(read_cif(tmp_path / "thirds.cif").occupancies, 1 / 3)


@pytest.mark.parametrize("apart", [0.0, 1e-4])
def test_atoms_on_top_of_each_other_are_refused(apart):
    structure = Structure(Lattice.cubic(4), ["Cu", "Cu"], [[0, 0, 0], [apart, 0, 0]])
    with pytest.raises(InputError, match="on top of each other"):
        from_structure(structure, "Cu")


def test_occupancy_breaks_symmetry(tmp_path):
    sites = ["Cu Cu1 0 0 0 1", "Cu Cu2 0.5 0.5 0.5 0.5"]
    (tmp_path / "vacancies.cif").write_text(cif_of(sites, "4 4 4.5 90 90 90"))
    crystal = read_cif(tmp_path / "vacancies.cif")
    assert crystal.space_group == 123  # primitive, not body-centred
    assert [0, 0, 1] in reflections(crystal, 1.0).hkl.tolist()


def test_cell_is_the_cifs_own(tmp_path):
    """An odd but valid cell stays: no reduction, no exchange of axes."""
    (tmp_path / "odd.cif").write_text(cif_of(["Fe Fe1 0.1 0.2 0.3 1"], "7 3 5 95 120 100"))
    lattice = read_cif(tmp_path / "odd.cif").lattice
    np.testing.assert_allclose(np.linalg.norm(lattice, axis=1), [7, 3, 5])
    assert len(read_cif(tmp_path / "odd.cif").numbers) == 1


MALFORMED = {
    "empty": "",
    "prose": "this is no crystal\nat all\n",
    "no atoms": "data_x\n_cell_length_a 4\n",
    "truncated": "".join((FIXTURES / "ZrO2.cif").read_text().partition("_atom_site_fract_x")[:1]),
    "unknown element": cif_of(["Zz Zz1 0 0 0 1"]),
    "overfull": cif_of(["Cu Cu1 0 0 0 1", "Au Au1 0 0 0 1"]),
    "nonsense number": cif_of(["Cu Cu1 0 zero 0 1"]),
    "impossible angles": cif_of(["Cu Cu1 0 0 0 1"], "4 4 4 30 30 150"),
    "zero length": cif_of(["Cu Cu1 0 0 0 1"], "0 4 4 90 90 90"),
    "not a number": cif_of(["Cu Cu1 0 0 0 1"], "nan 4 4 90 90 90"),
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("numbers", [29]),
        ("numbers", [29, 29, 29, 500]),
        ("occupancies", [1.0, 1.0, 1.0, np.nan]),
        ("positions", []),
        ("lattice", np.ones((3, 3)).tolist()),
        ("lattice", [1.0, 2.0]),
        ("laue_group", "m3m"),
        ("space_group", 999),
    ],
)
def test_what_is_no_crystal_is_not_made_one(name, value, crystals):
    with pytest.raises(ValueError):
        Crystal.from_dict(crystals["Cu"].to_dict() | {name: value})


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_cif_is_one_clear_sentence(kind, tmp_path):
    path = tmp_path / "bad.cif"
    path.write_text(MALFORMED[kind])
    with pytest.raises(InputError) as caught:
        read_cif(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message and len(message) < 500
    assert re.search(r"\w\.$", message) and ".." not in message


def test_unreadable_paths_are_input_errors(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_cif(tmp_path / "missing.cif")
    with pytest.raises(InputError, match="cannot be read"):
        read_cif(tmp_path)
    (tmp_path / "image.cif").write_bytes(bytes(range(256)) * 20)
    with pytest.raises(InputError, match="no crystal structure"):
        read_cif(tmp_path / "image.cif")


def test_k_max_below_the_first_reflection(crystals):
    with pytest.raises(InputError, match="larger k_max"):
        reflections(crystals["Cu"], 0.47)
    assert len(reflections(crystals["Cu"], 0.48).hkl) == 8
    for wrong in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(InputError, match="positive"):
            reflections(crystals["Cu"], wrong)


def test_dict_round_trip_is_exact(crystals):
    for crystal in crystals.values():
        copy = Crystal.from_dict(json.loads(json.dumps(crystal.to_dict())))
        for key, value in vars(crystal).items():
            np.testing.assert_array_equal(getattr(copy, key), value)
            assert type(getattr(copy, key)) is type(value)
        np.testing.assert_array_equal(symmetry_operations(copy), symmetry_operations(crystal))


@settings(deadline=None, max_examples=50)
@given(st.tuples(*[st.floats(2, 30)] * 3), st.tuples(*[st.floats(50, 130)] * 3))
def test_standard_lattice_has_the_cell_and_the_frame(lengths, angles):
    cosines = np.cos(np.deg2rad(angles))
    assume(1 + 2 * np.prod(cosines) - np.sum(cosines**2) > 0.01)
    lattice = standard_lattice(*lengths, *angles)
    np.testing.assert_allclose(np.linalg.norm(lattice, axis=1), lengths)
    unit = lattice / np.array(lengths)[:, None]
    np.testing.assert_allclose(
        [unit[1] @ unit[2], unit[0] @ unit[2], unit[0] @ unit[1]], cosines, atol=1e-9
    )
    reciprocal = reciprocal_lattice(lattice)
    np.testing.assert_allclose(lattice @ reciprocal.T, np.eye(3), atol=1e-9)
    assert lattice[0, 0] > 0 and lattice[1, 1] > 0
    assert np.all(lattice[0, 1:] == 0) and lattice[1, 2] == 0
    np.testing.assert_allclose(reciprocal[2, :2], 0, atol=1e-12)  # c* along z
    assert reciprocal[2, 2] > 0


def test_frame_of_the_input_does_not_matter():
    """pymatgen puts c along z; whatever its frame, ours comes from the cell alone."""
    rng = np.random.default_rng(5)
    base = Lattice.from_parameters(4.1, 5.2, 6.3, 81, 97, 104)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    atoms = rng.uniform(size=(3, 3))
    one, other = (
        from_structure(Structure(lattice, ["Cu", "O", "O"], atoms), "x")
        for lattice in (base, Lattice(base.matrix @ (turn * np.linalg.det(turn)).T))
    )
    np.testing.assert_allclose(one.lattice, other.lattice, atol=1e-9)
    assert not np.allclose(one.lattice, base.matrix, atol=0.1)
