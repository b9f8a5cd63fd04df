# SPDX-License-Identifier: GPL-3.0-or-later
"""The likelihood's pairing and terms by hand, its invariances, and that it prefers the truth."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    intensities_by_hypothesis,
    lengthened,
    likely_thickness,
    random_matrices,
    reordered,
    turn_deg,
)
from scipy.stats import t as student

from jaxstem.crystal.electron import electron_wavelength
from jaxstem.diffraction.geometry import excitation_error
from jaxstem.verification.config import LikelihoodConfig
from jaxstem.verification.likelihood import (
    Expected,
    Observed,
    Pairing,
    limit_at,
    log_likelihood,
    log_student,
    pair,
)

pytestmark = pytest.mark.usefixtures("quick_compile")

CONFIG = LikelihoodConfig()
K_MAX = 2.0
LIMIT = np.log(1e-4)
WAVELENGTH = float(electron_wavelength(300e3))


def test_limits_are_interpolated_over_the_radius(rng):
    for n in (2, 41):
        limit = rng.normal(size=n).astype(np.float32)
        q = np.append(rng.uniform(0, 2.5, 300), [0.0, 1.7, 1.8]).astype(np.float32)
        expected = np.interp(q, np.linspace(0, 1.7, n), limit)
        # a place among the radii is rounded twice, and the limit changes with its slope
        rounding = 2e-7 * (n - 1) * np.abs(np.diff(limit)).max() + 1e-6
        np.testing.assert_allclose(limit_at(jnp.asarray(q), limit, 1.7), expected, atol=rounding)


def test_log_student_is_students_t():
    x = np.linspace(-30, 30, 301)
    np.testing.assert_allclose(log_student(jnp.asarray(x)), student(3).logpdf(x), atol=2e-3)


@pytest.fixture(scope="module")
def judge(cu):
    """Log-likelihood of a pattern at an orientation, all hypotheses summed."""
    g, strength, _ = cu

    @jax.jit
    def value(orientation, observed):
        g_lab = g @ orientation
        x, y, q = g_lab[:, 0], g_lab[:, 1], jnp.hypot(g_lab[:, 0], g_lab[:, 1])
        s = excitation_error(g_lab, WAVELENGTH)
        intensity = intensities_by_hypothesis(s, strength, q, CONFIG.thicknesses(), CONFIG)
        intensity = jnp.stack(intensity)[None]
        log_expected = jnp.log(intensity[0].max(axis=0))
        pairing = pair(observed, x, y, log_expected, K_MAX, CONFIG)
        everything = Expected(intensity, limit_at(q, observed.log_limit, K_MAX), q <= K_MAX)
        own = jax.tree.map(lambda x: x[..., pairing.reflection], everything)
        own = own._replace(intensity=jnp.swapaxes(own.intensity, -1, -2))
        found = log_likelihood(
            pairing, observed.log_share, own, everything, observed.incident_sigma, CONFIG
        )
        return jax.nn.logsumexp(found)

    return lambda orientation, observed: float(value(jnp.asarray(orientation), observed))


def test_likelihood_prefers_the_truth(observe, judge, rng):
    """To other orientations, and to the truth tilted by 1° or turned by 2°."""
    truth, better = random_matrices(rng, 16), []
    for i, orientation in enumerate(truth):
        observed = observe(orientation, likely_thickness(rng))
        value = judge(orientation, observed)
        assert value > judge(truth[i - 1], observed) + 10
        better.append(value - judge(orientation @ turn_deg([1.0, 0, 0]), observed))
        better.append(value - judge(orientation @ turn_deg([0, 0, 2.0]), observed))
    print(np.sort(better))
    assert min(better) > 5


def test_likelihood_is_invariant(cu, observe, judge, rng):
    """Symmetry of the crystal, turns of pattern and crystal together, order, and padding."""
    _, _, symmetry = cu
    for orientation in random_matrices(rng, 4):
        observed = observe(orientation, rng.uniform(40, 300))
        value = judge(orientation, observed)
        close = lambda other, value=value: other == pytest.approx(value, abs=0.02)  # noqa: E731
        assert close(judge(symmetry[rng.integers(24)] @ orientation, observed))
        spin = turn_deg([0, 0, rng.uniform(0, 360)])
        qx, qy = spin[:2, :2].T @ jnp.stack([observed.qx, observed.qy])
        assert close(judge(orientation @ spin, observed._replace(qx=qx, qy=qy)))
        assert not close(judge(orientation @ spin.T, observed._replace(qx=qx, qy=qy)))
        assert close(judge(orientation, reordered(observed, rng.permutation(len(observed.qx)))))
        assert close(judge(orientation, lengthened(observed, 9)))


def test_likelihood_misses_what_is_expected(observe, judge, rng):
    """Less likely without the strongest disk, and with it out of place; without any disk as
    unlikely as the bright ones are certain.
    """
    for orientation in random_matrices(rng, 4):
        observed = observe(orientation, likely_thickness(rng))
        value = judge(orientation, observed)
        without = observed._replace(mask=observed.mask.at[0].set(False))
        assert judge(orientation, without) < value - 1
        assert judge(orientation, observed._replace(qx=observed.qx.at[0].add(0.1))) < value - 1
        nothing = observed._replace(mask=jnp.zeros_like(observed.mask))
        assert judge(orientation, nothing) < -3


def test_likelihood_bears_a_false_disk(observe, judge, rng):
    """A disk that nothing explains costs nothing: all are compared with being false."""
    orientation = random_matrices(rng, 1)[0]
    observed = lengthened(observe(orientation, 100.0), 1)
    beyond = observed._replace(mask=observed.mask.at[-1].set(True), qx=observed.qx.at[-1].set(4.0))
    assert judge(orientation, beyond) == pytest.approx(judge(orientation, observed), abs=1e-3)


def test_a_wrong_incident_intensity_counts_as_far_as_it_is_known(observe, judge, rng):
    """All shares, the detection limit among them, too high by a factor of two or four."""
    for factor in (2.0, 4.0):
        orientation, shift = random_matrices(rng, 1)[0], np.float32(np.log(factor))
        observed = observe(orientation, likely_thickness(rng))

        def lost(sigma, observed=observed, orientation=orientation, shift=shift):
            right = observed._replace(incident_sigma=jnp.float32(sigma))
            wrong = right._replace(
                log_share=right.log_share + shift, log_limit=right.log_limit + shift
            )
            return judge(orientation, right) - judge(orientation, wrong)

        known, unknown = lost(0.05), lost(3.0)
        print(known, unknown)
        assert known > 6
        assert unknown < 0.5 * known


def test_disks_below_the_limit_of_their_radius_are_not_missed(observe, judge, rng):
    """Weak disks near the centre are taken away; a limit that says so excuses it."""
    radii, excused = np.linspace(0, K_MAX, 41), 0
    high = np.where(radii < 1.0, np.log(0.05), LIMIT).astype(np.float32)
    for orientation in random_matrices(rng, 8):
        observed = observe(orientation, likely_thickness(rng))
        radius = np.hypot(observed.qx, observed.qy)
        weak = np.asarray(observed.log_share) < np.interp(radius, radii, high)
        # strong ones too, to leave all others as they are
        lost = np.asarray(observed.mask) & (weak | (radius < 1.05))
        if (lost & weak).sum() < 3 or (lost & ~weak).any():
            continue
        excused += 1
        cropped = observed._replace(mask=observed.mask & ~lost)
        missed = judge(orientation, observed) - judge(orientation, cropped)
        known = cropped._replace(log_limit=jnp.asarray(high))
        assert missed > 3
        assert judge(orientation, known) > judge(orientation, cropped) + 2
    assert excused > 0


def observed_at(positions, log_share=-3.0, limit=LIMIT):
    """Disks at (n, 2) positions [1/Å]."""
    positions = jnp.asarray(positions, jnp.float32)
    n = len(positions)
    log_share = jnp.broadcast_to(jnp.asarray(log_share, jnp.float32), n)
    limit = jnp.full(41, limit, jnp.float32)
    mask = jnp.ones(n, bool)
    return Observed(positions[:, 0], positions[:, 1], log_share, mask, limit, jnp.float32(0.1))


def paired_with(observed, positions, log_expected=-3.0):
    positions = jnp.asarray(positions, jnp.float32)
    expected = jnp.broadcast_to(jnp.asarray(log_expected, jnp.float32), len(positions))
    return pair(observed, positions[:, 0], positions[:, 1], expected, K_MAX, CONFIG)


@pytest.mark.parametrize("seed", range(4))
def test_each_disk_has_one_reflection_and_each_reflection_one_disk(seed):
    rng = np.random.default_rng(seed)
    reflection = rng.uniform(-1.3, 1.3, (30, 2))
    # crowded: two disks each near some, some near two, and some near none
    disk = np.concatenate([reflection[:12], reflection[:6], rng.uniform(-1.3, 1.3, (6, 2))])
    disk += 0.01 * rng.normal(size=disk.shape)
    share = rng.uniform(-6, -1, len(disk))
    observed = observed_at(disk, share)
    found = paired_with(observed, reflection)
    paired = np.asarray(found.paired)
    assert 12 <= paired.sum() <= 18
    owner = np.asarray(found.reflection)[paired]
    assert len(set(owner)) == len(owner)
    position = reflection[owner] + np.stack([found.dx, found.dy], axis=-1)[paired]
    np.testing.assert_allclose(position, disk[paired], atol=1e-5)
    # the order of the disks, and padding, do not matter
    order = rng.permutation(len(disk))
    again = paired_with(reordered(observed, order), reflection)
    longer = jax.tree.map(
        lambda x: x[: len(disk)], paired_with(lengthened(observed, 5), reflection)
    )
    for other, own in ((again, order), (longer, np.arange(len(disk)))):
        np.testing.assert_array_equal(other.paired, paired[own])
        for name in ("reflection", "gain", "dx", "dy"):
            one, two = np.asarray(getattr(found, name))[own], np.asarray(getattr(other, name))
            np.testing.assert_allclose(one[paired[own]], two[paired[own]], atol=1e-5)
    assert not paired_with(lengthened(observed, 5), reflection).paired[len(disk) :].any()


def test_the_better_explanation_gets_the_disk():
    """By position, by intensity where reflections overlap; a far weak disk is nobody's, and one at
    some distance rather false than displaced.
    """
    near, far = [0.5, 0.0], [0.53, 0.0]
    disk = observed_at([[0.502, 0.0], [0.0, 0.9]])
    for found in (
        paired_with(disk, [far, near]),
        paired_with(disk, [near, near], [-9.0, -3.2]),
    ):
        np.testing.assert_array_equal(found.paired, [True, False])
        assert found.reflection[0] == 1
    weak = observed_at([[0.5, 0.0]], LIMIT + 0.5)
    assert not paired_with(weak, [[-0.9, 0.0], [-0.5, -1.2]]).paired.any()
    assert float(paired_with(weak, [[0.5, 0.3]]).gain[0]) < -2
    assert float(paired_with(weak, [[0.5, 0.01]]).gain[0]) > 5
    # of two disks the nearer one
    two = paired_with(observed_at([[0.51, 0.0], [0.501, 0.0]]), [near])
    np.testing.assert_array_equal(two.paired, [False, True])
    np.testing.assert_allclose([two.dx[1], two.dy[1]], [0.001, 0.0], atol=1e-6)
    # a reflection beyond the detector's range has none
    assert not paired_with(observed_at([[2.1, 0.0]]), [[2.1, 0.0]]).paired.any()


def test_a_bright_disk_is_rarely_false():
    gain = [
        float(paired_with(observed_at([[0.5, 0]], share), [[0.5, 0]]).gain[0])
        for share in (LIMIT, LIMIT + 1, LIMIT + 6)
    ]
    assert gain[0] < gain[1] < gain[2]
    shifted = paired_with(observed_at([[0.5, 0.02]]), [[0.5, 0]]).gain[0]
    assert shifted < paired_with(observed_at([[0.5, 0.001]]), [[0.5, 0]]).gain[0]


def of_one_reflection(log_intensity, paired=True, limit=LIMIT, inside=True, config=CONFIG):
    """Log-likelihood of one reflection whose disk, if any, has ln I = -3."""
    one = jnp.ones(1)
    pairing = Pairing(jnp.zeros(1, int), 5 * one, jnp.full(1, paired), 0 * one, 0 * one)
    expected = Expected(jnp.exp(log_intensity * one), limit * one, jnp.full(1, inside))
    expected = expected._replace(intensity=expected.intensity[:, None])  # one hypothesis
    found = log_likelihood(pairing, -3 * one, expected, expected, jnp.float32(0.1), config)
    return float(found[0])


def test_one_reflection_by_hand():
    """Found, it does not count as missing, however surely it was expected; expected and not found,
    it costs what its detection is worth; of one below the limit nothing is expected.
    """
    unsure = replace(CONFIG, detection=0.5)
    assert of_one_reflection(-3.0) == pytest.approx(of_one_reflection(-3.0, config=unsure))
    width = np.hypot(CONFIG.intensity_scatter, CONFIG.noise_at_limit * np.exp((LIMIT + 3) / 2))
    assert of_one_reflection(-3.0) == pytest.approx(5 - 1 - np.log(width), abs=1e-4)
    assert of_one_reflection(-3.0) > of_one_reflection(-2.5) > of_one_reflection(-1.5)
    missing = of_one_reflection(-3.0, paired=False)
    assert missing == pytest.approx(np.log(1 - CONFIG.detection), abs=1e-4)
    assert of_one_reflection(-3.0, paired=False, config=unsure) == pytest.approx(-np.log(2))
    assert of_one_reflection(-3.0, paired=False, limit=-3.0) == pytest.approx(-np.log(2), abs=1e-4)
    assert abs(of_one_reflection(-14.0, paired=False)) < 1e-2
    assert of_one_reflection(-3.0, paired=False, inside=False) == 0
