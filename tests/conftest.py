# SPDX-License-Identifier: GPL-3.0-or-later
"""Eight simulated CPU devices for the whole suite (one device or eight, same result), fresh random
numbers, and a copper material with a coarse grid that the tests of the network share.
"""

import datetime
import gc
import os
import signal
import sys
import tempfile
import zlib
from importlib.metadata import version

import numpy as np
import pytest
from jaxtyping import install_import_hook

# a worker has one core: threads of BLAS would wait for those of the others, for seconds at a time
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# before any of it is imported
install_import_hook("jaxstem", "shapes.checked")

from helpers import FIXTURES, ROOT, without_optimisation  # noqa: E402

# the experiments are modules of the repository's root: behind what is installed, so that it is the
# installed package that they use
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

# as a shell without job control, or nohup, leaves them in what it starts in the background
for number, usual in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)
# tracing makes many objects that live on: looking for garbage among them each time takes long
gc.set_threshold(50_000, 20, 20)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "PYTEST_XDIST_WORKER" not in os.environ:  # the workers share what the first process chose
    CACHE = tempfile.TemporaryDirectory(prefix="jaxstem-tests-")
    os.environ["XDG_CACHE_HOME"] = CACHE.name
    # what one test compiled another loads, and what one run did the next where a folder is given
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(CACHE.name, "jax"))
    # also the single operations of set-up, of which there are thousands
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
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


TURNS = 21
"""Into so many lots the slow tests are cut, of which `--slow turn` runs one each day."""


def pytest_addoption(parser):
    parser.addoption(
        "--slow",
        choices=["none", "turn", "all"],
        default="none",
        help="tests marked slow: none of them (default), those whose turn it is today, alone, or "
        "all, with the others",
    )


def pytest_configure(config):
    """XLA's older emitters, where there are any, compile in two thirds of the time; `--slow all`
    keeps the usual ones.
    """
    older = tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11)  # a later one aborts on it
    if older and config.getoption("--slow") != "all":
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"


def pytest_collection_modifyitems(config, items):
    """Leave out what `--slow` does not ask for."""
    asked, today = config.getoption("--slow"), datetime.date.today().toordinal() % TURNS
    slow = [item.nodeid for item in items if item.get_closest_marker("slow")]
    # lots of one size, in which a new test moves few others; a file's tests fall into many
    shuffled = sorted(slow, key=lambda name: (zlib.crc32(name.encode()), name))
    turn = {name: rank * TURNS // len(slow) for rank, name in enumerate(shuffled)}
    wanted = {
        "none": lambda item: item.nodeid not in turn,
        "turn": lambda item: turn.get(item.nodeid) == today,
        "all": lambda item: True,
    }[asked]
    left_out = [item for item in items if not wanted(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if wanted(item)]


@pytest.fixture(scope="module")
def quick_compile():
    """Compile without optimisation: these tests run each program for milliseconds."""
    with without_optimisation():
        yield


@pytest.fixture(scope="module")
def compiled_once():
    """What is compiled for one scan serves a module's others, of the same model and phases."""
    from jaxstem import mapping
    from jaxstem.inference import stream
    from jaxstem.runtime.programs import cached_pmap
    from jaxstem.scan import context, pooling, posterior, premises, self_calibration

    made = {}
    make_predict_for, make_programs = stream.make_predict_for, posterior.make_programs
    make_pair = self_calibration.make_pair

    def predict_for(model, config, mesh, meanwhile=None):
        kind = id(model), config, mesh
        if kind not in made:
            made[kind] = model, make_predict_for(model, config, mesh, meanwhile)
        return made[kind][1]

    def of_tiles(operations, config, tiling, mesh, cache):
        kind = np.asarray(operations).tobytes(), config, tiling.side, tiling.margin, mesh, cache
        if kind not in made:
            made[kind] = make_programs(operations, config, tiling, mesh, cache)
        return made[kind]

    def pair(model, config, mesh):
        kind = "pair", id(model), config, mesh, self_calibration.SAMPLE
        if kind not in made:
            made[kind] = model, make_pair(model, config, mesh)
        return made[kind][1]

    def program(step, mesh, in_specs, out_specs, content, folder, **how):
        kind = step.__qualname__, repr(content), mesh, folder
        if kind not in made:
            made[kind] = cached_pmap(step, mesh, in_specs, out_specs, content, folder, **how)
        return made[kind]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context, "cached_pmap", program)
        patch.setattr(pooling, "cached_pmap", program)
        patch.setattr(premises, "make_pair", pair)
        patch.setattr(self_calibration, "make_pair", pair)
        patch.setattr(stream, "make_predict_for", predict_for)
        patch.setattr(mapping, "make_predict_for", predict_for)
        patch.setattr(posterior, "make_programs", of_tiles)
        yield


@pytest.fixture(scope="module")
def light_acquisition():
    """Training patterns with jitter and cropping only, for programs that compile sooner."""
    from jaxstem.training import patterns
    from jaxstem.training.acquisition import jitter_positions

    def detect(key, disks, config, k_max):
        return jitter_positions(key, disks, 0.01), 1e-3

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patterns, "detect", detect)
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
    from jaxstem.crystal.reading import read_cif

    return {name: read_cif(FIXTURES / f"{name}.cif") for name in "Cu Cu2O Mg TiO2 ZrO2".split()}


@pytest.fixture(scope="session")
def copper(crystals):
    """Cu at 300 kV up to 1.5 1/Å on a 12° grid (357 cells)."""
    from jaxstem.diffraction.material import make_material
    from jaxstem.diffraction.settings import Microscope, Specimen

    return make_material(crystals["Cu"], Microscope(300.0, k_max=1.5), Specimen(u_iso=0.0), 12.0)


@pytest.fixture(scope="session")
def tables(copper):
    """What verification tabulates for each cell of the copper grid."""
    from jaxstem.verification.candidates import candidate_tables

    reflectors, lattice = copper.reflectors(), copper.crystal.lattice
    with without_optimisation():
        return candidate_tables(
            copper.grid, copper.operations, reflectors, copper.wavelength, lattice
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
        finalists=0,
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


@pytest.fixture(scope="session")
def model(copper, tiny):
    """An untrained network, without attention, which compiles sooner."""
    import dataclasses

    import jax

    from jaxstem.network.model import Model, build_network
    from jaxstem.network.transformer import init_params

    config = dataclasses.replace(tiny.model, blocks=0)
    with without_optimisation():
        network = build_network(config, [copper])
        params = jax.jit(lambda key: init_params(network, key))(jax.random.key(0))
    return Model(config, (copper,), params)
