# SPDX-License-Identifier: GPL-3.0-or-later
"""Candidate tables against brute force; search, score and verdict on patterns of known origin."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from jaxstem.crystal.cell import symmetry_operations
from jaxstem.diffraction.geometry import Disks, excitation_error, strongest
from jaxstem.diffraction.material import make_material
from jaxstem.diffraction.two_beam import expected_intensity, two_beam
from jaxstem.inference.config import InferConfig
from jaxstem.inference.step import joint_operations
from jaxstem.orientation import rotations, symmetry
from jaxstem.verification.candidates import (
    GROUPS,
    SIBLING_REACH,
    candidate_tables,
    likeliest,
    modes,
    padded,
    propose,
    with_siblings,
    zone_axis_turns,
)
from jaxstem.verification.climb import polish
from jaxstem.verification.config import Limit, ScoreConfig
from jaxstem.verification.ranking import Candidates, Forward, angles_between, keep_best
from jaxstem.verification.refinement import verify
from jaxstem.verification.search import cosine_score, pattern_of, search_lattice

pytestmark = pytest.mark.usefixtures("quick_compile")

CONFIG = ScoreConfig(n_modes=4)
COARSE_AND_FINE = replace(CONFIG, levels=CONFIG.levels[:2])
CUTOFF = 1e-3
FLOOR = CONFIG.levels[-1].floor


def prepared(disks, config=CONFIG):
    """A pattern whose incident beam is 1 and whose detection limit is `CUTOFF` everywhere."""
    limit = Limit(jnp.full(41, np.log(CUTOFF), jnp.float32), jnp.float32(-jnp.inf))
    return pattern_of(disks, 1.0, jnp.float32(0.1), False, limit, config.measured_power)


@pytest.fixture(scope="module")
def cells(copper):
    return np.asarray(rotations.quaternion_to_matrix(jnp.asarray(copper.grid)))


def random_matrices(rng, n):
    return Rotation.random(n, random_state=rng.integers(2**31)).as_matrix().astype(np.float32)


def turn(vector_deg):
    return Rotation.from_rotvec(np.deg2rad(vector_deg)).as_matrix().astype(np.float32)


def angle_deg(a, b, symmetry):
    return np.rad2deg(
        symmetry.misorientation(jnp.asarray(a), jnp.asarray(b), jnp.asarray(symmetry))
    )


def thick_foil_disks(orientation, copper, n_disks=16, cutoff=CUTOFF):
    """The strongest disks of the model that verification assumes: averaged over thickness."""
    reflectors = copper.reflectors()
    g_lab = reflectors.g @ orientation
    intensity = expected_intensity(
        excitation_error(g_lab, copper.wavelength), reflectors.inverse_extinction, FLOOR
    )
    return strongest(g_lab[:, 0], g_lab[:, 1], intensity, n_disks, cutoff)


def every_reflection(copper):
    reflectors = copper.reflectors()
    return Forward(reflectors.g, reflectors.inverse_extinction)


def log_probability_around(orientation, copper, cells):
    """What a good network says: a peak as wide as the training labels."""
    angle = symmetry.misorientation(
        jnp.asarray(orientation), jnp.asarray(cells), jnp.asarray(copper.operations, jnp.float32)
    )
    return jax.nn.log_softmax(-0.5 * (angle / (0.55 * copper.spacing)) ** 2)


def test_neighbours_and_offsets_are_those_of_brute_force(copper, cells, tables):
    symmetry = np.asarray(copper.operations)
    neighbours = np.asarray(tables.neighbours)
    np.testing.assert_array_equal(neighbours[:, 0], np.arange(len(cells)))
    overlap = np.einsum("oij,njk,mik->onm", symmetry, cells, cells).max(axis=0)
    angle = np.arccos(np.clip((overlap - 1) / 2, -1, 1))
    ours = np.take_along_axis(angle, neighbours, axis=1)
    np.testing.assert_allclose(ours, np.sort(angle, axis=1)[:, : ours.shape[1]], atol=2e-3)
    offsets = np.asarray(tables.offsets)
    np.testing.assert_allclose(np.linalg.norm(offsets, axis=-1), ours, atol=2e-3)
    reached = cells[:, None] @ Rotation.from_rotvec(offsets.reshape(-1, 3)).as_matrix().reshape(
        *offsets.shape, 3
    )
    assert angle_deg(reached, cells[neighbours], symmetry).max() < 0.1


def test_siblings_are_half_turns_about_near_zone_axes(copper, cells, tables):
    symmetry = np.asarray(copper.operations)
    nearest = np.rad2deg(copper.spacing)
    sibling, turns = np.asarray(tables.sibling), np.asarray(tables.sibling_turn)
    found = 0
    for cell in range(0, len(cells), 5):
        for other, matrix in zip(sibling[cell], turns[cell], strict=True):
            if other == cell and np.allclose(matrix, np.eye(3)):
                continue
            found += 1
            # T R lies in the sibling cell without any further operation
            between = cells[other].T @ matrix @ cells[cell]
            assert np.rad2deg(np.arccos(np.clip((np.trace(between) - 1) / 2, -1, 1))) < nearest
            # one of its equivalents is a half turn about an axis near the beam
            equivalents = symmetry @ matrix
            half_turns = equivalents[np.abs(np.trace(equivalents, axis1=1, axis2=2) + 1) < 1e-3]
            axes = [np.linalg.eigh(half + half.T)[1][:, -1] for half in half_turns]
            tilt = [np.rad2deg(np.arccos(min(1, abs(axis @ cells[cell][:, 2])))) for axis in axes]
            assert min(tilt) < SIBLING_REACH + 0.1
            # and it is not the same orientation again
            assert angle_deg(matrix @ cells[cell], cells[cell], symmetry) > 1
    assert found > 50


def test_every_cell_with_a_low_index_axis_near_the_beam_has_a_sibling(copper, cells, tables):
    _, axes = zone_axis_turns(copper.crystal.lattice, np.asarray(copper.operations))
    near = np.abs(cells[:, :, 2] @ np.asarray(axes).T).max(axis=1)
    tilt = np.rad2deg(np.arccos(np.minimum(near, 1)))
    identity = np.abs(np.asarray(tables.sibling_turn[:, 0]) - np.eye(3)).max(axis=(1, 2)) < 1e-6
    np.testing.assert_array_equal(~identity[tilt < SIBLING_REACH - 0.1], True)
    np.testing.assert_array_equal(identity[tilt > SIBLING_REACH + 0.1], True)


@pytest.mark.parametrize("name", ["Cu", "Mg", "ZrO2"])
def test_zone_axis_turns_leave_out_symmetry(crystals, name):
    crystal, symmetry = crystals[name], symmetry_operations(crystals[name])
    turns, axes = (np.asarray(a) for a in zone_axis_turns(crystal.lattice, symmetry))
    np.testing.assert_allclose(np.einsum("nij,nj->ni", turns, axes), axes, atol=1e-6)
    np.testing.assert_allclose(np.trace(turns, axis1=1, axis2=2), -1, atol=1e-5)
    assert np.abs(turns[:, None] - symmetry).max(axis=(2, 3)).min() > 1e-3
    # all 49 axes up to index 2, one of each pair, but the two-fold ones of the Laue group
    two_fold = {"Cu": 9, "Mg": 7, "ZrO2": 1}[name]
    assert len(turns) == 49 - two_fold
    line_up = np.abs(axes @ axes.T) - np.eye(len(axes))
    assert line_up.max() < 1 - 1e-6


def test_visible_reflections_are_the_bright_ones_nearby(copper, cells, tables, rng):
    """All disks of the patterns at and near a cell are among its reflections."""
    g = np.asarray(copper.reflectors().g)
    for cell in rng.integers(len(cells), size=8):
        tilted = cells[cell] @ turn(rng.uniform(-1.5, 1.5, 3))
        disks = thick_foil_disks(tilted, copper, 12)
        position = np.stack([disks.qx, disks.qy], -1)[np.asarray(disks.mask)]
        candidates = (g[np.asarray(tables.visible[cell])] @ tilted)[:, :2]
        distance = np.linalg.norm(position[:, None] - candidates, axis=-1).min(axis=1)
        assert distance.max() < 1e-4


def make_climb(copper, config):
    """All levels of a search with every reflection, batched: (start, disks) to answer and score."""
    forward = every_reflection(copper)

    @jax.jit
    @jax.vmap
    def climb(orientation, disks):
        pattern = prepared(disks, config)
        for level in config.levels:
            level = replace(level, n_visible=len(forward.g))
            orientation, score = search_lattice(
                orientation, pattern, forward, copper.wavelength, copper.k_max, level, config
            )
        return orientation, score

    return climb


@pytest.fixture(scope="module")
def climb(copper):
    return make_climb(copper, CONFIG)


def errors_deg(found, truth, symmetry):
    """In-plane and tilt error [degrees] of each orientation, of its nearest equivalent."""
    operation = np.argmax(np.einsum("oij,njk,nik->no", symmetry, found, truth), axis=1)
    between = np.swapaxes(truth, 1, 2) @ symmetry[operation] @ np.asarray(found)
    vector = np.rad2deg(Rotation.from_matrix(between).as_rotvec())
    return np.abs(vector[:, 2]), np.hypot(vector[:, 0], vector[:, 1])


def perturbed(truth, rng):
    """3° of tilt in any direction after 2.9° in-plane."""
    n = len(truth)
    direction, in_plane = rng.uniform(0, 2 * np.pi, n), rng.choice([-2.9, 2.9], n)
    tilt = 3 * np.stack([np.cos(direction), np.sin(direction), np.zeros(n)], axis=-1)
    return jnp.asarray(
        [r @ turn(t) @ turn([0, 0, z]) for r, t, z in zip(truth, tilt, in_plane, strict=True)]
    )


def test_search_recovers_the_orientation(copper, rng):
    """With equal powers on both sides and all disks measured, the score's summit is the truth."""
    lattice = CONFIG.levels[-1]
    config = replace(
        CONFIG,
        measured_power=0.5,
        predicted_power=0.5,
        levels=tuple(
            replace(lattice, kernel=kernel, angle=5.0, n_turns=2, tilt=reach, n_tilts=n)
            for reach, n, kernel in ((3.2, 17, 0.06), (0.4, 5, 0.03), (0.1, 5, 0.03))
        ),
    )
    truth = random_matrices(rng, 120)
    disks = jax.vmap(lambda r: thick_foil_disks(r, copper, 60, 1e-5))(jnp.asarray(truth))
    found, score = make_climb(copper, config)(perturbed(truth, rng), disks)
    in_plane, tilt = errors_deg(found, truth, copper.operations)
    print(np.sort(in_plane), np.sort(tilt))
    assert np.median(np.hypot(in_plane, tilt)) < 0.15
    assert np.percentile(in_plane, 90) < 0.1 and np.percentile(tilt, 80) < 0.6
    assert np.median(score) > 0.99


