# SPDX-License-Identifier: GPL-3.0-or-later
"""Crystals and maps as orix has them, in orix's settings of their cells."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pymatgen.core as pymatgen
from jaxtyping import Float, Int
from matplotlib.colors import TABLEAU_COLORS
from pymatgen.core import Element
from scipy.spatial.transform import Rotation as SciPyRotation

from jaxstem.crystal.cell import Crystal, symmetry_operations
from jaxstem.crystal.setting import quiet_orix, setting_rotation
from jaxstem.errors import InputError
from jaxstem.files.units import in_metres

if TYPE_CHECKING:
    from orix.crystal_map import CrystalMap, Phase


_NANOMETRE = 1e-9

_LARGEST_INDEX = 3
"""Of the axes of a cell in orix's setting, on those of the CIF."""


def crystal_map(
    orientation: Float[np.ndarray, "ny nx 3 3"],
    phase: Int[np.ndarray, "ny nx"],
    crystals: Sequence[Crystal],
    step: tuple[float, str],
    properties: Mapping[str, np.ndarray],
) -> CrystalMap:
    """An orix `CrystalMap` of ny × nx points, with `properties` (ny, nx) by their names.

    Rotations are orix's: they take sample (lab) to crystal vectors, the sense of Bunge's Euler
    angles. `x` is the column and `y` the row times the scan's `step` (length and its unit), in nm,
    or in positions (`px`) where the step is not known. Phase ids are indices of `crystals`, and −1
    (orix's not indexed) where `phase` is negative.
    """
    with quiet_orix():
        from orix.crystal_map import CrystalMap, PhaseList
        from orix.quaternion import Rotation

        phase = phase.astype(int)
        matrix = np.broadcast_to(np.eye(3), (*phase.shape, 3, 3)).copy()
        for index, crystal in enumerate(crystals):
            turn, _ = standard_cell(crystal)
            matrix[phase == index] = turn @ orientation[phase == index]
        phases = [orix_phase(crystal) for crystal in crystals]
        for own, colour in zip(phases, itertools.cycle(TABLEAU_COLORS), strict=False):
            own.color = colour
        metres = in_metres(*step)
        length, unit = (1.0, "px") if metres is None else (metres / _NANOMETRE, "nm")
        row, column = np.indices(phase.shape)
        # orix's own way from matrices loses half of the digits near half turns
        quaternion = SciPyRotation.from_matrix(matrix.reshape(-1, 3, 3)).as_quat()
        return CrystalMap(
            rotations=Rotation(np.roll(quaternion, 1, axis=1)),
            phase_id=np.maximum(phase, -1).ravel(),
            x=length * column.ravel(),
            y=length * row.ravel(),
            phase_list=PhaseList(phases, ids=list(range(len(phases)))),
            prop={name: values.ravel() for name, values in properties.items()},
            scan_unit=unit,
        )


def orix_phase(crystal: Crystal) -> Phase:
    """A crystal as an orix phase, in the cell of `standard_cell`."""
    from diffpy.structure import Atom, Lattice, Structure
    from orix.crystal_map import Phase

    _, axes = standard_cell(crystal)
    sites = [
        {Element.from_Z(int(number)): occupancy}
        for number, occupancy in zip(crystal.numbers, crystal.occupancies, strict=True)
    ]
    cell = pymatgen.Structure(crystal.lattice, sites, crystal.positions).make_supercell(axes)
    atoms = [
        Atom(element.symbol, xyz=site.frac_coords, occupancy=float(occupancy))
        for site in cell
        for element, occupancy in site.species.items()
    ]
    structure = Structure(atoms, Lattice(*cell.lattice.parameters), title=crystal.name)
    centred = crystal.point_group == crystal.laue_group
    symmetry = (
        {"space_group": crystal.space_group} if centred else {"point_group": crystal.laue_group}
    )
    return Phase(name=crystal.name, structure=structure, **symmetry)


def standard_cell(crystal: Crystal) -> tuple[Float[np.ndarray, "3 3"], Int[np.ndarray, "3 3"]]:
    """(turn, axes): the crystal in orix's setting of its point group.

    `turn @ R` is the orientation in the turned frame, where the symmetry is orix's. Rows of `axes`
    are the axes of an equivalent cell, as indices on the CIF's own; turned, the first lies along x
    and the second in the xy plane, as orix places a cell. The identity twice for a cell that is in
    orix's setting. Raises InputError where no such axes have small indices.
    """
    turn = setting_rotation(symmetry_operations(crystal), crystal.laue_group)
    if np.array_equal(turn, np.eye(3)):
        return turn, np.eye(3, dtype=int)
    span = range(-_LARGEST_INDEX, _LARGEST_INDEX + 1)
    indices = np.array([i for i in itertools.product(span, repeat=3) if any(i)])
    vector = indices @ crystal.lattice @ turn.T
    length = np.linalg.norm(vector, axis=1)
    across = np.abs(vector / length[:, None])
    flat = across[:, 2] < 1e-3

    def shortest(which, extra=0.0):
        if not which.any():
            raise InputError(
                f"{crystal.name}: its cell has no axes in the setting that orix expects of "
                f"{crystal.laue_group}; give a CIF in a standard setting."
            )
        cost = np.where(which, np.round(length + extra, 6), np.inf)
        return int(np.argmin(cost))

    first = shortest(flat & (across[:, 1] < 1e-3) & (vector[:, 0] > 0))
    second = shortest(flat & (vector[:, 1] > 1e-3 * length))
    # along the axis rather than oblique to it, if the lattice lets it
    oblique = np.where(across[:, 2] > 1 - 1e-6, 0.0, length.max())
    third = shortest(vector[:, 2] > 1e-3 * length, oblique)
    return turn, indices[[first, second, third]]
