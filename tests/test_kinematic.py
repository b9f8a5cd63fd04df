# SPDX-License-Identifier: GPL-3.0-or-later
"""Kinematic patterns against py4DSTEM disk by disk, two-beam theory's limits, and symmetry."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from jaxstem.crystal.cell import reflections, symmetry_operations
from jaxstem.crystal.scattering import electron_wavelength
from jaxstem.diffraction.geometry import Reflectors, excitation_error, strongest
from jaxstem.diffraction.illumination import beam_tilts, disk_tilts, ring_tilts, tilted
from jaxstem.diffraction.kinematic import excited, simulate
from jaxstem.diffraction.material import inverse_extinction
from jaxstem.diffraction.two_beam import two_beam
from jaxstem.errors import InputError

PY4DSTEM = np.load(Path(__file__).parent / "fixtures" / "py4dstem.npz")
ENERGY = float(PY4DSTEM["pattern/energy_ev"])
WAVELENGTH = electron_wavelength(ENERGY)
SIGMA = float(PY4DSTEM["pattern/sigma"])
BEYOND = 0.0599
"""Excitation error [1/Å] just inside py4DSTEM's sharp limit of 0.06, where rounding decides."""


def reflectors_of(crystal, k_max=2.0, voltage_kv=300.0):
    found = reflections(crystal, k_max)
    return Reflectors(
        jnp.asarray(found.g, jnp.float32),
        jnp.asarray(np.abs(found.structure_factor) ** 2, jnp.float32),
        jnp.asarray(inverse_extinction(crystal, found.structure_factor, voltage_kv), jnp.float32),
    )


def random_orientations(rng, n):
    return Rotation.random(n, random_state=rng.integers(2**31)).as_matrix().astype(np.float32)


@pytest.mark.parametrize("name", ["Cu", "Cu2O", "Mg", "ZrO2"])
def test_patterns_are_py4dstems_disk_by_disk(crystals, name):
    crystal = crystals[name]
    orientation = PY4DSTEM[f"{name}/orientation"]
    offsets = PY4DSTEM[f"{name}/offsets"]
    hkl = reflections(crystal, 2.0).hkl
    volume = abs(np.linalg.det(crystal.lattice))
    reflectors = reflectors_of(crystal)
    qx, qy, intensity = (np.asarray(a) for a in excited(orientation, reflectors, WAVELENGTH, SIGMA))
    g_lab = np.einsum("pji,nj->pni", orientation, reflections(crystal, 2.0).g)
    s = np.asarray(excitation_error(jnp.asarray(g_lab), WAVELENGTH))
    strong_enough = np.asarray(reflectors.intensity) / volume**2 > (1.02e-4) ** 2
    compared = 0
    for i, (start, stop) in enumerate(zip(offsets[:-1], offsets[1:], strict=True)):
        theirs = {tuple(PY4DSTEM[f"{name}/disk_hkl"][row]): row for row in range(start, stop)}
        expected = np.flatnonzero((np.abs(s[i]) <= BEYOND) & strong_enough)
        assert {tuple(hkl[n]) for n in expected} <= set(theirs)
        ours = {tuple(h): n for n, h in enumerate(hkl)}
        for miller, row in theirs.items():
            if miller == (0, 0, 0):
                continue
            if abs(PY4DSTEM[f"{name}/excitation_error"][row]) > BEYOND:
                continue
            n = ours[miller]
            assert qx[i, n] == pytest.approx(PY4DSTEM[f"{name}/qx"][row], abs=1e-5)
            assert qy[i, n] == pytest.approx(PY4DSTEM[f"{name}/qy"][row], abs=1e-5)
            assert intensity[i, n] / volume**2 == pytest.approx(
                PY4DSTEM[f"{name}/intensity"][row], rel=0.01
            )
            compared += 1
    assert compared > 200


def exact_excitation_error(g, wavelength):
    across = g[..., 0] ** 2 + g[..., 1] ** 2
    return g[..., 2] - (1 / wavelength - np.sqrt(1 / wavelength**2 - across))


def test_excitation_error_in_float32_keeps_its_digits(rng):
    g = (rng.normal(size=(2000, 3)) * [1.5, 1.5, 0.1]).astype(np.float32)
    for wavelength in (WAVELENGTH, electron_wavelength(60e3)):
        exact = exact_excitation_error(g.astype(np.float64), wavelength)
        ours = np.asarray(excitation_error(jnp.asarray(g), wavelength))
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, exact, rtol=0, atol=3e-7)


