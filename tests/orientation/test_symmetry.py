# SPDX-License-Identifier: GPL-3.0-or-later
"""Angles between orientations against orix and brute force, their invariances and gradients.

Stacks have one length and groups one number of operations, so that each function is compiled once
for each precision: an operation that is listed twice changes no minimum.
"""

import jax
import numpy as np
import pytest
from helpers import in_precision, random_matrices
from hypothesis import given, settings
from hypothesis import strategies as st
from orix.quaternion import Orientation
from scipy.spatial.transform import Rotation

from jaxstem.crystal.setting import orix_group
from jaxstem.orientation import symmetry
from jaxstem.orientation.rotations import rotation_vector_to_matrix

pytestmark = pytest.mark.usefixtures("compiler")

EPS = {np.float32: np.finfo(np.float32).eps, np.float64: np.finfo(np.float64).eps}
N = 200


def turn(vector):
    return Rotation.from_rotvec(vector).as_matrix()


def random_axes(rng, n):
    axes = rng.normal(size=(n, 3))
    return axes / np.linalg.norm(axes, axis=1, keepdims=True)


def exact_angle(a, b):
    """By scipy, accurate at all angles."""
    return Rotation.from_matrix(np.swapaxes(a, -1, -2) @ b).magnitude()


def cyclic(operations):
    """Repeated up to the 24 operations of m-3m."""
    return np.resize(operations, (24, 3, 3))


def in_orix(matrices, group):
    """orix orientations, by quaternions: its own reading of matrices is only good to 5e-6"""
    q = Rotation.from_matrix(matrices).as_quat()[:, [3, 0, 1, 2]]
    return Orientation(q, symmetry=orix_group(group).laue_proper_subgroup)


def test_geodesic_angle_is_accurate_from_zero_to_pi(rng, dtype):
    small = np.geomspace(1e-8, 1, 79)
    angles = np.concatenate([[0], small, np.linspace(1, 2, 40), np.pi - small[::-1], [np.pi]])
    rotation = turn(angles[:, None] * random_axes(rng, N))
    a = random_matrices(rng, N, np.float64)
    found = in_precision(symmetry.geodesic_angle, a, a @ rotation, dtype=dtype)
    # The rounding of the matrices themselves moves each of them by about one eps.
    assert np.abs(found - angles).max() < 8 * EPS[dtype]
    one = np.tile(np.eye(3), (N, 1, 1))
    found = in_precision(symmetry.geodesic_angle, one, rotation, dtype=dtype)[1:80]
    assert np.abs(found / small - 1).max() < 8 * EPS[dtype]


gradients = jax.vmap(jax.grad(symmetry.geodesic_angle, argnums=(0, 1)))


def test_geodesic_angle_gradients_are_finite_at_zero_and_pi_and_unit_beside_them(rng, dtype):
    flips = [np.diag(x) for x in ([1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1])]
    one = np.tile(np.eye(3), (4, 1, 1))
    a = np.concatenate([one, random_matrices(rng, 1, np.float64)[[0] * 4]])
    axis = np.array([0.6, 0.0, 0.8])
    beside = turn(np.array([1e-3, np.pi - 1e-3, np.pi + 1e-3])[:, None] * axis)
    first = np.concatenate([a, one[:3]])
    second = np.concatenate([a @ np.concatenate([flips, flips]), beside])
    of_first, of_second = in_precision(gradients, first, second, dtype=dtype)
    assert np.isfinite(of_first).all() and np.isfinite(of_second).all()
    np.testing.assert_array_equal([of_first[0], of_second[0]], 0)
    # along a further turn about the axis, d/dt R(t u) = R(t u) [u]×
    along = beside @ np.cross(np.eye(3), -axis).T
    np.testing.assert_allclose(np.sum(of_second[8:] * along, axis=(1, 2)), [1, 1, -1], atol=1e-3)


