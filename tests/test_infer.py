# SPDX-License-Identifier: GPL-3.0-or-later
"""From scans to answers: sorting into lengths, exposure, confidence, one device or eight."""

import itertools
import threading
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from jaxstem.crystal.cell import symmetry_operations
from jaxstem.diffraction.geometry import Disks, strongest
from jaxstem.diffraction.material import make_material
from jaxstem.diffraction.two_beam import two_beam
from jaxstem.errors import InputError
from jaxstem.files.orientation_map import NO_CRYSTAL, UNASSIGNED
from jaxstem.files.scan import DiskScan, joined, pad_disks, source_of
from jaxstem.inference import step, stream
from jaxstem.inference.config import InferConfig
from jaxstem.inference.exposure import MIN_DISKS, N_RADII, count_disks, looks_empty, scan_exposure
from jaxstem.inference.lengths import choose_lengths, length_of
from jaxstem.inference.ranked_cells import likeliest_cells
from jaxstem.inference.step import cells_near
from jaxstem.inference.stream import Piece, Shelf, batches, predict_scan, read_ahead, preview_scan
from jaxstem.inference.verdict import Answer, summarise
from jaxstem.network.model import NEVER, Model, build_network
from jaxstem.network.transformer import init_params
from jaxstem.orientation import rotations, symmetry
from jaxstem.orientation.space import joint_space, orientation_space
from jaxstem.runtime import parallel
from jaxstem.verification.candidates import candidate_tables
from jaxstem.verification.config import DynamicalConfig, FitConfig, ScoreConfig
from jaxstem.verification.ranking import Ranked

pytestmark = pytest.mark.usefixtures("quick_compile")

CONFIG = InferConfig(
    score=ScoreConfig(n_modes=4, levels=ScoreConfig().levels[:2]),
    chance=-1e6,  # to have a crystal everywhere, whatever the untrained network proposes
    lengths=(16,),
    batch=8,
    chunk=4,
    least=1,
)
DIRECT = 10.0
"""Intensity of the direct beam, where the scan has it."""


def random_matrices(rng, n):
    return Rotation.random(n, random_state=rng.integers(2**31)).as_matrix().astype(np.float32)


def scan_of(lists):
    """A one-row scan from (n, 3) arrays of qx, qy, intensity."""
    disks = np.concatenate([np.zeros((0, 3)), *lists]).astype(np.float32)
    return DiskScan(
        disks[:, 0],
        disks[:, 1],
        disks[:, 2],
        np.cumsum([0, *(len(one) for one in lists)]).astype(np.int64),
        (1, len(lists)),
        1.0,
        "nm",
        300.0,
        "test",
    )


@pytest.fixture(scope="module", autouse=True)
def tabulated_once(tables):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "candidate_tables", lambda *_, **__: tables)
        yield


@pytest.fixture(scope="module")
def model(copper, tiny):
    """An untrained network."""
    network = build_network(tiny.model, [copper])
    params = jax.jit(lambda key: init_params(network, key))(jax.random.key(0))
    return Model(tiny.model, (copper,), params)


@pytest.fixture(scope="module")
def scan(copper):
    """Thirteen positions: two-beam patterns with the direct beam, of which 3 has one disk besides
    it, 7 nothing at all, and 11 no direct beam.
    """
    rng = np.random.default_rng(7)
    orientation = random_matrices(rng, 13)
    beams = two_beam(orientation, copper.reflectors(), copper.wavelength, 100.0)
    disks = strongest(*beams, 14, 1e-3)
    lists = []
    for qx, qy, intensity, mask in zip(*(np.asarray(x) for x in disks), strict=True):
        found = np.stack([qx, qy, DIRECT * intensity], axis=-1)[mask]
        lists.append(np.concatenate([[[0.0, 0.0, DIRECT]], found]))
    lists[3] = lists[3][:2]
    lists[7] = lists[7][:0]
    lists[11] = lists[11][1:]
    assert min(len(one) for i, one in enumerate(lists) if i not in (3, 7)) > MIN_DISKS
    return scan_of(lists)


def on_devices(model, scan, config, n):
    mesh = parallel.make_mesh(jax.devices()[:n])
    return predict_scan(model, scan, config, mesh=mesh, progress=False)


@pytest.fixture(scope="module")
def answers(model, scan):
    return {n: on_devices(model, scan, CONFIG, n) for n in (1, 2, 8)}


@pytest.fixture(scope="module")
def likeliest(model, scan):
    return likeliest_cells(model, scan, 64)


def test_unassigned_positions(answers):
    answer, counts = answers[1]
    assert counts[3] == 1 and counts[7] == 0
    assert answer.phase[3] == UNASSIGNED and answer.phase[7] == NO_CRYSTAL
    unassigned = np.isin(np.arange(13), [3, 7])
    for values in (answer.orientation, answer.second_orientation):
        np.testing.assert_array_equal(np.isnan(values).any(axis=(1, 2))[unassigned], True)
    assert np.isnan(answer.score[unassigned]).all()
    for values in (answer.confidence, answer.confidence_mod180, answer.phase_confidence):
        np.testing.assert_array_equal(values[unassigned], [0, np.nan])
    np.testing.assert_array_equal(answer.second_phase[unassigned], UNASSIGNED)
    assert np.isfinite(answer.orientation[~unassigned]).all()
    assert np.isfinite(answer.score[~unassigned]).all()
    np.testing.assert_array_equal(answer.phase[~unassigned], 0)


