# SPDX-License-Identifier: GPL-3.0-or-later
"""Laue groups as orix has them, and the two precisions: what tests of this room are run for."""

import jax
import numpy as np
import pytest

from jaxstem.crystal.setting import orix_group

GROUPS = "m-3m", "6/mmm", "-3m", "2/m", "-1"


@pytest.fixture(scope="session")
def operations():
    """The proper operations (n, 3, 3) of each Laue group, as orix has them."""
    groups = {name: orix_group(name).laue_proper_subgroup for name in GROUPS}
    return {name: group.to_matrix().reshape(-1, 3, 3) for name, group in groups.items()}


@pytest.fixture(params=GROUPS)
def group(request):
    return request.param


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture(scope="module", params=["quick", pytest.param("optimised", marks=pytest.mark.slow)])
def compiler(request):
    """Programs compiled without optimisation, which takes half the time, and with it as usual."""
    name = "jax_disable_most_optimizations"
    before = jax.config.values[name]
    jax.config.update(name, request.param == "quick")
    jax.clear_caches()
    yield
    jax.config.update(name, before)
    jax.clear_caches()
