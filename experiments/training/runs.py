# SPDX-License-Identifier: GPL-3.0-or-later
"""What the arguments of this room's scripts say of the crystal, and how a run becomes small."""

import dataclasses
from typing import Any

from jaxstem.crystal.cell import Crystal
from jaxstem.diffraction.material import Material, make_material
from jaxstem.diffraction.settings import Microscope, Specimen


def material_of(crystal: Crystal, arguments: Any, spacing_deg: float) -> Material:
    """The crystal on a grid, at the arguments' voltage [kV] and k_max [1/Å], as it usually
    vibrates.
    """
    microscope = Microscope(arguments.voltage_kv, k_max=arguments.k_max)
    return make_material(crystal, microscope, Specimen(), spacing_deg)


def tiny(arguments: Any) -> Any:
    """Arguments of a script that trains, for `--quick`: four steps of sixteen two-beam patterns up
    to 1.2 1/Å with a network of width 16, tested on sixteen.
    """
    width = dict(width=16, blocks=1, heads=2, feedforward=16)
    network = dataclasses.replace(arguments.network, **width)
    small = dict(steps=4, batch=16, n_test=16, physics="two_beam", k_max=1.2, network=network)
    return dataclasses.replace(arguments, **small)
