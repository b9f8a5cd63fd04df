# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether HDF5 can read the texts of a file: it hangs, or crashes, where some damage is.

All objects of a file are visited with HDF5, which is safe. What has any length is in the attributes
of an object, which are messages in its header, and in arrays (HDF5 File Format Specification,
version 3.0, IV.A "Data Object Headers"). References found there are followed as `global_heap` does.
Attributes that lie elsewhere (more than eight, of files for newer versions of HDF5) and arrays of
other layouts are read by HDF5 itself, from a file that hides damaged heaps.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import h5py
import numpy as np

from jaxstem.files.global_heap import (
    REFERENCE,
    SIGNATURE,
    Damaged,
    Heaps,
    plain_references,
    read_bytes,
    read_collection,
)

_TYPE, _ATTRIBUTE, _CONTINUATION, _ELSEWHERE = 0x03, 0x0C, 0x10, 0x15
"""Types of messages in the header of an object; the last one tells where other attributes are."""

_ANY_LENGTH, _TEXT = 9, 1
"""The class of a type whose elements have any length, and the kind that is text."""

_COMPOSITE = (6, 7, 10)
"""Classes of types that may hold such: records, references, arrays."""

_SHARED = 2
"""Flag of a message whose content lies elsewhere."""

_OWN = {b"DIMENSION_LIST"}
"""Attributes of HDF5's own, lists of references to other objects, which nothing here reads."""


def texts_are_sound(path: str | Path, lists: bool = False) -> bool:
    """Whether HDF5 can read the attributes and texts of a file, and with `lists` its arrays of
    lists; `read_lists` needs no such look.

    A file is looked at once as long as it stays as it is. Raises OSError where it cannot be read.
    """
    status = os.stat(path)
    stamp = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
    return _are_sound(os.fspath(path), stamp, lists)


@lru_cache(maxsize=64)
def _are_sound(path: str, stamp: tuple[int, ...], lists: bool) -> bool:
    with io.FileIO(path) as raw, h5py.File(path, "r") as file:
        if file.id.get_create_plist().get_sizes() != (8, 8):
            return False  # widths of addresses that nobody writes
        heaps, others = Heaps(raw, file.userblock_size), []

        def look(name: bytes, about) -> None:
            if not _is_sound(file, name, about, raw, heaps, lists):
                others.append(name)

        try:
            look(b"/", h5py.h5o.get_info(file.id))
            h5py.h5o.visit(file.id, look, info=True)
        except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
            if getattr(error, "errno", None):  # the system's, not the file's
                raise
            return False  # Damaged among them; what was not reached was not looked at
    return not others or _read_by_hdf5(path, others, lists)


def _is_sound(
    file: h5py.File, name: bytes, about, raw: io.FileIO, heaps: Heaps, lists: bool
) -> bool:
    """Whether all of an object was looked at that has any length. Raises Damaged where that is."""
    sound, may_have_any_length = True, False
    for kind, flags, body in _messages(raw, about.addr, heaps.base):
        if kind == _ATTRIBUTE:
            try:
                sound &= not flags & _SHARED and _attribute_is_sound(body, heaps, lists)
            except (IndexError, struct.error) as error:
                raise Damaged("an attribute that is cut short") from error
        elif kind == _ELSEWHERE:  # the address follows, which is not there where there are none
            start = 2 + 2 * (body[1:2] == b"\1" or body[1:2] == b"\3")
            sound &= body[start : start + 8] == b"\xff" * 8
        elif kind == _TYPE:
            stated = body[0] & 15 if body and not flags & _SHARED else _ANY_LENGTH
            may_have_any_length |= stated in (_ANY_LENGTH, *_COMPOSITE)
    if about.type == h5py.h5o.TYPE_DATASET and may_have_any_length:
        sound &= _array_is_sound(file[name], raw, heaps, lists)
    return sound


def _read_by_hdf5(path: str, names: list[bytes], lists: bool) -> bool:
    """Whether HDF5 met no damaged heap in the attributes and texts of these objects."""
    with _GuardedFile(path) as guarded:
        with suppress(Exception), h5py.File(path, "r", driver="fileobj", fileobj=guarded) as file:
            for name in names:
                with suppress(Exception):
                    _read(file[name], lists)
        return guarded.sound


def _read(node: h5py.HLObject, lists: bool) -> None:
    if isinstance(node, h5py.Dataset) and _has_any_length(node, lists):
        node[()]
    for name in node.attrs:
        with suppress(Exception):
            node.attrs[name]


