# SPDX-License-Identifier: GPL-3.0-or-later
"""Microscope and specimen: numbers checked when they are stated, and what follows from them."""

import math

import pytest

from jaxstem.crystal.electron import electron_wavelength
from jaxstem.diffraction.settings import Microscope, Specimen
from jaxstem.errors import InputError
from jaxstem.training.library import LibraryConfig
from jaxstem.verification.config import EXACT, LikelihoodConfig, ScoreConfig


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("voltage_kv", 0.0),
        ("voltage_kv", -7.0),
        ("voltage_kv", math.nan),
        ("semi_angle_mrad", -0.1),
        ("semi_angle_mrad", 300.0),
        ("precession_deg", 90.0),
        ("k_max", 0.0),
        ("k_max", math.inf),
    ],
)
def test_a_microscope_that_makes_no_sense_is_refused(setting, value):
    with pytest.raises(InputError, match="give a number from"):
        Microscope(**{"voltage_kv": 300.0, setting: value})


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"thickness": (400.0, 20.0)}, "lower one first"),
        ({"thickness": (0.0, 20.0)}, "--thickness 0"),
        ({"thickness": (20.0, math.nan)}, "--thickness nan"),
        ({"u_iso": -0.1}, "--u-iso -0.1"),
    ],
)
def test_a_specimen_that_makes_no_sense_is_refused(settings, names):
    with pytest.raises(InputError, match=names):
        Specimen(**settings)


def test_a_disk_is_as_wide_as_the_beam(rng):
    voltage, angle = rng.uniform(60, 300), rng.uniform(0.1, 20)
    radius = Microscope(voltage, angle).disk_radius
    # q = sin θ / λ, for angles as small as these θ / λ
    assert radius == pytest.approx(
        math.sin(1e-3 * angle) / electron_wavelength(1e3 * voltage), 1e-4
    )


def test_settings_reach_every_stage_of_the_verification(rng):
    microscope = Microscope(200.0, semi_angle_mrad=rng.uniform(2, 10))
    specimen = Specimen(thickness=(float(rng.uniform(5, 50)), 700.0))
    under = EXACT.under(microscope, specimen)
    assert under.likelihood.semi_angle == microscope.semi_angle_mrad
    ranges = {under.likelihood.thickness, under.dynamical.thickness, under.fit.thickness}
    assert ranges == {specimen.thickness}
    assert ScoreConfig().under(microscope, specimen).fit is None


def test_the_usual_settings_are_stated_once():
    score = ScoreConfig().under(Microscope(300.0), Specimen())
    assert score == ScoreConfig()
    assert LikelihoodConfig().thickness == Specimen().thickness
    assert {"thickness", "convergence_mrad"}.isdisjoint(vars(LibraryConfig()))
