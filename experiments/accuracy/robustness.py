# SPDX-License-Identifier: GPL-3.0-or-later
"""How accuracy falls off as a measurement gets worse, one factor at a time.

    python -m experiments.accuracy.robustness [--model cu] [--n 1024]      four minutes on two cores
    python -m experiments.accuracy.robustness --quick                      two levels of each factor

Bloch-wave patterns of random orientations (a library of its own, with another seed than training's)
are detected under a reference setting, and then under the same with one factor changed: dose,
missed disks, false disks, error of the beam centre, error of the pixel size, thickness. Three ways
to index them: the network and refinement, exhaustive matching and refinement, matching alone.
Prints a table of the shares within 5° and writes experiments/results/robustness.json and .png.
"""

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.common.errors import errors, shares
from experiments.common.figures import drawn
from experiments.common.markdown import flowed, heading, line, table
from experiments.common.patterns import scan_of
from experiments.common.results import results_file, save
from jaxstem.diffraction.geometry import Disks
from jaxstem.files.scan import pad_disks
from jaxstem.inference.config import InferConfig
from jaxstem.inference.exposure import MIN_DISKS, scan_exposure
from jaxstem.inference.step import make_predict
from jaxstem.network.matching import matching_model
from jaxstem.network.model import Model, load_model
from jaxstem.runtime import parallel
from jaxstem.training.acquisition import (
    add_false_disks,
    count_electrons,
    cut_weak,
    jitter_positions,
    miss_disks,
)
from jaxstem.training.library import Library, LibraryConfig, build_library, sample_pattern

THICKNESSES = (30.0, 400.0, 12)
"""Lowest and highest thickness [Å] of the library, and how many, evenly in the logarithm."""


@dataclass(frozen=True)
class Setting:
    """How a pattern is measured: dose in electrons; missed: share of disks lost; false: mean number
    of false disks; centre: error of the beam's position [1/Å] in a random direction; pixel_size:
    relative error; thickness [Å], 0 for a random one between 50 and 300 Å.
    """

    dose: float = 2e5
    missed: float = 0.0
    false: float = 1.0
    centre: float = 0.0
    pixel_size: float = 0.0
    thickness: float = 0.0


LEVELS: dict[str, tuple[float, ...]] = {
    "dose": (1e4, 3e4, 1e5, 3e5, 1e6),
    "missed": (0.0, 0.1, 0.2, 0.3, 0.5),
    "false": (0.0, 1.0, 2.0, 4.0, 6.0),
    "centre": (0.0, 0.01, 0.02, 0.03, 0.05),
    "pixel_size": (-0.03, -0.02, -0.01, 0.0, 0.01, 0.02, 0.03),
    "thickness": (40.0, 70.0, 110.0, 180.0, 280.0, 400.0),
}
TITLES = {
    "dose": "dose (electrons a pattern)",
    "missed": "share of disks missed",
    "false": "false disks a pattern",
    "centre": "centre error (1/Å)",
    "pixel_size": "pixel-size error",
    "thickness": "thickness (Å)",
}
BACKGROUND = 1e-4
"""Diffuse counts under a disk, a share of the dose."""
LIMIT, FEWEST_ELECTRONS = 5e-4, 25.0
"""A disk is found from this share of the beam, and from this many electrons."""
JITTER = 0.004
"""Scatter of positions [1/Å]."""


@dataclass(frozen=True)
class Arguments:
    """model: trained for one crystal, folder or packaged name; n: patterns of each setting; quick:
    a few, written nowhere unless `out` is given.
    """

    model: str = "cu"
    n: int = 1024
    seed: int = 1
    quick: bool = False
    out: Path | None = None


def layers(library: Library, thickness: float) -> Library:
    """The library at the thickness [Å] nearest to the one asked for, or at 50 to 300 Å."""
    values = np.geomspace(*THICKNESSES)
    chosen = (values >= 50) & (values <= 300)
    if thickness:
        chosen = np.arange(len(values)) == np.argmin(np.abs(np.log(values / thickness)))
    return library._replace(intensity=library.intensity[:, np.flatnonzero(chosen)])


@partial(jax.jit, static_argnames=("n", "k_max"))
def measure(
    key: jax.Array, library: Library, setting: Setting, n: int, k_max: float
) -> tuple[Disks, jax.Array]:
    """`n` detected patterns with the direct beam among their disks, and their orientations."""

    def one(key):
        keys = jax.random.split(key, 7)
        disks, orientation = sample_pattern(keys[0], library, 0)
        direct = jnp.maximum(1 - jnp.sum(disks.intensity), 0.05)
        cutoff = jnp.maximum(LIMIT, FEWEST_ELECTRONS / setting.dose)
        disks = count_electrons(keys[1], disks, setting.dose, BACKGROUND)
        disks = cut_weak(miss_disks(keys[2], disks, setting.missed), cutoff)
        disks = add_false_disks(keys[3], disks, setting.false, cutoff, k_max, n_max=16)
        disks = jitter_positions(keys[4], disks, JITTER)
        disks = Disks(*(jnp.append(x, v) for x, v in zip(disks, (0, 0, direct, True), strict=True)))
        angle = jax.random.uniform(keys[5], maxval=2 * jnp.pi)
        scale = 1 + setting.pixel_size
        qx = scale * disks.qx + setting.centre * jnp.cos(angle)
        qy = scale * disks.qy + setting.centre * jnp.sin(angle)
        return disks._replace(qx=qx, qy=qy), orientation

    return jax.vmap(one)(jax.random.split(key, n))


