# SPDX-License-Identifier: GPL-3.0-or-later
"""The Bragg disks of a whole scan: a data cube in, calibrated disk lists out.

`find_disks` reads a scan a chunk at a time, lets `jaxstem.patterns` search each chunk on the device
while the next one is read (`jaxstem.correlogram`, if the settings say so), and smooths the direct
beam's centre over the scan, since the drift of the beam is smooth and a centre measured in one
pattern is not certain. Memory holds a few chunks and the disks found. `detect_disks` gives them as
the `DiskScan` that mapping takes, `write_bragg` stores them for py4DSTEM and for later.
"""

from __future__ import annotations

import functools
import itertools
import math
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int
from scipy import fft
from tqdm import tqdm

from jaxstem import __version__
from jaxstem.correlogram import CorrelogramLayout, CorrelogramPlan, correlate_patterns
from jaxstem.cubes import Cube, chunks, read_cube, sample
from jaxstem.errors import InputError
from jaxstem.io import (
    DiskScan,
    DiskSource,
    atomic_path,
    bragg_source,
    calibrate_disks,
    holds_disks,
    no_disk_at_all,
    source_of,
)
from jaxstem.packed import is_packed, packed_source
from jaxstem.parallel import REPLICATED, SHARDED, keep_freed_memory, pmap
from jaxstem.patterns import Found, Layout, Plan, detect_patterns
from jaxstem.probe import DEFAULT, DetectConfig, make_plan
from jaxstem.rawfiles import READERS, format_of
from jaxstem.tables import holds_vectors, read_csv, read_vectors

STALE = ("qx0", "qy0", "_root_treepath", "_target_paths")
"""Entries of a calibration that detection writes anew."""


@dataclass(frozen=True)
class Detections:
    """The disks of a scan in detector pixels, flat: position p owns `offsets[p]:offsets[p + 1]`.

    row, column: centre [px]; counts, sigma: in the disk above background, and their standard
    deviation; significance: standard deviations above a pattern without disks; origin: the direct
    beam's centre at each position, smoothed; origin_measured: as found, NaN where it was not;
    cube: the scan; plan: the constants used.
    """

    row: Float[np.ndarray, " total"]
    column: Float[np.ndarray, " total"]
    counts: Float[np.ndarray, " total"]
    sigma: Float[np.ndarray, " total"]
    significance: Float[np.ndarray, " total"]
    offsets: Int[np.ndarray, " positions_plus_1"]
    origin: Float[np.ndarray, "ny nx 2"]
    origin_measured: Float[np.ndarray, "ny nx 2"]
    cube: Cube
    plan: Plan | CorrelogramPlan


