# SPDX-License-Identifier: GPL-3.0-or-later
"""What the network needs: width, depth, tokens, grid spacing, channels, templates.

    python -m experiments.training.network_study [--steps 1500] [--variants default width_48]

Networks that differ from the packaged one in one respect learn from the same stream of spoilt
Bloch-wave patterns, all for as many steps, and are asked two things: unseen patterns of the same
kind (loss, the likeliest cell within 5°, the truth near one of the best 16 cells), and
`random_test_set.py`'s patterns with `--refine none` and `fast`. Beside it stands what they cost:
megabytes, seconds of a training step, and microseconds of network and templates for a pattern of
eight disks, timed in turns so that a busy machine disturbs all alike. Prints a table and writes
results/network_study.json and .png. About three minutes on two cores for each variant.
"""

import json
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import tyro

from experiments.common.errors import errors
from experiments.common.figures import drawn
from experiments.common.markdown import table
from experiments.common.results import results_file, save, settings
from experiments.simulate.random_test_set import TestSet, random_test_set
from experiments.training.runs import material_of, tiny
from jaxstem.app.demo import sample
from jaxstem.crystal.reading import read_cif
from jaxstem.diffraction.geometry import Disks
from jaxstem.inference.config import InferConfig
from jaxstem.inference.step import scorer
from jaxstem.inference.stream import predict_scan
from jaxstem.network.model import Model
from jaxstem.network.transformer import ModelConfig
from jaxstem.runtime import parallel
from jaxstem.training.acquisition import Acquisition
from jaxstem.training.config import TrainConfig
from jaxstem.training.library import LibraryConfig
from jaxstem.training.loop import train

VARIANTS: dict[str, dict] = {
    "default": {},
    "width_48": {"width": 48, "feedforward": 96},
    "width_192": {"width": 192, "feedforward": 384},
    "blocks_1": {"blocks": 1},
    "blocks_6": {"blocks": 6},
    "tokens_10": {"n_disks": 10},
    "tokens_38": {"n_disks": 38},
    "spacing_8": {"spacing_deg": 8.0},
    "spacing_4": {"spacing_deg": 4.0},
    "digitised": {"embedding": "digitised"},
    "no_templates": {"templates": False},
}
N_DISKS, N_TIMED = 8, 1024
"""Disks of the patterns that are timed, a usual number, and how many patterns a call takes."""


@dataclass(frozen=True)
class Arguments:
    """variants: which; steps: of `batch` patterns, for each; n_validation, n_test: unseen patterns
    of both kinds; refine: how the latter are indexed; quick: a run of seconds that writes nothing
    unless `out` is given.
    """

    cif: Path = sample("Cu.cif")
    variants: tuple[str, ...] = tuple(VARIANTS)
    steps: int = 1500
    batch: int = 256
    learning_rate: float = 1.5e-3
    n_validation: int = 4096
    n_test: int = 1024
    voltage_kv: float = 300.0
    k_max: float = 2.0
    network: ModelConfig = field(default_factory=ModelConfig)
    physics: str = "bloch"
    refine: tuple[str, ...] = ("none", "fast")
    seed: int = 0
    quick: bool = False
    out: Path | None = None


def trained(name: str, crystal, arguments: Arguments, folder: Path) -> Model:
    """The variant after its steps; libraries of patterns are kept in `folder` for the next one."""
    network = replace(arguments.network, **VARIANTS[name])
    shown = material_of(crystal, arguments, network.spacing_deg)
    config = TrainConfig(
        model=network,
        acquisition=Acquisition(),
        library=LibraryConfig(),
        physics=arguments.physics,
        steps=arguments.steps,
        batch=arguments.batch,
        learning_rate=arguments.learning_rate,
        n_validation=arguments.n_validation,
        seed=arguments.seed,
    )
    return train((shown,), config, folder / name, cache=folder / "libraries")


def accuracy(model: Model, test: TestSet, refine: str) -> dict[str, float]:
    """Shares [%] of the test patterns within 5°, also modulo a turn by 180° about the beam."""
    answer, _ = predict_scan(model, test.scan(model.voltage_kv), InferConfig(refine=refine))
    operations = model.materials[0].operations
    plain, mod_180 = errors(answer.orientation, test.orientation, operations)
    return {
        "within_5": 100 * float((plain < 5).mean()),
        "within_5_mod_180": 100 * float((mod_180 < 5).mean()),
    }


