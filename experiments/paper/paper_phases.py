# SPDX-License-Identifier: GPL-3.0-or-later
"""Orientation and phase together, as in figure 6 of arXiv 2602.12420.

    python -m experiments.paper.paper_phases [--model cu-cu2o] [--run RUN_DIR] [--refine fast]

On a synthetic polycrystal of a model's two phases (Voronoi grains of random orientation, phase and
thickness; Bloch-wave patterns, spoilt afresh at each position as in training) and on the multislice
sample `cu_cu2o`: phase maps and orientation maps beside the truth, confusion of phases,
misorientations of each phase, and the run's curves of loss and phase accuracy where --run has a
metrics.jsonl. Writes results/paper_phases.json and .png. Some minutes.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from matplotlib.patches import Rectangle

from experiments.common.figures import drawn
from experiments.common.markdown import heading, line
from experiments.common.patterns import scan_of
from experiments.common.results import DATA, results_file, save, settings
from experiments.paper.curves import curves_of, draw_curves
from experiments.simulate.random_test_set import bloch_patterns
from jaxstem.detection.opening import read_scan
from jaxstem.diffraction.geometry import Disks
from jaxstem.files.orientation_map import OrientationMap
from jaxstem.files.scan import DiskScan, source_of
from jaxstem.files.truth import Truth, read_truth
from jaxstem.inference.config import InferConfig
from jaxstem.mapping import map_scan
from jaxstem.maps.colours import ipf_colours
from jaxstem.maps.metrics import evaluate
from jaxstem.network.model import Model, load_model
from jaxstem.orientation import rotations
from jaxstem.training.acquisition import Acquisition, acquire

PHASE_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7")
THICKNESS = (60.0, 250.0)  # Å
CURVES = (("loss", "val_loss"), ("val_right_phase", "val_within_5deg"), ("val_median_deg",))


@dataclass(frozen=True)
class Arguments:
    """model: folder or packaged name, of two phases; run: folder of its training; size: positions
    along a side of the synthetic scan, of `grains` grains; sample: files SAMPLE_detected.h5 and
    SAMPLE_truth.h5, none to leave it out; quick: a run of seconds that writes nothing unless `out`
    is given.
    """

    model: str = "cu-cu2o"
    run: Path | None = None
    size: int = 48
    grains: int = 32
    n_beams: int = 80
    sample: Path | None = DATA / "cu_cu2o"
    refine: str = "fast"
    seed: int = 0
    quick: bool = False
    out: Path | None = None


def voronoi(rng, size: int, grains: int) -> np.ndarray:
    """Grain of each position (size, size): that of the nearest of random points."""
    points = rng.uniform(0, size, (grains, 2))
    place = np.stack(np.mgrid[:size, :size], -1).reshape(-1, 1, 2)
    return np.argmin(((place - points) ** 2).sum(-1), axis=1).reshape(size, size)


def inside_grains(grain: np.ndarray) -> np.ndarray:
    """Positions whose four neighbours are of the same grain."""
    padded = np.pad(grain, 1, mode="edge")
    neighbours = (padded[2:, 1:-1], padded[:-2, 1:-1], padded[1:-1, 2:], padded[1:-1, :-2])
    return np.logical_and.reduce([n == grain for n in neighbours])


def polycrystal(model: Model, arguments: Arguments) -> tuple[DiskScan, Truth]:
    """A scan of grains of all phases, and its truth."""
    rng = np.random.default_rng(arguments.seed)
    size, grains = arguments.size, arguments.grains
    grain = voronoi(rng, size, grains)
    phase = np.arange(grains) % len(model.materials)
    thickness = rng.uniform(*THICKNESS, grains)
    orientation = np.asarray(rotations.random_rotations(jax.random.key(arguments.seed), (grains,)))
    patterns = [
        bloch_patterns(
            jnp.asarray(orientation),
            jnp.asarray(thickness, jnp.float32),
            material,
            convergence_mrad=0.0,
            threshold=1e-4,
            n_beams=arguments.n_beams,
            chunk=grains,
        )
        for material in model.materials
    ]
    most = max(d.qx.shape[1] for d in patterns)
    lengthen = lambda x: np.pad(x, ((0, 0), (0, most - x.shape[1])))  # noqa: E731
    stacked = jax.tree.map(lambda *x: np.stack([lengthen(y) for y in x]), *patterns)
    own = jax.tree.map(lambda x: x[phase, np.arange(grains)][grain.ravel()], stacked)
    acquisition = Acquisition(overlap=0.0)

    @jax.jit
    def spoilt(key, disks):
        one = lambda k, d: acquire(k, d, acquisition, 40, model.k_max)  # noqa: E731
        return jax.vmap(one)(jax.random.split(key, size * size), disks)

    diffracted = jax.tree.map(lambda x: jnp.asarray(x[:, 1:]), own)
    disks = spoilt(jax.random.key(arguments.seed + 1), Disks(*diffracted))
    scan = replace(scan_of(disks, model.voltage_kv), scan_shape=(size, size))
    truth = Truth(
        orientation=orientation[grain].astype(float),
        phase=np.array(model.phase_names)[phase][grain],
        boundary_weight=np.where(inside_grains(grain), 0.0, 0.5),
        grain=grain,
        thickness=thickness[grain],
    )
    return scan, truth


def score(found: OrientationMap, truth: Truth) -> dict:
    """Phases and misorientations inside grains."""
    result = evaluate(found, truth)
    return {
        "n": result.n_scored,
        "phase_accuracy": result.phase_accuracy,
        "right_phase_of_crystals": result.crystal_phase_accuracy,
        "vacuum_found": result.vacuum_accuracy,
        "confusion": result.confusion,
        "phases": {
            name: {
                "n": phase.n,
                "median_deg": phase.plain.median,
                "within_5": phase.plain.within_5,
                "within_5_interval": phase.plain.within_5_interval,
                "within_5_mod_180": phase.mod_180.within_5,
            }
            for name, phase in result.phases.items()
        },
    }


def phase_image(names: np.ndarray, phase_names: tuple[str, ...]) -> np.ndarray:
    """Colours of phases; black where there is none."""
    image = np.zeros((*names.shape, 3))
    for name, colour in zip(phase_names, PHASE_COLOURS, strict=False):
        image[names == name] = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return image


def orientation_image(orientation, names, model: Model) -> np.ndarray:
    """Out-of-plane colours, each phase by its own key."""
    image = np.zeros((*names.shape, 3))
    for material in model.materials:
        here = names == material.crystal.name
        laue_group = material.crystal.laue_group
        colours = ipf_colours(orientation[here], np.array([0.0, 0.0, 1.0]), laue_group)
        image[here] = np.nan_to_num(colours)
    return image


def draw_confusion(panel, confusion: dict[str, dict[str, int]], title: str) -> None:
    """Counts of truth (rows) against map (columns)."""
    truths, columns = list(confusion), list(next(iter(confusion.values())))
    counts = np.array([[confusion[t][c] for c in columns] for t in truths])
    panel.imshow(counts / np.maximum(counts.sum(1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    for (row, column), n in np.ndenumerate(counts):
        dark = n > 0.5 * counts[row].sum()
        panel.text(column, row, n, ha="center", va="center", color="w" if dark else "k")
    panel.set_xticks(range(len(columns)), columns, fontsize=8, rotation=20)
    panel.set_yticks(range(len(truths)), truths)
    panel.set(title=title, xlabel="map", ylabel="truth")


def draw(shown: dict, results: dict, curves: list[dict], model: Model, path: Path) -> None:
    """A row for each scan: phases and orientations of truth and map, confusion; then the curves."""
    n_rows = len(shown) + bool(curves)
    with drawn(path, n_rows, 5, (17, 3.6 * n_rows), squeeze=False) as (figure, panels):
        for row, (name, (found, truth)) in zip(panels, shown.items(), strict=False):
            names = np.array([*found.phase_names, ""])[np.maximum(found.phase, -1)]
            images = {
                "phases, truth": phase_image(truth.phase, model.phase_names),
                "phases, jaxstem": phase_image(names, model.phase_names),
                "out of plane, truth": orientation_image(truth.orientation, truth.phase, model),
                "out of plane, jaxstem": orientation_image(found.orientation, names, model),
            }
            for panel, (title, image) in zip(row, images.items(), strict=False):
                panel.imshow(image, interpolation="nearest")
                panel.set(title=f"{name}: {title}", xticks=[], yticks=[])
            draw_confusion(row[4], results[name]["confusion"], f"{name}: positions")
        for panel in panels[-1] if curves else ():
            panel.set_axis_off()
        if curves:
            for panel, keys in zip(panels[-1], CURVES, strict=False):
                panel.set_axis_on()
                draw_curves(panel, curves, {key: key.replace("_", " ") for key in keys})
        legend = [
            Rectangle((0, 0), 1, 1, color=c, label=n)
            for c, n in zip(PHASE_COLOURS, model.phase_names, strict=False)
        ]
        figure.legend(handles=legend, loc="outside lower left", ncols=4)


def to_markdown(results: dict) -> str:
    """How often the phase is right, in a sentence."""
    sample, made = (
        f"{100 * results[name]['right_phase_of_crystals']:.1f} %"
        for name in ("cu_cu2o", "synthetic")
    )
    return (
        f"Right phase of `cu_cu2o`'s crystals: {sample}; of a synthetic polycrystal with the whole "
        f"spread of training's noise: {made}."
    )


def main(arguments: Arguments) -> None:
    """Simulate, map, score, draw."""
    if arguments.quick:
        arguments = replace(arguments, size=8, grains=6, n_beams=24, sample=None, refine="none")
    model = load_model(arguments.model)
    config = InferConfig(refine=arguments.refine)
    if arguments.quick:
        config = replace(config, lengths=(40,))
    scans = {"synthetic": polycrystal(model, arguments)}
    if arguments.sample:
        files = [Path(f"{arguments.sample}_{what}.h5") for what in ("detected", "truth")]
        scans[arguments.sample.name] = (read_scan(files[0], progress=False), read_truth(files[1]))
    shown, results = {}, {}
    print(heading("scan", "phase", "n", "right phase", "median", "within 5°", "mod 180°"))
    for name, (scan, truth) in scans.items():
        found = map_scan(source_of(scan), model, config, progress=False)
        shown[name], results[name] = (found, truth), score(found, truth)
        for phase, row in results[name]["phases"].items():
            right = results[name]["confusion"][phase].get(phase, 0) / max(row["n"], 1)
            shares = [right, row["within_5"], row["within_5_mod_180"]]
            right, within, turned = (f"{100 * share:.1f} %" for share in shares)
            median = f"{row['median_deg']:.2f}°"
            print(line([name, phase, row["n"], right, median, within, turned]))
        print(f"{name}: right phase of crystals {results[name]['right_phase_of_crystals']:.4f}")
    out = results_file(arguments, "paper_phases")
    curves = curves_of(arguments)
    save(out, {"settings": settings(arguments), **results, "curves": curves}, to_markdown)
    if out:
        draw(shown, results, curves, model, out.with_suffix(".png"))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