def test_misorientation_matches_orix(rng, operations, group):
    a, b = random_matrices(rng, N, np.float64), random_matrices(rng, N, np.float64)
    own = operations[group]
    nearby = own[rng.integers(len(own), size=N // 2)] @ a[: N // 2]
    b[: N // 2] = nearby @ turn(0.02 * rng.normal(size=(N // 2, 3)))
    expected = in_orix(a, group).angle_with(in_orix(b, group))
    found = in_precision(symmetry.misorientation, a, b, cyclic(own))
    # orix goes through arccos, which loses half of the digits at small angles
    np.testing.assert_allclose(found, expected, atol=1e-7)
    if group == "m-3m":
        single = in_precision(symmetry.misorientation, a, b, own, dtype=np.float32)
        np.testing.assert_allclose(single, found, atol=20 * EPS[np.float32])


def test_misorientation_is_the_smallest_of_the_angles_to_all_equivalents(rng, operations):
    a, b = random_matrices(rng, 12, np.float64), random_matrices(rng, 10, np.float64)
    mapped = jax.vmap(jax.vmap(symmetry.misorientation, (None, 0, None)), (0, None, None))
    for group in ("6/mmm", "2/m"):
        own = operations[group]
        every = [[[exact_angle(x, o @ y) for o in own] for y in b] for x in a]
        smallest = np.min(every, axis=2)
        found = in_precision(symmetry.misorientation, a[:, None], b, cyclic(own))
        np.testing.assert_allclose(found, smallest, atol=1e-14)
        np.testing.assert_allclose(in_precision(mapped, a, b, cyclic(own)), found, atol=1e-14)


def test_misorientation_mod_180_forgives_the_half_turn_about_the_beam_only(rng, operations):
    own = operations["m-3m"]
    a = random_matrices(rng, N, np.float64)
    small = turn(0.01 * rng.normal(size=(N, 3)))
    about_beam = a @ small @ np.diag([-1, -1, 1])
    about_x = a @ small @ np.diag([1, -1, -1])
    size = exact_angle(np.eye(3), small)
    for b in (a @ small, about_beam):
        found = in_precision(symmetry.misorientation_mod_180, a, b, own)
        both = [
            in_precision(symmetry.misorientation, a, x, own) for x in (b, b @ np.diag([-1, -1, 1]))
        ]
        np.testing.assert_allclose(found, np.minimum(*both), atol=1e-14)
        assert np.all(found <= size + 1e-14)
    assert np.median(in_precision(symmetry.misorientation, about_beam, a, own)) > 0.2
    assert np.median(in_precision(symmetry.misorientation_mod_180, about_x, a, own)) > 0.2


def test_misorientation_gradient_matches_finite_differences(rng, operations):
    a, b = random_matrices(rng, 2, np.float64)
    axis = rng.normal(size=3)

    def along(t, a, b, axis, operations):
        return symmetry.misorientation(a @ rotation_vector_to_matrix(t * axis), b, operations)

    h = 1e-6
    value_and_slope = jax.value_and_grad(along)

    def at(t, a):
        return in_precision(value_and_slope, t, a, b, axis, operations["m-3m"])

    numeric = (at(h, a)[0] - at(-h, a)[0]) / (2 * h)
    np.testing.assert_allclose(at(0.0, a)[1], numeric, atol=1e-7)
    assert np.isfinite(at(0.0, b)[1])


unit_quaternions = (
    st.lists(st.floats(-1, 1, width=32), min_size=4, max_size=4)
    .map(np.asarray)
    .filter(lambda q: np.linalg.norm(q) > 0.1)
    .map(lambda q: q / np.linalg.norm(q))
)
any_rotation = unit_quaternions.map(lambda q: Rotation.from_quat(q).as_matrix())


@settings(max_examples=40, deadline=None)
@given(a=any_rotation, b=any_rotation, c=any_rotation, i=st.integers(0, 23), j=st.integers(0, 23))
def test_misorientation_invariances(operations, a, b, c, i, j):
    own = operations["m-3m"]
    pairs = [(a, b), (b, a), (own[i] @ a, own[j] @ b), (a @ c, b @ c), (a, c), (c, b)]
    size, *same, first, second = in_precision(
        symmetry.misorientation, *np.swapaxes(np.array(pairs), 0, 1), own
    )
    assert 0 <= size <= np.radians(62.8)
    np.testing.assert_allclose(same, size, atol=1e-13)
    assert size <= exact_angle(a, b) + 1e-13
    assert size <= first + second + 1e-13


@settings(max_examples=40, deadline=None)
@given(a=any_rotation, b=any_rotation, c=any_rotation)
def test_geodesic_angle_invariances(a, b, c):
    pairs = [(a, b), (b, a), (c @ a, c @ b), (a @ c, b @ c), (a.T, b.T), (a @ b.T, np.eye(3))]
    size, *same, of_inverses, turned = in_precision(
        symmetry.geodesic_angle, *np.swapaxes(np.array(pairs), 0, 1)
    )
    np.testing.assert_allclose(same, size, atol=1e-13)
    np.testing.assert_allclose(of_inverses, turned, atol=1e-13)


def test_fundamental_zone_holds_one_member_of_each_orbit(rng, operations, group):
    own = operations[group]
    orientations = random_matrices(rng, N, np.float64)
    reduced, index = in_precision(symmetry.reduce_to_fundamental_zone, orientations, cyclic(own))
    np.testing.assert_allclose(reduced, cyclic(own)[index] @ orientations, atol=1e-14)
    trace = np.trace(reduced, axis1=1, axis2=2)
    others = np.trace(own[:, None] @ reduced, axis1=2, axis2=3)
    assert np.all(trace >= others.max(axis=0) - 1e-12)
    moved = own[rng.integers(len(own), size=N)] @ orientations
    again, _ = in_precision(symmetry.reduce_to_fundamental_zone, moved, cyclic(own))
    np.testing.assert_allclose(again, reduced, atol=1e-12)


def test_alike_are_those_whose_misorientation_is_small(rng):
    """Of all pairs, as they are measured one by one; the beam's half turn counts for nothing."""
    operations = orix_group("m-3m").laue_proper_subgroup.to_matrix()
    some = random_matrices(rng, 6, np.float64)
    near = some @ turn(rng.normal(size=(6, 3)) * np.deg2rad(2.0))
    half = some @ np.diag([-1.0, -1.0, 1.0])
    orientation = np.concatenate([some, operations[rng.integers(24)] @ near, half])
    n = len(orientation)
    first, second = np.repeat(orientation, n, axis=0), np.tile(orientation, (n, 1, 1))
    _, angle = symmetry.misorientations(first, second, operations)
    clear = np.abs(angle - 3.0) > 1e-3
    found = symmetry.alike_mod_180(orientation, operations, 3.0).ravel()
    np.testing.assert_array_equal(found[clear], angle[clear] < 3.0)
    assert found.reshape(n, n).diagonal(12).all() and not found.all()
