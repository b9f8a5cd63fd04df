# SPDX-License-Identifier: GPL-3.0-or-later
"""The Bragg disks of a whole scan: a data cube in, calibrated disk lists out.

`find_disks` reads a scan a chunk at a time, lets `likelihood.py` search each chunk on the device
while the next one is read (`correlogram.py`, if the settings say so), and smooths the direct
beam's centre over the scan, since the drift of the beam is smooth and a centre measured in one
pattern is not certain. Memory holds a few chunks and the disks found. `detect_in_cube` gives them
as the `DiskScan` that mapping takes, `write_bragg` stores them for py4DSTEM and for later.
"""

from __future__ import annotations

import functools
import math
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import h5py
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int
from tqdm import tqdm

from jaxstem.detection.beam import beam_is_measured
from jaxstem.detection.config import DEFAULT, DetectConfig
from jaxstem.detection.correlogram import correlate_patterns
from jaxstem.detection.faults import ceiling
from jaxstem.detection.layout import CorrelogramLayout, CorrelogramPlan, FoundDisks, Layout, Plan
from jaxstem.detection.light import apertures_of, places_apart, room_for_light, stored_light
from jaxstem.detection.likelihood import detect_patterns
from jaxstem.detection.origin import smooth_origin
from jaxstem.detection.plan import make_plan
from jaxstem.errors import InputError
from jaxstem.files.axes import stated_axes, with_flip_folded
from jaxstem.files.calibration import calibrate_disks, mean_pixel_size
from jaxstem.files.cube import Cube, chunks, sample
from jaxstem.files.emd import create_emd_group, write_emd_entry
from jaxstem.files.hdf5_writing import create_hdf5
from jaxstem.files.light import Light
from jaxstem.files.scan import DiskScan, Instrument
from jaxstem.files.stored_light import calibrated_light, write_light
from jaxstem.runtime import parallel
from jaxstem.runtime.memory import in_parts_that_fit
from jaxstem.runtime.parallel import REPLICATED, SHARDED, keep_freed_memory, pmap
from jaxstem.runtime.paths import atomic_path
from jaxstem.runtime.sharing import own_rows
from jaxstem.version import __version__

_STALE = ("qx0", "qy0", "_root_treepath", "_target_paths")
"""Entries of a calibration that detection writes anew."""


@dataclass(frozen=True)
class Detections:
    """The disks of a scan in detector pixels, flat: position p owns `offsets[p]:offsets[p + 1]`.

    row, column: centre [px]; counts, sigma: in the disk above background, and their standard
    deviation; significance: standard deviations above a pattern without disks; origin: the direct
    beam's centre at each position, smoothed; origin_measured: as found, NaN where it was not;
    cube: the scan; plan: the constants used; instrument: what was understood of it; light: what is
    kept of the patterns' counts, without their centres, None where nothing is; layout: that of the
    program.
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
    instrument: Instrument = Instrument()
    light: Light | None = None
    layout: Layout | CorrelogramLayout | None = None


class PlannedSearch(NamedTuple):
    """A scan whose disks can be searched, and what was understood of it before."""

    cube: Cube
    config: DetectConfig
    plan: Plan | CorrelogramPlan
    layout: Layout | CorrelogramLayout
    instrument: Instrument

    @property
    def voltage_kv(self) -> float | None:
        """Accelerating voltage [kV], None where it is not stated."""
        return self.cube.voltage_kv

    @property
    def source(self) -> str:
        """The scan's file."""
        return self.cube.source


def plan_search(cube: Cube, config: DetectConfig = DEFAULT) -> PlannedSearch:
    """What some patterns of a scan say of detector and beam, and how disks are found by it.

    Raises InputError for patterns that cannot be read or used, and for settings that do not fit
    them.
    """
    config.check_detector(cube.detector_shape, cube.source)  # before a pattern is read
    patterns = sample(cube, config.n_sample)
    plan, layout = make_plan(patterns, config, cube.source)
    good = np.asarray(plan.good)
    pedestal = float(plan.pedestal)
    counts = np.sum(np.where(good, patterns, 0), axis=(1, 2), dtype=np.float64)
    counts = (counts - pedestal * good.sum()) / float(plan.gain)
    radius = config.radius or (math.sqrt(plan.area / math.pi) if isinstance(plan, Plan) else None)
    size = config.pixel_size or cube.pixel_size
    clipped = ceiling(patterns, good)
    middle = np.asarray(plan.centre)
    measured = beam_is_measured(patterns, good, middle, radius or 3.0, clipped)
    instrument = Instrument(
        pixel_size=size and mean_pixel_size(size, cube.calibration),
        axes=cube.axes,
        centre=tuple(map(float, plan.centre)),
        radius=radius,
        dose=float(np.median(counts)),
        n_masked=int((~good).sum()),
        clipped_at=clipped if np.isfinite(clipped) else None,
        pedestal=pedestal,
        beam_unseen=not measured,
        **stated_axes(cube.calibration),
    )
    return PlannedSearch(cube, config, plan, layout, instrument)


