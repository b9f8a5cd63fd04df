# SPDX-License-Identifier: GPL-3.0-or-later
"""Constants of the detection from patterns whose aperture is known."""

import numpy as np
import pytest
from helpers import BEAM, DISK_RADIUS, diffuse, disk_image, patterns_of_disks

from jaxstem.detection.config import DetectConfig
from jaxstem.detection.layout import Layout
from jaxstem.detection.plan import make_plan


def test_the_aperture_is_measured(rng):
    """Radius of the direct beam from the patterns, or from an image of the beam in vacuum."""
    expected, *_ = patterns_of_disks(rng, 24)
    patterns = rng.poisson(expected).astype(np.uint16)
    area = np.pi * DISK_RADIUS**2
    plan, _ = make_plan(patterns)
    assert float(plan.area) == pytest.approx(area, rel=0.06)
    vacuum = disk_image((10.2, 12.7), 1e6, shape=(24, 26))
    plan, _ = make_plan(patterns, DetectConfig(probe=vacuum))
    assert float(plan.area) == pytest.approx(area, rel=0.06)


def test_layouts_are_shared(settings):
    """The shape of the program depends on settings, not on the counts of a scan."""
    rng = np.random.default_rng(0)
    layouts = set()
    for level in (0.5, 5.0):
        expected = diffuse(level=level) + disk_image(BEAM, 1e5)
        layouts.add(make_plan(rng.poisson(expected, (8, 64, 64)), settings)[1])
    assert len(layouts) == 1 and isinstance(layouts.pop(), Layout)