def test_assigned_positions_have_rotations_and_probabilities(answers, copper):
    answer, counts = answers[1]
    assigned = counts >= MIN_DISKS
    r = answer.orientation[assigned]
    np.testing.assert_allclose(r @ r.transpose(0, 2, 1), np.tile(np.eye(3), (11, 1, 1)), atol=1e-5)
    np.testing.assert_allclose(np.linalg.det(r), 1, atol=1e-5)
    assert np.all((answer.score[assigned] > 0) & (answer.score[assigned] <= 1))
    confidence, modulo = answer.confidence[assigned], answer.confidence_mod180[assigned]
    assert np.all((confidence >= 0) & (confidence <= modulo + 1e-6) & (modulo <= 1 + 1e-6))
    assert np.all(modulo <= answer.phase_confidence[assigned] + 1e-6)
    second = answer.second_orientation[assigned]
    exists = ~np.isnan(second).any(axis=(1, 2))
    assert exists.any()
    between = symmetry.misorientation(
        jnp.asarray(r[exists]), jnp.asarray(second[exists]), jnp.asarray(copper.operations)
    )
    assert np.rad2deg(between).min() > 4.99


@pytest.mark.parametrize("n", [2, 8])
def test_any_number_of_devices_answers_the_same(answers, n):
    (one, counts), (other, other_counts) = answers[1], answers[n]
    np.testing.assert_array_equal(counts, other_counts)
    for name in one._fields:
        np.testing.assert_allclose(
            getattr(one, name), getattr(other, name), atol=2e-4, err_msg=name
        )


def test_two_beam_theory_tells_no_thickness(answers):
    assert np.isnan(answers[1][0].thickness).all()


@pytest.fixture(scope="module")
def full_answers(model, scan):
    """Verified by few Bloch waves, on one device and on eight."""
    rules = DynamicalConfig(
        thickness=(60.0, 140.0),
        n_thicknesses=9,
        steps=(0.1,),
        n_beams=16,
        n_weak=20,
        n_candidates=2,
        behind=1e3,
    )
    score = replace(CONFIG.score, levels=CONFIG.score.levels[:1], n_final=4, dynamical=rules)
    config = replace(CONFIG, refine="full", score=score)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "BEAM_K_MAX", 1.5)
        return {n: on_devices(model, scan, config, n) for n in (1, 8)} | {"full": config}


@pytest.fixture(scope="module")
def exact_answer(model, scan, full_answers):
    """The same, and fitted."""
    fits = FitConfig(
        n_candidates=1,
        thickness=(60.0, 140.0, 20.0),
        spacing=0.1,
        half_width=0.1,
        rough_beams=(16, 20),
        n_starts=2,
        rough_steps=2,
        n_fine=1,
        beams=(16, 20),
        steps=2,
    )
    config = full_answers["full"]
    config = replace(config, refine="exact", score=replace(config.score, fit=fits))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "BEAM_K_MAX", 1.5)
        return on_devices(model, scan, config, 8)


@pytest.mark.parametrize("refine", ["full", "exact"])
def test_bloch_waves_tell_the_thickness(refine, full_answers, exact_answer, copper):
    answer, counts = full_answers[1] if refine == "full" else exact_answer
    assigned = counts >= MIN_DISKS
    assert np.isnan(answer.thickness[~assigned]).all()
    assert np.all((answer.thickness[assigned] >= 60) & (answer.thickness[assigned] <= 140))
    r = answer.orientation[assigned]
    np.testing.assert_allclose(r @ r.transpose(0, 2, 1), np.tile(np.eye(3), (11, 1, 1)), atol=1e-5)
    for values in (answer.score, answer.confidence, answer.confidence_mod180):
        assert np.all((values[assigned] >= 0) & (values[assigned] <= 1 + 1e-6))


def test_eight_devices_give_the_verdict_of_one(full_answers):
    for name, one, other in zip(
        Answer._fields, full_answers[1][0], full_answers[8][0], strict=True
    ):
        np.testing.assert_allclose(one, other, atol=2e-4, err_msg=name)


def test_direct_beam_of_a_scan_is_no_token(model, scan, likeliest):
    """Without the direct beam the disks, and so the network's candidates, are the same."""
    keep = np.hypot(scan.qx, scan.qy) > 0.01
    counts = np.array([keep[a:b].sum() for a, b in zip(scan.offsets, scan.offsets[1:])])  # noqa: B905
    bare = replace(
        scan,
        qx=scan.qx[keep],
        qy=scan.qy[keep],
        intensity=scan.intensity[keep],
        offsets=np.concatenate([[0], np.cumsum(counts)]),
    )
    again = likeliest_cells(model, bare, 64)
    np.testing.assert_array_equal(likeliest.orientation, again.orientation)


def test_network_alone(model, scan, copper, likeliest):
    answer, counts = on_devices(model, scan, replace(CONFIG, refine="none"), 8)
    assigned = counts >= MIN_DISKS
    assert np.isnan(answer.score).all() and np.isnan(answer.second_score).all()
    assert np.isnan(answer.thickness).all()
    assert np.all(answer.confidence[assigned] > 0)
    # near one of the likeliest cells
    angle = symmetry.misorientation(
        jnp.asarray(answer.orientation[assigned])[:, None],
        jnp.asarray(likeliest.orientation[assigned]),
        jnp.asarray(copper.operations),
    )
    assert np.all(angle.min(axis=1) < copper.spacing)


