# SPDX-License-Identifier: GPL-3.0-or-later
"""Training from CIFs: every step simulates its own patterns on the device, no files.

`train` is the loop around the step (`step.py`): set up, restore, step, validate, log, checkpoint. A
run can be killed at any moment and resumed: what a step needs is the state, which checkpoints hold,
and the key, which follows from the seed and the state's step. On a cluster every process runs this
loop; process 0 alone reads the clock and writes files.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float
from tqdm import tqdm

from jaxstem.diffraction.material import Material, check_materials
from jaxstem.errors import InputError
from jaxstem.network.model import Model, build_network, save_model
from jaxstem.runtime import parallel
from jaxstem.runtime.paths import replace_file
from jaxstem.training import checkpoint
from jaxstem.training.config import TrainConfig
from jaxstem.training.patterns import make_sources
from jaxstem.training.step import (
    TrainState,
    init_state,
    make_optimiser,
    make_train_step,
    with_best,
)
from jaxstem.training.validation import make_validation

CHECKPOINT_MINUTES = 10.0
"""Most minutes of training between two checkpoints, give or take `LOOK` steps."""

_CHECKS = 10
"""Validations of a run, evenly spread."""

LOOK = 25
"""Steps between two looks at the clock, upon which all processes have to agree."""


class Stopped(Exception):
    """SIGTERM ended a run early, checkpointed after `step` of `total`: `train` resumes it."""

    def __init__(self, step: int, total: int):
        super().__init__(f"stopped after step {step} of {total}")
        self.step, self.total = step, total


def seconds_per_step(
    step_fn: Callable[[TrainState], tuple[TrainState, Float[Array, ""]]],
    state: TrainState,
    n: int = 12,
) -> float:
    """Time of a compiled step [s]: the mean over `n` after one to compile. Uses up `state`."""
    state, loss = step_fn(state)
    jax.block_until_ready(loss)
    start = time.perf_counter()
    for _ in range(n):
        state, loss = step_fn(state)
    jax.block_until_ready(loss)
    return (time.perf_counter() - start) / n


def train(
    materials: Sequence[Material],
    config: TrainConfig,
    out: str | Path,
    *,
    mesh: Mesh | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
    stop_after: int | None = None,
    cache: Path | None = None,
) -> Model:
    """Train a model for `materials` into the folder `out`; resume the run that is there, if any.

    The folder receives `run.json` (the settings: a run with others must not resume here),
    `checkpoints/`, `metrics.jsonl` and, at the end, the model's own three files. `progress` None
    shows a bar on a terminal only; `stop_after` ends early after that many steps, checkpointed;
    `cache` is a folder that keeps libraries of patterns for another run. On a cluster every process
    calls this with the same arguments and a folder that all of them see.
    Raises InputError when `out` holds a finished model or another run and `overwrite` is False,
    when none of its checkpoints can be read, or when the materials do not go together; Stopped
    when SIGTERM came while training, once a checkpoint is written.
    """
    materials = tuple(materials)
    check_materials(materials)
    out = Path(out)
    start = time.perf_counter()
    mesh = mesh or parallel.make_mesh()
    writes = parallel.is_first()
    progress = progress if writes else False
    network = build_network(config.model, materials)
    optimiser = make_optimiser(config)
    train_step = make_train_step(network, materials, config, optimiser, mesh)
    settings = _settings(materials, config)
    total = parallel.first_says(lambda: _claim_folder(out, settings, overwrite))
    sources = parallel.replicate(make_sources(materials, config, progress, cache), mesh)
    validate = make_validation(network, materials, config, sources, mesh)
    key = parallel.replicate(jax.random.key(config.seed), mesh)
    step_fn = lambda state: train_step(state, key, sources)  # noqa: E731
    if total == 0:
        probe = init_state(network, optimiser, config.seed, 1_000_000, config.keep)
        probe = parallel.replicate(probe, mesh)
        validate(probe.params)  # compiled before the clock is read
        checks = -time.perf_counter()
        validate(probe.params)
        checks = _CHECKS * (checks + time.perf_counter())
        each = seconds_per_step(step_fn, probe)
        left = 60 * config.minutes * 0.97 - checks - (time.perf_counter() - start)
        total = parallel.first_says(lambda: max(20, int(left / each)))
    about = {**settings, "total_steps": total}
    if writes:
        replaces = (out / "model.json").exists()
        _write_json(out / "run.json", {**about, "replaces": replaces})

    start_state = init_state(network, optimiser, config.seed, total, config.keep)
    state = parallel.replicate(start_state, mesh)
    checkpoints = checkpoint.open_checkpoints(out / "checkpoints")
    restored = checkpoint.restore_newest(checkpoints, state)
    if restored is not None:
        state, notes = restored
        start -= notes["seconds"]
    seconds = lambda: round(time.perf_counter() - start, 1)  # noqa: E731
    first = int(state.step)
    if writes:
        _keep_rows(out / "metrics.jsonl", first)
    every = max(1, total // _CHECKS)
    last = min(total, stop_after or total)
    saved_at = time.perf_counter()
    overdue = lambda: time.perf_counter() - saved_at > 60 * CHECKPOINT_MINUTES  # noqa: E731
    bar = tqdm(
        total=total, initial=first, unit="step", disable=None if progress is None else not progress
    )
    told = checkpoint.told_where_they_cannot_be_written(out)
    with told, bar, closing(checkpoints), parallel.stop_requests() as stop_requested:
        for done in range(first + 1, last + 1):
            state, _ = step_fn(state)
            bar.update()
            stopped = stop_requested(done) and done < last
            if check := done % every == 0 or done == total:
                row = {
                    "step": done,
                    "patterns": done * config.batch,
                    "seconds": seconds(),
                    "loss": float(state.loss_sum) / ((done - 1) % every + 1),
                    **validate(state.params),
                }
                state = state._replace(loss_sum=parallel.replicate(jnp.zeros(()), mesh))
                state = with_best(state, row["val_loss"])
                if writes:
                    _append_row(out / "metrics.jsonl", row)
                bar.set_postfix_str(
                    f"loss {row['loss']:.2f}, validation median {row['val_median_deg']:.1f}°"
                )
            looked = done % LOOK == 0 and parallel.first_says(overdue)
            if check or stopped or looked or done == last:
                checkpoint.save(checkpoints, done, state, {"seconds": seconds()})
                saved_at = time.perf_counter()
            if stopped:
                checkpoints.wait_until_finished()
                raise Stopped(done, total)
        checkpoints.wait_until_finished()
    params = state.params if config.keep == "last" else state.best_params
    record = {
        **settings,
        "total_steps": total,
        "seconds": seconds(),
        "devices": f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        "validation": validate(params),
    }
    model = Model(config.model, materials, params, record)
    if last == total and writes:
        save_model(out, model)
        _write_json(out / "run.json", {**about, "replaces": False})
    return model


def _settings(materials: Sequence[Material], config: TrainConfig) -> dict[str, Any]:
    return json.loads(
        json.dumps(
            {
                "crystals": [m.crystal.name for m in materials],
                "microscope": dataclasses.asdict(materials[0].microscope),
                "specimens": [dataclasses.asdict(m.specimen) for m in materials],
                "n_cells": [len(m.grid) for m in materials],
                "config": config.as_dict(),
            }
        )
    )


def _claim_folder(out: Path, settings: dict[str, Any], overwrite: bool) -> int:
    """Steps of the run to continue in `out`; for a new one those asked for (0: to be measured).

    A model that is to be overwritten stays until the new one is there.
    """
    run, is_model = out / "run.json", (out / "model.json").exists()
    if overwrite and out.is_dir():
        for path in (run, out / "metrics.jsonl"):
            path.unlink(missing_ok=True)
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    finished = f"{out}: holds a finished model; choose another folder or --overwrite."
    if not run.exists():
        if is_model and not overwrite:
            raise InputError(finished)
        return settings["config"]["steps"]
    try:
        found = json.loads(run.read_text())
        if is_model and not found.pop("replaces", False):
            raise InputError(finished)
        found.pop("replaces", None)
        total = int(found.pop("total_steps"))
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            f"{run}: is damaged, so the run cannot be resumed; start it anew with --overwrite."
        ) from None
    if found != settings:
        raise InputError(
            f"{out}: holds an unfinished run with other settings; repeat its settings to resume "
            "it, choose another folder, or --overwrite."
        )
    return total


def _keep_rows(path: Path, step: int) -> None:
    """Drop from `metrics.jsonl` what was written after `step`, or not to its end."""

    def sound(line: str) -> bool:
        try:
            return json.loads(line)["step"] <= step
        except (ValueError, KeyError, TypeError):
            return False

    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    replace_file(path, "".join(line + "\n" for line in lines if sound(line)))


def _append_row(path: Path, row: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    replace_file(path, json.dumps(content, indent=1) + "\n")
