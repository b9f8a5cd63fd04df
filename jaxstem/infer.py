# SPDX-License-Identifier: GPL-3.0-or-later
"""From padded disks to phases and orientations: predict, verify, summarise, batch by batch.

Patterns are sorted into a few lengths, so that a pattern with six disks does not pay for thirty,
and each length runs through one jitted program (network, candidates, verification, confidence) of
static shape, sharded over the mesh. The verdict is one distribution over the verified candidates of
all phases and "no crystal": the likeliest phase is reported, its best candidate, and as confidence
the probability of those within five degrees of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int
from tqdm import tqdm

from jaxstem import parallel, so3
from jaxstem.bloch import prepare
from jaxstem.grid import OrientationSpace, half_angle_cosine
from jaxstem.io import NO_CRYSTAL, UNASSIGNED, DiskScan, pad_disks
from jaxstem.kinematic import Disks
from jaxstem.model import NEVER, Model, phases_space
from jaxstem.refine import (
    Ranked,
    ScoreConfig,
    angles_between,
    candidate_tables,
    outdone,
    pattern_of,
    propose,
    verify,
    verify_dynamically,
)

MIN_DISKS = 2
"""A pattern with fewer disks fits too many orientations to be given any."""

FALSE_FACTOR = 4.0
"""How much stronger than the detection limit a lone disk may be and still count as false."""

N_RADII = 41
"""Radii at which the detection limit is known."""

BEAM_K_MAX = 3.0
"""Reflections [1/Å] that take part in dynamical scattering."""

WITHIN = np.deg2rad(5.0)


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

    refine: "fast": verify and polish candidates by two-beam theory; "full": then by Bloch waves;
    "none": the network alone; likelihood_weight,
    prior_weight: weights of the log-likelihood and of the network's log-probability in the log-odds
    of a candidate (below one, since neither model is exact and both saw the same disks); chance:
    log-likelihood [nat] that counts for nothing, since some orientation reaches it on false disks
    alone: a crystal must exceed it to be believed (with the matcher in place of a network, 43
    positions of vacuum reached -6 in the median and 5 at most, crystals with two disks 9); lengths:
    numbers of disks to which patterns are padded; batch: patterns a step; chunk: patterns verified
    at once within it (what fits a processor's cache); least: patterns for which a length of their
    own is compiled.
    """

    refine: str = "fast"
    score: ScoreConfig = ScoreConfig()
    likelihood_weight: float = 0.25
    prior_weight: float = 0.05
    chance: float = 6.0
    lengths: tuple[int, ...] = (8, 12, 16, 24, 40)
    batch: int = 128
    chunk: int = 8
    least: int = 1024


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
    log_odds = config.likelihood_weight * ranked.log_likelihood + config.prior_weight * ranked.prior
    of_none = config.likelihood_weight * config.chance + config.prior_weight * no_crystal
    apart = angles_between(ranked, operations)
    again = outdone(apart, log_odds)
    share = jax.nn.softmax(jnp.append(jnp.where(again, -jnp.inf, log_odds), of_none))
    member = jnp.append(ranked.phase, n_phases) == jnp.arange(n_phases + 1)[:, None]
    of_phase = jnp.sum(jnp.where(member, share, 0.0), axis=1)
    phase = jnp.argmax(of_phase)
    none = phase == n_phases

    best = jnp.argmax(jnp.where(ranked.phase == phase, log_odds, -jnp.inf))
    answer = ranked.orientation[best]
    turned = so3.misorientation(
        answer @ jnp.asarray(so3.HALF_TURN_ABOUT_BEAM, answer.dtype),
        ranked.orientation,
        operations[ranked.phase[best]],
    )
    right_phase = ranked.phase == phase
    same = (apart[best] < WITHIN) & right_phase
    same_mod180 = same | ((turned < WITHIN) & right_phase)

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


