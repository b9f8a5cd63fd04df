# SPDX-License-Identifier: GPL-3.0-or-later
"""Answers over a scan of any size, piece by piece.

One thread reads pieces of the scan and sorts their patterns into batches (`batching`), several feed
the devices, and the answers come out in the scan's order.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int
from tqdm import tqdm

from jaxstem.files.light import Detector
from jaxstem.files.scan import DiskScan, DiskSource, source_of
from jaxstem.inference.batching import (
    Asked,
    PaddedBatch,
    Piece,
    batches,
    judged_source,
    nothing_to_see,
    part_of,
    preview_scan,
)
from jaxstem.inference.config import BY_BLOCH_WAVES, InferConfig
from jaxstem.inference.second_look import make_second_look
from jaxstem.inference.step import Found, PredictFor, make_predict_for
from jaxstem.inference.verdict import Answer
from jaxstem.network.model import Model
from jaxstem.runtime import parallel
from jaxstem.runtime.memory import in_parts_that_fit


def stream_answers(
    model: Model,
    source: DiskSource,
    config: InferConfig | None = None,
    *,
    rows: tuple[int, int] | None = None,
    mesh: Mesh | None = None,
    progress: bool | None = None,
    predict_for: PredictFor | None = None,
) -> Iterator[Piece]:
    """Answers for all positions of a scan, or of its rows from `rows[0]` to `rows[1] - 1`, piece by
    piece in order, first positions counted from the first row asked for.

    `predict_for`: what `make_predict_for` makes of the model, `config` and `mesh`, where several
    scans are to share it.

    Positions with fewer than `MIN_DISKS` have no crystal where they look empty and are unassigned
    elsewhere, their confidence being NaN and 0. Each length compiles once. Reading, work and what
    the caller does overlap. Raises InputError as `source.read` does.
    """

    def make(params, config: InferConfig, mesh: Mesh, detector: Detector | None):
        predict = (predict_for or make_predict_for(model, config, mesh))(detector)
        return lambda batch: predict(params, batch.disks, batch.exposed, batch.light)

    return _streamed(make, model, source, config, rows, mesh, progress)


def stream_second_looks(
    model: Model,
    source: DiskSource,
    asked: Asked,
    config: InferConfig | None = None,
    *,
    rows: tuple[int, int] | None = None,
    mesh: Mesh | None = None,
    progress: bool | None = None,
) -> Iterator[Piece]:
    """The labels that orientations which are `asked` for are at their positions, in pieces as those
    of `stream_answers`, without answers; None in those of which nothing is asked.
    """

    def make(params, config: InferConfig, mesh: Mesh, detector: Detector | None):
        look = make_second_look(model, config, mesh, detector)

        def ask(batch: PaddedBatch) -> Found:
            return None, look(batch.disks, batch.exposed, batch.light, *batch.asked)

        return ask

    return _streamed(make, model, source, config, rows, mesh, progress, asked)


def _streamed(
    make: Callable,
    model: Model,
    source: DiskSource,
    config: InferConfig | None,
    rows: tuple[int, int] | None,
    mesh: Mesh | None,
    progress: bool | None,
    asked: Asked | None = None,
) -> Iterator[Piece]:
    """`make` gives the program of a batch, from parameters, settings, mesh and detector."""
    config = config or InferConfig()
    if config.refine not in ("none", "fast", *BY_BLOCH_WAVES):
        raise ValueError(f'refine is {config.refine!r}: give "none", "fast", "full" or "exact"')
    if config.precision not in ("float32", "bfloat16"):
        raise ValueError(f'precision is {config.precision!r}: give "float32" or "bfloat16"')
    mesh = mesh or parallel.make_mesh(jax.local_devices())
    source = judged_source(source, model, config)
    rows = rows or (0, source.scan_shape[0])
    total = (rows[1] - rows[0]) * source.scan_shape[1]
    disable = None if progress is None else not progress
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(ThreadPoolExecutor(1))
        previewed = reader.submit(preview_scan, source, model, config)
        ask = make(parallel.replicate(model.params, mesh), config, mesh, source.detector)
        n_workers = workers(mesh)
        crew = stack.enter_context(ThreadPoolExecutor(n_workers))
        bar = stack.enter_context(tqdm(total=total, unit="position", disable=disable))
        known = previewed.result()
        size = config.batch_on(mesh)
        fitting = in_parts_that_fit(ask, size, config.least_on(mesh), part_of)

        def prepare(length: int) -> None:
            nothing = nothing_to_see(size, length, known.limit, known.light)
            if asked is not None:
                questions = tuple(np.repeat(x[:1], size, axis=0) for x in asked(0, 1))
                nothing = nothing._replace(asked=questions)
            fitting(nothing)

        ready: dict[int, Future] = {}
        found = batches(source, model, config, known, rows, size, asked)
        coming = stack.enter_context(contextlib.closing(read_ahead(found, 2 * n_workers)))

        def work(batch: PaddedBatch) -> Found:
            ready[batch.disks.qx.shape[1]].result()
            return fitting(batch)

        pieces: deque[Piece] = deque()
        pending: deque = deque()

        def collect() -> None:
            where, future = pending.popleft()
            found, start = future.result(), 0
            for piece, index in where:
                own = slice(start, start + len(index))
                piece.put(index, *jax.tree.map(lambda x, own=own: x[own], found))
                start += len(index)

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


def _done(piece: Piece, bar: tqdm) -> Piece:
    bar.update(len(piece.counts))
    return piece


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
    predict_for: PredictFor | None = None,
) -> tuple[Answer, Int[np.ndarray, " positions"]]:
    """Answers for all positions of a scan (flat), and disk counts: `stream_answers`, in memory."""
    source = scan if isinstance(scan, DiskSource) else source_of(scan)
    more = {"mesh": mesh, "progress": progress, "predict_for": predict_for}
    pieces = list(stream_answers(model, source, config, **more))
    answers = zip(*(piece.answer for piece in pieces), strict=True)
    return Answer(*map(np.concatenate, answers)), np.concatenate([x.counts for x in pieces])
