# SPDX-License-Identifier: GPL-3.0-or-later
"""Two-beam theory against brute force; the likelihood's invariances; polishing finds the truth."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from scipy.stats import t as student

from jaxstem.crystal.cell import reflections, symmetry_operations
from jaxstem.crystal.scattering import electron_wavelength
from jaxstem.diffraction.geometry import excitation_error, strongest
from jaxstem.diffraction.material import inverse_extinction
from jaxstem.diffraction.two_beam import (
    LEAST_CONE,
    LEAST_SHARE,
    cos_turns,
    kinematic_intensity,
    two_beam_intensity,
)
from jaxstem.verification.climb import LATTICE, begin, polish, summit, value
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
N_DISKS = 72
"""Places of a pattern: more than it has disks."""
WAVELENGTH = float(electron_wavelength(300e3))


def random_matrices(rng, n):
    return Rotation.random(n, random_state=rng.integers(2**31)).as_matrix().astype(np.float32)


def turn(vector_deg):
    return Rotation.from_rotvec(np.deg2rad(vector_deg)).as_matrix().astype(np.float32)


def random_reflections(rng, n):
    """s, 1/ξ and q [1/Å] and thicknesses [Å] as they occur."""
    return (
        rng.uniform(-0.03, 0.03, n),
        10 ** rng.uniform(-3.3, -1.7, n),
        rng.uniform(0.3, 2.0, n),
        np.exp(rng.uniform(np.log(20), np.log(400), n)),
    )


def float32(arrays):
    return [jnp.asarray(x, jnp.float32) for x in arrays]


@pytest.mark.parametrize("semi_angle", [0.5, 1.5, 3.0])
def test_two_beam_intensity_is_the_mean_over_the_cone(semi_angle, rng):
    """To a seventh of the envelope where that varies little over the disk (w > 5 α q), and as a
    rule much better; without damping the fringes would be wrong by more than all of them.
    """
    s, strength, q, thickness = random_reflections(rng, 4000)
    slow = np.hypot(s, strength) > 5e-3 * semi_angle * q
    s, strength, q, thickness = (x[slow] for x in (s, strength, q, thickness))
    radius = np.sqrt((np.arange(100) + 0.5) / 100)
    towards_g = np.outer(radius, np.cos(2 * np.pi * (np.arange(48) + 0.5) / 48)).ravel()
    brute = np.zeros_like(s)
    for shift in 1e-3 * semi_angle * towards_g:
        width = np.hypot(s + shift * q, strength)
        brute += (strength / width * np.sin(np.pi * thickness * width)) ** 2 / len(towards_g)
    envelope = strength**2 / (s**2 + strength**2)
    arguments = float32((s, strength, q, thickness))
    deviation = np.abs(two_beam_intensity(*arguments, semi_angle) - brute) / envelope
    undamped = np.abs(two_beam_intensity(*arguments, 0.0) - brute) / envelope
    assert deviation.max() < 0.14
    assert np.percentile(deviation, 90) < 0.08 and np.median(deviation) < 0.03
    assert np.percentile(undamped, 99) > 4 * np.percentile(deviation, 99)


def test_two_beam_intensity_of_a_parallel_beam_is_the_textbooks(rng):
    s, strength, q, thickness = random_reflections(rng, 3000)
    width = np.hypot(s, strength)
    exact = (strength / width * np.sin(np.pi * thickness * width)) ** 2
    ours = two_beam_intensity(*float32((s, strength, q, thickness)), 0.0)
    np.testing.assert_allclose(ours, exact, atol=1e-4)
    assert np.abs(ours - exact).max() < 1e-4 < exact.max() / 100


@given(
    s=st.floats(-1, 1, width=32),
    strength=st.floats(2**-20, 0.0625, width=32),
    q=st.floats(0, 5, width=32),
    thickness=st.floats(0, 4096, width=32),
    semi_angle=st.sampled_from([0.0, 1.5, 20.0]),
)
@settings(max_examples=200, deadline=None)
def test_two_beam_intensity_is_a_share(s, strength, q, thickness, semi_angle):
    """Never negative, so that it has a logarithm; nothing comes out of no crystal."""
    arguments = float32((s, strength, q, thickness))
    assert 0 <= float(two_beam_intensity(*arguments, semi_angle)) <= 1
    assert float(two_beam_intensity(*arguments[:3], jnp.float32(0), semi_angle)) == 0


def test_cos_turns(rng):
    turns = np.concatenate([rng.uniform(-60, 60, 20000), np.arange(-4, 4.01, 0.25)])
    turns = turns.astype(np.float32)
    exact = np.cos(2 * np.pi * turns.astype(np.float64))
    ours = np.asarray(cos_turns(jnp.asarray(turns)))
    np.testing.assert_allclose(ours, exact, atol=2e-4)
    assert ours.max() <= 1


def test_kinematic_intensity_is_that_of_a_thin_foil(rng):
    """Two-beam theory for t = 0.4 / σ in a weak reflection: equal at the Bragg angle and alike
    over the central fringe.
    """
    sigma, strength = rng.uniform(0.005, 0.03, 200), 10 ** rng.uniform(-5, -4, 200)
    at = lambda s: kinematic_intensity(*float32((s * sigma, strength, sigma)))  # noqa: E731
    for s, tolerance in ((0.0, 0.01), (0.5, 0.05), (1.0, 0.15)):
        width = np.hypot(s * sigma, strength)
        exact = (strength / width * np.sin(np.pi * width * 0.4 / sigma)) ** 2
        np.testing.assert_allclose(at(s), exact, rtol=tolerance)
    assert np.all(at(4.0) < 4e-4 * at(0.0))


def test_limits_are_interpolated_over_the_radius(rng):
    for n in (2, 41):
        limit = rng.normal(size=n).astype(np.float32)
        q = np.append(rng.uniform(0, 2.5, 300), [0.0, 1.7, 1.8]).astype(np.float32)
        expected = np.interp(q, np.linspace(0, 1.7, n), limit)
        np.testing.assert_allclose(limit_at(jnp.asarray(q), limit, 1.7), expected, atol=2e-5)


def test_log_student_is_students_t():
    x = np.linspace(-30, 30, 301)
    np.testing.assert_allclose(log_student(jnp.asarray(x)), student(3).logpdf(x), atol=2e-3)


@pytest.fixture(scope="module")
def cu(crystals):
    """Scattering vectors and 1/ξ [1/Å] of copper, and its symmetry."""
    found = reflections(crystals["Cu"], K_MAX, 0.0064)
    strength = inverse_extinction(crystals["Cu"], found.structure_factor, 300.0)
    symmetry = symmetry_operations(crystals["Cu"]).astype(np.float32)
    return *float32((found.g, strength)), symmetry


@pytest.fixture(scope="module")
def simulate(cu):
    """Patterns by the likelihood's own forward model: (orientation, thickness) to `Observed`."""
    g, strength, _ = cu

    @jax.jit
    def pattern(orientation, thickness):
        g_lab = g @ orientation
        q = jnp.hypot(g_lab[:, 0], g_lab[:, 1])
        s = excitation_error(g_lab, WAVELENGTH)
        intensity = two_beam_intensity(s, strength, q, thickness, CONFIG.semi_angle)
        is_found = (q <= K_MAX) & (jnp.log(intensity + 1e-9) > LIMIT)
        intensity = jnp.where(is_found, intensity, 0.0)
        disks = strongest(g_lab[:, 0], g_lab[:, 1], intensity, N_DISKS)
        log_share = jnp.log(jnp.maximum(disks.intensity, 1e-9))
        limit = jnp.full(41, LIMIT, jnp.float32)
        return Observed(disks.qx, disks.qy, log_share, disks.mask, limit, jnp.float32(0.1))

    def checked(orientation, thickness):
        observed = pattern(jnp.asarray(orientation), jnp.float32(thickness))
        assert 5 < int(observed.mask.sum()) < N_DISKS
        return observed

    return checked


