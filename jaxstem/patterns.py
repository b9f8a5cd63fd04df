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
`jaxstem.probe` estimates from the data.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

TABLE_STEP = 1 / 16
"""Spacing [px] of the tables of functions of the radius."""

MISFIT = 0.1
"""Share of a disk's brightness by which its image may differ from the aperture's; it keeps the few
counts about a bright disk's edge from deciding where the disk is."""

hold = jax.lax.optimization_barrier

WIDEST_SUM = 9
"""Width [px] of an aperture's image up to which its pixels are summed one by one, which is then
faster than Fourier transforms."""

FAINTEST = 1e-3
"""Background [counts a pixel] below which nothing is believed to be."""


class Plan(NamedTuple):
    """Constants of the detection, estimated by `make_plan`.

    kernel: the aperture's image T on its own few pixels, or, where it is wide (`WIDEST_SUM`), the
    conjugated Fourier transform of T about pixel (0, 0) of the whole detector; probe: T(r),
    background: b(r) [counts], blurred: Σ T b about r, all three on radii `TABLE_STEP` apart; good:
    pixels to use; centre: mean place of the beam [px]; columns: linear interpolation from blocks to
    pixels along a row; smooth_rows, smooth_columns: blurs of blocks for the background, rough_rows,
    rough_columns: for the local spread; area: ∫T [px]; power: Σ T² [px]; gain: stored numbers per
    electron; threshold: smallest significance.
    """

    kernel: Array
    probe: Float[Array, " r"]
    background: Float[Array, " R"]
    blurred: Float[Array, " R"]
    good: Bool[Array, "H W"]
    centre: Float[Array, " 2"]
    columns: Float[Array, "W w"]
    smooth_rows: Float[Array, "h h"]
    smooth_columns: Float[Array, "w w"]
    rough_rows: Float[Array, "h h"]
    rough_columns: Float[Array, "w w"]
    area: Float[Array, ""]
    power: Float[Array, ""]
    gain: Float[Array, ""]
    threshold: Float[Array, ""]


class Layout(NamedTuple):
    """What fixes the shapes of the compiled programs; lengths in pixels."""

    reach: float
    block: int
    blocks: tuple[int, int]
    spacing: float
    border: int
    search: int
    n_disks: int
    structure: bool
    overlapping: bool
    fixed_origin: bool
    all_good: bool


class Found(NamedTuple):
    """Disks of a batch of patterns, padded to K, most significant first, direct beam included.

    row, column: centre [px]; counts: in the disk above background; sigma: their standard deviation;
    significance: in standard deviations of a pattern without disks; origin: centre of the direct
    beam (row, column) [px], NaN where there is none.
    """

    row: Float[Array, "B K"]
    column: Float[Array, "B K"]
    counts: Float[Array, "B K"]
    sigma: Float[Array, "B K"]
    significance: Float[Array, "B K"]
    mask: Bool[Array, "B K"]
    origin: Float[Array, "B 2"]


def detect_patterns(patterns: Num[Array, "B H W"], plan: Plan, layout: Layout) -> Found:
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
    return Found(*fitted, strength, mask, origin)


_step = functools.partial(jax.jit, static_argnames="layout")


@_step
def _summed(patterns, plan, layout):
    """Electrons, the pixels to use, and sums over the aperture."""
    counts = patterns.astype(jnp.float32) / plan.gain
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
    return locate_beam(counts, summed, good, plan, layout)


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
    blocks = pool(counts, layout.block), pool(base * good, layout.block)
    return blocks, scale_background(*blocks, plan)


@_step
def _completed(counts, base, good, factor, plan, layout):
    """Sums over the aperture with what is expected in the place of dead pixels."""
    pixels = to_pixels(factor, plan.columns, counts.shape[1], layout.block)
    return correlate(jnp.where(good, counts, pixels * base), plan.kernel)


@_step
def _significance(summed, blurred, factor, plan, layout):
    """Z of all pixels."""
    pixels = to_pixels(factor, plan.columns, summed.shape[1], layout.block)
    return significance(summed, pixels * blurred, plan)


