# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line: train, detect, convert, calibrate, map, evaluate, export, report, demo.

One function for each command; tyro makes the options from its signature and the help from its
docstring. Whatever imports jax is imported inside the commands, so that `--help` and a mistyped
option answer at once. `main` turns an InputError into one sentence and exit code 2.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shlex
import sys
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from jaxstem import __version__
from jaxstem.errors import InputError

if TYPE_CHECKING:
    from jaxstem.io import DiskSource, OrientationMap
    from jaxstem.mapping import Overview
    from jaxstem.probe import DetectConfig

DESCRIPTION = """Example: jaxstem map scan.h5 --model cu --out map.h5

Orientation maps from 4D-STEM scans. To see one made: jaxstem demo."""

Flag = tyro.conf.FlagCreatePairsOff[bool]
command_line: ContextVar[str] = ContextVar("command_line")
OF_FILE = "(default: what the file states)"
OF_PRESET = "(default: the preset's)"
PICTURE = 1024
"""Positions along a side of a map's picture; of a larger scan only every other one is drawn, or
every third, and so on."""
STOPPED = 143
"""Exit code of a run that SIGTERM ended early: 128 + 15, as shells report that signal."""


@dataclass(frozen=True)
class Reading:
    """How a scan is read where its file does not say, or says it wrong.

    Attributes:
        pixel_size: Size of a detector pixel in 1/Å.
        calibration: Pixel size and ellipse that `jaxstem calibrate` found.
        rotation_deg: From detector to scan axes, turning qx towards qy.
        scan_shape: Rows and columns of the scan.
        mask: Detector pixels to leave out: an image or .npy in which they are not 0.
        origin: Row and column of the direct beam, where it cannot be seen.
        radius: Radius of the disks in detector pixels.
    """

    pixel_size: Annotated[
        float | None, tyro.conf.arg(metavar="1/Å", help_behavior_hint=OF_FILE)
    ] = None
    calibration: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE.json", help_behavior_hint=OF_FILE)
    ] = None
    rotation_deg: Annotated[
        float | None, tyro.conf.arg(metavar="DEG", help_behavior_hint=OF_FILE)
    ] = None
    scan_shape: Annotated[
        tuple[int, int] | None, tyro.conf.arg(metavar="ROWS COLUMNS", help_behavior_hint=OF_FILE)
    ] = None
    mask: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: dead and hot)")
    ] = None
    origin: Annotated[
        tuple[float, float] | None,
        tyro.conf.arg(metavar="ROW COLUMN", help_behavior_hint="(default: from the beam)"),
    ] = None
    radius: Annotated[
        float | None, tyro.conf.arg(metavar="PX", help_behavior_hint="(default: from the beam)")
    ] = None

    def changes(self) -> dict[str, Any]:
        """Entries that replace those of a file's calibration. Raises InputError."""
        import math

        entries: dict[str, Any] = {}
        if self.calibration:
            from jaxstem.calibration import read_calibration

            entries |= read_calibration(self.calibration).entries()
        if self.pixel_size is not None:
            _require_between("--pixel-size", self.pixel_size, 1e-6, 10.0, "1/Å")
            entries |= {"Q_pixel_size": self.pixel_size, "Q_pixel_units": "A^-1"}
        if self.rotation_deg is not None:
            _require_between("--rotation-deg", self.rotation_deg, -360.0, 360.0, "degrees")
            entries["QR_rotation"] = math.radians(self.rotation_deg)
        return entries

    def detection(self, **settings: Any) -> DetectConfig:
        """How disks are found in raw patterns. Raises InputError."""
        from jaxstem.probe import DetectConfig, read_mask

        mask = read_mask(self.mask) if self.mask else None
        return DetectConfig(mask=mask, origin=self.origin, radius=self.radius, **settings)

    def opened(self, scan: Path, voltage_kv: float | None = None) -> DiskSource:
        """The disks of a scan, taken at `voltage_kv` [kV] if not None. Raises InputError."""
        from jaxstem.disks import open_scan

        changes = self.changes()
        return open_scan(scan, self.detection(), None, self.scan_shape, changes, voltage_kv)


ReadingOptions = Annotated[Reading, tyro.conf.arg(name="")]


