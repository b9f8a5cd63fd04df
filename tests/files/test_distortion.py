# SPDX-License-Identifier: GPL-3.0-or-later
"""What is wrong with a calibration, taken out of disks and of the places of counts alike."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from helpers import random_lists, scan_of_lists

from jaxstem.files.distortion import (
    Distortion,
    corrected,
    corrected_scan,
    evenly,
    from_numbers,
    stored_distortion,
    undistorted,
)
from jaxstem.files.scan import source_of
from jaxstem.maps.measured import Patterns


@pytest.fixture
def distortion(rng):
    return from_numbers(rng.normal(size=5) * [0.02, 0.02, 0.02, 0.03, 0.03])


def displaced(q, distortion):
    """Where what belongs at q (n, 2) is measured."""
    return q @ (np.eye(2) + distortion.stretch).T + distortion.shift


def test_disks_come_back_to_where_they_belong(distortion, rng):
    true = scan_of_lists(random_lists(rng, 7, 9))
    q = displaced(np.stack([true.qx, true.qy], axis=1), distortion).astype(np.float32)
    found = corrected_scan(replace(true, qx=q[:, 0], qy=q[:, 1]), distortion)
    np.testing.assert_allclose(found.qx, true.qx, atol=2e-6)
    np.testing.assert_allclose(found.qy, true.qy, atol=2e-6)
    assert found.qx.dtype == true.qx.dtype
    np.testing.assert_array_equal(found.offsets, true.offsets)
    np.testing.assert_array_equal(found.intensity, true.intensity)


def test_a_drift_is_each_positions_own(distortion, rng):
    """Read whole, row by row, or every second position with its own part of the drift."""
    shape = (5, 7)
    true = scan_of_lists(random_lists(rng, 35, 9), shape)
    drift = rng.normal(size=(*shape, 2)) * 0.02
    distortion = distortion._replace(drift=drift)
    q = displaced(np.stack([true.qx, true.qy], axis=1), distortion)
    q = (q + np.repeat(drift.reshape(-1, 2), np.diff(true.offsets), axis=0)).astype(np.float32)
    moved = replace(true, qx=q[:, 0], qy=q[:, 1])
    source = corrected(source_of(moved), distortion)
    for found in (corrected_scan(moved, distortion), source.whole()):
        np.testing.assert_allclose(found.qx, true.qx, atol=2e-6)
        np.testing.assert_allclose(found.qy, true.qy, atol=2e-6)
    row = source.read(3, 4)
    np.testing.assert_allclose(row.qx, source_of(true).read(3, 4).qx, atol=2e-6)
    lines = np.arange(0, 5, 2), np.arange(0, 7, 2)
    thin = corrected_scan(
        source_of(moved).at(*(x.tolist() for x in lines)).whole(),
        distortion,
        distortion.drift_at(*lines, shape),
    )
    expected = source_of(true).at(*(x.tolist() for x in lines)).whole()
    np.testing.assert_allclose(thin.qy, expected.qy, atol=2e-6)


def test_a_drift_is_known_between_its_places():
    rows, columns = evenly(10, 4), evenly(3, 3)
    assert rows == [1, 3, 6, 8] and columns == [0, 1, 2]
    drift = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1) * 1e-3
    found = undistorted()._replace(drift=drift).drift_at(np.arange(10), np.arange(3), (10, 3))
    np.testing.assert_allclose(
        found[..., 0], 1e-3 * np.clip(np.arange(10), 1, 8)[:, None] + 0 * found[..., 0]
    )
    np.testing.assert_allclose(found[..., 1], 1e-3 * np.arange(3)[None] + 0 * found[..., 1])
    assert undistorted()._replace(drift=drift).most == pytest.approx(1e-3 * np.hypot(8, 2))


def test_counts_are_looked_for_where_the_disks_were(distortion, with_light, rng):
    """A corrected disk's place on the detector is that of the disk as it was measured."""
    scan = with_light(scan_of_lists(random_lists(rng, 5, 9)))
    found = corrected_scan(scan, distortion)

    def places(scan):
        position = np.repeat(np.arange(5), np.diff(scan.offsets))
        q = np.stack([scan.qx, scan.qy], axis=1)
        return q @ scan.light.detector.to_places.T + scan.light.light.centre[position]

    np.testing.assert_allclose(places(found), places(scan), atol=2e-5)
    scale = 1 + np.trace(distortion.stretch) / 2
    assert found.light.detector.disk == pytest.approx(0.07 / scale)
    assert found.instrument.pixel_size == pytest.approx(0.03 / scale)
    assert found.instrument.pixel_size_from == "stated by the file, corrected"
    alone = corrected_scan(scan, distortion.parts[2])  # the shift
    assert alone.instrument == scan.instrument


