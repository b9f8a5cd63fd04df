# SPDX-License-Identifier: GPL-3.0-or-later
"""From padded disks to orientations: predict, verify, summarise, batch by batch.

Patterns are sorted into a few lengths, so that a pattern with six disks does not pay for thirty,
and each length runs through one jitted program (network, candidates, verification, confidence) of
static shape, sharded over the mesh. The confidence of an answer is the probability, among the
verified candidates, of those within five degrees of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from jaxstem import parallel, so3
from jaxstem.grid import half_angle_cosine
from jaxstem.io import DiskScan, pad_disks
from jaxstem.kinematic import Disks
from jaxstem.model import LABEL_WIDTH, Model
from jaxstem.refine import (
    Ranked,
    ScoreConfig,
    candidate_tables,
    modes,
    pattern_of,
    verify,
)

MIN_DISKS = 3
"""A pattern with fewer disks is left unassigned: two disks fix no orientation."""

WITHIN = np.deg2rad(5.0)


class Answer(NamedTuple):
    """What a pattern is reported as; leading axes are the patterns'.

    confidence is NaN where it is not known (a nine-number network alone); second_*: the best
    candidate that is more than 5° from the answer.
    """

    orientation: Float[Array, "... 3 3"]
    score: Float[Array, "..."]
    confidence: Float[Array, "..."]
    confidence_mod180: Float[Array, "..."]
    second_orientation: Float[Array, "... 3 3"]
    second_score: Float[Array, "..."]


@dataclass(frozen=True)
class InferConfig:
    """How answers are made.

    refine: verify and polish candidates (False: the network alone); likelihood_weight,
    prior_weight: weights of the log-likelihood and of the network's log-probability in the log-odds
    of a candidate (below one, since neither model is exact and both saw the same disks); lengths:
    numbers of disks to which patterns are padded; batch: patterns a step; chunk: patterns verified
    at once within it (what fits a processor's cache); least: patterns for which a length of their
    own is compiled.
    """

    refine: bool = True
    score: ScoreConfig = ScoreConfig()
    likelihood_weight: float = 0.35
    prior_weight: float = 0.05
    lengths: tuple[int, ...] = (8, 12, 16, 24)
    batch: int = 128
    chunk: int = 8
    least: int = 1024


def summarise(ranked: Ranked, operations: Float[Array, "n 3 3"], config: InferConfig) -> Answer:
    """The answer, its confidence and the runner-up from the verified candidates of one pattern."""
    log_odds = config.likelihood_weight * ranked.log_likelihood + config.prior_weight * ranked.prior
    best = jnp.argmax(log_odds)
    answer = ranked.orientation[best]
    angle = so3.misorientation(answer, ranked.orientation, operations)
    turned = so3.misorientation(
        answer @ jnp.asarray(so3.HALF_TURN_ABOUT_BEAM, answer.dtype), ranked.orientation, operations
    )
    same, same_mod180 = angle < WITHIN, jnp.minimum(angle, turned) < WITHIN
    # candidates that polished to the same place are one candidate
    pairs = jax.vmap(lambda r: so3.misorientation(r, ranked.orientation, operations))(
        ranked.orientation
    )
    earlier = jnp.tril(pairs < 0.02, -1).any(axis=1)
    share = jax.nn.softmax(jnp.where(earlier, -jnp.inf, log_odds))
    second = jnp.argmax(jnp.where(same, -jnp.inf, log_odds))
    has_second = jnp.any(~same)
    nan = jnp.asarray(jnp.nan, answer.dtype)
    return Answer(
        answer,
        ranked.score[best],
        jnp.sum(jnp.where(same, share, 0.0)),
        jnp.sum(jnp.where(same_mod180, share, 0.0)),
        jnp.where(has_second, ranked.orientation[second], nan),
        jnp.where(has_second, ranked.score[second], nan),
    )


def make_predict(model: Model, config: InferConfig, mesh: Mesh) -> Callable[..., Answer]:
    """The jitted `(params, disks (B, K), incident (B,), cutoff (B,)) -> Answer`, sharded.

    incident: intensity of the incident beam in the disks' units; cutoff: weakest share of it that
    is detected. B must divide among the devices. One compilation for each K.
    """
    material, network = model.material, model.network
    reflectors = material.reflectors()
    operations = jnp.asarray(material.operations, jnp.float32)
    model_grid = jnp.asarray(material.grid)
    cells = so3.quaternion_to_matrix(model_grid)
    operation_quaternions = so3.matrix_to_quaternion(operations)
    tables = candidate_tables(
        material.grid,
        material.operations,
        reflectors,
        material.wavelength,
        material.crystal.lattice,
    )

    def verified(disks: Disks, incident, cutoff, log_probability) -> Answer:
        ranked = verify(
            pattern_of(disks, incident, cutoff, config.score.measured_power),
            log_probability,
            cells,
            reflectors,
            tables,
            material.wavelength,
            material.k_max,
            config.score,
        )
        return summarise(ranked, operations, config)

    def network_alone(disks: Disks, incident, cutoff, log_probability) -> Answer:
        _, orientation, mass = modes(log_probability, cells, tables, config.score.n_modes)
        nothing = jnp.zeros_like(mass)
        ranked = Ranked(orientation, nothing, nothing, mass)
        answer = summarise(ranked, operations, replace(config, prior_weight=1.0))
        unknown = jnp.full_like(answer.score, jnp.nan)
        return answer._replace(score=unknown, second_score=unknown)

    def distribution(output):
        """Log-probabilities of the cells; nine numbers are spread as a label would be."""
        if model.config.head == "grid":
            return jax.nn.log_softmax(output)
        q = so3.matrix_to_quaternion(so3.nearest_rotation(output.reshape(-1, 3, 3)))
        cosine = jax.lax.map(
            lambda q: half_angle_cosine(q, model_grid, operation_quaternions), q, batch_size=8
        )
        angle = 2.0 * jnp.arccos(jnp.minimum(cosine, 1.0))
        return jax.nn.log_softmax(-0.5 * (angle / (LABEL_WIDTH * material.spacing)) ** 2)

    def step(params, disks: Disks, incident, cutoff) -> Answer:
        output = network.apply({"params": params}, disks)
        one = verified if config.refine else network_alone
        chunk = config.chunk if jax.default_backend() == "cpu" else len(incident)
        answer = jax.lax.map(
            lambda args: one(*args),
            (disks, incident, cutoff, distribution(output)),
            batch_size=chunk,
        )
        if model.config.head == "matrix" and not config.refine:
            # one rotation comes without a rival and without a measure of its own doubt
            unknown = jnp.full_like(answer.confidence, jnp.nan)
            answer = answer._replace(
                orientation=so3.nearest_rotation(output.reshape(-1, 3, 3)),
                confidence=unknown,
                confidence_mod180=unknown,
                second_orientation=jnp.full_like(answer.second_orientation, jnp.nan),
            )
        return answer

    sharded, replicated = parallel.SHARDED, parallel.REPLICATED
    return parallel.pmap(step, mesh, (replicated, sharded, sharded, sharded), sharded)


class Exposure(NamedTuple):
    """Per position: intensity of the incident beam in the disks' units, and the detection limit as
    a share of it.
    """

    incident: Float[np.ndarray, " positions"]
    cutoff: Float[np.ndarray, " positions"]


def exposure(scan: DiskScan, k_min: float) -> Exposure:
    """Incident intensity and detection limit of every position of a scan.

    Where the direct beam (a disk within `k_min`, 1/Å) is listed, the incident beam is the sum of
    all disks; elsewhere the disks are taken to hold 30 % of it. The limit is the share of the
    second-weakest percent of all disks.
    """
    positive = np.maximum(scan.intensity, 0.0).astype(np.float64)
    total = np.diff(np.concatenate([[0.0], np.cumsum(positive)])[scan.offsets])
    direct = np.hypot(scan.qx, scan.qy) <= k_min
    has_direct = np.diff(np.concatenate([[0], np.cumsum(direct)])[scan.offsets]) > 0
    incident = np.where(has_direct, total, total / 0.3)
    incident = np.where(incident > 0, incident, 1.0)
    share = positive / np.repeat(incident, np.diff(scan.offsets))
    share = share[~direct & (share > 0)]
    cutoff = np.percentile(share, 2.0) if len(share) else 1e-3
    return Exposure(incident.astype(np.float32), np.full(len(total), cutoff, np.float32))


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


def predict_scan(
    model: Model,
    scan: DiskScan,
    config: InferConfig | None = None,
    *,
    mesh: Mesh | None = None,
    progress: bool | None = None,
) -> tuple[Answer, Int[np.ndarray, " positions"]]:
    """Answers for all positions of a scan (flat, NaN and 0 where unassigned), and disk counts.

    Every batch has the same size, the last one filled up by repetition, so that each length
    compiles once.
    """
    config = config or InferConfig()
    mesh = mesh or parallel.make_mesh()
    k_min, k_max = model.material.k_min, model.material.k_max
    counts = count_disks(scan, k_min, k_max)
    n = len(counts)
    result = Answer(
        np.full((n, 3, 3), np.nan, np.float32),
        np.full(n, np.nan, np.float32),
        np.zeros(n, np.float32),
        np.zeros(n, np.float32),
        np.full((n, 3, 3), np.nan, np.float32),
        np.full(n, np.nan, np.float32),
    )
    predict = make_predict(model, config, mesh)
    incident, cutoff = exposure(scan, k_min)
    batch = -(-config.batch // mesh.size) * mesh.size
    disable = None if progress is None else not progress
    with tqdm(total=int((counts >= MIN_DISKS).sum()), unit="pattern", disable=disable) as bar:
        pending: list[tuple[np.ndarray, Answer]] = []
        for length, index in buckets(counts, config.lengths, config.least):
            for start in range(0, len(index), batch):
                chosen = index[start : start + batch]
                padded = np.resize(chosen, batch)
                disks = Disks(*pad_disks(scan, padded, k_max, k_min, length))
                answer = predict(model.params, disks, incident[padded], cutoff[padded])
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


def likeliest_cells(
    model: Model, scan: DiskScan, n_cells: int = 64, batch: int = 256
) -> Float[np.ndarray, "positions n_cells 3 3"]:
    """The network's `n_cells` likeliest orientations at every position, before verification.

    Best first; NaN where a position has too few disks. Tells missing candidates from wrong ranking.
    Raises ValueError for a network without the grid head.
    """
    if model.config.head != "grid":
        raise ValueError("only the grid head ranks cells")
    material, network = model.material, model.network
    counts = count_disks(scan, material.k_min, material.k_max)
    cells = np.asarray(so3.quaternion_to_matrix(jnp.asarray(material.grid)))
    best = jax.jit(lambda p, d: jax.lax.top_k(network.apply({"params": p}, d), n_cells)[1])
    found = np.full((len(counts), n_cells, 3, 3), np.nan, np.float32)
    chosen = np.flatnonzero(counts >= MIN_DISKS)
    longest = InferConfig().lengths[-1]
    for start in range(0, len(chosen), batch):
        index = chosen[start : start + batch]
        padded = np.resize(index, batch)
        disks = Disks(*pad_disks(scan, padded, material.k_max, material.k_min, longest))
        found[index] = cells[np.asarray(best(model.params, disks))[: len(index)]]
    return found
