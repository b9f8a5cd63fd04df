# SPDX-License-Identifier: GPL-3.0-or-later
"""Candidates judged by the counts of their patterns.

`verify_by_counts` takes candidates of a batch of patterns from the network's distribution to the
summits of what the counts say; `recount` those that are given.

Shapes: `B` patterns, `C` candidates of each, `P` phases with `n` operations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from jaxstem.files.light import Detector, Light, light_everywhere
from jaxstem.orientation import rotations
from jaxstem.runtime.rows import map_rows
from jaxstem.verification.candidates import CandidateTables, near_reflections, padded
from jaxstem.verification.climb import UNLIKELY, begin, orientation_at, verdict
from jaxstem.verification.config import ScoreConfig
from jaxstem.verification.photometry import (
    climb_by_counts,
    explained_light,
    likeliest_reflections,
    log_ratios_of_alike,
    measured,
    over_thickness,
)
from jaxstem.verification.ranking import Forward, Ranked, keep_best
from jaxstem.verification.refinement import final_scores, find
from jaxstem.verification.search import Pattern

Polish = tuple[Float[Array, "3 3"], Float[Array, ""], Float[Array, ""], Float[Array, ""]]
"""An orientation at the summit, the log-likelihood of the listed disks there, ln of how much
likelier it makes the counts than nothing, and the share of the light that it explains."""


class Judge(NamedTuple):
    """How the counts of one pattern judge. worth: of an orientation and of it turned by 180° about
    the beam, where they are, with the reflections near it; polished: of an orientation and its
    phase, at the summit of what the counts say.
    """

    worth: Callable[[Array, Forward], Float[Array, "2"]]
    polished: Callable[[Array, Array], Polish]


def judge_of(
    pattern: Pattern,
    light: Light,
    incident: Float[Array, ""],
    detector: Detector,
    reflections: Forward,
    wavelength: float,
    reach: Float[ArrayLike, ""],
    config: ScoreConfig,
) -> Judge:
    """The judge of one pattern; `reflections` are all of each phase, `incident` in electrons."""
    statistics, counts = config.likelihood, config.counts
    thickness = counts.thicknesses(statistics.thickness)
    semi_angle = statistics.damping_angle

    def near(orientation, forward):
        return likeliest_reflections(orientation, forward, wavelength, reach, detector.disk, counts)

    # once, and not anew for each place that is asked for
    sums = jax.lax.optimization_barrier(light_everywhere(light.sums, detector.seen.shape))

    def look(reflections):
        return measured(reflections, sums, light, detector, incident, reach, counts)

    def worth(orientation, forward):
        straight = near(orientation, forward)
        both = look(straight), look(straight.turned_about_beam())
        return over_thickness(log_ratios_of_alike(both, thickness, semi_angle, counts))

    def polished(orientation, phase):
        whole = jax.tree.map(lambda x: x[phase], reflections)
        ascent = begin(orientation, pattern.observed, *whole, wavelength, reach, statistics)
        aligned = orientation_at(ascent, jnp.zeros(2, orientation.dtype))
        # all that the crystal has: a cell's list lacks some that tell candidates apart
        places = look(near(aligned, whole))
        at = climb_by_counts(places, thickness, semi_angle, counts)
        end = verdict(ascent, at.tilt, statistics)
        return (
            end.orientation,
            end.log_likelihood,
            over_thickness(at.log_ratio),
            explained_light(places, at, thickness, semi_angle, pattern.observed, incident),
        )

    return Judge(worth, polished)


def verify_by_counts(
    patterns: Pattern,
    light: Light,
    incident: Float[Array, " B"],
    detector: Detector,
    log_probability: Float[Array, "B n_cells"],
    phases: Sequence[CandidateTables],
    operations: Float[Array, "P n 3 3"],
    wavelength: float,
    reach: Float[ArrayLike, ""],
    config: ScoreConfig,
    at_once: int | None = None,
) -> Ranked:
    """`verify` where the patterns' counts decide: of the candidates that the search has found, and
    of these turned by 180° about the beam, those that make the counts likeliest are polished.

    `light` of each pattern; `incident` beam in electrons; the rest as in `verify`. The likelihood
    of the listed disks is that at the end of the climb.
    """
    config, n_polished = config.by_counts, config.counts.n_polished
    everything = jax.tree.map(lambda *x: jnp.stack(x), *padded([t.reflections for t in phases]))

    def one(row):
        pattern, light, incident, log_probability = row
        found = find(pattern, log_probability, phases, operations, wavelength, reach, config)
        candidates = found.candidates
        judge = judge_of(pattern, light, incident, detector, everything, wavelength, reach, config)
        values = jax.vmap(judge.worth)(candidates.orientation, candidates.forward)
        values = jnp.where(found.apart[:, None], values, UNLIKELY)
        turn = jnp.asarray(rotations.HALF_TURN_ABOUT_BEAM, candidates.orientation.dtype)
        about_beam = candidates._replace(orientation=candidates.orientation @ turn)
        twice = jax.tree.map(lambda *x: jnp.concatenate(x), candidates, about_beam)
        best, value = keep_best(twice, values.T.reshape(-1), n_polished, len(phases))
        orientation, likelihood, evidence, explained = jax.vmap(judge.polished)(
            best.orientation, best.phase
        )
        exists = value > 0.5 * UNLIKELY
        score = final_scores(pattern, orientation, best.forward, wavelength, reach, config)
        return Ranked(
            orientation,
            best.phase,
            score,
            jnp.where(exists, likelihood, UNLIKELY),
            best.prior,
            jnp.full_like(score, jnp.nan),
            jnp.where(exists, evidence, UNLIKELY),
            explained,
        )

    return map_rows(one, (patterns, light, incident, log_probability), at_once)


def recount(
    patterns: Pattern,
    light: Light,
    incident: Float[Array, " B"],
    detector: Detector,
    orientation: Float[Array, "B C 3 3"],
    phase: Int[Array, "B C"],
    forwards: Sequence[Forward],
    wavelength: float,
    reach: Float[ArrayLike, ""],
    config: ScoreConfig,
    at_once: int | None = None,
) -> Ranked:
    """Orientations that are given, polished and judged by the counts; `forwards` are all
    reflections of each phase, the rest as in `verify_by_counts`. They have no prior.
    """
    config = config.by_counts
    everything = jax.tree.map(lambda *x: jnp.stack(x), *padded(forwards))

    def one(row):
        pattern, light, incident, orientation, phase = row
        judge = judge_of(pattern, light, incident, detector, everything, wavelength, reach, config)
        found, likelihood, evidence, explained = jax.vmap(judge.polished)(orientation, phase)
        whole = jax.tree.map(lambda x: x[phase], everything)
        near = jax.vmap(lambda r, f: near_reflections(r, f, wavelength))(found, whole)
        score = final_scores(pattern, found, near, wavelength, reach, config)
        nothing, unknown = jnp.zeros_like(score), jnp.full_like(score, jnp.nan)
        return Ranked(found, phase, score, likelihood, nothing, unknown, evidence, explained)

    return map_rows(one, (patterns, light, incident, orientation, phase), at_once)
