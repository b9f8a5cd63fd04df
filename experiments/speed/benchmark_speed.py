# SPDX-License-Identifier: GPL-3.0-or-later
"""Time of an orientation map against the size of the scan, for jaxstem and py4DSTEM.

    python -m experiments.speed.benchmark_speed --py4dstem ENV/bin/python    # within --minutes
    python -m experiments.speed.benchmark_speed --quick                      # is all in order?

The sample scan, tiled to each size, is mapped by both programs in turns: in each of `runs` rounds
every size by every method, so that whatever else the machine does meets all of them. jaxstem is
timed stage by stage in this process, one stage after the other with everything compiled (load,
tokens, inference, map), and as the whole command, start, reading, picture and writing included:
first with an empty cache, then with what that run left there. py4DSTEM matches
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

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # commands share the GPU with this

import jax
import numpy as np
import tyro

from experiments.common.environments import elsewhere
from experiments.common.figures import drawn
from experiments.common.markdown import flowed, table
from experiments.common.results import load, results_file, save
from experiments.speed.arithmetic import Operations, floor_seconds, operations_of, rates
from experiments.speed.runner import Runner, accuracy, patterns_of, seconds_per_pattern, spread
from experiments.speed.scans import CIF, SAMPLE, command, small_model, tiled, write_bragg
from jaxstem.detection.opening import open_scan
from jaxstem.files.emd import read_disks
from jaxstem.files.map_file import map_writer
from jaxstem.files.packed import write_packed
from jaxstem.files.scan import joined, source_of
from jaxstem.inference.config import InferConfig
from jaxstem.inference.step import scorer
from jaxstem.inference.stream import PIECE, PaddedBatch, Piece, batches, preview_scan, workers
from jaxstem.mapping import map_header, map_scan
from jaxstem.network.model import Model, load_model
from jaxstem.network.transformer import ModelConfig, init_params
from jaxstem.runtime import parallel

STAGES = ("load", "tokens", "inference", "map")
PUBLISHED = {
    "published, GPU": {1024**2: 199.5, 128**2: 5.8},
    "published, many-core CPU": {1024**2: 1450.0, 128**2: 24.0},
    "py4DSTEM, published": {1024**2: 21400.0, 128**2: 303.0},
}
"""Seconds for scans of so many positions, end to end (arXiv 2602.12420)."""
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
    clock.append(time.perf_counter())
    for batch, answer in zip(made, answers, strict=True):
        start = 0
        for piece, index in batch.where:
            for into, values in zip(piece.answer, answer, strict=True):
                into[index] = values[start : start + len(index)]
            start += len(index)
    n_columns = scan.scan_shape[1]
    with map_writer(target, map_header(source, model, config, 0.0, None), overwrite=True) as write:
        for piece in pieces:
            arrays = piece.answer._asdict() | {"n_disks": piece.counts}
            rows = {k: x.reshape(-1, n_columns, *x.shape[1:]) for k, x in arrays.items()}
            write(piece.first // n_columns, rows)
    clock.append(time.perf_counter())
    taken = np.diff(clock)
    taken[1] -= lost
    return dict(zip(STAGES, taken.tolist(), strict=True)) | {"again": float(taken.sum())}


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
    pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
    process = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=nowhere, text=True, **where)

    def heard() -> dict:
        line = process.stdout.readline()
        if not line:
            raise SystemExit("py4DSTEM's process ended; try its environment by hand.")
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
    # a sharded program's operations are those of one device
    of_program = operations_of(runner.predict, runner.params, disks, exposed)
    whole = Operations(*(x * runner.mesh.size / n for x in of_program))
    taken, least = seconds_per_pattern(runner, disks, exposed), floor_seconds(whole, rate)
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


def summary(runs: dict[str, list[dict]], ready: dict | None) -> list[dict]:
    """A row for each size and method: seconds of the stages and of everything, and where both were
    timed how many times faster than py4DSTEM in the same rounds; sizes that did not fit in are
    worked out from the largest that did (`extrapolated_from`), in proportion to the positions.
    """
    rows = []
    for key, found in runs.items():
        *words, side = key.split()
        method, side = " ".join(words), int(side)
        row = {"method": method, "side": side, "positions": side**2}
        if method == "py4DSTEM":
            load = [run["read"] for run in found if "read" in run]
            each = np.array([run["match"] / run["matched"] for run in found])
            total = (ready["seconds"] + np.mean(load) + side**2 * each).tolist()
            row |= {"load": spread(load), "matched_positions": found[0]["matched"]}
            row |= {"plan": ready["plan"], "start": ready["seconds"] - ready["plan"]}
            row |= {"matching": spread((side**2 * each).tolist())}
        elif method.startswith("stages"):
            total = [sum(run[stage] for stage in STAGES) for run in found]
            row |= {stage: spread([run[stage] for run in found]) for stage in STAGES}
            rate = side**2 / np.mean([run["inference"] for run in found])
            row["inference_patterns_per_second"] = round(float(rate), 1)
        else:
            total = [run["seconds"] for run in found]
            row["peak_gib"] = round(max(run["peak_gib"] for run in found), 2)
            row["core_seconds"] = spread([run["core_seconds"] for run in found])
            row["cold_seconds"] = found[0]["cold"]["seconds"] if "cold" in found[0] else None
            theirs = runs.get(f"py4DSTEM {side}", [])
            if theirs:
                read = np.mean([run["read"] for run in theirs if "read" in run])
                paired = [
                    (ready["seconds"] + read + side**2 * b["match"] / b["matched"]) / a
                    for a, b in zip(total, theirs, strict=False)
                ]
                row["times_py4DSTEM"] = spread(paired)
        row["total"] = spread(total)
        row["patterns_per_second"] = round(side**2 / row["total"]["mean"], 1)
        rows.append(row)
    return sorted(rows, key=lambda row: (row["method"], row["side"]))


def extrapolated(rows: list[dict], sides: tuple[int, ...]) -> list[dict]:
    """Rows for the sizes that were not run, from the two largest that were: a start and a cost for
    each position.
    """
    added = []
    for method in sorted({row["method"] for row in rows}):
        if "packed" in method:
            continue
        own = [row for row in rows if row["method"] == method]
        large = own[-1]
        each = large["total"]["mean"] / large["positions"]
        if len(own) > 1:
            rise = large["total"]["mean"] - own[-2]["total"]["mean"]
            each = max(rise / (large["positions"] - own[-2]["positions"]), 0.0)
        for side in sides:
            if side > large["side"]:
                seconds = large["total"]["mean"] + each * (side**2 - large["positions"])
                row = {"method": method, "side": side, "positions": side**2}
                row["total"] = {"mean": seconds, "deviation": None, "runs": 0}
                row["patterns_per_second"] = round(side**2 / seconds, 1)
                added.append(row | {"extrapolated_from": large["side"]})
    return added


LINES = {
    "py4DSTEM": ("py4DSTEM", "tab:red"),
    "command bragg fast": ("jaxstem, fast", "tab:blue"),
    "command bragg none": ("jaxstem, network alone", "tab:green"),
}


def draw(results: dict, path: Path) -> None:
    """Whole time against positions: measured points joined, what was worked out hollow."""
    with drawn(path, size=(5.2, 4.2)) as (_, axes):
        draw_times(axes, results)


def draw_times(axes, results: dict) -> None:
    """The panel of `draw`."""
    for method, (label, colour) in LINES.items():
        own = [row for row in results["table"] if row["method"] == method]
        if not own:
            continue
        own.sort(key=lambda row: row["side"])
        x = [row["positions"] for row in own]
        y = [row["total"]["mean"] for row in own]
        axes.plot(x, y, color=colour, lw=1.2, label=label)
        for row in own:
            part = row.get("matched_positions", row["positions"]) < row["positions"]
            hollow = "extrapolated_from" in row or part
            face = "white" if hollow else colour
            error = row["total"]["deviation"] or None
            at = row["positions"], row["total"]["mean"]
            axes.errorbar(*at, error, fmt="o", ms=4, color=colour, mfc=face, capsize=2)
    for (label, points), marker in zip(PUBLISHED.items(), "*DX", strict=True):
        axes.plot(*zip(*sorted(points.items()), strict=True), marker, color="0.4", label=label)
    axes.set(xscale="log", yscale="log", xlabel="scan positions", ylabel="whole time [s]")
    places = {row["positions"] for row in results["table"]}.union(*PUBLISHED.values())
    axes.set_xticks(sorted(places), [f"{round(n**0.5)}²" for n in sorted(places)], minor=False)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, frameon=False, loc="upper left")
    axes.set_title(f"{results['device']}; hollow: worked out", fontsize=8)


def seconds_text(value: dict | float | None) -> str:
    """Mean ± deviation with sensible digits."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3g}" if value < 1000 else f"{value:.0f}"
    mean, deviation = value["mean"], value["deviation"]
    if deviation is None:
        return seconds_text(mean)
    digits = f"{deviation:.2g}" if deviation < 10 else f"{deviation:.0f}"
    return f"{seconds_text(mean)} ± {digits}"