def test_likeliest_cells_are_the_networks(model, scan, copper, likeliest):
    cells, phase = likeliest
    np.testing.assert_array_equal(phase[[0, 3, 7]], [[0] * 64, [-1] * 64, [-1] * 64])
    assert cells.shape == (13, 64, 3, 3)
    assert np.isnan(cells[[3, 7]]).all() and np.isfinite(np.delete(cells, [3, 7], 0)).all()
    disks = pad_disks(scan, np.arange(13), copper.k_max, copper.k_min, 24)
    apply = jax.jit(lambda disks: model.network.apply({"params": model.params}, disks))
    logits = apply(Disks(*disks))
    best = rotations.quaternion_to_matrix(jnp.asarray(copper.grid))[
        np.argmax(logits[:, :-1], axis=1)
    ]
    assigned = [i for i in range(13) if i not in (3, 7)]
    np.testing.assert_allclose(cells[assigned, 0], best[np.array(assigned)], atol=1e-6)


def test_answers_return_to_their_positions(model, copper, monkeypatch, rng):
    """Through lengths and batches: each position gets what was made of its own disks."""
    lists = []
    for n in rng.integers(0, 30, 70):
        radius, angle = rng.uniform(0.35, 1.4, n), rng.uniform(0, 2 * np.pi, n)
        disks = [radius * np.cos(angle), radius * np.sin(angle), rng.uniform(1, 2, n)]
        lists.append(np.stack(disks, axis=-1))
    monkeypatch.setattr(stream, "PIECE", 7)
    shapes = []

    def make_predict(model, config, mesh):
        def predict(params, disks, exposed):
            shapes.append(disks.qx.shape)
            first = disks.qx[:, 0] + exposed.incident + 100 * exposed.is_cut
            rotation = np.tile(first[:, None, None], (1, 3, 3))
            n_disks = disks.mask.sum(axis=1)
            return Answer(
                rotation, n_disks, first, first, first, first, rotation, n_disks, first, 2 * first
            )

        return predict

    monkeypatch.setattr(step, "make_predict", make_predict)
    config = replace(CONFIG, lengths=(8, 16, 24), batch=6, least=0)
    scan = replace(scan_of(lists), scan_shape=(14, 5))
    answer, counts = predict_scan(model, scan, config, progress=False)
    np.testing.assert_array_equal(counts, [len(one) for one in lists])
    for i, one in enumerate(lists):
        if len(one) < MIN_DISKS:
            assert np.isnan(answer.score[i]) and answer.phase[i] < 0
            continue
        expected = one[np.argmax(one[:, 2]), 0] + one[:, 2].sum() / 0.3 + 100 * (len(one) > 24)
        assert answer.score[i] == pytest.approx(expected, rel=1e-4)
        assert answer.orientation[i, 2, 1] == answer.score[i] == answer.thickness[i] / 2
        assert answer.phase[i] == answer.second_phase[i] == min(len(one), 24)
    assert set(shapes) == {(8, 8), (8, 16), (8, 24)}  # six, rounded up to the eight devices


@pytest.mark.parametrize("n_positions", [0, 4])
def test_scan_without_disks(model, n_positions):
    empty = scan_of([np.zeros((0, 3))] * n_positions)
    answer, counts = predict_scan(model, empty, CONFIG, progress=False)
    np.testing.assert_array_equal(counts, np.zeros(n_positions))
    assert answer.orientation.shape == (n_positions, 3, 3)
    assert np.isnan(answer.orientation).all() and np.all(answer.phase == NO_CRYSTAL)


def test_counts_are_those_of_padding(scan, copper):
    counts = count_disks(scan, copper.k_min, copper.k_max)
    *_, mask = pad_disks(scan, np.arange(13), copper.k_max, copper.k_min, 40)
    np.testing.assert_array_equal(counts, mask.sum(axis=1))


def test_counts_by_hand():
    far, near, direct, dark = [1.6, 0, 1], [0, 0.5, 1], [0.1, 0.1, 9], [0.5, 0.5, 0]
    scan = scan_of([np.array([far, near, direct]), np.zeros((0, 3)), np.array([dark, near, near])])
    np.testing.assert_array_equal(count_disks(scan, 0.3, 1.5), [1, 0, 2])


def test_exposure_by_hand():
    """With the direct beam its share counts; without it the disks are 30 % of the beam, roughly."""
    lists = [
        np.array([[0, 0, 80.0], [0.5, 0, 15], [0, 0.5, 5]]),
        np.array([[0.5, 0, 15.0], [0, 0.5, 15]]),
        np.zeros((0, 3)),
    ]
    found = scan_exposure(scan_of(lists), 0.3, 1.5)
    np.testing.assert_allclose(found.incident, [100, 100, 1])
    sigma = found.incident_sigma
    assert sigma[0] < 0.3 < 0.7 < sigma[1] == sigma[2]
    shares = [0.15, 0.05, 0.15, 0.15]
    assert found.limit.log_share.shape == (N_RADII,)
    np.testing.assert_allclose(np.exp(found.limit.log_share), np.percentile(shares, 4), rtol=1e-5)
    assert not found.is_cut.any()
    part = found.at(np.array([2, 0]))
    np.testing.assert_array_equal(part.incident, [1, 100])
    np.testing.assert_array_equal(part.incident_sigma, sigma[[2, 0]])
    np.testing.assert_array_equal(part.limit.log_share, found.limit.log_share)