def test_default_search_finds_the_angle_sharply_and_the_tilt_roughly(copper, climb, rng):
    """Sixteen disks of one thickness; unequal powers draw the tilt by a degree or so."""
    truth = random_matrices(rng, 40)
    thickness = jnp.asarray(rng.uniform(60, 150, 40), jnp.float32)
    beams = two_beam(jnp.asarray(truth), copper.reflectors(), copper.wavelength, thickness)
    found, _ = climb(perturbed(truth, rng), strongest(*beams, 16, 1e-2))
    in_plane, tilt = errors_deg(found, truth, copper.operations)
    print(np.sort(in_plane), np.sort(tilt))
    assert np.median(in_plane) < 0.1
    assert np.median(tilt) < 1.6


def test_cosine_is_one_for_the_pattern_itself(copper, rng):
    """Measured intensities to their power proportional to the predicted ones to theirs."""
    orientation = random_matrices(rng, 1)[0]
    disks = thick_foil_disks(jnp.asarray(orientation), copper, 14)
    config = replace(CONFIG, measured_power=0.25, predicted_power=0.5)
    same = disks._replace(intensity=7.0 * disks.intensity ** (0.5 / 0.25))
    pattern = prepared(same, config)
    predicted = jnp.where(disks.mask, jnp.maximum(disks.intensity, 1e-12) ** 0.5, 0.0)[None]
    score = cosine_score(pattern, disks.qx, disks.qy, predicted, 1e-3)
    assert float(score[0]) == pytest.approx(1.0, abs=1e-4)
    moved = cosine_score(pattern, disks.qx + 0.03, disks.qy, predicted, 0.03)
    assert float(moved[0]) < 0.9


