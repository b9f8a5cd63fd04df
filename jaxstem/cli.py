# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line: train, detect, convert, calibrate, map, evaluate, export, report, demo, doctor.

One function for each command; tyro makes the options from its signature and the help from its
docstring. Whatever imports jax is imported inside the commands, so that `--help` and a mistyped
option answer at once. `main` turns an InputError into one sentence and exit code 2
(docs/command-line.md has all exit codes).
"""

from __future__ import annotations

import gc
import logging
import math
import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from jaxstem import __version__
from jaxstem.console import (
    USUAL,
    CommandLine,
    Flag,
    Output,
    OutputOptions,
    Stages,
    command_line,
    complain,
    expanded,
    warn,
)
from jaxstem.errors import InputError
from jaxstem.kept import cache_home, processor

if TYPE_CHECKING:
    from jaxstem.io import DiskSource, OrientationMap
    from jaxstem.mapping import Overview
    from jaxstem.probe import DetectConfig

DESCRIPTION = "4D-STEM orientation maps. Example: jaxstem map scan.h5 --model cu --out map.h5"
OF_FILE = "(default: what the file states)"
OF_PRESET = "(default: the preset's)"
PICTURE = 1024
"""Positions along a side of a map's picture; of a larger scan only every other one is drawn, or
every third, and so on."""
STOPPED = 143
"""Exit code of a run that SIGTERM ended early: 128 + 15, as shells report that signal."""
SELDOM = 100_000
"""Python objects that are made between two looks for cycles among them."""
CUT_OFF = 141
"""Exit code when nobody reads what is printed any more: 128 + 13, as of SIGPIPE."""


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
        probe: The beam in vacuum, an image or .npy: the template that disks are compared with.
        gain: Stored numbers per electron, where the scatter of the counts does not tell.
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
    probe: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: from the beam)")
    ] = None
    gain: Annotated[
        float | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: from the counts)")
    ] = None

    def changes(self) -> dict[str, Any]:
        """Entries that replace those of a file's calibration. Raises InputError."""
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
        from jaxstem.probe import DetectConfig, read_mask, read_probe

        mask = read_mask(self.mask) if self.mask else None
        probe = read_probe(self.probe) if self.probe else None
        if self.gain is not None:
            _require_between("--gain", self.gain, 1e-6, 1e6)
        given = {"origin": self.origin, "radius": self.radius, "gain": self.gain}
        return DetectConfig(mask=mask, probe=probe, **given, **settings)

    def opened(
        self,
        scan: Path,
        voltage_kv: float | None = None,
        progress: bool | None = None,
        disk_method: DiskMethod = "likelihood",
    ) -> DiskSource:
        """The disks of a scan, taken at `voltage_kv` [kV] if not None. Raises InputError."""
        from jaxstem.disks import open_scan

        config, changes = self.detection(method=disk_method), self.changes()
        return open_scan(scan, config, progress, self.scan_shape, changes, voltage_kv)


ReadingOptions = Annotated[Reading, tyro.conf.arg(name="")]
DiskMethod = Literal["likelihood", "correlation"]


@dataclass(frozen=True)
class Correlating:
    """How `--method correlation` finds disks.

    Attributes:
        correlation_power: From 0, phase correlation, to 1, cross-correlation.
        subpixel: How maxima are placed below a pixel: a parabola, or a Fourier transform upsampled
            about them.
        upsample: Points a pixel of --subpixel upsampled.
        blur: Standard deviation of the correlogram's blur in pixels.
        min_intensity: Smallest intensity of a disk, in electrons for --correlation-power 1.
        min_relative_intensity: The same as a share of the brightest disk's.
    """

    correlation_power: Annotated[float, tyro.conf.arg(metavar="P")] = 1.0
    subpixel: Literal["none", "poly", "upsampled"] = "upsampled"
    upsample: Annotated[int, tyro.conf.arg(metavar="N")] = 16
    blur: Annotated[float, tyro.conf.arg(metavar="PX")] = 0.0
    min_intensity: Annotated[float, tyro.conf.arg(metavar="I")] = 0.0
    min_relative_intensity: Annotated[float, tyro.conf.arg(metavar="SHARE")] = 0.0

    def settings(self):
        """The same for `DetectConfig.correlation`."""
        from jaxstem.probe import Correlation

        values = asdict(self)
        return Correlation(power=values.pop("correlation_power"), **values)