def test_the_detection_limit_follows_the_radius(rng):
    """Near the direct beam only disks above a hundredth of it are listed, farther out weaker ones;
    where there are few disks the limit is that of all.
    """
    lists = []
    for _ in range(60):
        radius, angle = rng.uniform(0.3, 1.2, 30), rng.uniform(0, 2 * np.pi, 30)
        share = np.exp(rng.uniform(np.log(1e-4), np.log(1e-1), 30))
        listed = share > np.where(radius < 0.6, 1e-2, 1e-3)
        disks = np.stack([radius * np.cos(angle), radius * np.sin(angle), share], axis=-1)[listed]
        lists.append(np.concatenate([[[0.0, 0.0, 1.0 - disks[:, 2].sum()]], disks]))
    limit = np.exp(scan_exposure(scan_of(lists), 0.25, 1.5).limit.log_share)
    radii = np.linspace(0, 1.5, N_RADII)
    near, far, beyond = (radii > 0.3) & (radii < 0.5), (radii > 0.7) & (radii < 1.1), radii > 1.35
    assert np.all((limit[near] >= 1e-2) & (limit[near] < 1.6e-2))
    assert np.all((limit[far] >= 1e-3) & (limit[far] < 1.9e-3))
    assert len(set(limit[beyond])) == 1 and 1e-3 <= limit[-1] < 2e-3


@pytest.mark.parametrize("by_ratio", [False, True])
def test_lists_cut_by_share_or_by_ratio_to_the_strongest(rng, by_ratio):
    """Patterns of very different brightness, without disks under a share of the beam, or without
    those under a hundredth of the strongest one.
    """
    lists = []
    for _ in range(300):
        place = rng.uniform(-1, 1, (40, 2))
        share = np.exp(rng.normal(-5, 1.5)) * np.exp(rng.uniform(np.log(1e-4), 0, 40))
        least = 0.01 * share.max() if by_ratio else 1e-4
        disks = np.column_stack([place, share])[share > least]
        lists.append(np.concatenate([[[0.0, 0.0, 1.0]], disks]))
    limit = scan_exposure(scan_of(lists), 1e-6, 2.0).limit
    if by_ratio:
        assert 0.01 <= np.exp(limit.log_ratio) < 0.011
        assert np.all(limit.log_share <= np.log(min(rows[:, 2].min() for rows in lists)) + 0.1)
    else:
        assert limit.log_ratio == -np.inf
        # bright patterns have more than the direct beam in all, and so smaller shares
        assert np.all((np.exp(limit.log_share) > 0.7e-4) & (np.exp(limit.log_share) < 2e-4))


@pytest.mark.parametrize("n_positions", [0, 3])
def test_exposure_of_nothing(n_positions):
    found = scan_exposure(scan_of([np.zeros((0, 3))] * n_positions), 0.3, 1.5)
    assert found.incident.shape == found.incident_sigma.shape == (n_positions,)
    assert np.isfinite(found.limit.log_share).all() and np.all(found.incident > 0)


LENGTHS = (4, 6, 9, 12, 20)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=60),
    program=st.floats(1, 300),
    beside=st.floats(0, 30),
)
def test_lengths_make_the_work_least(counts, program, beside):
    """Against all subsets of the lengths."""
    counts = np.array(counts)
    found = choose_lengths(counts, LENGTHS, program, beside)
    if not (counts >= MIN_DISKS).any():
        assert found == ()
        return
    longest = LENGTHS[length_of(counts, LENGTHS).max()]

    def work(lengths):
        place = length_of(counts, lengths)
        each = np.asarray(lengths)[place[place >= 0]] + beside
        return each.sum() + program * len(lengths)

    subsets = itertools.chain.from_iterable(
        itertools.combinations(LENGTHS, n) for n in range(1, len(LENGTHS) + 1)
    )
    possible = [lengths for lengths in subsets if lengths[-1] >= longest]
    assert work(found) == pytest.approx(min(map(work, possible)))


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(0, 40), max_size=60))
def test_patterns_fit_their_lengths(counts):
    counts = np.array(counts, int)
    place = length_of(counts, LENGTHS)
    np.testing.assert_array_equal(place < 0, counts < MIN_DISKS)
    for count, i in zip(counts[place >= 0], place[place >= 0], strict=True):
        assert count <= LENGTHS[i] or i == len(LENGTHS) - 1
        assert i == 0 or count > LENGTHS[i - 1]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), size=st.integers(1, 7))
def test_shelves_hand_out_what_was_put_there(data, size):
    """In order, each pattern once, and with its place."""
    shelf, expected, found, lots = Shelf(), [], [], []
    for number in range(data.draw(st.integers(1, 8))):
        piece = Piece(number, 0, None, None, 0)
        index = np.arange(data.draw(st.integers(0, 9)))
        expected += [(number, i) for i in index]
        shelf.put((100 * number + index,), piece, index)
        lots += shelf.take(size, rest=data.draw(st.booleans()))
    lots += shelf.take(size, rest=True)
    for (values,), where in lots:
        assert 0 < len(values) <= size
        places = [(piece.number, i) for piece, index in where for i in index]
        np.testing.assert_array_equal(values, [100 * number + i for number, i in places])
        found += places
    assert found == expected and shelf.number == 0


