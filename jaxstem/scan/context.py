# SPDX-License-Identifier: GPL-3.0-or-later
"""From what each pattern says alone to what the scan says.

Neighbours propose orientations that a position has not thought of (`proposals`), its pattern judges
them (`stream_second_looks`), and the posterior over the scan chooses (`posterior`). Where patterns
are weak, those of a grain are added up, and their sums propose as well (`pooling`).

Shapes: a scan of `ny` × `nx` positions, `C` candidates of each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from jaxstem.diffraction.geometry import Disks
from jaxstem.files.light import Detector
from jaxstem.files.orientation_map import UNASSIGNED
from jaxstem.files.scan import DiskSource
from jaxstem.inference.batching import PIECE, no_labels, unseen
from jaxstem.inference.config import InferConfig
from jaxstem.inference.exposure import Exposure
from jaxstem.inference.second_look import make_second_look
from jaxstem.inference.step import joint_operations
from jaxstem.inference.stream import stream_second_looks
from jaxstem.inference.verdict import Answer, Labels
from jaxstem.network.model import Model
from jaxstem.orientation import rotations
from jaxstem.runtime import parallel
from jaxstem.runtime.programs import cached_pmap
from jaxstem.runtime.sharing import own_rows, shared
from jaxstem.scan.alone import n_labels, put
from jaxstem.scan.pooling import (
    as_labels,
    at_the_sums_place,
    blind,
    chosen_of,
    members,
    nearest,
    with_belief,
)
from jaxstem.scan.posterior import ContextConfig, answers_in_context
from jaxstem.scan.proposals import Proposed, propose
from jaxstem.scan.tiles import SIDES, Tile, cut, over_tiles, tiled

PROPOSED = 2
"""Orientations of its neighbours that are judged on a pattern which has not thought of them."""

PROPOSED_BY_SUMS = 4
"""The same of what sums of patterns found."""

LEAST_TOGETHER = 2.0
"""Patterns that must be of one grain on average for sums to be made."""

Alone = Callable[[DiskSource], Labels]
"""What each pattern of a scan says alone: labels (ny, nx), the same ones in each process."""


def in_context(
    labels: Labels,
    source: DiskSource,
    model: Model,
    config: InferConfig,
    mesh: Mesh | None = None,
    progress: bool | None = None,
    context: ContextConfig | None = None,
    n_together: int = 1,
    alone: Alone | None = None,
) -> Iterator[tuple[int, Answer]]:
    """The answers of a scan, some rows (rows, nx) at a time, from the labels (ny, nx) of what each
    pattern says alone, the same ones in each process.

    `mesh` and `progress` are those of `stream_answers`; `context` is the usual one, if None.
    With `n_together` above 1 (`patterns_needed`) as many patterns of a grain are added up and
    searched again, `alone` says what their sums say alone, and these propose, too (`pooling`); not
    where neighbours are not alike. Raises InputError as `source.read` does.
    """
    context, mesh = context or ContextConfig(), mesh or parallel.make_mesh(jax.local_devices())
    given = model, config, mesh

    def concluded(parts: list[Labels]) -> Iterator[tuple[int, Answer]]:
        if not (parts[0].phase >= 0).any():
            return iter([(0, _alone(parts[0]))])
        return _concluded(parts, context, *given)

    parts = [labels]
    if config.refine == "fast" and (labels.phase >= 0).any():
        asked = proposed(labels, *given)
        parts.append(second_looks(asked, source, *given, progress))
    if n_together == 1 or alone is None:
        yield from concluded(parts)
        return

    answers = whole(concluded(parts))
    chosen = members(answers, n_together, *given)
    if chosen.sum() < LEAST_TOGETHER * answers.phase.size:  # neighbours are not alike
        yield 0, answers
        return
    sums = source.pooled(chosen, nearest(n_together))
    of_sums = alone(sums)
    by_sums = whole(in_context(of_sums, sums, *given, progress, context))
    found = as_labels(by_sums)
    asked = proposed(labels, *given, found)
    looks = second_looks(asked, source, *given, progress)
    parts = [chosen_of(blind(labels), of_sums, labels), *parts[1:], with_belief(looks, found)]
    answers = at_the_sums_place(whole(concluded(parts)), by_sums, model)
    yield 0, chosen_of(blind(labels), by_sums, answers)


def made_ahead(
    source: DiskSource, model: Model, config: InferConfig, mesh: Mesh
) -> Callable[..., None]:
    """What compiles the programs that `in_context` needs for a scan, given what those of its
    patterns alone are compiled for (`make_predict_for`).
    """
    looks_twice = config.refine == "fast"
    # no more tiles than tell all shapes: one, or several
    shape = tuple(min(n, 2 * max(SIDES)) for n in source.scan_shape)

    def nothing(n: int) -> Labels:
        none = no_labels(np.full(1, UNASSIGNED), n)
        return jax.tree.map(lambda x: np.broadcast_to(x, (*shape, *x.shape[1:])), none)

    @functools.cache
    def tile_programs() -> None:
        parts = [nothing(n_labels(source, model, config))]
        if looks_twice:
            proposed(parts[0], model, config, mesh)
            parts.append(nothing(PROPOSED))
        whole(_concluded(parts, ContextConfig(), model, config, mesh))

    def make(detector: Detector | None, disks: Disks, exposed: Exposure, light) -> None:
        if looks_twice:
            look = make_second_look(model, config, mesh, detector)
            asked = (len(disks.qx), PROPOSED)
            look(
                disks,
                exposed,
                light,
                np.zeros((*asked, 4), np.float32),
                np.full(asked, -1, np.int32),
            )
        tile_programs()

    return make


def whole(rows: Iterator[tuple[int, Answer]]) -> Answer:
    """The answers (ny, nx) of a scan from those of some rows at a time, in any order."""
    parts = [answer for _, answer in sorted(rows, key=lambda found: found[0])]
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def _concluded(
    parts: list[Labels], context: ContextConfig, model: Model, config: InferConfig, mesh: Mesh
) -> Iterator[tuple[int, Answer]]:
    """The answers from labels (ny, nx), those of the first of which say what was looked at."""
    labels, operations = parts[0], joint_operations(model.materials)
    tiling = tiled(labels.phase.shape[:2], context.rounds)

    def of_tile(tile: Tile) -> Labels:
        own, *more = (cut(part, tile, tiling.side) for part in parts)
        join = lambda *x: x[0] if x[0].ndim == 2 else np.concatenate(x, axis=2)  # noqa: E731
        return Labels(*map(join, own, *more)) if more else own

    for row, answer in answers_in_context(of_tile, tiling, operations, context, mesh, config.cache):
        own = jax.tree.map(lambda x: x[row : row + len(answer.phase)], labels)  # noqa: B023
        yield row, chosen_of(blind(own), _alone(own), answer)


def _alone(labels: Labels) -> Answer:
    """The answers of positions (rows, nx) that were not looked at."""
    answer = unseen(labels.no_crystal.ravel() == 0.0)
    shape = labels.no_crystal.shape
    return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), answer)


def proposed(
    labels: Labels, model: Model, config: InferConfig, mesh: Mesh, others: Labels | None = None
) -> Proposed:
    """What is proposed to each position of a scan, from labels (ny, nx), or from the likeliest of
    `others`.
    """
    matrices = joint_operations(model.materials)
    tiling = tiled(labels.phase.shape[:2], 1)
    margin = slice(tiling.margin, tiling.side - tiling.margin)
    n_proposals = PROPOSED if others is None else PROPOSED_BY_SUMS

    def of_tiles(matrices, labels) -> Proposed:
        operations = rotations.matrix_to_quaternion(matrices)
        of_tile = lambda tile: propose(tile[0], operations, n_proposals, *tile[1:])  # noqa: E731
        found = jax.lax.map(of_tile, labels)
        return jax.tree.map(lambda x: x[:, margin, margin], found)

    specs = parallel.REPLICATED, parallel.SHARDED
    content = {"proposals": n_proposals, "margin": tiling.margin, "others": others is not None}
    program = cached_pmap(of_tiles, mesh, specs, parallel.SHARDED, content, config.cache)
    given = parallel.replicate(matrices, mesh)
    scans = [labels] if others is None else [labels, others]
    of_tile = lambda tile: tuple(cut(scan, tile, tiling.side) for scan in scans)  # noqa: E731
    bands = over_tiles(lambda lot: program(given, lot), of_tile, tiling, mesh)
    return jax.tree.map(lambda *x: np.concatenate(x), *(band for _, band in bands))


def second_looks(
    asked: Proposed,
    source: DiskSource,
    model: Model,
    config: InferConfig,
    mesh: Mesh,
    progress: bool | None = None,
) -> Labels:
    """What is proposed to the positions (ny, nx) of a scan, judged on each pattern: labels (ny,
    nx), the same ones in each process; each looks at some rows.
    """
    n_columns, n_proposals = source.scan_shape[1], asked.phase.shape[-1]
    first, last = own_rows(source.scan_shape[0])
    flat = [x[first:last].reshape(-1, *x.shape[2:]) for x in asked]
    over_rows = lambda x: x.reshape(-1, n_columns, *x.shape[1:])  # noqa: E731

    def own() -> Iterator[tuple[int, Labels]]:
        pieces = stream_second_looks(
            model,
            source,
            lambda start, stop: tuple(x[start:stop] for x in flat),
            config,
            rows=(first, last),
            mesh=mesh,
            progress=progress,
        )
        for piece in pieces:
            found = piece.labels or no_labels(piece.answer.phase, n_proposals)
            yield first + piece.first // n_columns, jax.tree.map(over_rows, found)

    most = int(np.diff(source.pieces(PIECE), axis=1).max()) * n_columns
    like = jax.tree.map(over_rows, no_labels(np.full(most, -1), n_proposals))
    scan = jax.tree.map(lambda x: np.empty((*source.scan_shape, *x.shape[2:]), x.dtype), like)
    for row, found in shared(own(), like):
        put(found, row, scan)
    return scan
