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


class Labels(NamedTuple):
    """What a pattern may be: its candidates, one of those that climbed the same summit, and "no
    crystal"; leading axes are the patterns'.

    quaternion: their orientations; phase: index of the crystal, -1 where there is no candidate;
    log_odds: of each, as the pattern alone says, -inf where there is none; no_crystal: the same of
    no crystal, NaN where the pattern was not looked at; the rest as in `Ranked`.
    """

    quaternion: Float[Array, "... C 4"]
    phase: Int[Array, "... C"]
    log_odds: Float[Array, "... C"]
    no_crystal: Float[Array, "..."]
    score: Float[Array, "... C"]
    thickness: Float[Array, "... C"]
    log_evidence: Float[Array, "... C"]
    explained_light: Float[Array, "... C"]


def labels_of(
    ranked: Ranked,
    no_crystal: Float[Array, ""],
    operations: Float[Array, "P n 3 3"],
    config: InferConfig,
) -> Labels:
    """The labels of one pattern from its verified candidates.

    `no_crystal` is its log-probability by the network; its likelihood is that of false disks alone,
    to which those of the candidates are relative.
    """
    apart = angles_between(ranked.orientation, ranked.phase, operations)
    log_odds = config.log_odds(ranked.log_likelihood, ranked.prior, ranked.log_evidence)
    by_counts = None if ranked.log_evidence is None else config.counts_chance
    again = outdone(apart, log_odds)
    unknown = jnp.full_like(log_odds, jnp.nan)
    return Labels(
        rotations.matrix_to_quaternion(ranked.orientation),
        jnp.where(again, -1, ranked.phase),
        jnp.where(again, -jnp.inf, log_odds),
        config.log_odds(config.chance, no_crystal, by_counts),
        ranked.score,
        ranked.thickness,
        *(unknown if x is None else x for x in (ranked.log_evidence, ranked.explained_light)),
    )


def answer_of(
    labels: Labels,
    operations: Float[Array, "P n 3 3"],
    doubted: tuple[Float[Array, " C"], Float[Array, ""]] | None = None,
) -> Answer:
    """The answer, its confidence and the runner-up from the labels of one pattern.

    `doubted`: log-odds of the labels and of no crystal by which the confidence goes, where they
    are not those that choose.
    """
    n_phases = len(operations)
    orientation = rotations.quaternion_to_matrix(labels.quaternion)
    exists = labels.phase >= 0

    def of_phases(share):
        member = jnp.append(labels.phase, n_phases) == jnp.arange(n_phases + 1)[:, None]
        return jnp.sum(jnp.where(member, share, 0.0), axis=1)

    chosen = jax.nn.softmax(jnp.append(labels.log_odds, labels.no_crystal))
    phase = jnp.argmax(of_phases(chosen))
    none = phase == n_phases
    share = chosen if doubted is None else jax.nn.softmax(jnp.append(*doubted))
    of_phase = of_phases(share)

    right_phase = labels.phase == phase
    best = jnp.argmax(jnp.where(right_phase, labels.log_odds, -jnp.inf))
    answer = orientation[best]

    def angles(matrix):
        q = rotations.matrix_to_quaternion(matrix)
        return angles_to(q, orientation, jnp.maximum(labels.phase, 0), operations)

    same = (angles(answer) < WITHIN) & right_phase
    turned = answer @ jnp.asarray(rotations.HALF_TURN_ABOUT_BEAM, answer.dtype)
    same_mod180 = same | ((angles(turned) < WITHIN) & right_phase)

    def probability(which):
        return jnp.where(none, of_phase[phase], jnp.sum(jnp.where(which, share[:-1], 0.0)))

    others = ~same & exists
    second = jnp.argmax(jnp.where(others, labels.log_odds, -jnp.inf))
    has_second = jnp.any(others)
    nan = jnp.asarray(jnp.nan, answer.dtype)
    return Answer(
        jnp.where(none, nan, answer),
        jnp.where(none, NO_CRYSTAL, phase),
        jnp.where(none, nan, labels.score[best]),
        probability(same),
        probability(same_mod180),
        of_phase[phase],
        jnp.where(has_second, orientation[second], nan),
        jnp.where(has_second, labels.phase[second], UNASSIGNED),
        jnp.where(has_second, labels.score[second], nan),
        *(
            jnp.where(none, nan, values[best])
            for values in (labels.thickness, labels.log_evidence, labels.explained_light)
        ),
    )


def summarise(
    ranked: Ranked,
    no_crystal: Float[Array, ""],
    operations: Float[Array, "P n 3 3"],
    config: InferConfig,
) -> Answer:
    """The answer of one pattern from its verified candidates: `answer_of` its `labels_of`."""
    return answer_of(labels_of(ranked, no_crystal, operations, config), operations)


def doubted(answer: Answer, against: float) -> Answer:
    """The same, no crystal being likelier by so many nat: of several phases the share of those that
    are not the answer is taken for it.
    """
    if not against:
        return answer
    crystal = answer.phase >= 0
    share = answer.phase_confidence
    # of the answer, which may be that there is none
    odds = np.where(crystal, 1.0, np.exp(against)), np.where(crystal, np.exp(against), 1.0)
    left = odds[0] * share / (odds[0] * share + odds[1] * (1.0 - share) + 1e-30)
    turns = crystal & (left < 0.5)
    ratio = np.where(crystal, left / np.maximum(share, 1e-30), 1.0)

    def again(x):
        return np.where(turns, 1.0 - left, np.where(crystal, x * ratio, left)).astype(x.dtype)

    lost = np.float32(np.nan)
    wide = lambda x: turns.reshape(turns.shape + (1,) * (x.ndim - turns.ndim))  # noqa: E731
    without = lambda x: np.where(wide(x), lost, x)  # noqa: E731
    taken = ("orientation", "score", "thickness", "log_evidence", "explained_light")
    return answer._replace(
        phase=np.where(turns, NO_CRYSTAL, answer.phase),
        confidence=again(answer.confidence),
        confidence_mod180=again(answer.confidence_mod180),
        phase_confidence=again(share),
        **{name: without(getattr(answer, name)) for name in taken},
    )


def doubted_labels(labels: Labels, against: float) -> Labels:
    """The same for labels, where patterns were looked at."""
    looked_at = (labels.phase >= 0).any(axis=-1)
    more = np.where(looked_at, np.float32(against), np.float32(0.0))
    return labels._replace(no_crystal=labels.no_crystal + more)
