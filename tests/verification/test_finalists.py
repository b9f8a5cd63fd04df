# SPDX-License-Identifier: GPL-3.0-or-later
"""Finalists: the modes, aligned; what is one orientation counts as one, with all its mass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import angle_deg, random_matrices

from jaxstem.diffraction.geometry import Disks
from jaxstem.network.alignment import lattices
from jaxstem.network.finalists import init_finalists
from jaxstem.network.tokens import Sight
from jaxstem.orientation import rotations
from jaxstem.verification.candidates import candidate_tables, propose
from jaxstem.verification.finalists import GONE, find_finalists

pytestmark = pytest.mark.usefixtures("quick_compile")

N = 6


@pytest.fixture(scope="module")
def tables(copper):
    found = copper.reflectors()
    lattice = copper.crystal.lattice
    return candidate_tables(
        copper.grid, copper.operations, found, copper.wavelength, lattice, 48, n_siblings=0
    )


@pytest.fixture(scope="module")
def settle(copper, tables):
    """Finalists of a distribution and disks, fresh parameters: the judge says nothing yet."""
    params, known = jax.jit(init_finalists)(jax.random.key(0)), lattices([copper] * 2)
    seen = Sight(jnp.asarray(1.5), jnp.asarray(-5.0), jnp.asarray(-3.0))
    operations = jnp.asarray(np.stack([copper.operations] * 2), jnp.float32)

    def of(n_phases):
        few = [tables] * n_phases
        given = params, copper.wavelength, copper.k_max, N
        return jax.jit(
            lambda odds, disks: find_finalists(*given, odds, disks, seen, few, known, operations)
        )

    return of


def distribution(tables, orientation, width, operations):
    cells = np.asarray(tables.cells)
    apart = np.array([angle_deg(cell, orientation, operations) for cell in cells])
    return -0.5 * (apart / width) ** 2


def is_near(found, orientation, tables, operations):
    """No farther than the nearest cell of the grid (or 4°)."""
    nearest = min(angle_deg(cell, orientation, operations) for cell in np.asarray(tables.cells))
    return angle_deg(found, orientation, operations) < max(nearest, 4.0)


NO_DISKS = Disks(*(jnp.zeros(4),) * 3, jnp.zeros(4, bool))


def test_the_modes_come_back_where_disks_say_nothing(copper, tables, settle, rng):
    """Two orientations far apart: both are finalists, the likelier first, moved by nothing."""
    first, second = random_matrices(rng, 2)
    while angle_deg(first, second, copper.operations) < 40.0:
        second = random_matrices(rng, 1)[0]
    one = distribution(tables, first, 5.0, copper.operations)
    other = distribution(tables, second, 5.0, copper.operations) - 4.0
    odds = jax.nn.log_softmax(jnp.append(jnp.float32(np.logaddexp(one, other)), -30.0))
    found = settle(1)(odds, NO_DISKS)
    proposed = propose(odds[:-1], [tables], N).orientation
    np.testing.assert_allclose(found.orientation, proposed, atol=1e-5)
    best = int(jnp.argmax(found.log_odds))
    assert is_near(found.orientation[best], first, tables, copper.operations)
    assert any(is_near(o, second, tables, copper.operations) for o in found.orientation)
    assert (np.asarray(found.phase) == 0).all()
    np.testing.assert_allclose(found.nothing, odds[-1], rtol=1e-6)


def test_what_is_one_orientation_counts_once(copper, tables, settle, rng):
    """Candidates that lie within three degrees: one stays, with the mass of both."""
    odds = jnp.append(jnp.float32(rng.normal(0, 3, len(copper.grid))), -30.0)
    q = np.float32(rng.uniform(-0.9, 0.9, (2, 8)))
    disks = Disks(
        *map(jnp.asarray, (*q, rng.uniform(0.1, 1, 8).astype(np.float32))), jnp.ones(8, bool)
    )
    found = settle(1)(jax.nn.log_softmax(odds), disks)
    stays = np.asarray(found.log_odds) > GONE
    assert stays.any()
    kept = np.asarray(found.orientation)[stays]
    for i, one in enumerate(kept):
        for other in kept[:i]:
            assert angle_deg(one, other, copper.operations) > 2.8


def test_two_phases_share_the_places(copper, tables, settle, rng):
    """The same crystal twice: the likelier one has more of them, with its own number."""
    orientation = random_matrices(rng, 1)[0]
    one = distribution(tables, orientation, 5.0, copper.operations)
    odds = jax.nn.log_softmax(jnp.float32(np.concatenate([one - 4.0, one, [-40.0]])))
    found = settle(2)(odds, NO_DISKS)
    best = int(jnp.argmax(found.log_odds))
    assert found.phase[best] == 1
    assert len(found.phase) == N
    assert is_near(found.orientation[best], orientation, tables, copper.operations)
    matrix = rotations.quaternion_to_matrix(rotations.matrix_to_quaternion(found.orientation))
    np.testing.assert_allclose(matrix, found.orientation, atol=1e-5)
