# SPDX-License-Identifier: GPL-3.0-or-later
"""Dectris master files and the data files that they link to."""

import h5py
import numpy as np
from helpers import assert_refused

from jaxstem.files.cube import chunks
from jaxstem.files.cube_readers import read_cube

SHAPE = (3, 5, 12, 10)


def write_dectris(path, data, n_files=4):
    """A Dectris master file and its data files."""
    frames = data.reshape(-1, *data.shape[2:]).astype(np.uint32)
    with h5py.File(path, "w") as master:
        for number, part in enumerate(np.array_split(frames, n_files), 1):
            name = path.name.replace("master", f"data_{number:06d}")
            with h5py.File(path.with_name(name), "w") as file:
                file["entry/data/data"] = part
            master[f"entry/data/data_{number:06d}"] = h5py.ExternalLink(name, "entry/data/data")
        master["entry/instrument/beam/incident_energy"] = 200e3
        master["entry/instrument/detector/detectorSpecific/ntrigger"] = data.shape[0]
        master["entry/instrument/detector/detectorSpecific/nimages"] = data.shape[1]
    return path


def assert_same(cube, data):
    """All patterns, also in portions that begin within one file and end in another."""
    assert cube.shape == data.shape and cube.dtype.kind == "u"
    for start, block in chunks(cube, 3):
        patterns = data.reshape(-1, *data.shape[2:])[start:][: len(block)]
        np.testing.assert_array_equal(block, patterns)
    np.testing.assert_array_equal(cube.rows(0, len(data)), data)
    np.testing.assert_array_equal(cube.read(slice(1, None), slice(1, None, 2)), data[1:, 1::2])
    assert cube.pixel_size is None and (cube.scan_step, cube.scan_units) == (1.0, "pixels")
    assert cube.voltage_kv == 200.0


def test_master_and_data_files(tmp_path, rng):
    data = rng.integers(0, 200, SHAPE).astype(np.uint8)
    path = write_dectris(tmp_path / "scan_master.h5", data)
    assert_same(read_cube(path), data)
    with h5py.File(path, "r+") as file:
        del file["entry/instrument/detector"]
    assert_refused(read_cube, path, "15 patterns")
    assert_same(read_cube(path, SHAPE[:2]), data)
    (tmp_path / "scan_data_000002.h5").unlink()
    assert_refused(lambda path: read_cube(path, SHAPE[:2]), path, "scan_data_000002.h5", "missing")


def test_the_scan_generators_file_beside_a_master_states_the_shape(tmp_path, rng):
    """Where each pattern has a trigger of its own, as Arina takes them."""
    data = rng.integers(0, 200, SHAPE).astype(np.uint8)
    path = write_dectris(tmp_path / "scan_master.h5", data)
    with h5py.File(path, "r+") as file:
        specific = file["entry/instrument/detector/detectorSpecific"]
        specific["ntrigger"][()], specific["nimages"][()] = 15, 1
        del file["entry/instrument/beam"]
    assert_refused(read_cube, path, "15 patterns")
    beside = tmp_path / "scan.h5"
    beside.write_bytes(b"something else")
    assert_refused(read_cube, path, "15 patterns")
    with h5py.File(beside, "w") as file:
        about = file.create_group("STEM Metadata").attrs
        about["NumPixelsX"], about["NumPixelsY"] = np.int64(5), np.int64(3)
        about["High Tension"] = np.array([200e3])
    assert_same(read_cube(path), data)
    # of another scan
    with h5py.File(beside, "r+") as file:
        file["STEM Metadata"].attrs["NumPixelsY"] = 4
    assert_refused(read_cube, path, "15 patterns")