def by_hypothesis(s, strength, q, thicknesses, config):
    """Intensities by each thickness [Å] and then by each shape."""
    cone = max(config.semi_angle, LEAST_CONE)
    foils = [two_beam_intensity(s, strength, q, thickness, cone) for thickness in thicknesses]
    return [i + LEAST_SHARE for i in foils] + [
        kinematic_intensity(s, strength, sigma) + LEAST_SHARE for sigma in config.shapes
    ]


@pytest.fixture(scope="module")
def judge(cu):
    """Log-likelihood of a pattern at an orientation, all hypotheses summed."""
    g, strength, _ = cu

    @jax.jit
    def value(orientation, observed):
        g_lab = g @ orientation
        x, y, q = g_lab[:, 0], g_lab[:, 1], jnp.hypot(g_lab[:, 0], g_lab[:, 1])
        s = excitation_error(g_lab, WAVELENGTH)
        intensity = jnp.stack(by_hypothesis(s, strength, q, CONFIG.thicknesses(), CONFIG))[None]
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


def on_grid(rng):
    """A thickness of the likelihood's grid, between 40 and 300 Å."""
    thickness = np.asarray(CONFIG.thicknesses())
    return rng.choice(thickness[(thickness > 40) & (thickness < 300)])


def reordered(observed, order):
    shuffled = {name: getattr(observed, name)[order] for name in ("qx", "qy", "log_share", "mask")}
    return observed._replace(**shuffled)