def make_predict(model: Model, config: InferConfig, mesh: Mesh) -> Callable[..., Answer]:
    """The jitted `(params, disks (B, K), exposed) -> Answer`, sharded over B.

    `exposed` is the `Exposure` of the B positions. B must divide among the devices. One compilation
    for each K.
    """
    network = model.network
    matrix = model.config.head == "matrix"
    space = phases_space(model.materials)
    phases = [
        candidate_tables(m.grid, m.operations, m.reflectors(), m.wavelength, m.crystal.lattice)
        for m in model.materials
    ]

    dynamical = (
        [prepare(m.crystal, m.voltage_kv, BEAM_K_MAX, m.u_iso) for m in model.materials]
        if config.refine == "full"
        else None
    )

    def verified(disks: Disks, exposed: Exposure, log_probability) -> Answer:
        pattern = pattern_of(disks, *exposed, config.score.measured_power)
        ranked = verify(
            pattern, log_probability, phases, model.wavelength, model.k_max, config.score
        )
        if dynamical is not None:
            ranked = verify_dynamically(
                pattern, ranked, dynamical, space.operations, model.k_min, model.k_max, config.score
            )
        return summarise(ranked, log_probability[-1], space.operations, config)

    def network_alone(output, log_probability) -> Answer:
        modes = propose(log_probability, phases, config.score.n_modes, siblings=False)
        nothing = jnp.zeros_like(modes.prior)
        unknowns = jnp.full_like(modes.prior, jnp.nan)
        ranked = Ranked(modes.orientation, modes.phase, nothing, nothing, modes.prior, unknowns)
        by_prior = replace(config, likelihood_weight=0.0, prior_weight=1.0)
        answer = summarise(ranked, log_probability[-1], space.operations, by_prior)
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

    def one(disks: Disks, exposed: Exposure, output) -> Answer:
        log_probability = spread(output, space) if matrix else jax.nn.log_softmax(output)
        if config.refine == "none":
            return network_alone(output, log_probability)
        return verified(disks, exposed, log_probability)

    def step(params, disks: Disks, incident, incident_sigma, log_limit) -> Answer:
        strongest = jax.tree.map(lambda x: x[:, : model.config.n_disks], disks)
        output = network.apply({"params": params}, strongest)
        everywhere = lambda args: one(args[0], Exposure(*args[1], log_limit), args[2])  # noqa: E731
        arguments = (disks, (incident, incident_sigma), output)
        if jax.default_backend() != "cpu":
            return jax.vmap(everywhere)(arguments)
        if config.refine == "full":  # one by one, so that lost candidates cost nothing
            return jax.lax.map(everywhere, arguments)
        return jax.lax.map(everywhere, arguments, batch_size=config.chunk)

    sharded, replicated = parallel.SHARDED, parallel.REPLICATED
    specs = (replicated, sharded, sharded, sharded, replicated)
    program = parallel.pmap(step, mesh, specs, sharded)
    return lambda params, disks, exposed: program(params, disks, *exposed)


class Exposure(NamedTuple):
    """What the intensities of a scan's disks mean.

    Per position: intensity of the incident beam in the disks' units, and how well its logarithm is
    known. For the whole scan: logarithm of the weakest share of it that is detected, at radii
    evenly spaced from 0 to k_max.
    """

    incident: Float[np.ndarray, " positions"]
    incident_sigma: Float[np.ndarray, " positions"]
    log_limit: Float[np.ndarray, " n_radii"]

    def at(self, index: Int[np.ndarray, " n"]) -> Exposure:
        """The same for some positions."""
        return self._replace(
            incident=self.incident[index], incident_sigma=self.incident_sigma[index]
        )


def exposure(scan: DiskScan, k_min: float, k_max: float) -> Exposure:
    """Incident intensity of every position of a scan, and its detection limit.

    Where the direct beam (a disk within `k_min`, 1/Å) is listed, the incident beam is the sum of
    all disks; elsewhere the disks are taken to hold 30 % of it, give or take a factor of
    twenty. The limit at a radius is the share of the 4 % weakest disks near it, for the diffuse
    background hides more of them near the direct beam; where disks are few, near it means all.
    """
    positive = np.maximum(scan.intensity, 0.0).astype(np.float64)
    total = np.diff(np.concatenate([[0.0], np.cumsum(positive)])[scan.offsets])
    radius = np.hypot(scan.qx, scan.qy)
    direct = radius <= k_min
    has_direct = np.diff(np.concatenate([[0], np.cumsum(direct)])[scan.offsets]) > 0
    incident = np.where(has_direct, total, total / 0.3)
    incident = np.where(incident > 0, incident, 1.0)
    share = positive / np.repeat(incident, np.diff(scan.offsets))
    usable = ~direct & (share > 0)
    order = np.argsort(radius[usable])
    radius, share = radius[usable][order], share[usable][order]
    overall = np.percentile(share, 4.0) if len(share) else 1e-3
    limit = np.full(N_RADII, overall)
    for place, centre in enumerate(np.linspace(0.0, k_max, N_RADII)):
        near = share[
            slice(*np.searchsorted(radius, [centre - 0.06 * k_max, centre + 0.06 * k_max]))
        ]
        if len(near) >= 50:
            limit[place] = np.percentile(near, 4.0)
    return Exposure(
        incident.astype(np.float32),
        np.where(has_direct, 0.1, 3.0).astype(np.float32),
        np.log(limit).astype(np.float32),
    )


