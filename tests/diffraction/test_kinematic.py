# SPDX-License-Identifier: GPL-3.0-or-later
"""Kinematic patterns against py4DSTEM disk by disk, and symmetry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import FIXTURES, random_matrices
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from jaxstem.crystal.cell import reflections, symmetry_operations
from jaxstem.crystal.electron import electron_wavelength
from jaxstem.diffraction.geometry import excitation_error
from jaxstem.diffraction.illumination import ring_tilts
from jaxstem.diffraction.kinematic import excited, simulate

pytestmark = pytest.mark.usefixtures("quick_compile")

PY4DSTEM = np.load(FIXTURES / "py4dstem.npz")
ENERGY = float(PY4DSTEM["pattern/energy_ev"])
WAVELENGTH = electron_wavelength(ENERGY)
SIGMA = float(PY4DSTEM["pattern/sigma"])
BEYOND = 0.0599
"""Excitation error [1/Å] just inside py4DSTEM's sharp limit of 0.06, where rounding decides."""


def slow(*names):
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


@jax.jit
def pattern(orientation, reflectors):
    return excited(orientation, reflectors, WAVELENGTH, SIGMA)


@pytest.mark.parametrize("mirror", [np.diag([-1, 1, 1]), np.eye(3)[[1, 0, 2]]])
def test_a_mirrored_pattern_is_that_of_another_orientation(reflectors_of, rng, mirror):
    """Of -R M, with the mirror M of the detector's axes: no pattern tells that a detector is
    flipped or transposed, as docs/conventions.md says.
    """
    reflectors = reflectors_of("ZrO2")
    orientation = random_matrices(rng, 4)
    other = -orientation @ mirror.astype(np.float32)
    np.testing.assert_allclose(np.linalg.det(other), 1.0, atol=1e-5)
    one, two = (np.asarray(pattern(x, reflectors)) for x in (orientation, other))
    for (qx, qy, intensity), (again_x, again_y, again) in zip(
        one.swapaxes(0, 1), two.swapaxes(0, 1), strict=True
    ):
        shown, strong = intensity > 1e-2 * intensity.max(), again > 1e-3 * again.max()
        places = cKDTree(np.stack([again_x, again_y], -1)[strong])
        mirrored = np.stack([qx, qy], -1)[shown] @ mirror[:2, :2].T
        apart, index = places.query(mirrored)
        assert shown.sum() > 5 and apart.max() < 1e-4
        np.testing.assert_allclose(again[strong][index], intensity[shown], rtol=0.05)


@pytest.mark.parametrize("name", ["Cu2O", "Mg", *slow("Cu", "ZrO2")])
def test_patterns_are_py4dstems_disk_by_disk(crystals, reflectors_of, name):
    crystal = crystals[name]
    orientation = PY4DSTEM[f"{name}/orientation"]
    offsets = PY4DSTEM[f"{name}/offsets"]
    hkl = reflections(crystal, 2.0).hkl
    volume = abs(np.linalg.det(crystal.lattice))
    reflectors = reflectors_of(name)
    qx, qy, intensity = (np.asarray(a) for a in pattern(orientation, reflectors))
    g_lab = np.einsum("pji,nj->pni", orientation, reflections(crystal, 2.0).g)
    s = np.asarray(excitation_error(jnp.asarray(g_lab), WAVELENGTH))
    strong_enough = np.asarray(reflectors.intensity) / volume**2 > (1.02e-4) ** 2
    ours = {tuple(h): n for n, h in enumerate(hkl)}
    millers = [tuple(h) for h in PY4DSTEM[f"{name}/disk_hkl"]]
    recorded = {n: PY4DSTEM[f"{name}/{n}"] for n in ("qx", "qy", "intensity", "excitation_error")}
    compared = 0
    for i, (start, stop) in enumerate(zip(offsets[:-1], offsets[1:], strict=True)):
        expected = np.flatnonzero((np.abs(s[i]) <= BEYOND) & strong_enough)
        assert {tuple(hkl[n]) for n in expected} <= set(millers[start:stop])
        rows = np.array([row for row in range(start, stop) if millers[row] != (0, 0, 0)])
        rows = rows[np.abs(recorded["excitation_error"][rows]) <= BEYOND]
        n = [ours[millers[row]] for row in rows]
        np.testing.assert_allclose(qx[i, n], recorded["qx"][rows], rtol=0, atol=1e-5)
        np.testing.assert_allclose(qy[i, n], recorded["qy"][rows], rtol=0, atol=1e-5)
        np.testing.assert_allclose(intensity[i, n] / volume**2, recorded["intensity"][rows], 0.01)
        compared += len(rows)
    assert compared > 200


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), angle=st.floats(-np.pi, np.pi))
def test_turning_the_crystal_about_the_beam_turns_the_pattern(reflectors_of, seed, angle):
    reflectors = reflectors_of("Cu2O", 1.2)
    orientation = random_matrices(np.random.default_rng(seed), 1)[0]
    turn = Rotation.from_rotvec([0, 0, angle]).as_matrix()
    qx, qy, intensity = pattern(orientation, reflectors)
    turned = pattern(orientation @ turn, reflectors)
    np.testing.assert_allclose(turned[0], np.cos(angle) * qx + np.sin(angle) * qy, atol=3e-6)
    np.testing.assert_allclose(turned[1], np.cos(angle) * qy - np.sin(angle) * qx, atol=3e-6)
    scale = float(reflectors.intensity.max())
    np.testing.assert_allclose(turned[2], intensity, atol=1e-4 * scale)