CorrelatingOptions = Annotated[Correlating, tyro.conf.arg(name="")]


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
    output: OutputOptions = USUAL,
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
        output: What is said.
    """
    _require_between("--voltage-kv", voltage_kv, 1.0, 10_000.0, "kV")
    _require_between("--k-max", k_max, 0.01, 10.0, "1/Å")
    _require_between("--u-iso", u_iso, 0.0, 1.0, "Å^2")
    _require_between("--minutes", minutes, 0.01, 1e6, "minutes")
    _require_between("--steps", 1 if steps is None else steps, 1, 10**9)
    _require_between("--batch", 1 if batch is None else batch, 1, 10**6)
    _require_between("--seed", seed, 0, 2**31 - 1)
    _require_between("--spacing-deg", 2.0 if spacing_deg is None else spacing_deg, 2, 30, "degrees")

    from jaxstem import api, parallel, training
    from jaxstem.model import MODEL_FILES

    parallel.start_cluster()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = warn
            trained = api.train(
                cif,
                out,
                voltage_kv=voltage_kv,
                k_max=k_max,
                minutes=minutes,
                steps=steps,
                preset=preset,
                seed=seed,
                batch=batch,
                spacing_deg=spacing_deg,
                u_iso=u_iso,
                overwrite=overwrite,
                progress=output.progress,
            )
    except training.Stopped as stop:
        if parallel.is_first():
            resume = "the same command without --overwrite resumes it."
            complain(f"{out}: checkpointed and {stop}, by SIGTERM; {resume}", STOPPED)
        raise SystemExit(STOPPED) from None
    if not parallel.is_first():
        return
    record = trained.record
    batch = record["config"]["batch"]
    output.tell(
        {"files": [out / name for name in MODEL_FILES], "phases": trained.phase_names}
        | {name: record[name] for name in ("total_steps", "devices", "validation")}
        | {"batch": batch, "training_seconds": record["seconds"]},
        f"{out}: model of {', '.join(trained.phase_names)}, {record['total_steps']} steps of "
        f"{batch} patterns in {record['seconds'] / 60:.1f} minutes on {record['devices']}; "
        f"validation median {record['validation']['val_median_deg']:.1f}° before refinement",
        f"use it: jaxstem map SCAN.h5 --model {shlex.quote(str(out))} --out MAP.h5",
    )


def detect(
    cube: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CUBE.h5")],
    out: Annotated[Path, tyro.conf.arg(metavar="BRAGG.h5")],
    method: DiskMethod = "likelihood",
    threshold: Annotated[
        float | None,
        tyro.conf.arg(metavar="SIGMA", help_behavior_hint="(default: from --false-alarms)"),
    ] = None,
    false_alarms: Annotated[float, tyro.conf.arg(metavar="N")] = 0.02,
    voltage_kv: Annotated[
        float | None, tyro.conf.arg(metavar="KV", help_behavior_hint=OF_FILE)
    ] = None,
    correlating: CorrelatingOptions = Correlating(),
    reading: ReadingOptions = Reading(),
    overwrite: Flag = False,
    output: OutputOptions = USUAL,
) -> None:
    """Find the Bragg disks of a raw scan, for py4DSTEM too.

    Args:
        cube: Raw patterns, in any of the formats of docs/file-formats.md.
        out: Bragg disks to write (EMD 1.0 BraggVectors).
        method: By the likelihood of round, filled disks, or by correlation with the probe, which
            may have any pattern (--probe).
        threshold: Least significance of a disk, in standard deviations of the background.
        false_alarms: Disks a pattern that counting noise alone may give.
        voltage_kv: The accelerating voltage in kV, for detectors calibrated in mrad.
        correlating: How --method correlation finds them.
        reading: How the scan is read.
        overwrite: Replace BRAGG.h5.
        output: What is said.
    """
    from jaxstem.io import atomic_path

    with atomic_path(out, overwrite) as temporary:
        from jaxstem import disks
        from jaxstem.cubes import read_cube

        raw = read_cube(cube, reading.scan_shape, reading.changes(), voltage_kv)
        config = reading.detection(
            method=method,
            correlation=correlating.settings(),
            threshold=threshold,
            false_alarms=false_alarms,
        )
        with disks.progress_bar(raw, output.progress) as advance:
            found = disks.find_disks(raw, config, progress=advance)
        disks.write_bragg(temporary, found, overwrite=True)
    output.tell(
        _disk_counts(out, raw.scan_shape, len(found.row)),
        _disk_line(out, raw.scan_shape, len(found.row)),
        f"use them: jaxstem map {shlex.quote(str(out))} --model DIR|NAME --out MAP.h5",
    )


def convert(
    scan: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SCAN.h5")],
    out: Annotated[Path, tyro.conf.arg(metavar="DISKS.h5")],
    disk_method: DiskMethod = "likelihood",
    reading: ReadingOptions = Reading(),
    overwrite: Flag = False,
    output: OutputOptions = USUAL,
) -> None:
    """Pack Bragg disks into a table that reads fast, or into CSV.

    Args:
        scan: Bragg disks as `jaxstem detect` or py4DSTEM saves them, or raw patterns, in which
            disks are found first (formats: docs/file-formats.md).
        out: Packed table to write, or .csv (layouts: docs/file-formats.md).
        disk_method: How disks are found in raw patterns: --method of `jaxstem detect`.
        reading: How the scan is read.
        overwrite: Replace DISKS.h5.
        output: What is said.
    """
    from jaxstem.io import check_target

    check_target(out, overwrite)
    if out.exists() and scan.exists() and out.samefile(scan):
        raise InputError(f"{out} is the scan itself; give the table another name.")

    source = reading.opened(scan, None, output.progress, disk_method)
    if out.suffix.lower() == ".csv":
        from jaxstem.tables import write_csv

        n_disks = write_csv(out, source, overwrite)
    else:
        from jaxstem.packed import write_packed

        n_disks = write_packed(out, source, overwrite, output.progress)
    output.tell(
        _disk_counts(out, source.scan_shape, n_disks), _disk_line(out, source.scan_shape, n_disks)
    )


def _disk_counts(out: Path, scan_shape: tuple[int, int], n_disks: int) -> dict[str, Any]:
    mean = n_disks / (scan_shape[0] * scan_shape[1])
    return {"files": [out], "scan_shape": scan_shape, "disks": n_disks, "disks_mean": mean}


def _disk_line(out: Path, scan_shape: tuple[int, int], n_disks: int) -> str:
    ny, nx = scan_shape
    return f"{ny} x {nx} positions, {n_disks / (ny * nx):.1f} disks each; wrote {out}"


def map_command(
    scan: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SCAN.h5")],
    out: Annotated[Path, tyro.conf.arg(metavar="MAP.h5")],
    model: Annotated[str, tyro.conf.arg(metavar="DIR|NAME")] = "",
    method: Literal["network", "match"] = "network",
    cif: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="CIF ...")] = (),
    refine: Literal["none", "fast", "full", "exact"] = "fast",
    semiangle_mrad: Annotated[float, tyro.conf.arg(metavar="MRAD")] = 1.5,
    figure: bool = True,
    report: Annotated[
        Path | None, tyro.conf.arg(metavar="REPORT.html", help_behavior_hint="(default: none)")
    ] = None,
    least_confidence: Annotated[float, tyro.conf.arg(metavar="P")] = 0.0,
    voltage_kv: Annotated[
        float | None,
        tyro.conf.arg(metavar="KV", help_behavior_hint="(default: what the file states)"),
    ] = None,
    batch: Annotated[
        int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: jaxstem's choice)")
    ] = None,
    precision: Literal["float32", "bfloat16"] = "float32",
    disk_method: DiskMethod = "likelihood",
    reading: ReadingOptions = Reading(),
    overwrite: Flag = False,
    output: OutputOptions = USUAL,
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
            which gives the thickness and takes a hundred times as long; exact, by fits of these to
            the intensities, for those that are right to a per cent or two, which takes ten times as
            long again; none, not at all.
        semiangle_mrad: Convergence semi-angle of the probe in mrad.
        figure: Draw the picture.
        report: Write the map as a web page too, as `jaxstem report` does.
        least_confidence: Leave positions unassigned whose answer is less likely right than this.
        voltage_kv: The scan's accelerating voltage in kV, if its file states none or a wrong one.
        batch: Patterns to work on at once.
        precision: Of the network; verification is always in float32.
        disk_method: How disks are found in raw patterns: --method of `jaxstem detect`.
        reading: How the scan is read.
        overwrite: Replace MAP.h5, MAP.png and REPORT.html.
        output: What is said.
    """
    _require_between("--batch", 1 if batch is None else batch, 1, 10**6)
    _require_between("--least-confidence", least_confidence, 0.0, 1.0)
    _require_between("--semiangle-mrad", semiangle_mrad, 0.0, 20.0, "mrad")
    if voltage_kv is not None:
        _require_between("--voltage-kv", voltage_kv, 1.0, 10_000.0, "kV")
    if (method == "match") != bool(cif) or (method == "network") != bool(model):
        raise InputError("Give either --model, or --method match with --cif and the unit cells.")

    from jaxstem.io import atomic_path, check_target
    from jaxstem.painter import Painter

    picture = out.with_suffix(".png")
    if picture == out:
        raise InputError(f"{out}: is the picture's name; name the map MAP.h5 or the like.")
    if out.exists() and scan.exists() and out.samefile(scan):
        raise InputError(f"{out} is the scan itself; give the map another name.")
    targets = [out, *([picture] if figure else []), *([report] if report else [])]
    if len({target.absolute() for target in targets}) < len(targets):
        raise InputError(f"--report {report}: is the name of another file; name it REPORT.html.")
    for target in targets:
        check_target(target, overwrite)

    with ExitStack() as files:
        # before jax is loaded, so that both load at once
        painter = files.enter_context(Painter()) if figure else None

        from jaxstem import parallel

        parallel.start_cluster()
        map_file, picture_file = out, picture
        if parallel.is_first():
            map_file = files.enter_context(atomic_path(out, overwrite))
            if figure:
                picture_file = files.enter_context(atomic_path(picture, overwrite))
        elif painter:
            painter.close()
        disks = reading.opened(scan, voltage_kv, output.progress, disk_method)

        from jaxstem.api import infer_config
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
        stages = Stages("start")
        found = map_to_file(
            map_file,
            disks,
            loaded,
            infer_config(refine, semiangle_mrad, batch, precision),
            least_confidence=least_confidence,
            voltage_kv=voltage_kv,
            attributes={
                "command": _command(),
                "method": method,
                "model": model or ", ".join(path.name for path in cif),
            },
            progress=output.progress,
        )
        if not parallel.is_first():
            return
        stages.end("map")
        if painter:
            painter.paint(map_file, picture_file, -(-max(disks.scan_shape) // PICTURE))
            stages.end("picture")
    if report:
        from jaxstem.report import write_report

        changes = reading.changes()
        write_report(out, report, scan, overwrite, calibration=changes, progress=output.progress)
        stages.end("report")
    output.tell(
        {"files": targets, **_counts(found), "stages": stages.seconds},
        _summary(found),
        f"wrote {', '.join(map(str, targets))} ({stages})",
    )


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
    overwrite: Flag = False,
    output: OutputOptions = USUAL,
) -> None:
    """Score maps against the known truth.

    Args:
        files: Maps that `jaxstem map` wrote; without --truth one map, followed by its truth.
        truth: The true orientations and phases (layout: docs/file-formats.md): one file for all
            maps, or as many as maps, in their order. Gives one table.
        out: Table to write: .csv, .json or .md.
        overwrite: Replace TABLE.
        output: What is said.
    """
    from jaxstem import evaluation

    if out:
        evaluation.check_table(out, overwrite)
    if not truth and len(files) != 2:
        raise InputError("Name a map and its truth, or maps and --truth with one file or several.")
    if truth or out:
        maps, truths = (files, truth) if truth else (files[:1], files[1:])
        rows = evaluation.evaluate_maps(maps, truths)
        if out:
            evaluation.write_table(out, rows, overwrite)
        summary = {"files": [out] if out else [], "rows": rows}
        output.tell(summary, evaluation.to_markdown(rows).rstrip("\n"))
        return

    from jaxstem.io import read_map, read_truth

    map_file, truth_file = files
    found, known = read_map(map_file), read_truth(truth_file)
    from jaxstem import metrics

    try:
        score = metrics.evaluate(found, known)
    except InputError as error:
        raise InputError(f"{map_file}, {truth_file}: {error}") from None
    output.tell({"files": [], **metrics.to_dict(score)}, metrics.to_text(score))


def export(
    map_file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MAP.h5")],
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")],
    grain_deg: Annotated[float, tyro.conf.arg(metavar="DEG")] = 5.0,
    overwrite: Flag = False,
    output: OutputOptions = USUAL,
) -> None:
    """Write a map for another program, or as a figure.

    Args:
        map_file: Map that `jaxstem map` wrote.
        out: .ang (EDAX OIM, MTEX), .h5 (orix), .npy (py4DSTEM), .csv (table of grains), .png, .svg
            or .pdf (figure).
        grain_deg: Misorientation between neighbours that bounds a grain, for .csv.
        overwrite: Replace FILE.
        output: What is said.
    """
    _require_between("--grain-deg", grain_deg, 0.01, 180.0, "degrees")

    from jaxstem.export import export_map

    export_map(map_file, out, grain_deg, overwrite)
    output.tell({"files": [out]}, f"wrote {out}")


def calibrate(
    scan: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SCAN.h5")],
    cif: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="CIF ...")],
    out: Annotated[Path, tyro.conf.arg(metavar="FILE.json")],
    disk_method: DiskMethod = "likelihood",
    reading: ReadingOptions = Reading(),
    overwrite: Flag = False,
    output: OutputOptions = USUAL,
) -> None:
    """Fit pixel size and ellipse to the rings of a known crystal.

    Args:
        scan: Raw patterns or Bragg disks in detector pixels.
        cif: The unit cells of the crystals that fill the scan.
        out: Calibration to write; its picture goes beside it (.png).
        disk_method: How disks are found in raw patterns: --method of `jaxstem detect`.
        reading: How the scan is read; --pixel-size is where the fit starts.
        overwrite: Replace FILE.json and FILE.png.
        output: What is said.
    """
    from jaxstem import calibration
    from jaxstem.crystal import read_cif
    from jaxstem.disks import read_scan

    turn = None if reading.rotation_deg is None else math.radians(reading.rotation_deg)
    found = calibration.calibrate(
        lambda entries: read_scan(
            scan,
            reading.detection(method=disk_method),
            output.progress,
            reading.scan_shape,
            entries,
        ),
        [read_cif(path) for path in cif],
        out,
        reading.pixel_size,
        turn,
        overwrite,
    )
    output.tell(
        {"files": [out, out.with_suffix(".png")], **asdict(found)},
        calibration.summary(found),
        f"use it: jaxstem map {shlex.quote(str(scan))} --calibration {shlex.quote(str(out))} ...",
    )


