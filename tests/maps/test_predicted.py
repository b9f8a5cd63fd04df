# SPDX-License-Identifier: GPL-3.0-or-later
"""The disks that a report predicts."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from jaxstem.crystal.cell import reflections
from jaxstem.diffraction.geometry import Reflectors
from jaxstem.diffraction.illumination import disk_tilts
from jaxstem.diffraction.material import inverse_extinction
from jaxstem.diffraction.settings import Microscope, Specimen
from jaxstem.diffraction.two_beam import two_beam_pattern
from jaxstem.maps.payload import ABSENT
from jaxstem.maps.predicted import ReportConfig, predict

MICROSCOPE = Microscope(300.0, k_max=1.2)

pytestmark = pytest.mark.usefixtures("quick_compile")


def test_predictions_are_two_beam_theory(crystals, seed):
    """Against `two_beam_pattern`, whose cone is summed instead of approximated."""
    unit_cell, specimen = crystals["Cu"], Specimen()
    of = reflections(unit_cell, MICROSCOPE.k_max, specimen.u_iso)
    inverse = inverse_extinction(unit_cell, of.structure_factor, MICROSCOPE.voltage_kv)
    reflectors = Reflectors(of.g.astype(np.float32), inverse**2, inverse.astype(np.float32))
    matrix = Rotation.random(100, random_state=seed).as_matrix().astype(np.float32)
    thickness = np.full(100, 150.0)
    tilts = disk_tilts(MICROSCOPE.semi_angle_mrad, rings=3)
    _, _, intensity = two_beam_pattern(matrix, reflectors, MICROSCOPE.wavelength, thickness, tilts)
    config = ReportConfig(n_predicted=len(of.g))
    disks = predict(matrix, thickness, unit_cell, MICROSCOPE, specimen, config)
    ours = np.zeros(np.shape(intensity))
    for k, (which, strength) in enumerate(zip(*disks, strict=True)):
        seen = which != ABSENT
        ours[k, which[seen].astype(int)] = config.weakest ** (1 - strength[seen] / 255)
    strong = np.asarray(intensity) > 0.01
    assert strong.sum() > 50
    ratio = np.log(np.asarray(intensity)[strong] / np.maximum(ours[strong], 1e-9))
    print(np.sort(np.abs(ratio)))
    assert np.median(np.abs(ratio)) < 0.1 and np.abs(ratio).max() < 1.0
    assert not ours[np.asarray(intensity) < 0.3 * config.weakest].any()
