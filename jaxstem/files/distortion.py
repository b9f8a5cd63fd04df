# SPDX-License-Identifier: GPL-3.0-or-later
"""By how much a scan's calibration is wrong, and the scan as it would be without that."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxstem.files.light import Detector, Light, ScanLight
from jaxstem.files.scan import DiskScan, DiskSource, Instrument


class Distortion(NamedTuple):
    """Where disks are measured that belong at q: (1 + stretch) q + shift + drift.

    stretch: symmetric, for a turn is one of the crystal; shift [1/Å]; drift [1/Å]: what is added to
    the shift at `evenly` chosen rows and columns of the scan, None where the shift is the same
    everywhere.
    """

    stretch: Float[np.ndarray, "2 2"]
    shift: Float[np.ndarray, " 2"]
    drift: Float[np.ndarray, "m n 2"] | None = None

    @property
    def scale(self) -> float:
        """Measured over true distance, on average over directions."""
        return 1.0 + 0.5 * float(np.trace(self.stretch))

    @property
    def ellipse(self) -> tuple[float, float]:
        """By which share rings are longer than they are wide, and where they are longest [degrees
        from qx towards qy, 0 to 180].
        """
        values, vectors = np.linalg.eigh(self.stretch)
        angle = math.degrees(math.atan2(vectors[1, 1], vectors[0, 1]))
        return float(values[1] - values[0]), angle % 180.0

    @property
    def parts(self) -> tuple[Distortion, Distortion, Distortion]:
        """Of it the scale, the ellipse and the shift alone."""
        scale, none = (self.scale - 1.0) * np.eye(2), undistorted()
        return (
            none._replace(stretch=scale),
            none._replace(stretch=self.stretch - scale),
            none._replace(shift=self.shift),
        )

    @property
    def most(self) -> float:
        """By how much a disk at 1 1/Å is moved at most [1/Å]."""
        shift = self.shift if self.drift is None else self.shift + self.drift
        stretch = np.abs(np.linalg.eigvalsh(self.stretch)).max()
        return float(stretch + np.hypot(shift[..., 0], shift[..., 1]).max())

    def after(self, other: Distortion) -> Distortion:
        """Both, this one of what the other leaves."""
        stretch = self.stretch + other.stretch + self.stretch @ other.stretch
        shift = self.shift + (np.eye(2) + self.stretch) @ other.shift
        return Distortion(0.5 * (stretch + stretch.T), shift, self.drift)

    @property
    def numbers(self) -> Float[np.ndarray, " 5"]:
        """Stretch xx, xy, yy, shift x, y: all but the drift; `from_numbers` goes back."""
        return np.array([*self.stretch[[0, 0, 1], [0, 1, 1]], *self.shift])

    def drift_at(
        self,
        rows: Int[np.ndarray, " r"],
        columns: Int[np.ndarray, " c"],
        scan_shape: tuple[int, int],
    ) -> Float[np.ndarray, "r c 2"]:
        """The drift [1/Å] in these rows and columns of a scan, bilinear between those chosen."""
        if self.drift is None:
            return np.zeros((len(rows), len(columns), 2))
        from scipy import ndimage

        chosen = [evenly(n, m) for n, m in zip(scan_shape, self.drift.shape, strict=False)]
        place = [
            np.interp(x, of, np.arange(len(of)))
            for x, of in zip((rows, columns), chosen, strict=True)
        ]
        grid = np.meshgrid(*place, indexing="ij")
        of_axes = np.moveaxis(self.drift, -1, 0)
        return np.stack([ndimage.map_coordinates(x, grid, order=1) for x in of_axes], axis=-1)

    def stored(self) -> dict[str, Any]:
        """As the settings of a map hold it."""
        found = dict(zip(_NAMES, map(float, self.numbers), strict=True))
        return found if self.drift is None else found | {"drift": self.drift.astype(np.float32)}


def evenly(n: int, m: int) -> list[int]:
    """`m` of `n` rows or columns, spread evenly."""
    return [(2 * i + 1) * n // (2 * m) for i in range(m)]


_NAMES = ("stretch_xx", "stretch_xy", "stretch_yy", "shift_x", "shift_y")


def undistorted() -> Distortion:
    """Nothing to correct."""
    return Distortion(np.zeros((2, 2)), np.zeros(2))


def from_numbers(numbers: Sequence[float] | Float[np.ndarray, " 5"]) -> Distortion:
    """The distortion of these `numbers`."""
    xx, xy, yy, *shift = numbers
    return Distortion(np.array([[xx, xy], [xy, yy]]), np.array(shift))


def stored_distortion(settings: Mapping[str, Any]) -> Distortion:
    """The distortion that a map's settings hold; none where they hold none."""
    found = from_numbers([float(settings.get(name, 0.0)) for name in _NAMES])
    drift = settings.get("drift")
    return found if drift is None else found._replace(drift=np.asarray(drift, np.float32))


