# SPDX-License-Identifier: GPL-3.0-or-later
"""Training from CIFs: every step simulates its own patterns on the device, no files.

`train_step(state, key)` is one pure function under one jit: fold the key with the step and the
global sample index, draw phases and random orientations, diffract, spoil, embed, predict,
differentiate, update. Every phase is as frequent, and a few positions hold no crystal. The stream
of patterns therefore depends on the seed and the step alone, not on the number of devices. `train`
is the loop around it: set up, restore, step, validate, log, checkpoint.

A run can be killed at any moment and resumed: what a step needs is the state, which checkpoints
hold, and the key, which follows from the seed and the state's step. On a cluster every process runs
this loop; process 0 alone reads the clock and writes files.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import closing
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
from jaxstem.acquisition import Acquisition, acquire, add_false_disks, overlap
from jaxstem.errors import InputError
from jaxstem.grid import Label
from jaxstem.kinematic import Disks
from jaxstem.library import Library, LibraryConfig, TwoBeam, build_library, sample_pattern
from jaxstem.match import Templates, matcher, templates
from jaxstem.model import (
    MODEL_FILES,
    MatchConfig,
    Material,
    Model,
    build_network,
    check_materials,
    phases_space,
    save_model,
)
from jaxstem.transformer import ModelConfig, OrientationTransformer, init_params

EXTRA_DISKS = 8
"""Disks simulated beyond the network's limit, since acquisition loses some."""

GROUP = 32
"""Patterns of about as many disks that a processor works on at once in training."""

LENGTHS = (7, 10, 14, 20, 38)
"""Numbers of disks to which such a group is padded, besides the network's limit."""

MOST_IN_VACUUM = 4.0
"""Most false disks, on average, that an empty position has besides those of any pattern."""


