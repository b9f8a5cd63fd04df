# SPDX-License-Identifier: GPL-3.0-or-later
"""Losses against brute force, their symmetry and gradients, and the registry."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import angle_deg, random_matrices
from hypothesis import given, settings
from hypothesis import strategies as st
from orix.quaternion import Misorientation, symmetry
from scipy.spatial.transform import Rotation

from jaxstem.crystal.cell import symmetry_operations
from jaxstem.errors import InputError
from jaxstem.network import heads, losses
from jaxstem.network.model import build_network
from jaxstem.orientation import grids, rotations
from jaxstem.orientation.space import Label, joint_space, orientation_space, soft_labels
from jaxstem.runtime import parallel
from jaxstem.training.patterns import make_sources
from jaxstem.training.step import init_state, make_optimiser, make_train_step

pytestmark = pytest.mark.usefixtures("quick_compile", "light_acquisition")

ROWS = 24
"""Patterns at once, for all losses one number to compile: the cube's operations."""

nearest_rotation = jax.jit(rotations.nearest_rotation)

NO_SYMMETRY = orientation_space(np.eye(3)[None], np.zeros((0, 4)), 0.1)


OFTEN = ["grid_cross_entropy", "geodesic", "matrix_fisher", "quaternion", "invariant_harmonics"]
"""Losses that every run of the tests asks: those that models come with, and one of each kind."""


def named(some):
    return [name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in some]


def of_phase_0(label):
    """Orientations (..., 3, 3) as labels of the first phase."""
    label = jnp.asarray(label, jnp.float32)
    return Label(jnp.zeros(label.shape[:-2], jnp.int32), label)


@jax.jit
def geodesic_gradient(output, label, space):
    return jax.value_and_grad(losses.geodesic)(output, of_phase_0(label), space)


@cache
def compiled(name):
    return jax.jit(losses.batched(name))


def values(name, output, label, space):
    label = label if isinstance(label, Label) else of_phase_0(label)
    return np.asarray(compiled(name)(output, label, space))


def outputs(rng, name, space, n):
    width = heads.HEADS[losses.LOSSES[name].head].n_out(len(space.cells), space.n_phases)
    return jnp.asarray(rng.normal(size=(n, width)), jnp.float32)


@pytest.mark.parametrize("lot", range(3))
def test_geodesic_is_orix_misorientation_angle(lot, space, rng):
    prediction, label = random_matrices(rng, ROWS), random_matrices(rng, ROWS)
    stretch = prediction @ np.diag([0.3, 1.0, 2.0]).astype(np.float32)
    ours = values("geodesic", 5 * prediction.reshape(ROWS, 9), label, space)
    between = Rotation.from_matrix(prediction @ label.transpose(0, 2, 1))
    theirs = Misorientation(between.as_quat()[:, [3, 0, 1, 2]], symmetry=(symmetry.O, symmetry.O))
    np.testing.assert_allclose(ours, theirs.reduce().angle, atol=2e-4)
    # the nearest rotation of any nine numbers, not only of rotations
    nearest = np.asarray(nearest_rotation(stretch))
    angle = np.deg2rad(angle_deg(nearest, label, space.operations[0]))
    np.testing.assert_allclose(
        values("geodesic", stretch.reshape(ROWS, 9), label, space), angle, atol=1e-4
    )


@pytest.mark.parametrize("name", named(losses.LOSSES))
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31 - 1))
def test_equivalent_labels_have_the_same_loss(space, name, seed):
    rng = np.random.default_rng(seed)
    label = random_matrices(rng, 1)[0]
    equivalents = np.asarray(space.operations[0]) @ label
    output = jnp.tile(outputs(rng, name, space, 1), (ROWS, 1))
    loss = values(name, output, equivalents, space)
    assert np.ptp(loss) < (0.1 if name == "grid_cross_entropy" else 1e-3)
    if name == "grid_cross_entropy":
        assert np.median(np.abs(loss - np.median(loss))) < 1e-3


