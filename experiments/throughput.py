# SPDX-License-Identifier: GPL-3.0-or-later
"""Patterns per second and peak memory of `jaxstem map` on a scan of 65,536 positions.

    python experiments/throughput.py [--py4dstem ENV/bin/python]

Tiles the packaged sample scan, runs the whole command (start, compilation, reading, indexing,
writing) with and without refinement, and writes experiments/results/throughput.json. py4DSTEM's
matching is timed on some rows of the same file, where its environment is given, and its time for
all of them worked out.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import tyro

from jaxstem.demo import sample

HERE = Path(__file__).resolve().parent
SAMPLE = sample("cu_bragg.h5")
CIF = SAMPLE.with_name("Cu.cif")


@dataclass(frozen=True)
class Arguments:
    """repeats: of the 64 × 64 sample along each scan axis; model: folder or packaged name;
    py4dstem: the interpreter of py4DSTEM's environment; py4dstem_rows: that it matches.
    """

    repeats: int = 4
    model: str = "cu"
    py4dstem: Path | None = None
    py4dstem_rows: int = 8
    out: Path = HERE / "results" / "throughput.json"


def tile(path: Path, repeats: int) -> tuple[int, int]:
    """A copy of the sample scan, tiled; its new scan shape."""
    with h5py.File(SAMPLE) as source, h5py.File(path, "w") as target:
        target.attrs.update(source.attrs)
        for name in source:
            source.copy(name, target)
        table = "datacube_root/braggvectors/_v_uncal/data"
        shape = source[table].shape
        tiled = np.tile(source[table][()], (repeats, repeats))
        kind = target[table].dtype
        attributes = dict(target[table].attrs)
        del target[table]
        made = target.create_dataset(table, tiled.shape, kind)
        made[...] = tiled
        made.attrs.update(attributes)
        target["datacube_root/braggvectors/metadatabundle/_braggvectors_shape/Rshape"][...] = (
            tiled.shape
        )
        calibration = target["datacube_root/metadatabundle/calibration"]
        for key in list(calibration):
            if isinstance(calibration[key], h5py.Dataset) and calibration[key].shape == shape:
                attributes, values = dict(calibration[key].attrs), calibration[key][()]
                del calibration[key]
                calibration[key] = np.tile(values, (repeats, repeats))
                calibration[key].attrs.update(attributes)
    return tiled.shape


def jaxstem_map(scan: Path, model: str, refine: str, out: Path) -> tuple[float, float]:
    """Seconds, and peak resident memory in GiB, of the whole command."""
    command = [sys.executable, "-m", "jaxstem", "map", str(scan), "--model", model]
    command += ["--out", str(out), "--refine", refine, "--overwrite"]
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit("jaxstem map failed")
    return time.perf_counter() - start, usage.ru_maxrss / 1024**2


def py4dstem(python: Path, scan: Path, rows: int) -> dict[str, float]:
    """What py4dstem_speed.py says of some rows of the scan."""
    command = [str(python), str(HERE / "py4dstem_speed.py"), str(scan), str(CIF), str(rows)]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(ran.stdout.splitlines()[-1])


def main(arguments: Arguments) -> None:
    """Run the commands one after the other, print and write."""
    results: dict[str, dict] = {"cores": {"count": os.cpu_count(), "load": os.getloadavg()[0]}}
    with tempfile.TemporaryDirectory() as folder:
        scan = Path(folder) / "scan.h5"
        positions = int(np.prod(tile(scan, arguments.repeats)))
        if arguments.py4dstem:
            found = py4dstem(arguments.py4dstem, scan, arguments.py4dstem_rows)
            each = found["match_seconds"] / found["matched"]
            seconds = found["read_seconds"] + found["plan_seconds"] + each * positions
            results["py4DSTEM"] = {
                **found,
                "positions": positions,
                "seconds_extrapolated": round(seconds, 1),
                "patterns_per_second": round(positions / seconds, 2),
            }
            print(
                f"py4DSTEM: {found['matched']} positions in {found['match_seconds']:.0f} s, so "
                f"{positions} would take {seconds:.0f} s, {positions / seconds:.1f} patterns/s",
                flush=True,
            )
        for refine in ("none", "fast"):
            seconds, peak = jaxstem_map(scan, arguments.model, refine, Path(folder) / "map.h5")
            results[refine] = {
                "positions": positions,
                "seconds": round(seconds, 1),
                "patterns_per_second": round(positions / seconds),
                "peak_memory_gib": round(peak, 2),
            }
            line = f"{refine}: {positions} positions in {seconds:.0f} s, "
            line += f"{positions / seconds:.0f} patterns/s, peak memory {peak:.2f} GiB"
            if "py4DSTEM" in results:
                ratio = results["py4DSTEM"]["seconds_extrapolated"] / seconds
                results[refine]["times_py4DSTEM"] = round(ratio, 1)
                line += f", {ratio:.0f} times py4DSTEM's"
            print(line, flush=True)
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
