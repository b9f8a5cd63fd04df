# SPDX-License-Identifier: GPL-3.0-or-later
"""What disk detection has to know before it starts, estimated from some patterns of the scan.

The image of the probe-forming aperture (its radius, how sharp its edge is), where the direct beam
falls, how the diffuse background falls off with the radius, which pixels are dead, how many stored
numbers make an electron, and from these the constants of the compiled program in
`jaxstem.patterns`. All of it can be given in a `DetectConfig` instead. Runs on the host, in NumPy;
lengths in detector pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num
from PIL import Image
from scipy import ndimage

from jaxstem.correlogram import CorrelogramLayout, CorrelogramPlan, from_corner, zero_sum
from jaxstem.errors import InputError
from jaxstem.patterns import FAINTEST, TABLE_STEP, WIDEST_SUM, Layout, Plan

WIDER = 0.25
"""By how much of its edge a synthetic template is larger than the direct beam's image."""

Method = Literal["likelihood", "correlation"]
Subpixel = Literal["none", "poly", "upsampled"]


@dataclass(frozen=True)
class Correlation:
    """Settings of `method="correlation"`, steps 2 to 5 of `jaxstem.correlogram`.

    power: 1 cross-correlation, 0 phase correlation, between them hybrid; subpixel: how maxima are
    placed below a pixel; upsample: points a pixel of "upsampled"; blur: standard deviation of the
    correlogram's blur [px]; min_intensity: smallest height of a maximum, in electrons where power
    is 1; min_relative_intensity: the same as a share of the brightest disk's, or, with
    relative_to = n, of that of the disk which n are brighter than.
    """

    power: float = 1.0
    subpixel: Subpixel = "upsampled"
    upsample: int = 16
    blur: float = 0.0
    min_intensity: float = 0.0
    min_relative_intensity: float = 0.0
    relative_to: int = 0


@dataclass(frozen=True)
class DetectConfig:
    """Settings of the detection; None means: estimated from the data.

    method: "likelihood" (`jaxstem.patterns`) for round, filled disks, "correlation"
    (`jaxstem.correlogram`) for any probe, with the settings `correlation`; radius, edge: of the
    aperture's image, and the width over which it falls to nothing [px]; probe: an image of the beam
    in vacuum instead, whose radial profile is taken, or by "correlation" all of it; mask: True for
    pixels to use (default: all that are alive); false_alarms: false disks a pattern that counting
    noise alone may make; threshold: smallest significance, instead; min_spacing: between disks
    [px]; border: disks nearer to the detector's edge are left out [px]; origin: the beam's centre
    (row, column) [px] where it cannot be seen; search: how far the beam may be from its mean place
    [px]; background_scale, roughness_scale: standard deviations of the blurs that estimate
    background and local spread [px]; structure: fit a slope across disks; gain: stored numbers per
    electron; pixel_size [1/Å] instead of the file's; n_disks: most disks a pattern, more where
    that is not enough; chunk: patterns at a time (default: 32 on a CPU, whose caches they fill, 512
    elsewhere); n_sample: patterns for the estimates.
    """

    method: Method = "likelihood"
    correlation: Correlation = Correlation()
    radius: float | None = None
    edge: float | None = None
    probe: np.ndarray | None = None
    mask: np.ndarray | None = None
    false_alarms: float = 0.02
    threshold: float | None = None
    min_spacing: float | None = None
    border: float | None = None
    origin: tuple[float, float] | None = None
    search: float | None = None
    background_scale: float | None = None
    roughness_scale: float | None = None
    structure: bool = True
    gain: float | None = None
    pixel_size: float | None = None
    n_disks: int = 64
    chunk: int | None = None
    n_sample: int = 128


DEFAULT = DetectConfig()


def read_mask(path: str | Path) -> Bool[np.ndarray, "H W"]:
    """Detector pixels to use, as `DetectConfig.mask` takes them, from a file that marks those to
    leave out: dead pixels, a beam stop.

    An `.npy` array, or an image (PNG, TIFF, ...), in which everything but zero (black) is left out.
    Raises InputError for a file that is missing or is neither, and where nothing would be left.
    """
    marked = _image(path, "0 for those to use")
    if (marked != 0).all():
        raise InputError(
            f"{path} marks every pixel; mark those to leave out, and leave the rest 0."
        )
    return marked == 0


def read_probe(path: str | Path) -> Num[np.ndarray, "h w"]:
    """An image of the beam in vacuum, as `DetectConfig.probe` takes it, from an `.npy` array or an
    image of grey levels (PNG, TIFF, ...).

    Raises InputError for a file that is missing or is neither.
    """
    return _image(path, "the counts of the beam in vacuum")


