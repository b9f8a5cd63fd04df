# SPDX-License-Identifier: GPL-3.0-or-later
"""Bragg disks found by jaxstem and by py4DSTEM in the random sample scans, against the truth.

    python -m experiments.accuracy.detection --data DIR [--py4dstem PYTHON] [--sets cu_random ...]

DIR holds `NAME_cube.h5`, `NAME_bragg.h5` (py4DSTEM's disks), `NAME_truth.h5` and the CIFs; PYTHON
is that of an environment with py4DSTEM 0.14.18 (experiments/fixtures/requirements.txt). With it
both programs take turns at the same cube (`speed`: medians over the rounds), py4DSTEM opens what
`jaxstem detect` writes (`opened`), and its disks are found once more with its finest subpixel
method. True disks are the reflections that Bloch waves, averaged
over the illumination's cone, give more than 2e-5 of the beam at the true orientation and thickness;
a detected disk within one disk radius of one is true, any other is false. `positions` compares
strong disks (more than 0.002 of the beam) that both programs found: how far each puts them from the
truth, and how far apart they are, in detector pixels. Prints a table and writes
experiments/results/detection.json. About ten minutes on two cores, most of it py4DSTEM; with --keep
nothing is timed, and what OUT holds besides the --sets stays.
"""

import itertools
import os
import resource
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.common.environments import run_elsewhere
from experiments.common.markdown import flowed, table
from experiments.common.results import RESULTS, load, save
from jaxstem.crystal.reading import read_cif
from jaxstem.detection.config import DetectConfig
from jaxstem.detection.scan import calibrated, detect_in_cube, find_disks, write_bragg
from jaxstem.diffraction.bloch import bloch_intensities, prepare
from jaxstem.files.calibration import calibrate_disks
from jaxstem.files.cube import cube_from_array
from jaxstem.files.cube_readers import read_cube
from jaxstem.files.emd import emd_calibration, read_disks
from jaxstem.files.scan import DiskScan
from jaxstem.files.truth import read_truth

CIFS = {"cu_random": "Cu.cif", "cu2o_random": "Cu2O.cif"}
SEMIANGLE = 1.5e-3  # rad
VOLTAGE_KV = 300.0
THERMAL = 0.08**2  # Å²
FAINTEST = 2e-5  # share of the beam below which a reflection is none
PIXEL = 0.0328  # 1/Å
REACH = 2.3  # px, one disk radius
STRONG = 2e-3
SHARES = [1e-4, 2e-4, 4e-4, 7e-4, 1.5e-3, 1.0]


@dataclass(frozen=True)
class Arguments:
    """data: folder of the scans; py4dstem: its Python; sets: which; speed: cube to time on;
    rounds: how often each program is timed; keep: of the results in `out`, all but the `sets`."""

    data: Path
    py4dstem: Path | None = None
    sets: tuple[str, ...] = tuple(CIFS)
    speed: str = "cu"
    rounds: int = 3
    keep: bool = False
    out: Path = RESULTS / "detection.json"


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
    tables = prepare(read_cif(cif), VOLTAGE_KV, 3.0, u_iso=THERMAL)
    turns, weights = (jnp.asarray(x, jnp.float32) for x in cone())

    @jax.jit
    def shares(orientation, thickness):
        def one(turn):
            beams = bloch_intensities(orientation @ turn, thickness[None], tables, 96, 300)
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
        strong = np.flatnonzero(inside & near.any(1) & (share > STRONG))
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


@dataclass(frozen=True)
class Disks:
    """The disks of a scan, and where they are in the patterns: (row, column) [px], one a disk."""

    scan: DiskScan
    place: np.ndarray


def ours(cube, config: DetectConfig) -> Disks:
    """Found by jaxstem."""
    found = find_disks(cube, config)
    return Disks(calibrated(found), np.stack([found.row, found.column], -1))


def theirs(bragg: Path, found) -> Disks:
    """Found by py4DSTEM (`find` or `open` of py4dstem_detection.py), calibrated as `bragg` is."""
    stated = read_disks(bragg)
    with h5py.File(bragg) as file:
        calibration = emd_calibration(file["datacube_root"])
    counts = found["counts"].ravel()
    pixels = np.rec.fromarrays([found["row"], found["column"]], names="qx,qy")
    qx, qy = calibrate_disks(pixels, counts, stated.scan_shape, calibration, bragg)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    scan = replace(stated, qx=qx, qy=qy, intensity=found["intensity"], offsets=offsets)
    return Disks(scan, np.stack([found["row"], found["column"]], -1))


