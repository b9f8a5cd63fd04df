# SPDX-License-Identifier: GPL-3.0-or-later
"""The space of copper's orientations, and outputs that stand for one of them."""

import jax
import jax.numpy as jnp
import pytest

from jaxstem.network import heads, losses
from jaxstem.network.templates import MatchConfig, make_templates
from jaxstem.orientation import rotations


@pytest.fixture(scope="session")
def space(copper):
    return copper.space()


@pytest.fixture(scope="session")
def perfect():
    """(name of a loss, orientation, space) to an output of its head."""

    def output(name, orientation, space):
        """An output that stands for an orientation; its concentration, where it has one, is 50."""
        quaternion = rotations.matrix_to_quaternion(orientation)
        sure = jnp.concatenate([jnp.full(1, 9.0), jnp.zeros(heads.HYPOTHESES - 1)])
        others = jnp.tile(
            rotations.random_rotations(jax.random.key(3)), (heads.HYPOTHESES - 1, 1, 1)
        )
        return {
            "matrix": lambda: 50 * orientation.reshape(9),
            "quaternion": lambda: -3 * quaternion,
            "six": lambda: jnp.concatenate(
                [2 * orientation[:, 0], orientation @ jnp.array([1, 3, 0])]
            ),
            "harmonic": lambda: heads.embedding(orientation, space.operations[0]),
            "hypotheses": lambda: jnp.concatenate(
                [quaternion, rotations.matrix_to_quaternion(others).ravel(), sure]
            ),
        }[losses.LOSSES[name].head]()

    return jax.jit(output, static_argnums=0)


@pytest.fixture(scope="module")
def copper_templates(quick_compile, copper):
    """Of few samples and reflections."""
    return make_templates([copper], MatchConfig(n_samples=12, n_visible=64))
