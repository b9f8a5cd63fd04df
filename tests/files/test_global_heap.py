# SPDX-License-Identifier: GPL-3.0-or-later
"""Data of any length, as HDF5 reads them, and heaps whose damage would hang or crash it."""

import faulthandler
import shutil
import struct

import h5py
import numpy as np
import pytest
from helpers import EXPERIMENTS, FIXTURES, assert_refused

from jaxstem.files.emd import read_disks
from jaxstem.files.hdf5 import open_hdf5, read_lists, stored_value
from jaxstem.files.hdf5_damage import texts_are_sound

KIND = np.dtype([("qx", np.float64), ("qy", np.float64), ("intensity", np.float64)])


@pytest.fixture(autouse=True)
def no_hang():
    """Within C nothing of pytest could end a test."""
    faulthandler.dump_traceback_later(60, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def write_lists(path, lists, userblock=0, **storage):
    lists_of = np.empty(lists.shape, object)
    lists_of[...] = lists
    with h5py.File(path, "w", userblock_size=userblock) as file:
        file.create_dataset("x", data=lists_of, dtype=h5py.vlen_dtype(KIND), **storage)


def random_lists(rng, shape=(5, 7), most=9):
    lists = np.empty(shape, object)
    for place in np.ndindex(shape):
        own = np.zeros(rng.integers(0, most), KIND)
        for name in KIND.names:
            own[name] = rng.normal(size=len(own))
        lists[place] = own
    lists[1, 2] = np.ones(400, KIND)  # more than a usual heap holds
    return lists


@pytest.mark.parametrize(
    "storage",
    [{}, {"userblock": 1024}, {"chunks": (2, 3), "compression": "gzip"}, {"chunks": (5, 7)}],
)
def test_lists_are_those_that_hdf5_reads(rng, tmp_path, storage):
    lists = random_lists(rng)
    write_lists(tmp_path / "lists.h5", lists, **storage)
    with open_hdf5(tmp_path / "lists.h5") as file:
        for start, stop in ((0, 5), (1, 3), (4, 5)):
            own = list(lists[start:stop].ravel())
            flat, counts = read_lists(file["x"], start, stop, tmp_path / "lists.h5")
            np.testing.assert_array_equal(flat, np.concatenate(own))
            np.testing.assert_array_equal(counts, [len(x) for x in own])


@pytest.mark.parametrize(
    "path",
    [
        *sorted(FIXTURES.glob("bragg_*.h5")),
        *sorted((EXPERIMENTS / "data").glob("*random_bragg.h5")),
    ],
    ids=lambda path: path.name,
)
def test_disks_of_py4dstem_are_those_that_hdf5_reads(path):
    found = []
    with open_hdf5(path) as file:
        file.visititems(
            lambda name, _: found.append(name) if name.endswith("_v_uncal/data") else None
        )
        dataset = file[found[0]]
        flat, counts = read_lists(dataset, 0, len(dataset), path)
        lists = list(dataset[()].ravel())
    np.testing.assert_array_equal(flat, np.concatenate(lists))
    assert flat.dtype == lists[0].dtype and counts.tolist() == [len(x) for x in lists]


def heaps(content):
    """Where the collections begin."""
    places, place = [], content.find(b"GCOL")
    while place >= 0:
        places.append(place)
        place = content.find(b"GCOL", place + 1)
    return places


def spoiled(path, place, content):
    with path.open("rb+") as file:
        file.seek(place)
        file.write(content)


@pytest.mark.parametrize(
    ("offset", "content"),
    [
        (16, struct.pack("<HHIQ", 0, 0, 0, 0)),  # free space of no length: HDF5 stays there
        (24, struct.pack("<Q", 2**64 - 32)),  # back to before
        (24, struct.pack("<Q", 2**40)),
        (8, struct.pack("<Q", 2**50)),
        (8, struct.pack("<Q", 16)),
        (4, b"\x07"),
        (0, b"GCOK"),
    ],
)
def test_damaged_heaps_are_refused(tmp_path, offset, content):
    path = tmp_path / "scan.h5"
    good = (FIXTURES / "bragg_all.h5").read_bytes()
    for heap in heaps(good):
        path.write_bytes(good)
        spoiled(path, heap + offset, content)
        assert_refused(read_disks, path, "cut short or damaged")


def test_every_reference_is_followed_before_hdf5_does(tmp_path):
    """A length beyond its object's would be asked for as memory: gigabytes."""
    path = tmp_path / "texts.h5"
    with h5py.File(path, "w") as file:
        file.attrs["of the file"] = "a text"
        file["number"] = 1
        file["number"].attrs["of a number"] = "a text"
        file["text"] = ["one", "three"]
    good = path.read_bytes()
    (heap,) = heaps(good)
    references = [
        place
        for place in range(len(good) - 15)
        if good[place + 4 : place + 12] == struct.pack("<Q", heap) and good[place] in (3, 5, 6)
    ]
    assert len(references) == 4
    for place in references:
        spoiled(path, place, struct.pack("<I", 2**32 - 1))
        assert not texts_are_sound(path)
        with pytest.raises(Exception, match="damaged"), open_hdf5(path):
            pass
        path.write_bytes(good)
        assert texts_are_sound(path)


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_sound_texts_of_all_kinds_are_let_through(tmp_path, libver):
    path = tmp_path / "texts.h5"
    with h5py.File(path, "w", libver=libver) as file:
        group = file.create_group("g", track_order=True)
        for number in range(30):  # more than lie in the header itself
            group.attrs[f"text {number}"] = "ü" * number
        group.attrs["texts"] = ["a", "bc", ""]
        group.attrs["numbers"] = np.arange(4)
        group.attrs["flag"] = True
        group.attrs["complex"] = 1j
        group.attrs["bytes"] = np.bytes_("fixed")
        file.create_dataset("texts", data=["a", "b"] * 9, chunks=(3,), compression="gzip")
        file["axis"] = np.arange(3)
        file["axis"].make_scale("x")
        file["values"] = np.zeros(3)
        file["values"].dims[0].attach_scale(file["axis"])
    with open_hdf5(path) as file:
        assert file["g"].attrs["text 29"] == "ü" * 29
        assert stored_value(file["texts"])[1] == b"b"


def test_lists_in_the_place_of_numbers_are_not_read(rng, tmp_path):
    path = tmp_path / "lists.h5"
    write_lists(path, random_lists(rng))

    def read(path):
        with open_hdf5(path) as file:
            stored_value(file["x"])

    assert_refused(read, path, "damaged")


def test_a_heap_that_is_cut_off_is_refused(tmp_path):
    path = shutil.copy(FIXTURES / "bragg_all.h5", tmp_path / "scan.h5")
    with open_hdf5(path) as file:
        dataset = file["film_root/disks/_v_uncal/data"]
        with path.open("rb+") as shorter:  # by another program, meanwhile
            shorter.truncate(5000)
        with pytest.raises(OSError, match="too soon"):
            read_lists(dataset, 0, 3, path)