def report(
    map_file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MAP.h5")],
    out: Annotated[Path, tyro.conf.arg(metavar="REPORT.html")],
    scan: Annotated[
        Path | None,
        tyro.conf.arg(metavar="SCAN.h5", help_behavior_hint="(default: predictions alone)"),
    ] = None,
    reading: ReadingOptions = Reading(),
    overwrite: Flag = False,
    output: OutputOptions = USUAL,
) -> None:
    """Write a map as a web page to look into, offline.

    Args:
        map_file: Map that `jaxstem map` wrote.
        out: Page to write.
        scan: What was mapped: the raw cube, to see its patterns, or its disks.
        reading: How the scan is read.
        overwrite: Replace REPORT.html.
        output: What is said.
    """
    from jaxstem.report import write_report

    write_report(
        map_file,
        out,
        scan,
        overwrite,
        calibration=reading.changes(),
        progress=output.progress,
    )
    size = out.stat().st_size
    output.tell(
        {"files": [out], "bytes": size}, f"wrote {out} ({size / 1e6:.1f} MB); open it in a browser"
    )


def demo(
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("jaxstem-demo"),
    output: OutputOptions = USUAL,
) -> None:
    """Map and score the sample scan that ships with jaxstem.

    Args:
        out: Folder for the map, its picture and the score.
        output: What is said.
    """
    from jaxstem import demo as demonstration

    demonstration.check_folder(out)
    about = {"command": _command(), "model": "cu"}
    found, score = demonstration.run(out, about, output.progress)

    from jaxstem import metrics

    meanings = ("orientations, phases, confidence", "the map as a picture", "the table above")
    files = [out / name for name in demonstration.FILES]
    output.tell(
        {"files": files, **_counts(found), "score": metrics.to_dict(score)},
        f"{_summary(found)}\n\n{metrics.to_text(score)}\n",
        *(
            f"{file}  {meaning}"
            for file, meaning in zip(files, (*meanings, "the same as JSON"), strict=True)
        ),
        "your own crystal: jaxstem train --cif FILE.cif --out MODEL_DIR",
        "your own scan:    jaxstem map SCAN.h5 --model MODEL_DIR --out MAP.h5",
    )


