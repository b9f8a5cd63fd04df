# SPDX-License-Identifier: GPL-3.0-or-later
"""Counts of reflections, against a pattern whose light is known place by place."""

import base64
import zlib

import jax
import numpy as np
import pytest
from helpers import random_matrices

from jaxstem.crystal.cell import reflections
from jaxstem.diffraction.geometry import excitation_error
from jaxstem.diffraction.material import inverse_extinction
from jaxstem.diffraction.settings import Microscope, Specimen
from jaxstem.diffraction.two_beam import two_beam_intensity
from jaxstem.files.light import Detector, Light, ScanLight, decoded, encoded
from jaxstem.maps.counted import Exposed, count
from jaxstem.maps.payload import COUNT_STEP, pack_counts

pytestmark = pytest.mark.usefixtures("quick_compile")

MICROSCOPE, SPECIMEN = Microscope(300.0, k_max=1.5), Specimen()
SIDE, PIXEL, DISK, BEAM, BASE, REACH = 128, 0.0328, 0.076, 1e5, 40.0, 1.9
PLACES = np.arange(SIDE)
LISTED = 24
two_beam, encode = jax.jit(two_beam_intensity), jax.jit(encoded)
through_bytes = jax.jit(lambda electrons: decoded(encoded(electrons)))


class Foil:
    """Copper at an orientation: its reflections in the lab, their intensities, and what of a
    pattern's light lies about a place.
    """

    def __init__(self, unit_cell, orientation):
        self.of = reflections(unit_cell, 2.5, SPECIMEN.u_iso)
        self.inverse = inverse_extinction(unit_cell, self.of.structure_factor, 300.0)
        self.g = self.of.g @ orientation
        self.q = np.hypot(self.g[:, 0], self.g[:, 1])

    def shares(self, thickness):
        numbers = excitation_error(self.g, MICROSCOPE.wavelength), self.inverse, self.q, thickness
        return np.asarray(two_beam(*map(np.float32, numbers), MICROSCOPE.semi_angle_mrad), float)

    def light(self, counts):
        """Disks with a flat top, wider than the aperture, so that any place near has all of it."""
        at = SIDE / 2 + self.g[counts > 0, :2] / PIXEL
        apart = np.hypot(PLACES[:, None, None] - at[:, 0], PLACES[:, None] - at[:, 1]) * PIXEL
        return (counts[counts > 0] * np.clip(2.0 - apart / DISK, 0.0, 1.0)).sum(axis=-1)


def held(electrons):
    """What a byte holds of them, at most `LISTED`."""
    padded = np.zeros(LISTED, np.float32)
    padded[: len(electrons)] = electrons
    return np.asarray(through_bytes(padded))[: len(electrons)]


@pytest.fixture(scope="module")
def detector():
    return Detector(
        np.full(4000, BASE, np.float32),
        np.float32(1 / 16),
        np.ones((SIDE, SIDE), bool),
        np.eye(2, dtype=np.float32) / np.float32(PIXEL),
        np.float32(4.0),
        np.float32(DISK),
        np.float32(1.0),
    )


def test_each_reflection_has_its_own_counts(crystals, detector, rng):
    """Of the true orientations: predicted by two-beam theory, measured as they shine; a reflection
    that is put out is seen to be so.
    """
    unit_cell, n = crystals["Cu"], 6
    orientation = random_matrices(rng, n)
    foils = [Foil(unit_cell, matrix.astype(float)) for matrix in orientation]
    true, sums, dark = [], [], []
    for foil in foils:
        counts = BEAM * np.where(foil.q < REACH - 0.1, foil.shares(120.0), 0.0)
        dark.append(counts.argsort()[-2])
        counts[dark[-1]] = 0.0
        true.append(counts)
        sums.append(np.asarray(encode(np.float32(BASE + foil.light(counts)))))
    light = Light(
        np.stack(sums), np.full((n, 32, 32), 128, np.uint8), np.full((n, 2), SIDE / 2, np.float32)
    )
    exposed = Exposed(ScanLight(light, detector), np.full(n, BEAM, np.float32), REACH)
    phase = np.array([0] * (n - 1) + [-1])
    of = count(orientation, phase, (unit_cell,), exposed, MICROSCOPE, SPECIMEN, LISTED)
    assert np.isnan(of.thickness[-1]) and not of.hkl[-1].any()
    assert (np.diff(of.predicted) <= 0).all()  # the strongest first
    compared = 0
    for k, foil in enumerate(foils[:-1]):
        shares, listed = foil.shares(of.thickness[k]), of.hkl[k].any(axis=-1)
        number = [int(np.flatnonzero((foil.of.hkl == hkl).all(-1))[0]) for hkl in of.hkl[k][listed]]
        assert len(set(number)) == len(number) > 4
        near = np.hypot(*(foil.g[:, None, :2] - foil.g[number, :2]).T) < 3 * DISK  # listed, all
        near[np.arange(len(number)), number] = False
        alone = ~(near & (np.maximum(BEAM * shares, true[k]) > 1.0)).any(axis=1)
        own, there = np.array(number)[alone], np.flatnonzero(listed)[alone]
        predicted, measured = of.predicted[k, there], of.measured[k, there]
        np.testing.assert_allclose(predicted, BEAM * shares[own], rtol=0.02, atol=1.0)
        # what a byte holds of them, and at most of them with what shines beside; it is monotonic
        beside = (near @ true[k])[alone]
        least, most = (
            held(BASE + (1 + off) * (true[k][own] + more)) - BASE
            for more, off in ((0.0, -1e-5), (beside, 1e-5))
        )
        assert (measured > least - 1e-3 * (BASE + least)).all()
        assert (measured < most + 1e-3 * (BASE + most)).all()
        poisson = np.sqrt(np.maximum(measured, 0) + BASE + (0.05 * BASE) ** 2 + 9.0)
        np.testing.assert_allclose(of.error[k, there], poisson, rtol=0.02)
        put_out = own == dark[k]
        assert (measured[put_out] < 5).all() and (of.deviation[k, there][put_out] < -1).all()
        assert (of.deviation[k, there] * np.sign(measured - predicted) >= 0).all()
        compared += len(own)
    assert compared > 10


def test_counts_survive_the_page(rng):
    values = np.concatenate(
        [[0.0, np.nan], np.exp(rng.uniform(0, 15, 99)) * rng.choice([-1, 1], 99)]
    )
    code = np.frombuffer(zlib.decompress(base64.b64decode(pack_counts(values))), "<i2")
    # half a step of 2 sinh: to 0.12 %, and to 0.0025 near zero
    given = np.nan_to_num(values)
    np.testing.assert_allclose(2 * np.sinh(COUNT_STEP * code), given, rtol=1.26e-3, atol=2.6e-3)
