# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that appear whole or not at all, and never in the place of others unasked."""

import errno
import os

import pytest
from helpers import assert_refused

from jaxstem.errors import InputError
from jaxstem.runtime.paths import atomic_path, check_there


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


NO_SPACE = OSError(errno.ENOSPC, "No space left on device")

AFTERWARDS = AttributeError("what tidied up failed too")
AFTERWARDS.__context__ = NO_SPACE


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (NO_SPACE, "no space left on device"),
        (OSError(errno.EFBIG, "File too large"), "file too large"),
        (OSError("600 requested and 496 written"), "only a part"),
        (AFTERWARDS, "no space left on device"),
    ],
)
def test_a_full_disk_is_told_of_the_file_that_was_asked_for(error, reason, tmp_path):
    """Also where one that is written so writes in its turn to the temporary name."""

    def write(path):
        with atomic_path(path, overwrite=True) as outer, atomic_path(outer) as inner:
            inner.write_text("half")
            raise error

    path = tmp_path / "map.h5"
    path.write_text("before")
    assert_refused(write, path, f"{path}: {reason}", "; make room")
    assert os.listdir(tmp_path) == ["map.h5"] and path.read_text() == "before"


def test_errors_of_other_files_pass(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "map.h5"):
        open(tmp_path / "scan.h5")
    assert os.listdir(tmp_path) == []


def test_the_longest_names_can_be_written(tmp_path):
    path = tmp_path / f"{'m' * 251}.npy"
    with atomic_path(path) as outer, atomic_path(outer) as inner:
        inner.write_text("whole")
    assert os.listdir(tmp_path) == [path.name]


def test_what_the_disk_says_of_the_temporary_name_is_told_of_the_file(tmp_path):
    def write(path):
        with atomic_path(path) as temporary:
            temporary.mkdir()
            temporary.write_text("in the place of a folder")

    assert_refused(write, tmp_path / "map.h5", "map.h5: is a directory; choose another")


def test_unusable_targets_are_refused(tmp_path):
    def write(path):
        with atomic_path(path, overwrite=True):
            pytest.fail("began to write")

    assert_refused(write, tmp_path / "missing" / "map.h5", "does not exist")
    assert_refused(write, tmp_path, "folder")


def test_what_is_to_be_read_must_be_there(tmp_path):
    there = tmp_path / "scan.h5"
    there.touch()
    check_there(there, None, tmp_path)
    with pytest.raises(InputError, match="other.h5 does not exist; check the name"):
        check_there(there, tmp_path / "other.h5")