def lengthened(observed, n):
    """With `n` more places of padding, filled with nonsense that the mask hides."""
    add = lambda x, value: jnp.append(x, jnp.full(n, value, x.dtype))  # noqa: E731
    return observed._replace(
        qx=add(observed.qx, 0.7),
        qy=add(observed.qy, -0.4),
        log_share=add(observed.log_share, -1.0),
        mask=add(observed.mask, False),
    )


@pytest.mark.parametrize(
    "config",
    [CONFIG, replace(CONFIG, shapes=()), replace(CONFIG, n_thicknesses=3, semi_angle=0.0)],
)
def test_values_of_a_climb_are_those_of_its_hypotheses(cu, simulate, config, rng):
    """Of each tilt by each thickness, and then by each shape, one by one."""
    g, strength, _ = cu
    orientation = random_matrices(rng, 1)[0]
    observed = simulate(orientation, on_grid(rng))
    ascent = begin(jnp.asarray(orientation), observed, g, strength, WAVELENGTH, K_MAX, config)
    tilt = jnp.asarray(rng.normal(scale=0.01, size=(2, 2)), jnp.float32)
    thickness = config.thicknesses()
    np.testing.assert_allclose(thickness[jnp.array([0, -1])], config.thickness, rtol=1e-5)
    np.testing.assert_allclose(thickness[1:] / thickness[:-1], thickness[1] / 20, rtol=1e-4)
    found = value(ascent, tilt, thickness, config)
    assert found.shape == (2, config.n_thicknesses + len(config.shapes))
    for (x, y), values in zip(np.asarray(tilt), found, strict=True):
        s = ascent.s + y * ascent.x - x * ascent.y
        intensities = by_hypothesis(s, ascent.inverse_extinction, ascent.q, thickness, config)
        for intensity, one in zip(intensities, values, strict=True):
            everything = Expected(intensity[None], ascent.log_limit, ascent.inside)
            own = jax.tree.map(lambda x: x[..., ascent.pairing.reflection], everything)
            own = own._replace(intensity=own.intensity.T)
            given = (ascent.pairing, ascent.log_share, own, everything, ascent.incident_sigma)
            np.testing.assert_allclose(log_likelihood(*given, config)[0], one, rtol=1e-3, atol=2e-2)


def test_likelihood_prefers_the_truth(simulate, judge, rng):
    """To other orientations, and to the truth tilted by 1° or turned by 2°."""
    truth, better = random_matrices(rng, 16), []
    for i, orientation in enumerate(truth):
        observed = simulate(orientation, on_grid(rng))
        value = judge(orientation, observed)
        assert value > judge(truth[i - 1], observed) + 10
        better.append(value - judge(orientation @ turn([1.0, 0, 0]), observed))
        better.append(value - judge(orientation @ turn([0, 0, 2.0]), observed))
    print(np.sort(better))
    assert min(better) > 5


