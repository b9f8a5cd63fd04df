# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole tasks as one function each, for use from Python: detect, train, map.

    disks = detect_disks(patterns, pixel_size=0.0328, voltage_kv=300)
    model = train("Cu.cif", "my-model", voltage_kv=300)
    found = map_orientations(disks, model)

They take what is in memory as well as files, and have defaults that work; the command line is made
of the same functions. Scans have shape (ny, nx), patterns (height, width); detector axis 0 is lab x
(`qx`), axis 1 lab y (`qy`). Input that cannot be used raises `jaxstem.errors.InputError`, a
ValueError whose message is one sentence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Num

from jaxstem.crystal.cell import Crystal, read_cif
from jaxstem.detection.config import DetectConfig
from jaxstem.detection.opening import open_scan
from jaxstem.detection.scan import detect_in_cube, progress_bar
from jaxstem.diffraction.material import check_materials, make_material
from jaxstem.errors import InputError
from jaxstem.files.cube import Cube, cube_from_array
from jaxstem.files.cube_readers import read_cube
from jaxstem.files.orientation_map import OrientationMap
from jaxstem.files.scan import DiskScan, DiskSource, source_of
from jaxstem.inference.config import InferConfig
from jaxstem.mapping import map_scan
from jaxstem.network.model import Model, load_model
from jaxstem.runtime import parallel
from jaxstem.runtime.cache import default_cache

REFINE = ("none", "fast", "full", "exact")

PRECISION = ("float32", "bfloat16")

PRESETS = ("default", "paper")

Patterns = str | Path | Cube | Num[np.ndarray, "ny nx height width"]
"""Raw patterns: a file (formats: docs/file-formats.md), a cube, or an array."""

CIFs = str | Path | Crystal | Sequence[str | Path | Crystal]


def detect_disks(
    patterns: Patterns,
    *,
    pixel_size: float | None = None,
    voltage_kv: float | None = None,
    scan_shape: tuple[int, int] | None = None,
    scan_step: float = 1.0,
    scan_units: str = "pixels",
    config: DetectConfig | None = None,
    progress: bool | None = None,
) -> DiskScan:
    """The Bragg disks of a scan of raw patterns, calibrated, the direct beam among them.

    Args:
        patterns: A file, or an array (ny, nx, height, width) of counts, of any real type;
            an `np.memmap` is read a few rows at a time, as files are.
        pixel_size: Of the detector in 1/Å (no 2π), instead of the file's; an array needs it.
        voltage_kv: Accelerating voltage in kV, instead of the file's.
        scan_shape: (ny, nx), for files of formats that do not state it.
        scan_step: Of an array: distance between neighbouring positions in `scan_units`.
        scan_units: Of an array: "nm", "Å", "µm" or "pixels".
        config: How disks are found; estimated from the data by default.
        progress: Show a bar (None: on a terminal).

    Returns:
        A `DiskScan`: flat arrays `qx`, `qy` [1/Å, lab frame] and `intensity` [electrons], and
        `offsets` (ny · nx + 1): position row · nx + column has the disks `offsets[p]` to
        `offsets[p + 1] - 1`.

    Raises:
        InputError: For a file that cannot be read, patterns that cannot be used or show no disk,
            and where the pixel size is not known.
    """
    config = dataclasses.replace(config or DetectConfig(), **_stated(pixel_size=pixel_size))
    if isinstance(patterns, str | Path):
        cube = read_cube(patterns, scan_shape, _pixel_size_entries(pixel_size), voltage_kv)
    elif isinstance(patterns, Cube):
        cube = dataclasses.replace(patterns, **_stated(voltage_kv=voltage_kv))
    else:
        patterns = patterns if isinstance(patterns, np.ndarray) else np.asarray(patterns)
        cube = cube_from_array(patterns, pixel_size, scan_step, scan_units, voltage_kv)
    if config.pixel_size is None and cube.pixel_size is None and not cube.pixel_units:
        raise InputError(f"{cube.source} states no detector pixel size; give pixel_size in 1/Å.")
    with progress_bar(cube, progress) as advance:
        return detect_in_cube(cube, config, progress=advance)


