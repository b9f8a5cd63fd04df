# SPDX-License-Identifier: GPL-3.0-or-later
"""The stages of `--refine`: propose, search, climb, and judge by Bloch waves or by fits of these.

`verify` takes candidates of a batch of patterns from the network's distribution to the summits of
their two-beam likelihood ("fast"), and `reverify` those that are given; where the patterns' counts
are at hand, `counting` does both by what they say. `verify_dynamically` judges the likeliest of one
pattern again by Bloch waves ("full") and fits these to its intensities ("exact").

Shapes: `B` patterns, `C` candidates of each, `P` phases with `n` operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from jaxstem.diffraction.bloch import BlochTables
from jaxstem.runtime.rows import map_rows, map_rows_where
from jaxstem.verification.candidates import CandidateTables, near_reflections, padded, propose
from jaxstem.verification.climb import (
    UNLIKELY,
    begin,
    orientation_at,
    start,
    start_value,
    steps,
    verdict,
)
from jaxstem.verification.config import APPROACH, LogOdds, ScoreConfig
from jaxstem.verification.dynamical import climb_dynamically
from jaxstem.verification.fitting import Scene, best_fit
from jaxstem.verification.likelihood import Polished
from jaxstem.verification.ranking import (
    BEHIND,
    Candidates,
    Forward,
    Ranked,
    ahead,
    angles_between,
    keep_best,
    keep_size,
    outdone,
)
from jaxstem.verification.search import Pattern, search_lattice


class Proposals(NamedTuple):
    """The candidates of a pattern that the search has brought to their places: orientation, phase,
    log-prior, the reflections near each, and whether they lie apart from all that score higher.
    """

    candidates: Candidates
    apart: Bool[Array, " C"]


def find(
    pattern: Pattern,
    log_probability: Float[Array, " n_cells"],
    phases: Sequence[CandidateTables],
    operations: Float[Array, "P n 3 3"],
    wavelength: float,
    k_max: Float[ArrayLike, ""],
    config: ScoreConfig,
) -> Proposals:
    """Candidates of one pattern from the network's distribution, searched for level by level."""
    candidates = propose(log_probability, phases, config.n_modes)
    score = candidates.prior
    for level in config.levels:
        candidates, score = keep_best(candidates, score, level.n_candidates, len(phases))
        on_level = lambda r, f, level=level: search_lattice(  # noqa: E731
            r, pattern, f, wavelength, k_max, level, config
        )
        orientation, score = jax.vmap(on_level)(candidates.orientation, candidates.forward)
        candidates = candidates._replace(orientation=orientation)
        if level.same:
            apart = angles_between(orientation, candidates.phase, operations)
            again = outdone(apart, score, jnp.deg2rad(level.same))
            score = jnp.where(again, score - BEHIND, score)
    candidates, score = keep_best(candidates, score, config.n_final, len(phases))
    return Proposals(candidates, score > -0.5 * BEHIND)


def hopeful(
    pattern: Pattern,
    found: Proposals,
    n_phases: int,
    wavelength: float,
    k_max: Float[ArrayLike, ""],
    config: ScoreConfig,
    log_odds: LogOdds,
) -> Proposals:
    """Of the candidates of one pattern those that its disks make likeliest where they are, for to
    climb costs ten times as much as to look. All of these climb, however far they trail: unpolished
    the likelihood misjudges half turns of patterns that two-beam theory does not fit.
    """
    statistics = config.likelihood
    if found.apart.shape[0] <= keep_size(config.n_climbing, n_phases):
        return found

    def glance(orientation, forward):
        ascent = begin(orientation, pattern.observed, *forward, wavelength, k_max, statistics)
        return start_value(ascent, statistics)

    likelihood = jax.vmap(glance)(found.candidates.orientation, found.candidates.forward)
    odds = log_odds(likelihood, found.candidates.prior)
    odds = jnp.where(found.apart, odds, UNLIKELY)
    best, odds = keep_best(found.candidates, odds, config.n_climbing, n_phases)
    return Proposals(best, odds > 0.5 * UNLIKELY)


