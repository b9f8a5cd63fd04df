# SPDX-License-Identifier: GPL-3.0-or-later
"""A mesh of one device."""

import jax
import pytest

from jaxstem.runtime import parallel


@pytest.fixture(scope="session")
def one_device():
    return parallel.make_mesh(jax.devices()[:1])
