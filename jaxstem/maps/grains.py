# SPDX-License-Identifier: GPL-3.0-or-later
"""Grains: connected scan positions of one phase whose neighbours are oriented alike.

Two neighbours (above or beside each other) belong together where both have an orientation of the
same phase, and the smallest angle between these over all symmetric equivalents is below a
threshold; a grain is what is connected so. An orientation may bend across a grain by more than the
threshold.

The mean orientation of a grain is that of its quaternions, each replaced by its equivalent nearest
to the mean: the eigenvector of the largest eigenvalue of the sum of q qᵀ (F. L. Markley et al.,
J. Guidance, Control and Dynamics 30, 1193 (2007)). Symmetry is the Laue group's, as everywhere.

Shapes: `ny nx` scan positions, `m` orientations, `n` symmetry operations, `g` grains.
"""

from __future__ import annotations

import warnings

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial.transform import Rotation

from jaxstem.crystal.cell import symmetry_operations
from jaxstem.errors import InputError
from jaxstem.files.orientation_map import OrientationMap
from jaxstem.files.units import in_metres
from jaxstem.orientation.symmetry import nearest_equivalents

_NO_GRAIN = -1

_ROUNDS = 4
"""Of choosing equivalents and averaging; the choice hardly ever changes after the first."""


def find_grains(
    orientation_map: OrientationMap, threshold_deg: float = 5.0
) -> Int[np.ndarray, "ny nx"]:
    """The number of each position's grain, from 0 in the order of the scan; −1 where it has none.

    Raises InputError for a threshold that is not within 0 … 180 degrees.
    """
    if not 0 < threshold_deg <= 180:
        raise InputError(f"a grain boundary of {threshold_deg:g}°: give more than 0, at most 180.")
    phase = np.where(
        np.isfinite(orientation_map.orientation).all((-1, -2)), orientation_map.phase, _NO_GRAIN
    )
    number = np.arange(phase.size).reshape(phase.shape)
    pairs = np.concatenate(
        [
            np.stack([number[:-1].ravel(), number[1:].ravel()], axis=1),
            np.stack([number[:, :-1].ravel(), number[:, 1:].ravel()], axis=1),
        ]
    )
    of = phase.ravel()[pairs]
    joined = [np.empty((0, 2), int)]
    for index, crystal in enumerate(orientation_map.crystals):
        candidates = pairs[(of == index).all(axis=1)]
        if len(candidates):
            matrix = orientation_map.orientation.reshape(-1, 3, 3)[candidates]
            quaternion = Rotation.from_matrix(matrix.reshape(-1, 3, 3)).as_quat().reshape(-1, 2, 4)
            _, angle = nearest_equivalents(
                quaternion[:, 0], quaternion[:, 1], symmetry_operations(crystal)
            )
            joined.append(candidates[angle < threshold_deg])
    first, second = np.concatenate(joined).T
    graph = coo_array((np.ones(len(first), bool), (first, second)), shape=(phase.size, phase.size))
    label = connected_components(graph, directed=False)[1].reshape(phase.shape)
    known = phase >= 0
    grain = np.full(phase.shape, _NO_GRAIN)
    _, start, grain[known] = np.unique(label[known], return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(start))
    grain[known] = order[grain[known]]
    return grain


def mean_orientations(
    orientation: Float[np.ndarray, "m 3 3"],
    grain: Int[np.ndarray, " m"],
    symmetry: Float[np.ndarray, "n 3 3"],
) -> tuple[Float[np.ndarray, "g 3 3"], Float[np.ndarray, " m"]]:
    """Mean orientation of each grain 0 … g − 1, and the angle [degrees] of each member to it.

    Every grain must have a member. The mean is one of its symmetric equivalents, the one near the
    grain's first member.
    """
    quaternion = Rotation.from_matrix(orientation).as_quat()
    mean = quaternion[np.unique(grain, return_index=True)[1]]
    for _ in range(_ROUNDS):
        nearest, _ = nearest_equivalents(quaternion, mean[grain], symmetry)
        total = np.zeros((len(mean), 4, 4))
        np.add.at(total, grain, nearest[:, :, None] * nearest[:, None, :])
        mean = np.linalg.eigh(total)[1][..., -1]
    angle = nearest_equivalents(quaternion, mean[grain], symmetry)[1]
    return Rotation.from_quat(mean).as_matrix(), angle


def bunge_angles(orientation: Float[np.ndarray, "m 3 3"]) -> Float[np.ndarray, "m 3"]:
    """Bunge's angles φ1, Φ, φ2 [degrees] of orientations, as `so3.matrix_to_euler` defines them,
    in 0 … 360, 0 … 180 and 0 … 360; φ2 = 0 where only their sum or difference is determined.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Gimbal lock")
        turns = Rotation.from_matrix(np.swapaxes(orientation, -1, -2))
        return np.mod(turns.as_euler("ZXZ", degrees=True), 360)


def summary(
    orientation_map: OrientationMap, grain: Int[np.ndarray, "ny nx"]
) -> dict[str, np.ndarray]:
    """A table of the grains that `find_grains` found, column by column, largest grain first.

    grain: its number; phase; positions; area and equivalent diameter (of the circle of that area)
    in nm² and nm, or in positions where the step is not known; row, column: its centre; phi1, Phi,
    phi2 [degrees]: its mean orientation in Bunge's angles; spread [degrees]: mean misorientation
    from it; confidence, score: means of what is known.
    """
    n_grains = int(grain.max(initial=_NO_GRAIN)) + 1
    length = in_metres(orientation_map.scan_step, orientation_map.scan_units)
    step, unit = (1.0, "positions") if length is None else (1e9 * length, "nm")
    member = grain >= 0
    own = grain[member]
    count = np.bincount(own, minlength=n_grains)

    def average(values):
        values = np.asarray(values, float)
        known = np.isfinite(values)
        with np.errstate(invalid="ignore"):
            total = np.bincount(own[known], values[known], minlength=n_grains)
            return total / np.bincount(own[known], minlength=n_grains)

    row, column = np.nonzero(member)
    euler, spread = np.zeros((n_grains, 3)), np.zeros(n_grains)
    of = np.zeros(n_grains, int)
    of[own] = orientation_map.phase[member]
    for index, crystal in enumerate(orientation_map.crystals):
        here = orientation_map.phase[member] == index
        if here.any():
            numbers, renumbered = np.unique(own[here], return_inverse=True)
            mean, angle = mean_orientations(
                orientation_map.orientation[member][here].astype(float),
                renumbered,
                symmetry_operations(crystal),
            )
            euler[numbers] = bunge_angles(mean)
            spread[numbers] = np.bincount(renumbered, angle) / count[numbers]
    area = count * step**2
    table = {
        "grain": np.arange(n_grains),
        "phase": np.array(orientation_map.phase_names)[of],
        "positions": count,
        "area_positions" if unit == "positions" else "area_nm2": area,
        f"diameter_{unit}": np.sqrt(4 * area / np.pi),
        "row": average(row),
        "column": average(column),
        **dict(zip(("phi1_deg", "Phi_deg", "phi2_deg"), euler.T, strict=True)),
        "spread_deg": spread,
        "confidence": average(orientation_map.confidence[member]),
        "score": average(orientation_map.score[member]),
    }
    largest_first = np.argsort(-count, kind="stable")
    return {
        name: np.round(values, 4)[largest_first] if values.dtype == float else values[largest_first]
        for name, values in table.items()
    }
