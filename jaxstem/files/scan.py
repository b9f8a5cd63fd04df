# SPDX-License-Identifier: GPL-3.0-or-later
"""The disks of a scan, in memory or read when asked for.

A 4D-STEM scan is a grid of beam positions with one diffraction pattern each; after disk detection
a pattern is a short list of disks (qx, qy, intensity). The lists differ in length, so a scan is
held *flat*: all disks of all positions in one array, and `offsets` that say where each position's
begin. Position p = (row, column) of a scan of shape (ny, nx) has the flat index row * nx + column
and owns the disks `offsets[p]:offsets[p + 1]`. `pad_disks` turns chosen positions into the
rectangular arrays with a mask that the network takes.

A scan of millions of positions need not lie in memory: a `DiskSource` knows its shape and reads
some scan rows at a time; `source_of` makes one of a `DiskScan`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxstem.errors import InputError
from jaxstem.files.light import Detector, Light, ScanLight

DISK_FIELDS = ("qx", "qy", "intensity")
LARGEST = 1e30  # values beyond it, which float32 can barely hold, are rubbish like infinities


BY_FILE = "stated by the file"
"""Who says how large a pixel is, where no user does."""


@dataclass(frozen=True)
class Instrument:
    """What was understood of a scan's detector and beam; None: not known, or not to be told apart.

    pixel_size: of the detector [1/Å], the geometric mean over directions; pixel_size_from: who says
    so; rotation_deg: of the detector's axes against the scan's, qx and qy exchanged before where
    `transposed`, and before that rows or columns reversed by `flip` (`files.axes`); ellipse: how
    much longer rings are along one direction than across it, and which [degrees from qx towards
    qy]; axes: what the reader knows of the detector's axes; axes_from: who says the others, by the
    names of `ReadOptions`, the file where none is named; frames: which of a file's are the scan,
    in words, where not all; centre: mean (row, column) of the direct beam [px]; radius: of the
    disks [px]; dose: median electrons in a pattern; n_masked: detector pixels left out; clipped_at:
    stored number that larger ones are cut to; pedestal: that which stands for no electron;
    beam_unseen: whether the direct beam's counts cannot be told, hidden or cut as it is; incident:
    electrons of the beam, from elsewhere, where they cannot.
    """

    pixel_size: float | None = None
    pixel_size_from: str = BY_FILE
    rotation_deg: float | None = None
    transposed: bool = False
    flip: str = "none"
    ellipse: tuple[float, float] | None = None
    axes: str = "axes as stored"
    axes_from: tuple[tuple[str, str], ...] = ()
    frames: str | None = None
    centre: tuple[float, float] | None = None
    radius: float | None = None
    dose: float | None = None
    n_masked: int | None = None
    clipped_at: float | None = None
    pedestal: float = 0.0
    beam_unseen: bool = False
    incident: float | None = None

    def stored_beam(self) -> dict[str, bool | float]:
        """What was found out of a beam that cannot be measured, for a map's settings; else none."""
        if not self.beam_unseen:
            return {}
        return {"unseen": True} | ({"incident": self.incident} if self.incident else {})

    def with_stored_beam(self, settings: Mapping[str, Any]) -> Instrument:
        """The instrument with the beam that such settings tell of."""
        if not settings.get("unseen"):
            return self
        return replace(self, beam_unseen=True, incident=settings.get("incident"))


@dataclass(frozen=True)
class DiskScan:
    """The calibrated disks of a scan, flat (see the module's docstring), direct beam included.

    qx, qy in 1/Å in the lab frame; intensity in the units of the disk detection; scan_step in
    scan_units; voltage_kv in kV, None where the file does not say; instrument: what else is known;
    light: the counts of the patterns in which the disks were found, where they are at hand.
    """

    qx: Float[np.ndarray, "total"]
    qy: Float[np.ndarray, "total"]
    intensity: Float[np.ndarray, "total"]
    offsets: Int[np.ndarray, "positions_plus_1"]
    scan_shape: tuple[int, int]
    scan_step: float
    scan_units: str
    voltage_kv: float | None
    source: str
    instrument: Instrument = Instrument()
    light: ScanLight | None = None


