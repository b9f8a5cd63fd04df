# SPDX-License-Identifier: GPL-3.0-or-later
"""Beams on their way down through the crystal, for many thicknesses at once.

The equation and its sources stand in `bloch.py`: psi(t) = C diag(exp(2 pi i γ t)) C^+ psi(0) with
one decomposition of the Hermitian structure matrix, absorption to first order with the first term
of its Dyson series, and the small tilts of an illumination cone acting in between short steps of
one decomposition (`propagate_cone`). Derivatives are written out, since those of an
eigendecomposition are infinite where eigenvalues meet and those of what is made of it are not.

Shapes: `B` beams, `T` thicknesses, `Q` tilts of the beam.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Complex, Float

from jaxstem.diffraction.illumination import Tilts


@jax.custom_jvp
def propagate(
    matrix: Float[Array, "B B"] | Complex[Array, "B B"], thickness: Float[Array, " T"]
) -> Complex[Array, "T B"]:
    """Amplitudes psi_g at each thickness [Å], with all of the wave in beam 0 at the entrance.

    Differentiable in the Hermitian `matrix` and in `thickness`, also at zone axes, where
    eigenvalues coincide and the derivatives of eigenvectors do not exist.
    """
    return _propagate(*jnp.linalg.eigh(matrix), thickness)


@propagate.defjvp
def _propagate_jvp(primals, tangents):
    (matrix, thickness), (d_matrix, d_thickness) = primals, tangents
    eigenvalue, vector = jnp.linalg.eigh(matrix)
    inner = vector.conj().T @ d_matrix @ vector
    return _with_derivative(eigenvalue, vector, thickness, inner, d_thickness)


@jax.custom_jvp
def propagate_absorbing(
    matrix: Float[Array, "B B"] | Complex[Array, "B B"],
    absorption: Float[Array, "B B"] | Complex[Array, "B B"],
    thickness: Float[Array, " T"],
) -> Complex[Array, "T B"]:
    """`propagate` with M' (`absorption`) to first order, as the module's docstring says.

    Differentiable like `propagate`; derivatives neglect the mixing of Bloch waves by M'.
    """
    eigenvalue, vector, mixing = _absorbed(matrix, absorption)
    unmixed, change = _with_derivative(
        eigenvalue, vector, thickness, 1j * mixing, jnp.zeros_like(thickness)
    )
    return unmixed + change


@propagate_absorbing.defjvp
def _propagate_absorbing_jvp(primals, tangents):
    matrix, absorption, thickness = primals
    d_matrix, d_absorption, d_thickness = tangents
    eigenvalue, vector, _ = _absorbed(matrix, absorption)
    inner = vector.conj().T @ (d_matrix + 1j * d_absorption) @ vector
    _, slope = _with_derivative(eigenvalue, vector, thickness, inner, d_thickness)
    return propagate_absorbing(*primals), slope


def _absorbed(matrix, absorption):
    """γ_j + i q_j, the eigenvectors, and what M' mixes among them."""
    eigenvalue, vector = jnp.linalg.eigh(matrix)
    inner = vector.conj().T @ absorption @ vector
    own = jnp.diagonal(inner).real
    return eigenvalue + 1j * own, vector, inner - jnp.diag(own)


def _propagate(
    eigenvalue: Float[Array, " B"] | Complex[Array, " B"],
    vector: Float[Array, "B B"] | Complex[Array, "B B"],
    thickness: Float[Array, " T"],
) -> Complex[Array, "T B"]:
    phase = jnp.exp(2j * jnp.pi * thickness[:, None] * eigenvalue)
    return (phase * vector[0].conj()) @ vector.T


def _with_derivative(eigenvalue, vector, thickness, inner, d_thickness):
    """Amplitudes, and their derivative for a change `inner` of the matrix, given between vectors.

    d exp(A) by divided differences (Yu. L. Daletskii & S. G. Krein, 1951): no 1 / (γa - γb).
    """
    t = thickness[:, None, None]
    mean = 0.5 * (eigenvalue[:, None] + eigenvalue)
    divided = jnp.exp(2j * jnp.pi * t * mean) * jnp.sinc(t * (eigenvalue[:, None] - eigenvalue))
    from_matrix = thickness[:, None] * ((divided * inner) @ vector[0].conj()) @ vector.T
    waves = jnp.exp(2j * jnp.pi * thickness[:, None] * eigenvalue) * vector[0].conj()
    from_thickness = d_thickness[:, None] * ((waves * eigenvalue) @ vector.T)
    return waves @ vector.T, 2j * jnp.pi * (from_matrix + from_thickness)


def propagate_cone(
    matrix: Float[Array, "B B"] | Complex[Array, "B B"],
    detuning: Float[Array, "Q B"],
    thickness: Float[Array, " T"],
    n_steps: int,
    absorption: Float[Array, "B B"] | Complex[Array, "B B"] | None = None,
) -> Complex[Array, "T Q B"]:
    """Amplitudes at each thickness [Å] for small tilts of the beam, from one decomposition.

    A tilt adds `detuning` [1/Å] to the excitation errors, the diagonal of `matrix`. The way from
    one thickness to the next is cut into `n_steps`, and each step into half of the detuning, the
    crystal, and the other half (G. Strang, SIAM J. Numer. Anal. 5 (1968) 506; `cone_steps` knows
    how many are needed). The error falls as 1 / n_steps^2 down to a few thousandths, where steps
    resonate with differences of eigenvalues. Derivatives with respect to `matrix` are not finite
    where eigenvalues coincide.
    """
    if absorption is None:
        (eigenvalue, vector), mixing = jnp.linalg.eigh(matrix), None
    else:
        eigenvalue, vector, mixing = _absorbed(matrix, absorption)
    step = jnp.diff(thickness, prepend=0.0) / n_steps
    entrance = jnp.zeros((len(matrix), len(detuning)), (1j * matrix).dtype).at[0].set(1.0)

    def layer(psi, step):
        detuned = jnp.exp(1j * jnp.pi * step * detuning.T)
        half = jnp.exp(1j * jnp.pi * step * eigenvalue)[:, None]
        if mixing is not None:
            distance = (eigenvalue[:, None] - eigenvalue).real
            mixed = 2 * jnp.pi * step * mixing * jnp.sinc(step * distance)

        def one(_, psi):
            waves = half * _times(vector.conj().T, detuned * psi)
            if mixing is not None:
                waves = waves - _times(mixed, waves)
            return detuned * _times(vector, half * waves)

        psi = jax.lax.fori_loop(0, n_steps, one, psi, unroll=n_steps < 5)
        return psi, psi.T

    return jax.lax.scan(layer, entrance, step)[1]


def _times(matrix, psi):
    """matrix @ psi, without complex arithmetic where the matrix is real."""
    if jnp.iscomplexobj(matrix):
        return matrix @ psi
    product = matrix @ jnp.concatenate([psi.real, psi.imag], axis=1)
    return jax.lax.complex(*jnp.split(product, 2, axis=1))


def cone_steps(thickness: Float[ArrayLike, " T"], cone: Tilts, k_max: float) -> int:
    """Steps of `propagate_cone` that leave intensities of disks up to `k_max` [1/Å] right to 1 %.

    At most a tenth of a turn of phase in a step.
    """
    longest = np.max(np.abs(np.diff(np.asarray(thickness), prepend=0.0)))
    return max(1, int(np.ceil(10 * longest * np.max(np.hypot(cone.x, cone.y)) * k_max)))