def microseconds(models: dict[str, Model], rounds: int = 5) -> dict[str, float]:
    """Time of network and templates for one pattern, the best of some rounds over all models."""
    key = jax.random.split(jax.random.key(0), 3)
    shape = (N_TIMED, N_DISKS)
    qx, qy = (jax.random.uniform(k, shape, minval=-1.2, maxval=1.2) for k in key[:2])
    disks = Disks(qx, qy, jax.random.uniform(key[2], shape), jnp.ones(shape, bool))
    calls = {}
    for name, model in models.items():
        scores, made = scorer(model)
        calls[name] = (jax.jit(scores), model.params, made)
    best = dict.fromkeys(models, float("inf"))
    for _ in range(rounds + 1):  # the first round compiles
        for name, (call, params, made) in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call(params, made, disks))
            best[name] = min(best[name], time.perf_counter() - start)
    return {name: 1e6 * seconds / N_TIMED for name, seconds in best.items()}


COLUMNS = (
    "network",
    "cells",
    "MB",
    "µs a pattern",
    "ms a step",
    "loss",
    "likeliest within 5°",
    "truth in best 16",
)


def to_table(results: dict[str, dict]) -> str:
    """A row for each variant."""
    ways = [how for how in ("none", "fast") if all(how in r for r in results.values())]
    rows = [
        [
            name,
            f"{r['n_cells']:,}",
            f"{r['megabytes']:.1f}",
            f"{r['microseconds']:.0f}",
            f"{r['milliseconds_a_step']:.0f}",
            f"{r['loss']:.2f}",
            f"{r['likeliest_within_5']:.1f} %",
            f"{r['best_16']:.1f} %",
            *(f"{r[how]['within_5']:.1f} ({r[how]['within_5_mod_180']:.1f}) %" for how in ways),
        ]
        for name, r in results.items()
    ]
    return table([*COLUMNS, *(f"random set, {how} (mod 180°)" for how in ways)], rows)


def draw_figure(results: dict[str, dict], path: Path) -> None:
    """Accuracy against the cost of a pattern, a point for each variant."""
    panels = {
        "likeliest_within_5": "unseen patterns, likeliest within 5° (%)",
        "best_16": "unseen patterns, truth in best 16 cells (%)",
    }
    with drawn(path, 1, 2, (10, 4.2), sharex=True) as (figure, axes):
        for panel, (key, title) in zip(axes, panels.items(), strict=True):
            for number, (name, r) in enumerate(results.items()):
                size = 12 if name == "default" else 6
                style = {"marker": "*v^<>spPXDd"[number % 11], "ms": size, "ls": ""}
                panel.plot(r["microseconds"], r[key], label=name.replace("_", " "), **style)
            panel.set(xlabel="network and templates (µs a pattern)", ylabel=title, xscale="log")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)


def main(arguments: Arguments) -> None:
    """Train each variant, ask, time, print, write."""
    if arguments.quick:
        coarse = replace(arguments.network, spacing_deg=15.0)
        few = dict(variants=("no_templates",), refine=("none",), n_validation=32)
        arguments = tiny(replace(arguments, network=coarse, **few))
    crystal = read_cif(arguments.cif)
    mesh, models, results = parallel.make_mesh(), {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.variants:
            model = trained(name, crystal, arguments, Path(folder))
            if not results:
                test = random_test_set(model.materials[0], arguments.n_test, arguments.seed + 1)
            rows = (Path(folder) / name / "metrics.jsonl").read_text().splitlines()
            first, last = (json.loads(rows[i]) for i in (0, -1))
            between = (last["seconds"] - first["seconds"]) / max(last["step"] - first["step"], 1)
            found = model.record["validation"]
            models[name] = model
            results[name] = {
                "n_cells": len(model.materials[0].grid),
                "megabytes": 4e-6 * sum(x.size for x in jax.tree.leaves(model.params)),
                "milliseconds_a_step": 1e3 * between,
                "loss": found["val_loss"],
                "likeliest_within_5": 100 * found["val_within_5deg"],
                "best_16": 100 * found["val_best16_within_reach"],
                **{how: accuracy(model, test, how) for how in arguments.refine},
            }
            print(name, json.dumps(results[name]), flush=True)
    for name, cost in microseconds(models).items():
        results[name]["microseconds"] = cost
    print(to_table(results))
    out = results_file(arguments, "network_study")
    save(out, {"devices": mesh.size, "settings": settings(arguments), "results": results})
    if out:
        draw_figure(results, out.with_suffix(".png"))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