def find_disks(
    cube: Cube,
    config: DetectConfig = DEFAULT,
    mesh: Mesh | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Detections:
    """All disks of a scan, read and searched a chunk at a time.

    With a `mesh` each chunk is shared among its devices. `progress(done, total)` counts patterns.
    Raises InputError for patterns that cannot be read or used.
    """
    names = ("row", "column", "counts", "sigma", "significance")
    plan, layout = make_plan(sample(cube, config.n_sample), config, cube.source)
    size = config.chunk or (32 if jax.default_backend() == "cpu" else 512)
    parts, counts, origins = [], [], []
    for found in stream_disks(cube, plan, layout, size, mesh, progress):
        parts.append([getattr(found, name)[found.mask] for name in names])
        counts.append(found.mask.sum(1))
        origins.append(found.origin)
    flat = dict(zip(names, map(np.concatenate, zip(*parts, strict=True)), strict=True))
    if not len(flat["row"]):
        raise InputError(
            f"{cube.source}: no disk stands out at any position; lower the threshold or check the "
            "file."
        )
    measured = np.concatenate(origins).reshape(*cube.scan_shape, 2).astype(np.float64)
    return Detections(
        **flat,
        offsets=np.concatenate([[0], np.cumsum(np.concatenate(counts))]),
        origin=smooth_origin(measured),
        origin_measured=measured,
        cube=cube,
        plan=plan,
    )


def stream_disks(
    cube: Cube,
    plan: Plan | CorrelogramPlan,
    layout: Layout | CorrelogramLayout,
    size: int,
    mesh: Mesh | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Found]:
    """The disks of `size` patterns after the other, in scan order, as NumPy arrays.

    Reading and detection overlap; at most a few chunks are in memory. Patterns with more disks than
    `layout` has room for are searched again with more room.
    """
    keep_freed_memory()
    detect = _detector(layout)
    if mesh is not None:
        size = -(-size // mesh.size) * mesh.size
        detect = _on_mesh(mesh, layout)
    total, done = math.prod(cube.scan_shape), 0

    def search(patterns):
        n = len(patterns)
        if n < size:  # one shape, one compilation
            patterns = np.concatenate([patterns, np.repeat(patterns[-1:], size - n, axis=0)])
        found = Found(*(np.asarray(x)[:n] for x in detect(patterns, plan)))
        full = layout
        while found.mask.all(1).any() and full.n_disks < 1000:
            full = full._replace(n_disks=4 * full.n_disks)
            found = Found(*(np.asarray(x)[:n] for x in _detector(full)(patterns, plan)))
        return found

    for found in _overlapped(search, _pieces(cube, size)):
        done += len(found.mask)
        if progress is not None:
            progress(done, total)
        yield found


def _pieces(cube: Cube, size: int) -> Iterator[np.ndarray]:
    for _, block in chunks(cube, max(size, 256)):
        for start in range(0, len(block), size):
            yield block[start : start + size]


def _overlapped(work: Callable, items: Iterator, ahead: int = 8) -> Iterator:
    """`map(work, items)` in order, two at a time, with `ahead` items read in advance."""
    with ThreadPoolExecutor(2) as workers:
        pending: deque = deque()
        for item in items:
            pending.append(workers.submit(work, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _detector(layout: Layout | CorrelogramLayout) -> Callable[..., Found]:
    """What finds the disks of a batch of patterns by a plan."""
    of_correlation = isinstance(layout, CorrelogramLayout)
    return functools.partial(
        correlate_patterns if of_correlation else detect_patterns, layout=layout
    )


@functools.cache
def _on_mesh(mesh: Mesh, layout: Layout | CorrelogramLayout):
    return pmap(_detector(layout), mesh, (SHARDED, REPLICATED), SHARDED)


def detect_disks(
    cube: Cube,
    config: DetectConfig = DEFAULT,
    mesh: Mesh | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> DiskScan:
    """The calibrated disks of a scan, as `jaxstem.io.read_disks` would read them from a file.

    Raises InputError where the pixel size is neither in the file nor in `config`, and as
    `find_disks` does.
    """
    return calibrated(find_disks(cube, config, mesh, progress), config.pixel_size)


def open_scan(
    path: str | Path,
    config: DetectConfig = DEFAULT,
    progress: bool | None = None,
    scan_shape: tuple[int, int] | None = None,
    calibration: Mapping | None = None,
    voltage_kv: float | None = None,
) -> DiskSource:
    """The calibrated disks of a file, read when asked for: Bragg vectors, a packed table, CSV,
    pyxem's vectors, or raw patterns, in which disks are found first.

    `progress`: show a bar while finding them (None: on a terminal). `scan_shape`, `calibration` and
    `voltage_kv` as in `read_cube`; a calibration, or a pixel size in `config`, replaces what Bragg
    vectors say too. Raises InputError as the readers do, and for a calibration of disks that are
    in 1/Å already.
    """
    changes = dict(calibration or {})
    if config.pixel_size is not None:
        changes |= {"Q_pixel_size": float(config.pixel_size), "Q_pixel_units": "A^-1"}
    read = _calibrated_already(path)
    if read is not None:
        if changes:
            raise InputError(
                f"{path} holds disks in 1/Å already; calibrate the scan that they were found in."
            )
        source = read(path)
        return source if voltage_kv is None else replace(source, voltage_kv=voltage_kv)
    if format_of(path) is None and holds_disks(path):
        return bragg_source(path, changes, voltage_kv)
    cube = read_cube(path, scan_shape, changes, voltage_kv)
    with progress_bar(cube, progress) as advance:
        return source_of(detect_disks(cube, config, progress=advance))


def _calibrated_already(path: str | Path) -> Callable[[str | Path], DiskSource] | None:
    """The reader of a file whose disks are in 1/Å, None for another file."""
    suffix = Path(path).suffix.lower()
    if suffix == ".csv":
        return lambda path: source_of(read_csv(path))
    if suffix == ".hspy":
        return (lambda path: source_of(read_vectors(path))) if holds_vectors(path) else None
    if suffix not in READERS and suffix != ".raw" and is_packed(path):
        return packed_source
    return None


def read_scan(
    path: str | Path,
    config: DetectConfig = DEFAULT,
    progress: bool | None = None,
    scan_shape: tuple[int, int] | None = None,
    calibration: Mapping | None = None,
    voltage_kv: float | None = None,
) -> DiskScan:
    """All calibrated disks of a file that `open_scan` opens, in memory.

    Raises InputError as `open_scan` does, for disks that cannot be used, and where there are none.
    """
    source = open_scan(path, config, progress, scan_shape, calibration, voltage_kv)
    scan = source.read(0, source.scan_shape[0])
    if not len(scan.qx):
        raise no_disk_at_all(source)
    return scan


@contextmanager
def progress_bar(cube: Cube, progress: bool | None = None):
    """A bar over the patterns of a scan, as the `progress(done, total)` that `find_disks` takes."""
    disable = None if progress is None else not progress
    total = math.prod(cube.scan_shape)
    with tqdm(total=total, unit="pattern", desc="disks", disable=disable) as bar:
        yield lambda done, _: bar.update(done - bar.n)


def calibrated(detections: Detections, pixel_size: float | None = None) -> DiskScan:
    """Scattering vectors [1/Å] from detector pixels, by the calibration of the file.

    `pixel_size` [1/Å] replaces that of the file. Intensities are electrons.
    """
    cube = detections.cube
    if pixel_size is None and cube.pixel_size is None:
        how = f" but in '{cube.pixel_units}'" if cube.pixel_units else ""
        raise InputError(
            f"{cube.source} does not state the size of a detector pixel in 1/Å{how}; give it with "
            "--pixel-size, or make a calibration with 'jaxstem calibrate'."
        )
    disks = np.rec.fromarrays([detections.row, detections.column], names="qx,qy")
    counts = np.diff(detections.offsets)
    qx, qy = calibrate_disks(
        disks, counts, cube.scan_shape, _calibration(detections, pixel_size), cube.source
    )
    return DiskScan(
        qx=qx.astype(np.float32),
        qy=qy.astype(np.float32),
        intensity=detections.counts.astype(np.float32),
        offsets=detections.offsets,
        scan_shape=cube.scan_shape,
        scan_step=cube.scan_step,
        scan_units=cube.scan_units,
        voltage_kv=cube.voltage_kv,
        source=cube.source,
    )


def _calibration(detections: Detections, pixel_size: float | None) -> dict:
    """The file's calibration with the origin that was found."""
    calibration = {k: v for k, v in detections.cube.calibration.items() if k not in STALE}
    calibration |= {"qx0": detections.origin[..., 0], "qy0": detections.origin[..., 1]}
    if pixel_size is not None:
        calibration |= {"Q_pixel_size": float(pixel_size), "Q_pixel_units": "A^-1"}
    return calibration


def smooth_origin(measured: Float[np.ndarray, "ny nx 2"]) -> Float[np.ndarray, "ny nx 2"]:
    """The beam's centre over the scan [px] from its noisy measurements, NaN where missing.

    Planes fitted about each position with normal weights. The width of the weights is the one
    that predicts measurements best from the others around them; measurements far from their
    prediction (a strong disk taken for the beam) do not take part.
    """
    known = np.isfinite(measured).all(-1)
    if not known.any():
        raise InputError("No direct beam was found at any position; give the origin in pixels.")
    departure = np.nan_to_num(np.abs(measured - _local_median(measured)).max(-1))
    known &= departure <= 8 * np.median(departure[known]) + 0.02
    widths = [0.7, 1.0, 1.5, 2.5, 4.0, 7.0, 12.0, 20.0, 40.0]
    widths = [w for w in widths if w <= max(1.0, max(measured.shape[:2]))]
    errors = []
    for width in widths:
        predicted, _ = _local_plane(measured, known, width, own=False)
        errors.append(np.median(np.abs(measured - predicted)[known], axis=0))
        if (errors[-1] > 2 * np.min(errors, axis=0)).all():
            break  # wider is worse still
    smoothed = np.empty_like(measured)
    for axis, best in enumerate(np.argmin(errors, axis=0)):
        width = widths[best]
        while True:  # widen until every position sees a few measurements
            result, seen = _local_plane(measured, known, width, own=True)
            if seen.min() >= min(3, known.sum()) or width > 4 * max(measured.shape[:2]):
                break
            width *= 2
        smoothed[..., axis] = result[..., axis]
    return smoothed


def _local_median(values: Float[np.ndarray, "ny nx 2"]) -> Float[np.ndarray, "ny nx 2"]:
    """Median over the 5 × 5 positions about each one, of those that are known."""
    padded = np.pad(values, ((2, 2), (2, 2), (0, 0)), constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(0, 1))
    windows = windows.reshape(*values.shape, 25)
    lonely = np.isnan(windows).all(-1, keepdims=True)
    return np.nanmedian(np.where(lonely, 0.0, windows), -1)


def _local_plane(
    values: Float[np.ndarray, "ny nx 2"], known: Bool[np.ndarray, "ny nx"], width: float, own: bool
) -> tuple[Float[np.ndarray, "ny nx 2"], Float[np.ndarray, "ny nx"]]:
    """Planes fitted with normal weights about each position, without its own value unless `own`,
    and the sum of the weights there.
    """
    line = lambda n: np.arange(-min(n - 1, math.ceil(3 * width)), min(n, math.ceil(3 * width) + 1))  # noqa: E731
    rows, columns = line(values.shape[0])[:, None] / width, line(values.shape[1])[None] / width
    weight = np.exp(-0.5 * (rows**2 + columns**2))
    if not own:
        weight[weight.shape[0] // 2, weight.shape[1] // 2] = 0
    basis = np.broadcast_arrays(1.0, rows, columns)
    pairs = list(itertools.combinations_with_replacement(range(3), 2))
    kernels = np.stack([weight * basis[i] * basis[j] for i, j in pairs])
    mean = values[known].mean(0)
    centred = np.moveaxis(np.where(known[..., None], values - mean, 0.0), -1, 0)
    right = _weighted_sums(centred[:, None], kernels[:3])
    normal = np.empty((*known.shape, 3, 3))
    for (i, j), total in zip(pairs, _weighted_sums(known.astype(float), kernels), strict=True):
        normal[..., i, j] = normal[..., j, i] = total
    seen = normal[..., 0, 0].copy()
    # slopes need support on both sides: a ridge of a tenth of a measurement
    normal += np.diag([1e-6, 0.1, 0.1])
    fitted = np.linalg.solve(normal, right.transpose(2, 3, 1, 0))[..., 0, :] + mean
    return fitted, seen


def _weighted_sums(
    fields: Float[np.ndarray, "... ny nx"], kernels: Float[np.ndarray, "... h w"]
) -> Float[np.ndarray, "... ny nx"]:
    """Sums about each position with the weights of a kernel, zeros outside."""
    (ny, nx), (h, w) = fields.shape[-2:], kernels.shape[-2:]
    shape = [fft.next_fast_len(a + b - 1, real=True) for a, b in ((ny, h), (nx, w))]
    flipped = fft.rfft2(kernels[..., ::-1, ::-1], shape)
    full = fft.irfft2(fft.rfft2(fields, shape) * flipped, shape)
    return full[..., h // 2 : h // 2 + ny, w // 2 : w // 2 + nx]


def write_bragg(
    path: str | Path,
    detections: Detections,
    pixel_size: float | None = None,
    overwrite: bool = False,
) -> None:
    """Store disks as EMD 1.0 `BraggVectors`, which py4DSTEM 0.14 and `jaxstem.io.read_disks` open.

    Positions in detector pixels, intensities in electrons, and the calibration, with the origin at
    each position. Raises InputError where the file exists and `overwrite` is False.
    """
    cube = detections.cube
    calibration = _calibration(detections, pixel_size)
    calibration.setdefault("Q_pixel_size", 1)
    calibration.setdefault("Q_pixel_units", "pixels")
    calibration |= {"R_pixel_size": cube.scan_step, "R_pixel_units": cube.scan_units}
    calibration.setdefault("QR_flip", False)
    for axis, name in enumerate(("qx0", "qy0")):
        origin = detections.origin[..., axis]
        calibration[f"{name}_mean"] = float(origin.mean())
        calibration[f"{name}_meas"] = detections.origin_measured[..., axis]
        calibration[f"{name}_shift"] = origin - origin.mean()
    with atomic_path(path, overwrite) as temporary, h5py.File(temporary, "w") as file:
        file.attrs.update(
            emd_group_type="file",
            version_major=1,
            version_minor=0,
            authoring_program=f"jaxstem {__version__}",
            authoring_user="",
            UUID=str(uuid.uuid4()),
        )
        root = _emd_group(file, "datacube_root", "root", "Root")
        bundle = _emd_group(root, "metadatabundle", "metadatabundle", None)
        stored = _emd_group(bundle, "calibration", "metadata", "Calibration")
        for key, value in calibration.items():
            _emd_entry(stored, key, value)
        _emd_entry(stored, "_root_treepath", "")
        targets = stored.create_group("_target_paths")
        targets.attrs.update(type="list_of_strings", length=1)
        targets["0"] = b"/braggvectors"
        vectors = _emd_group(root, "braggvectors", "custom", "BraggVectors")
        shape = _emd_group(
            _emd_group(vectors, "metadatabundle", "metadatabundle", None),
            "_braggvectors_shape",
            "metadata",
            "Metadata",
        )
        _emd_entry(shape, "Rshape", tuple(int(n) for n in cube.scan_shape))
        _emd_entry(shape, "Qshape", tuple(int(n) for n in cube.detector_shape))
        lists = _emd_group(vectors, "_v_uncal", "custom_pointlistarray", "PointListArray")
        kind = np.dtype([(name, np.float64) for name in ("qx", "qy", "intensity")])
        disks = np.empty(len(detections.row), kind)
        disks["qx"], disks["qy"] = detections.row, detections.column
        disks["intensity"] = detections.counts
        # an array that says it holds lists is stored as such also where they are equally long
        each = np.empty(math.prod(cube.scan_shape), h5py.vlen_dtype(kind))
        for position, own in enumerate(np.split(disks, detections.offsets[1:-1])):
            each[position] = own
        lists.create_dataset("data", data=each.reshape(cube.scan_shape))


def _emd_group(parent, name: str, kind: str, python_class: str | None):
    group = parent.create_group(name)
    group.attrs["emd_group_type"] = kind
    if python_class:
        group.attrs["python_class"] = python_class
    return group


def _emd_entry(group, name: str, value) -> None:
    """One entry of an EMD metadata group, with the type by which EMD reads it back."""
    if isinstance(value, np.ndarray) and value.ndim:
        kind = "array"
    elif isinstance(value, bool | np.bool_):
        kind = "bool"
    elif isinstance(value, str):
        value, kind = value.encode(), "string"
    elif isinstance(value, tuple | list):
        kind = "tuple" if isinstance(value, tuple) else "list"
    else:
        kind = "number"
    group[name] = value
    group[name].attrs["type"] = kind
