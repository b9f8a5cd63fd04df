# SPDX-License-Identifier: GPL-3.0-or-later
"""What leaves jaxstem, read back by orix and as the tables that it is."""

import csv
import dataclasses
import os

import numpy as np
import pytest
from helpers import (
    assert_refused,
    crystal_in_setting,
    files_of_at_most,
    make_map,
    random_map,
)
from scipy.spatial.transform import Rotation

from jaxstem.errors import InputError
from jaxstem.files.map_file import write_map
from jaxstem.maps.export import export_map
from jaxstem.maps.grains import bunge_angles

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:orix.*"),
]


@pytest.mark.parametrize("suffix", [".ang", ".h5"])
def test_orix_reads_back_the_same_map(suffix, tmp_path, seed):
    from orix import io as orix_io

    for names in (["cubic"], ["cubic", "monoclinic"]):
        found = random_map([crystal_in_setting(name) for name in names], seed)
        write_map(tmp_path / "map.h5", found, overwrite=True)
        out = tmp_path / f"out{suffix}"
        export_map(tmp_path / "map.h5", out, overwrite=True)
        read, expected = orix_io.load(out), found.to_orix()
        known = found.phase.ravel() >= 0
        assert read.shape == (4, 5)
        np.testing.assert_array_equal(read.is_indexed, known)
        np.testing.assert_allclose(
            read.rotations.to_matrix()[known], expected.rotations.to_matrix()[known], atol=1e-4
        )
        scale = 1e-3 if suffix == ".ang" else 1.0
        np.testing.assert_allclose(read.x, scale * expected.x, atol=1e-8)
        np.testing.assert_allclose(read.y, scale * expected.y, atol=1e-8)
        assert read.scan_unit == ("um" if suffix == ".ang" else "nm")
        names_read = [read.phases[int(i)].name for i in read.phase_id[known]]
        assert names_read == [found.phase_names[i] for i in found.phase.ravel()[known]]
        score = read.prop["detector_signal" if suffix == ".ang" else "score"]
        np.testing.assert_allclose(score[known], found.score.ravel()[known], atol=1e-5)
        confidence = read.prop["ci" if suffix == ".ang" else "confidence"]
        np.testing.assert_allclose(confidence[known], found.confidence.ravel()[known], atol=1e-5)


@pytest.mark.parametrize(
    ("suffix", "names"),
    [(".ang", ["Iron_(Alpha)", "beta-Sn2_x"]), (".h5", ["Iron (Alpha)", "beta-Sn2  x"])],
)
def test_names_of_several_words_or_other_letters_are_read_back(suffix, names, tmp_path):
    """orix takes the last word of a name in `.ang`, and its HDF5 for Latin-1 cut short."""
    from orix import io as orix_io

    crystals = [crystal_in_setting("cubic"), crystal_in_setting("monoclinic")]
    for number, name in enumerate(("Iron (Alpha)", "β-Sn₂  x")):
        crystals[number] = dataclasses.replace(crystals[number], name=name)
    write_map(tmp_path / "map.h5", random_map(crystals, 4))
    export_map(tmp_path / "map.h5", tmp_path / f"out{suffix}")
    read = orix_io.load(tmp_path / f"out{suffix}").phases
    assert [phase.name for index, phase in read if index >= 0] == names


@pytest.mark.parametrize("suffix", [".ang", ".ctf", ".h5", ".npy", ".csv", ".png", ".svg", ".pdf"])
def test_a_full_disk_is_told_and_nothing_left(suffix, tmp_path):
    write_map(tmp_path / "map.h5", random_map([crystal_in_setting("cubic")], 3))
    out = tmp_path / f"out{suffix}"
    out.write_text("before")

    def export(out):
        with files_of_at_most(120):
            export_map(tmp_path / "map.h5", out, overwrite=True)

    assert_refused(export, out, "file too large")
    assert sorted(os.listdir(tmp_path)) == ["map.h5", out.name] and out.read_text() == "before"


