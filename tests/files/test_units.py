# SPDX-License-Identifier: GPL-3.0-or-later
"""Units in every spelling that is met in files, against what they are worth."""

import math

import pytest

from jaxstem.files.units import angle_in_inverse_angstroms, in_inverse_angstroms, in_kv, in_metres


@pytest.mark.parametrize(
    ("worth", "spellings"),
    [
        (
            1.0,
            ["A^-1", "Å^-1", "\u212b^-1", "A\u030a^-1", "1/A", "1/Å", "1 / Å", "$A^{-1}$", "Å⁻¹"],
        ),
        (0.1, ["nm^-1", "1/nm", " nm^-1", "nm ^-1", "nm⁻¹", "1 / nm", "$nm^{-1}$"]),
        (None, ["pixels", "px", "mrad", "m^-1", "cm", "nm", "Å", "", "<undefined>"]),
    ],
)
def test_reciprocal_lengths(worth, spellings):
    assert {in_inverse_angstroms(units) for units in spellings} == {worth}


def test_angles():
    """q = θ / λ, with λ of 200 kV electrons of 0.02508 Å."""
    assert angle_in_inverse_angstroms("mrad", 200.0) == pytest.approx(1e-3 / 0.02508, rel=1e-3)
    assert angle_in_inverse_angstroms("rad", 200.0) == pytest.approx(1 / 0.02508, rel=1e-3)
    assert angle_in_inverse_angstroms("mrad", None) is None
    assert angle_in_inverse_angstroms("1/nm", 200.0) is None


@pytest.mark.parametrize(
    ("value", "unit", "kv"),
    [
        (200_000, None, 200.0),
        (300.0, None, 300.0),
        (120e3, "eV", 120.0),
        (300, "kV", 300.0),
        ("80 kV", None, 80.0),
        ("60000 eV", "kV", 60.0),
        ("200000", None, 200.0),
        ("high", None, None),
        (0, None, None),
        (-300, None, None),
        (math.nan, None, None),
        (True, None, None),
    ],
)
def test_voltages(value, unit, kv):
    assert in_kv(value, unit) == kv


def test_lengths():
    assert in_metres(2.5, "nm") == pytest.approx(2.5e-9)
    for units in ("A", "Å", "Angstrom", "angstroms ", "Å."):
        assert in_metres(2.5, units) == pytest.approx(2.5e-10)
    for units in ("um", "µm", "μm", "microns"):
        assert in_metres(2.5, units) == pytest.approx(2.5e-6)
    assert in_metres(2.5, "pixels") is None
    for step in (0.0, -1.0, math.nan, math.inf):
        assert in_metres(step, "nm") is None
