# SPDX-License-Identifier: GPL-3.0-or-later
"""Bragg disks in raw diffraction patterns: where they are, what they weigh, how sure that is.

A pattern is counts on a detector: a smooth diffuse background and, where reflections are excited,
images of the round probe-forming aperture. Finding one asks how many counts more than the
background lie within a disk, and how often chance alone would do the same:

1. *Direct beam.* Its centre in each pattern, which drifts while the scan goes on.
2. *Background* b(x). The radial mean over many patterns, centred on this pattern's beam, times a
   smooth factor that follows this pattern: counts over expectation in small blocks, blurred, with
   the blocks that hold a disk left out.
3. *Significance.* With the aperture's image T the counts N = Σ T n and their expectation
   M = Σ T b are sums of Poisson numbers. The signed root of the likelihood ratio

       Z = sqrt(2 c (N ln(N / M) - (N - M))),      c = Σ T / Σ T²

   is a normal deviate where there is no disk, from many counts down to few, where the usual
   (N - M) / sqrt(M) is not (W. Cash, Astrophys. J. 228 (1979) 939). Z is divided by its own local
   spread where that exceeds 1: thermal diffuse scattering is rougher than counting. N is found for
   all pixels at once, pixel by pixel of a small T and by Fourier transforms for a wide one.
4. *Maxima* of Z above a threshold that the wanted number of false disks sets.
5. *Fit.* About each maximum the expected counts are b + A T(x - x0) (1 + s·(x - x0)): amplitude,
   position and a slope s across the disk, since the excitation error and with it the brightness
   varies over a disk and would pull its centre. Maximum likelihood by Fisher scoring. The weights
   1 / (expected counts) make it aperture photometry for strong disks and a matched filter for weak
   ones. The disk's counts are A ∫T.

Shapes: `B` patterns of `H` × `W` pixels, `h` × `w` blocks, `K` disks a pattern at most, `D` disks
fitted at a time, `P` pixels about each. Lengths in detector pixels, axis 0 first. The steps
are compiled programs, which `detect_patterns` runs; their constants come in a `Plan`, which
`plan.py` estimates from the data.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Num

from jaxstem.detection.disk_fit import fit_all, fit_disks, patches
from jaxstem.detection.layout import (
    FAINTEST,
    POOLED,
    TABLE_STEP,
    CorrelogramLayout,
    CorrelogramPlan,
    FoundDisks,
    Layout,
    Plan,
)
from jaxstem.files.light import encoded, encoded_factor

LEAST_SEEN = 0.4
"""Share of the direct beam that must be seen for its place to be told."""


def detect_patterns(patterns: Num[ArrayLike, "B H W"], plan: Plan, layout: Layout) -> FoundDisks:
    """All disks of a batch of patterns, the five steps of the module's docstring.

    Pixels that are not finite count as dead. Each step is compiled on its own: what one hands to
    the next is then computed once, where XLA on a CPU would compute it anew for each use.
    """
    counts, good, summed = _summed(patterns, plan, layout)
    origin = _located(counts, summed, good, plan, layout)
    base, blurred = _about(origin, plan, layout)
    blocks, factor = _scaled(counts, base, good, plan, layout)
    if good.ndim == 3 or not layout.all_good:
        summed = _completed(counts, base, good, factor, plan, layout)
    z = _significance(summed, blurred, factor, plan, layout)
    row, column, strength, mask, factor = _peaks(z, good, blocks, factor, plan, layout)
    fitted = _fitted(counts, base, factor, good, (row, column, mask), plan, layout)
    light = _light(summed, factor, plan, layout) if layout.places else (None, None)
    return FoundDisks(*fitted, strength, mask, origin, *light)


_step = functools.partial(jax.jit, static_argnames="layout")


@_step
def _summed(patterns, plan, layout):
    """Electrons, the pixels to use, and sums over the aperture."""
    counts = (patterns.astype(jnp.float32) - plan.pedestal) / plan.gain
    good = plan.good
    if not (layout.all_good and jnp.issubdtype(patterns.dtype, jnp.integer)):
        good = good & jnp.isfinite(counts)
        counts = jnp.where(good, counts, 0.0)
    return counts, good, correlate(counts, plan.kernel)


@_step
def _located(counts, summed, good, plan, layout):
    """The direct beam's centre, NaN where there is none."""
    if layout.fixed_origin:
        return jnp.broadcast_to(plan.centre, (len(counts), 2))
    if not layout.all_good:  # a beam of which a part is hidden is as bright as another
        seen = correlate(plan.good[None].astype(counts.dtype), plan.kernel) / plan.area
        summed = jnp.where(seen > LEAST_SEEN, summed / jnp.maximum(seen, LEAST_SEEN), 0.0)
    return _locate_beam(counts, summed, good, plan, layout)


