# SPDX-License-Identifier: GPL-3.0-or-later
"""What some patterns tell of their scan: dead pixels, gain, beam, aperture, background.

Runs on the host, in NumPy; lengths in detector pixels. Shapes: `n` patterns of `H` × `W` pixels.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy import ndimage

from jaxstem.detection.config import DetectConfig
from jaxstem.detection.layout import FAINTEST, TABLE_STEP
from jaxstem.errors import InputError

BY_CHANCE = 15
"""Counts of a pixel, in the smallest number stored, that may be chance where all around are few."""

WIDER = 0.25
"""By how much of its edge a synthetic template is larger than the direct beam's image."""


def vacuum_probe(
    image: Shaped[np.ndarray, "..."], shape: tuple[int, int]
) -> tuple[Float[np.ndarray, "H W"], float]:
    """An image of the beam in vacuum moved to pixel (0, 0) of a detector, and the radius [px] of
    the circle about it.

    The circle holds what is brighter, above the floor, than a quarter of the brightest pixels; its
    centre is the centre of mass. What is outside is left out, hot pixels too. Shifted by a phase in
    Fourier space, which blurs nothing. Raises InputError for what is no such image.
    """
    image = np.asarray(image, float)
    if image.ndim != 2 or not np.isfinite(image).all():
        raise InputError(
            f"The image of the probe has shape {image.shape}; give one finite number for each "
            "detector pixel."
        )
    image = np.where(good_pixels(image[None], DetectConfig()), image, 0.0)
    image -= np.quantile(image, 0.05)
    bright = image > 0.25 * np.quantile(image, 1 - min(10 / image.size, 0.5))
    if not 4 < bright.sum() < 0.9 * image.size:
        raise InputError(
            "The image of the probe shows no bright disk on a dark ground; give one of the beam "
            "in vacuum."
        )
    centre = np.array(ndimage.center_of_mass(image * bright))
    away = lambda centre: np.hypot(*(np.indices(image.shape) - centre[:, None, None]))  # noqa: E731
    within = np.quantile(away(centre)[bright], 0.98) + 1.5
    for _ in range(5):
        centre = np.array(ndimage.center_of_mass(image * (away(centre) < within)))
    distance = away(centre)
    # of a filled disk's area 98 % lie within 99 % of its radius
    radius = float(np.quantile(distance[bright], 0.98)) / 0.99
    reach = math.ceil(radius + 2)
    if 2 * reach + 1 > min(shape):
        raise InputError(
            f"The image of the probe is {2 * reach + 1} pixels wide and the detector {min(shape)}; "
            "give one taken with the scan's camera length and binning."
        )
    image = np.where(distance < radius + 1.5, image, 0.0)
    nearest = np.round(centre).astype(int)
    own = np.pad(image, reach)[tuple(slice(i, i + 2 * reach + 1) for i in nearest)]
    probe = np.zeros(shape)
    probe[: 2 * reach + 1, : 2 * reach + 1] = own
    probe = np.roll(probe, -reach, (0, 1))
    moved = ndimage.fourier_shift(np.fft.fft2(probe), nearest - centre)
    return np.fft.ifft2(moved).real, radius


def false_alarm_threshold(rate: float, kernel: Float[np.ndarray, "H W"], n_pixels: float) -> float:
    """The significance that noise exceeds `rate` times in a pattern of `n_pixels`.

    The maxima of a smooth normal field above a high level t number
    n |Λ|^(1/2) (2π)^(-3/2) t exp(-t²/2) (R. J. Adler, The Geometry of Random Fields, 1981, chapter
    6), with the curvatures Λ of its autocorrelation, here that of `kernel` one pixel away. Pixels,
    the spacing of disks and the estimate of the background leave a fifth of them, found by counting
    maxima in simulated noise.
    """
    lag = [np.sum(kernel * np.roll(kernel, 1, axis)) / np.sum(kernel**2) for axis in (0, 1)]
    density = 0.2 * n_pixels * 2 * math.sqrt((1 - lag[0]) * (1 - lag[1])) * (2 * math.pi) ** -1.5
    level = np.linspace(2.0, 12.0, 10001)
    above = density * level * np.exp(-(level**2) / 2)
    return float(level[np.argmax(above < rate)])