def random_scan(rng, shape, longest=30):
    """Disks at random, with a direct beam, up to `longest` at a position."""
    lists = []
    for n in rng.integers(0, longest, shape[0] * shape[1]):
        radius, angle = rng.uniform(0.35, 1.4, n), rng.uniform(0, 2 * np.pi, n)
        disks = [radius * np.cos(angle), radius * np.sin(angle), rng.uniform(0.01, 1, n)]
        lists.append(np.concatenate([[[0.0, 0.0, DIRECT]], np.stack(disks, axis=-1)]))
    return replace(scan_of(lists), scan_shape=shape)


@pytest.mark.parametrize("waiting", [2, 100])
def test_batches_hold_each_pattern_once(model, monkeypatch, rng, waiting):
    """And are full, unless a piece would have to wait too long for its last answers."""
    monkeypatch.setattr(stream, "PIECE", 12)
    monkeypatch.setattr(stream, "OPEN", waiting)
    scan = random_scan(rng, (40, 4))
    config = replace(CONFIG, refine="none", lengths=(4, 8, 12), batch=8, least=0)
    source = source_of(scan)
    known = preview_scan(source, model, config)
    assert len(known.lengths) == 3
    found = list(batches(source, model, config, known, (0, 40), 8))
    pieces = [item for item in found if isinstance(item, Piece)]
    assert [piece.first for piece in pieces] == list(range(0, 160, 12))
    seen, partial, read = [], 0, 0
    for item in found:
        if isinstance(item, Piece):
            read += 1
            continue
        assert item.disks.qx.shape[0] == 8
        n = 0
        for piece, index in item.where:
            assert piece.number < read and piece.number >= read - waiting - 3
            positions = piece.first + index
            qx, *_ = pad_disks(scan, positions, model.k_max, model.k_min, item.disks.qx.shape[1])
            np.testing.assert_array_equal(item.disks.qx[n : n + len(index)], qx)
            seen += positions.tolist()
            n += len(index)
        partial += n < 8
        np.testing.assert_array_equal(item.disks.qx[n:], np.tile(item.disks.qx[n - 1], (8 - n, 1)))
    counts = count_disks(scan, model.k_min, model.k_max)
    np.testing.assert_array_equal(np.sort(seen), np.flatnonzero(counts >= MIN_DISKS))
    assert partial <= 3 or waiting == 2


def test_pieces_make_no_difference(model, monkeypatch, rng):
    """A scan read a row at a time gives the answers of one read at once, and each length compiles
    once.
    """
    scan = random_scan(rng, (12, 9))
    config = replace(CONFIG, refine="none", lengths=(6, 12), batch=8, least=0)
    programs = []
    pmap = parallel.pmap
    monkeypatch.setattr(
        parallel, "pmap", lambda *args, **rest: programs.append(pmap(*args, **rest)) or programs[-1]
    )
    whole, counts = on_devices(model, scan, config, 1)
    monkeypatch.setattr(stream, "PIECE", 9)
    monkeypatch.setattr(stream, "OPEN", 2)
    streamed, again = on_devices(model, scan, config, 1)
    assert [program._cache_size() for program in programs] == [2, 2]
    np.testing.assert_array_equal(counts, again)
    for name, one, other in zip(Answer._fields, whole, streamed, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6, err_msg=name)
    assert np.isfinite(whole.orientation).all(axis=(1, 2)).sum() == (counts >= MIN_DISKS).sum() > 60


def test_a_small_scan_is_surveyed_as_a_whole(model, monkeypatch, rng):
    monkeypatch.setattr(stream, "PIECE", 8)
    scan = random_scan(rng, (20, 8))
    known = preview_scan(source_of(scan), model, CONFIG)
    expected = scan_exposure(scan, model.k_min, model.k_max)
    np.testing.assert_array_equal(known.limit.log_share, expected.limit.log_share)
    whole = joined([known.pieces[row, row + 1] for row in range(20)])
    np.testing.assert_array_equal(whole.qx, scan.qx)
    np.testing.assert_array_equal(whole.offsets, scan.offsets)


def test_a_large_scan_is_surveyed_in_part(model, monkeypatch, rng):
    monkeypatch.setattr(stream, "PIECE", 8)
    monkeypatch.setattr(stream, "SAMPLE", 40)
    scan, read = random_scan(rng, (20, 8)), []
    source = source_of(scan)
    counted = replace(source, read=lambda *rows: read.append(rows) or source.read(*rows))
    known = preview_scan(counted, model, CONFIG)
    assert read == sorted(known.pieces) and len(read) == 5
    assert read[0] == (0, 1) and read[-1] == (19, 20)
    assert np.isfinite(known.limit.log_share).all() and known.lengths
    predict_scan(model, counted, replace(CONFIG, refine="none"), progress=False)
    assert sorted(read[5:]) == [(row, row + 1) for row in range(20)]  # each once


def test_reading_ahead_keeps_the_order():
    assert list(read_ahead(iter(range(50)), 3)) == list(range(50))