def train(
    cif: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="CIF ...")],
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")],
    voltage_kv: Annotated[float, tyro.conf.arg(metavar="KV")] = 300.0,
    k_max: Annotated[float, tyro.conf.arg(metavar="K")] = 2.0,
    minutes: Annotated[float, tyro.conf.arg(metavar="MIN")] = 15.0,
    steps: Annotated[
        int | None,
        tyro.conf.arg(metavar="N", help_behavior_hint="(default: as many as --minutes allows)"),
    ] = None,
    preset: Literal["default", "paper"] = "default",
    seed: Annotated[int, tyro.conf.arg(metavar="N")] = 0,
    batch: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint=OF_PRESET)] = None,
    spacing_deg: Annotated[
        float | None, tyro.conf.arg(metavar="DEG", help_behavior_hint=OF_PRESET)
    ] = None,
    u_iso: Annotated[float, tyro.conf.arg(metavar="U")] = 0.0064,
    overwrite: Flag = False,
) -> None:
    """Train a model for crystals from their CIFs alone.

    Args:
        cif: The unit cells, one CIF for each phase; phases are named after the files.
        out: Folder for the model. The same command resumes an unfinished run there.
        voltage_kv: Accelerating voltage in kV.
        k_max: Largest scattering vector in 1/Å; disks beyond it are not used.
        minutes: Time to train for.
        steps: Training steps, instead of --minutes.
        preset: The network and schedule: jaxstem's own, or those of arXiv 2602.12420.
        seed: Seed of all random numbers.
        batch: Patterns a step.
        spacing_deg: Spacing of the orientation grid in degrees.
        u_iso: Mean square displacement of the atoms in Å^2.
        overwrite: Replace a model that is there.
    """
    _require_between("--voltage-kv", voltage_kv, 1.0, 10_000.0, "kV")
    _require_between("--k-max", k_max, 0.01, 10.0, "1/Å")
    _require_between("--u-iso", u_iso, 0.0, 1.0, "Å^2")
    _require_between("--minutes", minutes, 0.01, 1e6, "minutes")
    _require_between("--steps", 1 if steps is None else steps, 1, 10**9)
    _require_between("--batch", 1 if batch is None else batch, 1, 10**6)
    _require_between("--seed", seed, 0, 2**31 - 1)
    _require_between("--spacing-deg", 2.0 if spacing_deg is None else spacing_deg, 2, 30, "degrees")
    _check_model_folder(out)

    import dataclasses

    from jaxstem import crystal, library, model, parallel
    from jaxstem import train as training

    parallel.start_cluster()
    unit_cells = [crystal.read_cif(path) for path in cif]
    config = training.preset(preset)
    mesh = parallel.make_mesh()
    if batch is None:
        batch = -(-config.batch // mesh.size) * mesh.size
    elif batch % mesh.size:
        raise InputError(
            f"--batch {batch} does not divide among {mesh.size} devices; choose a multiple of "
            f"{mesh.size}."
        )
    spacing_deg = spacing_deg or config.model.spacing_deg
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, spacing_deg=spacing_deg),
        steps=steps or 0,
        minutes=minutes,
        batch=batch,
        seed=seed,
    )
    materials = []
    for path, unit_cell in zip(cif, unit_cells, strict=True):
        try:
            materials.append(model.material(unit_cell, voltage_kv, k_max, spacing_deg, u_iso))
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
    try:
        model.check_materials(materials)
    except InputError as error:
        raise InputError(f"--cif {shlex.join(map(str, cif))}: {error}") from None
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            trained = training.train(
                materials,
                config,
                out,
                mesh=mesh,
                overwrite=overwrite,
                cache=library.default_cache(),
            )
    except training.Stopped as stop:
        if parallel.is_first():
            resume = "the same command without --overwrite resumes it."
            _complain(f"{out}: checkpointed and {stop}, by SIGTERM; {resume}", STOPPED)
        raise SystemExit(STOPPED) from None
    if not parallel.is_first():
        return
    record = trained.record
    print(
        f"{out}: model of {', '.join(trained.phase_names)}, {record['total_steps']} steps of "
        f"{batch} patterns in {record['seconds'] / 60:.1f} minutes on {record['devices']}; "
        f"validation median {record['validation']['val_median_deg']:.1f}° before refinement"
    )
    print(f"use it: jaxstem map SCAN.h5 --model {shlex.quote(str(out))} --out MAP.h5")


