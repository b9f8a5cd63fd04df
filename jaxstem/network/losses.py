# SPDX-License-Identifier: GPL-3.0-or-later
"""Losses between the network's output for a pattern and what the pattern truly shows.

A loss is a pure function of one pattern, `(output, label, space) -> scalar`: `output` is what the
head gave (`heads.py`), `label` the true phase and orientation, `space` the symmetries and the grid.
`batched` vmaps it. `LOSSES` names the losses, each with the head whose output it takes; a function
of one's own needs no name (`find_loss`, docs/losses.md).

Heads other than "grid" cannot say that there is no crystal, so that such patterns count for nothing
with them.

An orientation R is the same as O @ R for every operation O of its crystal. A loss takes the
nearest of these equivalents of the label, or their average as a mixture, or compares what does not
depend on O; each is invariant. Where the nearest one changes the gradient jumps, and at the tips of
angles it is 0: it is finite everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import i0e
from jaxtyping import Array, Float
from numpy.polynomial import legendre

from jaxstem.diffraction.geometry import Reflectors, excitation_error
from jaxstem.errors import InputError
from jaxstem.network.heads import HEADS, embedding, gram_schmidt, hypotheses, nine_numbers
from jaxstem.orientation import rotations, symmetry
from jaxstem.orientation.space import Label, OrientationSpace, soft_labels

_PHASE_SHARE = 0.1
"""Share of the phases' cross-entropy in the loss of a head without grid (arXiv 2602.12420)."""

TEMPERATURE = 0.1
"""Angle [rad] over which the soft minimum mixes equivalents."""

_TIP = 1e-2
"""Rounds the tip of the rotation-Laplace density, in its exponent's square."""

_LOSERS = 0.05
"""Share of all hypotheses in the winner-takes-all loss, which keeps each of them alive."""

LossFn = Callable[[Float[Array, " n_out"], Label, OrientationSpace], Float[Array, ""]]

Distance = Callable[[Float[Array, "3 3"], Float[Array, "3 3"]], Float[Array, ""]]


def grid_cross_entropy(
    output: Float[Array, " n_out"], label: Label, space: OrientationSpace
) -> Float[Array, ""]:
    """Cross-entropy [nat] between the soft label and the distribution of the logits."""
    outcome, target = jax.lax.stop_gradient(soft_labels(label, space))
    return jax.nn.logsumexp(output) - target @ output[outcome]


def equivalents(label: Label, space: OrientationSpace) -> Float[Array, "n 3 3"]:
    """All O @ orientation of a label, O running over the operations of its phase."""
    phase = jnp.minimum(label.phase, space.n_phases - 1)
    return space.operations[phase] @ label.orientation


def with_phases(
    loss: Float[Array, ""],
    logits: Float[Array, " n_logits"],
    label: Label,
    space: OrientationSpace,
) -> Float[Array, ""]:
    """An orientation's loss, of several phases 0.9 of it and 0.1 of their cross-entropy [nat].

    As published for two phases; nothing for a pattern without crystal.
    """
    if space.n_phases > 1:
        phase = jnp.minimum(label.phase, space.n_phases - 1)
        wrong_phase = -jax.nn.log_softmax(logits)[phase]
        loss = (1 - _PHASE_SHARE) * loss + _PHASE_SHARE * wrong_phase
    return jnp.where(label.phase < space.n_phases, loss, 0.0)


def geodesic(
    output: Float[Array, " n_out"], label: Label, space: OrientationSpace
) -> Float[Array, ""]:
    """Symmetry-minimum geodesic angle [rad] between the rotation nearest the 9 numbers and label.

    min over O of the angle of R^T O·label, by atan2 (Je et al., arXiv 2602.12420); the nearest
    rotation is that of the SVD (Levinson et al., An analysis of SVD for deep rotation estimation,
    arXiv 2006.14616). The gradient is that of the operation that attains the minimum.
    """
    return _nearest(symmetry.geodesic_angle, nine_numbers(output), output[9:], label, space)


def chordal(
    output: Float[Array, " n_out"], label: Label, space: OrientationSpace
) -> Float[Array, ""]:
    """Least squared Frobenius distance of the rotation nearest the 9 numbers: 8 sin²(angle / 2).

    Smooth where the angle has its tips (Levinson et al., arXiv 2006.14616).
    """
    square = lambda a, b: jnp.sum((a - b) ** 2)  # noqa: E731
    return _nearest(square, nine_numbers(output), output[9:], label, space)