def doctor(json: Flag = False) -> None:
    """Print versions, devices, caches, and one line of advice.

    Args:
        json: Print one JSON object.
    """
    from jaxstem import doctor as examination

    facts = examination.examine()
    Output(json=json).tell(facts, examination.to_text(facts))
    if facts["device_error"]:
        raise SystemExit(1)


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
    "doctor": doctor,
}


def run() -> None:
    """The `jaxstem` command: ends the process with `main`'s exit code.

    Python would look through all that is alive for cycles at its end, for most of a second, and
    again and again while jax is loaded, nearly all of which lives to the end.
    """
    gc.set_threshold(SELDOM)
    code = main()
    gc.freeze()
    sys.exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (default: the process's own); the exit code, 2 for unusable input."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    settle_jax()
    try:
        if arguments == ["--version"]:
            print(f"jaxstem {__version__}", flush=True)
            return 0
        arguments = expanded(arguments, COMMANDS)
        command_line.set(CommandLine(tuple(arguments)))
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS, prog="jaxstem", description=DESCRIPTION, args=arguments
        )
        sys.stdout.flush()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except InputError as error:
        return complain(str(error), 2)
    except BrokenPipeError:
        # Python would try once more to print at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CUT_OFF
    except OSError as error:
        about = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return complain(f"{about}.", 2)
    except KeyboardInterrupt:
        return complain("interrupted.", 130)
    return 0