@_step
def _about(origin, plan, layout):
    """Background of the mean pattern about the beam, and its sum over the aperture."""
    height, width = plan.good.shape
    centre = jnp.nan_to_num(origin, nan=0.0) + jnp.isnan(origin) * plan.centre
    radius = jnp.sqrt(
        (jnp.arange(height)[:, None] - centre[:, :1, None]) ** 2
        + (jnp.arange(width) - centre[:, 1:, None]) ** 2
    )
    place = jnp.minimum((radius / TABLE_STEP + 0.5).astype(jnp.int32), len(plan.background) - 1)
    return plan.background[place], plan.blurred[place]


@_step
def _scaled(counts, base, good, plan, layout):
    """Counts and background of the blocks, and the factor between them."""
    blocks = _pool(counts, layout.block), _pool(base * good, layout.block)
    return blocks, _scale_background(*blocks, plan)


@_step
def _completed(counts, base, good, factor, plan, layout):
    """Sums over the aperture with what is expected in the place of dead pixels."""
    pixels = _to_pixels(factor, plan.columns, counts.shape[1], layout.block)
    return correlate(jnp.where(good, counts, pixels * base), plan.kernel)


@_step
def _significance(summed, blurred, factor, plan, layout):
    """Z of all pixels."""
    pixels = _to_pixels(factor, plan.columns, summed.shape[1], layout.block)
    return significance(summed, pixels * blurred, plan)


@_step
def _peaks(z, good, blocks, factor, plan, layout):
    """Maxima of Z, and the factor once more without the blocks that they cover."""
    row, column, strength, mask = _maxima(z, good, plan, layout)
    free = ~covered(row, column, mask, layout)
    return row, column, strength, mask, _improve_background(*blocks, factor, free, plan)


@_step
def _fitted(counts, base, factor, good, peaks, plan, layout):
    """Row, column, counts and their standard deviation of each peak's disk."""
    return fit_all(counts, base, factor, good, peaks, plan, layout)


@_step
def _light(summed, factor, plan, layout):
    """Electrons in a disk about each place, and the background's factor, as they are kept."""
    sums = summed[:, :: layout.places, :: layout.places] * (plan.area / plan.power)
    # it is smooth over two blocks
    height, width = (-n % POOLED for n in layout.blocks)
    even = jnp.pad(factor, ((0, 0), (0, height), (0, width)), mode="edge")
    pooled = jnp.exp(_pool(jnp.log(even), POOLED) / POOLED**2)
    return encoded(sums), encoded_factor(pooled)


def correlate(images: Float[Array, "B H W"], kernel: Array) -> Float[Array, "B H W"]:
    """Sum of the counts under the aperture's image about each pixel, by `kernel` of the `Plan`.

    Of the pixels beyond the edges nothing is known: the sums near them mean nothing.
    """
    if jnp.iscomplexobj(kernel):
        return jnp.fft.irfft2(jnp.fft.rfft2(images) * kernel, s=images.shape[-2:])
    _, height, width = images.shape
    reach = len(kernel) // 2
    padded = jnp.pad(images, ((0, 0), (reach, reach), (reach, reach)))
    shifted = lambda d: padded[..., reach + d : reach + d + width]  # noqa: E731
    # T is the same on both sides of the middle column
    columns = [shifted(0)] + [shifted(-d) + shifted(d) for d in range(1, reach + 1)]
    return sum(
        kernel[i, reach + d] * columns[d][:, i : i + height]
        for i in range(2 * reach + 1)
        for d in range(reach + 1)
    )


def _pool(images: Float[Array, "B H W"], block: int) -> Float[Array, "B h w"]:
    """Sums over blocks of `block` × `block` pixels, the last ones filled up with zeros."""
    images = _whole_blocks(images, block)
    lines = sum(images[:, i::block] for i in range(block))
    return sum(lines[..., i::block] for i in range(block))


def _whole_blocks(images: Float[Array, "B H W"], block: int) -> Float[Array, "B H2 W2"]:
    """The images with the last blocks filled up with zeros."""
    _, height, width = images.shape
    return jnp.pad(images, ((0, 0), (0, -height % block), (0, -width % block)))


def spread(
    blocks: Float[Array, "B h w"], rows: Float[Array, "H h"], columns: Float[Array, "W w"]
) -> Float[Array, "B H W"]:
    """Blocks blurred or interpolated onto other places, one axis after the other."""
    n, h, w = blocks.shape
    blocks = (blocks.reshape(n * h, w) @ columns.T).reshape(n, h, -1)
    return jax.vmap(lambda x: rows @ x)(blocks)


