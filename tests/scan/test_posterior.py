# SPDX-License-Identifier: GPL-3.0-or-later
"""What a scan says of its positions: scenes of a few grains, however the scan is cut."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from scipy.special import expit, softmax

from jaxstem.files.orientation_map import NO_CRYSTAL
from jaxstem.runtime import parallel
from jaxstem.scan.neighbours import STEPS, Coupling, PairSums
from jaxstem.scan.posterior import (
    AT_FIRST,
    ContextConfig,
    answers_in_context,
    coupling_of,
    learnt,
    make_programs,
)
from jaxstem.scan.tiles import cut, over_tiles, tiled

pytestmark = pytest.mark.usefixtures("quick_compile")

SIDE, CONFIG = 16, ContextConfig()
SHAPE = (SIDE, SIDE)
ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE]


@pytest.fixture(scope="module")
def programs(operations):
    """The learned coupling of labels (16, 16, 3), and the answers by it or by another."""
    tiling, mesh = tiled(SHAPE, CONFIG.rounds, (SIDE,)), parallel.make_mesh(jax.devices()[:1])
    learn, tell = make_programs(operations, CONFIG, tiling, mesh, None)

    def learned(labels):
        return learnt(learn, lambda tile: cut(labels, tile, SIDE), tiling, CONFIG, mesh)

    def answers(labels, coupling=None):
        coupling = learned(labels) if coupling is None else parallel.replicate(coupling, mesh)
        bands = over_tiles(
            lambda lot: tell(lot, coupling), lambda tile: cut(labels, tile, SIDE), tiling, mesh
        )
        ((_, answer),) = bands
        return answer

    return learned, answers


@pytest.fixture
def scene(rng, quaternions, make_labels):
    """Labels by numbers of orientations (16, 16, 3) and their log-odds, each turned at random by
    `spread` degrees about each axis.
    """

    def scene(orientations, which, log_odds, spread=0.0, no_crystal=-20.0, phase=0):
        vector = np.deg2rad(spread) * rng.normal(size=(which.size, 3))
        rotation = orientations[which.ravel()] * Rotation.from_rotvec(vector)
        q = quaternions(rotation, *which.shape)
        return make_labels(q, log_odds, no_crystal, phase)

    return scene


@pytest.fixture
def two_grains(scene):
    """Positions of grain 0 or 1 (16, 16), each by its own log-odds against the other's orientation;
    no third label.
    """

    def two_grains(orientations, grain, log_odds, **more):
        which = np.stack([grain, 1 - grain, grain], axis=-1)
        odds = np.stack(np.broadcast_arrays(log_odds, 0.0, -np.inf, grain)[:3], axis=-1)
        return scene(orientations, which, odds, **more)

    return two_grains


@pytest.fixture
def is_at(angle, quaternions):
    """Where answers lie within 7° of orientations, by numbers (16, 16); no crystal is nowhere."""

    def is_at(answer, orientations, which, phase=0):
        known = answer.phase == phase
        found = Rotation.from_matrix(
            np.where(known[..., None, None], answer.orientation, np.eye(3)).reshape(-1, 3, 3)
        )
        q = quaternions(found, *SHAPE), quaternions(orientations[which.ravel()], *SHAPE)
        return (angle(*q, answer.phase, np.full(SHAPE, phase)) < np.deg2rad(7.0)) & known

    return is_at


def test_strangers_add_nothing(programs, apart, scene, rng):
    """Where no neighbours are alike, in either phase: the answers and doubts of single patterns."""
    learned, answers = programs
    which = (3 * (ROWS % 3) + COLUMNS % 3)[..., None] + np.array([0, 9, 18])
    phase = np.broadcast_to([0, 1, 1], which.shape)
    orientations = Rotation.concatenate([apart(rng, 9, 12.0), apart(rng, 18, 12.0, phase=1)])
    odds, no_crystal = rng.normal(0, 2, which.shape), rng.normal(-1, 2, SHAPE)
    labels = scene(orientations, which, odds, 0.1, no_crystal, phase)
    coupling = learned(labels)
    assert coupling.same < 0.01
    answer = answers(labels, coupling._replace(nothing=np.float32(0)))
    share = softmax(np.concatenate([odds, no_crystal[..., None]], -1), axis=-1)
    of_phase = np.stack([share[..., 0], share[..., 1:3].sum(-1), share[..., 3]], axis=-1)
    best = of_phase.argmax(axis=-1)
    np.testing.assert_array_equal(answer.phase, np.where(best == 2, NO_CRYSTAL, best))
    np.testing.assert_allclose(answer.phase_confidence, of_phase.max(axis=-1), atol=1e-4)
    likeliest = np.choose(best, [share[..., 0], share[..., 1:3].max(-1), share[..., 3]])
    np.testing.assert_allclose(answer.confidence, likeliest, atol=1e-4)


def coupling_by_hand(q, known, angle):
    """What scans of one label a position learn: from the misorientations of all pairs."""
    squares, weights = [], []
    for down, right in STEPS:
        rows, columns = ROWS + down, COLUMNS + right
        there = (rows < SIDE) & (columns < SIDE) & (columns >= 0)
        rows, columns = rows % SIDE, columns % SIDE
        pair = there & known & known[rows, columns]
        theta = angle(q[pair], q[rows, columns][pair], np.zeros(pair.sum()), np.zeros(pair.sum()))
        squares.append(4 * np.sin(theta / 2) ** 2)
        weights.append(np.full(pair.sum(), CONFIG.diagonal if down and right else 1.0))
    squares, weights = np.concatenate(squares), np.concatenate(weights)
    spread, same = np.deg2rad(AT_FIRST[0]), AT_FIRST[1]
    for _ in range(CONFIG.learning):
        alike, raised = np.exp(-squares / (2 * spread**2)), np.exp(weights * same)
        of_one = raised * alike / (1 + (raised - 1) * alike)
        total = of_one.sum()
        spread = np.sqrt((of_one * squares).sum() / total * 2 / 3)
        spread = np.clip(spread, *np.deg2rad(CONFIG.spread))
        same = np.log1p((total + 0.5) / (len(squares) - total + 0.5))
        same = min(same, CONFIG.most)
    return spread, same


@pytest.mark.parametrize("bent", [0.2, 0.6, 1.5])
def test_a_scan_says_how_much_its_grains_bend(bent, programs, apart, two_grains, angle, rng):
    """Two grains; four positions were not looked at."""
    learned, _ = programs
    grain = (COLUMNS > 7 + rng.integers(0, 3)).astype(int)
    labels = two_grains(apart(rng, 2), grain, 30.0, spread=bent, no_crystal=-30.0)
    labels.log_odds[..., 1] = -np.inf
    unknown = np.unravel_index(rng.choice(SIDE**2, 4, replace=False), SHAPE)
    labels.no_crystal[unknown], labels.log_odds[unknown], labels.phase[unknown] = (
        np.nan,
        -np.inf,
        -1,
    )
    spread, same = coupling_by_hand(
        labels.quaternion[..., 0, :], ~np.isnan(labels.no_crystal), angle
    )
    found = learned(labels)
    np.testing.assert_allclose(found[:2], [spread, same], rtol=2e-3)
    # of neighbours, each of which is turned by so much
    assert 0.85 < np.rad2deg(found.spread) / max(np.sqrt(2) * bent, 0.5) < 1.4
    if bent < 0.5:
        assert found.same > 1


def island():
    grain = np.zeros(SHAPE, int)
    grain[8, 5] = 1
    return grain


GRAINS = {
    "one position": island(),
    "a row": (ROWS == 6).astype(int),
    "a column": (COLUMNS == 9).astype(int),
    "a diagonal": (ROWS + COLUMNS == 14).astype(int),
    "a border": (COLUMNS > 4 + ROWS // 2).astype(int),
    "a corner": ((COLUMNS > 12) & (ROWS > 13)).astype(int),
}


@pytest.mark.parametrize("name", GRAINS)
def test_grains_keep_what_is_theirs(name, programs, apart, two_grains, is_at, rng):
    """However small, where patterns are sure; orientations are those of patterns and no means."""
    _, answers = programs
    orientations, grain = apart(rng, 2), GRAINS[name]
    labels = two_grains(orientations, grain, np.where(grain, 6.0, 4.0), spread=0.9)
    answer = answers(labels)
    assert is_at(answer, orientations, grain).all()
    found = Rotation.from_matrix(answer.orientation.reshape(-1, 3, 3))
    own = Rotation.from_quat(np.roll(labels.quaternion[..., 0, :], -1, -1).reshape(-1, 4))
    assert (found * own.inv()).magnitude().max() < 1e-3
    for given in ("score", "thickness", "log_evidence", "explained_light"):
        np.testing.assert_array_equal(getattr(answer, given), getattr(labels, given)[..., 0])


def test_neighbours_set_right_what_a_pattern_leaves_open(programs, apart, two_grains, is_at, rng):
    """Positions within either grain that like the other a little."""
    _, answers = programs
    orientations, grain, odds = apart(rng, 2), GRAINS["a border"], np.full(SHAPE, 3.0)
    wrong = [(2, 2), (9, 3), (4, 12), (13, 13)]
    odds[tuple(zip(*wrong, strict=True))] = -0.5
    answer = answers(two_grains(orientations, grain, odds, spread=0.05))
    assert is_at(answer, orientations, grain).all()
    assert min(answer.confidence[place] for place in wrong) > expit(-0.5)


def test_neighbours_tell_phases_apart(programs, apart, two_grains, rng):
    """The same orientation in either phase, and a pattern that likes the wrong one a little."""
    _, answers = programs
    phase = GRAINS["a border"]
    labels = two_grains(apart(rng, 1)[[0, 0]], phase, 3.0, spread=0.05)
    labels = labels._replace(
        phase=np.stack([phase, 1 - phase, 0 * phase - 1], axis=-1, dtype=np.int32)
    )
    labels.log_odds[[3, 10], [3, 14], 0] = -0.5
    answer = answers(labels)
    np.testing.assert_array_equal(answer.phase, phase)
    np.testing.assert_array_equal(answer.second_phase, 1 - phase)


@pytest.mark.parametrize("more", [-0.1, 0.1])
def test_what_neighbours_add_is_bounded(more, programs, apart, two_grains, is_at, rng):
    """By `same` each, and on the diagonal by a part of it; belief goes by a part of that."""
    _, answers = programs
    orientations, same, islands = apart(rng, 2), 1.2, {(8, 8): 6.8, (0, 5): 4.4, (15, 0): 2.7}
    grain, odds = np.zeros(SHAPE, int), np.full(SHAPE, 16.0)
    for place, most in islands.items():
        grain[place], odds[place] = 1, most * same + more
    labels = two_grains(orientations, grain, odds)
    answer = answers(labels, Coupling(*np.float32([0.01, same, 0.5])))
    assert is_at(answer, orientations, grain if more > 0 else 0 * grain).all()
    for place, most in islands.items():
        own = odds[place] - CONFIG.doubt * most * same
        confidence = expit(own) if more > 0 else expit(-own)
        assert float(answer.confidence[place]) == pytest.approx(confidence, rel=0.02)


def test_vacuum_keeps_its_border(programs, apart, scene, is_at, rng):
    """Vacuum in which each position has chance orientations; some are liked a little."""
    _, answers = programs
    vacuum, orientations = ROWS + COLUMNS < 15, apart(rng, 40, 8.0)
    which = rng.integers(1, 40, (*SHAPE, 3))
    which[~vacuum, 0] = 0
    odds = np.where(vacuum, -2.0, 3.0)
    odds[[2, 5], [2, 7]] = 0.5
    odds = np.stack([odds, odds - 1, odds - 3], axis=-1)
    answer = answers(scene(orientations, which, odds, 0.3, np.where(vacuum, 0.0, -1.0)))
    np.testing.assert_array_equal(answer.phase == NO_CRYSTAL, vacuum)
    assert is_at(answer, orientations, which[..., 0])[~vacuum].all()
    assert np.isnan(answer.orientation[vacuum]).all()


def test_nothing_is_heard_of_beyond_what_nobody_looked_at(programs, apart, two_grains, rng):
    """A column without labels parts the scan."""
    _, answers = programs
    coupling, orientations = Coupling(*np.float32([0.02, 1.5, 0.5])), apart(rng, 2)
    odds, found = rng.normal(0, 2, SHAPE), []
    labels = two_grains(orientations, GRAINS["a border"], odds, spread=0.5)
    labels.no_crystal[:, 7], labels.phase[:, 7], labels.log_odds[:, 7] = np.nan, -1, -np.inf
    for _ in range(2):
        found.append(answers(labels, coupling).confidence)
        labels.log_odds[:, 8:, 0] *= -1
    one, other = found
    np.testing.assert_array_equal(one[:, :7], other[:, :7])
    assert (one[:, 8:] != other[:, 8:]).all()


def test_few_pairs_say_little():
    """Nothing known is a small log-odds; many pairs say what share is of one grain, at most so."""
    sums = lambda *x: PairSums(*(jnp.float32(one) for one in x))  # noqa: E731
    nothing = coupling_of(sums(0, 0, 0, 0, 0), CONFIG)
    assert float(nothing.same) == pytest.approx(np.log(2))
    assert float(nothing.spread) == pytest.approx(np.deg2rad(AT_FIRST[0]))
    half = coupling_of(sums(2e4, 1e4, 6e4 * np.deg2rad(1.0) ** 2 / 4, 0, 0), CONFIG)
    assert float(half.same) == pytest.approx(np.log(2), rel=1e-3)
    assert float(half.spread) == pytest.approx(np.deg2rad(1.0), rel=1e-3)
    alike = coupling_of(sums(1e4, 1e4, 0, 0, 0), CONFIG)
    assert float(alike.same) == CONFIG.most
    assert float(alike.spread) == pytest.approx(np.deg2rad(CONFIG.spread[0]))


ONE_PHASE = Rotation.create_group("D3").as_matrix()[None].astype(np.float32)


def random_labels(rng, quaternions, make_labels, shape):
    """Labels of a scan of grains and noise, some of which are missing, and some positions."""
    orientations = Rotation.random(6, random_state=rng.integers(2**31))
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    which = np.stack([(rows // 7 + columns // 5) % 6, *rng.integers(0, 6, (1, *shape))], axis=-1)
    vector = np.deg2rad(0.7) * rng.normal(size=(which.size, 3))
    q = quaternions(orientations[which.ravel()] * Rotation.from_rotvec(vector), *which.shape)
    odds, no_crystal = rng.normal([0.5, 0], 1.5, which.shape), rng.normal(-1, 1.5, shape)
    odds[rng.random(which.shape) < 0.1] = -np.inf
    unknown = rng.random(shape) < 0.05
    odds[unknown], no_crystal[unknown] = -np.inf, np.nan
    return make_labels(q, odds, no_crystal), ~unknown


@pytest.mark.slow
@pytest.mark.parametrize("n_devices", [8, 1])
def test_answers_do_not_depend_on_how_the_scan_is_cut(n_devices, rng, quaternions, make_labels):
    """In one tile on one device, and in six of smaller ones on eight or one."""
    shape = (22, 19)
    labels, known = random_labels(rng, quaternions, make_labels, shape)
    config = replace(CONFIG, rounds=3, learning=2, sample=8)
    found = []
    for side, n in ((24, 1), (16, n_devices)):
        tiling = tiled(shape, config.rounds, (side,))
        assert len(tiling.tiles) == (1 if side == 24 else 6)
        of_tile = lambda tile, side=side: cut(labels, tile, side)  # noqa: E731
        mesh = parallel.make_mesh(jax.devices()[:n])
        bands = answers_in_context(of_tile, tiling, jnp.asarray(ONE_PHASE), config, mesh)
        rows, parts = zip(*bands, strict=True)
        assert rows == ((0,) if side == 24 else (0, 10, 20))
        found.append(jax.tree.map(lambda *x: np.concatenate(x)[known], *parts))
    for name, one, other in zip(found[0]._fields, *found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5, err_msg=name)
