# SPDX-License-Identifier: GPL-3.0-or-later
"""The measured patterns and disks that a report shows beside the predicted ones.

Patterns are 8-bit grey PNGs of square roots of counts, which is where counting noise is equally
large everywhere. Shapes: `m` positions with patterns and disks.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Num

from jaxstem.detection.opening import open_cube, open_disks
from jaxstem.detection.reading import ReadOptions
from jaxstem.detection.scan import calibrated, find_disks, progress_bar
from jaxstem.errors import InputError
from jaxstem.files.calibration import calibrate_disks
from jaxstem.files.cube import Cube
from jaxstem.files.distortion import Distortion
from jaxstem.files.light import Light, ScanLight
from jaxstem.files.scan import DiskScan, DiskSource, joined, source_of
from jaxstem.maps.payload import grey_png, pack, pack_16
from jaxstem.maps.predicted import ReportConfig

PATTERNS_AN_IMAGE = 64
_MOST_SIDE = 256


class Patterns(NamedTuple):
    """Patterns as PNGs of `PATTERNS_AN_IMAGE` each side by side, and where they lie in q.

    side: (rows, columns) of a pattern; frame: q = M (row, column) + c of pixel centres, as
    (M00, M01, M10, M11, c0, c1) in 1/Å.
    """

    images: list[bytes]
    side: tuple[int, int]
    frame: Float[np.ndarray, "kept 6"]

    def corrected(self, found: Distortion, drift: Float[np.ndarray, "kept 2"]) -> Patterns:
        """The same patterns, lying where their disks belong; `drift` is theirs [1/Å]."""
        matrix, offset = self.frame[:, :4].reshape(-1, 2, 2), self.frame[:, 4:]
        back = np.linalg.inv(np.eye(2) + found.stretch)
        frame = [(back @ matrix).reshape(-1, 4), (offset - found.shift - drift) @ back.T]
        return self._replace(frame=np.concatenate(frame, axis=1))


def packed_disks(disks: DiskScan) -> dict:
    """Measured disks; positions to 0.0001 1/Å, intensities as shares of all at the position."""
    position = np.repeat(np.arange(len(disks.offsets) - 1), np.diff(disks.offsets))
    positive = np.maximum(disks.intensity, 0)
    total = np.bincount(position, positive, minlength=len(disks.offsets) - 1)
    order = np.lexsort((-positive, position))
    clipped = [np.clip(np.round(1e4 * q[order]), -32768, 32767) for q in (disks.qx, disks.qy)]
    share = positive / np.maximum(total[position], 1e-30)
    return {
        "offsets": pack(disks.offsets, np.uint32),
        "qx": pack(clipped[0], np.int16),
        "qy": pack(clipped[1], np.int16),
        "share": pack_16(share[order], 2e-5),
        "unit": 2e-5,
    }


def measured_patterns(
    scan: str | Path,
    shape: tuple[int, int],
    every: int,
    options: ReadOptions,
    config: ReportConfig,
    progress: bool | None,
    keep_light: bool = False,
) -> tuple[DiskScan, Patterns | None]:
    """Measured disks, and patterns of a raw scan, at each `every`-th row and column.

    The disks are those that `open_scan` gives: of a file with patterns and lists those of its
    lists. With `keep_light` their counts come with them, where the scan is raw or a file of
    `jaxstem detect` that holds them. Raises InputError as `open_scan` does, and for a scan that is
    not of `shape`.
    """
    listed = open_disks(scan, options)
    cube = _patterns_of(scan, shape, options)
    opened = listed if listed is not None else cube
    if tuple(opened.scan_shape) != tuple(shape):
        raise InputError(
            f"{scan} has {' × '.join(map(str, opened.scan_shape))} positions and the map "
            f"{' × '.join(map(str, shape))}; give the scan that was mapped."
        )
    thin = None if cube is None else thinned_cube(cube, every)
    if listed is None:
        with progress_bar(thin, progress) as advance:
            detections = find_disks(
                thin, options.detection(), progress=advance, keep_light=keep_light
            )
        return calibrated(detections), _patterns(thin, detections.origin, config)
    disks = _thinned_disks(listed, every, keep_light)
    if thin is None:
        return disks, None
    origin = [np.broadcast_to(thin.calibration[name], thin.scan_shape) for name in ("qx0", "qy0")]
    return disks, _patterns(thin, np.stack(origin, axis=-1), config)


def _patterns_of(scan: str | Path, shape: tuple[int, int], options: ReadOptions) -> Cube | None:
    """The patterns of a file; None where it has lists of disks alone.

    Some formats do not state the scan's shape, which is then the map's; others refuse to be told.
    """
    with contextlib.suppress(InputError):
        return open_cube(scan, options)
    with contextlib.suppress(InputError):
        return open_cube(scan, replace(options, scan_shape=shape))
    return None if open_disks(scan, options) is not None else open_cube(scan, options)


def thinned_cube(cube: Cube, every: int) -> Cube:
    """The cube at each `every`-th scan row and column."""
    if every == 1:
        return cube
    n_rows, n_columns = (-(-n // every) for n in cube.scan_shape)

    def read(rows: slice, columns: slice) -> np.ndarray:
        chosen = range(*rows.indices(n_rows))
        lines = [
            cube.read(slice(r * every, r * every + 1), slice(None))[0, ::every][columns]
            for r in chosen
        ]
        return np.stack(lines)

    calibration = {
        name: value[::every, ::every] if np.shape(value) == cube.scan_shape else value
        for name, value in cube.calibration.items()
    }
    return replace(
        cube, shape=(n_rows, n_columns, *cube.detector_shape), read=read, calibration=calibration
    )


def _thinned_disks(source: DiskSource, every: int, keep_light: bool) -> DiskScan:
    rows, counts = [], []
    keep_light = keep_light and source.detector is not None
    for row in range(0, source.scan_shape[0], every):
        line = source.read(row, row + 1)
        if every > 1:
            columns = [
                source_of(replace(line, scan_shape=(line.scan_shape[1], 1))).read(j, j + 1)
                for j in range(0, line.scan_shape[1], every)
            ]
            line = replace(joined(columns), scan_shape=(1, len(columns)))
        rows.append(line)
        if keep_light:
            counts.append(Light(*(x[::every] for x in source.read_light(row, row + 1))))
    disks = joined(rows)
    if not keep_light:
        return disks
    light = Light(*(np.concatenate(x) for x in zip(*counts, strict=True)))
    return replace(disks, light=ScanLight(light, source.detector))


def _patterns(
    cube: Cube, origin: Float[np.ndarray, "rows columns 2"], config: ReportConfig
) -> Patterns:
    """The patterns of a cube, binned and rooted, and their frames in q."""
    n_positions = math.prod(cube.scan_shape)
    most_side = min(_MOST_SIDE, math.sqrt(config.pattern_pixels / n_positions))
    binning = max(1, math.ceil(max(cube.detector_shape) / most_side))
    side = tuple(n // binning for n in cube.detector_shape)
    rooted = np.empty((n_positions, *side), np.float32)
    for row, line in enumerate(rooted.reshape(*cube.scan_shape, *side)):
        line[:] = _binned(cube.rows(row, row + 1)[0], binning)
    rooted -= max(0.0, float(np.percentile(rooted[:: max(1, n_positions // 256)], 1)))
    np.sqrt(np.maximum(rooted, 0, out=rooted), out=rooted)
    rooted *= 255 / max(float(rooted.max()), 1e-9)
    grey = np.round(rooted).astype(np.uint8)
    groups = range(0, n_positions, PATTERNS_AN_IMAGE)
    images = [grey_png(np.hstack(grey[g : g + PATTERNS_AN_IMAGE])) for g in groups]
    return Patterns(images, side, _frames(cube, origin, binning))


def _binned(patterns: Num[np.ndarray, "n height width"], binning: int) -> np.ndarray:
    height, width = (n // binning for n in patterns.shape[1:])
    cut = np.asarray(patterns[:, : height * binning, : width * binning], np.float32)
    return cut.reshape(-1, height, binning, width, binning).sum(axis=(2, 4))


def _frames(
    cube: Cube, origin: Float[np.ndarray, "rows columns 2"], binning: int
) -> Float[np.ndarray, "kept 6"]:
    """`Patterns.frame`, by the calibration that disks undergo."""
    centre = origin.reshape(-1, 1, 2)
    corners = centre + np.array([[0, 0], [1, 0], [0, 1]])
    points = np.rec.fromarrays([corners[..., 0].ravel(), corners[..., 1].ravel()], names="qx,qy")
    calibration = {**cube.calibration, "qx0": origin[..., 0], "qy0": origin[..., 1]}
    counts = np.full(len(centre), 3)
    q = calibrate_disks(points, counts, cube.scan_shape, calibration, cube.source)
    q = np.stack(q, axis=-1).reshape(-1, 3, 2)
    matrix = np.stack([q[:, 1] - q[:, 0], q[:, 2] - q[:, 0]], axis=-1)
    # the centre of binned pixel 0 is that of pixel (binning − 1) / 2
    first = np.full(2, (binning - 1) / 2) - origin.reshape(-1, 2)
    offset = np.einsum("nij,nj->ni", matrix, first)
    return np.concatenate([binning * matrix.reshape(-1, 4), offset], axis=1)
