# SPDX-License-Identifier: GPL-3.0-or-later
"""Losses between the network's output for a pattern and the pattern's true orientation.

A loss is a pure function of one pattern, `(output, label, space) -> scalar`: `output` is what the
head gave (nine numbers, or a logit for each cell of the orientation grid), `label` the true
orientation matrix, `space` the symmetry and the grid. `batched` vmaps it. To add a loss, write the
function and name it in `LOSSES`, with the head that it wants.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
from jaxtyping import Array, Float

from jaxstem import so3
from jaxstem.grid import OrientationSpace, soft_labels


def grid_cross_entropy(
    output: Float[Array, " n_cells"], label: Float[Array, "3 3"], space: OrientationSpace
) -> Float[Array, ""]:
    """Cross-entropy [nat] between the soft label and the distribution of the logits."""
    near, target = jax.lax.stop_gradient(soft_labels(label, space))
    return jax.nn.logsumexp(output) - target @ output[near]


def geodesic(
    output: Float[Array, " 9"], label: Float[Array, "3 3"], space: OrientationSpace
) -> Float[Array, ""]:
    """Symmetry-minimum geodesic angle [rad] between the rotation nearest the 9 numbers and label.

    min over O of the angle of R^T O·label, by atan2 (Je et al., arXiv 2602.12420). The gradient is
    that of the operation that attains the minimum.
    """
    rotation = so3.nearest_rotation(output.reshape(3, 3))
    angle = lambda operation: so3.geodesic_angle(rotation, operation @ label)  # noqa: E731
    return jax.vmap(angle)(space.operations).min()


LossFn = Callable[[Float[Array, " n_out"], Float[Array, "3 3"], OrientationSpace], Float[Array, ""]]


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
    """The named loss over a batch: (B, n_out), (B, 3, 3), space → (B,). KeyError if unknown."""
    return jax.vmap(LOSSES[name].function, in_axes=(0, 0, None))
