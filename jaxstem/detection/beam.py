# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the direct beam is in a scan's patterns, be it hidden, cut or in the open.

Runs on the host, in NumPy; lengths in detector pixels. Shapes: `n` patterns of `H` × `W` pixels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Num
from scipy import ndimage

from jaxstem.detection.config import DetectConfig
from jaxstem.detection.hidden_beam import bright_disks, smoothed, symmetry_centre, usual_disks
from jaxstem.errors import InputError

_CUT = 0.02
"""Share of the direct beam's counts that may be cut and tell it still."""

_HIDDEN = 0.6
"""Share of the beam that must be covered for its place not to be told in each pattern."""

_WIDE = 0.06
"""Share of the detector's side from which on a spot that is partly covered is no beam."""

_FEW = 30.0
"""Electrons that the direct beam has in all patterns looked at, at least."""

_CAN_HIDE = 9
"""Pixels of a gap that may hide a beam."""


class Beam(NamedTuple):
    """The direct beam: its mean centre (row, column) and rough radius [px]; image: pieces of
    patterns and the places in them of disks that show the aperture in its stead, where it is hidden
    or cut itself; hidden: whether its place in each pattern cannot be told.
    """

    centre: Float[np.ndarray, " 2"]
    radius: float
    image: tuple[list[np.ndarray], list[np.ndarray]] | None = None
    hidden: bool = False


def find_beam(
    patterns: Num[np.ndarray, "n H W"],
    good: Bool[np.ndarray, "H W"],
    config: DetectConfig,
    source: str,
) -> tuple[Float[np.ndarray, " 2"], float]:
    """Mean centre [px] and rough radius of the direct beam: the brightest spot of the mean."""
    if config.origin is not None:
        return np.array(config.origin, float), config.radius or 3.0
    mean = np.where(good, patterns.mean(0), 0.0)
    blurred = smoothed(mean, good, 1.0)
    labels, _ = ndimage.label(blurred > 0.5 * blurred.max())
    spot = labels == labels[np.unravel_index(blurred.argmax(), mean.shape)]
    radius = math.sqrt(spot.sum() / math.pi)
    if radius > 0.25 * min(mean.shape):
        raise no_beam(source)
    return np.array(ndimage.center_of_mass(np.where(spot, mean, 0))), radius


def no_beam(source: str) -> InputError:
    """The complaint about patterns without a direct beam."""
    return InputError(
        f"{source}: no direct beam found, for none stands out in the mean pattern; give --origin "
        "and --radius."
    )


def look_for_beam(
    patterns: Num[np.ndarray, "n H W"],
    good: Bool[np.ndarray, "H W"],
    clipped: float,
    config: DetectConfig,
    source: str,
) -> Beam:
    """The direct beam, be it hidden by dead pixels or a stop, or cut to the number `clipped` (in
    the patterns' units, else infinity). Raises InputError where nothing tells where it is.
    """
    if config.origin is not None:
        return Beam(*find_beam(patterns, good, config, source))
    gap = _largest_gap(good)
    try:
        centre, radius = find_beam(patterns, good, config, source)
        is_found = _stands_out(patterns, good, centre, radius)
    except InputError:
        is_found = False
    if not is_found and gap < _CAN_HIDE:
        raise no_beam(source)
    is_cut = is_found and _share_cut(patterns, good, centre, radius, clipped) > _CUT
    covered = _covered(good, centre, radius + 1.5) if is_found else 1.0
    near = symmetry_centre(patterns, good) if covered or gap >= _CAN_HIDE else centre
    elsewhere = not is_found or np.hypot(*(near - centre)) > max(3.0, 1.5 * radius)
    if not (is_cut or covered or elsewhere):
        return Beam(centre, radius)
    disks = usual_disks(bright_disks(patterns, good, near if covered or elsewhere else centre))
    if not disks:
        if elsewhere or covered > 0.5 or radius > _WIDE * min(good.shape):
            raise no_beam(source)
        return Beam(centre, radius)
    usual = float(np.median([disk.radius for disk in disks]))
    reach = math.ceil(2.5 * (usual + 2)) + 1
    firsts = [np.maximum(np.floor(disk.centre).astype(int) - reach, 0) for disk in disks]
    pieces = [
        patterns[d.pattern, i : i + 2 * reach + 2, j : j + 2 * reach + 2]
        for d, (i, j) in zip(disks, firsts, strict=True)
    ]
    image = pieces, [disk.centre - first for disk, first in zip(disks, firsts, strict=True)]
    if not (covered or elsewhere):
        return Beam(centre, usual, image)
    hidden = _covered(good, near, usual + 0.5) > _HIDDEN
    return Beam(near, usual, image, hidden)


