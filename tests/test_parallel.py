# SPDX-License-Identifier: GPL-3.0-or-later
"""One device or eight: the same patterns, losses, gradients and parameters, to rounding."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxstem.network import losses
from jaxstem.network.model import build_network
from jaxstem.runtime import parallel
from jaxstem.training import patterns
from jaxstem.training.acquisition import acquire
from jaxstem.training.patterns import make_sources, simulate_batch
from jaxstem.training.step import (
    TrainState,
    init_state,
    learning_rate_schedule,
    make_optimiser,
    make_train_step,
)

pytestmark = pytest.mark.usefixtures("quick_compile", "light_acquisition")

STEPS = 20
KEY = 11


@pytest.fixture(scope="module")
def tiny(tiny):
    """Without attention: what is shared among devices does not care, and compiles twice as fast."""
    return replace(tiny, model=replace(tiny.model, blocks=0))


def make_optimiser(tiny):
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
    network, optimiser = build_network(tiny.model, [copper]), make_optimiser(tiny)
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
    """The training step of `train` on meshes of 1, 2 and 8 devices."""
    network, optimiser = build_network(tiny.model, [copper]), make_optimiser(tiny)
    results = {}
    for n in (1, 2, 8):
        mesh = parallel.make_mesh(jax.devices()[:n])
        step = make_train_step(network, [copper], tiny, optimiser, mesh)
        results[n] = run(step, start, mesh)
    return results


def single_device_step(copper, tiny):
    """The same mathematics on one device, without shard_map or collectives."""
    network, optimiser = build_network(tiny.model, [copper]), make_optimiser(tiny)
    space = copper.space()
    loss_fn = losses.batched(tiny.loss_name)

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
            output = network.apply({"params": params}, batch.disks)
            return loss_fn(output, batch.label, space).mean()

        loss, gradient = jax.value_and_grad(mean_loss)(state.params)
        updates, opt_state = optimiser.update(gradient, state.opt_state, state.params)
        rate = learning_rate_schedule(tiny, state.step, state.total)
        params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
        return TrainState(
            state.step + 1, state.total, params, opt_state, state.loss_sum + loss
        ), loss

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


@pytest.mark.parametrize("n", [2, 8])
def test_any_number_of_devices_trains_the_same(on_devices, n):
    assert_same_run(on_devices[1], on_devices[n])


def test_sharded_step_is_the_plain_mathematics(on_devices, copper, tiny, start):
    plain = run(single_device_step(copper, tiny), start)
    assert_same_run(plain, on_devices[8])
    assert len(set(np.round(plain[0], 5))) == STEPS  # each step has patterns of its own


def test_sharded_step_is_jax_pmap(on_devices, copper, tiny, start, monkeypatch):
    """The very same per-device program through `jax.pmap`."""
    network, optimiser = build_network(tiny.model, [copper]), make_optimiser(tiny)
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

    assert_same_run(run(step, start), on_devices[8])


def test_stream_of_patterns_does_not_depend_on_the_devices(copper, tiny, monkeypatch):
    monkeypatch.setattr(patterns, "acquire", acquire)
    source = make_sources([copper], tiny)
    key = jax.random.key(3)

    def per_device(key):
        return simulate_batch(key, parallel.sample_index(2), source, tiny, copper.k_max)

    sharded = parallel.pmap(
        per_device, parallel.make_mesh(), parallel.REPLICATED, parallel.SHARDED
    )(key)
    together = jax.jit(partial(simulate_batch, config=tiny, k_max=copper.k_max))(
        key, jnp.arange(16), source
    )
    assert sharded.label.orientation.shape == (16, 3, 3)
    np.testing.assert_allclose(sharded.label.orientation, together.label.orientation, atol=1e-6)
    np.testing.assert_array_equal(sharded.label.phase, together.label.phase)
    np.testing.assert_array_equal(sharded.disks.mask, together.disks.mask)
    np.testing.assert_allclose(sharded.disks.qx, together.disks.qx, atol=1e-5)
    orientations = np.asarray(together.label.orientation).reshape(16, 9)
    assert len(np.unique(np.round(orientations, 4), axis=0)) == 16


@pytest.mark.parametrize("n", [1, 2, 8])
def test_sample_index_counts_over_all_devices(n):
    mesh = parallel.make_mesh(jax.devices()[:n])
    index = parallel.pmap(
        lambda _: parallel.sample_index(16 // n), mesh, parallel.REPLICATED, parallel.SHARDED
    )(jnp.zeros(()))
    np.testing.assert_array_equal(index, np.arange(16))


def test_pmap_cuts_and_averages():
    mesh = parallel.make_mesh()
    mean = parallel.pmap(
        lambda x, scale: jax.lax.pmean(scale * x.mean(), parallel.AXIS),
        mesh,
        (parallel.SHARDED, parallel.REPLICATED),
        parallel.REPLICATED,
    )
    assert float(mean(jnp.arange(16.0), 2.0)) == pytest.approx(15.0)
    local = parallel.pmap(
        lambda x: jnp.full(x.shape, x.sum()), mesh, parallel.SHARDED, parallel.SHARDED
    )
    np.testing.assert_array_equal(
        local(jnp.arange(16.0)), np.repeat(np.arange(16).reshape(8, 2).sum(1), 2)
    )
