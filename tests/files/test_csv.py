# SPDX-License-Identifier: GPL-3.0-or-later
"""Lists of disks as CSV: what went in comes out, the rest is refused."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_refused, assert_whole, read_or_refuse
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxstem.detection.opening import open_scan, read_scan
from jaxstem.files import csv as csv_files
from jaxstem.files.csv import read_csv, write_csv
from jaxstem.files.scan import DiskScan, source_of

TABLE = """# units: 1/nm
# scan_shape: 2 3
# scan_step: 2.5 nm
# voltage_kv: 300
intensity,y,x,qx,qy
7,1,2,1.0,-2.0
5,0,0,3.0,4.0
6,1,2,0.5,0.25
"""


@pytest.fixture
def csv(tmp_path):
    path = tmp_path / "disks.csv"
    path.write_text(TABLE)
    return path


def test_a_table_is_read(csv):
    scan = read_scan(csv)
    assert scan.scan_shape == (2, 3) and (scan.scan_step, scan.scan_units) == (2.5, "nm")
    assert scan.voltage_kv == 300.0
    np.testing.assert_array_equal(scan.offsets, [0, 1, 1, 1, 1, 1, 3])
    np.testing.assert_allclose(scan.qx, [0.3, 0.1, 0.05])
    np.testing.assert_allclose(scan.qy, [0.4, -0.2, 0.025])
    np.testing.assert_array_equal(scan.intensity, [5, 7, 6])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), ny=st.integers(1, 5), nx=st.integers(1, 5))
def test_csv_round_trip(seed, ny, nx):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 4, ny * nx)
    counts[rng.integers(ny * nx)] += 1
    qx, qy, intensity = rng.normal(size=(3, counts.sum())).astype(np.float32)
    scan = DiskScan(
        qx=qx,
        qy=qy,
        intensity=intensity,
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        scan_shape=(ny, nx),
        scan_step=float(rng.uniform(0.1, 9)),
        scan_units="nm",
        voltage_kv=200.0,
        source="none",
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "disks.csv"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(csv_files, "PIECE", 2)
            assert write_csv(path, source_of(scan)) == counts.sum()
        again = read_csv(path)
    for name in ("qx", "qy", "intensity"):
        np.testing.assert_allclose(getattr(again, name), getattr(scan, name), rtol=1e-6)
    np.testing.assert_array_equal(again.offsets, scan.offsets)
    for name in ("scan_shape", "scan_step", "scan_units", "voltage_kv"):
        assert getattr(again, name) == getattr(scan, name)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("# units: 1/nm\n", "", ["1/Å or 1/nm", "# units"]),
        ("1/nm", "mrad", ["1/Å or 1/nm"]),
        ("qx,qy", "kx,ky", ["no column 'qx'"]),
        ("3.0,4.0", "3.0", ["five numbers"]),
        ("3.0,4.0", "3.0,far", ["far"]),
        ("3.0,4.0", "nan,4.0", ["disk 2", "finite"]),
        ("3.0,4.0", "1e39,4.0", ["disk 2", "finite"]),
        ("5,0,0", "5,0.5,0", ["disk 2"]),
        ("5,0,0", "5,-1,0", ["disk 2"]),
        ("5,0,0", "5,0,3", ["(1, 3)", "2 × 3"]),
        ("2 3", "2", ["scan_shape"]),
        ("2 3", "900000 900000", ["scan_shape"]),
        ("2.5 nm", "nm", ["scan_step"]),
        ("300", "-3", ["voltage_kv"]),
    ],
)
def test_unusable_tables_are_refused(csv, old, new, words):
    csv.write_text(TABLE.replace(old, new))
    assert_refused(read_csv, csv, *words)


def test_files_that_are_no_table_are_refused(tmp_path):
    assert_refused(read_scan, tmp_path / "none.csv", "does not exist")
    for name, content in [("empty.csv", b""), ("bytes.csv", bytes(range(256)))]:
        (tmp_path / name).write_bytes(content)
        assert_refused(read_scan, tmp_path / name)
    (tmp_path / "header.csv").write_text("# units: 1/Å\ny,x,qx,qy,intensity\n")
    assert_refused(read_scan, tmp_path / "header.csv", "no disk")


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_mutated_table_is_read_or_refused(data):
    """Lines lost, doubled and swapped, characters replaced by any others."""
    lines = TABLE.splitlines(keepends=True)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(lines) - 1))
        kind = data.draw(st.sampled_from(["drop", "double", "character"]))
        if kind == "drop" and len(lines) > 1:
            del lines[place]
        elif kind == "double":
            lines.insert(place, data.draw(st.sampled_from(lines)))
        else:
            at = data.draw(st.integers(0, len(lines[place])))
            new = data.draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=3))
            lines[place] = lines[place][:at] + new + lines[place][at + 1 :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "disks.csv"
        path.write_text("".join(lines), encoding="utf-8")
        found = read_or_refuse(read_csv, path)
        if found is not None:
            assert_whole(found)


def test_disks_in_inverse_angstroms_take_no_calibration(csv):
    read = lambda path: open_scan(path, calibration={"a": 1.0})  # noqa: E731
    assert_refused(read, csv, "1/Å already")
