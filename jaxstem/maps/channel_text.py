# SPDX-License-Identifier: GPL-3.0-or-later
"""`.ctf`, the text file of Oxford Instruments' (HKL) CHANNEL 5, which AZtec, MTEX and ATEX read.

A header with the grid and a line for each phase (cell, name, number of the Laue group, space
group), then a line for each position, tabs between; columns, Laue numbers and error codes are those
of orix's reader (`orix.io.plugins.ctf`) and MTEX's (`loadEBSD_ctf`).

*Crystal axes.* Bunge's angles there refer to x along a*, z along c, and so y along b where a cell
has right angles at b (MTEX's `loadEBSD_ctf`: "x||a*, z||c"; Britton et al., Mater. Charact. 117
(2016) 113; hexagonal crystals are turned by 30° against EDAX's x along a). Cells are in CHANNEL's
settings: monoclinic ones have unique axis b, trigonal ones hexagonal axes.

*Sample axes.* Those of the angles (CS0) are the lab's, x down the map, y to the right, z out of it,
as in `.ang`; the columns X and Y count to the right and down.
"""

from __future__ import annotations

import io

import numpy as np
from jaxtyping import Float

from jaxstem.crystal.cell import Crystal, symmetry_operations
from jaxstem.files.orientation_map import OrientationMap
from jaxstem.files.orix import standard_cell
from jaxstem.files.units import in_metres
from jaxstem.maps.grains import bunge_angles
from jaxstem.version import __version__

_LAUE_NUMBERS = {
    "-1": 1,
    "2/m": 2,
    "mmm": 3,
    "4/m": 4,
    "4/mmm": 5,
    "-3": 6,
    "-3m": 7,
    "6/m": 8,
    "6/mmm": 9,
    "m-3": 10,
    "m-3m": 11,
}

_OTHER_SETTING = (149, 151, 153, 157, 159, 162, 163)
"""Space groups with two-fold axes, or mirrors' normals, between a and b (312, 31m, -31m): what is
written of these has larger axes, and so no number.
"""

_SOLVED, _NO_SOLUTION = 0, 3
"""Codes of the column Error."""

_COLUMNS = "Phase X Y Bands Error Euler1 Euler2 Euler3 MAD BC BS".split()

_FORMATS = ["%d", "%.7f", "%.7f", "%d", "%d", "%.5f", "%.5f", "%.5f", "%.4f", "%d", "%d"]


def ctf_text(orientation_map: OrientationMap, names: list[str], title: str) -> str:
    """A map as the text of a `.ctf`, its phases called `names`.

    X and Y are in µm, or count positions where the step is not known. Bands is the number of disks,
    MAD, which nobody measured, 0; BC and BS are score and confidence, in 255ths. Where there is no
    orientation the phase is 0 and the error 3, no solution. Raises InputError as `standard_cell`.
    """
    found, crystals = orientation_map, orientation_map.crystals
    phase = found.phase.ravel()
    known = phase >= 0
    cells = [channel_cell(crystal) for crystal in crystals]
    metres = in_metres(found.scan_step, found.scan_units)
    step = 1.0 if metres is None else 1e6 * metres
    row, column = (numbers.ravel() for numbers in np.indices(found.phase.shape))
    angles = np.zeros((len(phase), 3))
    for index, cell in enumerate(cells):
        own = phase == index
        if own.any():
            turned = channel_axes(cell) @ found.orientation.reshape(-1, 3, 3)[own]
            angles[own] = bunge_angles(turned)

    def in_255ths(share: Float[np.ndarray, "ny nx"]) -> Float[np.ndarray, " n"]:
        return np.where(known, np.rint(255 * np.clip(np.nan_to_num(share.ravel()), 0, 1)), 0)

    table = np.column_stack(
        [
            np.where(known, phase + 1, 0),
            step * column,
            step * row,
            found.n_disks.ravel(),
            np.where(known, _SOLVED, _NO_SOLUTION),
            angles,
            np.zeros(len(phase)),
            in_255ths(found.score),
            in_255ths(found.confidence),
        ]
    )
    ny, nx = found.phase.shape
    voltage_kv = float(found.attributes.get("voltage_kv", 0.0))
    header = [
        "Channel Text File",
        f"Prj\t{title}",
        f"Author\tjaxstem {__version__}",
        "JobMode\tGrid",
        f"XCells\t{nx}",
        f"YCells\t{ny}",
        f"XStep\t{step:.7f}",
        f"YStep\t{step:.7f}",
        *(f"AcqE{axis}\t0" for axis in (1, 2, 3)),
        "Euler angles refer to Sample Coordinate system (CS0)!\tMag\t0\tCoverage\t100\tDevice\t0"
        f"\tKV\t{voltage_kv:g}\tTiltAngle\t0\tTiltAxis\t0",
        f"Phases\t{len(crystals)}",
        *(_phase_line(*of) for of in zip(crystals, cells, names, strict=True)),
        "\t".join(_COLUMNS),
    ]
    text = io.StringIO()
    text.write("\r\n".join(header) + "\r\n")
    np.savetxt(text, table, _FORMATS, "\t", "\r\n")
    return text.getvalue()


def channel_cell(crystal: Crystal) -> Float[np.ndarray, "3 3"]:
    """Rows are the axes [Å] of the crystal's cell in CHANNEL's setting, in its Cartesian frame.

    Monoclinic cells have unique axis b, trigonal and hexagonal ones a and b at 120°, two-fold axes
    of -3m along a; others are in orix's settings (`standard_cell`), most of them the CIF's.
    """
    if crystal.laue_group == "2/m":
        turn, b = symmetry_operations(crystal)[1], crystal.lattice[1]
        if np.allclose(turn @ b, b, atol=1e-6 * np.linalg.norm(b)):
            return crystal.lattice
    cell = standard_cell(crystal)[1] @ crystal.lattice
    if crystal.laue_group == "2/m":  # of unique axis c
        return np.roll(cell, -1, axis=0)
    if crystal.laue_group in ("-3", "-3m", "6/m", "6/mmm"):
        axis = cell[2] / np.linalg.norm(cell[2])
        cell[1] = -cell[0] / 2 + np.sqrt(0.75) * np.cross(axis, cell[0])
    return cell


def channel_axes(cell: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "3 3"]:
    """Rows are CHANNEL's Cartesian axes, x along a* and z along c; rows of `cell` are a, b, c."""
    x, z = np.linalg.inv(cell)[:, 0], cell[2]
    x, z = x / np.linalg.norm(x), z / np.linalg.norm(z)
    return np.stack([x, np.cross(z, x), z])


def _phase_line(crystal: Crystal, cell: Float[np.ndarray, "3 3"], name: str) -> str:
    """Lengths [Å]; angles [degrees], name, Laue group, space group, and what nobody states."""
    lengths = np.linalg.norm(cell, axis=1)
    unit = cell / lengths[:, None]
    cosines = [unit[1] @ unit[2], unit[2] @ unit[0], unit[0] @ unit[1]]
    angles = np.degrees(np.arccos(np.clip(cosines, -1, 1)))
    numbers = [";".join(f"{value:.5f}" for value in values) for values in (lengths, angles)]
    laue = _LAUE_NUMBERS[crystal.laue_group]
    space_group = 0 if crystal.space_group in _OTHER_SETTING else crystal.space_group
    return "\t".join(
        [*numbers, " ".join(name.split()), str(laue), str(space_group), "", "", "jaxstem"]
    )
