# SPDX-License-Identifier: GPL-3.0-or-later
"""Verification: candidate orientations against the forward model, polished and ranked.

Three ideas carry this module.

*A score for the search.* The cosine between measured and re-simulated disks: each predicted disk
takes its best measured partner within a Gaussian kernel, and both sides enter to a low power,
because dynamical intensities are unreliable and positions are not. A disk is predicted as two-beam
theory does, averaged over thickness, so that strong reflections are expected farther from the Ewald
sphere than weak ones.

*A search without derivatives.* Turning a crystal about the beam turns the pattern; tilting it
changes excitation errors and hardly moves a disk. The partners therefore depend on the in-plane
angle alone and the predicted intensities on the tilt alone: the angle comes from least squares
over the positions, and then one small table of intensities scores all tilts around a candidate. A
few such levels, ever finer, polish a candidate from several degrees to a tenth.

On the way many candidates come to one place: of four that a search without regard for it likes
best there are no more than two that differ, as a rule. Only one of them goes on, which leaves room
for rivals.

*A likelihood for the verdict.* The best candidates climb to the summit of the probability of the
pattern and are compared by it: by two-beam theory with the thickness free (`likelihood.py`,
"fast"), or then by Bloch waves (`dynamical.py`, "full"), and then by fits of these (`fitting.py`,
"exact").

A pattern looks nearly the same from pseudo-symmetric orientations: the crystal turned by 180° about
the beam, or about a low-index zone axis near the beam. The distribution has a mode at each of them,
as a rule; a thorough search (`THOROUGH`, tables with siblings) verifies them in any case. What
depends on the crystal alone is tabulated once for each cell of its orientation grid
(`CandidateTables`, one for each phase). Every phase proposes candidates of its own; from there on a
candidate is an orientation with the reflections worth simulating near it, whatever its phase.
Shapes: `K` measured disks, `M` reflections that a cell can excite, `C` candidates, `T` tilts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxstem import so3
from jaxstem.bloch import BlochTables
from jaxstem.dynamical import DynamicalConfig, climb
from jaxstem.fitting import FitConfig, Scene, best_fit
from jaxstem.grid import nearest_cells
from jaxstem.kinematic import Disks, Reflectors, excitation_error, expected_intensity
from jaxstem.lanes import largest_of_rows, totals, turned
from jaxstem.likelihood import (
    UNLIKELY,
    LikelihoodConfig,
    Observed,
    Polished,
    begin,
    orientation_at,
    start,
    step,
    verdict,
)
from jaxstem.turns import in_turns, where_needed

FAR = 1e3
"""Where [1/Å] the reflections lie that fill up short lists: nothing excites them."""

SIBLING_REACH = 15.0
"""How far [degrees] a zone axis may lie from the beam for a turn about it to go unnoticed."""

SAME_SUMMIT = 0.02
"""How close [rad] two polished candidates lie that have climbed the same summit."""

BEHIND = 1e3
"""What is taken from the score of a candidate that comes after all that differ."""

GROUPS = 256
"""Into which the cells of a grid are dealt to find the likeliest."""

VISIBLE_REACH = 3.0
"""How far [degrees] a candidate may be tilted from its cell and keep the cell's reflections."""


@dataclass(frozen=True)
class Level:
    """One level of the search: kernel width σ [1/Å], width of the excitation-error floor [1/Å],
    most [degrees] that the crystal is turned in-plane, in `n_turns` steps of least squares,
    half-range [degrees] and number of tilts along each axis, how many of the cell's reflections are
    simulated, how many candidates enter the level, and how close [degrees] two of them lie after it
    that count as one (0: they are not compared).
    """

    kernel: float
    floor: float
    angle: float
    n_turns: int
    tilt: float
    n_tilts: int
    n_visible: int
    n_candidates: int
    same: float