def test_scores_lie_between_zero_and_one(copper, climb, rng):
    n = 40
    disks = jax.vmap(lambda r: thick_foil_disks(r, copper))(jnp.asarray(random_matrices(rng, n)))
    _, score = climb(jnp.asarray(random_matrices(rng, n)), disks)
    assert score.min() >= 0 and score.max() <= 1


def test_cosine_counts_a_disk_for_each_overlapping_reflection():
    """Two reflections in one place share a disk: the bare cosine is √2 (`verify` reports one)."""
    one = jnp.array([0.5])
    disks = Disks(one, 0 * one, one, jnp.ones(1, bool))
    pattern = prepared(disks)
    position = jnp.array([0.5, 0.5])
    value = cosine_score(pattern, position, 0 * position, jnp.ones((1, 2)), 0.03)[0]
    assert float(value) == pytest.approx(np.sqrt(2), rel=1e-4)


def test_patterns_are_prepared_in_shares_of_the_incident_beam(rng):
    """Weights have norm one over the disks; intensities are shares, positions untouched."""
    qx, qy, intensity = (jnp.asarray(rng.uniform(0.1, 1, 6), jnp.float32) for _ in range(3))
    disks = Disks(qx, qy, intensity, jnp.arange(6) < 4)
    limit = jnp.linspace(-9, -7, 41)
    pattern = pattern_of(disks, 20.0, 0.3, False, Limit(limit, -jnp.inf), 0.25)
    weight = np.exp(pattern.log_weight)
    np.testing.assert_allclose((weight**2).sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(weight[:4] / weight[0], (intensity[:4] / intensity[0]) ** 0.25, 1e-4)
    np.testing.assert_array_equal(weight[4:], 0)
    observed = pattern.observed
    np.testing.assert_allclose(np.exp(observed.log_share[:4]), intensity[:4] / 20, rtol=1e-5)
    np.testing.assert_array_equal(observed.qx, qx)
    np.testing.assert_array_equal(observed.mask, disks.mask)
    np.testing.assert_array_equal(observed.log_limit, limit)
    assert observed.incident_sigma == 0.3


def test_a_cut_pattern_has_lost_its_weakest_disks():
    """What is weaker than the weakest that was left of a pattern is not missed."""
    one = jnp.ones(3)
    limit = jnp.log(jnp.array([1e-4, 1e-3, 0.05]))
    disks = Disks(one, one, jnp.array([0.5, 0.1, 0.01]), one > 0)

    def seen(disks, is_cut, ratio=0.0):
        limits = Limit(limit, jnp.log(ratio))
        return pattern_of(disks, 1.0, 0.1, is_cut, limits, 0.25).observed.log_limit

    np.testing.assert_allclose(np.exp(seen(disks, True)), [0.01, 0.01, 0.05], rtol=1e-5)
    np.testing.assert_allclose(seen(disks, False), limit)
    free = disks._replace(mask=jnp.array([True, True, False]))
    np.testing.assert_allclose(np.exp(seen(free, True)), [0.1, 0.1, 0.1], rtol=1e-5)
    # nor what is too weak beside the pattern's strongest disk, where lists are cut so
    np.testing.assert_allclose(np.exp(seen(free, False, 0.1)), [0.05, 0.05, 0.05], rtol=1e-5)


def test_modes_are_the_peaks(copper, cells, tables, rng):
    """Two separate peaks come out first, each between the cells where it was put.

    Now and then a peak between cells has two summits, so that the other one comes out third.
    """
    truth = random_matrices(rng, 64).reshape(32, 2, 3, 3)
    apart = angle_deg(truth[:, 0], truth[:, 1], copper.operations)
    truth = truth[np.argsort(apart)[-16:]]
    peaks = jax.vmap(jax.vmap(lambda r: log_probability_around(r, copper, cells)))(truth)
    mixture = jax.nn.logsumexp(peaks + np.log([[0.6], [0.4]]), axis=1)
    cell, orientation, mass = jax.jit(jax.vmap(lambda p: modes(p, tables, 4)))(mixture)
    error = angle_deg(orientation[:, :2, None], truth[:, None], copper.operations).min(axis=1)
    close = error.max(axis=1) < 0.7 * np.rad2deg(copper.spacing)
    assert close.sum() >= 14 and np.median(error) < 0.4 * np.rad2deg(copper.spacing)
    # fifteen cells hold most of a peak
    held = np.exp(mass[:, :2]).sum(axis=1)
    assert np.all(held[close] > 0.6) and np.all(held[close] <= 1.0001)
    assert all(len(set(cells.tolist())) == 4 for cells in np.asarray(cell))


@pytest.mark.parametrize("n_cells", [100, 2500, 3712, 20001])
def test_the_likeliest_cells_come_in_order(n_cells, rng):
    """None is missed but now and then one that is third in its group."""
    values = rng.normal(size=(64, n_cells)).astype(np.float32)
    value, index = jax.jit(jax.vmap(lambda v: likeliest(v, 40)))(values)
    np.testing.assert_array_equal(value, np.take_along_axis(values, np.asarray(index), axis=1))
    assert np.all(np.diff(value, axis=1) <= 0)
    best = np.argsort(-values, axis=1)[:, :40]
    missed = [np.setdiff1d(*both) for both in zip(best, np.asarray(index), strict=True)]
    assert sum(map(len, missed)) < 64 * 0.4
    for row, cells in zip(best, missed, strict=True):
        for cell in cells:
            ahead = row[: list(row).index(cell)]
            assert np.sum(ahead % GROUPS == cell % GROUPS) >= 2


def test_siblings_follow_then_all_turned_about_the_beam(copper, cells, tables):
    cell = jnp.array([3, 100, 250])
    orientation = jnp.asarray(cells)[cell]
    prior = jnp.log(jnp.array([0.5, 0.3, 0.2]))
    all_cells, all_orientations, all_priors = with_siblings(cell, orientation, prior, tables)
    n_siblings = tables.sibling.shape[1]
    half = 3 * (1 + n_siblings)
    assert len(all_cells) == len(all_orientations) == len(all_priors) == 2 * half
    np.testing.assert_array_equal(all_orientations[:3], orientation)
    for s in range(n_siblings):
        for c in range(3):
            i = 3 + 3 * s + c
            expected = tables.sibling_turn[cell[c], s] @ orientation[c]
            np.testing.assert_allclose(all_orientations[i], expected, atol=1e-6)
            assert all_cells[i] == tables.sibling[cell[c], s]
            assert all_priors[i] == prior[c]
    np.testing.assert_allclose(
        all_orientations[half:], all_orientations[:half] @ rotations.HALF_TURN_ABOUT_BEAM, atol=1e-6
    )
    np.testing.assert_array_equal(all_cells[half:], all_cells[:half])
    np.testing.assert_allclose(np.exp(all_priors).sum(), 2 * (1 + n_siblings), rtol=1e-5)


@pytest.fixture(scope="module")
def check(copper, tables):
    """`verify` of a batch of patterns: best orientation by likelihood, its score."""
    run = partial(
        verify,
        phases=[tables],
        operations=joint_operations([copper]),
        wavelength=copper.wavelength,
        k_max=copper.k_max,
        config=COARSE_AND_FINE,
        log_odds=InferConfig().log_odds,
        at_once=1,
    )

    def best_of(ranked):
        best = jnp.argmax(ranked.log_likelihood)
        return ranked.orientation[best], ranked.score[best], ranked

    return jax.jit(lambda disks, around: jax.vmap(best_of)(run(jax.vmap(prepared)(disks), around)))


@pytest.mark.parametrize("seed", [0, 1])
def test_verify_is_invariant(copper, cells, check, seed):
    """Order and padding of the disks, in-plane turns and symmetry do not change the answer."""
    rng = np.random.default_rng(seed)
    truth = jnp.asarray(random_matrices(rng, 1)[0])
    disks = thick_foil_disks(truth, copper, 14)
    around = partial(log_probability_around, copper=copper, cells=cells)
    spin = jnp.asarray(turn([0, 0, rng.uniform(0, 360)]))
    operation = jnp.asarray(copper.operations[rng.integers(24)], jnp.float32)
    longer = lambda d: Disks(*(jnp.pad(x, (0, 24 - len(x))) for x in d))  # noqa: E731
    order = rng.permutation(24)
    cases = [
        (longer(disks), truth),
        (Disks(*(x[order] for x in longer(disks))), truth),
        (longer(thick_foil_disks(truth @ spin, copper, 14)), truth @ spin),
        (longer(thick_foil_disks(operation @ truth, copper, 14)), operation @ truth),
    ]
    batch = jax.tree.map(lambda *x: jnp.stack(x), *(case[0] for case in cases))
    answers, scores, ranked = check(batch, jnp.stack([around(r) for _, r in cases]))
    np.testing.assert_allclose(answers[1], answers[0], atol=1e-5)
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-5)
    turned_back = answers[2] @ spin.T
    others = jnp.stack([answers[3], turned_back, truth])
    apart = angle_deg(others, answers[0], copper.operations)
    print(apart, scores)
    assert apart[0] < 0.02 and apart[1] < 1.5 and apart[2] < 3.0
    np.testing.assert_allclose(scores[2:], scores[0], atol=0.02)
    assert ranked.score.min() >= 0 and ranked.score.max() <= 1
    assert np.isnan(ranked.thickness).all()  # two-beam theory does not tell it