def test_excitation_error_leads_to_the_ewald_sphere(rng):
    g = rng.normal(size=(500, 3))
    with jax.enable_x64(True):
        s = np.asarray(excitation_error(jnp.asarray(g), WAVELENGTH))
    beam = np.array([0, 0, -1 / WAVELENGTH])
    scattered = beam + g - s[:, None] * [0, 0, 1]
    np.testing.assert_allclose(np.linalg.norm(scattered, axis=1), 1 / WAVELENGTH, rtol=1e-12)
    inside = np.linalg.norm(beam + g, axis=1) < 1 / WAVELENGTH
    np.testing.assert_array_equal(s > 0, inside)


def test_thin_two_beam_foil_is_kinematic(crystals, rng):
    reflectors = reflectors_of(crystals["Cu"])
    orientation = random_orientations(rng, 6)
    g_lab = np.einsum("pji,nj->pni", orientation, reflectors.g)
    s = np.asarray(excitation_error(jnp.asarray(g_lab), WAVELENGTH))
    thickness = 4.0
    *_, intensity = two_beam(orientation, reflectors, WAVELENGTH, thickness)
    amplitude = np.pi * thickness * np.asarray(reflectors.inverse_extinction)
    kinematic = (amplitude * np.sinc(s * thickness)) ** 2
    bright = kinematic > 1e-3 * kinematic.max()
    np.testing.assert_allclose(np.asarray(intensity)[bright], kinematic[bright], rtol=0.02)
    np.testing.assert_allclose(
        np.asarray(reflectors.inverse_extinction) ** 2 / np.asarray(reflectors.intensity),
        (reflectors.inverse_extinction[0] ** 2 / reflectors.intensity[0]).item(),
        rtol=1e-4,
    )


def one_reflector(s, extinction_distance):
    """A reflection `s` (1/Å) off the Ewald sphere when the crystal is not turned."""
    across = 0.48
    on_sphere = 1 / WAVELENGTH - np.sqrt(1 / WAVELENGTH**2 - across**2)
    return Reflectors(
        jnp.asarray([[across, 0.0, on_sphere + s]]),
        jnp.ones(1),
        jnp.asarray([1 / extinction_distance]),
    )


@settings(max_examples=30, deadline=None)
@given(
    s=st.floats(-0.02, 0.02), extinction=st.floats(100.0, 900.0), thickness=st.floats(5.0, 500.0)
)
def test_two_beam_pendelloesung(s, extinction, thickness):
    with jax.enable_x64(True):

        def intensity(s, t):
            return float(two_beam(jnp.eye(3), one_reflector(s, extinction), WAVELENGTH, t)[2][0])

        at_bragg = intensity(0.0, thickness)
        assert at_bragg == pytest.approx(np.sin(np.pi * thickness / extinction) ** 2, abs=1e-6)
        assert intensity(0.0, thickness + extinction) == pytest.approx(at_bragg, abs=1e-6)
        assert intensity(0.0, extinction / 2) == pytest.approx(1.0, abs=1e-9)
        effective = np.hypot(s, 1 / extinction)
        here = intensity(s, thickness)
        assert intensity(s, thickness + 1 / effective) == pytest.approx(here, abs=1e-6)
        assert here <= 1 / (1 + (s * extinction) ** 2) + 1e-9


def test_two_beam_intensity_saturates(crystals, rng):
    reflectors = reflectors_of(crystals["Cu"])
    orientation = random_orientations(rng, 50)
    thickness = rng.uniform(1, 2000, 50)
    *_, intensity = two_beam(orientation, reflectors, WAVELENGTH, thickness)
    assert intensity.min() >= 0 and intensity.max() <= 1 + 1e-6


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), angle=st.floats(-np.pi, np.pi))
def test_turning_the_crystal_about_the_beam_turns_the_pattern(crystals, seed, angle):
    reflectors = reflectors_of(crystals["Cu2O"], 1.2)
    orientation = random_orientations(np.random.default_rng(seed), 1)[0]
    turn = Rotation.from_rotvec([0, 0, angle]).as_matrix()
    qx, qy, intensity = excited(orientation, reflectors, WAVELENGTH, SIGMA)
    turned = excited(orientation @ turn, reflectors, WAVELENGTH, SIGMA)
    np.testing.assert_allclose(turned[0], np.cos(angle) * qx + np.sin(angle) * qy, atol=3e-6)
    np.testing.assert_allclose(turned[1], np.cos(angle) * qy - np.sin(angle) * qx, atol=3e-6)
    scale = float(reflectors.intensity.max())
    np.testing.assert_allclose(turned[2], intensity, atol=1e-4 * scale)


