# SPDX-License-Identifier: GPL-3.0-or-later
"""Options that several commands share."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from jaxstem.app.console import Flag
from jaxstem.errors import InputError

if TYPE_CHECKING:
    from jaxstem.detection.config import Correlation
    from jaxstem.detection.reading import ReadOptions

OF_FILE = "(default: what the file states)"

OF_ALL, OF_NONE = "(default: all)", "(default: none)"

OF_PRESET = "(default: the preset's)"


@dataclass(frozen=True)
class Reading:
    """How a scan is read where its file does not say, or says it wrong.

    Attributes:
        pixel_size: Size of a detector pixel in 1/Å.
        calibration: Pixel size and ellipse that `jaxstem calibrate` found.
        rotation_deg: From detector to scan axes, turning qx towards qy.
        transpose: Exchange the detector's rows and columns (qx and qy) before it is turned.
        untransposed: Leave them as they are, though the file states a transposition.
        flip: Reverse the detector's rows (upside down) or columns (left to right) before it is
            transposed and turned; for both turn by 180°.
        ellipse: Rings are RATIO times longer along DEG, from rows (qx) towards columns (qy), than
            across; taken out before all else, the pixel size being the mean.
        scan_shape: Rows and columns of the scan, flyback not counted.
        frames: The file's frames that are the scan, from START, counted from 0, to STOP - 1.
        skip_frames: Frames at the file's start that are not of the scan.
        flyback: Frames at the end of each scan row that are not of the scan.
        mask: Detector pixels to leave out: an image or .npy in which they are not 0.
        origin: Row and column of the direct beam, where it cannot be seen.
        radius: Radius of the disks in detector pixels.
        probe: The beam in vacuum, an image or .npy: the template that disks are compared with.
        gain: Stored numbers per electron, where the scatter of the counts does not tell.
        voltage_kv: The scan's accelerating voltage in kV, if its file states none or a wrong one.
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
    transpose: Annotated[Flag, tyro.conf.arg(help_behavior_hint=OF_FILE)] = False
    untransposed: Annotated[Flag, tyro.conf.arg(help_behavior_hint="")] = False
    flip: Annotated[
        Literal["rows", "columns", "none", ""],
        tyro.conf.arg(metavar="rows|columns|none", help_behavior_hint=OF_FILE),
    ] = ""
    ellipse: Annotated[
        tuple[float, float] | None, tyro.conf.arg(metavar="RATIO DEG", help_behavior_hint=OF_FILE)
    ] = None
    scan_shape: Annotated[
        tuple[int, int] | None, tyro.conf.arg(metavar="ROWS COLUMNS", help_behavior_hint=OF_FILE)
    ] = None
    frames: Annotated[
        tuple[int, int] | None, tyro.conf.arg(metavar="START STOP", help_behavior_hint=OF_ALL)
    ] = None
    skip_frames: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint=OF_NONE)] = (
        None
    )
    flyback: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint=OF_NONE)] = None
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
    voltage_kv: Annotated[float | None, tyro.conf.arg(metavar="KV", help_behavior_hint=OF_FILE)] = (
        None
    )

    def options(self) -> ReadOptions:
        """The same for `open_scan`, what files hold in the place of their names. Raises InputError
        for files and numbers that cannot be used.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if values.pop("untransposed"):
            if self.transpose:
                raise InputError("Give either --transpose or --untransposed.")
            values["transpose"] = False
        else:
            values["transpose"] = self.transpose or None
        values["flip"] = self.flip or None

        from jaxstem.detection.config import read_mask, read_probe
        from jaxstem.detection.reading import ReadOptions

        if self.calibration:
            from jaxstem.detection.calibration import read_calibration

            values["calibration"] = read_calibration(self.calibration).entries()
        values["mask"] = read_mask(self.mask) if self.mask else None
        values["probe"] = read_probe(self.probe) if self.probe else None
        return ReadOptions(**values)


DiskMethod = Literal["likelihood", "correlation"]


@dataclass(frozen=True)
class ReadingAny(Reading):
    """How a scan is read, be it of disks or of raw patterns.

    Attributes:
        disk_method: How disks are found in raw patterns: --method of `jaxstem detect`.
    """

    disk_method: DiskMethod = "likelihood"


ReadingOptions = Annotated[Reading, tyro.conf.arg(name="")]
ReadingAnyOptions = Annotated[ReadingAny, tyro.conf.arg(name="")]
AS_STATED, ANY_AS_STATED = Reading(), ReadingAny()


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

    def settings(self) -> Correlation:
        """The same for `DetectConfig.correlation`."""
        from jaxstem.detection.config import Correlation

        values = asdict(self)
        return Correlation(power=values.pop("correlation_power"), **values)


CorrelatingOptions = Annotated[Correlating, tyro.conf.arg(name="")]
AS_USUAL = Correlating()
