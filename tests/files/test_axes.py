# SPDX-License-Identifier: GPL-3.0-or-later
"""Mirrored, transposed, turned and stretched copies of disks are, once told, the disks."""

import math

import numpy as np
import pytest
from helpers import random_lists, scan_of_lists
from hypothesis import given
from hypothesis import strategies as st

from jaxstem.errors import InputError
from jaxstem.files.axes import (
    FLIPS,
    axes_ratio,
    changed,
    source_turned,
    stated_axes,
    told_axes,
    with_flip_folded,
)
from jaxstem.files.calibration import axes_matrix, mean_pixel_size
from jaxstem.files.scan import Instrument, source_of

SIZE = {"Q_pixel_size": 0.03, "Q_pixel_units": "A^-1"}

angles = st.floats(-math.pi, math.pi)


def matrix(calibration):
    return axes_matrix(SIZE | calibration, "scan")


def turn(angle):
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, -sin], [sin, cos]])


MIRRORS = {"none": np.eye(2), "rows": np.diag([-1.0, 1.0]), "columns": np.diag([1.0, -1.0])}
EXCHANGE = np.array([[0.0, 1.0], [1.0, 0.0]])


@given(st.sampled_from(FLIPS), st.booleans(), angles, st.floats(1.0, 1.5), angles)
def test_the_order_is_ellipse_flip_transposition_rotation(flip, transposed, angle, ratio, along):
    stated = {"Q_flip": flip, "QR_flip": transposed, "QR_rotation": angle}
    found = matrix(changed(SIZE, {"Q_ellipse": (ratio, along), **stated}))
    round_again = turn(along) @ np.diag([ratio**-0.5, ratio**0.5]) @ turn(-along)
    expected = round_again
    for step in (MIRRORS[flip], EXCHANGE if transposed else np.eye(2), turn(angle)):
        expected = step @ expected
    np.testing.assert_allclose(found, 0.03 * expected, atol=1e-12)


@given(st.sampled_from(FLIPS), st.booleans() | st.none(), angles | st.none())
def test_files_hold_a_flip_as_py4dstem_understands_it(flip, transposed, angle):
    """The same vectors without `Q_flip`; and read again the three are told apart."""
    stated = {"Q_flip": flip, "QR_flip": transposed, "QR_rotation": angle}
    stated = {name: value for name, value in stated.items() if value is not None}
    folded = with_flip_folded(stated)
    for_others = {name: value for name, value in folded.items() if name != "Q_flip"}
    np.testing.assert_allclose(matrix(for_others), matrix(stated), atol=1e-12)
    again = with_flip_folded(folded)
    # a turn by less than a billionth is none that anyone stated
    np.testing.assert_allclose(matrix(again), matrix(stated), atol=2e-9)
    if angle is None:
        assert flip == "none" or "QR_rotation" not in again
    elif "QR_rotation" in again:
        assert bool(again.get("QR_flip")) == bool(transposed) and again["Q_flip"] == flip
        assert again["QR_rotation"] == pytest.approx(angle)


def test_what_is_told_replaces_what_is_stated_and_no_more():
    stated = SIZE | {"QR_rotation": 0.5, "QR_flip": True, "Q_flip": "rows"}
    assert changed(stated, {}) == stated
    assert changed(stated, {"QR_flip": False}) == stated | {"QR_flip": False}
    # a transposition alone is one
    np.testing.assert_allclose(matrix(changed(SIZE, {"QR_flip": True})), 0.03 * EXCHANGE)
    # while a file's without a rotation is none, as in py4DSTEM
    np.testing.assert_allclose(matrix({"QR_flip": True}), 0.03 * np.eye(2))


@given(st.floats(1.0, 1.5), angles, st.floats(0.7, 1.4))
def test_an_ellipse_leaves_the_mean_pixel_size(ratio, along, before):
    """Whatever ellipse the file states."""
    stated = {"a": before, "b": 1.0, "theta": 0.3}
    for entries, size in (
        (changed(SIZE, {"Q_ellipse": (ratio, along)}), 0.03),
        (changed(SIZE | stated, {"Q_ellipse": (ratio, along)}), 0.03 / math.sqrt(before)),
        (changed(SIZE | stated, {"Q_ellipse": (ratio, along), "Q_pixel_size": 0.04}), 0.04),
    ):
        assert math.sqrt(abs(np.linalg.det(matrix(entries)))) == pytest.approx(size)
        assert mean_pixel_size(entries["Q_pixel_size"], entries) == pytest.approx(size)
        assert axes_ratio(entries) == pytest.approx(ratio)


def test_the_axes_are_told_in_words():
    entries = changed(SIZE, {"Q_flip": "rows", "QR_flip": True, "Q_ellipse": (1.06, 0.5)})
    known = Instrument(**stated_axes(entries), axes="axes as some camera has them")
    assert known.ellipse == (pytest.approx(1.06), pytest.approx(math.degrees(0.5)))
    told = ", ".join(told_axes(known))
    assert told.startswith("axes as some camera has them, rings 1.0600 times longer along 28.6°")
    assert "detector rows flipped (stated by the file), transposed (stated" in told
    given = Instrument(rotation_deg=12.0, axes_from=(("rotation_deg", "as given"),))
    assert told_axes(given) == ["axes as stored", "turned by 12.0° (as given)"]
    assert told_axes(Instrument())[-1] == "no rotation stated"
    # longer across `theta` than along it
    assert stated_axes({"a": 1.0, "b": 1.1, "theta": 0.0})["ellipse"] == (pytest.approx(1.1), 90.0)


@pytest.mark.parametrize("flip", ["upside down", 3])
def test_another_flip_is_refused(flip):
    with pytest.raises(InputError, match="scan: the calibration's Q_flip is"):
        matrix({"Q_flip": flip})


def test_the_ellipse_may_differ_between_positions():
    each = {"a": np.full((2, 3), 1.1), "b": np.ones((2, 3)), "theta": np.full((2, 3), 0.2)}
    assert stated_axes(each)["ellipse"] == (pytest.approx(1.1), pytest.approx(math.degrees(0.2)))
    assert axes_ratio({"a": "wide", "b": 1.0, "theta": 0.0}) == 1.0


def test_disks_in_inverse_angstroms_and_their_counts_are_turned_alike(with_light, rng):
    """A disk's place among the counts stays what it was."""
    scan = with_light(scan_of_lists(random_lists(rng, 5, 9)))
    made = rng.normal(size=(2, 2))
    turned = source_turned(source_of(scan), made)
    again = turned.whole()
    np.testing.assert_allclose([again.qx, again.qy], made @ [scan.qx, scan.qy], atol=1e-5)
    before = np.stack([scan.qx, scan.qy], -1) @ scan.light.detector.to_places.T
    after = np.stack([again.qx, again.qy], -1) @ turned.detector.to_places.T
    np.testing.assert_allclose(after, before, atol=1e-3)
    area = abs(np.linalg.det(made))
    assert turned.detector.disk**2 == pytest.approx(area * scan.light.detector.disk**2, rel=1e-5)
