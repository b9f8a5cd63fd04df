# SPDX-License-Identifier: GPL-3.0-or-later
"""What a GPU does: inference alone, whole scans of a million positions, and a model from its CIF.

    python -m experiments.speed.accelerator --parts inference maps    # twice: the first compiles
    python -m experiments.speed.accelerator --parts training --minutes 1.8
    python -m experiments.speed.accelerator --quick                   # is all in order?

inference: patterns a second through network (and verification), from arrays on the device and from
arrays on the host and back, for the packaged model and for the published network (untrained, its
own settings), patterns padded to `disks` disks.
maps: the whole command `jaxstem map` on the sample tiled to side × side, from the packed table and
from BraggVectors, `runs` times with programs that are kept (a first, untimed one compiles them).
training: the whole command `jaxstem train` on Cu's CIF, then the accuracy of the sample mapped with
that model, from py4DSTEM's disks.

Each part leaves its numbers in experiments/results/accelerator.json beside those of the others, if
they are of the same device.
"""

import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # commands share the GPU with this

import jax
import tyro

from experiments.common.markdown import flowed, table
from experiments.common.results import load, results_file, save
from experiments.speed.runner import Runner, accuracy, patterns_of, spread
from experiments.speed.scans import CIF, SAMPLE, command, small_model, tiled, write_bragg
from jaxstem.diffraction.geometry import Disks
from jaxstem.files.emd import read_disks
from jaxstem.files.map_file import read_map
from jaxstem.files.packed import write_packed
from jaxstem.inference.config import InferConfig
from jaxstem.inference.exposure import Exposure
from jaxstem.network.model import Model, load_model
from jaxstem.network.transformer import ModelConfig, init_params
from jaxstem.runtime.cache import default_cache

PARTS = ("inference", "maps", "training")


@dataclass(frozen=True)
class Arguments:
    """parts: what is measured; model: folder or packaged name; refine: of the maps; side: of their
    scan; runs: of each; disks: to which patterns are padded for inference alone; minutes, batch: of
    training; folder: for scans, maps and the trained model (None: one that goes afterwards); quick:
    small, by a small network, written nowhere unless `out` is given.
    """

    parts: tuple[str, ...] = PARTS
    model: str = "cu"
    refine: tuple[str, ...] = ("none", "fast")
    side: int = 1024
    runs: int = 3
    disks: int = 20
    minutes: float = 1.8
    batch: int | None = None
    folder: Path | None = None
    quick: bool = False
    out: Path | None = None


def published(model: Model) -> Model:
    """The published network, untrained, for the crystals of a model."""
    bare = Model(ModelConfig.paper(), model.materials, None)
    params = jax.jit(partial(init_params, bare.network))(jax.random.key(0))
    return dataclasses.replace(bare, params=params)


def seconds(call: Callable[[], object], least: float = 0.3) -> float:
    """Of one call, the mean over as many as `least` seconds hold, after one."""
    jax.block_until_ready(call())
    start, n = time.perf_counter(), 0
    while time.perf_counter() - start < least:
        found = [call() for _ in range(5)]
        jax.block_until_ready(found)
        n += 5
    return (time.perf_counter() - start) / n


def inference(arguments: Arguments) -> dict:
    """Patterns a second for each model, kind of refinement and precision."""
    model, scan, found = load_model(arguments.model), read_disks(SAMPLE), {}
    ways = [(how, "float32") for how in arguments.refine] + [("none", "bfloat16")]
    tasks = [("packaged", model, *way) for way in ways]
    if not arguments.quick:
        paper = published(model)
        tasks += [("paper", paper, "none", way) for way in ("float32", "bfloat16")]
    for name, of, how, precision in tasks:
        config = InferConfig(refine=how, precision=precision, cache=default_cache())
        runner = Runner(of, config)
        disks, exposed = patterns_of(runner, scan, arguments.disks)
        there = jax.device_put((disks, exposed))
        alone = seconds(lambda runner=runner, there=there: runner.predict(runner.params, *there))
        start, n = time.perf_counter(), 2 if arguments.quick else 12
        runner.answers([HostBatch(disks, exposed)] * n)
        with_copies = (time.perf_counter() - start) / n
        found[f"{name}, {how}, {precision}"] = {
            "batch": runner.batch,
            "disks": arguments.disks,
            "patterns_per_second": round(runner.batch / alone),
            "patterns_per_second_from_host": round(runner.batch / with_copies),
        }
    return found


