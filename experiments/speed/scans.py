# SPDX-License-Identifier: GPL-3.0-or-later
"""The packaged sample scan (64 × 64 positions) over and over, in any size; commands timed; and a
model that is ready at once, for `--quick`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import h5py
import jax
import numpy as np

from jaxstem.app.demo import sample
from jaxstem.crystal.reading import read_cif
from jaxstem.diffraction.material import make_material
from jaxstem.diffraction.settings import Microscope, Specimen
from jaxstem.files.scan import DiskScan, DiskSource, joined
from jaxstem.network.model import Model, save_model
from jaxstem.network.transformer import ModelConfig, init_params

SAMPLE = sample("cu_bragg.h5")
CIF = SAMPLE.with_name("Cu.cif")
TABLE = "datacube_root/braggvectors/_v_uncal/data"
SCAN_SHAPE = "datacube_root/braggvectors/metadatabundle/_braggvectors_shape/Rshape"
CALIBRATION = "datacube_root/metadatabundle/calibration"


def write_bragg(path: Path, shape: tuple[int, int]) -> None:
    """BraggVectors of `shape` positions: the sample's first ones, repeated from there on."""
    with h5py.File(SAMPLE) as source, h5py.File(path, "w") as target:
        target.attrs.update(source.attrs)
        for name in source:
            source.copy(name, target)
        known = source[TABLE].shape
        here = np.ix_(*(np.arange(n) % m for n, m in zip(shape, known, strict=True)))
        kind, attributes = target[TABLE].dtype, dict(target[TABLE].attrs)
        del target[TABLE]
        made = target.create_dataset(TABLE, shape, kind)
        lists = source[TABLE][()]
        for row in range(0, shape[0], known[0]):  # so that little lies in memory
            part = slice(row, min(row + known[0], shape[0]))
            made[part] = lists[here[0][part], here[1]]
        made.attrs.update(attributes)
        target[SCAN_SHAPE][...] = shape
        calibration = target[CALIBRATION]
        for key in list(calibration):
            if isinstance(calibration[key], h5py.Dataset) and calibration[key].shape == known:
                attributes, values = dict(calibration[key].attrs), calibration[key][()]
                del calibration[key]
                calibration[key] = values[here]
                calibration[key].attrs.update(attributes)


def tiled(scan: DiskScan, shape: tuple[int, int]) -> DiskSource:
    """A scan over and over, in `shape` positions, read a few rows at a time."""
    n_rows, n_columns = scan.scan_shape
    columns = np.arange(shape[1]) % n_columns

    def row(number: int) -> DiskScan:
        first = (number % n_rows) * n_columns + columns
        counts = np.diff(scan.offsets)[first]
        disk = np.arange(counts.sum()) + np.repeat(
            scan.offsets[first] - np.cumsum(counts) + counts, counts
        )
        return replace(
            scan,
            qx=scan.qx[disk],
            qy=scan.qy[disk],
            intensity=scan.intensity[disk],
            offsets=np.concatenate([[0], np.cumsum(counts)]),
            scan_shape=(1, shape[1]),
        )

    return DiskSource(
        shape,
        scan.scan_step,
        scan.scan_units,
        scan.voltage_kv,
        scan.source,
        lambda start, stop: joined([row(number) for number in range(start, stop)]),
    )


LAUNCHER = """
import json, os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
taken = {
    "seconds": time.perf_counter() - start,
    "core_seconds": usage.ru_utime + usage.ru_stime,
    "peak_gib": usage.ru_maxrss / 1024**2,
}
print(json.dumps(taken))
sys.exit(status != 0)
"""
"""Runs a command and prints what it took. A process of its own, since Linux counts the memory of
whoever starts a command as the command's."""


def command(*words: str, environment: Mapping[str, str] | None = None) -> dict[str, float]:
    """Seconds, seconds of all cores, and peak resident memory in GiB of a command of jaxstem."""
    ran = subprocess.run(
        [sys.executable, "-ISc", LAUNCHER, sys.executable, "-m", "jaxstem", *words],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
    )
    if ran.returncode:
        raise SystemExit(f"jaxstem {words[0]} failed: {ran.stderr}")
    return json.loads(ran.stdout)


def small_model(folder: Path) -> Path:
    """An untrained network on a coarse grid: what it finds means nothing."""
    copper = make_material(read_cif(CIF), Microscope(300.0, k_max=1.5), Specimen(u_iso=0.0), 12.0)
    config = ModelConfig(width=16, blocks=1, heads=2, feedforward=32, n_disks=12, spacing_deg=12.0)
    model = Model(config, (copper,), None)
    params = jax.jit(partial(init_params, model.network))(jax.random.key(0))
    save_model(folder, replace(model, params=params))
    return folder
