# SPDX-License-Identifier: GPL-3.0-or-later
"""`jaxstem map`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxstem.app.console import USUAL, Flag, OutputOptions, Stages, command_text
from jaxstem.app.options import ANY_AS_STATED, ReadingAny, ReadingAnyOptions
from jaxstem.app.summaries import map_counts, map_summary
from jaxstem.errors import InputError, require_between

PICTURE = 1024
"""Positions along a side of a map's picture; of a larger scan only every other one is drawn, or
every third, and so on."""


def map_command(
    scan: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SCAN.h5")],
    cif: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="CIF ...")] = (),
    model: Annotated[str, tyro.conf.arg(metavar="DIR|NAME")] = "",
    out: Annotated[
        Path | None, tyro.conf.arg(metavar="MAP.h5", help_behavior_hint="(default: SCAN_map.h5)")
    ] = None,
    method: Annotated[
        Literal["network", "match", ""],
        tyro.conf.arg(metavar="network|match", help_behavior_hint="(default: what fits)"),
    ] = "",
    refine: Literal["none", "fast", "full", "exact"] = "fast",
    judge: Literal["counts", "list"] = "counts",
    context: Literal["scan", "none"] = "scan",
    geometry: Literal["scan", "given"] = "scan",
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
        cif: The unit cells. A model that ships or was trained here is taken where one was trained
            for them at the scan's voltage; else patterns are matched against all orientations.
        model: A model instead: its folder, which `jaxstem train` made, or the name of a packaged
            one: cu, cu-cu2o.
        out: Map to write, with its picture beside it; by default in the folder you are in.
        method: With --cif: the trained network, or matching, which needs none.
        refine: Verify and polish candidates: fast, by two-beam theory; full, by Bloch waves too,
            which gives the thickness and takes a hundred times as long; exact, by fits of these to
            the intensities, for those that are right to a per cent or two, which takes ten times as
            long again; none, not at all.
        judge: What decides between candidates: the counts of raw patterns at the places where each
            predicts disks, found there or not; or the list of disks, as where no patterns are.
        context: What patterns are weighed with: the scan, whose neighbours are alike within a grain
            as the scan itself shows, and sums of raw patterns where one alone is weak; or none,
            each pattern by itself.
        geometry: Where disks lie: as the calibration says, corrected by what the scan itself shows
            to be wrong with it in all patterns alike (a scale off by 3 % at most, and not where it
            is given; ellipse; centre); or just as given.
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
    if bool(cif) and bool(model):
        raise InputError("Give either --cif with the unit cells, or --model.")
    if method == "match" and model:
        raise InputError(f"--method match needs --cif with the unit cells, not --model {model}.")

    from jaxstem.app.painter import Painter
    from jaxstem.runtime.paths import atomic_path, check_apart, check_target, check_there

    check_there(scan, *cif)
    out = out or Path(f"{scan.stem}_map.h5")
    check_target(out, overwrite=True)  # a folder has no picture
    picture = out.with_suffix(".png")
    if picture == out:
        raise InputError(f"{out}: is the picture's name; name the map MAP.h5 or the like.")
    targets = [out, *([picture] if figure else []), *([report] if report else [])]
    if len({target.absolute() for target in targets}) < len(targets):
        raise InputError(f"--report {report}: is the name of another file; name it REPORT.html.")
    for target in targets:
        check_apart(target, scan, *cif)
        check_target(target, overwrite)

    if not cif and not model:
        raise InputError(_lacking(scan, reading))
    # what is refused without jax, before it is loaded
    from jaxstem.crystal.reading import read_cif
    from jaxstem.files.formats import check_format

    crystals = [read_cif(path) for path in cif]
    check_format(scan)
    if model:
        from jaxstem.network.folders import model_folder

        model_folder(model)
    options = reading.options()

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

        from jaxstem.api import choose_model, infer_config
        from jaxstem.detection.opening import disks_of, look_at
        from jaxstem.mapping import check_voltage, map_to_file, understood
        from jaxstem.network.model import at_voltage, load_model

        # all that can be wrong, before disks are looked for
        loaded, told = None, {"method": "network", "model": model}
        why = model
        if model:
            loaded = load_model(model)
        opened = look_at(scan, options, needs_voltage=loaded is None)
        if loaded is None:
            loaded, told["method"], told["model"], why = choose_model(
                crystals, opened.voltage_kv, semiangle_mrad, method or None, cif
            )
        loaded = at_voltage(loaded, opened.voltage_kv)
        check_voltage(opened, loaded)
        config = infer_config(loaded, refine, semiangle_mrad, batch, precision, judge, geometry)
        about = understood(opened, loaded, config)
        if parallel.is_first():
            lines = {name.removeprefix("about_"): text for name, text in about.items()}
            output.say(*(f"{name}: {text}" for name, text in (lines | {"model": why}).items()))
        disks = disks_of(opened, output.progress, across=True, keep_light=config.looks_at_counts)
        stages = Stages("start")
        found = map_to_file(
            map_file,
            disks,
            loaded,
            config,
            context=context,
            least_confidence=least_confidence,
            options=options,
            attributes={"command": command_text(), **told},
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
    about |= {"about_geometry": found.geometry, "about_context": found.context}
    told["doubt"] = found.doubt and found.doubt.summary()
    output.tell(
        {"files": targets, **about, **told, **map_counts(found), "stages": stages.seconds},
        f"geometry: {found.geometry}",
        f"context: {found.context}",
        map_summary(found),
        f"wrote {', '.join(map(str, targets))} ({stages})",
    )


def _lacking(scan: Path, reading: ReadingAny) -> str:
    """What to give where neither crystals nor a model are named, for the scan too."""
    from jaxstem.detection.opening import look_at

    lacking = "Give --cif with the unit cells, or --model"
    try:
        look_at(scan, reading.options(), needs_voltage=True)
    except InputError as error:
        return f"{lacking}; besides, {error}"
    return f"{lacking}."
