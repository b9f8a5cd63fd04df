# SPDX-License-Identifier: GPL-3.0-or-later
"""A map of noise and counts of noise, which the tests of several files share."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import random_matrices

from jaxstem.crystal.cell import Crystal
from jaxstem.files.light import Detector, Light, ScanLight
from jaxstem.files.orientation_map import OrientationMap
from jaxstem.files.scan import Instrument


def make_noise_map(rng, shape=(3, 5), n_phases=2):
    """A map of noise, of the stored precision, with unassigned positions."""

    def floats(*extra):
        return rng.normal(size=(*shape, *extra)).astype(np.float32)

    matrices = lambda: random_matrices(rng, shape[0] * shape[1]).reshape(*shape, 3, 3)  # noqa: E731
    orientation = matrices()
    phase = rng.integers(-2, n_phases, shape).astype(np.int16)
    shares = lambda: rng.uniform(size=shape).astype(np.float32)  # noqa: E731
    orientation[phase < 0] = np.nan
    crystals = tuple(
        Crystal(
            name=f"phase {number} α",
            lattice=rng.normal(size=(3, 3)),
            positions=rng.uniform(size=(number + 1, 3)),
            numbers=rng.integers(1, 99, number + 1),
            occupancies=rng.uniform(size=number + 1),
            point_group="-43m",
            laue_group="m-3m",
            space_group=216,
        )
        for number in range(n_phases)
    )
    return OrientationMap(
        orientation=orientation,
        phase=phase,
        phase_names=tuple(crystal.name for crystal in crystals),
        confidence=shares(),
        confidence_mod180=shares(),
        phase_confidence=shares(),
        score=floats(),
        second_orientation=matrices(),
        second_phase=rng.integers(-2, n_phases, shape).astype(np.int16),
        second_score=floats(),
        thickness=floats(),
        n_disks=rng.integers(0, 30, shape).astype(np.int32),
        crystals=crystals,
        scan_step=float(rng.uniform(0.1, 50)),
        scan_units="nm",
        attributes={"command": "jaxstem map ü.h5", "model": "Cu", "steps": 7, "minutes": 1.5},
        settings={
            "microscope": {"voltage_kv": 300.0},
            "read_options": {"flip": True, "scan_shape": [3, 5], "mask": np.eye(4, dtype=bool)},
        },
    )


@pytest.fixture(scope="session")
def noise_map():
    """Makes a map of noise from a generator, a scan shape and a number of phases."""
    return make_noise_map


@pytest.fixture
def with_light(rng):
    """A scan with counts at random at places that mean something, and a pixel size."""

    def lit(scan):
        n = len(scan.offsets) - 1
        light = Light(
            rng.integers(0, 255, (n, 6, 6)).astype(np.uint8),
            rng.integers(100, 150, (n, 2, 2)).astype(np.uint8),
            rng.normal(3.0, 0.3, (n, 2)).astype(np.float32),
        )
        detector = Detector(
            np.ones(5, np.float32),
            np.float32(1.0),
            np.ones((6, 6), bool),
            rng.normal(size=(2, 2)).astype(np.float32) + 9 * np.eye(2, dtype=np.float32),
            np.float32(3.0),
            np.float32(0.07),
            np.float32(1.0),
        )
        return replace(
            scan, light=ScanLight(light, detector), instrument=Instrument(pixel_size=0.03)
        )

    return lit
