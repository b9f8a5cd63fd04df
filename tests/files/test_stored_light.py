# SPDX-License-Identifier: GPL-3.0-or-later
"""Counts beside disks in a file: what was written is read, of any rows, and damage is told."""

import h5py
import numpy as np
import pytest

from jaxstem.errors import InputError
from jaxstem.files.light import Apertures, Light
from jaxstem.files.stored_light import (
    calibrated_light,
    holds_light,
    read_apertures,
    read_light,
    write_light,
)

SCAN, SIDE = (3, 5), 20


@pytest.fixture
def apertures(rng):
    seen = np.zeros((SIDE, SIDE), bool)
    seen[3:-3, 3:-3] = True
    background = rng.uniform(5, 50, 30).astype(np.float32)
    return Apertures(2.0, 4.5, background, 1 / 32, seen, 7.0, 0.9)


@pytest.fixture
def light(rng):
    usual = rng.integers(20, 60, (SIDE // 2, SIDE // 2))
    sums = np.clip(usual + rng.normal(0, 15, (15, SIDE // 2, SIDE // 2)), 0, 255).astype(np.uint8)
    sums[4, 5, 5] = 255
    factor = rng.integers(100, 150, (15, 3, 3)).astype(np.uint8)
    return Light(sums, factor, rng.uniform(8, 12, (15, 2)).astype(np.float32))


@pytest.fixture
def path(tmp_path, light, apertures):
    path = tmp_path / "disks.h5"
    with h5py.File(path, "w") as file:
        write_light(file, light, apertures)
    return path


def test_what_was_written_is_read_to_a_step(path, light, apertures):
    """Places that are seen, and those that these are made of; of some rows as of all."""
    with h5py.File(path) as file:
        assert holds_light(file)
        shared = read_apertures(file, SCAN, path)
    for mine, written in zip(shared, apertures, strict=True):
        np.testing.assert_array_equal(mine, written)
    whole = read_light(path, slice(0, 3), SCAN)
    used = (slice(None), slice(1, -1), slice(1, -1))
    apart = np.abs(whole.sums[used].astype(int) - light.sums[used])
    assert apart.max() <= 1 and 0.3 < (apart == 0).mean() < 0.8
    np.testing.assert_array_equal(whole.factor, light.factor)
    row = read_light(path, slice(1, 2), SCAN)
    np.testing.assert_array_equal(row.sums, whole.sums[5:10])
    np.testing.assert_array_equal(row.factor, whole.factor[5:10])


def test_what_outshines_a_usual_pattern_by_far_stays_bright(tmp_path, light, apertures):
    sums = np.zeros_like(light.sums)
    sums[3, 5, 5] = 255
    path = tmp_path / "disks.h5"
    with h5py.File(path, "w") as file:
        write_light(file, light._replace(sums=sums), apertures)
    found = read_light(path, slice(0, 3), SCAN).sums
    assert found[3, 5, 5] >= 254 and found.sum() == found[3, 5, 5]


def test_a_calibration_places_counts(light, apertures, rng):
    """A scattering vector of one pixel along each axis, about the origin of each position."""
    origin = rng.uniform(8, 12, (2, *SCAN))
    calibration = {
        "Q_pixel_size": 0.02,
        "Q_pixel_units": "A^-1",
        "qx0": origin[0],
        "qy0": origin[1],
        "QR_rotation": np.pi / 2,
    }
    moved = calibrated_light(light, apertures, calibration, SCAN, "here")
    np.testing.assert_allclose(moved.light.centre, origin.reshape(2, -1).T / 2, rtol=1e-6)
    # turned by 90°: qx of the lab is minus the detector's column
    place = moved.detector.to_places @ np.array([-0.04, 0.0])
    np.testing.assert_allclose(place, [0, 1], atol=1e-6)
    assert moved.detector.disk == pytest.approx(4.5 * 0.02)
    differing = {**calibration, "a": np.ones(SCAN), "b": 1.0, "theta": 0.0}
    assert calibrated_light(light, apertures, differing, SCAN, "here") is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda g: g.attrs.update(version=9), "layout version 9"),
        (lambda g: g.attrs.update(apart=np.nan), "'apart' of its counts is nan"),
        (lambda g: g.attrs.__delitem__("block"), "'block' of its counts"),
        (lambda g: g.__delitem__("usual"), "'usual' of its counts is missing"),
        (lambda g: g.move("factor", "sums2") or g.move("sums", "factor"), "'sums' of its counts"),
        (lambda g: g["background"].write_direct(np.full(30, np.nan, "f4")), "is not finite"),
    ],
)
def test_damage_is_told_in_a_sentence(path, change, words):
    with h5py.File(path, "r+") as file:
        change(file["jaxstem_light"])
    with h5py.File(path) as file, pytest.raises(InputError, match=words) as caught:
        read_apertures(file, SCAN, path)
    assert str(path) in str(caught.value)


def test_counts_of_another_scan_are_refused(path):
    with h5py.File(path) as file, pytest.raises(InputError, match="15 positions and not of 12"):
        read_apertures(file, (3, 4), path)
