# SPDX-License-Identifier: GPL-3.0-or-later
"""Maps in the context of their scan: what patterns say alone stays, and what nobody looked at."""

import functools
import queue
from dataclasses import replace

import h5py
import jax
import numpy as np
import pytest
from helpers import scan_of_lists
from scipy.spatial.transform import Rotation

from jaxstem.app.demo import sample
from jaxstem.files.emd import read_disks
from jaxstem.files.map_file import read_map
from jaxstem.files.orientation_map import NO_CRYSTAL, UNASSIGNED
from jaxstem.files.scan import source_of
from jaxstem.files.truth import read_truth
from jaxstem.inference.batching import Piece, no_labels, unseen
from jaxstem.inference.config import InferConfig
from jaxstem.inference.exposure import MIN_DISKS
from jaxstem.inference.step import joint_operations, make_predict_for
from jaxstem.inference.verdict import Answer
from jaxstem.mapping import map_scan, map_to_file, usable_context
from jaxstem.network.model import load_model
from jaxstem.orientation import rotations
from jaxstem.runtime import parallel, programs
from jaxstem.scan import context
from jaxstem.scan.alone import labels_alone
from jaxstem.scan.context import PROPOSED, in_context, made_ahead, proposed, second_looks
from jaxstem.scan.proposals import Proposed, propose
from jaxstem.scan.tiles import tiled
from jaxstem.verification.config import ScoreConfig

pytestmark = pytest.mark.usefixtures("quick_compile", "compiled_once")

CONFIG = InferConfig(
    refine="none",
    score=ScoreConfig(n_modes=6),  # as many as neighbours hear of
    lengths=(12,),
    batch=8,
    lot=4,
    geometry="given",
)
SINGLE = ("orientation", "phase", "confidence")


@pytest.fixture(scope="module")
def mesh():
    return parallel.make_mesh(jax.devices()[:1])


@pytest.fixture
def scan(rng):
    """Up to 14 disks at a position besides the direct beam; some positions have none, or few."""

    def scan(*shape):
        lists = []
        for i in range(np.prod(shape)):
            n = (0, 1)[i % 2] if i in (3, 4, 10) else rng.integers(MIN_DISKS, 15)
            radius, angle = rng.uniform(0.35, 1.4, n), rng.uniform(0, 2 * np.pi, n)
            disks = [radius * np.cos(angle), radius * np.sin(angle), rng.uniform(0.01, 1, n)]
            lists.append(np.concatenate([[[0, 0, 10.0]], np.stack(disks, axis=-1)])[not n :])
        return scan_of_lists(lists, shape)

    return scan


@pytest.fixture
def maps(model, scan, mesh):
    """A random scan of this shape, mapped pattern by pattern and in its context."""

    def maps(*shape):
        random = scan(*shape)
        return [
            map_scan(random, model, CONFIG, context=name, mesh=mesh, progress=False)
            for name in ("none", "scan")
        ]

    return maps


@pytest.mark.parametrize("shape", [(9, 5), (1, 7), (6, 1)])
def test_what_patterns_say_alone_is_kept(shape, maps):
    """And what nobody looked at stays as it is."""
    alone, together = maps(*shape)
    assert (alone.attributes["context"], together.attributes["context"]) == ("none", "scan")
    assert alone.single_phase is None and alone.single_orientation is None
    for name in ("orientation", "phase", "confidence"):
        single = getattr(together, f"single_{name}")
        np.testing.assert_allclose(single, getattr(alone, name), atol=1e-5, err_msg=name)
    np.testing.assert_array_equal(together.n_disks, alone.n_disks)
    nobody = together.n_disks < MIN_DISKS
    assert nobody.sum() >= 2 and (alone.phase[nobody] == NO_CRYSTAL).any()
    for name in Answer._fields:
        one, other = getattr(alone, name), getattr(together, name)
        np.testing.assert_array_equal(one[nobody], other[nobody], err_msg=name)
    assert np.isfinite(together.orientation[~nobody]).all()
    assert (together.confidence[~nobody] != alone.confidence[~nobody]).any()
    assert (together.confidence <= together.confidence_mod180 + 1e-6)[~nobody].all()


