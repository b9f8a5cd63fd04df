# SPDX-License-Identifier: GPL-3.0-or-later
"""One crystal of each of the eleven Laue classes, indexed on clean kinematic patterns.

    python -m experiments.accuracy.laue_classes [--minutes 1.5] [--n 300]    about 40 minutes
    python -m experiments.accuracy.laue_classes --quick                      a few classes

Each crystal is written as a CIF from its space group, lattice and atoms, and read back as a user's
would be. Its patterns are indexed by matching, which needs no training, and by a small network
trained for `minutes` on two-beam patterns; both are refined. Four of the crystals have no
inversion centre: patterns without dynamical effects cannot tell g from -g (Friedel), so that
orientations are told apart, and scored, modulo the Laue group. Patterns have exact kinematic
positions and intensities (shape function of 0.02 1/Å), at most 48 disks above 1/1000 of the
strongest, and no direct beam. Prints a table and writes experiments/results/laue_classes.json.
"""

import dataclasses
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import tyro
from pymatgen.core import Lattice, Structure

from experiments.common.errors import errors, shares
from experiments.common.markdown import flowed, heading, line, table
from experiments.common.patterns import scan_of
from experiments.common.results import results_file, save, settings
from jaxstem.crystal.cell import Crystal
from jaxstem.crystal.reading import read_cif
from jaxstem.diffraction.kinematic import simulate
from jaxstem.diffraction.material import make_material
from jaxstem.diffraction.settings import Microscope, Specimen
from jaxstem.inference.stream import predict_scan
from jaxstem.network.matching import matching_model
from jaxstem.network.model import Model
from jaxstem.network.transformer import ModelConfig
from jaxstem.orientation import rotations
from jaxstem.training.acquisition import CLEAN
from jaxstem.training.config import TrainConfig
from jaxstem.training.loop import train


@dataclass(frozen=True)
class Prototype:
    """A crystal by its space group (number), cell (Å, degrees) and independent atoms."""

    space_group: int
    cell: tuple[float, float, float, float, float, float]
    atoms: tuple[tuple[str, float, float, float], ...]


THIRD = 1 / 3
PROTOTYPES = {
    "CuWO4": Prototype(  # -1; Kihlborg & Gebert, Acta Cryst. B 26 (1970) 1020
        2,
        (4.7026, 5.8389, 4.8784, 91.677, 92.469, 82.805),
        (
            ("Cu", 0.4953, 0.6598, 0.2448),
            ("W", 0.0211, 0.1735, 0.2543),
            ("O", 0.2491, 0.3535, 0.4245),
            ("O", 0.2145, 0.8812, 0.4309),
            ("O", 0.7353, 0.3803, 0.0981),
            ("O", 0.7826, 0.9079, 0.0533),
        ),
    ),
    "CuO": Prototype(  # 2/m; tenorite
        15,
        (4.6837, 3.4226, 5.1288, 90, 99.54, 90),
        (("Cu", 0.25, 0.25, 0), ("O", 0, 0.4184, 0.25)),
    ),
    "U": Prototype(63, (2.854, 5.870, 4.955, 90, 90, 90), (("U", 0, 0.1025, 0.25),)),  # mmm; A20
    "BPO4": Prototype(  # 4/m, point group -4
        82,
        (4.343, 4.343, 6.645, 90, 90, 90),
        (("B", 0, 0.5, 0.25), ("P", 0, 0, 0), ("O", 0.138, 0.260, 0.131)),
    ),
    "TiO2": Prototype(  # 4/mmm; rutile
        136, (4.594, 4.594, 2.959, 90, 90, 90), (("Ti", 0, 0, 0), ("O", 0.305, 0.305, 0))
    ),
    "FeTiO3": Prototype(  # -3; ilmenite
        148,
        (5.088, 5.088, 14.085, 90, 90, 120),
        (("Fe", 0, 0, 0.3554), ("Ti", 0, 0, 0.1465), ("O", 0.3173, 0.0233, 0.2451)),
    ),
    "TiS2": Prototype(  # -3m; CdI2 type
        164, (3.407, 3.407, 5.695, 90, 90, 120), (("Ti", 0, 0, 0), ("S", THIRD, 2 * THIRD, 0.2495))
    ),
    "LaCl3": Prototype(  # 6/m; UCl3 type
        176,
        (7.483, 7.483, 4.364, 90, 90, 120),
        (("La", THIRD, 2 * THIRD, 0.25), ("Cl", 0.3874, 0.3016, 0.25)),
    ),
    "ZnO": Prototype(  # 6/mmm, point group 6mm; wurtzite
        186,
        (3.2495, 3.2495, 5.2069, 90, 90, 120),
        (("Zn", THIRD, 2 * THIRD, 0), ("O", THIRD, 2 * THIRD, 0.3819)),
    ),
    "FeSi": Prototype(  # m-3, point group 23; B20
        198,
        (4.489, 4.489, 4.489, 90, 90, 90),
        (("Fe", 0.137, 0.137, 0.137), ("Si", 0.842, 0.842, 0.842)),
    ),
    "SiC": Prototype(  # m-3m, point group -43m; zinc blende
        216, (4.3596, 4.3596, 4.3596, 90, 90, 90), (("Si", 0, 0, 0), ("C", 0.25, 0.25, 0.25))
    ),
}
"""A crystal of each Laue class, from -1 to m-3m."""


