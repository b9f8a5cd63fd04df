# SPDX-License-Identifier: GPL-3.0-or-later
"""Patterns that are too weak alone: those of one grain are added up, and the sums propose.

Where counting noise hides most disks, the truth is missing among a pattern's candidates and among
those of its neighbours, and no judge finds it there. So the answers of a scan say which positions
around each are of its grain, and as many of their patterns are added up as make the noise smaller
than what theory is trusted to. Their sums are searched and verified as patterns are. What they say
is proposed to the positions, whose own patterns judge it, with their neighbours as evidence: so
that no grain is swallowed by another, and what the sums saw twice does not count twice. Only
positions whose own pattern shows too little to judge take the word of the sum.

Shapes: a scan of `ny` × `nx` positions; `w` × `w` positions around each, itself in the middle.
"""

from __future__ import annotations

import math
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from jaxstem.files.scan import DiskSource
from jaxstem.inference.batching import preview_scan
from jaxstem.inference.config import InferConfig
from jaxstem.inference.step import joint_operations
from jaxstem.inference.verdict import Answer, Labels
from jaxstem.network.model import Model
from jaxstem.orientation import rotations
from jaxstem.orientation.symmetry import misorientations
from jaxstem.runtime import parallel
from jaxstem.runtime.programs import cached_pmap
from jaxstem.scan.neighbours import squared_angles
from jaxstem.scan.tiles import cut, over_tiles, tiled

RADIUS = 3
"""How far away, in rows and columns, a position may be whose pattern is added."""

MOST = (2 * RADIUS + 1) ** 2
"""Patterns that are added up, at most."""

SEEN = 1e-4
"""Share of the beam that the weakest disk seen should have: twice the floor to which two-beam
theory is trusted where counts judge (`verification.config.CountsConfig`), so that less noise would
tell no more."""

WORTHWHILE = 4
"""Patterns that must be needed for a sum to be made."""

OF_ONE_GRAIN = 2.0
"""Misorientation [degrees] up to which neighbours are taken for one grain."""

BELIEVED = 0.5, 2.0
"""Share of a sum's log-odds that its answer brings with it to its position, and the most of it
[nat]: what its neighbours saw, whom the position hears as well."""

OUTSIDE = -9
"""The phase of a position beyond the edge of the scan."""

_Said = TypeVar("_Said", Answer, Labels)


def patterns_needed(source: DiskSource, model: Model, config: InferConfig) -> int:
    """How many patterns of a scan make a sum in which disks of the share `SEEN` of the beam are
    found, `MOST` at most; 1 where one pattern will do, or patterns cannot be added up and verified.

    The limit of detection as a share of the beam falls with the root of the electrons. Raises
    InputError as `source.read` does.
    """
    if source.pooled is None or config.refine != "fast" or not config.by_counts(source):
        return 1
    limit = float(np.exp(np.min(preview_scan(source, model, config).limit.log_share)))
    needed = math.ceil(min((limit / SEEN) ** 2, MOST))
    return needed if needed >= WORTHWHILE else 1


def window(radius: int) -> list[tuple[int, int]]:
    """Steps in rows and columns to the positions around, the nearest first, itself before all."""
    line = range(-radius, radius + 1)
    return sorted(((y, x) for y in line for x in line), key=lambda step: (math.hypot(*step), step))


def nearest(most: int) -> Bool[np.ndarray, "w w"]:
    """The `most` positions next to one, itself among them: its members if all around were of its
    grain.
    """
    chosen = np.zeros((2 * RADIUS + 1,) * 2, bool)
    for y, x in window(RADIUS)[:most]:
        chosen[RADIUS + y, RADIUS + x] = True
    return chosen


def of_one_grain(
    quaternion: Float[Array, "4 ny nx"],
    phase: Int[Array, "ny nx"],
    operations: Float[Array, "P n 4"],
    most: Int[Array, ""],
) -> Bool[Array, "w w ny nx"]:
    """Which of the positions around each are of its grain by their answers, the nearest `most`: for
    one without an answer (phase -1) those without, for one without a crystal (-2) those without.
    Neither has an orientation that could tell. `operations`: the symmetry of each phase, as
    quaternions.
    """
    around = [(RADIUS, RADIUS)] * 2
    beyond = (
        jnp.pad(quaternion, [(0, 0), *around]),
        jnp.pad(phase, around, constant_values=OUTSIDE),
    )

    def alike(step: Int[Array, "2"]) -> Bool[Array, "ny nx"]:
        theirs, their_phase = (
            jax.lax.dynamic_slice(
                x, (*[0] * (x.ndim - 2), *(RADIUS + step)), (*x.shape[:-2], *phase.shape)
            )
            for x in beyond
        )
        square = squared_angles(quaternion, theirs, phase, their_phase, operations)
        near = square < jnp.square(jnp.deg2rad(OF_ONE_GRAIN))
        neither = (phase < 0) & (their_phase == phase)
        return near | neither | (step == 0).all()

    steps = window(RADIUS)
    found = jax.lax.map(alike, jnp.asarray(steps))
    found &= jnp.cumsum(found, axis=0) <= most
    order = [steps.index(step) for step in sorted(steps)]
    side = 2 * RADIUS + 1
    return found[jnp.asarray(order)].reshape(side, side, *phase.shape)


