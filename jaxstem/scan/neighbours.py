# SPDX-License-Identifier: GPL-3.0-or-later
"""A posterior over the whole scan: neighbours as evidence.

Positions of one grain share an orientation, up to bending; across a boundary they do not. Each
position has *labels*: the candidates that its own pattern leaves, of all phases, and "no crystal",
with their log-odds. Two neighbours that are of one grain raise each other's belief in labels that
are alike, by at most `Coupling.same` [nat]: a Potts model on a grid of eight neighbours, whose
labels are alike to the degree of a Gaussian of their misorientation, and which belief propagation
solves nearly (J. S. Yedidia et al., in Exploring Artificial Intelligence in the New Millennium,
2003, p. 239). What a neighbour can add is bounded, so that a grain of one position stays if its
pattern is surer than that: of eight neighbours 6.8 times `Coupling.same`. How alike neighbours are,
and how much a grain bends, the scan itself says (`learnt`): where no neighbours are alike, nothing
is added.

Messages go one position a round, so that a belief depends on the positions within `Coupling.rounds`
of it and on no others: a scan may be worked on in tiles that overlap by as much (`tiles`).

Shapes: a scan of `ny` × `nx` positions, `C` candidates and `L = C + 1` labels of each, the last of
which is "no crystal"; labels come first, for processors work along the last axis.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

STEPS = ((0, 1), (1, 0), (1, 1), (1, -1))
"""From a position to the neighbours that come after it, in rows and columns."""


class Coupling(NamedTuple):
    """How alike neighbours are.

    spread: of their misorientation within a grain [rad]; same: log-odds that two neighbours are of
    one grain; nothing: that a neighbour of a position without a crystal has none.
    """

    spread: Float[Array, ""]
    same: Float[Array, ""]
    nothing: Float[Array, ""]


class Messages(NamedTuple):
    """What neighbours say of a position's labels: those before it, and those after it (`STEPS`)."""

    forward: Float[Array, "4 L ny nx"]
    backward: Float[Array, "4 L ny nx"]


def moved(x: Shaped[Array, "... ny nx"], step: tuple[int, int], outside: float) -> Array:
    """For each position what the one a step further has; `outside` where there is none."""
    down, right = step
    spare = [(max(-n, 0), max(n, 0)) for n in step]
    wide = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + spare, constant_values=outside)
    rows = slice(max(down, 0), max(down, 0) + x.shape[-2])
    return wide[..., rows, max(right, 0) : max(right, 0) + x.shape[-1]]


def squared_angles(
    a: Float[Array, "... 4 ny nx"],
    b: Float[Array, "... 4 ny nx"],
    phase: Int[Array, "... ny nx"],
    its_phase: Int[Array, "... ny nx"],
    operations: Float[Array, "P n 4"],
) -> Float[Array, "... ny nx"]:
    """Squared misorientation [rad²] of the orientations `a` and `b`, quaternions of these phases,
    whose other axes are broadcast: infinite between phases, and where one is missing (its phase
    below 0). Of an angle θ it is (2 sin θ/2)², which is its square where it is small.

    `operations`: the symmetry of each phase, as quaternions. a⁻¹ with b turned by an operation has
    as its real part the product of two quaternions, of which one is the operation.
    """
    (aw, ax, ay, az), (bw, bx, by, bz) = (jnp.moveaxis(q, -3, 0) for q in (a, b))
    w = aw * bw + ax * bx + ay * by + az * bz
    x = ax * bw - aw * bx - ay * bz + az * by
    y = ay * bw - aw * by - az * bx + ax * bz
    z = az * bw - aw * bz - ax * by + ay * bx
    square = jnp.full(w.shape, jnp.inf, w.dtype)
    for number, turns in enumerate(operations):
        cosine = 0.0
        for turn in turns:
            part = turn[0] * w + turn[1] * x + turn[2] * y + turn[3] * z
            cosine = jnp.maximum(cosine, jnp.abs(part))
        of_phase = 4.0 * (1.0 - jnp.minimum(jnp.square(cosine), 1.0))
        square = jnp.where((phase == number) & (its_phase == number), of_phase, square)
    return square


def squared_misorientations(
    quaternion: Float[Array, "C 4 ny nx"],
    phase: Int[Array, "C ny nx"],
    operations: Float[Array, "P n 4"],
) -> Float[Array, "4 C C ny nx"]:
    """`squared_angles` of each candidate of a position (second axis) and each of the position a
    step further (third).
    """

    def between(step):
        there, its_phase = moved(quaternion, step, 0.0), moved(phase, step, -1)
        return squared_angles(
            quaternion[:, None], there[None], phase[:, None], its_phase[None], operations
        )

    return jnp.stack([between(step) for step in STEPS])


def closeness(
    square: Float[Array, "4 C C ny nx"], coupling: Coupling
) -> Float[Array, "4 C C ny nx"]:
    """How alike two candidates are, 0 … 1, for neighbours of one grain, by their squared
    misorientation [rad²].
    """
    return jnp.exp(-0.5 / jnp.square(coupling.spread) * square)


