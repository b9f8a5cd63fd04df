# SPDX-License-Identifier: GPL-3.0-or-later
"""Accuracy on the multislice sample scans, beside py4DSTEM's template matching.

    python experiments/sample_scans.py [--cu cu] [--cu2o runs/cu2o]

Expects the packaged model `cu` and, for the Cu2O set, a model trained by
`jaxstem train --cif experiments/data/Cu2O.cif --out runs/cu2o`. py4DSTEM's answers come from
experiments/results/py4dstem.npz (py4dstem_matching.py) and are scored by the same code. Prints a
table and writes experiments/results/sample_scans.json. About three minutes on two cores.
"""

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from jaxstem.crystal import operations
from jaxstem.infer import InferConfig, likeliest_cells
from jaxstem.io import read_disks, read_truth
from jaxstem.mapping import map_scan
from jaxstem.metrics import candidate_coverage, grain_bootstrap, misorientations
from jaxstem.model import load_model

HERE = Path(__file__).resolve().parent
SAMPLES = HERE.parent / "jaxstem" / "samples"
SETS = {
    "cu": (SAMPLES, "cu"),
    "cu_random": (HERE / "data", "cu"),
    "cu2o_random": (HERE / "data", "cu2o"),
}


@dataclass(frozen=True)
class Arguments:
    """cu, cu2o: models for the two crystals; sets: which scans; out: JSON to write."""

    cu: str = "cu"
    cu2o: str = "runs/cu2o"
    sets: tuple[str, ...] = tuple(SETS)
    matching: Path = HERE / "results" / "py4dstem.npz"
    out: Path = HERE / "results" / "sample_scans.json"


def score(orientation, truth, symmetry, inside) -> dict[str, float]:
    """Statistics of the pixels `inside`; no answer counts as 180 degrees."""
    known = np.isfinite(orientation).all((-1, -2))
    plain, mod_180 = np.full(known.shape, 180.0), np.full(known.shape, 180.0)
    plain[known], mod_180[known] = misorientations(
        orientation[known], truth.orientation[known], symmetry
    )
    plain, mod_180, grain = plain[inside], mod_180[inside], truth.grain[inside]
    interval = lambda a: [round(100 * x, 1) for x in grain_bootstrap(a < 5, grain)]  # noqa: E731
    return {
        "n": int(inside.sum()),
        "median": round(float(np.median(plain)), 2),
        "within_5": round(100 * float((plain < 5).mean()), 1),
        "within_5_interval": interval(plain),
        "median_mod_180": round(float(np.median(mod_180)), 2),
        "within_5_mod_180": round(100 * float((mod_180 < 5).mean()), 1),
        "within_5_mod_180_interval": interval(mod_180),
        "median_of_right": round(float(np.median(plain[plain < 5])), 2),
    }


def print_row(name: str, method: str, s: dict[str, float]) -> None:
    """One line of the table."""
    low, high = s["within_5_interval"]
    print(
        f"| {name} | {method} | {s['n']} | {s['median']:.2f}° | {s['within_5']:.1f} % "
        f"({low:.0f}–{high:.0f}) | {s['median_mod_180']:.2f}° | {s['within_5_mod_180']:.1f} % |",
        flush=True,
    )


def main(arguments: Arguments) -> None:
    """Map, score, print, write."""
    matching = np.load(arguments.matching) if arguments.matching.exists() else None
    results: dict[str, dict] = {}
    print("| set | method | n | median | within 5° | median mod 180° | within 5° mod 180° |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in arguments.sets:
        folder, model_field = SETS[name]
        model = load_model(getattr(arguments, model_field))
        scan = read_disks(folder / f"{name}_bragg.h5")
        truth = read_truth(folder / f"{name}_truth.h5")
        symmetry = operations(model.materials[0].crystal)
        inside = truth.boundary_weight == 0
        row: dict[str, dict] = {}
        if matching is not None:
            row["py4DSTEM"] = score(matching[f"{name}/orientation"], truth, symmetry, inside)
            print_row(name, "py4DSTEM", row["py4DSTEM"])
        for method, refine in (("jaxstem", True), ("jaxstem --no-refine", False)):
            start = time.perf_counter()
            found = map_scan(scan, model, dataclasses.replace(InferConfig(), refine=refine))
            row[method] = score(found.orientation, truth, symmetry, inside)
            row[method]["seconds"] = round(time.perf_counter() - start, 1)
            print_row(name, method, row[method])
            if refine:
                confidence = found.confidence[inside]
                plain = misorientations(
                    np.nan_to_num(found.orientation[inside]), truth.orientation[inside], symmetry
                )[0]
                row["calibration"] = calibration(confidence, plain < 5)
        cells = likeliest_cells(model, scan).orientation[inside.ravel()]
        right = truth.orientation[inside]
        known = np.isfinite(cells).all((1, 2, 3))
        coverage = candidate_coverage(cells[known], right[known], symmetry)
        share = 100 * known.mean()
        row["candidates"] = {
            f"best_of_{k}{suffix}": round(float(share * values[k - 1]), 1)
            for suffix, values in (("", coverage.plain), ("_mod_180", coverage.mod_180))
            for k in (1, 16, 64)
        }
        print(f"  {name}: truth within 5° of a candidate, %: {row['candidates']}")
        print(f"  {name}: calibration of the confidence: {row['calibration']}")
        results[name] = row
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")


def calibration(confidence, right, bins: int = 10) -> dict:
    """Expected calibration error: mean over bins of |mean confidence - share right|, weighted."""
    place = np.clip((confidence * bins).astype(int), 0, bins - 1)
    rows = [
        (
            float((place == b).mean()),
            float(confidence[place == b].mean()),
            float(right[place == b].mean()),
        )
        for b in range(bins)
        if (place == b).any()
    ]
    return {
        "expected_calibration_error": round(sum(w * abs(c - r) for w, c, r in rows), 3),
        "mean_confidence": round(float(confidence.mean()), 3),
        "share_right": round(float(right.mean()), 3),
    }


if __name__ == "__main__":
    main(tyro.cli(Arguments))