@pytest.mark.parametrize("name", ["Cu", "Cu2O", "Mg", "TiO2", "ZrO2"])
def test_equivalent_orientations_have_the_same_disks(crystals, rng, name):
    reflectors = reflectors_of(crystals[name], 1.5)
    orientation = random_orientations(rng, 1)[0]
    equivalents = (symmetry_operations(crystals[name]) @ orientation).astype(np.float32)
    patterns = excited(equivalents, reflectors, WAVELENGTH, SIGMA)
    scale = float(reflectors.intensity.max())
    points = np.stack([patterns[0], patterns[1], np.asarray(patterns[2]) / scale], axis=-1)
    reference = points[0][points[0, :, 2] > 1e-3]
    assert len(reference) > 5
    for other in points[1:]:
        bright = other[other[:, 2] > 0.9e-3]
        distance, partner = cKDTree(bright).query(reference)
        assert distance.max() < 1e-3
        assert len(set(partner)) == len(reference)


def test_another_orientation_has_other_disks(crystals, rng):
    """The comparison above can fail: a mirror image is not an equivalent orientation."""
    reflectors = reflectors_of(crystals["Cu"], 1.5)
    orientation = random_orientations(rng, 1)[0]
    other = Rotation.from_rotvec([0.3, 0.2, 0.1]).as_matrix() @ orientation
    a, b = (excited(r, reflectors, WAVELENGTH, SIGMA) for r in (orientation, other))
    bright = [np.stack(p[:2], -1)[np.asarray(p[2]) > 1e-2 * np.asarray(p[2]).max()] for p in (a, b)]
    assert cKDTree(bright[1]).query(bright[0])[0].max() > 0.02


def test_strongest_sorts_masks_and_pads():
    intensity = jnp.array([[0.1, 5.0, 0.0, 1.0, 2.0], [0.0, 0.0, 0.0, 3.0, 0.0]])
    qx = jnp.tile(jnp.arange(5.0), (2, 1))
    disks = strongest(qx, -qx, intensity, 4, relative_threshold=0.1)
    np.testing.assert_array_equal(disks.intensity, [[5, 2, 1, 0], [3, 0, 0, 0]])
    np.testing.assert_array_equal(disks.qx, [[1, 4, 3, 0], [3, 0, 0, 0]])
    np.testing.assert_array_equal(disks.qy, [[-1, -4, -3, 0], [-3, 0, 0, 0]])
    np.testing.assert_array_equal(disks.mask, [[1, 1, 1, 0], [1, 0, 0, 0]])
    assert strongest(qx, -qx, intensity, 9).qx.shape == (2, 5)


def test_simulate_batches_and_jits(crystals, rng):
    reflectors = reflectors_of(crystals["Cu"], 1.5)
    orientation = jnp.asarray(random_orientations(rng, 6).reshape(2, 3, 3, 3))
    program = jax.jit(lambda r: simulate(r, reflectors, WAVELENGTH, 0.02, 20))
    disks = program(orientation)
    assert disks.qx.shape == (2, 3, 20)
    one = simulate(orientation[1, 2], reflectors, WAVELENGTH, 0.02, 20)
    np.testing.assert_allclose(disks.intensity[1, 2], one.intensity, rtol=1e-3, atol=1e-6)
    assert np.all(np.diff(disks.intensity, axis=-1) <= 0)
    assert np.all(np.asarray(disks.intensity)[~np.asarray(disks.mask)] == 0)


@pytest.mark.parametrize("rings", [1, 2, 3])
def test_disk_quadrature_has_the_moments_of_a_disk(rings):
    """Means over a disk of radius a: x² -> a²/4, x⁴ -> a⁴/8, x²y² -> a⁴/24, odd powers -> 0."""
    tilts = disk_tilts(2.0, rings)
    assert len(tilts.x) == 1 + 3 * rings * (rings + 1)
    x, y = 1e3 * tilts.x, 1e3 * tilts.y
    mean = lambda f: np.sum(tilts.weight * f)  # noqa: E731
    assert mean(1.0) == pytest.approx(1)
    assert mean(x**2) == pytest.approx(1) and mean(y**2) == pytest.approx(1)
    assert mean(x**4) == pytest.approx(2) and mean(x**2 * y**2) == pytest.approx(2 / 3)
    for odd in (x, y, x * y, x**3, x * y**2, x**5):
        assert mean(odd) == pytest.approx(0, abs=1e-9)
    assert tilts.weight.min() > 0 and np.hypot(x, y).max() < 2