def test_failures_of_the_reader_are_told():
    def items():
        yield 1
        raise InputError("scan.h5 is cut short; copy it again.")

    ahead = read_ahead(items(), 2)
    assert next(ahead) == 1
    with pytest.raises(InputError, match="cut short"):
        next(ahead)


def test_a_reader_that_nobody_waits_for_ends():
    before = threading.active_count()
    ahead = read_ahead(itertools.count(), 2)
    assert next(ahead) == 0 and threading.active_count() == before + 1
    ahead.close()
    assert threading.active_count() == before


def test_half_precision_is_the_networks_alone(model, scan):
    """Answers are nearly those of float32; verification has the same candidates to judge."""
    config = replace(CONFIG, refine="none")
    exact, _ = on_devices(model, scan, config, 1)
    rough, _ = on_devices(model, scan, replace(config, precision="bfloat16"), 1)
    assigned = exact.phase == 0
    difference = np.abs(exact.phase_confidence - rough.phase_confidence)[assigned]
    assert 0 < difference.max() < 0.02
    with pytest.raises(ValueError, match="float16"):
        on_devices(model, scan, replace(config, precision="float16"), 1)


def ranked_of(orientations, likelihood, prior=None, score=None, phase=None, thickness=None):
    n = len(orientations)
    as_float = lambda x, default: jnp.asarray(default if x is None else x, jnp.float32)  # noqa: E731
    return Ranked(
        jnp.asarray(orientations, jnp.float32),
        jnp.asarray(np.zeros(n, int) if phase is None else phase),
        as_float(score, np.linspace(0.9, 0.5, n)),
        as_float(likelihood, None),
        as_float(prior, np.zeros(n)),
        as_float(thickness, np.full(n, np.nan)),
    )


@pytest.fixture(scope="module")
def summary(copper):
    """`summarise` of candidates of copper, with no crystal out of the question."""
    operations = jnp.asarray(copper.operations, jnp.float32)[None]
    return jax.jit(lambda ranked: summarise(ranked, jnp.asarray(NEVER), operations, InferConfig()))


def turn(degrees, axis=(0, 0, 1)):
    return Rotation.from_rotvec(np.deg2rad(degrees) * np.array(axis)).as_matrix()


BASE = turn(50, np.array([1, 2, 3]) / np.sqrt(14))


def test_summary_by_hand(summary, copper):
    """Two near candidates, one of them twice, the beam turn, and one far away."""
    operation = copper.operations[5]
    near, beam, far = (
        BASE @ turn(3),
        BASE @ rotations.HALF_TURN_ABOUT_BEAM,
        BASE @ turn(25, [1, 0, 0]),
    )
    orientations = [near, far, BASE, operation @ BASE, beam]
    weight = InferConfig().likelihood_weight
    share = np.array([0.2, 0.1, 0.4, 0.4, 0.25])
    thickness = [20, 30, 40, 50, 60]
    answer = summary(ranked_of(orientations, np.log(share) / weight, thickness=thickness))
    np.testing.assert_allclose(answer.orientation, BASE, atol=1e-6)
    assert float(answer.score) == pytest.approx(0.7) and float(answer.thickness) == 40
    total = 0.2 + 0.1 + 0.4 + 0.25  # the equivalent is the same candidate again
    assert float(answer.confidence) == pytest.approx(0.6 / total, abs=1e-4)
    assert float(answer.confidence_mod180) == pytest.approx(0.85 / total, abs=1e-4)
    np.testing.assert_allclose(answer.second_orientation, beam, atol=1e-6)
    assert float(answer.second_score) == pytest.approx(0.5)


def test_summary_without_a_second(summary):
    answer = summary(ranked_of([BASE, BASE @ turn(2), BASE @ turn(-3)], [1.0, 0.5, 0.2]))
    assert float(answer.confidence) == pytest.approx(1.0, abs=1e-5)
    assert np.isnan(answer.second_orientation).all() and np.isnan(answer.second_score)


def test_prior_decides_between_equal_patterns(summary):
    orientations = [BASE, BASE @ rotations.HALF_TURN_ABOUT_BEAM]
    for best in (0, 1):
        prior = np.where(np.arange(2) == best, 0.0, -2.0)
        answer = summary(ranked_of(orientations, [3.0, 3.0], prior))
        np.testing.assert_allclose(answer.orientation, orientations[best], atol=1e-6)
        assert 0.5 < answer.confidence < 0.95
        assert float(answer.confidence_mod180) == pytest.approx(1.0, abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), spread=st.floats(0.5, 60))
def test_summary_holds_its_promises(summary, copper, seed, spread):
    rng = np.random.default_rng(seed)
    orientations = np.array(
        [
            BASE @ Rotation.from_rotvec(np.deg2rad(spread) * rng.normal(size=3)).as_matrix()
            for _ in range(12)
        ]
    )
    orientations[6:9] = orientations[:3] @ rotations.HALF_TURN_ABOUT_BEAM
    ranked = ranked_of(orientations, 10 * rng.normal(size=12), rng.normal(size=12))
    answer = summary(ranked)
    assert 0 <= answer.confidence <= answer.confidence_mod180 + 1e-6 <= 1 + 2e-6
    config = InferConfig()
    log_odds = config.log_odds(ranked.log_likelihood, ranked.prior)
    np.testing.assert_array_equal(answer.orientation, ranked.orientation[np.argmax(log_odds)])
    operations = jnp.asarray(copper.operations, jnp.float32)
    away = np.rad2deg(symmetry.misorientation(answer.orientation, ranked.orientation, operations))
    if np.isnan(answer.second_score):
        assert away.max() < 5.01
    else:
        second = symmetry.misorientation(answer.orientation, answer.second_orientation, operations)
        assert np.rad2deg(second) > 4.99


