# SPDX-License-Identifier: GPL-3.0-or-later
"""Scales from spots and rings when what is stated is wrong: found or refused, never wrong."""

import dataclasses

import numpy as np
import pytest
from helpers import random_matrices, scan_on_rings

from jaxstem.crystal.cell import reflections
from jaxstem.detection.ring_fit import fit_rings
from jaxstem.diffraction.geometry import excitation_error
from jaxstem.errors import InputError
from jaxstem.files.scan import DiskScan

WAVELENGTH = 0.0251  # Å, 200 kV


def grains_as_disks(rng, crystal, size, orientations, ratio=1.0, reach=70.0, scatter=0.2):
    """A scan of one row with the disks [px] of one grain each, some missed and some false; `reach`
    [px] of the detector.
    """
    table = reflections(crystal, 1.1 * size * reach)
    lists = []
    for orientation in orientations:
        q = table.g @ orientation
        off = np.asarray(excitation_error(q, WAVELENGTH))
        light = np.abs(table.structure_factor) ** 2 * np.exp(-0.5 * (off / 0.02) ** 2)
        light = light * rng.lognormal(0, 0.4, len(light))
        x = q[:, :2] / size * np.array([np.sqrt(ratio), 1 / np.sqrt(ratio)])
        seen = (light > 3e-3 * light.max()) & (np.hypot(*x.T) < reach)
        seen &= rng.random(len(seen)) > 0.1
        false = rng.uniform(-reach, reach, (rng.binomial(seen.sum(), 0.07), 2))
        x = np.concatenate([[[0.0, 0.0]], x[seen] + rng.normal(0, scatter, (seen.sum(), 2)), false])
        faint = np.full(len(false), light[seen].min(initial=1.0))
        lists.append(np.column_stack([x, np.concatenate([[1e3], light[seen], faint])]))
    disks = np.concatenate(lists).astype(np.float32)
    return DiskScan(
        qx=disks[:, 0],
        qy=disks[:, 1],
        intensity=disks[:, 2],
        offsets=np.concatenate([[0], np.cumsum([len(own) for own in lists])]),
        scan_shape=(1, len(lists)),
        scan_step=1.0,
        scan_units="nm",
        voltage_kv=200.0,
        source="grains.h5",
    )


def said(scan, crystal, stated):
    """The calibration, None where it is refused as undecided or as not to be seen."""
    try:
        return fit_rings(scan, [crystal], stated)
    except InputError as refused:
        words = "about equally", "do not lie on", "too few"
        assert any(word in str(refused) for word in words)
        return None


@pytest.fixture
def fixed():
    """One of a hundred answers is wrong (`experiments/accuracy/calibrate_scale.py` counts them):
    the same tries each time.
    """
    return np.random.default_rng(5)


@pytest.mark.parametrize("name", ["Cu", "Mg", "TiO2", "ZrO2"])
def test_grains_are_found_or_refused(fixed, crystals, name):
    rng = fixed
    size, wrong = rng.uniform(0.012, 0.018), rng.uniform(0.6, 1.4)
    scan = grains_as_disks(rng, crystals[name], size, random_matrices(rng, 3), ratio=1.02)
    found = said(scan, crystals[name], size * wrong)
    if found is not None:
        assert abs(found.pixel_size - size) < 3 * found.pixel_size_error
        assert found.pixel_size_error < 0.02 * size
        assert found.tried_from < size < found.tried_to


def test_most_grains_are_found(fixed, crystals):
    rng = fixed
    sizes = rng.uniform(0.012, 0.018, 4)
    scans = [grains_as_disks(rng, crystals["Cu"], size, random_matrices(rng, 3)) for size in sizes]
    found = [
        said(scan, crystals["Cu"], 1.3 * size) for scan, size in zip(scans, sizes, strict=True)
    ]
    assert sum(x is not None for x in found) >= 2


@pytest.mark.parametrize("wrong", [0.65, 1.4])
def test_rings_are_found_from_afar(rng, crystals, wrong):
    scan = scan_on_rings(rng, crystals["Cu"], 0.03, 1.02, 0.4, n=20)
    found = fit_rings(scan, [crystals["Cu"]], 0.03 * wrong)
    assert abs(found.pixel_size - 0.03) < max(3 * found.pixel_size_error, 3e-5)


def test_two_scales_that_explain_as_much_are_not_told_apart(crystals):
    """Of a crystal or one that is larger by a quarter nobody can tell the scale."""
    rng, copper = np.random.default_rng(3), crystals["Cu"]
    larger = dataclasses.replace(copper, name="larger", lattice=1.25 * copper.lattice)
    scan = scan_on_rings(rng, copper, 0.03, n=20)
    with pytest.raises(InputError, match="about equally; give --pixel-size and --within"):
        fit_rings(scan, [copper, larger], 0.027, within=0.3)
