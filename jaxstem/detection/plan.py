# SPDX-License-Identifier: GPL-3.0-or-later
"""The constants of disk detection, made of some patterns of the scan before it starts.

`estimates.py` finds the image of the probe-forming aperture (its radius, how sharp its edge is),
where the direct beam falls, how the diffuse background falls off with the radius, which pixels are
dead and how many stored numbers make an electron; `make_plan` makes of them the constants of the
compiled programs. All of it can be given in a `DetectConfig` instead. Runs on the host, in NumPy;
lengths in detector pixels.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num

from jaxstem.detection.beam import beam_centroids, find_beam, look_for_beam, no_beam
from jaxstem.detection.config import DEFAULT, DetectConfig, check_method
from jaxstem.detection.correlogram import from_corner, zero_sum
from jaxstem.detection.estimates import (
    WIDER,
    estimate_gain,
    estimate_pedestal,
    estimate_probe,
    false_alarm_threshold,
    radial_background,
    vacuum_probe,
)
from jaxstem.detection.faults import ceiling, good_pixels
from jaxstem.detection.layout import (
    TABLE_STEP,
    WIDEST_SUM,
    CorrelogramLayout,
    CorrelogramPlan,
    Layout,
    Plan,
)
from jaxstem.errors import InputError

_BROAD = 0.08
"""Share of the detector's side from which on a spot with a soft edge is diffuse light, no beam."""


def make_plan(
    patterns: Num[np.ndarray, "n H W"], config: DetectConfig = DEFAULT, source: str = "scan"
) -> tuple[Plan, Layout] | tuple[CorrelogramPlan, CorrelogramLayout]:
    """Constants of the detection from some patterns of a scan (on the host, NumPy), those that
    `config.method` needs.

    Raises InputError where the patterns hold no counts, no direct beam stands out, or a setting
    does not fit them.
    """
    check_method(config)
    shape = patterns.shape[1:]
    config.check_detector(shape, source)
    good = good_pixels(patterns, config)
    clipped = ceiling(patterns, good)
    finite = good & np.isfinite(patterns)
    pedestal = config.pedestal
    if pedestal is None:
        pedestal = estimate_pedestal(np.where(finite, patterns, 0), good)
    patterns = np.where(finite, patterns.astype(np.float32) - np.float32(pedestal), 0)
    clipped -= pedestal
    filled = patterns.sum((1, 2)) > 0
    if not filled.any():
        raise InputError(f"{source} holds no counts in the patterns looked at; check the file.")
    patterns = patterns[filled]
    gain = config.gain or estimate_gain(patterns, good)
    if not gain > 0:
        raise InputError(f"The gain is {gain}; give a positive number.")
    patterns = patterns / gain
    if config.method == "correlation":
        scale = (gain, pedestal, clipped / gain)
        return _correlogram_plan(patterns, good, scale, config, source)

    centre, origins, fixed, (radius, edge, table) = _aperture(
        patterns, good, clipped / gain, config, source
    )
    reach = (len(table) - 2) * TABLE_STEP
    radii = np.arange(len(table)) * TABLE_STEP
    area = 2 * np.pi * np.trapezoid(radii * table, radii)
    kernel = np.interp(from_corner(shape), radii, table, right=0)
    power = np.sum(kernel**2)

    at, rate = radial_background(patterns, origins, good, reach + 0.7, max(16.0, area))
    background_radii = np.arange(0, np.hypot(*shape) + 2, TABLE_STEP)
    background = np.interp(background_radii, at, rate)
    line = np.arange(-math.ceil(reach), math.ceil(reach) + 1)
    weights = np.interp(np.hypot(line[:, None], line), radii, table, right=0)
    blurred = np.zeros_like(background)
    for place, weight in zip(line, weights, strict=True):  # a wide aperture has many pixels
        for step, share in zip(line, weight, strict=True):
            if share and step >= 0:
                away = np.hypot(background_radii + place, step)
                twice = share if step == 0 else 2 * share
                blurred += twice * np.interp(away, background_radii, background)

    border = radius + 1 if config.border is None else config.border
    threshold = config.threshold
    if threshold is None:
        n_pixels = (shape[0] - 2 * border) * (shape[1] - 2 * border)
        threshold = false_alarm_threshold(config.false_alarms, kernel, n_pixels)
    touching = 2 * radius + edge
    spacing = config.min_spacing or touching
    block = _block_side(radius)
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
        *(jnp.asarray(x, jnp.float32) for x in (area, power, gain, threshold, pedestal)),
    )
    layout = Layout(
        reach=float(reach + 1.0),
        block=block,
        blocks=(len(blocks[0]), len(blocks[1])),
        spacing=float(spacing),
        border=math.ceil(border),
        search=_search(config, radius, shape, origins),
        n_disks=config.n_disks,
        structure=config.structure,
        overlapping=bool(spacing < touching),
        fixed_origin=fixed,
        all_good=bool(good.all()),
    )
    return plan, layout