def compatibility(
    square: Float[Array, "4 C C ny nx"],
    known: Bool[Array, "ny nx"],
    coupling: Coupling,
    diagonal: float,
) -> Float[Array, "4 L L ny nx"]:
    """By which factor two labels of neighbours are likelier than of positions far apart: one where
    either has none (`known`).
    """
    weight = jnp.asarray([diagonal if all(step) else 1.0 for step in STEPS])[:, None, None]
    alike = closeness(square, coupling)
    factor = 1.0 + jnp.expm1(weight * coupling.same)[..., None, None] * alike
    factor = jnp.pad(factor, ((0, 0), (0, 1), (0, 1), (0, 0), (0, 0)), constant_values=1.0)
    factor = factor.at[:, -1, -1].set(jnp.exp(weight * coupling.nothing))
    both = jnp.stack([known & moved(known, step, False) for step in STEPS])
    return jnp.where(both[:, None, None], factor, 1.0)


def beliefs(share: Float[Array, "L ny nx"], messages: Messages) -> Float[Array, "L ny nx"]:
    """Probabilities of labels from what the pattern alone says, `share`, and what neighbours do."""
    return _normalised(share * (messages.forward * messages.backward).prod(axis=0))


def _normalised(x: Float[Array, "... L ny nx"]) -> Float[Array, "... L ny nx"]:
    return x / x.sum(axis=-3, keepdims=True)


def beside(
    belief: Float[Array, "L ny nx"], messages: Messages, outside: float
) -> tuple[Float[Array, "4 L ny nx"], Float[Array, "4 L ny nx"]]:
    """Beliefs without what the other of a pair said: of a position, and of that a step further."""
    here = _normalised(belief / messages.backward)
    there = _normalised(belief / messages.forward)
    return here, _each_moved(there, outside)


def _each_moved(x: Float[Array, "4 L ny nx"], outside: float, sign: int = 1) -> Array:
    steps = [(sign * down, sign * right) for down, right in STEPS]
    return jnp.stack([moved(one, step, outside) for one, step in zip(x, steps, strict=True)])


def propagated(
    share: Float[Array, "L ny nx"],
    factor: Float[Array, "4 L L ny nx"],
    rounds: int,
    damping: float,
) -> tuple[Float[Array, "L ny nx"], Messages]:
    """Beliefs after so many rounds, and the messages; each round keeps the share `damping` of the
    one before.
    """
    even = 1.0 / len(share)

    def one(_, messages: Messages) -> Messages:
        here, there = beside(beliefs(share, messages), messages, even)
        forward = _normalised((factor * here[:, :, None]).sum(axis=1))
        backward = _normalised((factor * there[:, None]).sum(axis=2))
        new = Messages(_each_moved(forward, even, -1), backward)
        mix = lambda old, new: damping * old + (1.0 - damping) * new  # noqa: E731
        return jax.tree.map(mix, messages, new)

    silent = jnp.full((len(STEPS), *share.shape), even, share.dtype)
    messages = jax.lax.fori_loop(0, rounds, one, Messages(silent, silent))
    return beliefs(share, messages), messages


class PairSums(NamedTuple):
    """Over all pairs of neighbours: how many there are, of how many both are crystals, of these
    those of one grain and the sum of their squared misorientations [rad²]; of how many either has
    no crystal, and both.
    """

    pairs: Float[Array, ""]
    same: Float[Array, ""]
    squares: Float[Array, ""]
    either_nothing: Float[Array, ""]
    both_nothing: Float[Array, ""]


def pair_sums(
    factor: Float[Array, "4 L L ny nx"],
    belief: Float[Array, "L ny nx"],
    messages: Messages,
    square: Float[Array, "4 C C ny nx"],
    known: Bool[Array, "ny nx"],
    counted: Bool[Array, "ny nx"],
    coupling: Coupling,
    diagonal: float,
) -> PairSums:
    """What the beliefs say of pairs whose first position is `counted`."""
    here, there = beside(belief, messages, 0.0)
    both = jnp.stack([counted & known & moved(known, step, False) for step in STEPS])
    joint = factor * here[:, :, None] * there[:, None]
    joint = joint * both[:, None, None] / jnp.maximum(joint.sum(axis=(1, 2), keepdims=True), 1e-30)
    crystals = joint[:, :-1, :-1]
    weight = jnp.asarray([diagonal if all(step) else 1.0 for step in STEPS])
    raised = jnp.exp(weight * coupling.same)[:, None, None, None, None]
    alike = closeness(square, coupling)
    same = crystals * raised * alike / (1.0 + (raised - 1.0) * alike)
    both_nothing = joint[:, -1, -1].sum()
    either_nothing = joint[:, -1].sum() + joint[:, :, -1].sum() - both_nothing
    squares = (same * jnp.where(jnp.isinf(square), 0.0, square)).sum()
    return PairSums(crystals.sum(), same.sum(), squares, either_nothing, both_nothing)
