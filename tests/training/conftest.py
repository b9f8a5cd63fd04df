# SPDX-License-Identifier: GPL-3.0-or-later
"""A mesh of one device, and two phases to train on."""

import jax
import pytest

from jaxstem.diffraction.material import make_material
from jaxstem.runtime import parallel


@pytest.fixture(scope="session")
def one_device():
    return parallel.make_mesh(jax.devices()[:1])


@pytest.fixture(scope="session")
def two(copper, crystals):
    """Copper and magnesium."""
    return copper, make_material(crystals["Mg"], copper.microscope, copper.specimen, 20.0)