@pytest.fixture(scope="module")
def mixed(copper, crystals):
    """`summarise` of candidates of copper (phase 0) and magnesium (phase 1)."""
    space = joint_space(
        [copper.space(), orientation_space(symmetry_operations(crystals["Mg"]), [], 0.1)]
    )
    return jax.jit(lambda ranked, none: summarise(ranked, none, space.operations, InferConfig()))


def shares(mixed, share, none, **rest):
    """The answer for candidates of these posterior shares, no crystal having `none`."""
    config = InferConfig()
    likelihood = np.log(share) / config.likelihood_weight
    of_none = np.log(none) - config.likelihood_weight * config.chance
    ranked = ranked_of(likelihood=likelihood, **rest)
    return mixed(ranked, jnp.asarray(of_none / config.log_odds(0.0, 1.0), jnp.float32))


def test_the_likeliest_phase_is_answered_by_its_best_candidate(mixed):
    """Magnesium has the single best candidate, copper together more."""
    far, other = BASE @ turn(25, [1, 0, 0]), BASE @ turn(20, [0, 1, 0])
    orientations = [BASE, BASE, far, other, BASE @ rotations.HALF_TURN_ABOUT_BEAM]
    answer = shares(
        mixed, [0.3, 0.25, 0.2, 0.05, 0.1], 0.1, orientations=orientations, phase=[1, 0, 0, 1, 0]
    )
    assert int(answer.phase) == 0
    np.testing.assert_allclose(answer.orientation, BASE, atol=1e-6)
    found = [answer.confidence, answer.confidence_mod180, answer.phase_confidence]
    np.testing.assert_allclose(found, [0.25, 0.35, 0.55], atol=1e-3)
    # the runner-up is the same rotation, of the other crystal
    assert int(answer.second_phase) == 1
    np.testing.assert_allclose(answer.second_orientation, BASE, atol=1e-6)


def test_no_crystal_is_an_answer(mixed):
    orientations = [BASE, BASE @ turn(25, [1, 0, 0]), BASE]
    candidates = dict(orientations=orientations, phase=[0, 0, 1], thickness=[90, 90, 90])
    answer = shares(mixed, [0.2, 0.1, 0.25], 0.45, **candidates)
    assert int(answer.phase) == NO_CRYSTAL
    assert np.isnan(answer.orientation).all() and np.isnan(answer.score)
    assert np.isnan(answer.thickness)
    found = [answer.confidence, answer.confidence_mod180, answer.phase_confidence]
    np.testing.assert_allclose(found, 0.45, atol=1e-3)
    assert int(answer.second_phase) == 1
    answer = shares(mixed, [0.35, 0.1, 0.15], 0.4, **candidates)
    assert int(answer.phase) == 0 and float(answer.thickness) == 90


def test_symmetry_is_that_of_the_phase(mixed):
    """A turn by 60° about c gives the same crystal of Mg and another one of Cu."""
    sixth = turn(60) @ BASE
    for phase, expected in ((0, 0.5), (1, 0.9)):
        answer = shares(
            mixed, [0.5, 0.4], 0.1, orientations=[BASE, sixth @ turn(2)], phase=[phase, phase]
        )
        assert float(answer.confidence) == pytest.approx(expected, abs=1e-3)


def test_lone_disks():
    """One weak disk is noise and one strong one a crystal; beyond k_max disks count as well."""
    direct, many = [0, 0, 1000.0], [[0.5 * np.cos(a), 0.5 * np.sin(a), 1.0] for a in range(8)]
    positions = [[direct, *many], [direct], [direct, [0.5, 0, 1.5]], [direct, [0.5, 0, 50.0]]]
    positions += [[direct, [2.5, 0, 1.0], [0, 2.5, 1.0]], np.zeros((0, 3))]
    scan = scan_of([np.array(one) for one in positions])
    empty = looks_empty(scan, 0.3, scan_exposure(scan, 0.3, 1.5))
    np.testing.assert_array_equal(empty, [False, True, True, False, False, True])


def test_nine_numbers_spread_over_their_phase(copper, crystals, rng):
    mg = make_material(crystals["Mg"], 300.0, 1.5, 20.0, 0.0)
    space = joint_space([copper.space(), mg.space()])
    rotation = random_matrices(rng, 1)[0]
    output = jnp.concatenate([2 * rotation.reshape(9), np.array([0.0, 1.0], np.float32)])
    found = np.asarray(cells_near(output, space))
    assert found.shape == (len(copper.grid) + len(mg.grid) + 1,) and found[-1] == NEVER
    share = np.exp(found[:-1])
    of_phase = [share[np.asarray(space.phase) == p].sum() for p in (0, 1)]
    np.testing.assert_allclose(of_phase, [1 / (1 + np.e), np.e / (1 + np.e)], rtol=1e-4)
    nearest = rotations.quaternion_to_matrix(jnp.asarray(mg.grid))[
        np.argmax(found[len(copper.grid) : -1])
    ]
    angle = symmetry.misorientation(nearest, jnp.asarray(rotation), jnp.asarray(mg.operations))
    assert float(angle) < mg.spacing
    one = np.asarray(cells_near(output[:9], copper.space()))
    assert np.exp(one[:-1]).sum() == pytest.approx(1, rel=1e-4)


