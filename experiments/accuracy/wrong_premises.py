# SPDX-License-Identifier: GPL-3.0-or-later
"""Maps whose premises are wrong: are they sure of themselves, and is the cause named?

    python -m experiments.accuracy.wrong_premises --cubes DIR     ten minutes
    python -m experiments.accuracy.wrong_premises --quick         does all of it run?

Random orientations, so that no neighbours help: the sample sets `cu_random` and `cu2o_random`, from
py4DSTEM's disks and from the raw patterns NAME_cube.h5 in DIR (without it from py4DSTEM's disks
alone), and Bloch-wave patterns of hexagonal close-packed Ti drawn as images. Pixel sizes and
ellipses that are wrong, crystals that are not those of the scan, and premises that are right.
Prints a table and writes experiments/results/wrong_premises.json.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro

from experiments.accuracy.calibration import reliability
from experiments.accuracy.sample_scans import SETS
from experiments.accuracy.wrong_calibration import fault
from experiments.common.errors import errors
from experiments.common.markdown import flowed, line, table
from experiments.common.results import results_file, save, settings
from experiments.simulate.drawn import Drawing, expected_counts, random_patterns
from jaxstem.crystal.cell import Crystal
from jaxstem.detection.config import DetectConfig
from jaxstem.detection.opening import disks_of, open_scan, plan_search
from jaxstem.files.cube import cube_from_array
from jaxstem.files.distortion import Distortion, corrected, undistorted
from jaxstem.files.scan import DiskSource
from jaxstem.files.truth import read_truth
from jaxstem.inference.config import InferConfig
from jaxstem.mapping import map_scan
from jaxstem.network.matching import matching_model
from jaxstem.network.model import Model, load_model
from jaxstem.runtime.cache import default_cache

N_TI = 120
"""Patterns of Ti, in rows of twenty."""


@dataclass(frozen=True)
class Arguments:
    """cubes: folder of the raw patterns of the sample sets; quick: two premises of one set, from
    lists, by the network alone, written nowhere unless `out` is given.
    """

    cubes: Path | None = None
    quick: bool = False
    out: Path | None = None


class Case(NamedTuple):
    """What is mapped with which model, displaced by how much, and the truth where the crystal is
    that of the scan.
    """

    of: str
    disks: str
    wrong: str
    source: DiskSource
    model: Model
    by: Distortion
    truth: np.ndarray | None


def scaled(factor: float) -> Distortion:
    """What a pixel size that is wrong by this factor does to the distances of disks."""
    return fault(scale=factor - 1.0)


CALIBRATIONS = {
    "nothing": undistorted(),
    "pixel size 10 % too large": scaled(1.1),
    "pixel size 10 % too small": scaled(0.9),
    "pixel size 3 % too large": scaled(1.03),
    "pixel size 3 % too small": scaled(0.97),
    "ellipse of 6 %": fault(ellipse=0.06),
}


def cell(name: str, edges: tuple[float, ...], angles: tuple[float, ...], atoms, z: int) -> Crystal:
    """A crystal of one element whose symmetry is found from its atoms."""
    from pymatgen.core import Lattice, Structure

    from jaxstem.crystal.cell import from_structure

    lattice = Lattice.from_parameters(*edges, *angles)
    return from_structure(Structure(lattice, [z] * len(atoms), atoms), name)


def gold() -> Crystal:
    """Au, whose cell is 13 % larger than that of Cu."""
    face = [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]
    return cell("Au", (4.0782,) * 3, (90.0,) * 3, face, 79)


def titanium() -> Crystal:
    """Ti, hexagonal close-packed."""
    places = [[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]]
    return cell("Ti", (2.951, 2.951, 4.684), (90.0, 90.0, 120.0), places, 22)


def of_titanium(model: Model, seed: int = 5) -> DiskSource:
    """Disks in `N_TI` patterns of random orientations, drawn, with their counts."""
    (material,), drawing = model.materials, Drawing(wander=0.0)
    disks, _, _ = random_patterns(material, N_TI, seed, drawing)
    expected = sum(expected_counts(disks, material.wavelength, seed, drawing))
    counts = np.random.default_rng(seed).poisson(expected).astype(np.uint16)
    cube = counts.reshape(-1, 20, *counts.shape[1:])
    given = cube_from_array(cube, drawing.pixel_size, voltage_kv=model.voltage_kv)
    return disks_of(plan_search(given, DetectConfig()), False)


def cases(arguments: Arguments) -> Iterator[Case]:
    """All that is mapped."""
    copper = load_model("cu")
    for name in ("cu_random", "cu2o_random"):
        files = SETS[name]
        truth, right = read_truth(files.truth).orientation, load_model(files.model)
        kinds = {"py4DSTEM's disks": files.by_py4dstem}
        if arguments.cubes:
            kinds["raw"] = arguments.cubes / f"{name}_cube.h5"
        for kind, path in kinds.items():
            source = open_scan(path, progress=False)
            given = name, kind
            if name == "cu2o_random":
                yield Case(*given, "taken for Cu", source, copper, undistorted(), None)
                yield Case(*given, "nothing", source, right, undistorted(), truth)
                continue
            chosen = list(CALIBRATIONS.items())[: 2 if arguments.quick else None]
            for wrong, by in chosen:
                yield Case(*given, wrong, source, right, by, truth)
            if arguments.quick:
                return
            other = matching_model([gold()], copper.voltage_kv)
            yield Case(*given, "taken for Au", source, other, undistorted(), None)
    model = matching_model([titanium()], copper.voltage_kv)
    source = of_titanium(model)
    yield Case("hcp Ti, drawn", "raw", "taken for Cu", source, copper, undistorted(), None)


def misread(source: DiskSource, by: Distortion) -> DiskSource:
    """The scan as it is read with such a stretch of its vectors, the scale being the pixel's."""
    back = np.linalg.inv(np.eye(2) + by.stretch) - np.eye(2)
    known = source.instrument
    if known.pixel_size is not None:
        known = replace(known, pixel_size=known.pixel_size * by.scale)
    return replace(corrected(source, Distortion(back, np.zeros(2))), instrument=known)


