# SPDX-License-Identifier: GPL-3.0-or-later
"""Losses between the network's output for a pattern and what the pattern truly shows.

A loss is a pure function of one pattern, `(output, label, space) -> scalar`: `output` is what the
head gave, `label` the true phase and orientation, `space` the symmetries and the grid. `batched`
vmaps it. `HEADS` says how many numbers an output has and which orientation it stands for; `LOSSES`
names the losses, each with the head whose output it takes. To add a loss, write the function and
name it in `LOSSES` (docs/losses.md).

The heads' outputs: "grid" has a logit for each cell of the orientation grid and a last one for no
crystal. The others have the numbers of an orientation, and of several phases a logit for each
after them; they cannot say that there is no crystal, so that such patterns count for nothing.

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
from numpy.polynomial import Legendre, Polynomial, legendre

from jaxstem import so3
from jaxstem.grid import Label, OrientationSpace, soft_labels
from jaxstem.kinematic import Reflectors, excitation_error

PHASE_SHARE = 0.1
"""Share of the phases' cross-entropy in the loss of a head without grid (arXiv 2602.12420)."""

TEMPERATURE = 0.1
"""Angle [rad] over which the soft minimum mixes equivalents."""

TIP = 1e-2
"""Rounds the tip of the rotation-Laplace density, in its exponent's square."""

DEGREES = (4, 6)
"""Of the invariant harmonics: together they tell orientations apart in every Laue group."""

SEED = np.array([0.95, 0.1, 0.3]) / np.linalg.norm([0.95, 0.1, 0.3])
"""Crystal direction, on no element of symmetry, that is averaged into the invariant harmonics."""

HYPOTHESES = 8
LOSERS = 0.05
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
        loss = (1 - PHASE_SHARE) * loss + PHASE_SHARE * wrong_phase
    return jnp.where(label.phase < space.n_phases, loss, 0.0)


def geodesic(
    output: Float[Array, " n_out"], label: Label, space: OrientationSpace
) -> Float[Array, ""]:
    """Symmetry-minimum geodesic angle [rad] between the rotation nearest the 9 numbers and label.

    min over O of the angle of R^T O·label, by atan2 (Je et al., arXiv 2602.12420); the nearest
    rotation is that of the SVD (Levinson et al., An analysis of SVD for deep rotation estimation,
    arXiv 2006.14616). The gradient is that of the operation that attains the minimum.
    """
    return _nearest(so3.geodesic_angle, nine_numbers(output), output[9:], label, space)


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
    rotation = so3.quaternion_to_matrix(output[:4])
    return _nearest(so3.geodesic_angle, rotation, output[4:], label, space)


def six_number_geodesic(
    output: Float[Array, " n_out"], label: Label, space: OrientationSpace
) -> Float[Array, ""]:
    """Symmetry-minimum geodesic angle [rad] of the rotation that `gram_schmidt` makes."""
    return _nearest(so3.geodesic_angle, gram_schmidt(output[:6]), output[6:], label, space)


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
    angle = jax.vmap(so3.geodesic_angle, in_axes=(None, 0))
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
    inspired distribution on SO(3), arXiv 2303.01743). `TIP` is added to d², here and in the
    normalisation, so that the density stays finite.
    """
    a = output[:9].reshape(3, 3)
    s = proper_singular_values(a)
    square = s.sum() - jnp.einsum("ij,nij->n", a, equivalents(label, space))
    d = jnp.sqrt(jnp.maximum(square, 0.0) + TIP)
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
    `LOSERS` of all (C. Rupprecht et al., Learning in an uncertain world, arXiv 1612.00197), so that
    each can specialise on one of the rivals that regression averages.
    """
    rotations, logits, rest = hypotheses(output)
    angle = jax.vmap(so3.geodesic_angle, in_axes=(None, 0))
    angles = jax.vmap(lambda r: angle(r, equivalents(label, space)).min())(rotations)
    winner = jnp.argmin(angles)
    loss = (1 - LOSERS) * angles[winner] + LOSERS * angles.mean()
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


def nine_numbers(output: Float[Array, " n_out"]) -> Float[Array, "3 3"]:
    """The rotation nearest to the first nine numbers."""
    return so3.nearest_rotation(output[:9].reshape(3, 3))


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