def score(predict, model: Model, disks: Disks, truth: np.ndarray) -> dict[str, float]:
    """Median and shares within 5° of the answers."""
    (material,) = model.materials
    scan = scan_of(disks, model.voltage_kv)
    everything = np.arange(len(truth))
    padded = Disks(*pad_disks(scan, everything, model.k_max, model.k_min, 24))
    answer, _ = predict(model.params, padded, scan_exposure(scan, model.k_min, model.k_max))
    orientation = np.array(answer.orientation)
    orientation[padded.mask.sum(axis=1) < MIN_DISKS] = np.nan
    return shares(*errors(orientation, truth, material.operations), digits=2)


def draw(results: dict, path: Path) -> None:
    """A panel for each factor: within 5° (lines) and the same modulo 180° (dashes)."""
    small = {"fontsize": "small", "title_fontsize": "small"}
    with drawn(path, 2, 3, (11, 6.5), sharey=True) as (_, panels):
        for panel, (factor, rows) in zip(panels.flat, results["factors"].items(), strict=True):
            levels = [row["level"] for row in rows]
            for colour, method in enumerate(results["methods"]):
                style = {"color": f"C{colour}", "marker": "o", "markersize": 4}
                plain = [row[method]["within_5"] for row in rows]
                mod_180 = [row[method]["within_5_mod_180"] for row in rows]
                panel.plot(levels, plain, label=method, **style)
                panel.plot(levels, mod_180, linestyle="--", **style)
            panel.set_xlabel(TITLES[factor])
            if factor == "dose":
                panel.set_xscale("log")
            panel.grid(alpha=0.3)
        panels[0, 0].set_ylabel("within 5° (%)")
        panels[1, 0].set_ylabel("within 5° (%)")
        panels[0, 0].legend(loc="lower right", title="dashed: modulo 180°", **small)


def both_shares(row: dict) -> str:
    """Within 5°, in brackets modulo 180°."""
    return f"{row['within_5']} % ({row['within_5_mod_180']} %)"


def to_markdown(results: dict) -> str:
    """The reference setting, and the hardest level of each factor."""
    methods, factors = results["methods"], results["factors"]
    usual = next(row for row in factors["pixel_size"] if row["level"] == 0)
    rows = [["the reference setting", *(both_shares(usual[m]) for m in methods)]]
    for factor, levels in factors.items():
        hardest = min(levels, key=lambda row: row[methods[0]]["within_5"])
        title = f"{results['titles'][factor]}: {hardest['level']:g}"
        rows.append([title, *(both_shares(hardest[m]) for m in methods)])
    told = flowed(f"""
Within 5°, in brackets modulo 180°, {results["n"]:,} Bloch-wave patterns of random orientations
each, model `{results["model"]}`; of each factor the hardest level
([all](experiments/results/robustness.png), `experiments/accuracy/robustness.py`).
""")
    return f"{table(['measured with', *methods], rows)}\n\n{told}"


def main(arguments: Arguments) -> None:
    """Simulate, index, score, print, draw."""
    levels, n, n_axes = LEVELS, arguments.n, 6_000
    if arguments.quick:
        levels = {factor: (values[0], values[-1]) for factor, values in LEVELS.items()}
        n, n_axes = 64, 500
    network = load_model(arguments.model)
    (material,) = network.materials
    matching = matching_model(
        [material.crystal], network.voltage_kv, network.k_max, u_iso=material.u_iso
    )
    mesh = parallel.make_mesh()
    n = -(-n // mesh.size) * mesh.size
    refined, alone = InferConfig(), InferConfig(refine="none")
    methods = {
        "network + refinement": (network, make_predict(network, refined, mesh)),
        "matching + refinement": (matching, make_predict(matching, refined, mesh)),
        "matching alone": (matching, make_predict(matching, alone, mesh)),
    }
    low, high, number = THICKNESSES
    config = LibraryConfig(n_axes=n_axes, n_thicknesses=number)
    foils = dataclasses.replace(material.specimen, thickness=(low, high))
    material = dataclasses.replace(material, specimen=foils)
    library = build_library(material, config, seed=1_000_003 + arguments.seed)

    results = {"model": arguments.model, "n": n, "seed": arguments.seed, "methods": list(methods)}
    results |= {"titles": TITLES, "factors": {}}
    print(f"Within 5° (modulo 180°), {n} patterns each, reference: {Setting()}\n")
    print(heading("factor", "level", *methods))
    key = jax.random.key(arguments.seed)
    for factor, values in levels.items():
        results["factors"][factor] = []
        for level in values:
            key, key_here = jax.random.split(key)
            setting = dataclasses.replace(Setting(), **{factor: level})
            source = layers(library, setting.thickness)
            disks, truth = measure(key_here, source, setting, n, network.k_max)
            row = {"level": level, "disks": float(np.median(np.asarray(disks.mask).sum(1) - 1))}
            for name, (model, predict) in methods.items():
                row[name] = score(predict, model, disks, np.asarray(truth))
            results["factors"][factor].append(row)
            cells = [TITLES[factor], f"{level:g}", *(both_shares(row[m]) for m in methods)]
            print(line(cells), flush=True)
    out = results_file(arguments, "robustness")
    save(out, results, to_markdown)
    if out:
        draw(results, out.with_suffix(".png"))


jax.tree_util.register_dataclass(
    Setting, data_fields=[f.name for f in dataclasses.fields(Setting)], meta_fields=[]
)

if __name__ == "__main__":
    main(tyro.cli(Arguments))
