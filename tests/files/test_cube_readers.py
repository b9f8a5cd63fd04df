# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading data cubes: every pattern unchanged, the file's calibration, clear refusals."""

import h5py
import numpy as np
import pytest
from helpers import assert_refused, read_or_refuse
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxstem.files.cube_readers import read_cube
from jaxstem.files.stack import Frames


def write_cube(path, data, calibration=None, name="datacube_root/datacube"):
    """A data cube in the layout that py4DSTEM 0.14 writes."""
    with h5py.File(path, "w") as file:
        root = file.create_group(name.split("/")[0])
        root.attrs["emd_group_type"] = "root"
        group = file.create_group(name)
        group.attrs.update(emd_group_type="array", python_class="DataCube")
        group.create_dataset("data", data=data, compression="gzip")
        stored = root.create_group("metadatabundle/calibration")
        for key, value in (calibration or {}).items():
            stored[key] = value
    return path


@pytest.fixture
def data(rng):
    return rng.poisson(3.0, (3, 5, 12, 9)).astype(np.uint16)


@pytest.fixture
def cube_file(tmp_path, data):
    calibration = {"Q_pixel_size": 0.25, "Q_pixel_units": "nm^-1", "R_pixel_size": 2.0}
    calibration |= {"R_pixel_units": "nm", "QR_rotation": 0.1, "QR_flip": True}
    return write_cube(tmp_path / "cube.h5", data, calibration)


def read_whole(path):
    cube = read_cube(path)
    assert cube.rows(0, cube.shape[0]).shape == cube.shape
    return cube


def test_a_cube_and_its_calibration(cube_file, data):
    cube = read_cube(cube_file)
    assert cube.shape == data.shape and cube.dtype == data.dtype
    assert cube.scan_shape == (3, 5) and cube.detector_shape == (12, 9)
    assert cube.pixel_size == pytest.approx(0.025)
    assert (cube.scan_step, cube.scan_units) == (2.0, "nm")
    assert cube.calibration["QR_rotation"] == pytest.approx(0.1) and cube.calibration["QR_flip"]
    np.testing.assert_array_equal(cube.rows(1, 3), data[1:3])
    np.testing.assert_array_equal(cube.read(slice(0, 2), slice(1, 4)), data[:2, 1:4])


def test_frames_that_are_not_of_the_scan_are_left_out(tmp_path, data):
    """Before it, after it and while the beam flies back, and the entries at their positions too."""
    origin = np.arange(15.0).reshape(3, 5)
    path = write_cube(tmp_path / "cube.h5", data, {"qx0": origin, "qy0": 4.0})
    cube = read_cube(path, frames=Frames(flyback=2))
    np.testing.assert_array_equal(cube.rows(0, 3), data[:, :3])
    np.testing.assert_array_equal(cube.read(slice(1, 3), slice(0, None, 2)), data[1:, :3:2])
    np.testing.assert_array_equal(cube.calibration["qx0"], origin[:, :3])
    assert cube.calibration["qy0"] == 4.0
    flat = data.reshape(-1, *data.shape[2:])
    cube = read_cube(path, (3, 3), frames=Frames(2, 14, flyback=1))
    expected = flat[2:14].reshape(3, 4, *data.shape[2:])[:, :3]
    np.testing.assert_array_equal(cube.rows(0, 3), expected)
    np.testing.assert_array_equal(cube.read(slice(1, 2), slice(1, None)), expected[1:2, 1:])
    np.testing.assert_array_equal(cube.calibration["qx0"].ravel()[:4], [2, 3, 4, 6])
    # whole rows keep their length
    assert read_cube(path, frames=Frames(5)).scan_shape == (2, 5)
    for frames, shape, words in (
        (Frames(3), None, ["12 patterns", "does not state"]),
        (Frames(3), (3, 5), ["12 patterns, which are not 3 × 5", "--frames START STOP"]),
        (Frames(9, 4), None, ["15 frames", "none from 9 to 3"]),
        (Frames(0, 16), None, ["15 frames"]),
        (Frames(flyback=5), None, ["5 frames, of which --flyback 5 leaves none"]),
        (Frames(flyback=1), (3, 5), ["3 × 5 positions, not 3 × 5 and 1 of flyback"]),
    ):
        assert_refused(lambda p, s=shape, f=frames: read_cube(p, s, frames=f), path, *words)


