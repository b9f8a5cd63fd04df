# SPDX-License-Identifier: GPL-3.0-or-later
"""Templates: the raster, the rates of a cell, and how they are kept for another run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxstem.diffraction.settings import Specimen
from jaxstem.network import templates
from jaxstem.network.templates import (
    MatchConfig,
    Raster,
    cached_templates,
    nearby_turns,
    rasterise,
)
from jaxstem.orientation import rotations

pytestmark = pytest.mark.usefixtures("quick_compile")

COARSE = MatchConfig(n_samples=12, n_visible=64)
RASTER = Raster(1.5, 0.1)


@given(st.lists(st.tuples(st.floats(0, 1.5), st.floats(0, 6.3), st.floats(0.1, 3)), min_size=1))
@settings(max_examples=15, deadline=None)
@pytest.mark.slow
def test_raster_keeps_weight_and_centre_of_gravity(points):
    radius, angle, weight = np.array(points).T
    qx, qy = radius * np.cos(angle), radius * np.sin(angle)
    with jax.enable_x64(True):
        bins = np.asarray(rasterise(*map(jnp.asarray, (qx, qy, weight)), RASTER))
    x, y = (a.ravel()[RASTER.inside] for a in np.meshgrid(RASTER.axis, RASTER.axis, indexing="ij"))
    np.testing.assert_allclose(bins.sum(), weight.sum(), rtol=1e-9)
    np.testing.assert_allclose(bins @ x, weight @ qx, atol=1e-9)
    np.testing.assert_allclose(bins @ y, weight @ qy, atol=1e-9)


def test_turns_surround_the_centre_evenly():
    vectors = np.asarray(rotations.matrix_to_rotation_vector(jnp.asarray(nearby_turns(64, 0.03))))
    np.testing.assert_allclose(vectors.mean(axis=0), 0, atol=0.004)
    np.testing.assert_allclose(np.cov(vectors.T), 0.03**2 * np.eye(3), atol=0.25 * 0.03**2)


def test_expected_disks_are_the_integral_of_the_rate(copper, copper_templates):
    """exp(log_rate) summed over bins, false disks taken off, is what log_weight subtracts."""
    false = COARSE.false_rate / (np.pi * copper.k_max**2)
    rate = np.exp(np.asarray(copper_templates.log_rate, float)) - false
    expected = (rate * COARSE.pitch**2).sum(axis=0)
    weight = -expected - np.log(len(copper.grid))
    np.testing.assert_allclose(copper_templates.log_weight[:-1], weight[:-1], atol=2e-3)
    assert 1 < np.median(expected[:-1]) < 10
    np.testing.assert_allclose(rate[:, -1], 0, atol=1e-6)
    # all of them but those in the direct beam's bin lie outside of no radius at all
    np.testing.assert_allclose(copper_templates.beyond[0], expected, atol=2e-2)
    assert (np.diff(copper_templates.beyond, axis=0) < 1e-5).all()


def test_templates_are_kept_by_what_decides_them(copper, copper_templates, tmp_path, monkeypatch):
    made = []

    def make(materials, config):
        made.append(config)
        return copper_templates

    monkeypatch.setattr(templates, "make_templates", make)
    cache = tmp_path / "not yet there"
    for _ in range(2):
        found = cached_templates([copper], COARSE, cache)
        np.testing.assert_array_equal(found.log_rate, copper_templates.log_rate)
        np.testing.assert_array_equal(found.log_weight, copper_templates.log_weight)
    assert len(made) == 1
    cached_templates([copper], dataclasses.replace(COARSE, scatter=2.0), cache)
    cached_templates([dataclasses.replace(copper, specimen=Specimen(u_iso=0.01))], COARSE, cache)
    cached_templates([copper], COARSE, None)
    assert len(made) == 4 and len(list(cache.iterdir())) == 3
    for content in (b"", b"nonsense", next(cache.iterdir()).read_bytes()[:300]):
        for file in cache.iterdir():
            file.write_bytes(content)
        cached_templates([copper], COARSE, cache)
    assert len(made) == 7
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="cannot be kept"):
        cached_templates([copper], COARSE, tmp_path / "file")
