# SPDX-License-Identifier: GPL-3.0-or-later
"""Heads: what stands for an orientation gives it back; embeddings are one for each orientation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import angle_deg, random_matrices
from scipy.spatial.transform import Rotation

from jaxstem.crystal.cell import symmetry_operations
from jaxstem.network import heads, losses
from jaxstem.orientation import rotations

pytestmark = pytest.mark.usefixtures("quick_compile")

ONE_OF_EACH = {loss.head: name for name, loss in losses.LOSSES.items() if loss.head != "grid"}


@pytest.mark.parametrize("name", ONE_OF_EACH.values(), ids=ONE_OF_EACH)
def test_heads_give_back_the_orientation(space, perfect, rng, name):
    read = jax.jit(heads.HEADS[losses.LOSSES[name].head].orientation)
    for label in random_matrices(rng, 3):
        found = np.asarray(read(perfect(name, label, space), space))
        np.testing.assert_allclose(found @ found.T, np.eye(3), atol=1e-4)
        assert angle_deg(found, label, space.operations[0]) < np.rad2deg(0.02)


def test_grid_head_reads_its_likeliest_cell(space, rng):
    cell = rng.integers(len(space.cells))
    output = jnp.zeros(heads.HEADS["grid"].n_out(len(space.cells), 1)).at[cell].set(1.0)
    found = heads.HEADS["grid"].orientation(output, space)
    np.testing.assert_allclose(found, rotations.quaternion_to_matrix(space.cells[cell]), atol=1e-6)


@pytest.mark.slow
def test_embedding_is_injective_modulo_symmetry(crystals, space, rng):
    """Nearest embeddings are nearest orientations, and all are of one length."""
    embed = jax.jit(jax.vmap(heads.embedding, in_axes=(0, None)))
    for name in ("Cu", "Mg"):
        operations = jnp.asarray(symmetry_operations(crystals[name]), jnp.float32)
        first = jnp.asarray(random_matrices(rng, 400))
        near = Rotation.from_rotvec(0.02 * rng.normal(size=(400, 3))).as_matrix()
        ours = embed(first, operations)
        np.testing.assert_allclose(jnp.linalg.norm(ours, axis=1), np.sqrt(2), atol=1e-3)
        apart = jnp.linalg.norm(
            ours - embed(jnp.asarray(near @ first, jnp.float32), operations), axis=1
        )
        far = jnp.linalg.norm(ours - embed(first[::-1], operations), axis=1)
        angle = angle_deg(first, first[::-1], operations)
        assert apart.max() < far[angle > np.rad2deg(0.3)].min()
