# SPDX-License-Identifier: GPL-3.0-or-later
"""How a scan is opened, stated once: every command that opens one takes the same `ReadOptions`.

A map stores those that it was made with, so that its report opens the scan in the same way without
being told again. What cannot matter to a file is refused by `open_scan`, never ignored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, get_args

import numpy as np
from jaxtyping import Bool, Num

from jaxstem.detection.config import DEFAULT, DetectConfig, Method, check_pair
from jaxstem.errors import InputError, require_between
from jaxstem.files.stack import Frames

OF_PATTERNS = ("mask", "origin", "radius", "probe", "gain", "disk_method")
"""Options that matter to raw patterns alone."""

OF_PIXELS = ("pixel_size", "calibration")
"""Options that matter to detector pixels: to raw patterns, and to disks that are not in 1/Å yet."""

OF_AXES = ("rotation_deg", "transpose", "flip", "ellipse")
"""Options of the way from the detector's axes to the lab's, which matter to any scan."""

OF_FRAMES = ("frames", "skip_frames")
"""Options that matter to files of a camera's frames."""


@dataclass(frozen=True, eq=False)
class ReadOptions:
    """What a scan's file does not say, or says wrong; None: as the file says, or from the data.

    pixel_size: of the detector [1/Å] (no 2π); calibration: entries that replace those of the file,
    in py4DSTEM's terms (`Calibration.entries`); rotation_deg: from detector to scan axes, turning
    qx towards qy; transpose: whether qx and qy are exchanged before that; flip: what is reversed
    before that, the detector's "rows" or "columns", or "none"; ellipse: before all, how many times
    longer rings are along one direction than across, and which [degrees from qx towards qy];
    mask: True for the pixels to use (`read_mask`); origin: (row, column) of the direct beam [px];
    radius: of the disks [px]; probe: image of the beam in vacuum (`read_probe`); gain: stored
    numbers per electron; scan_shape: (rows, columns), flyback not counted; frames: the first one of
    a file's, counted from 0, and the one after the last; skip_frames: how many at its start are not
    of the scan; flyback: how many at the end of each scan row are not; voltage_kv [kV];
    disk_method: how disks are found in raw patterns, "likelihood" or "correlation". Raises
    InputError for numbers that make no sense, and where two options say the same.
    """

    pixel_size: float | None = None
    calibration: Mapping[str, Any] | None = None
    rotation_deg: float | None = None
    transpose: bool | None = None
    flip: str | None = None
    ellipse: tuple[float, float] | None = None
    mask: Bool[np.ndarray, "H W"] | None = None
    origin: tuple[float, float] | None = None
    radius: float | None = None
    probe: Num[np.ndarray, "h w"] | None = None
    gain: float | None = None
    scan_shape: tuple[int, int] | None = None
    frames: tuple[int, int] | None = None
    skip_frames: int | None = None
    flyback: int | None = None
    voltage_kv: float | None = None
    disk_method: str = "likelihood"

    def __post_init__(self) -> None:
        for name, value, low, high, unit in (
            ("pixel_size", self.pixel_size, 1e-6, 10.0, "1/Å"),
            ("rotation_deg", self.rotation_deg, -360.0, 360.0, "degrees"),
            ("radius", self.radius, 0.5, 1e4, "px"),
            ("gain", self.gain, 1e-6, 1e6, ""),
            ("voltage_kv", self.voltage_kv, 1.0, 10_000.0, "kV"),
        ):
            if value is not None:
                require_between(option(name), value, low, high, unit)
        check_pair("--origin", self.origin, 0.0, 1e6, "px")
        check_pair("--scan-shape", self.scan_shape, 1, 10**6)
        if self.disk_method not in get_args(Method):
            known = ", ".join(get_args(Method))
            raise InputError(f"{option('disk_method')} {self.disk_method!r}: give one of {known}.")
        for name in ("skip_frames", "flyback"):
            if getattr(self, name) is not None:
                require_between(option(name), getattr(self, name), 0, 10**9, whole=True)
        check_pair("--frames", self.frames, 0, 10**9)
        check_pair("--ellipse", self.ellipse, -360.0, 360.0)
        if self.ellipse is not None:
            require_between("--ellipse RATIO", self.ellipse[0], 1.0, 2.0)
        if self.flip is not None:
            from jaxstem.files.axes import FLIPS  # with jax, which refusals do not wait for

            if self.flip not in FLIPS:
                raise InputError(f"--flip {self.flip!r}: give one of {', '.join(FLIPS)}.")
        if self.ellipse is not None and "a" in (self.calibration or {}):
            raise InputError("--ellipse and --calibration both state the ellipse; leave one out.")
        if self.frames is not None and self.skip_frames is not None:
            raise InputError("--frames and --skip-frames both say where the scan starts; give one.")

    def entries(self) -> dict[str, Any]:
        """Entries that replace those of a file's calibration (`files.axes.changed`)."""
        entries = dict(self.calibration or {})
        if self.pixel_size is not None:
            entries |= {"Q_pixel_size": float(self.pixel_size), "Q_pixel_units": "A^-1"}
        if self.rotation_deg is not None:
            entries["QR_rotation"] = math.radians(self.rotation_deg)
        if self.transpose is not None:
            entries["QR_flip"] = bool(self.transpose)
        if self.flip is not None:
            entries["Q_flip"] = self.flip
        if self.ellipse is not None:
            ratio, along = map(float, self.ellipse)
            entries["Q_ellipse"] = (ratio, math.radians(along))
        return entries

    def of_file(self) -> Frames:
        """Which of a file's frames are the scan."""
        start, stop = self.frames or (self.skip_frames or 0, None)
        return Frames(start, stop, self.flyback or 0)

    def detection(self, config: DetectConfig = DEFAULT) -> DetectConfig:
        """The settings of the detection with what is given here in their place."""
        given = {name: value for name, value in self.given().items() if name in OF_PATTERNS}
        method = given.pop("disk_method", config.method)
        return replace(config, method=method, **given)

    def given(self) -> dict[str, Any]:
        """The options that are not as usual, by their names; what `ReadOptions(**given)` takes."""
        usual = {field.name: field.default for field in fields(self)}
        values = {name: getattr(self, name) for name in usual}
        return {
            name: value
            for name, value in values.items()
            if value is not None and not (isinstance(value, str) and value == usual[name])
        }

    def over(self, other: ReadOptions) -> ReadOptions:
        """These options, and those of another where these do not say."""
        return ReadOptions(**other.given() | self.given())

    def refuse(self, names: tuple[str, ...], why: str) -> None:
        """Raise InputError, saying why, if one of these options is given."""
        given = [option(name) for name in names if name in self.given()]
        if given:
            raise InputError(f"{why}; leave out {' and '.join(given)}.")


def option(name: str) -> str:
    """An option of the command line from its name here."""
    return "--" + name.replace("_", "-")


_PAIRS = (("origin", float), ("ellipse", float), ("scan_shape", int), ("frames", int))


def stored(settings: Mapping[str, Any]) -> ReadOptions:
    """The options that a file's settings hold, numbers and arrays as HDF5 gives them back.

    Raises InputError for others, as a later version may have, and for values that make no sense.
    """
    values = dict(settings)
    strange = sorted(set(values) - {field.name for field in fields(ReadOptions)})
    if strange:
        raise InputError(
            f"The scan was read with '{strange[0]}', which this jaxstem does not know; update it."
        )
    if isinstance(values.get("flip"), bool | np.bool_):  # before rows and columns could be reversed
        values["transpose"] = bool(values.pop("flip"))
    for name, kind in _PAIRS:
        if name in values:
            values[name] = tuple(kind(x) for x in values[name])
    if "mask" in values:
        values["mask"] = np.asarray(values["mask"], bool)
    return ReadOptions(**values)
