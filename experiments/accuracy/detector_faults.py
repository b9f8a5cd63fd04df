# SPDX-License-Identifier: GPL-3.0-or-later
"""What faults of the detector cost: a sample scan as it is, and as worse detectors would store it.

    python -m experiments.accuracy.detector_faults [--only clipped hot ...]    ten minutes
    python -m experiments.accuracy.detector_faults --quick                     does all of it run?

The raw patterns of a sample scan are changed in memory, one fault at a time, and mapped with the
packaged model as any scan is, from nothing but what the changed patterns hold. Prints a table and
writes experiments/results/detector_faults.json; with `--only` of these rows, beside those that
earlier runs wrote.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from jaxtyping import Num
from scipy import ndimage

from experiments.accuracy.sample_scans import SETS
from experiments.common.errors import errors, shares
from experiments.common.markdown import flowed, line, table
from experiments.common.results import DATA, load, results_file, save, settings
from jaxstem.api import infer_config
from jaxstem.detection.opening import disks_of, open_cube
from jaxstem.detection.reading import ReadOptions
from jaxstem.detection.scan import plan_search
from jaxstem.errors import InputError
from jaxstem.files.cube import Cube, cube_from_array
from jaxstem.files.truth import Truth, read_truth
from jaxstem.mapping import map_scan, understood
from jaxstem.network.model import load_model

Patterns = Num[np.ndarray, "ny nx H W"]


@dataclass(frozen=True)
class Arguments:
    """name: of the sample scan; cubes: folder of the raw patterns NAME_cube.h5; only: names of
    faults; seed: of all chance; quick: few positions, three faults, written nowhere unless `out` is
    given.
    """

    name: str = "cu_random"
    cubes: Path = DATA
    only: tuple[str, ...] = ()
    seed: int = 1
    quick: bool = False
    out: Path | None = None


def beam_of(counts: Patterns) -> np.ndarray:
    """Pixel of the mean pattern's brightest spot."""
    mean = ndimage.uniform_filter(counts.mean((0, 1)), 3)
    return np.array(np.unravel_index(mean.argmax(), mean.shape))


def clipped(counts: Patterns, rng, most: int) -> Patterns:
    """What is more than so much is stored as that, in 8 bits if it fits them."""
    return np.minimum(counts, most).astype(np.uint8 if most < 256 else np.uint16)


def with_cross(counts: Patterns, rng, wide: int = 4, off: int = 0) -> Patterns:
    """A cross of dead rows and columns through the beam, as the gap between four chips is."""
    first = beam_of(counts) - wide // 2 + off
    counts = counts.copy()
    counts[..., first[0] : first[0] + wide, :] = 0
    counts[..., first[1] : first[1] + wide] = 0
    return counts


def with_hot_clusters(counts: Patterns, rng, side: int = 2, n: int = 12) -> Patterns:
    """Squares of hot pixels beside the beam, as bright as it, less or more, and noisy."""
    beam, counts = beam_of(counts), counts.copy()
    places = rng.integers(4, np.array(counts.shape[2:]) - 8, (4 * n, 2))
    apart = np.abs(places - beam).max(1) > 10  # one that touches the beam is a part of it
    for row, column in places[apart][:n]:
        level = rng.uniform(0.05, 1.5) * counts.max()
        size = (*counts.shape[:2], side, side)
        counts[..., row : row + side, column : column + side] = rng.poisson(level, size)
    return counts


def with_stop(counts: Patterns, rng, wide: int = 12, shade: float = 0.0) -> Patterns:
    """A bar from the detector's edge over the direct beam, round at its end, that lets nothing
    through, or little.
    """
    row, column = np.indices(counts.shape[2:]) - beam_of(counts)[:, None, None]
    bar = ((np.abs(column) < wide / 2) & (row <= 0)) | (np.hypot(row, column) < wide / 2)
    return np.where(bar, rng.poisson(shade * counts), counts).astype(counts.dtype)


def moved(counts: Patterns, rng, spread: float = 1.0) -> Patterns:
    """Patterns that jump by whole pixels and parts of one along each axis, another way each."""
    steps = rng.normal(0, spread, (*counts.shape[:2], 2))
    result = np.empty_like(counts)
    for place in np.ndindex(*counts.shape[:2]):
        # light that falls between pixels falls on either by chance
        whole, part = np.floor(steps[place]).astype(int), steps[place] % 1
        image = counts[place].astype(np.int64)
        for axis in (0, 1):
            over = rng.binomial(image, part[axis])
            image = image - over + np.roll(over, 1, axis)
        result[place] = np.roll(image, whole, (0, 1))
    return result


