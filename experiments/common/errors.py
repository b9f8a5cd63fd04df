# SPDX-License-Identifier: GPL-3.0-or-later
"""Misorientations of answers from the truth, no answer being as wrong as can be."""

import numpy as np
from jaxtyping import Float

from jaxstem.orientation.symmetry import misorientations

NO_ANSWER = 180.0  # degrees


def errors(
    orientation: Float[np.ndarray, "*positions 3 3"],
    truth: Float[np.ndarray, "*positions 3 3"],
    operations: Float[np.ndarray, "n 3 3"],
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Misorientations [degrees] of all positions, plain and modulo 180° about the beam.

    NaN and py4DSTEM's matrices of zeros are no answers.
    """
    flat = np.asarray(orientation, float).reshape(-1, 3, 3)
    known = np.abs(np.linalg.det(np.nan_to_num(flat))) > 0.5
    found = np.full((2, len(flat)), NO_ANSWER)
    found[:, known] = misorientations(
        flat[known], np.asarray(truth).reshape(-1, 3, 3)[known], operations
    )
    return found[0], found[1]


def shares(
    plain: Float[np.ndarray, " m"], mod_180: Float[np.ndarray, " m"], digits: int = 3
) -> dict[str, float]:
    """Median [degrees] and shares within 5° [%] of errors."""
    return {
        "median": round(float(np.median(plain)), digits),
        "within_5": round(100 * float((plain < 5).mean()), 1),
        "within_5_mod_180": round(100 * float((mod_180 < 5).mean()), 1),
    }