def buckets(
    counts: Int[np.ndarray, " positions"], lengths: tuple[int, ...], least: int = 1
) -> list[tuple[int, Int[np.ndarray, " n"]]]:
    """Positions sorted into padded lengths: (length, flat indices) pairs, empty ones left out.

    A position goes to the shortest length that holds its disks, or to the longest one (which then
    keeps its strongest); positions with fewer than `MIN_DISKS` go nowhere. Fewer than `least`
    positions are not worth a compilation and go to the next longer length in use.
    """
    place = np.minimum(np.searchsorted(lengths, counts), len(lengths) - 1)
    place[counts < MIN_DISKS] = -1
    for i in range(len(lengths) - 1):
        if (place == i).sum() < least and (place > i).any():
            place[place == i] = place[place > i].min()
    pairs = [(length, np.flatnonzero(place == i)) for i, length in enumerate(lengths)]
    return [(length, index) for length, index in pairs if len(index)]


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
    is_bright = beyond & (share > FALSE_FACTOR * np.exp(exposed.log_limit.min()))
    bright = np.concatenate([[0], np.cumsum(is_bright)])
    return (counts <= 1) & (np.diff(bright[scan.offsets]) == 0)


def predict_scan(
    model: Model,
    scan: DiskScan,
    config: InferConfig | None = None,
    *,
    mesh: Mesh | None = None,
    progress: bool | None = None,
) -> tuple[Answer, Int[np.ndarray, " positions"]]:
    """Answers for all positions of a scan (flat), and disk counts.

    Positions with fewer than `MIN_DISKS` have no crystal where they look empty and are unassigned
    elsewhere, their confidence being NaN and 0. Every batch has the same size, the last one filled
    up by repetition, so that each length compiles once.
    """
    config = config or InferConfig()
    if config.refine not in ("none", "fast", "full"):
        raise ValueError(f'refine is {config.refine!r}: give "none", "fast" or "full"')
    mesh = mesh or parallel.make_mesh()
    k_min, k_max = model.k_min, model.k_max
    counts = count_disks(scan, k_min, k_max)
    n = len(counts)
    exposed = exposure(scan, k_min, k_max)
    empty = looks_empty(scan, k_min, exposed)
    no_rotation, unknown = np.full((2, n, 3, 3), np.nan, np.float32), np.full(n, np.nan, np.float32)
    confidence = np.where(empty, np.nan, 0.0).astype(np.float32)
    result = Answer(
        orientation=no_rotation[0],
        phase=np.where(empty, NO_CRYSTAL, UNASSIGNED),
        score=unknown.copy(),
        confidence=confidence.copy(),
        confidence_mod180=confidence.copy(),
        phase_confidence=confidence.copy(),
        second_orientation=no_rotation[1],
        second_phase=np.full(n, UNASSIGNED),
        second_score=unknown.copy(),
        thickness=unknown.copy(),
    )
    predict = make_predict(model, config, mesh)
    batch = -(-config.batch // mesh.size) * mesh.size
    disable = None if progress is None else not progress
    with tqdm(total=int((counts >= MIN_DISKS).sum()), unit="pattern", disable=disable) as bar:
        pending: list[tuple[np.ndarray, Answer]] = []
        for length, index in buckets(counts, config.lengths, config.least):
            for start in range(0, len(index), batch):
                chosen = index[start : start + batch]
                padded = np.resize(chosen, batch)
                disks = Disks(*pad_disks(scan, padded, k_max, k_min, length))
                answer = predict(model.params, disks, exposed.at(padded))
                pending.append((chosen, answer))
                if len(pending) > 1:
                    _collect(result, *pending.pop(0), bar)
        for chosen, answer in pending:
            _collect(result, chosen, answer, bar)
    return result, counts


def _collect(result: Answer, chosen: np.ndarray, answer: Answer, bar: tqdm) -> None:
    for into, values in zip(result, answer, strict=True):
        into[chosen] = np.asarray(values)[: len(chosen)]
    bar.update(len(chosen))


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
    network, space = model.network, phases_space(model.materials)
    counts = count_disks(scan, model.k_min, model.k_max)
    cells, phase = np.asarray(so3.quaternion_to_matrix(space.cells)), np.asarray(space.phase)
    best = jax.jit(lambda p, d: jax.lax.top_k(network.apply({"params": p}, d)[:, :-1], n_cells)[1])
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
        ranked = np.asarray(best(model.params, disks))[: len(index)]
        found.orientation[index], found.phase[index] = cells[ranked], phase[ranked]
    return found