@_step
def _peaks(z, good, blocks, factor, plan, layout):
    """Maxima of Z, and the factor once more without the blocks that they cover."""
    row, column, strength, mask = maxima(z, good, plan, layout)
    free = ~covered(row, column, mask, layout)
    return row, column, strength, mask, improve_background(*blocks, factor, free, plan)


@_step
def _fitted(counts, base, factor, good, peaks, plan, layout):
    """Row, column, counts and their standard deviation of each peak's disk."""
    return fit_all(counts, base, factor, good, peaks, plan, layout)


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


def pool(images: Float[Array, "B H W"], block: int) -> Float[Array, "B h w"]:
    """Sums over blocks of `block` × `block` pixels, the last ones filled up with zeros."""
    images = whole_blocks(images, block)
    lines = sum(images[:, i::block] for i in range(block))
    return sum(lines[..., i::block] for i in range(block))


def whole_blocks(images: Float[Array, "B H W"], block: int) -> Float[Array, "B H2 W2"]:
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


def to_pixels(
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


def scale_background(
    counts: Float[Array, "B h w"], base: Float[Array, "B h w"], plan: Plan
) -> Float[Array, "B h w"]:
    """Smooth factor from the expected background `base` to that of each pattern, for each block.

    Blocks with many more counts than their surroundings hold disks and are left out.
    """
    # a pattern may be far brighter or fainter than the mean one
    level = jnp.sum(jnp.minimum(counts, 4 * base + 4), (1, 2)) / (jnp.sum(base, (1, 2)) + 1)
    factor = jnp.broadcast_to(jnp.maximum(level, FAINTEST)[:, None, None], counts.shape)
    for clip in (6.0, 3.5, 3.0):
        factor = improve_background(counts, base, factor, True, plan, clip)
    return factor


def improve_background(
    counts: Float[Array, "B h w"],
    base: Float[Array, "B h w"],
    factor: Float[Array, "B h w"],
    used: Bool[Array, "B h w"] | bool,
    plan: Plan,
    clip: float = 3.0,
) -> Float[Array, "B h w"]:
    """The factor of `scale_background` once more, from the blocks that are `used`.

    Leaves out those that exceed the present estimate by `clip` standard deviations. Where little
    is left the factor tends to 1.
    """
    expected = factor * base
    kept = used & (counts - expected < clip * jnp.sqrt(expected + 0.25) + 0.5)
    both = jnp.concatenate([jnp.where(kept, counts, 0.0), jnp.where(kept, base, 0.0)])
    above, below = jnp.split(spread(both, plan.smooth_rows, plan.smooth_columns), 2)
    return (above + 1.0) / (below + 1.0)


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
    summed: Float[Array, "B H W"], expected: Float[Array, "B H W"], plan: Plan
) -> Float[Array, "B H W"]:
    """Signed root Z of the likelihood ratio of the summed counts to their expectation."""
    scale = plan.area / plan.power
    n = jnp.maximum(summed, 0.0) * scale
    m = jnp.maximum(expected, FAINTEST * plan.area) * scale
    excess = n - m
    deviance = 2 * (n * jnp.log(jnp.maximum(n, 1e-6) / m) - excess)
    return jnp.sign(excess) * jnp.sqrt(jnp.maximum(deviance, 0.0))


def local_spread(
    z: Float[Array, "B H W"], used: Bool[Array, "B H W"], plan: Plan, layout: Layout
) -> Float[Array, "B h w"]:
    """Standard deviation of `z` about each block, at least 1; what may be disks is left out."""
    used = used & (z < 3.0)
    squares = pool(jnp.where(used, z * z, 0.0), layout.block)
    number = pool(used.astype(jnp.float32), layout.block)
    both = spread(jnp.concatenate([squares, number]), plan.rough_rows, plan.rough_columns)
    squares, number = jnp.split(both, 2)
    return jnp.sqrt(jnp.maximum(squares / jnp.maximum(number, 1e-3), 1.0))