@dataclass(frozen=True)
class ScoreConfig:
    """What counts as agreement, and how it is searched.

    measured_power, predicted_power: of the intensities in the cosine; n_modes: peaks of each
    phase's distribution that are verified; levels: of the search; n_final: candidates that climb to
    the summit of their likelihood (this and the levels' numbers are for one phase, see
    `keep_best`); behind: log-odds by which one of them may trail the best of its pattern after
    `APPROACH` steps and climb on; likelihood, dynamical: how they are judged; fit: how the
    likeliest by Bloch waves are then fitted, if they are.
    """

    measured_power: float = 0.25
    predicted_power: float = 0.5
    n_modes: int = 24
    levels: tuple[Level, ...] = (
        Level(0.06, 0.02, 4.0, 1, 3.2, 5, 48, 96, 0.0),
        Level(0.04, 0.008, 2.0, 2, 1.5, 7, 64, 8, 0.2),
        Level(0.03, 0.003, 1.0, 1, 0.5, 7, 64, 5, 0.4),
    )
    n_final: int = 3
    behind: float = 2.0
    likelihood: LikelihoodConfig = LikelihoodConfig()
    dynamical: DynamicalConfig = DynamicalConfig()
    fit: FitConfig | None = None


THOROUGH = ScoreConfig(
    n_modes=12,
    levels=tuple(
        replace(level, n_candidates=n)
        for level, n in zip(ScoreConfig().levels, (96, 20, 12), strict=True)
    ),
    n_final=8,
    behind=np.inf,
    likelihood=LikelihoodConfig(n_reflections=40),
)
"""For tables with siblings, and where Bloch waves judge, beside which the search costs little."""

EXACT = replace(THOROUGH, fit=FitConfig())
"""For intensities that Bloch waves explain to a per cent or two."""


APPROACH = 2
"""Steps of a climb after which candidates are compared, and those far behind left where they are.
"""

LogOdds = Callable[[Array, Array], Array]
"""Log-odds of candidates from their log-likelihood [nat] and log-prior."""


class Forward(NamedTuple):
    """Reflections to simulate, of a crystal or near a candidate: g [1/Å] and 1/ξ [1/Å]."""

    g: Float[Array, "... M 3"]
    inverse_extinction: Float[Array, "... M"]


class CandidateTables(NamedTuple):
    """A phase's grid: what each cell can excite, its neighbours and pseudo-symmetric siblings.

    cells: orientations of the grid; reflections: all of the crystal; visible: indices of those
    worth simulating near the cell; neighbours: nearest cells, the cell itself first; offsets:
    rotation vector [rad] from the cell to each neighbour, in the lab frame of the cell
    (R_neighbour ~ R_cell exp(v)); sibling: cells nearest to the cell turned about low-index zone
    axes (its own index where there is none), with `sibling_turn`, the matrix T that takes an
    orientation near the cell to T @ R near the sibling cell; None where siblings are left out.
    """

    cells: Float[Array, "n_cells 3 3"]
    reflections: Forward
    visible: Int[Array, "n_cells M"]
    neighbours: Int[Array, "n_cells n_neighbours"]
    offsets: Float[Array, "n_cells n_neighbours 3"]
    sibling: Int[Array, "n_cells S"] | None
    sibling_turn: Float[Array, "n_cells S 3 3"] | None


class Limit(NamedTuple):
    """The weakest disks that a scan lists.

    log_share: logarithm of their share of the incident beam, at radii evenly spaced from 0 to
    k_max; log_ratio: of their ratio to the strongest disk of their pattern, -inf where that did
    not decide.
    """

    log_share: Float[Array, " n_radii"]
    log_ratio: Float[Array, ""]


class Pattern(NamedTuple):
    """One measured pattern ready for verification.

    log_weight: logarithm of intensity^power over its norm (padding: -1e4), for the cosine;
    observed: the disks as the likelihood sees them.
    """

    log_weight: Float[Array, " K"]
    observed: Observed


