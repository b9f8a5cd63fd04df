# SPDX-License-Identifier: GPL-3.0-or-later
"""Patterns as pictures and plain arrays: TIFF, PNG, Zarr.

None of them says what its axes are. A picture is one pattern; pages of a TIFF, and the first axis
of an array of three, are patterns one after the other; the first two of four axes are the scan's
rows and columns, the last two always the detector's. Pixel sizes are those that RosettaSciIO finds
in a TIFF, and have to be given for the others.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Num
from PIL import Image

from jaxstem.errors import InputError


def with_unit(signal: dict[str, Any], number: int) -> dict[str, Any]:
    """A series of a TIFF as RosettaSciIO has it, with its number in the file, and with the unit
    that ImageJ states, of which RosettaSciIO takes the size alone.
    """
    about = str(signal["original_metadata"].get("ImageDescription", ""))
    stated = re.search(r"^unit=(.+)$", about, re.MULTILINE) if "ImageJ=" in about else None
    axes = [dict(axis) for axis in signal["axes"]]
    for axis in axes[-2:]:
        axis["units"] = axis.get("units") or (stated and stated.group(1).strip())
    return signal | {"axes": axes, "number": number}


def tiff_pages(
    path: Path, number: int
) -> tuple[Callable[[tuple[slice, ...]], Num[np.ndarray, "... height width"]], np.dtype]:
    """What reads frames of a TIFF's series `number` (0 for most), given slices of the axes before
    the last two, and the kind of its numbers.

    Pages that lie one after the other as they are come from the file in one piece, others one by
    one from the file that stays open, for there may be many to find. Raises InputError for colours.
    """
    import tifffile

    tiff = tifffile.TiffFile(path)
    series = tiff.series[number]
    samples = series.axes.endswith("S")
    scan, frame = np.split(series.shape, [len(series.shape) - (3 if samples else 2)])
    order = np.arange(math.prod(scan)).reshape(scan)
    stored = np.dtype(tiff.byteorder + series.dtype.char)
    offset = None if samples else series.dataoffset
    one_by_one, alone = len(series.pages) == order.size, threading.Lock()
    if offset is not None:
        tiff.close()

    def read(index: tuple[slice, ...]) -> np.ndarray:
        wanted = order[index]
        if offset is not None:
            first, n = wanted.min(), math.prod(frame)
            count, start = (wanted.max() - first + 1) * n, offset + first * n * stored.itemsize
            block = np.fromfile(path, stored, count, offset=start)
            return block.reshape(-1, *frame)[wanted - first]
        with alone:
            if one_by_one:
                frames = tiff.asarray(key=wanted.ravel().tolist(), series=number)
                frames = frames.reshape(*wanted.shape, *frame)
            else:  # one page that holds all
                frames = series.asarray()[index]
        return _grey(frames, path) if samples else frames

    return read, series.dtype


def picture_signal(path: Path) -> dict[str, Any]:
    """The pattern in a picture of grey levels, as RosettaSciIO has signals.

    Raises InputError for colours and for a picture of several frames.
    """
    from dask.array import from_array

    with Image.open(path) as opened:
        if getattr(opened, "n_frames", 1) > 1:
            raise InputError(f"{path} is a film; save its frames as the pages of a TIFF.")
        palette = opened.mode.startswith("P") or opened.mode == "LA"
        levels = np.asarray(opened.convert("RGBA") if palette else opened)
    levels = _grey(levels, path) if levels.ndim == 3 else levels
    return {"data": from_array(levels), "axes": [{}, {}], "original_metadata": {}}


def _grey(
    frames: Num[np.ndarray, "... height width samples"], path: Path
) -> Num[np.ndarray, "... height width"]:
    """Grey levels that are stored as red, green and blue, transparency left out."""
    colours = frames[..., :3]
    if (colours != colours[..., :1]).any():
        raise InputError(
            f"{path} is a picture in colours, which are no counts; save it as grey levels."
        )
    return colours[..., 0]


def zarr_signals(path: Path) -> list[dict[str, Any]]:
    """All arrays of numbers in a Zarr store, as RosettaSciIO has signals, their chunks not read.

    Raises InputError for a store of a version that the installed zarr cannot read.
    """
    import zarr
    from dask.array import from_array

    if (path / "zarr.json").is_file() and int(zarr.__version__.split(".")[0]) < 3:
        raise InputError(
            f"{path} is Zarr of format 3, which zarr {zarr.__version__} does not read; save it as "
            "format 2, or as .zspy or HDF5."
        )

    def arrays_of(node: zarr.Group) -> list[zarr.Array]:
        deeper = [array for _, group in node.groups() for array in arrays_of(group)]
        return [array for _, array in node.arrays()] + deeper

    store = zarr.open(str(path), mode="r")
    arrays = [store] if isinstance(store, zarr.Array) else arrays_of(store)
    return [
        {
            "data": from_array(array, chunks=array.chunks, name=False),
            "axes": [{} for _ in array.shape],
            "original_metadata": {},
        }
        for array in arrays
        if array.dtype.kind in "iuf"
    ]
