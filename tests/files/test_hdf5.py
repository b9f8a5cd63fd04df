# SPDX-License-Identifier: GPL-3.0-or-later
"""HDF5 files in which anything may stand: read rightly or refused in one sentence, never worse.

They are cut short, or their parts replaced by arrays of any shape and kind, resized or left out.
"""

import errno
import shutil
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import FIXTURES, assert_refused, assert_whole, read_or_refuse
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxstem.files.cube_readers import read_cube
from jaxstem.files.emd import bragg_source, read_disks
from jaxstem.files.hdf5 import open_hdf5
from jaxstem.files.map_file import read_map, write_map
from jaxstem.files.map_schema import MAP_DATASETS
from jaxstem.files.packed import packed_source, write_packed
from jaxstem.files.scan import DiskScan, source_of
from jaxstem.files.truth import read_truth

BRAGG = FIXTURES / "bragg_all.h5"


@pytest.mark.parametrize("read", [read_disks, read_truth, read_map])
def test_files_that_cannot_be_opened_are_refused(read, tmp_path):
    assert_refused(read, tmp_path / "none.h5", "does not exist")
    assert_refused(read, tmp_path, "folder")
    for name, content in [("empty.h5", b""), ("text.h5", b"h k l\n" * 1000)]:
        (tmp_path / name).write_bytes(content)
        assert_refused(read, tmp_path / name, "not an HDF5 file")


def test_a_file_that_another_program_writes_is_not_called_damaged(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    path = Path(shutil.copy(BRAGG, tmp_path / "scan.h5"))
    with path.open("rb+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # as HDF5 does for mode "r+"
        assert_refused(read_disks, path, "open for writing in another program", "close it")
    assert len(read_disks(path).qx)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError("Unable to allocate 40. GiB for an array"), "memory"),
        (OSError("Can't read data (memory allocation failed for raw data chunk)"), "memory"),
        (OSError(errno.EMFILE, "Unable to open file"), "cannot be read (Too many open files)"),
        (OSError(errno.ENOLCK, "Unable to open file (unable to lock file)"), "cannot be locked"),
        (OSError("Can't read data (wrong B-tree signature)"), "cut short or damaged"),
        (KeyError("Unable to open object"), "cut short or damaged"),
    ],
)
def test_failures_of_hdf5_are_told_by_their_causes(error, words):
    def read(path):
        with open_hdf5(path):
            raise error

    assert_refused(read, BRAGG, words)


@pytest.fixture(scope="module")
def map_bytes(tmp_path_factory, noise_map):
    """A map file."""
    path = tmp_path_factory.mktemp("map") / "map.h5"
    write_map(path, noise_map(np.random.default_rng(7), (3, 4), 2))
    return path.read_bytes()


@given(share=st.floats(0, 1, exclude_max=True), map_file=st.booleans())
@settings(max_examples=80, deadline=None)
def test_truncated_files_are_refused(map_bytes, share, map_file):
    content = map_bytes if map_file else BRAGG.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cut.h5"
        path.write_bytes(content[: int(share * len(content))])
        assert_refused(read_map if map_file else read_disks, path)


KINDS = ["u1", "<u2", ">i4", "i8", "<f2", "f4", ">f8", "c8", "?", "S3", "O"]


VALUES = st.one_of(
    st.none(),
    st.floats(),
    st.integers(-(2**31), 2**31),
    st.binary(max_size=6),
    st.sampled_from(["A^-1", "mrad", "pixels", "", "1/nm", "300 kV", "\ud7ff"]),
    st.lists(st.floats(), max_size=3).map(np.array),
)


def read_cube_whole(path):
    cube = read_cube(path)
    assert np.prod(cube.shape, dtype=float) < 1e7, "the files here are small"
    assert cube.rows(0, cube.shape[0]).shape == cube.shape
    return cube


def write_value(group, name, value):
    if value is None:
        group.create_group(name)
    elif isinstance(value, bytes):
        group[name] = np.void(value) if value else h5py.Empty("S1")
    else:
        group[name] = value


@settings(max_examples=25, deadline=None)
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
    cube = read_or_refuse(read_cube_whole, path)
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


@settings(max_examples=25, deadline=None)
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


@settings(max_examples=25, deadline=None)
@example(name="phase_names", kind="?", shape=[2, 1], attribute="version", value=None)
@given(
    name=st.sampled_from([*(dataset.location for dataset in MAP_DATASETS.values()), "phase_names"]),
    kind=st.sampled_from(KINDS),
    shape=st.lists(st.integers(0, 4), max_size=4),
    attribute=st.sampled_from(["scan_step", "scan_units", "version", "format", "command"]),
    value=VALUES,
)
def test_maps_of_any_kind_are_read_or_refused(
    tmp_path_factory, map_bytes, name, kind, shape, attribute, value
):
    path = tmp_path_factory.mktemp("maps") / "map.h5"
    path.write_bytes(map_bytes)
    spoil(path, name, kind, shape, attribute, value)
    found = read_or_refuse(read_map, path)
    if found is not None:
        assert found.phase.shape == (3, 4) and found.orientation.shape == (3, 4, 3, 3)
        assert len(found.phase_names) == len(found.crystals) == 2


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


@settings(max_examples=40, deadline=None)
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
        found = read_or_refuse(read, path)
        if found is not None:
            assert_whole(found)


def test_bytes_that_are_no_text_do_not_reach_what_is_written(tmp_path):
    path, again = tmp_path / "table.h5", tmp_path / "again.h5"
    write_packed(path, bragg_source(BRAGG), progress=False)
    with h5py.File(path, "r+") as file:
        file.attrs.create("scan_units", np.bytes_(b"\xff\xfem"), dtype=h5py.string_dtype("utf-8"))
    write_packed(again, packed_source(path), progress=False)
    assert packed_source(again).scan_units == "??m"