def members(
    answer: Answer, n_patterns: int, model: Model, config: InferConfig, mesh: Mesh
) -> Bool[np.ndarray, "ny nx w w"]:
    """Which patterns are added up at each position of a scan, `n_patterns` at most, from its
    answers (ny, nx); the same whatever tiles and devices found it.
    """
    matrices = joint_operations(model.materials)
    tiling = tiled(answer.phase.shape, RADIUS)
    margin = slice(tiling.margin, tiling.side - tiling.margin)

    def of_tiles(given, labels: Labels) -> Bool[Array, "T ny nx w w"]:
        matrices, most = given
        operations = rotations.matrix_to_quaternion(matrices)

        def of_tile(tile: Labels):
            quaternion = jnp.moveaxis(tile.quaternion[..., 0, :], -1, 0)
            # what lies outside of the scan has no answer either
            phase = jnp.where(jnp.isnan(tile.no_crystal), OUTSIDE, tile.phase[..., 0])
            found = of_one_grain(quaternion, phase, operations, most)
            return jnp.moveaxis(found, (-2, -1), (0, 1))

        return jax.lax.map(of_tile, labels)[:, margin, margin]

    specs = parallel.REPLICATED, parallel.SHARDED
    content = {"members": RADIUS, "margin": tiling.margin}
    program = cached_pmap(of_tiles, mesh, specs, parallel.SHARDED, content, config.cache)
    given = parallel.replicate((matrices, jnp.int32(n_patterns)), mesh)
    labels = as_labels(answer)
    of_tile = lambda tile: cut(labels, tile, tiling.side)  # noqa: E731
    bands = over_tiles(lambda lot: program(given, lot), of_tile, tiling, mesh)
    return np.concatenate([band for _, band in bands])


def as_labels(answer: Answer) -> Labels:
    """The answers of a scan as the only label of each position, its log-odds those of their
    confidence; where there is none, its phase, below 0.
    """
    exists = np.asarray(answer.phase) >= 0
    eye = np.eye(3, dtype=np.float32)
    matrix = np.where(exists[..., None, None], answer.orientation, eye)
    sure = np.clip(np.nan_to_num(answer.confidence), 1e-6, 1 - 1e-6)
    of_each = (answer.score, answer.thickness, answer.log_evidence, answer.explained_light)
    return Labels(
        np.asarray(rotations.matrix_to_quaternion(matrix))[..., None, :].astype(np.float32),
        np.asarray(answer.phase, np.int32)[..., None],
        np.where(exists, np.log(sure / (1 - sure)), -np.inf)[..., None].astype(np.float32),
        np.zeros(exists.shape, np.float32),
        *(np.asarray(x, np.float32)[..., None] for x in of_each),
    )


def with_belief(looks: Labels, by_sums: Labels) -> Labels:
    """The labels (ny, nx) of what sums proposed and patterns judged; the first of each position,
    which is what the sum there found (`by_sums`), gains by as much as that is believed.
    """
    share, most = BELIEVED
    belief = np.clip(share * by_sums.log_odds[..., 0], 0.0, most)
    log_odds = np.array(looks.log_odds)
    log_odds[..., 0] += belief
    return looks._replace(log_odds=log_odds)


def blind(labels: Labels) -> Bool[np.ndarray, "ny nx"]:
    """Where a pattern alone was not looked at, by the labels of a scan."""
    return ~(labels.phase >= 0).any(axis=2)


def chosen_of(which: Bool[np.ndarray, "ny nx"], these: _Said, others: _Said) -> _Said:
    """Labels or answers of a scan: `these` at some positions, the others elsewhere."""
    wide = lambda x: which.reshape(which.shape + (1,) * (x.ndim - 2))  # noqa: E731
    return jax.tree.map(lambda x, y: np.where(wide(x), x, y), these, others)


def at_the_sums_place(answer: Answer, theirs: Answer, model: Model) -> Answer:
    """The answers, with the orientations of the sums, which less noise bent, where these are of the
    same grain.
    """
    orientation = np.array(answer.orientation)
    for number, material in enumerate(model.materials):
        both = (answer.phase == number) & (theirs.phase == number)
        own, other = answer.orientation[both], theirs.orientation[both]
        near = misorientations(own, other, material.operations)[0] < OF_ONE_GRAIN
        orientation[both] = np.where(near[:, None, None], other, own)
    return answer._replace(orientation=orientation)
