# SPDX-License-Identifier: GPL-3.0-or-later
"""What a wrong calibration costs, and what is left of that where the scan's own disks correct it.

    python -m experiments.accuracy.wrong_calibration [--cubes DIR]    ten minutes
    python -m experiments.accuracy.wrong_calibration --quick          does all of it run?

The sample scans of grains, from the disks that py4DSTEM found and from the raw patterns
NAME_cube.h5 in DIR (without it from the lists of `jaxstem detect`), are mapped with the packaged
models, the pixel size, the ellipse or the centre being wrong: with `--geometry given`, and with
`--geometry scan`, the default. Prints a table and writes
experiments/results/wrong_calibration.json.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro

from experiments.accuracy.sample_scans import SETS, score_of
from experiments.common.markdown import flowed, line, table
from experiments.common.results import results_file, save, settings
from jaxstem.detection.opening import read_scan
from jaxstem.files.distortion import Distortion, corrected_scan
from jaxstem.files.scan import DiskScan
from jaxstem.files.truth import read_truth
from jaxstem.inference.config import InferConfig
from jaxstem.mapping import map_scan
from jaxstem.maps.overruling import single_answers
from jaxstem.network.model import load_model
from jaxstem.runtime.cache import default_cache

GEOMETRIES = ("given", "scan")
LONG = np.deg2rad(30.0)
"""Direction in which rings are longest, from qx."""


@dataclass(frozen=True)
class Arguments:
    """sets: which scans; cubes: folder of their raw patterns; quick: one set of disks, two
    conditions, by the network alone, written nowhere unless `out` is given.
    """

    sets: tuple[str, ...] = ("cu", "cu_cu2o")
    cubes: Path | None = None
    quick: bool = False
    out: Path | None = None


def fault(scale: float = 0.0, ellipse: float = 0.0, shift: tuple[float, float] = (0.0, 0.0)):
    """By how much disks are measured beside where they belong: shares, and 1/Å."""
    axis = np.array([np.cos(LONG), np.sin(LONG)])
    stretch = scale * np.eye(2) + ellipse * (np.outer(axis, axis) - 0.5 * np.eye(2))
    return Distortion(stretch, np.array(shift))


CONDITIONS = {
    "nothing": fault(),
    "pixel size too large by 2 %": fault(scale=0.02),
    "pixel size too small by 2 %": fault(scale=-0.02),
    "ellipse of 3 %": fault(ellipse=0.03),
    "centre off by 0.03 1/Å": fault(shift=(0.03, 0.0)),
    "2 % too large, ellipse of 3 %, centre off by 0.028 1/Å": fault(0.02, 0.03, (0.02, -0.02)),
}


def displaced(scan: DiskScan, by: Distortion) -> DiskScan:
    """The scan as it is read with such a fault."""
    back = np.linalg.inv(np.eye(2) + by.stretch)
    # what corrects the opposite fault
    moved = corrected_scan(scan, Distortion(back - np.eye(2), -back @ by.shift))
    return replace(moved, instrument=scan.instrument)


def scored(arguments: Arguments) -> Iterator[tuple[str, str, str, dict]]:
    """Set and crystal, kind of disks, condition, and the scores by each way."""
    sets = arguments.sets[:1] if arguments.quick else arguments.sets
    usual = InferConfig(refine="none" if arguments.quick else "fast", cache=default_cache())
    conditions = list(CONDITIONS.items())[:: 3 if arguments.quick else 1]
    for name in sets:
        files = SETS[name]
        model, truth = load_model(files.model), read_truth(files.truth)
        raw = arguments.cubes / f"{name}_cube.h5" if arguments.cubes else files.own
        kinds = {"py4DSTEM's disks": files.by_py4dstem, "own disks": raw}
        for kind in list(kinds)[: 1 if arguments.quick else 2]:
            scan = read_scan(kinds[kind], progress=False)
            for condition, by in conditions:
                rows: dict[str, dict] = {crystal: {} for crystal in model.phase_names}
                for geometry in GEOMETRIES:
                    config = replace(usual, geometry=geometry)
                    found = map_scan(displaced(scan, by), model, config, progress=False)
                    for crystal, row in rows.items():
                        inside = (truth.boundary_weight == 0) & (truth.phase == crystal)
                        of = truth, crystal, truth.grain[inside]
                        row[geometry] = brief(score_of(found, *of)[0])
                        row[f"{geometry}, alone"] = brief(score_of(single_answers(found), *of)[0])
                        row[f"{geometry}, learned"] = found.attributes["about_geometry"]
                for crystal, row in rows.items():
                    title = name if len(rows) == 1 else f"{name}, {crystal}"
                    yield title, kind, condition, row


def brief(score: dict) -> dict:
    """Of a map's scores what the table shows."""
    return {key: score[key] for key in ("within_5", "within_5_mod_180", "median")}


def shown(row: dict) -> list[str]:
    """Cells of a row: each way, the scan's answer and in brackets that of patterns alone."""
    return [
        f"{row[way]['within_5']:.1f} % ({row[f'{way}, alone']['within_5']:.1f} %) "
        f"{row[way]['median']:.2f}°"
        for way in GEOMETRIES
    ]


def to_markdown(results: dict) -> str:
    """A row for each set, kind of disks and fault."""
    rows, before = [], None
    for of in results["rows"]:
        here = of["set"], of["disks"]
        rows.append([*(("", "") if here == before else here), of["wrong"], *shown(of)])
        before = here
    heads = "set", "from", "wrong", "`--geometry given`", "**`--geometry scan`**"
    told = flowed("""
Share of the positions inside grains within 5°, in brackets that of each pattern alone, and the
median error, where the calibration that is stated is wrong
(`experiments/accuracy/wrong_calibration.py`).
""")
    return f"{table(heads, rows)}\n\n{told}"


def main(arguments: Arguments) -> None:
    """Displace, map, score, print, write."""
    results: dict = {"settings": settings(arguments), "rows": []}
    for name, kind, condition, row in scored(arguments):
        results["rows"].append({"set": name, "disks": kind, "wrong": condition, **row})
        print(line([name, kind, condition, *shown(row)]), flush=True)
    save(results_file(arguments, "wrong_calibration"), results, to_markdown)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