def test_likelihood_is_invariant(cu, simulate, judge, rng):
    """Symmetry of the crystal, turns of pattern and crystal together, order, and padding."""
    _, _, symmetry = cu
    for orientation in random_matrices(rng, 4):
        observed = simulate(orientation, rng.uniform(40, 300))
        value = judge(orientation, observed)
        close = lambda other, value=value: other == pytest.approx(value, abs=0.02)  # noqa: E731
        assert close(judge(symmetry[rng.integers(24)] @ orientation, observed))
        spin = turn([0, 0, rng.uniform(0, 360)])
        qx, qy = spin[:2, :2].T @ jnp.stack([observed.qx, observed.qy])
        assert close(judge(orientation @ spin, observed._replace(qx=qx, qy=qy)))
        assert not close(judge(orientation @ spin.T, observed._replace(qx=qx, qy=qy)))
        assert close(judge(orientation, reordered(observed, rng.permutation(N_DISKS))))
        assert close(judge(orientation, lengthened(observed, 9)))


def test_likelihood_misses_what_is_expected(simulate, judge, rng):
    """Less likely without the strongest disk, and with it out of place; without any disk as
    unlikely as the bright ones are certain.
    """
    for orientation in random_matrices(rng, 4):
        observed = simulate(orientation, on_grid(rng))
        value = judge(orientation, observed)
        without = observed._replace(mask=observed.mask.at[0].set(False))
        assert judge(orientation, without) < value - 1
        assert judge(orientation, observed._replace(qx=observed.qx.at[0].add(0.1))) < value - 1
        nothing = observed._replace(mask=jnp.zeros_like(observed.mask))
        assert judge(orientation, nothing) < -3


def test_likelihood_bears_a_false_disk(simulate, judge, rng):
    """A disk that nothing explains costs nothing: all are compared with being false."""
    orientation = random_matrices(rng, 1)[0]
    observed = lengthened(simulate(orientation, 100.0), 1)
    beyond = observed._replace(mask=observed.mask.at[-1].set(True), qx=observed.qx.at[-1].set(4.0))
    assert judge(orientation, beyond) == pytest.approx(judge(orientation, observed), abs=1e-3)


def test_a_wrong_incident_intensity_counts_as_far_as_it_is_known(simulate, judge, rng):
    """All shares, the detection limit among them, too high by a factor of two or four."""
    for factor in (2.0, 4.0):
        orientation, shift = random_matrices(rng, 1)[0], np.float32(np.log(factor))
        observed = simulate(orientation, on_grid(rng))

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


def test_disks_below_the_limit_of_their_radius_are_not_missed(simulate, judge, rng):
    """Weak disks near the centre are taken away; a limit that says so excuses it."""
    radii, excused = np.linspace(0, K_MAX, 41), 0
    high = np.where(radii < 1.0, np.log(0.05), LIMIT).astype(np.float32)
    for orientation in random_matrices(rng, 8):
        observed = simulate(orientation, on_grid(rng))
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


@given(
    x=st.floats(-0.49, 0.49),
    y=st.floats(-0.49, 0.49),
    bend=st.tuples(st.floats(0.1, 50), st.floats(0.1, 50)),
    height=st.floats(-30, 30),
)
@settings(max_examples=60, deadline=None)
def test_summit_of_a_parabola_is_exact(x, y, bend, height):
    lattice = np.array(LATTICE)
    values = height - bend[0] * (lattice[:, 0] - x) ** 2 - bend[1] * (lattice[:, 1] - y) ** 2
    found = summit(jnp.asarray(values, jnp.float32))
    tolerance = 1e-5 * (1 + abs(height) + 4 * max(bend)) / min(bend)
    np.testing.assert_allclose(found, [x, y], atol=tolerance)


@pytest.mark.parametrize("best", [0, 1, 2, 3, 5, 6, 7, 8])
def test_summit_on_the_edge_is_the_best_value(best, rng):
    values = jnp.asarray(rng.normal(size=9), jnp.float32).at[best].set(9.0)
    np.testing.assert_array_equal(summit(values), LATTICE[best])


def test_summit_stays_within_half_a_step_of_the_middle(rng):
    for _ in range(10):
        values = jnp.asarray(rng.normal(size=9), jnp.float32)
        assert np.abs(summit(values.at[4].set(values.max() + 0.01))).max() <= 0.5


