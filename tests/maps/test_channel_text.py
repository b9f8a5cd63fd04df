# SPDX-License-Identifier: GPL-3.0-or-later
"""`.ctf` read by orix: the crystals' axes lie in the lab as the map has them, in Oxford's frames.

orix hands over the angles as they stand, which refer to x along a* and z along c; that frame is
made here from the lengths and angles that orix reads.
"""

import dataclasses

import numpy as np
import pytest
from helpers import crystal_in_setting, crystal_of, make_map, random_map
from pymatgen.core import Lattice, Structure
from scipy.spatial.transform import Rotation

from jaxstem.crystal.cell import from_structure, symmetry_operations
from jaxstem.files.map_file import write_map
from jaxstem.maps.channel_text import channel_axes, channel_cell, ctf_text
from jaxstem.maps.export import export_map

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Setting space group"),
]

OWN = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]

SETTINGS = {
    **dict.fromkeys(["cubic", "zinc blende", "monoclinic", "hexagonal", "P-3m1", "triclinic"], OWN),
    "P-31m": [[2, 1, 0], [-1, 1, 0], [0, 0, 1]],
    "rhombohedral": [[1, 0, -1], [-1, 1, 0], [1, 1, 1]],
    "unique axis c": [[0, 1, 0], [0, 0, 1], [1, 0, 0]],
    "tetragonal": OWN,
    "orthorhombic": OWN,
}
"""The axes that are written, as indices on the CIF's own."""

CELLS = {
    "tetragonal": ("P4/mmm", (5, 5, 7, 90, 90, 90)),
    "orthorhombic": ("Pmmm", (5, 6, 7, 90, 90, 90)),
}


def crystal_called(name):
    if name == "unique axis c":  # the axes c, a, b of the monoclinic one
        own = crystal_in_setting("monoclinic")
        sites = own.positions @ np.eye(3)[[1, 2, 0]]
        lengths = np.linalg.norm(own.lattice, axis=1)
        lattice = Lattice.from_parameters(*lengths[[2, 0, 1]], 90, 90, 101)
        return from_structure(Structure(lattice, ["Cu"] * len(sites), sites), name)
    return crystal_of(*CELLS[name], name) if name in CELLS else crystal_in_setting(name)


def exported(found, folder):
    """The map as orix reads it from a `.ctf`."""
    from orix import io as orix_io

    write_map(folder / "map.h5", found, overwrite=True)
    export_map(folder / "map.h5", folder / "map.ctf", overwrite=True)
    return orix_io.load(folder / "map.ctf")


def axes_in_oxfords_frame(lattice):
    """Rows a, b, c of a cell with x along a* and z along c, from its lengths and angles."""
    cos_a, cos_b, cos_c = np.cos(np.radians([lattice.alpha, lattice.beta, lattice.gamma]))
    sin_a = np.sqrt(1 - cos_a**2)
    z_of_a, y_of_a = cos_b, (cos_c - cos_a * cos_b) / sin_a
    a = [np.sqrt(1 - z_of_a**2 - y_of_a**2), y_of_a, z_of_a]
    return np.array([lattice.a, lattice.b, lattice.c])[:, None] * [a, [0, sin_a, cos_a], [0, 0, 1]]


def angles_between(first, second):
    """[degrees], by the sine, which is exact where the cosine has no digits left."""
    first, second = (v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (first, second))
    return np.degrees(2 * np.arcsin(np.linalg.norm(first - second, axis=-1) / 2))


@pytest.mark.parametrize("names", [[name] for name in SETTINGS] + [["cubic", "monoclinic"]])
def test_orix_reads_back_the_same_orientations(names, tmp_path, seed):
    """Within 0.01°, with positions that are not assigned."""
    crystals = [crystal_called(name) for name in names]
    found = random_map(crystals, seed, shape=(4, 5), step=2.5, units="nm")
    read = exported(found, tmp_path)
    phase, known = found.phase.ravel(), found.phase.ravel() >= 0
    assert read.shape == (4, 5) and read.scan_unit == "um"
    np.testing.assert_array_equal(read.is_indexed, known)
    np.testing.assert_array_equal(read.phase_id[known], phase[known] + 1)
    np.testing.assert_array_equal(read.prop["error"], np.where(known, 0, 3))
    row, column = np.indices((4, 5))
    np.testing.assert_allclose(read.x, 2.5e-3 * column.ravel(), atol=1e-9)
    np.testing.assert_allclose(read.y, 2.5e-3 * row.ravel(), atol=1e-9)
    matrix = read.rotations.to_matrix()
    for index, (name, crystal) in enumerate(zip(names, crystals, strict=True)):
        own = phase == index
        written = read.phases[index + 1]
        assert written.name == crystal.name
        lab = axes_in_oxfords_frame(written.structure.lattice) @ matrix[own]
        expected = np.array(SETTINGS[name]) @ crystal.lattice @ found.orientation.reshape(-1, 3, 3)
        assert angles_between(lab, expected[own]).max() < 0.01
        np.testing.assert_allclose(
            np.linalg.norm(lab, axis=-1), np.linalg.norm(expected[own], axis=-1), atol=1e-4
        )