def _image(path: str | Path, meaning: str) -> Num[np.ndarray, "h w"]:
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist; give an .npy array or an image.")
    try:
        if path.suffix.lower() == ".npy":
            image = np.load(path, allow_pickle=False)
        else:
            with Image.open(path) as opened:
                grey = opened.mode in ("I", "F") or opened.mode.startswith("I;16")
                image = np.asarray(opened if grey else opened.convert("L"))
    except Exception as error:  # Pillow and NumPy meet damage with errors of every kind
        raise InputError(
            f"{path} is neither an .npy array nor an image that can be read; save it again."
        ) from error
    if image.ndim != 2 or image.dtype.kind not in "biuf" or not np.isfinite(image).all():
        raise InputError(
            f"{path} holds an array of shape {image.shape} and kind {image.dtype}; give one "
            f"finite number for each detector pixel, {meaning}."
        )
    return image


def make_plan(
    patterns: Num[np.ndarray, "n H W"], config: DetectConfig = DEFAULT, source: str = "scan"
) -> tuple[Plan, Layout] | tuple[CorrelogramPlan, CorrelogramLayout]:
    """Constants of the detection from some patterns of a scan (on the host, NumPy), those that
    `config.method` needs.

    Raises InputError where the patterns hold no counts, no direct beam stands out, or a setting
    makes no sense.
    """
    check_method(config)
    shape = patterns.shape[1:]
    good = _good_pixels(patterns, config, source)
    patterns = np.where(good & np.isfinite(patterns), patterns, 0).astype(np.float32)
    filled = patterns.sum((1, 2)) > 0
    if not filled.any():
        raise InputError(f"{source} holds no counts in the patterns looked at; check the file.")
    patterns = patterns[filled]
    gain = config.gain or _gain(patterns, good)
    if not gain > 0:
        raise InputError(f"The gain is {gain}; give a positive number.")
    patterns = patterns / gain
    if config.method == "correlation":
        return _correlogram_plan(patterns, good, gain, config, source)

    centre, rough_radius = _beam(patterns, good, config, source)
    origins = _centroids(patterns, centre, rough_radius + 2, config.origin is not None)
    radius, edge, table = _probe(patterns, origins, rough_radius, config)
    reach = (len(table) - 2) * TABLE_STEP
    radii = np.arange(len(table)) * TABLE_STEP
    area = 2 * np.pi * np.trapezoid(radii * table, radii)
    kernel = np.interp(from_corner(shape), radii, table, right=0)
    power = np.sum(kernel**2)

    at, rate = _radial_background(patterns, origins, good, reach + 0.7, max(16.0, area))
    background_radii = np.arange(0, np.hypot(*shape) + 2, TABLE_STEP)
    background = np.interp(background_radii, at, rate)
    line = np.arange(-math.ceil(reach), math.ceil(reach) + 1)
    weights = np.interp(np.hypot(line[:, None], line), radii, table, right=0)
    about = np.hypot(background_radii[:, None, None] + line[:, None], line)
    blurred = np.einsum("rij,ij->r", np.interp(about, background_radii, background), weights)

    border = radius + 1 if config.border is None else config.border
    threshold = config.threshold or false_alarm_threshold(
        config.false_alarms, kernel, (shape[0] - 2 * border) * (shape[1] - 2 * border)
    )
    touching = 2 * radius + edge
    spacing = config.min_spacing or touching
    block = block_side(radius)
    smooth = config.background_scale or 2.25 * radius
    rough = config.roughness_scale or 2.75 * radius
    blocks = [_middles(n, block) for n in shape]
    plan = Plan(
        _kernel(kernel),
        *(jnp.asarray(x, jnp.float32) for x in (table, background, blurred)),
        jnp.asarray(good),
        jnp.asarray(centre, jnp.float32),
        jnp.asarray(_interpolation(shape[1], block), jnp.float32),
        *(_blur(b, smooth) for b in blocks),
        *(_blur(b, rough) for b in blocks),
        *(jnp.asarray(x, jnp.float32) for x in (area, power, gain, threshold)),
    )
    layout = Layout(
        reach=float(reach + 1.0),
        block=block,
        blocks=(len(blocks[0]), len(blocks[1])),
        spacing=float(spacing),
        border=math.ceil(border),
        search=_search(config, radius, shape),
        n_disks=config.n_disks,
        structure=config.structure,
        overlapping=bool(spacing < touching),
        fixed_origin=config.origin is not None,
        all_good=bool(good.all()),
    )
    return plan, layout