def train(
    cif: CIFs,
    out: str | Path,
    *,
    voltage_kv: float = 300.0,
    k_max: float = 2.0,
    minutes: float = 15.0,
    steps: int | None = None,
    preset: str = "default",
    seed: int = 0,
    batch: int | None = None,
    spacing_deg: float | None = None,
    u_iso: float = 0.0064,
    overwrite: bool = False,
    progress: bool | None = None,
) -> Model:
    """Train a model for crystals from their CIFs alone, into a folder.

    Args:
        cif: The unit cell, or several, one for each phase; phases are named after the files.
        out: Folder for the model. The same call resumes an unfinished run there.
        voltage_kv: Accelerating voltage in kV.
        k_max: Largest scattering vector in 1/Å (no 2π); disks beyond it are not used.
        minutes: Time to train for.
        steps: Training steps, instead of `minutes`.
        preset: "default", or "paper": the network and schedule of arXiv 2602.12420.
        seed: Seed of all random numbers.
        batch: Patterns a step, a multiple of the number of devices (None: the preset's).
        spacing_deg: Spacing of the orientation grid in degrees (None: the preset's).
        u_iso: Mean square displacement of the atoms in Å².
        overwrite: Replace a model that is there.
        progress: Show a bar (None: on a terminal).

    Returns:
        The model; `model.record` says how it was trained and how well it does.

    Raises:
        InputError: For CIFs that cannot be read or do not go together, numbers that make no sense,
            and where `out` holds a finished model, another run or other files.
        jaxstem.training.Stopped: When SIGTERM ended the run, once it is checkpointed.
    """
    from jaxstem.training.config import preset_config
    from jaxstem.training.loop import (
        train,  # its libraries take a while to load, and maps need none of them
    )

    out = Path(out)
    check_model_folder(out)
    _require("preset", preset, PRESETS)
    cells = [cif] if isinstance(cif, str | Path | Crystal) else list(cif)
    crystals = [x if isinstance(x, Crystal) else read_cif(x) for x in cells]
    config = preset_config(preset)
    mesh = parallel.make_mesh()
    spacing_deg = spacing_deg or config.model.spacing_deg
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, spacing_deg=spacing_deg),
        steps=steps or 0,
        minutes=minutes,
        batch=batch or -(-config.batch // mesh.size) * mesh.size,
        seed=seed,
    )
    names = [x.name if isinstance(x, Crystal) else str(x) for x in cells]
    materials = []
    for name, crystal in zip(names, crystals, strict=True):
        try:
            materials.append(make_material(crystal, voltage_kv, k_max, spacing_deg, u_iso))
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
    try:
        check_materials(materials)
    except InputError as error:
        raise InputError(f"{', '.join(names) or 'no CIF'}: {error}") from None
    return train(
        materials,
        config,
        out,
        mesh=mesh,
        overwrite=overwrite,
        progress=progress,
        cache=default_cache(),
    )