def test_verify_does_not_see_the_padding(copper, cells, check, rng):
    truth = jnp.asarray(random_matrices(rng, 4))
    disks = jax.vmap(lambda r: thick_foil_disks(r, copper, 10))(truth)
    around = jnp.stack([log_probability_around(r, copper, cells) for r in truth])
    # one free place at least: a full pattern may have lost disks
    short, long = (
        check(Disks(*(jnp.pad(x, ((0, 0), (0, n))) for x in disks)), around)[0] for n in (1, 14)
    )
    np.testing.assert_allclose(short, long, atol=1e-5)


def test_verify_finds_the_turn_that_the_network_missed(copper, cells, check, rng):
    """Given only the pseudo-symmetric turn about the beam, the truth is among the verified."""
    truth = jnp.asarray(random_matrices(rng, 4))
    disks = jax.vmap(lambda r: thick_foil_disks(r, copper, 24))(truth)
    around = jnp.stack(
        [
            log_probability_around(
                r @ jnp.asarray(rotations.HALF_TURN_ABOUT_BEAM, jnp.float32), copper, cells
            )
            for r in truth
        ]
    )
    answers, _, _ = check(disks, around)
    assert np.median(angle_deg(answers, truth, copper.operations)) < 2.0


def test_candidates_in_one_place_count_once(copper, tables, cells, rng):
    """Those that would climb lie apart, while without regard for it most of them do not; the best
    of them stays.
    """
    truth = jnp.asarray(random_matrices(rng, 12))
    disks = jax.vmap(lambda r: thick_foil_disks(r, copper, 24))(truth)
    around = jnp.stack([log_probability_around(r, copper, cells) for r in truth])
    operations = joint_operations([copper])
    still = replace(CONFIG.likelihood, steps=(1e-6, 1e-6))  # they climb nowhere
    patterns, odds = jax.vmap(prepared)(disks), InferConfig().log_odds

    def pairs_in_one_place(same):
        levels = tuple(
            replace(level, same=width) for level, width in zip(CONFIG.levels, same, strict=True)
        )
        config = replace(CONFIG, levels=levels, likelihood=still)
        physics = operations, copper.wavelength, copper.k_max, config, odds
        found = jax.jit(
            lambda patterns, around: verify(patterns, around, [tables], *physics, at_once=1)
        )(patterns, around)
        near = 0
        for orientation in np.asarray(found.orientation):
            apart = symmetry.misorientation(orientation[:, None], orientation, operations[0])
            near += int((np.rad2deg(apart)[np.triu_indices(len(apart), 1)] < 0.3).sum())
        return near, np.asarray(found.score).max(axis=1)

    apart, best = pairs_in_one_place([level.same for level in CONFIG.levels])
    regardless, best_of_all = pairs_in_one_place([0.0, 0.0, 0.0])
    print(apart, regardless)
    assert regardless >= 18 and apart < regardless / 2  # some have no rival at all
    np.testing.assert_allclose(best, best_of_all, atol=0.01)