def check_method(config: DetectConfig) -> None:
    """Raises InputError where the method or its settings are none, or belong to another method."""
    of = config.correlation
    for name, value, known in (
        ("method", config.method, Method),
        ("subpixel", of.subpixel, Subpixel),
    ):
        if value not in get_args(known):
            raise InputError(f"The {name} is {value!r}; give one of {', '.join(get_args(known))}.")
    if config.method != "correlation" and of != Correlation():
        raise InputError("Settings of the correlation need the method 'correlation'.")
    for name, value, low, high in (
        ("correlation power", of.power, 0, 1),
        ("upsampling", of.upsample, 2, 256),
        ("blur", of.blur, 0, 100),
        ("smallest intensity", of.min_intensity, 0, math.inf),
        ("smallest relative intensity", of.min_relative_intensity, 0, 1),
        ("number of the disk that intensities are relative to", of.relative_to, 0, 1000),
    ):
        if not low <= value <= high:
            raise InputError(f"The {name} is {value:g}; give a number from {low} to {high:g}.")


def _correlogram_plan(
    patterns: Float[np.ndarray, "n H W"],
    good: Bool[np.ndarray, "H W"],
    gain: float,
    config: DetectConfig,
    source: str,
) -> tuple[CorrelogramPlan, CorrelogramLayout]:
    """`make_plan` for the correlation, from patterns in electrons."""
    shape, of = good.shape, config.correlation
    distance = from_corner(shape)
    if config.probe is not None:
        probe, radius = vacuum_probe(config.probe, shape)
        radius, edge = config.radius or radius, config.edge or 1.0
        kernel = zero_sum(probe, radius)
        if config.origin is None:
            mean = np.where(good, patterns.mean(0), 0.0)
            matched = np.fft.ifft2(np.fft.fft2(mean) * np.fft.fft2(kernel).conj()).real
            centre = np.array(np.unravel_index(matched.argmax(), shape), float)
        else:
            centre, _ = _beam(patterns, good, config, source)
    else:
        centre, rough_radius = _beam(patterns, good, config, source)
        origins = _centroids(patterns, centre, rough_radius + 2, config.origin is not None)
        radius, edge, _ = _probe(patterns, origins, rough_radius, config)
        # hardly a count of the disk may lie in the trench, or a slope across the disk pulls it
        probe = np.clip((radius + WIDER * edge - distance) / edge + 0.5, 0, 1)
        kernel = zero_sum(probe, radius + WIDER * edge)
    frequency = [np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])]
    blur = np.exp(-2 * (np.pi * of.blur) ** 2 * (frequency[0] ** 2 + frequency[1] ** 2))
    transform = np.fft.rfft2(kernel)
    blurred = np.fft.irfft2(transform * blur, shape)
    border = radius + 1 if config.border is None else config.border
    threshold = config.threshold
    if threshold is None:
        n_pixels = (shape[0] - 2 * border) * (shape[1] - 2 * border)
        threshold = false_alarm_threshold(config.false_alarms, blurred, n_pixels)
    block = block_side(radius)
    rough = config.roughness_scale or 2.75 * radius
    transforms = (transform.conj(), np.fft.rfft2(blurred**2).conj())
    plan = CorrelogramPlan(
        *(jnp.asarray(x, jnp.complex64) for x in transforms),
        jnp.asarray(blur, jnp.float32),
        jnp.asarray(np.fft.rfft2((1 + distance**2) ** -2).real, jnp.float32),
        jnp.asarray(good),
        jnp.asarray(centre, jnp.float32),
        *(_blur(_middles(n, block), rough) for n in shape),
        *(
            jnp.asarray(x, jnp.float32)
            for x in (gain, threshold, of.min_intensity, of.min_relative_intensity)
        ),
    )
    layout = CorrelogramLayout(
        power=float(of.power),
        subpixel=of.subpixel,
        upsample=of.upsample,
        relative_to=of.relative_to,
        block=block,
        spacing=float(config.min_spacing or 2 * radius + edge),
        border=max(1, math.ceil(border)),
        search=_search(config, radius, shape),
        n_disks=config.n_disks,
        fixed_origin=config.origin is not None,
        all_good=bool(good.all()),
    )
    return plan, layout


