# SPDX-License-Identifier: GPL-3.0-or-later
"""What is wrong with a detector: pixels that tell nothing, and numbers that are cut.

A fault stands still while diffraction changes, has edges as sharp as pixels are, or is there in no
pattern at all where counts belong. What a few electrons may have done by chance is none, and
neither is what looks like a disk. Runs on the host, in NumPy. Shapes: `n` patterns of `H` × `W`
pixels, stored numbers.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Num
from scipy import ndimage

from jaxstem.detection.config import DetectConfig

BY_CHANCE = 15
"""Counts of a pixel, in the smallest number stored, that may be chance where all around are few."""

SHARP = 5.0
"""How much brighter a hot pixel is than any that is not and touches it."""

_MISSING = 80.0
"""Counts that must be missing where a region is dead: chance leaves out no e-th of so many, be they
half as many as thought."""

_LARGEST_CLUSTER = 36
"""Pixels of a cluster of hot ones at most."""

_ROUND = 0.88
"""Share of the square about it that a disk has at most."""

_UNEVEN = 30.0
"""How much brighter the brightest pixel of a hot cluster is than its faintest at most."""

_MOST_SPOTS = 20
"""Spots that may outshine the direct beam."""

_CLEARLY = 0.15
"""Share of the light's variance by which rings about the beam must say more than about a spot that
is brighter and is not the beam."""

_ALL_AROUND = np.ones((3, 3), bool)


def good_pixels(
    patterns: Num[np.ndarray, "n H W"], config: DetectConfig
) -> Bool[np.ndarray, "H W"]:
    """Pixels that count: not masked, not dead, stuck or hot, alone or many together; what a few
    electrons may have done by chance shows none of it.
    """
    good = np.ones(patterns.shape[1:], dtype=bool)
    if config.mask is not None:
        good &= np.asarray(config.mask, bool)
    if patterns.dtype.kind in "iu":
        counted, number = patterns, len(patterns)
        good &= ~_at_largest_number(patterns)
    else:
        finite = np.isfinite(patterns)
        counted, number = np.where(finite, patterns, 0), np.maximum(finite.sum(0), 1)
        good &= finite.any(0)
    mean = counted.sum(0, dtype=np.float64) / number
    unit = _unit(patterns)
    dead = _dead(counted, mean, good, unit)
    hot = _hot_alone(mean, good & ~dead, len(patterns), unit, float(counted.min()))
    hot |= _hot_clusters(counted, mean, good & ~dead & ~hot, unit, config)
    if hot.any():  # beside them some pixels seemed dark
        dead = _dead(counted, mean, good & ~hot, unit)
    return good & ~dead & ~hot


def _at_largest_number(patterns) -> Bool[np.ndarray, "H W"]:
    """Pixels that always hold the largest number that can be stored: gaps and dead chips of some
    detectors. A compact spot of them may be a direct beam too bright for 8 or 16 bits.
    """
    largest = np.iinfo(patterns.dtype).max
    stuck = (patterns == largest).all(axis=0)
    if largest >= 1 << 31 or not stuck.any():
        return stuck
    labels, n_spots = ndimage.label(stuck, _ALL_AROUND)
    boxes, side = ndimage.find_objects(labels), min(stuck.shape) / 4
    often = (patterns == largest).mean(0)
    for number in range(1, n_spots + 1):
        spot = labels == number
        rows, columns = boxes[number - 1]
        extent = sorted((rows.stop - rows.start, columns.stop - columns.start))
        is_compact = spot.sum() > 0.6 * extent[0] * extent[1] and extent[1] <= min(
            2 * extent[0], side
        )
        ring = ndimage.binary_dilation(spot, _ALL_AROUND) & ~spot
        if is_compact and (spot.sum() >= 4 or often[ring].mean() > 0.05):
            stuck &= ~spot
    return stuck


def _unit(patterns: Num[np.ndarray, "n H W"]) -> float:
    """The smallest number above 0 that is stored."""
    counted = patterns[patterns > 0]
    return float(counted.min(initial=counted.max(initial=1)))


def _hot_alone(mean, good, n: int, unit: float, least: float) -> Bool[np.ndarray, "H W"]:
    """Pixels that are far brighter than all eight around them."""
    ring = _ALL_AROUND.copy()
    ring[1, 1] = False
    lit = np.where(good, mean, 0)
    around = ndimage.median_filter(lit, footprint=ring, mode="mirror")
    highest = ndimage.maximum_filter(lit, footprint=ring, mode="mirror")
    scatter = np.sqrt(np.maximum(around, 1e-9) * max(np.median(mean), 1e-9) / n)
    hot = (mean > SHARP * highest) & (mean - highest > 20 * scatter)
    if least < 0:  # noise of the read-out, too
        hot &= mean - highest > 20 * np.median(np.abs(mean - around)[good])
    # of what is beside a gap little is known
    hot &= ndimage.convolve(good.astype(int), ring.astype(int), mode="mirror") > 4
    # where few electrons fall, the neighbours of one may have none at all
    return hot & (mean * n > BY_CHANCE * unit)


def _dead(counted, mean, good, unit: float) -> Bool[np.ndarray, "H W"]:
    """Pixels without counts where there should be some, alone, in lines or in regions.

    What should be there is what is usual about them and as far from the beam as they are.
    """
    n, *shape = counted.shape
    ring = _ALL_AROUND.copy()
    ring[1, 1] = False
    around = ndimage.median_filter(np.where(good, mean, 0), footprint=ring, mode="mirror")
    silent = good & (counted == counted[:1]).all(0) & (counted[0] <= 0)
    dead = silent & (around * n > 30 * unit)
    if not silent.any():
        return dead
    lit = np.where(good, np.maximum(mean, 0), np.nan)
    expected = np.minimum(_usual(lit), _usual_in_rings(lit)) * (n / unit)
    wide = max(2, min(shape) // 4)
    # a region's least extents, and how far lines go on
    for window in ((3, 3), (5, 5), (9, 9), (1, wide), (wide, 1), (2, wide), (wide, 2)):
        size = window[0] * window[1]
        whole = ndimage.minimum_filter(silent | ~good, window, mode="nearest")
        missing = ndimage.uniform_filter(np.where(silent, expected, 0), window) * size
        found = whole & (missing > _MISSING)
        # the window's own pixels, which an even one has more of before its middle than behind
        back = tuple(-1 if side % 2 == 0 else 0 for side in window)
        dead |= ndimage.maximum_filter(found, window, mode="constant", origin=back) & silent
    return dead


def _usual(mean: Float[np.ndarray, "H W"]) -> Float[np.ndarray, "H W"]:
    """What most pixels have within a window as wide as 2/5 of the detector; NaN are not asked."""
    shape = mean.shape
    block = max(1, min(shape) // 32)
    padded = np.pad(mean, [(0, -side % block) for side in shape], constant_values=np.nan)
    height, width = (side // block for side in padded.shape)
    cells = padded.reshape(height, block, width, block).transpose(0, 2, 1, 3)
    cells = cells.reshape(height, width, -1)
    known = np.isfinite(cells)
    blocks = np.where(known, cells, 0).sum(-1) / np.maximum(known.sum(-1), 1)
    blocks = np.where(known.any(-1), blocks, 0)
    window = 2 * (2 * min(height, width) // 10) + 1
    usual = ndimage.percentile_filter(blocks, 55, window, mode="nearest")
    return np.kron(usual, np.ones((block, block)))[: shape[0], : shape[1]]


def _usual_in_rings(mean: Float[np.ndarray, "H W"]) -> Float[np.ndarray, "H W"]:
    """What most sectors have of the ring about the beam in which a pixel lies."""
    used = np.isfinite(mean)
    lit = np.where(used, mean, 0.0)
    blurred = ndimage.gaussian_filter(lit, 2.0)
    middles = [
        np.array(np.unravel_index(blurred.argmax(), lit.shape), float),
        np.array(ndimage.center_of_mass(np.minimum(blurred, np.quantile(blurred, 0.8)) + 1e-12)),
    ]
    light = np.log(blurred + 0.1 * max(float(blurred.mean()), 1e-12))
    centre = max(middles, key=lambda x: _in_rings(light, used, x))
    rows, columns = np.indices(lit.shape) - centre[:, None, None]
    ring = (np.hypot(rows, columns) / 3).astype(int)
    n_sectors = np.maximum((2 * np.pi * 9 * (np.arange(ring.max() + 1) + 0.5) / 25).astype(int), 1)
    turn = (np.arctan2(columns, rows) / (2 * np.pi) + 0.5) * (1 - 1e-9)
    first = np.concatenate([[0], np.cumsum(n_sectors)])
    sector = first[ring] + (turn * n_sectors[ring]).astype(int)
    area = np.bincount(sector[used], minlength=first[-1])
    rate = np.bincount(sector[used], lit[used], first[-1]) / np.maximum(area, 1)
    rate[area < 6] = np.nan
    usual = np.zeros(len(n_sectors))
    for i, (a, b) in enumerate(zip(first, first[1:], strict=False)):
        known = rate[a:b][np.isfinite(rate[a:b])]
        usual[i] = np.median(known) if len(known) else 0.0
    return usual[ring]


def _hot_clusters(counted, mean, good, unit: float, config) -> Bool[np.ndarray, "H W"]:
    """Pixels of clusters that are far brighter than all around and no disks.

    A disk, the direct beam too, has an edge that some pixels share with the dark, and comes and
    goes; or else it is as large as the beam. Of several that might be the beam it is the one about
    which the light falls off in rings.
    """
    n = len(counted)
    lit = np.where(good, np.maximum(mean, 0), 0.0)
    hot = np.zeros(lit.shape, bool)
    clusters = _sharp_clusters(lit, good, n, unit)
    if not clusters:
        return hot
    beam = _beam_among(lit, _bright_spots(lit, len(clusters)), config)
    area = beam.sum()
    for cluster in clusters:
        if not beam[cluster].any():
            small = len(cluster[0]) <= max(area / 2, 1)
            hot[cluster] = small or (_is_steady(counted, cluster) and _is_square(cluster, area))
    return hot


def _is_square(cluster, area: float) -> bool:
    """Whether a cluster is no disk by its shape, where it has pixels enough to have one, or larger
    than the direct beam of `area` pixels.
    """
    extents = [int(x.max() - x.min()) + 1 for x in cluster]
    full = len(cluster[0]) > _ROUND * extents[0] * extents[1] or max(extents) > 1.7 * min(extents)
    return full and (area >= 12 or len(cluster[0]) > 1.6 * area)


def _sharp_clusters(lit, good, n: int, unit: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows and columns of sets of touching pixels, each `SHARP` times brighter than all beside the
    set.
    """
    top = float(lit.max())
    least = BY_CHANCE * unit / n
    found: list[tuple[np.ndarray, np.ndarray]] = []
    taken = np.zeros(lit.shape, bool)
    gap = ndimage.convolve((~good).astype(int), np.ones((3, 3), int), mode="mirror")
    level = 0.7 * top
    while level > max(least, 1e-7 * top):
        labels, number = ndimage.label(lit > level, _ALL_AROUND)
        sizes = np.bincount(labels.ravel(), minlength=number + 1)
        fits = (sizes > 1) & (sizes <= _LARGEST_CLUSTER)
        fits[0] = False
        pixels = np.flatnonzero(fits[labels])
        level /= 1.5
        if not len(pixels):
            continue
        index, own = np.unique(labels.flat[pixels], return_inverse=True)
        outside = ndimage.maximum_filter(np.where(labels > 0, 0, lit), 3)
        lowest, highest, peaks, beside_gap = np.full(len(index), np.inf), *np.zeros((3, len(index)))
        np.minimum.at(lowest, own, lit.flat[pixels])
        for most, image in ((highest, outside), (peaks, lit), (beside_gap, gap)):
            np.maximum.at(most, own, image.flat[pixels])
        sharp = lowest > SHARP * highest
        # noise of the mean: a hot pixel stands out of it far
        sharp &= (lowest - highest) ** 2 > 400 * np.maximum(highest, unit / n) * unit / n
        sharp &= (peaks < _UNEVEN * lowest) & (beside_gap < 3)
        boxes = ndimage.find_objects(labels) if sharp.any() else []
        for number in index[sharp]:
            box = boxes[number - 1]
            rows, columns = np.nonzero(labels[box] == number)
            own = rows + box[0].start, columns + box[1].start
            if not taken[own].any():
                found.append(own)
                taken[own] = True
    return found


