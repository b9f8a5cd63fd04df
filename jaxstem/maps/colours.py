# SPDX-License-Identifier: GPL-3.0-or-later
"""Colours of orientations and phases, and the keys that explain them.

An inverse-pole-figure (IPF) colour says which crystal direction lies along one direction of the
laboratory: `R @ lab_direction`, brought into the sector that the Laue group leaves distinct. The
colours are the TSL scheme of orix (Nolze & Hielscher, J. Appl. Cryst. 49 (2016) 1786), which
expects each Laue group in one standard setting (`crystal.setting_rotation`). Shapes: rgb 0 … 1 in
the last axis.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes

from jaxstem.crystal.cell import Crystal, symmetry_operations
from jaxstem.crystal.setting import orix_group, quiet_orix, setting_rotation
from jaxstem.files.orientation_map import NO_CRYSTAL, OrientationMap

LAB_X, LAB_Y, LAB_Z = np.eye(3)

UNASSIGNED_COLOUR = (0.0, 0.0, 0.0)

NO_CRYSTAL_COLOUR = (0.6, 0.6, 0.6)

AMBIGUOUS_COLOUR = (1.0, 1.0, 1.0)

# no grey or black is an IPF colour; phases take Okabe & Ito's colours, told apart by all readers
PHASE_COLOURS = tuple(
    tuple(int(code[i : i + 2], 16) / 255 for i in (0, 2, 4))
    for code in ("0072B2", "E69F00", "009E73", "CC79A7", "56B4E9", "D55E00", "F0E442")
)

CHUNK = 65536

_SAME_COLOUR = 5e-4
"""Directions [rad] that no eye tells apart by their colours."""


def ipf_colours(
    orientation: Float[np.ndarray, "... 3 3"],
    lab_direction: Float[np.ndarray, " 3"],
    laue_group: str,
) -> Float[np.ndarray, "... 3"]:
    """IPF colours (rgb 0 … 1) of a lab direction; NaN where the orientation is not finite.

    `laue_group` is a Hermann-Mauguin symbol; the orientations must refer to its standard setting
    (see `setting_rotation`). Raises InputError for a symbol that is not one of the 11 Laue groups.
    """
    return direction_colours(np.asarray(orientation, float) @ lab_direction, laue_group)


def direction_colours(
    direction: Float[np.ndarray, "... 3"], laue_group: str
) -> Float[np.ndarray, "... 3"]:
    """TSL colours (rgb 0 … 1) of crystal directions in the standard setting; NaN stays NaN.

    Directions that agree to `_SAME_COLOUR`, as most within a grain do, are coloured once.
    """
    direction = np.asarray(direction, float)
    known = np.isfinite(direction).all(-1)
    vectors, back = _distinct(direction[known], _SAME_COLOUR)
    colours = np.full(direction.shape, np.nan)
    with quiet_orix():
        from orix.plot import IPFColorKeyTSL
        from orix.vector import Vector3d

        key = IPFColorKeyTSL(orix_group(laue_group)).direction_color_key
        parts = [
            key.direction2color(Vector3d(vectors[start : start + CHUNK]))
            for start in range(0, len(vectors), CHUNK)
        ]
    if parts:
        colours[known] = np.clip(np.concatenate(parts), 0.0, 1.0)[back]
    return colours


def _distinct(
    vectors: Float[np.ndarray, "n 3"], apart: float
) -> tuple[Float[np.ndarray, "m 3"], Int[np.ndarray, " n"]]:
    """One of all unit vectors whose components fall into the same steps of `apart`, and for each
    vector which one stands for it.
    """
    steps = np.round(vectors / apart).astype(np.int64)
    _, first, back = np.unique(
        steps @ np.array([1 << 42, 1 << 21, 1]), return_index=True, return_inverse=True
    )
    return vectors[first], back


def rgb_map(
    orientation_map: OrientationMap, lab_direction: Float[np.ndarray, " 3"]
) -> Float[np.ndarray, "ny nx 3"]:
    """IPF colours of a whole map, each phase by its own key; black unassigned, grey no crystal."""
    phase = orientation_map.phase
    rgb = np.empty((*phase.shape, 3))
    rgb[...] = UNASSIGNED_COLOUR
    rgb[phase == NO_CRYSTAL] = NO_CRYSTAL_COLOUR
    for index, crystal in enumerate(orientation_map.crystals):
        pixels = phase == index
        turn = setting_rotation(symmetry_operations(crystal), crystal.laue_group)
        colours = ipf_colours(
            turn @ orientation_map.orientation[pixels], lab_direction, crystal.laue_group
        )
        rgb[pixels] = np.where(np.isfinite(colours), colours, UNASSIGNED_COLOUR)
    return rgb


def draw_key(axes: Axes, crystal: Crystal) -> None:
    """The IPF colour key of a crystal: its sector, stereographic, corners labelled [uvw].

    A corner that no small indices describe as a lattice direction is labelled by the lattice plane
    that it is normal to, (hkl), else by its Cartesian components.
    """
    turn = setting_rotation(symmetry_operations(crystal), crystal.laue_group)
    outline, normals, corners = sector(crystal.laue_group)
    low, high = outline.min(0), outline.max(0)
    steps = 240
    x, y = np.meshgrid(np.linspace(low[0], high[0], steps), np.linspace(low[1], high[1], steps))
    direction = from_stereographic(np.stack([x, y], -1))
    inside = (direction @ normals.T >= -1e-9).all(-1) & (direction[..., 2] >= -1e-9)
    rgba = np.zeros((steps, steps, 4))
    rgba[inside, :3] = direction_colours(direction[inside], crystal.laue_group)
    rgba[inside, 3] = 1.0
    axes.imshow(rgba, extent=(low[0], high[0], low[1], high[1]), origin="lower", aspect="equal")
    axes.plot(*np.vstack([outline, outline[:1]]).T, color="black", linewidth=1.0, clip_on=False)
    centre = (low + high) / 2
    for corner in _labelled_directions(corners, normals):
        point = _stereographic(corner)
        away = point - centre
        axes.annotate(
            direction_label(turn.T @ corner, crystal.lattice),
            point,
            xytext=6 * away / max(np.abs(away).max(), 1e-9),
            textcoords="offset points",
            ha=_side(away[0], "left", "right", "center"),
            va=_side(away[1], "bottom", "top", "center"),
            fontsize=9,
        )
    axes.set_title(f"{crystal.name}  ({_overlined(crystal.laue_group)})", fontsize=10, pad=24)
    axes.set_axis_off()


def sector(
    laue_group: str,
) -> tuple[Float[np.ndarray, "e 2"], Float[np.ndarray, "n 3"], Float[np.ndarray, "c 3"]]:
    """orix's sector of distinct directions in the standard setting: its outline, stereographic,
    the normals of its sides (inside where all products are positive) and its corners.
    """
    with quiet_orix():
        found = orix_group(laue_group).fundamental_sector
        outline = _stereographic(found.edges.unit.data.reshape(-1, 3))
        return outline, found.data.reshape(-1, 3), found.vertices.data.reshape(-1, 3)


def direction_label(
    direction: Float[np.ndarray, " 3"], lattice: Float[np.ndarray, "3 3"], largest: int = 3
) -> str:
    """A Cartesian crystal direction as mathtext: [uvw], [UVTW] for hexagonal axes, else (hkl).

    Indices up to `largest`, to within 0.3°; with none, the Cartesian components.
    """
    span = range(-largest, largest + 1)
    indices = np.array([i for i in itertools.product(span, repeat=3) if math.gcd(*i) == 1])
    reciprocal = np.linalg.inv(lattice).T
    for vectors, brackets in ((lattice, "[]"), (reciprocal, "()")):
        cartesian = indices @ vectors
        cosine = cartesian @ direction / np.linalg.norm(cartesian, axis=-1)
        close = cosine >= np.cos(np.deg2rad(0.3)) * np.linalg.norm(direction)
        if close.any():
            best = min(indices[close].tolist(), key=lambda index: sum(map(abs, index)))
            if brackets == "[]" and has_hexagonal_axes(lattice):
                best = four_indices(*best)
            return "$" + brackets[0] + r"\,".join(map(_overlined_index, best)) + brackets[1] + "$"
    return "xyz ({:.2g}, {:.2g}, {:.2g})".format(*direction + 0.0)


def load_orix() -> None:
    """Load what figures need of orix, a second's work that can be done beside other things."""
    from orix.plot import IPFColorKeyTSL  # noqa: F401
    from orix.vector import Vector3d  # noqa: F401


