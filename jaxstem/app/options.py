# SPDX-License-Identifier: GPL-3.0-or-later
"""Options that several commands share."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from jaxstem.errors import InputError

if TYPE_CHECKING:
    from jaxstem.detection.config import DetectConfig
    from jaxstem.files.scan import DiskSource


OF_FILE = "(default: what the file states)"

OF_PRESET = "(default: the preset's)"


@dataclass(frozen=True)
class Reading:
    """How a scan is read where its file does not say, or says it wrong.

    Attributes:
        pixel_size: Size of a detector pixel in 1/Å.
        calibration: Pixel size and ellipse that `jaxstem calibrate` found.
        rotation_deg: From detector to scan axes, turning qx towards qy.
        scan_shape: Rows and columns of the scan.
        mask: Detector pixels to leave out: an image or .npy in which they are not 0.
        origin: Row and column of the direct beam, where it cannot be seen.
        radius: Radius of the disks in detector pixels.
        probe: The beam in vacuum, an image or .npy: the template that disks are compared with.
        gain: Stored numbers per electron, where the scatter of the counts does not tell.
    """

    pixel_size: Annotated[
        float | None, tyro.conf.arg(metavar="1/Å", help_behavior_hint=OF_FILE)
    ] = None
    calibration: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE.json", help_behavior_hint=OF_FILE)
    ] = None
    rotation_deg: Annotated[
        float | None, tyro.conf.arg(metavar="DEG", help_behavior_hint=OF_FILE)
    ] = None
    scan_shape: Annotated[
        tuple[int, int] | None, tyro.conf.arg(metavar="ROWS COLUMNS", help_behavior_hint=OF_FILE)
    ] = None
    mask: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: dead and hot)")
    ] = None
    origin: Annotated[
        tuple[float, float] | None,
        tyro.conf.arg(metavar="ROW COLUMN", help_behavior_hint="(default: from the beam)"),
    ] = None
    radius: Annotated[
        float | None, tyro.conf.arg(metavar="PX", help_behavior_hint="(default: from the beam)")
    ] = None
    probe: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: from the beam)")
    ] = None
    gain: Annotated[
        float | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: from the counts)")
    ] = None

    def changes(self) -> dict[str, Any]:
        """Entries that replace those of a file's calibration. Raises InputError."""
        entries: dict[str, Any] = {}
        if self.calibration:
            from jaxstem.detection.calibration import read_calibration

            entries |= read_calibration(self.calibration).entries()
        if self.pixel_size is not None:
            require_between("--pixel-size", self.pixel_size, 1e-6, 10.0, "1/Å")
            entries |= {"Q_pixel_size": self.pixel_size, "Q_pixel_units": "A^-1"}
        if self.rotation_deg is not None:
            require_between("--rotation-deg", self.rotation_deg, -360.0, 360.0, "degrees")
            entries["QR_rotation"] = math.radians(self.rotation_deg)
        return entries

    def detection(self, **settings: Any) -> DetectConfig:
        """How disks are found in raw patterns. Raises InputError."""
        from jaxstem.detection.config import DetectConfig, read_mask, read_probe

        mask = read_mask(self.mask) if self.mask else None
        probe = read_probe(self.probe) if self.probe else None
        if self.gain is not None:
            require_between("--gain", self.gain, 1e-6, 1e6)
        given = {"origin": self.origin, "radius": self.radius, "gain": self.gain}
        return DetectConfig(mask=mask, probe=probe, **given, **settings)

    def opened(
        self,
        scan: Path,
        voltage_kv: float | None = None,
        progress: bool | None = None,
        disk_method: DiskMethod = "likelihood",
    ) -> DiskSource:
        """The disks of a scan, taken at `voltage_kv` [kV] if not None. Raises InputError."""
        from jaxstem.detection.opening import open_scan

        config, changes = self.detection(method=disk_method), self.changes()
        return open_scan(scan, config, progress, self.scan_shape, changes, voltage_kv)


ReadingOptions = Annotated[Reading, tyro.conf.arg(name="")]

DiskMethod = Literal["likelihood", "correlation"]


@dataclass(frozen=True)
class Correlating:
    """How `--method correlation` finds disks.

    Attributes:
        correlation_power: From 0, phase correlation, to 1, cross-correlation.
        subpixel: How maxima are placed below a pixel: a parabola, or a Fourier transform upsampled
            about them.
        upsample: Points a pixel of --subpixel upsampled.
        blur: Standard deviation of the correlogram's blur in pixels.
        min_intensity: Smallest intensity of a disk, in electrons for --correlation-power 1.
        min_relative_intensity: The same as a share of the brightest disk's.
    """

    correlation_power: Annotated[float, tyro.conf.arg(metavar="P")] = 1.0
    subpixel: Literal["none", "poly", "upsampled"] = "upsampled"
    upsample: Annotated[int, tyro.conf.arg(metavar="N")] = 16
    blur: Annotated[float, tyro.conf.arg(metavar="PX")] = 0.0
    min_intensity: Annotated[float, tyro.conf.arg(metavar="I")] = 0.0
    min_relative_intensity: Annotated[float, tyro.conf.arg(metavar="SHARE")] = 0.0

    def settings(self):
        """The same for `DetectConfig.correlation`."""
        from jaxstem.detection.config import Correlation

        values = asdict(self)
        return Correlation(power=values.pop("correlation_power"), **values)


CorrelatingOptions = Annotated[Correlating, tyro.conf.arg(name="")]


def require_between(option: str, value: float, low: float, high: float, unit: str = "") -> None:
    if not low <= value <= high:
        raise InputError(
            f"{option} {value:g}: give a number from {low:g} to {high:g} {unit}".rstrip() + "."
        )