def proper_singular_values(a: Float[Array, "3 3"]) -> Float[Array, " 3"]:
    """Singular values, largest first, the last with the sign of det(a): those of U S V^T with
    proper rotations U, V.

    Eigenvalues of R^T a, R being the rotation nearest a. The derivative needs eigenvectors alone,
    so that equal values do no harm.
    """
    stretch = jax.lax.stop_gradient(so3.nearest_rotation(a)).T @ a
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
    d = jnp.sqrt(square[..., None] * np.sin(psi) ** 2 + TIP)
    return jnp.log(jnp.einsum("i,j,k,ijk->", weight, weight, measure, jnp.exp(-d) / d))


def _nodes(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes and weights on 0 … 1."""
    node, weight = legendre.leggauss(n)
    return (0.5 * (node + 1)).astype(np.float32), (0.5 * weight).astype(np.float32)


def embedding(
    orientation: Float[Array, "3 3"], operations: Float[Array, "n 3 3"]
) -> Float[Array, " n_harmonics"]:
    """Coefficients, in the lab frame, of functions on the sphere that the crystal's symmetry keeps.

    For each degree l of `DEGREES` the 2l + 1 coefficients of Σ_O P_l(v · (O R)^T `SEED`), as a unit
    vector: by the addition theorem those of the averaged spherical harmonic Y_l (H.-J. Bunge,
    Texture Analysis in Materials Science, 1982, section 14.2). Their length does not depend on R.
    """
    directions = jnp.asarray(SEED, orientation.dtype) @ (operations @ orientation)
    parts = []
    for degree in DEGREES:
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
    cells = so3.quaternion_to_matrix(space.cells)
    like = jax.vmap(lambda r: embedding(r, operations) @ wanted)(cells)
    start = cells[jnp.argmax(jnp.where(space.phase == phase, like, -jnp.inf))]
    turned = lambda w: start @ so3.rotation_vector_to_matrix(w)  # noqa: E731
    slope = jax.grad(lambda w: embedding(turned(w), operations) @ wanted)
    return turned(jax.lax.fori_loop(0, 12, lambda _, w: w + 0.05 * slope(w), jnp.zeros(3)))


def hypotheses(
    output: Float[Array, " n_out"],
) -> tuple[Float[Array, "H 3 3"], Float[Array, " H"], Float[Array, " n_rest"]]:
    """Rotations, their logits, and what follows."""
    quaternions, logits, rest = jnp.split(output, [4 * HYPOTHESES, 5 * HYPOTHESES])
    return so3.quaternion_to_matrix(quaternions.reshape(-1, 4)), logits, rest


def _phase(logits: Float[Array, " n_logits"], space: OrientationSpace):
    return jnp.argmax(logits) if space.n_phases > 1 else 0


def _best_cell(output: Float[Array, " n_out"], space: OrientationSpace) -> Float[Array, "3 3"]:
    return so3.quaternion_to_matrix(space.cells[jnp.argmax(output[:-1])])


def _best_hypothesis(output, _) -> Float[Array, "3 3"]:
    rotations, logits, _ = hypotheses(output)
    return rotations[jnp.argmax(logits)]


class Head(NamedTuple):
    """What an output is made of, and how an orientation is read from it.

    numbers: of an orientation, None for a logit for each cell; orientation: `(output, space)` to
    the likeliest orientation.
    """

    numbers: int | None
    orientation: Callable[[Float[Array, " n_out"], OrientationSpace], Float[Array, "3 3"]]

    def n_out(self, space: OrientationSpace) -> int:
        """How many outputs the network needs for this space."""
        if self.numbers is None:
            return len(space.cells) + 1
        return self.numbers + (space.n_phases if space.n_phases > 1 else 0)


N_HARMONICS = sum(2 * degree + 1 for degree in DEGREES)

HEADS: dict[str, Head] = {
    "grid": Head(None, _best_cell),
    "matrix": Head(9, lambda output, _: nine_numbers(output)),
    "quaternion": Head(4, lambda output, _: so3.quaternion_to_matrix(output[:4])),
    "six": Head(6, lambda output, _: gram_schmidt(output[:6])),
    "harmonic": Head(N_HARMONICS, from_embedding),
    "hypotheses": Head(5 * HYPOTHESES, _best_hypothesis),
}


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

DEFAULT_LOSS = {"grid": "grid_cross_entropy", "matrix": "geodesic"}
"""For each head that models come with."""


def batched(name: str) -> LossFn:
    """The named loss over a batch: (B, n_out), labels (B,), space → (B,). KeyError if unknown."""
    return jax.vmap(LOSSES[name].function, in_axes=(0, 0, None))
