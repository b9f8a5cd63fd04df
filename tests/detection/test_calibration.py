# SPDX-License-Identifier: GPL-3.0-or-later
"""Calibrations as files."""

import json
import math
import re

import numpy as np
import pytest
from helpers import read_or_refuse, scan_on_rings
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxstem.detection.calibration import (
    IN_PIXELS,
    calibrate,
    read_calibration,
    summary,
    write_calibration,
)
from jaxstem.detection.reading import ReadOptions
from jaxstem.detection.ring_fit import Calibration
from jaxstem.errors import InputError
from jaxstem.files.axes import changed
from jaxstem.files.calibration import axes_matrix


def test_files(rng, crystals, tmp_path):
    scan = scan_on_rings(rng, crystals["Cu"], 0.03)
    asked = []

    def open_in_pixels(entries):
        asked.append(entries)
        return scan

    out = tmp_path / "calibration.json"
    found = calibrate(open_in_pixels, [crystals["Cu"]], out, rotation=0.3)
    assert asked == [IN_PIXELS]
    assert read_calibration(out) == found
    assert found.entries()["QR_rotation"] == 0.3 and "Cu" in summary(found)
    assert (tmp_path / "calibration.png").stat().st_size > 10_000
    with pytest.raises(InputError, match="exists already"):
        calibrate(open_in_pixels, [crystals["Cu"]], out)


def test_flip_and_transposition_are_handed_on(rng, crystals, tmp_path):
    scan = scan_on_rings(rng, crystals["Cu"], 0.03)
    told = {"rotation": 0.1, "transpose": True, "flip": "rows"}
    out = tmp_path / "calibration.json"
    found = calibrate(lambda _: scan, [crystals["Cu"]], out, **told)
    assert read_calibration(out) == found
    entries = found.entries()
    assert (entries["QR_flip"], entries["Q_flip"]) == (True, "rows")
    # a calibration of before these were handed on
    content = json.loads(out.read_text())
    del content["transpose"], content["flip"]
    out.write_text(json.dumps(content))
    assert {"QR_flip", "Q_flip"}.isdisjoint(read_calibration(out).entries())


def test_its_numbers_typed_are_the_calibration():
    """--pixel-size and --ellipse as `jaxstem calibrate` reports them do what its file does."""
    found = Calibration(0.03, 1e-5, 0.04, 1e-3, 0.7, 900, 0.8, 0.2, "Cu")
    typed = ReadOptions(pixel_size=0.03, ellipse=(1.04, math.degrees(0.7)))
    stated = {"Q_pixel_size": 1.0, "Q_pixel_units": "pixels", "a": 1.2, "b": 1.0, "theta": 0.1}
    by_file, by_hand = (changed(stated, x.entries()) for x in (found, typed))
    assert by_file == pytest.approx(by_hand)
    np.testing.assert_allclose(axes_matrix(by_file, "x"), axes_matrix(by_hand, "x"))


@pytest.mark.parametrize(
    "change",
    [
        {"flip": "up"},
        {"transpose": "yes"},
        {"version": 9},
        {"pixel_size": -1.0},
        {"theta": None},
        {"other": 1},
        {"pixel_size": "wide"},
    ],
)
def test_other_files_are_no_calibration(tmp_path, change):
    path = tmp_path / "calibration.json"
    found = Calibration(0.03, 1e-5, 0.01, 1e-3, 0.2, 900, 0.8, 0.2, "Cu")
    write_calibration(path, found)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError) as caught:
        read_calibration(path)
    message = str(caught.value)
    assert str(path) in message and "; " in message and not re.search(r"\. [A-Z]", message)
    path.write_text("[1, 2]")
    with pytest.raises(InputError, match="no calibration"):
        read_calibration(path)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_damaged_calibrations_are_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("calibrations") / "calibration.json"
    known = Calibration(0.03, 1e-5, 0.01, 1e-4, 0.3, 900, 0.8, 0.2, "Cu", None)
    write_calibration(path, known)
    if data.draw(st.booleans()):
        text = path.read_text()
        place = data.draw(st.integers(0, len(text) - 1))
        damaged = text[:place] + data.draw(st.text(max_size=3)) + text[place + 1 :]
        path.write_text(damaged, encoding="utf-8")
    else:
        content = json.loads(path.read_text())
        value = st.none() | st.floats() | st.integers() | st.text(max_size=3) | st.just([[0.1]])
        content[data.draw(st.sampled_from(sorted(content)))] = data.draw(value)
        path.write_text(json.dumps(content))
    found = read_or_refuse(read_calibration, path)
    assert found is None or (found.pixel_size > 0 and np.isfinite(found.ellipticity))


@pytest.mark.parametrize("content", ["[" * 100_000, "\x00", "", "3", '{"format": {}}'])
def test_texts_that_are_no_calibration(tmp_path, content):
    path = tmp_path / "calibration.json"
    path.write_text(content)
    assert read_or_refuse(read_calibration, path) is None
