# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole tasks as one function each, for use from Python: detect, train, map.

    found = map_orientations("scan.h5", cif="Cu.cif")

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
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from jaxstem.crystal.cell import Crystal
from jaxstem.crystal.reading import read_cif
from jaxstem.detection.config import DetectConfig
from jaxstem.detection.opening import as_listed, disks_of, look_at, searchable
from jaxstem.detection.reading import (
    OF_AXES,
    OF_FRAMES,
    OF_PATTERNS,
    OF_PIXELS,
    ReadOptions,
)
from jaxstem.detection.scan import detect_in_cube, plan_search, progress_bar
from jaxstem.diffraction.material import check_materials, make_material
from jaxstem.diffraction.settings import Microscope, Specimen
from jaxstem.errors import InputError, require_between
from jaxstem.files.cube import Cube
from jaxstem.files.orientation_map import OrientationMap
from jaxstem.files.scan import DiskScan, DiskSource, source_of
from jaxstem.inference.config import InferConfig
from jaxstem.mapping import check_voltage, map_scan
from jaxstem.network.choice import fitting_model, keep_model
from jaxstem.network.losses import Loss, LossFn
from jaxstem.network.matching import matching_model
from jaxstem.network.model import Model, at_voltage, check_model_folder, load_model
from jaxstem.runtime import parallel
from jaxstem.runtime.cache import default_cache

METHODS = ("network", "match")
REFINE = ("none", "fast", "full", "exact")
JUDGES = ("counts", "list")
CONTEXTS = ("scan", "none")
GEOMETRIES = ("scan", "given")
PRECISION = ("float32", "bfloat16")
PRESETS = ("default", "paper")

Patterns = str | Path | Cube | Shaped[np.ndarray, "..."]
"""Raw patterns: a file (formats: docs/file-formats.md), a cube, or an array of numbers (ny, nx,
height, width).
"""

CIFs = str | Path | Crystal | Sequence[str | Path | Crystal]


