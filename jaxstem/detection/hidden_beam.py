# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a direct beam lies that is not seen, and how large disks are then.

Light falls on both sides of the beam alike: the diffuse light all around it, and disks in pairs, g
and -g. So the beam is where a pattern turned about it by 180° is most like itself. Pixels that
cannot be used take no part (masked normalised correlation: D. Padfield, IEEE Trans. Image Process.
21 (2012) 2706). The aperture's image is that of the disks. Runs on the host, in NumPy; lengths in
detector pixels. Shapes: `n` patterns of `H` × `W` pixels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import fft, ndimage

_LEAST_OVERLAP = 0.3
"""Share of the usable pixels that must lie on usable ones when turned."""

_NEAR = 4.0
"""How far [px] the diffuse light's middle may be from that of the disks."""

_STANDS_OUT = 8.0
"""Standard deviations by which a disk must stand out from which an aperture is measured."""

_LEAST_DISKS = 6
"""Disks from which an aperture is measured, at least."""


class Disk(NamedTuple):
    """A disk: number of its pattern, centre (row, column) [px], radius [px] at half its height."""

    pattern: int
    centre: np.ndarray
    radius: float


def smoothed(
    image: Float[np.ndarray, "H W"], good: Bool[np.ndarray, "H W"], scale: float
) -> Float[np.ndarray, "H W"]:
    """An image blurred by `scale` [px], of which only good pixels count; 0 far from all of them."""
    if good.all():
        return ndimage.gaussian_filter(image, scale)
    seen = ndimage.gaussian_filter(good.astype(float), scale)
    blurred = ndimage.gaussian_filter(np.where(good, image, 0.0), scale)
    return np.where(seen > 0.02, blurred / np.maximum(seen, 0.02), 0.0)


def symmetry_centre(
    patterns: Float[np.ndarray, "n H W"], good: Bool[np.ndarray, "H W"]
) -> Float[np.ndarray, " 2"]:
    """The point (row, column) [px] about which the patterns are most alike when turned by 180°."""
    mean = patterns.mean(0, dtype=np.float64)
    light = smoothed(mean, good, 2.0)
    floor = 0.05 * max(float(light[good].mean()), 1e-12)
    used = good & (light > 0)
    diffuse, overlap = _turned_alike(np.log(light + floor), used)
    enough = overlap > _LEAST_OVERLAP * used.sum()
    diffuse = np.where(enough, diffuse, -1.0)
    coarse = np.array(np.unravel_index(diffuse.argmax(), diffuse.shape)) / 2

    total = np.zeros_like(diffuse)
    for pattern in patterns:
        # no disk decides alone
        stands_out = np.clip(standing_out(pattern, good), 0, 20)
        total += _products(np.where(good, stands_out, 0.0))
    total /= np.maximum(overlap, 1.0)
    apart = np.indices(total.shape) / 2 - coarse[:, None, None]
    near = enough & (np.abs(apart) <= 2 * _NEAR).all(0)
    total = np.where(near, total * np.exp(-0.5 * (apart**2).sum(0) / _NEAR**2), 0.0)
    total = ndimage.gaussian_filter(total, 1.0)
    row, column = np.unravel_index(total.argmax(), total.shape)
    return (np.array([row, column]) + _summit(total, row, column)) / 2


def _products(
    image: Float[np.ndarray, "H W"], other: Float[np.ndarray, "H W"] | None = None
) -> Float[np.ndarray, "H2 W2"]:
    """Σ f(x) g(s - x) of two images, the same one without an `other`, for all s: what is alike when
    turned about a middle stands at twice the middle.
    """
    shape = [2 * side - 1 for side in image.shape]
    size = [fft.next_fast_len(side, real=True) for side in shape]
    first = fft.rfft2(image, size)
    second = first if other is None else fft.rfft2(other, size)
    return fft.irfft2(first * second, size)[: shape[0], : shape[1]]


def _turned_alike(image, used) -> tuple[np.ndarray, np.ndarray]:
    """Correlation coefficient of an image and itself turned, about the middle s / 2, for all s, and
    the number of pixels that both have.
    """
    weight = used.astype(float)
    image = np.where(used, image - image[used].mean(), 0.0)
    overlap = _products(weight)
    both = _products(image)
    number = np.maximum(np.round(overlap), 1.0)
    mean, square = _products(image, weight) / number, _products(image**2, weight) / number
    variance = np.maximum(square - mean**2, 1e-12)
    return (both / number - mean**2) / variance, np.round(overlap)


def _summit(values, row: int, column: int) -> np.ndarray:
    """Where the parabolas through a maximum and its neighbours are highest."""
    place = []
    for axis, at in enumerate((row, column)):
        line = values[:, column] if axis == 0 else values[row]
        if not 0 < at < len(line) - 1:
            place.append(0.0)
            continue
        below, top, above = line[at - 1 : at + 2]
        curved = below - 2 * top + above
        place.append(0.5 * (below - above) / curved if curved < 0 else 0.0)
    return np.clip(place, -1, 1)


def standing_out(
    pattern: Float[np.ndarray, "H W"], good: Bool[np.ndarray, "H W"]
) -> Float[np.ndarray, "H W"]:
    """Light above what is around it, in standard deviations of counting [electrons]."""
    wide = max(5.0, min(pattern.shape) / 20)
    around = smoothed(pattern, good, wide)
    # bright disks are no background
    around = smoothed(np.minimum(pattern, 3 * around + 3), good, wide)
    noise = np.sqrt(np.maximum(around, 0.02) / (4 * math.pi))
    return np.where(good, (smoothed(pattern, good, 1.0) - around) / noise, 0.0)


def bright_disks(
    patterns: Float[np.ndarray, "n H W"],
    good: Bool[np.ndarray, "H W"],
    centre: Float[np.ndarray, " 2"],
    each: int = 4,
) -> list[Disk]:
    """The brightest spots of each pattern that lie whole on good pixels, away from the beam."""
    shape = np.array(patterns.shape[1:])
    found = []
    for number, pattern in enumerate(patterns):
        left = standing_out(pattern, good)
        for _ in range(each):
            row, column = np.unravel_index(left.argmax(), left.shape)
            if left[row, column] < _STANDS_OUT:
                break
            level = 0.5 * left[row, column]
            labels, _ = ndimage.label(left > level)
            spot = labels == labels[row, column]
            radius = math.sqrt(spot.sum() / math.pi)
            middle = np.array(ndimage.center_of_mass(np.where(spot, left, 0)))
            reach = 2 * radius + 2
            first = np.maximum(np.floor(middle - reach), 0).astype(int)
            last = np.ceil(middle + reach).astype(int) + 1
            inside = (middle - reach > 0).all() and (middle + reach < shape - 1).all()
            whole = inside and good[first[0] : last[0], first[1] : last[1]].all()
            round_ = spot.any(1).sum() < 3 * radius + 1 and spot.any(0).sum() < 3 * radius + 1
            if whole and round_ and np.hypot(*(middle - centre)) > reach:
                found.append(Disk(number, middle, radius))
            left = np.where(ndimage.binary_dilation(spot, iterations=2), 0.0, left)
    return found


def usual_disks(disks: list[Disk]) -> list[Disk]:
    """Those of the most usual size, none where most differ or there are few."""
    if len(disks) < _LEAST_DISKS:
        return []
    radii = np.array([disk.radius for disk in disks])
    usual = float(np.median(radii))
    alike = [disk for disk in disks if abs(disk.radius - usual) < 0.3 * usual]
    return alike if len(alike) >= max(_LEAST_DISKS, 0.4 * len(disks)) else []
