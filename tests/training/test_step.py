# SPDX-License-Identifier: GPL-3.0-or-later
"""The training step: on one device or eight the same losses, gradients and parameters, to rounding;
in groups of one length the gradient of the batch; a rate that rises and falls.
"""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import random_matrices

from jaxstem.diffraction.geometry import Disks
from jaxstem.errors import InputError
from jaxstem.network import losses
from jaxstem.network.model import build_network
from jaxstem.orientation.space import Label
from jaxstem.runtime import parallel
from jaxstem.training import step as module
from jaxstem.training.finalists import finalists_loss
from jaxstem.training.patterns import TrainingBatch, make_sources, simulate_batch
from jaxstem.training.step import (
    GROUP,
    apply_with_dropout,
    in_groups,
    init_state,
    learning_rate_schedule,
    make_optimiser,
    make_train_step,
)

pytestmark = pytest.mark.usefixtures("quick_compile", "light_acquisition")

STEPS = 20
KEY = 11


@pytest.fixture(scope="module")
def with_attention(tiny):
    return replace(tiny, model=replace(tiny.model, blocks=1))


@pytest.fixture(scope="module")
def tiny(tiny):
    """Without attention: what is shared among devices does not care, and compiles twice as fast."""
    return replace(tiny, model=replace(tiny.model, blocks=0, finalists=2))


def watched_optimiser(tiny):
    """The training's, with the gradient as it comes in, before clipping, kept in its state: Adam
    alone would hide one that is too large by the number of devices.
    """
    keep = optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda gradient, _, params: (gradient, gradient),
    )
    return optax.chain(keep, make_optimiser(tiny))


def gradient(state):
    """That of the step before."""
    return state.opt_state[0]


@pytest.fixture(scope="module")
def start(copper, tiny):
    """State, key and source of patterns at the beginning of a run."""
    network, optimiser = build_network(tiny.model, [copper]), watched_optimiser(tiny)
    state = init_state(network, optimiser, 5, 20)
    return jax.tree.map(np.asarray, state), make_sources([copper], tiny)


def run(step, start, mesh=None):
    """Losses and states (numpy) after each of a few steps."""
    (state, source), key = start, jax.random.key(KEY)
    if mesh is not None:
        everywhere = jax.NamedSharding(mesh, parallel.REPLICATED)
        state, key, source = jax.device_put((state, key, source), everywhere)
    found, states = [], []
    for _ in range(STEPS):
        state, loss = step(state, key, source)
        found.append(float(loss))
        states.append(jax.tree.map(np.asarray, state))
    return np.array(found), states


@pytest.fixture(scope="module")
def on_devices(copper, tiny, start):
    """The training step of `train` on meshes of so many devices."""
    network, optimiser = build_network(tiny.model, [copper]), watched_optimiser(tiny)

    @cache
    def on(n):
        mesh = parallel.make_mesh(jax.devices()[:n])
        return run(make_train_step(network, [copper], tiny, optimiser, mesh), start, mesh)

    return on


def single_device_step(copper, tiny):
    """The same mathematics on one device, without shard_map or collectives."""
    network, optimiser = build_network(tiny.model, [copper]), watched_optimiser(tiny)
    space = copper.space()
    loss_fn = losses.batched(tiny.chosen_loss)

    @jax.jit
    def step(state, key, source):
        batch = simulate_batch(
            jax.random.fold_in(key, state.step),
            jnp.arange(tiny.batch),
            source,
            tiny,
            copper.k_max,
        )

        def mean_loss(params):
            output = network.apply({"params": params}, batch.disks, None, batch.seen)
            return loss_fn(output, batch.label, space).mean()

        def of_finalists(finalists):
            """Of every eighth pattern."""
            few = jax.tree.map(lambda x: x[::8], batch)
            output = network.apply({"params": state.params}, few.disks, None, few.seen)
            number = jnp.arange(0, tiny.batch, 8)
            of_step = jax.random.fold_in(jax.random.fold_in(key, state.step), 1 << 29)
            keys = jax.vmap(partial(jax.random.fold_in, of_step))(number)
            given = few, output, space, source.tables, source.lattices, keys
            return 0.1 * finalists_loss(finalists, copper, 2, *given).mean()

        loss, gradient = jax.value_and_grad(mean_loss)(state.params)
        gradient["finalists"] = jax.grad(of_finalists)(state.params["finalists"])
        updates, opt_state = optimiser.update(gradient, state.opt_state, state.params)
        rate = learning_rate_schedule(tiny, state.step, state.total)
        params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
        advanced = {"params": params, "opt_state": opt_state, "loss_sum": state.loss_sum + loss}
        return state._replace(step=state.step + 1, **advanced), loss

    return step


