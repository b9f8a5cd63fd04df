# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading data cubes: every pattern once and unchanged, the file's calibration, clear refusals."""

import re

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxstem.errors import InputError
from jaxstem.files.cube import chunks, cube_from_array, sample
from jaxstem.files.cube_readers import read_cube


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


def assert_refused(path, *words):
    """An InputError of one sentence that names the file, the words and a remedy."""
    with pytest.raises(InputError) as caught:
        cube = read_cube(path)
        cube.rows(0, cube.shape[0])
    message = str(caught.value)
    assert str(path) in message and "; " in message and message.endswith(".")
    assert "\n" not in message and not re.search(r"\. [A-Z]", message)
    for word in words:
        assert word in message


def test_a_cube_and_its_calibration(cube_file, data):
    cube = read_cube(cube_file)
    assert cube.shape == data.shape and cube.dtype == data.dtype
    assert cube.scan_shape == (3, 5) and cube.detector_shape == (12, 9)
    assert cube.pixel_size == pytest.approx(0.025)
    assert (cube.scan_step, cube.scan_units) == (2.0, "nm")
    assert cube.calibration["QR_rotation"] == pytest.approx(0.1) and cube.calibration["QR_flip"]
    np.testing.assert_array_equal(cube.rows(1, 3), data[1:3])
    np.testing.assert_array_equal(cube.read(slice(0, 2), slice(1, 4)), data[:2, 1:4])


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


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 6), columns=st.integers(1, 7), size=st.integers(1, 50))
def test_chunks_hold_every_pattern_once(rows, columns, size):
    data = np.arange(rows * columns * 64).reshape(rows, columns, 8, 8)
    pieces = list(chunks(cube_from_array(data), size))
    starts = [start for start, _ in pieces]
    assert starts == np.cumsum([0, *(len(p) for _, p in pieces[:-1])]).tolist()
    np.testing.assert_array_equal(np.concatenate([p for _, p in pieces]), data.reshape(-1, 8, 8))
    assert max(len(p) for _, p in pieces) <= size


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 40), columns=st.integers(1, 40), n=st.integers(1, 300))
def test_samples_are_spread_over_the_scan(rows, columns, n):
    number = np.arange(rows * columns).reshape(rows, columns, 1, 1)
    data = np.broadcast_to(number, (rows, columns, 8, 8))
    found = sample(cube_from_array(data), n)[:, 0, 0]
    assert len(set(found)) == len(found)
    assert min(n, rows * columns) / 3 <= len(found) <= 3 * n + columns
    if rows >= 20 and n >= 100:
        assert np.ptp(found // columns) > 0.8 * rows


def test_what_is_no_cube_is_refused(tmp_path, data, cube_file):
    assert_refused(tmp_path / "absent.h5", "does not exist")
    assert_refused(tmp_path, "folder")
    (tmp_path / "text.h5").write_text("no counts here")
    assert_refused(tmp_path / "text.h5", "not an HDF5 file")
    with h5py.File(tmp_path / "flat.h5", "w") as file:
        file["image"] = data[0, 0]
    assert_refused(tmp_path / "flat.h5", "no 4D-STEM data cube", "2 axes")
    with h5py.File(tmp_path / "two.h5", "w") as file:
        file["a"], file["b"] = data, data
    assert_refused(tmp_path / "two.h5", "several", "/a", "/b")
    write_cube(tmp_path / "tiny.h5", data[..., :4])
    assert_refused(tmp_path / "tiny.h5", "(3, 5, 12, 4)")
    write_cube(tmp_path / "complex.h5", data.astype(complex))
    assert_refused(tmp_path / "complex.h5", "no 4D-STEM data cube")
    wrong = {"Q_pixel_size": 0.1, "Q_pixel_units": "mrad"}
    assert_refused(write_cube(tmp_path / "units.h5", data, wrong), "mrad")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_truncated_files_are_refused(cube_file, share):
    content = cube_file.read_bytes()
    cube_file.write_bytes(content[: int(share * len(content))])
    assert_refused(cube_file, "cut short or damaged")


@settings(max_examples=30, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255))
def test_damaged_bytes_never_escape_as_other_errors(tmp_path_factory, place, value):
    path = tmp_path_factory.mktemp("fuzz") / "cube.h5"
    write_cube(path, np.ones((2, 2, 8, 8), np.uint16), {"Q_pixel_size": 1.0})
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] = value
    path.write_bytes(content)
    try:
        cube = read_cube(path)
        assert cube.rows(0, 2).shape[2:] == cube.detector_shape
    except InputError:
        pass
