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
from jaxstem.app.options import ANY_AS_STATED, ReadingAnyOptions
from jaxstem.app.summaries import map_counts, map_summary
from jaxstem.errors import InputError, require_between

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
    semiangle_mrad: Annotated[
        float | None, tyro.conf.arg(metavar="MRAD", help_behavior_hint="(default: the model's)")
    ] = None,
    figure: bool = True,
    report: Annotated[
        Path | None, tyro.conf.arg(metavar="REPORT.html", help_behavior_hint="(default: none)")
    ] = None,
    least_confidence: Annotated[float, tyro.conf.arg(metavar="P")] = 0.0,
    batch: Annotated[
        int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: jaxstem's choice)")
    ] = None,
    precision: Literal["float32", "bfloat16"] = "float32",
    reading: ReadingAnyOptions = ANY_AS_STATED,
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
        batch: Patterns to work on at once.
        precision: Of the network; verification is always in float32.
        reading: How the scan is read.
        overwrite: Replace MAP.h5, MAP.png and REPORT.html.
        output: What is said.
    """
    require_between("--batch", 1 if batch is None else batch, 1, 10**6)
    require_between("--least-confidence", least_confidence, 0.0, 1.0)
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

        from jaxstem.api import infer_config
        from jaxstem.detection.opening import open_scan
        from jaxstem.mapping import check_voltage, map_to_file
        from jaxstem.network.model import load_model

        options = reading.options()
        # before the scan, in which to find disks may take minutes
        loaded = load_model(model) if method == "network" else None
        disks = open_scan(scan, options, output.progress)
        if loaded is None:
            if disks.voltage_kv is None:
                raise InputError(f"{scan}: states no voltage; give --voltage-kv.")
            loaded = _matching_model(cif, disks.voltage_kv)
        check_voltage(disks, loaded)
        stages = Stages("start")
        found = map_to_file(
            map_file,
            disks,
            loaded,
            infer_config(loaded, refine, semiangle_mrad, batch, precision),
            least_confidence=least_confidence,
            options=options,
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

        write_report(out, report, scan, overwrite, progress=output.progress)
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
