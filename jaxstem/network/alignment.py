# SPDX-License-Identifier: GPL-3.0-or-later
"""The rotation within a cell: an orientation laid on a pattern's disks, with learned weights.

A cell of the grid says which reflections make which disks. What is left is a small rotation w, in
the lab frame, by which the crystal must be turned (g becomes g + g × w):

- about the beam it moves a disk at the radius r along its circle by -r w_z: each disk's distance
  from its reflection asks for one;
- across the beam it changes excitation errors by g_x w_y - g_y w_x: each disk's brightness asks for
  an excitation error of its own, about none where it is bright.

How much each disk counts for either, and what excitation error it asks for, a small network reads
from what does not change when crystal and pattern turn about the beam together: distances,
excitation error, intensity, extinction distance. The rest is least squares, in a few rounds, the
reflections being looked up again in each; so that the answer turns with the pattern by itself, and
the normal matrix is its precision. The cell is told by the network and, by this, nothing of the
crystal but its lattice and extinction distances.

Shapes: `K` disks of a pattern, `P` phases, `N` indices along each axis of the reciprocal lattice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxstem.crystal.cell import reciprocal_lattice, reflections
from jaxstem.diffraction.geometry import Disks, excitation_error
from jaxstem.diffraction.material import Material, inverse_extinction
from jaxstem.network.tokens import Sight, relative_intensity
from jaxstem.orientation import rotations, symmetry

ROUNDS = 2

_HIDDEN = 16

_APART, _ERROR = 0.03, 0.02
"""Usual distances [1/Å] of a disk from its reflection, and of that from the Ewald sphere."""

_START = np.deg2rad(2.0)
"""How far [rad] an orientation is from the truth at first, about each axis."""

_FREEDOM = 4.0
"""Degrees of freedom of Student's law of what an alignment leaves."""


class Lattices(NamedTuple):
    """What an alignment knows of each phase: the rows of its cell [Å] and of the reciprocal one
    [1/Å], and 1/ξ_g [1/Å] by index, 0 where there is no reflection.
    """

    lattice: Float[Array, "P 3 3"]
    reciprocal: Float[Array, "P 3 3"]
    strength: Float[Array, "P N N N"]


class Aligned(NamedTuple):
    """An orientation, and how well it is known: the inverse variance [1/rad²] of the rotation about
    the beam, and the inverse covariance of that across it.
    """

    orientation: Float[Array, "... 3 3"]
    about: Float[Array, "..."]
    across: Float[Array, "... 2 2"]


def lattices(materials: Sequence[Material]) -> Lattices:
    """Of these phases, up to the microscope's k_max."""
    tables = []
    for material in materials:
        found = reflections(material.crystal, material.k_max, material.u_iso)
        strength = inverse_extinction(material.crystal, found.structure_factor, material.voltage_kv)
        tables.append((found.hkl, strength))
    most = max(int(np.abs(hkl).max()) for hkl, _ in tables)
    cube = np.zeros((len(tables), *[2 * most + 1] * 3), np.float32)
    for phase, (hkl, strength) in enumerate(tables):
        cube[phase, *(hkl + most).T] = strength
    cell = np.stack([m.crystal.lattice for m in materials])
    reciprocal = np.stack([reciprocal_lattice(one) for one in cell])
    return Lattices(*(jnp.asarray(x, jnp.float32) for x in (cell, reciprocal, cube)))


class Alignment(nn.Module):
    """`wavelength` in Å, `k_max` in 1/Å."""

    wavelength: float | Array
    k_max: float

    @nn.compact
    def __call__(
        self,
        disks: Disks,
        seen: Sight,
        orientation: Float[Array, "3 3"],
        phase: Int[Array, ""],
        known: Lattices,
    ) -> list[Aligned]:
        """The orientation after each round, laid on the disks (K,) of one pattern."""
        cell, reciprocal = known.lattice[phase], known.reciprocal[phase]
        most = known.strength.shape[1] // 2
        q = jnp.stack([disks.qx, disks.qy, jnp.zeros_like(disks.qx)], axis=-1)
        q = q.at[:, 2].set(-excitation_error(q, self.wavelength))  # on the Ewald sphere
        level = jnp.log(jnp.maximum(relative_intensity(disks), 1e-4))
        found = []
        for number in range(ROUNDS):
            hkl = jnp.round(q @ (cell @ orientation).T)
            g = hkl @ (reciprocal @ orientation)
            index = hkl.astype(jnp.int32) + most
            strength = known.strength[phase, *jnp.clip(index, 0, 2 * most).T]
            inside = jnp.all(jnp.abs(hkl) <= most, axis=-1)
            counts = disks.mask & inside & (strength > 0)
            radius = jnp.sqrt(jnp.maximum(g[:, 0] ** 2 + g[:, 1] ** 2, 1e-6))
            apart = q[:, :2] - g[:, :2]
            outwards = (g[:, 0] * apart[:, 0] + g[:, 1] * apart[:, 1]) / radius
            along = (g[:, 0] * apart[:, 1] - g[:, 1] * apart[:, 0]) / radius
            error = excitation_error(g, self.wavelength)
            features = _features(outwards, along, error, radius / self.k_max, level, strength)
            alike = jnp.stack([seen.faintest, seen.brightest]) / 5.0
            about, across, wanted = _Weights(name=f"round_{number}")(features, alike, counts)
            turn_z = -jnp.sum(about * radius * along)
            precision_z = jnp.sum(about * radius**2) + 1 / _START**2
            direction = jnp.stack([-g[:, 1], g[:, 0]], axis=-1)
            normal = (direction * across[:, None]).T @ direction + jnp.eye(2) / _START**2
            turn = _solved(normal, direction.T @ (across * (wanted - error)))
            rotation = jnp.append(turn, turn_z / precision_z)
            orientation = orientation @ rotations.rotation_vector_to_matrix(rotation)
            found.append(Aligned(orientation, precision_z, normal))
        return found