def detect(
    cube: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CUBE.h5")],
    out: Annotated[Path, tyro.conf.arg(metavar="BRAGG.h5")],
    threshold: Annotated[
        float | None,
        tyro.conf.arg(metavar="SIGMA", help_behavior_hint="(default: from --false-alarms)"),
    ] = None,
    false_alarms: Annotated[float, tyro.conf.arg(metavar="N")] = 0.02,
    voltage_kv: Annotated[
        float | None, tyro.conf.arg(metavar="KV", help_behavior_hint=OF_FILE)
    ] = None,
    reading: ReadingOptions = Reading(),
    overwrite: Flag = False,
) -> None:
    """Find the Bragg disks of a raw scan, for py4DSTEM too.

    Args:
        cube: Raw patterns, in any of the formats of docs/file-formats.md.
        out: Bragg disks to write (EMD 1.0 BraggVectors).
        threshold: Least significance of a disk, in standard deviations of the background.
        false_alarms: Disks a pattern that counting noise alone may give.
        voltage_kv: The accelerating voltage in kV, for detectors calibrated in mrad.
        reading: How the scan is read.
        overwrite: Replace BRAGG.h5.
    """
    from jaxstem.io import atomic_path

    with atomic_path(out, overwrite) as temporary:
        from jaxstem import disks
        from jaxstem.cubes import read_cube

        raw = read_cube(cube, reading.scan_shape, reading.changes(), voltage_kv)
        config = reading.detection(threshold=threshold, false_alarms=false_alarms)
        with disks.progress_bar(raw) as advance:
            found = disks.find_disks(raw, config, progress=advance)
        disks.write_bragg(temporary, found, overwrite=True)
    ny, nx = raw.scan_shape
    print(f"{ny} x {nx} positions, {len(found.row) / (ny * nx):.1f} disks each; wrote {out}")
    print(f"use them: jaxstem map {shlex.quote(str(out))} --model DIR|NAME --out MAP.h5")


def convert(
    scan: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SCAN.h5")],
    out: Annotated[Path, tyro.conf.arg(metavar="DISKS.h5")],
    reading: ReadingOptions = Reading(),
    overwrite: Flag = False,
) -> None:
    """Pack Bragg disks into a table that is read at disk speed.

    Args:
        scan: Bragg disks as `jaxstem detect` or py4DSTEM saves them, or raw patterns, in which
            disks are found first (formats: docs/file-formats.md).
        out: Packed table to write (layout: docs/file-formats.md).
        reading: How the scan is read.
        overwrite: Replace DISKS.h5.
    """
    from jaxstem.io import check_target

    check_target(out, overwrite)
    if out.exists() and scan.exists() and out.samefile(scan):
        raise InputError(f"{out} is the scan itself; give the table another name.")

    from jaxstem.packed import write_packed

    source = reading.opened(scan)
    n_disks = write_packed(out, source, overwrite)
    ny, nx = source.scan_shape
    print(f"{ny} x {nx} positions, {n_disks / (ny * nx):.1f} disks each; wrote {out}")


