# SPDX-License-Identifier: GPL-3.0-or-later
"""From padded disks to phases and orientations: predict, verify, summarise, batch by batch.

Patterns are sorted into a few lengths, so that a pattern with six disks does not pay for thirty,
and each length runs through one jitted program (network, candidates, verification, confidence) of
static shape, sharded over the mesh. The verdict is one distribution over the verified candidates of
all phases and "no crystal": the likeliest phase is reported, its best candidate, and as confidence
the probability of those within five degrees of it.

A scan streams through (`stream_answers`): one thread reads pieces of it and sorts their patterns
into batches, several feed the devices, and the answers come out piece by piece in the scan's order.
What concerns the scan as a whole, its lengths and its detection limit, is taken from a sample of
its pieces before (`survey`). Patterns of one length wait for others of later pieces, so that
batches are full, but not for long: memory does not grow with the scan.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int
from tqdm import tqdm

from jaxstem import parallel, so3
from jaxstem.bloch import prepare
from jaxstem.grid import OrientationSpace, half_angle_cosine, nearest_cells
from jaxstem.io import NO_CRYSTAL, UNASSIGNED, DiskScan, DiskSource, joined, pad_disks, source_of
from jaxstem.kept import kept, written_by
from jaxstem.kinematic import Disks
from jaxstem.library import grid_content
from jaxstem.match import Matcher, Templates, kept_templates, matcher
from jaxstem.model import NEVER, Material, Model, phases_space
from jaxstem.programs import kept_pmap
from jaxstem.refine import (
    EXACT,
    THOROUGH,
    CandidateTables,
    Limit,
    Ranked,
    ScoreConfig,
    angles_between,
    angles_to,
    candidate_tables,
    modes,
    outdone,
    pattern_of,
    verify,
    verify_dynamically,
)
from jaxstem.turns import in_turns

MIN_DISKS = 2
"""A pattern with fewer disks fits too many orientations to be given any."""

FALSE_FACTOR = 4.0
"""How much stronger than the detection limit a lone disk may be and still count as false."""

N_RADII = 41
"""Radii at which the detection limit is known."""

BEAM_K_MAX = 3.0
"""Reflections [1/Å] that take part in dynamical scattering."""

WITHIN = np.deg2rad(5.0)

PIECE = 1 << 14
"""Positions that are read at once."""

SAMPLE = 1 << 18
"""Positions from which lengths and detection limit of a scan are taken: all, if there are fewer."""

OPEN = 64
"""Pieces that may wait for the last of their answers; then batches go out partly filled."""

BY_BLOCH_WAVES = ("full", "exact")
"""Kinds of refinement that judge by Bloch waves."""

ON_CPU = {"none": 128, "fast": 128, "full": 32, "exact": 8}
"""Patterns a step on CPUs. The last step is filled up with empty ones."""

ON_ACCELERATOR = {"none": 8192, "fast": 4096, "full": 128, "exact": 128}
"""Patterns a step on each device where the devices are no CPUs."""

LENGTHS = {
    "none": tuple(range(4, 41, 4)),
    "fast": (8, 16, 24, 32, 40),
    "full": (8, 16, 24, 32, 40),
    "exact": (8, 16, 24, 32, 40),
}
"""Numbers of disks to which patterns may be padded. On CPUs verification takes as long for those
between two multiples of eight as for the greater one.
"""

UNVERIFIED = ScoreConfig(n_modes=12)
"""The network alone takes the likeliest of its modes, and needs the next ones for its doubt."""

AT_ONCE = 16
"""Patterns whose modes are compared at once on a CPU: what fits its cache."""

WORTH_A_LENGTH = {"none": 2048, "fast": 4096, "full": 256, "exact": 64}
"""Patterns that take as long as loading one more program that was kept: a tenth of a second where
there is no verification, half a second where there is; and twice as many, for the first time it
must be compiled.
"""

WORTH_A_LENGTH_ON_ACCELERATOR = {
    "none": 1 << 20,
    "fast": 1 << 20,
    "full": 1 << 12,
    "exact": 1 << 10,
}
"""The same where the devices are no CPUs: patterns take a hundredth of the time there, and programs
half a minute to compile.
"""

USUAL = 8
"""Disks of the patterns that `WORTH_A_LENGTH` counts."""

BESIDE_DISKS = {"none": 10, "fast": 10, "full": 200, "exact": 200}
"""What a pattern costs whatever the number of its disks, as so many disks (measured on CPUs)."""


class Answer(NamedTuple):
    """What a pattern is reported as; leading axes are the patterns'.

    phase: index of the crystal, or NO_CRYSTAL, with NaN as orientation and score; confidence:
    probability that the phase is right and the truth within 5° (NaN where it is not known: a
    nine-number network alone); confidence_mod180: the same, the turn by 180° about the beam
    counting too; phase_confidence: probability of the phase. second_*: the best candidate that is
    of another phase or more than 5° from the answer; thickness [Å], where Bloch waves told it.
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


