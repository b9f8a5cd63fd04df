# SPDX-License-Identifier: GPL-3.0-or-later
"""Masks from files."""

import numpy as np
import pytest
from helpers import read_or_refuse
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxstem.detection.config import read_mask
from jaxstem.errors import InputError


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