def pattern_of(
    disks: Disks,
    incident: Float[Array, ""],
    incident_sigma: Float[Array, ""],
    is_cut: Bool[Array, ""],
    limit: Limit,
    power: float,
) -> Pattern:
    """Prepare disks (K,); `incident` is the beam's intensity in the disks' units, known to
    `incident_sigma` in its logarithm; `is_cut`: weaker disks than those listed were left out.
    """
    weight = jnp.where(disks.mask, jnp.maximum(disks.intensity, 1e-12) ** power, 0.0)
    norm = jnp.sqrt(jnp.sum(weight**2, axis=-1, keepdims=True))
    relative = weight / jnp.maximum(norm, 1e-12)
    log_share = jnp.log(jnp.maximum(disks.intensity / incident, 1e-9))
    weakest = jnp.where(is_cut, jnp.where(disks.mask, log_share, jnp.inf).min(), -jnp.inf)
    strongest = jnp.where(disks.mask, log_share, -jnp.inf).max()
    of_pattern = jnp.maximum(weakest, strongest + limit.log_ratio)
    log_limit = jnp.maximum(limit.log_share, of_pattern)
    return Pattern(
        jnp.where(disks.mask, jnp.log(relative + 1e-12), -1e4),
        Observed(disks.qx, disks.qy, log_share, disks.mask, log_limit, incident_sigma),
    )


def agreement(
    pattern: Pattern, x: Float[Array, " M"], y: Float[Array, " M"], kernel: float
) -> tuple[Float[Array, "K M"], Float[Array, "K M"], Float[Array, "K M"]]:
    """How far each disk lies from each predicted position [1/Å], along x and y, and the logarithm
    of its weight within a Gaussian `kernel` of σ in 1/Å.
    """
    dx, dy = pattern.observed.qx[:, None] - x, pattern.observed.qy[:, None] - y
    return dx, dy, pattern.log_weight[:, None] - (dx**2 + dy**2) * (0.5 / kernel**2)


def cosine(
    pattern: Pattern,
    x: Float[Array, " M"],
    y: Float[Array, " M"],
    predicted: Float[Array, "T M"],
    kernel: float,
) -> Float[Array, " T"]:
    """Cosine score, 0 … 1, of predicted intensities (to their power) at these positions [1/Å].

    Where overlapping reflections share a measured disk it can exceed one.
    """
    partner = jnp.exp(largest_of_rows(agreement(pattern, x, y, kernel)[2]))
    agreeing, norm = totals(predicted * partner, predicted**2)
    return agreeing * jax.lax.rsqrt(norm + 1e-12)


