# SPDX-License-Identifier: GPL-3.0-or-later
"""HDF5 files that are written, on disks that may be full.

HDF5 does not survive a write that fails: what it still holds then it tries to write at each later
step, up to the end of the program, which it crashes. So it is told that every write went well. It
writes through a Python file object, which keeps the first failure for us (`check`) and holds in
memory what HDF5 writes from then on, until the file is closed and given up.

Ctrl-C within that object would be one more write that fails; it is put off (`runtime/signals.py`).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from jaxstem.runtime.signals import signals_put_off


@contextmanager
def create_hdf5(path: str | Path) -> Iterator[tuple[h5py.File, Callable[[], None]]]:
    """A new HDF5 file, and `check`, to be called now and then where much is written.

    `check` raises the OSError of a write that failed; so does the end of the block.
    """
    with _Storage(path) as storage, signals_put_off(__file__):
        try:
            with h5py.File(storage, "w") as file:
                yield file, storage.check
        finally:
            storage.check()


class _Storage(io.FileIO):
    """A file whose reads and writes never fail; `check` tells whether they should have."""

    def __init__(self, path: str | Path):
        super().__init__(path, "w+")
        self._failure: OSError | None = None
        self._held: list[tuple[int, bytes]] = []

    def check(self) -> None:
        """Raise what went wrong."""
        if self._failure is not None:
            raise self._failure

    def write(self, data) -> int:
        data, start = memoryview(data), self.tell()
        try:
            if self._failure is None:
                done = 0
                while done < len(data):
                    done += super().write(data[done:])
                return done
        except OSError as error:
            self._failure = error
        self._held.append((start, bytes(data)))
        return len(data)

    def readinto(self, buffer) -> int:
        view, start, done = memoryview(buffer), self.tell(), 0
        try:
            while count := super().readinto(view[done:]):
                done += count
        except OSError as error:
            self._failure = self._failure or error
        view[done:] = bytes(len(view) - done)
        for place, data in self._held:
            first, end = max(place, start), min(place + len(data), start + len(view))
            if first < end:
                view[first - start : end - start] = data[first - place : end - place]
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        try:
            if self._failure is None:
                return super().truncate(size)
        except OSError as error:
            self._failure = error
        return self.tell() if size is None else size
