# SPDX-License-Identifier: GPL-3.0-or-later
"""`jaxstem evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from jaxstem.app.console import USUAL, Flag, OutputOptions
from jaxstem.errors import InputError


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
    from jaxstem.runtime.paths import check_there

    check_there(*files, *truth)
    from jaxstem.maps.evaluation import check_table, evaluate_maps, to_markdown, write_table

    if out:
        check_table(out, overwrite)
    if not truth and len(files) != 2:
        raise InputError("Name a map and its truth, or maps and --truth with one file or several.")
    if truth or out:
        maps, truths = (files, truth) if truth else (files[:1], files[1:])
        rows = evaluate_maps(maps, truths)
        if out:
            write_table(out, rows, overwrite)
        summary = {"files": [out] if out else [], "rows": rows}
        output.tell(summary, to_markdown(rows).rstrip("\n"))
        return

    from jaxstem.files.map_file import read_map
    from jaxstem.files.truth import read_truth

    map_file, truth_file = files
    found, known = read_map(map_file), read_truth(truth_file)
    from jaxstem.maps.metrics import evaluate, to_dict, to_text

    try:
        score = evaluate(found, known)
    except InputError as error:
        raise InputError(f"{map_file}, {truth_file}: {error}") from None
    output.tell({"files": [], **to_dict(score)}, to_text(score))
