# SPDX-License-Identifier: GPL-3.0-or-later
"""Cells, neighbours and soft labels against brute force over all cells and operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from jaxstem.crystal.cell import symmetry_operations
from jaxstem.orientation import grids, rotations
from jaxstem.orientation.space import (
    Label,
    half_angle_cosine,
    joint_space,
    nearest_cells,
    orientation_space,
    soft_labels,
)

WIDTH = 0.55


@pytest.fixture(scope="module", params=["Cu", "Mg", "ZrO2"])
def space(request, crystals):
    """Orientation space and its cells as matrices (numpy float64)."""
    symmetry = symmetry_operations(crystals[request.param])
    spacing = {"Cu": 10.0, "Mg": 10.0, "ZrO2": 20.0}[request.param]
    matrices = grids.so3_grid(symmetry, spacing)
    quaternions = rotations.matrix_to_quaternion(jnp.asarray(matrices))
    width = WIDTH * grids.volume_spacing(len(matrices), len(symmetry))
    return orientation_space(symmetry, quaternions, width), matrices


def random_matrices(rng, n):
    return Rotation.random(n, random_state=rng.integers(2**31)).as_matrix()


def angles_to_cells(orientation, space, cells):
    """Misorientation (n, m) of each orientation from each cell, over every operation, in float64"""
    best = np.full((len(orientation), len(cells)), -1.0)
    for operation in np.asarray(space.operations[0], np.float64):
        overlap = np.einsum("nij,mij->nm", operation @ orientation, cells)
        best = np.maximum(best, overlap)
    return np.arccos(np.clip((best - 1) / 2, -1, 1))


def dense(index, weight, n_cells):
    spread = np.zeros((len(index), n_cells + 1))
    np.add.at(spread, (np.arange(len(index))[:, None], index), weight)
    return spread


def labels_of(orientation, space, phase=0):
    """Weights (n, cells and no crystal) of each orientation as one of this phase."""
    program = jax.jit(jax.vmap(lambda p, r: soft_labels(Label(p, r), space)))
    phase = jnp.broadcast_to(jnp.asarray(phase), len(orientation))
    index, weight = program(phase, jnp.asarray(orientation, jnp.float32))
    return dense(np.asarray(index), np.asarray(weight), len(space.cells))


def test_sparse_labels_are_the_dense_softmax(space, rng):
    space, cells = space
    orientation = random_matrices(rng, 200)
    angle = angles_to_cells(orientation, space, cells)
    full = np.exp(-0.5 * (angle / float(space.label_width[0])) ** 2)
    full /= full.sum(axis=1, keepdims=True)
    sparse = labels_of(orientation, space)
    np.testing.assert_allclose(sparse.sum(axis=1), 1, atol=1e-5)
    assert not sparse[:, -1].any()
    missing = 0.5 * np.abs(sparse[:, :-1] - full).sum(axis=1)
    # rarely the nearest cell is looked for on the wrong side of the zone's boundary
    assert missing.mean() < 0.005 and np.quantile(missing, 0.97) < 0.03 and missing.max() < 0.2
    # the label does say where the orientation is
    assert np.all(np.argmax(sparse[:, :-1], axis=1) == np.argmin(angle, axis=1))


def test_labels_are_those_of_every_equivalent(space, rng):
    space, _ = space
    orientation = random_matrices(rng, 1)[0]
    equivalents = np.asarray(space.operations[0], np.float64) @ orientation
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
    symmetry = symmetry_operations(crystals["Mg"])
    quaternions = rotations.matrix_to_quaternion(jnp.asarray(grids.so3_grid(symmetry, 14.0)))
    neighbours = orientation_space(symmetry, quaternions, 0.1).neighbours
    assert all(len(set(row)) == len(row) for row in np.asarray(neighbours).tolist())


def test_nearest_cells_name_the_operation(space, rng):
    space, cells = space
    orientation = random_matrices(rng, 20)
    quaternion = rotations.matrix_to_quaternion(jnp.asarray(orientation, jnp.float32))
    index, operation = nearest_cells(quaternion, space.cells, space.operation_quaternions[0], 3)
    assert index.shape == operation.shape == (20, 3)
    angle = angles_to_cells(orientation, space, cells)
    moved = np.asarray(space.operations[0])[np.asarray(operation)] @ cells[np.asarray(index)]
    cosine = (np.einsum("nij,nkij->nk", orientation, moved) - 1) / 2
    between = np.arccos(np.clip(cosine, -1, 1))
    np.testing.assert_allclose(between, np.sort(angle, axis=1)[:, :3], atol=2e-3)


def test_half_angle_cosine_is_the_misorientation(space, rng):
    space, cells = space
    orientation = random_matrices(rng, 5)
    for q, angle in zip(
        rotations.matrix_to_quaternion(jnp.asarray(orientation, jnp.float32)),
        angles_to_cells(orientation, space, cells),
        strict=True,
    ):
        cosine = half_angle_cosine(q, space.cells, space.operation_quaternions[0])
        np.testing.assert_allclose(cosine, np.cos(angle / 2), atol=1e-6)


def test_space_without_grid_has_symmetry_only(crystals):
    space = orientation_space(symmetry_operations(crystals["Cu"]), np.zeros((0, 4)), 0.1)
    assert space.operations.shape == (1, 24, 3, 3)
    assert space.cells.shape == (0, 4)


@pytest.fixture(scope="module")
def several(crystals):
    """Spaces of Cu, Mg and ZrO2 (24, 12 and 2 operations), and the three together."""
    spaces = []
    for name, spacing in (("Cu", 14.0), ("Mg", 20.0), ("ZrO2", 25.0)):
        symmetry = symmetry_operations(crystals[name])
        matrices = grids.so3_grid(symmetry, spacing)
        quaternions = rotations.matrix_to_quaternion(jnp.asarray(matrices))
        spaces.append(orientation_space(symmetry, quaternions, WIDTH * np.deg2rad(spacing)))
    return spaces, joint_space(spaces)


def test_labels_of_several_phases_are_those_of_each(several, rng):
    """In its own place among the cells, and nowhere else."""
    spaces, joint = several
    orientation = random_matrices(rng, 40)
    start = 0
    for phase, space in enumerate(spaces):
        place = slice(start, start + len(space.cells))
        start = place.stop
        np.testing.assert_array_equal(joint.phase[place], phase)
        alone, together = labels_of(orientation, space), labels_of(orientation, joint, phase)
        np.testing.assert_allclose(together[:, place], alone[:, :-1], atol=1e-5)
        np.testing.assert_allclose(together[:, place].sum(axis=1), 1, atol=1e-5)
    assert start == len(joint.cells) and joint.n_phases == 3


def test_no_crystal_is_the_last_outcome(several, rng):
    spaces, joint = several
    for space in (spaces[0], joint):
        labels = labels_of(random_matrices(rng, 5), space, space.n_phases)
        np.testing.assert_array_equal(labels, np.eye(len(space.cells) + 1)[[-1] * 5])


def test_repeated_operations_are_those_of_the_phase(several):
    spaces, joint = several
    for phase, space in enumerate(spaces):
        ours, own = np.asarray(joint.operations[phase]), np.asarray(space.operations[0])
        apart = np.abs(ours[:, None] - own).max(axis=(2, 3))
        assert len(ours) == 24 and apart.min(axis=1).max() == apart.min(axis=0).max() == 0


def test_one_phase_alone_is_unchanged(several):
    (space, *_), _ = several
    jax.tree.map(np.testing.assert_array_equal, joint_space([space]), space)
