# SPDX-License-Identifier: GPL-3.0-or-later
"""Time of an orientation map against the size of the scan, for jaxstem and py4DSTEM.

    python -m experiments.speed.benchmark_speed --py4dstem ENV/bin/python    # within --minutes
    python -m experiments.speed.benchmark_speed --quick                      # is all in order?

The sample scan, tiled to each size, is mapped by both programs in turns: in each of `runs` rounds
every size by every method, so that whatever else the machine does meets all of them. jaxstem is
timed stage by stage in this process, one stage after the other with everything compiled (load,
tokens, inference, neighbours, map), and as the whole command, start, reading, picture and writing
included: first with an empty cache, then with what that run left there. py4DSTEM matches
`py4dstem_positions` positions spread over the scan, and its time for all of them is worked out.
What would not fit into the time left, by its earlier runs or those of smaller scans, is worked out
from the largest sizes that did, and marked so.

Measured besides: the accuracy of each way to run; how the cost of a pattern grows with its number
of disks and with phases; and the arithmetic floor of a pattern, operations counted in the program
over the rates at which this machine does them. Writes experiments/results/benchmark_speed.json and
.png and prints Markdown. A run that was interrupted goes on with --resume.
"""

import dataclasses
import itertools
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # commands share the GPU with this

import jax
import numpy as np
import tyro

from experiments.common.environments import elsewhere
from experiments.common.results import load, results_file, save
from experiments.speed.arithmetic import Operations, floor_seconds, operations_of, rates
from experiments.speed.benchmark_table import (
    STAGES,
    draw,
    extrapolated,
    summary,
    to_markdown,
    to_tables,
)
from experiments.speed.runner import Runner, accuracy, patterns_of, seconds_per_pattern
from experiments.speed.scans import CIF, SAMPLE, command, small_model, tiled, write_bragg
from jaxstem.detection.opening import open_scan
from jaxstem.files.distortion import undistorted
from jaxstem.files.emd import read_disks
from jaxstem.files.map_file import map_writer
from jaxstem.files.packed import write_packed
from jaxstem.files.scan import DiskSource, joined, source_of
from jaxstem.inference.batching import (
    PIECE,
    PaddedBatch,
    Piece,
    batches,
    likeliest_labels,
    no_labels,
    preview_scan,
)
from jaxstem.inference.config import InferConfig
from jaxstem.inference.step import scorer
from jaxstem.inference.stream import workers
from jaxstem.inference.verdict import Answer
from jaxstem.mapping import map_header, map_scan
from jaxstem.network.model import Model, load_model
from jaxstem.network.transformer import ModelConfig, init_params
from jaxstem.runtime import parallel
from jaxstem.runtime.cache import default_cache
from jaxstem.scan.alone import n_labels
from jaxstem.scan.context import in_context

PACKED_FROM = 1024
"""Sides from which on the packed table is timed beside the BraggVectors."""


@dataclass(frozen=True)
class Arguments:
    """sides: of the square scans; runs: rounds; staged, packed: of them those that time the stages
    of the largest scans, and their packed table; minutes: for the rounds, all told; refine: ways to
    run; precision: of the network, each for `none`; model: folder or packaged name; py4dstem: the
    interpreter of its environment (experiments/fixtures/requirements.txt); growth: time the cost by
    disks and phases; paper: time the published network, untrained; resume: go on with what OUT
    holds; quick: the smallest of all, written nowhere unless `out` is given.
    """

    sides: tuple[int, ...] = (8, 16, 32, 64, 128, 256, 512, 1024)
    runs: int = 10
    staged: int = 10
    packed: int = 10
    minutes: float = 60.0
    refine: tuple[str, ...] = ("none", "fast")
    precision: tuple[str, ...] = ("float32", "bfloat16")
    model: str = "cu"
    py4dstem: Path | None = None
    py4dstem_positions: int = 64
    growth: bool = True
    paper: bool = False
    resume: bool = False
    quick: bool = False
    out: Path | None = None


