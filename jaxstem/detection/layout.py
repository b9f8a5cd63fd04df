# SPDX-License-Identifier: GPL-3.0-or-later
"""What the compiled programs of detection take and give.

A `Plan` holds the constants that the data tell (arrays), a `Layout` what decides the program
(hashable), `FoundDisks` the result. Shapes: `B` patterns of `H` × `W` pixels, `h` × `w` blocks, `K`
disks a pattern at most, `r` radii.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
from jaxtyping import Array, Bool, Complex, Float, UInt8

TABLE_STEP = 1 / 16
"""Spacing [px] of the tables of functions of the radius."""

POOLED = 2
"""Blocks of the background along each axis of which one is kept."""

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
    electron; threshold: smallest significance; pedestal: the stored number that stands for none.
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
    pedestal: Float[Array, ""]


class Layout(NamedTuple):
    """What fixes the shapes of the compiled programs; lengths in pixels. places: spacing of those
    at which sums over the aperture are kept, 0 where none are.
    """

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
    places: int = 0


class CorrelogramPlan(NamedTuple):
    """Constants of the detection, estimated by `make_plan`.

    kernel, squares: conjugated Fourier transforms of K and of its squares after the blur, both
    about pixel (0, 0); blur: transform of the blur of the correlogram; filling: of the weights of
    `correlogram.py`; good: pixels to use; centre: mean place of the beam [px]; rough_rows,
    rough_columns: blurs of blocks for the local spread; gain: stored numbers per electron;
    threshold: smallest significance; min_intensity, min_relative_intensity: smallest intensities,
    the latter as a share of the reference disk's; pedestal: the stored number that stands for no
    electron.
    """

    kernel: Complex[Array, "H V"]
    squares: Complex[Array, "H V"]
    blur: Float[Array, "H V"]
    filling: Float[Array, "H V"]
    good: Bool[Array, "H W"]
    centre: Float[Array, " 2"]
    rough_rows: Float[Array, "h h"]
    rough_columns: Float[Array, "w w"]
    gain: Float[Array, ""]
    threshold: Float[Array, ""]
    min_intensity: Float[Array, ""]
    min_relative_intensity: Float[Array, ""]
    pedestal: Float[Array, ""]


class CorrelogramLayout(NamedTuple):
    """What fixes the compiled program of the correlation; lengths in pixels."""

    power: float
    subpixel: str
    upsample: int
    relative_to: int
    block: int
    spacing: float
    border: int
    search: int
    n_disks: int
    fixed_origin: bool
    all_good: bool


class FoundDisks(NamedTuple):
    """Disks of a batch of patterns, padded to K, most significant first, direct beam included.

    row, column: centre [px]; counts: in the disk above background; sigma: their standard deviation;
    significance: in standard deviations of a pattern without disks; origin: centre of the direct
    beam (row, column) [px], NaN where there is none; sums, factor: of `files.light.Light`, None
    where they are not kept.
    """

    row: Float[Array, "B K"]
    column: Float[Array, "B K"]
    counts: Float[Array, "B K"]
    sigma: Float[Array, "B K"]
    significance: Float[Array, "B K"]
    mask: Bool[Array, "B K"]
    origin: Float[Array, "B 2"]
    sums: UInt8[Array, "B H W"] | None = None
    factor: UInt8[Array, "B y x"] | None = None
