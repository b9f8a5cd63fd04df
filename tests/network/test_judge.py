# SPDX-License-Identifier: GPL-3.0-or-later
"""The judge's evidence: of what does not change when pattern and candidate turn together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_matrices, turn_deg

from jaxstem.diffraction.geometry import Disks
from jaxstem.network.finalists import init_finalists
from jaxstem.network.judge import Judge, Predicted
from jaxstem.network.tokens import Sight

pytestmark = pytest.mark.usefixtures("quick_compile")

SEEN = Sight(jnp.asarray(1.2), jnp.asarray(-5.0), jnp.asarray(-3.0))


@pytest.fixture(scope="module")
def evidence(copper):
    """With weights that are not those of the start, which says nothing at all."""
    params = jax.jit(init_finalists)(jax.random.key(0))["judge"]
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    drawn = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    params = jax.tree.unflatten(tree, drawn)
    judge = Judge(copper.wavelength, copper.k_max)
    return jax.jit(lambda *one: judge.apply({"params": params}, *one))


@pytest.fixture
def case(copper, rng):
    """Disks of a pattern, an orientation, and the reflections near the sphere."""
    orientation = random_matrices(rng, 1)[0]
    found = copper.reflectors()
    near = np.argsort(np.abs(np.asarray(found.g @ orientation))[:, 2])[:30]
    predicted = Predicted(found.g[near], found.inverse_extinction[near])
    q = np.asarray(predicted.g @ orientation)[:8, :2] + rng.normal(0, 0.01, (8, 2))
    disks = Disks(*map(jnp.float32, (*q.T, rng.uniform(0.01, 1, 8))), jnp.ones(8, bool))
    return disks, SEEN, jnp.asarray(orientation), predicted


def test_nothing_is_said_before_training(copper, case):
    params = jax.jit(init_finalists)(jax.random.key(0))["judge"]
    assert float(Judge(copper.wavelength, copper.k_max).apply({"params": params}, *case)) == 0.0


def test_a_turn_about_the_beam_changes_nothing(evidence, case, rng):
    disks, seen, orientation, predicted = case
    about = turn_deg([0.0, 0.0, rng.uniform(0, 360)])
    q = np.stack([disks.qx, disks.qy], -1) @ about[:2, :2]
    moved = disks._replace(qx=jnp.float32(q[:, 0]), qy=jnp.float32(q[:, 1]))
    one, other = evidence(*case), evidence(moved, seen, orientation @ about, predicted)
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)


def test_order_padding_and_scale_change_nothing(evidence, case, rng):
    disks, seen, orientation, predicted = case
    order, others = rng.permutation(12), rng.permutation(30)
    padded = jax.tree.map(lambda x: jnp.pad(x, (0, 4))[order], disks)
    padded = padded._replace(intensity=7.0 * padded.intensity)
    shuffled = Predicted(*(x[others] for x in predicted))
    one, other = evidence(*case), evidence(padded, seen, orientation, shuffled)
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_a_missing_disk_a_false_one_and_the_exposure_count(evidence, case):
    disks, seen, orientation, predicted = case
    value = float(evidence(*case))
    fewer = disks._replace(mask=disks.mask.at[0].set(False))
    false = disks._replace(qx=disks.qx.at[7].set(0.33), qy=disks.qy.at[7].set(0.71))
    deeper = seen._replace(faintest=jnp.asarray(-8.0))
    for changed in ((fewer, seen), (false, seen), (disks, deeper)):
        assert abs(float(evidence(*changed, orientation, predicted)) - value) > 1e-3


def test_what_cannot_be_seen_does_not_count(evidence, case):
    """Reflections beyond the reach may be there or not."""
    disks, seen, orientation, predicted = case
    beyond = np.hypot(*np.asarray(predicted.g @ orientation)[:, :2].T) > float(seen.reach)
    assert beyond.any()
    stronger = predicted._replace(
        inverse_extinction=jnp.where(beyond, 0.02, predicted.inverse_extinction)
    )
    assert float(evidence(*case)) == float(evidence(disks, seen, orientation, stronger))
