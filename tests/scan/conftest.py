# SPDX-License-Identifier: GPL-3.0-or-later
"""A cubic phase and a hexagonal one as scipy knows them, and labels made by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from jaxstem.inference.verdict import Labels


@pytest.fixture(scope="session")
def symmetry():
    """Operations of a cubic phase and of a hexagonal one."""
    return [Rotation.create_group(name) for name in ("O", "D6")]


@pytest.fixture(scope="session")
def operations(symmetry):
    """The same as matrices (2, 24, 3, 3), those of the hexagonal one twice."""
    matrices = np.stack([np.resize(x.as_matrix(), (24, 3, 3)) for x in symmetry])
    return jnp.asarray(matrices, jnp.float32)


@pytest.fixture(scope="session")
def quaternions():
    """Of rotations, w first, in this shape."""

    def quaternions(rotation, *shape):
        return np.roll(rotation.as_quat(), 1, axis=-1).reshape(*shape, 4).astype(np.float32)

    return quaternions


@pytest.fixture(scope="session")
def turns(symmetry, quaternions):
    """The operations as quaternions (2, 24, 4)."""
    return np.stack([np.resize(quaternions(x, len(x)), (24, 4)) for x in symmetry])


@pytest.fixture(scope="session")
def angle(symmetry):
    """Misorientation [rad] of quaternions (..., 4) of phases (...): infinite between phases and
    where a phase is below 0.
    """

    def rotation(q):
        return Rotation.from_quat(np.roll(q, -1, axis=-1).astype(float))

    def angle(a, b, phase, its_phase):
        shape = np.broadcast_shapes(a.shape[:-1], b.shape[:-1])
        a, b = (np.broadcast_to(x, (*shape, 4)) for x in (a, b))
        alike = np.broadcast_to((phase == its_phase) & (phase >= 0), shape)
        found = np.full(shape, np.inf)
        for number, group in enumerate(symmetry):
            which = alike & (np.broadcast_to(phase, shape) == number)
            if which.any():
                there, back = rotation(b[which]), rotation(a[which]).inv()
                found[which] = np.min([(x * there * back).magnitude() for x in group], axis=0)
        return found

    return angle


@pytest.fixture(scope="session")
def apart(symmetry):
    """So many random orientations of which no two are within some degrees of each other."""

    def apart(rng, n, degrees=15.0, phase=0):
        chosen = []
        while len(chosen) < n:
            new = Rotation.random(random_state=rng.integers(2**31))
            turned = [symmetry[phase] * new * old.inv() for old in chosen]
            if all(x.magnitude().min() > np.deg2rad(degrees) for x in turned):
                chosen.append(new)
        return Rotation.concatenate(chosen)

    return apart


@pytest.fixture(scope="session")
def make_labels():
    """Labels of quaternions (ny, nx, C, 4) by their log-odds, -inf where there is none; the other
    numbers of each label tell it from all others.
    """

    def make_labels(quaternion, log_odds, no_crystal=-20.0, phase=0):
        exists = np.isfinite(log_odds)
        others = np.arange(4 * exists.size).reshape(4, *exists.shape).astype(np.float32)
        return Labels(
            np.asarray(quaternion, np.float32),
            np.where(exists, phase, -1).astype(np.int32),
            np.asarray(log_odds, np.float32),
            np.broadcast_to(no_crystal, exists.shape[:2]).astype(np.float32),
            *others,
        )

    return make_labels
