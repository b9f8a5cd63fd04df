# SPDX-License-Identifier: GPL-3.0-or-later
"""Cells, neighbours and soft labels against brute force over all cells and operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from jaxstem import so3
from jaxstem.crystal import operations
from jaxstem.grid import half_angle_cosine, nearest_cells, orientation_space, soft_labels

WIDTH = 0.55


@pytest.fixture(scope="module", params=["Cu", "Mg", "ZrO2"])
def space(request, crystals):
    """Orientation space and its cells as matrices (numpy float64)."""
    symmetry = operations(crystals[request.param])
    spacing = {"Cu": 10.0, "Mg": 10.0, "ZrO2": 20.0}[request.param]
    matrices = so3.so3_grid(symmetry, spacing)
    quaternions = so3.matrix_to_quaternion(jnp.asarray(matrices))
    width = WIDTH * so3.volume_spacing(len(matrices), len(symmetry))
    return orientation_space(symmetry, quaternions, width), matrices


def random_matrices(rng, n):
    return Rotation.random(n, random_state=rng.integers(2**31)).as_matrix()


def angles_to_cells(orientation, space, cells):
    """Misorientation (n, m) of each orientation from each cell, over every operation, in float64"""
    best = np.full((len(orientation), len(cells)), -1.0)
    for operation in np.asarray(space.operations, np.float64):
        overlap = np.einsum("nij,mij->nm", operation @ orientation, cells)
        best = np.maximum(best, overlap)
    return np.arccos(np.clip((best - 1) / 2, -1, 1))


def dense(index, weight, n_cells):
    spread = np.zeros((len(index), n_cells))
    np.add.at(spread, (np.arange(len(index))[:, None], index), weight)
    return spread


def labels_of(orientation, space):
    program = jax.jit(jax.vmap(lambda r: soft_labels(r, space)))
    index, weight = program(jnp.asarray(orientation, jnp.float32))
    return dense(np.asarray(index), np.asarray(weight), len(space.cells))


def test_sparse_labels_are_the_dense_softmax(space, rng):
    space, cells = space
    orientation = random_matrices(rng, 200)
    angle = angles_to_cells(orientation, space, cells)
    full = np.exp(-0.5 * (angle / float(space.label_width)) ** 2)
    full /= full.sum(axis=1, keepdims=True)
    sparse = labels_of(orientation, space)
    np.testing.assert_allclose(sparse.sum(axis=1), 1, atol=1e-5)
    missing = 0.5 * np.abs(sparse - full).sum(axis=1)
    assert missing.mean() < 0.005 and missing.max() < 0.06
    # the label does say where the orientation is
    assert np.all(np.argmax(sparse, axis=1) == np.argmin(angle, axis=1))


def test_labels_are_those_of_every_equivalent(space, rng):
    space, _ = space
    orientation = random_matrices(rng, 1)[0]
    equivalents = np.asarray(space.operations, np.float64) @ orientation
    labels = labels_of(equivalents, space)
    assert 0.5 * np.abs(labels - labels[0]).sum(axis=1).max() < 0.06


def test_neighbours_start_with_the_cell_and_are_the_nearest(space):
    space, cells = space
    neighbours = np.asarray(space.neighbours)
    np.testing.assert_array_equal(neighbours[:, 0], np.arange(len(cells)))
    some = np.arange(0, len(cells), 17)
    angle = angles_to_cells(cells[some], space, cells)
    ours = np.take_along_axis(angle, neighbours[some], axis=1)
    exact = np.sort(angle, axis=1)[:, : neighbours.shape[1]]
    np.testing.assert_allclose(ours, exact, atol=2e-3)
    assert all(len(set(row)) == len(row) for row in neighbours[some])


def test_no_cell_is_its_own_neighbour_on_a_coarse_grid(crystals):
    """Half of the 60° between equivalents of Mg is within reach of 64 neighbours at 14°."""
    symmetry = operations(crystals["Mg"])
    quaternions = so3.matrix_to_quaternion(jnp.asarray(so3.so3_grid(symmetry, 14.0)))
    neighbours = orientation_space(symmetry, quaternions, 0.1).neighbours
    assert all(len(set(row)) == len(row) for row in np.asarray(neighbours).tolist())


def test_nearest_cells_name_the_operation(space, rng):
    space, cells = space
    orientation = random_matrices(rng, 20)
    quaternion = so3.matrix_to_quaternion(jnp.asarray(orientation, jnp.float32))
    index, operation = nearest_cells(quaternion, space.cells, space.operation_quaternions, 3)
    assert index.shape == operation.shape == (20, 3)
    angle = angles_to_cells(orientation, space, cells)
    moved = np.asarray(space.operations)[np.asarray(operation)] @ cells[np.asarray(index)]
    cosine = (np.einsum("nij,nkij->nk", orientation, moved) - 1) / 2
    between = np.arccos(np.clip(cosine, -1, 1))
    np.testing.assert_allclose(between, np.sort(angle, axis=1)[:, :3], atol=2e-3)


def test_half_angle_cosine_is_the_misorientation(space, rng):
    space, cells = space
    orientation = random_matrices(rng, 5)
    for q, angle in zip(
        so3.matrix_to_quaternion(jnp.asarray(orientation, jnp.float32)),
        angles_to_cells(orientation, space, cells),
        strict=True,
    ):
        cosine = half_angle_cosine(q, space.cells, space.operation_quaternions)
        np.testing.assert_allclose(cosine, np.cos(angle / 2), atol=1e-6)


def test_space_without_grid_has_symmetry_only(crystals):
    space = orientation_space(operations(crystals["Cu"]), np.zeros((0, 4)), 0.1)
    assert space.operations.shape == (24, 3, 3)
    assert space.cells.shape == (0, 4)
