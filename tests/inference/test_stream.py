# SPDX-License-Identifier: GPL-3.0-or-later
"""Scans in pieces and batches: every pattern once, and each answer back in its position."""

import itertools
import threading
from dataclasses import replace

import jax
import numpy as np
import pytest
from helpers import random_lists, scan_of_lists
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxstem.errors import InputError
from jaxstem.files.orientation_map import NO_CRYSTAL
from jaxstem.files.scan import joined, pad_disks, source_of
from jaxstem.inference import batching, stream
from jaxstem.inference.batching import Piece, Shelf, batches, preview_scan
from jaxstem.inference.exposure import MIN_DISKS, count_disks, scan_exposure, scan_reach
from jaxstem.inference.stream import predict_scan, read_ahead
from jaxstem.inference.verdict import Answer
from jaxstem.runtime import parallel

pytestmark = pytest.mark.usefixtures("quick_compile")

DIRECT = 10.0
"""Intensity of the direct beam, where the scan has it."""


@pytest.mark.parametrize(("batch", "fits"), [(6, 8), (30, 8), (30, 16)])
def test_answers_return_to_their_positions(
    model, copper, monkeypatch, rng, config, batch, fits, recwarn
):
    """Through lengths and batches: each position gets what was made of its own disks, also where a
    device has memory for fewer patterns than a batch has.
    """
    lists = random_lists(rng, 70, 30)
    monkeypatch.setattr(batching, "PIECE", 7)
    shapes = []

    def make_predict_for(model, config, mesh):
        def predict(params, disks, exposed, light):
            assert light is None
            if len(disks.qx) > fits:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
            shapes.append(disks.qx.shape)
            first = disks.qx[:, 0] + exposed.incident + 100 * exposed.is_cut
            rotation = np.tile(first[:, None, None], (1, 3, 3))
            n_disks = disks.mask.sum(axis=1)
            numbers = (first, first, first, first)
            more = (2 * first, first, first)
            return Answer(rotation, n_disks, *numbers, rotation, n_disks, first, *more), None

        def predict_for(detector):
            assert detector is None
            return predict

        return predict_for

    monkeypatch.setattr(stream, "make_predict_for", make_predict_for)
    config = replace(config, lengths=(8, 16, 24), batch=batch, lot=1, least=0)
    scan = replace(scan_of_lists(lists), scan_shape=(14, 5))
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
    # six and thirty, rounded up to the eight devices
    assert set(shapes) == {(fits, 8), (fits, 16), (fits, 24)}
    assert len([one for one in recwarn if "patterns at once" in str(one.message)]) == (batch > 6)


@pytest.mark.parametrize("n_positions", [0, 4])
def test_scan_without_disks(model, n_positions, config):
    empty = scan_of_lists([np.zeros((0, 3))] * n_positions)
    answer, counts = predict_scan(model, empty, config, progress=False)
    np.testing.assert_array_equal(counts, np.zeros(n_positions))
    assert answer.orientation.shape == (n_positions, 3, 3)
    assert np.isnan(answer.orientation).all() and np.all(answer.phase == NO_CRYSTAL)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), size=st.integers(1, 7))
def test_shelves_hand_out_what_was_put_there(data, size):
    """In order, each pattern once, and with its place."""
    shelf, expected, found, lots = Shelf(), [], [], []
    nothing = Answer(*[np.zeros(0)] * len(Answer._fields))
    for number in range(data.draw(st.integers(1, 8))):
        piece = Piece(number, 0, nothing, np.zeros(0, int), 0)
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
    lists = random_lists(rng, shape[0] * shape[1], longest, (0.01, 1))
    lists = [np.concatenate([[[0.0, 0.0, DIRECT]], disks]) for disks in lists]
    return replace(scan_of_lists(lists), scan_shape=shape)