@pytest.mark.parametrize("n", [1, 5])
def test_angles_between_candidates_are_misorientations(copper, two, n, rng):
    materials, _ = two
    operations = joint_operations(materials)
    orientation, phase = jnp.asarray(random_matrices(rng, n)), rng.integers(0, 2, n)
    orientation = jnp.concatenate([orientation, operations[phase[0], 1] @ orientation[:1]])
    phase = np.append(phase, phase[0])
    apart = angles_between(orientation, jnp.asarray(phase), operations)
    for i, j in np.ndindex(apart.shape):
        expected = np.inf
        if phase[i] == phase[j]:
            symmetry = jnp.asarray(materials[phase[i]].operations, jnp.float32)
            expected = symmetry.misorientation(orientation[i], orientation[j], symmetry)
        np.testing.assert_allclose(apart[i, j], expected, atol=3e-3)


@pytest.fixture(scope="module")
def two(copper, tables, crystals):
    """Copper and magnesium with the tables of each."""
    mg = make_material(crystals["Mg"], 300.0, 1.5, 16.0, 0.0)
    arguments = (mg.grid, mg.operations, mg.reflectors(), mg.wavelength, mg.crystal.lattice)
    return (copper, mg), (tables, candidate_tables(*arguments))


@pytest.fixture(scope="module")
def judge(two):
    """`verify` with two phases."""
    materials, phases = two
    copper, symmetry = materials[0], joint_operations(materials)

    @jax.jit
    def one(disks, log_probability):
        physics = copper.wavelength, copper.k_max, COARSE_AND_FINE, InferConfig().log_odds
        alone = jax.tree.map(lambda x: x[None], (prepared(disks), log_probability))
        ranked = verify(*alone, phases, symmetry, *physics, at_once=1)
        return jax.tree.map(lambda x: x[0], ranked)

    return one


