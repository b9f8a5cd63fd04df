# SPDX-License-Identifier: GPL-3.0-or-later
"""Patterns and labels of a step: phases and empty positions as often as said, each disk its
phase's, the same patterns on one device or eight.
"""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstem.network.transformer import ModelConfig
from jaxstem.runtime import parallel
from jaxstem.training.acquisition import CLEAN, draw
from jaxstem.training.config import TrainConfig
from jaxstem.training.library import Library, zone_axis_orientations
from jaxstem.training.patterns import (
    EXTRA_DISKS,
    MOST_IN_VACUUM,
    Sources,
    draw_position,
    make_sources,
    simulate_batch,
)

pytestmark = pytest.mark.usefixtures("quick_compile")


N = 4000
"""Positions drawn at once, by all tests the same, to compile once."""


@cache
def positions(no_crystal, overlap):
    """Keys and sources to positions before acquisition, of 12 disks where the source does not give
    more.
    """
    config = TrainConfig(
        model=ModelConfig(n_disks=12 - EXTRA_DISKS),
        acquisition=replace(CLEAN, overlap=overlap),
        no_crystal=no_crystal,
    )
    draw = jax.vmap(lambda key, sources: draw_position(key, sources, config, 1.5), (0, None))
    return jax.jit(draw)


def drawn(key, sources, no_crystal, overlap=0.0):
    disks, label = positions(no_crystal, overlap)(jax.random.split(key, N), sources)
    return jax.tree.map(np.asarray, disks), np.asarray(label.phase), np.asarray(label.orientation)


@pytest.mark.slow
def test_every_phase_is_drawn_as_often_and_some_positions_are_empty(two, tiny, key):
    disks, phase, orientation = drawn(key, make_sources(two, tiny), 0.2)
    share = np.bincount(phase, minlength=3) / N
    np.testing.assert_allclose(share, [0.4, 0.4, 0.2], atol=0.035)
    # what is drawn of one phase does not depend on the phase
    for p in (0, 1):
        assert np.abs(orientation[phase == p].mean(axis=0)).max() < 0.1
    assert (disks.mask[phase < 2].sum(axis=1) == 12).all()
    in_vacuum = disks.mask[phase == 2].sum(axis=1)
    assert (in_vacuum == 0).any() and (in_vacuum >= 4).any()
    assert in_vacuum.mean() == pytest.approx(MOST_IN_VACUUM / 2, abs=0.25)


def test_disks_of_a_pattern_are_its_phases(two, tiny, key):
    """Each disk of a pattern lies on a reflection of the crystal and orientation in the label."""
    found = drawn(key, make_sources(two, tiny), 0.2)
    disks, phase, orientation = jax.tree.map(lambda x: x[:60], found)
    misfit = np.full((2, 60), np.inf)
    for p, m in enumerate(two):
        g_lab = np.asarray(m.reflectors().g) @ orientation
        found = np.stack([disks.qx, disks.qy], axis=-1)
        distance = np.linalg.norm(found[:, :, None] - g_lab[:, None, :, :2], axis=-1).min(axis=2)
        misfit[p] = np.where(disks.mask, distance, 0).max(axis=1)
    for p in (0, 1):
        assert misfit[p][phase == p].max() < 1e-4
        assert np.median(misfit[1 - p][phase == p]) > 0.01


def test_no_disk_lies_beyond_the_reach_of_its_pattern(two, tiny):
    """Each pattern has its own, between shares of k_max, false disks included; as many disks within
    it as ever.
    """
    acquisition = replace(CLEAN, false_rate=(2.0, 2.0), reach=(0.5, 1.0))
    config = replace(tiny, no_crystal=0.2, acquisition=acquisition)
    made = jax.jit(partial(simulate_batch, config=config, k_max=1.5))
    disks, _, seen, _ = made(jax.random.key(3), jnp.arange(512), make_sources(two, tiny))
    reach = np.asarray(seen.reach)
    assert 0.74 < reach.min() < 0.8 and 1.45 < reach.max() <= 1.5
    radius = np.where(disks.mask, np.hypot(disks.qx, disks.qy), 0.0).max(axis=1)
    assert (radius <= reach * (1 + 1e-6)).all()
    assert np.corrcoef(radius, reach)[0, 1] > 0.3
    assert radius[reach > 1.45].max() > 1.4
    np.testing.assert_allclose(draw(jax.random.key(3), (1.0, 1.0)), 1.0, rtol=1e-6)


