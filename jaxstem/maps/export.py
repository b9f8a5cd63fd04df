# SPDX-License-Identifier: GPL-3.0-or-later
"""Orientation maps for other programs: orix, EDAX, Oxford, MTEX, py4DSTEM, spreadsheets, pictures.

The suffix of the file chooses: `.ang` (EDAX OIM, MTEX), `.ctf` (Oxford AZtec, MTEX), `.h5` (orix),
`.npy` (py4DSTEM), `.csv` (a table of grains, `grains.py`), `.png`, `.svg`, `.pdf` (`figure`).
`.ang` and `.h5` are written by orix, from the `CrystalMap` that `to_orix` makes, `.ctf`, which orix
reads and does not write, by `channel_text.py`. docs/maps.md states the frames.

orix knows each point group in one setting only, two-fold axes of 2/m along z. A cell in another
one (monoclinic with unique axis b, rhombohedral axes, -31m) is handed over as an equivalent cell in
orix's setting, `standard_cell`: the same lattice and atoms on other axes, and the rotations to go
with them. Crystals without an inversion centre get the point group of their Laue group and no space
group, because that is what their orientations are known modulo.

Shapes: `ny nx` scan positions, flattened row by row in a `CrystalMap`.
"""

from __future__ import annotations

import csv
import io
import unicodedata
from pathlib import Path

import numpy as np
from jaxtyping import Float

from jaxstem.crystal.setting import quiet_orix
from jaxstem.errors import InputError
from jaxstem.files.hdf5_writing import create_hdf5
from jaxstem.files.map_file import read_map
from jaxstem.files.orientation_map import PROPERTIES, OrientationMap
from jaxstem.maps.channel_text import ctf_text
from jaxstem.maps.drawing import FIGURE_SUFFIXES, figure
from jaxstem.runtime.paths import atomic_path, check_target

_SUFFIXES = (".ang", ".ctf", ".h5", ".npy", ".csv", *FIGURE_SUFFIXES)


def export_map(
    map_file: str | Path, out: str | Path, grain_deg: float = 5.0, overwrite: bool = False
) -> None:
    """Write a map that `jaxstem map` made in the format that the suffix of `out` names.

    grain_deg [degrees]: misorientation of neighbours that bounds a grain in a `.csv`. Raises
    InputError for another suffix, where `out` exists and `overwrite` is False or is the map itself,
    for a map without any orientation (`.ang`, `.ctf`, `.csv`) or of one column (`.ang`), and as
    `read_map` does.
    """
    out, map_file = Path(out), Path(map_file)
    suffix = out.suffix.lower()
    if suffix not in _SUFFIXES:
        raise InputError(f"{out}: give a name that ends in one of {', '.join(_SUFFIXES)}.")
    if out.exists() and map_file.exists() and out.samefile(map_file):
        raise InputError(f"{out} is the map itself; give the exported file another name.")
    check_target(out, overwrite)
    orientation_map = read_map(map_file)
    if suffix in (".ang", ".ctf", ".csv") and not (orientation_map.phase >= 0).any():
        raise InputError(f"{map_file} has no orientation at any position; there is none to export.")
    if suffix == ".ang" and orientation_map.phase.shape[1] < 2:
        raise InputError(f"{map_file} has a single column, which {suffix} cannot hold; choose .h5.")
    if suffix in FIGURE_SUFFIXES:
        return figure(orientation_map, out, overwrite)
    with atomic_path(out, overwrite) as temporary:
        if suffix == ".npy":
            # to a file itself numpy writes by a way of its own, on which a full disk can go unseen
            stored = io.BytesIO()
            np.save(stored, py4dstem_matrices(orientation_map))
            temporary.write_bytes(stored.getbuffer())
        elif suffix == ".csv":
            _write_grains(temporary, orientation_map, grain_deg)
        elif suffix == ".ctf":
            names = [_plain_name(crystal.name, spaces=True) for crystal in orientation_map.crystals]
            text = ctf_text(orientation_map, names, out.stem)
            temporary.write_bytes(text.encode("utf-8"))
        else:
            _write_by_orix(temporary, orientation_map)


def _write_by_orix(path: Path, orientation_map: OrientationMap) -> None:
    """`.ang` or orix's HDF5, by the suffix of the path."""
    converted = orientation_map.to_orix()
    is_ang = path.suffix.lower() == ".ang"
    for _, phase in converted.phases:
        phase.name = _plain_name(phase.name, spaces=not is_ang)
    with quiet_orix():
        import orix
        from orix.io.plugins import ang, orix_hdf5

        if not is_ang:  # as orix's own `file_writer`, which opens the file itself
            content = {
                "manufacturer": "orix",
                "version": orix.__version__,
                "crystal_map": orix_hdf5.crystalmap2dict(converted),
            }
            with create_hdf5(path) as (file, _):
                return orix_hdf5.dict2hdf5group(content, file["/"])
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


def _plain_name(name: str, spaces: bool) -> str:
    """A phase's name as orix reads it back: ASCII (α becomes alpha, ₂ 2), and of a header's words
    in `.ang` only the last.
    """
    letters = (
        letter if letter.isascii() else unicodedata.name(letter, "x").split()[-1].lower()
        for letter in unicodedata.normalize("NFKD", name)
        if not unicodedata.combining(letter)
    )
    text = "".join(letters)
    return text if spaces else "_".join(text.split())


def _write_grains(path: Path, orientation_map: OrientationMap, grain_deg: float) -> None:
    from jaxstem.maps.grains import find_grains, summary

    table = summary(orientation_map, find_grains(orientation_map, grain_deg))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(table)
        writer.writerows(zip(*table.values(), strict=True))


def py4dstem_matrices(orientation_map: OrientationMap) -> Float[np.ndarray, "phases ny nx 2 3 3"]:
    """Orientation matrices for py4DSTEM: for each phase what its `OrientationMap.matrix` holds.

    Of two matches the first is the answer and the second the runner-up, each with the phase that it
    is of; zeros, as py4DSTEM has them, where there is none.
    """
    phase = np.stack([orientation_map.phase, orientation_map.second_phase], axis=-1)
    matrix = np.stack([orientation_map.orientation, orientation_map.second_orientation], axis=-3)
    known = np.isfinite(matrix).all((-1, -2))
    own = np.arange(len(orientation_map.crystals))[:, None, None, None] == phase
    return np.where((own & known)[..., None, None], matrix, 0.0)
