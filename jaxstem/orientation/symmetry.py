# SPDX-License-Identifier: GPL-3.0-or-later
"""Angles between orientations that symmetry makes alike: the one misorientation of jaxstem.

The operations O of a crystal act from the left, and O @ R is the same orientation as R. The
misorientation is the smallest angle of O @ a and b over all O; "modulo 180°" b may be turned by
180° about the beam too. What is differentiated or compiled is in jax, on any leading axes, with
angles in radians; what counts maps and grains runs on the host in double precision, with any number
of pairs and angles in degrees (`misorientations`, `nearest_equivalents`).
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from jaxstem.orientation.rotations import HALF_TURN_ABOUT_BEAM, matmul, rotation_angle, transpose

_PAIRS_AT_ONCE = 65536


def misorientations(
    first: Float[np.ndarray, "m 3 3"],
    second: Float[np.ndarray, "m 3 3"],
    symmetry: Float[np.ndarray, "n 3 3"],
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Misorientation [degrees] of pairs of orientations, plain and modulo 180° about the beam."""
    from scipy.spatial.transform import Rotation  # a third of a second, which maps need not spend

    if not len(first):
        return np.zeros(0), np.zeros(0)
    q, reference = (Rotation.from_matrix(x).as_quat() for x in (first, second))
    turned = (Rotation.from_quat(reference) * Rotation.from_matrix(HALF_TURN_ABOUT_BEAM)).as_quat()
    plain = nearest_equivalents(q, reference, symmetry)[1]
    return plain, np.minimum(plain, nearest_equivalents(q, turned, symmetry)[1])


def alike_mod_180(
    orientation: Float[np.ndarray, "m 3 3"], symmetry: Float[np.ndarray, "n 3 3"], within: float
) -> Bool[np.ndarray, "m m"]:
    """Which orientations differ by less than `within` [degrees] from each other, modulo 180° about
    the beam, by the traces of O A Bᵀ: of some hundred all pairs in no time.
    """
    from_each = np.swapaxes(orientation, -1, -2)[None]
    largest = np.full((len(orientation),) * 2, -1.0)
    for turn in (np.eye(3), HALF_TURN_ABOUT_BEAM):
        between = (orientation @ turn)[:, None] @ from_each
        traces = between.reshape(*largest.shape, 9) @ np.swapaxes(symmetry, -1, -2).reshape(-1, 9).T
        largest = np.maximum(largest, traces.max(axis=-1))
    return largest > 1.0 + 2.0 * np.cos(np.deg2rad(within))


def nearest_equivalents(
    quaternion: Float[np.ndarray, "m 4"],
    reference: Float[np.ndarray, "m 4"],
    symmetry: Float[np.ndarray, "n 3 3"],
) -> tuple[Float[np.ndarray, "m 4"], Float[np.ndarray, " m"]]:
    """Of each orientation (quaternion, scalar last, as SciPy has it) the symmetric equivalent that
    is nearest to its reference, and the angle [degrees] between the two.
    """
    from scipy.spatial.transform import Rotation

    turns = Rotation.from_matrix(symmetry)
    # the scalar part of O q r* is the product of O* with q r*
    inverse = turns.inv().as_quat().T
    nearest, cosine = np.empty_like(quaternion), np.empty(len(quaternion))
    for start in range(0, len(quaternion), _PAIRS_AT_ONCE):
        part = slice(start, start + _PAIRS_AT_ONCE)
        orientation = Rotation.from_quat(quaternion[part])
        between = orientation * Rotation.from_quat(reference[part]).inv()
        closeness = np.abs(between.as_quat() @ inverse)
        best = closeness.argmax(axis=1)
        nearest[part] = (turns[best] * orientation).as_quat()
        cosine[part] = closeness[np.arange(len(best)), best]
    return nearest, np.rad2deg(2 * np.arccos(np.minimum(cosine, 1.0)))


def geodesic_angle(a: Float[Array, "... 3 3"], b: Float[Array, "... 3 3"]) -> Float[Array, "..."]:
    """Angle [rad], 0 ... pi, of the rotation between a and b ``[..., 3, 3]``.

    From sine and cosine together, atan2(|axial(a.T b)|, (tr(a.T b) - 1) / 2), so it is accurate to
    rounding near 0 and pi, where arccos loses half of the digits. Gradients are finite everywhere;
    at exactly 0 and pi, where the angle has a cone's tip, they are 0.
    """
    return rotation_angle(matmul(transpose(jnp.asarray(a)), jnp.asarray(b)))


def _closest_operation(
    m: Float[Array, "... 3 3"], operations: Float[Array, "n 3 3"]
) -> Int[Array, "..."]:
    """Index of the operation O with the largest tr(O.T @ m): the smallest angle from m."""
    flat = m.reshape(*m.shape[:-2], 9)
    overlap = sum(flat[..., i, None] * operations.reshape(-1, 9)[:, i] for i in range(9))
    return jnp.argmax(overlap, axis=-1)


def misorientation(
    a: Float[ArrayLike, "... 3 3"],
    b: Float[ArrayLike, "... 3 3"],
    operations: Float[ArrayLike, "n 3 3"],
) -> Float[Array, "..."]:
    """Smallest angle [rad] between the orientation a and the symmetric equivalents O @ b of b.

    a, b ``[..., 3, 3]`` are orientations of the same phase, operations ``[n, 3, 3]`` its proper
    symmetry. The operation is picked by the trace, which falls as the angle grows; the angle is
    then worked out once, as in ``geodesic_angle``. Where two operations tie, the gradient is that
    of the first.
    """
    a, b = jnp.asarray(a), jnp.asarray(b)
    operations = jnp.asarray(operations, b.dtype)
    between = matmul(a, transpose(b))
    nearest = operations[_closest_operation(between, operations)]
    return rotation_angle(matmul(transpose(nearest), between))


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
    index = _closest_operation(transpose(orientation), operations)
    return matmul(operations[index], orientation), index