def stages(scan_file: Path, runner: Runner, target: Path) -> dict[str, float]:
    """Seconds of each stage of a map, one after the other, compilation left out."""
    clock = [time.perf_counter()]
    model, config = runner.model, runner.config
    source = open_scan(scan_file)
    scan = joined([source.read(*rows) for rows in source.pieces(PIECE)])
    clock.append(time.perf_counter())
    within = source_of(scan)
    known = preview_scan(within, model, config)
    found = list(batches(within, model, config, known, (0, scan.scan_shape[0]), runner.batch))
    pieces, made = ([x for x in found if isinstance(x, kind)] for kind in (Piece, PaddedBatch))
    clock.append(time.perf_counter())
    runner.prepare(made)
    clock[-1], lost = time.perf_counter(), time.perf_counter() - clock[-1]
    answers = runner.answers(made)
    for batch, (answer, labels) in zip(made, answers, strict=True):
        start = 0
        for piece, index in batch.where:
            own = slice(start, start + len(index))
            piece.put(index, *jax.tree.map(lambda x, own=own: x[own], (answer, labels)))
            start += len(index)
    clock.append(time.perf_counter())
    if scan.scan_shape not in runner.compiled:
        in_neighbours(runner, within, pieces)  # once untimed, for its programs
        runner.compiled.add(scan.scan_shape)
    again = time.perf_counter()
    found = in_neighbours(runner, within, pieces)
    clock.append(time.perf_counter())
    n_columns = scan.scan_shape[1]
    as_given = SimpleNamespace(
        source=source, distortion=undistorted(), geometry="as given", n_together=1
    )
    header = map_header(as_given, model, config, "scan", 0.0, options=None, attributes=None)
    with map_writer(target, header, overwrite=True) as write:
        for piece in pieces:
            arrays = {f"single_{name}": getattr(piece.answer, name) for name in SINGLE}
            arrays["n_disks"] = piece.counts
            rows = {k: x.reshape(-1, n_columns, *x.shape[1:]) for k, x in arrays.items()}
            write(piece.first // n_columns, rows)
        for row, answer in found:
            write(row, answer._asdict())
    clock.append(time.perf_counter())
    taken = np.diff(clock)
    taken[1] -= lost
    taken[3] -= again - clock[3]
    return dict(zip(STAGES, taken.tolist(), strict=True)) | {"again": float(taken.sum())}


SINGLE = ("orientation", "phase", "confidence")
"""What a map keeps of each pattern's own answer."""


def in_neighbours(
    runner: Runner, source: DiskSource, pieces: list[Piece]
) -> list[tuple[int, Answer]]:
    """The answers of a scan from those of its patterns, with programs that are kept."""
    model, config = runner.model, dataclasses.replace(runner.config, cache=default_cache())
    n = n_labels(source, model, config)
    labels = [piece.labels or no_labels(piece.answer.phase, n) for piece in pieces]
    labels = [likeliest_labels(x, n) for x in labels]
    over_scan = lambda *x: np.concatenate(x).reshape(*source.scan_shape, *x[0].shape[1:])  # noqa: E731
    labels = jax.tree.map(over_scan, *labels)
    return list(in_context(labels, source, model, config, runner.mesh, progress=False))


@contextmanager
def py4dstem(python: Path | None, quick: bool) -> Iterator[Callable[..., dict] | None]:
    """A function `(scan, positions)` to what py4dstem_speed.py says of it; its `start` says how
    long it took to be ready, and its plan's seconds. None without the interpreter.
    """
    if python is None:
        yield None
        return
    begun = time.perf_counter()
    words, where = elsewhere(python, "speed.py4dstem_speed", [CIF, 20 if quick else 2])
    pipe, errors = subprocess.PIPE, tempfile.TemporaryFile("w+")
    process = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=errors, text=True, **where)

    def heard() -> dict:
        line = process.stdout.readline()
        if not line:
            errors.seek(0)
            raise SystemExit(
                f"py4DSTEM's process ended: {(errors.read().splitlines() or ['?'])[-1]}"
            )
        return json.loads(line)

    def ask(scan: Path, positions: int) -> dict:
        process.stdin.write(f"{scan} {positions}\n")
        process.stdin.flush()
        return heard()

    try:
        ask.start = heard()
        ask.start["seconds"] = time.perf_counter() - begun
        yield ask
    finally:
        process.stdin.close()
        process.wait()
        errors.close()


def growth(names: tuple[str, ...], refine: tuple[str, ...], lengths: tuple[int, ...]) -> list[dict]:
    """Seconds of a pattern by disks, for models of one phase and of two."""
    scan, rows = read_disks(SAMPLE), []
    for name, how in itertools.product(names, refine):
        runner = Runner(load_model(name), InferConfig(refine=how))
        for length in lengths:
            if how == "none" and length > runner.model.config.n_disks:
                continue
            each = seconds_per_pattern(runner, *patterns_of(runner, scan, length))
            phases = len(runner.model.materials)
            row = {"model": name, "phases": phases, "refine": how, "disks": length}
            rows.append(row | {"microseconds": round(1e6 * each, 1)})
    return rows


