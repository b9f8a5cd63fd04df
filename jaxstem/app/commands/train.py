# SPDX-License-Identifier: GPL-3.0-or-later
"""`jaxstem train`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxstem.app.console import USUAL, Flag, OutputOptions, complain
from jaxstem.app.options import OF_PRESET
from jaxstem.diffraction.settings import Microscope, Specimen

STOPPED = 143
"""Exit code of a run that SIGTERM ended early: 128 + 15, as shells report that signal."""

LossName = Literal[
    "grid_cross_entropy",
    "geodesic",
    "soft_geodesic",
    "chordal",
    "matrix_fisher",
    "rotation_laplace",
    "quaternion",
    "six_numbers",
    "invariant_harmonics",
    "winner_takes_all",
]
"""The names in `LOSSES`, which would take jax's start to import."""


def train(
    cif: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="CIF ...")],
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")],
    voltage_kv: Annotated[float, tyro.conf.arg(metavar="KV")] = 300.0,
    k_max: Annotated[float, tyro.conf.arg(metavar="K")] = Microscope.k_max,
    semiangle_mrad: Annotated[float, tyro.conf.arg(metavar="MRAD")] = Microscope.semi_angle_mrad,
    precession_deg: Annotated[float, tyro.conf.arg(metavar="DEG")] = Microscope.precession_deg,
    thickness: Annotated[
        tuple[float, float], tyro.conf.arg(metavar="LOW HIGH")
    ] = Specimen.thickness,
    minutes: Annotated[float, tyro.conf.arg(metavar="MIN")] = 15.0,
    steps: Annotated[
        int | None,
        tyro.conf.arg(metavar="N", help_behavior_hint="(default: as many as --minutes allows)"),
    ] = None,
    preset: Literal["default", "paper"] = "default",
    loss: Annotated[
        LossName | Literal[""], tyro.conf.arg(metavar="NAME", help_behavior_hint=OF_PRESET)
    ] = "",
    seed: Annotated[int, tyro.conf.arg(metavar="N")] = 0,
    batch: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint=OF_PRESET)] = None,
    spacing_deg: Annotated[
        float | None, tyro.conf.arg(metavar="DEG", help_behavior_hint=OF_PRESET)
    ] = None,
    u_iso: Annotated[float, tyro.conf.arg(metavar="U")] = Specimen.u_iso,
    overwrite: Flag = False,
    output: OutputOptions = USUAL,
) -> None:
    """Train a model for crystals from their CIFs alone.

    Args:
        cif: The unit cells, one CIF for each phase; phases are named after the files.
        out: Folder for the model. The same command resumes an unfinished run there.
        voltage_kv: Accelerating voltage in kV.
        k_max: Largest scattering vector in 1/Å; disks beyond it are not used.
        semiangle_mrad: Convergence semi-angle of the probe in mrad.
        precession_deg: Half-angle of the cone of a precessing beam in degrees.
        thickness: Lowest and highest thickness of the specimen in Å.
        minutes: Time to train for.
        steps: Training steps, instead of --minutes.
        preset: The network and schedule: jaxstem's own, or those of arXiv 2602.12420.
        loss: The loss, which brings the head that it is for: grid_cross_entropy learns a
            distribution over the orientation grid; geodesic, soft_geodesic, chordal, matrix_fisher,
            rotation_laplace, quaternion, six_numbers and invariant_harmonics an orientation;
            winner_takes_all a few of them.
        seed: Seed of all random numbers.
        batch: Patterns a step.
        spacing_deg: Spacing of the orientation grid in degrees.
        u_iso: Mean square displacement of the atoms in Å^2.
        overwrite: Replace a model that is there.
        output: What is said.
    """
    from jaxstem.crystal.reading import read_cif

    for path in cif:  # to be refused before jax is loaded
        read_cif(path)
    from jaxstem.api import train
    from jaxstem.network.folders import MODEL_FILES
    from jaxstem.runtime import parallel
    from jaxstem.training.loop import Stopped

    parallel.start_cluster()
    try:
        trained = train(
            cif,
            out,
            voltage_kv=voltage_kv,
            k_max=k_max,
            semiangle_mrad=semiangle_mrad,
            precession_deg=precession_deg,
            thickness=thickness,
            minutes=minutes,
            steps=steps,
            preset=preset,
            loss=loss,
            seed=seed,
            batch=batch,
            spacing_deg=spacing_deg,
            u_iso=u_iso,
            overwrite=overwrite,
            progress=output.progress,
        )
    except Stopped as stop:
        if parallel.is_first():
            resume = "the same command without --overwrite resumes it."
            complain(f"{out}: checkpointed and {stop}, by SIGTERM; {resume}", STOPPED)
        raise SystemExit(STOPPED) from None
    if not parallel.is_first():
        return
    record, config = trained.record, trained.record["config"]
    batch = config["batch"]
    output.tell(
        {"files": [out / name for name in MODEL_FILES], "phases": trained.phase_names}
        | {name: record[name] for name in ("total_steps", "devices", "validation")}
        | {"loss": config["loss"], "head": trained.config.head}
        | {"batch": batch, "training_seconds": record["seconds"]},
        f"{out}: model of {', '.join(trained.phase_names)}, {record['total_steps']} steps of "
        f"{batch} patterns in {record['seconds'] / 60:.1f} minutes on {record['devices']}; "
        f"validation median {record['validation']['val_median_deg']:.1f}° before refinement",
        f"use it: jaxstem map SCAN.h5 --model {shlex.quote(str(out))} --out MAP.h5",
    )