@dataclass(frozen=True)
class Arguments:
    """crystals: which (all if none is named); n: patterns of each; minutes: of training, 0 for
    matching alone; spacing_deg: of the grid for the network and for matching; k_max: in 1/Å; quick:
    a few classes, written nowhere unless `out` is given.
    """

    crystals: tuple[str, ...] = ()
    n: int = 300
    minutes: float = 1.5
    spacing_deg: float = 8.0
    k_max: float = 1.5
    seed: int = 0
    quick: bool = False
    out: Path | None = None


def written_crystal(name: str, folder: Path) -> Crystal:
    """The prototype's CIF, written into `folder` with all its atoms and read back."""
    prototype = PROTOTYPES[name]
    species, *coordinates = zip(*prototype.atoms, strict=True)
    structure = Structure.from_spacegroup(
        prototype.space_group,
        Lattice.from_parameters(*prototype.cell),
        species,
        np.transpose(coordinates),
    )
    path = folder / f"{name}.cif"
    structure.to(str(path))
    return read_cif(path)


def trained_network(crystal: Crystal, arguments: Arguments, folder: Path) -> Model:
    """A small network, trained on two-beam patterns with little noise."""
    config = TrainConfig(
        model=ModelConfig(n_disks=24, spacing_deg=arguments.spacing_deg),
        acquisition=dataclasses.replace(
            CLEAN, cutoff=(1e-3, 1e-2), missed=(0.0, 0.1), position_jitter=(0.0, 0.005)
        ),
        physics="two_beam",
        minutes=arguments.minutes,
        seed=arguments.seed,
    )
    made_of = make_material(
        crystal,
        Microscope(300.0, k_max=arguments.k_max),
        Specimen(u_iso=0.0),
        arguments.spacing_deg,
    )
    return train((made_of,), config, folder)


def score(model: Model, arguments: Arguments) -> dict[str, float]:
    """Errors [degrees] of refined answers to clean kinematic patterns of random orientations."""
    (made_of,) = model.materials
    truth = rotations.random_rotations(jax.random.key(arguments.seed + 1), (arguments.n,))
    disks = simulate(truth, made_of.reflectors(), made_of.wavelength, n_disks=48)
    answer, _ = predict_scan(model, scan_of(disks, made_of.voltage_kv))
    plain, mod_180 = errors(answer.orientation, truth, made_of.operations)
    right = plain[plain < 5]
    return {
        "n_cells": len(made_of.grid),
        **shares(plain, mod_180),
        "median_of_right": round(float(np.median(right)), 3) if len(right) else None,
    }


COLUMNS = ("Laue class", "crystal", "by", "median", "within 5°", "within 5° mod 180°")


def shown(score: dict) -> list[str]:
    """Cells of a score."""
    return [f"{score['median']}°", f"{score['within_5']} %", f"{score['within_5_mod_180']} %"]


def to_markdown(results: dict) -> str:
    """Each crystal by templates, and by the network."""
    told, rows = results["settings"], []
    for name, crystal in results.items():
        if name == "settings":
            continue
        what = crystal["laue_group"], f"{name} ({crystal['point_group']})"
        rows.append([*what, "templates", *shown(crystal["matching"])])
        rows.append(["", "", "network", *shown(crystal["network"])])
    text = flowed(f"""
{told["n"]} clean kinematic patterns of each up to {told["k_max"]} 1/Å, by templates alone and by a
network that corrects them, trained for {60 * told["minutes"]:.0f} seconds; both verified
(`experiments/accuracy/laue_classes.py`). Crystals without inversion are told apart modulo the Laue
class.
""")
    return f"{table(COLUMNS, rows)}\n\n{text}"


def main(arguments: Arguments) -> None:
    """Write, read, match, train, score, print."""
    if arguments.quick:
        arguments = dataclasses.replace(
            arguments, crystals=("CuO", "SiC"), n=64, minutes=0.2, spacing_deg=12.0, k_max=1.2
        )
    out, results = results_file(arguments, "laue_classes"), {}
    print(heading("crystal", "point group", "operations", "method", "cells", *COLUMNS[3:]))
    for name in arguments.crystals or PROTOTYPES:
        with tempfile.TemporaryDirectory() as folder:
            crystal = written_crystal(name, Path(folder))
            start = time.perf_counter()
            models = {
                "matching": matching_model(
                    [crystal], 300.0, arguments.k_max, arguments.spacing_deg, 0.0
                )
            }
            if arguments.minutes:
                models["network"] = trained_network(crystal, arguments, Path(folder) / "model")
        row = {"point_group": crystal.point_group, "laue_group": crystal.laue_group}
        row["operations"] = len(models["matching"].materials[0].operations)
        for method, model in models.items():
            row[method] = score(model, arguments)
            what = name, crystal.point_group, row["operations"], method, row[method]["n_cells"]
            print(line([*what, *shown(row[method])]), flush=True)
        row["seconds"] = round(time.perf_counter() - start, 1)
        results[name] = row
        save(out, {"settings": settings(arguments), **results}, to_markdown)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