def floor(runner: Runner, rate: Operations, length: int) -> dict:
    """Operations of a pattern of so many disks, network with templates and whole program, the time
    that they need at the machine's rates, and that share of the time it takes.
    """
    disks, exposed = patterns_of(runner, read_disks(SAMPLE), length)
    scores, made = scorer(runner.model, runner.config.precision)
    n = len(disks.qx)
    per_pattern = lambda found: Operations(*(x / n for x in found))  # noqa: E731
    network = per_pattern(operations_of(scores, runner.model.params, made, disks))
    # before operations are counted: the program keeps tables from its first call, which are to be
    # arrays and not what stands for them while it is traced
    taken = seconds_per_pattern(runner, disks, exposed)
    # a sharded program's operations are those of one device; how far the scan reaches is no array
    whole_step = lambda params, disks: runner.predict(params, disks, exposed)  # noqa: E731
    of_program = operations_of(whole_step, runner.params, disks)
    whole = Operations(*(x * runner.mesh.size / n for x in of_program))
    least = floor_seconds(whole, rate)
    return {
        "disks": length,
        "network_operations": network._asdict(),
        "operations": whole._asdict(),
        "floor_microseconds": round(1e6 * least, 2),
        "network_floor_microseconds": round(1e6 * floor_seconds(network, rate), 2),
        "microseconds": round(1e6 * taken, 2),
        "share_of_floor": round(least / taken, 4),
    }


def published_network(model: Model) -> dict:
    """Patterns a second through the published network, untrained, by the sample's lengths."""
    config = ModelConfig.paper()
    bare = Model(config, model.materials, None)
    params = init_params(bare.network, jax.random.key(0))
    runner = Runner(dataclasses.replace(bare, params=params), InferConfig(refine="none"))
    source = source_of(read_disks(SAMPLE))
    known = preview_scan(source, runner.model, runner.config)
    rows = (0, source.scan_shape[0])
    found = batches(source, runner.model, runner.config, known, rows, runner.batch)
    made = [item for item in found if isinstance(item, PaddedBatch)]
    runner.prepare(made)
    start = time.perf_counter()
    runner.answers(made)
    n = sum(len(index) for batch in made for _, index in batch.where)
    return {"patterns_per_second": round(n / (time.perf_counter() - start), 1), "patterns": n}


@dataclass
class Task:
    """Something to time once a round: `key` names it, `size` is its number of positions, `family`
    those that differ in size alone. Rounds from `rounds` on leave it out.
    """

    key: str
    family: str
    size: int
    run: Callable[[], dict]
    rounds: int


def expected(task: Task, tasks: list[Task], runs: dict[str, list[dict]]) -> float:
    """Seconds that a run will take, from earlier ones or those of smaller scans; 0: not known.

    What a first run compiles does not grow with the scan; a command runs twice then.
    """
    known = [t for t in tasks if t.family == task.family and runs.get(t.key)]
    if not known:
        return 0.0
    like = task if task in known else max(known, key=lambda t: (t.size <= task.size, t.size))
    first, last = runs[like.key][0], runs[like.key][-1]
    again = last.get("again", last["wall"]) * max(1.0, task.size / like.size)
    if like is task:
        return again
    compiling = first["wall"] - first.get("again", first["wall"])
    return again + compiling + (again if "cold" in first else 0.0)


def rounds(
    tasks: list[Task], runs: dict[str, list[dict]], arguments: Arguments, keep: Callable[[], None]
) -> None:
    """Time every task once a round, unless it would take longer than what is left."""
    end = time.monotonic() + 60 * arguments.minutes
    for number in range(arguments.runs):
        for task in tasks:
            done = len(runs.get(task.key, ())) > number or number >= task.rounds
            if done or expected(task, tasks, runs) > end - time.monotonic():
                continue
            start = time.perf_counter()
            found = task.run()
            found["wall"] = time.perf_counter() - start
            runs.setdefault(task.key, []).append(found)
            keep()


