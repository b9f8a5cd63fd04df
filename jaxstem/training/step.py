# SPDX-License-Identifier: GPL-3.0-or-later
"""One training step, a pure function under one jit and sharded over the devices.

`train_step(state, key)`: fold the key with the step and the global sample index, draw phases and
random orientations, diffract, spoil, embed, predict, differentiate, update. The stream of patterns
depends on the seed and the step alone, not on the number of devices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, ArrayLike, Float, Int, Num, PRNGKeyArray

from jaxstem.diffraction.material import Material, phases_space
from jaxstem.errors import InputError
from jaxstem.network import losses
from jaxstem.network.transformer import OrientationTransformer, init_params
from jaxstem.runtime import parallel
from jaxstem.training.config import TrainConfig
from jaxstem.training.finalists import finalists_loss
from jaxstem.training.patterns import Sources, TrainingBatch, simulate_batch, with_prior

_FINALISTS_SHARE = 0.1
"""Of the loss of alignment and judge beside the network's, with which they share no parameter: so
little that gradients are not clipped for its sake.
"""

_TAUGHT = 8
"""Of so many patterns one teaches them."""

GROUP = 32
"""Patterns of about as many disks that a processor works on at once in training."""

LENGTHS = (7, 10, 14, 20, 38)
"""Numbers of disks to which such a group is padded, besides the network's limit."""


class TrainState(NamedTuple):
    """What a step changes: its number (of `total`), the parameters, the optimiser's state, and the
    sum of the losses since the last validation. What it does not: the loss of the best validation
    and its parameters, () where the last ones are kept.
    """

    step: Int[Array, ""]
    total: Int[Array, ""]
    params: Any
    opt_state: Any
    loss_sum: Float[Array, ""]
    best_loss: Float[Array, ""]
    best_params: Any = ()


def make_optimiser(config: TrainConfig) -> optax.GradientTransformation:
    """AdamW's direction (Loshchilov & Hutter, arXiv 1711.05101) with clipping, at unit rate."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.scale_by_adam(),
        optax.add_decayed_weights(config.weight_decay),
    )


def learning_rate_schedule(
    config: TrainConfig, step: Num[ArrayLike, "..."], total: Num[ArrayLike, ""]
) -> Float[Array, "..."]:
    """Linear warm-up over the first share `config.warmup`, then a cosine to `config.last_rate` of
    the peak.

    Loshchilov & Hutter, arXiv 1608.03983. A function of arrays, so that the length of a run can be
    chosen after the step is compiled.
    """
    progress = step / total
    rise = (step + 1) / jnp.maximum(config.warmup * total, 1.0)
    fall = config.last_rate + (1 - config.last_rate) * 0.5 * (
        1 + jnp.cos(jnp.pi * jnp.clip((progress - config.warmup) / (1 - config.warmup), 0, 1))
    )
    return config.learning_rate * jnp.minimum(rise, fall)


def apply_with_dropout(
    network: OrientationTransformer,
    params: Any,
    batch: TrainingBatch,
    key: PRNGKeyArray,
    index: Int[Array, " B"],
) -> Float[Array, "B n_out"]:
    """The network's output in training, dropout included.

    What is dropped depends on the key and the global sample index alone, not on the padding.
    """
    if network.config.dropout == 0.0:
        return network.apply({"params": params}, batch.disks, batch.prior, batch.seen)
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.fold_in(key, 1 << 30)))(index)
    one = lambda disks, prior, seen, key: network.apply(  # noqa: E731
        {"params": params}, disks, prior, seen, deterministic=False, rngs={"dropout": key}
    )
    return jax.vmap(one)(batch.disks, batch.prior, batch.seen, keys)


def in_groups(
    differentiate: Callable[[TrainingBatch, Int[Array, " group"]], Any],
    batch: TrainingBatch,
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
    loss_fn = losses.batched(config.chosen_loss)
    if config.batch % mesh.size:
        raise InputError(
            f"A batch of {config.batch} patterns does not divide among {mesh.size} devices: "
            "choose a multiple."
        )
    per_device = config.batch // mesh.size
    space = phases_space(materials)
    # gradients bear TF32 (bfloat16 on a TPU), which is several times as fast
    network = network.clone(precision=jax.lax.Precision.DEFAULT)
    by_length = mesh.devices.flat[0].platform == "cpu"

    def finalists_gradient(params, batch, key, index, sources):
        """Of those patterns whose number is a multiple of `_TAUGHT`, wherever they are."""
        first = jnp.argsort(index % _TAUGHT != 0, stable=True)[: -(-per_device // _TAUGHT)]
        few, number = jax.tree.map(lambda x: x[first], (batch, index))
        output = network.apply({"params": params}, few.disks, few.prior, few.seen)
        keys = jax.vmap(partial(jax.random.fold_in, jax.random.fold_in(key, 1 << 29)))(number)
        given = few, output, space, sources.tables, sources.lattices, keys
        weight = _FINALISTS_SHARE * (number % _TAUGHT == 0) * _TAUGHT / per_device

        def summed(of_finalists):
            n = config.model.finalists
            return weight @ finalists_loss(of_finalists, materials[0], n, *given)

        return jax.grad(summed)(params["finalists"])

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
        if config.model.settles:
            gradient["finalists"] = finalists_gradient(state.params, batch, key, index, sources)
        loss, gradient = jax.lax.pmean((loss, gradient), parallel.AXIS)
        updates, opt_state = optimiser.update(gradient, state.opt_state, state.params)
        rate = learning_rate_schedule(config, state.step, state.total)
        params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
        loss_sum = state.loss_sum + loss
        advanced = {"params": params, "opt_state": opt_state, "loss_sum": loss_sum}
        return state._replace(step=state.step + 1, **advanced), loss

    replicated = parallel.REPLICATED
    return parallel.pmap(step, mesh, (replicated, replicated, replicated), replicated, (0,))


def init_state(
    network: OrientationTransformer,
    optimiser: optax.GradientTransformation,
    seed: Int[Array, ""] | int,
    total: Int[Array, ""] | int,
    keep: str = "last",
) -> TrainState:
    """Fresh parameters and optimiser state at step 0 of `total`; `keep` as in `TrainConfig`."""
    params = jax.jit(partial(init_params, network))(jax.random.key(seed))
    number = lambda x: jnp.asarray(x, jnp.int32)  # noqa: E731
    best = jax.tree.map(jnp.copy, params) if keep == "best" else ()
    opt_state = optimiser.init(params)
    return TrainState(
        number(0),
        number(total),
        params,
        opt_state,
        jnp.zeros(()),
        jnp.full((), jnp.inf, jnp.float32),
        best,
    )


def with_best(state: TrainState, validation_loss: float) -> TrainState:
    """The state after a validation: its parameters are the best where its loss is the least."""
    if state.best_params == () or not validation_loss < float(state.best_loss):
        return state
    # copies, since a step gives the memory of its state away
    best = jax.tree.map(jnp.copy, state.params)
    loss = jax.device_put(jnp.float32(validation_loss), state.best_loss.sharding)
    return state._replace(best_loss=loss, best_params=best)
