# SPDX-License-Identifier: GPL-3.0-or-later
"""Losses between the network's output for a pattern and what the pattern truly shows.

A loss is a pure function of one pattern, `(output, label, space) -> scalar`: `output` is what the
head gave (a logit for each cell of the orientation grid and a last one for no crystal; or nine
numbers, followed by a logit for each phase where there are several), `label` the true phase and
orientation, `space` the symmetries and the grid. `batched` vmaps it. To add a loss, write the
function and name it in `LOSSES`, with the head that it wants.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxstem import so3
from jaxstem.grid import Label, OrientationSpace, soft_labels

PHASE_SHARE = 0.1
"""Share of the phases' cross-entropy in the nine-number head's loss (arXiv 2602.12420)."""


def grid_cross_entropy(
    output: Float[Array, " n_out"], label: Label, space: OrientationSpace
) -> Float[Array, ""]:
    """Cross-entropy [nat] between the soft label and the distribution of the logits."""
    outcome, target = jax.lax.stop_gradient(soft_labels(label, space))
    return jax.nn.logsumexp(output) - target @ output[outcome]


def geodesic(
    output: Float[Array, " n_out"], label: Label, space: OrientationSpace
) -> Float[Array, ""]:
    """Symmetry-minimum geodesic angle [rad] between the rotation nearest the 9 numbers and label.

    min over O of the angle of R^T O·label, by atan2 (Je et al., arXiv 2602.12420), O running over
    the operations of the true phase. The gradient is that of the operation that attains the
    minimum. Of several phases the cross-entropy [nat] is added: 0.9 and 0.1 parts, as published
    for two. A pattern without crystal counts for nothing: this head cannot say so.
    """
    phase = jnp.minimum(label.phase, space.n_phases - 1)
    rotation = so3.nearest_rotation(output[:9].reshape(3, 3))
    angle = lambda operation: so3.geodesic_angle(rotation, operation @ label.orientation)  # noqa: E731
    loss = jax.vmap(angle)(space.operations[phase]).min()
    if space.n_phases > 1:
        wrong_phase = -jax.nn.log_softmax(output[9:])[phase]
        loss = (1 - PHASE_SHARE) * loss + PHASE_SHARE * wrong_phase
    return jnp.where(label.phase < space.n_phases, loss, 0.0)


LossFn = Callable[[Float[Array, " n_out"], Label, OrientationSpace], Float[Array, ""]]


class Loss(NamedTuple):
    """A loss and the head ("grid" or "matrix") whose output it takes."""

    function: LossFn
    head: str


LOSSES: dict[str, Loss] = {
    "grid_cross_entropy": Loss(grid_cross_entropy, head="grid"),
    "geodesic": Loss(geodesic, head="matrix"),
}

DEFAULT_LOSS = {"grid": "grid_cross_entropy", "matrix": "geodesic"}


def batched(name: str) -> LossFn:
    """The named loss over a batch: (B, n_out), labels (B,), space → (B,). KeyError if unknown."""
    return jax.vmap(LOSSES[name].function, in_axes=(0, 0, None))
