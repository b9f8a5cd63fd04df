# SPDX-License-Identifier: GPL-3.0-or-later
"""A small network in the place of the packaged ones, and a corner of the sample scan."""

import math

import jax
import numpy as np
import pytest
from helpers import CORNER, without_optimisation, write_scan

from jaxstem import mapping
from jaxstem.app.demo import sample
from jaxstem.crystal.reading import read_cif
from jaxstem.diffraction.material import make_material
from jaxstem.diffraction.settings import Microscope, Specimen
from jaxstem.files.distortion import undistorted
from jaxstem.files.orientation_map import UNASSIGNED
from jaxstem.inference.batching import Piece
from jaxstem.inference.verdict import Answer
from jaxstem.network.model import Model, build_network, save_model
from jaxstem.network.transformer import ModelConfig, init_params
from jaxstem.scan import alone
from jaxstem.scan.premises import Examined

SMALL = ModelConfig(width=16, blocks=0, heads=2, feedforward=16, n_disks=8, templates=False)


@pytest.fixture(autouse=True)
def own_caches(quick_compile, monkeypatch, tmp_path_factory):
    """No command reads or leaves anything in the user's own cache."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    folder.mkdir(mode=0o700, exist_ok=True)
    monkeypatch.setenv("JAXSTEM_CACHE", str(folder))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder / "xla"))


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Folder of a small model of copper that has learnt nothing."""
    folder = tmp_path_factory.mktemp("models") / "small"
    microscope, specimen = Microscope(300.0, k_max=1.5), Specimen()
    with without_optimisation():
        copper = make_material(read_cif(sample("Cu.cif")), microscope, specimen, 20.0)
        network = build_network(SMALL, [copper])
        params = jax.jit(lambda key: init_params(network, key))(jax.random.key(5))
    save_model(folder, Model(SMALL, (copper,), params, {"total_steps": 0}))
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder with a small scan in it."""
    monkeypatch.chdir(tmp_path)
    write_scan(tmp_path / "scan.h5")
    return tmp_path


GEOMETRY = "nothing is known of it"


@pytest.fixture
def answers(monkeypatch):
    """Known answers in the place of the network's; the last position is unassigned."""
    n = math.prod(CORNER)
    rng = np.random.default_rng()
    turn = np.linalg.qr(rng.normal(size=(2, n, 3, 3)))[0].astype(np.float32)
    turn *= np.sign(np.linalg.det(turn))[..., None, None]
    turn[:, -1] = np.nan
    turn[1, 0] = np.nan
    phase = np.zeros((2, n), int)
    phase[:, -1] = phase[1, 0] = UNASSIGNED
    answer = Answer(
        turn[0],
        phase[0],
        *rng.uniform(size=(4, n)),
        turn[1],
        phase[1],
        rng.uniform(size=n),
        rng.uniform(20, 400, n),
        *rng.uniform(size=(2, n)),
    )
    counts = rng.integers(3, 9, n)
    piece = Piece(0, 0, answer, counts, 0)
    monkeypatch.setattr(alone, "stream_answers", lambda *args, **kwargs: iter([piece]))
    as_given = lambda source, *_: Examined(source, undistorted(), GEOMETRY, None)  # noqa: E731
    monkeypatch.setattr(mapping, "examined", as_given)
    return answer, counts
