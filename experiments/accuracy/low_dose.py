# SPDX-License-Identifier: GPL-3.0-or-later
"""Scans of few electrons: what neighbours add, and what sums of patterns add to that.

    python -m experiments.accuracy.low_dose [--seeds 1 2] [--cubes DIR]      twenty minutes
    python -m experiments.accuracy.low_dose --quick                          does all of it run?

Grains of Cu, each bent and of its own thickness, between which some positions hold a crystal of
their own, an island of one position; their Bloch-wave patterns are drawn as images
(`simulate/drawn.py`) of so many electrons and mapped as raw patterns are, once in the context of
the scan without sums and once with them; the former has what each pattern says alone, too. With
the folder of the raw sample scans, these as well, of whose electrons some are left out at random.
Prints tables and writes experiments/results/low_dose.json.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Bool, Float
from scipy.spatial.transform import Rotation

from experiments.accuracy.calibration import reliability
from experiments.accuracy.sample_scans import SETS
from experiments.common.errors import errors
from experiments.common.markdown import flowed, line, table
from experiments.common.results import results_file, save, settings
from experiments.simulate.drawn import Drawing, expected_counts
from experiments.simulate.random_test_set import bloch_patterns
from jaxstem.api import infer_config
from jaxstem.detection.config import DetectConfig
from jaxstem.detection.opening import disks_of, open_cube
from jaxstem.detection.reading import ReadOptions
from jaxstem.detection.scan import plan_search
from jaxstem.files.cube import Cube, cube_from_array
from jaxstem.files.truth import read_truth
from jaxstem.mapping import map_scan
from jaxstem.network.model import Model, load_model

VOLTAGE = 300.0  # kV
WAYS = ("alone", "neighbours", "sums")
PLACES = ("inside", "boundary", "island")


@dataclass(frozen=True)
class Arguments:
    """model: packaged or folder, of one crystal; doses: electrons a pattern; seeds: a scan each;
    side: positions along it; grains, islands: how many of each; bend: standard deviation of the
    turn from a position to the next [degrees]; cubes: folder of the sample scans, `samples`, which
    are thinned to `sample_doses`; quick: a small scan, written nowhere unless `out` is given.
    """

    model: str = "cu"
    doses: tuple[float, ...] = (3000.0, 10_000.0, 30_000.0, 150_000.0)
    seeds: tuple[int, ...] = (1, 2)
    side: int = 24
    grains: int = 10
    islands: int = 20
    bend: float = 0.08
    cubes: Path | None = None
    samples: tuple[str, ...] = ("cu_cu2o", "cu")
    sample_doses: tuple[float, ...] = (3000.0, 10_000.0)
    quick: bool = False
    out: Path | None = None


class Specimen(NamedTuple):
    """orientation; thickness [Å]; where: which of `PLACES` a position is."""

    orientation: Float[np.ndarray, "ny nx 3 3"]
    thickness: Float[np.ndarray, "ny nx"]
    where: dict[str, Bool[np.ndarray, "ny nx"]]


def specimen(seed: int, arguments: Arguments) -> Specimen:
    """Grains about random points, their thickness a wedge, and islands inside them."""
    rng = np.random.default_rng(seed)
    n, k = arguments.side, arguments.grains
    middles = rng.uniform(0, n, (k, 2))
    row, column = np.mgrid[:n, :n].astype(float)
    grain = np.hypot(row[..., None] - middles[:, 0], column[..., None] - middles[:, 1]).argmin(-1)
    bend = np.deg2rad(arguments.bend) * rng.normal(size=(k, 2, 3))
    away = np.stack([row - middles[grain, 0], column - middles[grain, 1]], axis=-1)
    turn = Rotation.from_rotvec(np.einsum("yxa,yxai->yxi", away, bend[grain]).reshape(-1, 3))
    orientation = Rotation.random(k, rng).as_matrix()[grain]
    orientation = orientation @ turn.as_matrix().reshape(n, n, 3, 3)
    thickness = np.clip(rng.uniform(60, 220, k)[grain] + 20 * np.sin(row / 5), 40, 260)

    inside = np.ones((n, n), bool)
    for step in np.ndindex(3, 3):
        inside &= np.roll(grain, np.subtract(step, 1), (0, 1)) == grain
    inside[[0, -1]] = inside[:, [0, -1]] = False
    island = np.zeros((n, n), bool)
    places = rng.permutation(np.argwhere(inside))
    for y, x in places:
        if island.sum() < arguments.islands and not island[y - 1 : y + 2, x - 1 : x + 2].any():
            island[y, x] = True
    orientation[island] = Rotation.random(int(island.sum()), rng).as_matrix()
    beside = {"inside": inside & ~island, "boundary": ~inside, "island": island}
    return Specimen(orientation, thickness, beside)


def expected(of: Specimen, model: Model, seed: int, drawing: Drawing) -> np.ndarray:
    """Counts (P, H, H) that each pixel should have."""
    (material,) = model.materials
    seen = replace(material, microscope=replace(material.microscope, k_max=drawing.reach))
    orientation = jnp.asarray(of.orientation.reshape(-1, 3, 3), jnp.float32)
    thickness = jnp.asarray(of.thickness.ravel(), jnp.float32)
    disks = bloch_patterns(
        orientation, thickness, seen, drawing.semi_angle, threshold=1e-4, chunk=64
    )
    return sum(expected_counts(disks, material.wavelength, seed, drawing))


class Truth(NamedTuple):
    """Of one crystal: its index among the model's, its orientations, and where it is."""

    number: int
    orientation: Float[np.ndarray, "ny nx 3 3"]
    where: dict[str, Bool[np.ndarray, "ny nx"]]


