# SPDX-License-Identifier: GPL-3.0-or-later
"""Clean kinematic patterns of random orientations, indexed by a model trained from the CIF alone.

    python -m experiments.accuracy.clean_kinematic cu runs/cu2o runs/mg runs/tio2

Patterns have exact kinematic positions and intensities (Gaussian shape function of 0.02 1/Å, disks
over 1/1000 of the strongest, no noise, no direct beam). Prints a line for each model and writes
experiments/results/clean_kinematic.json. A wrong answer may be as right as the truth: a crystal
turned by 180° about a zone axis near the beam shows the same disks, for g and -g lie equally far
from the Ewald sphere. Of the answers wrong modulo 180°, the last column tells in how many the
pattern at the answer has a cosine of 0.99 or more with the pattern at the truth.
"""

from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import tyro

from experiments.common.errors import errors, shares
from experiments.common.markdown import table
from experiments.common.patterns import likeness, scan_of
from experiments.common.results import RESULTS, save
from jaxstem.diffraction.kinematic import simulate
from jaxstem.inference.stream import predict_scan
from jaxstem.network.model import load_model
from jaxstem.orientation import rotations


@dataclass(frozen=True)
class Arguments:
    """models: folders or packaged names; n: patterns of each; seed: of the orientations."""

    models: tyro.conf.Positional[tuple[str, ...]] = ("cu",)
    n: int = 1000
    seed: int = 0
    out: Path = RESULTS / "clean_kinematic.json"


COLUMNS = (
    "crystal",
    "Laue group",
    "n",
    "median",
    "within 5°",
    "within 5° mod 180°",
    "of the others as good as the truth",
)


def to_markdown(results: dict) -> str:
    """A row for each crystal."""
    return table(
        COLUMNS,
        (
            [
                c["crystal"],
                c["laue_group"],
                c["n"],
                f"{c['median']}°",
                f"{c['within_5']} %",
                f"{c['within_5_mod_180']} %",
                f"{c['wrong_but_the_same_pattern']} of {c['wrong_mod_180']}",
            ]
            for c in results.values()
        ),
    )


def main(arguments: Arguments) -> None:
    """Simulate, index, score, print."""
    results = {}
    for name in arguments.models:
        model = load_model(name)
        material = model.materials[0]
        truth = rotations.random_rotations(jax.random.key(arguments.seed), (arguments.n,))
        disks = simulate(truth, material.reflectors(), material.wavelength, n_disks=48)
        scan = scan_of(disks, material.voltage_kv)
        answer, _ = predict_scan(model, scan)
        plain, mod_180 = errors(answer.orientation, truth, material.operations)
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
            **shares(plain, mod_180),
            "median_mod_180": round(float(np.median(mod_180)), 3),
            "wrong_mod_180": int((mod_180 >= 5).sum()),
            "wrong_but_the_same_pattern": int((np.array(alike) >= 0.99).sum()),
        }
        results[row["crystal"]] = row
        print(name, row, flush=True)
    print(to_markdown(results))
    save(arguments.out, results, to_markdown)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