def quaternion_geodesic(
    output: Float[Array, " n_out"], label: Label, space: OrientationSpace
) -> Float[Array, ""]:
    """Symmetry-minimum geodesic angle [rad], the rotation given as a quaternion of any length.

    D. Q. Huynh, J. Math. Imaging Vis. 35 (2009) 155.
    """
    rotation = rotations.quaternion_to_matrix(output[:4])
    return _nearest(symmetry.geodesic_angle, rotation, output[4:], label, space)


def six_number_geodesic(
    output: Float[Array, " n_out"], label: Label, space: OrientationSpace
) -> Float[Array, ""]:
    """Symmetry-minimum geodesic angle [rad] of the rotation that `gram_schmidt` makes."""
    return _nearest(symmetry.geodesic_angle, gram_schmidt(output[:6]), output[6:], label, space)


def _nearest(distance: Distance, rotation, logits, label, space) -> Float[Array, ""]:
    distances = jax.vmap(distance, in_axes=(None, 0))(rotation, equivalents(label, space))
    return with_phases(distances.min(), logits, label, space)


def soft_geodesic(
    output: Float[Array, " n_out"], label: Label, space: OrientationSpace
) -> Float[Array, ""]:
    """Soft minimum of the angles [rad] to all equivalents: -T ln Σ exp(-angle / T).

    Near borders between equivalents it pulls towards all of them that are about as near. Below the
    minimum by T ln 24 at most.
    """
    angle = jax.vmap(symmetry.geodesic_angle, in_axes=(None, 0))
    angles = angle(nine_numbers(output), equivalents(label, space))
    loss = -TEMPERATURE * jax.nn.logsumexp(-angles / TEMPERATURE)
    return with_phases(loss, output[9:], label, space)


def matrix_fisher(
    output: Float[Array, " n_out"], label: Label, space: OrientationSpace
) -> Float[Array, ""]:
    """Minus the log-density [nat] of the label's equivalents, mixed, by a matrix-Fisher law.

    p(R) = exp(tr A^T R) / c(A) over the uniform measure of total 1 (K. V. Mardia & P. E. Jupp,
    Directional Statistics, 2000, section 13.2; D. Mohlin, J. Sullivan & G. Bianchi, arXiv
    2006.09740), A being the 9 numbers; its mode is the rotation nearest A.
    """
    a = output[:9].reshape(3, 3)
    s = proper_singular_values(a)
    overlap = jnp.einsum("ij,nij->n", a, equivalents(label, space)) - s.sum()
    mixed = jax.nn.logsumexp(overlap) - jnp.log(len(overlap))
    return with_phases(log_fisher_constant(s) - mixed, output[9:], label, space)


def rotation_laplace(
    output: Float[Array, " n_out"], label: Label, space: OrientationSpace
) -> Float[Array, ""]:
    """Minus the log-density [nat] of the label's equivalents, mixed, by a rotation-Laplace law.

    p(R) ∝ exp(-d) / d with d² = tr(S) - tr(A^T R), A = U S V^T being the 9 numbers: heavier tails
    and a sharper tip than matrix-Fisher, so that outliers pull less (Y. Yin et al., A Laplace-
    inspired distribution on SO(3), arXiv 2303.01743). `_TIP` is added to d², here and in the
    normalisation, so that the density stays finite.
    """
    a = output[:9].reshape(3, 3)
    s = proper_singular_values(a)
    square = s.sum() - jnp.einsum("ij,nij->n", a, equivalents(label, space))
    d = jnp.sqrt(jnp.maximum(square, 0.0) + _TIP)
    mixed = jax.nn.logsumexp(-d - jnp.log(d)) - jnp.log(len(d))
    return with_phases(log_laplace_constant(s) - mixed, output[9:], label, space)


def invariant_harmonics(
    output: Float[Array, " n_out"], label: Label, space: OrientationSpace
) -> Float[Array, ""]:
    """Squared distance of the output from the label's `embedding`, which equivalents share.

    The embedding is continuous over all orientations modulo symmetry, as no rotation matrix is.
    """
    phase = jnp.minimum(label.phase, space.n_phases - 1)
    target = embedding(label.orientation, space.operations[phase])
    loss = jnp.sum((output[: len(target)] - target) ** 2)
    return with_phases(loss, output[len(target) :], label, space)