def plan(arguments: Arguments, folder: Path, ask, runners: dict[str, Runner]) -> list[Task]:
    """Every size by every method, small ones first."""
    tasks, sample = [], read_disks(SAMPLE)
    cpu = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "true"} if arguments.quick else {}

    def scan(side: int, packed: bool) -> Path:
        path = folder / f"{'packed' if packed else 'bragg'}-{side}.h5"
        if not path.exists() and packed:
            write_packed(path, tiled(sample, (side, side)), progress=False)
        elif not path.exists():
            write_bragg(path, (side, side))
        return path

    def whole(side: int, packed: bool, how: str) -> dict:
        cache = folder / f"cache-{side}-{packed}-{how}"
        words = ["map", str(scan(side, packed)), "--model", arguments.model, "--refine", how]
        words += ["--out", str(folder / "map.h5"), "--overwrite"]
        kept = {"XDG_CACHE_HOME": str(cache), "JAX_COMPILATION_CACHE_DIR": str(cache), **cpu}
        if cache.exists():
            return command(*words, environment=kept)
        cold = command(*words, environment=kept)
        warm = cold if arguments.quick else command(*words, environment=kept)
        return warm | {"cold": cold, "again": warm["seconds"]}

    for side in arguments.sides:
        for packed in (False, True) if side >= PACKED_FROM else (False,):
            kind, n_rounds = ("packed", arguments.packed) if packed else ("bragg", arguments.runs)
            staged = min(n_rounds, arguments.staged) if side >= PACKED_FROM else n_rounds
            for how in arguments.refine:
                run = lambda s=side, p=packed, h=how: stages(  # noqa: E731
                    scan(s, p), runners[h], folder / "stages.h5"
                )
                family = f"stages {kind} {how}"
                tasks.append(Task(f"{family} {side}", family, side**2, run, staged))
                if arguments.quick and how != arguments.refine[0]:
                    continue
                run = lambda s=side, p=packed, h=how: whole(s, p, h)  # noqa: E731
                family = f"command {kind} {how}"
                tasks.append(Task(f"{family} {side}", family, side**2, run, n_rounds))
        if ask is not None:
            n = min(arguments.py4dstem_positions, side**2)
            run = lambda s=side, n=n: ask(scan(s, False), n)  # noqa: E731
            tasks.append(Task(f"py4DSTEM {side}", "py4DSTEM", side**2, run, arguments.runs))
    return tasks


def main(arguments: Arguments) -> None:
    """Time, measure, print, write."""
    with tempfile.TemporaryDirectory() as folder:
        if arguments.quick:
            jax.config.update("jax_disable_most_optimizations", True)
            arguments = dataclasses.replace(
                arguments,
                sides=(8,),
                runs=1,
                refine=("none",),
                precision=("float32",),
                growth=False,
                model=str(small_model(Path(folder) / "model")),
            )
        benchmark(arguments, Path(folder))


def benchmark(arguments: Arguments, folder: Path) -> None:
    """All of it; `folder` is for the scans and the maps."""
    device = jax.devices()[0]
    model = load_model(arguments.model)
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    settings = {
        "device": f"{jax.device_count()} x {device.device_kind}, {n_cores} cores",
        "model": arguments.model,
    }
    results = settings | {
        "load_average": os.getloadavg()[0],
        "jax": jax.__version__,
        "python": platform.python_version(),
        "cache": "Stages run compiled; commands with the cache that a first one left.",
        "runs": {},
    }
    out = results_file(arguments, "benchmark_speed")
    before = load(out) if arguments.resume else {}
    if before:
        if {name: before.get(name) for name in settings} != settings:
            raise SystemExit(f"{out} is of another device or model; without --resume.")
        results |= before

    runners = {how: Runner(model, InferConfig(refine=how)) for how in arguments.refine}
    variants = [(how, "float32") for how in arguments.refine]
    variants += [("none", p) for p in arguments.precision if p != "float32"]
    every = {
        f"{how}, {precision}": runners[how]
        if precision == "float32"
        else Runner(model, InferConfig(refine=how, precision=precision))
        for how, precision in variants
    }
    with py4dstem(arguments.py4dstem, arguments.quick) as ask:
        ready = results["py4DSTEM"] = ask.start if ask else results.get("py4DSTEM")
        rounds(
            plan(arguments, folder, ask, runners),
            results["runs"],
            arguments,
            lambda: save(out, results),
        )
    table = summary(results["runs"], ready)
    results["table"] = table + extrapolated(table, arguments.sides)
    threads = workers(parallel.make_mesh())
    rate = rates(threads, 256 if arguments.quick else 4096 if device.platform == "gpu" else 1024)
    results["rates"] = rate._asdict()
    results["floor"] = {name: floor(runner, rate, 8) for name, runner in every.items()}
    results["accuracy"] = {}
    if not arguments.quick:
        scan = read_disks(SAMPLE)
        results["accuracy"] = {
            name: accuracy(map_scan(scan, model, runner.config, progress=False))
            for name, runner in every.items()
        }
    results["growth"] = []
    if arguments.growth:
        names = (arguments.model, *(["cu-cu2o"] if arguments.model == "cu" else []))
        results["growth"] = growth(names, arguments.refine, (4, 8, 16, 20, 32))
    if arguments.paper:
        results["paper"] = published_network(model)
    save(out, results, to_markdown)
    if out:
        draw(results, out.with_suffix(".png"))
    print(to_tables(results))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
