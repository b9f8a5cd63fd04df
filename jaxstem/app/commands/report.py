# SPDX-License-Identifier: GPL-3.0-or-later
"""`jaxstem report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from jaxstem.app.console import USUAL, Flag, OutputOptions
from jaxstem.app.options import ANY_AS_STATED, ReadingAnyOptions


def report(
    map_file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MAP.h5")],
    out: Annotated[Path, tyro.conf.arg(metavar="REPORT.html")],
    scan: Annotated[
        Path | None,
        tyro.conf.arg(metavar="SCAN.h5", help_behavior_hint="(default: predictions alone)"),
    ] = None,
    reading: ReadingAnyOptions = ANY_AS_STATED,
    overwrite: Flag = False,
    output: OutputOptions = USUAL,
) -> None:
    """Write a map as a web page to look into, offline.

    Args:
        map_file: Map that `jaxstem map` wrote.
        out: Page to write.
        scan: What was mapped: the raw cube, to see its patterns, or its disks.
        reading: How the scan is read, where that differs from how it was mapped.
        overwrite: Replace REPORT.html.
        output: What is said.
    """
    from jaxstem.runtime.paths import check_apart, check_target, check_there

    check_there(map_file, scan)
    check_apart(out, map_file, *([scan] if scan else []))
    check_target(out, overwrite)
    from jaxstem.maps.report import write_report

    write_report(
        map_file,
        out,
        scan,
        overwrite,
        options=reading.options(),
        progress=output.progress,
    )
    size = out.stat().st_size
    output.tell(
        {"files": [out], "bytes": size}, f"wrote {out} ({size / 1e6:.1f} MB); open it in a browser"
    )
