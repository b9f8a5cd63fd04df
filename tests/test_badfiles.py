# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that are not what they should be: read rightly or refused in one sentence, never worse.

Every reader of scans, masks and calibrations is given files cut short, with bytes changed, and with
arrays of any shape and kind in the place of the right ones.
"""

import json
import re
import string

import h5py
import numpy as np
import pytest
import test_io
import test_rawfiles
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxstem.detection.calibration import read_calibration, write_calibration
from jaxstem.detection.config import read_mask
from jaxstem.detection.ring_fit import Calibration
from jaxstem.errors import InputError
from jaxstem.files.cube_readers import read_cube
from jaxstem.files.map_file import MAP_DATASETS, read_map, write_map
from jaxstem.files.packed import packed_source, write_packed
from jaxstem.files.scan import DiskScan, source_of

WRITERS = {
    ".hspy": test_rawfiles.write_hspy,
    ".mib": test_rawfiles.write_mib,
    ".xml": test_rawfiles.write_empad,
    ".dm4": test_rawfiles.write_dm,
    ".blo": lambda path, data: test_rawfiles.write_blo(path, data[..., :10, :]),
    ".tvips": test_rawfiles.write_tvips,
    "_master.h5": test_rawfiles.write_dectris,
}
SHAPE = (3, 5, 12, 10)


def read_or_refuse(read, path):
    """What the reader makes of it, None where it refuses in one sentence that names the file."""
    try:
        return read(path)
    except InputError as error:
        message = str(error)
        assert path.stem in message and "; " in message and message.endswith("."), message
        assert "\n" not in message and not re.search(r"\. [A-Z]", message), message
        return None


def read_all(path):
    """The whole scan of a cube; what is read has the shape that was promised."""
    cube = read_cube(path, (3, 5) if path.suffix == ".tvips" else None)
    assert np.prod(cube.shape, dtype=float) < 1e7, "the files here are small"
    for row in range(cube.shape[0]):
        assert cube.rows(row, row + 1).shape == (1, *cube.shape[1:])
    return cube


def put(path, content):
    """A new file of this name: HDF5 would go on reading one that is still open."""
    path.unlink()
    path.write_bytes(content)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """For each format the file that is damaged, and mended again."""
    folder = tmp_path_factory.mktemp("scans")
    data = np.random.default_rng(0).integers(0, 99, SHAPE).astype(np.uint8)
    found = {}
    for suffix, write in WRITERS.items():
        path = write(folder / f"scan{suffix}", data)
        path = path.with_suffix(".raw") if suffix == ".xml" else path
        found[suffix] = path
        assert read_all(path).shape[:2] == SHAPE[:2]
    return found


@pytest.mark.parametrize("suffix", [s for s in WRITERS if s != "_master.h5"])
@settings(max_examples=8, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_scans_cut_short_are_refused(scans, suffix, share):
    path = scans[suffix]
    content = path.read_bytes()
    put(path, content[: min(int(share * len(content)), len(content) - 1)])
    try:
        assert read_or_refuse(read_all, path) is None
    finally:
        put(path, content)


@pytest.mark.parametrize("suffix", [".mib", ".blo", ".dm4", ".tvips"])
@settings(max_examples=25, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 255)), max_size=4))
def test_scans_with_damaged_headers_are_read_or_refused(scans, suffix, changes):
    path = scans[suffix]
    content = path.read_bytes()
    damaged = bytearray(content)
    for place, value in changes:
        damaged[place] = value
    put(path, damaged)
    try:
        read_or_refuse(read_all, path)
    finally:
        put(path, content)


@settings(max_examples=30, deadline=None)
@given(
    old=st.sampled_from(["<pix_x>5", "<pix_y>3", "<raw_file", "</root>", "scan.raw", "pixelsize"]),
    new=st.text(string.printable.replace(".", ""), max_size=6),
)
def test_empad_descriptions_are_read_or_refused(scans, old, new):
    path = scans[".xml"]
    xml = path.with_suffix(".xml")
    text = xml.read_text()
    xml.write_text(text.replace(old, new))
    try:
        read_or_refuse(read_all, path)
    finally:
        xml.write_text(text)


KINDS = ["u1", "<u2", ">i4", "i8", "<f2", "f4", ">f8", "c8", "?", "S3", "O"]
VALUES = st.one_of(
    st.none(),
    st.floats(),
    st.integers(-(2**31), 2**31),
    st.binary(max_size=6),
    st.sampled_from(["A^-1", "mrad", "pixels", "", "1/nm", "300 kV", "\ud7ff"]),
    st.lists(st.floats(), max_size=3).map(np.array),
)


def write_value(group, name, value):
    if value is None:
        group.create_group(name)
    elif isinstance(value, bytes):
        group[name] = np.void(value) if value else h5py.Empty("S1")
    else:
        group[name] = value


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(0, 10), max_size=5)
    | st.tuples(st.integers(1, 3), st.integers(1, 3), st.just(8), st.just(9)),
    kind=st.sampled_from(KINDS),
    calibration=st.dictionaries(
        st.sampled_from(["Q_pixel_size", "Q_pixel_units", "R_pixel_size", "R_pixel_units", "a"]),
        VALUES,
    ),
    voltage=VALUES,
    marked=st.booleans(),
)
def test_cubes_of_any_kind_are_read_or_refused(
    tmp_path_factory, shape, kind, calibration, voltage, marked
):
    path = tmp_path_factory.mktemp("cubes") / "cube.h5"
    with h5py.File(path, "w") as file:
        root = file.create_group("root")
        root.attrs["emd_group_type"] = "root"
        group = root.create_group("scan")
        group.attrs["python_class"] = "DataCube" if marked else b"\xff\xfe"
        stored = h5py.string_dtype() if kind == "O" else kind
        group.create_dataset("data", tuple(shape), stored)
        for name, value in calibration.items():
            write_value(root.require_group("metadatabundle/calibration"), name, value)
        write_value(root.require_group("metadatabundle/about"), "beam_energy", voltage)
    cube = read_or_refuse(read_all, path)
    if cube is not None:
        assert cube.shape == tuple(shape) and len(shape) == 4 and cube.dtype.kind in "iuf"
        assert cube.pixel_size is None or 0 < cube.pixel_size < np.inf
        assert cube.voltage_kv is None or 0 < cube.voltage_kv < np.inf


def spoil(path, name, kind, shape, attribute, value):
    """Another dataset of this name, kind and shape in an HDF5 file, and another attribute."""
    with h5py.File(path, "r+") as file:
        if len(shape) or kind != "O":
            del file[name]
            file.create_dataset(name, tuple(shape), h5py.string_dtype() if kind == "O" else kind)
        if value is not None:
            file.attrs[attribute] = np.void(value) if isinstance(value, bytes) and value else value


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(["qx", "qy", "intensity", "offsets"]),
    kind=st.sampled_from(KINDS),
    shape=st.lists(st.integers(0, 8), max_size=2),
    attribute=st.sampled_from(["scan_shape", "scan_step", "scan_units", "voltage_kv", "version"]),
    value=VALUES,
)
def test_packed_tables_of_any_kind_are_read_or_refused(
    tmp_path_factory, name, kind, shape, attribute, value
):
    path = tmp_path_factory.mktemp("tables") / "table.h5"
    offsets = np.arange(7)
    scan = DiskScan(*np.ones((3, 6), np.float32), offsets, (2, 3), 1.0, "nm", 200.0, "memory")
    write_packed(path, source_of(scan), progress=False)
    spoil(path, name, kind, shape, attribute, value)

    def read(path):
        source = packed_source(path)
        return source.read(0, source.scan_shape[0])

    found = read_or_refuse(read, path)
    if found is not None:
        assert found.offsets[-1] == len(found.qx) == len(found.qy) == len(found.intensity)
        assert len(found.offsets) == np.prod(found.scan_shape) + 1


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from([*(location for location, _ in MAP_DATASETS.values()), "phase_names"]),
    kind=st.sampled_from(KINDS),
    shape=st.lists(st.integers(0, 4), max_size=4),
    attribute=st.sampled_from(["scan_step", "scan_units", "version", "format", "command"]),
    value=VALUES,
)
def test_maps_of_any_kind_are_read_or_refused(
    tmp_path_factory, name, kind, shape, attribute, value
):
    path = tmp_path_factory.mktemp("maps") / "map.h5"
    write_map(path, test_io.random_map(np.random.default_rng(0), (3, 4), 2))
    spoil(path, name, kind, shape, attribute, value)
    found = read_or_refuse(read_map, path)
    if found is not None:
        assert found.phase.shape == (3, 4) and found.orientation.shape == (3, 4, 3, 3)
        assert len(found.phase_names) == len(found.crystals) == 2


@settings(max_examples=40, deadline=None)
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


@settings(max_examples=60, deadline=None)
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
