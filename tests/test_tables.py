# SPDX-License-Identifier: GPL-3.0-or-later
"""Lists of disks as CSV and as pyxem saves them: what went in comes out, the rest is refused.

fixtures/pyxem_vectors.hspy is pyxem's own (experiments/fixtures/make_pyxem_fixtures.py).
"""

import re
import shutil
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxstem.detection.opening import open_scan, read_scan
from jaxstem.errors import InputError
from jaxstem.files import csv
from jaxstem.files.csv import read_csv, write_csv
from jaxstem.files.emd import bragg_source, read_disks
from jaxstem.files.packed import packed_source, write_packed
from jaxstem.files.scan import DiskScan, source_of

FIXTURES = Path(__file__).parent / "fixtures"
VECTORS = FIXTURES / "pyxem_vectors.hspy"
BRAGG = FIXTURES / "bragg_all.h5"

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


def assert_refused(read, path, *words):
    """An InputError of one sentence with the file's name, a remedy and the words."""
    with pytest.raises(InputError) as caught:
        read(path)
    message = str(caught.value)
    assert str(path) in message and "; " in message and message.endswith(".")
    assert "\n" not in message and not re.search(r"\. [A-Z]", message)
    for word in words:
        assert word in message


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
            patch.setattr(csv, "PIECE", 2)
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


@settings(max_examples=300, deadline=None)
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
        try:
            assert_whole(read_csv(path))
        except InputError as error:
            assert str(path) in str(error)


def assert_whole(scan):
    """Every position's disks lie within the arrays, all of them finite."""
    assert len(scan.offsets) == scan.scan_shape[0] * scan.scan_shape[1] + 1
    assert scan.offsets[0] == 0 and (np.diff(scan.offsets) >= 0).all()
    for name in ("qx", "qy", "intensity"):
        assert len(getattr(scan, name)) == scan.offsets[-1]
        assert np.isfinite(getattr(scan, name)).all()


NUMBERS = st.sampled_from([0, -1, 1, 2**31, -(2**40), 2**62, 0.5, np.nan, np.inf, -1e300, "x"])


def mutate(data, file):
    """Replace, resize or remove a part of an HDF5 file, leaving a file that HDF5 itself accepts."""
    names = []
    file.visit(names.append)
    name = data.draw(st.sampled_from(names))
    kind = data.draw(st.sampled_from(["drop", "number", "cut", "attribute"]))
    node = file[name]
    if kind == "attribute" or not isinstance(node, h5py.Dataset):
        attributes = [(owner, key) for owner in (file, node) for key in owner.attrs]
        if attributes:
            owner, key = data.draw(st.sampled_from(attributes))
            owner.attrs[key] = data.draw(NUMBERS)
    elif kind == "drop":
        del file[name]
    elif kind == "number" and node.dtype.kind in "iuf" and node.size:
        values = node[()] if node.shape == () else node[()].ravel()
        new = data.draw(NUMBERS.filter(lambda x: x != "x"))
        if node.shape == ():
            del file[name]
            file[name] = new
        else:
            with np.errstate(all="ignore"):
                values = values.astype(np.float64)
            values[data.draw(st.integers(0, values.size - 1))] = new
            shape = node.shape
            del file[name]
            file[name] = values.reshape(shape)
    elif kind == "cut" and node.ndim and node.shape[0]:
        values = node[: data.draw(st.integers(0, node.shape[0] - 1))]
        dtype = node.dtype
        del file[name]
        file.create_dataset(name, data=values, dtype=dtype)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), is_packed=st.booleans())
def test_mutated_hdf5_is_read_or_refused(data, is_packed):
    """Bragg vectors and packed tables whose parts no longer fit together."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.h5"
        if is_packed:
            write_packed(path, bragg_source(BRAGG), progress=False)
        else:
            shutil.copy(BRAGG, path)
        with h5py.File(path, "r+") as file:
            for _ in range(data.draw(st.integers(1, 2))):
                mutate(data, file)
        read = read_disks
        if is_packed:
            read = lambda path: packed_source(path).read(0, 3)  # noqa: E731
        try:
            assert_whole(read(path))
        except InputError as error:
            assert str(path) in str(error)


def test_vectors_of_pyxem():
    scan = read_scan(VECTORS)
    assert scan.scan_shape == (2, 3) and (scan.scan_step, scan.scan_units) == (5.0, "nm")
    assert scan.voltage_kv == 200.0
    np.testing.assert_array_equal(np.diff(scan.offsets), [2, 2, 2, 3, 3, 3])
    places = np.array([(10, 30), (25, 12), (33, 41)])
    truth = places * [0.2, 0.1] + [-4.0, -2.5]
    for position, (first, last) in enumerate(zip(scan.offsets[:-1], scan.offsets[1:], strict=True)):
        found = np.stack([scan.qx, scan.qy], -1)[first:last]
        order = np.argsort(-scan.intensity[first:last])
        expected = truth[[1, 0, 2][: last - first]]
        np.testing.assert_allclose(found[order], expected, atol=1e-6)
        strongest = 90 + position % 3
        assert scan.intensity[first:last].max() == pytest.approx(strongest, rel=1e-3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"_list_units": np.array([b"px", b"px", b"a.u."])}, ["'px, px'", "1/Å"]),
        ({"_list_column_names": np.array([b"ky", b"kx", b"height"])}, ["no intensities"]),
    ],
)
def test_unusable_vectors_are_refused(tmp_path, change, words):
    path = Path(shutil.copy(VECTORS, tmp_path / "vectors.hspy"))
    with h5py.File(path, "r+") as file:
        about = next(iter(file["Experiments"].values()))["metadata/VectorMetadata"]
        for name, value in change.items():
            del about[name]
            about[name] = value
    assert_refused(read_scan, path, *words)


def test_disks_in_inverse_angstroms_take_no_calibration(csv):
    read = lambda path: open_scan(path, calibration={"a": 1.0})  # noqa: E731
    assert_refused(read, csv, "1/Å already")
