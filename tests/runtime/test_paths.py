# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that appear whole or not at all, and never in the place of others unasked."""

import os

import pytest
from helpers import assert_refused

from jaxstem.errors import InputError
from jaxstem.runtime.paths import atomic_path


@pytest.mark.parametrize("overwrite", [False, True])
def test_interrupted_writing_leaves_all_as_it_was(tmp_path, overwrite):
    path = tmp_path / "figure.png"
    if overwrite:
        path.write_text("before")
    with pytest.raises(KeyboardInterrupt), atomic_path(path, overwrite) as temporary:
        assert temporary.parent == path.parent and temporary.suffix == ".png"
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == (["figure.png"] if overwrite else [])
    assert not overwrite or path.read_text() == "before"


def test_a_file_that_appears_meanwhile_is_kept(tmp_path):
    path = tmp_path / "map.h5"
    with pytest.raises(InputError, match="exists already"), atomic_path(path) as temporary:
        temporary.write_text("mine")
        path.write_text("theirs")
    assert path.read_text() == "theirs" and os.listdir(tmp_path) == ["map.h5"]


def test_unusable_targets_are_refused(tmp_path):
    def write(path):
        with atomic_path(path, overwrite=True):
            pytest.fail("began to write")

    assert_refused(write, tmp_path / "missing" / "map.h5", "does not exist")
    assert_refused(write, tmp_path, "folder")
