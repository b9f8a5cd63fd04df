# SPDX-License-Identifier: GPL-3.0-or-later
"""Any file of a scan as calibrated disks: lists are read, raw patterns searched first.

`look_at` opens a file and understands it, in seconds; `disks_of` does the work. What a file does
not state is asked for at once, all of it, with the options that give it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Shaped

from jaxstem.detection.config import DEFAULT, DetectConfig
from jaxstem.detection.pooling import pooled_cube, where_steady, without_pedestal
from jaxstem.detection.reading import (
    OF_AXES,
    OF_FRAMES,
    OF_PATTERNS,
    OF_PIXELS,
    ReadOptions,
    option,
)
from jaxstem.detection.scan import (
    Detections,
    PlannedSearch,
    calibrated,
    find_disks,
    plan_search,
    progress_bar,
)
from jaxstem.errors import InputError, NotStated
from jaxstem.files.axes import changed, source_turned, stated_axes
from jaxstem.files.calibration import axes_matrix, missing_scale, stated_pixel_size
from jaxstem.files.csv import read_csv
from jaxstem.files.cube import Cube, cube_from_array
from jaxstem.files.cube_readers import read_cube
from jaxstem.files.emd import bragg_source, holds_disks
from jaxstem.files.formats import READERS, format_of
from jaxstem.files.packed import is_packed, packed_source
from jaxstem.files.pyxem import holds_vectors, read_vectors
from jaxstem.files.scan import DiskScan, DiskSource, Instrument, source_of
from jaxstem.files.stack import framed
from jaxstem.runtime import parallel

_HOW = {
    "scan_shape": "ROWS COLUMNS",
    "pixel_size": "1/Å (which 'jaxstem calibrate' measures)",
    "voltage_kv": "KV",
}
"""What may be missing, in the order in which it is asked for, and what its option takes."""


def open_scan(
    path: str | Path,
    options: ReadOptions | None = None,
    progress: bool | None = None,
    *,
    config: DetectConfig = DEFAULT,
    keep_light: bool = True,
    **stated: Any,
) -> DiskSource:
    """The calibrated disks of a file, read when asked for: Bragg vectors, a packed table, CSV,
    pyxem's vectors, or raw patterns, in which disks are found first.

    `options` say what the file does not; `stated` are options by their names (`voltage_kv=300.0`),
    which win. `progress`: show a bar while disks are found (None: on a terminal); `config`: how
    they are found, besides what the options say; `keep_light`: whether the counts of raw patterns
    come along, for verification. Raises InputError as the readers do, and for options that cannot
    matter to this file.
    """
    options = replace(options or ReadOptions(), **stated)
    return disks_of(look_at(path, options, config=config), progress, keep_light=keep_light)


def look_at(
    path: str | Path,
    options: ReadOptions,
    *,
    config: DetectConfig = DEFAULT,
    needs_voltage: bool = False,
) -> DiskSource | PlannedSearch:
    """A scan's disks where its file lists them, else the search for them, planned and not done.

    Raises InputError as `open_scan` does; for what the file should state and does not (the scan's
    shape, the pixel size, the voltage where it is needed) one that names all that is missing.
    """
    opened = _all_stated(Path(path), options, needs_voltage)
    if isinstance(opened, DiskSource):
        return replace(opened, instrument=_credited(opened.instrument, options))
    planned = plan_search(opened, options.detection(config))
    return planned._replace(instrument=_credited(planned.instrument, options))


def disks_of(
    opened: DiskSource | PlannedSearch,
    progress: bool | None = None,
    across: bool = False,
    keep_light: bool = True,
) -> DiskSource:
    """The disks of what `look_at` opened, found by all devices of this process where they are not
    listed; `across` processes and with `keep_light` as in `find_disks`. Where the counts are kept,
    patterns can be added up as well (`DiskSource.pooled`).
    """
    if isinstance(opened, DiskSource):
        return opened
    mesh = parallel.make_mesh(jax.local_devices()) if jax.local_device_count() > 1 else None

    def found(search: PlannedSearch, what: str) -> Detections:
        with progress_bar(search.cube, progress, what) as advance:
            given = search.config, mesh, advance, search, across, keep_light
            return find_disks(search.cube, *given)

    first = found(opened, "disks")
    source = source_of(calibrated(first, opened.config.pixel_size))
    if source.detector is None:
        return source
    # of the detector nothing is learned anew
    known = {"gain": float(opened.plan.gain), "mask": np.asarray(opened.plan.good)}
    config = replace(opened.config, pedestal=0.0, **known)
    cube = without_pedestal(opened.cube, float(opened.plan.pedestal))

    def pooled(
        members: Bool[np.ndarray, "ny nx n n"], usual: Bool[np.ndarray, "n n"]
    ) -> DiskSource:
        added = lambda chosen: pooled_cube(cube, where_steady(chosen, first.origin))  # noqa: E731
        # from sums that hang on no answer: how all of a scan is searched is no matter of rounding
        planned = plan_search(added(np.broadcast_to(usual, members.shape)), config)
        again = found(planned._replace(cube=added(members)), "disks of sums")
        scan = calibrated(again, opened.config.pixel_size)
        return replace(source_of(scan), instrument=source.instrument)

    return replace(source, pooled=pooled)


def _credited(instrument: Instrument, options: ReadOptions) -> Instrument:
    """The instrument, saying who stated the size of a pixel and its axes, and which frames are the
    scan.
    """
    given, calibrated = options.given(), options.calibration or {}
    said = {name: "calibrated" for name, entry in _ENTRIES.items() if entry in calibrated}
    said |= {name: "as given" for name in _ENTRIES if name in given}
    frames = []
    if "frames" in given:
        frames.append(
            "the scan is frames {} to {}".format(given["frames"][0], given["frames"][1] - 1)
        )
    if given.get("skip_frames"):
        frames.append(f"frames skipped at the start: {given['skip_frames']}")
    if given.get("flyback"):
        frames.append(f"left out at the end of each row: {given['flyback']}")
    return replace(
        instrument,
        pixel_size_from=said.pop("pixel_size", instrument.pixel_size_from),
        axes_from=tuple(said.items()),
        frames=", ".join(frames) or None,
    )


_ENTRIES = {
    "pixel_size": "Q_pixel_size",
    "rotation_deg": "QR_rotation",
    "transpose": "QR_flip",
    "flip": "Q_flip",
    "ellipse": "a",
}
"""The entry of a calibration that says what an option does."""


def _all_stated(path: Path, options: ReadOptions, needs_voltage: bool) -> DiskSource | Cube:
    """The file, opened; InputError for all that it does not state."""
    missing: dict[str, NotStated] = {}
    while True:
        # with a stand-in for what is missing, to see what else is
        stand_ins = {lacking.option: lacking.stand_in for lacking in missing.values()}
        try:
            opened = _opened(path, replace(options, **stand_ins), needs_voltage)
            break
        except NotStated as lacking:
            if lacking.option in missing:  # its stand-in did not help
                raise
            missing[lacking.option] = lacking
    if not missing:
        return opened
    order = [name for name in _HOW if name in missing]
    what = _listed(missing[name].what for name in order)
    how = _listed(f"{option(name)} {_HOW[name]}" for name in order)
    raise InputError(f"{path} does not state {what}; give {how}.")


def _opened(path: Path, options: ReadOptions, needs_voltage: bool) -> DiskSource | Cube:
    listed = open_disks(path, options)
    opened = open_cube(path, options) if listed is None else listed
    if isinstance(opened, Cube) and opened.pixel_size is None and options.pixel_size is None:
        raise NotStated(f"{path}: no pixel size", **missing_scale(opened.pixel_units))
    if needs_voltage and opened.voltage_kv is None:
        stand_in = {"what": "the voltage", "option": "voltage_kv", "stand_in": 300.0}
        raise NotStated(f"{path}: no voltage", **stand_in)
    return opened


def _listed(words) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def open_disks(path: str | Path, options: ReadOptions) -> DiskSource | None:
    """The calibrated disks of a file that lists them; None for raw patterns.

    Raises InputError as `open_scan` does.
    """
    path = Path(path)
    read = _calibrated_already(path)
    if read is None and (format_of(path) is not None or not holds_disks(path)):
        return None
    options.refuse((*OF_PATTERNS, *OF_FRAMES), f"{path} lists disks that were found already")
    if read is not None:
        options.refuse(OF_PIXELS, f"{path} holds disks in 1/Å already")
        source = read(path)
        if options.voltage_kv is not None:
            source = replace(source, voltage_kv=options.voltage_kv)
        source = as_listed(source, options)
    else:
        source = bragg_source(path, options.entries(), options.voltage_kv)
    source = _without_flyback(source, options.flyback or 0)
    if options.scan_shape not in (None, tuple(source.scan_shape)):
        (rows, columns), given = source.scan_shape, options.scan_shape
        raise InputError(
            f"{path} holds {rows} × {columns} positions, not {given[0]} × {given[1]}; leave out "
            "--scan-shape."
        )
    return source


def as_listed(source: DiskSource, options: ReadOptions) -> DiskSource:
    """Disks in 1/Å, flipped, transposed, turned and stretched as the options say."""
    listed = replace(source.instrument, axes="axes as listed")
    if not set(OF_AXES) & options.given().keys():
        return replace(source, instrument=listed)
    entries = changed({"Q_pixel_size": 1.0, "Q_pixel_units": "A^-1"}, options.entries())
    source = source_turned(source, axes_matrix(entries, source.source))
    return replace(source, instrument=replace(listed, **stated_axes(entries)))


def _without_flyback(source: DiskSource, flyback: int) -> DiskSource:
    """The disks of a scan without the last positions of each row."""
    rows, columns = source.scan_shape
    if not flyback:
        return source
    if flyback >= columns:
        raise InputError(
            f"{source.source} has {columns} positions in a row, of which --flyback {flyback} "
            "leaves none; give fewer."
        )
    return source.at(range(rows), range(columns - flyback))


def open_cube(path: str | Path, options: ReadOptions) -> Cube:
    """The raw patterns of a file. Raises InputError as `read_cube` does."""
    given = options.scan_shape, options.entries(), options.voltage_kv
    return read_cube(path, *given, options.of_file())


def searchable(
    patterns: str | Path | Cube | Shaped[np.ndarray, "..."],
    options: ReadOptions,
    config: DetectConfig | None = None,
    scan_step: float = 1.0,
    scan_units: str = "pixels",
) -> tuple[Cube, DetectConfig]:
    """The patterns of a file, a cube or an array (ny, nx, height, width) as a cube that says what
    the options do, and how its disks are found.

    `scan_step` in `scan_units`: of an array. Raises InputError as `read_cube` does, for an array
    that is no scan, and where the size of a pixel is not known.
    """
    config = options.detection(config or DetectConfig())
    if options.pixel_size is not None:  # it is the cube's then
        config = replace(config, pixel_size=None)
    if isinstance(patterns, str | Path | Cube) and (scan_step, scan_units) != (1.0, "pixels"):
        raise InputError("scan_step and scan_units are an array's; leave them out for a file.")
    if isinstance(patterns, str | Path):
        cube = open_cube(patterns, options)
    else:
        options.refuse(("scan_shape",), "An array has its shape")
        cube = patterns
        if not isinstance(patterns, Cube):
            array = patterns if isinstance(patterns, np.ndarray) else np.asarray(patterns)
            cube = cube_from_array(array, options.pixel_size, scan_step, scan_units)
        cube = framed(cube, cube.scan_shape, None, options.of_file())
        calibration, size = changed(cube.calibration, options.entries()), None
        if "Q_pixel_size" in calibration:
            size = stated_pixel_size(calibration, cube.source)
        stated = {"pixel_size": size, "voltage_kv": options.voltage_kv}
        stated = {name: value for name, value in stated.items() if value is not None}
        cube = replace(cube, calibration=calibration, **stated)
    if config.pixel_size is None and cube.pixel_size is None and not cube.pixel_units:
        raise InputError(f"{cube.source} states no detector pixel size; give pixel_size in 1/Å.")
    return cube, config


def _calibrated_already(path: Path) -> Callable[[Path], DiskSource] | None:
    """The reader of a file whose disks are in 1/Å, None for another file."""
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return lambda path: source_of(read_csv(path))
    if suffix == ".hspy":
        return (lambda path: source_of(read_vectors(path))) if holds_vectors(path) else None
    if suffix not in READERS and suffix != ".raw" and is_packed(path):
        return packed_source
    return None


def read_scan(
    path: str | Path,
    options: ReadOptions | None = None,
    progress: bool | None = None,
    *,
    config: DetectConfig = DEFAULT,
    **stated: Any,
) -> DiskScan:
    """All calibrated disks of a file that `open_scan` opens, in memory; arguments as there.

    Raises InputError as `open_scan` does, for disks that cannot be used, and where there are none.
    """
    source = open_scan(path, options, progress, config=config, **stated)
    return source.whole()