Pooled = Callable[[Bool[np.ndarray, "ny nx n n"], Bool[np.ndarray, "n n"]], "DiskSource"]
"""What gives the disks of sums of a scan's patterns."""


@dataclass(frozen=True)
class DiskSource:
    """A scan whose disks are read when asked for, and what is known of it before.

    read: `read(start, stop)` gives the scan rows `start` to `stop - 1` as a `DiskScan` of their
    own, without its `light`, and raises InputError for disks that cannot be used; read_light: the
    counts of these rows, and detector: what they share, both None where there are none. Nothing is
    kept. pooled: `pooled(members, usual)` gives the disks of patterns added up
    (`detection.pooled_cube`), None where the patterns are not at hand: those of the `members` of
    each position, searched as sums of the `usual` positions around would be. The rest is as in
    `DiskScan`.
    """

    scan_shape: tuple[int, int]
    scan_step: float
    scan_units: str
    voltage_kv: float | None
    source: str
    read: Callable[[int, int], DiskScan]
    instrument: Instrument = Instrument()
    detector: Detector | None = None
    read_light: Callable[[int, int], Light] | None = None
    pooled: Pooled | None = None

    def whole(self) -> DiskScan:
        """All of it in memory. Raises InputError as `read` does, and where there is no disk."""
        n_rows = self.scan_shape[0]
        scan = self.read(0, n_rows)
        if not len(scan.qx):
            raise no_disk_at_all(self)
        light = self.read_light and ScanLight(self.read_light(0, n_rows), self.detector)
        return replace(scan, light=light, instrument=self.instrument)

    def at(self, rows: Sequence[int], columns: Sequence[int]) -> DiskSource:
        """The positions in these rows and columns, as a scan; rows are read one by one."""

        def read(start: int, stop: int) -> DiskScan:
            lines = []
            for row in rows[start:stop]:
                line = self.read(row, row + 1)
                each = source_of(replace(line, scan_shape=(line.scan_shape[1], 1)))
                chosen = [each.read(j, j + 1) for j in columns]
                lines.append(replace(joined(chosen), scan_shape=(1, len(columns))))
            return joined(lines)

        def read_light(start: int, stop: int) -> Light:
            lines = [self.read_light(row, row + 1) for row in rows[start:stop]]
            return Light(
                *(np.concatenate([x[list(columns)] for x in of]) for of in zip(*lines, strict=True))
            )

        return replace(
            self,
            scan_shape=(len(rows), len(columns)),
            read=read,
            read_light=self.read_light and read_light,
            pooled=None,
        )

    def known_by(self, instrument: Instrument) -> DiskSource:
        """The same scan, of whose detector and beam this is understood."""

        def read(start: int, stop: int) -> DiskScan:
            return replace(self.read(start, stop), instrument=instrument)

        return replace(self, instrument=instrument, read=read)

    def pieces(self, n_positions: int) -> list[tuple[int, int]]:
        """The scan cut into ranges of rows, each of about `n_positions` positions and one row at
        least.
        """
        n_rows, n_columns = self.scan_shape
        rows = max(1, n_positions // max(n_columns, 1))
        return [(start, min(start + rows, n_rows)) for start in range(0, n_rows, rows)]


def source_of(scan: DiskScan) -> DiskSource:
    """A scan in memory as a source; what it reads are views."""
    n_columns = scan.scan_shape[1]

    def read(start: int, stop: int) -> DiskScan:
        offsets = scan.offsets[start * n_columns : stop * n_columns + 1]
        own = slice(offsets[0], offsets[-1])
        return replace(
            scan,
            light=None,
            qx=scan.qx[own],
            qy=scan.qy[own],
            intensity=scan.intensity[own],
            offsets=offsets - offsets[0],
            scan_shape=(stop - start, n_columns),
        )

    def read_light(start: int, stop: int) -> Light:
        return scan.light.at(slice(start * n_columns, stop * n_columns)).light

    return DiskSource(
        scan.scan_shape,
        scan.scan_step,
        scan.scan_units,
        scan.voltage_kv,
        scan.source,
        read,
        scan.instrument,
        scan.light and scan.light.detector,
        scan.light and read_light,
    )


def check_scan(scan: DiskScan) -> None:
    """Raise InputError for a scan, made in memory, whose arrays do not fit together or hold disks
    that are not finite, as no reader gives them.
    """
    n_positions = int(np.prod(scan.scan_shape))
    lengths = {len(getattr(scan, name)) for name in DISK_FIELDS}
    offsets = np.asarray(scan.offsets)
    if len(lengths) > 1:
        problem = "'qx', 'qy' and 'intensity' differ in length; give one of each for a disk"
    elif offsets.shape != (n_positions + 1,):
        rows, columns = scan.scan_shape
        problem = (
            f"'offsets' has shape {offsets.shape}; give one more than {rows} × {columns} positions"
        )
    elif np.any(np.diff(offsets) < 0) or offsets[0] < 0 or offsets[-1] > max(lengths):
        problem = "'offsets' do not rise from 0 to the number of disks; correct them"
    elif not all((np.abs(getattr(scan, name)) < LARGEST).all() for name in DISK_FIELDS):
        problem = "a disk has a position or intensity that is not finite; leave it out"
    else:
        return
    raise InputError(f"{scan.source}: {problem}.")


def joined(scans: list[DiskScan]) -> DiskScan:
    """The disks of scans of the same number of columns, one below the other, as one."""
    ends = np.cumsum([0, *(len(scan.qx) for scan in scans)])
    offsets = [scan.offsets[1:] + end for scan, end in zip(scans, ends[:-1], strict=True)]
    return replace(
        scans[0],
        light=None,
        qx=np.concatenate([scan.qx for scan in scans]),
        qy=np.concatenate([scan.qy for scan in scans]),
        intensity=np.concatenate([scan.intensity for scan in scans]),
        offsets=np.concatenate([np.zeros(1, np.int64), *offsets]),
        scan_shape=(sum(scan.scan_shape[0] for scan in scans), scans[0].scan_shape[1]),
    )


def no_disk_at_all(source: DiskSource) -> InputError:
    """The complaint about a scan whose lists of disks are all empty."""
    return InputError(f"{source.source} holds no disk at any position; repeat the disk detection.")


def pad_disks(
    scan: DiskScan, index: Int[np.ndarray, "m"], k_max: float, k_min: float, n_max: int
) -> tuple[
    Float[np.ndarray, "m n_max"],
    Float[np.ndarray, "m n_max"],
    Float[np.ndarray, "m n_max"],
    Bool[np.ndarray, "m n_max"],
]:
    """(qx, qy, intensity, mask) of the strongest disks at the flat positions `index`.

    Takes disks of positive intensity with k_min < |q| <= k_max (1/Å), strongest first, at most
    n_max a position; padding is zero with mask False. k_min > 0 leaves the direct beam out.
    """
    index = np.asarray(index, dtype=np.int64)
    first, counts = scan.offsets[index], np.diff(scan.offsets)[index]
    row = np.repeat(np.arange(len(index)), counts)
    disk = np.arange(len(row)) + np.repeat(first - np.cumsum(counts) + counts, counts)
    radius = np.hypot(scan.qx[disk], scan.qy[disk])
    kept = (radius > k_min) & (radius <= k_max) & (scan.intensity[disk] > 0)
    row, disk = row[kept], disk[kept]
    order = np.lexsort((-scan.intensity[disk], row))
    row, disk = row[order], disk[order]
    column = np.arange(len(row)) - np.searchsorted(row, row)
    fits = column < n_max
    row, column, disk = row[fits], column[fits], disk[fits]

    def scatter(values):
        padded = np.zeros((len(index), n_max), dtype=values.dtype)
        padded[row, column] = values
        return padded

    mask = scatter(np.ones(len(disk), dtype=bool))
    return scatter(scan.qx[disk]), scatter(scan.qy[disk]), scatter(scan.intensity[disk]), mask
