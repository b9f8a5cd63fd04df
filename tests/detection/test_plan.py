# SPDX-License-Identifier: GPL-3.0-or-later
"""Constants of the detection from patterns whose aperture is known."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import BEAM, DISK_RADIUS, diffuse, disk_image, patterns_of_disks

from jaxstem.detection.config import DetectConfig
from jaxstem.detection.layout import TABLE_STEP, Layout
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


def test_a_dark_ring_in_the_beam_is_no_softer_edge(rng):
    """Diffraction takes light from anywhere in the beam. A dark ring within it, taken for a soft
    edge, moved the beams of whole scans by half a pixel.
    """
    beam = BEAM + rng.uniform(-0.5, 0.5, 2)
    whole = diffuse(beam) + disk_image(beam, 1e5)
    ring = np.hypot(*(np.indices(whole.shape) - beam[:, None, None])) / DISK_RADIUS
    ring = np.abs(ring - 0.5) < 0.2
    edges = []
    for left in (1.0, 0.8):
        plan, _ = make_plan(rng.poisson(whole * np.where(ring, left, 1.0), (16, 64, 64)))
        high, low = (
            np.interp(-level, -np.asarray(plan.probe), np.arange(len(plan.probe)))
            for level in (0.9, 0.1)
        )
        edges.append(TABLE_STEP * (low - high) / 0.8)
    full, hollow = edges
    assert hollow == pytest.approx(full, abs=0.35)


def test_layouts_are_shared(settings):
    """The shape of the program depends on settings, not on the counts of a scan."""
    rng = np.random.default_rng(0)
    layouts = set()
    for level in (0.5, 5.0):
        expected = diffuse(level=level) + disk_image(BEAM, 1e5)
        layouts.add(make_plan(rng.poisson(expected, (8, 64, 64)), settings)[1])
    assert len(layouts) == 1 and isinstance(layouts.pop(), Layout)


def test_the_threshold_is_the_one_given(rng, settings):
    """0 too (for the correlation, whose least intensities decide then, none at all); by default
    that of the false disks wanted.
    """
    patterns = rng.poisson(diffuse() + disk_image(BEAM, 1e5), (4, 64, 64))
    for method, least in (("likelihood", 0.0), ("correlation", -np.inf)):
        given = [replace(settings, method=method, threshold=t) for t in (0.0, 7.5)]
        assert [float(make_plan(patterns, c)[0].threshold) for c in given] == [least, 7.5]
        few, many = (
            make_plan(patterns, replace(settings, method=method, false_alarms=n))[0].threshold
            for n in (1e-12, 0.5)
        )
        assert 2 < float(many) < 4 < float(few) < 12