@pytest.mark.parametrize("degrees", [0.0, 1e-3, 90.0, 179.999, 180.0])
def test_geodesic_gradient_is_finite_near_zero_and_pi(rng, degrees):
    label = random_matrices(rng, 1)[0]
    axis = np.array([1.0, 2.0, 2.0]) / 3
    turn = Rotation.from_rotvec(np.deg2rad(degrees) * axis).as_matrix()
    output = jnp.asarray((turn @ label).reshape(9), jnp.float32)
    loss, gradient = geodesic_gradient(output, label, NO_SYMMETRY)
    assert float(loss) == pytest.approx(np.deg2rad(degrees), abs=1e-3)
    assert np.isfinite(gradient).all()


def test_geodesic_gradient_points_towards_the_label(rng):
    label = random_matrices(rng, 1)[0]
    turn = Rotation.from_rotvec([0.3, -0.2, 0.4]).as_matrix()
    output = jnp.asarray((turn @ label).reshape(9), jnp.float32)
    loss, gradient = geodesic_gradient(output, label, NO_SYMMETRY)
    assert geodesic_gradient(output - 0.05 * gradient, label, NO_SYMMETRY)[0] < loss - 0.01


def test_cross_entropy_is_least_at_the_label(space, rng):
    """Its least value is the label's entropy, reached by the label's own logarithm."""
    label = random_matrices(rng, 1)[0]
    near, target = jax.jit(soft_labels)(of_phase_0(label), space)
    best = jnp.full(len(space.cells) + 1, -40.0).at[near].set(jnp.log(target + 1e-17))
    entropy = -float(jnp.sum(target * jnp.log(target + 1e-30)))
    cross_entropy = jax.jit(
        lambda o, r, s: jax.value_and_grad(losses.grid_cross_entropy)(o, of_phase_0(r), s)
    )
    at_best, gradient = cross_entropy(best, label, space)
    assert float(at_best) == pytest.approx(entropy, abs=1e-3)
    assert np.abs(gradient).max() < 1e-3
    other = best + jnp.asarray(rng.normal(size=best.shape), jnp.float32)
    assert cross_entropy(other, label, space)[0] > at_best + 0.01
    uniform, _ = cross_entropy(jnp.zeros_like(best), label, space)
    assert float(uniform) == pytest.approx(np.log(len(best)), abs=1e-4)


@pytest.mark.parametrize("name", named(losses.LOSSES))
def test_every_registered_loss_is_batched(space, rng, name):
    label = random_matrices(rng, ROWS)
    output = outputs(rng, name, space, ROWS)
    batch = values(name, output, label, space)
    assert batch.shape == (ROWS,) and np.isfinite(batch).all()
    order = rng.permutation(ROWS)
    shuffled = values(name, output[order], label[order], space)
    np.testing.assert_allclose(shuffled, batch[order], atol=1e-5)
    head = losses.LOSSES[name].head
    assert losses.LOSSES[losses.DEFAULT_LOSS[head]].head == head


ROTATIONS = [name for name, loss in losses.LOSSES.items() if loss.head != "grid"]


@cache
def differentiated(name):
    loss = losses.LOSSES[name].function
    return jax.jit(jax.value_and_grad(lambda o, label, space: loss(o, of_phase_0(label), space)))