def _away(shape: tuple[int, int], centre: Float[np.ndarray, " 2"]) -> Float[np.ndarray, "H W"]:
    """Distance [px] of each pixel from a place."""
    return np.hypot(*(np.indices(shape) - np.reshape(centre, (2, 1, 1))))


def _stands_out(
    patterns: Num[np.ndarray, "n H W"],
    good: Bool[np.ndarray, "H W"],
    centre: Float[np.ndarray, " 2"],
    radius: float,
) -> bool:
    """Whether a spot of the mean pattern is no chance."""
    away = _away(good.shape, centre)
    within, beside = good & (away <= max(radius, 1.0)), good & (away > 2 * radius + 2)
    if not within.any():
        return False
    total = patterns[:, within].sum(dtype=np.float64)
    others = patterns[:, beside].mean(dtype=np.float64) if beside.any() else 0.0
    chance = max(others, 0.0) * within.sum() * len(patterns)
    return bool(total > _FEW and total - chance > 8 * math.sqrt(max(chance, 1.0)))


def _covered(
    good: Bool[np.ndarray, "H W"], centre: Float[np.ndarray, " 2"], radius: float
) -> float:
    """Share of the pixels about a place that cannot be used."""
    within = _away(good.shape, centre) < radius
    return float((~good)[within].mean()) if within.any() else 1.0


def _share_cut(
    patterns: Num[np.ndarray, "n H W"],
    good: Bool[np.ndarray, "H W"],
    centre: Float[np.ndarray, " 2"],
    radius: float,
    clipped: float,
) -> float:
    """Share of the counts about a place that are cut."""
    if not np.isfinite(clipped):
        return 0.0
    within = good & (_away(good.shape, centre) < max(radius, 1.0))
    return float((patterns[:, within] >= clipped * (1 - 1e-6)).mean()) if within.any() else 0.0


def _largest_gap(good: Bool[np.ndarray, "H W"]) -> int:
    """Pixels of the largest region that cannot be used."""
    labels, _ = ndimage.label(~good)
    return int(np.bincount(labels.ravel())[1:].max(initial=0))


def beam_is_measured(
    patterns: Num[np.ndarray, "n H W"],
    good: Bool[np.ndarray, "H W"],
    centre: Float[np.ndarray, " 2"],
    radius: float,
    clipped: float,
) -> bool:
    """Whether the direct beam's counts can be told: most of it is seen and little is cut."""
    within = _away(good.shape, centre) < radius
    beside = good & ~within & (_away(good.shape, centre) < 2 * radius + 4)
    seen = within & good
    if _covered(good, centre, radius) > 0.5 or not seen.any() or not beside.any():
        return False
    mean = patterns.mean(0, dtype=np.float64)
    bright = mean[seen].mean() > 2 * np.median(mean[beside])
    return bool(bright and _share_cut(patterns, good, centre, radius, clipped) < _CUT)


def beam_centroids(
    patterns: Num[np.ndarray, "n H W"], centre: Float[np.ndarray, " 2"], reach: float, fixed: bool
) -> Float[np.ndarray, "n 2"]:
    """Centre of mass about the direct beam of each pattern [px]."""
    origins = np.repeat(centre[None], len(patterns), axis=0)
    if fixed:
        return origins
    size = math.ceil(reach) + 3
    first = np.clip(np.round(centre).astype(int) - size, 0, None)
    crop = patterns[:, first[0] : first[0] + 2 * size + 1, first[1] : first[1] + 2 * size + 1]
    rows, columns = (np.arange(n) + k for n, k in zip(crop.shape[1:], first, strict=True))
    for _ in range(5):
        r = np.hypot(rows[:, None] - origins[:, :1, None], columns[None] - origins[:, 1:, None])
        weight = crop * (r < reach + 0.5) + 1e-9
        total = weight.sum((1, 2))
        origins = np.stack(
            [(weight * rows[:, None]).sum((1, 2)) / total, (weight * columns).sum((1, 2)) / total],
            axis=1,
        )
    return origins
