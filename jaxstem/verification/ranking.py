# SPDX-License-Identifier: GPL-3.0-or-later
"""Which candidates are one and the same, which are best, and which stay in the running.

Shapes: `C` candidates of one pattern, `P` phases with `n` symmetry operations each.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxstem.orientation import rotations
from jaxstem.runtime.reductions import largest_of_rows

_SAME_SUMMIT = 0.02
"""How close [rad] two polished candidates lie that have climbed the same summit."""

BEHIND = 1e3
"""What is taken from the score of a candidate that comes after all that differ."""


class Forward(NamedTuple):
    """Reflections to simulate, of a crystal or near a candidate: g [1/Å] and 1/ξ [1/Å]."""

    g: Float[Array, "... M 3"]
    inverse_extinction: Float[Array, "... M"]


class Ranked(NamedTuple):
    """Verified candidates of a pattern.

    phase: index of the crystal; score: cosine, cut at one; log_likelihood [nat]; prior:
    log-probability that the network gave the mode from which the candidate came; thickness: the
    likeliest [Å], NaN where the theory does not tell it; log_evidence: ln of how much likelier it
    makes the pattern's counts than nothing [nat]; explained_light: share of the pattern's light
    that it explains; both None where counts were not looked at.
    """

    orientation: Float[Array, "C 3 3"]
    phase: Int[Array, " C"]
    score: Float[Array, " C"]
    log_likelihood: Float[Array, " C"]
    prior: Float[Array, " C"]
    thickness: Float[Array, " C"]
    log_evidence: Float[Array, " C"] | None = None
    explained_light: Float[Array, " C"] | None = None


def angles_to(
    q: Float[Array, "... 4"],
    orientation: Float[Array, "C 3 3"],
    phase: Int[Array, " C"],
    operations: Float[Array, "P n 3 3"],
) -> Float[Array, "... C"]:
    """Misorientations [rad] from orientations, given as quaternions, to each of the candidates, by
    that candidate's symmetry; `operations` are those of each phase.

    By quaternions, which is a fraction of the work with matrices, and good to 0.002 rad.
    """
    turns = rotations.matrix_to_quaternion(operations)[phase]
    equivalents = rotations.quaternion_multiply(
        turns, rotations.matrix_to_quaternion(orientation)[:, None]
    )
    # no matrix product: small ones take long, and near a turn of zero the cosine is all but one
    parts = zip(jnp.moveaxis(q, -1, 0), equivalents.T, strict=True)
    cosine = sum(one[..., None, None] * others for one, others in parts)
    return 2.0 * jnp.arccos(jnp.minimum(largest_of_rows(jnp.abs(cosine)), 1.0))


def angles_between(
    orientation: Float[Array, "C 3 3"],
    phase: Int[Array, " C"],
    operations: Float[Array, "P n 3 3"],
) -> Float[Array, "C C"]:
    """Misorientations [rad] of all pairs of candidates, infinite between phases."""
    apart = angles_to(rotations.matrix_to_quaternion(orientation), orientation, phase, operations)
    return jnp.where(phase[:, None] == phase, apart, jnp.inf)


def ahead(worth: Float[Array, " C"]) -> Bool[Array, "C C"]:
    """For each candidate (row) which others are worth more, or as much and come before."""
    index = jnp.arange(len(worth))
    return (worth > worth[:, None]) | ((worth == worth[:, None]) & (index < index[:, None]))


def outdone(
    apart: Float[Array, "C C"],
    worth: Float[Array, " C"],
    same: float | Float[Array, ""] = _SAME_SUMMIT,
) -> Bool[Array, " C"]:
    """Which candidates have climbed the same summit as one that is `ahead`; `apart` are the angles
    between them [rad], `same` those below which it is the same.
    """
    return ((apart < same) & ahead(worth)).any(axis=1)


class Candidates(NamedTuple):
    """Orientations to verify, their phases, their log-prior and the reflections near each."""

    orientation: Float[Array, "C 3 3"]
    phase: Int[Array, " C"]
    prior: Float[Array, " C"]
    forward: Forward


def keep_size(n: int, n_phases: int) -> int:
    """How many candidates `keep_best` keeps at most."""
    return n + (n_phases - 1) * (n // 2)


def keep_best(
    candidates: Candidates, score: Float[Array, " C"], n: int, n_phases: int
) -> tuple[Candidates, Float[Array, " kept"]]:
    """The best candidates and their scores: half of `n` of each phase, and half from all.

    So a phase that looks unlikely early stays in the race, and a likely one loses nothing: of one
    phase the best `n` are kept, and for each further one half as many more. All, if there are not
    so many.
    """
    size = keep_size(n, n_phases)
    if size >= len(score):
        return candidates, score
    phase = candidates.phase
    rank = jnp.sum(ahead(score) & (phase == phase[:, None]), axis=1)
    keep = jax.lax.top_k(jnp.where(rank < n // 2, jnp.inf, score), size)[1]
    return jax.tree.map(lambda x: x[keep], (candidates, score))
