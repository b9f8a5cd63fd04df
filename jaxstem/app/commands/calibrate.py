# SPDX-License-Identifier: GPL-3.0-or-later
"""`jaxstem calibrate`."""

from __future__ import annotations

import math
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import tyro

from jaxstem.app.console import USUAL, Flag, OutputOptions
from jaxstem.app.options import ANY_AS_STATED, ReadingAnyOptions
from jaxstem.errors import InputError, require_between


def calibrate(
    scan: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SCAN.h5")],
    cif: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="CIF ...")],
    out: Annotated[Path, tyro.conf.arg(metavar="FILE.json")],
    reading: ReadingAnyOptions = ANY_AS_STATED,
    within: Annotated[float, tyro.conf.arg(metavar="PERCENT")] = 75.0,
    overwrite: Flag = False,
    output: OutputOptions = USUAL,
) -> None:
    """Fit pixel size and ellipse to rings or spots of a crystal.

    Args:
        scan: Raw patterns or Bragg disks in detector pixels.
        cif: The unit cells of the crystals that fill the scan.
        out: Calibration to write; its picture goes beside it (.png).
        reading: How the scan is read; --pixel-size is about what it may be.
        within: How much larger than --pixel-size it may be, or as many times smaller; 75 about
            what the file states.
        overwrite: Replace FILE.json and FILE.png.
        output: What is said.
    """
    from jaxstem.runtime.paths import check_apart, check_target, check_there

    check_there(scan, *cif)
    check_apart(out, scan, *cif)
    check_target(out, overwrite)
    options = reading.options()

    from jaxstem.crystal.reading import read_cif
    from jaxstem.files.formats import check_format

    crystals = [read_cif(path) for path in cif]
    check_format(scan)  # before jax is loaded

    from jaxstem.detection.calibration import (
        about_rivals,
        calibrate,
        stated_size,
        summary,
    )
    from jaxstem.detection.opening import read_scan

    options.refuse(("calibration", "ellipse"), "The calibration is what is looked for")
    in_pixels = replace(options, pixel_size=None, rotation_deg=None, transpose=None, flip=None)
    require_between("--within", within, 0.5, 900.0, "percent")
    if reading.pixel_size is None and within != 75.0:
        raise InputError("--within says how far from --pixel-size; give that, or leave it out.")
    turn = None if reading.rotation_deg is None else math.radians(reading.rotation_deg)
    found = calibrate(
        lambda entries: read_scan(scan, in_pixels, output.progress, calibration=entries),
        crystals,
        out,
        reading.pixel_size,
        overwrite,
        within / 100,
        stated_size(scan, replace(options, pixel_size=None)),
        rotation=turn,
        transpose=options.transpose,
        flip=options.flip,
    )
    output.tell(
        {"files": [out, out.with_suffix(".png")], **asdict(found)},
        summary(found),
        about_rivals(found),
        f"use it: jaxstem map {shlex.quote(str(scan))} --calibration {shlex.quote(str(out))} ...",
    )