def _stereographic(direction: Float[np.ndarray, "... 3"]) -> Float[np.ndarray, "... 2"]:
    """Stereographic projection of unit vectors of the upper hemisphere into the unit circle."""
    return direction[..., :2] / (1 + direction[..., 2:])


def from_stereographic(point: Float[np.ndarray, "... 2"]) -> Float[np.ndarray, "... 3"]:
    """The inverse of `_stereographic`; points outside the unit circle are of the lower half."""
    square = (point**2).sum(-1, keepdims=True)
    return np.concatenate([2 * point, 1 - square], axis=-1) / (1 + square)


def _labelled_directions(
    corners: Float[np.ndarray, "c 3"], normals: Float[np.ndarray, "n 3"]
) -> list[Float[np.ndarray, " 3"]]:
    """Corners of the sector, and where it has fewer than three, the coordinate axes inside it."""
    directions = [corner / np.linalg.norm(corner) for corner in corners]
    if len(directions) < 3:
        directions += [
            axis
            for axis in np.vstack([np.eye(3), -np.eye(3)])
            if (normals @ axis >= -1e-9).all()
            and axis[2] >= 0
            and all(axis @ other < 0.999 for other in directions)
        ]
    return directions


def _side(offset: float, positive: str, negative: str, neither: str) -> str:
    return positive if offset > 0.05 else negative if offset < -0.05 else neither


def _overlined(symbol: str) -> str:
    """-3m as mathtext with the bar over the 3."""
    if "-" not in symbol:
        return symbol
    head, _, tail = symbol.partition("-")
    return rf"$\mathrm{{{head}\overline{{{tail[0]}}}{tail[1:]}}}$"


def _overlined_index(index: int) -> str:
    return str(index) if index >= 0 else rf"\overline{{{-index}}}"


def has_hexagonal_axes(lattice: Float[np.ndarray, "3 3"]) -> bool:
    """Whether a = b, γ = 120° and c stands on both."""
    a, b, c = lattice
    unit = np.linalg.norm(a) * np.linalg.norm(b)
    across = max(abs(a @ c), abs(b @ c)) / (np.linalg.norm(c) * np.sqrt(unit))
    equal = abs(np.linalg.norm(a) - np.linalg.norm(b)) < 1e-3 * np.linalg.norm(a)
    return bool(equal and across < 1e-3 and abs(a @ b / unit + 0.5) < 1e-3)


def four_indices(u: int, v: int, w: int) -> list[int]:
    """Weber indices [UVTW] of the direction [uvw] on hexagonal axes."""
    four = [2 * u - v, 2 * v - u, -(u + v), 3 * w]
    return [index // math.gcd(*four) for index in four]


def phase_colours(orientation_map: OrientationMap) -> list[tuple[float, float, float]]:
    """The colour (rgb 0 … 1) of each phase."""
    return list(itertools.islice(itertools.cycle(PHASE_COLOURS), len(orientation_map.crystals)))
