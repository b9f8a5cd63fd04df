# SPDX-License-Identifier: GPL-3.0-or-later
"""What neighbours propose: their answers where a position has not thought of them itself.

At a boundary, or where few disks are seen, the truth is often missing among a pattern's own
candidates while a neighbour has found it. Such orientations are judged on the pattern that lacks
them (`inference.second_look`), so that they may win there.

Shapes: a scan of `ny` × `nx` positions, `C` candidates of each, the likeliest first, and `M`
proposals at most.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxstem.inference.verdict import Labels
from jaxstem.orientation import rotations
from jaxstem.scan.neighbours import STEPS, moved
from jaxstem.verification.ranking import angles_between, outdone

NEW = 2.5
"""How far [degrees] a proposal lies from all that a position has thought of."""


class Proposed(NamedTuple):
    """Orientations to be judged, and their phases; -1 where there is none."""

    quaternion: Float[Array, "ny nx M 4"]
    phase: Int[Array, "ny nx M"]


def _cosine(a: Float[Array, "4 ny nx"], turned: Float[Array, "n 4 ny nx"]) -> Array:
    """Cosine of half the misorientation; `turned` by the operations of its crystal."""
    return jnp.abs(sum(a[i] * turned[:, i] for i in range(4))).max(axis=0)


def propose(labels: Labels, operations: Float[Array, "P n 4"], n_proposals: int) -> Proposed:
    """For each position (ny, nx) the likeliest labels of its neighbours, surest first, without
    those that it has itself; `operations`: the symmetry of each phase, as quaternions.
    """
    last = lambda x: jnp.moveaxis(x, (0, 1), (-2, -1))  # noqa: E731
    own, own_phase = last(labels.quaternion), last(labels.phase)
    odds = jnp.append(labels.log_odds, labels.no_crystal[..., None], axis=-1)
    sure = jnp.nan_to_num(jax.nn.softmax(odds)[..., 0])
    looked_at = own_phase[0] >= 0

    def all_turned(q, phase):
        turns = jnp.moveaxis(operations[jnp.maximum(phase, 0)], (-2, -1), (0, 1))
        product = rotations.quaternion_multiply(
            jnp.moveaxis(turns, 1, -1), jnp.moveaxis(q, 0, -1)[None]
        )
        return jnp.moveaxis(product, -1, 1)

    around = [*STEPS, *((-a, -b) for a, b in STEPS)]
    order = jnp.argsort(-jnp.stack([moved(sure, step, 0.0) for step in around]), axis=0)

    def by_sureness(x, outside):
        found = jnp.stack([moved(x, step, outside) for step in around])
        index = order.reshape(order.shape[0], *[1] * (x.ndim - 2), *order.shape[1:])
        return jnp.take_along_axis(found, index, axis=0)

    theirs, their_phase = by_sureness(own[0], 0.0), by_sureness(own_phase[0], -1)
    close = jnp.cos(jnp.deg2rad(NEW) / 2)
    empty = jnp.zeros_like(own[0]), jnp.full_like(own_phase[0], -1)
    taken = [empty] * n_proposals
    number = jnp.zeros_like(own_phase[0])
    for q, phase in zip(theirs, their_phase, strict=True):
        turned = all_turned(q, phase)
        rivals = [*zip(own, own_phase, strict=True), *taken]
        known = [(p == phase) & (_cosine(rival, turned) > close) for rival, p in rivals]
        new = looked_at & (phase >= 0) & ~functools.reduce(jnp.logical_or, known)
        taken = [
            (jnp.where(new & (number == i), q, rival), jnp.where(new & (number == i), phase, p))
            for i, (rival, p) in enumerate(taken)
        ]
        number = number + new
    quaternion, phase = (jnp.stack(x) for x in zip(*taken, strict=True))
    return Proposed(
        jnp.moveaxis(quaternion, (-2, -1), (0, 1)), jnp.moveaxis(phase, (-2, -1), (0, 1))
    )


def different(labels: Labels, operations: Float[Array, "P n 3 3"]) -> Labels:
    """The labels (ny, nx), one of those that climbed the same summit."""

    def one(labels):
        exists = labels.phase >= 0
        orientation = rotations.quaternion_to_matrix(labels.quaternion)
        apart = angles_between(orientation, jnp.maximum(labels.phase, 0), operations)
        apart = jnp.where(exists[:, None] & exists, apart, jnp.inf)
        gone = outdone(apart, labels.log_odds) | ~exists
        return labels._replace(
            phase=jnp.where(gone, -1, labels.phase),
            log_odds=jnp.where(gone, -jnp.inf, labels.log_odds),
        )

    return jax.lax.map(jax.vmap(one), labels)
