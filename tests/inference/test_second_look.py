# SPDX-License-Identifier: GPL-3.0-or-later
"""Orientations that others propose, judged as the first look judges its own; and the labels of
patterns on their way through pieces.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ROOT, foil_lists, random_lists, random_matrices, scan_of_lists, turn_deg
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from scipy.special import softmax

import jaxstem
from jaxstem.files.cube_readers import read_cube
from jaxstem.files.orientation_map import NO_CRYSTAL, UNASSIGNED
from jaxstem.files.scan import source_of
from jaxstem.inference import batching, stream
from jaxstem.inference.batching import (
    Piece,
    batches,
    likeliest_labels,
    no_labels,
    preview_scan,
    unseen,
)
from jaxstem.inference.exposure import MIN_DISKS
from jaxstem.inference.second_look import make_second_look
from jaxstem.inference.stream import stream_answers, stream_second_looks
from jaxstem.inference.verdict import Labels, answer_of
from jaxstem.runtime import parallel
from jaxstem.verification.config import CountsConfig

pytestmark = pytest.mark.usefixtures("quick_compile")

MOST = 3
"""Orientations that are asked of each pattern."""


def quaternions_of(matrices):
    """w first."""
    q = Rotation.from_matrix(np.reshape(matrices, (-1, 3, 3))).as_quat()
    return np.roll(q, 1, axis=-1).reshape(*np.shape(matrices)[:-2], 4).astype(np.float32)


@pytest.fixture(scope="module")
def settings(config):
    """Of a list, without what the network says: that is noise here."""
    return replace(config, keeps_labels=True, prior_weight=0.0)


@pytest.fixture(scope="module")
def one_device():
    return parallel.make_mesh(jax.devices()[:1])


@pytest.fixture(scope="module")
def look(model, settings, one_device, tabulated_once):
    """A scan of one row, quaternions (n, 3, 4) and phases (n, 3) to their labels, eight patterns at
    a time.
    """
    judge = make_second_look(model, settings, one_device)

    def look(scan, quaternion, phase):
        def asked(start, stop):
            return quaternion[start:stop], phase[start:stop]

        source = source_of(scan)
        known = preview_scan(source, model, settings)
        piece, *lots = batches(source, model, settings, known, (0, 1), 8, asked)
        for lot in lots:
            ((_, index),) = lot.where
            found = jax.device_get(judge(lot.disks, lot.exposed, None, *lot.asked))
            own = slice(len(index))
            piece.put(index, None, jax.tree.map(lambda x, own=own: x[own], found))
        assert piece.left == 0
        return piece.labels

    return look


def foil(copper, orientation):
    """A scan of one row of two-beam patterns of these orientations, with the direct beam."""
    return scan_of_lists(foil_lists(orientation, copper, 14, 10.0))


def assert_judged_alike(first, again):
    """Labels of the first look (n, C) and what a second one makes of them: nearly the log-odds and
    places, but for where climbs end.
    """
    exists, both = first.phase >= 0, again.phase >= 0
    assert both.sum() > 0.8 * exists.sum() and (exists | ~both).all()
    assert (np.isneginf(again.log_odds) == ~both).all()
    better = again.log_odds[both] - first.log_odds[both]
    assert np.ptp(first.log_odds[both]) > 10
    assert np.median(abs(better)) < 0.7 and abs(better).max() < 4
    angle = 2 * np.arccos(np.minimum(abs((first.quaternion * again.quaternion).sum(-1)), 1))
    assert np.rad2deg(angle[both]).max() < 4
    assert abs(first.score - again.score)[both].max() < 0.2


@pytest.mark.slow
def test_judges_by_the_list_as_the_first_look_does(model, scan, settings, one_device, look):
    """What it found itself, asked again."""
    found = stream_answers(model, source_of(scan), settings, mesh=one_device, progress=False)
    (piece,) = found
    first = likeliest_labels(piece.labels, MOST)
    again = look(scan, first.quaternion, first.phase)
    assert (first.phase[[3, 7]] < 0).all()  # too few disks
    assert_judged_alike(first, again)
    assert np.isnan(again.log_evidence).all() and np.isnan(again.explained_light).all()


@pytest.mark.slow
def test_judges_by_counts_as_the_first_look_does(model, config, one_device):
    """Ten raw patterns of copper."""
    patterns = read_cube(ROOT / "experiments/data/cu_random_cube.h5").rows(0, 1)
    source = source_of(jaxstem.detect_disks(patterns, pixel_size=0.0328, voltage_kv=300.0))
    counts = CountsConfig(n_candidates=(12,), n_final=4, n_thicknesses=8, n_polished=2)
    score = replace(config.score, counts=counts)
    config = replace(config, score=score, lengths=(24,), keeps_labels=True)
    (piece,) = stream_answers(model, source, config, mesh=one_device, progress=False)
    first = likeliest_labels(piece.labels, 2)
    asked = lambda start, stop: (first.quaternion[start:stop], first.phase[start:stop])  # noqa: E731
    (piece,) = stream_second_looks(model, source, asked, config, mesh=one_device, progress=False)
    assert_judged_alike(first, piece.labels)
    known = first.phase >= 0
    explained = first.explained_light - piece.labels.explained_light
    assert known.any() and np.nanmax(abs(explained[known])) < 0.1


@pytest.mark.slow
def test_truth_wins_over_chance(copper, look, rng):
    """Of orientations near the truth and elsewhere, in any order, and where fewer are asked."""
    orientation = random_matrices(rng, 6)
    asked = random_matrices(rng, 6 * MOST).reshape(6, MOST, 3, 3)
    place = rng.integers(0, MOST, 6)
    asked[np.arange(6), place] = orientation @ turn_deg(rng.uniform(-0.6, 0.6, (6, 3)))
    phase = np.zeros((6, MOST), np.int32)
    phase[np.arange(6), (place + 1) % MOST] = -1
    found = look(foil(copper, jnp.asarray(orientation)), quaternions_of(asked), phase)
    np.testing.assert_array_equal(found.phase[phase < 0], -1)
    np.testing.assert_array_equal(found.log_odds[phase < 0], -np.inf)
    assert (found.log_odds.argmax(axis=1) == place).sum() >= 5
    # of 14 disks some 8 nat each, of which a quarter counts
    assert 15 < np.median(found.log_odds[np.arange(6), place]) < 50
    nearest = quaternions_of(orientation), found.quaternion[np.arange(6), place]
    angle = 2 * np.arccos(np.minimum(abs(np.sum(nearest[0] * nearest[1], axis=-1)), 1))
    assert np.rad2deg(np.median(angle)) < 1


def test_of_two_that_climb_one_summit_one_is_left(copper, look, rng):
    """But for another, which is far away; patterns of which nothing is asked have no label."""
    orientation = np.repeat(turn_deg([20.0, 11.0, 5.0])[None], 2, axis=0)
    near = [turn_deg(rng.uniform(-0.3, 0.3, 3)) for _ in range(2)]
    far = turn_deg([0.0, 30.0, 0.0])
    asked = np.repeat(np.stack([orientation[0] @ x for x in (*near, far)])[None], 2, axis=0)
    phase = np.array([[0, 0, 0], [-1, -1, -1]], np.int32)
    found = look(foil(copper, jnp.asarray(orientation)), quaternions_of(asked), phase)
    assert (found.phase[0, :2] >= 0).sum() == 1 and found.phase[0, 2] == 0
    np.testing.assert_array_equal(found.phase[1], -1)


def test_what_is_not_asked_displaces_nothing(copper, look):
    """A crystal along the axes of the laboratory."""
    orientation = turn_deg([[0.0, 0.0, 0.0], [1.0, 0.5, 0.0]])
    asked = np.tile(orientation[:, None] @ turn_deg([0.7, 0.3, 0.4]), (1, MOST, 1, 1))
    quaternion, phase = quaternions_of(asked), np.full((2, MOST), -1, np.int32)
    quaternion[:, 1:], phase[:, 0] = 0.0, 0
    found = look(foil(copper, jnp.asarray(orientation)), quaternion, phase)
    np.testing.assert_array_equal(found.phase, phase)


@pytest.mark.slow
def test_the_network_thinks_little_of_what_it_did_not_think_of(model, copper, settings, one_device):
    """By as much as is set, whatever the pattern."""
    orientation = random_matrices(np.random.default_rng(3), 4)
    source = source_of(foil(copper, jnp.asarray(orientation)))
    asked = quaternions_of(orientation)[:, None], np.zeros((4, 1), np.int32)
    questions = lambda start, stop: tuple(x[start:stop] for x in asked)  # noqa: E731
    odds = []
    for config in (
        settings,
        replace(settings, prior_weight=0.5, unthought=-3.0),
        replace(settings, prior_weight=0.5, unthought=-5.0),
    ):
        given = model, source, questions, config
        (piece,) = stream_second_looks(*given, mesh=one_device, progress=False)
        odds.append(piece.labels.log_odds)
    np.testing.assert_allclose(odds[1], odds[0] - 1.5, atol=1e-4)
    np.testing.assert_allclose(odds[2], odds[0] - 2.5, atol=1e-4)


def fake_labels(quaternion, phase, number):
    """Labels as a second look gives them, whose scores are a number of the pattern."""
    numbers = np.broadcast_to(np.asarray(number)[:, None], phase.shape).astype(np.float32)
    odds = np.where(phase >= 0, numbers, -np.inf)
    return Labels(quaternion, phase, odds, numbers[:, 0], numbers, numbers, numbers, numbers)


def test_questions_and_labels_belong_to_their_positions(model, config, monkeypatch, rng):
    """Of some rows of a scan, through lengths and batches; pieces without a question have none."""
    lists = random_lists(rng, 60, 20)
    monkeypatch.setattr(batching, "PIECE", 10)

    def make(model, config, mesh, detector):
        def look(disks, exposed, light, quaternion, phase):
            assert detector is None and light is None
            return fake_labels(quaternion, phase, np.asarray(disks.qx[:, 0]))

        return look

    monkeypatch.setattr(stream, "make_second_look", make)
    config = replace(config, lengths=(8, 24), batch=6, lot=1, least=0)
    first, n = 2, 50  # rows 2 to 11 of twelve
    quaternion = rng.normal(size=(n, 2, 4)).astype(np.float32)
    phase = rng.integers(-1, 1, (n, 2)).astype(np.int32)
    phase[10:20] = -1
    scan = replace(scan_of_lists(lists), scan_shape=(12, 5))
    pieces = list(
        stream_second_looks(
            model,
            source_of(scan),
            lambda start, stop: (quaternion[start:stop], phase[start:stop]),
            config,
            rows=(first, 12),
            progress=False,
        )
    )
    assert [piece.first for piece in pieces] == [0, 10, 20, 30, 40]
    assert pieces[1].labels is None and all(piece.left == 0 for piece in pieces)
    judged = 0
    for piece in pieces:
        for i in range(10) if piece.labels else ():
            place = piece.first + i
            one, found = lists[5 * first + place], jax.tree.map(lambda x, i=i: x[i], piece.labels)
            if len(one) < MIN_DISKS or (phase[place] < 0).all():
                assert (found.phase == -1).all() and np.isneginf(found.log_odds).all()
                continue
            judged += 1
            np.testing.assert_array_equal(found.phase, phase[place])
            np.testing.assert_array_equal(found.quaternion, quaternion[place])
            assert found.no_crystal == pytest.approx(one[np.argmax(one[:, 2]), 0])
    assert judged > 15


@hypothesis_settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), n_found=st.integers(1, 6), n=st.integers(1, 8))
def test_the_likeliest_labels_come_first(seed, n_found, n):
    """Of one likelihood the first; where there are not so many, none."""
    rng = np.random.default_rng(seed)
    shape = (5, n_found)
    odds = np.where(rng.random(shape) < 0.3, -np.inf, rng.integers(-2, 3, shape))
    numbers = np.arange(odds.size, dtype=np.float32).reshape(shape)
    phase = np.where(np.isfinite(odds), numbers, -1).astype(np.int32)
    quaternion = np.repeat(numbers[..., None], 4, axis=-1)
    none = rng.normal(size=5).astype(np.float32)
    labels = Labels(quaternion, phase, odds.astype(np.float32), none, *[numbers] * 4)
    found = likeliest_labels(labels, n)
    np.testing.assert_array_equal(found.no_crystal, none)
    for i in range(5):
        best = sorted(range(n_found), key=lambda j: (-odds[i, j], j))[:n]
        missing = n - len(best)
        expected = [*odds[i, best], *[-np.inf] * missing]
        np.testing.assert_array_equal(found.log_odds[i], expected)
        np.testing.assert_array_equal(found.phase[i], [*phase[i, best], *[-1] * missing])
        for values in (found.score, found.thickness, found.explained_light):
            np.testing.assert_array_equal(values[i], [*numbers[i, best], *[np.nan] * missing])
        np.testing.assert_array_equal(found.quaternion[i, : len(best), 3], numbers[i, best])
        assert (found.quaternion[i, len(best) :] == 0).all()
    assert [x.dtype for x in found] == [x.dtype for x in labels]


def test_what_is_not_looked_at_is_empty_or_unknown():
    empty = np.array([True, False, True, False])
    answer = unseen(empty)
    np.testing.assert_array_equal(answer.phase, [NO_CRYSTAL, UNASSIGNED] * 2)
    for values in (answer.confidence, answer.confidence_mod180, answer.phase_confidence):
        np.testing.assert_array_equal(values, [np.nan, 0.0] * 2)
    assert np.isnan(answer.orientation).all() and np.isnan(answer.score).all()
    labels = no_labels(answer.phase, 2)
    np.testing.assert_array_equal(labels.no_crystal, [0.0, np.nan] * 2)
    assert labels.quaternion.shape == (4, 2, 4) and (labels.phase == UNASSIGNED).all()
    assert np.isneginf(labels.log_odds).all() and np.isnan(labels.score).all()
    # some in place of others, and not the same memory twice
    labels.score[0] = 1.0
    assert np.isnan(labels.thickness).all()


def test_a_piece_takes_answers_and_labels_in_lots():
    empty = np.array([False, False, True, False, False])
    piece = Piece(0, 0, unseen(empty), np.zeros(5, int), 4)
    quaternion, phase = np.ones((5, 2, 4), np.float32), np.zeros((5, 2), np.int32)
    whole = fake_labels(quaternion, phase, np.arange(5))
    found = unseen(np.zeros(5, bool))._replace(confidence=np.arange(5).astype(np.float32))
    for index in (np.array([4, 0]), np.array([3])):
        own = lambda x, index=index: x[index]  # noqa: E731
        piece.put(index, *jax.tree.map(own, (found, whole)))
    assert piece.left == 1
    np.testing.assert_array_equal(piece.answer.confidence, [0, 0, np.nan, 3, 4])
    np.testing.assert_array_equal(piece.labels.phase[:, 1], [0, -1, -1, 0, 0])
    np.testing.assert_array_equal(piece.labels.no_crystal, [0, np.nan, 0, 3, 4])
    second = Piece(0, 0, unseen(empty), np.zeros(5, int), 2)
    second.put(np.array([1, 3]), None, jax.tree.map(lambda x: x[[1, 3]], whole))
    assert np.isnan(second.answer.score).all() and second.left == 0
    np.testing.assert_array_equal(second.labels.score[:, 0], [np.nan, 1, np.nan, 3, np.nan])


def test_doubts_are_not_what_chooses(copper, rng):
    """Phase, answer and runner-up go by the log-odds, and probabilities by the doubted ones."""
    operations = jnp.asarray(np.stack([copper.operations] * 2), jnp.float32)
    base = random_matrices(rng, 1)[0]
    turns = turn_deg([[0.0, 0, 0], [2.0, 0, 0], [25.0, 0, 0], [0.0, 0, 0]])
    phase = np.array([0, 0, 0, 1], np.int32)
    q, numbers = jnp.asarray(quaternions_of(base @ turns)), jnp.arange(4.0)

    @jax.jit
    def answer(odds, none, *doubted):
        labels = Labels(q, jnp.asarray(phase), odds, none, *[numbers] * 4)
        return answer_of(labels, operations, doubted)

    odds = np.array([1.0, 3.0, 2.0, 3.2], np.float32)
    doubted = rng.normal(0, 1, 5).astype(np.float32)
    share = softmax(doubted)
    found = answer(odds, jnp.float32(0.5), doubted[:4], doubted[4])
    assert int(found.phase) == 0 and float(found.score) == 1.0  # of more than the best alone
    assert int(found.second_phase) == 1
    told = found.confidence, found.confidence_mod180, found.phase_confidence
    expected = share[:2].sum(), share[:2].sum(), share[:3].sum()
    np.testing.assert_allclose(told, expected, atol=1e-5)
    found = answer(odds, jnp.float32(9.0), doubted[:4], doubted[4])
    assert int(found.phase) == NO_CRYSTAL and np.isnan(found.orientation).all()
    assert float(found.confidence) == pytest.approx(share[4], abs=1e-5)