def turned_about_beam(
    x: Float[Array, " M"], y: Float[Array, " M"], angle: Float[Array, ""]
) -> tuple[Float[Array, " M"], Float[Array, " M"]]:
    """Positions in the pattern of a crystal turned about the beam by `angle` [rad]."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return cos * x + sin * y, cos * y - sin * x


def search(
    orientation: Float[Array, "3 3"],
    pattern: Pattern,
    forward: Forward,
    wavelength: float,
    k_max: float,
    level: Level,
    config: ScoreConfig,
) -> tuple[Float[Array, "3 3"], Float[Array, ""]]:
    """The best orientation on one level's lattice around `orientation`, and its cosine score.

    A small rotation vector ω in the lab frame turns g_lab by -ω × g_lab: its z part turns positions
    in-plane, its x and y parts change s by ω_y q_x - ω_x q_y. The in-plane angle is that of least
    squares over the distances between disks and reflections, weighted by their agreement.
    """
    strength = forward.inverse_extinction[: level.n_visible]
    g_lab = turned(forward.g[: level.n_visible], orientation)
    x, y, s = g_lab[:, 0], g_lab[:, 1], excitation_error(g_lab, wavelength)
    inside = x**2 + y**2 <= k_max**2
    expected = jnp.sqrt(expected_intensity(s, strength, level.floor)) * inside

    angle, most = jnp.zeros((), s.dtype), jnp.deg2rad(level.angle)
    for _ in range(level.n_turns):
        now = turned_about_beam(x, y, angle)
        dx, dy, agrees = agreement(pattern, *now, level.kernel)
        weight = jnp.exp(agrees) * expected
        pull, stiffness = totals(weight * (dx * now[1] - dy * now[0]), weight * (x**2 + y**2))
        angle += pull.sum() / (stiffness.sum() + 1e-9)
        angle = jnp.clip(angle, -most, most)

    axis = jnp.deg2rad(jnp.linspace(-level.tilt, level.tilt, level.n_tilts))
    tilt_x, tilt_y = (t.reshape(-1, 1) for t in jnp.meshgrid(axis, axis, indexing="ij"))
    tilted = s + tilt_y * x - tilt_x * y
    intensity = expected_intensity(tilted, strength, level.floor)
    root = config.predicted_power == 0.5  # many times as fast as a power on a processor
    predicted = jnp.sqrt(intensity) if root else jnp.power(intensity, config.predicted_power)
    predicted = predicted * inside
    scores = cosine(pattern, *turned_about_beam(x, y, angle), predicted, level.kernel)
    best = jnp.argmax(scores)
    vector = jnp.stack([tilt_x[best, 0], tilt_y[best, 0], angle])
    return orientation @ so3.rotation_vector_to_matrix(vector), scores[best]


class Ranked(NamedTuple):
    """Verified candidates of a pattern.

    phase: index of the crystal; score: cosine, cut at one; log_likelihood [nat]; prior:
    log-probability that the network gave the mode from which the candidate came; thickness: the
    likeliest [Å], NaN where the theory does not tell it.
    """

    orientation: Float[Array, "C 3 3"]
    phase: Int[Array, " C"]
    score: Float[Array, " C"]
    log_likelihood: Float[Array, " C"]
    prior: Float[Array, " C"]
    thickness: Float[Array, " C"]


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
    turns = so3.matrix_to_quaternion(operations)[phase]
    equivalents = so3.quaternion_multiply(turns, so3.matrix_to_quaternion(orientation)[:, None])
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
    apart = angles_to(so3.matrix_to_quaternion(orientation), orientation, phase, operations)
    return jnp.where(phase[:, None] == phase, apart, jnp.inf)


def ahead(worth: Float[Array, " C"]) -> Bool[Array, "C C"]:
    """For each candidate (row) which others are worth more, or as much and come before."""
    index = jnp.arange(len(worth))
    return (worth > worth[:, None]) | ((worth == worth[:, None]) & (index < index[:, None]))


def outdone(
    apart: Float[Array, "C C"],
    worth: Float[Array, " C"],
    same: float | Float[Array, ""] = SAME_SUMMIT,
) -> Bool[Array, " C"]:
    """Which candidates have climbed the same summit as one that is `ahead`; `apart` are the angles
    between them [rad], `same` those below which it is the same.
    """
    return ((apart < same) & ahead(worth)).any(axis=1)


def likeliest(
    log_probability: Float[Array, " n_cells"], n: int
) -> tuple[Float[Array, " n"], Int[Array, " n"]]:
    """The `n` likeliest cells, their log-probability and their indices, in order.

    Of many cells the two likeliest of each of `GROUPS` groups are compared, half the work on a
    processor. Cells next to each other lie in different groups; of 40 cells 0.1 is missed, as a
    rule, which is third in its group.
    """
    size = -(-len(log_probability) // GROUPS)
    if len(log_probability) < 8 * GROUPS or n > GROUPS // 4:
        return jax.lax.top_k(log_probability, n)
    short = size * GROUPS - len(log_probability)
    rows = jnp.pad(log_probability, (0, short), constant_values=-jnp.inf).reshape(size, GROUPS)
    first = jnp.argmax(rows, axis=0)
    others = jnp.where(jnp.arange(size)[:, None] == first, -jnp.inf, rows)
    cells = jnp.stack([first, jnp.argmax(others, axis=0)]) * GROUPS + jnp.arange(GROUPS)
    value, place = jax.lax.top_k(jnp.concatenate([rows.max(axis=0), others.max(axis=0)]), n)
    return value, cells.ravel()[place]


def modes(
    log_probability: Float[Array, " n_cells"],
    tables: CandidateTables,
    n_modes: int,
    n_cells: int = 40,
) -> tuple[Int[Array, " C"], Float[Array, "C 3 3"], Float[Array, " C"]]:
    """The peaks of a phase's distribution: cell, orientation between cells, log of the mass around.

    Of the `n_cells` likeliest cells those without a likelier neighbour come first; the orientation
    is the posterior mean over the neighbourhood.
    """
    value, index = likeliest(log_probability, min(n_cells, len(log_probability)))
    around = log_probability[tables.neighbours[index]]
    is_peak = jnp.all(around[:, :1] >= around, axis=1)
    _, order = jax.lax.top_k(jnp.where(is_peak, value, value - BEHIND), min(n_modes, len(value)))
    cell, around = index[order], around[order]
    share = jax.nn.softmax(around, axis=-1)
    shift = jnp.einsum("cn,cnv->cv", share, tables.offsets[cell])
    orientation = tables.cells[cell] @ so3.rotation_vector_to_matrix(shift)
    return cell, orientation, jax.nn.logsumexp(around, axis=-1)


def with_siblings(
    cell: Int[Array, " C"],
    orientation: Float[Array, "C 3 3"],
    prior: Float[Array, " C"],
    tables: CandidateTables,
) -> tuple[Int[Array, " C4"], Float[Array, "C4 3 3"], Float[Array, " C4"]]:
    """Candidates followed by their turns about near zone axes, then all turned about the beam."""
    turned = jnp.einsum("csij,cjk->scik", tables.sibling_turn[cell], orientation)
    all_cells = jnp.concatenate([cell, tables.sibling[cell].T.reshape(-1)])
    all_orientations = jnp.concatenate([orientation, turned.reshape(-1, 3, 3)])
    about_beam = all_orientations @ jnp.asarray(so3.HALF_TURN_ABOUT_BEAM, orientation.dtype)
    copies = 2 * (1 + tables.sibling.shape[1])
    return (
        jnp.concatenate([all_cells, all_cells]),
        jnp.concatenate([all_orientations, about_beam]),
        jnp.tile(prior, copies),
    )


def padded(forwards: Sequence[Forward]) -> list[Forward]:
    """Lists of reflections along the last axis but one of g, filled up to one length.

    The filling has no strength and lies so far away that nothing excites it.
    """
    longest = max(f.g.shape[-2] for f in forwards)

    def fill(f: Forward) -> Forward:
        ahead = [(0, 0)] * (f.g.ndim - 2)
        short = (0, longest - f.g.shape[-2])
        return Forward(
            jnp.pad(f.g, [*ahead, short, (0, 0)], constant_values=FAR),
            jnp.pad(f.inverse_extinction, [*ahead, short]),
        )

    return [fill(f) for f in forwards]


class Candidates(NamedTuple):
    """Orientations to verify, their phases, their log-prior and the reflections near each."""

    orientation: Float[Array, "C 3 3"]
    phase: Int[Array, " C"]
    prior: Float[Array, " C"]
    forward: Forward


def keep_best(
    candidates: Candidates, score: Float[Array, " C"], n: int, n_phases: int
) -> tuple[Candidates, Float[Array, " kept"]]:
    """The best candidates and their scores: half of `n` of each phase, and half from all.

    So a phase that looks unlikely early stays in the race, and a likely one loses nothing: of one
    phase the best `n` are kept, and for each further one half as many more. All, if there are not
    so many.
    """
    size = n + (n_phases - 1) * (n // 2)
    if size >= len(score):
        return candidates, score
    phase = candidates.phase
    rank = jnp.sum(ahead(score) & (phase == phase[:, None]), axis=1)
    keep = jax.lax.top_k(jnp.where(rank < n // 2, jnp.inf, score), size)[1]
    return jax.tree.map(lambda x: x[keep], (candidates, score))


def propose(
    log_probability: Float[Array, " n_cells"],
    phases: Sequence[CandidateTables],
    n_modes: int,
) -> Candidates:
    """The modes of each phase's part of the distribution, phase after phase, with their siblings
    where the tables have them.
    """
    found, forwards, start = [], [], 0
    for phase, tables in enumerate(phases):
        part = log_probability[start : start + len(tables.cells)]
        start += len(tables.cells)
        cell, orientation, prior = modes(part, tables, n_modes)
        if tables.sibling is not None:
            cell, orientation, prior = with_siblings(cell, orientation, prior, tables)
        found.append((orientation, jnp.full(len(cell), phase), prior))
        near = tables.visible[cell]
        forwards.append(jax.tree.map(lambda x, near=near: x[near], tables.reflections))
    join = lambda *x: jnp.concatenate(x)  # noqa: E731
    return Candidates(*jax.tree.map(join, *found), jax.tree.map(join, *padded(forwards)))


class Found(NamedTuple):
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
    k_max: float,
    config: ScoreConfig,
) -> Found:
    """Candidates of one pattern from the network's distribution, searched for level by level."""
    candidates = propose(log_probability, phases, config.n_modes)
    score = candidates.prior
    for level in config.levels:
        candidates, score = keep_best(candidates, score, level.n_candidates, len(phases))
        on_level = lambda r, f, level=level: search(  # noqa: E731
            r, pattern, f, wavelength, k_max, level, config
        )
        orientation, score = jax.vmap(on_level)(candidates.orientation, candidates.forward)
        candidates = candidates._replace(orientation=orientation)
        if level.same:
            apart = angles_between(orientation, candidates.phase, operations)
            again = outdone(apart, score, jnp.deg2rad(level.same))
            score = jnp.where(again, score - BEHIND, score)
    candidates, score = keep_best(candidates, score, config.n_final, len(phases))
    return Found(candidates, score > -0.5 * BEHIND)


