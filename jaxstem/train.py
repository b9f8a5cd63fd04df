# SPDX-License-Identifier: GPL-3.0-or-later
"""Training from a CIF: every step simulates its own patterns on the device, no files.

`train_step(state, key)` is one pure function under one jit: fold the key with the step and the
global sample index, draw random orientations, diffract, spoil, embed, predict, differentiate,
update. The stream of patterns therefore depends on the seed and the step alone, not on the number
of devices. `train` is the loop around it: set up, restore, step, validate, log, checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PRNGKeyArray
from tqdm import tqdm

from jaxstem import checkpoint, losses, parallel, so3
from jaxstem.acquisition import Acquisition, acquire
from jaxstem.errors import InputError
from jaxstem.kinematic import Disks
from jaxstem.library import Library, LibraryConfig, TwoBeam, build_library, sample_pattern
from jaxstem.model import MODEL_FILES, Material, Model, build_network, save_model
from jaxstem.transformer import ModelConfig, OrientationTransformer, init_params

EXTRA_DISKS = 8
"""Disks simulated beyond the network's limit, since acquisition loses some."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a training run, besides the material.

    physics: "bloch" (a library of dynamical patterns) or "two_beam"; steps: 0 means as many as fit
    into `minutes`; batch: patterns a step, over all devices; learning_rate: peak of a warm-up and
    cosine schedule; n_validation: patterns in each check.
    """

    model: ModelConfig = ModelConfig()
    acquisition: Acquisition = Acquisition()
    library: LibraryConfig = LibraryConfig()
    physics: str = "bloch"
    loss: str = ""
    steps: int = 0
    minutes: float = 15.0
    batch: int = 256
    learning_rate: float = 1.5e-3
    warmup: float = 0.05
    weight_decay: float = 0.02
    clip: float = 1.0
    seed: int = 0
    n_validation: int = 1024

    @property
    def loss_name(self) -> str:
        """The loss asked for, or the default one of the head."""
        return self.loss or losses.DEFAULT_LOSS[self.model.head]


def preset(name: str) -> TrainConfig:
    """The settings of a preset: "default", or "paper" for the published network and schedule."""
    if name == "paper":
        return TrainConfig(
            model=ModelConfig.paper(), batch=1024, learning_rate=7e-5, warmup=15 / 265
        )
    return TrainConfig()


class TrainState(NamedTuple):
    """What a step changes: its number (of `total`), the parameters, the optimiser's state."""

    step: Int[Array, ""]
    total: Int[Array, ""]
    params: Any
    opt_state: Any


class Batch(NamedTuple):
    """Patterns and the orientations that made them."""

    disks: Disks
    orientation: Float[Array, "B 3 3"]


def simulate_pattern(
    key: PRNGKeyArray,
    source: Library | TwoBeam,
    acquisition: Acquisition,
    n_disks: int,
    k_max: float,
) -> tuple[Disks, Float[Array, "3 3"]]:
    """One random orientation and its spoilt pattern of at most `n_disks` disks within k_max."""
    key_sample, key_acquire = jax.random.split(key)
    disks, orientation = sample_pattern(key_sample, source, n_disks + EXTRA_DISKS)
    return acquire(key_acquire, disks, acquisition, n_disks, k_max), orientation


def simulate_batch(
    key: PRNGKeyArray,
    index: Int[Array, " B"],
    source: Library | TwoBeam,
    acquisition: Acquisition,
    n_disks: int,
    k_max: float,
) -> Batch:
    """The patterns of these global sample indices, each from its own key."""
    keys = jax.vmap(partial(jax.random.fold_in, key))(index)
    one = partial(
        simulate_pattern, source=source, acquisition=acquisition, n_disks=n_disks, k_max=k_max
    )
    return Batch(*jax.vmap(one)(keys))


def make_source(
    material: Material, config: TrainConfig, progress: bool | None = None
) -> Library | TwoBeam:
    """Where the run's patterns come from: a Bloch-wave library, or two-beam theory."""
    if config.physics == "bloch":
        return build_library(material, config.library, config.seed, progress)
    return TwoBeam(
        material.reflectors(),
        jnp.asarray(material.wavelength, jnp.float32),
        jnp.log(jnp.asarray(config.library.thickness, jnp.float32)),
    )


