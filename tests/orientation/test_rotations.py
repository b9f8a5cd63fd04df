# SPDX-License-Identifier: GPL-3.0-or-later
"""Rotations against scipy, orix and numpy's SVD, and their gradients.

Matrices come in stacks of one length, so that each function is compiled once for each precision.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import in_precision, random_matrices
from orix.quaternion import Orientation
from orix.vector import Vector3d
from scipy import stats
from scipy.spatial.transform import Rotation

from jaxstem.orientation import rotations

pytestmark = pytest.mark.usefixtures("compiler")

EPS = {np.float32: np.finfo(np.float32).eps, np.float64: np.finfo(np.float64).eps}
N = 300


def turn(vector):
    return Rotation.from_rotvec(vector).as_matrix()


def from_scipy(rotation):
    q = rotation.as_quat()[..., [3, 0, 1, 2]]
    return np.where(q[..., :1] < 0, -q, q)


def about_z():
    return turn(np.linspace(-3, 3, 13)[:, None] * [0, 0, 1])


def difficult_rotations(rng, operations):
    """N rotations: random ones, identity, half turns, all operations of m-3m and 6/mmm, rotations
    close to them, and last 26 that turn about z alone or after a half turn about x.
    """
    exact = np.concatenate([operations["m-3m"], operations["6/mmm"]])
    near = [turn(s * rng.normal(size=(len(exact), 3))) @ exact for s in (1e-9, 1e-6, 1e-3)]
    special = np.concatenate([exact, *near, about_z(), about_z() @ np.diag([1, -1, -1])])
    return np.concatenate([random_matrices(rng, N - len(special), np.float64), special])


def test_quaternion_conversions_match_scipy(rng, operations, dtype):
    matrices = difficult_rotations(rng, operations)
    q = in_precision(rotations.matrix_to_quaternion, matrices, dtype=dtype)
    expected = from_scipy(Rotation.from_matrix(matrices))
    assert np.all(q[:, 0] >= 0)
    same = np.minimum(np.linalg.norm(q - expected, axis=-1), np.linalg.norm(q + expected, axis=-1))
    assert same.max() < 4 * EPS[dtype]
    assert np.abs(np.linalg.norm(q, axis=-1) - 1).max() < 4 * EPS[dtype]
    back = in_precision(rotations.quaternion_to_matrix, q, dtype=dtype)
    assert np.abs(back - matrices).max() < 8 * EPS[dtype]


def test_quaternion_length_and_sign_do_not_matter(rng):
    q = rng.normal(size=(N, 4))
    q[0] = 0
    expected = Rotation.from_quat(q[1:, [1, 2, 3, 0]]).as_matrix()
    for factor in (1, -1, 1e-3, -40):
        found = in_precision(rotations.quaternion_to_matrix, factor * q)
        np.testing.assert_allclose(found[1:], expected, atol=1e-14)
        np.testing.assert_array_equal(found[0], np.eye(3))


def test_quaternion_product_is_the_matrix_product(rng):
    a, b = random_matrices(rng, N, np.float64), random_matrices(rng, N, np.float64)
    qa, qb = (in_precision(rotations.matrix_to_quaternion, m) for m in (a, b))
    product = in_precision(rotations.quaternion_multiply, qa, qb)
    found = in_precision(rotations.quaternion_to_matrix, product)
    np.testing.assert_allclose(found, a @ b, atol=1e-14)
    inverse = in_precision(rotations.quaternion_conjugate, qa)
    found = in_precision(rotations.quaternion_to_matrix, inverse)
    np.testing.assert_allclose(found, np.swapaxes(a, 1, 2), atol=1e-14)
    one = in_precision(rotations.quaternion_multiply, qa, inverse)
    np.testing.assert_allclose(one, np.tile([1, 0, 0, 0], (N, 1)), atol=1e-14)


def test_rotation_vectors_match_scipy_at_all_lengths(rng, dtype):
    axes = rng.normal(size=(N, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    lengths = np.concatenate([[0.0], np.geomspace(1e-12, 0.1, 199), np.linspace(0.1, 7, 100)])
    vectors = np.asarray(lengths[:, None] * axes, dtype)
    matrices = turn(vectors)
    found = in_precision(rotations.rotation_vector_to_matrix, vectors, dtype=dtype)
    assert np.abs(found - matrices).max() < 12 * EPS[dtype]
    back = in_precision(rotations.matrix_to_rotation_vector, matrices, dtype=dtype)
    short = lengths < 3
    assert np.abs(back - vectors)[short].max() < 12 * EPS[dtype]
    assert np.abs(turn(np.array(back)) - matrices).max() < 16 * EPS[dtype]


def test_rotation_vector_gradients_are_cross_products(rng):
    """d/dt R(t u) = R(t u) [u]×, and along any axis at zero."""
    cross = np.stack([np.cross(np.eye(3), -axis) for axis in np.eye(3)], axis=-1)
    axis = rng.normal(size=3)
    axis /= np.linalg.norm(axis)
    lengths = np.array([0.0, 1e-9, 1e-3, 1.0, np.pi, 5.0])
    jacobian = in_precision(
        jax.vmap(jax.jacfwd(rotations.rotation_vector_to_matrix)), lengths[:, None] * axis
    )
    np.testing.assert_allclose(jacobian[0], np.swapaxes(cross, 0, 1), atol=1e-15)
    expected = turn(lengths[:, None] * axis) @ np.cross(np.eye(3), -axis).T
    np.testing.assert_allclose(jacobian @ axis, expected, atol=1e-8)


def test_euler_angles_are_those_of_orix_for_the_same_physical_orientation(rng):
    matrices = random_matrices(rng, N, np.float64)
    # by quaternions: orix's own reading of matrices is only good to 5e-6
    orix = Orientation(from_scipy(Rotation.from_matrix(matrices)))
    along_x = (orix * Vector3d.xvector()).data
    np.testing.assert_allclose(along_x, matrices[:, :, 0], atol=1e-12)
    found = in_precision(rotations.matrix_to_euler, matrices)
    np.testing.assert_allclose(found, orix.to_euler(), atol=1e-12)
    angles = rng.uniform(0, 1, (N, 3)) * [2 * np.pi, np.pi, 2 * np.pi]
    found = in_precision(rotations.euler_to_matrix, angles)
    np.testing.assert_allclose(found, Orientation.from_euler(angles).to_matrix(), atol=1e-12)


def test_euler_angles_return_the_rotation_also_where_they_degenerate(rng, operations, dtype):
    matrices = difficult_rotations(rng, operations)
    angles = in_precision(rotations.matrix_to_euler, matrices, dtype=dtype)
    assert np.all((angles[:, ::2] >= 0) & (angles[:, ::2] < 2 * np.pi))
    assert np.all((angles[:, 1] >= 0) & (angles[:, 1] <= np.pi + EPS[dtype]))
    back = in_precision(rotations.euler_to_matrix, angles, dtype=dtype)
    assert np.abs(back - matrices).max() < 20 * EPS[dtype]
    np.testing.assert_array_equal(angles[-26:, 2], 0)


def svd_rotation(m):
    """The proper rotation nearest to m, and what decides its accuracy: s2 + det s3 over s1"""
    u, s, vt = np.linalg.svd(np.asarray(m, np.float64))
    sign = np.linalg.det(u) * np.linalg.det(vt)
    u[..., :, 2] *= sign[..., None]
    return u @ vt, (s[..., 1] + sign * s[..., 2]) / np.maximum(s[..., 0], 1e-300)


def with_singular_values(rng, n, values):
    first, second = random_matrices(rng, n, np.float64), random_matrices(rng, n, np.float64)
    return first * np.asarray(values) @ second


def difficult_matrices(rng):
    n = 24
    noisy = random_matrices(rng, n, np.float64) + 0.05 * rng.normal(size=(n, 3, 3))
    return {
        "random": rng.normal(size=(n, 3, 3)),
        "noisy": noisy,
        "improper": -noisy,
        "rotations": random_matrices(rng, n, np.float64),
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
        "rank one": with_singular_values(rng, 19, [1, 0, 0]),
        "tied": with_singular_values(rng, 19, [1, 0.3, -0.3]),
        "all equal": with_singular_values(rng, 19, [2, 2, -2]),
    }


def all_matrices(rng):
    """N matrices of all kinds one after the other, the kind of each, and which have one answer."""
    difficult = difficult_matrices(rng)
    kinds = difficult | degenerate_matrices(rng)
    names = np.concatenate([[name] * len(m) for name, m in kinds.items()])
    return np.concatenate(list(kinds.values())), names, np.isin(names, list(difficult))


def is_proper_rotation(matrices, tolerance):
    matrices = np.asarray(matrices, np.float64)
    departure = np.abs(matrices @ np.swapaxes(matrices, 1, 2) - np.eye(3)).max(axis=(1, 2))
    return (departure < tolerance) & (np.linalg.det(matrices) > 0.99)


def test_nearest_rotation_matches_the_svd(rng, dtype):
    """Where there are many nearest rotations, it is one of them."""
    m, names, unique = all_matrices(rng)
    m = m.astype(dtype)
    found = in_precision(rotations.nearest_rotation, m, dtype=dtype)
    expected, gap = svd_rotation(m)
    assert not set(names[~is_proper_rotation(found, 16 * EPS[dtype])])
    error = np.linalg.norm(found - expected, axis=(1, 2)) * np.minimum(gap, 1)
    # Rounding adds up over the squarings, of which double precision takes twice as many.
    allowed = {np.float32: 40, np.float64: 200}[dtype]
    assert not set(names[unique & (error > allowed * EPS[dtype])])
    missing = np.sum((expected - found) * m, axis=(1, 2))
    assert not set(names[~unique & (missing > 40 * EPS[dtype])])
    np.testing.assert_array_equal(found[names == "zero"], np.eye(3)[None])


def weighted(m, weight):
    return jnp.sum(weight * rotations.nearest_rotation(m))


weighted_gradient = jax.vmap(jax.grad(weighted), (0, None))


def filled(matrices):
    """Up to N matrices, for which everything is compiled."""
    return np.concatenate([matrices, np.tile(np.eye(3), (N - len(matrices), 1, 1))])


def test_nearest_rotation_gradient_matches_finite_differences(rng):
    weight = rng.normal(size=(3, 3))
    cases = [
        random_matrices(rng, 1, np.float64)[0] + 0.2 * rng.normal(size=(3, 3)),
        random_matrices(rng, 1, np.float64)[0],
        2.5 * np.eye(3),
        with_singular_values(rng, 1, [1, 1, 0.2])[0],
        with_singular_values(rng, 1, [1, 0.7, 0])[0],
        with_singular_values(rng, 1, [1, 0.8, -0.3])[0],
        1e-3 * with_singular_values(rng, 1, [1, 0.8, 0.8])[0],
    ]
    m = np.stack(cases)
    h = 1e-6 * np.abs(m).max(axis=(1, 2))
    steps = h[:, None, None, None] * np.eye(9).reshape(9, 3, 3)
    moved = np.stack([m[:, None] + steps, m[:, None] - steps]).reshape(-1, 3, 3)
    value = np.sum(weight * in_precision(rotations.nearest_rotation, filled(moved)), axis=(1, 2))
    above, below = value[: len(moved)].reshape(2, len(m), 9)
    numeric = (above - below) / (2 * h[:, None])
    size = np.maximum(1, np.abs(numeric).max(axis=1, keepdims=True))
    exact = in_precision(weighted_gradient, filled(m), weight)[: len(m)].reshape(-1, 9)
    assert np.abs((exact - numeric) / size).max() < 1e-6
    single = in_precision(weighted_gradient, filled(m), weight, dtype=np.float32)
    assert np.abs((single[: len(m)].reshape(-1, 9) - exact) / size).max() < 3e-4


def test_nearest_rotation_gradients_are_finite_where_the_answer_is_not_unique(rng, dtype):
    m, names, _ = all_matrices(rng)
    found = in_precision(weighted_gradient, m, rng.normal(size=(3, 3)), dtype=dtype)
    in_range = (names != "tiny") & (names != "huge")
    assert not set(names[in_range & ~np.isfinite(found).all(axis=(1, 2))])


def test_nearest_rotation_has_one_result_for_every_way_of_batching(rng):
    m = rng.normal(size=(4, 5, 3, 3))
    whole = in_precision(rotations.nearest_rotation, filled(m.reshape(-1, 3, 3)))[:20]
    for function in (rotations.nearest_rotation, jax.vmap(jax.vmap(rotations.nearest_rotation))):
        np.testing.assert_allclose(in_precision(function, m), whole.reshape(m.shape), atol=1e-14)


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


def test_random_rotations_are_uniform_and_follow_the_key(rng, key):
    draw = jax.jit(rotations.random_rotations, static_argnums=1)
    first, again, other = (draw(k, (40, 500)) for k in (key, key, jax.random.fold_in(key, 1)))
    np.testing.assert_array_equal(first, again)
    assert np.all(np.abs(first - other).max(axis=(2, 3)) > 1e-6)
    assert first.shape == (40, 500, 3, 3) and first.dtype == np.float32
    matrices = np.asarray(first, np.float64).reshape(-1, 3, 3)
    assert np.abs(matrices @ np.swapaxes(matrices, 1, 2) - np.eye(3)).max() < 1e-6
    assert uniformity_scores(matrices).max() < 5.5
    angle = np.arccos(np.clip((np.trace(matrices, axis1=1, axis2=2) - 1) / 2, -1, 1))
    assert stats.kstest(angle, lambda t: (t - np.sin(t)) / np.pi).pvalue > 1e-7
    careless = rng.uniform(0, 1, (20000, 3)) * [2 * np.pi, np.pi, 2 * np.pi]
    assert uniformity_scores(Rotation.from_euler("zxz", careless).as_matrix()).max() > 10


def test_random_rotations_follow_the_dtype():
    with jax.enable_x64(True):
        one = jax.eval_shape(lambda: rotations.random_rotations(jax.random.key(1), ()))
        assert one.shape == (3, 3) and one.dtype == np.float64


def test_faults_of_rotations_are_told(rng):
    whose = "the {} matrices"
    matrices = random_matrices(rng, 4)
    assert rotations.rotation_fault(matrices, whose) is None
    assert rotations.rotation_fault(matrices.round(3), whose) is None
    assert rotations.rotation_fault(matrices[:0], whose) is None
    matrices[1] *= -1
    assert rotations.rotation_fault(matrices, whose) == "1 of the 4 matrices are mirrored"
    for index, spoilt in enumerate((np.nan, np.inf, 0.9)):
        matrices[index, 2, 1] *= np.float32(spoilt)
        matrices[index, 0, 0] += np.float32(0.1)
        fault = f"{index + 1} of the 4 matrices are no rotations"
        assert rotations.rotation_fault(matrices, whose) == fault