@pytest.mark.slow
def test_a_second_grain_leaves_the_label_to_the_first(two, tiny, key):
    """Its disks come on top, weaker; that they may be another phase's is the point."""
    sources = make_sources(two, tiny)
    pure, phase, orientation = drawn(key, sources, 0.2)
    mixed, phase_mixed, orientation_mixed = drawn(key, sources, 0.2, overlap=0.5)
    np.testing.assert_array_equal(phase, phase_mixed)
    np.testing.assert_array_equal(orientation, orientation_mixed)
    more = mixed.mask.sum(axis=1) > pure.mask.sum(axis=1)
    assert 0.3 < more[phase < 2].mean() < 0.7
    first = mixed.intensity[phase < 2][:, :12].sum(axis=1)
    second = mixed.intensity[phase < 2][:, 12:].sum(axis=1)
    assert np.median(second[more[phase < 2]] / first[more[phase < 2]]) < 1


@pytest.mark.slow
def test_libraries_of_two_phases_have_different_sizes(two, key):
    """Their patterns still come in one shape, padded; none is empty where none is asked for."""
    sources = []
    for n_axes, n_beams, m in zip((40, 25), (16, 9), two, strict=True):
        draw = jax.random.split(jax.random.key(n_axes), 2)
        shape = (n_axes, n_beams)
        qx, qy = jax.random.uniform(draw[0], (2, *shape), minval=-1, maxval=1)
        sources.append(
            Library(
                zone_axis_orientations(draw[1], m.operations, n_axes)[:n_axes],
                qx[:n_axes],
                qy[:n_axes],
                jnp.ones(shape, bool),
                jnp.full((n_axes, 3, n_beams), 0.1 * n_beams, jnp.float16),
            )
        )
    n_axes = min(len(s.orientation) for s in sources)
    assert n_axes >= 20
    disks, phase, _ = drawn(key, Sources(tuple(sources), None), 0.0)
    assert set(phase) == {0, 1}
    for p, n_beams in enumerate((16, 9)):
        assert (disks.mask[phase == p].sum(axis=1) == n_beams).all()
        of_phase = disks.intensity[phase == p][disks.mask[phase == p]]
        np.testing.assert_allclose(of_phase, 0.1 * n_beams, rtol=1e-3)


@pytest.mark.slow
def test_stream_of_patterns_does_not_depend_on_the_devices(copper, tiny):
    source = make_sources([copper], tiny)
    key = jax.random.key(3)

    def per_device(key):
        return simulate_batch(key, parallel.sample_index(2), source, tiny, copper.k_max)

    sharded = parallel.pmap(
        per_device, parallel.make_mesh(), parallel.REPLICATED, parallel.SHARDED
    )(key)
    together = jax.jit(partial(simulate_batch, config=tiny, k_max=copper.k_max))(
        key, jnp.arange(16), source
    )
    assert sharded.label.orientation.shape == (16, 3, 3)
    np.testing.assert_allclose(sharded.label.orientation, together.label.orientation, atol=1e-6)
    np.testing.assert_array_equal(sharded.label.phase, together.label.phase)
    np.testing.assert_array_equal(sharded.disks.mask, together.disks.mask)
    np.testing.assert_allclose(sharded.disks.qx, together.disks.qx, atol=1e-5)
    orientations = np.asarray(together.label.orientation).reshape(16, 9)
    assert len(np.unique(np.round(orientations, 4), axis=0)) == 16