def assert_same_run(a, b):
    """Gradients, losses and parameters, to the rounding that 20 steps of Adam build up."""
    (losses_a, states_a), (losses_b, states_b) = a, b
    assert len(losses_a) == len(losses_b) == STEPS
    np.testing.assert_allclose(losses_a, losses_b, rtol=2e-5)
    for step, closeness in ((0, 5e-5), (-1, 2e-3)):
        gradients = [jax.tree.leaves(gradient(states[step])) for states in (states_a, states_b)]
        assert max(np.abs(leaf).max() for leaf in gradients[0]) > 0.01
        for one, other in zip(*gradients, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=closeness * np.abs(one).max())
    # Adam turns a vanishing gradient's rounding into a whole step: compare where there is one
    second_moment = jax.tree.leaves(states_a[-1].opt_state[1][1].nu)
    params = [jax.tree.leaves(states[-1].params) for states in (states_a, states_b)]
    compared = 0
    for one, other, squared in zip(*params, second_moment, strict=True):
        steered = np.sqrt(squared) > 3e-5
        compared += steered.sum()
        difference = np.abs(one - other)[steered]
        assert difference.size == 0 or (difference.mean() < 5e-6 and difference.max() < 1e-3)
    assert compared > 0.5 * sum(x.size for x in params[0])
    assert states_a[-1].step == states_b[-1].step == STEPS


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 8])
def test_any_number_of_devices_trains_the_same(on_devices, n):
    assert_same_run(on_devices(1), on_devices(n))


def test_eight_devices_do_the_plain_mathematics_of_one(on_devices, copper, tiny, start):
    plain = run(single_device_step(copper, tiny), start)
    assert_same_run(plain, on_devices(8))
    assert len(set(np.round(plain[0], 5))) == STEPS  # each step has patterns of its own


@pytest.mark.slow
def test_sharded_step_is_jax_pmap(on_devices, copper, tiny, start, monkeypatch):
    """The very same per-device program through `jax.pmap`."""
    network, optimiser = build_network(tiny.model, [copper]), watched_optimiser(tiny)
    expected = on_devices(8)
    monkeypatch.setattr(parallel, "pmap", lambda step, *_, **__: step)
    mesh = parallel.make_mesh()
    per_device = make_train_step(network, [copper], tiny, optimiser, mesh)
    mapped = jax.pmap(
        lambda _, *arguments: per_device(*arguments), parallel.AXIS, in_axes=(0, None, None, None)
    )

    def step(state, key, source):
        # to the host before anything else: an index into what lies on eight devices is a program
        # with collectives for each array, and many of them at once can wait for each other forever
        state, loss = jax.device_get(mapped(jnp.zeros(8), state, key, source))
        return jax.tree.map(lambda x: x[3], state), loss[5]

    assert_same_run(run(step, start), expected)


def test_learning_rate_warms_up_and_falls(tiny):
    rate = (
        np.array(
            [
                learning_rate_schedule(tiny, jnp.asarray(s), jnp.asarray(1000))
                for s in (0, 24, 49, 50, 525, 999, 1000)
            ]
        )
        / tiny.learning_rate
    )
    np.testing.assert_allclose(rate[:4], [0.02, 0.5, 1.0, 1.0], atol=1e-3)
    assert rate[4] == pytest.approx(0.505, abs=0.01)
    np.testing.assert_allclose(rate[5:], 0.01, atol=1e-3)


def uneven_batch(rng):
    """128 patterns with 1 to 12 disks, so that groups have several lengths, and their indices."""
    index = np.arange(500, 628)
    qx, qy = rng.uniform(-1, 1, (2, 128, 12))
    intensity = -np.sort(-rng.uniform(0.01, 1, (128, 12)))
    mask = jnp.asarray(np.arange(12) < 1 + index[:, None] * 7 % 12)
    disks = Disks(*jnp.asarray([qx, qy, intensity], jnp.float32), mask)
    label = Label(jnp.zeros(128, int), jnp.asarray(random_matrices(rng, 128)))
    reach = jnp.asarray(rng.uniform(1.0, 1.5, 128), jnp.float32)
    return TrainingBatch(disks, label, reach), jnp.asarray(index)


@pytest.mark.parametrize("dropout", [0.0, pytest.param(0.3, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_groups_of_a_length_give_the_gradient_of_the_batch(
    copper, with_attention, key, rng, dropout, monkeypatch
):
    monkeypatch.setattr(module, "LENGTHS", (6,))  # and 12, the whole
    uneven = uneven_batch(rng)
    used = np.sort(np.asarray(uneven[0].disks.mask).sum(1)).reshape(-1, GROUP).max(1)
    assert used.min() <= 6 < used.max()
    network = build_network(replace(with_attention.model, dropout=dropout), [copper])
    params = init_state(network, make_optimiser(with_attention), 1, 1).params
    loss_fn, space = losses.batched(with_attention.chosen_loss), copper.space()

    def loss(params, batch, index):
        output = apply_with_dropout(network, params, batch, key, index)
        return loss_fn(output, batch.label, space).mean()

    differentiate = partial(jax.value_and_grad(loss), params)
    whole = jax.jit(differentiate)(*uneven)
    grouped = jax.jit(partial(in_groups, differentiate))(*uneven)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(whole[1]))
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(grouped), strict=True):
        closeness = 2e-5 * np.abs(one).max() + 1e-6 * largest
        np.testing.assert_allclose(one, other, rtol=0, atol=closeness)


def test_batch_that_does_not_divide_among_devices(copper, tiny):
    config = replace(tiny, batch=12)
    network, optimiser = build_network(config.model, [copper]), make_optimiser(config)
    with pytest.raises(InputError, match="12 patterns does not divide among 8 devices"):
        make_train_step(network, [copper], config, optimiser, parallel.make_mesh())
