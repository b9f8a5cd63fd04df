# SPDX-License-Identifier: GPL-3.0-or-later
"""Raw patterns of any crystal, mapped under conditions good and bad, by listed disks and by counts.

    python -m experiments.accuracy.drawn_patterns [--n 300] [--n-laue 100]    half an hour
    python -m experiments.accuracy.drawn_patterns --quick                     does all of it run?

Bloch-wave patterns of random orientations and thicknesses are drawn as images
(`simulate/drawn.py`). Those of Cu are mapped with the packaged model under a reference setting and
under others, one thing changed at a time: dose, background, masked pixels, centre, pixel size, the
beam behind a stop. Those of a crystal of each of the eleven Laue classes (`laue_classes.py`) are
mapped by matching. In both, once the disks that detection lists decide (`--judge list`) and once
the counts at the places that each candidate predicts (`--judge counts`, the default). Answers are
told apart modulo the Laue group. Prints tables and writes experiments/results/drawn_patterns.json.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from experiments.accuracy.laue_classes import PROTOTYPES, written_crystal
from experiments.common.errors import errors, shares
from experiments.common.markdown import flowed, line, table
from experiments.common.results import results_file, save, settings
from experiments.simulate.drawn import Drawing, expected_counts, random_patterns
from jaxstem.api import infer_config
from jaxstem.detection.config import DetectConfig
from jaxstem.detection.scan import calibrated, find_disks
from jaxstem.diffraction.material import Material
from jaxstem.diffraction.settings import Microscope
from jaxstem.files.cube import cube_from_array
from jaxstem.files.scan import DiskScan
from jaxstem.mapping import map_scan
from jaxstem.network.matching import matching_model
from jaxstem.network.model import Model, load_model

VOLTAGE = 300.0  # kV
WAVELENGTH = Microscope(VOLTAGE).wavelength  # Å
JUDGES = ("list", "counts")


@dataclass(frozen=True)
class Arguments:
    """model: packaged or folder, of one crystal; n: patterns of each condition; crystals: of the
    Laue classes (all if none is named); n_laue: patterns of each; spacing_deg: of
    matching's grid; quick: few of all, written nowhere unless `out` is given.
    """

    model: str = "cu"
    n: int = 300
    crystals: tuple[str, ...] = ()
    n_laue: int = 100
    spacing_deg: float = 5.5
    seed: int = 11
    quick: bool = False
    out: Path | None = None


@dataclass(frozen=True)
class Measurement:
    """How patterns are measured.

    dose: as a factor; background: (H, H) factor of the diffuse part; added: counts (H, H) in every
    pattern; config: what detection is told, its masked pixels counting nothing; off: error of the
    centre [px]; scale: by which factor the pixel size that it is told is wrong.
    """

    dose: float = 1.0
    background: float | np.ndarray = 1.0
    added: float | np.ndarray = 0.0
    config: DetectConfig = DetectConfig()
    off: float = 0.0
    scale: float = 1.0


def conditions(drawing: Drawing, seed: int) -> dict[str, Measurement]:
    """What is tried, by how it is called in the table."""
    side = drawing.pixels
    rows, columns = np.mgrid[:side, :side] - side / 2
    distance = np.abs(rows * np.cos(0.6) + columns * np.sin(0.6) - 9)
    scattered = np.random.default_rng(seed).random((side, side)) > 0.05
    gaps = np.ones((side, side), bool)
    gaps[5 * side // 8 :, side // 4 : side // 4 + 8] = False
    gaps[: 5 * side // 16, 45 * side // 64 : 45 * side // 64 + 3] = False
    stop = np.hypot(rows, columns) > 6
    stop[side // 2 - 2 : side // 2 + 3, side // 2 :] = False
    turned = 1 + 0.3 * np.cos(2 * np.arctan2(columns, rows))
    centre = (side / 2, side / 2)
    return {
        "the reference setting": Measurement(),
        "50,000 electrons a pattern": Measurement(dose=0.25),
        "10,000 electrons a pattern": Measurement(dose=0.05),
        "background varies by 30 % with azimuth": Measurement(background=turned),
        "a band of 20 counts a pixel across": Measurement(added=20.0 * (distance < 5)),
        "5 % of the pixels masked": Measurement(config=DetectConfig(mask=scattered)),
        "two gaps masked": Measurement(config=DetectConfig(mask=gaps)),
        "centre off by 0.5 px": Measurement(off=0.5),
        "pixel size too small by 1 %": Measurement(scale=0.99),
        "pixel size too large by 1 %": Measurement(scale=1.01),
        "beam behind a stop, centre and radius stated": Measurement(
            config=DetectConfig(mask=stop, origin=centre, radius=drawing.radius(WAVELENGTH))
        ),
    }


def measured(
    expected: tuple[np.ndarray, np.ndarray],
    measurement: Measurement,
    rng: np.random.Generator,
    drawing: Drawing,
) -> DiskScan:
    """Counts of the patterns under a condition, and the disks that detection finds in them."""
    in_disks, diffuse = expected
    light = measurement.dose * (in_disks + measurement.background * diffuse) + measurement.added
    counts = rng.poisson(light)
    if measurement.config.mask is not None:
        counts = np.where(measurement.config.mask, counts, 0)
    size = measurement.scale * drawing.pixel_size
    patterns = counts.astype(np.uint16)[None]
    cube = cube_from_array(patterns, size, voltage_kv=VOLTAGE)
    found = find_disks(cube, measurement.config, keep_light=True)
    aside = measurement.off / np.sqrt(2)
    return calibrated(dataclasses.replace(found, origin=found.origin + aside))


def scores(scan: DiskScan, model: Model, truth: np.ndarray) -> dict[str, dict[str, float]]:
    """By each judge: errors [degrees], shares within 5° [%], and the mean confidence [%]."""
    (material,), told = model.materials, {}
    for judge in JUDGES:
        found = map_scan(scan, model, infer_config(model, "fast", judge=judge), progress=False)
        plain, mod_180 = errors(found.orientation, truth, material.operations)
        confidence = float(np.nan_to_num(found.confidence).mean())
        told[judge] = {**shares(plain, mod_180), "confidence": round(100 * confidence, 1)}
    return told


def drawn(material: Material, n: int, seed: int, drawing: Drawing) -> tuple[tuple, np.ndarray]:
    """Expected counts (n, H, H) of disks and of background, and orientations (n, 3, 3)."""
    disks, orientation, _ = random_patterns(material, n, seed, drawing)
    return expected_counts(disks, material.wavelength, seed, drawing), orientation


def under_conditions(arguments: Arguments, drawing: Drawing) -> Iterator[tuple[str, dict]]:
    """Each condition and its scores."""
    model = load_model(arguments.model)
    (material,) = model.materials
    expected, truth = drawn(material, arguments.n, arguments.seed, drawing)
    tried = list(conditions(drawing, arguments.seed).items())
    for name, measurement in tried[:: len(tried) - 1] if arguments.quick else tried:
        rng = np.random.default_rng(arguments.seed)
        yield name, scores(measured(expected, measurement, rng, drawing), model, truth)


def of_laue_classes(arguments: Arguments, drawing: Drawing) -> Iterator[tuple[str, dict]]:
    """Each crystal and its scores."""
    for name in arguments.crystals or PROTOTYPES:
        with tempfile.TemporaryDirectory() as folder:
            crystal = written_crystal(name, Path(folder))
        model = matching_model([crystal], VOLTAGE, spacing_deg=arguments.spacing_deg)
        expected, truth = drawn(model.materials[0], arguments.n_laue, arguments.seed, drawing)
        rng = np.random.default_rng(arguments.seed)
        told = scores(measured(expected, Measurement(), rng, drawing), model, truth)
        kind = {"laue_group": crystal.laue_group, "point_group": crystal.point_group}
        yield name, {**kind, "n_cells": len(model.materials[0].grid), **told}


def shown(told: dict) -> list[str]:
    """Cells of a row: both judges."""
    return [
        f"{score['within_5']:.1f} % ({score['within_5_mod_180']:.1f} %) {score['median']:.2f}°"
        for score in (told[judge] for judge in JUDGES)
    ]


def to_markdown(results: dict) -> str:
    """Conditions, then crystals."""
    told, heads = results["settings"], ("listed disks", "**counts**")
    rows = [
        [name, *shown(x), f"{x['counts']['confidence']:.1f} %"]
        for name, x in results["conditions"].items()
    ]
    laue = [
        [x["laue_group"], f"{name} ({x['point_group']})", *shown(x)]
        for name, x in results["laue_classes"].items()
    ]
    first = flowed(f"""