def test_patterns_in_a_row_are_the_scan_that_the_user_says(tmp_path, data):
    """In HDF5 an array of three axes may be anything."""
    with h5py.File(tmp_path / "stack.h5", "w") as file:
        file["frames"], file["image"] = data.reshape(-1, *data.shape[2:]), data[0, 0]
    assert_refused(read_cube, tmp_path / "stack.h5", "3 axes", "--scan-shape ROWS COLUMNS")
    cube = read_cube(tmp_path / "stack.h5", (3, 5))
    np.testing.assert_array_equal(cube.rows(0, 3), data)
    np.testing.assert_array_equal(cube.read(slice(1, 3), slice(0, None, 2)), data[1:, ::2])
    with h5py.File(tmp_path / "one.h5", "w") as file:
        file["image"] = data[0, 0]
    assert_refused(read_cube, tmp_path / "one.h5", "2 axes")
    np.testing.assert_array_equal(read_cube(tmp_path / "one.h5", (1, 1)).rows(0, 1), data[:1, :1])


@pytest.mark.parametrize("units", [None, "pixels"])
def test_without_a_pixel_size_there_is_none(tmp_path, data, units):
    calibration = {"Q_pixel_size": 1.0, "Q_pixel_units": units} if units else {}
    cube = read_cube(write_cube(tmp_path / "cube.h5", data, calibration))
    assert cube.pixel_size is None and cube.scan_units == "pixels"


def test_an_unmarked_array_will_do(tmp_path, data):
    with h5py.File(tmp_path / "plain.h5", "w") as file:
        file["somewhere/patterns"] = data.astype(np.float32)
        file["image"] = data[0, 0]
    np.testing.assert_array_equal(read_cube(tmp_path / "plain.h5").rows(0, 3), data)


def test_what_is_no_cube_is_refused(tmp_path, data, cube_file):
    assert_refused(read_whole, tmp_path / "absent.h5", "does not exist")
    assert_refused(read_whole, tmp_path, "folder")
    (tmp_path / "text.h5").write_text("no counts here")
    assert_refused(read_whole, tmp_path / "text.h5", "not an HDF5 file")
    with h5py.File(tmp_path / "flat.h5", "w") as file:
        file["image"] = data[0, 0]
    assert_refused(read_whole, tmp_path / "flat.h5", "no 4D-STEM data cube", "2 axes")
    with h5py.File(tmp_path / "two.h5", "w") as file:
        file["a"], file["b"] = data, data
    assert_refused(read_whole, tmp_path / "two.h5", "several", "/a", "/b")
    write_cube(tmp_path / "tiny.h5", data[..., :4])
    assert_refused(read_whole, tmp_path / "tiny.h5", "(3, 5, 12, 4)")
    write_cube(tmp_path / "complex.h5", data.astype(complex))
    assert_refused(read_whole, tmp_path / "complex.h5", "no 4D-STEM data cube")
    wrong = {"Q_pixel_size": 0.1, "Q_pixel_units": "mrad"}
    assert_refused(read_whole, write_cube(tmp_path / "units.h5", data, wrong), "mrad")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_truncated_files_are_refused(cube_file, share):
    content = cube_file.read_bytes()
    cube_file.write_bytes(content[: int(share * len(content))])
    assert_refused(read_whole, cube_file, "cut short or damaged")


@settings(max_examples=30, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255))
def test_damaged_bytes_never_escape_as_other_errors(tmp_path_factory, place, value):
    path = tmp_path_factory.mktemp("fuzz") / "cube.h5"
    write_cube(path, np.ones((2, 2, 8, 8), np.uint16), {"Q_pixel_size": 1.0})
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] = value
    path.write_bytes(content)
    read_or_refuse(read_whole, path)
