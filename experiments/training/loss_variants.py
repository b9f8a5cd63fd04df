# SPDX-License-Identifier: GPL-3.0-or-later
"""One encoder, one budget, one stream of patterns, and each loss of `jaxstem.network.losses`.

    python -m experiments.training.loss_variants [--steps 2000] [--seeds 0 1] [--variants grid_8]

Every variant is `jaxstem.training.train` with another loss: it sees the same spoilt Bloch-wave
patterns of one crystal in the same order and is asked, as it learns, for the likeliest orientation
of patterns that it has not seen; nothing is verified. Grids read to a cell, so that their median is
not below about a quarter of their spacing. `grid_8` is the grid distribution at 8 degrees,
`simulation` the geodesic loss with a physics term (correlation of re-simulated disks), a function
of one's own. Prints a table and writes results/loss_variants.json and .png, with mean and spread
over seeds. About four minutes on two cores for each variant and seed with 2000 steps.
"""

import json
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev

import matplotlib
import numpy as np
import tyro

from experiments.common.figures import drawn
from experiments.common.markdown import flowed, heading, line, table
from experiments.common.results import results_file, save, settings
from experiments.training.runs import material_of, tiny
from jaxstem.app.demo import sample
from jaxstem.crystal.reading import read_cif
from jaxstem.network import losses
from jaxstem.network.transformer import ModelConfig
from jaxstem.runtime.cache import default_cache
from jaxstem.training.config import TrainConfig
from jaxstem.training.loop import train

VARIANTS = (
    *(name for name in losses.LOSSES if name != "grid_cross_entropy"),
    "simulation",
    "grid_12",
    "grid_8",
    "grid_5.5",
    "grid_4",
)


@dataclass(frozen=True)
class Arguments:
    """variants: see above; steps: of `batch` patterns; n_test: patterns of the test, taken ten
    times; seeds: of weights and patterns; network: the encoder that all share, whose spacing serves
    heads without grid; quick: a run of seconds that writes nothing unless `out` is given.
    """

    cif: Path = sample("Cu.cif")
    variants: tuple[str, ...] = VARIANTS
    steps: int = 2000
    batch: int = 256
    n_test: int = 1024
    seeds: tuple[int, ...] = (0,)
    learning_rate: float = 1.5e-3
    physics: str = "bloch"
    voltage_kv: float = 300.0
    k_max: float = 2.0
    network: ModelConfig = field(
        default_factory=lambda: ModelConfig(width=64, feedforward=128, templates=False)
    )
    quick: bool = False
    out: Path | None = None


def variant_of(name: str, crystal, arguments: Arguments):
    """Material and loss of a variant."""
    spacing = arguments.network.spacing_deg
    if name.startswith("grid_"):
        name, spacing = "grid_cross_entropy", float(name.removeprefix("grid_"))
    shown = material_of(crystal, arguments, spacing)
    if name == "simulation":
        microscope = replace(shown.microscope, k_max=min(1.2, arguments.k_max))
        near = replace(shown, microscope=microscope).reflectors()
        compared = losses.with_simulation(near, shown.wavelength)
        return shown, losses.Loss(compared, head="matrix")
    return shown, losses.LOSSES[name]


def learn(name: str, seed: int, crystal, arguments: Arguments) -> list[dict]:
    """Rows of accuracy against patterns seen."""
    shown, loss = variant_of(name, crystal, arguments)
    config = TrainConfig(
        model=arguments.network,
        physics=arguments.physics,
        no_crystal=0.0,
        steps=arguments.steps,
        batch=arguments.batch,
        learning_rate=arguments.learning_rate,
        seed=seed,
        n_validation=arguments.n_test,
    ).with_loss(loss)
    with tempfile.TemporaryDirectory() as folder:
        train([shown], config, folder, progress=False, cache=default_cache())
        told = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    return [
        {
            "patterns": row["patterns"],
            "loss": row["loss"],
            "median_deg": row["val_median_deg"],
            "within_5": 100 * row["val_within_5deg"],
            "within_5_mod_180": 100 * row["val_within_5deg_mod_180"],
            "seconds": row["seconds"],
        }
        for row in map(json.loads, told)
    ]


COLUMNS = ("loss", "seeds", "median", "within 5°", "within 5° mod 180°")


def cells(name: str, runs: list[list[dict]]) -> list[str]:
    """The last row of a variant, mean and spread over its seeds."""
    shown = []
    for key, unit in (("median_deg", "°"), ("within_5", " %"), ("within_5_mod_180", " %")):
        last = [rows[-1][key] for rows in runs]
        spread = f" ± {stdev(last):.1f}" if len(last) > 1 else ""
        shown.append(f"{fmean(last):.1f}{spread}{unit}")
    return [f"`{name}`", str(len(runs)), *shown]


def to_markdown(results: dict) -> str:
    """A row for each loss."""
    runs_of = {name: runs for name, runs in results["results"].items() if runs}
    patterns = next(iter(runs_of.values()))[0][-1]["patterns"]
    told = flowed(f"""
{patterns:,} patterns of training each, network alone, no templates, nothing verified
(`experiments/training/loss_variants.py`; [figure](experiments/results/loss_variants.png); what it
teaches: [docs/losses.md](docs/losses.md)).
""")
    return f"{table(COLUMNS, (cells(*of) for of in runs_of.items()))}\n\n{told}"


def draw_figure(results: dict[str, list[list[dict]]], path: Path) -> None:
    """Accuracy against patterns seen, a line for each variant, a band over seeds."""
    titles = {"within_5": "likeliest within 5° (%)", "within_5_mod_180": "the same modulo 180° (%)"}
    colours = matplotlib.colormaps["tab20"].colors
    with drawn(path, 1, 2, (11, 4.5)) as (figure, axes):
        for panel, (key, title) in zip(axes, titles.items(), strict=True):
            for colour, (name, runs) in zip(colours, results.items(), strict=False):
                patterns = [row["patterns"] for row in runs[0]]
                values = np.array([[row[key] for row in rows] for rows in runs])
                dashes = "-" if name.startswith("grid_") else "--"
                panel.plot(patterns, values.mean(axis=0), dashes, color=colour, label=name)
                if len(runs) > 1:
                    ends = values.min(axis=0), values.max(axis=0)
                    panel.fill_between(patterns, *ends, color=colour, alpha=0.2)
            panel.set(xlabel="patterns seen", ylabel=title)
            panel.set_ylim(bottom=0)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)


def main(arguments: Arguments) -> None:
    """Train each variant with each seed, print, write."""
    if arguments.quick:
        few_disks = replace(arguments.network, n_disks=8)
        arguments = replace(arguments, network=few_disks, variants=("quaternion",))
        arguments = tiny(arguments)
    crystal = read_cif(arguments.cif)
    results: dict[str, list[list[dict]]] = {name: [] for name in arguments.variants}
    out = results_file(arguments, "loss_variants")
    print(heading(*COLUMNS))
    for seed in arguments.seeds:
        for name, runs in results.items():
            runs.append(learn(name, seed, crystal, arguments))
            print(line(cells(name, runs)), flush=True)
            # a part of it, should the run be ended before its end
            save(out, {"settings": settings(arguments), "results": results}, to_markdown)
    print(to_markdown({"results": results}))
    if out:
        draw_figure(results, out.with_suffix(".png"))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