def test_a_scan_read_in_parts_is_corrected_alike(distortion, with_light, rng):
    scan = with_light(scan_of_lists(random_lists(rng, 12, 9), (4, 3)))
    whole = corrected_scan(scan, distortion)
    source = corrected(source_of(scan), distortion)
    part = source.read(1, 3)
    own = slice(whole.offsets[3], whole.offsets[9])
    np.testing.assert_array_equal(part.qx, whole.qx[own])
    np.testing.assert_array_equal(source.read_light(1, 3).centre, whole.light.light.centre[3:9])
    same = jax.tree.map(np.array_equal, source.detector, whole.light.detector)
    assert all(jax.tree.leaves(same))
    bare = corrected(source_of(replace(scan, light=None)), distortion)
    assert bare.detector is None and bare.read_light is None


def test_patterns_lie_where_their_disks_do(distortion, rng):
    """Of any pixel of a pattern q is corrected as that of a disk there."""
    frame = rng.normal(size=(3, 6))
    pixel = rng.uniform(0, 99, 2)
    at = lambda frame: frame[:, :4].reshape(-1, 2, 2) @ pixel + frame[:, 4:]  # noqa: E731
    moved = Patterns([], (9, 9), frame).corrected(distortion, np.zeros((len(frame), 2)))
    np.testing.assert_allclose(displaced(at(moved.frame), distortion), at(frame), atol=1e-9)


def test_one_distortion_after_another(rng):
    """To the first order: what is left of the product is a turn."""
    first, second = (from_numbers(rng.normal(size=5) * 3e-5) for _ in range(2))
    q = rng.normal(size=(20, 2))
    both = displaced(displaced(q, second), first)
    np.testing.assert_allclose(displaced(q, first.after(second)), both, rtol=0, atol=3e-8)


def test_parts_make_the_whole(distortion):
    scale, ellipse, shift = distortion.parts
    whole = from_numbers(sum(part.numbers for part in (scale, ellipse, shift)))
    np.testing.assert_allclose(whole.numbers, distortion.numbers, atol=1e-12)
    assert scale.scale == pytest.approx(distortion.scale)
    assert [ellipse.scale, shift.scale] == pytest.approx([1.0, 1.0])
    assert ellipse.ellipse == pytest.approx(distortion.ellipse)
    assert scale.ellipse[0] == pytest.approx(0.0, abs=1e-12)
    assert undistorted().most == 0.0


@pytest.mark.parametrize("angle", [0.0, 30.0, 90.0, 150.0])
def test_an_ellipse_says_where_it_is_long(angle):
    axis = np.array([np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))])
    found = Distortion(0.01 * np.eye(2) + 0.03 * np.outer(axis, axis), np.zeros(2))
    assert found.ellipse[0] == pytest.approx(0.03)
    assert np.cos(np.deg2rad(2 * (found.ellipse[1] - angle))) == pytest.approx(1.0)
    assert found.most == pytest.approx(0.04)


def test_a_distortion_is_what_was_stored_of_it(distortion):
    again = stored_distortion(distortion.stored())
    assert again.drift is None
    np.testing.assert_array_equal(again.numbers, distortion.numbers)
    assert stored_distortion({}).most == 0.0
    drift = np.ones((2, 3, 2), np.float32)
    drifting = stored_distortion(distortion._replace(drift=drift).stored())
    np.testing.assert_array_equal(drifting.drift, drift)