def vacuum_probe(
    image: Num[np.ndarray, "h w"], shape: tuple[int, int]
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
    image = np.where(_good_pixels(image[None], DetectConfig(), "probe"), image, 0.0)
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


def block_side(radius: float) -> int:
    """Side [px] of the blocks in which background and local spread are counted."""
    return max(2, round(1.75 * radius))


def _middles(n: int, block: int) -> Float[np.ndarray, " blocks"]:
    """Middles [px] of the blocks along an axis of n pixels."""
    return block * (np.arange(-(-n // block)) + 0.5) - 0.5


def _blur(middles: Float[np.ndarray, " blocks"], scale: float) -> Float[Array, "blocks blocks"]:
    """Matrix of normal weights between blocks."""
    weights = np.exp(-0.5 * ((middles[:, None] - middles) / scale) ** 2)
    return jnp.asarray(weights, jnp.float32)


def _search(config: DetectConfig, radius: float, shape: tuple[int, int]) -> int:
    """How far [px] from its mean place the beam is looked for."""
    search = config.search if config.search is not None else max(3.0, 1.5 * radius)
    return min(math.ceil(search), (min(shape) - 1) // 2)


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


def _kernel(image: Float[np.ndarray, "H W"]) -> Array:
    """`Plan.kernel` of the aperture's image about pixel (0, 0)."""
    reach = int(np.flatnonzero(image[0, : image.shape[1] // 2]).max())
    width = 2 * reach + 1
    if width > WIDEST_SUM:
        return jnp.asarray(np.fft.rfft2(image).conj(), jnp.complex64)
    return jnp.asarray(np.roll(image, reach, (0, 1))[:width, :width], jnp.float32)


def _interpolation(n: int, block: int) -> Float[np.ndarray, "n blocks"]:
    """Matrix from values at the middles of blocks to pixels, linear between, constant outside."""
    n_blocks = -(-n // block)
    place = np.clip((np.arange(n) + 0.5) / block - 0.5, 0, n_blocks - 1)
    return np.maximum(1 - np.abs(place[:, None] - np.arange(n_blocks)), 0)


def _good_pixels(patterns, config: DetectConfig, source: str) -> Bool[np.ndarray, "H W"]:
    """Pixels that count: not masked, not dead, stuck at the largest number or bright alone."""
    shape = patterns.shape[1:]
    good = np.ones(shape, dtype=bool)
    if config.mask is not None:
        if config.mask.shape != shape:
            raise InputError(
                f"The mask has shape {config.mask.shape} and the patterns of {source} {shape}; "
                "give one value for each detector pixel."
            )
        good &= config.mask.astype(bool)
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
    return good & ~dead & ~hot


def _gain(patterns, good) -> float:
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


def _beam(patterns, good, config: DetectConfig, source: str) -> tuple[np.ndarray, float]:
    """Mean centre [px] and rough radius of the direct beam: the brightest spot of the mean."""
    mean = np.where(good, patterns.mean(0), 0.0)
    blurred = ndimage.gaussian_filter(mean, 1.0)
    if config.origin is not None:
        row, column = config.origin
        if not (0 <= row < mean.shape[0] and 0 <= column < mean.shape[1]):
            raise InputError(
                f"The origin {config.origin} lies outside the detector of {mean.shape} pixels; "
                "give the beam's row and column."
            )
        if config.radius is None and config.probe is None:
            raise InputError(
                f"{source}: where the direct beam cannot be seen, the radius of a disk must be "
                "given; set it in pixels."
            )
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


def _centroids(patterns, centre, reach: float, fixed: bool) -> Float[np.ndarray, "n 2"]:
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


def _probe(patterns, origins, rough_radius: float, config: DetectConfig):
    """Radius, width of the edge [px] and the table T(r) of the aperture's image."""
    if config.probe is not None:
        image = np.asarray(config.probe, float)
        top = image > 0.5 * np.quantile(image, 1 - min(10 / image.size, 0.5))
        images, centres = image[None], np.array(ndimage.center_of_mass(image * top))[None]
        rough_radius = math.sqrt(top.sum() / math.pi)
        centres = _centroids(images, centres[0], rough_radius + 2, False)
    else:
        images, centres = patterns, origins
    if config.probe is not None or config.radius is None or config.edge is None:
        radii, values = _radial_profile(images, centres, 2.5 * (rough_radius + 2))
        plateau = np.median(values[radii < 0.6 * rough_radius])
        falling = np.minimum.accumulate(ndimage.gaussian_filter1d(values, 1.0)) / plateau
        crossing = lambda level: float(np.interp(-level, -falling, radii))  # noqa: E731
        radius = config.radius or crossing(0.5)
        edge = config.edge or min(max(1.0, 1.25 * (crossing(0.1) - crossing(0.9))), 1.5 * radius)
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


def _radial_background(patterns, origins, good, inner: float, cell: float):
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
