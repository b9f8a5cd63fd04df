# SPDX-License-Identifier: GPL-3.0-or-later
"""Scans of millions of positions through `jaxstem convert` and `jaxstem map`: memory and time.

    python -m experiments.speed.large_scan --sides 1024 2048 --refine none
    python -m experiments.speed.large_scan --sides 1024 --contexts none scan   # neighbours
    python -m experiments.speed.large_scan --sides 1024 --refine fast --rows 64    # a part of it

Tiles the packaged sample scan (64 × 64 positions) to side × side, written in pieces; packs it; maps
it from the table, and from the Bragg vectors with --bragg, which are then converted, too. Prints
seconds, the seconds of all cores and the peak of the resident memory of each whole command, and
writes them to experiments/results/large_scan.json. With --rows only so many rows of the scan are
made and mapped; the time for all of them is then worked out, and marked so. Several contexts are
run in turns on the same file, `repeats` times each; the fastest of each is stated.
"""

import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import tyro

from experiments.common.markdown import table
from experiments.common.results import load, results_file, save
from experiments.speed.scans import SAMPLE, command, small_model, tiled, write_bragg
from jaxstem.files.emd import read_disks
from jaxstem.files.packed import write_packed


@dataclass(frozen=True)
class Arguments:
    """sides: positions along each axis; rows: of them, where not all; contexts: `--context`, one or
    both; bragg: map from BraggVectors instead and convert them; precision: of the network; folder:
    for the scan and the map; quick: a small scan by a small network, without figure, written
    nowhere unless `out` is given.
    """

    sides: tuple[int, ...] = (1024, 2048)
    rows: int | None = None
    model: str = "cu"
    refine: str = "none"
    contexts: tuple[str, ...] = ("scan",)
    repeats: int = 1
    precision: str = "float32"
    bragg: bool = False
    folder: Path | None = None
    quick: bool = False
    out: Path | None = None


def measured(arguments: Arguments, side: int, folder: Path) -> dict:
    """What each command takes for a scan of `side` columns."""
    rows = min(arguments.rows or side, side)
    scan, found = folder / "scan.h5", {"side": side, "rows": rows}
    if arguments.bragg:
        write_bragg(scan, (rows, side))
    else:
        write_packed(scan, tiled(read_disks(SAMPLE), (rows, side)), progress=False)
    found["scan_mib"] = round(scan.stat().st_size / 2**20)
    model = str(small_model(folder / "model")) if arguments.quick else arguments.model
    words = ["map", str(scan), "--model", model, "--out", f"{folder}/map.h5", "--overwrite"]
    words += ["--refine", arguments.refine, "--precision", arguments.precision]
    words += ["--no-figure"] if arguments.quick else []
    environment = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "true"} if arguments.quick else None
    commands = {f"map, {context}": [*words, "--context", context] for context in arguments.contexts}
    if arguments.bragg:
        commands["convert"] = ["convert", str(scan), "--out", f"{folder}/disks.h5", "--overwrite"]
    runs = [
        {name: command(*words, environment=environment) for name, words in commands.items()}
        for _ in range(arguments.repeats)
    ]
    for name in commands:
        ran = min((run[name] for run in runs), key=lambda ran: ran["seconds"])
        found[name] = {key: round(value, 2) for key, value in ran.items()}
        found[name]["all_seconds"] = [round(run[name]["seconds"], 2) for run in runs]
        found[name]["positions_per_second"] = round(rows * side / ran["seconds"], 1)
        if rows < side:
            found[name]["seconds_extrapolated"] = round(ran["seconds"] * side / rows, 1)
    return found


def line(name: str, found: dict) -> str:
    """One command's numbers."""
    ran = found[name]
    whole = ran.get("seconds_extrapolated")
    of = f", worked out for all {found['side']} rows: {whole:.0f} s" if whole else ""
    return (
        f"{name}: {found['rows']} x {found['side']} positions, {ran['seconds']:.1f} s{of}, "
        f"{ran['positions_per_second']:.0f} positions/s, peak memory {ran['peak_gib']:.2f} GiB"
    )


def to_markdown(results: dict) -> str:
    """A row for each size and kind of refinement, in brackets what was worked out."""
    rows = []
    for key, found in sorted(results.items(), key=lambda x: x[1]["side"]):
        side, maps = found["side"], [name for name in found if name.startswith("map")]
        for name in maps:
            ran = found[name]
            whole = ran.get("seconds_extrapolated")
            rows.append(
                [
                    f"{side} × {side}",
                    key.split(", ")[1],
                    name.split(", ")[1],
                    f"({whole:,.0f} s)" if whole else f"{ran['seconds']:,.0f} s",
                    f"{ran['positions_per_second']:,.0f}",
                    f"{ran['peak_gib']:.1f} GiB",
                ]
            )
    header = ["positions", "`--refine`", "`--context`", "time", "a second", "peak memory"]
    return table(header, rows)


def main(arguments: Arguments) -> None:
    """Make, map, print, write."""
    if arguments.quick:
        arguments = replace(arguments, sides=(64,), rows=2)
    device = jax.devices()[0].device_kind
    key = f"{arguments.refine}, {arguments.precision}, {'bragg' if arguments.bragg else 'packed'}"
    out = results_file(arguments, "large_scan")
    results = load(out)
    for side in arguments.sides:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            found = measured(arguments, side, Path(folder))
        found |= {"device": device, "cores": os.cpu_count(), "load_average": os.getloadavg()[0]}
        for name in (name for name in found if name.startswith(("map", "convert"))):
            print(line(name, found), flush=True)
        results[f"{side}, {key}"] = found
        save(out, results, to_markdown)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
