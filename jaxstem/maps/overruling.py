# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a scan and its patterns disagree.

A map holds what the scan says, neighbours being evidence, and may keep what each pattern says alone
(`OrientationMap.single_*`). A pattern is overruled where the two are answers of different kind:
another phase, or orientations too far apart to pass for one. Where either says nothing, as a
position that is left unassigned does, nobody is overruled.

Shapes: `ny nx` scan positions.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jaxstem.crystal.cell import symmetry_operations
from jaxstem.files.map_schema import MAP_DATASETS, SINGLE, unassigned
from jaxstem.files.orientation_map import UNASSIGNED, OrientationMap
from jaxstem.inference.verdict import WITHIN
from jaxstem.orientation.symmetry import misorientations


class Overruled(NamedTuple):
    """Where the scan overruled the pattern, and how.

    positions: its answer is another phase (or a crystal where the pattern says none, or none where
    it says one), or more than 5 degrees from the pattern's own. half_turn: of these, within 5
    degrees of it but for a turn by 180 degrees about the beam; other_phase: of these, where both
    see a crystal, each another one. angle [degrees]: misorientation of the two answers, NaN where
    they are not orientations of one phase.
    """

    positions: Bool[np.ndarray, "ny nx"]
    half_turn: Bool[np.ndarray, "ny nx"]
    other_phase: Bool[np.ndarray, "ny nx"]
    angle: Float[np.ndarray, "ny nx"]


def overruled(result: OrientationMap) -> Overruled:
    """Where a map says something else than its patterns alone; nowhere if it keeps none."""
    angle = np.full(result.phase.shape, np.nan)
    if result.single_phase is None:
        nowhere = np.zeros(angle.shape, bool)
        return Overruled(nowhere, nowhere, nowhere, angle)
    mod_180 = angle.copy()
    for index, crystal in enumerate(result.crystals):
        both = (result.phase == index) & (result.single_phase == index)
        angle[both] = mod_180[both] = 0.0
        # most answers are the pattern's own to the last digit
        both &= (result.orientation != result.single_orientation).any((-1, -2))
        angle[both], mod_180[both] = misorientations(
            result.single_orientation[both], result.orientation[both], symmetry_operations(crystal)
        )
    within = np.rad2deg(WITHIN)
    answered = (result.phase != UNASSIGNED) & (result.single_phase != UNASSIGNED)
    other = answered & (result.phase != result.single_phase)
    crystals = (result.phase >= 0) & (result.single_phase >= 0)
    far = angle > within
    return Overruled(other | far, far & (mod_180 <= within), other & crystals, angle)


def single_answers(result: OrientationMap) -> OrientationMap:
    """The map of what each pattern says alone; what a map does not keep of it is not known.

    `result` must have `single_orientation` and its companions.
    """
    shape = result.phase.shape
    known = {
        "orientation": result.single_orientation,
        "phase": result.single_phase,
        "confidence": result.single_confidence,
        "n_disks": result.n_disks,
    }
    absent = {
        name: unassigned(result.phase.size, dataset).reshape(dataset.shape(*shape))
        for name, dataset in MAP_DATASETS.items()
    }
    return dataclasses.replace(result, **absent | known, **dict.fromkeys(SINGLE))