def map_command(
    scan: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SCAN.h5")],
    out: Annotated[Path, tyro.conf.arg(metavar="MAP.h5")],
    model: Annotated[str, tyro.conf.arg(metavar="DIR|NAME")] = "",
    method: Literal["network", "match"] = "network",
    cif: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="CIF ...")] = (),
    refine: Literal["none", "fast", "full"] = "fast",
    semiangle_mrad: Annotated[float, tyro.conf.arg(metavar="MRAD")] = 1.5,
    figure: bool = True,
    least_confidence: Annotated[float, tyro.conf.arg(metavar="P")] = 0.0,
    voltage_kv: Annotated[
        float | None,
        tyro.conf.arg(metavar="KV", help_behavior_hint="(default: what the file states)"),
    ] = None,
    batch: Annotated[
        int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: jaxstem's choice)")
    ] = None,
    precision: Literal["float32", "bfloat16"] = "float32",
    reading: ReadingOptions = Reading(),
    overwrite: Flag = False,
) -> None:
    """Map the phases and orientations over a scan.

    Args:
        scan: Bragg disks as `jaxstem detect` or py4DSTEM saves them (EMD 1.0), the table that
            `jaxstem convert` makes of them, or a raw data cube, in which disks are found first.
        out: Map to write, with its picture MAP.png beside it.
        model: Folder that `jaxstem train` made, or the name of a packaged model: cu, cu-cu2o.
        method: The trained network, or matching against all orientations of the --cif crystals,
            which needs no model.
        cif: The unit cells for --method match.
        refine: Verify and polish candidates: fast, by two-beam theory; full, by Bloch waves too,
            which gives the thickness and takes a hundred times as long; none, not at all.
        semiangle_mrad: Convergence semi-angle of the probe in mrad.
        figure: Draw the picture.
        least_confidence: Leave positions unassigned whose answer is less likely right than this.
        voltage_kv: The scan's accelerating voltage in kV, if its file states none or a wrong one.
        batch: Patterns to work on at once.
        precision: Of the network; verification is always in float32.
        reading: How the scan is read.
        overwrite: Replace MAP.h5 and MAP.png.
    """
    _require_between("--batch", 1 if batch is None else batch, 1, 10**6)
    _require_between("--least-confidence", least_confidence, 0.0, 1.0)
    _require_between("--semiangle-mrad", semiangle_mrad, 0.0, 20.0, "mrad")
    if voltage_kv is not None:
        _require_between("--voltage-kv", voltage_kv, 1.0, 10_000.0, "kV")
    if (method == "match") != bool(cif) or (method == "network") != bool(model):
        raise InputError("Give either --model, or --method match with --cif and the unit cells.")

    from jaxstem.io import atomic_path, check_target, read_map

    picture = out.with_suffix(".png")
    if picture == out:
        raise InputError(f"{out}: is the picture's name; name the map MAP.h5 or the like.")
    if out.exists() and scan.exists() and out.samefile(scan):
        raise InputError(f"{out} is the scan itself; give the map another name.")
    for target in (out, picture)[: 2 if figure else 1]:
        check_target(target, overwrite)

    from jaxstem import parallel

    parallel.start_cluster()
    with ExitStack() as files:
        map_file, picture_file = out, picture
        if parallel.is_first():
            map_file = files.enter_context(atomic_path(out, overwrite))
            if figure:
                picture_file = files.enter_context(atomic_path(picture, overwrite))
        disks = reading.opened(scan, voltage_kv)

        from jaxstem.infer import InferConfig
        from jaxstem.likelihood import LikelihoodConfig
        from jaxstem.mapping import check_voltage, map_to_file
        from jaxstem.model import load_model

        if method == "match":
            stated = disks.voltage_kv if voltage_kv is None else voltage_kv
            if stated is None:
                raise InputError(f"{scan}: states no voltage; give --voltage-kv.")
            loaded = _matching_model(cif, stated)
        else:
            loaded = load_model(model)
        check_voltage(disks, loaded, voltage_kv)
        config = InferConfig(refine=refine, batch=batch, precision=precision)
        likelihood = LikelihoodConfig(semi_angle=semiangle_mrad)
        config = replace(config, score=replace(config.rules, likelihood=likelihood))
        found = map_to_file(
            map_file,
            disks,
            loaded,
            config,
            least_confidence=least_confidence,
            voltage_kv=voltage_kv,
            attributes={
                "command": command_line.get(),
                "method": method,
                "model": model or ", ".join(path.name for path in cif),
            },
        )
        if not parallel.is_first():
            return
        if figure:
            from jaxstem import maps

            every = -(-max(disks.scan_shape) // PICTURE)
            maps.figure(read_map(map_file, every), picture_file)
    print(_summary(found))
    print(f"wrote {out}" + (f" and {picture}" if figure else ""))


def _matching_model(cif: Sequence[Path], voltage_kv: float):
    """What maps by matching, from CIFs alone."""
    from jaxstem import crystal, match

    crystals = [crystal.read_cif(path) for path in cif]
    try:
        return match.matching_model(crystals, voltage_kv)
    except InputError as error:
        raise InputError(f"--cif {shlex.join(map(str, cif))}: {error}") from None


def evaluate(
    files: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MAP.h5 ...")],
    truth: Annotated[
        tuple[Path, ...],
        tyro.conf.arg(metavar="TRUTH.h5 ...", help_behavior_hint="(default: the last file named)"),
    ] = (),
    out: Annotated[
        Path | None,
        tyro.conf.arg(metavar="TABLE", help_behavior_hint="(default: printed alone)"),
    ] = None,
    as_json: Annotated[Flag, tyro.conf.arg(name="json")] = False,
    overwrite: Flag = False,
) -> None:
    """Score maps against the known truth.

    Args:
        files: Maps that `jaxstem map` wrote; without --truth one map, followed by its truth.
        truth: The true orientations and phases (layout: docs/file-formats.md): one file for all
            maps, or as many as maps, in their order. Gives one table.
        out: Table to write: .csv, .json or .md.
        as_json: Print JSON instead of a table.
        overwrite: Replace TABLE.
    """
    from jaxstem import evaluation

    if out:
        evaluation.check_table(out, overwrite)
    if not truth and len(files) != 2:
        raise InputError("Name a map and its truth, or maps and --truth with one file or several.")
    if truth or out:
        maps, truths = (files, truth) if truth else (files[:1], files[1:])
        rows = evaluation.evaluate_maps(maps, truths)
        print(evaluation.to_json(rows) if as_json else evaluation.to_markdown(rows), end="")
        if out:
            evaluation.write_table(out, rows, overwrite)
        return

    from jaxstem.io import read_map, read_truth

    map_file, truth_file = files
    found, known = read_map(map_file), read_truth(truth_file)
    from jaxstem import metrics

    try:
        score = metrics.evaluate(found, known)
    except InputError as error:
        raise InputError(f"{map_file}, {truth_file}: {error}") from None
    print(json.dumps(metrics.to_dict(score), indent=1) if as_json else metrics.to_text(score))


def export(
    map_file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MAP.h5")],
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")],
    grain_deg: Annotated[float, tyro.conf.arg(metavar="DEG")] = 5.0,
    overwrite: Flag = False,
) -> None:
    """Write a map for another program, or as a figure.

    Args:
        map_file: Map that `jaxstem map` wrote.
        out: .ang (EDAX OIM, MTEX), .h5 (orix), .npy (py4DSTEM), .csv (table of grains), .png, .svg
            or .pdf (figure).
        grain_deg: Misorientation between neighbours that bounds a grain, for .csv.
        overwrite: Replace FILE.
    """
    _require_between("--grain-deg", grain_deg, 0.01, 180.0, "degrees")

    from jaxstem.export import export_map

    export_map(map_file, out, grain_deg, overwrite)
    print(f"wrote {out}")


def calibrate(
    scan: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SCAN.h5")],
    cif: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="CIF ...")],
    out: Annotated[Path, tyro.conf.arg(metavar="FILE.json")],
    reading: ReadingOptions = Reading(),
    overwrite: Flag = False,
) -> None:
    """Fit pixel size and ellipse to the rings of a known crystal.

    Args:
        scan: Raw patterns or Bragg disks in detector pixels.
        cif: The unit cells of the crystals that fill the scan.
        out: Calibration to write; its picture goes beside it (.png).
        reading: How the scan is read; --pixel-size is where the fit starts.
        overwrite: Replace FILE.json and FILE.png.
    """
    import math

    from jaxstem import calibration
    from jaxstem.crystal import read_cif
    from jaxstem.disks import read_scan

    turn = None if reading.rotation_deg is None else math.radians(reading.rotation_deg)
    found = calibration.calibrate(
        lambda entries: read_scan(scan, reading.detection(), None, reading.scan_shape, entries),
        [read_cif(path) for path in cif],
        out,
        reading.pixel_size,
        turn,
        overwrite,
    )
    print(calibration.summary(found))
    print(f"use it: jaxstem map {shlex.quote(str(scan))} --calibration {shlex.quote(str(out))} ...")