@pytest.mark.parametrize("name", named(ROTATIONS))
def test_gradients(space, perfect, rng, name):
    """They are those of differences, finite at every singular output, and lead to the label."""
    label = jnp.asarray(random_matrices(rng, 1)[0])
    best = perfect(name, label, space)
    at = lambda output: differentiated(name)(jnp.asarray(output, jnp.float32), label, space)  # noqa: E731
    least, _ = at(best)

    output = best + 0.3 * jnp.abs(best).max() * jnp.asarray(rng.normal(size=best.shape))
    value, gradient = at(output)
    along = jnp.asarray(rng.normal(size=best.shape), jnp.float32)
    step = 2e-3 * jnp.abs(best).max() / jnp.linalg.norm(along)
    slope = (at(output + step * along)[0] - at(output - step * along)[0]) / (2 * step)
    assert value > least
    np.testing.assert_allclose(gradient @ along, slope, rtol=0.05, atol=0.02 * abs(slope) + 3e-3)
    # a step that a straight slope would take a third of the way down, at most 0.03
    drop = jnp.minimum(0.03, 0.3 * (value - least))
    assert at(output - drop * gradient / (gradient @ gradient))[0] < value

    half_turn = jnp.diag(jnp.array([1.0, -1.0, -1.0])) @ label
    tie = Rotation.from_euler("z", 45, degrees=True).as_matrix().astype(np.float32) @ label
    singular = [best, jnp.zeros_like(best), jnp.ones_like(best)]
    singular += [perfect(name, orientation, space) for orientation in (half_turn, tie)]
    for output in singular:
        value, gradient = at(output)
        assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize(
    "name, scale, spacing",
    [
        ("matrix_fisher", 0.3, 14.0),
        ("matrix_fisher", 3.0, 7.0),
        ("rotation_laplace", 0.3, 14.0),
        pytest.param("rotation_laplace", 3.0, 7.0, marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_densities_integrate_to_one(rng, name, scale, spacing):
    """Over uniform rotations, by an even covering; the mean of several, for the tips are sharp."""
    covering = jnp.asarray(grids.so3_grid(np.eye(3)[None], spacing), jnp.float32)
    total = []
    for a in jnp.asarray(scale * rng.normal(size=(8, 9)), jnp.float32):
        loss = values(name, jnp.tile(a, (len(covering), 1)), covering, NO_SYMMETRY)
        total.append(np.exp(-loss).mean())
    np.testing.assert_allclose(total, 1.0, atol=0.1)
    assert np.mean(total) == pytest.approx(1.0, abs=0.02)


def test_concentrated_densities(rng):
    """Far from uniform matrix-Fisher is a normal law, and both constants stay finite."""
    fisher, laplace = map(jax.jit, (losses.log_fisher_constant, losses.log_laplace_constant))
    for s in (jnp.array([0.0, 0.0, 0.0]), jnp.array([4e3, 3e3, 1e3]), jnp.array([50.0, 9.0, -9.0])):
        assert np.isfinite(fisher(s)) and np.isfinite(laplace(s))
    s = jnp.array([4e3, 3e3, 1e3])
    normal = 1.5 * np.log(2 * np.pi) - 0.5 * np.log(4e3 * 5e3 * 7e3) - np.log(8 * np.pi**2)
    assert fisher(s) == pytest.approx(normal, abs=0.01)


def test_soft_minimum_lies_between_minimum_and_its_bound(space, rng):
    output, label = outputs(rng, "geodesic", space, ROWS), random_matrices(rng, ROWS)
    hard, soft = (values(name, output, label, space) for name in ("geodesic", "soft_geodesic"))
    assert (soft <= hard + 1e-5).all()
    assert (soft >= hard - losses.TEMPERATURE * np.log(24)).all()


@pytest.mark.slow
def test_simulation_forgives_an_orientation_with_the_same_pattern(copper, rng):
    """At a label whose zone axis is the beam, the half turn about it shows the same disks."""
    whole = losses.with_simulation(copper.reflectors(), copper.wavelength)

    @jax.jit
    def loss(output, label):
        label = of_phase_0(label)
        return whole(output, label, NO_SYMMETRY) - losses.geodesic(output, label, NO_SYMMETRY)

    turn = Rotation.from_rotvec([0, 0, rng.uniform(0, 6)]).as_matrix()
    label = jnp.asarray(np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]]) @ turn, jnp.float32)
    half = label @ jnp.diag(jnp.array([-1.0, -1.0, 1.0]))
    tilted = label @ jnp.asarray(Rotation.from_rotvec([0.2, 0, 0]).as_matrix(), jnp.float32)
    same, other, none = (loss(r.reshape(9), label) for r in (half, tilted, label))
    assert abs(none) < 1e-3 and abs(same) < 0.01 and other > 0.2
    assert np.isfinite(jax.jit(jax.grad(loss))(label.reshape(9), label)).all()


