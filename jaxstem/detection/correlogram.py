# SPDX-License-Identifier: GPL-3.0-or-later
"""Bragg disks as the maxima of a correlogram: template matching with an image of the probe.

`likelihood.py` asks how likely a disk is, and for that takes disks to be round, filled and flat.
Here the template is any image of the beam in vacuum, that of a patterned aperture (a bullseye) too,
or a synthetic disk. The steps are those of py4DSTEM (B. H. Savitzky et al., Microscopy and
Microanalysis 27 (2021) 712), for a batch of patterns at once:

1. *Kernel* K. The probe T, its centre moved to pixel (0, 0), in a trench that makes the sum zero,
   so that a background that is flat or slopes leaves no trace (`zero_sum`).
2. *Correlogram*. With F = FFT(pattern) conj(FFT(K)) and the correlation power p

       c = IFFT(|F|^p exp(i arg F)):

   p = 1 is the cross-correlation, p = 0 the phase correlation, which sees edges alone; between
   them lies the hybrid one (T. C. Pekin et al., Ultramicroscopy 176 (2017) 170). Optionally
   blurred.
3. *Significance* c / σ of each pixel, for every p that of the cross-correlation: counts are Poisson
   numbers n, and the variance of Σ K n is σ² = Σ K² n. Divided by its own local spread where that
   exceeds 1, as in `patterns`.
4. *Maxima* of c that are significant, bright enough and farther than the spacing from any stronger
   one that is left.
5. *Subpixel* place: none; a parabola through the neighbours along each axis; or the correlogram
   upsampled about the maximum by a matrix-multiply Fourier transform (M. Guizar-Sicairos,
   S. T. Thurman & J. R. Fienup, Optics Letters 33 (2008) 156).

A disk's intensity is the height of its maximum: its electrons, if it looks like the probe and p is
1; for other powers a number that only orders disks.

Shapes: `B` patterns of `H` × `W` pixels, `V` = W // 2 + 1 columns of their Fourier transforms, `K`
disks a pattern at most, `D` disks at a time, `U` upsampled points a side. Lengths in detector
pixels, axis 0 first. `plan.py` makes the constants, a `CorrelogramPlan`, from the data.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Complex, Float, Int, Num

from jaxstem.detection.layout import CorrelogramLayout, CorrelogramPlan, FoundDisks
from jaxstem.detection.likelihood import around, highest_in_blocks, interior, local_spread

_NEIGHBOURHOOD = 1.5
"""Side [px] of the square about a maximum that is upsampled."""


def from_corner(shape: tuple[int, int]) -> Float[np.ndarray, "H W"]:
    """Distance [px] of each pixel from pixel (0, 0), around the edges."""
    rows, columns = (np.minimum(np.arange(n), n - np.arange(n)) for n in shape)
    return np.hypot(rows[:, None], columns)


def zero_sum(probe: Float[np.ndarray, "H W"], radius: float) -> Float[np.ndarray, "H W"]:
    """The kernel K = s (T / ΣT - S / ΣS) of a probe T about pixel (0, 0) in the trench S(r).

    S = cos²(π r / 4R) out to twice the aperture's `radius` R [px], nothing beyond: py4DSTEM's
    `get_kernel(mode="sigmoid", radii=(0, 2 R))`. The scale s makes Σ K T = ΣT: the correlation with
    a disk is its counts.
    """
    trench = np.cos(np.pi / 2 * np.minimum(from_corner(probe.shape) / (2 * radius), 1)) ** 2
    disk = probe / probe.sum()
    kernel = disk - trench / trench.sum()
    return kernel / np.sum(disk * kernel)


@functools.partial(jax.jit, static_argnames="layout")
def correlate_patterns(
    patterns: Num[Array, "B H W"], plan: CorrelogramPlan, layout: CorrelogramLayout
) -> FoundDisks:
    """All disks of a batch of patterns, the strongest first, the five steps of the docstring above.

    Pixels that are not finite count as dead. `Found.counts` holds the heights of the maxima,
    `sigma` their standard deviations, NaN where the power is not 1.
    """
    counts = (patterns.astype(jnp.float32) - plan.pedestal) / plan.gain
    good = plan.good
    if not (layout.all_good and jnp.issubdtype(patterns.dtype, jnp.integer)):
        good = good & jnp.isfinite(counts)
        counts = _fill_gaps(counts, good, plan.filling)
    shape = counts.shape[1:]
    transform = jnp.fft.rfft2(counts)
    matched = transform * plan.kernel
    plain = jnp.fft.irfft2(matched * plan.blur, s=shape)
    sigma = jnp.sqrt(jnp.maximum(jnp.fft.irfft2(transform * plan.squares, s=shape), 1.0))
    if layout.power == 1:
        spectrum, heights = matched * plan.blur, plain
    else:
        spectrum = with_power(matched, layout.power) * plan.blur
        heights = jnp.fft.irfft2(spectrum, s=shape)
    z = plain / sigma
    used = jnp.broadcast_to(interior(shape, layout) & good, z.shape)
    # the trenches of strong disks are no noise
    spread = local_spread(z, used & (z > -3.0), plan, layout)
    fine = jnp.repeat(jnp.repeat(spread, layout.block, 1), layout.block, 2)
    relative = z / fine[:, : shape[0], : shape[1]]

    allowed = interior(shape, layout) & (relative > plan.threshold)
    row, column, mask = _maxima(heights, allowed, plan, layout)
    at = lambda image, row, column: image[jnp.arange(len(image))[:, None], row, column]  # noqa: E731
    # now, not before: or a side maximum would be taken for the disk
    mask &= at(jnp.broadcast_to(good, heights.shape), row, column)
    beam = _brightest_near(heights, plan.centre, layout.search)
    shown = at(z, *beam) > 5.0
    rows, columns, height = refine(
        heights,
        spectrum,
        jnp.concatenate([beam[0], row], 1),
        jnp.concatenate([beam[1], column], 1),
        jnp.concatenate([shown, mask], 1),
        layout,
    )
    if layout.fixed_origin:
        origin = jnp.broadcast_to(plan.centre, (len(counts), 2))
    else:
        origin = jnp.where(shown, jnp.concatenate([rows[:, :1], columns[:, :1]], 1), jnp.nan)
    kept = lambda x: jnp.where(mask, x, 0.0)  # noqa: E731
    return FoundDisks(
        kept(rows[:, 1:]),
        kept(columns[:, 1:]),
        kept(height[:, 1:]),
        kept(at(sigma, row, column) if layout.power == 1 else jnp.nan),
        kept(at(relative, row, column)),
        mask,
        origin,
    )


def _fill_gaps(
    counts: Float[Array, "B H W"], good: Bool[Array, "... H W"], filling: Float[Array, "H V"]
) -> Float[Array, "B H W"]:
    """The counts with weighted means of the good pixels in the place of the others.

    Weights (1 + r²)^-2 of the distance r [px] (inverse-distance interpolation, D. Shepard, Proc.
    23rd ACM National Conference (1968) 517): a lone dead pixel takes the mean of its neighbours, a
    beam stop is bridged. `filling` is their Fourier transform.
    """
    shape = counts.shape[1:]
    blurred = lambda x: jnp.fft.irfft2(jnp.fft.rfft2(x) * filling, s=shape)  # noqa: E731
    known = blurred(jnp.where(good, counts, 0.0))
    number = blurred(good.astype(jnp.float32))
    return jnp.where(good, counts, jnp.maximum(known, 0.0) / jnp.maximum(number, 1e-6))


def with_power(spectrum: Complex[Array, "... H V"], power: float) -> Complex[Array, "... H V"]:
    """|F|^p exp(i arg F), nothing where F is nothing."""
    size = jnp.abs(spectrum)
    return spectrum * jnp.where(size > 0, jnp.where(size > 0, size, 1.0) ** (power - 1), 0.0)


def _maxima(
    heights: Float[Array, "B H W"],
    allowed: Bool[Array, "B H W"],
    plan: CorrelogramPlan,
    layout: CorrelogramLayout,
) -> tuple[Int[Array, "B K"], Int[Array, "B K"], Bool[Array, "B K"]]:
    """(row, column, mask) of the maxima that are allowed, the strongest first.

    One after the other the strongest that is left is taken and those within the spacing dropped,
    until there are K or no more.
    """
    peak = allowed & (heights >= around(heights)) & (heights >= plan.min_intensity)
    highest, line, place = highest_in_blocks(jnp.where(peak, heights, 0.0), 2)
    n, h, w = highest.shape
    line = (line + 2 * jnp.arange(h)[:, None]).reshape(n, -1)
    place = (place + 2 * jnp.arange(w)).reshape(n, -1)
    highest = highest.reshape(n, -1)
    brightest, _ = jax.lax.top_k(highest, min(layout.relative_to + 1, h * w))
    least = plan.min_relative_intensity * brightest[:, -1:]
    left = jnp.where(highest >= least, jnp.maximum(highest, 0.0), 0.0)

    def take(carry):
        left, row, column, mask, k = carry
        best = jnp.argmax(left, 1, keepdims=True)
        own = lambda x: jnp.take_along_axis(x, best, 1)  # noqa: E731
        apart = (line - own(line)) ** 2 + (place - own(place)) ** 2
        write = lambda x, new: jax.lax.dynamic_update_slice(x, new, (0, k))  # noqa: E731
        taken = write(row, own(line)), write(column, own(place)), write(mask, own(left) > 0)
        keep = (apart >= layout.spacing**2) & (apart > 0)
        return jnp.where(keep, left, 0.0), *taken, k + 1

    number = jnp.zeros((n, layout.n_disks), jnp.int32)
    start = (left, number, number, number > 0, 0)
    more = lambda carry: (carry[-1] < layout.n_disks) & jnp.any(carry[0] > 0)  # noqa: E731
    _, row, column, mask, _ = jax.lax.while_loop(more, take, start)
    return row, column, mask


def _brightest_near(
    heights: Float[Array, "B H W"], centre: Float[Array, " 2"], search: int
) -> tuple[Int[Array, "B 1"], Int[Array, "B 1"]]:
    """(row, column) of the highest pixel within `search` pixels of `centre` along both axes."""
    n, *shape = heights.shape
    side = 2 * search + 1
    limit = jnp.array(shape) - side
    corner = jnp.clip(jnp.round(centre).astype(jnp.int32) - search, 0, limit)
    window = jax.lax.dynamic_slice(heights, (0, *corner), (n, side, side))
    best = jnp.argmax(window.reshape(n, -1), -1)[:, None]
    return corner[0] + best // side, corner[1] + best % side


def refine(
    heights: Float[Array, "B H W"],
    spectrum: Complex[Array, "B H V"],
    row: Int[Array, "B K"],
    column: Int[Array, "B K"],
    mask: Bool[Array, "B K"],
    layout: CorrelogramLayout,
) -> tuple[Float[Array, "B K"], Float[Array, "B K"], Float[Array, "B K"]]:
    """(row, column, height) of maxima below a pixel, as `layout.subpixel` says."""
    pattern = jnp.arange(len(heights))[:, None]
    _, n_rows, n_columns = heights.shape
    near = lambda i, j: heights[pattern, (row + i) % n_rows, (column + j) % n_columns]  # noqa: E731
    top = near(0, 0)
    if layout.subpixel == "none":
        return row.astype(jnp.float32), column.astype(jnp.float32), top
    down, up = _parabola(near(-1, 0), top, near(1, 0))
    right, more = _parabola(near(0, -1), top, near(0, 1))
    rows, columns, height = row + down, column + right, top + up + more
    if layout.subpixel == "poly":
        return rows, columns, height

    shape = (n_rows, n_columns)
    parts = jnp.concatenate([spectrum.real, spectrum.imag], -1)
    group = min(mask.size, max(64, 2 * len(heights)))
    n_groups = -(-mask.size // group)
    listed = jnp.flatnonzero(mask, size=n_groups * group, fill_value=mask.size)

    def refine_group(number, places):
        index = jax.lax.dynamic_slice(listed, (number * group,), (group,))
        at = jnp.minimum(index, mask.size - 1)
        centre = places[:2, at]
        patch = upsampled(parts[at // mask.shape[1]], *centre, shape, layout.upsample)
        found = jnp.stack(highest_point(patch, *centre, layout.upsample))
        return places.at[:, index].set(found, mode="drop")

    places = jnp.stack([x.reshape(-1) for x in (rows, columns, height)])
    n_used = -(-jnp.sum(mask) // group)
    places = jax.lax.fori_loop(0, n_used, refine_group, places)
    return tuple(x.reshape(mask.shape) for x in places)


def _parabola(
    before: Float[Array, "..."], top: Float[Array, "..."], after: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Where the parabola through three neighbouring values has its top, from the middle one [in
    their spacing, at most half of it], and how much higher it is there."""
    bend = jnp.maximum(2 * top - before - after, 1e-20)
    shift = jnp.clip(0.5 * (after - before) / bend, -0.5, 0.5)
    return shift, 0.25 * (after - before) * shift