def _bright_spots(lit, n_clusters: int) -> list[Bool[np.ndarray, "H W"]]:
    """The spots of the mean pattern that may be the direct beam, clusters among them."""
    blurred = ndimage.gaussian_filter(lit, 1.0)
    left, spots = blurred.copy(), []
    for _ in range(min(n_clusters, _MOST_SPOTS) + 4):
        peak = left.max()
        if peak <= 0:
            break
        labels, _ = ndimage.label(left > 0.5 * peak)
        spot = labels == labels[np.unravel_index(left.argmax(), left.shape)]
        if spots and spot.sum() > (min(lit.shape) / 4) ** 2:
            break  # between the spots
        spots.append(spot)
        left[ndimage.binary_dilation(spot, _ALL_AROUND, 3)] = 0
    return spots


def _beam_among(lit, spots, config) -> Bool[np.ndarray, "H W"]:
    """That of the spots about which the rest of the light is most alike all around."""
    if config.origin is not None:
        away = np.hypot(*(np.indices(lit.shape) - np.reshape(config.origin, (2, 1, 1))))
        return away <= (config.radius or 3.0) + 1
    if len(spots) == 1:
        return spots[0]
    rest = ~ndimage.binary_dilation(np.any(spots, axis=0), _ALL_AROUND, 2)
    if rest.mean() < 0.2:
        return spots[0]
    dark = np.where(rest, lit, 0.0)
    light = ndimage.gaussian_filter(dark, 2.0) / ndimage.gaussian_filter(rest * 1.0, 2.0).clip(1e-3)
    light = np.log(light + 0.1 * max(float(np.mean(lit[rest])), 1e-12))
    scores = [_in_rings(light, rest, np.array(ndimage.center_of_mass(x))) for x in spots]
    best = int(np.argmax(scores))
    # the brightest one, if it is not clearly beside the middle
    return spots[best if scores[best] > scores[0] + _CLEARLY else 0]


