# SPDX-License-Identifier: GPL-3.0-or-later
"""Many maps against their truths, as one table.

Each row is one phase of one map: who made the map (the attributes that it carries), how many
pixels were scored, and how well (`metrics.evaluate`). The table is written as CSV for spreadsheets,
JSON for programs or Markdown for people, by the suffix of the file's name. Angles in degrees,
shares 0 … 1; empty (JSON: null) where a number is not known.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxstem.errors import InputError
from jaxstem.files.map_file import read_map
from jaxstem.files.truth import read_truth
from jaxstem.maps.metrics import Evaluation, evaluate
from jaxstem.runtime.paths import atomic_path, check_target

Row = dict[str, Any]

_SUFFIXES = (".csv", ".json", ".md")

_ATTRIBUTES = ("model", "method", "refine")
"""What of a map's attributes a row repeats."""


def paired(maps: Sequence[Path], truths: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Each map with its truth: one for all, or as many truths as maps, in the same order.

    Raises InputError for other numbers.
    """
    if not maps:
        raise InputError("there is no map to score; name at least one.")
    if len(truths) not in (1, len(maps)):
        raise InputError(
            f"{len(maps)} maps and {len(truths)} truths do not pair; give one truth for all maps, "
            "or one for each in the same order."
        )
    truths = list(truths) * len(maps) if len(truths) == 1 else truths
    return list(zip(map(Path, maps), map(Path, truths), strict=True))


def evaluate_maps(
    maps: Sequence[Path], truths: Sequence[Path], resamples: int = 1000, seed: int = 0
) -> list[Row]:
    """A row for each phase of each map's truth; `resamples` and `seed` as in `metrics.evaluate`.

    Raises InputError for files that cannot be read, for a map and a truth that do not fit, and
    where nothing of a scan can be scored.
    """
    rows = []
    for map_file, truth_file in paired(maps, truths):
        found, truth = read_map(map_file), read_truth(truth_file)
        try:
            score = evaluate(found, truth, resamples, seed)
        except InputError as error:
            raise InputError(f"{map_file}, {truth_file}: {error}") from None
        if not score.phases:
            raise InputError(
                f"{truth_file} holds no crystal, and a table has a line for each; score "
                f"{map_file} without one."
            )
        told = {name: str(found.attributes.get(name, "")) for name in _ATTRIBUTES}
        rows += [
            {"map": str(map_file), "truth": str(truth_file), **told, **_phase_row(name, score)}
            for name in score.phases
        ]
    return rows


def _phase_row(name: str, score: Evaluation) -> Row:
    """The numbers of one phase, and those of the map as a whole."""
    phase = score.phases[name]
    plain, mod_180 = phase.plain, phase.mod_180
    return {
        "phase": name,
        "n": phase.n,
        "grains": phase.n_grains,
        "median": plain.median,
        "mean": plain.mean,
        "percentile_95": plain.percentile_95,
        "within_2": plain.within_2,
        "within_5": plain.within_5,
        "within_5_low": plain.within_5_interval[0],
        "within_5_high": plain.within_5_interval[1],
        "median_mod_180": mod_180.median,
        "within_5_mod_180": mod_180.within_5,
        "right_phase": score.crystal_phase_accuracy,
        "vacuum_found": score.vacuum_accuracy,
        "ambiguous_180": score.ambiguous_180,
    }


def _to_csv(rows: Sequence[Row]) -> str:
    """A line for each row below a line of names."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: "" if _unknown(v) else v for k, v in row.items()} for row in rows)
    return text.getvalue()


def _to_json(rows: Sequence[Row]) -> str:
    """A list of objects."""
    known = [{k: None if _unknown(v) else v for k, v in row.items()} for row in rows]
    return json.dumps(known, indent=1) + "\n"


def to_markdown(rows: Sequence[Row]) -> str:
    """The columns that a reader compares; shares in per cent."""
    lines = [
        "| map | refine | phase | n | median | within 2° | within 5° | within 5° mod 180° |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        percent = {k: _percent(v) for k, v in row.items() if k.startswith("within")}
        median = "–" if _unknown(row["median"]) else f"{row['median']:.2f}°"
        if not _unknown(row["within_5_low"]):
            low, high = 100 * row["within_5_low"], 100 * row["within_5_high"]
            percent["within_5"] += f" ({low:.0f}–{high:.0f})"
        lines.append(
            f"| {Path(row['map']).stem} | {row['refine']} | {row['phase']} | {row['n']} | "
            f"{median} | {percent['within_2']} | {percent['within_5']} | "
            f"{percent['within_5_mod_180']} |"
        )
    return "\n".join(lines) + "\n"


def check_table(path: str | Path, overwrite: bool = False) -> None:
    """Raise InputError unless a table can be written there; to be called before the work."""
    if Path(path).suffix not in _SUFFIXES:
        raise InputError(f"{path}: a table ends in {', '.join(_SUFFIXES)}; choose one of them.")
    check_target(path, overwrite)


def write_table(path: str | Path, rows: Sequence[Row], overwrite: bool = False) -> None:
    """The rows as CSV, JSON or Markdown, by the suffix. Raises InputError as `check_table` does."""
    check_table(path, overwrite)
    to_text = {".csv": _to_csv, ".json": _to_json, ".md": to_markdown}[Path(path).suffix]
    with atomic_path(path, overwrite) as part:
        Path(part).write_text(to_text(rows))


def _percent(share: float) -> str:
    return "–" if _unknown(share) else f"{100 * share:.1f} %"


def _unknown(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