def _command() -> str:
    """The command line as a shell takes it."""
    return shlex.join(["jaxstem", *command_line.get().words])


def settle_jax() -> None:
    """Choose, before jax is imported, where it keeps compiled programs, and quiet its notices.

    Programs are kept in $XDG_CACHE_HOME/jaxstem (~/.cache/jaxstem), apart for each kind of
    processor, because a home folder may be shared by machines that cannot run each other's code.
    The environment variables that jax itself knows (JAX_COMPILATION_CACHE_DIR and so on) win.
    """
    compiled = cache_home() / f"compiled-{processor()}"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(compiled))
    # small programs are many, and compiling them anew takes longer than all else at the start
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    for name in ("jax._src.xla_bridge", "absl"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")


def _require_between(option: str, value: float, low: float, high: float, unit: str = "") -> None:
    if not low <= value <= high:
        raise InputError(
            f"{option} {value:g}: give a number from {low:g} to {high:g} {unit}".rstrip() + "."
        )


def _counts(found: OrientationMap | Overview) -> dict[str, Any]:
    """What there is to count in a map."""
    import numpy as np

    from jaxstem.io import NO_CRYSTAL

    assigned = found.phase >= 0
    return {
        "scan_shape": assigned.shape,
        "assigned": int(assigned.sum()),
        "no_crystal": int((found.phase == NO_CRYSTAL).sum()),
        "phases": {
            name: int((found.phase == index).sum()) for index, name in enumerate(found.phase_names)
        },
        "confidence_median": np.median(found.confidence[assigned]) if assigned.any() else None,
        "ambiguous_180": int(found.ambiguous_180.sum()),
    }


def _summary(found: OrientationMap | Overview) -> str:
    """One line about a map, with a warning where no crystal was found."""
    from jaxstem.infer import MIN_DISKS

    told = _counts(found)
    (ny, nx), assigned = told["scan_shape"], told["assigned"]
    parts = [f"{ny} x {nx} positions, {assigned} assigned ({100 * assigned / (ny * nx):.1f} %)"]
    if told["no_crystal"]:
        parts.append(f"{told['no_crystal']} without a crystal")
    if not assigned:
        if (found.n_disks < MIN_DISKS).all():
            parts.append("no position has enough disks within the model's k_max")
            parts.append("check the pixel size")
        return ", ".join(parts)
    if len(told["phases"]) > 1:
        shares = told["phases"].items()
        parts += [f"{name} {100 * count / assigned:.1f} %" for name, count in shares]
    if math.isfinite(told["confidence_median"]):
        parts.append(f"median confidence {told['confidence_median']:.2f}")
        parts.append(f"{told['ambiguous_180']} ambiguous by 180°")
    return ", ".join(parts)
