# SPDX-License-Identifier: GPL-3.0-or-later
"""From padded disks to orientations: predict, verify, summarise, batch by batch.

Patterns are sorted into a few lengths, so that a pattern with six disks does not pay for thirty,
and each length runs through one jitted program (network, candidates, verification, confidence) of
static shape, sharded over the mesh. The confidence of an answer is the probability, among the
verified candidates, of those within five degrees of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from jaxstem import parallel, so3
from jaxstem.io import DiskScan, pad_disks
from jaxstem.kinematic import Disks
from jaxstem.model import Model
from jaxstem.refine import BEAM_TURN, Ranked, ScoreConfig, candidate_tables, modes, verify

MIN_DISKS = 3
"""A pattern with fewer disks is left unassigned: two disks fix no orientation."""

WITHIN = np.deg2rad(5.0)


class Answer(NamedTuple):
    """What a pattern is reported as; leading axes are the patterns'.

    second_*: the best candidate that is more than 5° from the answer; candidates: the likeliest
    cells before verification, best first.
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

    refine: verify and polish candidates (False: the network alone); score_weight: log-odds per
    unit of cosine score; prior_weight: weight of the network's log-probability beside it;
    lengths: numbers of disks to which patterns are padded; batch: patterns a step.
    """

    refine: bool = True
    score: ScoreConfig = ScoreConfig()
    score_weight: float = 40.0
    prior_weight: float = 0.5
    lengths: tuple[int, ...] = (8, 12, 16, 24)
    batch: int = 128


def summarise(ranked: Ranked, operations: Float[Array, "n 3 3"], config: InferConfig) -> Answer:
    """The answer, its confidence and the runner-up from the verified candidates of one pattern."""
    log_odds = config.score_weight * ranked.score + config.prior_weight * ranked.prior
    best = jnp.argmax(log_odds)
    answer = ranked.orientation[best]
    angle = so3.misorientation(answer, ranked.orientation, operations)
    turned = so3.misorientation(
        answer @ jnp.asarray(BEAM_TURN, answer.dtype), ranked.orientation, operations
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
    """The jitted `(params, disks of shape (B, K)) -> Answer`, sharded over the mesh.

    B must divide among the devices. One compilation for each K.
    """
    material, network = model.material, model.network
    reflectors = material.reflectors()
    operations = jnp.asarray(material.operations, jnp.float32)
    cells = so3.quaternion_to_matrix(jnp.asarray(material.grid))
    tables = candidate_tables(
        material.grid,
        material.operations,
        reflectors,
        material.wavelength,
        material.crystal.lattice,
        config.score,
    )

    def one(disks: Disks, log_probability) -> Answer:
        if config.refine:
            ranked = verify(
                disks,
                log_probability,
                cells,
                reflectors,
                tables,
                material.wavelength,
                material.k_max,
                config.score,
            )
            return summarise(ranked, operations, config)
        _, orientation, mass = modes(log_probability, cells, tables, config.score.n_modes)
        network_only = Ranked(orientation, jnp.full_like(mass, jnp.nan), mass)
        answer = summarise(
            network_only._replace(score=jnp.zeros_like(mass)),
            operations,
            InferConfig(prior_weight=1.0),
        )
        return answer._replace(
            score=jnp.full_like(answer.score, jnp.nan),
            second_score=jnp.full_like(answer.score, jnp.nan),
        )

    def step(params, disks: Disks) -> Answer:
        log_probability = jax.nn.log_softmax(network.apply({"params": params}, disks))
        return jax.vmap(one)(disks, log_probability)

    sharded, replicated = parallel.SHARDED, parallel.REPLICATED
    return parallel.pmap(step, mesh, (replicated, sharded), sharded)


def buckets(
    counts: Int[np.ndarray, " positions"], lengths: tuple[int, ...]
) -> list[tuple[int, Int[np.ndarray, " n"]]]:
    """Positions sorted into padded lengths: (length, flat indices) pairs, empty ones left out.

    A position goes to the shortest length that holds its disks, or to the longest one (which then
    keeps its strongest); positions with fewer than `MIN_DISKS` go nowhere.
    """
    place = np.minimum(np.searchsorted(lengths, counts), len(lengths) - 1)
    place[counts < MIN_DISKS] = -1
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
    batch = -(-config.batch // mesh.size) * mesh.size
    disable = None if progress is None else not progress
    with tqdm(total=int((counts >= MIN_DISKS).sum()), unit="pattern", disable=disable) as bar:
        pending: list[tuple[np.ndarray, Answer]] = []
        for length, index in buckets(counts, config.lengths):
            for start in range(0, len(index), batch):
                chosen = index[start : start + batch]
                padded = np.resize(chosen, batch)
                disks = Disks(*pad_disks(scan, padded, k_max, k_min, length))
                pending.append((chosen, predict(model.params, disks)))
                if len(pending) > 1:
                    _collect(result, *pending.pop(0), bar)
        for chosen, answer in pending:
            _collect(result, chosen, answer, bar)
    return result, counts


def _collect(result: Answer, chosen: np.ndarray, answer: Answer, bar: tqdm) -> None:
    for into, values in zip(result, answer, strict=True):
        into[chosen] = np.asarray(values)[: len(chosen)]
    bar.update(len(chosen))
