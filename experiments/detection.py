# SPDX-License-Identifier: GPL-3.0-or-later
"""Bragg disks found by jaxstem and by py4DSTEM in the random sample scans, against the truth.

    python experiments/detection.py --data DIR [--py4dstem PYTHON] [--sets cu_random cu2o_random]

DIR holds `NAME_cube.h5`, `NAME_bragg.h5` (py4DSTEM's disks), `NAME_truth.h5` and the CIFs; PYTHON
is that of an environment with py4DSTEM 0.14.18 (experiments/fixtures/requirements.txt), for its
speed on the same cube in the same run. True disks are the reflections that Bloch waves, averaged
over the illumination's cone, give more than 2e-5 of the beam at the true orientation and thickness;
a detected disk within one disk radius of one is true, any other is false. Prints a table and writes
experiments/results/detection.json. About five minutes on two cores, most of it Bloch waves.
"""

import json
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxstem import bloch
from jaxstem.crystal import read_cif
from jaxstem.cubes import cube_from_array, read_cube
from jaxstem.disks import detect_disks
from jaxstem.io import DiskScan, read_disks, read_truth
from jaxstem.probe import DetectConfig

HERE = Path(__file__).resolve().parent
CIFS = {"cu_random": "Cu.cif", "cu2o_random": "Cu2O.cif"}
SEMIANGLE = 1.5e-3  # rad
VOLTAGE_KV = 300.0
THERMAL = 0.08**2  # Å²
FAINTEST = 2e-5  # share of the beam below which a reflection is none
PIXEL = 0.0328  # 1/Å
REACH = 2.3  # px, one disk radius
SHARES = [1e-4, 2e-4, 4e-4, 7e-4, 1.5e-3, 1.0]


@dataclass(frozen=True)
class Arguments:
    """data: folder of the scans; py4dstem: its Python; sets: which; speed: cube to time on."""

    data: Path
    py4dstem: Path | None = None
    sets: tuple[str, ...] = tuple(CIFS)
    speed: str = "cu"
    out: Path = HERE / "results" / "detection.json"


def cone() -> tuple[np.ndarray, np.ndarray]:
    """Turns of the beam [n, 3, 3] over the illumination's cone and their weights."""
    rings = [(0.0, 1, 0.0), (0.45, 6, 0.0), (0.85, 12, 0.5)]
    tilts, weights = [], []
    for share, n, start in rings:
        angle = 2 * np.pi * (np.arange(n) + start) / n
        tilts.append(share * SEMIANGLE * np.stack([np.cos(angle), np.sin(angle)], -1))
        weights.append(np.full(n, {1: 0.07, 6: 0.38, 12: 0.55}[n] / n))
    x, y = np.concatenate(tilts).T
    turns = np.tile(np.eye(3), (len(x), 1, 1))
    turns[:, 0, 2], turns[:, 2, 0], turns[:, 1, 2], turns[:, 2, 1] = y, -y, -x, x
    return turns, np.concatenate(weights)


def predict(cif: Path, truth) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """qx, qy [1/Å] and share of the beam of every reflection in every pattern, (M, N)."""
    tables = bloch.prepare(read_cif(cif), VOLTAGE_KV, 3.0, u_iso=THERMAL)
    turns, weights = (jnp.asarray(x, jnp.float32) for x in cone())

    @jax.jit
    def shares(orientation, thickness):
        def one(turn):
            beams = bloch.bloch_intensities(orientation @ turn, thickness[None], tables, 96, 300)
            return jnp.zeros(len(tables.g)).at[beams.index].set(beams.intensity[0])

        return weights @ jax.lax.map(one, turns)

    orientations = truth.orientation.reshape(-1, 3, 3)
    share = np.stack(
        [
            np.asarray(shares(jnp.asarray(r, jnp.float32), jnp.float32(t)))
            for r, t in zip(orientations, truth.thickness.ravel(), strict=True)
        ]
    )
    g = np.einsum("mji,nj->mni", orientations, np.asarray(tables.g))
    return g[..., 0], g[..., 1], share