def report(
    map_file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MAP.h5")],
    out: Annotated[Path, tyro.conf.arg(metavar="REPORT.html")],
    scan: Annotated[
        Path | None,
        tyro.conf.arg(metavar="SCAN.h5", help_behavior_hint="(default: predictions alone)"),
    ] = None,
    reading: ReadingOptions = Reading(),
    overwrite: Flag = False,
) -> None:
    """Write a map as a web page to look into, offline.

    Args:
        map_file: Map that `jaxstem map` wrote.
        out: Page to write.
        scan: What was mapped: the raw cube, to see its patterns, or its disks.
        reading: How the scan is read.
        overwrite: Replace REPORT.html.
    """
    from jaxstem.report import write_report

    write_report(map_file, out, scan, overwrite, calibration=reading.changes())
    print(f"wrote {out} ({out.stat().st_size / 1e6:.1f} MB); open it in a browser")


def demo(out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("jaxstem-demo")) -> None:
    """Map and score the sample scan that ships with jaxstem.

    Args:
        out: Folder for the map, its picture and the score.
    """
    from jaxstem import demo as demonstration

    demonstration.check_folder(out)
    found, score = demonstration.run(out, {"command": command_line.get(), "model": "cu"})

    from jaxstem import metrics

    print(_summary(found))
    print()
    print(metrics.to_text(score))
    print()
    meanings = ("orientations, phases, confidence", "the map as a picture", "the table above")
    for name, meaning in zip(demonstration.FILES, (*meanings, "the same as JSON"), strict=True):
        print(f"{out / name}  {meaning}")
    print("your own crystal: jaxstem train --cif FILE.cif --out MODEL_DIR")
    print("your own scan:    jaxstem map SCAN.h5 --model MODEL_DIR --out MAP.h5")