@pytest.fixture(scope="module")
def climb(cu):
    """`polish` of a batch, with more reflections of no strength far away."""
    g, strength, _ = cu
    g, strength = jnp.pad(g, ((0, 30), (0, 0)), constant_values=1e3), jnp.pad(strength, (0, 30))
    return jax.jit(jax.vmap(lambda r, o: polish(r, o, g, strength, WAVELENGTH, K_MAX, CONFIG)))


def batch_of(simulate, truth, thickness):
    patterns = [simulate(r, t) for r, t in zip(truth, thickness, strict=True)]
    return jax.tree.map(lambda *x: jnp.stack(x), *patterns)


def away(truth, rng):
    """Half a degree of tilt in any direction, and half a degree in-plane."""
    n = len(truth)
    direction, in_plane = rng.uniform(0, 2 * np.pi, n), rng.choice([-0.5, 0.5], n)
    tilt = 0.5 * np.stack([np.cos(direction), np.sin(direction), np.zeros(n)], axis=-1)
    return jnp.asarray(
        [r @ turn(t) @ turn([0, 0, z]) for r, t, z in zip(truth, tilt, in_plane, strict=True)]
    )


def errors_deg(found, truth):
    """In-plane and tilt error [degrees]."""
    between = np.swapaxes(truth, 1, 2) @ np.asarray(found, np.float64)
    vector = np.rad2deg(Rotation.from_matrix(between).as_rotvec())
    return np.abs(vector[:, 2]), np.hypot(vector[:, 0], vector[:, 1])


def test_polish_returns_to_the_truth(simulate, climb, rng):
    """Within 0.1° from half a degree off, for a thickness of the grid. (One in ten or so is caught
    by a lesser summit on the way.)
    """
    truth = random_matrices(rng, 200)
    observed = batch_of(simulate, truth, [on_grid(rng) for _ in truth])
    found = climb(away(truth, rng), observed)
    assert found.orientation.dtype == found.log_likelihood.dtype == jnp.float32
    in_plane, tilt = errors_deg(found.orientation, truth)
    assert np.percentile(in_plane, 90) < 0.02
    assert (tilt < 0.1).mean() > 0.7 and np.median(tilt) < 0.06
    np.testing.assert_allclose(
        found.orientation @ jnp.swapaxes(found.orientation, 1, 2),
        np.broadcast_to(np.eye(3), (200, 3, 3)),
        atol=1e-5,
    )


def test_polish_at_any_thickness(simulate, climb, rng):
    """Between the thicknesses of the grid the tilt is less sharp and the angle is not."""
    truth = random_matrices(rng, 40)
    observed = batch_of(simulate, truth, np.exp(rng.uniform(np.log(30), np.log(350), 40)))
    in_plane, tilt = errors_deg(climb(away(truth, rng), observed).orientation, truth)
    print(np.sort(in_plane), np.sort(tilt))
    assert np.percentile(in_plane, 90) < 0.03 and np.median(tilt) < 0.28


def test_polish_heeds_neither_order_nor_padding_of_the_disks(simulate, climb, rng):
    truth = random_matrices(rng, 4)
    patterns = [simulate(r, 110.0) for r in truth]
    stack = lambda *x: jnp.stack(x)  # noqa: E731
    start = away(truth, rng)
    found = climb(start, jax.tree.map(stack, *patterns))
    order = rng.permutation(N_DISKS)
    shuffled = [reordered(o, order) for o in patterns]
    longer = [lengthened(o, 6) for o in patterns]
    for other in (shuffled, longer):
        again = climb(start, jax.tree.map(stack, *other))
        np.testing.assert_allclose(again.orientation, found.orientation, atol=2e-4)
        np.testing.assert_allclose(again.log_likelihood, found.log_likelihood, atol=0.05)


def test_polish_is_finite_without_disks(simulate, climb, rng):
    """Neither a pattern of padding alone nor orientations far from the truth spoil the numbers."""
    truth = random_matrices(rng, 4)
    observed = batch_of(simulate, truth, [80.0] * 4)
    empty = observed._replace(mask=jnp.zeros_like(observed.mask))
    for start, patterns in ((truth, empty), (random_matrices(rng, 4), observed)):
        found = climb(jnp.asarray(start), patterns)
        assert np.isfinite(found.orientation).all() and np.isfinite(found.log_likelihood).all()
