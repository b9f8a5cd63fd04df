# SPDX-License-Identifier: GPL-3.0-or-later
"""Measured patterns and disks as a report packs them."""

import io
from dataclasses import replace

import numpy as np
import pytest
from helpers import scan_of_lists
from PIL import Image

from jaxstem.detection.scan import calibrated
from jaxstem.files.light import Detector, Light, ScanLight
from jaxstem.files.scan import source_of
from jaxstem.maps.measured import _frames, _patterns, _thinned_disks, thinned_cube
from jaxstem.maps.predicted import ReportConfig


@pytest.mark.parametrize("binning", [1, 2, 3])
def test_patterns_lie_where_their_disks_do(binning, bright, rng):
    cube, place, detections = bright
    origin = 11.5 + rng.normal(size=place.shape)
    disks = calibrated(detections(origin))
    frames = _frames(cube, origin, binning)
    pixel = (place.reshape(-1, 2) - (binning - 1) / 2) / binning
    q = np.einsum("nij,nj->ni", frames[:, :4].reshape(-1, 2, 2), pixel) + frames[:, 4:]
    np.testing.assert_allclose(q, np.stack([disks.qx, disks.qy], axis=-1), atol=1e-5)
    most = 35 * (24 // binning) ** 2
    patterns = _patterns(cube, origin, ReportConfig(pattern_pixels=most))
    assert patterns.side == (24 // binning, 24 // binning)
    grey = np.asarray(Image.open(io.BytesIO(patterns.images[0])))
    brightest = [
        np.unravel_index(part.argmax(), part.shape)
        for part in np.hsplit(grey, grey.shape[1] // patterns.side[1])
    ]
    np.testing.assert_array_equal(brightest, place.reshape(-1, 2) // binning)


def test_a_thinned_cube_holds_every_nth_position(bright):
    cube, *_ = bright
    thin = thinned_cube(cube, 4)
    every = cube.read(slice(None), slice(None))[::4, ::4]
    np.testing.assert_array_equal(thin.read(slice(0, 2), slice(None)), every)
    np.testing.assert_array_equal(thin.rows(1, 2), every[1:])


@pytest.mark.parametrize("every", [1, 3])
def test_listed_disks_come_with_the_counts_that_their_file_holds(every, rng):
    """Those of the positions that are shown, and only where they are asked for."""
    shape = (5, 7)
    scan = scan_of_lists([rng.random((n, 3)) for n in rng.integers(0, 4, 35)])
    bytes_of = lambda *shape: rng.integers(0, 255, shape, dtype=np.uint8)  # noqa: E731
    light = Light(bytes_of(35, 4, 4), bytes_of(35, 2, 2), rng.random((35, 2)).astype(np.float32))
    detector = Detector(*np.ones(len(Detector._fields), np.float32))
    source = source_of(replace(scan, scan_shape=shape, light=ScanLight(light, detector)))
    thin = _thinned_disks(source, every, keep_light=True)
    shown = np.arange(35).reshape(shape)[::every, ::every].ravel()
    for found, whole in zip(thin.light.light, light, strict=True):
        np.testing.assert_array_equal(found, whole[shown])
    np.testing.assert_array_equal(np.diff(thin.offsets), np.diff(scan.offsets)[shown])
    assert thin.light.detector is detector
    assert _thinned_disks(source, every, keep_light=False).light is None
    assert _thinned_disks(replace(source, detector=None), every, keep_light=True).light is None