def climbed(
    patterns: Pattern,
    found: Found,
    forwards: Sequence[Forward],
    wavelength: float,
    k_max: float,
    config: ScoreConfig,
    log_odds: LogOdds,
    at_once: int | None,
) -> Polished:
    """Candidates (B, C) of patterns (B) at the summits of their likelihood.

    `forwards` are all reflections of each phase. After `APPROACH` steps those whose log-odds trail
    too far behind the best of their pattern stay where they are; those that do not lie apart, and
    all of a pattern without disks, do not set out.
    """
    shape, rules = found.apart.shape, config.likelihood
    everything = jax.tree.map(lambda *x: jnp.stack(x), *padded(forwards))
    flat = lambda tree: jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)  # noqa: E731
    pattern = jnp.repeat(jnp.arange(shape[0]), shape[1])

    def approach(row):
        orientation, phase, pattern = row
        g, strength = jax.tree.map(lambda x: x[phase], everything)
        observed = jax.tree.map(lambda x: x[pattern], patterns.observed)
        ascent = begin(orientation, observed, g, strength, wavelength, k_max, rules)
        place = start(rules, orientation.dtype)
        for number in range(APPROACH):
            place = step(ascent, place, number, rules)
        return ascent, place

    def settle(row):
        ascent, place = row
        for number in range(APPROACH, len(rules.steps)):
            place = step(ascent, place, number, rules)
        return verdict(ascent, place.tilt, rules)

    rows = (*flat((found.candidates.orientation, found.candidates.phase)), pattern)
    going = (found.apart & patterns.observed.mask.any(axis=1)[:, None]).reshape(-1)
    shapes = jax.eval_shape(approach, jax.tree.map(lambda x: x[0], rows))
    nowhere = jax.tree.map(lambda x: jnp.zeros((len(going), *x.shape), x.dtype), shapes)
    ascent, place = nowhere
    place = place._replace(log_likelihood=jnp.full(len(going), UNLIKELY, rows[0].dtype))
    nowhere = ascent._replace(orientation=rows[0]), place
    ascents, places = where_needed(approach, rows, going, nowhere, at_once)
    odds = log_odds(places.log_likelihood.reshape(shape), found.candidates.prior)
    leads = odds > odds.max(axis=1, keepdims=True) - config.behind
    going &= leads.reshape(-1)
    left = Polished(
        jax.vmap(orientation_at)(ascents, places.tilt),
        places.log_likelihood,
        jnp.full_like(places.log_likelihood, jnp.nan),
    )
    ended = where_needed(settle, (ascents, places), going, left, at_once)
    return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), ended)


