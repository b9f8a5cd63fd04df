# SPDX-License-Identifier: GPL-3.0-or-later
"""Patterns per second and peak memory of `jaxstem map` on a scan of 65,536 positions.

    python experiments/throughput.py

Tiles the packaged sample scan, runs the whole command (start, compilation, reading, indexing,
writing) with and without refinement, and writes experiments/results/throughput.json.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import tyro

HERE = Path(__file__).resolve().parent
SAMPLE = HERE.parent / "jaxstem" / "samples" / "cu_bragg.h5"


@dataclass(frozen=True)
class Arguments:
    """repeats: of the 64 × 64 sample along each scan axis; model: folder or packaged name."""

    repeats: int = 4
    model: str = "cu"
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


def main(arguments: Arguments) -> None:
    """Run the command twice, print and write."""
    results: dict[str, dict] = {"cores": {"count": os.cpu_count()}}
    with tempfile.TemporaryDirectory() as folder:
        scan = Path(folder) / "scan.h5"
        shape = tile(scan, arguments.repeats)
        positions = int(np.prod(shape))
        for method, option in (("fast", "--refine=fast"), ("network alone", "--refine=none")):
            command = [sys.executable, "-m", "jaxstem", "map", str(scan), "--model"]
            command += [arguments.model, "--out", f"{folder}/map.h5", option, "--overwrite"]
            start = time.perf_counter()
            subprocess.run(command, check=True)
            seconds = time.perf_counter() - start
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024**2
            results[method] = {
                "positions": positions,
                "seconds": round(seconds, 1),
                "patterns_per_second": round(positions / seconds),
                "peak_memory_gib_so_far": round(peak, 2),
            }
            print(
                f"{method}: {positions} positions in {seconds:.0f} s, "
                f"{positions / seconds:.0f} patterns/s, peak memory up to now {peak:.2f} GiB",
                flush=True,
            )
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
