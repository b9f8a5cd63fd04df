# SPDX-License-Identifier: GPL-3.0-or-later
"""A learned judge of candidates: how well what an orientation predicts goes with a pattern's disks.

The network ranks cells by patterns as a whole; where two orientations differ by a few faint disks,
by a half turn about the beam above all, it guesses. The judge looks at each candidate, aligned with
the disks (`alignment.py`), reflection by reflection: those that it predicts, with the disk found
there or with none, and the disks that none of them explains. Each adds its evidence, a function of
what does not change when crystal and pattern turn about the beam together, and of the mean over
all of them, which tells thickness and exposure. Nothing in it names a crystal.

Shapes: `K` disks of a pattern, `M` reflections that a candidate may excite.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxstem.diffraction.geometry import Disks, excitation_error
from jaxstem.network.tokens import Sight, relative_intensity

_HIDDEN = 24

SAME = 0.06
"""Within which [1/Å] a disk is that of a reflection."""


class Predicted(NamedTuple):
    """Reflections that an orientation may excite: g [1/Å, crystal Cartesian] and 1/ξ_g [1/Å]."""

    g: Float[Array, "M 3"]
    inverse_extinction: Float[Array, " M"]


class Judge(nn.Module):
    """`wavelength` in Å, `k_max` in 1/Å."""

    wavelength: float | Array
    k_max: float

    @nn.compact
    def __call__(
        self, disks: Disks, seen: Sight, orientation: Float[Array, "3 3"], predicted: Predicted
    ) -> Float[Array, ""]:
        """Evidence [nat] for one candidate, up to what all candidates of a pattern share."""
        squashed = lambda x, scale: x / (jnp.abs(x) + scale)  # noqa: E731
        g = predicted.g @ orientation
        error = excitation_error(g, self.wavelength)
        radius = _length(g[:, 0], g[:, 1])
        apart = _length(g[:, None, 0] - disks.qx, g[:, None, 1] - disks.qy)
        apart = jnp.where(disks.mask, apart, jnp.inf)
        nearest = jnp.argmin(apart, axis=1)
        distance = jnp.take_along_axis(apart, nearest[:, None], axis=1)[:, 0]
        level = jnp.log(jnp.maximum(relative_intensity(disks), 1e-4))
        there = distance < SAME
        inside = radius < jnp.minimum(seen.reach, self.k_max)
        strength = jnp.log(jnp.maximum(predicted.inverse_extinction, 1e-6) / 2e-3)
        at = lambda x: jnp.where(there, x, 0.0)  # noqa: E731
        of_reflections = jnp.stack(
            [
                there,
                at(squashed(distance, 0.02)),
                at(level[nearest]) / 5.0,
                *(squashed(error, scale) for scale in (0.003, 0.01, 0.04)),
                squashed(error, 0.01) ** 2,
                strength / 2.0,
                jnp.log(error**2 + predicted.inverse_extinction**2 + 1e-8) / 4.0 + 2.0,
                radius / self.k_max,
            ],
            axis=-1,
        )
        explained = jnp.where(inside[:, None], apart, jnp.inf).min(axis=0)
        place = _length(disks.qx, disks.qy)
        of_disks = jnp.stack(
            [
                explained < SAME,
                squashed(jnp.minimum(explained, 1.0), SAME),
                level / 5.0,
                place / self.k_max,
            ],
            axis=-1,
        )
        alike = jnp.stack([seen.faintest, seen.brightest]) / 5.0
        by_reflections = _Evidence(name="reflections")(of_reflections, alike, inside)
        return by_reflections + _Evidence(name="disks")(of_disks, alike, disks.mask)


def _length(x, y):
    """Quicker on a processor than `hypot`."""
    return jnp.sqrt(x**2 + y**2 + 1e-12)


class _Evidence(nn.Module):
    """The sum over tokens of what each says, knowing the mean of all."""

    @nn.compact
    def __call__(self, features, alike, counts):
        alike = jnp.broadcast_to(alike, (len(features), 2))
        hidden = nn.relu(nn.Dense(_HIDDEN)(jnp.concatenate([features, alike], axis=-1)))
        share = counts / jnp.maximum(counts.sum(), 1)
        mean = nn.Dense(_HIDDEN)(share @ hidden)
        hidden = nn.relu(nn.Dense(_HIDDEN)(hidden) + mean)
        each = nn.Dense(1, kernel_init=nn.initializers.zeros)(hidden)[:, 0]
        return jnp.sum(jnp.where(counts, each, 0.0))