def interior(shape: tuple[int, int], layout: Layout) -> Bool[Array, "H W"]:
    """Pixels at least `border` from the detector's edge."""
    rows, columns = (jnp.arange(n) for n in shape)
    inside = lambda i, n: (i >= layout.border) & (i < n - layout.border)  # noqa: E731
    return inside(rows, shape[0])[:, None] & inside(columns, shape[1])


def maxima(
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
    z = whole_blocks(z, block)
    highest, line = highest_of([z[:, i::block] for i in range(block)])
    highest, place, line = highest_of(
        [highest[..., i::block] for i in range(block)], [line[..., i::block] for i in range(block)]
    )
    return highest, line, place


def highest_of(
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


def locate_beam(
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


def offsets(reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (rows, columns) within `reach` of the origin."""
    line = np.arange(-math.floor(reach), math.floor(reach) + 1)
    rows, columns = np.meshgrid(line, line, indexing="ij")
    inside = np.hypot(rows, columns) <= reach
    return rows[inside], columns[inside]


def patches(
    pattern: Int[Array, " D"],
    row: Int[Array, " D"],
    column: Int[Array, " D"],
    shape: tuple[int, int],
    reach: float,
) -> tuple[Int[Array, "P D"], Bool[Array, "P D"]]:
    """Flat indices into (B, H, W) of the pixels about each disk, and which lie on the detector."""
    height, width = shape
    d_row, d_column = offsets(reach)
    rows, columns = row + d_row[:, None], column + d_column[:, None]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    rows, columns = jnp.clip(rows, 0, height - 1), jnp.clip(columns, 0, width - 1)
    return (pattern * height + rows) * width + columns, inside


class FittedDisk(NamedTuple):
    """A disk relative to the pixel about which it was fitted: centre [px], amplitude A [counts a
    pixel], slope s [1/px], Fisher information of A alone [1/(counts a pixel)²]."""

    row: Float[Array, " D"]
    column: Float[Array, " D"]
    amplitude: Float[Array, " D"]
    slope_row: Float[Array, " D"]
    slope_column: Float[Array, " D"]
    information: Float[Array, " D"]


def profile(table: Float[Array, " r"], radius: Float[Array, "P D"]):
    """Value and derivative [1/px] of a table at a radius [px]."""
    place = jnp.minimum(radius / TABLE_STEP, len(table) - 1.001)
    index = place.astype(jnp.int32)
    low, high = table[index], table[index + 1]
    return low + (place - index) * (high - low), (high - low) / TABLE_STEP


def fit_disks(
    counts: Float[Array, "P D"],
    base: Float[Array, "P D"],
    weight: Bool[Array, "P D"],
    plan: Plan,
    layout: Layout,
    n_steps: int = 4,
) -> FittedDisk:
    """Maximum-likelihood disks on a known background `base`, step 5 of the module's docstring.

    Fisher scoring of (A, x0, s). The slope has a normal prior of 1/3 over the radius, so that weak
    disks keep none; the centre stays within a pixel of where it starts.
    """
    d_row, d_column = (jnp.asarray(x, jnp.float32)[:, None] for x in offsets(layout.reach))
    base = jnp.maximum(base, FAINTEST)
    radius = jnp.sqrt(plan.area / jnp.pi)
    slope_prior = (3 * radius) ** 2

    def model(disk):
        dx, dy = d_row - disk.row, d_column - disk.column
        r = jnp.sqrt(dx * dx + dy * dy + 1e-9)
        shape, fall = profile(plan.probe, r)
        tilt = jnp.maximum(1 + disk.slope_row * dx + disk.slope_column * dy, 0.05)
        return dx, dy, r, shape, fall, tilt

    def step(_, disk):
        dx, dy, r, shape, fall, tilt = model(disk)
        a = disk.amplitude
        expected = base + a * shape * tilt
        columns = [shape * tilt, -a * fall * tilt * dx / r, -a * fall * tilt * dy / r]
        if layout.structure:
            columns += [a * shape * dx, a * shape * dy]
        jacobian = jnp.stack(columns)
        jacobian, inverse = hold((jacobian, weight / (expected + (MISFIT * a) ** 2)))
        weighted = jacobian * inverse
        gradient = jnp.sum(weighted * (counts - expected), 1)
        normal = [
            [jnp.sum(weighted[i] * jacobian[j], 0) for j in range(i + 1)]
            for i in range(len(columns))
        ]
        if layout.structure:
            for i, slope in ((3, disk.slope_row), (4, disk.slope_column)):
                normal[i][i] += slope_prior
                gradient = gradient.at[i].add(-slope_prior * slope)
        for i in range(len(columns)):
            normal[i][i] = normal[i][i] * (1 + 1e-4) + 1e-6
        # an offset of half a pixel is worth a standard deviation
        normal[1][1] += 4.0
        normal[2][2] += 4.0
        gradient = gradient.at[1].add(-4.0 * disk.row).at[2].add(-4.0 * disk.column)
        change = solve(normal, gradient)
        move = jnp.clip(change[1:3], -0.4, 0.4)
        slopes = (disk.slope_row, disk.slope_column)
        if layout.structure:
            slopes = tuple(
                jnp.clip(s + d, -1 / radius, 1 / radius)
                for s, d in zip(slopes, change[3:], strict=True)
            )
        return FittedDisk(
            jnp.clip(disk.row + move[0], -1.5, 1.5),
            jnp.clip(disk.column + move[1], -1.5, 1.5),
            jnp.maximum(a + change[0], 1e-3 * a + 1e-6),
            *slopes,
            normal[0][0],
        )

    zero = jnp.zeros(counts.shape[1])
    shape = profile(plan.probe, jnp.sqrt(d_row**2 + d_column**2))[0]
    amplitude = jnp.sum(weight * shape * (counts - base), 0) / plan.power
    start = FittedDisk(zero, zero, jnp.maximum(amplitude, 1e-2), zero, zero, zero)
    disk = jax.lax.fori_loop(0, n_steps, step, start)
    # the amplitude at its final place without the slope: a sum over the aperture, whatever is in it
    shape = model(disk)[3]
    for _ in range(2):
        inverse = weight / (base + disk.amplitude * shape)
        information = jnp.sum(inverse * shape**2, 0)
        amplitude = jnp.sum(inverse * shape * (counts - base), 0) / jnp.maximum(information, 1e-12)
        disk = disk._replace(amplitude=jnp.maximum(amplitude, 0.0), information=information)
    return disk


def solve(lower: list[list[Array]], right: Float[Array, "n D"]) -> Float[Array, "n D"]:
    """Solutions of D small positive definite systems, given the lower triangles, by Cholesky."""
    n = len(lower)
    root = [[None] * n for _ in range(n)]
    for i in range(n):
        for j in range(i + 1):
            rest = lower[i][j] - sum(root[i][k] * root[j][k] for k in range(j))
            root[i][j] = jnp.sqrt(jnp.maximum(rest, 1e-12)) if i == j else rest / root[j][j]
    half = []
    for i in range(n):
        half.append((right[i] - sum(root[i][k] * half[k] for k in range(i))) / root[i][i])
    full = [None] * n
    for i in reversed(range(n)):
        rest = half[i] - sum(root[k][i] * full[k] for k in range(i + 1, n))
        full[i] = rest / root[i][i]
    return jnp.stack(full)


def between(
    blocks: Float[Array, "B h w"], row: Int[Array, "B K"], column: Int[Array, "B K"], block: int
) -> Float[Array, "B K"]:
    """Values of the blocks at pixels, linear between the blocks' middles."""
    _, h, w = blocks.shape
    row, column = (jnp.maximum((x + 0.5) / block - 0.5, 0.0) for x in (row, column))
    i, j = (jnp.minimum(x.astype(jnp.int32), n - 2) for x, n in ((row, h), (column, w)))
    u, v = jnp.minimum(row - i, 1.0), jnp.minimum(column - j, 1.0)
    b = jnp.arange(len(blocks))[:, None]
    low = (1 - v) * blocks[b, i, j] + v * blocks[b, i, j + 1]
    high = (1 - v) * blocks[b, i + 1, j] + v * blocks[b, i + 1, j + 1]
    return (1 - u) * low + u * high


def fit_all(
    counts: Float[Array, "B H W"],
    base: Float[Array, "B H W"],
    factor: Float[Array, "B h w"],
    good: Bool[Array, "... H W"],
    peaks: tuple[Int[Array, "B K"], Int[Array, "B K"], Bool[Array, "B K"]],
    plan: Plan,
    layout: Layout,
) -> tuple[Float[Array, "B K"], ...]:
    """(row, column, counts, sigma) of the disks at `peaks`, some hundreds at a time.

    Disks that overlap are fitted a second and third time with their neighbours as background.
    """
    row, column, mask = peaks
    n_patterns, n_disks = mask.shape
    shape = counts.shape[1:]
    good = jnp.broadcast_to(good, counts.shape).reshape(-1)
    counts, base = counts.reshape(-1), base.reshape(-1)
    level = between(factor, row, column, layout.block).reshape(-1)
    group = min(mask.size, max(64, 2 * n_patterns))
    n_groups = -(-mask.size // group)
    listed = jnp.flatnonzero(mask, size=n_groups * group, fill_value=mask.size)
    n_used = -(-jnp.sum(mask) // group)

    def places(number):
        index = jax.lax.dynamic_slice(listed, (number * group,), (group,))
        at = jnp.minimum(index, mask.size - 1)
        return index, *patches(
            at // n_disks, row.reshape(-1)[at], column.reshape(-1)[at], shape, layout.reach
        )

    def fit_group(number, carry):
        disks, others = carry
        index, patch, inside = places(number)
        below = base[patch] * level[jnp.minimum(index, mask.size - 1)]
        if others is not None:
            own = drawn(FittedDisk(*(x.at[index].get(mode="fill", fill_value=0) for x in disks)))
            below = below + jnp.maximum(others[patch] - own, 0.0)
        found = fit_disks(counts[patch], below, inside & good[patch], plan, layout)
        disks = FittedDisk(
            *(x.at[index].set(y, mode="drop") for x, y in zip(disks, found, strict=True))
        )
        return disks, others

    def drawn(disk):
        dx, dy = (
            jnp.asarray(d, jnp.float32)[:, None] - x
            for d, x in zip(offsets(layout.reach), disk[:2], strict=True)
        )
        tilt = jnp.maximum(1 + disk.slope_row * dx + disk.slope_column * dy, 0.05)
        return disk.amplitude * tilt * profile(plan.probe, jnp.hypot(dx, dy))[0]

    def draw_group(number, carry):
        disks, image = carry
        index, patch, inside = places(number)
        own = drawn(FittedDisk(*(x.at[index].get(mode="fill", fill_value=0) for x in disks)))
        return disks, image.at[patch].add(jnp.where(inside, own, 0.0))

    disks = FittedDisk(*[jnp.zeros(mask.size)] * 6)
    disks, _ = jax.lax.fori_loop(0, n_used, fit_group, (disks, None))
    for _ in range(2 * layout.overlapping):
        image = jax.lax.fori_loop(0, n_used, draw_group, (disks, jnp.zeros_like(counts)))[1]
        disks, _ = jax.lax.fori_loop(0, n_used, fit_group, (disks, image))
    disks = FittedDisk(*(x.reshape(mask.shape) for x in disks))
    sigma = plan.area / jnp.sqrt(jnp.maximum(disks.information, 1e-12))
    zeroed = lambda x: jnp.where(mask, x, 0.0)  # noqa: E731
    return (
        zeroed(row + disks.row),
        zeroed(column + disks.column),
        zeroed(disks.amplitude * plan.area),
        zeroed(sigma),
    )
