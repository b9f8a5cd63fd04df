# SPDX-License-Identifier: GPL-3.0-or-later
"""`jaxstem convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from jaxstem.app.console import USUAL, Flag, OutputOptions
from jaxstem.app.options import ANY_AS_STATED, ReadingAnyOptions
from jaxstem.app.summaries import disk_counts, disk_summary


def convert(
    scan: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SCAN.h5")],
    out: Annotated[Path, tyro.conf.arg(metavar="DISKS.h5")],
    reading: ReadingAnyOptions = ANY_AS_STATED,
    overwrite: Flag = False,
    output: OutputOptions = USUAL,
) -> None:
    """Pack Bragg disks into a table that reads fast, or into CSV.

    Args:
        scan: Bragg disks as `jaxstem detect` or py4DSTEM saves them, or raw patterns, in which
            disks are found first (formats: docs/file-formats.md).
        out: Packed table to write, or .csv (layouts: docs/file-formats.md).
        reading: How the scan is read.
        overwrite: Replace DISKS.h5.
        output: What is said.
    """
    from jaxstem.runtime.paths import check_apart, check_target, check_there

    check_there(scan)
    check_apart(out, scan)
    check_target(out, overwrite)
    from jaxstem.files.formats import check_format

    check_format(scan)  # before jax is loaded

    from jaxstem.detection.opening import open_scan

    source = open_scan(scan, reading.options(), output.progress, keep_light=False)
    if out.suffix.lower() == ".csv":
        from jaxstem.files.csv import write_csv

        n_disks = write_csv(out, source, overwrite)
    else:
        from jaxstem.files.packed import write_packed

        n_disks = write_packed(out, source, overwrite, output.progress)
    output.tell(
        disk_counts(out, source.scan_shape, n_disks), disk_summary(out, source.scan_shape, n_disks)
    )
