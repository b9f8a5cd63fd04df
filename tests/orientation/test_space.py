# SPDX-License-Identifier: GPL-3.0-or-later
"""Cells, neighbours and soft labels against brute force over all cells and operations."""

import jax
import numpy as np
import pytest
from helpers import random_matrices

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

pytestmark = pytest.mark.usefixtures("quick_compile")

WIDTH = 0.55
N = 200
SPACINGS = {"Cu": 10.0, "Mg": 14.0, "ZrO2": 20.0}


to_quaternion = jax.jit(rotations.matrix_to_quaternion)


@pytest.fixture(scope="module", autouse=True)
def converted_at_once():
    """One operation after the other would take a second for each number of matrices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rotations, "matrix_to_quaternion", to_quaternion)
        yield


@pytest.fixture(scope="module")
def spaces(crystals):
    """Spaces of Cu, Mg and ZrO2 (24, 12 and 2 operations), and their cells as matrices."""
    found = {}
    for name, spacing in SPACINGS.items():
        symmetry = symmetry_operations(crystals[name])
        matrices = grids.so3_grid(symmetry, spacing)
        width = WIDTH * grids.volume_spacing(len(matrices), len(symmetry))
        found[name] = orientation_space(symmetry, to_quaternion(matrices), width), matrices
    return found


@pytest.fixture(params=SPACINGS)
def space(request, spaces):
    """One phase's space and its cells as matrices."""
    return spaces[request.param]


@pytest.fixture(scope="module")
def several(spaces):
    """The three spaces, and all together."""
    alone = [space for space, _ in spaces.values()]
    return alone, joint_space(alone)


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


@jax.jit
def labels(phase, orientations, space):
    return jax.vmap(lambda orientation: soft_labels(Label(phase, orientation), space))(orientations)


def labels_of(orientation, space, phase=0):
    """Weights (n, cells and no crystal) of up to N orientations as ones of this phase."""
    filled = np.resize(orientation, (N, 3, 3)).astype(np.float32)
    index, weight = (np.asarray(x)[: len(orientation)] for x in labels(phase, filled, space))
    return dense(index, weight, len(space.cells))


def test_sparse_labels_are_the_dense_softmax(space, rng):
    space, cells = space
    orientation = random_matrices(rng, N, np.float64)
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
    likeliest = np.argmax(sparse[:, :-1], axis=1)[:, None]
    nearest = np.take_along_axis(angle, likeliest, axis=1)[:, 0]
    np.testing.assert_allclose(nearest, angle.min(axis=1), atol=1e-5)  # two may be as near


def test_labels_are_those_of_every_equivalent(space, rng):
    space, _ = space
    orientation = random_matrices(rng, 1, np.float64)[0]
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


def test_no_cell_is_its_own_neighbour_on_a_coarse_grid(spaces):
    """Half of the 60° between equivalents of Mg is within reach of 64 neighbours at 14°."""
    space, _ = spaces["Mg"]
    assert space.neighbours.shape[1] == 64
    assert all(len(set(row)) == len(row) for row in np.asarray(space.neighbours).tolist())


def test_nearest_cells_name_the_operation(space, rng):
    space, cells = space
    orientation = random_matrices(rng, 20, np.float64)
    quaternion = to_quaternion(orientation.astype(np.float32))
    index, operation = nearest_cells(quaternion, space.cells, space.operation_quaternions[0], 3)
    assert index.shape == operation.shape == (20, 3)
    angle = angles_to_cells(orientation, space, cells)
    moved = np.asarray(space.operations[0])[np.asarray(operation)] @ cells[np.asarray(index)]
    cosine = (np.einsum("nij,nkij->nk", orientation, moved) - 1) / 2
    between = np.arccos(np.clip(cosine, -1, 1))
    np.testing.assert_allclose(between, np.sort(angle, axis=1)[:, :3], atol=2e-3)


def test_half_angle_cosine_is_the_misorientation(space, rng):
    space, cells = space
    orientation = random_matrices(rng, 5, np.float64)
    cosines = jax.jit(jax.vmap(half_angle_cosine, (0, None, None)))
    q = to_quaternion(orientation.astype(np.float32))
    found = cosines(q, space.cells, space.operation_quaternions[0])
    expected = np.cos(angles_to_cells(orientation, space, cells) / 2)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_space_without_grid_has_symmetry_only(crystals):
    space = orientation_space(symmetry_operations(crystals["Cu"]), np.zeros((0, 4)), 0.1)
    assert space.operations.shape == (1, 24, 3, 3)
    assert space.cells.shape == (0, 4)


def test_labels_of_several_phases_are_those_of_each(several, rng):
    """In its own place among the cells, and nowhere else."""
    spaces, joint = several
    orientation = random_matrices(rng, 40, np.float64)
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
        labels = labels_of(random_matrices(rng, 5, np.float64), space, space.n_phases)
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