def _to_pixels(
    blocks: Float[Array, "B h w"], columns: Float[Array, "W w"], height: int, block: int
) -> Float[Array, "B H W"]:
    """Linear interpolation from the middles of blocks to pixels, constant outside; `columns` does
    it along the rows."""
    n, h, w = blocks.shape
    own = (blocks.reshape(n * h, w) @ columns.T).reshape(n, h, -1)
    above = jnp.concatenate([own[:, :1], own[:, :-1]], 1)
    below = jnp.concatenate([own[:, 1:], own[:, -1:]], 1)
    from_middle = (np.arange(block) + 0.5) / block - 0.5
    lines = [own + abs(d) * ((above if d < 0 else below) - own) for d in from_middle.tolist()]
    return jnp.stack(lines, 2).reshape(n, h * block, -1)[:, :height]


def _scale_background(
    counts: Float[Array, "B h w"], base: Float[Array, "B h w"], plan: Plan
) -> Float[Array, "B h w"]:
    """Smooth factor from the expected background `base` to that of each pattern, for each block.

    Blocks with many more counts than their surroundings hold disks and are left out.
    """
    # a pattern may be far brighter or fainter than the mean one
    level = jnp.sum(jnp.minimum(counts, 4 * base + 4), (1, 2)) / (jnp.sum(base, (1, 2)) + 1)
    factor = jnp.broadcast_to(jnp.maximum(level, FAINTEST)[:, None, None], counts.shape)
    for clip in (6.0, 3.5, 3.0):
        factor = _improve_background(counts, base, factor, True, plan, clip)
    return factor


def _improve_background(
    counts: Float[Array, "B h w"],
    base: Float[Array, "B h w"],
    factor: Float[Array, "B h w"],
    used: Bool[Array, "B h w"] | bool,
    plan: Plan,
    clip: float = 3.0,
) -> Float[Array, "B h w"]:
    """The factor of `_scale_background` once more, from the blocks that are `used`.

    Leaves out those that exceed the present estimate by `clip` standard deviations. Where little
    is left the factor tends to that of the whole pattern.
    """
    expected = factor * base
    kept = used & (counts - expected < clip * jnp.sqrt(expected + 0.25) + 0.5)
    both = jnp.concatenate([jnp.where(kept, counts, 0.0), jnp.where(kept, base, 0.0)])
    above, below = jnp.split(spread(both, plan.smooth_rows, plan.smooth_columns), 2)
    whole = jnp.split((jnp.sum(both, (1, 2), keepdims=True) + 1.0), 2)
    return (above + whole[0] / whole[1]) / (below + 1.0)


def covered(
    row: Int[Array, "B K"], column: Int[Array, "B K"], mask: Bool[Array, "B K"], layout: Layout
) -> Bool[Array, "B h w"]:
    """Blocks that a disk reaches into."""
    reach = layout.reach - 1.0 + layout.block / 2
    near = []
    for place, n in zip((row, column), layout.blocks, strict=True):
        middle = layout.block * (jnp.arange(n) + 0.5) - 0.5
        near.append((jnp.abs(place[..., None] - middle) < reach).astype(jnp.float32))
    return jnp.einsum("bkh,bkw->bhw", near[0] * mask[..., None], near[1]) > 0


def significance(
    summed: Float[Array, "..."], expected: Float[Array, "..."], plan: Plan
) -> Float[Array, "..."]:
    """Signed root Z of the likelihood ratio of the summed counts to their expectation."""
    scale = plan.area / plan.power
    n = jnp.maximum(summed, 0.0) * scale
    m = jnp.maximum(expected, FAINTEST * plan.area) * scale
    excess = n - m
    deviance = 2 * (n * jnp.log(jnp.maximum(n, 1e-6) / m) - excess)
    return jnp.sign(excess) * jnp.sqrt(jnp.maximum(deviance, 0.0))


def local_spread(
    z: Float[Array, "B H W"],
    used: Bool[Array, "B H W"],
    plan: Plan | CorrelogramPlan,
    layout: Layout | CorrelogramLayout,
) -> Float[Array, "B h w"]:
    """Standard deviation of `z` about each block, at least 1; what may be disks is left out."""
    used = used & (z < 3.0)
    squares = _pool(jnp.where(used, z * z, 0.0), layout.block)
    number = _pool(used.astype(jnp.float32), layout.block)
    both = spread(jnp.concatenate([squares, number]), plan.rough_rows, plan.rough_columns)
    squares, number = jnp.split(both, 2)
    return jnp.sqrt(jnp.maximum(squares / jnp.maximum(number, 1e-3), 1.0))


def interior(shape: tuple[int, int], layout: Layout | CorrelogramLayout) -> Bool[Array, "H W"]:
    """Pixels at least `border` from the detector's edge."""
    rows, columns = (jnp.arange(n) for n in shape)
    inside = lambda i, n: (i >= layout.border) & (i < n - layout.border)  # noqa: E731
    return inside(rows, shape[0])[:, None] & inside(columns, shape[1])


