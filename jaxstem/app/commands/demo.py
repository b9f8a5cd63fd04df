# SPDX-License-Identifier: GPL-3.0-or-later
"""`jaxstem demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from jaxstem.app.console import USUAL, OutputOptions, command_text
from jaxstem.app.summaries import map_counts, map_summary


def demo(
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("jaxstem-demo"),
    output: OutputOptions = USUAL,
) -> None:
    """Map and score the sample scan that ships with jaxstem.

    Args:
        out: Folder for the map, its picture and the score.
        output: What is said.
    """
    from jaxstem.app.demo import FILES, check_folder, run

    check_folder(out)
    about = {"command": command_text(), "model": "cu"}
    found, score = run(out, about, output.progress)

    from jaxstem.maps.metrics import to_dict, to_text

    meanings = ("orientations, phases, confidence", "the map as a picture", "the table above")
    files = [out / name for name in FILES]
    output.tell(
        {"files": files, **map_counts(found), "score": to_dict(score)},
        f"{map_summary(found)}\n\n{to_text(score)}\n",
        *(
            f"{file}  {meaning}"
            for file, meaning in zip(files, (*meanings, "the same as JSON"), strict=True)
        ),
        "your own scan:    jaxstem map SCAN.h5 --cif FILE.cif",
        "a network for it: jaxstem train --cif FILE.cif --out MODEL_DIR",
    )