def upsampled(
    spectrum: Float[Array, "D H V_V"],
    row: Float[Array, " D"],
    column: Float[Array, " D"],
    shape: tuple[int, int],
    factor: int,
) -> Float[Array, "D U U"]:
    """Images upsampled by `factor` within `_NEIGHBOURHOOD` about points (row, column) [px].

    `spectrum`: real and imaginary parts of their `rfft2`, side by side (V_V = 2 V). The inverse
    Fourier transform is evaluated at the wanted points alone, as two products of matrices
    (Guizar-Sicairos et al., eq. 3 and below); the highest frequency of an even side counts half on
    either sign, so that this is what padding the whole transform with zeros gives.
    """
    steps = jnp.asarray(upsampled_steps(factor), jnp.float32)
    height, width = shape
    waves = []
    for frequency, place, n in (
        (np.fft.fftfreq(height, 1 / height), row, height),
        (np.arange(width // 2 + 1), column, width),
    ):
        angle = 2 * jnp.pi / n * frequency.astype(np.float32)[:, None]
        angle = angle * (place[:, None, None] + steps)
        one_sided = jnp.asarray(2 * np.abs(frequency) != n)[:, None]
        waves.append((jnp.cos(angle), jnp.where(one_sided, jnp.sin(angle), 0.0)))
    (cos, sin), (across, askew) = waves
    # the columns left out of the half transform are the conjugates of those that are there
    number = np.arange(width // 2 + 1)
    twice = np.where((number > 0) & (2 * number != width), 2.0, 1.0)[:, None] / (height * width)
    across, askew = across * twice, askew * twice
    matrix = jnp.concatenate(
        [jnp.concatenate([across, askew], -1), jnp.concatenate([-askew, across], -1)], 1
    )
    real, imaginary = jnp.split(spectrum @ matrix, 2, -1)
    return jnp.einsum("dhu,dhv->duv", cos, real) - jnp.einsum("dhu,dhv->duv", sin, imaginary)


def upsampled_steps(factor: int) -> Float[np.ndarray, " U"]:
    """Places [px] of the upsampled points along an axis, from the middle one."""
    reach = math.ceil(_NEIGHBOURHOOD / 2 * factor)
    return np.arange(-reach, reach + 1) / factor


def highest_point(
    patch: Float[Array, "D U U"], row: Float[Array, " D"], column: Float[Array, " D"], factor: int
) -> tuple[Float[Array, " D"], Float[Array, " D"], Float[Array, " D"]]:
    """(row, column, height) of the highest of the upsampled points about (row, column) [px], with
    a parabola through its neighbours."""
    n, side, _ = patch.shape
    best = jnp.argmax(patch.reshape(n, -1), -1)
    disk = jnp.arange(n)
    i, j = (jnp.clip(x, 1, side - 2) for x in (best // side, best % side))
    top = patch[disk, i, j]
    down, up = _parabola(patch[disk, i - 1, j], top, patch[disk, i + 1, j])
    right, more = _parabola(patch[disk, i, j - 1], top, patch[disk, i, j + 1])
    middle = side // 2
    return (
        row + (i - middle + down) / factor,
        column + (j - middle + right) / factor,
        top + up + more,
    )
