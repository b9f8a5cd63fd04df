# SPDX-License-Identifier: GPL-3.0-or-later
"""The heaps in which HDF5 files keep what has any length: texts, and lists of disks.

An element of such data is a reference: how many items, the address of a *collection* of objects,
and the number of the object there that holds them. A collection states its size, and its objects
follow one another, each with its own (HDF5 File Format Specification, version 3.0, III.E "Disk
Format: Level 1E - Global Heap"). HDF5 goes from object to object by what they state, and asks for
as much memory as a reference states. Where these are damaged it never ends, or crashes. So
references are followed here first, and lists of disks are read without HDF5 at all, which takes a
third of the time.
"""

from __future__ import annotations

import io
import os
import struct

import h5py
import numpy as np

SIGNATURE = b"GCOL"

_SMALLEST, _HEADER = 4096, 16
"""Bytes of a collection, at least, and of the header of a collection and of an object."""

_OBJECT = struct.Struct("<HHIQ")
"""Header of an object: its number, 0 for free space; references to it; reserved; its size."""

REFERENCE = np.dtype([("length", "<u4"), ("heap", "<u8"), ("number", "<u4")])
"""An element of any length: its items, and the collection and the object that hold them."""


class Damaged(OSError):
    """An HDF5 file is cut short or damaged."""


class Heaps:
    """The collections of an open file, each read once.

    base: where in the file addresses count from.
    """

    def __init__(self, file: io.FileIO, base: int):
        self._file, self.base = file, base
        self._found: dict[int, tuple[bytes, dict[int, tuple[int, int]]]] = {}

    def objects(self, references: np.ndarray, itemsize: int) -> list[bytes]:
        """What references (of `REFERENCE`) hold, for those that hold anything, in items of this
        many bytes.

        Raises Damaged where a collection is damaged, or an object of another size than stated.
        """
        parts = []
        for length, heap, number in references[references["length"] > 0].tolist():
            if heap not in self._found:
                self._found[heap] = read_collection(self._file, self.base + heap)
            content, objects = self._found[heap]
            begin, end = objects.get(number, (0, 0))
            if end - begin != length * itemsize:
                raise Damaged("another length than that of the object in the global heap")
            parts.append(content[begin:end])
        return parts


def read_collection(file: io.FileIO, address: int) -> tuple[bytes, dict[int, tuple[int, int]]]:
    """The bytes of a collection, and where in them each object begins and ends.

    address: in bytes from the start of the file. Raises Damaged for a collection that is damaged.
    """
    content = read_bytes(file, _SMALLEST, address)
    if content[:5] != SIGNATURE + b"\x01":
        raise Damaged("no global heap where one should be")
    size = int.from_bytes(content[8:16], "little")
    if size < _SMALLEST:
        raise Damaged("a global heap whose size cannot be")
    if size > _SMALLEST:
        content = read_bytes(file, size, address)
    objects, place = {}, _HEADER
    while size - place >= _HEADER:
        number, _, _, length = _OBJECT.unpack_from(content, place)
        start = place + _HEADER
        # free space counts its own header; objects are filled up to multiples of eight bytes
        place = start + (length + 7) // 8 * 8 if number else place + length
        if place < start or place > size or number in objects:
            raise Damaged("a global heap whose objects do not fit in it")
        if number:
            objects[number] = start, start + length
    return content, objects


def plain_references(
    dataset: h5py.Dataset, file: io.FileIO, start: int, stop: int
) -> np.ndarray | None:
    """The references of some rows, flat, where they lie one after the other in the file; else None.

    Raises Damaged where the file is too short.
    """
    within = dataset.id.get_offset()
    n = dataset.size // max(1, len(dataset)) if dataset.shape else 1
    plain = (
        within is not None
        and dataset.id.get_create_plist().get_external_count() == 0
        and dataset.id.get_storage_size() == dataset.size * REFERENCE.itemsize
    )
    if not plain:
        return None
    place, size = within + start * n * REFERENCE.itemsize, (stop - start) * n * REFERENCE.itemsize
    return np.frombuffer(read_bytes(file, size, place), REFERENCE)


def read_bytes(file: io.FileIO, size: int, place: int) -> bytes:
    """Bytes of a file. Raises Damaged where it does not have them."""
    if size < 0 or place + size > os.fstat(file.fileno()).st_size:
        raise Damaged("the file ends too soon")
    file.seek(place)
    content = file.read(size)
    while len(content) < size and (more := file.read(size - len(content))):
        content += more
    if len(content) < size:
        raise Damaged("the file ends too soon")
    return content