@pytest.mark.parametrize("phase", [0, 1])
def test_verification_finds_the_phase_that_the_network_thinks_unlikely(two, judge, phase, rng):
    """The distribution is right within each phase and in favour of the wrong one."""
    materials, _ = two
    right, other = materials[phase], materials[1 - phase]
    found = []
    for truth in jnp.asarray(random_matrices(rng, 4)):
        disks = thick_foil_disks(truth, right, 20)
        parts = [None, None]
        for p, m in enumerate(materials):
            grid = rotations.quaternion_to_matrix(jnp.asarray(m.grid))
            parts[p] = log_probability_around(truth, m, grid) + np.log(0.01 if p == phase else 0.99)
        ranked = judge(disks, jnp.concatenate(parts))
        assert set(np.asarray(ranked.phase)) == {0, 1}
        best = int(jnp.argmax(ranked.log_likelihood))
        angle = angle_deg(ranked.orientation[best], truth, right.operations)
        found.append(int(ranked.phase[best]) == phase and angle < 5)
    assert sum(found) >= 3
    assert other.crystal.name != right.crystal.name


def test_two_phases_find_what_one_finds(two, tables, check, judge, cells, rng):
    """Where the other phase is out of the question, its presence changes nothing, unless rounding
    decides between two steps of the search.
    """
    (copper, mg), _ = two
    same = []
    for truth in jnp.asarray(random_matrices(rng, 5)):
        disks = thick_foil_disks(truth, copper, 14)
        around = log_probability_around(truth, copper, cells)
        _, _, alone = check(jax.tree.map(lambda x: x[None], disks), around[None])
        both = judge(disks, jnp.append(around, jnp.full(len(mg.grid), -50.0)))
        best = jnp.argmax(alone.log_likelihood[0])
        near = np.abs(both.orientation - alone.orientation[0, best]).max(axis=(1, 2)) < 1e-4
        gain = np.abs(both.log_likelihood - alone.log_likelihood[0, best])
        same.append(bool((near & (both.phase == 0) & (gain < 1e-2)).any()))
    assert sum(same) >= 4


