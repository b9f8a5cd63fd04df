# SPDX-License-Identifier: GPL-3.0-or-later
"""What answers without any verification (`--refine none`) are worth: any crystal, any voltage.

    python -m experiments.accuracy.alone [--n 200]     a quarter of an hour
    python -m experiments.accuracy.alone --quick       does all of it run?

Bloch-wave patterns of random orientations and thicknesses are drawn as images (`simulate/drawn.py`)
in which disks are found. Those of a crystal of each of the eleven Laue classes (`laue_classes.py`)
and of Cu2O are matched, and the likeliest orientations laid on the disks and judged by what was
learned of other crystals (`training/any_crystal.py`); beside it the peaks of the distribution, as
they are. Those of Cu and Cu2O at several voltages are read by the packaged networks, which were
trained at 300 kV. Each pattern is alone. Prints tables and writes experiments/results/alone.json.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro

from experiments.accuracy.calibration import reliability
from experiments.accuracy.laue_classes import PROTOTYPES, written_crystal
from experiments.common.errors import errors, shares
from experiments.common.markdown import flowed, line, table
from experiments.common.results import DATA, results_file, save, settings
from experiments.simulate.drawn import Drawing, expected_counts, random_patterns
from jaxstem.crystal.cell import Crystal
from jaxstem.crystal.reading import read_cif
from jaxstem.detection.scan import calibrated, find_disks
from jaxstem.diffraction.material import Material
from jaxstem.files.cube import cube_from_array
from jaxstem.files.scan import DiskScan
from jaxstem.inference.config import InferConfig
from jaxstem.mapping import map_scan
from jaxstem.network.matching import matching_model
from jaxstem.network.model import Model, at_voltage, load_model

MODELS = {"cu": ("Cu",), "cu-cu2o": ("Cu", "Cu2O")}


@dataclass(frozen=True)
class Arguments:
    """n: patterns of each crystal; voltages: kV at which networks are tried; quick: few of all,
    written nowhere unless `out` is given.
    """

    n: int = 200
    voltages: tuple[float, ...] = (300.0, 200.0, 120.0, 80.0)
    seed: int = 23
    quick: bool = False
    out: Path | None = None


def drawn_scan(material: Material, arguments: Arguments) -> tuple[DiskScan, np.ndarray]:
    """The disks that are found in drawn patterns, and their orientations (n, 3, 3)."""
    drawing = Drawing()
    disks, orientation, _ = random_patterns(material, arguments.n, arguments.seed, drawing)
    light = sum(expected_counts(disks, material.wavelength, arguments.seed, drawing))
    counts = np.random.default_rng(arguments.seed).poisson(light).astype(np.uint16)
    cube = cube_from_array(counts[None], drawing.pixel_size, voltage_kv=material.voltage_kv)
    return calibrated(find_disks(cube, keep_light=False)), orientation


def scored(scan: DiskScan, model: Model, truth: np.ndarray, phase: int) -> dict[str, float]:
    """Errors [degrees], shares within 5° [%], a wrong phase being none, and how wrong the
    confidence is.
    """
    found = map_scan(scan, model, InferConfig(refine="none"), context="none", progress=False)
    answers = np.where((found.phase == phase)[..., None, None], found.orientation, np.nan)
    plain, mod_180 = errors(answers, truth, model.materials[phase].operations)
    sure = reliability(np.nan_to_num(found.confidence).ravel(), plain < 5)
    about = {name: sure[name] for name in ("expected_calibration_error", "by_chance")}
    return {**shares(plain, mod_180), **about}


def crystals(quick: bool) -> Iterator[Crystal]:
    """A crystal of each Laue class, and Cu2O."""
    with tempfile.TemporaryDirectory() as folder:
        for name in list(PROTOTYPES)[-1:] if quick else PROTOTYPES:
            yield written_crystal(name, Path(folder))
    yield read_cif(DATA / "Cu2O.cif")


def by_matching(arguments: Arguments) -> Iterator[tuple[str, dict]]:
    """Each crystal and its scores."""
    for crystal in crystals(arguments.quick):
        model = matching_model([crystal], 300.0)
        peaks = replace(model, config=replace(model.config, finalists=0))
        scan, truth = drawn_scan(model.materials[0], arguments)
        kinds = {"peaks": peaks, "finalists": model}
        told = {kind: scored(scan, one, truth, 0) for kind, one in kinds.items()}
        yield crystal.name, {"laue_group": crystal.laue_group, **told}


def by_networks(arguments: Arguments) -> Iterator[tuple[str, dict]]:
    """Each model, phase and voltage, and its score."""
    for name, phases in MODELS.items():
        for voltage in arguments.voltages[:1] if arguments.quick else arguments.voltages:
            model = at_voltage(load_model(name), voltage)
            for number, phase in enumerate(phases):
                scan, truth = drawn_scan(model.materials[number], arguments)
                told = scored(scan, model, truth, number)
                yield f"{name} {phase} {voltage:g}", {"model": name, "phase": phase, **told}


def cells(score: dict) -> list[str]:
    """Of a row."""
    return [
        f"{score['within_5']:.1f} % ({score['within_5_mod_180']:.1f} %) {score['median']:.2f}°",
        f"{score['expected_calibration_error']:.2f} ({score['by_chance']:.2f})",
    ]


def to_markdown(results: dict) -> str:
    """Crystals, then voltages."""
    told = results["settings"]
    crystals = [
        [x["laue_group"], name, cells(x["peaks"])[0], *cells(x["finalists"])]
        for name, x in results["crystals"].items()
    ]
    networks = [
        [f"`{x['model']}`", x["phase"], f"{name.split()[-1]} kV", *cells(x)]
        for name, x in results["networks"].items()
    ]
    of_error = "error of the confidence (by chance)"
    first = flowed(f"""
`--method match --refine none`: within 5°, in brackets modulo 180°, and the median error, of
{told["n"]} patterns of each crystal at 300 kV, drawn as images by Bloch waves (200,000 electrons
each, 12 % of them diffuse), each pattern alone (`experiments/accuracy/alone.py`). Peaks: of the
templates' distribution, as they are; finalists: laid on the disks and judged by what was learned
of other crystals, none of these among them. Crystals without inversion are told apart modulo the
Laue class.
""")
    second = flowed("""
`--refine none` with the packaged networks, which were trained at 300 kV, on such patterns at other
voltages.
""")
    heads = ("Laue class", "crystal", "peaks", "**finalists**", of_error)
    return "\n\n".join(
        [
            table(heads, crystals),
            first,
            table(("model", "crystal", "voltage", "right", of_error), networks),
            second,
        ]
    )


def main(arguments: Arguments) -> None:
    """Draw, map, score."""
    if arguments.quick:
        arguments = replace(arguments, n=20)
    results = {"settings": settings(arguments), "crystals": {}, "networks": {}}
    for part, rows in (("crystals", by_matching), ("networks", by_networks)):
        for name, told in rows(arguments):
            results[part][name] = told
            scores = [x for x in told.values() if isinstance(x, dict)] or [told]
            print(line([name, *(cells(score)[0] for score in scores)]))
    print(to_markdown(results))
    save(results_file(arguments, "alone"), results, to_markdown)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