def map_orientations(
    scan: Patterns | DiskScan | DiskSource,
    model: str | Path | Model,
    *,
    refine: str = "fast",
    semiangle_mrad: float = 1.5,
    least_confidence: float = 0.0,
    pixel_size: float | None = None,
    voltage_kv: float | None = None,
    scan_shape: tuple[int, int] | None = None,
    batch: int | None = None,
    precision: str = "float32",
    progress: bool | None = None,
) -> OrientationMap:
    """The map of phases and orientations over a scan.

    Args:
        scan: A file of Bragg disks or of raw patterns (formats: docs/file-formats.md), disks in
            memory, or patterns as an array (ny, nx, height, width), in which disks are found first.
        model: Name of a packaged model ("cu", "cu-cu2o"), folder that `train` made, or a model in
            memory, such as `jaxstem.network.matching_model` makes of crystals without training.
        refine: How candidates are verified and polished: "fast", by two-beam theory; "full", by
            Bloch waves too, which tells the thickness; "exact", by fits of these to intensities
            that are right to a per cent or two; "none", not at all.
        semiangle_mrad: Convergence semi-angle of the probe in mrad.
        least_confidence: Leave positions unassigned whose answer is less likely right than this.
        pixel_size: Of the detector in 1/Å (no 2π), instead of the file's; an array needs it.
        voltage_kv: Accelerating voltage in kV, instead of what the scan states.
        scan_shape: (ny, nx), for files of formats that do not state it.
        batch: Patterns to work on at once (None: jaxstem's choice).
        precision: Of the network, "float32" or "bfloat16".
        progress: Show bars (None: on a terminal).

    Returns:
        An `OrientationMap`: orientation matrices (ny, nx, 3, 3), NaN where unassigned, phases,
        confidences and more (ny, nx). `jaxstem.files.write_map` stores it, `to_orix()` hands it to
        orix, `jaxstem.maps.figure` draws it.

    Raises:
        InputError: For a scan or model that cannot be used, and where the scan's voltage is not
            the model's.
    """
    config = infer_config(refine, semiangle_mrad, batch, precision)
    loaded = model if isinstance(model, Model) else load_model(model)
    if isinstance(scan, DiskScan | DiskSource):
        if pixel_size is not None or scan_shape is not None:
            raise InputError(f"{scan.source} holds calibrated disks; give no pixel size or shape.")
        disks = scan
    elif isinstance(scan, str | Path):
        changes = _pixel_size_entries(pixel_size)
        disks = open_scan(scan, DetectConfig(), progress, scan_shape, changes, voltage_kv)
    else:
        disks = detect_disks(scan, pixel_size=pixel_size, voltage_kv=voltage_kv, progress=progress)
    return map_scan(
        disks if isinstance(disks, DiskSource) else source_of(disks),
        loaded,
        config,
        least_confidence=least_confidence,
        voltage_kv=voltage_kv,
        attributes={"model": ", ".join(model.phase_names) if loaded is model else str(model)},
        progress=progress,
    )


def infer_config(
    refine: str = "fast",
    semiangle_mrad: float = 1.5,
    batch: int | None = None,
    precision: str = "float32",
) -> InferConfig:
    """How answers are made, from the settings that users choose; as in `map_orientations`."""
    _require("refine", refine, REFINE)
    _require("precision", precision, PRECISION)
    cache = default_cache()
    config = InferConfig(refine=refine, batch=batch, precision=precision, cache=cache)
    likelihood = dataclasses.replace(config.rules.likelihood, semi_angle=semiangle_mrad)
    return dataclasses.replace(
        config, score=dataclasses.replace(config.rules, likelihood=likelihood)
    )


def check_model_folder(out: Path) -> None:
    """Raise InputError unless a model can be trained into `out`, without harm to other files."""
    if not out.parent.is_dir():
        raise InputError(f"{out}: the folder {out.parent} does not exist; make it first.")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give the name of a folder for the model.")
    # a run that was killed in its first moments leaves run.json.part alone
    if out.is_dir() and any(path.name != "run.json.part" for path in out.iterdir()):
        if not any((out / name).exists() for name in ("run.json", "model.json")):
            raise InputError(f"{out} holds other files; give a new folder for the model.")


def _pixel_size_entries(pixel_size: float | None) -> dict[str, Any]:
    """The calibration's entries for a pixel size in 1/Å."""
    return {} if pixel_size is None else {"Q_pixel_size": pixel_size, "Q_pixel_units": "A^-1"}


def _stated(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _require(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise InputError(f"{name} {value!r} is not known; give one of {', '.join(allowed)}.")
