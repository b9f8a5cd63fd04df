# SPDX-License-Identifier: GPL-3.0-or-later
"""The library: what is drawn from it is the Bloch pattern of the orientation that is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstem import so3
from jaxstem.bloch import bloch_intensities, prepare
from jaxstem.library import LibraryConfig, build_library, sample_pattern, zone_axis_orientations

CONFIG = LibraryConfig(n_axes=80, n_thicknesses=3, n_beams=24, n_weak=40, beam_k_max=2.0)


@pytest.fixture(scope="module")
def library(copper):
    return build_library(copper, CONFIG, seed=3, progress=False)


def test_sampled_pattern_is_bloch_pattern_of_its_label(copper, library, key):
    tables = prepare(copper.crystal, copper.voltage_kv, 2.0, copper.u_iso)
    thickness = jnp.geomspace(*CONFIG.thickness, CONFIG.n_thicknesses)
    for one in jax.random.split(key, 6):
        disks, orientation = sample_pattern(one, library, 99)
        np.testing.assert_allclose(orientation.T @ orientation, np.eye(3), atol=1e-5)
        assert float(jnp.linalg.det(orientation)) == pytest.approx(1.0, abs=1e-5)
        beams = bloch_intensities(orientation, thickness, tables, CONFIG.n_beams, CONFIG.n_weak)
        kept = np.asarray(disks.mask) & (np.asarray(disks.intensity) > 1e-3)
        drawn = np.stack([disks.qx, disks.qy], axis=-1)[kept]
        direct = np.stack([beams.qx, beams.qy], axis=-1)[1:]
        distance = np.linalg.norm(drawn[:, None] - direct, axis=-1)
        assert distance.min(axis=1).max() < 1e-4
        # the layer is not told: one of the thicknesses must fit all disks
        intensity = np.asarray(beams.intensity)[:, 1:][:, distance.argmin(axis=1)]
        misfit = np.abs(intensity - np.asarray(disks.intensity)[kept]).max(axis=1)
        assert misfit.min() < 5e-3


def test_disks_beyond_k_max_are_masked(copper, library):
    radius = np.hypot(library.qx, library.qy)
    np.testing.assert_array_equal(library.inside, radius <= copper.k_max + 1e-6)
    assert library.intensity.dtype == jnp.float16


def test_zone_axes_cover_the_sector(copper, key):
    """Every beam direction has an axis near it, modulo the proper operations."""
    found = np.asarray(zone_axis_orientations(key, copper.operations, 400))
    assert 360 < len(found) < 440
    axes = np.einsum("nij,aj->nai", copper.operations, found[:, :, 2]).reshape(-1, 3)
    wanted = np.asarray(so3.random_rotations(key, (500,)))[:, :, 2]
    spacing = np.sqrt(4 * np.pi / (len(copper.operations) * 400))
    nearest = np.arccos(np.clip((wanted @ axes.T).max(axis=1), -1, 1))
    assert nearest.max() < 3 * spacing
    assert np.sqrt(np.mean(nearest**2)) < 0.7 * spacing


def test_layers_angles_and_axes_are_drawn_evenly(library, key):
    draw = jax.jit(jax.vmap(lambda k: sample_pattern(k, library, 99)))
    _, orientation = draw(jax.random.split(key, 4000))
    x = np.asarray(orientation)[:, :, 0]
    base = np.asarray(library.orientation)
    axis = np.abs(np.asarray(orientation)[:, None, :, 2] - base[None, :, :, 2]).max(-1).argmin(1)
    angle = np.arctan2(
        np.einsum("mi,mi->m", x, base[axis, :, 1]), np.einsum("mi,mi->m", x, base[axis, :, 0])
    )
    assert abs(np.exp(1j * angle).mean()) < 5 / np.sqrt(4000)
    counts = np.bincount(axis, minlength=len(base))
    expected = 4000 / len(base)
    assert ((counts - expected) ** 2 / expected).sum() < 2 * len(base)