class Sources(NamedTuple):
    """phases: where the patterns of each phase come from; templates: what the network corrects,
    None where it stands alone.
    """

    phases: tuple[Library | TwoBeam, ...]
    templates: Templates | None


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a training run, besides the materials.

    physics: "bloch" (a library of dynamical patterns) or "two_beam"; no_crystal: share of empty
    positions among the patterns; steps: 0 means as many as fit into `minutes`; batch: patterns a
    step, over all devices; learning_rate: peak of a warm-up and cosine schedule; n_validation:
    patterns in each check.
    """

    model: ModelConfig = ModelConfig()
    acquisition: Acquisition = Acquisition()
    library: LibraryConfig = LibraryConfig()
    physics: str = "bloch"
    no_crystal: float = 0.05
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
            model=ModelConfig.paper(),
            no_crystal=0.0,
            batch=1024,
            learning_rate=7e-5,
            warmup=15 / 265,
        )
    return TrainConfig()


CHECKPOINT_MINUTES = 10.0
"""Most minutes of training between two checkpoints, give or take `LOOK` steps."""

CHECKS = 10
"""Validations of a run, evenly spread."""

LOOK = 25
"""Steps between two looks at the clock, upon which all processes have to agree."""


class TrainState(NamedTuple):
    """What a step changes: its number (of `total`), the parameters, the optimiser's state, and the
    sum of the losses since the last validation.
    """

    step: Int[Array, ""]
    total: Int[Array, ""]
    params: Any
    opt_state: Any
    loss_sum: Float[Array, ""]


class Stopped(Exception):
    """SIGTERM ended a run early, checkpointed after `step` of `total`: `train` resumes it."""

    def __init__(self, step: int, total: int):
        super().__init__(f"stopped after step {step} of {total}")
        self.step, self.total = step, total


class Batch(NamedTuple):
    """Patterns, what they show, and what templates say of them, if there are any."""

    disks: Disks
    label: Label
    prior: Float[Array, "B n_out"] | None = None


def draw_crystal(key: PRNGKeyArray, sources: Sources, n_disks: int) -> tuple[Disks, Label]:
    """A perfect pattern of any phase, each as likely, and its label.

    Each source is asked, for they differ in their shapes, and one answer is taken; to ask costs
    little. Disks are padded to the longest answer.
    """
    key_phase, key_pattern = jax.random.split(key)
    drawn = [sample_pattern(key_pattern, source, n_disks) for source in sources.phases]
    longest = max(len(disks.qx) for disks, _ in drawn)
    lengthen = lambda x: jnp.pad(x, (0, longest - len(x)))  # noqa: E731
    of_phase = [(jax.tree.map(lengthen, disks), orientation) for disks, orientation in drawn]
    phase = jax.random.randint(key_phase, (), 0, len(sources.phases))
    disks, orientation = jax.tree.map(lambda *x: jnp.stack(x)[phase], *of_phase)
    return disks, Label(phase, orientation)


def draw_position(
    key: PRNGKeyArray, sources: Sources, config: TrainConfig, k_max: float
) -> tuple[Disks, Label]:
    """The disks of a scan position before acquisition, and its label: that of the grain which has
    most of the beam, now and then with some of another one's, or of no crystal.

    `k_max` in 1/Å.
    """
    key_first, key_second, key_mix, key_empty, key_rate, key_false = jax.random.split(key, 6)
    n_disks = config.model.n_disks + EXTRA_DISKS
    disks, label = draw_crystal(key_first, sources, n_disks)
    if config.acquisition.overlap > 0:
        second, _ = draw_crystal(key_second, sources, n_disks)
        disks = overlap(key_mix, disks, second, config.acquisition)
    if config.no_crystal == 0:
        return disks, label
    empty = jax.random.bernoulli(key_empty, config.no_crystal)
    rate = jax.random.uniform(key_rate, maxval=MOST_IN_VACUUM)
    nothing = jax.tree.map(lambda x: x[:0], disks)
    false = add_false_disks(key_false, nothing, rate, jnp.asarray(1e-3), k_max, len(disks.qx))
    disks = jax.tree.map(lambda a, b: jnp.where(empty, a, b), false, disks)
    return disks, label._replace(phase=jnp.where(empty, len(sources.phases), label.phase))


def simulate_batch(
    key: PRNGKeyArray,
    index: Int[Array, " B"],
    sources: Sources,
    config: TrainConfig,
    k_max: float,
) -> Batch:
    """The spoilt patterns of these global sample indices, each from its own key.

    Of at most `config.model.n_disks` disks within k_max [1/Å].
    """
    n_disks = config.model.n_disks

    def one(index):
        key_draw, key_acquire = jax.random.split(jax.random.fold_in(key, index))
        perfect, label = draw_position(key_draw, sources, config, k_max)
        return Batch(acquire(key_acquire, perfect, config.acquisition, n_disks, k_max), label)

    return jax.vmap(one)(index)


def make_sources(
    materials: Sequence[Material],
    config: TrainConfig,
    progress: bool | None = None,
    cache: Path | None = None,
) -> Sources:
    """Where the run's patterns come from: Bloch-wave libraries, or two-beam theory.

    `cache`: folder that keeps libraries for another run.
    """
    corrects = config.model.corrects_templates
    made = templates(materials, MatchConfig()) if corrects else None
    if config.physics == "bloch":
        phases = (build_library(m, config.library, config.seed, progress, cache) for m in materials)
    else:
        phases = (
            TwoBeam(
                m.reflectors(),
                jnp.asarray(m.wavelength, jnp.float32),
                jnp.log(jnp.asarray(config.library.thickness, jnp.float32)),
            )
            for m in materials
        )
    return Sources(tuple(phases), made)


def with_prior(batch: Batch, sources: Sources, materials: Sequence[Material]) -> Batch:
    """The batch with what the templates of `sources` say of it."""
    if sources.templates is None:
        return batch
    say = matcher(materials, MatchConfig()).apply
    return batch._replace(prior=say({"params": sources.templates}, batch.disks))


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
    batch: Batch,
    key: PRNGKeyArray,
    index: Int[Array, " B"],
) -> Float[Array, "B n_out"]:
    """The network's output in training, dropout included.

    What is dropped depends on the key and the global sample index alone, not on the padding.
    """
    if network.config.dropout == 0.0:
        return network.apply({"params": params}, batch.disks, batch.prior)
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.fold_in(key, 1 << 30)))(index)
    one = lambda disks, prior, key: network.apply(  # noqa: E731
        {"params": params}, disks, prior, deterministic=False, rngs={"dropout": key}
    )
    return jax.vmap(one)(batch.disks, batch.prior, keys)


def in_groups(
    differentiate: Callable[[Batch, Int[Array, " group"]], Any],
    batch: Batch,
    index: Int[Array, " B"],
) -> Any:
    """The mean of what `differentiate` gives for groups of patterns with about as many disks, each
    group padded to the least of `LENGTHS` that holds them.

    Most patterns have few disks, and a processor's time goes with the tokens, padding or not. `B`
    is a multiple of `GROUP`; the batch's disks stand before its padding.
    """
    n_disks = batch.disks.mask.shape[1]
    lengths = [length for length in LENGTHS if length < n_disks] + [n_disks]
    used = jnp.max(jnp.where(batch.disks.mask, jnp.arange(1, n_disks + 1), 0), axis=1)
    order = jnp.argsort(used)
    grouped = jax.tree.map(
        lambda x: x[order].reshape(-1, GROUP, *x.shape[1:]), (batch, index, used)
    )

    def of_length(length, batch, index):
        disks = jax.tree.map(lambda x: x[:, :length], batch.disks)
        return differentiate(batch._replace(disks=disks), index)

    def add(total, group):
        *group, used = group
        chosen = jnp.searchsorted(jnp.asarray(lengths), used.max())
        found = jax.lax.switch(chosen, [partial(of_length, n) for n in lengths], *group)
        return jax.tree.map(jnp.add, total, found), None

    first = jax.tree.map(lambda x: x[0], grouped)
    nothing = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype),
        jax.eval_shape(partial(of_length, n_disks), *first[:2]),
    )
    total, _ = jax.lax.scan(add, nothing, grouped)
    return jax.tree.map(lambda x: x / (len(index) // GROUP), total)


def make_train_step(
    network: OrientationTransformer,
    materials: Sequence[Material],
    config: TrainConfig,
    optimiser: optax.GradientTransformation,
    mesh: Mesh,
) -> Callable[[TrainState, PRNGKeyArray, Any], tuple[TrainState, Float[Array, ""]]]:
    """The jitted `(state, key, sources) -> (state, mean loss)` on all devices of the mesh.

    Raises InputError when the batch does not divide evenly among the devices, or the loss is one
    for another head.
    """
    wanted = losses.LOSSES[config.loss_name].head
    if wanted != config.model.head:
        raise InputError(
            f"The loss {config.loss_name} wants the head {wanted}, not {config.model.head}: change "
            "one of them."
        )
    if config.batch % mesh.size:
        raise InputError(
            f"A batch of {config.batch} patterns does not divide among {mesh.size} devices: "
            "choose a multiple."
        )
    per_device = config.batch // mesh.size
    space = phases_space(materials)
    loss_fn = losses.batched(config.loss_name)
    # gradients bear TF32 (bfloat16 on a TPU), which is several times as fast
    network = network.clone(precision=jax.lax.Precision.DEFAULT)
    by_length = mesh.devices.flat[0].platform == "cpu"

    def step(state: TrainState, key: PRNGKeyArray, sources: Sources):
        key = jax.random.fold_in(key, state.step)
        index = parallel.sample_index(per_device)
        batch = simulate_batch(key, index, sources, config, materials[0].k_max)
        batch = with_prior(batch, sources, materials)

        def mean_loss(params, batch, index):
            output = apply_with_dropout(network, params, batch, key, index)
            return loss_fn(output, batch.label, space).mean()

        differentiate = jax.value_and_grad(mean_loss)
        if by_length and per_device % GROUP == 0 and per_device > GROUP:
            loss, gradient = in_groups(partial(differentiate, state.params), batch, index)
        else:
            loss, gradient = differentiate(state.params, batch, index)
        loss, gradient = jax.lax.pmean((loss, gradient), parallel.AXIS)
        updates, opt_state = optimiser.update(gradient, state.opt_state, state.params)
        rate = learning_rate(config, state.step, state.total)
        params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
        loss_sum = state.loss_sum + loss
        return TrainState(state.step + 1, state.total, params, opt_state, loss_sum), loss

    replicated = parallel.REPLICATED
    return parallel.pmap(step, mesh, (replicated, replicated, replicated), replicated, (0,))


def make_validation(
    network: OrientationTransformer,
    materials: Sequence[Material],
    config: TrainConfig,
    sources: Sources,
    mesh: Mesh,
) -> Callable[[Any], dict[str, float]]:
    """A function of the parameters: loss, angles and phases on fixed random spoilt patterns, which
    the devices of the mesh share.

    Angles in degrees, modulo the Laue group, of the patterns that show a crystal, 180 where the
    phase is wrong; for the grid head those of the best cell, and the share with the truth's
    neighbourhood (within 1.2 spacings) among the best 16 cells. Of all patterns the share with the
    right phase (no crystal being one) on top.
    """
    space = phases_space(materials)
    n_phases = space.n_phases
    per_device = -(-config.n_validation // mesh.size)
    loss_fn = losses.batched(config.loss_name)
    cells = so3.quaternion_to_matrix(space.cells)
    spacing = jnp.asarray([m.spacing for m in materials])

    def nine_numbers(output):
        answer = so3.nearest_rotation(output[:, :9].reshape(-1, 3, 3))[:, None]
        phase = jnp.argmax(output[:, 9:], -1) if n_phases > 1 else jnp.zeros(len(output), int)
        return answer, phase[:, None], phase

    def distribution(output):
        best = jax.lax.top_k(output[:, :-1], 16)[1]
        of_outcome = jnp.append(space.phase, n_phases)
        mass = jax.nn.softmax(output) @ jax.nn.one_hot(of_outcome, n_phases + 1)
        return cells[best], space.phase[best], jnp.argmax(mass, axis=-1)

    def measure(params, sources):
        key, index = jax.random.key(20_260_101), parallel.sample_index(per_device)
        batch = simulate_batch(key, index, sources, config, materials[0].k_max)
        batch = with_prior(batch, sources, materials)
        truth, orientation = batch.label
        output = network.apply({"params": params}, batch.disks, batch.prior)
        loss = loss_fn(output, batch.label, space)
        read = nine_numbers if config.model.head == "matrix" else distribution
        answer, phase, likeliest = read(output)
        operations = space.operations[jnp.minimum(truth, n_phases - 1)]
        angle = jax.vmap(so3.misorientation)(answer, orientation[:, None], operations)
        angle = jnp.where(phase == truth[:, None], angle, jnp.pi)
        near = angle.min(axis=1) < 1.2 * spacing[truth]
        found = (loss, jnp.rad2deg(angle[:, 0]), near, truth < n_phases, likeliest == truth)
        return jax.lax.all_gather(found, parallel.AXIS, tiled=True)

    program = parallel.pmap(measure, mesh, parallel.REPLICATED, parallel.REPLICATED)

    def validate(params) -> dict[str, float]:
        found = [np.asarray(x)[: config.n_validation] for x in program(params, sources)]
        loss, angle, near, crystal, right_phase = found
        angle, near = angle[crystal], near[crystal]
        return {
            "val_loss": float(loss.mean()),
            "val_median_deg": float(np.median(angle)),
            "val_within_5deg": float((angle < 5).mean()),
            "val_best16_within_reach": float(near.mean()),
            "val_right_phase": float(right_phase.mean()),
        }

    return validate


def init_state(
    network: OrientationTransformer, optimiser: optax.GradientTransformation, seed: int, total: int
) -> TrainState:
    """Fresh parameters and optimiser state at step 0 of `total`."""
    params = jax.jit(partial(init_params, network))(jax.random.key(seed))
    number = lambda x: jnp.asarray(x, jnp.int32)  # noqa: E731
    return TrainState(number(0), number(total), params, optimiser.init(params), jnp.zeros(()))


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
        probe = init_state(network, optimiser, config.seed, 1_000_000)
        probe = parallel.replicate(probe, mesh)
        validate(probe.params)  # compiled before the clock is read
        checks = -time.perf_counter()
        validate(probe.params)
        checks = CHECKS * (checks + time.perf_counter())
        each = seconds_per_step(step_fn, probe)
        left = 60 * config.minutes * 0.97 - checks - (time.perf_counter() - start)
        total = parallel.first_says(lambda: max(20, int(left / each)))
    if writes:
        _write_json(out / "run.json", {**settings, "total_steps": total})

    state = parallel.replicate(init_state(network, optimiser, config.seed, total), mesh)
    checkpoints = checkpoint.open_checkpoints(out / "checkpoints")
    restored = checkpoint.restore_newest(checkpoints, state)
    if restored is not None:
        state, notes = restored
        start -= notes["seconds"]
    seconds = lambda: round(time.perf_counter() - start, 1)  # noqa: E731
    first = int(state.step)
    if writes:
        _keep_rows(out / "metrics.jsonl", first)
    every = max(1, total // CHECKS)
    last = min(total, stop_after or total)
    saved_at = time.perf_counter()
    overdue = lambda: time.perf_counter() - saved_at > 60 * CHECKPOINT_MINUTES  # noqa: E731
    bar = tqdm(
        total=total, initial=first, unit="step", disable=None if progress is None else not progress
    )
    with bar, closing(checkpoints), parallel.stop_requests() as stop_requested:
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
    record = {
        **settings,
        "total_steps": total,
        "seconds": seconds(),
        "devices": f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        "validation": validate(state.params),
    }
    model = Model(config.model, materials, state.params, record)
    if last == total and writes:
        save_model(out, model)
    return model


def _settings(materials: Sequence[Material], config: TrainConfig) -> dict[str, Any]:
    return json.loads(
        json.dumps(
            {
                "crystals": [m.crystal.name for m in materials],
                "voltage_kv": materials[0].voltage_kv,
                "k_max": materials[0].k_max,
                "u_iso": [m.u_iso for m in materials],
                "n_cells": [len(m.grid) for m in materials],
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


def _keep_rows(path: Path, step: int) -> None:
    """Drop from `metrics.jsonl` what was written after `step`, or not to its end."""

    def sound(line: str) -> bool:
        try:
            return json.loads(line)["step"] <= step
        except (ValueError, KeyError, TypeError):
            return False

    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    part = path.with_name(path.name + ".part")
    part.write_text("".join(line + "\n" for line in lines if sound(line)))
    part.replace(path)


def _append_row(path: Path, row: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(path)
