# SPDX-License-Identifier: GPL-3.0-or-later
"""A scan of millions of positions through `jaxstem convert` and `jaxstem map`: memory and time.

    python experiments/large_scan.py --side 2048

Tiles the packaged sample scan (64 × 64 positions) to side × side, written in pieces; packs it; maps
it from the table, and from the Bragg vectors where --bragg asks for it. Prints seconds and the peak
of the resident memory of each command.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro
from throughput import SAMPLE, tile

from jaxstem.io import DiskScan, DiskSource, joined, read_disks
from jaxstem.packed import write_packed


@dataclass(frozen=True)
class Arguments:
    """side: positions along each axis, a multiple of 64; bragg: map from BraggVectors instead,
    which lie in memory while the file is made, and then convert them; precision: of the network.
    """

    side: int = 2048
    model: str = "cu"
    refine: str = "none"
    precision: str = "float32"
    bragg: bool = False
    folder: Path | None = None


def tiled(scan: DiskScan, side: int) -> DiskSource:
    """The sample over and over, read a few rows at a time."""
    n_rows, n_columns = scan.scan_shape

    def row(number: int) -> DiskScan:
        offsets = scan.offsets[number * n_columns : (number + 1) * n_columns + 1]
        own, times = slice(offsets[0], offsets[-1]), side // n_columns
        counts = np.tile(np.diff(offsets), times)
        return replace(
            scan,
            qx=np.tile(scan.qx[own], times),
            qy=np.tile(scan.qy[own], times),
            intensity=np.tile(scan.intensity[own], times),
            offsets=np.concatenate([[0], np.cumsum(counts)]),
            scan_shape=(1, side),
        )

    return DiskSource(
        (side, side),
        scan.scan_step,
        scan.scan_units,
        scan.voltage_kv,
        scan.source,
        lambda start, stop: joined([row(number % n_rows) for number in range(start, stop)]),
    )


def timed(*command: str) -> tuple[float, float]:
    """Seconds, and peak resident memory in GiB, of a command of jaxstem."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "jaxstem", *command])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"jaxstem {command[0]} failed")
    return time.perf_counter() - start, usage.ru_maxrss / 1024**2


def main(arguments: Arguments) -> None:
    """Make, map, print."""
    positions = arguments.side**2
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        scan = Path(folder) / "scan.h5"
        if arguments.bragg:
            tile(scan, arguments.side // 64)
        else:
            write_packed(scan, tiled(read_disks(SAMPLE), arguments.side), progress=False)
        print(
            f"{arguments.side} x {arguments.side} positions, {scan.stat().st_size / 2**20:.0f} MiB"
        )
        seconds, peak = timed(
            *["map", str(scan), "--model", arguments.model, "--out", f"{folder}/map.h5"],
            *["--refine", arguments.refine, "--precision", arguments.precision],
        )
        print(
            f"map: {seconds:.1f} s, {positions / seconds:.0f} positions/s, peak memory "
            f"{peak:.2f} GiB; cores: {os.cpu_count()}, load {os.getloadavg()[0]:.1f}, this script "
            f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2:.2f} GiB"
        )
        if arguments.bragg:
            seconds, peak = timed("convert", str(scan), "--out", f"{folder}/disks.h5")
            print(
                f"convert: {seconds:.1f} s, {positions / seconds:.0f} positions/s, peak memory "
                f"{peak:.2f} GiB"
            )


if __name__ == "__main__":
    main(tyro.cli(Arguments))
