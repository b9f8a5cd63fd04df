# SPDX-License-Identifier: GPL-3.0-or-later
"""Formats told by the name of a file or, where HDF5 has many, by what is in it."""

import h5py
import pytest
from helpers import FIXTURES, assert_refused

from jaxstem.files.formats import READERS, format_of


def test_names_tell_the_format(tmp_path):
    for suffix, reader in READERS.items():
        assert format_of(tmp_path / f"scan{suffix}") == reader
        assert format_of(tmp_path / f"SCAN{suffix.upper()}") == reader
    assert format_of("scan.raw") == READERS[".xml"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Data/Image/0123", "emd"),
        ("entry/data/data_000001", "dectris"),
        ("datacube_root/datacube", None),
    ],
)
def test_contents_tell_the_format(tmp_path, name, expected):
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file.create_group(name)
    assert format_of(tmp_path / "scan.h5") == expected


def test_hyperspy_under_another_name(tmp_path):
    path = tmp_path / "scan.h5"
    path.write_bytes((FIXTURES / "pyxem_vectors.hspy").read_bytes())
    assert format_of(path) == "hspy"
    path.write_text("no HDF5")
    assert_refused(format_of, path, "not an HDF5 file")