class Oracle(Model):
    """A model whose network knows the answers: log-probabilities by a pattern's strongest disk."""

    @property
    def network(self):
        def apply(variables, disks):
            qx, log_probability = variables["params"]
            return log_probability[jnp.argmin(jnp.abs(qx - disks.qx[:, :1]), axis=1)]

        return SimpleNamespace(apply=apply)


def around(orientation, m):
    """Log-probabilities of a material's cells as a good network gives them."""
    cells = rotations.quaternion_to_matrix(jnp.asarray(m.grid))
    angle = symmetry.misorientation(orientation, cells, jnp.asarray(m.operations, jnp.float32))
    return jax.nn.log_softmax(-0.5 * (angle / (0.55 * m.spacing)) ** 2)


@pytest.fixture(scope="module")
def two_phases(copper, tables, crystals, tiny):
    """A scan of four patterns of copper, four of magnesium and four of vacuum; phases and
    orientations; an oracle for the orientation in either phase; the tables of the phases.
    """
    mg = make_material(crystals["Mg"], 300.0, 1.5, 16.0, 0.0)
    materials = (copper, mg)
    rng = np.random.default_rng(5)
    lists, phases, orientations, answers = [], [], random_matrices(rng, 12), []
    for number, orientation in enumerate(orientations):
        phase = number // 4 if number < 8 else NO_CRYSTAL
        if phase == NO_CRYSTAL:
            n = number - 8
            angle, radius = rng.uniform(0, 2 * np.pi, n), rng.uniform(1.0, 1.4, n)
            found = [radius * np.cos(angle), radius * np.sin(angle), rng.uniform(1e-3, 2e-3, n)]
            found = np.stack(found, axis=-1)
        else:
            m = materials[phase]
            beams = two_beam(jnp.asarray(orientation), m.reflectors(), m.wavelength, 100.0)
            qx, qy, intensity, mask = (np.asarray(x) for x in strongest(*beams, 15, 1e-3))
            found = np.stack([qx, qy, intensity], axis=-1)[mask]
        lists.append(np.concatenate([[[0.0, 0.0, 1.0]], found]))
        phases.append(phase)
        either = jnp.concatenate([around(jnp.asarray(orientation), m) for m in materials])
        answers.append(jnp.append(either, 0.0))
    scan = scan_of(lists)
    disks = pad_disks(scan, np.arange(12), 1.5, min(m.k_min for m in materials), 16)
    params = jnp.asarray(disks[0][:, 0]), jnp.stack(answers)
    arguments = (mg.grid, mg.operations, mg.reflectors(), mg.wavelength, mg.crystal.lattice)
    both = [tables, candidate_tables(*arguments)]
    return scan, (np.array(phases), orientations), Oracle(tiny.model, materials, params), both


def answers_of(two_phases, monkeypatch, **changes):
    scan, truth, model, both = two_phases
    left = iter(both)
    monkeypatch.setattr(step, "candidate_tables", lambda *_, **__: next(left))
    config = replace(CONFIG, chance=InferConfig().chance, **changes)
    return on_devices(model, scan, config, 1)[0], truth


def test_verification_tells_phases_and_vacuum_apart(two_phases, monkeypatch):
    """The network gives both phases, and none, the same probability."""
    answer, (phase, orientation) = answers_of(two_phases, monkeypatch)
    print(answer.phase, answer.phase_confidence)
    assert (answer.phase == phase).sum() >= 11
    np.testing.assert_array_equal(np.isfinite(answer.orientation[:, 0, 0]), answer.phase >= 0)
    assert np.median(answer.phase_confidence[2:8]) > 0.8
    assert np.all(answer.phase_confidence[:8] >= answer.confidence_mod180[:8] - 1e-6)
    angle = [
        symmetry.misorientation_mod_180(
            *map(jnp.asarray, (r, truth, m.operations.astype(np.float32)))
        )
        for r, truth, m in zip(
            answer.orientation[:8],
            orientation[:8],
            np.repeat(two_phases[2].materials, 4),
            strict=True,
        )
    ]
    assert np.nanmedian(np.rad2deg(angle)) < 3


def test_the_network_alone_says_what_it_thinks(two_phases, monkeypatch):
    scan, truth, model, both = two_phases
    n_copper = len(model.materials[0].grid)
    for phase, shift in ((0, (3.0, 0.0)), (1, (0.0, 3.0)), (NO_CRYSTAL, (0.0, 0.0))):
        qx, logits = model.params
        logits = logits.at[:, :n_copper].add(shift[0]).at[:, n_copper:-1].add(shift[1])
        logits = logits.at[:, -1].set(3.0 if phase == NO_CRYSTAL else -3.0)
        biased = (scan, truth, replace(model, params=(qx, logits)), both)
        answer, _ = answers_of(biased, monkeypatch, refine="none")
        np.testing.assert_array_equal(answer.phase[:8], phase)
        assert np.isnan(answer.score).all()
        assert answer.phase_confidence[:8].min() > 0.5
