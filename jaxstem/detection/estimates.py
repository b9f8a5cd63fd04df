# SPDX-License-Identifier: GPL-3.0-or-later
"""What some patterns tell of their scan: gain, pedestal, aperture, background.

Runs on the host, in NumPy; lengths in detector pixels. Shapes: `n` patterns of `H` × `W` pixels.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float, Num, Shaped
from scipy import ndimage

from jaxstem.detection.beam import beam_centroids
from jaxstem.detection.config import DetectConfig
from jaxstem.detection.faults import good_pixels
from jaxstem.detection.layout import FAINTEST, TABLE_STEP
from jaxstem.errors import InputError

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


def estimate_gain(patterns: Num[np.ndarray, "n H W"], good: Bool[np.ndarray, "H W"]) -> float:
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


def estimate_pedestal(patterns: Num[np.ndarray, "n H W"], good: Bool[np.ndarray, "H W"]) -> float:
    """The stored number that stands for no electron, less what read-out noise looks like: where the
    line of the scatter against the mean of the background meets zero, so that counting noise is all
    the noise there is from there on (photon transfer: J. R. Janesick, Photon Transfer, 2007).

    0 where the least number is 0, as it is of counts, or the line makes no sense.
    """
    varying = good & (patterns.max(0) != patterns.min(0))
    if len(patterns) < 2 or varying.mean() < 0.1 or patterns[:, varying].min() == 0:
        return 0.0
    mean_of = patterns.mean(0, dtype=np.float64)[varying]
    darkest = float(np.quantile(mean_of, 0.01))
    negative = bool(patterns[:, varying].min() < 0)
    brightness, mean, variance = _in_cells(patterns, varying)
    if not len(mean):
        return darkest if negative else 0.0
    edges = np.quantile(brightness, np.linspace(0.0, 0.8, 13))
    bins = []
    for low, high in zip(edges, edges[1:], strict=False):
        inside = (brightness >= low) & (brightness <= high)
        usual = np.median(variance[inside]) / 0.69 if inside.any() else 0.0
        kept = inside & (variance < 10 * usual)  # edges of disks vary far more than chance
        if kept.sum() > 20:
            bins.append((mean[kept].mean(), variance[kept].mean(), kept.sum()))
    if len(bins) < 3:
        return darkest if negative else 0.0
    means, variances, number = np.array(bins).T
    weight = np.sqrt(number) / np.maximum(variances, 1e-9)
    slope, offset = np.polyfit(means, variances, 1, w=weight)
    if 0.6 < slope < 1.7:  # a number is an electron
        slope, offset = 1.0, np.average(variances - means, weights=weight**2)
    found = -offset / slope if slope > 0 else np.nan
    least = darkest - np.sqrt(max(variances.min(), 0.0)) - variances.min() / max(slope, 1e-9)
    if negative:
        return float(found) if least <= found <= darkest else darkest
    return float(found) if 0.2 * darkest < found < darkest else 0.0


def _in_cells(
    patterns: Num[np.ndarray, "n H W"], good: Bool[np.ndarray, "H W"]
) -> tuple[Float[np.ndarray, " cells"], Float[np.ndarray, " cells"], Float[np.ndarray, " cells"]]:
    """Brightness, and of other pixels mean and variance, in cells of 2 × 4 pixels all of which are
    good.
    """
    height, width = (4 * (n // 4) for n in patterns.shape[1:])
    cut = lambda x: x[:, :height, :width].reshape(len(x), height // 4, 2, 2, width // 4, 2, 2)  # noqa: E731
    usable = cut(good[None]).all((2, 3, 5, 6))[0]
    counts = cut(patterns).transpose(0, 1, 4, 2, 3, 5, 6)[:, usable].astype(np.float64)
    measured = counts[:, :, 1]
    slope = measured[..., 0] - measured[..., 1]
    bend = slope[..., 0] - slope[..., 1]  # light that falls off evenly is no scatter
    number = math.prod(measured.shape[2:])
    variance = 0.25 * (bend**2).mean(2)
    brightness = counts[:, :, 0].sum((2, 3, 4))
    return brightness.ravel(), measured.sum((2, 3, 4)).ravel() / number, variance.ravel()


def estimate_probe(
    patterns: Num[np.ndarray, "n H W"] | list[np.ndarray],
    origins: Float[np.ndarray, "n 2"] | list[np.ndarray],
    rough_radius: float,
    config: DetectConfig,
    of_disks: bool = False,
) -> tuple[float, float, Float[np.ndarray, " steps"]]:
    """Radius, width of the edge [px] and the table T(r) of the aperture's image, from the images
    about their `origins`: of the direct beam or `of_disks`, whose background is taken off.
    """
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
        if of_disks:
            values = values - np.median(values[radii > 1.5 * rough_radius + 1])
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


def _radial_profile(
    images: Num[np.ndarray, "n H W"] | list[np.ndarray],
    centres: Float[np.ndarray, "n 2"] | list[np.ndarray],
    limit: float,
) -> tuple[Float[np.ndarray, " r"], Float[np.ndarray, " r"]]:
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


def radial_background(
    patterns: Num[np.ndarray, "n H W"],
    origins: Float[np.ndarray, "n 2"],
    good: Bool[np.ndarray, "H W"],
    inner: float,
    cell: float,
) -> tuple[Float[np.ndarray, " r"], Float[np.ndarray, " r"]]:
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
        before, kept = kept, counts < expected + 3 * np.sqrt(np.maximum(expected, 0) + 0.25)
        if before is not None and (kept == before).all():
            break
        rate = total(counts * kept) / np.maximum(total(areas * kept), 1e-9)
    at = np.arange(n_rings) + 0.5
    seen = (total(areas) > 0) & (at > inner)
    if not seen.any():
        return np.array([0.0]), np.array([FAINTEST])
    return at[seen], np.maximum(rate[seen], FAINTEST)
