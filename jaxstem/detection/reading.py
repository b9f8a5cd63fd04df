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

OF_PATTERNS = ("mask", "origin", "radius", "probe", "gain", "disk_method")
"""Options that matter to raw patterns alone."""

OF_PIXELS = ("pixel_size", "calibration", "rotation_deg", "flip")
"""Options that matter to detector pixels: to raw patterns, and to disks that are not in 1/Å yet."""


@dataclass(frozen=True, eq=False)
class ReadOptions:
    """What a scan's file does not say, or says wrong; None: as the file says, or from the data.

    pixel_size: of the detector [1/Å] (no 2π); calibration: entries that replace those of the file,
    in py4DSTEM's terms (`Calibration.entries`); rotation_deg: from detector to scan axes, turning
    qx towards qy; flip: whether qx and qy are exchanged before that; mask: True for the pixels to
    use (`read_mask`); origin: (row, column) of the direct beam [px]; radius: of the disks [px];
    probe: image of the beam in vacuum (`read_probe`); gain: stored numbers per electron;
    scan_shape: (rows, columns); voltage_kv [kV]; disk_method: how disks are found in raw patterns,
    "likelihood" or "correlation". Raises InputError for numbers that make no sense.
    """

    pixel_size: float | None = None
    calibration: Mapping[str, Any] | None = None
    rotation_deg: float | None = None
    flip: bool | None = None
    mask: Bool[np.ndarray, "H W"] | None = None
    origin: tuple[float, float] | None = None
    radius: float | None = None
    probe: Num[np.ndarray, "h w"] | None = None
    gain: float | None = None
    scan_shape: tuple[int, int] | None = None
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
        turned = self.rotation_deg is not None or "QR_rotation" in (self.calibration or {})
        if self.flip is not None and not turned:
            raise InputError(
                "--flip: state --rotation-deg too, 0 if there is none, for a calibration of "
                "py4DSTEM's has no flip without a rotation."
            )

    def entries(self) -> dict[str, Any]:
        """Entries that replace those of a file's calibration."""
        entries = dict(self.calibration or {})
        if self.pixel_size is not None:
            entries |= {"Q_pixel_size": float(self.pixel_size), "Q_pixel_units": "A^-1"}
        if self.rotation_deg is not None:
            entries["QR_rotation"] = math.radians(self.rotation_deg)
        if self.flip is not None:
            entries["QR_flip"] = bool(self.flip)
        return entries

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
    for name, kind in (("origin", float), ("scan_shape", int)):
        if name in values:
            values[name] = tuple(kind(x) for x in values[name])
    if "mask" in values:
        values["mask"] = np.asarray(values["mask"], bool)
    return ReadOptions(**values)
