# SPDX-License-Identifier: GPL-3.0-or-later
"""Alignment and judge learn: nearer to the truth, and more often the right candidate."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxstem.network.finalists import init_finalists
from jaxstem.orientation import symmetry
from jaxstem.training.acquisition import CLEAN
from jaxstem.training.finalists import finalists_loss, finalists_of
from jaxstem.training.patterns import make_sources, simulate_batch

pytestmark = pytest.mark.usefixtures("quick_compile")

N, BATCH = 4, 32


@pytest.fixture(scope="module")
def lesson(copper, tiny):
    """Patterns, and an output that cannot tell an orientation from that turned about the beam."""
    config = replace(
        tiny, model=replace(tiny.model, finalists=N), acquisition=CLEAN, no_crystal=0.1
    )
    sources, space = make_sources([copper], config), copper.space()
    turned = jnp.asarray(np.diag([-1.0, -1.0, 1.0]), jnp.float32)

    @jax.jit
    def draw(key):
        batch = simulate_batch(key, jnp.arange(BATCH), sources, config, copper.k_max)

        def output(phase, orientation):
            cells = jnp.asarray(sources.tables[0].cells)
            apart = lambda o: jax.vmap(  # noqa: E731
                lambda cell: symmetry.misorientation(cell, o, space.operations[0])
            )(cells)
            near = jnp.minimum(apart(orientation), apart(orientation @ turned))
            empty = jnp.where(phase == 1, 6.0, -6.0)
            return jnp.append(-0.5 * (near / 0.12) ** 2, empty)

        return batch, jax.vmap(output)(*batch.label)

    return draw, sources, space


def answers(params, copper, lesson, key):
    """Of each pattern with a crystal: how far [degrees] its best finalist is from the truth."""
    draw, sources, space = lesson
    batch, output = draw(key)
    found = finalists_of(params, copper, N, batch, output, space, sources.tables, sources.lattices)
    best = jnp.argmax(found.log_odds, axis=1)
    chosen = found.orientation[jnp.arange(BATCH), best]
    angle = symmetry.misorientation(chosen, batch.label.orientation, space.operations[0])
    return jnp.rad2deg(angle)[np.asarray(batch.label.phase) == 0]


def test_they_learn(copper, lesson):
    draw, sources, space = lesson
    optimiser = optax.adam(1e-2)
    params = jax.jit(init_finalists)(jax.random.key(0))
    state = optimiser.init(params)
    teach = (space, sources.tables, sources.lattices)

    @jax.jit
    def step(params, state, key):
        batch, output = draw(key)
        keys = jax.random.split(key, BATCH)
        loss = lambda p: finalists_loss(p, copper, N, batch, output, *teach, keys).mean()  # noqa: E731
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimiser.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    tests = [jax.random.key(1000 + number) for number in range(6)]
    look = lambda params: np.concatenate([answers(params, copper, lesson, k) for k in tests])  # noqa: E731
    before = look(params)
    for number in range(60):
        params, state, loss = step(params, state, jax.random.key(number))
    after = look(params)
    right = lambda angle: (angle < 4.0).mean()  # noqa: E731
    assert right(after) > right(before) + 0.1
    assert np.median(after[after < 4.0]) < 0.7 * np.median(before[before < 4.0])
    assert np.isfinite(float(loss))


def test_empty_positions_teach_no_orientation(copper, lesson, key):
    """Their alignment counts for nothing, and what is right is that there is no crystal."""
    draw, sources, space = lesson
    batch, output = draw(key)
    empty = batch._replace(label=batch.label._replace(phase=jnp.ones(BATCH, int)))
    params = jax.jit(init_finalists)(jax.random.key(0))
    given = output.at[:, -1].set(3.0), space, sources.tables, sources.lattices
    loss = finalists_loss(params, copper, N, empty, *given, jax.random.split(key, BATCH))
    moved = empty._replace(label=empty.label._replace(orientation=batch.label.orientation[::-1]))
    again = finalists_loss(params, copper, N, moved, *given, jax.random.split(key, BATCH))
    np.testing.assert_allclose(loss, again, rtol=1e-5)
    sure = finalists_loss(
        params,
        copper,
        N,
        empty,
        output.at[:, -1].set(30.0),
        *given[1:],
        jax.random.split(key, BATCH),
    )
    assert (np.asarray(sure) < np.asarray(loss)).all() and np.abs(sure).max() < 1e-3
