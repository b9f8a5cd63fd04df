# SPDX-License-Identifier: GPL-3.0-or-later
"""Correlation scores against py4DSTEM's and pyxem's own numbers, and two-point correlations against
sums over pairs.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import FIXTURES
from scipy.spatial.transform import Rotation

from experiments.paper.correlation import (
    SparseConfig,
    azimuthal_average,
    led_uphill,
    normalised_cross_correlation,
    polar_image,
    reduced_axes,
    sparse_correlation,
    two_point,
)
from jaxstem.crystal.cell import symmetry_operations
from jaxstem.diffraction.geometry import Disks
from jaxstem.diffraction.kinematic import simulate
from jaxstem.diffraction.material import make_material
from jaxstem.diffraction.settings import Microscope, Specimen

pytestmark = [pytest.mark.usefixtures("quick_compile"), pytest.mark.slow]


@pytest.fixture(scope="module")
def cu(crystals):
    """As in the fixture: up to 1.5 1/Å, no thermal motion."""
    return make_material(crystals["Cu"], Microscope(300.0, k_max=1.5), Specimen(u_iso=0.0), 15.0)


def score(disks, orientation, cu, config):
    scores = jax.jit(sparse_correlation, static_argnames="config")
    return np.asarray(scores(disks, orientation, cu.reflectors(), cu.wavelength, config=config))


def test_sparse_correlation_is_py4dstems(cu):
    """Theirs has structure factors over the cell's volume, which the template's norm removes."""
    theirs = np.load(FIXTURES / "correlation_py4dstem.npz")
    fields = [jnp.asarray(theirs[k], jnp.float32) for k in ("qx", "qy", "intensity")]
    disks = Disks(*fields, fields[2] > 0)
    orientation = jnp.asarray(theirs["orientation"], jnp.float32)
    ours = score(disks, orientation, cu, SparseConfig(angle_step_deg=2.0))
    np.testing.assert_allclose(ours, theirs["correlation"], rtol=2e-3)
    # many bins: the same but for where reflections fall within bins, which only lowers the norm
    limit = score(disks, orientation, cu, SparseConfig())
    assert (limit <= 1.02 * ours).all() and (limit > 0.6 * ours).all()


def test_truth_correlates_best(cu, rng):
    truth = Rotation.random(8, random_state=rng.integers(2**31)).as_matrix()
    disks = simulate(jnp.asarray(truth, jnp.float32), cu.reflectors(), cu.wavelength, n_disks=16)
    tilt = Rotation.from_rotvec(np.deg2rad(6) * np.eye(3)[:2]).as_matrix()
    others = jnp.asarray(np.stack([truth, truth @ tilt[0], truth @ tilt[1]]), jnp.float32)
    tiled = jax.tree.map(lambda x: jnp.stack([x] * 3), disks)
    at_truth, *tilted = score(tiled, others, cu, SparseConfig())
    assert (at_truth > np.asarray(tilted)).mean() > 0.7
    # turning pattern and crystal about the beam together changes nothing
    turn = Rotation.from_rotvec([0, 0, rng.uniform(0, 6)]).as_matrix()
    qx, qy = (turn.T[:2, :2] @ np.stack([disks.qx, disks.qy]).reshape(2, -1)).reshape(2, 8, -1)
    turned = disks._replace(qx=jnp.asarray(qx, jnp.float32), qy=jnp.asarray(qy, jnp.float32))
    again = score(turned, jnp.asarray(truth @ turn, jnp.float32), cu, SparseConfig())
    np.testing.assert_allclose(again, at_truth, rtol=1e-3)


def test_uphill_the_correlation_rises_within_reach(cu, rng):
    """From a degree off it comes back to about the summit, and never falls or goes too far."""
    truth = Rotation.random(8, random_state=rng.integers(2**31)).as_matrix()
    disks = simulate(jnp.asarray(truth, jnp.float32), cu.reflectors(), cu.wavelength, n_disks=16)
    away = Rotation.from_rotvec(np.deg2rad(rng.normal(size=(8, 3)) * 0.8)).as_matrix()
    start = jnp.asarray(truth @ away, jnp.float32)
    reach = np.deg2rad(rng.uniform(0.5, 1.5))
    lead = jax.jit(jax.vmap(lambda d, r: led_uphill(d, r, cu.reflectors(), cu.wavelength, reach)))
    ended = lead(disks, start)
    before, after, at_truth = (
        score(disks, jnp.asarray(r, jnp.float32), cu, SparseConfig()) for r in (start, ended, truth)
    )
    assert (after >= before * (1 - 1e-5)).all()
    assert (after - before).sum() > 0.3 * (at_truth - before).sum()
    moved = Rotation.from_matrix(np.swapaxes(start, 1, 2) @ np.asarray(ended)).as_rotvec()
    assert np.abs(moved).max() < 1.6 * reach


def test_normalised_cross_correlation_is_pyxems():
    theirs = np.load(FIXTURES / "correlation_pyxem.npz")
    fields = [jnp.asarray(theirs[k], jnp.float32) for k in ("x", "y", "intensity")]
    templates = Disks(*fields, fields[2] > 0)
    image = jnp.asarray(theirs["image"], jnp.float32)
    ours = jax.vmap(lambda t: normalised_cross_correlation(image, t, 1.0))(templates)
    np.testing.assert_allclose(ours, theirs["correlation"], rtol=1e-4)


def test_polar_image_finds_a_disk_where_it_is(rng):
    centre, step, angle, radius = np.array([20.3, 17.8]), 0.5, rng.uniform(0, 6.28), 11.0
    place = centre + radius * np.array([np.cos(angle), np.sin(angle)])
    row, column = np.mgrid[:40, :40]
    pattern = np.exp(-((row - place[0]) ** 2 + (column - place[1]) ** 2) / 16)
    image = np.asarray(polar_image(jnp.asarray(pattern), jnp.asarray(centre), 180, 40, step))
    found = np.unravel_index(image.argmax(), image.shape)
    assert found[1] * step == pytest.approx(radius, abs=step)
    apart = found[0] * 2 * np.pi / 180 - angle
    assert abs(np.angle(np.exp(1j * apart))) < np.deg2rad(5)
    point = Disks(*(jnp.asarray([x]) for x in (*(place - centre), 1.0, True)))
    q = normalised_cross_correlation(jnp.asarray(image), point, step)
    assert q == pytest.approx(image.max() / np.linalg.norm(image), rel=0.05)


@pytest.mark.parametrize("name", ["Cu", "Mg"])
def test_reduced_axes_forget_symmetry(crystals, rng, name):
    symmetry = symmetry_operations(crystals[name])
    orientation = Rotation.random(20, random_state=rng.integers(2**31)).as_matrix()
    equivalent = symmetry[rng.integers(len(symmetry), size=20)] @ orientation
    for column in range(3):
        np.testing.assert_allclose(
            reduced_axes(equivalent, symmetry, column),
            reduced_axes(orientation, symmetry, column),
            atol=1e-9,
        )


def test_two_point_is_the_mean_over_pairs(rng):
    first, second = rng.normal(size=(2, 5, 4, 3))
    known = rng.uniform(size=(5, 4)) < 0.8
    found = two_point(first, second, known)
    assert found.shape == (9, 7)
    for dr, dc in ((0, 0), (2, -1), (-3, 2)):
        pairs = [
            first[r, c] @ second[r + dr, c + dc]
            for r in range(max(0, -dr), min(5, 5 - dr))
            for c in range(max(0, -dc), min(4, 4 - dc))
            if known[r, c] and known[r + dr, c + dc]
        ]
        expected = np.mean(pairs) if pairs else np.nan
        np.testing.assert_allclose(found[4 + dr, 3 + dc], expected, atol=1e-9)


def test_azimuthal_average_is_the_mean_over_rings():
    row, column = np.mgrid[-10:11, -10:11]
    distance = np.hypot(row, column)
    correlation = np.where(distance > 3.4, np.exp(-distance), np.nan)
    average = azimuthal_average(correlation)
    for radius in (4, 5):
        ring = (np.abs(distance - radius) <= 0.5) & np.isfinite(correlation)
        assert average[radius] == pytest.approx(correlation[ring].mean())
    assert len(average) == 6 and np.isnan(average[:3]).all()
