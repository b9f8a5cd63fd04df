# SPDX-License-Identifier: GPL-3.0-or-later
"""Clean kinematic patterns of random orientations, indexed by a model trained from the CIF alone.

    python experiments/clean_kinematic.py cu runs/cu2o runs/mg runs/tio2

Patterns have exact kinematic positions and intensities (Gaussian shape function of 0.02 1/Å, disks
over 1/1000 of the strongest, no noise, no direct beam). Prints a line for each model and writes
experiments/results/clean_kinematic.json. A wrong answer may be as right as the truth: a crystal
turned by 180° about a zone axis near the beam shows the same disks, for g and -g lie equally far
from the Ewald sphere. Of the answers wrong modulo 180°, the last column tells in how many the
pattern at the answer has a cosine of 0.99 or more with the pattern at the truth.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import tyro
from simulated import scan_of

from jaxstem.diffraction.geometry import Disks
from jaxstem.diffraction.kinematic import simulate
from jaxstem.inference.stream import predict_scan
from jaxstem.network.model import load_model
from jaxstem.orientation import rotations
from jaxstem.orientation.symmetry import misorientations


@dataclass(frozen=True)
class Arguments:
    """models: folders or packaged names; n: patterns of each; seed: of the orientations."""

    models: tyro.conf.Positional[tuple[str, ...]] = ("cu",)
    n: int = 1000
    seed: int = 0
    out: Path = Path(__file__).parent / "results" / "clean_kinematic.json"


def likeness(one: Disks, other: Disks, reach: float = 0.01) -> float:
    """Cosine of two patterns' amplitudes, disks within `reach` [1/Å] of each other being the same.

    0 … 1, of the patterns without the direct beam.
    """
    a, b = (np.sqrt(np.where(d.mask, np.maximum(d.intensity, 0), 0)) for d in (one, other))
    apart = np.hypot(
        np.asarray(one.qx)[:, None] - np.asarray(other.qx),
        np.asarray(one.qy)[:, None] - np.asarray(other.qy),
    )
    shared = (apart < reach) * a[:, None] * b
    return float(shared.max(axis=1).sum() / (np.linalg.norm(a) * np.linalg.norm(b)))


def main(arguments: Arguments) -> None:
    """Simulate, index, score, print."""
    results = {}
    print(
        "| crystal | Laue group | n | median | within 5° | median mod 180° | within 5° mod 180° | "
        "of the others as good as the truth |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in arguments.models:
        model = load_model(name)
        material = model.materials[0]
        truth = rotations.random_rotations(jax.random.key(arguments.seed), (arguments.n,))
        disks = simulate(truth, material.reflectors(), material.wavelength, n_disks=48)
        scan = scan_of(disks, material.voltage_kv)
        answer, _ = predict_scan(model, scan)
        plain, mod_180 = misorientations(answer.orientation, np.asarray(truth), material.operations)
        plain, mod_180 = np.nan_to_num(plain, nan=180.0), np.nan_to_num(mod_180, nan=180.0)
        wrong = np.flatnonzero((mod_180 >= 5) & np.isfinite(answer.orientation).all((1, 2)))
        found = simulate(
            answer.orientation[wrong], material.reflectors(), material.wavelength, n_disks=48
        )
        alike = [
            likeness(*(jax.tree.map(lambda x, i=i: x[i], d) for d, i in ((disks, w), (found, k))))
            for k, w in enumerate(wrong)
        ]
        row = {
            "crystal": material.crystal.name,
            "laue_group": material.crystal.laue_group,
            "n": arguments.n,
            "training_minutes": round(model.record["seconds"] / 60, 1),
            "training_steps": model.record["total_steps"],
            "median": round(float(np.median(plain)), 3),
            "within_5": round(100 * float((plain < 5).mean()), 1),
            "median_mod_180": round(float(np.median(mod_180)), 3),
            "within_5_mod_180": round(100 * float((mod_180 < 5).mean()), 1),
            "wrong_mod_180": int((mod_180 >= 5).sum()),
            "wrong_but_the_same_pattern": int((np.array(alike) >= 0.99).sum()),
        }
        results[row["crystal"]] = row
        print(
            f"| {row['crystal']} | {row['laue_group']} | {row['n']} | {row['median']}° | "
            f"{row['within_5']} % | {row['median_mod_180']}° | {row['within_5_mod_180']} % | "
            f"{row['wrong_but_the_same_pattern']} of {row['wrong_mod_180']} |",
            flush=True,
        )
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
