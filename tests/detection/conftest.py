# SPDX-License-Identifier: GPL-3.0-or-later
"""Patterns with many disks, and what is found in them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DISK_RADIUS, patterns_of_disks

from jaxstem.detection.config import DetectConfig
from jaxstem.detection.likelihood import detect_patterns
from jaxstem.detection.plan import make_plan


@pytest.fixture(scope="session")
def settings():
    """Radius and edge given, so that all tests share one compiled program."""
    return DetectConfig(radius=DISK_RADIUS, edge=1.2, n_disks=16, chunk=32, n_sample=64)


@pytest.fixture(scope="session")
def detect(settings):
    """What finds the disks of patterns."""

    def found(patterns, config=settings):
        plan, layout = make_plan(patterns, config)
        disks = detect_patterns(jnp.asarray(patterns), plan, layout=layout)
        return jax.tree.map(np.asarray, disks)

    return found


@pytest.fixture(scope="module")
def crowd(quick_compile, detect):
    """32 patterns, places and weights of the disks in them, places of the beam, what was found."""
    seed = int(np.random.SeedSequence().entropy % 2**31)
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    expected, centres, weights, beams = patterns_of_disks(rng)
    patterns = rng.poisson(expected).astype(np.uint16)
    return patterns, centres, weights, beams, detect(patterns)
