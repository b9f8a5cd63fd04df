# SPDX-License-Identifier: GPL-3.0-or-later
"""Eight simulated CPU devices for the whole suite (one device or eight, same result), fresh random
numbers, and a copper material with a coarse grid that the tests of the network share.
"""

import os
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
    # eight devices on two busy cores may wait long for each other
    + " --xla_cpu_collective_call_terminate_timeout_seconds=600"
)

# processes that compile orix into one cache at the same time can crash on what they then load
os.environ["NUMBA_CACHE_DIR"] = os.path.join(
    tempfile.gettempdir(),
    f"jaxstem-tests-numba-{zlib.crc32(sys.prefix.encode()):08x}",
    os.environ.get("PYTEST_XDIST_WORKER", "alone"),
)

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="module")
def quick_compile():
    """Compile without optimisation: these tests run each program for milliseconds."""
    import jax

    name = "jax_disable_most_optimizations"
    before = jax.config.values[name]
    jax.config.update(name, True)
    yield
    jax.config.update(name, before)


@pytest.fixture(scope="module")
def light_acquisition():
    """Training patterns with jitter and cropping only, for programs that compile sooner."""
    from jaxstem.training import patterns
    from jaxstem.training.acquisition import jitter_positions, keep_strongest

    def acquire(key, disks, config, n_disks, k_max):
        return keep_strongest(jitter_positions(key, disks, 0.01), n_disks, k_max)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patterns, "acquire", acquire)
        yield


@pytest.fixture
def seed():
    """A new seed each run, printed when the test fails."""
    seed = int(np.random.SeedSequence().entropy % 2**31)
    print(f"seed {seed}")
    return seed


@pytest.fixture
def rng(seed):
    return np.random.default_rng(seed)


@pytest.fixture
def key(seed):
    import jax

    return jax.random.key(seed)


@pytest.fixture(scope="session")
def crystals():
    """The five crystals of the fixtures by name."""
    from jaxstem.crystal.cell import read_cif

    return {name: read_cif(FIXTURES / f"{name}.cif") for name in "Cu Cu2O Mg TiO2 ZrO2".split()}


@pytest.fixture(scope="session")
def copper(crystals):
    """Cu at 300 kV up to 1.5 1/Å on a 12° grid (357 cells)."""
    from jaxstem.diffraction.material import make_material

    return make_material(crystals["Cu"], 300.0, 1.5, 12.0, 0.0)


@pytest.fixture(scope="session")
def tables(copper):
    """What verification tabulates for each cell of the copper grid."""
    from jaxstem.verification.candidates import candidate_tables

    return candidate_tables(
        copper.grid,
        copper.operations,
        copper.reflectors(),
        copper.wavelength,
        copper.crystal.lattice,
    )


@pytest.fixture(scope="session")
def tiny():
    """Training settings that compile in seconds: two-beam patterns, no templates or false disks."""
    from jaxstem.network.transformer import ModelConfig
    from jaxstem.training.acquisition import Acquisition
    from jaxstem.training.config import TrainConfig

    network = ModelConfig(
        width=16,
        blocks=1,
        heads=2,
        feedforward=32,
        n_disks=12,
        spacing_deg=12.0,
        templates=False,
    )
    return TrainConfig(
        model=network,
        acquisition=Acquisition(false_rate=(0.0, 0.0), overlap=0.0),
        physics="two_beam",
        steps=40,
        batch=16,
        learning_rate=3e-3,
        n_validation=32,
    )