class _GuardedFile(io.FileIO):
    """A file for HDF5 to read through, which hands out no damaged collection, and remembers if
    there was one.
    """

    sound = True

    def readinto(self, buffer) -> int:
        view, start, done = memoryview(buffer), self.tell(), 0
        while count := super().readinto(view[done:]):
            done += count
        view[done:] = bytes(len(view) - done)
        if view[:4] == SIGNATURE:
            try:
                read_collection(self, start)
            except Damaged:
                self.sound = False
                view[:] = bytes(len(view))
        return len(view)


def _has_any_length(dataset: h5py.Dataset, lists: bool) -> bool:
    """Whether an array is one of texts of any length, or with `lists` of anything such."""
    return bool(
        dataset.dtype.hasobject and (lists or h5py.check_string_dtype(dataset.dtype) is not None)
    )


def _array_is_sound(dataset: h5py.Dataset, raw: io.FileIO, heaps: Heaps, lists: bool) -> bool:
    """Whether an array was looked at. Raises Damaged for a damaged one."""
    if not _has_any_length(dataset, lists):
        return True
    stored = dataset.id.get_type()
    if stored.get_class() == h5py.h5t.STRING:
        itemsize = 1
    elif stored.get_class() == h5py.h5t.VLEN:
        itemsize = stored.get_super().get_size()
    else:
        return False
    rows = dataset.shape[0] if dataset.shape else 1
    references = plain_references(dataset, raw, 0, rows)
    if references is None:
        return False
    heaps.objects(references, itemsize)
    return True


def _messages(raw: io.FileIO, address: int, base: int) -> Iterator[tuple[int, int, bytes]]:
    """Type, flags and content of the messages in the header of an object at an address.

    Raises Damaged for a header whose parts do not fit together.
    """
    address += base
    start = read_bytes(raw, 16, address)
    newer = start[:4] == b"OHDR"
    if newer:
        head = read_bytes(raw, 34, address)
        place = 6 + 16 * bool(head[5] & 32) + 4 * bool(head[5] & 16)
        width = 1 << (head[5] & 3)
        size = int.from_bytes(head[place : place + width], "little")
        blocks = [(address + place + width, size)]
        header = 4 + 2 * bool(head[5] & 4)
    elif start[0] == 1:
        blocks, header = [(address + 16, int.from_bytes(start[8:12], "little"))], 8
    else:
        raise Damaged("an object header of an unknown version")
    seen = set()
    while blocks:
        block = blocks.pop(0)
        if block in seen:
            raise Damaged("an object header that goes on in itself")
        seen.add(block)
        content, place = read_bytes(raw, block[1], block[0]), 0
        while place + header <= len(content):
            if newer:
                kind, length, flags = content[place], content[place + 1 : place + 3], place + 3
            else:
                kind, length, flags = content[place], content[place + 2 : place + 4], place + 4
            stop = place + header + int.from_bytes(length, "little")
            body = content[place + header : stop]
            if stop > len(content):
                raise Damaged("a message that does not fit in its object's header")
            if kind == _CONTINUATION:
                onward, size = (
                    int.from_bytes(body[:8], "little"),
                    int.from_bytes(body[8:16], "little"),
                )
                # newer ones have a signature and a sum around
                blocks.append((base + onward + 4 * newer, size - 8 * newer))
            else:
                yield kind, content[flags], body
            place = stop


def _attribute_is_sound(body: bytes, heaps: Heaps, lists: bool) -> bool:
    """Whether an attribute was looked at. Raises Damaged for a damaged one."""
    version, sizes = body[0], struct.unpack_from("<3H", body, 2)
    if version == 1:
        sizes = [-(-size // 8) * 8 for size in sizes]
    start = 8 + (version == 3)
    stop = start + sizes[0]
    kind, data = body[stop : stop + sizes[1]], body[start + sum(sizes) :]
    if version > 1 and body[1] or len(kind) < 8:  # its type lies elsewhere
        return False
    if kind[0] & 15 != _ANY_LENGTH:
        return kind[0] & 15 not in _COMPOSITE
    if kind[1] & 15 != _TEXT and body[start:stop].rstrip(b"\0") in _OWN:
        return not lists
    # no program is known to write lists there, and HDF5 may crash on texts that damage made such
    if kind[1] & 15 != _TEXT or int.from_bytes(kind[4:8], "little") != REFERENCE.itemsize:
        raise Damaged("an attribute of a type that cannot be")
    whole = len(data) // REFERENCE.itemsize * REFERENCE.itemsize
    heaps.objects(np.frombuffer(data[:whole], REFERENCE), 1)
    return True
