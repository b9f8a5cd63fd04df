# SPDX-License-Identifier: GPL-3.0-or-later
"""`jaxstem map`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxstem.app.console import USUAL, Flag, OutputOptions, Stages, command_text
from jaxstem.app.options import DiskMethod, Reading, ReadingOptions, require_between
from jaxstem.app.summaries import map_counts, map_summary
from jaxstem.errors import InputError

PICTURE = 1024
"""Positions along a side of a map's picture; of a larger scan only every other one is drawn, or
every third, and so on."""


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
    require_between("--batch", 1 if batch is None else batch, 1, 10**6)
    require_between("--least-confidence", least_confidence, 0.0, 1.0)
    require_between("--semiangle-mrad", semiangle_mrad, 0.0, 20.0, "mrad")
    if voltage_kv is not None:
        require_between("--voltage-kv", voltage_kv, 1.0, 10_000.0, "kV")
    if (method == "match") != bool(cif) or (method == "network") != bool(model):
        raise InputError("Give either --model, or --method match with --cif and the unit cells.")

    from jaxstem.app.painter import Painter
    from jaxstem.runtime.paths import atomic_path, check_target

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

        from jaxstem.runtime import parallel

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
        from jaxstem.network.model import load_model

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
                "command": command_text(),
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
        from jaxstem.maps.report import write_report

        changes = reading.changes()
        write_report(out, report, scan, overwrite, calibration=changes, progress=output.progress)
        stages.end("report")
    output.tell(
        {"files": targets, **map_counts(found), "stages": stages.seconds},
        map_summary(found),
        f"wrote {', '.join(map(str, targets))} ({stages})",
    )


def _matching_model(cif: Sequence[Path], voltage_kv: float):
    """What maps by matching, from CIFs alone."""
    from jaxstem.crystal.cell import read_cif
    from jaxstem.network.matching import matching_model

    crystals = [read_cif(path) for path in cif]
    try:
        return matching_model(crystals, voltage_kv)
    except InputError as error:
        raise InputError(f"--cif {shlex.join(map(str, cif))}: {error}") from None
