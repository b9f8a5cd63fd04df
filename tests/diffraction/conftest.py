# SPDX-License-Identifier: GPL-3.0-or-later
"""Reflections of the fixtures' crystals, which the theories are asked about."""

from functools import cache

import jax.numpy as jnp
import numpy as np
import pytest

from jaxstem.crystal.cell import reflections
from jaxstem.diffraction.geometry import Reflectors
from jaxstem.diffraction.material import inverse_extinction


@pytest.fixture(scope="session")
def reflectors_of(crystals):
    """(name of a crystal, k_max [1/Å]) to its reflections at 300 kV."""

    @cache
    def make(name, k_max=2.0):
        found = reflections(crystals[name], k_max)
        strength = inverse_extinction(crystals[name], found.structure_factor, 300.0)
        intensity = np.abs(found.structure_factor) ** 2
        return Reflectors(*(jnp.asarray(x, jnp.float32) for x in (found.g, intensity, strength)))

    return make
