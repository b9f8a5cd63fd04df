# SPDX-License-Identifier: GPL-3.0-or-later
"""HDF5 files opened for reading, their failures as one sentence, their values as plain ones."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Int

from jaxstem.errors import InputError
from jaxstem.files.global_heap import Heaps, plain_references
from jaxstem.files.hdf5_damage import texts_are_sound

_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"

_NO_MEMORY = ("memory allocation failed", "H5MM_")
"""What HDF5 says where it gets no memory."""


@contextmanager
def open_hdf5(path: str | Path, lists: bool = False) -> Iterator[h5py.File]:
    """The file open for reading; failures of HDF5, also while it is read, become InputError.

    Texts whose damage would hang HDF5 are looked at first (`files.hdf5_damage`); arrays of lists
    only with `lists`, and without it these must not be read.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist; check the name.")
    if path.is_dir():
        raise InputError(f"{path} is a folder; give an HDF5 file.")
    try:
        with path.open("rb") as file:
            signature = file.read(len(_HDF5_SIGNATURE))
        if signature != _HDF5_SIGNATURE and not h5py.is_hdf5(path):
            raise InputError(f"{path} is not an HDF5 file; give one, such as py4DSTEM saves.")
        with h5py.File(path, "r") as file:
            if not texts_are_sound(path, lists):
                raise OSError("damaged texts")
            yield file
    except InputError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError) as error:
        raise InputError(f"{path} {_trouble(error)}.") from error


def _trouble(error: Exception) -> str:
    """What is wrong with a file that HDF5 could not read, and what to do."""
    if isinstance(error, PermissionError):
        return "cannot be read; change its permissions"
    if isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY):
        return "needs more memory than there is; free some, or save it again if it should be small"
    number = getattr(error, "errno", None)
    if number is None:  # no fault of the system's
        return "is cut short or damaged; copy or save it again"
    if number == errno.EAGAIN:  # of HDF5's lock
        return "is open for writing in another program; close it there"
    if "lock file" in str(error):
        return f"cannot be locked ({os.strerror(number)}); set HDF5_USE_FILE_LOCKING=FALSE"
    return f"cannot be read ({os.strerror(number)}); try again, or copy it to another disk"


def stored_value(dataset: h5py.Dataset):
    """What a dataset holds. Raises OSError for lists, which HDF5 may not survive reading, and for
    what is no dataset.
    """
    if not isinstance(dataset, h5py.Dataset):
        raise OSError("no dataset where one should be")
    if dataset.dtype.hasobject and h5py.check_string_dtype(dataset.dtype) is None:
        raise OSError("lists where numbers or texts should be")
    return dataset[()]


def read_lists(
    dataset: h5py.Dataset, start: int, stop: int, path: str | Path
) -> tuple[np.ndarray, Int[np.ndarray, "positions"]]:
    """The lists of the rows `start` to `stop - 1` of an array of lists, of two axes, one after the
    other, and how many items each has.

    dataset: in the file `path`. Raises OSError for a file that is damaged or cut short.
    """
    kind = h5py.check_vlen_dtype(dataset.dtype)
    with FileIO(path) as file:
        references = plain_references(dataset, file, start, stop)
        if references is not None and dataset.id.get_type().get_super().get_size() == kind.itemsize:
            parts = Heaps(file, dataset.file.userblock_size).objects(references, kind.itemsize)
            return np.frombuffer(b"".join(parts), kind), references["length"].astype(np.int64)
    # HDF5 knows the other layouts: compressed ones, and those in pieces
    if not texts_are_sound(path, lists=True):
        raise OSError("damaged lists")
    lists = list(dataset[start:stop].ravel())
    return np.frombuffer(b"".join(lists), kind), np.array([len(own) for own in lists], np.int64)


def plain_value(value):
    """An HDF5 value as str, number, list or None."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, str):  # bytes that are no text stand in it as halves of pairs
        return value.encode("utf-8", "replace").decode()
    return [plain_value(item) for item in value] if isinstance(value, list) else value


def is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def numeric_array(dataset: h5py.Dataset, path: str | Path, every: int = 1) -> np.ndarray:
    if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in "iufb":
        raise InputError(f"{path}: '{dataset.name}' is not an array of numbers; save it again.")
    if every == 1 or dataset.ndim < 2:
        return np.asarray(dataset[()])
    # strided reads of HDF5 are slow: whole rows are read, one after the other
    rows = [dataset[row][::every] for row in range(0, len(dataset), every)]
    return np.stack(rows) if rows else dataset[:0, ::every]


def write_settings(group: h5py.Group, settings: Mapping[str, Any]) -> None:
    """Store what `read_settings` gives back: numbers, strings and tuples as attributes, arrays as
    datasets, mappings as groups; None is left out.
    """
    for name, value in settings.items():
        if isinstance(value, Mapping):
            write_settings(group.create_group(name), value)
        elif isinstance(value, np.ndarray):
            group.create_dataset(name, data=value, compression="gzip")
        elif value is not None:
            group.attrs[name] = value


def read_settings(group: h5py.Group) -> dict[str, Any]:
    """What `write_settings` stored: plain values, tuples as lists, arrays, mappings."""
    values: dict[str, Any] = {name: plain_value(value) for name, value in group.attrs.items()}
    for name, node in group.items():
        values[name] = read_settings(node) if isinstance(node, h5py.Group) else stored_value(node)
    return values