COMMANDS = {
    "train": train,
    "detect": detect,
    "convert": convert,
    "calibrate": calibrate,
    "map": map_command,
    "evaluate": evaluate,
    "export": export,
    "report": report,
    "demo": demo,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (default: the process's own); the exit code, 2 for unusable input."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:
        print(f"jaxstem {__version__}")
        return 0
    command_line.set(shlex.join(["jaxstem", *arguments]))
    settle_jax()
    try:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS, prog="jaxstem", description=DESCRIPTION, args=arguments
        )
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except InputError as error:
        return _complain(str(error), 2)
    except OSError as error:
        return _complain(f"{error.filename or 'a file'}: {error.strerror or error}.", 2)
    except KeyboardInterrupt:
        return _complain("interrupted.", 130)
    return 0


def settle_jax() -> None:
    """Choose, before jax is imported, where it keeps compiled programs, and quiet its notices.

    Programs are kept in $XDG_CACHE_HOME/jaxstem (~/.cache/jaxstem), apart for each kind of
    processor, because a home folder may be shared by machines that cannot run each other's code.
    The environment variables that jax itself knows (JAX_COMPILATION_CACHE_DIR and so on) win.
    """
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    kept = os.path.join(caches, "jaxstem", f"compiled-{_processor()}")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", kept)
    # small programs are many, and compiling them anew takes longer than all else at the start
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    for name in ("jax._src.xla_bridge", "absl"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")


def _processor() -> str:
    """A short name for what this processor can execute."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    abilities = [line for line in lines if line.startswith(("flags", "Features", "model name"))][:2]
    text = "\n".join([platform.system(), platform.machine(), platform.processor(), *abilities])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _require_between(option: str, value: float, low: float, high: float, unit: str = "") -> None:
    if not low <= value <= high:
        raise InputError(
            f"{option} {value:g}: give a number from {low:g} to {high:g} {unit}".rstrip() + "."
        )


def _check_model_folder(out: Path) -> None:
    """Raise InputError unless a model can be trained into `out`, without harm to other files."""
    if not out.parent.is_dir():
        raise InputError(f"{out}: the folder {out.parent} does not exist; make it first.")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give the name of a folder for the model.")
    # a run that was killed in its first moments leaves run.json.part alone
    if out.is_dir() and any(path.name != "run.json.part" for path in out.iterdir()):
        if not any((out / name).exists() for name in ("run.json", "model.json")):
            raise InputError(f"{out} holds other files; give a new folder for the model.")


def _summary(found: OrientationMap | Overview) -> str:
    """One line about a map, with a warning where no crystal was found."""
    import numpy as np

    from jaxstem.infer import MIN_DISKS
    from jaxstem.io import NO_CRYSTAL

    assigned, empty = found.phase >= 0, found.phase == NO_CRYSTAL
    ny, nx = assigned.shape
    parts = [f"{ny} x {nx} positions, {assigned.sum()} assigned ({100 * assigned.mean():.1f} %)"]
    if empty.any():
        parts.append(f"{empty.sum()} without a crystal")
    if not assigned.any():
        if (found.n_disks < MIN_DISKS).all():
            parts.append("no position has enough disks within the model's k_max")
            parts.append("check the pixel size")
        return ", ".join(parts)
    if len(found.phase_names) > 1:
        parts += [
            f"{name} {100 * (found.phase == index)[assigned].mean():.1f} %"
            for index, name in enumerate(found.phase_names)
        ]
    median = np.median(found.confidence[assigned])
    if np.isfinite(median):
        parts.append(f"median confidence {median:.2f}")
        parts.append(f"{found.ambiguous_180.sum()} ambiguous by 180°")
    return ", ".join(parts)


def _warn(message, *_, **__) -> None:
    """A warning as one line, without the place in the code."""
    print(f"jaxstem: {message}", file=sys.stderr)


def _complain(sentence: str, code: int) -> int:
    print(f"jaxstem: {sentence}", file=sys.stderr)
    return code
