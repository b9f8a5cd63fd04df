# SPDX-License-Identifier: GPL-3.0-or-later
"""Candidate tables against brute force, and what they propose of a distribution over cells."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    angle_deg,
    log_probability_around,
    prepared_pattern,
    random_matrices,
    thick_foil_disks,
    turn_deg,
)
from scipy.spatial.transform import Rotation

from jaxstem.crystal.cell import symmetry_operations
from jaxstem.orientation import rotations
from jaxstem.verification.candidates import (
    GROUPS,
    SIBLING_REACH,
    likeliest,
    modes,
    padded,
    propose,
    with_siblings,
    zone_axis_turns,
)
from jaxstem.verification.climb import polish
from jaxstem.verification.config import ScoreConfig
from jaxstem.verification.ranking import Forward

pytestmark = pytest.mark.usefixtures("quick_compile")

CONFIG = ScoreConfig(n_modes=4)


def every_reflection(copper):
    reflectors = copper.reflectors()
    return Forward(reflectors.g, reflectors.inverse_extinction)


def test_neighbours_and_offsets_are_those_of_brute_force(copper, cells, tables):
    symmetry = np.asarray(copper.operations)
    neighbours = np.asarray(tables.neighbours)
    np.testing.assert_array_equal(neighbours[:, 0], np.arange(len(cells)))
    overlap = np.einsum("oij,njk,mik->onm", symmetry, cells, cells).max(axis=0)
    angle = np.arccos(np.clip((overlap - 1) / 2, -1, 1))
    ours = np.take_along_axis(angle, neighbours, axis=1)
    np.testing.assert_allclose(ours, np.sort(angle, axis=1)[:, : ours.shape[1]], atol=2e-3)
    offsets = np.asarray(tables.offsets)
    np.testing.assert_allclose(np.linalg.norm(offsets, axis=-1), ours, atol=2e-3)
    reached = cells[:, None] @ Rotation.from_rotvec(offsets.reshape(-1, 3)).as_matrix().reshape(
        *offsets.shape, 3
    )
    assert angle_deg(reached, cells[neighbours], symmetry).max() < 0.1


def test_siblings_are_half_turns_about_near_zone_axes(copper, cells, tables):
    symmetry = np.asarray(copper.operations)
    nearest = np.rad2deg(copper.spacing)
    sibling, turns = np.asarray(tables.sibling), np.asarray(tables.sibling_turn)
    found = 0
    for cell in range(0, len(cells), 5):
        for other, matrix in zip(sibling[cell], turns[cell], strict=True):
            if other == cell and np.allclose(matrix, np.eye(3)):
                continue
            found += 1
            # T R lies in the sibling cell without any further operation
            between = cells[other].T @ matrix @ cells[cell]
            assert np.rad2deg(np.arccos(np.clip((np.trace(between) - 1) / 2, -1, 1))) < nearest
            # one of its equivalents is a half turn about an axis near the beam
            equivalents = symmetry @ matrix
            half_turns = equivalents[np.abs(np.trace(equivalents, axis1=1, axis2=2) + 1) < 1e-3]
            axes = [np.linalg.eigh(half + half.T)[1][:, -1] for half in half_turns]
            tilt = [np.rad2deg(np.arccos(min(1, abs(axis @ cells[cell][:, 2])))) for axis in axes]
            assert min(tilt) < SIBLING_REACH + 0.1
            # and it is not the same orientation again
            assert angle_deg(matrix @ cells[cell], cells[cell], symmetry) > 1
    assert found > 50


def test_every_cell_with_a_low_index_axis_near_the_beam_has_a_sibling(copper, cells, tables):
    _, axes = zone_axis_turns(copper.crystal.lattice, np.asarray(copper.operations))
    near = np.abs(cells[:, :, 2] @ np.asarray(axes).T).max(axis=1)
    tilt = np.rad2deg(np.arccos(np.minimum(near, 1)))
    identity = np.abs(np.asarray(tables.sibling_turn[:, 0]) - np.eye(3)).max(axis=(1, 2)) < 1e-6
    np.testing.assert_array_equal(~identity[tilt < SIBLING_REACH - 0.1], True)
    np.testing.assert_array_equal(identity[tilt > SIBLING_REACH + 0.1], True)


@pytest.mark.parametrize("name", ["Cu", "Mg", "ZrO2"])
def test_zone_axis_turns_leave_out_symmetry(crystals, name):
    crystal, symmetry = crystals[name], symmetry_operations(crystals[name])
    turns, axes = (np.asarray(a) for a in zone_axis_turns(crystal.lattice, symmetry))
    np.testing.assert_allclose(np.einsum("nij,nj->ni", turns, axes), axes, atol=1e-6)
    np.testing.assert_allclose(np.trace(turns, axis1=1, axis2=2), -1, atol=1e-5)
    assert np.abs(turns[:, None] - symmetry).max(axis=(2, 3)).min() > 1e-3
    # all 49 axes up to index 2, one of each pair, but the two-fold ones of the Laue group
    two_fold = {"Cu": 9, "Mg": 7, "ZrO2": 1}[name]
    assert len(turns) == 49 - two_fold
    line_up = np.abs(axes @ axes.T) - np.eye(len(axes))
    assert line_up.max() < 1 - 1e-6


def test_visible_reflections_are_the_bright_ones_nearby(copper, cells, tables, rng):
    """All disks of the patterns at and near a cell are among its reflections."""
    g = np.asarray(copper.reflectors().g)
    for cell in rng.integers(len(cells), size=8):
        tilted = cells[cell] @ turn_deg(rng.uniform(-1.5, 1.5, 3))
        disks = thick_foil_disks(tilted, copper, 12)
        position = np.stack([disks.qx, disks.qy], -1)[np.asarray(disks.mask)]
        candidates = (g[np.asarray(tables.visible[cell])] @ tilted)[:, :2]
        distance = np.linalg.norm(position[:, None] - candidates, axis=-1).min(axis=1)
        assert distance.max() < 1e-4


def test_modes_are_the_peaks(copper, tables, rng):
    """Two separate peaks come out first, each between the cells where it was put.

    Now and then a peak between cells has two summits, so that the other one comes out third.
    """
    truth = random_matrices(rng, 64).reshape(32, 2, 3, 3)
    apart = angle_deg(truth[:, 0], truth[:, 1], copper.operations)
    truth = truth[np.argsort(apart)[-16:]]
    at = jax.jit(jax.vmap(jax.vmap(lambda r: log_probability_around(r, copper))))
    peaks = at(truth)
    mixture = jax.nn.logsumexp(peaks + np.log([[0.6], [0.4]]), axis=1)
    cell, orientation, mass = jax.jit(jax.vmap(lambda p: modes(p, tables, 4)))(mixture)
    error = angle_deg(orientation[:, :2, None], truth[:, None], copper.operations).min(axis=1)
    close = error.max(axis=1) < 0.7 * np.rad2deg(copper.spacing)
    assert close.sum() >= 14 and np.median(error) < 0.4 * np.rad2deg(copper.spacing)
    # fifteen cells hold most of a peak
    held = np.exp(mass[:, :2]).sum(axis=1)
    assert np.all(held[close] > 0.6) and np.all(held[close] <= 1.0001)
    assert all(len(set(cells.tolist())) == 4 for cells in np.asarray(cell))


@pytest.mark.parametrize("n_cells", [100, 2500, 3712, 20001])
def test_the_likeliest_cells_come_in_order(n_cells, rng):
    """None is missed but now and then one that is third in its group."""
    values = rng.normal(size=(64, n_cells)).astype(np.float32)
    value, index = jax.jit(jax.vmap(lambda v: likeliest(v, 40)))(values)
    np.testing.assert_array_equal(value, np.take_along_axis(values, np.asarray(index), axis=1))
    assert np.all(np.diff(value, axis=1) <= 0)
    best = np.argsort(-values, axis=1)[:, :40]
    missed = [np.setdiff1d(*both) for both in zip(best, np.asarray(index), strict=True)]
    assert sum(map(len, missed)) < 64 * 0.4
    for row, cells in zip(best, missed, strict=True):
        for cell in cells:
            ahead = row[: list(row).index(cell)]
            assert np.sum(ahead % GROUPS == cell % GROUPS) >= 2


def test_siblings_follow_then_all_turned_about_the_beam(copper, cells, tables):
    cell = np.array([3, 100, 250])
    orientation = cells[cell]
    prior = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    found = jax.jit(with_siblings)(cell, orientation, prior, tables)
    all_cells, all_orientations, all_priors = (np.asarray(x) for x in found)
    tables = jax.tree.map(np.asarray, tables)
    n_siblings = tables.sibling.shape[1]
    half = 3 * (1 + n_siblings)
    assert len(all_cells) == len(all_orientations) == len(all_priors) == 2 * half
    np.testing.assert_array_equal(all_orientations[:3], orientation)
    for s in range(n_siblings):
        for c in range(3):
            i = 3 + 3 * s + c
            expected = tables.sibling_turn[cell[c], s] @ orientation[c]
            np.testing.assert_allclose(all_orientations[i], expected, atol=1e-6)
            assert all_cells[i] == tables.sibling[cell[c], s]
            assert all_priors[i] == prior[c]
    np.testing.assert_allclose(
        all_orientations[half:], all_orientations[:half] @ rotations.HALF_TURN_ABOUT_BEAM, atol=1e-6
    )
    np.testing.assert_array_equal(all_cells[half:], all_cells[:half])
    np.testing.assert_allclose(np.exp(all_priors).sum(), 2 * (1 + n_siblings), rtol=1e-5)


def test_candidates_of_each_phase_come_with_its_reflections(two, rng):
    materials, phases = two
    n_cells = [len(m.grid) for m in materials]
    log_probability = np.float32(rng.normal(size=sum(n_cells)))
    found = jax.jit(propose, static_argnums=2)(log_probability, phases, 4)
    found = jax.tree.map(np.asarray, found)
    of_one = jax.jit(modes, static_argnums=2)
    each = len(found.phase) // 2
    np.testing.assert_array_equal(found.phase, np.repeat([0, 1], each))
    for p, (m, part) in enumerate(
        zip(materials, np.split(log_probability, [n_cells[0]]), strict=True)
    ):
        _, orientation, prior = of_one(part, phases[p], 4)
        of_phase = slice(p * each, p * each + 4)
        np.testing.assert_allclose(found.orientation[of_phase], orientation, atol=1e-6)
        np.testing.assert_allclose(found.prior[of_phase], prior, atol=1e-5)
        g = np.asarray(found.forward.g[p * each]).round(4)
        own = {tuple(row) for row in np.asarray(m.reflectors().g).round(4)}
        assert {tuple(row) for row in g} <= own
    assert each == 4 * 2 * (1 + phases[0].sibling.shape[1])


def test_the_padding_of_reflections_has_no_strength_and_lies_far_away(copper):
    own = every_reflection(copper)
    n = len(own.g)
    short, longest = padded([own, Forward(jnp.ones((900, 3)), jnp.ones(900))])
    assert short.g.shape == longest.g.shape == (900, 3)
    np.testing.assert_array_equal(short.g[:n], own.g)
    np.testing.assert_array_equal(short.inverse_extinction[:n], own.inverse_extinction)
    np.testing.assert_array_equal(short.inverse_extinction[n:], 0)
    assert np.abs(short.g[n:]).min() > 100


@pytest.mark.slow
def test_padding_of_reflections_changes_no_likelihood(copper, rng):
    own = every_reflection(copper)
    short, _ = padded([own, Forward(jnp.ones((900, 3)), jnp.ones(900))])

    @jax.jit
    def both(orientation, disks):
        return [
            polish(
                orientation,
                prepared_pattern(disks).observed,
                forward.g,
                forward.inverse_extinction,
                copper.wavelength,
                copper.k_max,
                CONFIG.likelihood,
            )
            for forward in (own, short)
        ]

    for orientation in jnp.asarray(random_matrices(rng, 3)):
        one, other = both(orientation, thick_foil_disks(orientation, copper, 14))
        assert float(one.log_likelihood) == pytest.approx(float(other.log_likelihood), abs=1e-3)
        np.testing.assert_allclose(one.orientation, other.orientation, atol=1e-5)