Within 5°, in brackets modulo 180°, and the median error. {told["n"]} Bloch-wave patterns of Cu in
random orientations, drawn as images (200,000 electrons each, 12 % of them diffuse), mapped with the
packaged model; decided by the disks that detection lists, and, the default, by the counts at the
places that each candidate predicts (`experiments/accuracy/drawn_patterns.py`).
""")
    second = flowed(f"""
{told["n_laue"]} such patterns of a crystal of each Laue class, mapped by matching. Crystals without
inversion are told apart modulo the Laue class.
""")
    return "\n\n".join(
        (
            table(("measured with", *heads, "mean confidence, counts"), rows),
            first,
            table(("Laue class", "crystal", *heads), laue),
            second,
        )
    )


def main(arguments: Arguments) -> None:
    """Draw, detect, map, score, print."""
    drawing = Drawing()
    if arguments.quick:
        drawing = dataclasses.replace(drawing, pixels=96)
        arguments = dataclasses.replace(
            arguments, n=12, crystals=("SiC",), n_laue=6, spacing_deg=16.0
        )
    out = results_file(arguments, "drawn_patterns")
    results: dict = {"settings": settings(arguments), "conditions": {}, "laue_classes": {}}
    parts: dict[str, Callable] = {"conditions": under_conditions, "laue_classes": of_laue_classes}
    for part, run in parts.items():
        for name, told in run(arguments, drawing):
            results[part][name] = told
            print(line([name, *shown(told)]), flush=True)
    save(out, results, to_markdown)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
