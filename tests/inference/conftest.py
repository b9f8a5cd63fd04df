# SPDX-License-Identifier: GPL-3.0-or-later
"""A scan of thirteen positions, and settings that compile soon."""

import jax
import numpy as np
import pytest
from helpers import foil_lists, random_matrices, scan_of_lists, without_optimisation

from jaxstem.inference import step
from jaxstem.inference.config import InferConfig
from jaxstem.inference.exposure import MIN_DISKS
from jaxstem.inference.ranked_cells import likeliest_cells
from jaxstem.inference.stream import predict_scan
from jaxstem.runtime import parallel
from jaxstem.verification.config import ScoreConfig

DIRECT = 10.0
"""Intensity of the direct beam, where the scan has it."""


@pytest.fixture(scope="session")
def config():
    return InferConfig(
        geometry="given",
        score=ScoreConfig(n_modes=4, levels=ScoreConfig().levels[:1]),
        chance=-1e6,  # to have a crystal everywhere, whatever the untrained network proposes
        lengths=(16,),
        batch=8,
        lot=4,
        chunk=4,
        least=1,
    )


@pytest.fixture(scope="module", autouse=True)
def tabulated_once(tables):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "candidate_tables", lambda *_, **__: tables)
        yield


@pytest.fixture(scope="session")
def scan(copper):
    """Thirteen positions: two-beam patterns with the direct beam, of which 3 has one disk besides
    it, 7 nothing at all, and 11 no direct beam.
    """
    orientation = random_matrices(np.random.default_rng(7), 13)
    with without_optimisation():
        lists = foil_lists(orientation, copper, 14, DIRECT)
    lists[3] = lists[3][:2]
    lists[7] = lists[7][:0]
    lists[11] = lists[11][1:]
    assert min(len(one) for i, one in enumerate(lists) if i not in (3, 7)) > MIN_DISKS
    return scan_of_lists(lists)


@pytest.fixture(scope="session")
def on_devices():
    """`predict_scan` on the first so many devices."""

    def predict(model, scan, config, n):
        mesh = parallel.make_mesh(jax.devices()[:n])
        return predict_scan(model, scan, config, mesh=mesh, progress=False)

    return predict


@pytest.fixture(scope="session")
def likeliest(model, scan):
    with without_optimisation():
        return likeliest_cells(model, scan, 64)