WAYS = ("py4DSTEM", "command bragg fast", "command bragg none")
COLUMNS = ("positions", "py4DSTEM", "`fast`", "`--refine none`", "times py4DSTEM", "runs")


def whole_seconds(row: dict | None) -> str:
    """A cell of `to_markdown`, in brackets what was worked out."""
    if row is None:
        return ""
    seconds = row["total"]["mean"]
    shown = f"{seconds:,.1f} s" if seconds < 100 else f"{seconds:,.0f} s"
    matched = row.get("matched_positions", row["positions"])
    return shown if row["total"]["runs"] and matched == row["positions"] else f"({shown})"


def ratio(times: dict) -> str:
    """How many times faster, and the deviation."""
    digits = 0 if times["mean"] > 10 else 1
    deviation = times["deviation"]
    return f"{times['mean']:.{digits}f}" + (f" ± {deviation:.{digits}f}" if deviation else "")


def to_markdown(results: dict) -> str:
    """Whole commands on scans of each size, beside py4DSTEM's matching in the same run."""
    of = {(row["method"], row["side"]): row for row in results["table"]}
    sides = sorted({side for method, side in of if method == WAYS[1]})
    rows = []
    for side in sides:
        timed = [of.get((way, side)) for way in WAYS]
        ratios = [ratio(row["times_py4DSTEM"]) for row in timed if row and "times_py4DSTEM" in row]
        cells = [*(whole_seconds(row) for row in timed), " and ".join(ratios)]
        rows.append([f"{side} × {side}", *cells, of[WAYS[1], side]["total"]["runs"]])
    fast, none = (of[way, sides[-1]]["patterns_per_second"] for way in WAYS[1:])
    floor = results["floor"]
    figure = "[figure](experiments/results/benchmark_speed.png)"
    matched = max(row.get("matched_positions", 0) for row in results["table"])
    right = {name: 100 * x["within_5"] for name, x in results["accuracy"].items()}
    told = flowed(f"""
The whole command `jaxstem map` on Bragg disks, start, picture and writing included
(`experiments/speed/benchmark_speed.py`; {results["device"]}; {figure}). In brackets what was worked
out: py4DSTEM matches {matched} positions of the same file, in turns with jaxstem. Published for
1024 × 1024: 199.5 s on a GPU, 1,450 s on a many-core CPU. On the largest scan that is
{fast:,.0f} patterns a second with `fast`
({right["fast, float32"]:.0f} % of the sample within 5°, from py4DSTEM's disks) and {none:,.0f} with
`none` ({right["none, float32"]:.0f} %; in bfloat16 {right["none, bfloat16"]:.0f} %). The arithmetic
alone, operations counted at the rates that this machine reaches, would take
{100 * floor["fast, float32"]["share_of_floor"]:.0f} and
{100 * floor["none, float32"]["share_of_floor"]:.0f} % of the time that a pattern takes.
""")
    return f"{table(COLUMNS, rows)}\n\n{told}"