@dataclass(frozen=True)
class InferConfig:
    """How answers are made.

    refine: "fast": verify and polish candidates by two-beam theory; "full": more of them, then by
    Bloch waves; "exact": these fitted to intensities; "none": the network alone; score: how (None:
    as suits `refine`); likelihood_weight,
    prior_weight: weights of the log-likelihood and of the network's log-probability in the log-odds
    of a candidate (below one, since neither model is exact and both saw the same disks; None for
    the prior: 0.5, or 0.05 beside Bloch waves, which leave the network little to add); chance:
    log-likelihood [nat] that counts for nothing, since some orientation reaches it on false disks
    alone: a crystal must exceed it to be believed (with the matcher in place of a network, 43
    positions of vacuum reached -6 in the median and 5 at most, crystals with two disks 9); lengths:
    numbers of disks to which patterns may be padded, ascending (None: `LENGTHS`); batch: patterns a
    step (None: `ON_CPU` or `ON_ACCELERATOR`); chunk: patterns verified at once within it (what fits
    a processor's cache); least: patterns whose work a length of their own must save to be worth its
    program (None: `WORTH_A_LENGTH`); precision: of the network, "float32" or "bfloat16"
    (verification is in float32); cache: folder that keeps templates and compiled programs for the
    next time, if one does.
    """

    refine: str = "fast"
    score: ScoreConfig | None = None
    likelihood_weight: float = 0.25
    prior_weight: float | None = None
    chance: float = 6.0
    lengths: tuple[int, ...] | None = None
    batch: int | None = None
    chunk: int = 4
    least: int | None = None
    precision: str = "float32"
    cache: Path | None = None

    def log_odds(
        self, log_likelihood: Float[Array, "..."], prior: Float[Array, "..."]
    ) -> Float[Array, "..."]:
        """Log-odds from a log-likelihood [nat] and the network's log-probability."""
        weight = self.prior_weight
        if weight is None:
            weight = 0.05 if self.refine in BY_BLOCH_WAVES else 0.5
        return self.likelihood_weight * log_likelihood + weight * prior

    @property
    def rules(self) -> ScoreConfig:
        """How candidates are found and verified."""
        usual = {"none": UNVERIFIED, "fast": ScoreConfig(), "full": THOROUGH, "exact": EXACT}
        return self.score or usual[self.refine]

    def batch_on(self, mesh: Mesh) -> int:
        """Patterns a step, a multiple of the number of devices."""
        on_cpu = mesh.devices.flat[0].platform == "cpu"
        usual = ON_CPU[self.refine] if on_cpu else ON_ACCELERATOR[self.refine] * mesh.size
        return -(-(self.batch or usual) // mesh.size) * mesh.size


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
    log_odds = config.log_odds(ranked.log_likelihood, ranked.prior)
    of_none = config.log_odds(config.chance, no_crystal)
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
    turned = answer @ jnp.asarray(so3.HALF_TURN_ABOUT_BEAM, answer.dtype)
    from_turned = angles_to(
        so3.matrix_to_quaternion(turned), ranked.orientation, ranked.phase, operations
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
    )


def spread(
    output: Float[Array, " n_out"], space: OrientationSpace
) -> Float[Array, " n_cells_plus_1"]:
    """Log-probabilities from a nine-number head: the cells near its rotation share as a label does.

    A logit for each phase follows the nine numbers where there are several phases; this head does
    not know of patterns without a crystal.
    """
    q = so3.matrix_to_quaternion(so3.nearest_rotation(output[:9].reshape(3, 3)))
    of_phase = jax.nn.log_softmax(output[9:]) if space.n_phases > 1 else jnp.zeros(1)
    parts = []
    for phase, (operations, width) in enumerate(
        zip(space.operation_quaternions, space.label_width, strict=True)
    ):
        cosine = half_angle_cosine(q, space.cells, operations)
        angle = 2.0 * jnp.arccos(jnp.minimum(cosine, 1.0))
        closeness = jnp.where(space.phase == phase, -0.5 * (angle / width) ** 2, -jnp.inf)
        parts.append(of_phase[phase] + jax.nn.log_softmax(closeness))
    return jnp.append(jnp.stack(parts).max(axis=0), NEVER)


def joint_operations(materials: Sequence[Material]) -> Float[Array, "P n 3 3"]:
    """Each phase's symmetry, repeated to one number of operations for all."""
    n = max(len(m.operations) for m in materials)
    return jnp.asarray(
        np.stack([np.resize(m.operations, (n, 3, 3)) for m in materials]), jnp.float32
    )


@jax.jit
def _offsets(cells, neighbours, operations):
    near = operations @ cells[neighbours]
    return so3.matrix_to_rotation_vector(jnp.swapaxes(cells, -1, -2)[:, None] @ near)


def mode_tables(material: Material, n_neighbours: int = 15) -> CandidateTables:
    """What of `candidate_tables` the modes of a distribution need: cells, neighbours, offsets."""
    grid = np.asarray(material.grid, np.float32)
    operations = jnp.asarray(material.operations, jnp.float32)
    turns = jax.jit(so3.matrix_to_quaternion)(operations)
    neighbours, operation = nearest_cells(grid, grid, turns, n_neighbours)
    cells = jax.jit(so3.quaternion_to_matrix)(grid)
    neighbours = jnp.asarray(neighbours, jnp.int32)
    offsets = _offsets(cells, neighbours, operations[operation])
    return CandidateTables(cells, None, None, neighbours, offsets, None, None)


def phase_tables(model: Model, refine: str) -> list[CandidateTables]:
    """What is tabulated of each phase's grid for this kind of refinement."""
    if refine == "none":
        return [mode_tables(m) for m in model.materials]
    n_siblings = 2 if refine in BY_BLOCH_WAVES else 0
    return [
        candidate_tables(
            m.grid,
            m.operations,
            m.reflectors(),
            m.wavelength,
            m.crystal.lattice,
            n_siblings=n_siblings,
        )
        for m in model.materials
    ]


def predict_content(model: Model, config: InferConfig) -> dict[str, Any]:
    """What decides the program of `make_predict`, and the tables that it takes, besides the code
    and the shapes of its arguments; in what JSON can hold.
    """
    settings = replace(config, score=config.rules, lengths=None, least=None, cache=None)
    return {
        "materials": list(map(grid_content, model.materials)),
        "network": repr(model.network),
        "settings": repr((model.config, model.matching, settings)),
    }


def kept_tables(
    model: Model, config: InferConfig, content: dict[str, Any]
) -> list[CandidateTables]:
    """`phase_tables`, from the folder `config.cache` where an earlier run left them."""
    content = {"code": written_by(), **content}
    make = lambda: jax.device_get(phase_tables(model, config.refine))  # noqa: E731
    return kept(config.cache, "candidates", content, make)


def scorer(
    model: Model, precision: str = "float32", cache: Path | None = None
) -> tuple[Callable[[Any, Templates | None, Disks], Float[Array, "B n_out"]], Templates | None]:
    """A function (params, templates, disks (B, K)) to the output of the model's head, with the
    network in this precision, and the templates that it corrects (`kept_templates` in `cache`);
    None where it stands alone.
    """
    network = model.network
    if isinstance(network, Matcher):
        return lambda params, _, disks: network.apply({"params": params}, disks), None
    if precision == "bfloat16":
        network = network.clone(dtype=jnp.bfloat16)
    if not model.config.corrects_templates:
        return lambda params, _, disks: network.apply({"params": params}, disks), None
    under = matcher(model.materials, model.matching)

    def corrected(params, templates, disks):
        prior = under.apply({"params": templates}, disks)
        return network.apply({"params": params}, disks, prior)

    return corrected, kept_templates(model.materials, model.matching, cache)


def make_predict(model: Model, config: InferConfig, mesh: Mesh) -> Callable[..., Answer]:
    """The jitted `(params, disks (B, K), exposed) -> Answer`, sharded over B.

    `exposed` is the `Exposure` of the B positions. B must divide among the devices. One compilation
    for each K.
    """
    scores, made = scorer(model, config.precision, config.cache)
    rules, matrix = config.rules, model.config.head == "matrix"
    space = phases_space(model.materials) if matrix else None
    operations = joint_operations(model.materials)
    # as an argument, for a program that holds tables as constants is slow to compile and to load
    content = predict_content(model, config)
    phases = kept_tables(model, config, content)
    tables = parallel.replicate((phases, made), mesh)

    dynamical = (
        [prepare(m.crystal, m.voltage_kv, BEAM_K_MAX, m.u_iso) for m in model.materials]
        if config.refine in BY_BLOCH_WAVES
        else None
    )

    def verified(disks: Disks, exposed: Exposure, log_probability, phases) -> Answer:
        """Answers for a batch; `at_once` of its patterns are looked at in turn on a CPU."""
        on_cpu = jax.default_backend() == "cpu"
        prepare_one = lambda row: pattern_of(*row, exposed.limit, rules.measured_power)  # noqa: E731
        patterns = jax.vmap(prepare_one)((disks, *exposed[:3]))
        ranked = verify(
            patterns,
            log_probability,
            phases,
            operations,
            model.wavelength,
            model.k_max,
            rules,
            config.log_odds,
            config.chunk if on_cpu else None,
        )

        def judged(row):
            pattern, ranked, no_crystal = row
            if dynamical is not None:
                ranked = verify_dynamically(
                    pattern, ranked, dynamical, operations, model.k_min, model.k_max, rules
                )
            return summarise(ranked, no_crystal, operations, config)

        # by Bloch waves one by one, so that lost candidates cost nothing
        at_once = 1 if dynamical is not None else AT_ONCE
        rows = (patterns, ranked, log_probability[:, -1])
        return in_turns(judged, rows, at_once if on_cpu else None)

    def network_alone(output, log_probability, phases) -> Answer:
        ends = np.cumsum([len(tables.cells) for tables in phases])
        found = [
            modes(part, tables, rules.n_modes)[1:]
            for part, tables in zip(jnp.split(log_probability[:-1], ends[:-1]), phases, strict=True)
        ]
        phase = np.concatenate([np.full(len(r), p) for p, (r, _) in enumerate(found)])
        orientation, prior = (jnp.concatenate(x) for x in zip(*found, strict=True))
        nothing, unknowns = jnp.zeros_like(prior), jnp.full_like(prior, jnp.nan)
        ranked = Ranked(orientation, jnp.asarray(phase), nothing, nothing, prior, unknowns)
        by_prior = replace(config, likelihood_weight=0.0, prior_weight=1.0)
        answer = summarise(ranked, log_probability[-1], operations, by_prior)
        unknown = jnp.full_like(answer.score, jnp.nan)
        answer = answer._replace(score=unknown, second_score=unknown)
        if not matrix:
            return answer
        # one rotation comes without a rival and without a measure of its own doubt
        return answer._replace(
            orientation=so3.nearest_rotation(output[:9].reshape(3, 3)),
            confidence=unknown,
            confidence_mod180=unknown,
            second_orientation=jnp.full_like(answer.second_orientation, jnp.nan),
            second_phase=jnp.full_like(answer.second_phase, UNASSIGNED),
        )

    def step(given, disks: Disks, incident, incident_sigma, is_cut, limit) -> Answer:
        params, (phases, made) = given
        strongest = jax.tree.map(lambda x: x[:, : model.config.n_disks], disks)
        output = scores(params, made, strongest)
        on_cpu = jax.default_backend() == "cpu"

        def spread_out(output):
            return spread(output, space) if matrix else jax.nn.log_softmax(output)

        if config.refine == "none":
            alone = lambda output: network_alone(output, spread_out(output), phases)  # noqa: E731
            return in_turns(alone, output, AT_ONCE if on_cpu else None)
        log_probability = in_turns(spread_out, output, AT_ONCE if on_cpu else None)
        exposed = Exposure(incident, incident_sigma, is_cut, limit)
        return verified(disks, exposed, log_probability, phases)

    sharded, replicated = parallel.SHARDED, parallel.REPLICATED
    specs = (replicated, *[sharded] * 4, replicated)
    program = kept_pmap(step, mesh, specs, sharded, content, config.cache)
    return lambda params, disks, exposed: program((params, tables), disks, *exposed)


class Exposure(NamedTuple):
    """What the intensities of a scan's disks mean.

    Per position: intensity of the incident beam in the disks' units, how well its logarithm is
    known, and whether disks weaker than those given were left out. For the whole scan: the weakest
    disks that are listed.
    """

    incident: Float[np.ndarray, " positions"]
    incident_sigma: Float[np.ndarray, " positions"]
    is_cut: Bool[np.ndarray, " positions"]
    limit: Limit

    def at(self, index: Int[np.ndarray, " n"]) -> Exposure:
        """The same for some positions."""
        return Exposure(*(x[index] for x in self[:3]), self.limit)


def exposure(
    scan: DiskScan,
    k_min: float,
    k_max: float,
    limit: Limit | None = None,
) -> Exposure:
    """Incident intensity of every position of a scan, and its detection limit if none is given.

    Where the direct beam (a disk within `k_min`, 1/Å) is listed, the incident beam is the sum of
    all disks; elsewhere the disks are taken to hold 30 % of it, give or take a factor of
    twenty.
    """
    counts = np.diff(scan.offsets)
    position = np.repeat(np.arange(len(counts)), counts)
    positive = np.maximum(scan.intensity, 0.0).astype(np.float64)
    # each position by itself: what is read with it must not change its last digit
    total = np.bincount(position, positive, minlength=len(counts))
    radius = np.hypot(scan.qx, scan.qy)
    direct = radius <= k_min
    has_direct = np.bincount(position[direct], minlength=len(counts)) > 0
    incident = np.where(has_direct, total, total / 0.3)
    incident = np.where(incident > 0, incident, 1.0)
    if limit is None:
        share = positive / incident[position]
        usable = ~direct & (share > 0)
        limit = detection_limit(position[usable], radius[usable], share[usable], k_max)
    sigma = np.where(has_direct, 0.1, 3.0)
    whole = np.zeros(len(counts), bool)
    return Exposure(incident.astype(np.float32), sigma.astype(np.float32), whole, limit)


def detection_limit(
    position: Int[np.ndarray, " n"],
    radius: Float[np.ndarray, " n"],
    share: Float[np.ndarray, " n"],
    k_max: float,
) -> Limit:
    """The weakest disks listed, from all disks: their position in the scan, radius [1/Å] and share
    of the beam.

    Either disks above some share of the beam were listed: that at a radius below which 4 % of the
    disks near it lie, for the diffuse background hides more of them near the direct beam (where
    disks are few, near it means all). Or all above some ratio to the strongest of their pattern:
    that which one pattern in a hundred spans, of those with four disks or more. If that ratio to
    the strongest is in most patterns brighter than the limit by share, it was what decided;
    otherwise it only tells how bright the brightest patterns are.
    """
    of_pattern = np.unique(position, return_inverse=True)[1]
    number = np.bincount(of_pattern)
    weakest, strongest = np.full(len(number), np.inf), np.zeros(len(number))
    np.minimum.at(weakest, of_pattern, share)
    np.maximum.at(strongest, of_pattern, share)
    weakest, strongest = weakest[number >= 4], strongest[number >= 4]
    if len(weakest) >= 20:
        ratio = np.percentile(weakest / strongest, 1.0)
        if np.median(ratio * strongest) > np.percentile(share, 4.0):
            lowest = np.full(N_RADII, np.log(share.min()), np.float32)
            return Limit(lowest, np.log(ratio).astype(np.float32))
    order = np.argsort(radius)
    radius, share = radius[order], share[order]
    overall = np.percentile(share, 4.0) if len(share) else 1e-3
    limit = np.full(N_RADII, overall)
    for place, centre in enumerate(np.linspace(0.0, k_max, N_RADII)):
        near = share[
            slice(*np.searchsorted(radius, [centre - 0.06 * k_max, centre + 0.06 * k_max]))
        ]
        if len(near) >= 50:
            limit[place] = np.percentile(near, 4.0)
    return Limit(np.log(limit).astype(np.float32), np.float32(-np.inf))


def choose_lengths(
    counts: Int[np.ndarray, " positions"],
    lengths: Sequence[int],
    program: float,
    beside: float = 0,
) -> tuple[int, ...]:
    """Those of the ascending `lengths` to which patterns are best padded.

    They make the work least, counted in disks: a pattern costs as many as it is padded to and
    `beside`, a length in use `program`. Empty where no position has `MIN_DISKS`.
    """
    place = np.minimum(np.searchsorted(lengths, counts), len(lengths) - 1)
    number = np.bincount(place[counts >= MIN_DISKS], minlength=len(lengths))
    # cheapest way to serve all patterns up to each length, it being the last in use
    best: list[tuple[float, tuple[int, ...]]] = []
    for i, length in enumerate(lengths):
        options = [(number[: i + 1].sum() * (length + beside) + program, (length,))]
        for j, (cost, used) in enumerate(best):
            more = number[j + 1 : i + 1].sum() * (length + beside) + program
            options.append((cost + more, (*used, length)))
        best.append(min(options))
    occupied = np.flatnonzero(number)
    return best[occupied[-1]][1] if len(occupied) else ()


def length_of(
    counts: Int[np.ndarray, " positions"], lengths: Sequence[int]
) -> Int[np.ndarray, " positions"]:
    """Which of the `lengths` each position is padded to; -1 where it has less than `MIN_DISKS`.

    The shortest that holds its disks, or the longest one, which then keeps its strongest.
    """
    place = np.minimum(np.searchsorted(lengths, counts), len(lengths) - 1)
    return np.where(counts >= MIN_DISKS, place, -1)


def count_disks(scan: DiskScan, k_min: float, k_max: float) -> Int[np.ndarray, " positions"]:
    """Number of usable disks at each position: positive, with k_min < |q| <= k_max [1/Å]."""
    radius = np.hypot(scan.qx, scan.qy)
    usable = (radius > k_min) & (radius <= k_max) & (scan.intensity > 0)
    before = np.concatenate([[0], np.cumsum(usable)])
    return np.diff(before[scan.offsets])


def looks_empty(scan: DiskScan, k_min: float, exposed: Exposure) -> Bool[np.ndarray, " positions"]:
    """Where there is no crystal by the count of disks alone: one beyond `k_min` [1/Å] at most, and
    that within `FALSE_FACTOR` of the detection limit. A brighter one comes from some crystal.
    """
    counts = count_disks(scan, k_min, np.inf)
    share = scan.intensity / np.repeat(exposed.incident, np.diff(scan.offsets))
    beyond = np.hypot(scan.qx, scan.qy) > k_min
    is_bright = beyond & (share > FALSE_FACTOR * np.exp(exposed.limit.log_share.min()))
    bright = np.concatenate([[0], np.cumsum(is_bright)])
    return (counts <= 1) & (np.diff(bright[scan.offsets]) == 0)


class Survey(NamedTuple):
    """What is known of a scan as a whole before it is worked on.

    limit: the weakest disks listed; lengths: to which patterns are padded; pieces: those read for
    it, by first and last row.
    """

    limit: Limit
    lengths: tuple[int, ...]
    pieces: dict[tuple[int, int], DiskScan]


def survey(source: DiskSource, model: Model, config: InferConfig) -> Survey:
    """Lengths and detection limit from `SAMPLE` positions in pieces spread evenly over the scan.

    From all positions of a smaller scan. Raises InputError as `source.read` does.
    """
    ranges = source.pieces(PIECE)
    n_positions = int(np.prod(source.scan_shape))
    n_read = max(1, min(len(ranges), len(ranges) * SAMPLE // max(n_positions, 1)))
    chosen = np.unique(np.linspace(0, len(ranges) - 1, n_read).round().astype(int))
    pieces = {ranges[i]: source.read(*ranges[i]) for i in chosen}
    scan = joined(list(pieces.values()))
    counts = count_disks(scan, model.k_min, model.k_max)
    lengths = ladder(model, config)
    share = max(n_positions, 1) / max(len(counts), 1)
    on_cpu = jax.default_backend() == "cpu"
    usual = WORTH_A_LENGTH if on_cpu else WORTH_A_LENGTH_ON_ACCELERATOR
    least = usual[config.refine] if config.least is None else config.least
    beside = BESIDE_DISKS[config.refine]
    program = least / share * (USUAL + beside)
    return Survey(
        exposure(scan, model.k_min, model.k_max).limit,
        choose_lengths(counts, lengths, program, beside) or lengths[:1],
        pieces,
    )


def ladder(model: Model, config: InferConfig) -> tuple[int, ...]:
    """Lengths to choose from; the network alone has no use for more disks than it knows."""
    lengths = config.lengths or LENGTHS[config.refine]
    if config.refine != "none":
        return lengths
    longest = min(model.config.n_disks, lengths[-1])
    return (*(length for length in lengths if length < longest), longest)


@dataclass(eq=False)
class Piece:
    """Some rows of a scan on their way: which piece and its first flat position, the answers so
    far, the number of disks, and how many positions lack their answers.
    """

    number: int
    first: int
    answer: Answer
    counts: Int[np.ndarray, " positions"]
    left: int


Where = list[tuple[Piece, Int[np.ndarray, " n"]]]
"""Where patterns belong that come one after the other: pieces and the positions within each."""


class Batch(NamedTuple):
    """Patterns of one length, the last one repeated to fill it up, and where they belong."""

    disks: Disks
    exposed: Exposure
    where: Where


def no_disks(size: int, length: int, limit: Limit) -> Batch:
    """A batch of `size` patterns of this length, none of which has a disk."""
    numbers, ones = np.zeros((size, length), np.float32), np.ones(size, np.float32)
    disks = Disks(numbers, numbers, numbers, np.zeros((size, length), bool))
    return Batch(disks, Exposure(ones, ones, np.zeros(size, bool), limit), [])


@dataclass
class Shelf:
    """Patterns of one length that wait for a batch: arrays in parts, and where they belong."""

    number: int = 0
    parts: list[tuple[np.ndarray, ...]] = field(default_factory=list)
    where: Where = field(default_factory=list)

    def put(self, arrays: tuple, piece: Piece, index: Int[np.ndarray, " n"]) -> None:
        """Add the patterns at these positions of a piece."""
        self.parts.append(arrays)
        self.where.append((piece, index))
        self.number += len(index)

    def take(self, size: int, rest: bool) -> list[tuple[tuple[np.ndarray, ...], Where]]:
        """Lots of `size` patterns, and with `rest` a last one of what is left over."""
        arrays = tuple(np.concatenate(x) for x in zip(*self.parts, strict=True))
        ends = np.cumsum([len(index) for _, index in self.where])

        def lot(start: int, stop: int):
            where = [
                (piece, index[max(start - end + len(index), 0) : stop - end + len(index)])
                for (piece, index), end in zip(self.where, ends, strict=True)
                if end > start and end - len(index) < stop
            ]
            return tuple(x[start:stop] for x in arrays), where

        taken = self.number if rest else self.number // size * size
        lots = [lot(start, min(start + size, taken)) for start in range(0, taken, size)]
        left, self.where = lot(taken, self.number)
        self.parts, self.number = [left], self.number - taken
        return lots


def unanswered(number: int, first: int, scan: DiskScan, model: Model, exposed: Exposure) -> Piece:
    """A piece before its patterns are looked at: no crystal where the count of disks says so."""
    n = len(scan.offsets) - 1
    counts = count_disks(scan, model.k_min, model.k_max)
    empty = looks_empty(scan, model.k_min, exposed)
    no_rotation, unknown = np.full((2, n, 3, 3), np.nan, np.float32), np.full(n, np.nan, np.float32)
    confidence = np.where(empty, np.nan, 0.0).astype(np.float32)
    answer = Answer(
        orientation=no_rotation[0],
        phase=np.where(empty, NO_CRYSTAL, UNASSIGNED).astype(np.int32),
        score=unknown.copy(),
        confidence=confidence.copy(),
        confidence_mod180=confidence.copy(),
        phase_confidence=confidence.copy(),
        second_orientation=no_rotation[1],
        second_phase=np.full(n, UNASSIGNED, np.int32),
        second_score=unknown.copy(),
        thickness=unknown.copy(),
    )
    return Piece(number, first, answer, counts, int((counts >= MIN_DISKS).sum()))


def batches(
    source: DiskSource,
    model: Model,
    config: InferConfig,
    known: Survey,
    rows: tuple[int, int],
    batch: int,
) -> Iterator[Piece | Batch]:
    """The pieces between two rows in order, and the batches that hold their patterns.

    A piece comes before any batch with patterns of it. Batches are full, but for the last of each
    length and for those that would keep a piece waiting longer than `OPEN` others.
    """
    k_min, k_max = model.k_min, model.k_max
    shelves = [Shelf() for _ in known.lengths]
    ranges = replace(source, scan_shape=(rows[1] - rows[0], source.scan_shape[1])).pieces(PIECE)

    def filled(shelf: Shelf, rest: bool) -> Iterator[Batch]:
        for arrays, where in shelf.take(batch, rest):
            missing = batch - len(arrays[0])
            *disks, incident, sigma, is_cut = (
                np.concatenate([x, np.repeat(x[-1:], missing, 0)]) if missing else x for x in arrays
            )
            yield Batch(Disks(*disks), Exposure(incident, sigma, is_cut, known.limit), where)

    for number, (start, stop) in enumerate(ranges):
        start, stop = start + rows[0], stop + rows[0]
        scan = known.pieces.pop((start, stop), None) or source.read(start, stop)
        exposed = exposure(scan, k_min, k_max, known.limit)
        first = (start - rows[0]) * source.scan_shape[1]
        piece = unanswered(number, first, scan, model, exposed)
        yield piece
        place = length_of(piece.counts, known.lengths)
        for i, (length, shelf) in enumerate(zip(known.lengths, shelves, strict=True)):
            index = np.flatnonzero(place == i)
            if len(index):
                disks = pad_disks(scan, index, k_max, k_min, length)
                beam = exposed.incident[index], exposed.incident_sigma[index]
                shelf.put((*disks, *beam, piece.counts[index] > length), piece, index)
            if shelf.number and shelf.where[0][0].number < number - OPEN:
                yield from filled(shelf, rest=True)
            elif shelf.number >= batch:
                yield from filled(shelf, rest=False)
    for shelf in shelves:
        if shelf.number:
            yield from filled(shelf, rest=True)


def stream_answers(
    model: Model,
    source: DiskSource,
    config: InferConfig | None = None,
    *,
    rows: tuple[int, int] | None = None,
    mesh: Mesh | None = None,
    progress: bool | None = None,
) -> Iterator[tuple[int, Answer, Int[np.ndarray, " positions"]]]:
    """Answers for all positions of a scan, or of its rows from `rows[0]` to `rows[1] - 1`, piece by
    piece in order: first flat position (counted from the first row asked for), answers, disk
    counts.

    Positions with fewer than `MIN_DISKS` have no crystal where they look empty and are unassigned
    elsewhere, their confidence being NaN and 0. Each length compiles once. Reading, work and what
    the caller does overlap. Raises InputError as `source.read` does.
    """
    config = config or InferConfig()
    if config.refine not in ("none", "fast", *BY_BLOCH_WAVES):
        raise ValueError(f'refine is {config.refine!r}: give "none", "fast", "full" or "exact"')
    if config.precision not in ("float32", "bfloat16"):
        raise ValueError(f'precision is {config.precision!r}: give "float32" or "bfloat16"')
    mesh = mesh or parallel.make_mesh(jax.local_devices())
    rows = rows or (0, source.scan_shape[0])
    total = (rows[1] - rows[0]) * source.scan_shape[1]
    disable = None if progress is None else not progress
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(ThreadPoolExecutor(1))
        surveyed = reader.submit(survey, source, model, config)
        predict = make_predict(model, config, mesh)
        params = parallel.replicate(model.params, mesh)
        n_workers = workers(mesh)
        crew = stack.enter_context(ThreadPoolExecutor(n_workers))
        bar = stack.enter_context(tqdm(total=total, unit="position", disable=disable))
        known = surveyed.result()
        size = config.batch_on(mesh)

        def prepare(length: int) -> None:
            nothing = no_disks(size, length, known.limit)
            jax.block_until_ready(predict(params, nothing.disks, nothing.exposed))

        ready: dict[int, Future] = {}
        found = batches(source, model, config, known, rows, size)
        coming = stack.enter_context(contextlib.closing(read_ahead(found, 2 * n_workers)))

        def work(batch: Batch) -> Answer:
            ready[batch.disks.qx.shape[1]].result()
            return jax.device_get(predict(params, batch.disks, batch.exposed))

        pieces: deque[Piece] = deque()
        pending: deque = deque()

        def collect() -> None:
            where, future = pending.popleft()
            answer, start = future.result(), 0
            for piece, index in where:
                for into, values in zip(piece.answer, answer, strict=True):
                    into[index] = values[start : start + len(index)]
                start += len(index)
                piece.left -= len(index)

        for item in coming:
            if isinstance(item, Piece):
                pieces.append(item)
            else:
                # side by side and before all work, so that no worker waits for another's program;
                # not before there is any, for a scan may be empty
                ready = ready or {n: crew.submit(prepare, n) for n in known.lengths}
                pending.append((item.where, crew.submit(work, item)))
            while len(pending) > 2 * n_workers:
                collect()
            # the newest piece may still be waiting for its batches to be made up
            while len(pieces) > 1 and not pieces[0].left:
                yield _done(pieces.popleft(), bar)
        while pending:
            collect()
        while pieces:
            yield _done(pieces.popleft(), bar)


def _done(piece: Piece, bar: tqdm) -> tuple[int, Answer, Int[np.ndarray, " positions"]]:
    bar.update(len(piece.counts))
    return piece.first, piece.answer, piece.counts


def workers(mesh: Mesh) -> int:
    """Threads that feed a mesh: one for each core of a CPU, for XLA leaves most of a program to a
    single one; enough elsewhere that a batch waits while another is worked on.
    """
    if mesh.devices.flat[0].platform != "cpu":
        return 3
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, cores // mesh.size)


def read_ahead(items: Iterator[Any], depth: int) -> Iterator[Any]:
    """The same items, made up to `depth` ahead by a thread of their own.

    Its exceptions are raised here. Closing the iterator ends the thread.
    """
    ready: queue.Queue = queue.Queue(depth)
    stop = threading.Event()

    def put(entry) -> bool:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(entry, timeout=0.1)
                return True
        return False

    def run() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((None, StopIteration()))
        except BaseException as error:  # whatever it is, the reader must hear of it
            put((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        stop.set()
        thread.join()


def predict_scan(
    model: Model,
    scan: DiskScan | DiskSource,
    config: InferConfig | None = None,
    *,
    mesh: Mesh | None = None,
    progress: bool | None = None,
) -> tuple[Answer, Int[np.ndarray, " positions"]]:
    """Answers for all positions of a scan (flat), and disk counts: `stream_answers`, in memory."""
    source = scan if isinstance(scan, DiskSource) else source_of(scan)
    found = list(stream_answers(model, source, config, mesh=mesh, progress=progress))
    _, answers, counts = zip(*found, strict=True)
    return Answer(*map(np.concatenate, zip(*answers, strict=True))), np.concatenate(counts)


class RankedCells(NamedTuple):
    """The network's likeliest cells, best first, and the phase of each."""

    orientation: Float[np.ndarray, "positions n_cells 3 3"]
    phase: Int[np.ndarray, "positions n_cells"]


def likeliest_cells(
    model: Model, scan: DiskScan, n_cells: int = 64, batch: int = 256
) -> RankedCells:
    """The network's `n_cells` likeliest phases and orientations, before verification.

    NaN and unassigned where a position has too few disks. Tells missing candidates from wrong
    ranking. Raises ValueError for a network without the grid head.
    """
    if model.config.head != "grid":
        raise ValueError("only the grid head ranks cells")
    space = phases_space(model.materials)
    counts = count_disks(scan, model.k_min, model.k_max)
    cells, phase = np.asarray(so3.quaternion_to_matrix(space.cells)), np.asarray(space.phase)
    scores, made = scorer(model)
    best = jax.jit(lambda *given: jax.lax.top_k(scores(*given)[:, :-1], n_cells)[1])
    found = RankedCells(
        np.full((len(counts), n_cells, 3, 3), np.nan, np.float32),
        np.full((len(counts), n_cells), UNASSIGNED),
    )
    chosen = np.flatnonzero(counts >= MIN_DISKS)
    longest = model.config.n_disks
    for start in range(0, len(chosen), batch):
        index = chosen[start : start + batch]
        padded = np.resize(index, batch)
        disks = Disks(*pad_disks(scan, padded, model.k_max, model.k_min, longest))
        ranked = np.asarray(best(model.params, made, disks))[: len(index)]
        found.orientation[index], found.phase[index] = cells[ranked], phase[ranked]
    return found