def scores(cube: Cube, truths: dict[str, Truth], model: Model) -> dict[str, dict]:
    """Of each crystal by each way of `WAYS` and in each of its places: errors [degrees], those
    modulo 180°, and confidences; and what the map says of its context.
    """
    source = disks_of(plan_search(cube, DetectConfig()), progress=False)
    config = infer_config(model)
    without = map_scan(replace(source, pooled=None), model, config, progress=False)
    with_sums = map_scan(source, model, config, progress=False)
    answers = (
        (without.single_orientation, without.single_phase, without.single_confidence),
        (without.orientation, without.phase, without.confidence),
        (with_sums.orientation, with_sums.phase, with_sums.confidence),
    )
    found: dict = {}
    for name, truth in truths.items():
        operations = model.materials[truth.number].operations
        found[name] = {"about": with_sums.attributes["about_context"]}
        for way, (orientation, phase, confidence) in zip(WAYS, answers, strict=True):
            found[name][way] = {}
            for place, here in truth.where.items():
                wrong = phase[here] != truth.number
                of_both = errors(orientation[here], truth.orientation[here], operations)
                of_both = [np.where(wrong | np.isnan(x), 180.0, x) for x in of_both]
                found[name][way][place] = *of_both, np.nan_to_num(confidence[here])
    return found


def of_grains(arguments: Arguments) -> Iterator[tuple[str, float, list[dict]]]:
    """The drawn scans: of each dose the scores of each seed."""
    drawing, model = Drawing(), load_model(arguments.model)
    (material,) = model.materials
    scans = []
    for seed in arguments.seeds:
        of = specimen(seed, arguments)
        scans.append((of, expected(of, model, seed, drawing) / drawing.dose))
    for dose in arguments.doses:
        found = []
        for seed, (of, light) in zip(arguments.seeds, scans, strict=True):
            counts = np.random.default_rng(seed).poisson(dose * light).astype(np.uint16)
            counts = counts.reshape(*of.thickness.shape, *light.shape[1:])
            cube = cube_from_array(counts, drawing.pixel_size, voltage_kv=VOLTAGE)
            truth = Truth(0, of.orientation, of.where)
            found.append(scores(cube, {material.crystal.name: truth}, model))
        yield "drawn", dose, found