def verify(
    patterns: Pattern,
    log_probability: Float[Array, "B n_cells"],
    phases: Sequence[CandidateTables],
    operations: Float[Array, "P n 3 3"],
    wavelength: float,
    k_max: float,
    config: ScoreConfig,
    log_odds: LogOdds,
    at_once: int | None = None,
) -> Ranked:
    """Candidates of patterns (B) from the network's distributions, polished and verified.

    `log_probability` is that of the cells of all phases, phase 0's first; `operations` are each
    phase's symmetry; `wavelength` in Å, `k_max` in 1/Å. Candidates that the search has brought to
    one place count once. Of so many patterns at once the candidates are looked at (all: None).
    """
    searched = lambda row: find(  # noqa: E731
        *row, phases, operations, wavelength, k_max, config
    )
    found = in_turns(searched, (patterns, log_probability), at_once)
    candidates, n = found.candidates, found.apart.shape[1]
    forwards = [tables.reflections for tables in phases]
    climbs_at_once = None if at_once is None else at_once * n
    best = climbed(patterns, found, forwards, wavelength, k_max, config, log_odds, climbs_at_once)
    final = replace(config.levels[-1], angle=0.0, n_turns=0, tilt=0.0, n_tilts=1)

    def scores(row):
        pattern, orientation, forward = row
        score = lambda r, f: search(r, pattern, f, wavelength, k_max, final, config)[1]  # noqa: E731
        return jax.vmap(score)(orientation, forward)

    score = in_turns(scores, (patterns, best.orientation, candidates.forward), at_once)
    return Ranked(
        best.orientation,
        candidates.phase,
        jnp.minimum(score, 1.0),
        best.log_likelihood,
        candidates.prior,
        best.thickness,
    )


