# SPDX-License-Identifier: GPL-3.0-or-later
"""How a scan is opened: options that are checked, refused where they cannot matter, and stored."""

import math

import h5py
import numpy as np
import pytest

from jaxstem.app.demo import sample
from jaxstem.detection.config import DetectConfig
from jaxstem.detection.opening import open_scan
from jaxstem.detection.reading import ReadOptions, stored
from jaxstem.errors import InputError
from jaxstem.files.emd import read_disks
from jaxstem.files.hdf5 import read_settings, write_settings
from jaxstem.files.packed import write_packed
from jaxstem.files.scan import source_of

GIVEN = {
    "pixel_size": 0.02,
    "calibration": {"Q_pixel_size": 0.03, "Q_pixel_units": "A^-1", "a": 1.01, "b": 0.99},
    "rotation_deg": -12.5,
    "flip": True,
    "mask": np.eye(9, dtype=bool),
    "origin": (3.5, 4.0),
    "radius": 2.5,
    "probe": np.arange(6.0).reshape(2, 3),
    "gain": 1.7,
    "scan_shape": (4, 5),
    "voltage_kv": 200.0,
    "disk_method": "correlation",
}


def same(one, other):
    assert one.given().keys() == other.given().keys()
    for name, value in one.given().items():
        np.testing.assert_array_equal(value, other.given()[name], err_msg=name)


@pytest.mark.parametrize("left_out", [(), ("mask", "probe", "calibration", "flip", "origin")])
def test_options_come_back_from_a_file_as_they_went(left_out, tmp_path):
    options = ReadOptions(**{k: v for k, v in GIVEN.items() if k not in left_out})
    with h5py.File(tmp_path / "map.h5", "w") as file:
        write_settings(file.create_group("read_options"), options.given())
    with h5py.File(tmp_path / "map.h5") as file:
        same(stored(read_settings(file["read_options"])), options)
    same(stored({}), ReadOptions())


def test_options_of_a_later_version_are_refused():
    with pytest.raises(InputError, match="'tilt'.*update"):
        stored({"radius": 3.0, "tilt": 2.0})


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("pixel_size", 0.0, "--pixel-size 0"),
        ("rotation_deg", 720.0, "--rotation-deg 720"),
        ("origin", (9999.0, math.nan), "--origin nan"),
        ("radius", -3.0, "--radius -3"),
        ("gain", -1.0, "--gain -1"),
        ("scan_shape", (0, 5), "--scan-shape 0"),
        ("voltage_kv", -7.0, "--voltage-kv -7"),
        ("disk_method", "magic", "--disk-method 'magic'"),
        ("flip", True, "--flip: state --rotation-deg too"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(name, value, said):
    with pytest.raises(InputError, match=said):
        ReadOptions(**{name: value})


def test_entries_replace_those_of_the_file():
    entries = ReadOptions(**GIVEN).entries()
    assert entries["Q_pixel_size"] == 0.02 and entries["a"] == 1.01
    assert entries["QR_rotation"] == pytest.approx(math.radians(-12.5)) and entries["QR_flip"]
    assert ReadOptions().entries() == {}


def test_what_is_given_wins_over_what_was_stored():
    before = ReadOptions(pixel_size=0.02, radius=3.0)
    merged = ReadOptions(radius=4.0, voltage_kv=80.0).over(before)
    same(merged, ReadOptions(pixel_size=0.02, radius=4.0, voltage_kv=80.0))


def test_the_detection_takes_what_is_given_and_keeps_the_rest():
    config = ReadOptions(radius=3.0).detection(DetectConfig(method="correlation", gain=2.0))
    assert (config.radius, config.method, config.gain) == (3.0, "correlation", 2.0)
    assert ReadOptions(disk_method="correlation").detection().method == "correlation"


@pytest.mark.parametrize("name", ["mask", "origin", "radius", "probe", "gain", "disk_method"])
def test_options_of_patterns_are_refused_for_lists(name):
    with pytest.raises(InputError, match=f"cu_bragg.h5 lists disks.*--{name.replace('_', '-')}"):
        open_scan(sample("cu_bragg.h5"), **{name: GIVEN[name]})


def test_the_shape_of_a_list_is_its_own():
    assert open_scan(sample("cu_bragg.h5"), scan_shape=(64, 64)).scan_shape == (64, 64)
    with pytest.raises(InputError, match="64 × 64 positions, not 3 × 7"):
        open_scan(sample("cu_bragg.h5"), scan_shape=(3, 7))


@pytest.mark.parametrize("name", ["pixel_size", "calibration", "rotation_deg"])
def test_options_of_pixels_are_refused_for_disks_in_inverse_angstroms(name, tmp_path):
    source = source_of(read_disks(sample("cu_bragg.h5")))
    write_packed(tmp_path / "disks.h5", source, progress=False)
    assert open_scan(tmp_path / "disks.h5", voltage_kv=80.0).voltage_kv == 80.0
    with pytest.raises(InputError, match=f"in 1/Å already.*--{name.replace('_', '-')}"):
        open_scan(tmp_path / "disks.h5", **{name: GIVEN[name]})


def test_a_flip_exchanges_the_axes_and_a_rotation_turns_them():
    plain = open_scan(sample("cu_bragg.h5"), rotation_deg=0.0).read(0, 2)
    flipped = open_scan(sample("cu_bragg.h5"), rotation_deg=0.0, flip=True).read(0, 2)
    turned = open_scan(sample("cu_bragg.h5"), rotation_deg=90.0).read(0, 2)
    np.testing.assert_allclose([flipped.qx, flipped.qy], [plain.qy, plain.qx], atol=1e-6)
    # qx is turned towards qy
    np.testing.assert_allclose([turned.qx, turned.qy], [-plain.qy, plain.qx], atol=1e-6)
