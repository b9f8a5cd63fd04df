# SPDX-License-Identifier: GPL-3.0-or-later
"""A scan of any size as batches of patterns of one length.

What concerns the scan as a whole, its lengths and its detection limit, is taken from a sample of
its pieces before (`preview_scan`). Pieces are read one after the other and their patterns sorted
into batches. Patterns of one length wait for others of later pieces, so that batches are full, but
not for long: memory does not grow with the scan.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Int

from jaxstem.diffraction.geometry import Disks
from jaxstem.files.light import Light
from jaxstem.files.map_schema import MAP_DATASETS, unassigned
from jaxstem.files.orientation_map import NO_CRYSTAL, UNASSIGNED
from jaxstem.files.scan import DiskScan, DiskSource, joined, pad_disks
from jaxstem.inference.config import InferConfig
from jaxstem.inference.exposure import (
    MIN_DISKS,
    Exposure,
    count_disks,
    looks_empty,
    scan_exposure,
    scan_reach,
    typical_beam,
)
from jaxstem.inference.lengths import (
    BESIDE_COUNTS,
    BESIDE_DISKS,
    USUAL,
    WORTH_A_LENGTH,
    WORTH_A_LENGTH_ON_ACCELERATOR,
    choose_lengths,
    ladder,
    length_of,
)
from jaxstem.inference.verdict import Answer, Labels
from jaxstem.network.model import Model
from jaxstem.verification.config import FARTHEST, Limit

PIECE = 1 << 14
"""Positions that are read at once."""

PIECE_WITH_LIGHT = 1 << 11
"""The same of scans whose counts come along."""

SAMPLE = 1 << 18
"""Positions from which lengths and detection limit of a scan are taken: all, if there are fewer."""

MOST_BEYOND = 0.02
"""Share of a scan's disks that may lie beyond the reflections thought of without a word."""

OPEN = 64
"""Pieces that may wait for the last of their answers; then batches go out partly filled."""


class Preview(NamedTuple):
    """What is known of a scan as a whole before it is worked on.

    limit: the weakest disks listed; beam: `typical_beam`; lengths: to which patterns are padded;
    pieces: those read for it, by first and last row; light: that of a position, None where counts
    do not judge.
    """

    limit: Limit
    beam: float | None
    lengths: tuple[int, ...]
    pieces: dict[tuple[int, int], DiskScan]
    light: Light | None


def piece_size(source: DiskSource) -> int:
    """Positions of this scan that are read at once."""
    return PIECE if source.detector is None else PIECE_WITH_LIGHT


