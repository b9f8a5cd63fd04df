# SPDX-License-Identifier: GPL-3.0-or-later
"""How many electrons the direct beam has where it is hidden or cut: what the scan's disks say.

Predictions are shares of the incident beam. Where that is not measured, disks hold some share of
it, which crystals and their thickness decide; so the beam is that by which some patterns of the
scan, each with its likeliest orientation, are likeliest (an empirical Bayes estimate: H. Robbins,
Proc. 3rd Berkeley Symp. 1 (1956) 157).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from jax.sharding import Mesh

from jaxstem.files.scan import DiskSource
from jaxstem.inference.config import InferConfig
from jaxstem.inference.exposure import typical_beam
from jaxstem.inference.step import PredictFor
from jaxstem.inference.stream import predict_scan
from jaxstem.network.model import Model
from jaxstem.runtime import parallel

_SHARE = 0.12
"""Share of the beam that disks hold on average, to begin with."""

_MOST_LISTED = 5.0
"""How much more than the direct beam disks hold in all, from which on it stands behind a filter."""

_STEP = math.sqrt(2.0)
"""Ratio of the beams that are tried."""

_FARTHEST = 8
"""Steps from the first beam tried."""

_POSITIONS = 144
"""Positions, about, whose patterns are asked."""


def with_beam(
    source: DiskSource,
    model: Model,
    config: InferConfig,
    mesh: Mesh,
    predict_for: PredictFor | None = None,
) -> DiskSource:
    """The scan, its incident beam known: itself where the direct beam is measured or the counts of
    its patterns are not at hand; the same in each process.

    Of a scan whose beam is not measured patterns are not added up. Raises InputError as
    `source.read` does.
    """
    if source.detector is None or not config.by_counts(source):
        return source
    n_rows, n_columns = source.scan_shape
    side = max(1, round(math.sqrt(_POSITIONS)))
    chosen = [
        np.unique(np.linspace(0, n - 1, min(n, side)).astype(int)) for n in (n_rows, n_columns)
    ]
    some = source.at(*(x.tolist() for x in chosen))
    lists = some.read(0, some.scan_shape[0])
    direct = np.hypot(lists.qx, lists.qy) <= model.k_min
    light = np.maximum(lists.intensity, 0.0).astype(np.float64)
    listed, of_beam = float(light[~direct].sum()), float(light[direct].sum())
    is_measured = typical_beam(lists, model.k_min) is not None and listed < _MOST_LISTED * of_beam
    if is_measured and not source.instrument.beam_unseen:
        return source
    known = replace(source.instrument, beam_unseen=True)
    n_positions = max(len(lists.offsets) - 1, 1)
    if not listed > 0:
        return source.known_by(known)

    def evidence(beam: float) -> float:
        asked = some.known_by(replace(known, incident=beam))
        answer, _ = predict_scan(
            model, asked, config, mesh=mesh, progress=False, predict_for=predict_for
        )
        return float(np.nansum(np.maximum(answer.log_evidence, 0.0)))

    first = listed / n_positions / _SHARE
    beam = parallel.first_says(
        lambda: first * _STEP ** likeliest_step(lambda i: evidence(first * _STEP**i))
    )
    return replace(source.known_by(replace(known, incident=beam)), pooled=None)


def likeliest_step(worth: Callable[[int], float]) -> float:
    """Where a function of whole numbers is largest, to parts of a step by a parabola, by climbing
    from 0; `_FARTHEST` away at most.
    """
    known = {i: worth(i) for i in (-2, 0, 2)}
    while True:
        best = max(known, key=known.__getitem__)
        lacking = [i for i in (best - 2, best + 2) if i not in known and abs(i) <= _FARTHEST]
        if not lacking:
            break
        known |= {i: worth(i) for i in lacking}
    known |= {i: worth(i) for i in (best - 1, best + 1)}
    best = max(known, key=known.__getitem__)
    if best - 1 not in known or best + 1 not in known:
        return float(best)
    below, top, above = (known[best + i] for i in (-1, 0, 1))
    curved = below - 2 * top + above
    return best + (0.5 * (below - above) / curved if curved < 0 else 0.0)