def verify_dynamically(
    pattern: Pattern,
    ranked: Ranked,
    phases: Sequence[BlochTables],
    operations: Float[Array, "P n 3 3"],
    k_min: float,
    k_max: float,
    config: ScoreConfig,
) -> Ranked:
    """The likeliest different candidates of `ranked` again, by Bloch waves, with their thickness.

    `phases` are the tables of each crystal, `operations` their symmetry; `k_min`, `k_max` [1/Å]
    bound the disks that count. Candidates that trail too far behind keep their orientation and are
    given no chance, and so are all of a pattern without disks.
    """
    rules = config.dynamical
    lead = ranked.log_likelihood - ranked.log_likelihood.max()
    again = outdone(angles_between(ranked.orientation, ranked.phase, operations), lead)
    lead, chosen = jax.lax.top_k(
        jnp.where(again, -jnp.inf, lead), min(rules.n_candidates, len(lead))
    )
    ranked = jax.tree.map(lambda x: x[chosen], ranked)

    def judge(args):
        orientation, phase, lead = args
        branches = [
            lambda r, tables=tables: climb(
                r, pattern.observed, tables, k_min, k_max, rules, config.likelihood
            )
            for tables in phases
        ]
        unknown = jnp.asarray(jnp.nan, orientation.dtype)
        lost = lambda r: Polished(r, jnp.full_like(unknown, UNLIKELY), unknown)  # noqa: E731
        judged = (lead > -rules.behind) & pattern.observed.mask.any()
        which = jnp.where(judged, phase, len(phases))
        return jax.lax.switch(which, [*branches, lost], orientation)

    found = jax.lax.map(judge, (ranked.orientation, ranked.phase, lead))
    if config.fit is not None:
        found = fitted(pattern, found, ranked.phase, phases, k_min, k_max, config)
    return ranked._replace(
        orientation=found.orientation,
        log_likelihood=found.log_likelihood,
        thickness=found.thickness,
    )


