# SPDX-License-Identifier: GPL-3.0-or-later
"""From what each pattern says alone to what the scan says.

Neighbours propose orientations that a position has not thought of (`proposals`), its pattern judges
them (`stream_second_looks`), and the posterior over the scan chooses (`posterior`).

Shapes: a scan of `ny` × `nx` positions, `C` candidates of each.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from jaxstem.files.scan import DiskSource
from jaxstem.inference.batching import no_labels
from jaxstem.inference.config import InferConfig
from jaxstem.inference.step import joint_operations
from jaxstem.inference.stream import stream_second_looks
from jaxstem.inference.verdict import Answer, Labels
from jaxstem.network.model import Model
from jaxstem.orientation import rotations
from jaxstem.scan.posterior import ContextConfig, answers_in_context
from jaxstem.scan.proposals import different, proposals

PROPOSED = 3
"""Orientations of its neighbours that are judged on a pattern which has not thought of them."""


def in_context(
    single: Answer,
    labels: Labels,
    source: DiskSource,
    model: Model,
    config: InferConfig,
    mesh: Mesh | None = None,
    progress: bool | None = None,
    context: ContextConfig | None = None,
) -> Iterator[tuple[int, Answer]]:
    """The answers of a scan, some rows (rows, nx) at a time, from those of each pattern alone and
    their labels (ny, nx). What was not looked at stays as it is.

    `mesh` and `progress` are those of `stream_answers`. Raises InputError as `source.read` does.
    """
    operations = joint_operations(model.materials)
    if config.refine == "fast":
        more = second_looks(labels, source, model, config, mesh, progress)
        labels = different(labels, more, operations)
    looked_at = (np.asarray(labels.phase) >= 0).any(axis=2)
    for row, answer in answers_in_context(labels, operations, context or ContextConfig()):
        rows = slice(row, row + len(answer.phase))
        yield (
            row,
            Answer(
                *(
                    np.where(looked_at[rows].reshape(*x.shape[:2], *[1] * (x.ndim - 2)), x, y[rows])
                    for x, y in zip(answer, single, strict=True)
                )
            ),
        )


def second_looks(
    labels: Labels,
    source: DiskSource,
    model: Model,
    config: InferConfig,
    mesh: Mesh | None = None,
    progress: bool | None = None,
) -> Labels:
    """What neighbours propose, judged on each pattern of a scan: labels (ny, nx)."""
    operations = rotations.matrix_to_quaternion(joint_operations(model.materials))
    proposed = jax.device_get(proposals(labels, operations, PROPOSED))
    flat = [x.reshape(-1, *x.shape[2:]) for x in proposed]
    pieces = stream_second_looks(
        model,
        source,
        lambda start, stop: tuple(x[start:stop] for x in flat),
        config,
        mesh=mesh,
        progress=progress,
    )
    found = [piece.labels or no_labels(piece.answer.phase, PROPOSED) for piece in pieces]
    return Labels(
        *(
            np.concatenate(x).reshape(*source.scan_shape, *x[0].shape[1:])
            for x in zip(*found, strict=True)
        )
    )