def positions(one: Disks, other: Disks, predicted) -> dict:
    """Distances [px] of the strong disks that both programs found: of each from the truth, as
    calibrated, and of one from the other in the pattern.
    """
    distances = {"jaxstem_from_truth": [], "py4dstem_from_truth": [], "between": []}
    for p, (gx, gy, share) in enumerate(zip(*predicted, strict=True)):
        strong = (share > STRONG) & (np.hypot(gx, gy) > 0.1)
        pairs = []
        for disks in (one, other):
            own = slice(disks.scan.offsets[p], disks.scan.offsets[p + 1])
            x, y = disks.scan.qx[own], disks.scan.qy[own]
            if not len(x):
                break
            apart = np.hypot(gx[strong, None] - x, gy[strong, None] - y) / PIXEL
            pairs.append((apart.min(1), disks.place[own][apart.argmin(1)]))
        if len(pairs) < 2:
            continue
        (near, place), (also_near, other_place) = pairs
        both = (near < REACH) & (also_near < REACH)
        distances["jaxstem_from_truth"].extend(near[both])
        distances["py4dstem_from_truth"].extend(also_near[both])
        distances["between"].extend(np.hypot(*(place - other_place)[both].T))
    n = len(distances["between"])
    quantiles = {
        name: {f"q{100 * q:g}": round(float(np.quantile(x, q)), 3) for q in (0.5, 0.9)}
        for name, x in distances.items()
    }
    return {"n_disks": n} | quantiles


def run_py4dstem(arguments: Arguments, *call) -> dict:
    """The result of py4dstem_detection.py."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.npz"
        script, words = "accuracy.py4dstem_detection", (*call, out)
        run_elsewhere(arguments.py4dstem, script, words, capture_output=True)
        with np.load(out) as result:
            return dict(result)


def cpu_seconds() -> float:
    """Processor time of this process, all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def speed(arguments: Arguments) -> dict:
    """Patterns a second on one cube, from memory, of both programs in turns; from the file; and
    the processor time that each takes."""
    files = [arguments.data / f"{arguments.speed}_{x}.h5" for x in ("cube", "bragg")]
    cube = read_cube(files[0])
    memory = cube_from_array(cube.rows(0, cube.scan_shape[0]), pixel_size=cube.pixel_size)
    number = int(np.prod(cube.scan_shape))
    start = time.perf_counter()
    detect_in_cube(memory)
    rates = {"cores": os.cpu_count(), "first_call_s": round(time.perf_counter() - start, 1)}
    rounds = []
    for _ in range(arguments.rounds):
        row = {}
        for name, source in (("from_file", cube), ("from_memory", memory)):
            start, start_cpu = time.perf_counter(), cpu_seconds()
            detect_in_cube(source)
            row[name] = number / (time.perf_counter() - start)
            row["cpu_ms"] = 1e3 * (cpu_seconds() - start_cpu) / number
        if arguments.py4dstem:
            found = run_py4dstem(arguments, "find", *files, "poly")
            row["py4dstem_from_memory"] = number / float(found["seconds"])
            row["py4dstem_cpu_ms"] = 1e3 * float(found["cpu_seconds"]) / number
            row["times_py4dstem"] = row["from_memory"] / row["py4dstem_from_memory"]
        rounds.append({name: round(value, 3) for name, value in row.items()})
        print("round:", rounds[-1], flush=True)
    medians = {name: round(float(np.median([r[name] for r in rounds])), 3) for name in rounds[0]}
    return rates | medians | {"rounds": rounds}


def opened(arguments: Arguments, name: str) -> dict:
    """How the disks that py4DSTEM reads from our file differ from ours: numbers at each position,
    places [px], calibrated vectors [1/Å]; all should be nothing.
    """
    found = find_disks(read_cube(arguments.data / f"{name}_cube.h5"))
    scan = calibrated(found)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bragg.h5"
        write_bragg(path, found)
        there = run_py4dstem(arguments, "open", path)
    counts = np.diff(found.offsets).reshape(found.cube.scan_shape)
    assert there["counts"].shape == counts.shape and (there["counts"] == counts).all()
    largest = lambda *pairs: float(max(np.abs(a - b).max() for a, b in pairs))  # noqa: E731
    return {
        "disks": int(counts.sum()),
        "units": str(there["units"]),
        "largest_px": largest((there["row"], found.row), (there["column"], found.column)),
        "largest_per_angstrom": largest((there["qx"], scan.qx), (there["qy"], scan.qy)),
        "largest_share_of_counts": float(np.abs(there["intensity"] / found.counts - 1).max()),
    }


