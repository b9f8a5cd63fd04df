# SPDX-License-Identifier: GPL-3.0-or-later
"""A posterior over the whole scan: neighbours as evidence.

Positions of one grain share an orientation, up to bending; across a boundary they do not. Each
position has *labels*: the candidates that its own pattern leaves, of all phases, and "no crystal",
with their log-odds. Two neighbours that are of one grain raise each other's belief in labels that
are alike, by at most `Coupling.same` [nat]: a Potts model on a grid of eight neighbours, whose
labels are alike to the degree of a Gaussian of their misorientation, and which belief propagation
solves nearly (J. S. Yedidia et al., in Exploring Artificial Intelligence in the New Millennium,
2003, p. 239). What a neighbour can add is bounded, so that a grain of one position whose pattern is
sure of itself is not overruled. How alike neighbours are, and how much a grain bends, the scan
itself says (`learnt`): where no neighbours are alike, nothing is added.

Messages go one position a round, so that a belief depends on the positions within `Coupling.rounds`
of it and on no others: a scan may be worked on in strips that overlap by as much.

Shapes: a scan of `ny` × `nx` positions, `C` candidates and `L = C + 1` labels of each, the last of
which is "no crystal"; labels come first, for processors work along the last axis.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxstem.orientation import rotations

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


def misorientations(
    quaternion: Float[Array, "C 4 ny nx"],
    phase: Int[Array, "C ny nx"],
    operations: Float[Array, "P n 4"],
) -> Float[Array, "4 C C ny nx"]:
    """Misorientation [rad] of each candidate of a position (second axis) and each of the position a
    step further (third); infinite between phases, and where one is missing (its phase below 0).

    `operations`: the symmetry of each phase, as quaternions.
    """
    turned = rotations.quaternion_multiply(
        jnp.moveaxis(operations[jnp.maximum(phase, 0)], (-2, -1), (1, -1)),
        jnp.moveaxis(quaternion, 1, -1)[:, None],
    )
    turned = jnp.moveaxis(turned, -1, 2)

    def between(step):
        there, its_phase = moved(turned, step, 0.0), moved(phase, step, -1)
        cosine = sum(quaternion[:, None, None, i] * there[None, :, :, i] for i in range(4))
        angle = 2.0 * jnp.arccos(jnp.minimum(jnp.abs(cosine).max(axis=2), 1.0))
        alike = (phase[:, None] == its_phase) & (its_phase >= 0)
        return jnp.where(alike, angle, jnp.inf)

    return jnp.stack([between(step) for step in STEPS])


def closeness(
    angle: Float[Array, "4 C C ny nx"], coupling: Coupling
) -> Float[Array, "4 C C ny nx"]:
    """How alike two candidates are, 0 … 1, for neighbours of one grain."""
    return jnp.exp(-0.5 * jnp.square(angle / coupling.spread))


def compatibility(
    angle: Float[Array, "4 C C ny nx"],
    known: Bool[Array, "ny nx"],
    coupling: Coupling,
    diagonal: float,
) -> Float[Array, "4 L L ny nx"]:
    """By which factor two labels of neighbours are likelier than of positions far apart: one where
    either has none (`known`).
    """
    weight = jnp.asarray([diagonal if all(step) else 1.0 for step in STEPS])[:, None, None]
    alike = closeness(angle, coupling)
    factor = 1.0 + jnp.expm1(weight * coupling.same)[..., None, None] * alike
    factor = jnp.pad(factor, ((0, 0), (0, 1), (0, 1), (0, 0), (0, 0)), constant_values=1.0)
    factor = factor.at[:, -1, -1].set(jnp.exp(weight * coupling.nothing))
    both = jnp.stack([known & moved(known, step, False) for step in STEPS])
    return jnp.where(both[:, None, None], factor, 1.0)


def beliefs(share: Float[Array, "L ny nx"], messages: Messages) -> Float[Array, "L ny nx"]:
    """Probabilities of labels from what the pattern alone says, `share`, and what neighbours do."""
    for message in (*messages.forward, *messages.backward):
        share = share * message
    return _normalised(share)


def _normalised(x: Float[Array, "L ny nx"]) -> Float[Array, "L ny nx"]:
    return x / x.sum(axis=0)


def without(belief: Float[Array, "L ny nx"], message: Float[Array, "L ny nx"]) -> Array:
    """A belief without what one neighbour said."""
    return _normalised(belief / message)


def propagated(
    share: Float[Array, "L ny nx"],
    factor: Float[Array, "4 L L ny nx"],
    rounds: int,
    damping: float,
) -> tuple[Float[Array, "L ny nx"], Messages]:
    """Beliefs after so many rounds, and the messages; each round keeps the share `damping` (of its
    logarithm) of the one before.
    """
    n_labels = len(share)
    even = 1.0 / n_labels

    def one(_, messages: Messages) -> Messages:
        belief = beliefs(share, messages)
        forward, backward = [], []
        for number, step in enumerate(STEPS):
            here = without(belief, messages.backward[number])
            there = moved(without(belief, messages.forward[number]), step, even)
            on = _normalised(sum(factor[number, a] * here[a] for a in range(n_labels)))
            back = sum(factor[number, :, b] * there[b] for b in range(n_labels))
            forward.append(moved(on, (-step[0], -step[1]), even))
            backward.append(_normalised(back))
        new = Messages(jnp.stack(forward), jnp.stack(backward))
        mixed = jax.tree.map(lambda old, new: old**damping * new ** (1.0 - damping), messages, new)
        return Messages(*(x / x.sum(axis=1, keepdims=True) for x in mixed))

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
    one_nothing: Float[Array, ""]
    both_nothing: Float[Array, ""]


def pair_sums(
    belief: Float[Array, "L ny nx"],
    messages: Messages,
    angle: Float[Array, "4 C C ny nx"],
    factor: Float[Array, "4 L L ny nx"],
    known: Bool[Array, "ny nx"],
    counted: Bool[Array, "ny nx"],
    coupling: Coupling,
    diagonal: float,
) -> PairSums:
    """What the beliefs say of pairs whose first position is `counted`."""
    alike = closeness(angle, coupling)
    sums = []
    for number, step in enumerate(STEPS):
        here = without(belief, messages.backward[number])
        there = moved(without(belief, messages.forward[number]), step, 0.0)
        joint = factor[number] * here[:, None] * there[None]
        both = (counted & known & moved(known, step, False)).astype(joint.dtype)
        joint = both * joint / jnp.maximum(joint.sum(axis=(0, 1)), 1e-30)
        raised = jnp.exp((diagonal if all(step) else 1.0) * coupling.same)
        grown = raised * alike[number] / (1.0 + (raised - 1.0) * alike[number])
        same = joint[:-1, :-1] * grown
        square = jnp.square(jnp.where(jnp.isinf(angle[number]), 0.0, angle[number]))
        nothing = joint[-1].sum() + joint[:, -1].sum()
        parts = joint[:-1, :-1].sum(), same.sum(), (same * square).sum()
        sums.append((*parts, nothing - joint[-1, -1].sum(), joint[-1, -1].sum()))
    return PairSums(*(sum(x) for x in zip(*sums, strict=True)))
