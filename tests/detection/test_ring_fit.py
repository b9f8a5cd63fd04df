# SPDX-License-Identifier: GPL-3.0-or-later
"""Pixel size and ellipse from rings: found from disks laid on them, and refused elsewhere."""

import numpy as np
import pytest
from helpers import scan_on_rings

from jaxstem.detection.ring_fit import fit_rings
from jaxstem.detection.ring_mixture import rings
from jaxstem.errors import InputError
from jaxstem.files.calibration import calibrate_disks


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
    """Pixel sizes of fresh scans are as far from the truth as each one says."""
    copper, true = [crystals["Cu"]], 0.03
    found = [
        fit_rings(scan_on_rings(rng, *copper, true, n=12), copper, true, within=0.02)
        for _ in range(64)
    ]
    away = np.array([(x.pixel_size - true) / x.pixel_size_error for x in found])
    assert 0.35 < np.sqrt(np.mean(np.square(away))) < 1.5


@pytest.mark.parametrize("size", [1e-6, 0.3, 10.0])
def test_a_pixel_size_with_which_no_ring_is_seen_is_refused(size, rng, crystals):
    """At once: the rings up to some thousand 1/Å would fill the memory."""
    scan = scan_on_rings(rng, crystals["Cu"], 0.03)
    with pytest.raises(InputError, match=f"--pixel-size {size:g} puts .*; give a rough pixel size"):
        fit_rings(scan, [crystals["Cu"]], size)


def test_disks_without_rings_are_refused(rng, crystals):
    with pytest.raises(InputError, match="too few"):
        scan = scan_on_rings(rng, crystals["Cu"], 0.03, n=1)
        fit_rings(scan, [crystals["Cu"]])
    with pytest.raises(InputError, match="rings of Cu"):
        scan = scan_on_rings(rng, crystals["Cu"], 0.03, false=1.0)
        fit_rings(scan, [crystals["Cu"]], 0.03)
