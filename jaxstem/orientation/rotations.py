# SPDX-License-Identifier: GPL-3.0-or-later
"""Rotations in three dimensions, as crystal orientations use them.

An orientation is a proper 3x3 matrix ``R`` whose columns are the laboratory axes x, y, z in the
crystal's Cartesian frame: ``v_crystal = R @ v_lab`` and ``v_lab = R.T @ v_crystal``. A proper
symmetry operation ``O`` of the crystal acts from the left: ``O @ R`` is the same orientation as
``R``. The operations of a point group come as one array of rotation matrices, ``[n, 3, 3]``; they
must form a group (contain each other's inverses and products).

Quaternions are ``[..., 4]``, scalar first, and ``q`` and ``-q`` are the same rotation. The matrix
of a quaternion is the active one: ``quaternion_to_matrix(q) @ v`` turns ``v``. A rotation matrix
is written as a quaternion whenever an eigenvector problem is hidden in the question: for a 3x3
matrix ``M`` the overlap ``tr(R(q).T @ M)`` equals ``q @ K @ q`` with a symmetric, traceless 4x4
matrix ``K(M)`` (Davenport's), so the rotation nearest to ``M`` is the leading eigenvector of ``K``,
and for a matrix that is a rotation already, ``(K + 1) / 4`` is the projector on its quaternion.

The jax functions work on any leading axes (the leading axes of two arguments broadcast), on float32
and float64, under ``jit``, ``vmap`` and ``grad``. Products of 3x3 matrices are written as sums of
outer products: XLA fuses them, and an accelerator does not round them to a shorter format as it may
round matrix products. The grids are made once, on the host, by numpy.

All angles are in radians; only the spacings of the grids are in degrees.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

_NEARLY = 0.01
"""By how much R^T R may differ from 1, as rounding to three digits makes it."""

HALF_TURN_ABOUT_BEAM = np.diag([-1.0, -1.0, 1.0])


def matmul(a: Float[Array, "... n n"], b: Float[Array, "... n n"]) -> Float[Array, "... n n"]:
    return sum(a[..., :, k, None] * b[..., k, None, :] for k in range(a.shape[-1]))


def transpose(a: Float[Array, "... n n"]) -> Float[Array, "... n n"]:
    return jnp.swapaxes(a, -1, -2)


def _axial(a: Float[Array, "... 3 3"]) -> Float[Array, "... 3"]:
    """Vector w of the antisymmetric part of a: (a - a.T) / 2 @ v = cross(w, v)."""
    return 0.5 * jnp.stack(
        [a[..., 2, 1] - a[..., 1, 2], a[..., 0, 2] - a[..., 2, 0], a[..., 1, 0] - a[..., 0, 1]],
        axis=-1,
    )


def _cross_matrix(w: Float[Array, "... 3"]) -> Float[Array, "... 3 3"]:
    x, y, z = w[..., 0], w[..., 1], w[..., 2]
    zero = jnp.zeros_like(x)
    return _matrix([[zero, -z, y], [z, zero, -x], [-y, x, zero]])


def _matrix(rows) -> Float[Array, "... r c"]:
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def _safe_norm(v: Float[Array, "... n"]) -> Float[Array, "..."]:
    """Length of v, with gradient 0 instead of NaN at v = 0."""
    squared = jnp.sum(v * v, axis=-1)
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1)), 0)


def _safe_atan2(y: Float[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """atan2 that is 0, with gradient 0 instead of NaN, at the origin."""
    origin = x * x + y * y == 0
    return jnp.arctan2(jnp.where(origin, 0, y), jnp.where(origin, 1, x))


@jax.jit
def quaternion_multiply(
    a: Float[ArrayLike, "... 4"], b: Float[ArrayLikeLike, "... 4"]
) -> Float[Array, "... 4"]:
    """Hamilton product: the rotation b followed by the rotation a, as ``A @ B`` of matrices."""
    a, b = jnp.asarray(a), jnp.asarray(b)
    aw, ax, ay, az = (a[..., i] for i in range(4))
    bw, bx, by, bz = (b[..., i] for i in range(4))
    return jnp.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        axis=-1,
    )


def quaternion_conjugate(q: Float[Array, "... 4"]) -> Float[Array, "... 4"]:
    """The inverse rotation of a unit quaternion ``[..., 4]``: the vector part changes sign."""
    q = jnp.asarray(q)
    return jnp.concatenate([q[..., :1], -q[..., 1:]], axis=-1)


@jax.jit
def quaternion_to_matrix(q: Float[Array, "... 4"]) -> Float[Array, "... 3 3"]:
    """Active rotation matrices ``[..., 3, 3]`` of quaternions ``[..., 4]`` of any length.

    The length is divided out; the zero quaternion gives the identity (Euler-Rodrigues formula).
    """
    q = jnp.asarray(q)
    squared = jnp.sum(q * q, axis=-1)
    two = 2 / jnp.where(squared > 0, squared, 1)
    w, x, y, z = (q[..., i] for i in range(4))
    return _matrix(
        [
            [1 - two * (y * y + z * z), two * (x * y - w * z), two * (x * z + w * y)],
            [two * (x * y + w * z), 1 - two * (x * x + z * z), two * (y * z - w * x)],
            [two * (x * z - w * y), two * (y * z + w * x), 1 - two * (x * x + y * y)],
        ]
    )


def _davenport(m: Float[Array, "... 3 3"]) -> Float[Array, "... 4 4"]:
    """Symmetric K with q @ K @ q = tr(R(q).T @ m) for unit q (Davenport's q-method, in Wahba's
    problem: Shuster & Oh 1981, J. Guidance and Control 4, 70, doi:10.2514/3.19717)."""
    trace = m[..., 0, 0] + m[..., 1, 1] + m[..., 2, 2]
    x, y, z = (2 * component for component in jnp.moveaxis(_axial(m), -1, 0))
    xy, xz = m[..., 0, 1] + m[..., 1, 0], m[..., 0, 2] + m[..., 2, 0]
    yz = m[..., 1, 2] + m[..., 2, 1]
    xx, yy, zz = (2 * m[..., i, i] - trace for i in range(3))
    return _matrix([[trace, x, y, z], [x, xx, xy, xz], [y, xy, yy, yz], [z, xz, yz, zz]])


def _largest_row(projector: Float[Array, "... 4 4"]) -> Float[Array, "... 4"]:
    """Unit quaternion, w >= 0, of the row with the largest diagonal element of c * outer(q, q)."""
    pivot = jnp.argmax(jnp.diagonal(projector, axis1=-2, axis2=-1), axis=-1)
    row = jnp.take_along_axis(projector, pivot[..., None, None], axis=-2)[..., 0, :]
    q = row / _safe_norm(row)[..., None]
    return jnp.where(q[..., :1] < 0, -q, q)


@jax.jit
def matrix_to_quaternion(matrix: Float[ArrayLike, "... 3 3"]) -> Float[ArrayLike, "... 4"]:
    """Unit quaternions ``[..., 4]``, w >= 0, of rotation matrices ``[..., 3, 3]``.

    Accurate at every angle: the projector on the quaternion is read off the matrix, and its row
    with the largest diagonal element (at least 1/4) is normalised. At half turns, where w = 0, the
    sign of the vector part is arbitrary. The matrices must be rotations already: see
    ``nearest_rotation``.
    """
    matrix = jnp.asarray(matrix)
    return _largest_row(_davenport(matrix) + jnp.eye(4, dtype=matrix.dtype))


def euler_to_matrix(angles: Float[Array, "... 3"]) -> Float[Array, "... 3 3"]:
    """Orientations R ``[..., 3, 3]`` of Bunge Euler angles (phi1, Phi, phi2) ``[..., 3]`` [rad].

    R takes laboratory (sample) vectors to the crystal frame, R = Z(phi2) X(Phi) Z(phi1) with
    frame-turning (passive) factors, as orix and EBSD software define it (Bunge 1982, *Texture
    Analysis in Materials Science*; Rowenhorst et al. 2015, doi:10.1088/0965-0393/23/8/083501).
    """
    angles = jnp.asarray(angles)
    (c1, c, c2), (s1, s, s2) = (
        tuple(f(angles[..., i]) for i in range(3)) for f in (jnp.cos, jnp.sin)
    )
    return _matrix(
        [
            [c1 * c2 - s1 * s2 * c, s1 * c2 + c1 * s2 * c, s2 * s],
            [-c1 * s2 - s1 * c2 * c, -s1 * s2 + c1 * c2 * c, c2 * s],
            [s1 * s, -c1 * s, c],
        ]
    )


def matrix_to_euler(matrix: Float[ArrayLike, "... 3 3"]) -> Float[ArrayLike, "... 3"]:
    """Bunge Euler angles (phi1, Phi, phi2) ``[..., 3]`` [rad] of orientations ``[..., 3, 3]``.

    0 <= phi1, phi2 < 2 pi and 0 <= Phi <= pi. Where only phi1 + phi2 (Phi = 0) or phi1 - phi2
    (Phi = pi) is determined, phi2 is 0. The inverse of ``euler_to_matrix``.
    """
    q = matrix_to_quaternion(matrix)
    w, x, y, z = (q[..., i] for i in range(4))
    half_sum, half_difference = _safe_atan2(-z, w), _safe_atan2(-y, -x)
    across, along = _safe_norm(q[..., 1:3]), _safe_norm(q[..., ::3])
    undetermined = jnp.minimum(across, along) < 4 * jnp.finfo(q.dtype).eps
    phi1 = jnp.where(
        undetermined,
        2 * jnp.where(across < along, half_sum, half_difference),
        half_sum + half_difference,
    )
    phi2 = jnp.where(undetermined, 0, half_sum - half_difference)
    return jnp.stack([_wrap(phi1), 2 * _safe_atan2(across, along), _wrap(phi2)], axis=-1)


def _wrap(angle: Float[Array, "..."]) -> Float[Array, "..."]:
    wrapped = jnp.mod(angle, 2 * math.pi)
    return jnp.where(wrapped >= jnp.asarray(2 * math.pi, wrapped.dtype), 0, wrapped)


@jax.jit
def rotation_vector_to_matrix(v: Float[Array, "... 3"]) -> Float[Array, "... 3 3"]:
    """Active rotation by ``|v|`` [rad] about the axis ``v`` ``[..., 3]``: ``[..., 3, 3]``.

    Gradients are exact at v = 0 too.
    """
    v = jnp.asarray(v)
    squared = jnp.sum(v * v, axis=-1, keepdims=True)
    small = squared < 1e-3
    angle = jnp.sqrt(jnp.where(small, 1, squared))
    series = 0.5 - squared / 48 * (1 - squared / 80 * (1 - squared / 168))
    half_sinc = jnp.where(small, series, jnp.sin(angle / 2) / angle)
    cosine_series = 1 - squared / 8 * (1 - squared / 48 * (1 - squared / 120 * (1 - squared / 224)))
    cosine = jnp.where(small, cosine_series, jnp.cos(angle / 2))
    return quaternion_to_matrix(jnp.concatenate([cosine, half_sinc * v], axis=-1))


@jax.jit
def matrix_to_rotation_vector(matrix: Float[Array, "... 3 3"]) -> Float[Array, "... 3"]:
    """Axis times angle [rad, 0 … π] of a rotation ``[..., 3, 3]``: ``[..., 3]``.

    The inverse of `rotation_vector_to_matrix`; at an angle of π either of the two axes.
    """
    q = matrix_to_quaternion(matrix)
    sine = _safe_norm(q[..., 1:])[..., None]
    angle = 2 * _safe_atan2(sine, q[..., :1])
    return q[..., 1:] * jnp.where(sine > 1e-6, angle / jnp.maximum(sine, 1e-6), 2.0)


def rotation_angle(rotation: Float[Array, "... 3 3"]) -> Float[Array, "..."]:
    sine = _safe_norm(_axial(rotation))
    twice_cosine = rotation[..., 0, 0] + rotation[..., 1, 1] + rotation[..., 2, 2] - 1
    return _safe_atan2(sine, 0.5 * twice_cosine)


def _scale(m: Float[Array, "... 3 3"]) -> Float[Array, "... 1 1"]:
    """Largest magnitude in each matrix, 1 for the zero matrix."""
    largest = jnp.max(jnp.abs(m), axis=(-2, -1), keepdims=True)
    return jnp.where(largest > 0, largest, 1)


@jax.custom_jvp
def nearest_rotation(m: Float[Array, "... 3 3"]) -> Float[Array, "... 3 3"]:
    """Proper rotations ``[..., 3, 3]`` nearest (Frobenius norm) to any matrices ``[..., 3, 3]``.

    The same as ``U @ diag(1, 1, det(U @ V.T)) @ V.T`` from the SVD ``m = U S V.T``, without an SVD:
    the leading eigenvector of Davenport's 4x4 matrix, by repeated squaring. Where the answer is not
    unique (the two smallest singular values equal with det(m) < 0, or rank below 2) one of the best
    rotations comes out; the zero matrix gives the identity.

    The gradient is that of the SVD formula, which depends on *sums* of singular values only, so
    equal singular values do no harm; where the answer is not unique it fades to 0.
    """
    m = jnp.asarray(m)
    unit = m / _scale(m)
    identity = jnp.eye(4, dtype=m.dtype)
    # |K| <= sqrt(3) |m|: with this shift no eigenvalue is negative and the wanted one leads.
    shift = jnp.sqrt(3 * jnp.sum(unit * unit, axis=(-2, -1), keepdims=True))
    power = _davenport(unit) + jnp.where(shift > 0, shift, 1) * identity

    def square(_, p):
        p = matmul(p, p)
        return p / jnp.trace(p, axis1=-2, axis2=-1)[..., None, None]

    # After n squarings a relative gap of 2**-n between the leading eigenvalues is told apart:
    # near the rounding error of the matrix itself, below which the eigenvector means nothing.
    squarings = jnp.finfo(m.dtype).nmant + 3
    return quaternion_to_matrix(_largest_row(jax.lax.fori_loop(0, squarings, square, power)))


@nearest_rotation.defjvp
def _nearest_rotation_jvp(primals, tangents):
    """With S = R.T m symmetric and dR = R [w]x: (tr(S) 1 - S) w = 2 axial(R.T dm).

    The eigenvalues of the matrix in front of w are the sums of two (signed) singular values. Its
    inverse, adjugate / det, is damped to adjugate * det / (det^2 + tiny^2) where a sum vanishes.
    """
    (m,), (dm,) = primals, tangents
    rotation = nearest_rotation(m)
    scale = _scale(m)
    stretch = matmul(transpose(rotation), m / scale)
    stretch = 0.5 * (stretch + transpose(stretch))
    sums = jnp.trace(stretch, axis1=-2, axis2=-1)[..., None, None] * jnp.eye(3, dtype=m.dtype)
    sums = sums - stretch
    x, y, z = (sums[..., i, :] for i in range(3))
    adjugate = jnp.stack([jnp.cross(y, z), jnp.cross(z, x), jnp.cross(x, y)], axis=-1)
    det = jnp.sum(x * adjugate[..., :, 0], axis=-1)[..., None, None]
    tiny = 8 * jnp.finfo(m.dtype).eps
    inverse = adjugate * (det / (det * det + tiny * tiny))
    torque = 2 * _axial(matmul(transpose(rotation), dm / scale))
    turn = jnp.sum(inverse * torque[..., None, :], axis=-1)
    return rotation, matmul(rotation, _cross_matrix(turn))


def rotation_fault(matrix: Float[np.ndarray, "n 3 3"], whose: str) -> str | None:
    """What is wrong with matrices that should be rotations, as "3 of the map's 20 orientations are
    mirrored" for `whose` "the map's {} orientations"; None: nothing.

    On the host, in NumPy. Rounding to three digits is no fault, NaN is one.
    """
    x, y, z = np.moveaxis(matrix, -1, 0)
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.abs(np.einsum("nki,nkj->nij", matrix, matrix) - np.eye(3)).max((1, 2))
        wrong = ~(apart <= _NEARLY)
        mirrored = np.sum(np.cross(x, y) * z, axis=1) < 0
    for what, count in (("are no rotations", wrong.sum()), ("are mirrored", mirrored.sum())):
        if count:
            return f"{count} of {whose.format(len(matrix))} {what}"
    return None


def random_rotations(
    key: PRNGKeyArray, shape: tuple[int, ...] = (), dtype=None
) -> Float[Array, "*shape 3 3"]:
    """Rotations ``[*shape, 3, 3]`` drawn uniformly (Haar measure), dtype jax's default float.

    Quaternions of four normal deviates point uniformly over the sphere of quaternions.
    """
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    dtype = jnp.result_type(float) if dtype is None else dtype
    return quaternion_to_matrix(jax.random.normal(key, (*shape, 4), dtype))