def test_ang_columns(tmp_path):
    """Bunge's angles in radians. MTEX takes column 8 for the phase, unless column 9 holds nothing
    but phase numbers and column 8 something else: the −1 of a single phase's unindexed positions.
    """
    found = random_map([crystal_in_setting("cubic")], 3)
    write_map(tmp_path / "map.h5", found)
    export_map(tmp_path / "map.h5", tmp_path / "map.ang")
    table = np.loadtxt(tmp_path / "map.ang")
    known = found.phase.ravel() >= 0
    angles = np.deg2rad(bunge_angles(found.orientation.reshape(-1, 3, 3)[known]))
    np.testing.assert_allclose(np.mod(table[known, :3] - angles + 1, 2 * np.pi), 1, atol=1e-4)
    np.testing.assert_allclose(table[~known, :3], 4 * np.pi, atol=1e-4)
    assert set(table[:, 7]) <= {-1, 0, 1}
    assert not set(table[:, 8]) <= {0, 1}


def test_matrices_for_py4dstem(tmp_path):
    crystals = [crystal_in_setting("cubic"), crystal_in_setting("monoclinic")]
    found = random_map(crystals, 5)
    second = found.phase.copy()
    second[0] = np.where(found.phase[0] == 0, 1, 0)
    found = dataclasses.replace(found, second_phase=second)
    write_map(tmp_path / "map.h5", found)
    export_map(tmp_path / "map.h5", tmp_path / "map.npy")
    matrix = np.load(tmp_path / "map.npy")
    assert matrix.shape == (2, 4, 5, 2, 3, 3)
    for (i, j), phase in np.ndenumerate(found.phase):
        for index in range(2):
            answer = found.orientation[i, j] if phase == index else np.zeros((3, 3))
            np.testing.assert_array_equal(matrix[index, i, j, 0], answer)
    np.testing.assert_array_equal(matrix[1, 0, 0, 1], found.second_orientation[0, 0])


def test_csv_of_grains(tmp_path):
    orientation = np.broadcast_to(np.eye(3), (4, 5, 3, 3)).copy()
    orientation[:, 3:] = Rotation.from_rotvec([0, 0, 0.4]).as_matrix()
    write_map(
        tmp_path / "map.h5", make_map(orientation, np.zeros((4, 5)), [crystal_in_setting("cubic")])
    )
    export_map(tmp_path / "map.h5", tmp_path / "map.csv")
    with open(tmp_path / "map.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["phase"], row["area_nm2"]) for row in rows] == [
        ("cubic", "48.0"),
        ("cubic", "32.0"),
    ]
    export_map(tmp_path / "map.h5", tmp_path / "one.csv", grain_deg=30.0)
    assert len((tmp_path / "one.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (5, 1)])
def test_lines_and_single_positions(shape, tmp_path):
    from orix import io as orix_io

    orientation = Rotation.random(shape[0] * shape[1], random_state=2).as_matrix()
    found = make_map(
        orientation.reshape(*shape, 3, 3), np.zeros(shape), [crystal_in_setting("cubic")]
    )
    write_map(tmp_path / "map.h5", found)
    export_map(tmp_path / "map.h5", tmp_path / "out.h5")
    export_map(tmp_path / "map.h5", tmp_path / "out.csv")
    if shape[1] == 1:
        with pytest.raises(InputError, match="single column"):
            export_map(tmp_path / "map.h5", tmp_path / "out.ang")
        return
    for name, unit in (("out.ang", 2e-3), ("out.h5", 2.0)):
        if name == "out.ang":
            export_map(tmp_path / "map.h5", tmp_path / name)
        read = orix_io.load(tmp_path / name)
        np.testing.assert_allclose(read.rotations.to_matrix(), orientation, atol=1e-4)
        np.testing.assert_allclose(read.x, unit * np.arange(shape[1]))


def test_bad_input_is_refused_in_one_sentence(tmp_path):
    path = tmp_path / "map.h5"
    write_map(path, make_map(np.eye(3), np.full((2, 3), -1), [crystal_in_setting("cubic")]))
    for out, complaint in [
        ("map.txt", "ends in one of"),
        ("map.ang", "no orientation at any position"),
        ("map.ctf", "no orientation at any position"),
        ("map.csv", "no orientation at any position"),
        ("map.h5", "is the map itself"),
        ("none/map.ang", "does not exist"),
    ]:
        with pytest.raises(InputError, match=complaint):
            export_map(path, tmp_path / out, overwrite=True)
    (tmp_path / "there.npy").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        export_map(path, tmp_path / "there.npy")
    export_map(path, tmp_path / "empty.h5")  # orix's format can hold it
    assert sorted(file.name for file in tmp_path.iterdir()) == ["empty.h5", "map.h5", "there.npy"]
