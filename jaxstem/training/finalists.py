# SPDX-License-Identifier: GPL-3.0-or-later
"""What trains alignment and judge: orientations near the truth, and what the network proposes.

Neither shares a parameter with the network, and few patterns are enough for them, so that a part of
each batch teaches them. The judge learns on the candidates that it will meet: those of the network
as it stands, aligned.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jaxstem.diffraction.material import Material
from jaxstem.network.alignment import Alignment, Lattices, misalignment, near
from jaxstem.orientation import symmetry
from jaxstem.orientation.space import OrientationSpace
from jaxstem.training.patterns import TrainingBatch
from jaxstem.verification.candidates import CandidateTables
from jaxstem.verification.finalists import GONE, Finalists, find_finalists

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
    """Loss [nat] of each pattern: `misalignment` of what is aligned from near the truth, and the
    cross-entropy of which finalist, or no crystal, is right. Where none is, the judge learns
    nothing. `keys` (B,) decide from where.
    """
    crystal = batch.label.phase < space.n_phases
    phase = jnp.minimum(batch.label.phase, space.n_phases - 1)
    operations = space.operations[phase]
    alignment = Alignment(material.wavelength, material.k_max)
    align = partial(alignment.apply, {"params": params["alignment"]})
    start = jax.vmap(near)(keys, batch.label.orientation)
    rounds = jax.vmap(lambda *one: align(*one, known))(batch.disks, batch.seen, start, phase)
    left = [jax.vmap(misalignment)(x, batch.label.orientation, operations) for x in rounds]
    apart = (left[-1] + _ROUND * sum(left[:-1])) * crystal

    final = finalists_of(params, material, n, batch, output, space, tables, known)
    angle = jax.vmap(jax.vmap(symmetry.misorientation, (0, None, None)))(
        final.orientation, batch.label.orientation, operations
    )
    right = (angle < RIGHT) & (final.phase == phase[:, None]) & crystal[:, None]
    right &= final.log_odds > GONE
    right = jnp.concatenate([right, ~crystal[:, None]], axis=1)
    odds = jnp.concatenate([final.log_odds, final.nothing[:, None]], axis=1)
    chosen = jax.nn.logsumexp(jnp.where(right, jax.nn.log_softmax(odds), -1e9), axis=1)
    return apart - jnp.where(right.any(axis=1), chosen, 0.0)