def find_disks(
    cube: Cube,
    config: DetectConfig = DEFAULT,
    mesh: Mesh | None = None,
    progress: Callable[[int, int], None] | None = None,
    planned: PlannedSearch | None = None,
    across: bool = False,
    keep_light: bool = False,
) -> Detections:
    """All disks of a scan, read and searched a chunk at a time.

    With a `mesh` each chunk is shared among its devices. `progress(done, total)` counts patterns;
    `planned` is `plan_search` of the same, where that was made before. With
    `across` each of several processes, all of which must call this, searches a share of the scan's
    rows and gets the disks of all. With `keep_light` the counts about every place are kept too, by
    each process those of its share; not for `--method correlation`. Raises InputError as
    `plan_search` does.
    """
    planned = planned or plan_search(cube, config)
    size = config.chunk or (32 if jax.default_backend() == "cpu" else 512)
    own, first = _own_share(cube) if across else (cube, 0)
    layout, light = planned.layout, None
    if keep_light and isinstance(layout, Layout):
        layout = layout._replace(places=places_apart(planned.plan))
        light = room_for_light(cube, layout)
    search = lambda: _flat_disks(  # noqa: E731
        stream_disks(own, planned.plan, layout, size, mesh, progress), light, first
    )
    shares = parallel.from_all(search) if across else [search()]
    flat = {name: np.concatenate([share[name] for share in shares]) for name in shares[0]}
    counts, origin = flat.pop("n_disks"), flat.pop("origin")
    if not len(flat["row"]):
        raise InputError(
            f"{cube.source}: no disk stands out at any position; lower the threshold or check the "
            "file."
        )
    measured = origin.reshape(*cube.scan_shape, 2).astype(np.float64)
    known = planned.instrument
    noise = (known.radius or 1.0) / math.sqrt(max(known.dose or 0.0, 1.0))
    return Detections(
        **flat,
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        origin=smooth_origin(measured, noise),
        origin_measured=measured,
        cube=cube,
        plan=planned.plan,
        instrument=planned.instrument,
        light=light,
        layout=layout,
    )


def _own_share(cube: Cube) -> tuple[Cube, int]:
    """The scan rows that this process searches, and its first position."""
    first, last = own_rows(cube.scan_shape[0])
    if last - first == cube.scan_shape[0]:
        return cube, 0

    def read(rows: slice, columns: slice) -> np.ndarray:
        start, stop, step = rows.indices(last - first)
        return cube.read(slice(first + start, first + stop, step), columns)

    own = replace(cube, shape=(last - first, *cube.shape[1:]), read=read)
    return own, first * cube.scan_shape[1]


def _flat_disks(
    found: Iterator[FoundDisks], light: Light | None = None, first: int = 0
) -> dict[str, np.ndarray]:
    """The disks of chunks of patterns in a row, and of each pattern their number and the origin.

    What is kept of the counts goes into `light`, from position `first` on.
    """
    names = ("row", "column", "counts", "sigma", "significance")
    parts = [
        [np.zeros(0, np.float32)] * len(names) + [np.zeros(0, int), np.zeros((0, 2), np.float32)]
    ]
    for chunk in found:
        if light is not None:
            here = slice(first, first + len(chunk.mask))
            light.sums[here], light.factor[here] = chunk.sums, chunk.factor
            first = here.stop
        disks = [getattr(chunk, name)[chunk.mask] for name in names]
        parts.append([*disks, chunk.mask.sum(1), chunk.origin])
    joined = map(np.concatenate, zip(*parts, strict=True))
    return dict(zip((*names, "n_disks", "origin"), joined, strict=True))


def stream_disks(
    cube: Cube,
    plan: Plan | CorrelogramPlan,
    layout: Layout | CorrelogramLayout,
    size: int,
    mesh: Mesh | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[FoundDisks]:
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

    def fitted(find):
        some = lambda patterns, start, stop: patterns[start:stop]  # noqa: E731
        return in_parts_that_fit(lambda patterns: find(patterns, plan), size, least, some)

    least = 1 if mesh is None else mesh.size
    fitting = fitted(detect)

    def search(patterns):
        n = len(patterns)
        if n < size:  # one shape, one compilation
            patterns = np.concatenate([patterns, np.repeat(patterns[-1:], size - n, axis=0)])
        found, full = fitting(patterns), layout
        while found.mask[:n].all(1).any() and full.n_disks < 1000:
            full = full._replace(n_disks=4 * full.n_disks)
            found = fitted(_detector(full))(patterns)
        return jax.tree.map(lambda x: x[:n], found)

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


def _detector(layout: Layout | CorrelogramLayout) -> Callable[..., FoundDisks]:
    """What finds the disks of a batch of patterns by a plan."""
    of_correlation = isinstance(layout, CorrelogramLayout)
    return functools.partial(
        correlate_patterns if of_correlation else detect_patterns, layout=layout
    )


@functools.cache
def _on_mesh(mesh: Mesh, layout: Layout | CorrelogramLayout):
    return pmap(_detector(layout), mesh, (SHARDED, REPLICATED), SHARDED)


def detect_in_cube(
    cube: Cube,
    config: DetectConfig = DEFAULT,
    mesh: Mesh | None = None,
    progress: Callable[[int, int], None] | None = None,
    planned: PlannedSearch | None = None,
    across: bool = False,
    keep_light: bool = True,
) -> DiskScan:
    """The calibrated disks of a scan, as `jaxstem.files.read_disks` would read them from a file.

    Raises InputError where the pixel size is neither in the file nor in `config`, and as
    `find_disks` does.
    """
    found = find_disks(cube, config, mesh, progress, planned, across, keep_light)
    return calibrated(found, config.pixel_size)


@contextmanager
def progress_bar(cube: Cube, progress: bool | None = None, what: str = "disks"):
    """A bar over the patterns of a scan, as the `progress(done, total)` that `find_disks` takes;
    `what` is found.
    """
    disable = None if progress is None else not progress
    total = math.prod(cube.scan_shape)
    with tqdm(total=total, unit="pattern", desc=what, disable=disable) as bar:
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
        instrument=detections.instrument,
        light=detections.light
        and calibrated_light(
            detections.light,
            apertures_of(detections.plan, detections.layout),
            _calibration(detections, pixel_size),
            cube.scan_shape,
            cube.source,
        ),
    )