def test_candidates_of_each_phase_come_with_its_reflections(two, rng):
    materials, phases = two
    n_cells = [len(m.grid) for m in materials]
    log_probability = jnp.asarray(rng.normal(size=sum(n_cells)), jnp.float32)
    found = propose(log_probability, phases, 4)
    each = len(found.phase) // 2
    np.testing.assert_array_equal(found.phase, np.repeat([0, 1], each))
    for p, (m, part) in enumerate(
        zip(materials, np.split(log_probability, [n_cells[0]]), strict=True)
    ):
        _, orientation, prior = modes(jnp.asarray(part), phases[p], 4)
        of_phase = slice(p * each, p * each + 4)
        np.testing.assert_allclose(found.orientation[of_phase], orientation, atol=1e-6)
        np.testing.assert_allclose(found.prior[of_phase], prior, atol=1e-5)
        g = np.asarray(found.forward.g[p * each]).round(4)
        own = {tuple(row) for row in np.asarray(m.reflectors().g).round(4)}
        assert {tuple(row) for row in g} <= own
    assert each == 4 * 2 * (1 + phases[0].sibling.shape[1])


def test_padding_of_reflections_changes_no_likelihood(copper, rng):
    longer = Forward(jnp.ones((900, 3)), jnp.ones(900))
    own = every_reflection(copper)
    short, _ = padded([own, longer])
    assert short.g.shape == (900, 3)

    @jax.jit
    def both(orientation, disks):
        return [
            polish(
                orientation,
                prepared(disks).observed,
                forward.g,
                forward.inverse_extinction,
                copper.wavelength,
                copper.k_max,
                CONFIG.likelihood,
            )
            for forward in (own, short)
        ]

    for orientation in jnp.asarray(random_matrices(rng, 3)):
        one, other = both(orientation, thick_foil_disks(orientation, copper, 14))
        assert float(one.log_likelihood) == pytest.approx(float(other.log_likelihood), abs=1e-3)
        np.testing.assert_allclose(one.orientation, other.orientation, atol=1e-5)