def to_tables(results: dict) -> str:
    """All that was measured."""
    names = ("scan", "method", *(f"{stage} [s]" for stage in STAGES), "total [s]", "patterns/s")
    rows = []
    for row in sorted(results["table"], key=lambda row: (row["side"], row["method"])):
        cells = [f"{row['side']}²", row["method"]]
        cells += [seconds_text(row.get(stage)) for stage in STAGES]
        if row["method"] == "py4DSTEM" and "matching" in row:
            cells[4] = seconds_text(row["matching"]) + f" (from {row['matched_positions']})"
        total = seconds_text(row["total"])
        if "extrapolated_from" in row:
            total += f" (worked out from {row['extrapolated_from']}²)"
        cells += [total, f"{row['patterns_per_second']:.0f}"]
        rows.append([*cells, seconds_text(row.get("times_py4DSTEM"))])
    parts = [table([*names, "times py4DSTEM"], rows)]
    right = (
        [name, f"{x['within_5']:.1%}", f"{x['within_5_mod_180']:.1%}", f"{x['median_deg']:.2f}°"]
        for name, x in results["accuracy"].items()
    )
    parts.append(table(["run", "within 5°", "mod 180°", "median"], right))
    least = (
        [
            name,
            x["disks"],
            x["microseconds"],
            x["floor_microseconds"],
            f"{x['share_of_floor']:.0%}",
        ]
        for name, x in results["floor"].items()
    )
    names = ("run", "disks", "pattern [µs]", "floor [µs]", "share of floor")
    parts.append(table(names, least))
    if results["growth"]:
        names = ("model", "phases", "refine", "disks", "pattern [µs]")
        parts.append(table(names, (row.values() for row in results["growth"])))
    if "paper" in results:
        parts.append(f"published network: {results['paper']['patterns_per_second']} patterns/s")
    rate = results["rates"]
    parts.append(
        f"{results['device']}, load average {results['load_average']:.1f}; "
        f"{rate['matrix'] / 1e9:.0f} Gflop/s of matrix products, {rate['elementwise'] / 1e9:.1f} "
        f"elementwise, {rate['transcendental'] / 1e9:.2f} G exponentials/s. {results['cache']}"
    )
    return "\n\n".join(parts)


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
