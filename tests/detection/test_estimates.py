# SPDX-License-Identifier: GPL-3.0-or-later
"""Thresholds of significance, gain and pedestal, and patterns without a beam."""

import numpy as np
import pytest
from helpers import BEAM, diffuse, disk_image

from jaxstem.detection.estimates import estimate_gain, estimate_pedestal, false_alarm_threshold
from jaxstem.detection.plan import make_plan
from jaxstem.errors import InputError


def test_thresholds_rise_with_what_they_allow():
    """Fewer false disks, larger detectors and smaller disks (more places to err) ask for more."""
    kernels = {}
    for radius in (2, 4):
        d = np.minimum(np.arange(64), 64 - np.arange(64))
        kernels[radius] = (np.hypot(d[:, None], d) < radius + 0.3).astype(float)
    level = lambda rate, radius, n: false_alarm_threshold(rate, kernels[radius], n)  # noqa: E731
    assert 3 < level(0.1, 2, 1e4) < level(0.01, 2, 1e4) < level(0.001, 2, 1e4) < 6
    assert level(0.01, 4, 1e4) < level(0.01, 2, 1e4) < level(0.01, 2, 1e5)


@pytest.mark.parametrize(("gain", "offset", "noise"), [(1, 40, 2), (3, -25, 4), (1, -0.5, 1)])
def test_the_number_that_stands_for_no_electron(gain, offset, noise, rng):
    """Found to the noise of one number; taken off, what is left is about counting noise alone."""
    expected = diffuse() + disk_image(BEAM, 1e5)
    stored = gain * rng.poisson(expected, (96, 64, 64)) + rng.normal(offset, noise, (96, 64, 64))
    stored = np.round(stored).astype(np.int32)
    good = np.ones((64, 64), bool)
    pedestal = estimate_pedestal(stored, good)
    assert pedestal == pytest.approx(
        offset - noise**2 / gain, abs=0.2 * gain + 0.4 * noise**2 / gain
    )
    assert estimate_gain(stored - pedestal, good) == pytest.approx(gain, rel=0.6)


def test_counts_have_no_pedestal(rng):
    """However many or few."""
    good = np.ones((64, 64), bool)
    for level in (0.01, 1.0, 300.0):
        counts = rng.poisson(level * diffuse(), (16, 64, 64)).astype(np.uint16)
        assert estimate_pedestal(counts, good) == pytest.approx(0.0, abs=0.05 * level)


def test_diffuse_light_is_no_beam(rng):
    """A halo, whole or behind a stop: one sentence, and no attempt at its template."""
    away = np.hypot(*(np.indices((96, 96)) - 47.0))
    for halo in (300 * np.exp(-(away**2) / 800), 300 * np.exp(-((away - 20) ** 2) / 60)):
        patterns = rng.poisson(halo, (3, 96, 96))
        stopped = patterns.copy()
        stopped[:, 40:, 43:52] = 0
        for these in (patterns, stopped):
            with pytest.raises(InputError, match="no direct beam found.*--origin and --radius"):
                make_plan(these.astype(np.int64), source="amorphous.hspy")
