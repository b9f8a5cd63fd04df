# SPDX-License-Identifier: GPL-3.0-or-later
"""What neighbours propose: their answers where a position has not thought of them itself.

At a boundary, or where few disks are seen, the truth is often missing among a pattern's own
candidates while a neighbour has found it. Such orientations are judged on the pattern that lacks
them (`inference.second_look`), so that they may win there.

Shapes: a scan of `ny` × `nx` positions, `C` candidates of each, the likeliest first, and `M`
proposals at most.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxstem.inference.verdict import Labels
from jaxstem.scan.neighbours import STEPS, moved, squared_angles
from jaxstem.verification.ranking import outdone

NEW = 2.5
"""How far [degrees] a proposal lies from all that a position has thought of."""


SURE = 0.99
"""What a pattern must believe of its likeliest label not to be asked about others."""


class Proposed(NamedTuple):
    """Orientations to be judged, and their phases; -1 where there is none."""

    quaternion: Float[Array, "ny nx M 4"]
    phase: Int[Array, "ny nx M"]


def propose(
    labels: Labels,
    operations: Float[Array, "P n 4"],
    n_proposals: int,
    others: Labels | None = None,
) -> Proposed:
    """For each position (ny, nx) the likeliest labels of its neighbours but for those that it has
    itself, first what the most of them are the surest of; none where it is `SURE` of its own.
    `operations`: the symmetry of each phase, as quaternions.

    Where `others` are given, what is proposed are their likeliest labels, first that of the
    position itself, whatever it has thought of.
    """
    own, own_phase, sure = _by_label(labels)
    around = [*STEPS, *((-down, -right) for down, right in STEPS)]
    best, best_phase, sureness = own, own_phase, sure
    if others is not None:
        around = [(0, 0), *around]
        best, best_phase, sureness = _by_label(others)
    theirs, phase, their_sureness = (
        jnp.stack([moved(x, step, outside) for step in around])
        for x, outside in ((best[0], 0.0), (best_phase[0], -1), (sureness, 0.0))
    )

    def near(q, of_phase):
        pair = theirs[:, None], q[None], phase[:, None], of_phase[None]
        return squared_angles(*pair, operations) < jnp.square(jnp.deg2rad(NEW))

    alike = near(theirs, phase)
    support = jnp.where(alike, their_sureness, 0.0).sum(axis=1)
    asks = (own_phase[0] >= 0) & (sure < SURE)
    left = asks & (phase >= 0)
    if others is None:
        left &= ~near(own, own_phase).any(axis=1)
    else:
        support = support.at[0].set(jnp.inf)
    taken = []
    for _ in range(n_proposals):
        best = jnp.argmax(jnp.where(left, support, -1.0), axis=0)
        is_best = left & (jnp.arange(len(around))[:, None, None] == best)
        quaternion = jnp.where(is_best[:, None], theirs, 0.0).sum(axis=0)
        taken.append((quaternion, jnp.where(is_best, phase + 1, 0).sum(axis=0) - 1))
        left &= ~(is_best[:, None] & alike).any(axis=0)
    quaternion, phase = (jnp.stack(x) for x in zip(*taken, strict=True))
    return Proposed(
        jnp.moveaxis(quaternion, (-2, -1), (0, 1)), jnp.moveaxis(phase, (-2, -1), (0, 1))
    )


def _by_label(labels: Labels):
    """Quaternions (C, 4, ny, nx), phases (C, ny, nx) and what is believed of the first (ny, nx)."""
    q, phase = (jnp.moveaxis(x, (0, 1), (-2, -1)) for x in (labels.quaternion, labels.phase))
    odds = jnp.append(labels.log_odds, labels.no_crystal[..., None], axis=-1)
    return q, phase, jnp.nan_to_num(jax.nn.softmax(odds)[..., 0])


def different(labels: Labels, operations: Float[Array, "P n 4"]) -> Labels:
    """The labels (ny, nx), one of those that climbed the same summit."""
    q, phase = (jnp.moveaxis(x, (0, 1), (-2, -1)) for x in (labels.quaternion, labels.phase))
    apart = jnp.sqrt(squared_angles(q[:, None], q[None], phase[:, None], phase[None], operations))
    gone = jax.vmap(jax.vmap(outdone))(jnp.moveaxis(apart, (-2, -1), (0, 1)), labels.log_odds)
    gone |= labels.phase < 0
    return labels._replace(
        phase=jnp.where(gone, -1, labels.phase),
        log_odds=jnp.where(gone, -jnp.inf, labels.log_odds),
    )
