# SPDX-License-Identifier: GPL-3.0-or-later
"""Fits by Bloch waves: they return to the truth, and exact intensities tell it from half turns."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import prepared_pattern
from scipy.spatial.transform import Rotation

from jaxstem.diffraction.bloch import Beams, bloch_intensities, prepare
from jaxstem.diffraction.geometry import Disks, strongest
from jaxstem.orientation import rotations
from jaxstem.verification.config import FitConfig, LikelihoodConfig
from jaxstem.verification.fitting import Fitted, Scene, beams_at, best_fit, deviations, fit
from jaxstem.verification.likelihood import Polished

pytestmark = pytest.mark.usefixtures("quick_compile")

K_MIN, K_MAX = 0.3, 2.0
BEAMS = (40, 60)
PARALLEL = LikelihoodConfig(semi_angle=0.0)
CONFIG = FitConfig(
    thickness=(60.0, 140.0),
    spacing=0.1,
    half_width=0.2,
    rough_beams=(24, 40),
    n_starts=4,
    n_fine=2,
    beams=BEAMS,
)


@pytest.fixture(scope="module")
def tables(crystals):
    return prepare(crystals["Cu"], 300.0, 2.5, 0.0064)


@pytest.fixture(scope="module")
def simulate(tables):
    """(orientation, thickness, ln of the incident beam, damping) to the disks of copper."""

    @partial(jax.jit, static_argnames="limit")
    def disks(orientation, thickness, offset=0.0, damping=0.0, limit=2e-4):
        beams = bloch_intensities(orientation, thickness[None], tables, *BEAMS)
        q = jnp.hypot(beams.qx, beams.qy)
        intensity = beams.intensity[0] * jnp.exp(offset - damping * q**2)
        found = (q >= K_MIN) & (q <= K_MAX) & (intensity > limit)
        return strongest(beams.qx, beams.qy, jnp.where(found, intensity, 0.0), 40)

    return disks


def scene_of(disks: Disks, tables, statistics=PARALLEL) -> Scene:
    return Scene(prepared_pattern(disks, limit=2e-4).observed, tables, K_MIN, K_MAX, statistics)


@pytest.fixture(scope="module")
def fit_from(tables):
    """`fit` of a pattern from a start, the probe being a parallel beam."""
    return jax.jit(lambda start, disks: fit(start, scene_of(disks, tables), 0.0, BEAMS, 10, CONFIG))


@pytest.fixture(scope="module")
def best_from(tables):
    """`best_fit` of a pattern around a candidate."""
    return jax.jit(lambda start, disks: best_fit(start, scene_of(disks, tables), CONFIG))


def samples(rng, simulate, n, least=8):
    """Random orientations and thicknesses whose patterns have disks enough to fit."""
    found = []
    while len(found) < n:
        truth = Rotation.random(random_state=int(rng.integers(2**31))).as_matrix()
        truth, thickness = jnp.asarray(truth, jnp.float32), jnp.float32(rng.uniform(70, 130))
        if int(simulate(truth, thickness).mask.sum()) >= least:
            found.append((truth, thickness))
    return found


def tilted(orientation, degrees, direction):
    vector = np.deg2rad(degrees) * np.array([np.cos(direction), np.sin(direction), 0.0])
    return orientation @ rotations.rotation_vector_to_matrix(jnp.asarray(vector, jnp.float32))


def apart_deg(a, b):
    between = np.asarray(a, np.float64).T @ np.asarray(b, np.float64)
    return np.rad2deg(Rotation.from_matrix(between).magnitude())


def test_deviations_are_logarithms_of_ratios(tables, simulate, rng):
    """At the truth there are none; padding, order and the direct beam change nothing; weaker
    intensities deviate by their logarithm, softened near the limit.
    """
    ((truth, thickness),) = samples(rng, simulate, 1)
    disks = simulate(truth, thickness)
    beams = jax.jit(lambda r, t: bloch_intensities(r, t[None], tables, *BEAMS))(truth, thickness)
    zero = jnp.zeros(())

    @jax.jit
    def off(disks, offset=zero):
        return deviations(beams, offset, zero, 0.0, scene_of(disks, tables))[0]

    np.testing.assert_allclose(off(disks), 0.0, atol=1e-5)

    order = rng.permutation(len(disks.qx))
    longer = Disks(*(jnp.pad(x[order], (0, 5)) for x in disks))
    halved = jnp.log(0.5)
    expected = off(disks, halved)
    again = off(longer, halved)
    np.testing.assert_allclose(again[: len(order)], expected[: len(order)][order], atol=1e-5)
    np.testing.assert_allclose(again[len(order) + 5 :], expected[len(order) :], atol=1e-5)
    share = np.asarray(disks.intensity)[np.asarray(disks.mask)]
    told = np.log((0.5 * share + 1e-4) / (share + 1e-4))
    np.testing.assert_allclose(expected[: len(order)][np.asarray(disks.mask)], told, rtol=1e-3)


@pytest.mark.slow
def test_a_beam_without_a_disk_deviates_by_its_excess(tables, simulate, rng):
    ((truth, thickness),) = samples(rng, simulate, 1)
    disks = simulate(truth, thickness)
    # each disk's beam alone, and no disk
    beams = Beams(jnp.arange(40), disks.qx, disks.qy, disks.intensity[None])
    empty = disks._replace(mask=jnp.zeros_like(disks.mask))
    off = deviations(beams, jnp.zeros(()), jnp.zeros(()), 0.0, scene_of(empty, tables))[0]
    expected = np.where(disks.mask, np.log1p((np.asarray(disks.intensity) - 2e-4) / 3e-4), 0.0)
    np.testing.assert_allclose(off[40:], expected, rtol=2e-3, atol=1e-5)
    assert not off[:40].any()


@pytest.mark.slow
def test_a_fit_finds_tilt_thickness_beam_and_damping(fit_from, simulate, rng):
    """From 0.03° and 2 Å off, with an incident beam and a damping that are not those assumed."""
    errors = []
    for truth, thickness in samples(rng, simulate, 12):
        disks = simulate(truth, thickness, -0.1, 0.15)
        start = tilted(truth, 0.03, rng.uniform(0, 2 * np.pi))
        nothing = jnp.zeros(())
        found = fit_from(Fitted(start, thickness + 2.0, nothing, nothing, nothing), disks)
        assert found.orientation.dtype == jnp.float32
        errors.append(
            (
                apart_deg(found.orientation, truth),
                abs(float(found.thickness - thickness)),
                abs(float(found.offset) + 0.1),
                abs(float(found.damping) - 0.15),
            )
        )
    print(np.sort(errors, axis=0))
    assert (np.median(errors, axis=0) < (0.003, 0.2, 0.005, 0.005)).all()
    assert (np.array(errors)[:, 0] < 0.03).mean() > 0.7


@pytest.mark.slow
def test_exact_intensities_tell_half_turns(best_from, simulate, rng):
    """From 0.1° off, the truth's fit is as exact as its intensities, and that of the crystal turned
    by 180° about the beam is not; where intensities scatter by 15 %, the verdict is no surer than
    without a fit.
    """
    turn = jnp.diag(jnp.array([-1.0, -1.0, 1.0]))
    errors, gained, scattered = [], [], []
    for truth, thickness in samples(rng, simulate, 6, least=12):
        disks = simulate(truth, thickness)
        noise = np.exp(0.15 * rng.normal(size=len(disks.qx)))
        noisy = disks._replace(intensity=disks.intensity * noise.astype(np.float32))
        start = tilted(truth, 0.1, rng.uniform(0, 2 * np.pi))
        judged = lambda r: Polished(r, jnp.float32(-1e3), jnp.float32(100.0))  # noqa: E731
        right, wrong = (best_from(judged(r), disks) for r in (start, start @ turn))
        errors.append(apart_deg(right.orientation, truth))
        gained.append(float(right.log_likelihood - wrong.log_likelihood))
        scattered.append(
            float(best_from(judged(start), noisy).log_likelihood - right.log_likelihood)
        )
    print(np.sort(errors), np.sort(gained), np.sort(scattered))
    assert np.median(errors) < 0.01 and np.median(gained) > 30
    assert np.median(scattered) < -30


@pytest.mark.slow
def test_patterns_at_once_are_fitted_as_one_by_one(best_from, tables, simulate, rng):
    """As on an accelerator, where candidates of many patterns are fitted together."""
    one = lambda start, disks: best_fit(start, scene_of(disks, tables), CONFIG)  # noqa: E731
    chosen = samples(rng, simulate, 5, least=12)
    disks = [simulate(truth, thickness) for truth, thickness in chosen]
    start = lambda truth: Polished(tilted(truth, 0.05, 1.0), *jnp.float32([-1e3, 100.0]))  # noqa: E731
    starts = [start(truth) for truth, _ in chosen]
    together = lambda many: jax.tree.map(lambda *x: jnp.stack(x), *many)  # noqa: E731
    found = jax.jit(jax.vmap(one))(together(starts), together(disks))
    alone = together([best_from(*pattern) for pattern in zip(starts, disks, strict=True)])
    close = np.abs(found.orientation - alone.orientation).max(axis=(1, 2)) < 1e-4
    assert close.sum() >= 4  # where no fit converges rounding decides which is taken


@pytest.mark.slow
def test_without_disks_or_a_better_fit_the_start_remains(best_from, simulate, rng):
    ((truth, thickness),) = samples(rng, simulate, 1)
    disks = simulate(truth, thickness)
    start = Polished(truth, jnp.float32(1e3), thickness)
    found = best_from(start, disks)
    np.testing.assert_array_equal(found.orientation, truth)
    assert found.thickness == thickness and found.log_likelihood == pytest.approx(1e3)
    empty = disks._replace(mask=jnp.zeros_like(disks.mask))
    found = best_from(start._replace(log_likelihood=jnp.float32(-1.0)), empty)
    assert np.isfinite(found.log_likelihood) and np.isfinite(found.orientation).all()


@pytest.mark.slow
def test_a_cone_is_averaged_over(fit_from, tables, simulate, rng):
    """A fit with the probe's cone knows intensities that a parallel beam does not explain."""
    ((truth, thickness),) = samples(rng, simulate, 1, least=12)
    conical = replace(PARALLEL, semi_angle=2.0)
    thickest = np.array([CONFIG.thickness[1]])
    scene = scene_of(simulate(truth, thickness), tables, statistics=conical)
    beams = jax.jit(lambda r, t: beams_at(r, t[None], scene, BEAMS, thickest))(truth, thickness)
    q = jnp.hypot(beams.qx, beams.qy)
    found = (q >= K_MIN) & (q <= K_MAX) & (beams.intensity[0] > 2e-4)
    disks = strongest(beams.qx, beams.qy, jnp.where(found, beams.intensity[0], 0.0), 40)
    nothing = jnp.zeros(())
    start = Fitted(tilted(truth, 0.02, 1.0), thickness, nothing, nothing, nothing)
    with_cone = jax.jit(
        lambda start, disks: fit(start, scene_of(disks, tables, conical), 0.0, BEAMS, 10, CONFIG)
    )
    cost, of_parallel = (float(one(start, disks).cost) for one in (with_cone, fit_from))
    print(cost, of_parallel)
    assert cost < 0.1 * of_parallel