def _in_rings(light, used, centre) -> float:
    """Share of the light's variance that its mean over rings about a centre has."""
    away = np.hypot(*(np.indices(light.shape) - centre[:, None, None]))[used]
    ring, values = (away / 2).astype(int), light[used]
    number = np.bincount(ring)
    mean = np.bincount(ring, values) / np.maximum(number, 1)
    return float(1 - np.var(values - mean[ring]) / max(np.var(values), 1e-12))


def _is_steady(counted, cluster) -> bool:
    """Whether a cluster has much the same counts in all patterns."""
    sums = counted[:, *cluster].sum(1, dtype=np.float64)
    return bool(np.quantile(sums, 0.1) > 0.5 * np.quantile(sums, 0.9)) and len(sums) >= 8


def ceiling(patterns: Num[np.ndarray, "n H W"], good: Bool[np.ndarray, "H W"]) -> float:
    """The stored number that larger ones are cut to, infinity where none are.

    Many are as large as the largest then, and hardly any a little smaller.
    """
    counted = patterns[:, good]
    counted = counted[np.isfinite(counted)] if counted.dtype.kind == "f" else counted
    if not counted.size:
        return np.inf
    top = float(counted.max())
    if top <= 0:
        return np.inf
    steps = np.diff(np.unique(counted[:: max(1, counted.size // 100_000)]))
    step = float(steps.min(initial=top))
    n_top = int((counted == counted.max()).sum())
    below = top - max(0.1 * top, 2 * np.sqrt(top * step))
    n_below = int((counted > below).sum()) - n_top
    return top if n_top >= max(len(patterns), 8) and n_top > 0.5 * n_below else np.inf