@pytest.mark.parametrize("name", ["cubic", "zinc blende", "tetragonal", "orthorhombic"])
def test_where_axes_are_at_right_angles_all_frames_are_one(name, tmp_path, seed):
    """orix's own rotations come back, as from `.ang`."""
    from orix import io as orix_io

    found = random_map([crystal_called(name)], seed)
    read, known = exported(found, tmp_path), found.phase.ravel() >= 0
    export_map(tmp_path / "map.h5", tmp_path / "map.ang")
    other = orix_io.load(tmp_path / "map.ang")
    for expected in (found.to_orix(), other):
        apart = read.rotations[known] * ~expected.rotations[known]
        assert np.degrees(np.min([apart.angle, 2 * np.pi - apart.angle], 0)).max() < 0.01


@pytest.mark.parametrize("name", ["monoclinic", "unique axis c"])
def test_the_axis_of_a_monoclinic_crystal_is_y(name):
    crystal = crystal_called(name)
    axes = channel_axes(channel_cell(crystal))
    turn = axes @ symmetry_operations(crystal)[1] @ axes.T
    np.testing.assert_allclose(turn, np.diag([-1, 1, -1]), atol=1e-6)


@pytest.mark.parametrize("name", ["P-3m1", "P-31m", "rhombohedral"])
def test_two_fold_axes_of_trigonal_crystals_lie_along_a(name):
    """Of the group number 7 is all that readers know."""
    crystal = crystal_called(name)
    cell = channel_cell(crystal)
    images = symmetry_operations(crystal) @ cell[0]
    assert np.isclose(images, cell[0], atol=1e-6).all(-1).sum() == 2
    lengths = np.linalg.norm(cell, axis=1)
    assert lengths[0] == pytest.approx(lengths[1])
    assert cell[0] @ cell[1] == pytest.approx(-(lengths[0] ** 2) / 2)


def test_columns_and_header(tmp_path):
    """Degrees; score and confidence in 255ths; nothing but zeros where there is no orientation."""
    found = random_map([crystal_in_setting("cubic")], 3)
    lines = ctf_text(found, ["name of two words"], "title").split("\r\n")
    assert lines[0] == "Channel Text File" and lines[-1] == ""
    start = next(i for i, line in enumerate(lines) if line.startswith("Phase\tX"))
    header = dict(line.split("\t")[:2] for line in lines[1 : start - 1])
    assert (header["XCells"], header["YCells"], header["XStep"]) == ("5", "4", "0.0020000")
    assert "\tKV\t300\t" in lines[start - 3]
    phase = lines[start - 1].split("\t")
    assert phase[2:5] == ["name of two words", "11", "221"]
    table = np.loadtxt(lines[start + 1 :])
    assert table.shape == (20, 11)
    known = found.phase.ravel() >= 0
    np.testing.assert_allclose(table[known, 9], 255 * found.score.ravel()[known], atol=0.51)
    np.testing.assert_allclose(table[known, 10], 255 * found.confidence.ravel()[known], atol=0.51)
    np.testing.assert_array_equal(table[:, 3], found.n_disks.ravel())
    assert not table[~known][:, [0, 5, 6, 7, 8, 9, 10]].any()


@pytest.mark.parametrize("shape", [(1, 4), (5, 1), (2, 3)])
def test_lines_and_unknown_steps(shape, tmp_path):
    """Positions are counted where the step is not known."""
    orientation = Rotation.random(np.prod(shape), random_state=2).as_matrix()
    crystal = dataclasses.replace(crystal_in_setting("cubic"), name="β-Sn₂\tx")
    found = make_map(
        orientation.reshape(*shape, 3, 3), np.zeros(shape), [crystal], step=1.0, units="pixels"
    )
    read = exported(found, tmp_path)
    np.testing.assert_allclose(read.rotations.to_matrix(), orientation, atol=1e-5)
    for length, found, counted in zip(
        shape, (read.y, read.x), np.indices(shape).reshape(2, -1), strict=True
    ):
        assert (found is None) == (length == 1)  # orix's way
        np.testing.assert_array_equal(0 if found is None else found, counted)
    assert read.phases[1].name == "beta-Sn2 x"