def test_a_lone_position_has_no_context(maps):
    alone, together = maps(1, 1)
    assert alone.phase.item() == 0
    for name in Answer._fields:
        one, other = getattr(alone, name), getattr(together, name)
        np.testing.assert_allclose(one, other, atol=1e-5, err_msg=name)


def test_maps_in_files_have_both(model, scan, mesh, tmp_path):
    source = source_of(scan(4, 5))
    for name in ("scan", "none"):
        path, given = tmp_path / f"{name}.h5", {"context": name, "mesh": mesh, "progress": False}
        overview = map_to_file(path, source, model, CONFIG, **given)
        found, expected = read_map(path), map_scan(source, model, CONFIG, **given)
        for array in (*Answer._fields, "n_disks", *(f"single_{x}" for x in SINGLE)):
            one, other = getattr(found, array), getattr(expected, array)
            assert (one is None) == (other is None) == (name == "none" and "single" in array)
            if one is not None:
                np.testing.assert_allclose(one, other, atol=1e-5, err_msg=array)
        np.testing.assert_array_equal(overview.phase, found.phase)
        np.testing.assert_array_equal(overview.confidence, found.confidence)
        with h5py.File(path) as file:
            assert file.attrs["context"] == name
            assert ("single" in file) == (name == "scan")
            if name == "scan":
                assert set(file["single"]) == set(SINGLE)


def test_doubtful_answers_are_those_of_the_scan(model, scan, mesh):
    """What a pattern says alone is not left out."""
    random, given = scan(4, 5), {"mesh": mesh, "progress": False}
    whole = map_scan(random, model, CONFIG, **given)
    least = float(np.nanmedian(whole.confidence))
    found = map_scan(random, model, CONFIG, least_confidence=least, **given)
    doubtful = whole.confidence < least
    np.testing.assert_array_equal(found.phase, np.where(doubtful, UNASSIGNED, whole.phase))
    np.testing.assert_array_equal(found.single_phase, whole.single_phase)
    assert (found.single_phase[doubtful] >= 0).any()


def test_a_rotation_alone_has_no_context(model):
    """A network of nine numbers says no doubt, which verification does."""
    nine = replace(model, config=replace(model.config, head="matrix"))
    fast = replace(CONFIG, refine="fast")
    assert usable_context("scan", nine, CONFIG) == "none"
    assert usable_context("scan", nine, fast) == usable_context("scan", model, CONFIG) == "scan"
    assert usable_context("none", model, fast) == "none"


@pytest.fixture
def grain(rng, apart, quaternions, make_labels):
    """A grain (5, 6) of which position (2, 3) thinks of something else; two were not looked at, one
    of which is empty; with four labels each. Its orientation, the other one, and the labels.
    """
    shape, four = (5, 6), apart(rng, 5, 20.0)
    which = np.zeros((*shape, 4), int) + np.array([0, 1, 2, 3])
    which[2, 3] = 4, 1, 2, 3
    odds = np.broadcast_to([3.0, 0.0, -1.0, -2.0], which.shape).copy()
    odds[[0, 4], [0, 2]] = -np.inf
    small = Rotation.from_rotvec(np.deg2rad(0.05) * rng.normal(size=(which.size, 3)))
    q = quaternions(four[which.ravel()] * small, *which.shape)
    labels = make_labels(q, odds, -5.0)
    labels.no_crystal[[0, 4], [0, 2]] = np.nan, 0.0
    return quaternions(four, 5)[0], quaternions(four, 5)[4], labels


@pytest.fixture
def source():
    return source_of(scan_of_lists([np.zeros((0, 3))] * 30, (5, 6)))


def misorientation(matrices, q):
    """Angles [rad] without regard for symmetry."""
    rotation = Rotation.from_matrix(matrices.reshape(-1, 3, 3))
    return (rotation.inv() * Rotation.from_quat(np.roll(q, -1))).magnitude()