def climbed(
    patterns: Pattern,
    found: Proposals,
    forwards: Sequence[Forward],
    wavelength: float,
    k_max: Float[ArrayLike, ""],
    config: ScoreConfig,
    log_odds: LogOdds,
    at_once: int | None,
) -> Polished:
    """Candidates (B, C) of patterns (B) at the summits of their likelihood.

    `forwards` are all reflections of each phase. After `APPROACH` steps those whose log-odds trail
    too far behind the best of their pattern stay where they are; those that do not lie apart, and
    all of a pattern without disks, do not set out.
    """
    shape, statistics = found.apart.shape, config.likelihood
    everything = jax.tree.map(lambda *x: jnp.stack(x), *padded(forwards))
    flat = lambda tree: jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)  # noqa: E731
    pattern = jnp.repeat(jnp.arange(shape[0]), shape[1])

    def approach(row):
        orientation, phase, pattern = row
        g, strength = jax.tree.map(lambda x: x[phase], everything)
        observed = jax.tree.map(lambda x: x[pattern], patterns.observed)
        ascent = begin(orientation, observed, g, strength, wavelength, k_max, statistics)
        place = start(statistics, orientation.dtype)
        return ascent, steps(ascent, place, 0, APPROACH, statistics)

    def settle(row):
        ascent, place = row
        place = steps(ascent, place, APPROACH, len(statistics.steps), statistics)
        return verdict(ascent, place.tilt, statistics)

    rows = (*flat((found.candidates.orientation, found.candidates.phase)), pattern)
    going = (found.apart & patterns.observed.mask.any(axis=1)[:, None]).reshape(-1)
    shapes = jax.eval_shape(approach, jax.tree.map(lambda x: x[0], rows))
    nowhere = jax.tree.map(lambda x: jnp.zeros((len(going), *x.shape), x.dtype), shapes)
    ascent, place = nowhere
    place = place._replace(log_likelihood=jnp.full(len(going), UNLIKELY, rows[0].dtype))
    nowhere = ascent._replace(orientation=rows[0]), place
    ascents, places = map_rows_where(approach, rows, going, nowhere, at_once)
    odds = log_odds(places.log_likelihood.reshape(shape), found.candidates.prior)
    leads = odds > odds.max(axis=1, keepdims=True) - config.behind
    going &= leads.reshape(-1)
    left = Polished(
        jax.vmap(orientation_at)(ascents, places.tilt),
        places.log_likelihood,
        jnp.full_like(places.log_likelihood, jnp.nan),
    )
    ended = map_rows_where(settle, (ascents, places), going, left, at_once)
    return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), ended)


def final_scores(
    pattern: Pattern,
    orientation: Float[Array, "C 3 3"],
    forward: Forward,
    wavelength: float,
    k_max: Float[ArrayLike, ""],
    config: ScoreConfig,
) -> Float[Array, " C"]:
    """Cosine scores, 0 … 1, of candidates where they are; `wavelength` in Å, `k_max` in 1/Å."""
    final = replace(config.levels[-1], angle=0.0, n_turns=0, tilt=0.0, n_tilts=1)
    score = jax.vmap(
        lambda r, f: search_lattice(r, pattern, f, wavelength, k_max, final, config)[1]
    )
    return jnp.minimum(score(orientation, forward), 1.0)


def verify(
    patterns: Pattern,
    log_probability: Float[Array, "B n_cells"],
    phases: Sequence[CandidateTables],
    operations: Float[Array, "P n 3 3"],
    wavelength: float,
    k_max: Float[ArrayLike, ""],
    config: ScoreConfig,
    log_odds: LogOdds,
    at_once: int | None = None,
) -> Ranked:
    """Candidates of patterns (B) from the network's distributions, polished and verified.

    `log_probability` is that of the cells of all phases, phase 0's first; `operations` are each
    phase's symmetry; `wavelength` in Å, `k_max` in 1/Å. Candidates that the search has brought to
    one place count once. Of so many patterns at once the candidates are looked at (all: None).
    """

    def searched(row):
        found = find(*row, phases, operations, wavelength, k_max, config)
        return hopeful(row[0], found, len(phases), wavelength, k_max, config, log_odds)

    found = map_rows(searched, (patterns, log_probability), at_once)
    candidates, n = found.candidates, found.apart.shape[1]
    forwards = [tables.reflections for tables in phases]
    climbs_at_once = None if at_once is None else at_once * n
    best = climbed(patterns, found, forwards, wavelength, k_max, config, log_odds, climbs_at_once)
    scores = lambda row: final_scores(*row, wavelength, k_max, config)  # noqa: E731
    score = map_rows(scores, (patterns, best.orientation, candidates.forward), at_once)
    return Ranked(
        best.orientation,
        candidates.phase,
        score,
        best.log_likelihood,
        candidates.prior,
        best.thickness,
    )


