# SPDX-License-Identifier: GPL-3.0-or-later
"""Angles between orientations that symmetry makes alike: the one misorientation of jaxstem.

The operations O of a crystal act from the left, and O @ R is the same orientation as R. The
misorientation is the smallest angle of O @ a and b over all O; "modulo 180°" b may be turned by
180° about the beam too. jax functions work on any leading axes; `misorientations` takes any number
of pairs on the host, some at a time. Angles in radians, but for `misorientations`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxstem.orientation.rotations import HALF_TURN_ABOUT_BEAM, matmul, rotation_angle, transpose

_PAIRS_AT_ONCE = 4096


def misorientations(
    first: Float[np.ndarray, "m 3 3"],
    second: Float[np.ndarray, "m 3 3"],
    symmetry: Float[np.ndarray, "n 3 3"],
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Misorientation [degrees] of pairs of orientations, plain and modulo 180° about the beam.

    Worked in equal chunks of float32, so that one compilation serves maps of any size and a
    million pixels need little memory.
    """
    symmetry = np.asarray(symmetry, np.float32)
    plain = np.empty(len(first))
    mod_180 = np.empty(len(first))
    for start in range(0, len(first), _PAIRS_AT_ONCE):
        part = slice(start, min(start + _PAIRS_AT_ONCE, len(first)))
        angles = _chunk_angles(_padded(first[part]), _padded(second[part]), symmetry)
        size = part.stop - part.start
        plain[part], mod_180[part] = np.rad2deg(np.asarray(angles, np.float64)[:, :size])
    return plain, mod_180


@jax.jit
def _chunk_angles(first, second, symmetry):
    return (
        misorientation(first, second, symmetry),
        misorientation_mod_180(first, second, symmetry),
    )


def _padded(matrices: Float[np.ndarray, "m 3 3"]) -> Float[np.ndarray, "chunk 3 3"]:
    whole = np.broadcast_to(np.eye(3, dtype=np.float32), (_PAIRS_AT_ONCE, 3, 3)).copy()
    whole[: len(matrices)] = matrices
    return whole


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