@pytest.mark.parametrize("n_phases", [1, 2, 3])
def test_half_of_the_places_are_each_phases(n_phases, rng):
    n, count = 10, 60
    phase = rng.integers(n_phases, size=count)
    score = np.round(rng.normal(size=count) - phase, 1).astype(np.float32)  # with ties
    index = jnp.arange(count)
    candidates = Candidates(index, jnp.asarray(phase), index, Forward(index, index))
    kept, kept_score = keep_best(candidates, jnp.asarray(score), n, n_phases)
    keep = np.asarray(kept.orientation)
    assert len(set(keep)) == len(keep) == n + (n_phases - 1) * n // 2
    np.testing.assert_array_equal(kept_score, score[keep])
    np.testing.assert_array_equal(kept.phase, phase[keep])
    for p in range(n_phases):
        own, ours = np.sort(score[phase == p])[::-1], np.sort(score[keep][phase[keep] == p])[::-1]
        assert len(ours) >= min(n // 2, len(own))
        np.testing.assert_array_equal(ours, own[: len(ours)])
    assert set(np.sort(score)[::-1][: n // 2]) <= set(score[keep])
    few = jax.tree.map(lambda x: x[:7], candidates)
    assert keep_best(few, jnp.asarray(score[:7]), n, n_phases)[0] is few