def _aperture(
    patterns: Float[np.ndarray, "n H W"],
    good: Bool[np.ndarray, "H W"],
    clipped: float,
    config: DetectConfig,
    source: str,
) -> tuple[np.ndarray, np.ndarray, bool, tuple[float, float, np.ndarray]]:
    """The beam's mean centre, its centres in the patterns, whether it can be told in no other one,
    and the aperture's image as of `estimate_probe`.
    """
    beam = look_for_beam(patterns, good, clipped, config, source)
    fixed = config.origin is not None or beam.hidden
    if beam.image is None:
        origins = beam_centroids(patterns, beam.centre, beam.radius + 2, fixed)
        image = estimate_probe(patterns, origins, beam.radius, config)
    else:
        origins = np.repeat(beam.centre[None], len(patterns), axis=0)
        image = estimate_probe(*beam.image, beam.radius, config, of_disks=True)
    radius, edge, _ = image
    side = min(good.shape)
    is_broad = radius > 0.25 * side or (edge > radius and radius > _BROAD * side)
    if is_broad and config.radius is None and config.probe is None:
        raise no_beam(source)
    return beam.centre, origins, fixed, image


def _correlogram_plan(
    patterns: Float[np.ndarray, "n H W"],
    good: Bool[np.ndarray, "H W"],
    scale: tuple[float, float, float],
    config: DetectConfig,
    source: str,
) -> tuple[CorrelogramPlan, CorrelogramLayout]:
    """`make_plan` for the correlation, from patterns in electrons; `scale`: gain, pedestal, and the
    electrons to which they are cut.
    """
    gain, pedestal, clipped = scale
    shape, of, fixed = good.shape, config.correlation, config.origin is not None
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
            centre, _ = find_beam(patterns, good, config, source)
    else:
        found = _aperture(patterns, good, clipped, config, source)
        centre, _, fixed, (radius, edge, _) = found
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
    elif threshold == 0:  # any: the least intensities decide
        threshold = -np.inf
    block = _block_side(radius)
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
            for x in (gain, threshold, of.min_intensity, of.min_relative_intensity, pedestal)
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
        fixed_origin=fixed,
        all_good=bool(good.all()),
    )
    return plan, layout


def _block_side(radius: float) -> int:
    """Side [px] of the blocks in which background and local spread are counted."""
    return max(2, round(1.75 * radius))


def _middles(n: int, block: int) -> Float[np.ndarray, " blocks"]:
    """Middles [px] of the blocks along an axis of n pixels."""
    return block * (np.arange(-(-n // block)) + 0.5) - 0.5


def _blur(middles: Float[np.ndarray, " blocks"], scale: float) -> Float[Array, "blocks blocks"]:
    """Matrix of normal weights between blocks."""
    weights = np.exp(-0.5 * ((middles[:, None] - middles) / scale) ** 2)
    return jnp.asarray(weights, jnp.float32)


def _search(config: DetectConfig, radius: float, shape: tuple[int, int], origins=None) -> int:
    """How far [px] from its mean place the beam is looked for."""
    search = config.search if config.search is not None else max(3.0, 1.5 * radius)
    if origins is not None and config.search is None:
        away = np.abs(origins - np.median(origins, axis=0)).max(1)
        search = max(search, 1.5 * float(np.quantile(away, 0.9)))
    return min(math.ceil(search), (min(shape) - 1) // 2)


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
