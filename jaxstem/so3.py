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

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

HALF_TURN_ABOUT_BEAM = np.diag([-1.0, -1.0, 1.0])

# Few enough points for a chunk to stay in the processor's cache.
_POINTS_PER_CHUNK = 1 << 12


def _matmul(a: Float[Array, "... 3 3"], b: Float[Array, "... 3 3"]) -> Float[Array, "... 3 3"]:
    return sum(a[..., :, k, None] * b[..., k, None, :] for k in range(a.shape[-1]))


def _transpose(a: Float[Array, "... 3 3"]) -> Float[Array, "... 3 3"]:
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


def quaternion_multiply(
    a: Float[Array, "... 4"], b: Float[Array, "... 4"]
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


def matrix_to_quaternion(matrix: Float[Array, "... 3 3"]) -> Float[Array, "... 4"]:
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


def matrix_to_euler(matrix: Float[Array, "... 3 3"]) -> Float[Array, "... 3"]:
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


def matrix_to_rotation_vector(matrix: Float[Array, "... 3 3"]) -> Float[Array, "... 3"]:
    """Axis times angle [rad, 0 … π] of a rotation ``[..., 3, 3]``: ``[..., 3]``.

    The inverse of `rotation_vector_to_matrix`; at an angle of π either of the two axes.
    """
    q = matrix_to_quaternion(matrix)
    sine = _safe_norm(q[..., 1:])[..., None]
    angle = 2 * _safe_atan2(sine, q[..., :1])
    return q[..., 1:] * jnp.where(sine > 1e-6, angle / jnp.maximum(sine, 1e-6), 2.0)


def _angle_of(rotation: Float[Array, "... 3 3"]) -> Float[Array, "..."]:
    sine = _safe_norm(_axial(rotation))
    twice_cosine = rotation[..., 0, 0] + rotation[..., 1, 1] + rotation[..., 2, 2] - 1
    return _safe_atan2(sine, 0.5 * twice_cosine)


def geodesic_angle(a: Float[Array, "... 3 3"], b: Float[Array, "... 3 3"]) -> Float[Array, "..."]:
    """Angle [rad], 0 ... pi, of the rotation between a and b ``[..., 3, 3]``.

    From sine and cosine together, atan2(|axial(a.T b)|, (tr(a.T b) - 1) / 2), so it is accurate to
    rounding near 0 and pi, where arccos loses half of the digits. Gradients are finite everywhere;
    at exactly 0 and pi, where the angle has a cone's tip, they are 0.
    """
    return _angle_of(_matmul(_transpose(jnp.asarray(a)), jnp.asarray(b)))


def _closest_operation(
    m: Float[Array, "... 3 3"], operations: Float[Array, "n 3 3"]
) -> Int[Array, "..."]:
    """Index of the operation O with the largest tr(O.T @ m): the smallest angle from m."""
    flat = m.reshape(*m.shape[:-2], 9)
    overlap = sum(flat[..., i, None] * operations.reshape(-1, 9)[:, i] for i in range(9))
    return jnp.argmax(overlap, axis=-1)


def misorientation(
    a: Float[Array, "... 3 3"], b: Float[Array, "... 3 3"], operations: Float[Array, "n 3 3"]
) -> Float[Array, "..."]:
    """Smallest angle [rad] between the orientation a and the symmetric equivalents O @ b of b.

    a, b ``[..., 3, 3]`` are orientations of the same phase, operations ``[n, 3, 3]`` its proper
    symmetry. The operation is picked by the trace, which falls as the angle grows; the angle is
    then worked out once, as in ``geodesic_angle``. Where two operations tie, the gradient is that
    of the first.
    """
    a, b = jnp.asarray(a), jnp.asarray(b)
    operations = jnp.asarray(operations, b.dtype)
    between = _matmul(a, _transpose(b))
    nearest = operations[_closest_operation(between, operations)]
    return _angle_of(_matmul(_transpose(nearest), between))


def misorientation_mod_180(
    a: Float[Array, "... 3 3"], b: Float[Array, "... 3 3"], operations: Float[Array, "n 3 3"]
) -> Float[Array, "..."]:
    """``misorientation`` [rad] where b turned by 180 degrees about the beam counts as b too."""
    b = jnp.asarray(b)
    turned = b * jnp.asarray(np.diag(HALF_TURN_ABOUT_BEAM), b.dtype)
    return jnp.minimum(misorientation(a, b, operations), misorientation(a, turned, operations))


def reduce_to_fundamental_zone(
    orientation: Float[Array, "... 3 3"], operations: Float[Array, "n 3 3"]
) -> tuple[Float[Array, "... 3 3"], Int[Array, "..."]]:
    """The equivalent O @ orientation with the smallest rotation angle, and the index of that O.

    orientation ``[..., 3, 3]``, operations ``[n, 3, 3]`` -> ``[..., 3, 3]``, ``[...]``.
    """
    orientation = jnp.asarray(orientation)
    operations = jnp.asarray(operations, orientation.dtype)
    index = _closest_operation(_transpose(orientation), operations)
    return _matmul(operations[index], orientation), index


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
        p = _matmul(p, p)
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
    stretch = _matmul(_transpose(rotation), m / scale)
    stretch = 0.5 * (stretch + _transpose(stretch))
    sums = jnp.trace(stretch, axis1=-2, axis2=-1)[..., None, None] * jnp.eye(3, dtype=m.dtype)
    sums = sums - stretch
    x, y, z = (sums[..., i, :] for i in range(3))
    adjugate = jnp.stack([jnp.cross(y, z), jnp.cross(z, x), jnp.cross(x, y)], axis=-1)
    det = jnp.sum(x * adjugate[..., :, 0], axis=-1)[..., None, None]
    tiny = 8 * jnp.finfo(m.dtype).eps
    inverse = adjugate * (det / (det * det + tiny * tiny))
    torque = 2 * _axial(_matmul(_transpose(rotation), dm / scale))
    turn = jnp.sum(inverse * torque[..., None, :], axis=-1)
    return rotation, _matmul(rotation, _cross_matrix(turn))


def random_rotations(
    key: PRNGKeyArray, shape: tuple[int, ...] = (), dtype=None
) -> Float[Array, "*shape 3 3"]:
    """Rotations ``[*shape, 3, 3]`` drawn uniformly (Haar measure), dtype jax's default float.

    Quaternions of four normal deviates point uniformly over the sphere of quaternions.
    """
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    dtype = jnp.result_type(float) if dtype is None else dtype
    return quaternion_to_matrix(jax.random.normal(key, (*shape, 4), dtype))


def volume_spacing(n: int, n_ops: int) -> float:
    """Spacing [rad] of n orientations that share SO(3) modulo n_ops operations evenly.

    The edge of a cube with one orientation's share of the volume, 8 pi^2 / (n_ops n); volumes are
    measured so that a small rotation by an angle has that angle as its length.
    """
    return (8 * math.pi**2 / (n_ops * n)) ** (1 / 3)


def _super_fibonacci(start: int, stop: int, n: int) -> np.ndarray:
    """Points start ... stop - 1 of n that cover the rotations evenly, ``[stop - start, 4]``.

    M. Alexa, Super-Fibonacci spirals: fast, low-discrepancy sampling of SO(3), CVPR 2022.
    """
    phi, psi = math.sqrt(2), 1.533751168755204288118041
    s = np.arange(start, stop) + 0.5
    inner, outer = np.sqrt(s / n), np.sqrt(1 - s / n)
    alpha, beta = 2 * np.pi * np.modf(s / phi)[0], 2 * np.pi * np.modf(s / psi)[0]
    return np.stack(
        [inner * np.sin(alpha), inner * np.cos(alpha), outer * np.sin(beta), outer * np.cos(beta)],
        axis=-1,
    )


def so3_grid(operations: Float[np.ndarray, "n 3 3"], spacing_deg: float) -> np.ndarray:
    """Near-uniform orientations ``[m, 3, 3]`` (float64), one for each symmetry-reduced cell.

    operations ``[n, 3, 3]``: the proper operations; spacing_deg: the edge [degrees] of a cube with
    one orientation's share of the volume, so m is close to 8 pi^2 / (n spacing^3). Each orientation
    is the member of its orbit O @ R with the smallest rotation angle. The same arguments give the
    same grid. A super-Fibonacci covering of all rotations is cut down to the cell in which the
    scalar part of the quaternion is the largest, in magnitude, among all O q.

    Raises ValueError for a spacing that is not positive.
    """
    from scipy.spatial.transform import Rotation  # a third of a second, for maps need no new grid

    if not spacing_deg > 0:
        raise ValueError(f"The grid spacing must be above 0 degrees, not {spacing_deg}.")
    vector_first = Rotation.from_matrix(np.asarray(operations)).as_quat()
    inverse = vector_first[:, [3, 0, 1, 2]] * [1, -1, -1, -1]
    n = max(1, round(8 * math.pi**2 / math.radians(spacing_deg) ** 3))
    kept = []
    for start in range(0, n, _POINTS_PER_CHUNK):
        q = _super_fibonacci(start, min(n, start + _POINTS_PER_CHUNK), n)
        kept.append(q[np.abs(q[:, 0]) >= np.abs(q @ inverse.T).max(axis=1) - 1e-12])
    return Rotation.from_quat(np.concatenate(kept)[:, [1, 2, 3, 0]]).as_matrix()


def _fibonacci_sphere(n: int) -> np.ndarray:
    """n unit vectors ``[n, 3]`` evenly over the sphere, on the golden-angle spiral."""
    s = np.arange(n) + 0.5
    z = 1 - 2 * s / n
    azimuth = math.pi * (3 - math.sqrt(5)) * s
    across = np.sqrt(1 - z * z)
    return np.stack([across * np.cos(azimuth), across * np.sin(azimuth), z], axis=-1)


def _most_separate_direction(operations: np.ndarray) -> np.ndarray:
    """The direction ``[3]``, among 2000, whose symmetric equivalents lie farthest apart."""
    directions = _fibonacci_sphere(2000)
    others = operations[np.trace(operations, axis1=1, axis2=2) < 3 - 1e-6]
    if len(others) == 0:
        return directions[0]
    closest = np.einsum("di,nij,dj->dn", directions, others, directions).max(axis=1)
    return directions[np.argmax(closest <= closest.min() + 1e-9)]


def zone_axis_grid(operations: Float[np.ndarray, "n 3 3"], spacing_deg: float) -> np.ndarray:
    """Near-uniform directions ``[m, 3]`` (float64 unit vectors), one for each symmetric orbit.

    operations ``[n, 3, 3]``: the proper operations; spacing_deg: the edge [degrees] of a square
    with one direction's share of the sphere, so m is close to 4 pi / (n spacing^2). With all turns
    about them, the directions as zone axes cover every orientation once. The sector is the set of
    directions nearer to one chosen direction than to its equivalents. For the proper Laue group
    432 of cubic metals it is as large as the triangle [001] [101] [111] and its mirror image
    together: that triangle alone stands for half of the orientations.

    Raises ValueError for a spacing that is not positive.
    """
    if not spacing_deg > 0:
        raise ValueError(f"The grid spacing must be above 0 degrees, not {spacing_deg}.")
    operations = np.asarray(operations, np.float64)
    centre = _most_separate_direction(operations)
    directions = _fibonacci_sphere(max(1, round(4 * math.pi / math.radians(spacing_deg) ** 2)))
    equivalents = operations @ centre
    return directions[directions @ centre >= (directions @ equivalents.T).max(axis=1) - 1e-12]