@pytest.mark.parametrize("waiting", [2, 100])
def test_batches_hold_each_pattern_once(model, monkeypatch, rng, waiting, config):
    """And are full, unless a piece would have to wait too long for its last answers."""
    monkeypatch.setattr(batching, "PIECE", 12)
    monkeypatch.setattr(batching, "OPEN", waiting)
    scan = random_scan(rng, (40, 4))
    config = replace(config, refine="none", lengths=(4, 8, 12), batch=8, least=0)
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


@pytest.mark.slow
def test_pieces_make_no_difference(on_devices, model, monkeypatch, rng, config):
    """A scan read a row at a time gives the answers of one read at once, and each length compiles
    once.
    """
    scan = random_scan(rng, (12, 9))
    config = replace(config, refine="none", lengths=(6, 12), batch=8, least=0)
    programs = []
    pmap = parallel.pmap
    monkeypatch.setattr(
        parallel, "pmap", lambda *args, **rest: programs.append(pmap(*args, **rest)) or programs[-1]
    )
    whole, counts = on_devices(model, scan, config, 1)
    monkeypatch.setattr(batching, "PIECE", 9)
    monkeypatch.setattr(batching, "OPEN", 2)
    streamed, again = on_devices(model, scan, config, 1)
    assert [program._cache_size() for program in programs] == [2, 2]
    np.testing.assert_array_equal(counts, again)
    for name, one, other in zip(Answer._fields, whole, streamed, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6, err_msg=name)
    assert np.isfinite(whole.orientation).all(axis=(1, 2)).sum() == (counts >= MIN_DISKS).sum() > 60


def test_a_small_scan_is_surveyed_as_a_whole(model, monkeypatch, rng, config):
    monkeypatch.setattr(batching, "PIECE", 8)
    scan = random_scan(rng, (20, 8))
    known = preview_scan(source_of(scan), model, config)
    reach = scan_reach(scan, model.k_min, model.k_max)
    expected = scan_exposure(scan, model.k_min, reach)
    assert float(known.limit.reach) == pytest.approx(reach)
    np.testing.assert_array_equal(known.limit.log_share, expected.limit.log_share)
    whole = joined([known.pieces[row, row + 1] for row in range(20)])
    np.testing.assert_array_equal(whole.qx, scan.qx)
    np.testing.assert_array_equal(whole.offsets, scan.offsets)


@pytest.mark.slow
def test_a_large_scan_is_surveyed_in_part(model, monkeypatch, rng, config):
    monkeypatch.setattr(batching, "PIECE", 8)
    monkeypatch.setattr(batching, "SAMPLE", 40)
    scan, read = random_scan(rng, (20, 8)), []
    source = source_of(scan)
    counted = replace(source, read=lambda *rows: read.append(rows) or source.read(*rows))
    known = preview_scan(counted, model, config)
    assert read == sorted(known.pieces) and len(read) == 5
    assert read[0] == (0, 1) and read[-1] == (19, 20)
    assert np.isfinite(known.limit.log_share).all() and known.lengths
    predict_scan(model, counted, replace(config, refine="none"), progress=False)
    assert sorted(read[5:]) == [(row, row + 1) for row in range(20)]  # each once


def test_many_disks_beyond_all_reflections_are_told(model, rng, config, recwarn):
    """A wrong pixel size, as a rule; the network alone knows those within its k_max only."""
    scan = random_scan(rng, (6, 8))
    preview_scan(source_of(scan), model, config)
    assert not recwarn.list
    scale = 2.6 / np.hypot(scan.qx, scan.qy).max()
    wide = replace(scan, qx=scale * scan.qx, qy=scale * scan.qy)
    with pytest.warns(UserWarning, match="% of the scan's disks lie beyond 2.5 1/Å"):
        preview_scan(source_of(wide), model, config)
    with pytest.warns(UserWarning, match=f"lie beyond {model.k_max:g} 1/Å"):
        preview_scan(source_of(wide), model, replace(config, refine="none"))


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
