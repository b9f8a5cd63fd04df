# SPDX-License-Identifier: GPL-3.0-or-later
"""What is stated once of microscope and specimen, and travels with models and maps.

Whoever diffracts takes these: the simulation of training patterns, the templates, the verification
of a map and the predictions of its report. Numbers are checked here, when they are stated, and
nowhere else; a setting that cannot be used raises InputError with the option that gives it.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxstem.crystal.electron import electron_wavelength
from jaxstem.errors import InputError, require_between

VOLTAGE_TOLERANCE = 0.01
"""Relative difference of voltage above which a model does not fit a scan."""


@dataclass(frozen=True)
class Microscope:
    """voltage_kv: accelerating voltage [kV]; semi_angle_mrad: convergence semi-angle of the probe;
    precession_deg: half-angle of the cone of a precessing beam; k_max [1/Å] (no 2π): disks beyond
    it are not used.
    """

    voltage_kv: float
    semi_angle_mrad: float = 1.5
    precession_deg: float = 0.0
    k_max: float = 2.5

    def __post_init__(self) -> None:
        require_between("--voltage-kv", self.voltage_kv, 1.0, 10_000.0, "kV")
        require_between("--semiangle-mrad", self.semi_angle_mrad, 0.0, 20.0, "mrad")
        require_between("--precession-deg", self.precession_deg, 0.0, 10.0, "degrees")
        require_between("--k-max", self.k_max, 0.01, 10.0, "1/Å")

    @property
    def wavelength(self) -> float:
        """Electron wavelength [Å]."""
        return electron_wavelength(1e3 * self.voltage_kv)

    @property
    def disk_radius(self) -> float:
        """Radius of a diffraction disk [1/Å]: the semi-angle by the wavelength."""
        return 1e-3 * self.semi_angle_mrad / self.wavelength


@dataclass(frozen=True)
class Specimen:
    """thickness: lowest and highest [Å] that are thought of; u_iso: mean square displacement of the
    atoms [Å²], the same for all.
    """

    thickness: tuple[float, float] = (20.0, 400.0)
    u_iso: float = 0.0064

    def __post_init__(self) -> None:
        if len(self.thickness) != 2:
            raise InputError(f"--thickness {self.thickness}: give the lowest and the highest.")
        for value in self.thickness:
            require_between("--thickness", value, 1.0, 1e5, "Å")
        low, high = self.thickness
        if not low < high:
            raise InputError(f"--thickness {low:g} {high:g}: give the lower one first.")
        require_between("--u-iso", self.u_iso, 0.0, 1.0, "Å^2")