def fitted(
    pattern: Pattern,
    found: Polished,
    phase: Int[Array, " C"],
    phases: Sequence[BlochTables],
    k_min: float,
    k_max: float,
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


def candidate_tables(
    grid: Float[np.ndarray, "n_cells 4"],
    operations: Float[np.ndarray, "n_operations 3 3"],
    reflectors: Reflectors,
    wavelength: float,
    lattice: Float[np.ndarray, "3 3"],
    n_visible: int = 64,
    n_neighbours: int = 15,
    n_siblings: int = 2,
) -> CandidateTables:
    """Tabulate a phase's grid (quaternions); set-up work, a few seconds for thousands of cells.

    Without siblings if `n_siblings` is 0. `lattice` holds a, b, c in Å as rows (for the low-index
    zone axes); `wavelength` in Å.
    """
    grid = jnp.asarray(grid, jnp.float32)
    operations = jnp.asarray(operations, jnp.float32)
    cells = so3.quaternion_to_matrix(grid)
    op_q = so3.matrix_to_quaternion(operations)
    n_visible = min(n_visible, len(reflectors.g))

    @jax.jit
    def visible_of(cell):
        s = excitation_error(reflectors.g @ cell, wavelength)
        nearby = np.deg2rad(VISIBLE_REACH) * jnp.linalg.norm(reflectors.g, axis=1)
        nearest = jnp.maximum(jnp.abs(s) - nearby, 0.0)
        intensity = expected_intensity(nearest, reflectors.inverse_extinction, 0.003)
        return jax.lax.top_k(intensity, n_visible)[1]

    neighbours, operation = nearest_cells(grid, grid, op_q, n_neighbours)
    near = operations[operation] @ cells[neighbours]
    offsets = so3.matrix_to_rotation_vector(jnp.swapaxes(cells, -1, -2)[:, None] @ near)

    visible = jax.lax.map(visible_of, cells, batch_size=256)
    found = (Forward(reflectors.g, reflectors.inverse_extinction), visible, jnp.asarray(neighbours))
    turns, axes = zone_axis_turns(lattice, np.asarray(operations))
    n_siblings = min(n_siblings, len(axes))
    if n_siblings == 0:
        return CandidateTables(cells, *found, offsets, None, None)
    cosine, axis = jax.lax.top_k(jnp.abs(cells[:, :, 2] @ axes.T), n_siblings)
    is_near = cosine > np.cos(np.deg2rad(SIBLING_REACH))
    turned = turns[axis] @ cells[:, None]
    index, operation = nearest_cells(so3.matrix_to_quaternion(turned).reshape(-1, 4), grid, op_q, 1)
    shape = is_near.shape
    back = jnp.swapaxes(operations, -1, -2)[operation.reshape(shape)]
    sibling = jnp.where(is_near, index.reshape(shape), jnp.arange(len(grid))[:, None])
    sibling_turn = jnp.where(is_near[..., None, None], back @ turns[axis], jnp.eye(3))
    return CandidateTables(cells, *found, offsets, sibling, sibling_turn)


def zone_axis_turns(
    lattice: Float[np.ndarray, "3 3"],
    operations: Float[np.ndarray, "n_operations 3 3"],
    largest_index: int = 2,
) -> tuple[Float[Array, "n 3 3"], Float[Array, "n 3"]]:
    """Turns by 180° about the zone axes [uvw] of indices up to `largest_index`, and those axes.

    Turns that are symmetry operations of the crystal are left out, for they change nothing.
    `lattice` in Å; axes are unit vectors in crystal Cartesian coordinates.
    """
    span = np.arange(-largest_index, largest_index + 1)
    uvw = np.stack(np.meshgrid(span, span, span, indexing="ij"), -1).reshape(-1, 3)
    uvw = uvw[np.gcd.reduce(uvw, axis=1) == 1]
    first = np.array([row[np.flatnonzero(row)[0]] > 0 for row in uvw])
    axes = uvw[first] @ lattice
    axes = axes / np.linalg.norm(axes, axis=1, keepdims=True)
    turns = 2 * axes[:, :, None] * axes[:, None, :] - np.eye(3)
    difference = np.abs(turns[:, None] - operations[None]).max(axis=(2, 3)).min(axis=1)
    keep = difference > 1e-3
    return jnp.asarray(turns[keep], jnp.float32), jnp.asarray(axes[keep], jnp.float32)
