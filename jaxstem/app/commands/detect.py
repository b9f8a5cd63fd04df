# SPDX-License-Identifier: GPL-3.0-or-later
"""`jaxstem detect`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import tyro

from jaxstem.app.console import USUAL, Flag, OutputOptions
from jaxstem.app.options import (
    AS_STATED,
    AS_USUAL,
    CorrelatingOptions,
    DiskMethod,
    ReadingOptions,
)
from jaxstem.app.summaries import disk_counts, disk_summary


def detect(
    cube: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CUBE.h5")],
    out: Annotated[Path, tyro.conf.arg(metavar="BRAGG.h5")],
    method: DiskMethod = "likelihood",
    threshold: Annotated[
        float | None,
        tyro.conf.arg(metavar="SIGMA", help_behavior_hint="(default: from --false-alarms)"),
    ] = None,
    false_alarms: Annotated[float, tyro.conf.arg(metavar="N")] = 0.02,
    correlating: CorrelatingOptions = AS_USUAL,
    reading: ReadingOptions = AS_STATED,
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
        correlating: How --method correlation finds them.
        reading: How the scan is read.
        overwrite: Replace BRAGG.h5.
        output: What is said.
    """
    from jaxstem.runtime.paths import atomic_path, check_apart, check_there

    check_there(cube)
    check_apart(out, cube)
    with atomic_path(out, overwrite) as temporary:
        from jaxstem.files.formats import check_format

        check_format(cube)  # before jax is loaded

        from jaxstem.detection.config import DetectConfig
        from jaxstem.detection.opening import open_cube
        from jaxstem.detection.scan import find_disks, progress_bar, write_bragg

        options = reading.options()
        raw = open_cube(cube, options)
        config = DetectConfig(
            method=method,
            correlation=correlating.settings(),
            threshold=threshold,
            false_alarms=false_alarms,
        )
        config = options.detection(config)
        with progress_bar(raw, output.progress) as advance:
            found = find_disks(raw, config, progress=advance, keep_light=True)
        write_bragg(temporary, found, overwrite=True)
    output.tell(
        disk_counts(out, raw.scan_shape, len(found.row)),
        disk_summary(out, raw.scan_shape, len(found.row)),
        f"use them: jaxstem map {shlex.quote(str(out))} --cif FILE.cif",
    )