def test_ring_and_disk_add_up():
    tilts = beam_tilts(1.0, 0.5, rings=1, n_ring=8)
    assert len(tilts.x) == 56 and tilts.weight.sum() == pytest.approx(1)
    radius = np.hypot(tilts.x, tilts.y)
    assert np.abs(radius - np.deg2rad(0.5)).max() < 1e-3
    np.testing.assert_allclose(np.hypot(*beam_tilts(0.0, 0.5, n_ring=8)[:2]), np.deg2rad(0.5))
    assert beam_tilts() is None
    for wrong in ((-1.0, 0.0), (0.0, -0.1), (np.nan, 0.0)):
        with pytest.raises(InputError):
            beam_tilts(*wrong)


def test_excitation_error_of_a_tilted_beam_is_the_distance_to_its_own_sphere(rng):
    """The sphere through the origin whose centre lies against the tilted beam."""
    tilt = 0.02 * rng.normal(size=2)
    g = rng.normal(size=(300, 3)) * [1.5, 1.5, 0.1]
    with jax.enable_x64(True):
        frame = np.asarray(tilted(jnp.eye(3), *tilt))
        s = np.asarray(excitation_error(jnp.asarray(g) @ frame, WAVELENGTH))
    beam = -frame[:, 2]
    angle = np.linalg.norm(tilt)
    np.testing.assert_allclose(beam[:2] / -beam[2], np.tan(angle) / angle * tilt, rtol=1e-9)
    on_sphere = beam / WAVELENGTH + g + s[:, None] * beam
    np.testing.assert_allclose(np.linalg.norm(on_sphere, axis=1), 1 / WAVELENGTH, rtol=1e-12)


@pytest.mark.parametrize("theory", ["kinematic", "two-beam"])
def test_average_over_tilts_is_the_mean_of_their_patterns(crystals, rng, theory):
    reflectors = reflectors_of(crystals["Cu"], 1.5)
    orientation = jnp.asarray(random_orientations(rng, 5))
    settings = (0.02,) if theory == "kinematic" else (200.0,)
    diffract = excited if theory == "kinematic" else two_beam
    one = lambda r, t=None: np.asarray(diffract(r, reflectors, WAVELENGTH, *settings, t))  # noqa: E731
    ring = ring_tilts(1.0, 5)
    mean = np.mean([one(tilted(orientation, x, y))[2] for x, y in zip(*ring[:2], strict=True)], 0)
    plain, average = one(orientation), one(orientation, ring)
    np.testing.assert_allclose(average[2], mean, atol=2e-4 * mean.max())
    np.testing.assert_array_equal(average[:2], plain[:2])  # positions stay
    assert np.abs(average[2] - plain[2]).max() > 0.005 * plain[2].max()
    still = one(orientation, ring_tilts(0.0, 3))
    np.testing.assert_allclose(still[2], plain[2], atol=2e-4 * plain[2].max())


def test_averages_over_the_cone_converge(crystals, rng):
    reflectors = reflectors_of(crystals["Cu"], 1.5)
    orientation = jnp.asarray(random_orientations(rng, 20))
    pattern = lambda t: np.asarray(two_beam(orientation, reflectors, WAVELENGTH, 250.0, t)[2])  # noqa: E731
    exact = pattern(disk_tilts(2.0, 7))
    errors = [np.abs(pattern(disk_tilts(2.0, rings)) - exact).max() for rings in (0, 1, 2, 3)]
    assert errors[1] < 0.3 * errors[0] and errors[2] < 0.3 * errors[1]
    assert errors[3] < 2e-3


def test_precession_evens_out_excitation(crystals):
    """Every reflection that the ring sweeps through its Bragg condition is seen; the pattern of a
    crystal slightly off its zone axis becomes nearly centrosymmetric."""
    reflectors = reflectors_of(crystals["Cu"], 1.5)
    orientation = jnp.asarray(Rotation.from_rotvec([0.006, 0.003, 0]).as_matrix(), jnp.float32)
    g = np.asarray(reflectors.g)
    in_zone = np.abs(g[:, 2]) < 1e-6
    opposite = np.argmin(np.linalg.norm(g[:, None] + g, axis=-1), axis=1)

    def unlikeness(tilts):
        intensity = np.asarray(excited(orientation, reflectors, WAVELENGTH, 0.005, tilts)[2])
        return np.abs(intensity - intensity[opposite])[in_zone].sum() / intensity[in_zone].sum()

    assert unlikeness(ring_tilts(1.5, 60)) < 0.3 * unlikeness(None)