def _maxima(
    z: Float[Array, "B H W"], good: Bool[Array, "... H W"], plan: Plan, layout: Layout
) -> tuple[Int[Array, "B K"], Int[Array, "B K"], Float[Array, "B K"], Bool[Array, "B K"]]:
    """(row, column, significance, mask) of the K highest maxima of z over its local spread.

    Only those above the threshold, no two within `spacing`, one a block at most.
    """
    n, height, width = z.shape
    block = layout.block
    used = jnp.broadcast_to(interior((height, width), layout) & good, z.shape)
    relative = local_spread(z, used, plan, layout)
    z = jnp.where(used, z, 0.0)
    z = jnp.where(z >= around(z), z, 0.0)
    highest, line, place = highest_in_blocks(z, block)
    h, w = relative.shape[1:]
    strength = (highest / relative).reshape(n, h * w)
    strength, number = jax.lax.top_k(strength, min(layout.n_disks, h * w))
    mask = strength > plan.threshold
    chosen = lambda x: jnp.take_along_axis(x.reshape(n, h * w), number, 1)  # noqa: E731
    row, column = number // w * block + chosen(line), number % w * block + chosen(place)
    apart = (row[:, :, None] - row[:, None]) ** 2 + (column[:, :, None] - column[:, None]) ** 2
    stronger = jnp.tril(mask[:, None] & mask[:, :, None], -1)
    mask &= ~jnp.any(stronger & (apart < layout.spacing**2), -1)
    return row, column, jnp.where(mask, strength, 0.0), mask


def highest_in_blocks(
    z: Float[Array, "B H W"], block: int
) -> tuple[Float[Array, "B h w"], Int[Array, "B h w"], Int[Array, "B h w"]]:
    """The largest value of each block of `block` × `block` pixels, and its row and column there."""
    z = _whole_blocks(z, block)
    highest, line = _highest_of([z[:, i::block] for i in range(block)])
    highest, place, line = _highest_of(
        [highest[..., i::block] for i in range(block)], [line[..., i::block] for i in range(block)]
    )
    return highest, line, place


def _highest_of(
    parts: Sequence[Float[Array, "..."]], *others: Sequence[Int[Array, "..."]]
) -> tuple[Array, ...]:
    """The largest of some arrays at each place, the number of the first that has it, and what
    `others` hold where it is.
    """
    number = [jnp.full(parts[0].shape, i, jnp.int32) for i in range(len(parts))]
    larger = lambda a, b: jax.tree.map(functools.partial(jnp.where, b[0] > a[0]), b, a)  # noqa: E731
    return functools.reduce(larger, zip(parts, number, *others, strict=True))


def around(z: Float[Array, "B H W"]) -> Float[Array, "B H W"]:
    """Largest of each pixel and its eight neighbours."""
    z = jnp.pad(z, ((0, 0), (1, 1), (0, 0)))
    z = jnp.maximum(jnp.maximum(z[:, :-2], z[:, 1:-1]), z[:, 2:])
    z = jnp.pad(z, ((0, 0), (0, 0), (1, 1)))
    return jnp.maximum(jnp.maximum(z[..., :-2], z[..., 1:-1]), z[..., 2:])


def _locate_beam(
    counts: Float[Array, "B H W"],
    summed: Float[Array, "B H W"],
    good: Bool[Array, "... H W"],
    plan: Plan,
    layout: Layout,
) -> Float[Array, "B 2"]:
    """Centre (row, column) [px] of the direct beam, NaN where none stands out."""
    n, height, width = counts.shape
    side = 2 * layout.search + 1
    limit = jnp.array([height - side, width - side])
    corner = jnp.clip(jnp.round(plan.centre).astype(jnp.int32) - layout.search, 0, limit)
    window = jax.lax.dynamic_slice(summed, (0, corner[0], corner[1]), (n, side, side))
    window = window.reshape(n, -1)
    best = jnp.argmax(window, -1)
    row, column = corner[0] + best // side, corner[1] + best % side
    patch, inside = patches(jnp.arange(n), row, column, (height, width), layout.reach)
    base = jnp.full(patch.shape, plan.background[0])
    weight = inside & jnp.broadcast_to(good, counts.shape).reshape(-1)[patch]
    disk = fit_disks(counts.reshape(-1)[patch], base, weight, plan, layout)
    z = significance(jnp.max(window, -1), plan.background[0] * plan.area, plan)
    centre = jnp.stack([row + disk.row, column + disk.column], -1)
    return jnp.where((z > 5.0)[:, None], centre, jnp.nan)