def winner_takes_all(
    output: Float[Array, " n_out"], label: Label, space: OrientationSpace
) -> Float[Array, ""]:
    """Angle [rad] of the best of several rotations, and cross-entropy [nat] of saying which.

    As many quaternions and logits as `HYPOTHESES`. The winner alone learns, but for a share
    `_LOSERS` of all (C. Rupprecht et al., Learning in an uncertain world, arXiv 1612.00197), so
    that each can specialise on one of the rivals that regression averages.
    """
    rotations, logits, rest = hypotheses(output)
    angle = jax.vmap(symmetry.geodesic_angle, in_axes=(None, 0))
    angles = jax.vmap(lambda r: angle(r, equivalents(label, space)).min())(rotations)
    winner = jnp.argmin(angles)
    loss = (1 - _LOSERS) * angles[winner] + _LOSERS * angles.mean()
    return with_phases(loss - jax.nn.log_softmax(logits)[winner], rest, label, space)


def with_simulation(
    reflectors: Reflectors,
    wavelength: float,
    weight: float = 1.0,
    kernel: float = 0.08,
    sigma: float = 0.03,
) -> LossFn:
    """A loss that adds to `geodesic` how unlike the patterns of prediction and label are.

    `weight` times 1 - their correlation (`resemblance`), simulated kinematically: an orientation
    that shows the same disks is forgiven. One phase; `wavelength` in Å; `kernel`, `sigma` [1/Å]:
    size of a disk and width of the excitation error.
    """

    def loss(output, label, space):
        alike = resemblance(
            nine_numbers(output), label.orientation, reflectors, wavelength, kernel, sigma
        )
        return geodesic(output, label, space) + weight * (1.0 - alike)

    return loss


def resemblance(
    first: Float[Array, "3 3"],
    second: Float[Array, "3 3"],
    reflectors: Reflectors,
    wavelength: float,
    kernel: float,
    sigma: float,
) -> Float[Array, ""]:
    """Correlation, 0 … 1, of the kinematic patterns of two orientations, disks being Gaussians.

    Amplitudes |F|^(1/2) exp(-s² / 8σ²), the fourth root of intensities, weighted by |g| as in
    py4DSTEM's matching (C. Ophus et al., Microscopy and Microanalysis 28 (2022) 390).
    """
    strength = reflectors.intensity**0.25 * jnp.linalg.norm(reflectors.g, axis=1)

    def pattern(orientation):
        g = reflectors.g @ orientation
        s = excitation_error(g, wavelength)
        return g[:, :2], strength * jnp.exp(-(s**2) / (8 * sigma**2))

    def overlap(a, b):
        apart = jnp.sum((a[0][:, None] - b[0]) ** 2, axis=-1)
        return a[1] @ jnp.exp(-apart / (4 * kernel**2)) @ b[1]

    a, b = pattern(first), pattern(second)
    return overlap(a, b) / jnp.sqrt(jnp.maximum(overlap(a, a) * overlap(b, b), 1e-20))


def proper_singular_values(a: Float[Array, "3 3"]) -> Float[Array, " 3"]:
    """Singular values, largest first, the last with the sign of det(a): those of U S V^T with
    proper rotations U, V.

    Eigenvalues of R^T a, R being the rotation nearest a. The derivative needs eigenvectors alone,
    so that equal values do no harm.
    """
    stretch = jax.lax.stop_gradient(rotations.nearest_rotation(a)).T @ a
    return jnp.linalg.eigvalsh(0.5 * (stretch + stretch.T))[::-1]


def log_fisher_constant(s: Float[Array, " 3"]) -> Float[Array, ""]:
    """ln ∫ exp(tr(S R) - tr S) dR over the uniform measure, S diagonal with proper values `s`.

    An integral over one variable of Bessel functions (T. Lee, IEEE Trans. Automatic Control 63
    (2018) 3377, eq. 13); nodes lie dense where a concentrated law has its weight.
    """
    v, weight = _nodes(48)
    u = 1 - 2 * v**2
    bessel = i0e(0.5 * (s[0] - s[1]) * (1 - u)) * i0e(0.5 * (s[0] + s[1]) * (1 + u))
    return jnp.log(weight * 2 * v @ (bessel * jnp.exp((s[1] + s[2]) * (u - 1))))