class HostBatch(NamedTuple):
    """Patterns in arrays of the host."""

    disks: Disks
    exposed: Exposure


def whole_maps(arguments: Arguments, folder: Path) -> dict:
    """Seconds of `jaxstem map` for each kind of file and refinement."""
    shape, found = (arguments.side, arguments.side), {}
    scans = {"packed": folder / "packed.h5", "bragg": folder / "bragg.h5"}
    if not scans["packed"].exists():
        write_packed(scans["packed"], tiled(read_disks(SAMPLE), shape), progress=False)
    if not scans["bragg"].exists():
        write_bragg(scans["bragg"], shape)
    for how in arguments.refine:
        for kind, scan in scans.items():
            words = ["map", str(scan), "--model", arguments.model, "--refine", how]
            words += ["--out", str(folder / f"map-{how}.h5"), "--overwrite"]
            compiled = kind != "packed"  # the same program serves both
            first = None if compiled else command(*words)
            runs = [command(*words) for _ in range(1 if arguments.quick else arguments.runs)]
            total = spread([run["seconds"] for run in runs])
            found[f"{kind}, {how}"] = {
                "side": arguments.side,
                "seconds": {k: round(v, 2) if v else v for k, v in total.items()},
                "first_seconds": None if first is None else round(first["seconds"], 2),
                "positions_per_second": round(arguments.side**2 / total["mean"]),
                "peak_gib": round(max(run["peak_gib"] for run in runs), 2),
            }
    return found


def training(arguments: Arguments, folder: Path) -> dict:
    """Seconds from a CIF to a model, what it saw, and how well it maps the sample."""
    made = folder / "trained"
    words = ["train", "--cif", str(CIF), "--out", str(made), "--overwrite"]
    words += ["--minutes", str(arguments.minutes)]
    words += ["--batch", str(arguments.batch)] if arguments.batch else []
    ran = command(*words)
    record = json.loads((made / "model.json").read_text())["record"]
    found = {"seconds": round(ran["seconds"], 1), "steps": record["total_steps"]}
    found["batch"] = record["config"]["batch"]
    found["patterns"] = found["steps"] * found["batch"]
    found["validation"] = record["validation"]
    for how in arguments.refine:
        target = folder / f"by-trained-{how}.h5"
        command("map", str(SAMPLE), "--model", str(made), "--refine", how, "--out", str(target),
                "--no-figure", "--overwrite")  # fmt: skip
        found[f"sample, {how}"] = accuracy(read_map(target))
    return found


COLUMNS = (
    "network",
    "`--refine`",
    "precision",
    "patterns/s",
    "with copies from and to the host",
)


def to_markdown(results: dict) -> str:
    """Inference alone."""
    rows = []
    for key, ran in results["inference"].items():
        name, how, precision = key.split(", ")
        label = "published (width 384)" if name == "paper" else "packaged `cu`"
        rate, whole = ran["patterns_per_second"], ran["patterns_per_second_from_host"]
        rows.append([label, how, precision, f"{rate:,}", f"{whole:,}"])
    disks = next(iter(results["inference"].values()))["disks"]
    told = flowed(f"""
Patterns of {disks} disks on {results["device"]} (`experiments/speed/accelerator.py`), from arrays
that are there, and with copies of disks to the device and of answers back; published: 19,000
patterns a second.
""")
    return f"{table(COLUMNS, rows)}\n\n{told}"


def main(arguments: Arguments) -> None:
    """Measure, print, write."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if arguments.quick:
            jax.config.update("jax_disable_most_optimizations", True)
            model = str(small_model(folder / "model"))
            arguments = dataclasses.replace(
                arguments, parts=("inference",), refine=("none",), model=model, side=8, disks=12
            )
        device = jax.devices()[0]
        name = f"{jax.device_count()} x {device.device_kind}"
        results = {"device": name, "cores": os.cpu_count(), "jax": jax.__version__}
        out = results_file(arguments, "accelerator")
        before = load(out)
        results |= before if before.get("device") == name else {}
        measure = {
            "inference": lambda: inference(arguments),
            "maps": lambda: whole_maps(arguments, folder),
            "training": lambda: training(arguments, folder),
        }
        for part in arguments.parts:
            results[part] = measure[part]()
            print(f"{part} on {name}:")
            for key, value in results[part].items():
                print(f"  {key}: {json.dumps(value)}", flush=True)
            save(out, results, to_markdown)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
