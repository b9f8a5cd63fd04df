# SPDX-License-Identifier: GPL-3.0-or-later
"""The network's likeliest cells, to tell missing candidates from a wrong choice among them."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from jaxstem.diffraction.geometry import Disks
from jaxstem.diffraction.material import phases_space
from jaxstem.files.orientation_map import UNASSIGNED
from jaxstem.files.scan import DiskScan, pad_disks
from jaxstem.inference.exposure import (
    MIN_DISKS,
    count_disks,
    scan_exposure,
    scan_reach,
    typical_beam,
)
from jaxstem.inference.step import scorer, sight_of
from jaxstem.network.model import Model
from jaxstem.orientation import rotations


class RankedCells(NamedTuple):
    """The network's likeliest cells, best first, and the phase of each."""

    orientation: Float[np.ndarray, "positions n_cells 3 3"]
    phase: Int[np.ndarray, "positions n_cells"]


def likeliest_cells(
    model: Model, scan: DiskScan, n_cells: int = 64, batch: int = 256
) -> RankedCells:
    """The network's `n_cells` likeliest phases and orientations, before verification.

    NaN and unassigned where a position has too few disks. Tells missing candidates from wrong
    ranking. Raises ValueError for a network without the grid head.
    """
    if model.config.head != "grid":
        raise ValueError("only the grid head ranks cells")
    space = phases_space(model.materials)
    counts = count_disks(scan, model.k_min, model.k_max)
    cells, phase = np.asarray(rotations.quaternion_to_matrix(space.cells)), np.asarray(space.phase)
    scores, made = scorer(model)
    best = jax.jit(lambda *given: jax.lax.top_k(scores(*given)[:, :-1], n_cells)[1])
    found = RankedCells(
        np.full((len(counts), n_cells, 3, 3), np.nan, np.float32),
        np.full((len(counts), n_cells), UNASSIGNED),
    )
    chosen = np.flatnonzero(counts >= MIN_DISKS)
    longest = model.config.n_disks
    reach = scan_reach(scan, model.k_min, model.k_max)
    beam = typical_beam(scan, model.k_min)
    exposed = scan_exposure(scan, model.k_min, reach, beam=beam)
    for start in range(0, len(chosen), batch):
        index = chosen[start : start + batch]
        padded = np.resize(index, batch)
        disks = Disks(*pad_disks(scan, padded, model.k_max, model.k_min, longest))
        seen = sight_of(disks, exposed.at(padded), model.k_max)
        ranked = np.asarray(best(model.params, made, disks, seen))[: len(index)]
        found.orientation[index], found.phase[index] = cells[ranked], phase[ranked]
    return found