def binned(counts: Patterns, rng) -> Patterns:
    """Four pixels as one."""
    *scan, height, width = counts.shape
    blocks = counts.reshape(*scan, height // 2, 2, width // 2, 2)
    return blocks.sum((3, 5), dtype=np.uint32)


def with_read_noise(counts: Patterns, rng, offset: float = 0.0, noise: float = 1.0) -> Patterns:
    """Signed numbers, some of them negative: counts of a camera whose dark image was taken off."""
    return np.round(counts + rng.normal(offset, noise, counts.shape)).astype(np.int16)


def without_rows(counts: Patterns, rng, n: int = 6) -> Patterns:
    """Dead rows and columns here and there, and a broad dead band off the beam."""
    counts, (height, width) = counts.copy(), counts.shape[2:]
    counts[..., rng.integers(0, height, n), :] = 0
    counts[..., rng.integers(0, width, n)] = 0
    counts[..., height // 4 : height // 4 + 5, :] = 0
    return counts


@dataclass(frozen=True)
class Fault:
    """A worse detector: what it stores, how large its pixels are, and what its user says."""

    of: Callable[[Patterns, np.random.Generator], Patterns]
    pixel_size: float = 1.0
    options: Callable[[Patterns], dict[str, Any]] = lambda counts: {}


def beam_given(counts: Patterns) -> dict[str, Any]:
    """Where the beam is and how large a disk is, from patterns without a fault."""
    found = plan_search(cube_from_array(counts, pixel_size=1.0)).instrument
    return {"origin": np.round(found.centre, 1).tolist(), "radius": round(found.radius, 1)}


FAULTS = {
    "nothing": Fault(lambda counts, rng: counts),
    "8 bit, beam and strong disks clipped at 255": Fault(lambda c, rng: clipped(c, rng, 255)),
    "beam clipped at 2,000": Fault(lambda c, rng: clipped(c, rng, 2000)),
    "dead cross of 4 pixels through the beam": Fault(with_cross),
    "dead cross beside the beam's middle": Fault(lambda c, rng: with_cross(c, rng, off=3)),
    "hot clusters of 2 × 2 pixels": Fault(with_hot_clusters),
    "hot clusters of 4 × 4 pixels": Fault(lambda c, rng: with_hot_clusters(c, rng, 4, 4)),
    "beam stop": Fault(with_stop),
    "beam stop, `--origin` and `--radius` given": Fault(with_stop, options=beam_given),
    "beam stop that lets 1 % through": Fault(lambda c, rng: with_stop(c, rng, shade=0.01)),
    "dead rows, columns and band": Fault(without_rows),
    "beam jumps by 1 px": Fault(moved),
    "float32": Fault(lambda counts, rng: counts.astype(np.float32)),
    "big-endian": Fault(lambda counts, rng: counts.astype(">u2")),
    "signed, read-out noise of 1": Fault(with_read_noise),
    "signed, offset of 20, noise of 3": Fault(lambda c, rng: with_read_noise(c, rng, 20.0, 3.0)),
    "signed, offset of -20, noise of 3": Fault(lambda c, rng: with_read_noise(c, rng, -20.0, 3.0)),
    "gain of 7": Fault(lambda counts, rng: 7 * counts.astype(np.uint32)),
    "gain of 0.37, float32": Fault(lambda counts, rng: np.float32(0.37) * counts),
    "binned 2 × 2": Fault(binned, pixel_size=2.0),
}


def scored(cube: Cube, options: ReadOptions, truth, model) -> dict[str, Any]:
    """Errors of the map of a scan, of each pattern alone, and what was understood of the beam."""
    begin = time.perf_counter()
    config = infer_config(model)
    try:
        planned = plan_search(cube, options.detection())
        about = understood(planned, model, config)["about_beam"]
        found = map_scan(disks_of(planned, progress=False), model, config, progress=False)
    except InputError as error:
        return {"refused": str(error)}
    own = (truth.phase == model.phase_names[0]) & (truth.boundary_weight == 0)
    row: dict[str, Any] = {"about": about, "seconds": time.perf_counter() - begin}
    for way, orientation, phase in (
        ("map", found.orientation, found.phase),
        ("alone", found.single_orientation, found.single_phase),
    ):
        of_both = errors(orientation[own], truth.orientation[own], model.materials[0].operations)
        wrong = phase[own] != 0
        row[way] = shares(*(np.where(wrong | np.isnan(x), 180.0, x) for x in of_both))
    return row


def shown(name: str, row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    if "refused" in row:
        return [name, "–", "–", row["refused"]]
    told = row["map"]
    within = f"{told['within_5']:.1f} % ({told['within_5_mod_180']:.1f} %)"
    return [name, within, f"{told['median']:.2f}°", row["about"]]


def to_markdown(results: dict) -> str:
    """A row for each fault, in their order."""
    names = "what is wrong", "within 5° (modulo 180°)", "median", "what is understood of the beam"
    rows = [shown(name, results["faults"][name]) for name in FAULTS]
    told = results["settings"]
    words = flowed(f"""
The raw patterns of `{told["name"]}` as other detectors would store them, mapped without options
where none are named (`experiments/accuracy/detector_faults.py`).
""")
    return f"{table(names, rows)}\n\n{words}"


def main(arguments: Arguments) -> None:
    """Change, map, score, print, write."""
    sample = SETS[arguments.name]
    model, truth = load_model(sample.model), read_truth(sample.truth)
    cube = open_cube(arguments.cubes / f"{arguments.name}_cube.h5", ReadOptions())
    n_rows = 2 if arguments.quick else cube.scan_shape[0]
    whole = cube.rows(0, n_rows)
    truth = Truth(*(getattr(truth, field.name)[:n_rows] for field in fields(truth)))
    out = results_file(arguments, "detector_faults")
    results = load(out) if arguments.only else {}
    results["settings"] = settings(arguments)
    wanted = arguments.only or ("nothing", "cross of 4") * arguments.quick
    for name, fault in FAULTS.items():
        if wanted and not any(word in name for word in wanted):
            continue
        counts = fault.of(whole, np.random.default_rng(arguments.seed))
        changed = cube_from_array(
            counts,
            fault.pixel_size * cube.pixel_size,
            cube.scan_step,
            cube.scan_units,
            cube.voltage_kv,
            f"{arguments.name}, {name}",
        )
        row = scored(changed, ReadOptions(**fault.options(whole)), truth, model)
        results.setdefault("faults", {})[name] = row
        print(line(shown(name, row)), flush=True)
    save(out, results, to_markdown)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