def test_what_neighbours_propose_may_win(model, source, grain, mesh, monkeypatch, make_labels):
    """A position lacks the orientation of its grain, which a second look likes nearly as much."""
    orientation, other, labels = grain
    looked_at = (labels.phase >= 0).any(axis=2)
    fast = replace(CONFIG, refine="fast")
    odds = np.full((5, 6, PROPOSED), -np.inf)
    q = np.broadcast_to(orientation, (*odds.shape, 4)).copy()
    found = []
    for judged in (-np.inf, 2.0):
        odds[2, 3, 1] = judged
        more = make_labels(q, odds)._replace(no_crystal=np.full((5, 6), 9.0, np.float32))
        more = more._replace(thickness=np.full(odds.shape, 77.0, np.float32))
        monkeypatch.setattr(context, "second_looks", lambda *_, more=more: more)
        ((row, answer),) = in_context(labels, source, model, fast, mesh, False)
        assert row == 0 and (answer.phase[looked_at] == 0).all()
        assert answer.phase[0, 0] == UNASSIGNED and answer.phase[4, 2] == NO_CRYSTAL
        assert answer.confidence[0, 0] == 0 and np.isnan(answer.confidence[4, 2])
        assert np.isnan(answer.orientation[~looked_at]).all()
        found.append(answer)
    alone, both = found
    assert misorientation(alone.orientation[2, 3], other) < 0.01
    assert misorientation(both.orientation[2, 3], orientation) < 0.01
    assert misorientation(both.second_orientation[2, 3], other) < 0.01
    assert both.thickness[2, 3] == 77
    elsewhere = looked_at.copy()
    elsewhere[2, 3] = False
    for answer in found:
        assert misorientation(answer.orientation[elsewhere], orientation).max() < 0.01


def test_where_nothing_was_looked_at_nobody_is_asked(model, source, grain, mesh, monkeypatch):
    *_, labels = grain
    empty = np.arange(30).reshape(5, 6) % 3 == 0
    labels = labels._replace(
        phase=np.full_like(labels.phase, -1),
        log_odds=np.full_like(labels.log_odds, -np.inf),
        no_crystal=np.where(empty, 0.0, np.nan).astype(np.float32),
    )
    monkeypatch.setattr(context, "second_looks", lambda *_: pytest.fail("asked"))
    ((row, answer),) = in_context(labels, source, model, replace(CONFIG, refine="fast"), mesh)
    assert row == 0 and answer.orientation.shape == (5, 6, 3, 3)
    np.testing.assert_array_equal(answer.phase, np.where(empty, NO_CRYSTAL, UNASSIGNED))
    np.testing.assert_array_equal(answer.confidence, np.where(empty, np.nan, 0.0))


@pytest.mark.parametrize("refine", ["none", "fast"])
def test_programs_of_the_context_are_made_ahead(model, scan, mesh, tmp_path, monkeypatch, refine):
    """While those of single patterns are, by what these are asked; then none is compiled."""
    tmp_path.chmod(0o700)
    score = ScoreConfig(n_modes=4, levels=ScoreConfig().levels[:1])
    config = replace(CONFIG, refine=refine, score=score, chance=-1e6, cache=tmp_path)
    random, asked = source_of(scan(4, 5)), queue.Queue()
    alone = replace(config, keeps_labels=True)
    predict = make_predict_for(model, alone, mesh, lambda *given: asked.put(given))
    labels = labels_alone(random, model, config, mesh, False, predict)
    made_ahead(random, model, config, mesh)(*asked.get(timeout=60))
    kept = sorted(tmp_path.glob("*program*"))
    monkeypatch.setattr(programs, "_made", lambda *_: pytest.fail("compiled"))
    looks = []

    def second_look(asked, *given):
        looks.append((asked.phase >= 0).any())
        return second_looks(asked, *given)

    monkeypatch.setattr(context, "second_looks", second_look)
    answer = context.whole(in_context(labels, random, model, config, mesh, False))
    assert (answer.phase >= 0).sum() == (labels.phase >= 0).any(axis=2).sum() > 10
    assert looks == [True] * (refine == "fast")
    assert sorted(tmp_path.glob("*program*")) == kept and len(kept) == 3 + 2 * (refine == "fast")


