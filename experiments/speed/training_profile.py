# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a training step's time goes, and how much of the machine's arithmetic it uses.

    python -m experiments.speed.training_profile            # both presets, some minutes
    python -m experiments.speed.training_profile --quick    # a small network: is all in order?

For each preset: patterns per second; the floating-point operations in matrix products, counted in
the step's own program, as a share of the rate at which this machine multiplies two large matrices;
the time of each part (the programs that end after simulation, after the loss, after the gradient,
and the whole step, and what each takes longer than the one before); compilations and implicit
transfers between host and device while training runs (both must be none). Writes
experiments/results/training_profile.json and prints a Markdown table.
"""

import dataclasses
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.common.markdown import flowed, table
from experiments.common.results import results_file, save
from experiments.speed.arithmetic import operations_of
from jaxstem.app.demo import sample
from jaxstem.crystal.reading import read_cif
from jaxstem.diffraction.material import Material, make_material, phases_space
from jaxstem.diffraction.settings import Microscope, Specimen
from jaxstem.network import losses
from jaxstem.network.model import build_network
from jaxstem.runtime import parallel
from jaxstem.runtime.cache import default_cache
from jaxstem.training.acquisition import Acquisition
from jaxstem.training.config import TrainConfig, preset_config
from jaxstem.training.patterns import make_sources, simulate_batch, with_prior
from jaxstem.training.step import (
    GROUP,
    LENGTHS,
    apply_with_dropout,
    in_groups,
    init_state,
    make_optimiser,
    make_train_step,
)
from jaxstem.training.validation import make_validation

COPPER = sample("Cu.cif")
PARTS = ("simulation", "forward", "backward", "update")


@dataclass(frozen=True)
class Arguments:
    """presets: which to profile; largest_batch: patterns a step, where a preset has more (the 1024
    of `paper` take 15 GB of memory); quick: a small network, written nowhere unless `out` is given.
    """

    presets: tuple[str, ...] = ("default", "paper")
    largest_batch: int = 256
    quick: bool = False
    out: Path | None = None


def seconds_per_call(calls: dict[str, Callable[[], object]], least: float) -> dict[str, float]:
    """Of calls that are compiled already: the best of five rounds of `least` seconds or one call,
    whichever is longer, in turns, so that other work on the machine meets all alike.
    """
    best: dict[str, float] = {}
    for _ in range(5):
        for name, call in calls.items():
            n = max(1, int(least / best.get(name, least)))
            start = time.perf_counter()
            for _ in range(n):
                result = call()
            jax.block_until_ready(result)
            best[name] = min(best.get(name, float("inf")), (time.perf_counter() - start) / n)
    return best


def matrix_product(size: int) -> Callable[[], object]:
    """A product of two float32 matrices, `2 size^3` operations."""
    a = jax.random.normal(jax.random.key(0), (size, size))
    product = jax.jit(jnp.matmul)
    return lambda: product(a, a)


class Compilations:
    """Counts what jax compiles from the moment it is made."""

    def __init__(self):
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration: float, **_):
        self.count += event == "/jax/core/compile/backend_compile_duration"


def groups(config: TrainConfig, mesh) -> tuple[int, ...]:
    """Lengths to which the step pads groups of patterns; none where it pads all alike."""
    per_device, n_disks = config.batch // mesh.size, config.model.n_disks
    by_length = mesh.devices.flat[0].platform == "cpu"
    if not by_length or per_device % GROUP or per_device <= GROUP:
        return ()
    return (*(length for length in LENGTHS if length < n_disks), n_disks)


def shares(n_disks: np.ndarray, lengths: tuple[int, ...]) -> tuple[float, ...]:
    """Of the groups of a batch, with so many disks each, those padded to each of the lengths."""
    longest = np.sort(n_disks).reshape(-1, GROUP).max(axis=1)
    chosen = np.bincount(np.searchsorted(lengths, longest), minlength=len(lengths))
    return tuple(chosen / chosen.sum())


def parts(materials: list[Material], config: TrainConfig, network, mesh):
    """Programs `(state, key, sources)` that end after simulation, the loss, the gradient."""
    space = phases_space(materials)
    loss_fn = losses.batched(config.chosen_loss)
    per_device = config.batch // mesh.size

    def up_to(part, state, key, sources):
        key = jax.random.fold_in(key, state.step)
        index = parallel.sample_index(per_device)
        batch = simulate_batch(key, index, sources, config, materials[0].k_max)
        batch = with_prior(batch, sources, materials)
        if part == "simulation":
            return batch

        def mean_loss(params, batch, index):
            output = apply_with_dropout(network, params, batch, key, index)
            return loss_fn(output, batch.label, space).mean()

        of_part = mean_loss if part == "forward" else jax.value_and_grad(mean_loss)
        of_batch = partial(of_part, state.params)
        grouped = groups(config, mesh)
        found = in_groups(of_batch, batch, index) if grouped else of_batch(batch, index)
        return jax.lax.pmean(found, parallel.AXIS)

    whole = parallel.REPLICATED
    return {
        part: parallel.pmap(
            partial(up_to, part),
            mesh,
            whole,
            parallel.SHARDED if part == "simulation" else whole,
        )
        for part in PARTS[:3]
    }


def profile(config: TrainConfig, matrix_size: int, least: float) -> dict:
    """The numbers of one preset, for copper at 300 kV; `least` seconds for each timing."""
    copper = [
        make_material(
            read_cif(COPPER),
            Microscope(300.0, k_max=2.0),
            Specimen(),
            config.model.spacing_deg,
        )
    ]
    mesh = parallel.make_mesh()
    optimiser = make_optimiser(config)
    # as a step has it
    network = build_network(config.model, copper).clone(precision=jax.lax.Precision.DEFAULT)
    sources = make_sources(copper, config, cache=default_cache())
    begin = lambda: init_state(network, optimiser, 0, 1000)  # noqa: E731
    arrays = (begin(), begin(), jax.random.key(0), sources)
    fixed, state, key, sources = parallel.replicate(arrays, mesh)
    step = make_train_step(network, copper, config, optimiser, mesh)
    validate = make_validation(network, copper, config, sources, mesh)

    def advance():
        nonlocal state
        state, loss = step(state, key, sources)
        return loss

    programs = parts(copper, config, network, mesh)
    calls = {part: partial(program, fixed, key, sources) for part, program in programs.items()}
    calls |= {"update": advance, "matrix product": matrix_product(matrix_size)}
    firsts = {part: jax.block_until_ready(call()) for part, call in calls.items()}
    disks = np.asarray(firsts["simulation"].disks.mask).sum(axis=1)
    lengths = groups(config, mesh)
    branches = shares(disks, lengths) if lengths else ()
    operations = operations_of(step, state, key, sources, branches=branches)
    matrix = mesh.size * operations.matrix
    validate(fixed.params)

    compilations = Compilations()
    with jax.transfer_guard("disallow"):  # raises at an implicit transfer
        seconds = seconds_per_call(calls, least)
    compiled = compilations.count
    validation = seconds_per_call({"all": lambda: validate(fixed.params)}, least)["all"]
    whole = seconds["update"]
    rate = 2 * matrix_size**3 / seconds["matrix product"]
    ends = [0.0] + [seconds[part] for part in PARTS]
    return {
        "batch": config.batch,
        "disks": config.model.n_disks,
        "mean_disks": round(float(disks.mean()), 1),
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "seconds_per_step": round(whole, 5),
        "patterns_per_second": round(config.batch / whole, 1),
        "matrix_gflop_per_step": round(matrix / 1e9, 3),
        "all_gflop_per_step": round(mesh.size * sum(operations) / 1e9, 3),
        "matrix_gflop_per_second": round(rate / 1e9, 1),
        "share_of_matrix_rate": round(matrix / whole / rate, 4),
        "seconds": {
            part: round(end - begin, 5)
            for part, begin, end in zip(PARTS, ends, ends[1:], strict=False)
        },
        "seconds_per_validation": round(validation, 3),
        "compilations_while_training": compiled,
        "implicit_transfers": 0,
    }


def small(config: TrainConfig) -> TrainConfig:
    """A network and a source of patterns for a look in seconds."""
    network = dataclasses.replace(config.model, width=16, blocks=1, feedforward=32, heads=2)
    network = dataclasses.replace(network, n_disks=12, spacing_deg=12.0)
    return dataclasses.replace(
        config,
        model=network,
        acquisition=Acquisition(false_rate=(0.0, 0.0), overlap=0.0),
        physics="two_beam",
        no_crystal=0.0,
        batch=32,
        n_validation=32,
    )


def to_table(results: dict) -> str:
    """The presets side by side."""
    found, rows = list(results["presets"].values()), []
    rows.append(("batch × disks", *(f"{r['batch']} × {r['disks']}" for r in found)))
    rows.append(("patterns/s", *(f"{r['patterns_per_second']:.0f}" for r in found)))
    rows.append(("step [ms]", *(f"{1e3 * r['seconds_per_step']:.1f}" for r in found)))
    for part in PARTS:
        row = (
            f"{1e3 * r['seconds'][part]:.1f} ({r['seconds'][part] / r['seconds_per_step']:.0%})"
            for r in found
        )
        rows.append((f"{part} [ms]", *row))
    rows.append(("matrix Gflop a step", *(f"{r['matrix_gflop_per_step']:.2f}" for r in found)))
    row = (f"{r['matrix_gflop_per_second']:.0f}" for r in found)
    rows.append(("large products [Gflop/s]", *row))
    rows.append(("share of that rate", *(f"{r['share_of_matrix_rate']:.0%}" for r in found)))
    rows.append(("validation [s]", *(f"{r['seconds_per_validation']:.2f}" for r in found)))
    rows.append(("compilations", *(str(r["compilations_while_training"]) for r in found)))
    return table(["", *results["presets"]], rows)


COLUMNS = ("`--preset`", "parameters", "patterns a step", "patterns/s", "of the matrix rate")


def to_markdown(results: dict) -> str:
    """How fast each preset trains."""
    rows = [
        [
            f"`{name}`",
            f"{ran['parameters'] / 1e6:.1f} million",
            ran["batch"],
            f"{ran['patterns_per_second']:,.0f}",
            f"{100 * ran['share_of_matrix_rate']:.0f} %",
        ]
        for name, ran in results["presets"].items()
    ]
    told = flowed(f"""
