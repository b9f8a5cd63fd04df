# SPDX-License-Identifier: GPL-3.0-or-later
"""A file is understood before its disks are looked for, and asked for all that it lacks at once."""

import math

import h5py
import numpy as np
import pytest
from helpers import BEAM, DISK_RADIUS, patterns_of_disks, write_scan

from jaxstem.detection.opening import disks_of, look_at
from jaxstem.detection.reading import ReadOptions
from jaxstem.detection.scan import PlannedSearch
from jaxstem.errors import InputError
from jaxstem.files.scan import DiskSource


@pytest.fixture(scope="module")
def patterns():
    rng = np.random.default_rng()
    return rng.poisson(patterns_of_disks(rng, 6)[0]).astype(np.uint16)


def write_cube(path, patterns, **calibration):
    with h5py.File(path, "w") as file:
        file.create_group("datacube_root").attrs["emd_group_type"] = "root"
        file["datacube_root/datacube/data"] = patterns.reshape(2, 3, *patterns.shape[1:])
        group = file.create_group("datacube_root/metadatabundle/calibration")
        for name, value in calibration.items():
            group[name] = value
    return path


SIZE = "the detector's pixel size in 1/Å"


@pytest.mark.parametrize(
    ("calibration", "needs_voltage", "lacking", "options"),
    [
        ({}, True, [SIZE, "and the voltage;"], ["--pixel-size 1/Å", "and --voltage-kv KV"]),
        ({}, False, [SIZE + ";"], ["--pixel-size 1/Å", "'jaxstem calibrate'"]),
        ({"Q_pixel_size": 0.03, "Q_pixel_units": "A^-1"}, True, ["the voltage;"], ["--voltage-kv"]),
        ({"Q_pixel_size": 0.3, "Q_pixel_units": "mrad"}, True, ["the voltage (its"], ["-kv KV."]),
        ({"Q_pixel_size": 0.3, "Q_pixel_units": "mrad"}, False, ["the voltage (its"], ["-kv KV."]),
    ],
)
def test_a_cube_is_asked_for_all_at_once(
    tmp_path, patterns, calibration, needs_voltage, lacking, options
):
    path = write_cube(tmp_path / "cube.h5", patterns, **calibration)
    with pytest.raises(InputError) as refused:
        look_at(path, ReadOptions(), needs_voltage=needs_voltage)
    said = str(refused.value)
    assert said.startswith(f"{path} does not state ") and said.count(";") == 1
    for words in (*lacking, *options):
        assert words in said
    # and the answer suffices
    given = {"pixel_size": 0.03} if SIZE in said else {}
    given |= {"voltage_kv": 300.0} if "--voltage-kv" in said else {}
    opened = look_at(path, ReadOptions(**given), needs_voltage=needs_voltage)
    assert isinstance(opened, PlannedSearch) and opened.instrument.pixel_size > 0


def test_lists_are_asked_for_all_at_once(tmp_path):
    path = write_scan(tmp_path / "scan.h5", Q_pixel_size=1, Q_pixel_units="pixels")
    with pytest.raises(
        InputError, match="does not state the detector.* and the voltage; give --pix"
    ):
        look_at(path, ReadOptions(), needs_voltage=True)
    opened = look_at(path, ReadOptions(pixel_size=0.03, voltage_kv=300.0), needs_voltage=True)
    assert isinstance(opened, DiskSource) and opened.instrument.pixel_size_from == "as given"
    assert disks_of(opened) is opened
    # without need of a voltage it is not asked for
    opened = look_at(path, ReadOptions(pixel_size=0.03, rotation_deg=12.0))
    assert opened.instrument.rotation_deg == pytest.approx(12.0)


def test_what_is_understood_of_a_cube(tmp_path, patterns):
    calibration = {"Q_pixel_size": 0.03, "Q_pixel_units": "A^-1", "QR_rotation": math.pi / 6}
    path = write_cube(tmp_path / "cube.h5", patterns, **calibration)
    mask = np.ones(patterns.shape[1:], bool)
    mask[2:4, 5] = False
    opened = look_at(path, ReadOptions(mask=mask, voltage_kv=200.0))
    known = opened.instrument
    np.testing.assert_allclose(known.centre, BEAM, atol=1.0)
    assert known.radius == pytest.approx(DISK_RADIUS, abs=0.5)
    counts = np.where(mask, patterns, 0).sum((1, 2)) / float(opened.plan.gain)
    assert known.dose == pytest.approx(np.median(counts), rel=1e-5)
    assert known.n_masked == 2 and opened.voltage_kv == 200.0
    assert known.rotation_deg == pytest.approx(30.0) and not known.flip
    assert (known.pixel_size, known.pixel_size_from) == (0.03, "stated by the file")