@pytest.mark.slow
def test_proposals_do_not_depend_on_how_the_scan_is_cut(model, grain, monkeypatch, rng):
    """Of a scan of many grains with a stranger in each, in tiles on eight devices."""
    orientation, _, labels = grain
    monkeypatch.setattr(context, "tiled", functools.partial(tiled, sides=(9,)))
    many = jax.tree.map(lambda x: np.tile(x, (3, 4) + (1,) * (x.ndim - 2)), labels)
    some = rng.normal(0, 0.1, (15, 24, 1)).astype(np.float32)
    many = many._replace(log_odds=many.log_odds + some)
    found = proposed(many, model, CONFIG, parallel.make_mesh())
    turns = rotations.matrix_to_quaternion(joint_operations(model.materials))
    whole = jax.jit(propose, static_argnums=2)(many, turns, PROPOSED)
    np.testing.assert_array_equal(found.phase, whole.phase)
    np.testing.assert_array_equal(found.quaternion, whole.quaternion)
    # strangers are told of their grain, and those around of the stranger
    rows, columns = np.mgrid[:15, :24]
    near = (abs(rows % 5 - 2) <= 1) & (abs(columns % 6 - 3) <= 1)
    np.testing.assert_array_equal((found.phase >= 0).sum(axis=2), near)
    strangers = found.quaternion[2::5, 3::6, 0].reshape(-1, 4)
    told = Rotation.from_quat(np.roll(strangers, -1, axis=-1)).as_matrix()
    assert misorientation(told, orientation).max() < 0.01


@pytest.mark.parametrize("own", [(0, 5), (2, 5)])
def test_second_looks_lie_where_they_belong(own, model, source, grain, mesh, monkeypatch, rng):
    """Piece by piece, of the rows of this process; of the others as these say."""
    shape, mine = (5, 6, PROPOSED), slice(*own)
    q = rng.normal(size=(*shape, 4)).astype(np.float32)
    phase = rng.integers(-1, 1, shape).astype(np.int32)
    phase[3] = -1  # a piece of which nothing is asked
    monkeypatch.setattr(context, "own_rows", lambda n_rows: own)

    def looks(model, source, asked, config, *, rows, mesh, progress):
        assert rows == own
        for start in range(0, 6 * (own[1] - own[0]), 6):
            piece = Piece(start, start, unseen(np.zeros(6, bool)), np.zeros(6, int), 0)
            given, its_phase = asked(start, start + 6)
            if (its_phase >= 0).any():
                labels = no_labels(piece.answer.phase, PROPOSED)
                numbers = {"quaternion": given, "phase": its_phase, "score": given[..., 2]}
                piece.labels = labels._replace(**numbers)
            yield piece

    def shared(blocks, like):
        """As if another process had the first rows, and in them nothing but fives."""
        for row, block in blocks:
            for x, most in zip(block, like, strict=True):
                assert x.shape[1:] == most.shape[1:] and x.dtype == most.dtype
            yield row, block
        for row in range(own[0]):
            yield row, jax.tree.map(lambda x: np.full((1, *x.shape[1:]), 5, x.dtype), like)

    monkeypatch.setattr(context, "stream_second_looks", looks)
    monkeypatch.setattr(context, "shared", shared)
    found = second_looks(Proposed(q, phase), source, model, CONFIG, mesh, False)
    np.testing.assert_array_equal(found.phase[mine], phase[mine])
    asked = [row for row in range(*own) if row != 3]
    np.testing.assert_array_equal(found.quaternion[asked], q[asked])
    np.testing.assert_array_equal(found.score[asked], q[asked][..., 2])
    assert np.isneginf(found.log_odds[3]).all() and np.isnan(found.no_crystal[3]).all()
    for x in found:
        assert (x[: own[0]] == 5).all() and x.shape[:2] == shape[:2]


