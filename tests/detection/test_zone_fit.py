# SPDX-License-Identifier: GPL-3.0-or-later
"""Spots of single crystals, read as those of one, whatever the scale."""

import numpy as np

from experiments.accuracy.calibrate_scale import tried
from jaxstem.detection.zone_fit import read_spots, table_of

WAVELENGTH = 0.0251  # Å, 200 kV


def test_a_zone_that_says_little_of_its_tilt_is_read_nearly(crystals):
    """Exact spots of [001] of rutile, stretched. Whether the crystal is tilted by some degrees they
    hardly say, and a tilt takes scale and ellipse along: readings of them are a percent off.
    """
    stretch, table = 0.015, table_of(crystals["TiO2"], 1.4)
    own = (np.abs(table.g[:, 2]) < 1e-6) & (np.linalg.norm(table.g, axis=1) < 1.0)
    x = table.g[own, :2] / 0.014 @ np.diag([1 / (1 + stretch), 1 / (1 - stretch)])
    readings = read_spots(x, table.intensity[own], table, WAVELENGTH, 0.011, 0.018)
    best = readings[0]
    assert abs(best.scale / (0.014 * np.sqrt(1 - stretch**2)) - 1) < 0.015
    assert np.hypot(best.ellipse[0] - stretch, best.ellipse[1]) < 0.015
    assert best.explained > 0.6 * best.spots and best.gain == max(r.gain for r in readings)


def test_a_net_whose_inner_spots_lie_out_of_plane_is_read():
    """MoO3, of whose spots near the beam some are 10° out of the plane of the others: all pairs
    with one of them start too far from the truth, and axes b and c of nearly one length make of a
    stretched net of another zone a reading that seems sure.
    """
    row = tried(58, 303)
    assert row["crystal"] == "MoO3" and row["kind"] == "one zone"
    assert abs(row["errors"]) < 3
