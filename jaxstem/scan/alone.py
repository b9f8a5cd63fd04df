# SPDX-License-Identifier: GPL-3.0-or-later
"""What the patterns of a scan say alone, rows at a time, for the map and for their neighbours.

Shapes: a scan of `ny` × `nx` positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from jaxstem.files.orientation_map import NO_CRYSTAL, UNASSIGNED
from jaxstem.files.scan import DiskSource
from jaxstem.inference.batching import PIECE, likeliest_labels, no_labels, unseen
from jaxstem.inference.config import InferConfig
from jaxstem.inference.step import PredictFor
from jaxstem.inference.stream import stream_answers
from jaxstem.inference.verdict import Answer, Labels
from jaxstem.network.model import Model
from jaxstem.runtime import parallel
from jaxstem.runtime.sharing import own_rows, shared
from jaxstem.verification.ranking import keep_size

KEPT = 6
"""Labels of a position, at most, that its neighbours hear of."""

Found = tuple[Answer, Int[np.ndarray, "rows nx"], Labels | None]
"""Of some rows what their patterns say alone, their numbers of disks, and their labels."""


def single_blocks(
    source: DiskSource,
    model: Model,
    config: InferConfig,
    mesh: Mesh | None = None,
    progress: bool | None = None,
    with_labels: bool = False,
    predict_for: PredictFor | None = None,
) -> Iterator[tuple[int, Found]]:
    """What patterns say alone, some rows (rows, nx) at a time and not always in order, the same
    ones in each process; with the likeliest labels (`n_labels`) of each where these are asked for.
    """
    n_columns, rows = source.scan_shape[1], own_rows(source.scan_shape[0])
    if mesh is None:
        mesh = parallel.make_mesh(jax.local_devices())
    if not parallel.is_first():
        progress = False
    config = replace(config, keeps_labels=with_labels)
    kept = n_labels(source, model, config)

    def over_rows(x):
        return x.reshape(-1, n_columns, *x.shape[1:])

    def own() -> Iterator[tuple[int, Found]]:
        pieces = stream_answers(
            model, source, config, rows=rows, mesh=mesh, progress=progress, predict_for=predict_for
        )
        for piece in pieces:
            labels = None
            if with_labels:
                labels = piece.labels or no_labels(piece.answer.phase, kept)
                labels = likeliest_labels(labels, kept)
            found = jax.tree.map(over_rows, (piece.answer, piece.counts, labels))
            yield rows[0] + piece.first // n_columns, found

    most = int(np.diff(source.pieces(PIECE), axis=1).max()) * n_columns
    none = np.full(most, UNASSIGNED)
    labels = no_labels(none, kept) if with_labels else None
    like = (unseen(none == NO_CRYSTAL), none.astype(np.int32), labels)
    yield from shared(own(), jax.tree.map(over_rows, like))


def n_labels(source: DiskSource, model: Model, config: InferConfig) -> int:
    """How many labels of each position of this scan its neighbours hear of."""
    if config.refine != "fast":
        return KEPT
    scoring = config.scoring
    by_counts = config.by_counts(source)
    climbing = scoring.counts.n_polished if by_counts else scoring.n_climbing
    return min(KEPT, keep_size(climbing, len(model.materials)))


def room_for_labels(source: DiskSource, model: Model, config: InferConfig) -> Labels:
    """Labels (ny, nx) to be filled in."""
    none = no_labels(np.full(1, UNASSIGNED), n_labels(source, model, config))
    return jax.tree.map(lambda x: np.empty((*source.scan_shape, *x.shape[1:]), x.dtype), none)


def labels_alone(
    source: DiskSource,
    model: Model,
    config: InferConfig,
    mesh: Mesh | None = None,
    progress: bool | None = None,
    predict_for: PredictFor | None = None,
) -> Labels:
    """The labels (ny, nx) of a scan, each pattern alone; arguments as in `single_blocks`."""
    scan = room_for_labels(source, model, config)
    given = source, model, config, mesh, progress, True, predict_for
    for row, (*_, labels) in single_blocks(*given):
        put(labels, row, scan)
    return scan


def put(labels: Labels, row: int, scan: Labels) -> None:
    """Write the labels of some rows, from `row` on, into those of a scan (ny, nx)."""
    for into, values in zip(scan, labels, strict=True):
        into[row : row + len(values)] = values
