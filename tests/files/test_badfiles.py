# SPDX-License-Identifier: GPL-3.0-or-later
"""Damaged masks and calibrations: read rightly or refused in one sentence, never worse."""

import json

import numpy as np
import pytest
from helpers import read_or_refuse
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxstem.detection.calibration import read_calibration, write_calibration
from jaxstem.detection.config import read_mask
from jaxstem.detection.ring_fit import Calibration


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_damaged_masks_are_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("masks") / "mask.npy"
    np.save(path, np.eye(9, 7, dtype=np.uint8))
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    mask = read_or_refuse(read_mask, path)
    assert mask is None or (mask.dtype == bool and mask.ndim == 2)


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