def make_optimiser(config: TrainConfig) -> optax.GradientTransformation:
    """AdamW's direction (Loshchilov & Hutter, arXiv 1711.05101) with clipping, at unit rate."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.scale_by_adam(),
        optax.add_decayed_weights(config.weight_decay),
    )


def learning_rate(config: TrainConfig, step: Float[Array, ""], total: Float[Array, ""]):
    """Linear warm-up over the first share `config.warmup`, then a cosine to 1 % of the peak.

    Loshchilov & Hutter, arXiv 1608.03983. A function of arrays, so that the length of a run can be
    chosen after the step is compiled.
    """
    progress = step / total
    rise = (step + 1) / jnp.maximum(config.warmup * total, 1.0)
    fall = 0.01 + 0.99 * 0.5 * (
        1 + jnp.cos(jnp.pi * jnp.clip((progress - config.warmup) / (1 - config.warmup), 0, 1))
    )
    return config.learning_rate * jnp.minimum(rise, fall)


def apply_with_dropout(
    network: OrientationTransformer,
    params: Any,
    disks: Disks,
    key: PRNGKeyArray,
    index: Int[Array, " B"],
) -> Float[Array, "B n_out"]:
    """The network's output in training, dropout included.

    What is dropped depends on the key and the global sample index alone.
    """
    if network.config.dropout == 0.0:
        return network.apply({"params": params}, disks)
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.fold_in(key, 1 << 30)))(index)
    one = lambda disks, key: network.apply(  # noqa: E731
        {"params": params}, disks, deterministic=False, rngs={"dropout": key}
    )
    return jax.vmap(one)(disks, keys)


def make_train_step(
    network: OrientationTransformer,
    material: Material,
    config: TrainConfig,
    optimiser: optax.GradientTransformation,
    mesh: Mesh,
) -> Callable[[TrainState, PRNGKeyArray, Any], tuple[TrainState, Float[Array, ""]]]:
    """The jitted `(state, key, source) -> (state, mean loss)` on all devices of the mesh.

    Raises InputError when the batch does not divide evenly among the devices.
    """
    if config.batch % mesh.size:
        raise InputError(
            f"A batch of {config.batch} patterns does not divide among {mesh.size} devices: "
            "choose a multiple."
        )
    per_device = config.batch // mesh.size
    space = material.space()
    loss_fn = losses.batched(config.loss_name)

    def step(state: TrainState, key: PRNGKeyArray, source: Library | TwoBeam):
        key = jax.random.fold_in(key, state.step)
        index = parallel.sample_index(per_device)
        batch = simulate_batch(
            key, index, source, config.acquisition, config.model.n_disks, material.k_max
        )

        def mean_loss(params):
            output = apply_with_dropout(network, params, batch.disks, key, index)
            return loss_fn(output, batch.orientation, space).mean()

        loss, gradient = jax.value_and_grad(mean_loss)(state.params)
        loss, gradient = jax.lax.pmean((loss, gradient), parallel.AXIS)
        updates, opt_state = optimiser.update(gradient, state.opt_state, state.params)
        rate = learning_rate(config, state.step, state.total)
        params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
        return TrainState(state.step + 1, state.total, params, opt_state), loss

    replicated = parallel.REPLICATED
    return parallel.pmap(step, mesh, (replicated, replicated, replicated), replicated, (0,))


def make_validation(
    network: OrientationTransformer,
    material: Material,
    config: TrainConfig,
    source: Library | TwoBeam,
) -> Callable[[Any], dict[str, float]]:
    """A function of the parameters: loss and angles on fixed random spoilt patterns.

    Angles in degrees, modulo the Laue group; for the grid head those of the best cell, and the
    share with the truth's neighbourhood (within 1.2 spacings) among the best 16 cells.
    """
    space = material.space()
    loss_fn = losses.batched(config.loss_name)
    n = config.n_validation
    cells = so3.quaternion_to_matrix(jnp.asarray(material.grid))

    @jax.jit
    def measure(params, source):
        batch = simulate_batch(
            jax.random.key(20_260_101),
            jnp.arange(n),
            source,
            config.acquisition,
            config.model.n_disks,
            material.k_max,
        )
        output = network.apply({"params": params}, batch.disks)
        loss = loss_fn(output, batch.orientation, space).mean()
        if config.model.head == "matrix":
            answer = so3.nearest_rotation(output.reshape(-1, 3, 3))[:, None]
        else:
            answer = cells[jax.lax.top_k(output, 16)[1]]
        angle = so3.misorientation(answer, batch.orientation[:, None], space.operations)
        return loss, angle

    def validate(params) -> dict[str, float]:
        loss, angle = measure(params, source)
        angle = np.rad2deg(np.asarray(angle))
        reach = 1.2 * np.rad2deg(material.spacing)
        return {
            "val_loss": float(loss),
            "val_median_deg": float(np.median(angle[:, 0])),
            "val_within_5deg": float((angle[:, 0] < 5).mean()),
            "val_best16_within_reach": float((angle.min(axis=1) < reach).mean()),
        }

    return validate


def init_state(
    network: OrientationTransformer, optimiser: optax.GradientTransformation, seed: int, total: int
) -> TrainState:
    """Fresh parameters and optimiser state at step 0 of `total`."""
    params = jax.jit(partial(init_params, network))(jax.random.key(seed))
    number = lambda x: jnp.asarray(x, jnp.int32)  # noqa: E731
    return TrainState(number(0), number(total), params, optimiser.init(params))


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
    material: Material,
    config: TrainConfig,
    out: str | Path,
    *,
    mesh: Mesh | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
    stop_after: int | None = None,
) -> Model:
    """Train a model for `material` into the folder `out`; resume the run that is there, if any.

    The folder receives `run.json` (the settings: a run with others must not resume here),
    `checkpoints/`, `metrics.jsonl` and, at the end, the model's own three files. `progress` None
    shows a bar on a terminal only; `stop_after` ends early after that many steps, checkpointed.
    Raises InputError when `out` holds a finished model or another run and `overwrite` is False.
    """
    out = Path(out)
    start = time.perf_counter()
    mesh = mesh or parallel.make_mesh()
    network = build_network(config.model, material)
    optimiser = make_optimiser(config)
    train_step = make_train_step(network, material, config, optimiser, mesh)
    settings = _settings(material, config)
    total = _claim_folder(out, settings, overwrite)
    everywhere = jax.NamedSharding(mesh, parallel.REPLICATED)
    source = jax.device_put(make_source(material, config, progress), everywhere)
    validate = make_validation(network, material, config, source)
    key = jax.device_put(jax.random.key(config.seed), everywhere)
    step_fn = lambda state: train_step(state, key, source)  # noqa: E731
    if total == 0:
        probe = init_state(network, optimiser, config.seed, 1_000_000)
        each = seconds_per_step(step_fn, jax.device_put(probe, everywhere))
        left = 60 * config.minutes * 0.97 - (time.perf_counter() - start)
        total = max(20, int(left / each))
    _write_json(out / "run.json", {**settings, "total_steps": total})

    state = jax.device_put(init_state(network, optimiser, config.seed, total), everywhere)
    checkpoints = checkpoint.open_checkpoints(out / "checkpoints")
    state = checkpoint.restore_newest(checkpoints, state) or state
    first = int(state.step)
    every = max(1, total // 10)
    last = min(total, stop_after or total)
    loss_sum = jnp.zeros(())
    bar = tqdm(
        total=total, initial=first, unit="step", disable=None if progress is None else not progress
    )
    with bar, (out / "metrics.jsonl").open("a") as log:
        checked = first
        for number in range(first, last):
            state, loss = step_fn(state)
            loss_sum += loss
            bar.update()
            done = number + 1
            if done % every == 0 or done == last:
                row = {
                    "step": done,
                    "patterns": done * config.batch,
                    "seconds": round(time.perf_counter() - start, 1),
                    "loss": float(loss_sum) / (done - checked),
                    **validate(state.params),
                }
                loss_sum, checked = jnp.zeros(()), done
                log.write(json.dumps(row) + "\n")
                log.flush()
                bar.set_postfix_str(
                    f"loss {row['loss']:.2f}, validation median {row['val_median_deg']:.1f}°"
                )
                checkpoint.save(checkpoints, done, state)
    checkpoints.wait_until_finished()
    checkpoints.close()
    record = {
        **settings,
        "total_steps": total,
        "seconds": round(time.perf_counter() - start, 1),
        "devices": f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        "validation": validate(state.params),
    }
    model = Model(config.model, material, state.params, record)
    if last == total:
        save_model(out, model)
    return model


def _settings(material: Material, config: TrainConfig) -> dict[str, Any]:
    return json.loads(
        json.dumps(
            {
                "crystal": material.crystal.name,
                "voltage_kv": material.voltage_kv,
                "k_max": material.k_max,
                "u_iso": material.u_iso,
                "n_cells": len(material.grid),
                "config": dataclasses.asdict(config),
            }
        )
    )


def _claim_folder(out: Path, settings: dict[str, Any], overwrite: bool) -> int:
    """Steps of the run to continue in `out`; for a new one those asked for (0: to be measured)."""
    run = out / "run.json"
    if overwrite and out.is_dir():
        for path in [run, *(out / name for name in MODEL_FILES), out / "metrics.jsonl"]:
            path.unlink(missing_ok=True)
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
    if (out / "model.json").exists():
        raise InputError(f"{out}: holds a finished model; choose another folder or --overwrite.")
    out.mkdir(parents=True, exist_ok=True)
    if not run.exists():
        return settings["config"]["steps"]
    try:
        found = json.loads(run.read_text())
        total = int(found.pop("total_steps"))
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


def _write_json(path: Path, content: dict[str, Any]) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(path)