def good_pixels(patterns, config: DetectConfig) -> Bool[np.ndarray, "H W"]:
    """Pixels that count: not masked, not dead, stuck at the largest number or bright alone; what a
    few electrons may have done by chance shows neither.
    """
    shape = patterns.shape[1:]
    good = np.ones(shape, dtype=bool)
    if config.mask is not None:
        good &= np.asarray(config.mask, bool)
    if patterns.dtype.kind in "iu":
        good &= ~np.all(patterns == np.iinfo(patterns.dtype).max, axis=0)
        mean = patterns.mean(0)
    else:
        good &= np.isfinite(patterns).any(0)
        finite = np.isfinite(patterns)
        mean = np.where(finite, patterns, 0).sum(0) / np.maximum(finite.sum(0), 1)
    ring = np.ones((3, 3), bool)
    ring[1, 1] = False
    around = ndimage.median_filter(np.where(good, mean, 0), footprint=ring, mode="mirror")
    highest = ndimage.maximum_filter(np.where(good, mean, 0), footprint=ring, mode="mirror")
    scatter = np.sqrt(np.maximum(around, 1e-9) * max(np.median(mean), 1e-9) / len(patterns))
    dead = (mean <= 0) & (around * len(patterns) > 30)
    hot = (mean > 5 * highest) & (mean - highest > 20 * scatter)
    # where few electrons fall, the neighbours of one may have none at all
    counted = patterns[patterns > 0]
    hot &= mean * len(patterns) > BY_CHANCE * counted.min(initial=counted.max(initial=1))
    return good & ~dead & ~hot


