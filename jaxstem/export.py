# SPDX-License-Identifier: GPL-3.0-or-later
"""Orientation maps for other programs: orix, EDAX and MTEX, py4DSTEM, spreadsheets, pictures.

The suffix of the file chooses: `.ang` (EDAX OIM, MTEX), `.h5` (orix), `.npy` (py4DSTEM), `.csv` (a
table of grains, `jaxstem.grains`), `.png`, `.svg`, `.pdf` (`jaxstem.maps.figure`). The first two
are written by orix, from the `CrystalMap` that `to_orix` makes. docs/maps.md states the frames.

orix knows each point group in one setting only, two-fold axes of 2/m along z. A cell in another
one (monoclinic with unique axis b, rhombohedral axes, -31m) is handed over as an equivalent cell in
orix's setting, `standard_cell`: the same lattice and atoms on other axes, and the rotations to go
with them. Crystals without an inversion centre get the point group of their Laue group and no space
group, because that is what their orientations are known modulo.

Shapes: `ny nx` scan positions, flattened row by row in a `CrystalMap`.
"""

from __future__ import annotations

import csv
import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pymatgen.core as pymatgen
from jaxtyping import Float, Int
from matplotlib.colors import TABLEAU_COLORS
from pymatgen.core import Element
from scipy.spatial.transform import Rotation as SciPyRotation

from jaxstem import maps
from jaxstem.crystal import Crystal, operations
from jaxstem.errors import InputError
from jaxstem.io import NO_CRYSTAL, OrientationMap, atomic_path, check_target, read_map

if TYPE_CHECKING:
    from orix.crystal_map import CrystalMap, Phase

SUFFIXES = (".ang", ".h5", ".npy", ".csv", *maps.FIGURE_SUFFIXES)
NANOMETRE = 1e-9
PROPERTIES = (
    "confidence",
    "confidence_mod180",
    "phase_confidence",
    "score",
    "second_score",
    "thickness",
    "n_disks",
)
LARGEST_INDEX = 3
"""Of the axes of a cell in orix's setting, on those of the CIF."""


def export_map(
    map_file: str | Path, out: str | Path, grain_deg: float = 5.0, overwrite: bool = False
) -> None:
    """Write a map that `jaxstem map` made in the format that the suffix of `out` names.

    grain_deg [degrees]: misorientation of neighbours that bounds a grain in a `.csv`. Raises
    InputError for another suffix, where `out` exists and `overwrite` is False or is the map itself,
    for a map without any orientation (`.ang`, `.csv`) or of one column (`.ang`), and as `read_map`
    does.
    """
    out, map_file = Path(out), Path(map_file)
    suffix = out.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{out}: give a name that ends in one of {', '.join(SUFFIXES)}.")
    if out.exists() and map_file.exists() and out.samefile(map_file):
        raise InputError(f"{out} is the map itself; give the exported file another name.")
    check_target(out, overwrite)
    orientation_map = read_map(map_file)
    if suffix in (".ang", ".csv") and not (orientation_map.phase >= 0).any():
        raise InputError(f"{map_file} has no orientation at any position; there is none to export.")
    if suffix == ".ang" and orientation_map.phase.shape[1] < 2:
        raise InputError(f"{map_file} has a single column, which {suffix} cannot hold; choose .h5.")
    if suffix in maps.FIGURE_SUFFIXES:
        return maps.figure(orientation_map, out, overwrite)
    with atomic_path(out, overwrite) as temporary:
        if suffix == ".npy":
            with open(temporary, "wb") as file:
                np.save(file, matrices(orientation_map))
        elif suffix == ".csv":
            _write_grains(temporary, orientation_map, grain_deg)
        else:
            _write_by_orix(temporary, orientation_map)


