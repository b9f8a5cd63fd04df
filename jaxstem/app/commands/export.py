# SPDX-License-Identifier: GPL-3.0-or-later
"""`jaxstem export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from jaxstem.app.console import USUAL, Flag, OutputOptions
from jaxstem.errors import require_between


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
        out: By its ending .ang (EDAX OIM, MTEX), .ctf (Oxford AZtec, MTEX), .h5 (orix), .npy
            (py4DSTEM), .csv (table of grains), .png, .svg or .pdf (figure).
        grain_deg: Misorientation between neighbours that bounds a grain, for .csv.
        overwrite: Replace FILE.
        output: What is said.
    """
    require_between("--grain-deg", grain_deg, 0.01, 180.0, "degrees")

    from jaxstem.runtime.paths import check_apart, check_target, check_there

    check_there(map_file)
    check_apart(out, map_file)
    check_target(out, overwrite)
    from jaxstem.maps.export import export_map

    export_map(map_file, out, grain_deg, overwrite)
    output.tell({"files": [out]}, f"wrote {out}")
