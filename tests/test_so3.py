# SPDX-License-Identifier: GPL-3.0-or-later
"""Rotations against scipy, orix and numpy's SVD, their gradients, and the evenness of the grids."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from orix.quaternion import Orientation, symmetry
from orix.vector import Vector3d
from scipy import stats
from scipy.spatial.transform import Rotation

from jaxstem.orientation import grids, rotations, symmetry

POINT_GROUPS = {
    "m-3m": symmetry.Oh,
    "6/mmm": symmetry.D6h,
    "-3m": symmetry.D3d,
    "2/m": symmetry.C2h,
    "-1": symmetry.Ci,
}
OPERATIONS = {
    name: group.laue_proper_subgroup.to_matrix().reshape(-1, 3, 3)
    for name, group in POINT_GROUPS.items()
}
EPS = {np.float32: np.finfo(np.float32).eps, np.float64: np.finfo(np.float64).eps}

each_precision = pytest.mark.parametrize("dtype", [np.float32, np.float64])
each_group = pytest.mark.parametrize("group", POINT_GROUPS)


def call(function, *arguments, dtype=np.float64):
    """The function, jitted, in the given precision; the result as numpy arrays of that precision"""
    with jax.enable_x64(dtype == np.float64):
        result = jax.jit(function)(*(np.asarray(a, dtype) for a in arguments))
        for leaf in jax.tree.leaves(result):
            assert leaf.dtype == dtype or jnp.issubdtype(leaf.dtype, jnp.integer)
        return jax.tree.map(np.asarray, result)


def random_matrices(rng, n):
    return Rotation.random(n, random_state=rng.integers(2**31)).as_matrix()


def turn(vector):
    return Rotation.from_rotvec(vector).as_matrix()


def from_scipy(rotation):
    q = rotation.as_quat()[..., [3, 0, 1, 2]]
    return np.where(q[..., :1] < 0, -q, q)


def in_orix(matrices, symmetry=symmetry.C1):
    """orix orientations, by quaternions: its own reading of matrices is only good to 5e-6"""
    return Orientation(from_scipy(Rotation.from_matrix(matrices)), symmetry=symmetry)


def special_rotations():
    """Identity, half turns, all operations of m-3m and 6/mmm, and rotations close to them"""
    exact = np.concatenate([OPERATIONS["m-3m"], OPERATIONS["6/mmm"]])
    rng = np.random.default_rng(3)
    near = [turn(s * rng.normal(size=(len(exact), 3))) @ exact for s in (1e-9, 1e-6, 1e-3)]
    return np.concatenate([exact, *near])


@pytest.fixture
def rng(request):
    seed = np.random.SeedSequence().entropy % 2**32
    print(f"seed {seed}")
    return np.random.default_rng(seed)


@each_precision
def test_quaternion_conversions_match_scipy(rng, dtype):
    matrices = np.concatenate([random_matrices(rng, 500), special_rotations()])
    q = call(rotations.matrix_to_quaternion, matrices, dtype=dtype)
    expected = from_scipy(Rotation.from_matrix(matrices))
    assert np.all(q[:, 0] >= 0)
    same = np.minimum(np.linalg.norm(q - expected, axis=-1), np.linalg.norm(q + expected, axis=-1))
    assert same.max() < 4 * EPS[dtype]
    assert np.abs(np.linalg.norm(q, axis=-1) - 1).max() < 4 * EPS[dtype]
    assert (
        np.abs(call(rotations.quaternion_to_matrix, q, dtype=dtype) - matrices).max()
        < 8 * EPS[dtype]
    )


def test_quaternion_length_and_sign_do_not_matter(rng):
    q = rng.normal(size=(50, 4))
    expected = Rotation.from_quat(q[:, [1, 2, 3, 0]]).as_matrix()
    for factor in (1, -1, 1e-3, -40):
        np.testing.assert_allclose(
            call(rotations.quaternion_to_matrix, factor * q), expected, atol=1e-14
        )
    np.testing.assert_array_equal(call(rotations.quaternion_to_matrix, np.zeros(4)), np.eye(3))


def test_quaternion_product_is_the_matrix_product(rng):
    a, b = random_matrices(rng, 100), random_matrices(rng, 100)
    qa, qb = call(rotations.matrix_to_quaternion, a), call(rotations.matrix_to_quaternion, b)
    product = call(rotations.quaternion_multiply, qa, qb)
    np.testing.assert_allclose(call(rotations.quaternion_to_matrix, product), a @ b, atol=1e-14)
    inverse = call(rotations.quaternion_conjugate, qa)
    np.testing.assert_allclose(
        call(rotations.quaternion_to_matrix, inverse), np.swapaxes(a, 1, 2), atol=1e-14
    )
    one = call(rotations.quaternion_multiply, qa, inverse)
    np.testing.assert_allclose(one, np.tile([1, 0, 0, 0], (100, 1)), atol=1e-14)


@each_precision
def test_rotation_vectors_match_scipy_at_all_lengths(rng, dtype):
    axes = rng.normal(size=(400, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    lengths = np.concatenate([np.zeros(1), np.geomspace(1e-12, 0.1, 300), np.linspace(0.1, 7, 99)])
    vectors = np.asarray(lengths[:, None] * axes, dtype)
    error = call(rotations.rotation_vector_to_matrix, vectors, dtype=dtype) - turn(vectors)
    assert np.abs(error).max() < 12 * EPS[dtype]


def test_rotation_vector_gradient_at_zero_is_the_cross_product():
    with jax.enable_x64(True):
        jacobian = jax.jit(jax.jacfwd(rotations.rotation_vector_to_matrix))(np.zeros(3))
    levi_civita = np.stack([np.cross(np.eye(3), -axis) for axis in np.eye(3)], axis=-1)
    np.testing.assert_allclose(jacobian, np.swapaxes(levi_civita, 0, 1), atol=1e-15)


def test_euler_angles_are_those_of_orix_for_the_same_physical_orientation(rng):
    matrices = random_matrices(rng, 300)
    orix = in_orix(matrices)
    along_x = (orix * Vector3d.xvector()).data
    np.testing.assert_allclose(along_x, matrices[:, :, 0], atol=1e-12)
    np.testing.assert_allclose(
        call(rotations.matrix_to_euler, matrices), orix.to_euler(), atol=1e-12
    )
    angles = rng.uniform(0, 1, (300, 3)) * [2 * np.pi, np.pi, 2 * np.pi]
    np.testing.assert_allclose(
        call(rotations.euler_to_matrix, angles),
        Orientation.from_euler(angles).to_matrix(),
        atol=1e-12,
    )


@each_precision
def test_euler_angles_return_the_rotation_also_where_they_degenerate(rng, dtype):
    about_z = turn(np.linspace(-3, 3, 13)[:, None] * [0, 0, 1])
    flipped = about_z @ np.diag([1, -1, -1])
    matrices = np.concatenate([random_matrices(rng, 200), special_rotations(), about_z, flipped])
    angles = call(rotations.matrix_to_euler, matrices, dtype=dtype)
    assert np.all((angles[:, ::2] >= 0) & (angles[:, ::2] < 2 * np.pi))
    assert np.all((angles[:, 1] >= 0) & (angles[:, 1] <= np.pi + EPS[dtype]))
    back = call(rotations.euler_to_matrix, angles, dtype=dtype)
    assert np.abs(back - matrices).max() < 20 * EPS[dtype]
    np.testing.assert_array_equal(angles[-26:, 2], 0)


@each_precision
def test_geodesic_angle_is_accurate_from_zero_to_pi(rng, dtype):
    small = np.geomspace(1e-8, 1, 200)
    angles = np.concatenate([[0], small, np.linspace(1, 2, 50), np.pi - small[::-1], [np.pi]])
    axes = rng.normal(size=(len(angles), 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    a = random_matrices(rng, len(angles))
    b = a @ turn(angles[:, None] * axes)
    found = call(symmetry.geodesic_angle, a, b, dtype=dtype)
    # The rounding of the matrices themselves moves each of them by about one eps.
    assert np.abs(found - angles).max() < 8 * EPS[dtype]
    found = call(
        symmetry.geodesic_angle, np.eye(3), turn(small[:, None] * axes[1:201]), dtype=dtype
    )
    assert np.abs(found / small - 1).max() < 8 * EPS[dtype]


@each_precision
def test_geodesic_angle_gradients_are_finite_at_zero_and_pi_and_unit_beside_them(rng, dtype):
    def angle(t, a, axis):
        return symmetry.geodesic_angle(a, a @ rotations.rotation_vector_to_matrix(t * axis))

    a, axis = np.eye(3), np.array([0.6, 0.0, 0.8])
    slope = partial(call, jax.vmap(jax.grad(angle), (0, None, None)), dtype=dtype)
    exact, beside = np.array([0, np.pi]), np.array([1e-3, np.pi - 1e-3, np.pi + 1e-3])
    slopes = slope(np.concatenate([exact, beside]), a, axis)
    assert np.all(np.isfinite(slopes[:2]))
    np.testing.assert_allclose(slopes[2:], [1, 1, -1], atol=1e-3)
    gradients = partial(call, jax.grad(symmetry.geodesic_angle, argnums=(0, 1)), dtype=dtype)
    for a in (np.eye(3), random_matrices(rng, 1)[0]):
        for flip in ([1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]):
            for gradient in gradients(a, a @ np.diag(flip)):
                assert np.all(np.isfinite(gradient))
    for gradient in gradients(np.eye(3), np.eye(3)):
        np.testing.assert_array_equal(gradient, 0)


@each_group
def test_misorientation_matches_orix(rng, group):
    a, b = random_matrices(rng, 200), random_matrices(rng, 200)
    operations = OPERATIONS[group]
    nearby = operations[rng.integers(len(operations), size=100)] @ a[:100]
    b[:100] = nearby @ turn(0.02 * rng.normal(size=(100, 3)))
    proper = POINT_GROUPS[group].laue_proper_subgroup
    expected = in_orix(a, proper).angle_with(in_orix(b, proper))
    found = call(symmetry.misorientation, a, b, operations)
    # orix goes through arccos, which loses half of the digits at small angles
    np.testing.assert_allclose(found, expected, atol=1e-7)
    if group == "m-3m":
        single = call(symmetry.misorientation, a, b, operations, dtype=np.float32)
        np.testing.assert_allclose(single, found, atol=20 * EPS[np.float32])


@pytest.mark.parametrize("group", ["6/mmm", "2/m"])
def test_misorientation_is_the_smallest_of_the_angles_to_all_equivalents(rng, group):
    a, b = random_matrices(rng, 40), random_matrices(rng, 30)
    operations = OPERATIONS[group]
    found = call(symmetry.misorientation, a[:, None], b, operations)
    equivalents = operations[:, None, None] @ b
    every = call(symmetry.geodesic_angle, a[:, None], equivalents)
    np.testing.assert_allclose(found, every.min(axis=0), atol=1e-14)
    mapped = jax.vmap(jax.vmap(symmetry.misorientation, (None, 0, None)), (0, None, None))
    np.testing.assert_allclose(call(mapped, a, b, operations), found, atol=1e-14)


def test_misorientation_mod_180_forgives_the_half_turn_about_the_beam_only(rng):
    operations = OPERATIONS["m-3m"]
    a = random_matrices(rng, 100)
    small = turn(0.01 * rng.normal(size=(100, 3)))
    about_beam = a @ small @ np.diag([-1, -1, 1])
    about_x = a @ small @ np.diag([1, -1, -1])
    size = call(symmetry.geodesic_angle, np.eye(3), small)
    forgiving = partial(call, symmetry.misorientation_mod_180)
    for b in (a @ small, about_beam):
        found = forgiving(a, b, operations)
        both = [
            call(symmetry.misorientation, a, x, operations) for x in (b, b @ np.diag([-1, -1, 1]))
        ]
        np.testing.assert_allclose(found, np.minimum(*both), atol=1e-14)
        assert np.all(found <= size + 1e-14)
    assert np.median(call(symmetry.misorientation, about_beam, a, operations)) > 0.2
    assert np.median(forgiving(about_x, a, operations)) > 0.2


def test_misorientation_gradient_matches_finite_differences(rng):
    operations = OPERATIONS["m-3m"]
    a, b, axis = random_matrices(rng, 1)[0], random_matrices(rng, 1)[0], rng.normal(size=3)

    def along(t, a, b, axis):
        return symmetry.misorientation(
            a @ rotations.rotation_vector_to_matrix(t * axis), b, jnp.asarray(operations)
        )

    h = 1e-6
    value_and_slope = partial(call, jax.value_and_grad(along))
    above, below = (value_and_slope(t, a, b, axis)[0] for t in (h, -h))
    _, slope = value_and_slope(0.0, a, b, axis)
    np.testing.assert_allclose(slope, (above - below) / (2 * h), atol=1e-7)
    assert np.isfinite(value_and_slope(0.0, b, b, axis)[1])


unit_quaternions = (
    st.lists(st.floats(-1, 1, width=32), min_size=4, max_size=4)
    .map(np.asarray)
    .filter(lambda q: np.linalg.norm(q) > 0.1)
    .map(lambda q: q / np.linalg.norm(q))
)
rotations = unit_quaternions.map(lambda q: Rotation.from_quat(q).as_matrix())


@settings(max_examples=60, deadline=None)
@given(a=rotations, b=rotations, c=rotations, i=st.integers(0, 23), j=st.integers(0, 23))
def test_misorientation_invariances(a, b, c, i, j):
    operations = OPERATIONS["m-3m"]
    angle = partial(call, symmetry.misorientation)
    size = angle(a, b, operations)
    assert 0 <= size <= np.radians(62.8)
    np.testing.assert_allclose(angle(b, a, operations), size, atol=1e-13)
    np.testing.assert_allclose(
        angle(operations[i] @ a, operations[j] @ b, operations), size, atol=1e-13
    )
    np.testing.assert_allclose(angle(a @ c, b @ c, operations), size, atol=1e-13)
    assert size <= call(symmetry.geodesic_angle, a, b) + 1e-13
    assert size <= angle(a, c, operations) + angle(c, b, operations) + 1e-13


@settings(max_examples=60, deadline=None)
@given(a=rotations, b=rotations, c=rotations)
def test_geodesic_angle_invariances(a, b, c):
    angle = partial(call, symmetry.geodesic_angle)
    size = angle(a, b)
    np.testing.assert_allclose(angle(b, a), size, atol=1e-13)
    np.testing.assert_allclose(angle(c @ a, c @ b), size, atol=1e-13)
    np.testing.assert_allclose(angle(a @ c, b @ c), size, atol=1e-13)
    np.testing.assert_allclose(angle(a.T, b.T), angle(a @ b.T, np.eye(3)), atol=1e-13)


@each_group
def test_fundamental_zone_holds_one_member_of_each_orbit(rng, group):
    operations = OPERATIONS[group]
    orientations = random_matrices(rng, 100)
    reduced, index = call(symmetry.reduce_to_fundamental_zone, orientations, operations)
    np.testing.assert_allclose(reduced, operations[index] @ orientations, atol=1e-14)
    trace = np.trace(reduced, axis1=1, axis2=2)
    others = np.trace(operations[:, None] @ reduced, axis1=2, axis2=3)
    assert np.all(trace >= others.max(axis=0) - 1e-12)
    moved = operations[rng.integers(len(operations), size=100)] @ orientations
    again, _ = call(symmetry.reduce_to_fundamental_zone, moved, operations)
    np.testing.assert_allclose(again, reduced, atol=1e-12)


def svd_rotation(m):
    """The proper rotation nearest to m, and what decides its accuracy: s2 + det s3 over s1"""
    u, s, vt = np.linalg.svd(np.asarray(m, np.float64))
    sign = np.linalg.det(u) * np.linalg.det(vt)
    u[..., :, 2] *= sign[..., None]
    return u @ vt, (s[..., 1] + sign * s[..., 2]) / np.maximum(s[..., 0], 1e-300)


def with_singular_values(rng, n, values):
    return random_matrices(rng, n) * np.asarray(values) @ random_matrices(rng, n)


def difficult_matrices(rng):
    n = 50
    noisy = random_matrices(rng, n) + 0.05 * rng.normal(size=(n, 3, 3))
    return {
        "random": rng.normal(size=(n, 3, 3)),
        "noisy": noisy,
        "improper": -noisy,
        "rotations": random_matrices(rng, n),
        "nearly equal": with_singular_values(rng, n, [1, 1, 1 - 1e-9]),
        "rank two": with_singular_values(rng, n, [1, 0.5, 0]),
        "nearly rank one": with_singular_values(rng, n, [1, 1e-3, 1e-3]),
        "improper, nearly tied": with_singular_values(rng, n, [1, 0.5, -0.499]),
        "tiny": 1e-30 * noisy,
        "huge": 1e30 * noisy,
    }


def degenerate_matrices(rng):
    return {
        "zero": np.zeros((1, 3, 3)),
        "inversion": -np.eye(3)[None],
        "mirror": np.diag([1.0, 1.0, -1.0])[None],
        "rank one": with_singular_values(rng, 20, [1, 0, 0]),
        "tied": with_singular_values(rng, 20, [1, 0.3, -0.3]),
        "all equal": with_singular_values(rng, 20, [2, 2, -2]),
    }


def stacked(cases):
    """All matrices of the cases one after the other, and the name of the case of each"""
    names = np.concatenate([[name] * len(m) for name, m in cases.items()])
    return np.concatenate(list(cases.values())), names


def is_proper_rotation(matrices, tolerance):
    matrices = np.asarray(matrices, np.float64)
    departure = np.abs(matrices @ np.swapaxes(matrices, 1, 2) - np.eye(3)).max(axis=(1, 2))
    return (departure < tolerance) & (np.linalg.det(matrices) > 0.99)


@each_precision
def test_nearest_rotation_matches_the_svd(rng, dtype):
    m, names = stacked(difficult_matrices(rng))
    m = m.astype(dtype)
    found = call(rotations.nearest_rotation, m, dtype=dtype)
    expected, gap = svd_rotation(m)
    error = np.linalg.norm(found - expected, axis=(1, 2)) * np.minimum(gap, 1)
    # Rounding adds up over the squarings, of which double precision takes twice as many.
    allowed = {np.float32: 40, np.float64: 200}[dtype]
    assert not set(names[error > allowed * EPS[dtype]])
    assert not set(names[~is_proper_rotation(found, 16 * EPS[dtype])])


@each_precision
def test_nearest_rotation_is_a_best_one_where_there_are_many(rng, dtype):
    m, names = stacked(degenerate_matrices(rng))
    m = m.astype(dtype)
    found = call(rotations.nearest_rotation, m, dtype=dtype)
    assert not set(names[~is_proper_rotation(found, 16 * EPS[dtype])])
    missing = np.sum((svd_rotation(m)[0] - found) * m, axis=(1, 2))
    assert not set(names[missing > 40 * EPS[dtype]])
    np.testing.assert_array_equal(found[names == "zero"], np.eye(3)[None])


def test_nearest_rotation_gradient_matches_finite_differences(rng):
    weight = rng.normal(size=(3, 3))

    def total(m):
        return jnp.sum(weight.astype(m.dtype) * rotations.nearest_rotation(m))

    value, gradient = jax.vmap(jax.vmap(total)), jax.vmap(jax.grad(total))
    cases = [
        random_matrices(rng, 1)[0] + 0.2 * rng.normal(size=(3, 3)),
        random_matrices(rng, 1)[0],
        2.5 * np.eye(3),
        with_singular_values(rng, 1, [1, 1, 0.2])[0],
        with_singular_values(rng, 1, [1, 0.7, 0])[0],
        with_singular_values(rng, 1, [1, 0.8, -0.3])[0],
        1e-3 * with_singular_values(rng, 1, [1, 0.8, 0.8])[0],
    ]
    m = np.stack(cases)
    h = 1e-6 * np.abs(m).max(axis=(1, 2))[:, None, None, None]
    steps = h * np.eye(9).reshape(9, 3, 3)
    difference = call(value, m[:, None] + steps) - call(value, m[:, None] - steps)
    numeric = difference / (2 * h[..., 0, 0])
    size = np.maximum(1, np.abs(numeric).max(axis=1, keepdims=True))
    exact = call(gradient, m).reshape(-1, 9)
    assert np.abs((exact - numeric) / size).max() < 1e-6
    single = call(gradient, m, dtype=np.float32).reshape(-1, 9)
    assert np.abs((single - exact) / size).max() < 3e-4


@each_precision
def test_nearest_rotation_gradients_are_finite_where_the_answer_is_not_unique(rng, dtype):
    weight = rng.normal(size=(3, 3)).astype(dtype)
    gradient = jax.vmap(jax.grad(lambda m: jnp.sum(weight * rotations.nearest_rotation(m))))
    m, names = stacked(difficult_matrices(rng) | degenerate_matrices(rng))
    found = call(gradient, m, dtype=dtype)
    in_range = (names != "tiny") & (names != "huge")
    assert not set(names[in_range & ~np.isfinite(found).all(axis=(1, 2))])


def test_nearest_rotation_has_one_result_for_every_way_of_batching(rng):
    m = rng.normal(size=(4, 5, 3, 3))
    whole = call(rotations.nearest_rotation, m)
    np.testing.assert_allclose(
        call(jax.vmap(jax.vmap(rotations.nearest_rotation)), m), whole, atol=1e-14
    )


def uniformity_scores(matrices):
    """Deviations, in standard errors, of moments of the Haar measure, which are known exactly.

    Means of each element (variance 1/3), of products of two elements of a row and of squares less
    1/3 (variances 1/15 and 4/45), of the characters 1 + 2 cos t and 1 + 2 cos t + 2 cos 2t (1).
    """
    n = len(matrices)
    cosine = np.clip((np.trace(matrices, axis1=1, axis2=2) - 1) / 2, -1, 1)
    pairs = matrices * np.roll(matrices, 1, axis=2)
    characters = np.stack([1 + 2 * cosine, 4 * cosine**2 + 2 * cosine - 1])
    scores = [
        matrices.mean(axis=0) / math.sqrt(1 / 3),
        pairs.mean(axis=0) / math.sqrt(1 / 15),
        (matrices**2 - 1 / 3).mean(axis=0) / math.sqrt(4 / 45),
        characters.mean(axis=1),
    ]
    return math.sqrt(n) * np.abs(np.concatenate([s.ravel() for s in scores]))


def test_random_rotations_are_uniform(rng):
    key = jax.random.key(int(rng.integers(2**31)))
    draw = jax.jit(rotations.random_rotations, static_argnums=1)
    matrices = np.asarray(draw(key, (40, 500)), np.float64)
    assert matrices.shape == (40, 500, 3, 3)
    matrices = matrices.reshape(-1, 3, 3)
    assert np.abs(matrices @ np.swapaxes(matrices, 1, 2) - np.eye(3)).max() < 1e-6
    assert uniformity_scores(matrices).max() < 5.5
    angle = np.arccos(np.clip((np.trace(matrices, axis1=1, axis2=2) - 1) / 2, -1, 1))
    assert stats.kstest(angle, lambda t: (t - np.sin(t)) / np.pi).pvalue > 1e-7
    careless = rng.uniform(0, 1, (20000, 3)) * [2 * np.pi, np.pi, 2 * np.pi]
    assert uniformity_scores(call(rotations.euler_to_matrix, careless)).max() > 10


def test_random_rotations_follow_the_key_and_the_dtype():
    draw = jax.jit(rotations.random_rotations, static_argnums=(1, 2))
    first, second = (draw(jax.random.key(k), (5,)) for k in (1, 2))
    np.testing.assert_array_equal(first, draw(jax.random.key(1), (5,)))
    assert np.all(np.abs(first - second).max(axis=(1, 2)) > 1e-3)
    assert first.dtype == np.float32
    with jax.enable_x64(True):
        assert draw(jax.random.key(1), ()).dtype == np.float64


def angles_to_grid(orientations, grid, operations):
    """Symmetry-reduced angles [rad] from each orientation to each point of the grid"""
    q = from_scipy(Rotation.from_matrix(grid))
    overlap = np.zeros((len(orientations), len(grid)))
    for operation in operations:
        equivalents = from_scipy(Rotation.from_matrix(operation @ orientations))
        overlap = np.maximum(overlap, np.abs(equivalents @ q.T))
    return 2 * np.arccos(np.minimum(overlap, 1))


@pytest.mark.parametrize(
    ("group", "spacing"), [("m-3m", 6.8), ("m-3m", 5), ("6/mmm", 8), ("-3m", 10), ("2/m", 14)]
)
def test_so3_grid_is_near_uniform_over_the_fundamental_zone(rng, group, spacing):
    operations = OPERATIONS[group]
    grid = grids.so3_grid(operations, spacing)
    n = len(operations)
    assert grid.dtype == np.float64
    assert abs(math.degrees(grids.volume_spacing(len(grid), n)) / spacing - 1) < 0.01
    np.testing.assert_allclose(np.linalg.det(grid), 1, atol=1e-12)
    trace = np.trace(grid, axis1=1, axis2=2)
    others = np.trace(operations[:, None] @ grid, axis1=2, axis2=3)
    assert np.all(trace >= others.max(axis=0) - 1e-9)

    angles = angles_to_grid(random_matrices(rng, 300), grid, operations)
    distance = angles.min(axis=1) / np.radians(spacing)
    # A cubic lattice of the same density has 0.5 and 0.866, independent random points about 0.65
    # and above 1.2.
    assert math.sqrt(np.mean(distance**2)) < 0.56
    assert distance.max() < 1.1
    few = rng.choice(grid, 100)
    own, neighbour = np.partition(angles_to_grid(few, grid, operations), 1, axis=1)[:, :2].T
    assert own.max() < 1e-6
    assert np.mean(neighbour < 0.3 * np.radians(spacing)) < 0.1


def test_so3_grid_is_reproducible_and_refuses_bad_spacings():
    operations = OPERATIONS["m-3m"]
    np.testing.assert_array_equal(grids.so3_grid(operations, 9), grids.so3_grid(operations, 9))
    for spacing in (0, -1, math.nan):
        with pytest.raises(ValueError, match="spacing"):
            grids.so3_grid(operations, spacing)
        with pytest.raises(ValueError, match="spacing"):
            grids.zone_axis_grid(operations, spacing)


@each_group
def test_zone_axis_grid_covers_every_direction_once(rng, group):
    operations = OPERATIONS[group]
    spacing = 5.0
    axes = grids.zone_axis_grid(operations, spacing)
    expected = 4 * np.pi / (len(operations) * np.radians(spacing) ** 2)
    assert abs(len(axes) / expected - 1) < 0.05
    np.testing.assert_allclose(np.linalg.norm(axes, axis=1), 1, atol=1e-14)

    zone_axes = random_matrices(rng, 500)[:, :, 2]
    overlap = np.einsum("di,nij,zj->dnz", zone_axes, operations, axes).max(axis=(1, 2))
    distance = np.arccos(np.minimum(overlap, 1)) / np.radians(spacing)
    # A square lattice of the same density has 0.41 and 0.71.
    assert math.sqrt(np.mean(distance**2)) < 0.47
    assert distance.max() < 1.1
    others = np.einsum("di,nij,ej->nde", axes, operations, axes)
    assert np.sum(others > np.cos(0.3 * np.radians(spacing))) < 1.1 * len(axes)


def test_cubic_zone_axes_fill_the_triangle_and_its_mirror_image():
    axes = grids.zone_axis_grid(OPERATIONS["m-3m"], 2.0)
    ordered = np.argsort(np.abs(axes), axis=1)
    permutation = np.linalg.det(np.eye(3)[ordered])
    handedness = permutation * np.prod(np.sign(axes), axis=1)
    triangle = 4 * np.pi / 48 / np.radians(2.0) ** 2
    for side in (1, -1):
        assert abs(np.sum(handedness == side) / triangle - 1) < 0.1