def reverify(
    patterns: Pattern,
    orientation: Float[Array, "B C 3 3"],
    phase: Int[Array, "B C"],
    exists: Bool[Array, "B C"],
    prior: Float[Array, "B C"],
    forwards: Sequence[Forward],
    wavelength: float,
    k_max: Float[ArrayLike, ""],
    config: ScoreConfig,
    log_odds: LogOdds,
    at_once: int | None = None,
) -> Ranked:
    """Orientations that are given, polished and judged by the listed disks; `exists` says which
    are more than a filling, `prior` is their log-probability by the network, `forwards` are all
    reflections of each phase, the rest is as in `verify`. All that exist climb.
    """
    everything = jax.tree.map(lambda *x: jnp.stack(x), *padded(forwards))
    given = Candidates(orientation, phase, prior, None)
    found = Proposals(given, exists)
    statistics = replace(config.likelihood, steps=config.likelihood.steps[1:])
    config = replace(config, behind=jnp.inf, likelihood=statistics)
    climbs_at_once = None if at_once is None else at_once * phase.shape[1]
    best = climbed(patterns, found, forwards, wavelength, k_max, config, log_odds, climbs_at_once)

    def scores(row):
        pattern, orientation, phase = row
        whole = jax.tree.map(lambda x: x[phase], everything)
        near = jax.vmap(lambda r, f: near_reflections(r, f, wavelength))(orientation, whole)
        return final_scores(pattern, orientation, near, wavelength, k_max, config)

    score = map_rows(scores, (patterns, best.orientation, phase), at_once)
    return Ranked(best.orientation, phase, score, best.log_likelihood, prior, best.thickness)


def verify_dynamically(
    pattern: Pattern,
    ranked: Ranked,
    phases: Sequence[BlochTables],
    operations: Float[Array, "P n 3 3"],
    k_min: float,
    k_max: Float[ArrayLike, ""],
    config: ScoreConfig,
) -> Ranked:
    """The likeliest different candidates of `ranked` again, by Bloch waves, with their thickness.

    `phases` are the tables of each crystal, `operations` their symmetry; `k_min`, `k_max` [1/Å]
    bound the disks that count. Where counts were looked at, they say which are likeliest, before
    and after: Bloch waves, which see listed disks alone, then settle the place and the thickness.
    Candidates that trail too far behind keep their orientation and are given no chance, and so are
    all of a pattern without disks.
    """
    limits = config.dynamical
    worth = ranked.log_likelihood
    if ranked.log_evidence is not None:
        worth = ranked.log_evidence + config.counts.list_weight * worth
    lead = worth - worth.max()
    again = outdone(angles_between(ranked.orientation, ranked.phase, operations), lead)
    lead, chosen = jax.lax.top_k(
        jnp.where(again, -jnp.inf, lead), min(limits.n_candidates, len(lead))
    )
    ranked = jax.tree.map(lambda x: x[chosen], ranked)

    def judge(args):
        orientation, phase, lead = args
        branches = [
            lambda r, tables=tables: climb_dynamically(
                r, pattern.observed, tables, k_min, k_max, limits, config.likelihood
            )
            for tables in phases
        ]
        unknown = jnp.asarray(jnp.nan, orientation.dtype)
        lost = lambda r: Polished(r, jnp.full_like(unknown, UNLIKELY), unknown)  # noqa: E731
        judged = (lead > -limits.behind) & pattern.observed.mask.any()
        which = jnp.where(judged, phase, len(phases))
        return jax.lax.switch(which, [*branches, lost], orientation)

    found = jax.lax.map(judge, (ranked.orientation, ranked.phase, lead))
    if config.fit is not None:
        found = fitted(pattern, found, ranked.phase, phases, k_min, k_max, config)
    log_likelihood = found.log_likelihood
    if ranked.log_evidence is not None and config.fit is None:
        judged = log_likelihood > UNLIKELY
        log_likelihood = jnp.where(judged, ranked.log_likelihood, log_likelihood)
    return ranked._replace(
        orientation=found.orientation,
        log_likelihood=log_likelihood,
        thickness=found.thickness,
    )


def fitted(
    pattern: Pattern,
    found: Polished,
    phase: Int[Array, " C"],
    phases: Sequence[BlochTables],
    k_min: float,
    k_max: Float[ArrayLike, ""],
    config: ScoreConfig,
) -> Polished:
    """Candidates that Bloch waves have judged (C), the likeliest of them fitted; see `fitting`."""
    value = found.log_likelihood
    leads = (value > value.max() - config.dynamical.behind) & (
        ahead(value).sum(axis=1) < config.fit.n_candidates
    )
    leads &= pattern.observed.mask.any()

    def one(args):
        start, phase, leads = args
        branches = [
            lambda start, tables=tables: best_fit(
                start, Scene(pattern.observed, tables, k_min, k_max, config.likelihood), config.fit
            )
            for tables in phases
        ]
        which = jnp.where(leads, phase, len(phases))
        return jax.lax.switch(which, [*branches, lambda start: start], start)

    return jax.lax.map(one, (found, phase, leads))
