# SPDX-License-Identifier: GPL-3.0-or-later
"""Orientations laid on disks: turned with the pattern, nearer to the truth, as sure as they say."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_matrices, turn_deg

from jaxstem.crystal.cell import reflections
from jaxstem.diffraction.geometry import Disks, excitation_error
from jaxstem.diffraction.material import inverse_extinction
from jaxstem.network.alignment import Aligned, Alignment, lattices, misalignment
from jaxstem.network.finalists import init_finalists
from jaxstem.network.tokens import Sight
from jaxstem.orientation import symmetry

SEEN = Sight(jnp.asarray(1.5), jnp.asarray(-5.0), jnp.asarray(-3.0))

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def params():
    return jax.jit(init_finalists)(jax.random.key(0))["alignment"]


@pytest.fixture(scope="module")
def align(copper, params):
    """The last round for disks, an orientation and copper's lattice."""
    alignment, known = Alignment(copper.wavelength, copper.k_max), lattices([copper])
    call = jax.jit(
        lambda *one: alignment.apply({"params": params}, *one, jnp.asarray(0), known)[-1]
    )
    return lambda disks, orientation: call(disks, SEEN, jnp.asarray(orientation))


def excited(material, orientation, n=12):
    """Disks exactly where the `n` reflections nearest to the Ewald sphere have theirs."""
    g = np.asarray(material.reflectors().g @ orientation)
    error = np.abs(np.asarray(excitation_error(g, material.wavelength)))
    best = np.argsort(error)[:n]
    bright = np.float32(np.exp(-((error[best] / 0.02) ** 2)) + 0.01)
    return Disks(*map(jnp.asarray, (g[best, 0], g[best, 1], bright, np.ones(n, bool))))


def turned(disks, matrix):
    q = np.stack([disks.qx, disks.qy, np.zeros(len(disks.qx))], -1) @ matrix
    return disks._replace(qx=jnp.float32(q[:, 0]), qy=jnp.float32(q[:, 1]))


def test_a_turn_about_the_beam_is_found(align, copper, rng):
    """By whatever weights: disks and reflections differ by nothing else."""
    for orientation in random_matrices(rng, 5):
        disks = excited(copper, orientation)
        start = orientation @ turn_deg([0.0, 0.0, rng.choice([-1, 1]) * rng.uniform(0.5, 2.0)])
        left = align(disks, start).orientation.T @ orientation
        assert abs(np.rad2deg(np.arctan2(left[1, 0] - left[0, 1], left[0, 0] + left[1, 1]))) < 0.1


def test_it_turns_with_the_pattern(align, copper, rng):
    for orientation in random_matrices(rng, 3):
        disks, start = excited(copper, orientation), orientation @ turn_deg(rng.normal(0, 1, 3))
        about = turn_deg([0.0, 0.0, rng.uniform(0, 360)])
        one, other = align(disks, start), align(turned(disks, about), start @ about)
        assert np.abs(one.orientation @ about - other.orientation).max() < 2e-4
        np.testing.assert_allclose(one.about, other.about, rtol=2e-3)
        across = about[:2, :2].T @ one.across @ about[:2, :2]
        np.testing.assert_allclose(across, other.across, rtol=1e-2, atol=1e-3 * across.max())


def test_padding_and_order_change_nothing(align, copper, rng):
    orientation = random_matrices(rng, 1)[0]
    disks, start = excited(copper, orientation), orientation @ turn_deg([0.5, -1.0, 0.7])
    order = rng.permutation(16)
    padded = jax.tree.map(lambda x: jnp.pad(x, (0, 4))[order], disks)
    one, other = align(disks, start), align(padded, start)
    np.testing.assert_allclose(one.orientation, other.orientation, atol=2e-5)


def test_no_disk_moves_nothing(align, copper, rng):
    start = random_matrices(rng, 1)[0]
    none = excited(copper, start)._replace(mask=jnp.zeros(12, bool))
    found = align(none, start)
    np.testing.assert_allclose(found.orientation, start, atol=1e-6)
    assert 0 < found.about < 1e4


def test_equivalent_starts_give_equivalent_answers(align, copper, rng):
    orientation = random_matrices(rng, 1)[0]
    disks, start = excited(copper, orientation), orientation @ turn_deg([0.3, 0.4, -1.0])
    for operation in np.asarray(copper.operations, np.float32)[[3, 11, 20]]:
        found = align(disks, operation @ start).orientation
        np.testing.assert_allclose(found, operation @ align(disks, start).orientation, atol=1e-4)


def test_lattices_hold_each_phase_s_reflections(copper, crystals):
    from jaxstem.diffraction.material import make_material

    magnesium = make_material(crystals["Mg"], copper.microscope, copper.specimen, 15.0)
    known = lattices([copper, magnesium])
    most = known.strength.shape[1] // 2
    for phase, material in enumerate((copper, magnesium)):
        found = reflections(material.crystal, material.k_max, material.u_iso)
        expected = inverse_extinction(material.crystal, found.structure_factor, 300.0)
        at = known.strength[phase, *(found.hkl + most).T]
        np.testing.assert_allclose(at, expected, rtol=1e-5)
        assert np.count_nonzero(known.strength[phase]) == len(found.hkl)
        both = known.lattice[phase] @ known.reciprocal[phase].T
        np.testing.assert_allclose(both, np.eye(3), atol=1e-5)


def test_misalignment_is_a_density(copper, rng):
    """Its exponential, over small rotations, integrates to the same whatever the precision; the
    operations of the crystal change nothing.
    """
    operations = jnp.asarray(copper.operations, jnp.float32)
    loss = jax.jit(misalignment)
    truth = random_matrices(rng, 1)[0]
    across = np.float32([[4e3, 1e3], [1e3, 2e3]])
    totals = []
    for scale in (1.0, 4.0):
        found = Aligned(jnp.asarray(truth), jnp.float32(9e3 * scale), jnp.asarray(scale * across))
        size = 0.12 / np.sqrt(scale)
        w = rng.uniform(-size, size, (4000, 3)).astype(np.float32)
        turns = jax.vmap(partial(jax.numpy.matmul, truth))(_turns(w))
        value = jax.vmap(lambda t, found=found: loss(found, t, operations))(turns)
        totals.append(float(jnp.exp(-value).mean()) * size**3)
    assert abs(np.log(totals[0] / totals[1])) < 0.25
    away = Aligned(jnp.asarray(truth @ turn_deg([1.0, 0.0, 0.5])), jnp.float32(1e3), found.across)
    values = [float(loss(away, operation @ truth, operations)) for operation in operations[:5]]
    np.testing.assert_allclose(values, values[0], rtol=1e-3)
    assert float(loss(away, truth, operations)) > float(
        loss(away._replace(orientation=jnp.asarray(truth)), truth, operations)
    )


def _turns(w):
    from jaxstem.orientation.rotations import rotation_vector_to_matrix

    return rotation_vector_to_matrix(jnp.asarray(w))


def test_starts_are_near(copper, key):
    from jaxstem.network.alignment import near

    truth = jnp.eye(3)
    starts = jax.vmap(near, (0, None))(jax.random.split(key, 2000), truth)
    angle = jax.vmap(lambda one: symmetry.geodesic_angle(one, truth))(starts)
    assert 1.0 < np.rad2deg(np.median(angle)) < 3.0
    assert np.rad2deg(np.max(angle)) < 12.0