def judged(case: Case, refine: str) -> dict:
    """How right a map is, how sure of a crystal (0 where the answer is none), and what it says."""
    config = InferConfig(refine=refine, cache=default_cache())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = map_scan(misread(case.source, case.by), case.model, config, progress=False)
    said = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    sure = np.where(found.phase >= 0, found.confidence, 0.0).ravel()
    right = np.zeros(sure.shape, bool)
    if case.truth is not None:
        flat = [x.reshape(-1, 3, 3) for x in (found.orientation, case.truth)]
        right = errors(*flat, case.model.materials[0].operations)[0] < 5.0
    return {
        "set": case.of,
        "disks": case.disks,
        "wrong": case.wrong,
        "within_5": round(100 * float(right.mean()), 1),
        "confidence": round(float(sure.mean()), 3),
        "no_crystal": round(100 * float((found.phase == -2).mean()), 1),
        "calibration_error": reliability(sure, right)["expected_calibration_error"],
        "doubt": found.attributes["doubt"],
        "warnings": said,
    }


def shown(row: dict) -> list[str]:
    return [
        row["set"],
        row["disks"],
        row["wrong"],
        f"{row['within_5']:.1f} %",
        f"{row['confidence']:.2f}",
        f"{row['calibration_error']:.3f}",
        row["doubt"] or "–",
    ]


HEADS = (
    "set",
    "from",
    "wrong",
    "within 5°",
    "confidence in a crystal",
    "its error",
    "what is said",
)


def to_markdown(results: dict) -> str:
    told = flowed("""
Maps of random orientations whose premises are wrong (`experiments/accuracy/wrong_premises.py`):
share of the positions within 5°, mean confidence in a crystal (0 where the answer is none), its
calibration error, and the warning. `--pixel-size` is what the files state, so that a scale is
corrected by 3 % at most.
""")
    return f"{table(HEADS, map(shown, results['rows']))}\n\n{told}"


def main(arguments: Arguments) -> None:
    """Map, score, print, write."""
    results: dict = {"settings": settings(arguments), "rows": []}
    for case in cases(arguments):
        row = judged(case, "none" if arguments.quick else "fast")
        results["rows"].append(row)
        print(line(shown(row)), flush=True)
    save(results_file(arguments, "wrong_premises"), results, to_markdown)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
