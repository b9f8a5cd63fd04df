# SPDX-License-Identifier: GPL-3.0-or-later
"""The network's likeliest cells, as it says them itself, the direct beam being no token."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstem.diffraction.geometry import Disks
from jaxstem.files.scan import pad_disks
from jaxstem.inference.exposure import scan_exposure, scan_reach, typical_beam
from jaxstem.inference.ranked_cells import likeliest_cells
from jaxstem.inference.step import sight_of
from jaxstem.network.model import build_network
from jaxstem.network.transformer import init_params
from jaxstem.orientation import rotations

pytestmark = pytest.mark.usefixtures("quick_compile")


def test_direct_beam_of_a_scan_is_no_token(model, scan, copper):
    """Without the direct beam the disks, and so the candidates of a network that is not told of the
    beam, are the same.
    """
    config = replace(model.config, knows_exposure=False)
    params = jax.jit(partial(init_params, build_network(config, [copper])))(jax.random.key(0))
    model = replace(model, config=config, params=params)
    likeliest = likeliest_cells(model, scan, 64)
    keep = np.hypot(scan.qx, scan.qy) > 0.01
    counts = np.array([keep[a:b].sum() for a, b in zip(scan.offsets, scan.offsets[1:])])  # noqa: B905
    bare = replace(
        scan,
        qx=scan.qx[keep],
        qy=scan.qy[keep],
        intensity=scan.intensity[keep],
        offsets=np.concatenate([[0], np.cumsum(counts)]),
    )
    again = likeliest_cells(model, bare, 64)
    np.testing.assert_array_equal(likeliest.orientation, again.orientation)


def test_likeliest_cells_are_the_networks(model, scan, copper, likeliest):
    cells, phase = likeliest
    np.testing.assert_array_equal(phase[[0, 3, 7]], [[0] * 64, [-1] * 64, [-1] * 64])
    assert cells.shape == (13, 64, 3, 3)
    assert np.isnan(cells[[3, 7]]).all() and np.isfinite(np.delete(cells, [3, 7], 0)).all()
    disks = pad_disks(scan, np.arange(13), copper.k_max, copper.k_min, model.config.n_disks)
    reach = scan_reach(scan, model.k_min, model.k_max)
    beam = typical_beam(scan, model.k_min)
    exposed = scan_exposure(scan, model.k_min, reach, beam=beam)
    seen = sight_of(Disks(*disks), exposed, model.k_max)
    apply = jax.jit(lambda *shown: model.network.apply({"params": model.params}, *shown))
    logits = apply(Disks(*disks), None, seen)
    best = rotations.quaternion_to_matrix(jnp.asarray(copper.grid))[
        np.argmax(logits[:, :-1], axis=1)
    ]
    assigned = [i for i in range(13) if i not in (3, 7)]
    np.testing.assert_allclose(cells[assigned, 0], best[np.array(assigned)], atol=1e-6)
