# SPDX-License-Identifier: GPL-3.0-or-later
"""To which numbers of disks patterns are padded.

A pattern with six disks should not pay for thirty, but every length is a program of its own, to be
compiled or loaded. `choose_lengths` finds those that make the whole work least.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from jaxstem.inference.config import InferConfig
from jaxstem.inference.exposure import MIN_DISKS
from jaxstem.network.model import Model

LENGTHS = {
    "none": tuple(range(4, 41, 4)),
    "fast": (8, 16, 24, 32, 40),
    "full": (8, 16, 24, 32, 40),
    "exact": (8, 16, 24, 32, 40),
}
"""Numbers of disks to which patterns may be padded. On CPUs verification takes as long for those
between two multiples of eight as for the greater one.
"""

WORTH_A_LENGTH = {"none": 2048, "fast": 4096, "full": 256, "exact": 64}
"""Patterns that take as long as loading one more program that was kept: a tenth of a second where
there is no verification, half a second where there is; and twice as many, for the first time it
must be compiled.
"""

WORTH_A_LENGTH_ON_ACCELERATOR = {
    "none": 1 << 20,
    "fast": 1 << 20,
    "full": 1 << 12,
    "exact": 1 << 10,
}
"""The same where the devices are no CPUs: patterns take a hundredth of the time there, and programs
half a minute to compile.
"""

USUAL = 8
"""Disks of the patterns that `WORTH_A_LENGTH` counts."""

BESIDE_DISKS = {"none": 10, "fast": 10, "full": 200, "exact": 200}
"""What a pattern costs whatever the number of its disks, as so many disks (measured on CPUs)."""

BESIDE_COUNTS = 300
"""The same where counts judge, at places that are predicted and not listed: patterns padded to 16
disks and to 40 take as long.
"""


def choose_lengths(
    counts: Int[np.ndarray, " positions"],
    lengths: Sequence[int],
    program: float,
    beside: float = 0,
) -> tuple[int, ...]:
    """Those of the ascending `lengths` to which patterns are best padded.

    They make the work least, counted in disks: a pattern costs as many as it is padded to and
    `beside`, a length in use `program`. Empty where no position has `MIN_DISKS`.
    """
    place = np.minimum(np.searchsorted(lengths, counts), len(lengths) - 1)
    number = np.bincount(place[counts >= MIN_DISKS], minlength=len(lengths))
    # cheapest way to serve all patterns up to each length, it being the last in use
    best: list[tuple[float, tuple[int, ...]]] = []
    for i, length in enumerate(lengths):
        options = [(number[: i + 1].sum() * (length + beside) + program, (length,))]
        for j, (cost, used) in enumerate(best):
            more = number[j + 1 : i + 1].sum() * (length + beside) + program
            options.append((cost + more, (*used, length)))
        best.append(min(options))
    occupied = np.flatnonzero(number)
    return best[occupied[-1]][1] if len(occupied) else ()


def length_of(
    counts: Int[np.ndarray, " positions"], lengths: Sequence[int]
) -> Int[np.ndarray, " positions"]:
    """Which of the `lengths` each position is padded to; -1 where it has less than `MIN_DISKS`.

    The shortest that holds its disks, or the longest one, which then keeps its strongest.
    """
    place = np.minimum(np.searchsorted(lengths, counts), len(lengths) - 1)
    return np.where(counts >= MIN_DISKS, place, -1)


def ladder(model: Model, config: InferConfig) -> tuple[int, ...]:
    """Lengths to choose from; the network alone has no use for more disks than it knows."""
    lengths = config.lengths or LENGTHS[config.refine]
    if config.refine != "none":
        return lengths
    longest = min(model.config.n_disks, lengths[-1])
    return (*(length for length in lengths if length < longest), longest)