def compare(scan: DiskScan, predicted) -> dict:
    """How the disks of a scan agree with the predicted ones; intensities as shares of all disks."""
    true, false, found, there = [], [], np.zeros(len(SHARES) - 1), np.zeros(len(SHARES) - 1)
    error, scatter = [], []
    edge = 60 * PIXEL
    for p, (gx, gy, share) in enumerate(zip(*predicted, strict=True)):
        own = slice(scan.offsets[p], scan.offsets[p + 1])
        x, y = scan.qx[own], scan.qy[own]
        measured = scan.intensity[own] / scan.intensity[own].sum()
        is_disk = (np.hypot(x, y) > 0.1) & (np.abs(x) < edge) & (np.abs(y) < edge)
        x, y, measured = x[is_disk], y[is_disk], measured[is_disk]
        visible = (share > FAINTEST) & (np.hypot(gx, gy) > 0.1)
        visible &= (np.abs(gx) < edge + REACH * PIXEL) & (np.abs(gy) < edge + REACH * PIXEL)
        gx, gy, share = gx[visible], gy[visible], share[visible]
        distance = np.hypot(gx[:, None] - x, gy[:, None] - y) / PIXEL
        near = distance < REACH
        true.append(near.any(0).sum())
        false.append((~near.any(0)).sum())
        inside = (np.abs(gx) < edge) & (np.abs(gy) < edge)
        there += np.histogram(share[inside], SHARES)[0]
        found += np.histogram(share[inside & near.any(1)], SHARES)[0]
        strong = np.flatnonzero(inside & near.any(1) & (share > 2e-3))
        if len(strong):
            nearest = distance[strong].argmin(1)
            error.extend(distance[strong, nearest])
            scatter.extend(np.log(measured[nearest] / share[strong]))
    scatter = np.array(scatter)
    spread = 1.4826 * np.median(np.abs(scatter - np.median(scatter)))
    return {
        "true_disks_mean": round(float(np.mean(true)), 2),
        "true_disks_median": float(np.median(true)),
        "false_disks_mean": round(float(np.mean(false)), 2),
        "recall_by_share": {
            f"{low:g}": round(float(f / max(t, 1)), 2)
            for low, f, t in zip(SHARES, found, there, strict=False)
        },
        "position_error_px_median": round(float(np.median(error)), 3),
        "position_error_px_q90": round(float(np.quantile(error, 0.9)), 3),
        "ln_share_scatter": round(float(scatter.std()), 3),
        "ln_share_scatter_robust": round(float(spread), 3),
    }


def between(ours: DiskScan, theirs: DiskScan) -> dict:
    """Distance [px] between the two methods' positions of the same strong disk."""
    distance = []
    for p in range(len(ours.offsets) - 1):
        a, b = (slice(s.offsets[p], s.offsets[p + 1]) for s in (ours, theirs))
        strong = ours.intensity[a] > 2e-3 * ours.intensity[a].sum()
        d = np.hypot(
            ours.qx[a][strong, None] - theirs.qx[b], ours.qy[a][strong, None] - theirs.qy[b]
        )
        distance.extend((d.min(1) / PIXEL)[d.min(1) < PIXEL * REACH] if d.size else [])
    return {"median": round(float(np.median(distance)), 3)}


def speed(arguments: Arguments) -> dict:
    """Patterns a second on one cube: from memory and from the file, and py4DSTEM's from memory."""
    cube = read_cube(arguments.data / f"{arguments.speed}_cube.h5")
    patterns = cube.rows(0, cube.scan_shape[0])
    memory = cube_from_array(patterns, pixel_size=cube.pixel_size)
    number = np.prod(cube.scan_shape)
    rates = {}
    for name, source in (("compile", memory), ("from_memory", memory), ("from_file", cube)):
        start = time.perf_counter()
        detect_disks(source)
        seconds = time.perf_counter() - start
        rates[name] = round(float(seconds if name == "compile" else number / seconds), 1)
    if arguments.py4dstem:
        with tempfile.TemporaryDirectory() as folder:
            files = [arguments.data / f"{arguments.speed}_{x}.h5" for x in ("cube", "bragg")]
            out = Path(folder) / "out.npz"
            script = HERE / "py4dstem_detection.py"
            subprocess.run(
                [arguments.py4dstem, script, *files, out], check=True, capture_output=True
            )
            result = np.load(out)
            rates["py4dstem_from_memory"] = round(float(number / result["seconds"]), 1)
            rates["times_py4dstem"] = round(rates["from_memory"] / rates["py4dstem_from_memory"], 1)
    return rates


def main(arguments: Arguments) -> None:
    """Predict, compare, time, print, write."""
    results = {"speed": speed(arguments)}
    print("patterns/s:", results["speed"], flush=True)
    for name in arguments.sets:
        truth = read_truth(arguments.data / f"{name}_truth.h5")
        predicted = predict(arguments.data / CIFS[name], truth)
        cube = read_cube(arguments.data / f"{name}_cube.h5")
        scans = {
            "py4DSTEM": read_disks(arguments.data / f"{name}_bragg.h5"),
            "jaxstem": detect_disks(cube),
            "jaxstem, no slopes": detect_disks(cube, DetectConfig(structure=False)),
        }
        results[name] = {method: compare(scan, predicted) for method, scan in scans.items()}
        for method in ("jaxstem", "jaxstem, no slopes"):
            results[name][method]["px_from_py4dstem"] = between(scans[method], scans["py4DSTEM"])
        for method, row in results[name].items():
            print(name, method, row, flush=True)
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
