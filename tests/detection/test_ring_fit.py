# SPDX-License-Identifier: GPL-3.0-or-later
"""Pixel size and ellipse from rings: found from disks laid on them, and refused elsewhere."""

import json
import re

import numpy as np
import pytest

from jaxstem.detection.calibration import (
    IN_PIXELS,
    calibrate,
    read_calibration,
    summary,
    write_calibration,
)
from jaxstem.detection.ring_fit import Calibration, fit_rings, rings
from jaxstem.errors import InputError
from jaxstem.files.emd import calibrate_disks
from jaxstem.files.scan import DiskScan


def scan_on_rings(rng, crystal, pixel_size, ratio=1.0, theta=0.0, n=40, noise=0.15, false=0.15):
    """A scan [px] of n × n positions with disks on a crystal's rings at random azimuths, rings
    longer by `ratio` along theta, and some disks anywhere.
    """
    radius, weight, _ = rings([crystal], 1.6)
    counts = rng.integers(0, 9, n * n)
    total = counts.sum()
    length = rng.choice(radius, total, p=weight / weight.sum())
    length = np.where(rng.random(total) < false, rng.uniform(0.2, 1.6, total), length)
    azimuth = rng.uniform(-np.pi, np.pi, total)
    x = length[:, None] / pixel_size * np.stack([np.cos(azimuth), np.sin(azimuth)], -1)
    along = np.array([np.cos(theta), np.sin(theta)])
    x = x / np.sqrt(ratio)
    x = x + (ratio - 1) * (x @ along)[:, None] * along
    x = x + rng.normal(0, noise, x.shape)
    return DiskScan(
        qx=x[:, 0].astype(np.float32),
        qy=x[:, 1].astype(np.float32),
        intensity=np.ones(total, np.float32),
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        scan_shape=(n, n),
        scan_step=1.0,
        scan_units="nm",
        voltage_kv=None,
        source="rings.h5",
    )


@pytest.mark.parametrize("name", ["Cu", "Mg"])
@pytest.mark.parametrize("known", [True, False])
def test_pixel_size_and_ellipse_come_back(rng, crystals, name, known):
    size, ratio = rng.uniform(0.015, 0.05), rng.uniform(1.01, 1.03)
    theta = rng.uniform(-np.pi / 2, np.pi / 2)
    scan = scan_on_rings(rng, crystals[name], size, ratio, theta)
    guess = size * rng.uniform(0.85, 1.15) if known else None
    found = fit_rings(scan, [crystals[name]], guess)
    assert abs(found.pixel_size / size - 1) < max(5 * found.pixel_size_error / size, 1e-3)
    assert found.pixel_size_error / size < 2e-3
    assert abs(found.ellipticity - (ratio - 1)) < max(5 * found.ellipticity_error, 1e-3)
    turned = (found.theta - theta + np.pi / 2) % np.pi - np.pi / 2
    assert abs(turned) < max(5 * found.ellipticity_error / (ratio - 1), 0.05)
    assert 0.5 < found.spread_px / 0.15 < 2.0


def test_the_calibration_makes_rings_round(rng, crystals):
    """Applied as a file's calibration is, to disks that lie exactly on an ellipse."""
    scan = scan_on_rings(rng, crystals["Cu"], 0.03, 1.03, 0.7, noise=0.0, false=0.0)
    found = fit_rings(scan, [crystals["Cu"]])
    disks = np.rec.fromarrays([scan.qx, scan.qy], names="qx,qy")
    entries = found.entries() | {"qx0": 0.0, "qy0": 0.0}
    counts = np.diff(scan.offsets)
    qx, qy = calibrate_disks(disks, counts, scan.scan_shape, entries, "rings.h5")
    radius, _, _ = rings([crystals["Cu"]], 1.7)
    assert np.abs(np.hypot(qx, qy)[:, None] - radius).min(1).max() < 2e-4


def test_the_error_is_that_of_repetition(rng, crystals):
    """Pixel sizes of fresh scans scatter as much as each one says."""
    found = [
        fit_rings(scan_on_rings(rng, crystals["Cu"], 0.03, n=15), [crystals["Cu"]], 0.03)
        for _ in range(16)
    ]
    scatter = np.std([x.pixel_size for x in found])
    assert 0.35 < scatter / np.median([x.pixel_size_error for x in found]) < 2.5


def test_disks_without_rings_are_refused(rng, crystals):
    with pytest.raises(InputError, match="too few"):
        scan = scan_on_rings(rng, crystals["Cu"], 0.03, n=1)
        fit_rings(scan, [crystals["Cu"]])
    with pytest.raises(InputError, match="rings of Cu"):
        scan = scan_on_rings(rng, crystals["Cu"], 0.03, false=1.0)
        fit_rings(scan, [crystals["Cu"]], 0.03)


def test_files(rng, crystals, tmp_path):
    scan = scan_on_rings(rng, crystals["Cu"], 0.03)
    asked = []

    def open_in_pixels(entries):
        asked.append(entries)
        return scan

    out = tmp_path / "calibration.json"
    found = calibrate(open_in_pixels, [crystals["Cu"]], out, rotation=0.3)
    assert asked == [IN_PIXELS]
    assert read_calibration(out) == found
    assert found.entries()["QR_rotation"] == 0.3 and "Cu" in summary(found)
    assert (tmp_path / "calibration.png").stat().st_size > 10_000
    with pytest.raises(InputError, match="exists already"):
        calibrate(open_in_pixels, [crystals["Cu"]], out)


@pytest.mark.parametrize(
    "change",
    [{"version": 9}, {"pixel_size": -1.0}, {"theta": None}, {"other": 1}, {"pixel_size": "wide"}],
)
def test_other_files_are_no_calibration(tmp_path, change):
    path = tmp_path / "calibration.json"
    found = Calibration(0.03, 1e-5, 0.01, 1e-3, 0.2, 900, 0.8, 0.2, "Cu")
    write_calibration(path, found)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError) as caught:
        read_calibration(path)
    message = str(caught.value)
    assert str(path) in message and "; " in message and not re.search(r"\. [A-Z]", message)
    path.write_text("[1, 2]")
    with pytest.raises(InputError, match="no calibration"):
        read_calibration(path)