def estimate_gain(patterns, good) -> float:
    """Stored numbers per electron: variance over mean of the background, 1 where it is near 1.

    Variances are differences of neighbouring pixels in cells of 2 × 4, counted where the cell below
    is faint: chosen and measured pixels differ, so that the choice brings no bias. Noise-free
    patterns count as 1e7 electrons each.
    """
    height, width = (4 * (n // 4) for n in patterns.shape[1:])
    cut = lambda x: x[:, :height, :width].reshape(len(x), height // 4, 2, 2, width // 4, 2, 2)  # noqa: E731
    counts, usable = cut(patterns), cut(good[None]).all((2, 3, 5, 6))
    brightness = counts[:, :, 0].sum((2, 4, 5))
    measured = counts[:, :, 1]
    variance = 0.5 * ((measured[..., 0] - measured[..., 1]) ** 2).sum((2, 4))
    mean = 0.5 * measured.sum((2, 4, 5))
    usable = np.broadcast_to(usable, mean.shape) & (mean > 0)
    if not usable.any():
        return 1.0
    low, high = np.quantile(brightness[usable], [0.2, 0.6])
    kept = usable & (brightness >= low) & (brightness <= high)
    gain = np.median(variance[kept] / mean[kept])
    for _ in range(8):  # edges of disks vary far more than chance
        near = kept & (variance < 5 * gain * np.maximum(mean, 2 * gain))
        gain = variance[near].sum() / max(mean[near].sum(), 1e-30)
    gain = max(float(gain), float(patterns.sum((1, 2)).mean()) / 1e7)
    return 1.0 if 0.75 < gain < 1.5 else gain


def find_beam(patterns, good, config: DetectConfig, source: str) -> tuple[np.ndarray, float]:
    """Mean centre [px] and rough radius of the direct beam: the brightest spot of the mean."""
    mean = np.where(good, patterns.mean(0), 0.0)
    blurred = ndimage.gaussian_filter(mean, 1.0)
    if config.origin is not None:
        return np.array(config.origin, float), config.radius or 3.0
    labels, _ = ndimage.label(blurred > 0.5 * blurred.max())
    spot = labels == labels[np.unravel_index(blurred.argmax(), mean.shape)]
    radius = math.sqrt(spot.sum() / math.pi)
    if radius > 0.25 * min(mean.shape):
        raise InputError(
            f"{source}: no direct beam stands out in the mean pattern; give the origin and the "
            "radius of a disk in pixels."
        )
    return np.array(ndimage.center_of_mass(np.where(spot, mean, 0))), radius


def beam_centroids(patterns, centre, reach: float, fixed: bool) -> Float[np.ndarray, "n 2"]:
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


def estimate_probe(patterns, origins, rough_radius: float, config: DetectConfig):
    """Radius, width of the edge [px] and the table T(r) of the aperture's image."""
    from scipy import optimize  # here, for it takes 0.15 s that maps of lists need not spend

    if config.probe is not None:
        image = np.asarray(config.probe, float)
        top = image > 0.5 * np.quantile(image, 1 - min(10 / image.size, 0.5))
        images, centres = image[None], np.array(ndimage.center_of_mass(image * top))[None]
        rough_radius = math.sqrt(top.sum() / math.pi)
        centres = beam_centroids(images, centres[0], rough_radius + 2, False)
    else:
        images, centres = patterns, origins
    if config.probe is not None or config.radius is None or config.edge is None:
        radii, values = _radial_profile(images, centres, 2.5 * (rough_radius + 2))
        plateau = np.median(values[radii < 0.6 * rough_radius])
        # not the least so far, nor near the top: what diffraction takes from within the beam is no
        # softer edge
        falling = optimize.isotonic_regression(values, increasing=False).x
        # of a beam behind a mask nothing is seen: its edge is then as sharp as one can be
        crossing = lambda level: float(np.interp(-level * plateau, -falling, radii))  # noqa: E731
        radius = config.radius or crossing(0.5)
        edge = config.edge or min(max(1.0, 2.0 * (crossing(0.25) - crossing(0.75))), 1.5 * radius)
    else:
        radius, edge = config.radius, config.edge
    n = math.ceil((radius + edge / 2) / TABLE_STEP) + 3
    at = np.arange(n) * TABLE_STEP
    if config.probe is not None:
        floor = np.median(values[radii > radius + edge])
        table = np.clip((np.interp(at, radii, values) - floor) / (plateau - floor), 0, None)
        table[-2:] = 0
    else:
        table = np.clip((radius - at) / edge + 0.5, 0, 1)
    return radius, edge, table


def _radial_profile(images, centres, limit: float):
    """Mean over images, each scaled to its own sum near the centre, against the radius [px]."""
    step = 0.2
    n = int(limit / step)
    total, number = np.zeros(n), np.zeros(n)
    for whole, centre in zip(images, centres, strict=True):
        first = np.maximum(np.floor(centre - limit), 0).astype(int)
        last = np.ceil(centre + limit).astype(int) + 1
        image = whole[first[0] : last[0], first[1] : last[1]]
        row, column = centre - first
        rows, columns = np.indices(image.shape)
        r = np.hypot(rows - row, columns - column)
        near = r < n * step - 1e-6
        place = (r[near] / step).astype(int)
        scale = max(image[r < 0.5 * limit].sum(), 1e-9)
        total += np.bincount(place, image[near] / scale, n)
        number += np.bincount(place, minlength=n)
    seen = number > 0
    return ((np.arange(n) + 0.5) * step)[seen], total[seen] / number[seen]


def radial_background(patterns, origins, good, inner: float, cell: float):
    """Radii [px] and mean counts a pixel between the disks, over all patterns.

    Rings of one pixel are cut into sectors; sectors with far more counts than the ring's mean hold
    disks and are left out.
    """
    n_rings = int(np.hypot(*good.shape)) + 2
    n_sectors = np.clip(2 * np.pi * np.arange(n_rings) / cell, 4, 64).astype(np.int32)
    first = np.concatenate([[0], np.cumsum(n_sectors, dtype=np.int32)])
    rows, columns = (x[good].astype(np.float32) for x in np.indices(good.shape))
    centre = origins.mean(0)
    turn = (np.arctan2(columns - centre[1], rows - centre[0]) / (2 * np.pi) + 0.5) * (1 - 1e-6)
    turn, used = turn.astype(np.float32), np.flatnonzero(good)
    counts, areas = np.zeros((2, len(patterns), first[-1]), np.float32)
    for number, (pattern, (row, column)) in enumerate(
        zip(patterns, origins.astype(np.float32), strict=True)
    ):
        ring = np.sqrt((rows - row) ** 2 + (columns - column) ** 2).astype(np.int32)
        sector = first[ring] + (turn * n_sectors[ring]).astype(np.int32)
        counts[number] = np.bincount(sector, pattern.ravel()[used], first[-1])
        areas[number] = np.bincount(sector, minlength=first[-1])
    ring = np.repeat(np.arange(n_rings), n_sectors)
    total = lambda x: np.bincount(ring, x.sum(0, dtype=np.float64), n_rings)  # noqa: E731
    rate = total(counts) / np.maximum(total(areas), 1)
    kept = None
    for _ in range(12):
        expected = rate[ring].astype(np.float32) * areas
        before, kept = kept, counts < expected + 3 * np.sqrt(expected + 0.25)
        if before is not None and (kept == before).all():
            break
        rate = total(counts * kept) / np.maximum(total(areas * kept), 1e-9)
    at = np.arange(n_rings) + 0.5
    seen = (total(areas) > 0) & (at > inner)
    if not seen.any():
        return np.array([0.0]), np.array([FAINTEST])
    return at[seen], np.maximum(rate[seen], FAINTEST)
