# SPDX-License-Identifier: GPL-3.0-or-later
"""Disks fitted in a pattern: amplitude, position and the slope across each.

About each maximum the expected counts are b + A T(x - x0) (1 + s·(x - x0)); maximum likelihood by
Fisher scoring (step 5 of `likelihood.py`). Shapes: `D` disks fitted at a time, `P` pixels about
each, `r` radii of the aperture's table.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxstem.detection.layout import FAINTEST, MISFIT, TABLE_STEP, Layout, Plan, hold


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