def of_samples(arguments: Arguments) -> Iterator[tuple[str, float, list[dict]]]:
    """The sample scans, each electron kept with the same probability."""
    for name in arguments.samples if arguments.cubes else ():
        sample = SETS[name]
        model, truth = load_model(sample.model), read_truth(sample.truth)
        cube = open_cube(arguments.cubes / f"{name}_cube.h5", ReadOptions())
        counts = cube.rows(0, cube.scan_shape[0]).astype(np.int64)
        truths = {}
        for number, material in enumerate(model.materials):
            own = truth.phase == material.crystal.name
            inside = truth.boundary_weight == 0
            places = {"inside": own & inside, "boundary": own & ~inside}
            truths[material.crystal.name] = Truth(number, truth.orientation, places)
        for dose in arguments.sample_doses:
            kept = min(dose / np.median(counts.sum((2, 3))), 1.0)
            thin = np.random.default_rng(arguments.seeds[0]).binomial(counts, kept)
            thin = thin.astype(np.uint16)
            read = lambda rows, columns, thin=thin: thin[rows, columns]  # noqa: E731
            yield name, dose, [scores(replace(cube, dtype=thin.dtype, read=read), truths, model)]


def summed_up(found: list[dict]) -> dict:
    """Of one crystal in the scans of a dose: shares within 5° [%] and modulo 180°, median
    [degrees], and the expected calibration error.
    """
    told: dict = {"about": [x["about"] for x in found]}
    for way in WAYS:
        told[way] = {}
        for place in found[0][way]:
            plain, mod_180, confidence = (
                np.concatenate(x) for x in zip(*(of[way][place] for of in found), strict=True)
            )
            told[way][place] = {
                "n": len(plain),
                "within_5": 100 * float((plain < 5).mean()),
                "within_5_mod_180": 100 * float((mod_180 < 5).mean()),
                "median": float(np.median(plain)),
                "calibration": reliability(confidence, plain < 5)["expected_calibration_error"],
            }
    return told


def shown(name: str, dose: str, told: dict) -> list[str]:
    """A row of the table."""
    inside = [told[way]["inside"] for way in WAYS]
    cells = [
        f"{x['within_5']:.1f} % ({x['within_5_mod_180']:.1f} %) {x['median']:.2f}°" for x in inside
    ]
    for place in PLACES[1:]:
        some = [f"{told[way][place]['within_5']:.0f}" for way in WAYS if place in told[way]]
        cells.append(f"{', '.join(some)} %" if some else "–")
    cells.append(", ".join(f"{x['calibration']:.3f}" for x in inside))
    return [name, f"{float(dose):,.0f}", *cells]


def to_markdown(results: dict) -> str:
    """A row for each scan and dose."""
    told = results["settings"]
    names = (
        "scan",
        "electrons a pattern",
        "each pattern alone",
        "neighbours, without sums",
        "**with sums**",
        "at boundaries, in this order",
        "islands of one position",
        "calibration error, inside",
    )
    rows = [
        shown(name, dose, x)
        for name, doses in results["scans"].items()
        for dose, x in doses.items()
    ]
    drawn = next(name for name in results["scans"] if name.startswith("drawn"))
    n = {place: x["n"] for place, x in next(iter(results["scans"][drawn].values()))["sums"].items()}
    words = flowed(f"""
Within 5°, in brackets modulo 180°, and the median error, inside of grains; raw patterns. Drawn:
Bloch-wave patterns of bent grains (σ = {told["bend"]:g}° from a position to the next):
{n["inside"]} positions inside of grains, {n["boundary"]} beside another grain or at the edge,
{n["island"]} that are a crystal of their own. The others are the sample scans, of whose
electrons so many are left out at random (`experiments/accuracy/low_dose.py`).
""")
    return f"{table(names, rows)}\n\n{words}"


def main(arguments: Arguments) -> None:
    """Draw or thin, detect, map, score, print."""
    if arguments.quick:
        small = {"side": 6, "grains": 2, "islands": 1, "seeds": (1,), "doses": (10_000.0,)}
        arguments = dataclasses.replace(arguments, **small)
    out = results_file(arguments, "low_dose")
    results: dict = {"settings": settings(arguments), "scans": {}}
    for part in (of_grains, of_samples):
        for name, dose, found in part(arguments):
            for crystal in found[0]:
                row = f"{name}, {crystal}"
                told = summed_up([x[crystal] for x in found])
                results["scans"].setdefault(row, {})[f"{dose:.0f}"] = told
                print(line(shown(row, f"{dose:.0f}", told)), flush=True)
    save(out, results, to_markdown)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