Training, the simulation of its patterns included (`experiments/speed/training_profile.py`;
{results["device"]}): floating-point operations in matrix products, counted in the step's program,
as a share of the rate at which the machine multiplies two large matrices.
""")
    return f"{table(COLUMNS, rows)}\n\n{told}"


def main(arguments: Arguments) -> None:
    """Profile, print, write."""
    if arguments.quick:
        jax.config.update("jax_disable_most_optimizations", True)
    device = jax.devices()[0]
    results = {
        "device": f"{jax.device_count()} x {device.device_kind}, {os.cpu_count()} cores",
        "load_average": os.getloadavg()[0],
        "jax": jax.__version__,
        "python": platform.python_version(),
        "presets": {},
    }
    out = results_file(arguments, "training_profile")
    for name in arguments.presets[:1] if arguments.quick else arguments.presets:
        config = preset_config(name)
        config = dataclasses.replace(config, batch=min(config.batch, arguments.largest_batch))
        config = small(config) if arguments.quick else config
        print(f"{name} …", flush=True)
        size, least = (512, 0.02) if arguments.quick else (2048, 0.5)
        results["presets"][name] = profile(config, size, least)
        save(out, results, to_markdown)
    print(to_table(results))
    print(f"\n{results['device']}, load average {results['load_average']:.1f}")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
