# SPDX-License-Identifier: GPL-3.0-or-later
"""Known truths: read as they were written, completed where they say less, or refused."""

import h5py
import numpy as np
import pytest
from helpers import assert_refused, random_matrices

from jaxstem.files.truth import read_truth


def write_truth(path, **changes):
    rng = np.random.default_rng(0)
    arrays = {
        "orientation": random_matrices(rng, 6, np.float64).reshape(2, 3, 3, 3),
        "phase": np.array([[b"Cu", b"Cu2O", b"vacuum"]] * 2),
        "boundary_weight": rng.uniform(size=(2, 3)),
        "grain": np.arange(6).reshape(2, 3),
        "thickness": rng.uniform(50, 300, (2, 3)),
    } | changes
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            if values is not None:
                file[name] = values
    return arrays


def test_truth_is_read(tmp_path):
    arrays = write_truth(tmp_path / "truth.h5")
    truth = read_truth(tmp_path / "truth.h5")
    for name in ("orientation", "boundary_weight", "grain", "thickness"):
        np.testing.assert_array_equal(getattr(truth, name), arrays[name])
    assert truth.phase.tolist() == [["Cu", "Cu2O", "vacuum"]] * 2


def test_names_that_are_no_text_are_read(tmp_path):
    write_truth(tmp_path / "truth.h5", phase=np.full((2, 3), b"\xff"))
    assert (read_truth(tmp_path / "truth.h5").phase == "\ufffd").all()


def test_truth_may_say_less(tmp_path):
    path = tmp_path / "truth.h5"
    write_truth(path, boundary_weight=None, grain=None, thickness=None)
    truth = read_truth(path)
    assert (truth.boundary_weight == 0).all() and (truth.grain == -1).all()
    assert np.isnan(truth.thickness).all() and truth.thickness.shape == (2, 3)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"orientation": None}, "'orientation'"),
        ({"phase": None}, "'phase'"),
        ({"orientation": np.zeros((2, 3, 4))}, ", 3, 3)"),
        ({"orientation": np.zeros(3)}, ", 3, 3)"),
        ({"phase": np.zeros((2, 3))}, "strings"),
        ({"phase": np.array([b"Cu"])}, "'phase' has shape (1,)"),
        ({"grain": np.zeros((3, 2), int)}, "'grain' has shape (3, 2)"),
        ({"thickness": np.array([[b"thin"] * 3] * 2)}, "not an array of numbers"),
    ],
)
def test_unusable_truths_are_refused(tmp_path, changes, word):
    write_truth(tmp_path / "truth.h5", **changes)
    assert_refused(read_truth, tmp_path / "truth.h5", word)


def spoiled(change):
    orientation = random_matrices(np.random.default_rng(1), 6, np.float64).reshape(2, 3, 3, 3)
    orientation[1, 2] = change(orientation[1, 2])
    return orientation


def part_unknown(matrix):
    return np.where(np.eye(3) == 1, np.nan, matrix)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda matrix: -matrix, "1 of the truth's 6 orientations are mirrored"),
        (lambda matrix: 1.1 * matrix, "1 of the truth's 6 orientations are no rotations"),
        (lambda matrix: 0 * matrix, "no rotations"),
        (lambda matrix: np.full((3, 3), np.inf), "no rotations"),
        (part_unknown, "no rotations"),
    ],
    ids=["mirrored", "stretched", "zero", "infinite", "part NaN"],
)
def test_matrices_that_are_no_rotations_are_refused(tmp_path, change, words):
    write_truth(tmp_path / "truth.h5", orientation=spoiled(change))
    assert_refused(read_truth, tmp_path / "truth.h5", words, "NaN where there is no crystal")


@pytest.mark.parametrize(
    "change",
    [lambda matrix: np.full((3, 3), np.nan), lambda matrix: matrix.round(3), np.float32],
    ids=["unknown", "three digits", "float32"],
)
def test_rounded_and_unknown_orientations_are_read(tmp_path, change):
    orientation = spoiled(change)
    write_truth(tmp_path / "truth.h5", orientation=orientation)
    np.testing.assert_array_equal(read_truth(tmp_path / "truth.h5").orientation, orientation)