def log_laplace_constant(s: Float[Array, " 3"]) -> Float[Array, ""]:
    """ln ∫ exp(-d) / d dR, d² = tr S - tr(S R) + TIP, over the uniform measure.

    For a turn by 2ψ about n, tr S - tr(S R) = 2 sin²ψ Σ n_i² (tr S - s_i), and the measure is
    4 / π sin²ψ dψ times the mean over n, of which one octant stands for all.
    """
    x, weight = _nodes(8)
    cosine, angle = x[:, None], 0.5 * np.pi * x
    sine = np.sqrt(1 - cosine**2)
    axis = np.stack(
        np.broadcast_arrays(sine * np.cos(angle), sine * np.sin(angle), cosine), axis=-1
    )
    v, radial = _nodes(40)
    psi = 0.5 * np.pi * v**2
    measure = 4 / np.pi * np.sin(psi) ** 2 * radial * np.pi * v
    square = 2 * jnp.asarray(axis**2, s.dtype) @ jnp.maximum(s.sum() - s, 0.0)
    d = jnp.sqrt(square[..., None] * np.sin(psi) ** 2 + _TIP)
    return jnp.log(jnp.einsum("i,j,k,ijk->", weight, weight, measure, jnp.exp(-d) / d))


def _nodes(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes and weights on 0 … 1."""
    node, weight = legendre.leggauss(n)
    return (0.5 * (node + 1)).astype(np.float32), (0.5 * weight).astype(np.float32)


class Loss(NamedTuple):
    """A loss and the head (of `HEADS`) whose output it takes."""

    function: LossFn
    head: str


LOSSES: dict[str, Loss] = {
    "grid_cross_entropy": Loss(grid_cross_entropy, head="grid"),
    "geodesic": Loss(geodesic, head="matrix"),
    "soft_geodesic": Loss(soft_geodesic, head="matrix"),
    "chordal": Loss(chordal, head="matrix"),
    "matrix_fisher": Loss(matrix_fisher, head="matrix"),
    "rotation_laplace": Loss(rotation_laplace, head="matrix"),
    "quaternion": Loss(quaternion_geodesic, head="quaternion"),
    "six_numbers": Loss(six_number_geodesic, head="six"),
    "invariant_harmonics": Loss(invariant_harmonics, head="harmonic"),
    "winner_takes_all": Loss(winner_takes_all, head="hypotheses"),
}

DEFAULT_LOSS = {
    "grid": "grid_cross_entropy",
    "matrix": "geodesic",
    "quaternion": "quaternion",
    "six": "six_numbers",
    "harmonic": "invariant_harmonics",
    "hypotheses": "winner_takes_all",
}
"""The loss of each head that is asked for without one."""


def find_loss(loss: str | Loss | LossFn, head: str) -> Loss:
    """A loss from its name, or from a function of one's own, whose output is that of `head`.

    Raises InputError for names and heads that there are not.
    """
    head = loss.head if isinstance(loss, Loss) else head
    if head not in HEADS:
        raise InputError(f"The head {head!r} is not known; give one of {', '.join(HEADS)}.")
    if not isinstance(loss, str):
        return loss if isinstance(loss, Loss) else Loss(loss, head)
    loss = loss or DEFAULT_LOSS[head]
    if loss not in LOSSES:
        raise InputError(f"The loss {loss!r} is not known; give one of {', '.join(LOSSES)}.")
    return LOSSES[loss]


def loss_name(loss: Loss) -> str:
    """The name in `LOSSES`, or that of a function of one's own with its module's."""
    for name, known in LOSSES.items():
        if known == loss:
            return name
    kind = loss.function if hasattr(loss.function, "__qualname__") else type(loss.function)
    return f"{kind.__module__}.{kind.__qualname__}"


def batched(loss: str | Loss) -> LossFn:
    """A loss, or that of a name, over a batch: (B, n_out), labels (B,), space → (B,).

    KeyError if the name is not known.
    """
    return jax.vmap((LOSSES[loss] if isinstance(loss, str) else loss).function, (0, 0, None))