def corrected_scan(
    scan: DiskScan, found: Distortion, drift: Float[np.ndarray, "ny nx 2"] | None = None
) -> DiskScan:
    """A scan in memory with its disks where they belong, and its counts as well; `drift` that of
    its positions [1/Å], if they are not all of those that the distortion was found in.
    """
    if drift is None:
        rows, columns = map(np.arange, scan.scan_shape)
        drift = found.drift_at(rows, columns, scan.scan_shape)
    moved = np.repeat(drift.reshape(-1, 2), np.diff(scan.offsets), axis=0) + found.shift
    measured = np.stack([scan.qx - moved[:, 0], scan.qy - moved[:, 1]])
    qx, qy = np.linalg.inv(np.eye(2) + found.stretch) @ measured
    light = scan.light
    if light is not None:
        detector, moved = _corrected_detector(light.detector, found)
        light = ScanLight(light.light._replace(centre=light.light.centre + moved), detector)
    return replace(
        scan,
        qx=qx.astype(scan.qx.dtype),
        qy=qy.astype(scan.qy.dtype),
        instrument=_corrected_instrument(scan.instrument, found),
        light=light,
    )


def corrected(source: DiskSource, found: Distortion) -> DiskSource:
    """The same of a scan that is read when asked for; raises InputError then as the scan does."""
    columns = np.arange(source.scan_shape[1])

    def read(start: int, stop: int) -> DiskScan:
        drift = found.drift_at(np.arange(start, stop), columns, source.scan_shape)
        return corrected_scan(source.read(start, stop), found, drift)

    changed = {
        "read": read,
        "instrument": _corrected_instrument(source.instrument, found),
    }
    if source.detector is not None:
        detector, moved = _corrected_detector(source.detector, found)

        def read_light(start: int, stop: int) -> Light:
            light = source.read_light(start, stop)
            return light._replace(centre=light.centre + moved)

        changed |= {"detector": detector, "read_light": read_light}
    if source.pooled is not None:
        changed["pooled"] = lambda *of: corrected(source.pooled(*of), found)
    return replace(source, **changed)


def _corrected_detector(
    detector: Detector, found: Distortion
) -> tuple[Detector, Float[np.ndarray, " 2"]]:
    """What a scan's counts share, with places as they are measured, and by how much the beam's
    place is moved there.
    """
    to_places = np.asarray(detector.to_places, np.float64)
    stretched = to_places @ (np.eye(2) + found.stretch)
    detector = detector._replace(
        to_places=stretched.astype(np.float32), disk=np.float32(detector.disk / found.scale)
    )
    return detector, (to_places @ found.shift).astype(np.float32)


def _corrected_instrument(instrument: Instrument, found: Distortion) -> Instrument:
    size, by = instrument.pixel_size, instrument.pixel_size_from
    if size is None or math.isclose(found.scale, 1.0, rel_tol=1e-9):
        return instrument
    return replace(instrument, pixel_size=size / found.scale, pixel_size_from=f"{by}, corrected")
