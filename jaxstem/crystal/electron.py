# SPDX-License-Identifier: GPL-3.0-or-later
"""The electron in the microscope: its rest energy and its wave."""

import math

from jaxstem.errors import InputError

_PLANCK_TIMES_LIGHT_SPEED = 12398.419843320026  # eV Å
ELECTRON_REST_ENERGY = 510998.95  # eV


def electron_wavelength(energy_ev: float) -> float:
    """Relativistic de Broglie wavelength (Å) of an electron of kinetic energy `energy_ev` (eV).

    lambda = h c / sqrt(E (E + 2 m c²)), with the CODATA 2018 values of h c and m c².
    Raises InputError unless the energy is a positive, finite number.
    """
    if not (math.isfinite(energy_ev) and energy_ev > 0):
        raise InputError(f"The beam energy is {energy_ev} eV: give a positive number.")
    return _PLANCK_TIMES_LIGHT_SPEED / math.sqrt(energy_ev * (energy_ev + 2 * ELECTRON_REST_ENERGY))
