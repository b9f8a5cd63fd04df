# SPDX-License-Identifier: GPL-3.0-or-later
"""Even grids of orientations and of directions, made once on the host by numpy.

Spacings are in degrees.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

# Few enough points for a chunk to stay in the processor's cache.
_POINTS_PER_CHUNK = 1 << 12


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
