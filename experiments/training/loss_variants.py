# SPDX-License-Identifier: GPL-3.0-or-later
"""One encoder, one budget, one stream of patterns, and each loss of `jaxstem.network.losses`.

    python -m experiments.training.loss_variants [--steps 2000] [--seeds 0 1] [--variants grid_8]

Every variant sees the same spoilt Bloch-wave patterns of one crystal in the same order and is
asked, as it learns, for the likeliest orientation of patterns that it has not seen; nothing is
verified. Grids read to a cell, so that their median is not below about a quarter of their spacing.
`grid_8` is the grid distribution at 8 degrees, `simulation` the geodesic loss with a physics term
(correlation of re-simulated disks). Prints a table and writes results/loss_variants.json and .png,
with mean and spread over seeds. About four minutes on two cores for each variant
and seed with 2000 steps.
"""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import tyro

from experiments.common.figures import drawn
from experiments.common.markdown import flowed, heading, line, table
from experiments.common.results import results_file, save, settings
from experiments.training.runs import material_of, tiny
from jaxstem.app.demo import sample
from jaxstem.crystal.cell import read_cif
from jaxstem.diffraction.material import phases_space
from jaxstem.network import heads, losses
from jaxstem.network.transformer import ModelConfig, OrientationTransformer
from jaxstem.orientation import symmetry
from jaxstem.training.config import TrainConfig
from jaxstem.training.patterns import make_sources
from jaxstem.training.patterns import simulate_batch as simulate
from jaxstem.training.step import init_state, learning_rate_schedule, make_optimiser

VARIANTS = (
    *(name for name in losses.LOSSES if name != "grid_cross_entropy"),
    "simulation",
    "grid_12",
    "grid_8",
    "grid_5.5",
    "grid_4",
)
TEST_INDEX = 1 << 28
"""First sample index of the test patterns, which no training step reaches."""
TEST_SEED = 1 << 16


@dataclass(frozen=True)
class Arguments:
    """variants: see above; steps: of `batch` patterns; checks: how often the test is taken; n_test:
    its patterns; seeds: of weights and patterns; network: the encoder that all share, whose
    spacing serves heads without grid; quick: a run of seconds that writes nothing unless `out` is
    given.
    """

    cif: Path = sample("Cu.cif")
    variants: tuple[str, ...] = VARIANTS
    steps: int = 2000
    checks: int = 5
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
    """Material, loss function and head of a variant."""
    spacing = arguments.network.spacing_deg
    if name.startswith("grid_"):
        name, spacing = "grid_cross_entropy", float(name.removeprefix("grid_"))
    shown = material_of(crystal, arguments, spacing)
    if name == "simulation":
        microscope = replace(shown.microscope, k_max=min(1.2, arguments.k_max))
        near = replace(shown, microscope=microscope).reflectors()
        return shown, losses.with_simulation(near, shown.wavelength), heads.HEADS["matrix"]
    return shown, losses.LOSSES[name].function, heads.HEADS[losses.LOSSES[name].head]


class Patterns(NamedTuple):
    """Batches, in main memory: those to learn from in order, and those of the test."""

    taught: list
    unseen: list


def make_patterns(sources, config: TrainConfig, k_max: float, seed: int, arguments: Arguments):
    """What all variants of a seed see; the test is the same for all seeds."""
    draw = jax.jit(lambda key, index, sources: simulate(key, index, sources, config, k_max))
    each = jnp.arange(arguments.batch)

    def batches(seed: int, starts: range) -> list:
        key = jax.random.key(seed)
        return [jax.device_get(draw(key, start + each, sources)) for start in starts]

    taught = range(0, arguments.steps * arguments.batch, arguments.batch)
    unseen = range(TEST_INDEX, TEST_INDEX + arguments.n_test, arguments.batch)
    return Patterns(batches(seed, taught), batches(TEST_SEED, unseen))


def learn(name: str, seed: int, crystal, patterns: Patterns, arguments: Arguments) -> list[dict]:
    """Rows of accuracy against patterns seen."""
    shown, loss_fn, head = variant_of(name, crystal, arguments)
    space = phases_space([shown])
    config = TrainConfig(learning_rate=arguments.learning_rate)
    network = OrientationTransformer(arguments.network, shown.k_max, head.n_out(space))
    optimiser = make_optimiser(config)

    @jax.jit
    def step(state, batch):
        def mean_loss(params):
            output = network.apply({"params": params}, batch.disks)
            return jax.vmap(loss_fn, (0, 0, None))(output, batch.label, space).mean()

        loss, gradient = jax.value_and_grad(mean_loss)(state.params)
        updates, opt_state = optimiser.update(gradient, state.opt_state, state.params)
        rate = learning_rate_schedule(config, state.step, state.total)
        params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
        return state._replace(step=state.step + 1, params=params, opt_state=opt_state), loss

    @jax.jit
    def errors(params, batch):
        output = network.apply({"params": params}, batch.disks)
        answer = jax.lax.map(lambda one: head.orientation(one, space), output, batch_size=64)
        pair = (answer, batch.label.orientation, space.operations[0])
        return symmetry.misorientation(*pair), symmetry.misorientation_mod_180(*pair)

    state = init_state(network, optimiser, seed, arguments.steps)
    checks = np.linspace(0, arguments.steps, arguments.checks + 1).astype(int)[1:]
    rows, start = [], time.perf_counter()
    for number, batch in enumerate(patterns.taught, 1):
        state, loss = step(state, batch)
        if number in checks:
            angles = [errors(state.params, batch) for batch in patterns.unseen]
            plain, mod_180 = (
                np.rad2deg(np.concatenate(x))[: arguments.n_test] for x in zip(*angles, strict=True)
            )
            rows.append(
                {
                    "patterns": number * arguments.batch,
                    "loss": float(loss),
                    "median_deg": float(np.median(plain)),
                    "within_5": 100 * float((plain < 5).mean()),
                    "within_5_mod_180": 100 * float((mod_180 < 5).mean()),
                    "seconds": time.perf_counter() - start,
                }
            )
    return rows


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
        arguments = replace(arguments, network=few_disks, variants=("quaternion",), checks=2)
        arguments = tiny(arguments)
    crystal = read_cif(arguments.cif)
    shared = TrainConfig(model=arguments.network, physics=arguments.physics, no_crystal=0.0)
    shown = material_of(crystal, arguments, 12.0)
    sources = make_sources([shown], shared)
    results: dict[str, list[list[dict]]] = {name: [] for name in arguments.variants}
    out = results_file(arguments, "loss_variants")
    print(heading(*COLUMNS))
    for seed in arguments.seeds:
        patterns = make_patterns(sources, shared, shown.k_max, seed, arguments)
        for name, runs in results.items():
            runs.append(learn(name, seed, crystal, patterns, arguments))
            print(line(cells(name, runs)), flush=True)
            # a part of it, should the run be ended before its end
            save(out, {"settings": settings(arguments), "results": results}, to_markdown)
    print(to_markdown({"results": results}))
    if out:
        draw_figure(results, out.with_suffix(".png"))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
