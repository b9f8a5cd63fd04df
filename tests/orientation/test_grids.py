# SPDX-License-Identifier: GPL-3.0-or-later
"""Grids of rotations and of directions: even, complete, of the density that is asked for."""

import math

import numpy as np
import pytest
from helpers import random_matrices
from scipy.spatial.transform import Rotation

from jaxstem.orientation import grids


def angles_to_grid(orientations, grid, operations):
    """Symmetry-reduced angles [rad] from each orientation to each point of the grid"""
    q = Rotation.from_matrix(grid).as_quat()
    overlap = np.zeros((len(orientations), len(grid)))
    for operation in operations:
        equivalents = Rotation.from_matrix(operation @ orientations).as_quat()
        overlap = np.maximum(overlap, np.abs(equivalents @ q.T))
    return 2 * np.arccos(np.minimum(overlap, 1))


@pytest.mark.parametrize(
    ("group", "spacing"), [("m-3m", 6.8), ("6/mmm", 10), ("-3m", 12), ("2/m", 16)]
)
def test_so3_grid_is_near_uniform_over_the_fundamental_zone(rng, operations, group, spacing):
    own = operations[group]
    grid = grids.so3_grid(own, spacing)
    n = len(own)
    assert grid.dtype == np.float64
    assert abs(math.degrees(grids.volume_spacing(len(grid), n)) / spacing - 1) < 0.01
    np.testing.assert_allclose(np.linalg.det(grid), 1, atol=1e-12)
    trace = np.trace(grid, axis1=1, axis2=2)
    others = np.trace(own[:, None] @ grid, axis1=2, axis2=3)
    assert np.all(trace >= others.max(axis=0) - 1e-9)

    angles = angles_to_grid(random_matrices(rng, 300, np.float64), grid, own)
    distance = angles.min(axis=1) / np.radians(spacing)
    # A cubic lattice of the same density has 0.5 and 0.866, independent random points about 0.65
    # and above 1.2.
    assert math.sqrt(np.mean(distance**2)) < 0.56
    assert distance.max() < 1.1
    few = rng.choice(grid, 100)
    own_angle, neighbour = np.partition(angles_to_grid(few, grid, own), 1, axis=1)[:, :2].T
    assert own_angle.max() < 1e-6
    assert np.mean(neighbour < 0.3 * np.radians(spacing)) < 0.1


def test_so3_grid_is_reproducible_and_refuses_bad_spacings(operations):
    own = operations["m-3m"]
    np.testing.assert_array_equal(grids.so3_grid(own, 9), grids.so3_grid(own, 9))
    for spacing in (0, -1, math.nan):
        with pytest.raises(ValueError, match="spacing"):
            grids.so3_grid(own, spacing)
        with pytest.raises(ValueError, match="spacing"):
            grids.zone_axis_grid(own, spacing)


def test_zone_axis_grid_covers_every_direction_once(rng, operations, group):
    own = operations[group]
    spacing = 5.0
    axes = grids.zone_axis_grid(own, spacing)
    expected = 4 * np.pi / (len(own) * np.radians(spacing) ** 2)
    assert abs(len(axes) / expected - 1) < 0.05
    np.testing.assert_allclose(np.linalg.norm(axes, axis=1), 1, atol=1e-14)

    zone_axes = random_matrices(rng, 500, np.float64)[:, :, 2]
    overlap = np.einsum("di,nij,zj->dnz", zone_axes, own, axes, optimize=True).max(axis=(1, 2))
    distance = np.arccos(np.minimum(overlap, 1)) / np.radians(spacing)
    # A square lattice of the same density has 0.41 and 0.71.
    assert math.sqrt(np.mean(distance**2)) < 0.47
    assert distance.max() < 1.1
    others = np.einsum("di,nij,ej->nde", axes, own, axes, optimize=True)
    assert np.sum(others > np.cos(0.3 * np.radians(spacing))) < 1.1 * len(axes)


def test_cubic_zone_axes_fill_the_triangle_and_its_mirror_image(operations):
    axes = grids.zone_axis_grid(operations["m-3m"], 2.0)
    ordered = np.argsort(np.abs(axes), axis=1)
    permutation = np.linalg.det(np.eye(3)[ordered])
    handedness = permutation * np.prod(np.sign(axes), axis=1)
    triangle = 4 * np.pi / 48 / np.radians(2.0) ** 2
    for side in (1, -1):
        assert abs(np.sum(handedness == side) / triangle - 1) < 0.1
