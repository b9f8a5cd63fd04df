# SPDX-License-Identifier: GPL-3.0-or-later
"""What the numbers of an output mean: the heads of the network.

"grid" has a logit for each cell of the orientation grid and a last one for no crystal. The others
have the numbers of an orientation, and of several phases a logit for each after them; they cannot
say that there is no crystal. `HEADS` says how many numbers an output has and which orientations it
stands for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.polynomial import Legendre, Polynomial

from jaxstem.orientation import rotations
from jaxstem.orientation.space import OrientationSpace

_DEGREES = (4, 6)
"""Of the invariant harmonics: together they tell orientations apart in every Laue group."""

_SEED = np.array([0.95, 0.1, 0.3]) / np.linalg.norm([0.95, 0.1, 0.3])
"""Crystal direction, on no element of symmetry, that is averaged into the invariant harmonics."""

HYPOTHESES = 8


def nine_numbers(output: Float[Array, " n_out"]) -> Float[Array, "3 3"]:
    """The rotation nearest to the first nine numbers."""
    return rotations.nearest_rotation(output[:9].reshape(3, 3))


def gram_schmidt(output: Float[Array, " 6"]) -> Float[Array, "3 3"]:
    """The rotation whose first two columns are two vectors, made orthonormal one after the other.

    Y. Zhou et al., On the continuity of rotation representations, arXiv 1812.07035. Where they are
    zero or parallel any fitting axis is taken, with no gradient.
    """
    first = _unit(output[:3], jnp.eye(3, dtype=output.dtype)[0])
    across = jnp.cross(first, jnp.eye(3, dtype=output.dtype)[jnp.argmin(jnp.abs(first))])
    rest = output[3:6] - first * (first @ output[3:6])
    second = _unit(rest, jax.lax.stop_gradient(across / jnp.linalg.norm(across)))
    return jnp.stack([first, second, jnp.cross(first, second)], axis=1)


def _unit(v: Float[Array, " 3"], otherwise: Float[Array, " 3"]) -> Float[Array, " 3"]:
    square = v @ v
    usable = square > 1e-10
    return jnp.where(usable, v / jnp.sqrt(jnp.where(usable, square, 1.0)), otherwise)


def embedding(
    orientation: Float[Array, "3 3"], operations: Float[Array, "n 3 3"]
) -> Float[Array, " n_harmonics"]:
    """Coefficients, in the lab frame, of functions on the sphere that the crystal's symmetry keeps.

    For each degree l of `_DEGREES` the 2l + 1 coefficients of Σ_O P_l(v · (O R)^T `_SEED`), as a
    unit vector: by the addition theorem those of the averaged spherical harmonic Y_l (H.-J. Bunge,
    Texture Analysis in Materials Science, 1982, section 14.2). Their length does not depend on R.
    """
    directions = jnp.asarray(_SEED, orientation.dtype) @ (operations @ orientation)
    parts = []
    for degree in _DEGREES:
        sample, whitening, powers = _harmonic_frame(degree)
        values = jnp.polyval(jnp.asarray(powers), directions @ sample.T).mean(axis=0)
        coefficients = values @ whitening
        length = jnp.sqrt(jnp.maximum(coefficients @ coefficients, 1e-12))
        parts.append(coefficients / length)
    return jnp.concatenate(parts)


def _harmonic_frame(degree: int):
    """2l + 1 directions v_j, what makes values P_l(a · v_j) orthonormal coefficients, and P_l."""
    n = 2 * degree + 1
    z = 1 - (np.arange(n) + 0.5) / n
    turn = np.pi * (3 - np.sqrt(5)) * np.arange(n)
    across = np.sqrt(1 - z**2)
    sample = np.stack([across * np.cos(turn), across * np.sin(turn), z], axis=-1)
    polynomial = Legendre.basis(degree)
    value, vector = np.linalg.eigh(polynomial(sample @ sample.T))
    whitening = vector / np.sqrt(value) @ vector.T
    powers = polynomial.convert(kind=Polynomial).coef[::-1]
    return tuple(x.astype(np.float32) for x in (sample, whitening, powers))


def from_embedding(output: Float[Array, " n_out"], space: OrientationSpace) -> Float[Array, "3 3"]:
    """The orientation whose embedding is most like the output: the best cell, then uphill."""
    phase = _phase(output[N_HARMONICS:], space)
    operations = space.operations[phase]
    wanted = output[:N_HARMONICS]
    wanted = wanted / jnp.maximum(jnp.linalg.norm(wanted), 1e-6)
    cells = rotations.quaternion_to_matrix(space.cells)
    like = jax.vmap(lambda r: embedding(r, operations) @ wanted)(cells)
    start = cells[jnp.argmax(jnp.where(space.phase == phase, like, -jnp.inf))]
    turned = lambda w: start @ rotations.rotation_vector_to_matrix(w)  # noqa: E731
    slope = jax.grad(lambda w: embedding(turned(w), operations) @ wanted)
    return turned(jax.lax.fori_loop(0, 12, lambda _, w: w + 0.05 * slope(w), jnp.zeros(3)))


def hypotheses(
    output: Float[Array, " n_out"],
) -> tuple[Float[Array, "H 3 3"], Float[Array, " H"], Float[Array, " n_rest"]]:
    """Rotations, their logits, and what follows."""
    quaternions, logits, rest = jnp.split(output, [4 * HYPOTHESES, 5 * HYPOTHESES])
    return rotations.quaternion_to_matrix(quaternions.reshape(-1, 4)), logits, rest


def _phase(logits: Float[Array, " n_logits"], space: OrientationSpace):
    return jnp.argmax(logits) if space.n_phases > 1 else 0


def _best_cell(output: Float[Array, " n_out"], space: OrientationSpace):
    return _alone(rotations.quaternion_to_matrix(space.cells[jnp.argmax(output[:-1])]))


def _alone(orientation: Float[Array, "3 3"]):
    return orientation[None], jnp.zeros(1, orientation.dtype)


class Head(NamedTuple):
    """What an output is made of, and how orientations are read from it.

    numbers: of an orientation, None for a logit for each cell; orientations: `(output, space)` to
    one orientation or several rivals (H, 3, 3) and a logit for each (H,).
    """

    numbers: int | None
    orientations: Callable[
        [Float[Array, " n_out"], OrientationSpace],
        tuple[Float[Array, "H 3 3"], Float[Array, " H"]],
    ]

    def n_out(self, n_cells: int, n_phases: int) -> int:
        """How many outputs the network needs for so many cells, of all phases together."""
        if self.numbers is None:
            return n_cells + 1
        return self.numbers + (n_phases if n_phases > 1 else 0)

    def orientation(
        self, output: Float[Array, " n_out"], space: OrientationSpace
    ) -> Float[Array, "3 3"]:
        """The likeliest orientation."""
        found, logits = self.orientations(output, space)
        return found[jnp.argmax(logits)]


N_HARMONICS = sum(2 * degree + 1 for degree in _DEGREES)

HEADS: dict[str, Head] = {
    "grid": Head(None, _best_cell),
    "matrix": Head(9, lambda output, _: _alone(nine_numbers(output))),
    "quaternion": Head(4, lambda output, _: _alone(rotations.quaternion_to_matrix(output[:4]))),
    "six": Head(6, lambda output, _: _alone(gram_schmidt(output[:6]))),
    "harmonic": Head(N_HARMONICS, lambda output, space: _alone(from_embedding(output, space))),
    "hypotheses": Head(5 * HYPOTHESES, lambda output, _: hypotheses(output)[:2]),
}
