# SPDX-License-Identifier: GPL-3.0-or-later
"""What trains alignment and judge: orientations near the truth, and what the network proposes.

Neither shares a parameter with the network, and few patterns are enough for them, so that a part of
each batch teaches them. The judge learns on the candidates that it will meet: those of the network
as it stands, aligned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Key

from jaxstem.diffraction.geometry import Disks
from jaxstem.diffraction.material import Material
from jaxstem.network.alignment import Alignment, Lattices, misalignment, near
from jaxstem.network.tokens import Sight
from jaxstem.orientation import symmetry
from jaxstem.orientation.space import Label, OrientationSpace
from jaxstem.training.patterns import TrainingBatch
from jaxstem.verification.candidates import CandidateTables
from jaxstem.verification.finalists import (
    GONE,
    Finalists,
    find_finalists,
    proposed,
    settled,
)
from jaxstem.verification.ranking import Candidates

RIGHT = np.deg2rad(4.0)
"""How near the truth a candidate is right."""

_ROUND = 0.2
"""Weight of an alignment's earlier rounds beside the last."""


def finalists_of(
    params: Any,
    material: Material,
    n: int,
    batch: TrainingBatch,
    output: Float[Array, "B n_out"],
    space: OrientationSpace,
    tables: Sequence[CandidateTables],
    known: Lattices,
) -> Finalists:
    """The `n` finalists of each pattern; `output` is the network's."""
    of_all = params, material.wavelength, material.k_max, n

    def one(output, disks, seen):
        log_probability = jax.nn.log_softmax(output)
        return find_finalists(
            *of_all, log_probability, disks, seen, tables, known, space.operations
        )

    return jax.vmap(one)(output, batch.disks, batch.seen)


def pattern_loss(
    params: Any,
    wavelength: Float[ArrayLike, ""],
    k_max: float,
    found: Candidates,
    nothing: Float[Array, ""],
    disks: Disks,
    seen: Sight,
    label: Label,
    known: Lattices,
    operations: Float[Array, "P n 3 3"],
    key: Key[Array, ""],
) -> Float[Array, ""]:
    """Loss [nat] of one pattern (K,) of which candidates were `found`, and `nothing` thought of no
    crystal: `misalignment` of what is aligned from near the truth, and the cross-entropy of which
    finalist, or no crystal (a phase beyond all others), is right. Where none is, the judge learns
    nothing. `key` decides from where; `wavelength` in Å, `k_max` in 1/Å.
    """
    crystal = label.phase < len(operations)
    phase = jnp.minimum(label.phase, len(operations) - 1)
    own = operations[phase]
    start = near(key, label.orientation)
    aligner = {"params": params["alignment"]}
    rounds = Alignment(wavelength, k_max).apply(aligner, disks, seen, start, phase, known)
    left = [misalignment(x, label.orientation, own) for x in rounds]
    apart = (left[-1] + _ROUND * sum(left[:-1])) * crystal

    final = settled(params, wavelength, k_max, found, nothing, disks, seen, known, operations)
    angle = jax.vmap(symmetry.misorientation, (0, None, None))(
        final.orientation, label.orientation, own
    )
    right = (angle < RIGHT) & (final.phase == phase) & crystal & (final.log_odds > GONE)
    right = jnp.append(right, ~crystal)
    odds = jnp.append(final.log_odds, final.nothing)
    chosen = jax.nn.logsumexp(jnp.where(right, jax.nn.log_softmax(odds), -1e9))
    return apart - jnp.where(right.any(), chosen, 0.0)


def finalists_loss(
    params: Any,
    material: Material,
    n: int,
    batch: TrainingBatch,
    output: Float[Array, "B n_out"],
    space: OrientationSpace,
    tables: Sequence[CandidateTables],
    known: Lattices,
    keys: Key[Array, " B"],
) -> Float[Array, " B"]:
    """`pattern_loss` of each pattern, the `n` candidates being those of the network's `output`."""

    def one(output, disks, seen, label, key):
        log_probability = jax.nn.log_softmax(output)
        found = proposed(log_probability[:-1], tables, n)
        given = found, log_probability[-1], disks, seen, label, known, space.operations, key
        return pattern_loss(params, material.wavelength, material.k_max, *given)

    return jax.vmap(one)(output, batch.disks, batch.seen, batch.label, keys)