@pytest.fixture(scope="module")
def two(space, crystals):
    """Copper and magnesium in one space."""
    quaternions = rotations.matrix_to_quaternion(
        jnp.asarray(grids.so3_grid(symmetry_operations(crystals["Mg"]), 20))
    )
    return joint_space(
        [space, orientation_space(symmetry_operations(crystals["Mg"]), quaternions, 0.2)]
    )


def test_cross_entropy_of_several_phases(two, rng):
    """A distribution that has all in the true phase pays for the orientation alone."""
    orientation = random_matrices(rng, 3)
    label = Label(jnp.array([0, 1, 2]), jnp.asarray(orientation))
    outcome = jnp.append(two.phase, 2)
    within = jnp.where(outcome == jnp.arange(3)[:, None], 0.0, -1e3)
    loss = values("grid_cross_entropy", within, label, two)
    sizes = [int((two.phase == 0).sum()), int((two.phase == 1).sum()), 1]
    np.testing.assert_allclose(loss, np.log(sizes), atol=1e-4)
    elsewhere = values("grid_cross_entropy", jnp.roll(within, 1, axis=0), label, two)
    assert elsewhere.min() > 100


def test_nine_numbers_of_several_phases(two, crystals, rng):
    """0.9 of the angle by the true phase's operations and 0.1 of the cross-entropy; none: nothing.

    A turn by 60° about c is a symmetry of Mg but not of Cu.
    """
    orientation = random_matrices(rng, 1)[0]
    sixth = Rotation.from_rotvec([0, 0, np.pi / 3]).as_matrix()
    output = jnp.concatenate([(sixth @ orientation).reshape(9), np.array([0.7, -0.4])])
    label = Label(jnp.arange(3), jnp.tile(orientation, (3, 1, 1)))
    loss = values("geodesic", jnp.tile(output.astype(jnp.float32), (3, 1)), label, two)
    first = 1 / (1 + np.exp(-1.1))
    np.testing.assert_allclose(loss[0], 0.9 * np.pi / 6 - 0.1 * np.log(first), atol=1e-4)
    np.testing.assert_allclose(loss[1], -0.1 * np.log(1 - first), atol=1e-3)
    assert loss[2] == 0
    nothing = Label(jnp.array(2), label.orientation[0])
    gradient = jax.jit(jax.grad(lambda o: losses.geodesic(o, nothing, two)))(output)
    np.testing.assert_array_equal(gradient, 0)


def test_unknown_loss():
    with pytest.raises(KeyError, match="nonesuch"):
        losses.batched("nonesuch")


def distance(output, label, space):
    """A loss that is in no list."""
    apart = output[:9].reshape(3, 3) - losses.equivalents(label, space)
    return (apart**2).sum((1, 2)).min()


def test_losses_are_found_by_name_and_as_functions():
    for name, loss in losses.LOSSES.items():
        assert losses.find_loss(name, "grid") is loss and losses.loss_name(loss) == name
    assert losses.find_loss("", "six") is losses.LOSSES["six_numbers"]
    own = losses.find_loss(distance, "matrix")
    assert own == losses.Loss(distance, "matrix") == losses.find_loss(own, "grid")
    assert losses.loss_name(own) == f"{__name__}.distance"
    with pytest.raises(InputError, match="The loss 'nonesuch' is not known; give one of grid_cros"):
        losses.find_loss("nonesuch", "grid")
    with pytest.raises(InputError, match="The head 'tail' is not known; give one of grid, matrix"):
        losses.find_loss(distance, "tail")


@pytest.mark.slow
def test_a_loss_of_ones_own_trains(copper, tiny):
    config = replace(tiny, model=replace(tiny.model, blocks=0)).with_loss(distance, "matrix")
    network, optimiser = build_network(config.model, [copper]), make_optimiser(config)
    mesh = parallel.make_mesh(jax.devices()[:1])
    step = make_train_step(network, [copper], config, optimiser, mesh)
    state = init_state(network, optimiser, 0, 10)
    before = jax.tree.map(np.asarray, state.params)
    state, loss = step(state, jax.random.key(0), make_sources([copper], config))
    assert 0 < float(loss) < 8
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, state.params)
    assert max(jax.tree.leaves(moved)) > 0