def _determinant(a: Float[Array, "2 2"]) -> Float[Array, ""]:
    return a[0, 0] * a[1, 1] - a[0, 1] * a[1, 0]


def _solved(a: Float[Array, "2 2"], b: Float[Array, " 2"]) -> Float[Array, " 2"]:
    x = a[1, 1] * b[0] - a[0, 1] * b[1], a[0, 0] * b[1] - a[1, 0] * b[0]
    return jnp.stack(x) / _determinant(a)


def _features(outwards, along, error, radius, level, strength) -> Float[Array, "K F"]:
    """Of each disk, numbers of about one that stay when pattern and crystal turn together."""
    squashed = lambda x, scale: x / (jnp.abs(x) + scale)  # noqa: E731
    distance = jnp.sqrt(outwards**2 + along**2 + 1e-12)
    return jnp.stack(
        [
            *(squashed(x, _APART) for x in (outwards, along)),
            *(squashed(distance, scale) for scale in (0.01, 0.1)),
            *(squashed(error, scale) for scale in (_ERROR / 4, _ERROR, 4 * _ERROR)),
            squashed(error, _ERROR) ** 2,
            radius,
            level / 5.0,
            jnp.log(jnp.maximum(strength, 1e-6) / 2e-3) / 2.0,
        ],
        axis=-1,
    )


class _Weights(nn.Module):
    """Weights [1/Å^-2] of each disk about and across the beam, and the excitation error [1/Å] that
    it asks for, from its own features and the mean of all disks'.
    """

    @nn.compact
    def __call__(self, features, alike, counts):
        alike = jnp.broadcast_to(alike, (len(features), 2))
        hidden = nn.relu(nn.Dense(_HIDDEN)(jnp.concatenate([features, alike], axis=-1)))
        share = counts / jnp.maximum(counts.sum(), 1)
        mean = jnp.broadcast_to(share @ hidden, hidden.shape)
        hidden = nn.relu(nn.Dense(_HIDDEN)(jnp.concatenate([hidden, mean], axis=-1)))
        about, across, wanted = nn.Dense(3)(hidden).T
        weight = lambda x, scale: counts * nn.softplus(x) / scale**2  # noqa: E731
        return weight(about, _APART), weight(across, _ERROR), _ERROR * wanted


def misalignment(
    found: Aligned, truth: Float[Array, "3 3"], operations: Float[Array, "n 3 3"]
) -> Float[Array, ""]:
    """Minus the log-density of the rotation that is left to the nearest equivalent of the truth, up
    to a constant: Student's law (C. M. Bishop, Pattern Recognition and Machine Learning, 2006,
    eq. 2.162) in three dimensions, so that lost patterns do not decide.
    """
    equivalents = operations @ truth
    angles = jax.vmap(symmetry.geodesic_angle, in_axes=(None, 0))(found.orientation, equivalents)
    nearest = equivalents[jnp.argmin(jax.lax.stop_gradient(angles))]
    left = rotations.matrix_to_rotation_vector(found.orientation.T @ nearest)
    square = found.about * left[2] ** 2 + left[:2] @ found.across @ left[:2]
    log_det = jnp.log(found.about * _determinant(found.across))
    return 0.5 * (_FREEDOM + 3) * jnp.log1p(square / _FREEDOM) - 0.5 * log_det


def near(key: PRNGKeyArray, orientation: Float[Array, "3 3"]) -> Float[Array, "3 3"]:
    """An orientation as far from another one as a cell's answer is from the truth, or nearer."""
    key_size, key_turn = jax.random.split(key)
    size = jax.random.uniform(key_size, minval=0.1 * _START, maxval=1.25 * _START)
    turn = size * jax.random.normal(key_turn, (3,))
    return orientation @ rotations.rotation_vector_to_matrix(turn)
