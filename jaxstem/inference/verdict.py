# SPDX-License-Identifier: GPL-3.0-or-later
"""From verified candidates to an answer with its confidence.

The verdict is one distribution over the candidates of all phases and "no crystal": the likeliest
phase is reported, its best candidate, and as confidence the probability of those within five
degrees of it. Shapes: `C` candidates of one pattern, `P` phases.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxstem.files.orientation_map import NO_CRYSTAL, UNASSIGNED
from jaxstem.inference.config import InferConfig
from jaxstem.orientation import rotations
from jaxstem.verification.ranking import Ranked, angles_between, angles_to, outdone

WITHIN = np.deg2rad(5.0)


class Answer(NamedTuple):
    """What a pattern is reported as; leading axes are the patterns'.

    phase: index of the crystal, or NO_CRYSTAL, with NaN as orientation and score; confidence:
    probability that the phase is right and the truth within 5° (NaN where it is not known: a
    nine-number network alone); confidence_mod180: the same, the turn by 180° about the beam
    counting too; phase_confidence: probability of the phase. second_*: the best candidate that is
    of another phase or more than 5° from the answer; thickness [Å], where Bloch waves told it;
    log_evidence [nat] and explained_light (0 … 1) as in `Ranked`, NaN where counts did not judge.
    """

    orientation: Float[Array, "... 3 3"]
    phase: Int[Array, "..."]
    score: Float[Array, "..."]
    confidence: Float[Array, "..."]
    confidence_mod180: Float[Array, "..."]
    phase_confidence: Float[Array, "..."]
    second_orientation: Float[Array, "... 3 3"]
    second_phase: Int[Array, "..."]
    second_score: Float[Array, "..."]
    thickness: Float[Array, "..."]
    log_evidence: Float[Array, "..."]
    explained_light: Float[Array, "..."]


def summarise(
    ranked: Ranked,
    no_crystal: Float[Array, ""],
    operations: Float[Array, "P n 3 3"],
    config: InferConfig,
) -> Answer:
    """The answer, its confidence and the runner-up from the verified candidates of one pattern.

    `no_crystal` is its log-probability by the network; its likelihood is that of false disks alone,
    to which those of the candidates are relative.
    """
    n_phases = len(operations)
    apart = angles_between(ranked.orientation, ranked.phase, operations)
    log_odds = config.log_odds(ranked.log_likelihood, ranked.prior, ranked.log_evidence)
    by_counts = None if ranked.log_evidence is None else config.counts_chance
    of_none = config.log_odds(config.chance, no_crystal, by_counts)
    again = outdone(apart, log_odds)
    share = jax.nn.softmax(jnp.append(jnp.where(again, -jnp.inf, log_odds), of_none))
    member = jnp.append(ranked.phase, n_phases) == jnp.arange(n_phases + 1)[:, None]
    of_phase = jnp.sum(jnp.where(member, share, 0.0), axis=1)
    phase = jnp.argmax(of_phase)
    none = phase == n_phases

    best = jnp.argmax(jnp.where(ranked.phase == phase, log_odds, -jnp.inf))
    answer = ranked.orientation[best]
    right_phase = ranked.phase == phase
    same = (apart[best] < WITHIN) & right_phase
    turned = answer @ jnp.asarray(rotations.HALF_TURN_ABOUT_BEAM, answer.dtype)
    from_turned = angles_to(
        rotations.matrix_to_quaternion(turned), ranked.orientation, ranked.phase, operations
    )
    same_mod180 = same | ((from_turned < WITHIN) & right_phase)

    def probability(which):
        return jnp.where(none, of_phase[phase], jnp.sum(jnp.where(which, share[:-1], 0.0)))

    second = jnp.argmax(jnp.where(same, -jnp.inf, log_odds))
    has_second = jnp.any(~same)
    nan = jnp.asarray(jnp.nan, answer.dtype)
    return Answer(
        jnp.where(none, nan, answer),
        jnp.where(none, NO_CRYSTAL, phase),
        jnp.where(none, nan, ranked.score[best]),
        probability(same),
        probability(same_mod180),
        of_phase[phase],
        jnp.where(has_second, ranked.orientation[second], nan),
        jnp.where(has_second, ranked.phase[second], UNASSIGNED),
        jnp.where(has_second, ranked.score[second], nan),
        jnp.where(none, nan, ranked.thickness[best]),
        *(
            nan if values is None else jnp.where(none, nan, values[best])
            for values in (ranked.log_evidence, ranked.explained_light)
        ),
    )