COLUMNS = ("set", "program", "true disks", "false disks", "position, median", "from py4DSTEM's")
PROGRAMS = {
    "py4DSTEM": "py4DSTEM, `poly`",
    "py4DSTEM, multicorr 16": "py4DSTEM, `multicorr` 16",
    "jaxstem": "**jaxstem**",
    "jaxstem, no slopes": "jaxstem, `structure=False`",
    "jaxstem, correlation": "jaxstem, `--method correlation`",
}


def to_markdown(results: dict) -> str:
    """Each set by each program, how far positions lie apart, and the speed."""
    rows = []
    for name in CIFS:
        of = results[name]
        for program, label in PROGRAMS.items():
            s, pair = of[program], of["positions"].get(f"{program} | py4DSTEM")
            rows.append(
                [
                    f"`{name}`" if program == "py4DSTEM" else "",
                    label,
                    f"{s['true_disks_mean']:.2f}",
                    f"{s['false_disks_mean']:.2f}",
                    f"{s['position_error_px_median']:.3f} px",
                    f"{pair['between']['q50']:.3f} px" if pair else "",
                ]
            )
    pair = results["cu_random"]["positions"]["jaxstem, correlation | py4DSTEM, multicorr 16"]
    apart, rate = pair["between"]["q50"], results["speed"]
    ratios = sorted(r["times_py4dstem"] for r in rate["rounds"])
    told = flowed(f"""
Disks are a mean per pattern. jaxstem's positions differ from py4DSTEM's by what py4DSTEM's differ
from the truth: diffraction fills disks unevenly, and jaxstem fits that slope. The correlation is
for probes that are no round, filled disks; from py4DSTEM's `multicorr` its positions differ by
{apart:.3f} px in `cu_random`. Speed on `cu_cube`,
{rate["cores"]} cores, same run: {rate["from_memory"]:,.0f} patterns a second,
{ratios[len(ratios) // 2]:.1f} times py4DSTEM's ({ratios[0]:.1f}–{ratios[-1]:.1f} in
{len(ratios)} rounds).
""")
    return f"{table(COLUMNS, rows)}\n\n{told}"


def main(arguments: Arguments) -> None:
    """Predict, compare, time, print, write."""
    if arguments.keep:
        results = load(arguments.out)
    else:
        results = {"speed": speed(arguments)}
        print("patterns/s:", results["speed"], flush=True)
    for name in arguments.sets:
        truth = read_truth(arguments.data / f"{name}_truth.h5")
        predicted = predict(arguments.data / CIFS[name], truth)
        cube = read_cube(arguments.data / f"{name}_cube.h5")
        bragg = arguments.data / f"{name}_bragg.h5"
        methods = {
            "jaxstem": ours(cube, DetectConfig()),
            "jaxstem, no slopes": ours(cube, DetectConfig(structure=False)),
            "jaxstem, correlation": ours(cube, DetectConfig(method="correlation")),
        }
        if arguments.py4dstem:
            files = (arguments.data / f"{name}_cube.h5", bragg)
            methods |= {
                "py4DSTEM": theirs(bragg, run_py4dstem(arguments, "open", bragg)),
                "py4DSTEM, multicorr 16": theirs(
                    bragg, run_py4dstem(arguments, "find", *files, "multicorr")
                ),
            }
        scans = {method: disks.scan for method, disks in methods.items()}
        scans.setdefault("py4DSTEM", read_disks(bragg))
        results[name] = {method: compare(scan, predicted) for method, scan in scans.items()}
        for method, row in results[name].items():
            print(name, method, row, flush=True)
        if not arguments.py4dstem:
            continue
        results[name]["opened"] = opened(arguments, name)
        print(name, "opened by py4DSTEM:", results[name]["opened"], flush=True)
        results[name]["positions"] = {}
        for one, other in itertools.product(list(methods)[:3], list(methods)[3:]):
            row = positions(methods[one], methods[other], predicted)
            results[name]["positions"][f"{one} | {other}"] = row
            print(name, one, "|", other, row, flush=True)
    save(arguments.out, results, to_markdown)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
