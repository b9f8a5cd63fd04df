# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings that make no sense or do not fit the detector, and masks from files."""

import math
from dataclasses import replace

import numpy as np
import pytest
from helpers import read_or_refuse
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxstem.detection.config import Correlation, DetectConfig, read_mask
from jaxstem.detection.plan import make_plan
from jaxstem.detection.reading import ReadOptions
from jaxstem.detection.scan import find_disks
from jaxstem.errors import InputError
from jaxstem.files.cube import cube_from_array

LARGE = {
    "radius": 1e5,
    "edge": 1e5,
    "false_alarms": 1e30,
    "threshold": 1e9,
    "min_spacing": 1e5,
    "border": 1e5,
    "search": 1e5,
    "background_scale": 1e5,
    "roughness_scale": 1e5,
    "gain": 1e30,
    "pixel_size": 1e3,
    "n_disks": 10**9,
    "chunk": 10**9,
    "n_sample": 10**9,
}
MAY_BE_ZERO = ("threshold", "border", "search")


@pytest.mark.parametrize("name", LARGE)
def test_numbers_that_make_no_sense_are_refused(name):
    nonsense = () if isinstance(LARGE[name], int) else (math.nan, math.inf, -math.inf)
    for value in (*nonsense, -5, LARGE[name]):
        with pytest.raises(InputError, match=f"{name.replace('_', '[_-]')} .*: give a number"):
            DetectConfig(**{name: value})
    if name in MAY_BE_ZERO:
        assert getattr(DetectConfig(**{name: 0}), name) == 0
    else:
        with pytest.raises(InputError, match="give a number"):
            DetectConfig(**{name: 0})


@pytest.mark.parametrize("name", [n for n in vars(Correlation()) if n != "subpixel"])
def test_correlations_that_make_no_sense_are_refused(name):
    whole = isinstance(getattr(Correlation(), name), int)
    for value in (-1, 10**9) if whole else (math.nan, math.inf, -1, 1e30):
        with pytest.raises(InputError, match="give a number"):
            Correlation(**{name: value})


@pytest.mark.parametrize(
    ("given", "most"),
    [({"radius": 17.0}, 16), ({"edge": 17.0}, 16), ({"border": 32}, 31), ({"min_spacing": 65}, 64)],
    ids=lambda given: next(iter(given)) if isinstance(given, dict) else "",
)
@pytest.mark.parametrize("method", ["likelihood", "correlation"])
def test_lengths_that_do_not_fit_the_detector_are_refused_at_once(given, most, method):
    """Before a pattern is read."""
    config = DetectConfig(method=method, **given)
    unread = replace(
        cube_from_array(np.zeros((2, 2, 64, 80), np.uint16)),
        read=lambda *_: pytest.fail("patterns were read"),
    )
    (name,) = given
    with pytest.raises(InputError, match=f"array: .*{name} .* 64 × 80 pixels; give {most} px"):
        find_disks(unread, config)
    with pytest.raises(InputError, match=f"scan: .*{name} .*; give {most} px"):
        make_plan(np.ones((2, 64, 80)), config)
    config = replace(config, **{name: most})
    config.check_detector((64, 80), "array")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"origin": (64.0, 3.0), "radius": 3.0}, "array: --origin 64 3 lies outside .* 64 × 80"),
        ({"origin": (3.0, 80.0), "radius": 3.0}, "array: --origin 3 80 lies outside .* 64 × 80"),
        ({"origin": (3.0, 3.0)}, "array: .* the radius of a disk must be given"),
        ({"mask": np.ones((80, 64), bool)}, r"mask has shape \(80, 64\) .* array \(64, 80\)"),
    ],
    ids=["row", "column", "no radius", "mask"],
)
def test_what_lies_off_the_detector_is_refused_at_once(given, words):
    """Before a pattern is read."""
    unread = replace(
        cube_from_array(np.zeros((2, 2, 64, 80), np.uint16)),
        read=lambda *_: pytest.fail("patterns were read"),
    )
    with pytest.raises(InputError, match=words):
        find_disks(unread, DetectConfig(**given))


@pytest.mark.parametrize("origin", [(math.nan, 3.0), (3.0, math.inf), (-1.0, 3.0)])
@pytest.mark.parametrize("kind", [DetectConfig, ReadOptions])
def test_origins_that_make_no_sense_are_refused(kind, origin):
    with pytest.raises(InputError, match="--origin .*: give a number from 0"):
        kind(origin=origin)


def test_masks_from_files(tmp_path, rng):
    """What is marked is left out, in an array and in an image."""
    marked = rng.random((9, 7)) < 0.3
    marked[0, 0] = False
    np.save(tmp_path / "mask.npy", marked)
    Image.fromarray((255 * marked).astype(np.uint8)).save(tmp_path / "mask.png")
    for name in ("mask.npy", "mask.png"):
        np.testing.assert_array_equal(read_mask(tmp_path / name), ~marked)
    np.save(tmp_path / "all.npy", np.ones((9, 7)))
    np.save(tmp_path / "cube.npy", np.zeros((2, 9, 7)))
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    (tmp_path / "text.png").write_text("no image")
    for name in ("none.npy", "all.npy", "cube.npy", "objects.npy", "text.png"):
        with pytest.raises(InputError, match=name):
            read_mask(tmp_path / name)


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
