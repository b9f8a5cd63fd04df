# SPDX-License-Identifier: GPL-3.0-or-later
"""Measured patterns and disks as a report packs them."""

import io

import numpy as np
import pytest
from PIL import Image

from jaxstem.detection.scan import calibrated
from jaxstem.maps.measured import _frames, _patterns, thinned_cube
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