@pytest.mark.parametrize("name", ["Cu", "Mg", *slow("Cu2O", "TiO2", "ZrO2")])
def test_equivalent_orientations_have_the_same_disks(crystals, reflectors_of, rng, name):
    reflectors = reflectors_of(name, 1.5)
    orientation = random_matrices(rng, 1)[0]
    equivalents = (symmetry_operations(crystals[name]) @ orientation).astype(np.float32)
    patterns = pattern(equivalents, reflectors)
    scale = float(reflectors.intensity.max())
    points = np.stack([patterns[0], patterns[1], np.asarray(patterns[2]) / scale], axis=-1)
    reference = points[0][points[0, :, 2] > 1e-3]
    assert len(reference) > 5
    for other in points[1:]:
        bright = other[other[:, 2] > 0.9e-3]
        distance, partner = cKDTree(bright).query(reference)
        assert distance.max() < 1e-3
        assert len(set(partner)) == len(reference)


def test_another_orientation_has_other_disks(reflectors_of, rng):
    """The comparison above can fail: a mirror image is not an equivalent orientation."""
    reflectors = reflectors_of("Cu", 1.5)
    orientation = random_matrices(rng, 1)[0]
    other = Rotation.from_rotvec([0.3, 0.2, 0.1]).as_matrix() @ orientation
    a, b = (pattern(r, reflectors) for r in (orientation, other))
    bright = [np.stack(p[:2], -1)[np.asarray(p[2]) > 1e-2 * np.asarray(p[2]).max()] for p in (a, b)]
    assert cKDTree(bright[1]).query(bright[0])[0].max() > 0.02


def test_simulate_batches_and_jits(reflectors_of, rng):
    reflectors = reflectors_of("Cu", 1.5)
    orientation = jnp.asarray(random_matrices(rng, 6).reshape(2, 3, 3, 3))
    program = jax.jit(lambda r: simulate(r, reflectors, WAVELENGTH, 0.02, 20))
    disks = program(orientation)
    assert disks.qx.shape == (2, 3, 20)
    one = simulate(orientation[1, 2], reflectors, WAVELENGTH, 0.02, 20)
    np.testing.assert_allclose(disks.intensity[1, 2], one.intensity, rtol=1e-3, atol=1e-6)
    assert np.all(np.diff(disks.intensity, axis=-1) <= 0)
    assert np.all(np.asarray(disks.intensity)[~np.asarray(disks.mask)] == 0)


def test_precession_evens_out_excitation(reflectors_of):
    """Every reflection that the ring sweeps through its Bragg condition is seen; the pattern of a
    crystal slightly off its zone axis becomes nearly centrosymmetric."""
    reflectors = reflectors_of("Cu", 1.5)
    orientation = jnp.asarray(Rotation.from_rotvec([0.006, 0.003, 0]).as_matrix(), jnp.float32)
    g = np.asarray(reflectors.g)
    in_zone = np.abs(g[:, 2]) < 1e-6
    opposite = np.argmin(np.linalg.norm(g[:, None] + g, axis=-1), axis=1)

    def unlikeness(tilts):
        intensity = np.asarray(excited(orientation, reflectors, WAVELENGTH, 0.005, tilts)[2])
        return np.abs(intensity - intensity[opposite])[in_zone].sum() / intensity[in_zone].sum()

    assert unlikeness(ring_tilts(1.5, 60)) < 0.3 * unlikeness(None)