def to_orix(orientation_map: OrientationMap) -> CrystalMap:
    """The map as an orix `CrystalMap` of ny × nx points.

    Rotations are orix's: they take sample (lab) to crystal vectors, the sense of Bunge's Euler
    angles. `x` is the column and `y` the row times the scan step, in nm, or in positions (`px`)
    where the step is not known. Properties are those of `PROPERTIES` (thickness in Å), `no_crystal`
    and `ambiguous_180`; phase ids are the map's, and −1 (orix's not indexed) where the map is
    unassigned or has no crystal.
    """
    with maps.quiet_orix():
        from orix.crystal_map import CrystalMap, PhaseList
        from orix.quaternion import Rotation

        phase = orientation_map.phase.astype(int)
        matrix = np.broadcast_to(np.eye(3), (*phase.shape, 3, 3)).copy()
        for index, crystal in enumerate(orientation_map.crystals):
            turn, _ = standard_cell(crystal)
            matrix[phase == index] = turn @ orientation_map.orientation[phase == index]
        phases = [orix_phase(crystal) for crystal in orientation_map.crystals]
        for own, colour in zip(phases, itertools.cycle(TABLEAU_COLORS), strict=False):
            own.color = colour
        length = maps.in_metres(orientation_map.scan_step, orientation_map.scan_units)
        step, unit = (1.0, "px") if length is None else (length / NANOMETRE, "nm")
        row, column = np.indices(phase.shape)
        prop = {name: getattr(orientation_map, name).ravel() for name in PROPERTIES}
        prop["no_crystal"] = (phase == NO_CRYSTAL).ravel()
        prop["ambiguous_180"] = orientation_map.ambiguous_180.ravel()
        # orix's own way from matrices loses half of the digits near half turns
        quaternion = SciPyRotation.from_matrix(matrix.reshape(-1, 3, 3)).as_quat()
        return CrystalMap(
            rotations=Rotation(np.roll(quaternion, 1, axis=1)),
            phase_id=np.maximum(phase, -1).ravel(),
            x=step * column.ravel(),
            y=step * row.ravel(),
            phase_list=PhaseList(phases, ids=list(range(len(phases)))),
            prop=prop,
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
    turn = maps.setting_rotation(operations(crystal), crystal.laue_group)
    if np.array_equal(turn, np.eye(3)):
        return turn, np.eye(3, dtype=int)
    span = range(-LARGEST_INDEX, LARGEST_INDEX + 1)
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


def matrices(orientation_map: OrientationMap) -> Float[np.ndarray, "phases ny nx 2 3 3"]:
    """Orientation matrices for py4DSTEM: for each phase what its `OrientationMap.matrix` holds.

    Of two matches the first is the answer and the second the runner-up, each with the phase that it
    is of; zeros, as py4DSTEM has them, where there is none.
    """
    phase = np.stack([orientation_map.phase, orientation_map.second_phase], axis=-1)
    matrix = np.stack([orientation_map.orientation, orientation_map.second_orientation], axis=-3)
    known = np.isfinite(matrix).all((-1, -2))
    own = np.arange(len(orientation_map.crystals))[:, None, None, None] == phase
    return np.where((own & known)[..., None, None], matrix, 0.0)


def _write_by_orix(path: Path, orientation_map: OrientationMap) -> None:
    """`.ang` or orix's HDF5, by the suffix of the path."""
    converted = to_orix(orientation_map)
    with maps.quiet_orix():
        from orix.io.plugins import ang, orix_hdf5

        if path.suffix.lower() == ".h5":
            return orix_hdf5.file_writer(path, converted)
        if converted.scan_unit == "nm":  # the format counts in µm
            converted._x, converted._y = converted._x / 1e3, converted._y / 1e3
            converted.scan_unit = "um"
        for name in PROPERTIES:  # and has no word for "not known"
            converted.prop[name] = np.nan_to_num(converted.prop[name])
        ang.file_writer(
            path,
            converted,
            image_quality_prop="n_disks",
            confidence_index_prop="confidence",
            detector_signal_prop="score",
            extra_prop=["phase_confidence", "confidence_mod180", "thickness"],
        )


def _write_grains(path: Path, orientation_map: OrientationMap, grain_deg: float) -> None:
    from jaxstem import grains

    table = grains.summary(orientation_map, grains.find_grains(orientation_map, grain_deg))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(table)
        writer.writerows(zip(*table.values(), strict=True))