def detect_disks(
    patterns: Patterns,
    *,
    options: ReadOptions | None = None,
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
        options: How the scan is opened, where its file does not say; the next three, if given,
            replace theirs.
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
            numbers and units that make no sense, and where the pixel size is not known.
    """
    stated = _stated(pixel_size=pixel_size, voltage_kv=voltage_kv, scan_shape=scan_shape)
    options = dataclasses.replace(options or ReadOptions(), **stated)
    cube, config = searchable(patterns, options, config, scan_step, scan_units)
    with progress_bar(cube, progress) as advance:
        return detect_in_cube(cube, config, progress=advance)


def train(
    cif: CIFs,
    out: str | Path,
    *,
    voltage_kv: float = 300.0,
    k_max: float = Microscope.k_max,
    semiangle_mrad: float = Microscope.semi_angle_mrad,
    precession_deg: float = Microscope.precession_deg,
    thickness: tuple[float, float] = Specimen.thickness,
    minutes: float = 15.0,
    steps: int | None = None,
    preset: str = "default",
    loss: str | Loss | LossFn = "",
    head: str = "",
    seed: int = 0,
    batch: int | None = None,
    spacing_deg: float | None = None,
    u_iso: float = Specimen.u_iso,
    overwrite: bool = False,
    progress: bool | None = None,
) -> Model:
    """Train a model for crystals from their CIFs alone, into a folder.

    Args:
        cif: The unit cell, or several, one for each phase; phases are named after the files.
        out: Folder for the model. The same call resumes an unfinished run there.
        voltage_kv: Accelerating voltage in kV.
        k_max: Largest scattering vector in 1/Å (no 2π); disks beyond it are not used.
        semiangle_mrad: Convergence semi-angle of the probe in mrad.
        precession_deg: Half-angle of the cone of a precessing beam in degrees.
        thickness: Lowest and highest thickness of the specimen in Å.
        minutes: Time to train for.
        steps: Training steps, instead of `minutes`.
        preset: "default", or "paper": the network and schedule of arXiv 2602.12420.
        loss: Name of a loss (`jaxstem.network.losses.LOSSES`), which brings its head, or a function
            `(output, label, space) -> scalar` of one's own (docs/losses.md; "": the preset's).
        head: Whose output a function of one's own takes (`jaxstem.network.heads.HEADS`; "": the
            preset's).
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
        jaxstem.training.loop.Stopped: When SIGTERM ended the run, once it is checkpointed.
    """
    for name, value, low, high, unit in (
        ("--minutes", minutes, 0.01, 1e6, "minutes"),
        ("--steps", steps, 1, 10**9, ""),
        ("--batch", batch, 1, 10**6, ""),
        ("--seed", seed, 0, 2**31 - 1, ""),
        ("--spacing-deg", spacing_deg, 2.0, 30.0, "degrees"),
    ):
        if value is not None:
            require_between(name, value, low, high, unit, whole=not unit)

    from jaxstem.training.config import preset_config
    from jaxstem.training.loop import (
        train,  # its libraries take a while to load, and maps need none of them
    )

    out = Path(out)
    check_model_folder(out)
    _require("preset", preset, PRESETS)
    cells = _cells(cif)
    crystals, names = [read_crystal(x) for x in cells], list(map(_cell_name, cells))
    config = preset_config(preset)
    if loss or head:
        config = config.with_loss(loss, head)
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
    microscope = Microscope(voltage_kv, semiangle_mrad, precession_deg, k_max)
    specimen = Specimen(thickness, u_iso)
    materials = []
    for name, crystal in zip(names, crystals, strict=True):
        try:
            materials.append(make_material(crystal, microscope, specimen, spacing_deg))
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
    try:
        check_materials(materials)
    except InputError as error:
        raise InputError(f"{', '.join(names) or 'no CIF'}: {error}") from None
    trained = train(
        materials,
        config,
        out,
        mesh=mesh,
        overwrite=overwrite,
        progress=progress,
        cache=default_cache(),
    )
    if parallel.is_first():
        keep_model(default_cache(), trained)
    return trained


class ChosenModel(NamedTuple):
    """A model for some crystals: whether it is a trained network or matching ("network", "match"),
    what it is called, and why it was chosen, in one sentence.
    """

    model: Model
    method: str
    name: str
    why: str


def choose_model(
    cif: CIFs,
    voltage_kv: float,
    semiangle_mrad: float | None = None,
    method: str | None = None,
    files: Sequence[str | Path] = (),
) -> ChosenModel:
    """What maps these crystals at this voltage [kV]: the best packaged or cached model that was
    trained for them, and where there is none matching, which needs no training.

    Args:
        cif: The unit cell, or several, one for each phase; phases are named after the files.
        voltage_kv: Accelerating voltage in kV.
        semiangle_mrad: Convergence semi-angle in mrad, for which the model must do (None: any).
        method: "network" or "match" to have that one (None: the network where there is one).
        files: The CIFs of crystals that were read before, to name them in what is said.

    Raises:
        InputError: For CIFs that cannot be read or do not go together, and where the network is
            asked for and none fits.
    """
    if method is not None:
        _require("method", method, METHODS)
    cells = _cells(cif)
    crystals, names = [read_crystal(x) for x in cells], list(map(str, files))
    names = names or list(map(_cell_name, cells))
    fitting = None
    if method != "match":
        fitting = fitting_model(crystals, voltage_kv, semiangle_mrad, default_cache())
    if fitting is not None:
        why = f"{fitting.origin}, for these crystals"
        return ChosenModel(fitting.model, "network", fitting.origin, why)
    files = " ".join(shlex.quote(name) for name in names)
    angle = "" if semiangle_mrad is None else f" --semiangle-mrad {semiangle_mrad:g}"
    training = f"jaxstem train --cif {files} --voltage-kv {voltage_kv:g}{angle} --out MODEL"
    if method == "network":
        raise InputError(
            f"{', '.join(names)}: no packaged or cached model is for these crystals at "
            f"{voltage_kv:g} kV; train one with `{training}`, or leave out --method."
        )
    try:
        matching = matching_model(crystals, voltage_kv)
    except InputError as error:
        raise InputError(f"--cif {files}: {error}") from None
    why = "none, each pattern is matched with all orientations"
    if method is None:
        why += f", for no trained model fits; `{training}` makes one, which is then found by itself"
    return ChosenModel(matching, "match", ", ".join(Path(name).name for name in names), why)


def _cells(cif: CIFs) -> list[str | Path | Crystal]:
    return [cif] if isinstance(cif, str | Path | Crystal) else list(cif)


def _cell_name(cell: str | Path | Crystal) -> str:
    return cell.name if isinstance(cell, Crystal) else str(cell)


def read_crystal(cell: str | Path | Crystal) -> Crystal:
    """A crystal, read where it is a CIF. Raises InputError as `read_cif` does."""
    return cell if isinstance(cell, Crystal) else read_cif(cell)


def map_orientations(
    scan: Patterns | DiskScan | DiskSource,
    model: str | Path | Model | None = None,
    *,
    cif: CIFs | None = None,
    method: str | None = None,
    refine: str = "fast",
    judge: str = "counts",
    context: str = "scan",
    geometry: str = "scan",
    semiangle_mrad: float | None = None,
    least_confidence: float = 0.0,
    options: ReadOptions | None = None,
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
        cif: The unit cells instead of a model: `choose_model` finds what maps them.
        method: "network" or "match": of what `choose_model` finds.
        refine: How candidates are verified and polished: "fast", by two-beam theory; "full", by
            Bloch waves too, which tells the thickness; "exact", by fits of these to intensities
            that are right to a per cent or two; "none", not at all.
        judge: What decides between candidates: "counts", those of raw patterns at the places where
            each predicts disks; "list", the disks that were found, as it is without patterns.
        context: What patterns are weighed with: "scan", their neighbours, which are alike within a
            grain as the scan itself shows; "none", nothing, each pattern by itself.
        geometry: Where disks lie: "scan", as given and corrected by what is wrong with it in all
            patterns alike (scale, ellipse, centre); "given", as given.
        semiangle_mrad: Convergence semi-angle of the probe in mrad (None: the model's).
        least_confidence: Leave positions unassigned whose answer is less likely right than this.
        options: How the scan is opened, where its file does not say; the next three, if given,
            replace theirs.
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
    if (model is None) == (cif is None) or (method is not None and cif is None):
        raise InputError("Give either a model, or cif with the unit cells, and method with these.")
    _require("context", context, CONTEXTS)
    stated = _stated(pixel_size=pixel_size, voltage_kv=voltage_kv, scan_shape=scan_shape)
    options = dataclasses.replace(options or ReadOptions(), **stated)
    # all that can be wrong, before disks are looked for, which may take minutes
    loaded, told = None, {"model": str(model)}
    if model is not None:
        loaded = model if isinstance(model, Model) else load_model(model)
        if loaded is model:
            told = {"model": ", ".join(model.phase_names)}
        infer_config(loaded, refine, semiangle_mrad, batch, precision, judge, geometry)
    else:
        crystals = [read_crystal(cell) for cell in _cells(cif)]
    if isinstance(scan, DiskScan | DiskSource):
        never = (*OF_PATTERNS, *OF_PIXELS, *OF_FRAMES, "scan_shape", "flyback")
        options.refuse(never, f"{scan.source} is disks in 1/Å")
        source = scan
        if set(OF_AXES) & options.given().keys():
            source = as_listed(source_of(scan) if isinstance(scan, DiskScan) else scan, options)
    elif isinstance(scan, str | Path):
        source = look_at(scan, options, needs_voltage=loaded is None)
    else:
        source = plan_search(*searchable(scan, options))
    if options.voltage_kv is not None and isinstance(source, DiskScan | DiskSource):
        source = dataclasses.replace(source, voltage_kv=options.voltage_kv)
    if loaded is None:
        if source.voltage_kv is None:
            raise InputError(f"{source.source} states no voltage; give voltage_kv.")
        chosen = choose_model(crystals, source.voltage_kv, semiangle_mrad, method)
        loaded, told = chosen.model, {"method": chosen.method, "model": chosen.name}
    loaded = at_voltage(loaded, source.voltage_kv)
    check_voltage(source, loaded)
    config = infer_config(loaded, refine, semiangle_mrad, batch, precision, judge, geometry)
    if not isinstance(source, DiskScan):
        source = disks_of(source, progress, across=True, keep_light=config.looks_at_counts)
    return map_scan(
        source,
        loaded,
        config,
        context=context,
        least_confidence=least_confidence,
        options=options,
        attributes=told,
        progress=progress,
    )


def infer_config(
    model: Model,
    refine: str = "fast",
    semiangle_mrad: float | None = None,
    batch: int | None = None,
    precision: str = "float32",
    judge: str = "counts",
    geometry: str = "scan",
) -> InferConfig:
    """How a model's answers are made, from the settings that users choose (`map_orientations`)."""
    _require("refine", refine, REFINE)
    _require("judge", judge, JUDGES)
    _require("precision", precision, PRECISION)
    _require("geometry", geometry, GEOMETRIES)
    if batch is not None:
        require_between("batch", batch, 1, 10**6, whole=True)
    microscope = model.microscope
    if semiangle_mrad is not None:
        microscope = dataclasses.replace(microscope, semi_angle_mrad=semiangle_mrad)
    chosen = {"refine": refine, "judge": judge, "geometry": geometry}
    config = InferConfig(**chosen, batch=batch, precision=precision, cache=default_cache())
    score = config.scoring.under(microscope, model.specimen)
    return dataclasses.replace(config, score=score)


def _stated(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _require(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise InputError(f"{name} {value!r} is not known; give one of {', '.join(allowed)}.")
