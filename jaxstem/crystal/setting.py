# SPDX-License-Identifier: GPL-3.0-or-later
"""orix's setting of a crystal's axes.

orix expects each Laue group in one standard setting (2/m: two-fold axis along z). A cell in another
setting (monoclinic with unique axis b) is turned into it by `setting_rotation`. orix takes seconds
to import and is imported where it is used.
"""

from __future__ import annotations

import contextlib
import math
import warnings

import numpy as np
from jaxtyping import Float

from jaxstem.errors import InputError

ORIX_NAMES = {
    "-1": "Ci",
    "2/m": "C2h",
    "mmm": "D2h",
    "4/m": "C4h",
    "4/mmm": "D4h",
    "-3": "S6",
    "-3m": "D3d",
    "6/m": "C6h",
    "6/mmm": "D6h",
    "m-3": "Th",
    "m-3m": "Oh",
}


def setting_rotation(
    symmetry: Float[np.ndarray, "n 3 3"], laue_group: str
) -> Float[np.ndarray, "3 3"]:
    """Smallest rotation T that brings a Laue group's proper operations into the standard setting.

    `T @ O @ T.T` of all operations are those of orix's group, so `T @ R` is what `ipf_colours`
    wants. The identity for most cells; a quarter turn about a for monoclinic with unique axis b.
    Raises InputError when the operations are not those of `laue_group`.
    """
    symmetry = np.asarray(symmetry, float)
    standard = _standard_operations(laue_group)
    if _same_set(symmetry, standard):
        return np.eye(3)
    candidates = _frame_candidates(symmetry, standard)
    fitting = [t for t in candidates if _same_set(t @ symmetry @ t.T, standard)]
    if not fitting:
        raise InputError(
            f"The crystal's {len(symmetry)} proper operations are not those of {laue_group}: "
            "its symmetry and its Laue group disagree."
        )
    return max(fitting, key=np.trace)


@contextlib.contextmanager
def quiet_orix():
    """Without the warnings of orix and of NumPy within it."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


def orix_group(laue_group: str):
    """orix's symmetry of a Laue group; InputError for a symbol that is not one of the eleven."""
    if laue_group not in ORIX_NAMES:
        raise InputError(
            f"{laue_group!r} is not a Laue group; give one of {', '.join(ORIX_NAMES)}."
        )
    from orix.quaternion import symmetry

    return getattr(symmetry, ORIX_NAMES[laue_group])


def _standard_operations(laue_group: str) -> Float[np.ndarray, "n 3 3"]:
    with quiet_orix():
        group = orix_group(laue_group)
        return group[~group.improper.astype(bool)].to_matrix().reshape(-1, 3, 3)


def _same_set(first: Float[np.ndarray, "n 3 3"], second: Float[np.ndarray, "m 3 3"]) -> bool:
    distance = np.abs(first[:, None] - second[None]).max((-1, -2))
    return len(first) == len(second) and bool((distance.min(1) < 1e-3).all())


def _axis_and_angle(rotation: Float[np.ndarray, "3 3"]) -> tuple[np.ndarray, float]:
    """Axis (either sense) and angle [rad] of a rotation; the axis is its eigenvector of value 1."""
    values, vectors = np.linalg.eig(rotation)
    axis = vectors[:, np.argmin(np.abs(values - 1))].real
    return axis / np.linalg.norm(axis), math.acos(np.clip((np.trace(rotation) - 1) / 2, -1, 1))


def _frame_candidates(
    symmetry: Float[np.ndarray, "n 3 3"], standard: Float[np.ndarray, "m 3 3"]
) -> list[Float[np.ndarray, "3 3"]]:
    """Rotations that lay a pair of rotation axes of one group onto such a pair of the other."""
    target = [_axis_and_angle(o) for o in standard if np.trace(o) < 3 - 1e-6]
    if not target:
        return []
    main, main_angle = min(target, key=lambda pair: pair[1])
    others = [pair for pair in target if abs(pair[0] @ main) < 0.99]
    signed = [
        (sign * axis, angle)
        for axis, angle in map(_axis_and_angle, symmetry)
        if angle > 1e-3
        for sign in (1, -1)
    ]
    mains = [axis for axis, angle in signed if abs(angle - main_angle) < 1e-3]
    if not others:
        return [_turn_onto(axis, main) for axis in mains if axis @ main > -0.5]
    side, side_angle = others[0]
    return [
        _frame(main, side) @ _frame(first, second).T
        for first in mains
        for second, angle in signed
        if abs(angle - side_angle) < 1e-3 and abs(first @ second - main @ side) < 1e-3
    ]


def _frame(first: Float[np.ndarray, " 3"], second: Float[np.ndarray, " 3"]) -> np.ndarray:
    """Right-handed orthonormal columns: along `first`, `second` in the plane of the first two."""
    second = second - (second @ first) * first
    second = second / np.linalg.norm(second)
    return np.stack([first, second, np.cross(first, second)], axis=1)


def _turn_onto(start: Float[np.ndarray, " 3"], end: Float[np.ndarray, " 3"]) -> np.ndarray:
    """The smallest rotation that brings one unit vector onto another (not its opposite)."""
    x, y, z = np.cross(start, end)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + cross + cross @ cross / (1 + start @ end)