def judged_source(source: DiskSource, model: Model, config: InferConfig) -> DiskSource:
    """The scan, without its counts where these do not judge: where `config` says so, or where the
    direct beam is listed in less than half of the patterns in its middle. Predictions are shares of
    the beam, so that counts say little where that is not known. Raises InputError as `source.read`.
    """
    without = replace(source, detector=None, read_light=None)
    pieces = source.pieces(piece_size(source))
    if not config.by_counts(source) or not pieces:
        return without
    middle = source.read(*pieces[len(pieces) // 2])
    if not len(middle.qx) or typical_beam(middle, model.k_min) is not None:
        return source
    warnings.warn(
        f"{source.source}: the direct beam is not found in most patterns, so that the listed disks "
        "decide and not the counts; --origin and --radius say where it is.",
        stacklevel=2,
    )
    return without


def preview_scan(source: DiskSource, model: Model, config: InferConfig) -> Preview:
    """Lengths and detection limit from `SAMPLE` positions in pieces spread evenly over the scan.

    From all positions of a smaller scan. Raises InputError as `source.read` does.
    """
    ranges = source.pieces(piece_size(source))
    n_positions = int(np.prod(source.scan_shape))
    n_read = max(1, min(len(ranges), len(ranges) * SAMPLE // max(n_positions, 1)))
    chosen = np.unique(np.linspace(0, len(ranges) - 1, n_read).round().astype(int))
    pieces = {ranges[i]: source.read(*ranges[i]) for i in chosen}
    scan = joined(list(pieces.values()))
    reach = scan_reach(scan, model.k_min, model.k_max)
    if not config.verifies:
        reach = min(reach, model.k_max)
    counts = count_disks(scan, model.k_min, reach)
    _warn_of_disks_beyond(scan, model, config)
    lengths = ladder(model, config)
    share = max(n_positions, 1) / max(len(counts), 1)
    on_cpu = jax.default_backend() == "cpu"
    usual = WORTH_A_LENGTH if on_cpu else WORTH_A_LENGTH_ON_ACCELERATOR
    least = usual[config.refine] if config.least is None else config.least
    beside = BESIDE_COUNTS if config.by_counts(source) else BESIDE_DISKS[config.refine]
    program = least / share * (USUAL + beside)
    return Preview(
        scan_exposure(scan, model.k_min, reach).limit,
        typical_beam(scan, model.k_min),
        choose_lengths(counts, lengths, program, beside) or lengths[:1],
        pieces,
        Light(*(x[:1] for x in source.read_light(0, 1))) if source.detector else None,
    )


def _warn_of_disks_beyond(scan: DiskScan, model: Model, config: InferConfig) -> None:
    """Say so where many disks lie farther out than reflections are thought of."""
    farthest = max(FARTHEST, model.k_max) if config.verifies else model.k_max
    radius = np.hypot(scan.qx, scan.qy)[scan.intensity > 0]
    radius = radius[radius > model.k_min]
    share = float((radius > farthest).mean()) if len(radius) else 0.0
    if share > MOST_BEYOND:
        warnings.warn(
            f"{100 * share:.0f} % of the scan's disks lie beyond {farthest:g} 1/Å and count for "
            "nothing; check the pixel size, or train a model with a larger --k-max.",
            stacklevel=2,
        )


@dataclass(eq=False)
class Piece:
    """Some rows of a scan on their way: which piece and its first flat position, the answers so
    far, the number of disks, how many positions lack their answers, and the labels so far, where
    they are kept and any are known.
    """

    number: int
    first: int
    answer: Answer
    counts: Int[np.ndarray, " positions"]
    left: int
    labels: Labels | None = None

    def put(
        self, index: Int[np.ndarray, " n"], answer: Answer | None, labels: Labels | None
    ) -> None:
        """Take what was found of the positions `index`."""
        if labels is not None and self.labels is None:
            self.labels = no_labels(self.answer.phase, labels.phase.shape[1])
        for mine, found in ((self.answer, answer), (self.labels, labels)):
            for into, values in zip(mine, found, strict=True) if found is not None else ():
                into[index] = values
        self.left -= len(index)


def likeliest_labels(labels: Labels, n: int) -> Labels:
    """The `n` likeliest candidates of each position (positions, C), the likeliest first."""
    order = np.argsort(-labels.log_odds, axis=1, kind="stable")[:, :n]

    def chosen(x, none):
        if x.ndim == 1:
            return x
        best = np.take_along_axis(x, order.reshape(*order.shape, *[1] * (x.ndim - 2)), axis=1)
        short = [(0, 0)] * x.ndim
        short[1] = (0, n - order.shape[1])
        return np.pad(best, short, constant_values=none)

    none = no_labels(np.full(1, UNASSIGNED), 1)
    return Labels(*(chosen(x, y.flat[0]) for x, y in zip(labels, none, strict=True)))


def no_labels(phase: Int[np.ndarray, " n"], n_candidates: int) -> Labels:
    """The labels of positions that are not looked at: no crystal where that is known (`phase`)."""
    shape = (len(phase), n_candidates)
    unknown = np.full(shape, np.nan, np.float32)
    return Labels(
        np.zeros((*shape, 4), np.float32),
        np.full(shape, UNASSIGNED, np.int32),
        np.full(shape, -np.inf, np.float32),
        np.where(phase == NO_CRYSTAL, 0.0, np.nan).astype(np.float32),
        *(unknown.copy() for _ in Labels._fields[4:]),
    )


Where = list[tuple[Piece, Int[np.ndarray, " n"]]]
"""Where patterns belong that come one after the other: pieces and the positions within each."""


Asked = Callable[[int, int], tuple[np.ndarray, np.ndarray]]
"""Quaternions (n, M, 4) and phases (n, M) of the orientations to be judged at the flat positions
from the first to before the last, the phase being -1 where there are no more.
"""


class PaddedBatch(NamedTuple):
    """Patterns of one length, the last one repeated to fill it up, and where they belong; asked:
    what is asked of each (`Asked`).
    """

    disks: Disks
    exposed: Exposure
    where: Where
    light: Light | None = None
    asked: tuple[np.ndarray, ...] = ()


def part_of(batch: PaddedBatch, start: int, stop: int) -> PaddedBatch:
    """The patterns `start` to `stop - 1` of a batch, without where they belong."""
    rows = batch.disks, tuple(batch.exposed[:3]), batch.light, batch.asked
    disks, exposed, light, asked = jax.tree.map(lambda x: x[start:stop], rows)
    return PaddedBatch(disks, Exposure(*exposed, batch.exposed.limit), [], light, asked)


def nothing_to_see(size: int, length: int, limit: Limit, like: Light | None) -> PaddedBatch:
    """A batch of `size` patterns of this length, none of which has a disk; with counts such as
    those that these are `like`, if any.
    """
    numbers, ones = np.zeros((size, length), np.float32), np.ones(size, np.float32)
    disks = Disks(numbers, numbers, numbers, np.zeros((size, length), bool))
    dark = like and Light(*(np.zeros((size, *x.shape[1:]), x.dtype) for x in like))
    return PaddedBatch(disks, Exposure(ones, ones, np.zeros(size, bool), limit), [], dark)


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
    counts = count_disks(scan, model.k_min, float(exposed.limit.reach))
    answer = unseen(looks_empty(scan, model.k_min, exposed))
    return Piece(number, first, answer, counts, int((counts >= MIN_DISKS).sum()))


def unseen(empty: Bool[np.ndarray, " n"]) -> Answer:
    """The answers of patterns that are not looked at: no crystal where they look empty, a doubt of
    which is not known; unassigned elsewhere.
    """
    answer = Answer(**{name: unassigned(len(empty), MAP_DATASETS[name]) for name in Answer._fields})
    for confidence in (answer.confidence, answer.confidence_mod180, answer.phase_confidence):
        confidence[~empty] = 0.0
    answer.phase[empty] = NO_CRYSTAL
    return answer


def batches(
    source: DiskSource,
    model: Model,
    config: InferConfig,
    known: Preview,
    rows: tuple[int, int],
    batch: int,
    asked: Asked | None = None,
) -> Iterator[Piece | PaddedBatch]:
    """The pieces between two rows in order, and the batches that hold their patterns; only those of
    which something is `asked`, where it is.

    A piece comes before any batch with patterns of it. Batches are full, but for the last of each
    length and for those that would keep a piece waiting longer than `OPEN` others.
    """
    k_min, reach = model.k_min, float(known.limit.reach)
    shelves = [Shelf() for _ in known.lengths]
    ranges = replace(source, scan_shape=(rows[1] - rows[0], source.scan_shape[1])).pieces(
        piece_size(source)
    )

    def filled(shelf: Shelf, rest: bool) -> Iterator[PaddedBatch]:
        for arrays, where in shelf.take(batch, rest):
            missing = batch - len(arrays[0])
            whole = [
                np.concatenate([x, np.repeat(x[-1:], missing, 0)]) if missing else x for x in arrays
            ]
            n_light = len(Light._fields) if known.light else 0
            (incident, sigma, is_cut), light = whole[4:7], whole[7 : 7 + n_light]
            exposed = Exposure(incident, sigma, is_cut, known.limit)
            counts = Light(*light) if light else None
            yield PaddedBatch(
                Disks(*whole[:4]), exposed, where, counts, tuple(whole[7 + n_light :])
            )

    for number, (start, stop) in enumerate(ranges):
        start, stop = start + rows[0], stop + rows[0]
        scan = known.pieces.pop((start, stop), None) or source.read(start, stop)
        counts = source.read_light(start, stop) if known.light else ()
        exposed = scan_exposure(scan, k_min, reach, known.limit, known.beam)
        first = (start - rows[0]) * source.scan_shape[1]
        piece = unanswered(number, first, scan, model, exposed)
        place, questions = length_of(piece.counts, known.lengths), ()
        if asked is not None:
            questions = asked(first, first + len(place))
            place = np.where((questions[1] >= 0).any(axis=1), place, -1)
            piece.left = int((place >= 0).sum())
        yield piece
        for i, (length, shelf) in enumerate(zip(known.lengths, shelves, strict=True)):
            index = np.flatnonzero(place == i)
            if len(index):
                disks = pad_disks(scan, index, reach, k_min, length)
                beam = exposed.incident[index], exposed.incident_sigma[index]
                more = [x[index] for x in (*counts, *questions)]
                shelf.put((*disks, *beam, piece.counts[index] > length, *more), piece, index)
            if shelf.number and shelf.where[0][0].number < number - OPEN:
                yield from filled(shelf, rest=True)
            elif shelf.number >= batch:
                yield from filled(shelf, rest=False)
    for shelf in shelves:
        if shelf.number:
            yield from filled(shelf, rest=True)
