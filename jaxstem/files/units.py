# SPDX-License-Identifier: GPL-3.0-or-later
"""Units as files spell them: reciprocal lengths, angles, lengths, voltages."""

from __future__ import annotations

import math
import re
import unicodedata

import numpy as np

from jaxstem.crystal.electron import electron_wavelength
from jaxstem.errors import InputError, require_between
from jaxstem.files.hdf5 import is_number

_RECIPROCAL_UNITS = {"A^-1": 1.0, "Å^-1": 1.0, "1/A": 1.0, "1/Å": 1.0, "nm^-1": 0.1, "1/nm": 0.1}
"""Lengths of units in 1/Å."""

_ANGLES = {"mrad": 1e-3, "rad": 1.0}

VOLTAGE_KEY = re.compile(
    r"(accelerating_?voltage|acceleration_?voltage|beam_?voltage|voltage|high_?tension"
    r"|beam_?energy)(_?(?:k?e?v))?",
    re.IGNORECASE,
)

_VOLTAGE_TEXT = re.compile(r"\s*([-+0-9.eE]+?)\s*(k?e?V)?\s*", re.IGNORECASE)


def in_inverse_angstroms(units: str) -> float | None:
    """A unit of reciprocal length (no 2π) in 1/Å, in any usual spelling; None for another unit."""
    plain = unicodedata.normalize("NFC", str(units)).replace("⁻¹", "^-1")
    return _RECIPROCAL_UNITS.get(re.sub(r"[\s${}]", "", plain))


def angle_in_inverse_angstroms(units: str, voltage_kv: float | None) -> float | None:
    """A unit of scattering angle in 1/Å, θ / λ; None for another unit or without a voltage."""
    if units not in _ANGLES or voltage_kv is None:
        return None
    return _ANGLES[units] / electron_wavelength(1e3 * voltage_kv)


def without_angles(calibration: dict, voltage_kv: float | None) -> dict:
    """The calibration with a pixel size in 1/Å in the place of one in mrad, if it can be known."""
    factor = angle_in_inverse_angstroms(str(calibration.get("Q_pixel_units")), voltage_kv)
    size = calibration.get("Q_pixel_size")
    if factor is None or not is_number(size):
        return calibration
    return calibration | {"Q_pixel_size": factor * size, "Q_pixel_units": "A^-1"}


def in_kv(value, unit: str | None) -> float | None:
    """A stated voltage or energy in kV; None where it is no positive number."""
    if isinstance(value, str):
        match = _VOLTAGE_TEXT.fullmatch(value)
        try:
            value = float(match.group(1)) if match else None
        except ValueError:
            value = None
        unit = (match and match.group(2)) or unit
    if not is_number(value) or not np.isfinite(value) or value <= 0:
        return None
    in_kv = "k" in unit.lower() if unit else value < 1e4
    return float(value) if in_kv else value / 1e3


METRES = {"a": 1e-10, "å": 1e-10, "angstrom": 1e-10, "angstroms": 1e-10, "nm": 1e-9}
METRES |= {"um": 1e-6, "µm": 1e-6, "μm": 1e-6, "micron": 1e-6, "microns": 1e-6, "mm": 1e-3}
METRES |= {"pm": 1e-12, "m": 1.0}
"""Units of length by their spellings in lower case."""


def in_metres(step: float, units: str) -> float | None:
    """A scan step in metres; None where the unit is none of length, or the step not positive."""
    metres = METRES.get(_spelling(units))
    return step * metres if metres and math.isfinite(step) and step > 0 else None


def check_scan_step(step: float, units: str) -> None:
    """Raise InputError for a stated scan step that is no positive number, or in an unknown unit."""
    require_between("scan_step", step, 1e-12, 1e12)
    if not isinstance(units, str) or _spelling(units) not in {*METRES, "pixels", "px"}:
        raise InputError(f"scan_units {units!r}: give nm, Å, µm or pixels.")


def _spelling(units: str) -> str:
    return units.strip().lower().rstrip(".")