def _calibration(detections: Detections, pixel_size: float | None) -> dict:
    """The file's calibration with the origin that was found."""
    calibration = {k: v for k, v in detections.cube.calibration.items() if k not in _STALE}
    calibration |= {"qx0": detections.origin[..., 0], "qy0": detections.origin[..., 1]}
    if pixel_size is not None:
        calibration |= {"Q_pixel_size": float(pixel_size), "Q_pixel_units": "A^-1"}
    return calibration


def write_bragg(
    path: str | Path,
    detections: Detections,
    pixel_size: float | None = None,
    overwrite: bool = False,
) -> None:
    """Store disks as EMD 1.0 `BraggVectors`, which py4DSTEM 0.14 and `files.read_disks` open.

    Positions in detector pixels, intensities in electrons, and the calibration, with the origin at
    each position; beside them the counts about every place, if they were kept. Raises
    InputError where the file exists and `overwrite` is False.
    """
    cube = detections.cube
    calibration = with_flip_folded(_calibration(detections, pixel_size))
    calibration.setdefault("Q_pixel_size", 1)
    calibration.setdefault("Q_pixel_units", "pixels")
    calibration |= {"R_pixel_size": cube.scan_step, "R_pixel_units": cube.scan_units}
    calibration.setdefault("QR_flip", False)
    if cube.voltage_kv is not None:
        calibration["accelerating_voltage_kV"] = float(cube.voltage_kv)
    for axis, name in enumerate(("qx0", "qy0")):
        origin = detections.origin[..., axis]
        calibration[f"{name}_mean"] = float(origin.mean())
        calibration[f"{name}_meas"] = detections.origin_measured[..., axis]
        calibration[f"{name}_shift"] = origin - origin.mean()
    with atomic_path(path, overwrite) as temporary, create_hdf5(temporary) as (file, _):
        file.attrs.update(
            emd_group_type="file",
            version_major=1,
            version_minor=0,
            authoring_program=f"jaxstem {__version__}",
            authoring_user="",
            UUID=str(uuid.uuid4()),
        )
        root = create_emd_group(file, "datacube_root", "root", "Root")
        bundle = create_emd_group(root, "metadatabundle", "metadatabundle", None)
        stored = create_emd_group(bundle, "calibration", "metadata", "Calibration")
        for key, value in calibration.items():
            write_emd_entry(stored, key, value)
        write_emd_entry(stored, "_root_treepath", "")
        targets = stored.create_group("_target_paths")
        targets.attrs.update(type="list_of_strings", length=1)
        targets["0"] = b"/braggvectors"
        vectors = create_emd_group(root, "braggvectors", "custom", "BraggVectors")
        shape = create_emd_group(
            create_emd_group(vectors, "metadatabundle", "metadatabundle", None),
            "_braggvectors_shape",
            "metadata",
            "Metadata",
        )
        write_emd_entry(shape, "Rshape", tuple(int(n) for n in cube.scan_shape))
        write_emd_entry(shape, "Qshape", tuple(int(n) for n in cube.detector_shape))
        lists = create_emd_group(vectors, "_v_uncal", "custom_pointlistarray", "PointListArray")
        kind = np.dtype([(name, np.float64) for name in ("qx", "qy", "intensity")])
        disks = np.empty(len(detections.row), kind)
        disks["qx"], disks["qy"] = detections.row, detections.column
        disks["intensity"] = detections.counts
        # an array that says it holds lists is stored as such also where they are equally long
        each = np.empty(math.prod(cube.scan_shape), h5py.vlen_dtype(kind))
        for position, own in enumerate(np.split(disks, detections.offsets[1:-1])):
            each[position] = own
        lists.create_dataset("data", data=each.reshape(cube.scan_shape))
        if detections.light is not None:
            of = detections.light, detections.plan, detections.layout
            write_light(file, *stored_light(*of), detections.instrument.beam_unseen)