@pytest.mark.slow
def test_neighbours_help_in_the_sample(symmetry):
    """A corner of the packaged scan by the packaged model, against its truth."""
    whole, side = read_disks(sample("cu_bragg.h5")), 12
    flat = np.arange(np.prod(whole.scan_shape)).reshape(whole.scan_shape)[:side, :side].ravel()
    disks = np.stack([whole.qx, whole.qy, whole.intensity], axis=-1)
    lists = [disks[whole.offsets[i] : whole.offsets[i + 1]] for i in flat]
    found = map_scan(scan_of_lists(lists, (side, side)), load_model("cu"), progress=False)
    truth = read_truth(sample("cu_truth.h5")).orientation[:side, :side]

    def share_right(orientation):
        known = ~np.isnan(truth).any(axis=(2, 3))
        there, here = (Rotation.from_matrix(x[known]) for x in (truth, orientation))
        angle = np.min([(x * there * here.inv()).magnitude() for x in symmetry[0]], axis=0)
        return (angle < np.deg2rad(5)).mean()

    assert share_right(found.single_orientation) > 0.5
    assert share_right(found.orientation) > share_right(found.single_orientation)


def test_where_neighbours_are_not_alike_nothing_is_added_up(
    model, source, mesh, rng, quaternions, make_labels
):
    """A scan of random orientations is as it would be without sums."""
    random = Rotation.random(30, random_state=rng.integers(2**31))
    # one label each, in as many places as other tests have, whose programs serve here
    odds = np.full((5, 6, 6), -np.inf)
    odds[..., 0] = 3.0
    labels = make_labels(np.repeat(quaternions(random, 5, 6, 1), 6, axis=2), odds, -5.0)
    source = replace(source, pooled=lambda *_: pytest.fail("added up"))
    given = labels, source, model, CONFIG, mesh, False
    ((_, one),) = in_context(*given)
    ((_, other),) = in_context(*given, n_together=9, alone=lambda _: pytest.fail("asked"))
    for name in Answer._fields:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


@pytest.mark.parametrize("rejected", [False, True])
def test_sums_propose_and_patterns_judge(
    rejected, model, source, grain, mesh, monkeypatch, make_labels
):
    """Positions take the place of their sum; a stranger stays one if its own pattern says so, and
    who sees nothing takes the word of the sum.
    """
    orientation, other, labels = grain
    looked_at = (labels.phase >= 0).any(axis=2)
    near = Rotation.from_quat(np.roll(orientation, -1)) * Rotation.from_rotvec([0, 0, 0.01])
    of_sums = np.roll(near.as_quat(), 1).astype(np.float32)
    wide = np.broadcast_to(of_sums, (5, 6, 1, 4))
    odds = np.full((5, 6, 4), -np.inf)
    odds[..., 0] = 3.0
    their_labels = make_labels(np.repeat(wide, 4, axis=2), odds, -5.0)
    # nor does the sum see anything there
    their_labels.phase[4, 2], their_labels.no_crystal[4, 2] = -1, 0.0
    asked, chosen = [], []

    def look(proposed, *_):
        asked.append(proposed)
        exists = proposed.phase >= 0
        found = make_labels(proposed.quaternion, np.where(exists, 2.9, -np.inf), -5.0)
        if rejected:
            found.log_odds[2, 3] = -np.inf
        return found

    def pooled(members, usual):
        assert usual.sum() == 9 and usual[2:5, 2:5].all()  # the nearest, whatever the answers
        chosen.append(members)
        return replace(source, pooled=None)

    monkeypatch.setattr(context, "second_looks", look)
    ((row, answer),) = in_context(
        labels,
        replace(source, pooled=pooled),
        model,
        replace(CONFIG, refine="fast"),
        mesh,
        False,
        n_together=9,
        alone=lambda sums: their_labels,
    )
    assert row == 0 and len(asked) == 3 and [x.phase.shape[2] for x in asked] == [2, 2, 4]
    (members,) = chosen
    assert members[2, 3].sum() in (1, 9)  # a stranger alone, or of its grain by its neighbours
    assert members[0, 0].sum() == 1 and members[0, 5].sum() == 9
    assert (asked[2].phase[looked_at][:, 0] == 0).any()
    grains = looked_at.copy()
    grains[2, 3] = not rejected
    assert misorientation(answer.orientation[grains], of_sums).max() < 2e-3
    if rejected:
        assert misorientation(answer.orientation[2, 3], other) < 0.01
    assert answer.phase[0, 0] == 0 and misorientation(answer.orientation[0, 0], of_sums) < 2e-3
    assert answer.phase[4, 2] == NO_CRYSTAL
