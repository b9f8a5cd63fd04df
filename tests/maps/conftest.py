# SPDX-License-Identifier: GPL-3.0-or-later
"""A raw scan whose disks are known, for what a report shows of it."""

import dataclasses

import numpy as np
import pytest

from jaxstem.detection.layout import Plan
from jaxstem.detection.scan import Detections
from jaxstem.files.cube import cube_from_array


@pytest.fixture
def bright(rng):
    """(cube, place, detections): 5 x 7 patterns of 24 x 24 pixels with noise and one bright pixel
    each, the places (5, 7, 2) of these, and what is detected if they are the only disks, given the
    origin (5, 7, 2). The calibration turns, exchanges, reverses and stretches.
    """
    shape, n = (5, 7), 24
    patterns = rng.poisson(3.0, size=(*shape, n, n)).astype(np.uint16)
    place = rng.integers(2, n - 2, size=(*shape, 2))
    for i, j in np.ndindex(shape):
        patterns[i, j, place[i, j, 0], place[i, j, 1]] = 900
    cube = cube_from_array(patterns, pixel_size=0.05, scan_step=20.0, scan_units="A")
    more = {
        "QR_rotation": 0.6,
        "QR_flip": True,
        "Q_flip": "rows",
        "a": 1.02,
        "b": 0.98,
        "theta": 0.3,
    }
    cube = dataclasses.replace(cube, calibration={**cube.calibration, **more}, voltage_kv=300.0)
    one = np.ones(place[..., 0].size)

    def detections(origin):
        return Detections(
            row=place[..., 0].ravel().astype(float),
            column=place[..., 1].ravel().astype(float),
            counts=one,
            sigma=one,
            significance=one,
            offsets=np.arange(len(one) + 1),
            origin=origin,
            origin_measured=origin,
            cube=cube,
            plan=Plan(*[None] * len(Plan._fields)),
        )

    return cube, place, detections
