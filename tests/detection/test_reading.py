# SPDX-License-Identifier: GPL-3.0-or-later
"""How a scan is opened: options that are checked, refused where they cannot matter, and stored."""

import math
from dataclasses import replace

import h5py
import numpy as np
import pytest
from helpers import random_lists, scan_of_lists
from hypothesis import given
from hypothesis import strategies as st

from jaxstem.app.demo import sample
from jaxstem.detection.config import DetectConfig
from jaxstem.detection.opening import as_listed, open_scan
from jaxstem.detection.reading import ReadOptions, stored
from jaxstem.errors import InputError
from jaxstem.files.emd import read_disks
from jaxstem.files.hdf5 import read_settings, write_settings
from jaxstem.files.packed import write_packed
from jaxstem.files.scan import source_of
from jaxstem.files.stack import ALL_FRAMES, Frames

GIVEN = {
    "pixel_size": 0.02,
    "calibration": {"Q_pixel_size": 0.03, "Q_pixel_units": "A^-1", "QR_rotation": 0.1},
    "rotation_deg": -12.5,
    "transpose": True,
    "flip": "columns",
    "ellipse": (1.05, 70.0),
    "mask": np.eye(9, dtype=bool),
    "origin": (3.5, 4.0),
    "radius": 2.5,
    "probe": np.arange(6.0).reshape(2, 3),
    "gain": 1.7,
    "scan_shape": (4, 5),
    "frames": (3, 27),
    "flyback": 1,
    "voltage_kv": 200.0,
    "disk_method": "correlation",
}


def same(one, other):
    assert one.given().keys() == other.given().keys()
    for name, value in one.given().items():
        np.testing.assert_array_equal(value, other.given()[name], err_msg=name)


@pytest.mark.parametrize(
    "left_out", [(), ("mask", "probe", "calibration", "transpose", "flip", "origin")]
)
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
        ("flip", "up", "--flip 'up': give one of none, rows, columns"),
        ("ellipse", (0.9, 30.0), "--ellipse RATIO 0.9: give a number from 1 to 2"),
        ("ellipse", (1.1, math.inf), "--ellipse inf"),
        ("skip_frames", -1, "--skip-frames -1: give a whole number"),
        ("flyback", -2, "--flyback -2: give a whole number"),
        ("frames", (-1, 5), "--frames -1"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(name, value, said):
    with pytest.raises(InputError, match=said):
        ReadOptions(**{name: value})


def test_options_that_say_the_same_twice_are_refused():
    with pytest.raises(InputError, match="--ellipse and --calibration both state the ellipse"):
        ReadOptions(ellipse=(1.1, 0.0), calibration={"a": 1.0, "b": 1.0, "theta": 0.0})
    with pytest.raises(InputError, match="--frames and --skip-frames both"):
        ReadOptions(frames=(2, 20), skip_frames=2)


def test_maps_of_before_rows_could_be_flipped_are_still_read():
    """`flip` was the exchange of qx and qy."""
    same(
        stored({"flip": np.True_, "rotation_deg": 0.0}),
        ReadOptions(transpose=True, rotation_deg=0.0),
    )


def test_frames_of_the_file():
    assert ReadOptions().of_file() == ALL_FRAMES
    assert ReadOptions(skip_frames=3, flyback=2).of_file() == Frames(3, None, 2)
    assert ReadOptions(frames=(3, 27)).of_file() == Frames(3, 27, 0)


def test_entries_replace_those_of_the_file():
    entries = ReadOptions(**GIVEN).entries()
    assert entries["Q_pixel_size"] == 0.02 and entries["Q_flip"] == "columns"
    assert entries["Q_ellipse"] == (1.05, pytest.approx(math.radians(70.0)))
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


@pytest.mark.parametrize("name", ["pixel_size", "calibration"])
def test_options_of_pixels_are_refused_for_disks_in_inverse_angstroms(name, tmp_path):
    source = source_of(read_disks(sample("cu_bragg.h5")))
    write_packed(tmp_path / "disks.h5", source, progress=False)
    assert open_scan(tmp_path / "disks.h5", voltage_kv=80.0).voltage_kv == 80.0
    with pytest.raises(InputError, match=f"in 1/Å already.*--{name.replace('_', '-')}"):
        open_scan(tmp_path / "disks.h5", **{name: GIVEN[name]})


def test_a_transposition_exchanges_the_axes_and_a_rotation_turns_them():
    plain = open_scan(sample("cu_bragg.h5"), rotation_deg=0.0).read(0, 2)
    exchanged = open_scan(sample("cu_bragg.h5"), transpose=True).read(0, 2)
    turned = open_scan(sample("cu_bragg.h5"), rotation_deg=90.0).read(0, 2)
    upside_down = open_scan(sample("cu_bragg.h5"), flip="rows").read(0, 2)
    np.testing.assert_allclose([exchanged.qx, exchanged.qy], [plain.qy, plain.qx], atol=1e-6)
    # qx is turned towards qy
    np.testing.assert_allclose([turned.qx, turned.qy], [-plain.qy, plain.qx], atol=1e-6)
    np.testing.assert_allclose([upside_down.qx, upside_down.qy], [-plain.qx, plain.qy], atol=1e-6)


@given(st.floats(1.0, 1.2), st.floats(-180.0, 180.0), st.integers(0, 2**32 - 1))
def test_an_ellipse_is_taken_out_of_lists(ratio, along, seed):
    """Of disks that were stretched, rings longer by the ratio along that direction."""
    rng = np.random.default_rng(seed)
    scan = scan_of_lists(random_lists(rng, 5, 9))
    axis = np.array([math.cos(math.radians(along)), math.sin(math.radians(along))])
    stretch = (ratio**0.5 - ratio**-0.5) * np.outer(axis, axis) + ratio**-0.5 * np.eye(2)
    qx, qy = stretch @ [scan.qx, scan.qy]
    back = as_listed(
        source_of(replace(scan, qx=qx, qy=qy)), ReadOptions(ellipse=(ratio, along))
    ).read(0, 1)
    np.testing.assert_allclose([back.qx, back.qy], [scan.qx, scan.qy], atol=1e-5)
