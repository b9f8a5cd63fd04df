# SPDX-License-Identifier: GPL-3.0-or-later
"""The packed table of disks: what goes in comes out, and what is not one is refused."""

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import FIXTURES, assert_refused

from jaxstem.app.main import main
from jaxstem.detection.opening import open_scan, read_scan
from jaxstem.errors import InputError
from jaxstem.files import packed
from jaxstem.files.emd import bragg_source, read_disks
from jaxstem.files.packed import is_packed, packed_source, write_packed
from jaxstem.files.scan import joined, source_of

BRAGG = FIXTURES / "bragg_all.h5"
FIELDS = ("qx", "qy", "intensity", "offsets")


@pytest.fixture
def table(tmp_path):
    """The packed table of the fully calibrated scan, 3 × 4 positions."""
    path = tmp_path / "disks.h5"
    write_packed(path, bragg_source(BRAGG), progress=False)
    return path


def assert_same(scan, expected):
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(scan, name), getattr(expected, name))
        assert getattr(scan, name).dtype == getattr(expected, name).dtype
    for name in ("scan_shape", "scan_step", "scan_units", "voltage_kv"):
        assert getattr(scan, name) == getattr(expected, name)


@pytest.mark.parametrize("piece", [1, 8, 100])
def test_a_table_holds_the_scan(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(packed, "PIECE", piece)
    monkeypatch.setattr(packed, "CHUNK", 5)
    path = tmp_path / "disks.h5"
    expected = read_disks(BRAGG)
    number = write_packed(path, bragg_source(BRAGG), progress=False)
    assert number == len(expected.qx)
    assert is_packed(path) and not is_packed(BRAGG)
    source = packed_source(path)
    for size in (1, 8, 12):
        assert_same(joined([source.read(*rows) for rows in source.pieces(size)]), expected)
    assert_same(read_scan(path), expected)


def test_a_table_of_a_table_and_of_a_scan_in_memory(table, tmp_path):
    expected = read_disks(BRAGG)
    write_packed(tmp_path / "again.h5", packed_source(table), progress=False)
    assert_same(read_scan(tmp_path / "again.h5"), expected)
    known = source_of(replace(expected, voltage_kv=200.0, scan_units="Å"))
    write_packed(tmp_path / "again.h5", known, overwrite=True, progress=False)
    again = read_scan(tmp_path / "again.h5")
    assert (again.voltage_kv, again.scan_units) == (200.0, "Å")


def test_layout(table):
    """What other programs may rely on (docs/file-formats.md)."""
    with h5py.File(table) as file:
        assert file.attrs["format"] == "jaxstem-disks" and file.attrs["version"] == 1
        assert file.attrs["scan_shape"].tolist() == [3, 4]
        assert file.attrs["scan_step"] == 12.5 and file.attrs["scan_units"] == "nm"
        assert "voltage_kv" not in file.attrs
        for name in ("qx", "qy", "intensity"):
            assert file[name].dtype == np.float32 and file[name].shape == (file["offsets"][-1],)
        assert file["offsets"].dtype == np.int64 and file["offsets"].shape == (13,)


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copy(BRAGG, "scan.h5")
    assert main(["convert", "scan.h5", "--out", "disks.h5"]) == 0
    assert "3 x 4 positions" in capsys.readouterr().out
    assert_same(read_scan("disks.h5"), read_disks("scan.h5"))
    before = Path("disks.h5").read_bytes()
    for argv, words in [
        (["scan.h5", "--out", "disks.h5"], ["disks.h5", "exists"]),
        (["scan.h5", "--out", "scan.h5", "--overwrite"], ["scan.h5", "itself"]),
        (["scan.h5", "--out", "no/disks.h5"], ["no", "does not exist"]),
        (["none.h5", "--out", "new.h5"], ["none.h5", "does not exist"]),
    ]:
        assert main(["convert", *argv]) == 2
        error = capsys.readouterr().err
        assert re.fullmatch(r"jaxstem: [^\n]+\.\n", error) and all(w in error for w in words)
    assert Path("disks.h5").read_bytes() == before
    assert main(["convert", "scan.h5", "--out", "disks.h5", "--overwrite"]) == 0
    assert sorted(os.listdir()) == ["disks.h5", "scan.h5"]


def test_a_scan_without_any_disk_leaves_no_table(tmp_path):
    scan = read_disks(BRAGG)
    empty = replace(
        scan, qx=scan.qx[:0], qy=scan.qy[:0], intensity=scan.qx[:0], offsets=0 * scan.offsets
    )
    with pytest.raises(InputError, match="no disk"):
        write_packed(tmp_path / "disks.h5", source_of(empty), progress=False)
    assert not os.listdir(tmp_path)


def change(path, name, act):
    """Replace a dataset by what `act` makes of it, or remove it."""
    with h5py.File(path, "r+") as file:
        values = file[name][()]
        del file[name]
        if act is not None:
            file[name] = act(values)


def put(at, value):
    def act(values):
        values[at] = value
        return values

    return act


def set_attribute(path, name, value):
    with h5py.File(path, "r+") as file:
        del file.attrs[name]
        if value is not None:
            file.attrs[name] = value


SPOILT = {
    "descending": (lambda p: change(p, "offsets", put(3, 0)), "ascending"),
    "negative": (lambda p: change(p, "offsets", put(0, -1)), "run from -1"),
    "beyond the end": (lambda p: change(p, "offsets", put(-1, 10**6)), "run from 0 to 1000000"),
    "few offsets": (lambda p: change(p, "offsets", lambda x: x[:-1]), "12 offsets"),
    "lengths": (lambda p: change(p, "qy", lambda x: x[:-1]), "lengths differ"),
    "missing": (lambda p: change(p, "intensity", None), "'intensity' is missing"),
    "kind": (lambda p: change(p, "qx", lambda x: x.astype(int)), "not one row of numbers"),
    "rank": (lambda p: change(p, "offsets", lambda x: x[None]), "not one row of numbers"),
    "no shape": (lambda p: set_attribute(p, "scan_shape", None), "'scan_shape' is missing"),
    "shape": (lambda p: set_attribute(p, "scan_shape", [3, 4, 1]), "scan shape"),
    "other shape": (lambda p: set_attribute(p, "scan_shape", [4, 4]), "4 × 4"),
    "no step": (lambda p: set_attribute(p, "scan_step", None), "'scan_step' is missing"),
    "newer": (lambda p: set_attribute(p, "version", 2), "update jaxstem"),
    "cut": (lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]), "cut short"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_spoilt_tables_are_refused(table, case):
    spoil, word = SPOILT[case]
    spoil(table)
    assert_refused(open_scan, table, word)


@pytest.mark.parametrize("name", ["qx", "qy", "intensity"])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_disks_that_are_not_finite_are_refused(table, name, value):
    counts = np.diff(read_disks(BRAGG).offsets)
    last = int(np.flatnonzero(counts)[-1])
    change(table, name, put(-1, value))
    source = open_scan(table)
    source.read(0, 1)
    with pytest.raises(InputError, match="not finite") as caught:
        source.read(1, 3)
    assert f"({last // 4}, {last % 4})" in str(caught.value) and f"'{name}'" in str(caught.value)


def test_another_file_is_no_table():
    assert_refused(packed_source, BRAGG, "not a packed table")
