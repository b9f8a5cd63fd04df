# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures of an orientation map.

An inverse-pole-figure (IPF) colour says which crystal direction lies along one direction of the
laboratory: `R @ lab_direction`, brought into the sector that the Laue group leaves distinct. The
colours are the TSL scheme of orix (Nolze & Hielscher, J. Appl. Cryst. 49 (2016) 1786), which
expects each Laue group in one standard setting (2/m: two-fold axis along z). A cell in another
setting (monoclinic with unique axis b) is turned into it by `setting_rotation` first.

A map is drawn as its arrays lie: axis 0 (lab x) runs down, axis 1 (lab y) to the right, so lab z
points out of the page, towards the electron source; the reader looks along the beam. docs/maps.md
has the table. Shapes: `ny nx` scan positions, rgb 0 … 1 in the last axis.

orix takes seconds to import and is imported where it is used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.transforms import Affine2D, ScaledTranslation

from jaxstem.crystal import Crystal, operations
from jaxstem.errors import InputError
from jaxstem.io import MAP_DATASETS, NO_CRYSTAL, UNASSIGNED, OrientationMap, atomic_path

LAB_X, LAB_Y, LAB_Z = np.eye(3)

UNASSIGNED_COLOUR = (0.0, 0.0, 0.0)
NO_CRYSTAL_COLOUR = (0.6, 0.6, 0.6)
AMBIGUOUS_COLOUR = (1.0, 1.0, 1.0)
# no grey or black is an IPF colour; phases take Okabe & Ito's colours, told apart by all readers
PHASE_COLOURS = tuple(
    tuple(int(code[i : i + 2], 16) / 255 for i in (0, 2, 4))
    for code in ("0072B2", "E69F00", "009E73", "CC79A7", "56B4E9", "D55E00", "F0E442")
)

ORIX_NAMES = {
    "-1": "Ci",
    "2/m": "C2h",
    "mmm": "D2h",
    "4/m": "C4h",
    "4/mmm": "D4h",
    "-3": "S6",
    "-3m": "D3d",
    "6/m": "C6h",
    "6/mmm": "D6h",
    "m-3": "Th",
    "m-3m": "Oh",
}
CHUNK = 65536
FIGURE_SUFFIXES = (".png", ".svg", ".pdf")
SAME_COLOUR = 5e-4
"""Directions [rad] that no eye tells apart by their colours."""
MOST_DRAWN = 1024
"""Positions along a side of a picture."""

METRES = {"a": 1e-10, "å": 1e-10, "angstrom": 1e-10, "angstroms": 1e-10, "nm": 1e-9}
METRES |= {"um": 1e-6, "µm": 1e-6, "μm": 1e-6, "micron": 1e-6, "microns": 1e-6, "mm": 1e-3}
METRES |= {"pm": 1e-12, "m": 1.0}


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

    Directions that agree to `SAME_COLOUR`, as most within a grain do, are coloured once.
    """
    direction = np.asarray(direction, float)
    known = np.isfinite(direction).all(-1)
    vectors, back = _distinct(direction[known], SAME_COLOUR)
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


def setting_rotation(
    symmetry: Float[np.ndarray, "n 3 3"], laue_group: str
) -> Float[np.ndarray, "3 3"]:
    """Smallest rotation T that brings a Laue group's proper operations into the standard setting.

    `T @ O @ T.T` of all operations are those of orix's group, so `T @ R` is what `ipf_colours`
    wants. The identity for most cells; a quarter turn about a for monoclinic with unique axis b.
    Raises InputError when the operations are not those of `laue_group`.
    """
    symmetry = np.asarray(symmetry, float)
    standard = _standard_operations(laue_group)
    if _same_set(symmetry, standard):
        return np.eye(3)
    candidates = _frame_candidates(symmetry, standard)
    fitting = [t for t in candidates if _same_set(t @ symmetry @ t.T, standard)]
    if not fitting:
        raise InputError(
            f"The crystal's {len(symmetry)} proper operations are not those of {laue_group}: "
            "its symmetry and its Laue group disagree."
        )
    return max(fitting, key=np.trace)


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
        turn = setting_rotation(operations(crystal), crystal.laue_group)
        colours = ipf_colours(
            turn @ orientation_map.orientation[pixels], lab_direction, crystal.laue_group
        )
        rgb[pixels] = np.where(np.isfinite(colours), colours, UNASSIGNED_COLOUR)
    return rgb


def figure(orientation_map: OrientationMap, path: str | Path, overwrite: bool = False) -> None:
    """Write the map as PNG, SVG or PDF, by the suffix: IPF colours for lab z and x, confidence,
    phases, keys, scale bar.

    Each position covers a whole number of dots, about 300 an inch. Of a map with more than
    `MOST_DRAWN` positions along a side every other one is drawn, or every third, and so on. Text in
    SVG and PDF is outlines and embedded TrueType. Appears whole under its name or not at all.
    Raises InputError for another suffix, and when the file exists and `overwrite` is False.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in FIGURE_SUFFIXES:
        raise InputError(f"{path}: give a name that ends in {', '.join(FIGURE_SUFFIXES)}.")
    with atomic_path(path, overwrite) as temporary:
        every = -(-max(orientation_map.phase.shape) // MOST_DRAWN)
        drawn = thinned(orientation_map, max(every, 1))
        picture = draw(drawn)
        with rc_context({"pdf.fonttype": 42, "svg.hashsalt": "jaxstem"}):
            picture.savefig(temporary, format=suffix[1:], dpi=_resolution(picture, drawn))


def thinned(orientation_map: OrientationMap, every: int) -> OrientationMap:
    """The map at each `every`-th row and column, its step as much larger."""
    arrays = {
        name: getattr(orientation_map, name)[::every, ::every] for name in MAP_DATASETS if every > 1
    }
    step = every * orientation_map.scan_step
    return dataclasses.replace(orientation_map, **arrays, scan_step=step)


def draw(orientation_map: OrientationMap) -> Figure:
    """The map as a matplotlib figure; its axes are labelled "ipf z", "ipf x", "confidence", ….

    One phase: three maps in a row. Several: a fourth with the phases. Keys and legend at the right.
    """
    several = len(orientation_map.crystals) > 1
    columns, rows = (2, 2) if several else (3, 1)
    width, height = _panel_size(orientation_map.phase.shape)
    keys = len(orientation_map.crystals)
    cell = (max(width, 1.9) + 0.65, height + 1.2)
    key_width, key_height = 2.5, 2.35
    legend_height = 0.5 + 0.22 * (keys + 3)
    figure_width = columns * cell[0] + key_width + 0.35
    figure_height = 0.45 + max(rows * cell[1], keys * key_height + legend_height)
    picture = Figure(figsize=(figure_width, figure_height), facecolor="white")

    def place(left: float, top: float, w: float, h: float, label: str) -> Axes:
        return picture.add_axes(
            (
                left / figure_width,
                1 - (top + h) / figure_height,
                w / figure_width,
                h / figure_height,
            ),
            label=label,
        )

    def panel(index: int, label: str) -> Axes:
        row, column = divmod(index, columns)
        return place(0.45 + column * cell[0], 1.0 + row * cell[1], width, height, label)

    picture.text(0.3 / figure_width, 1 - 0.3 / figure_height, _heading(orientation_map), fontsize=9)
    for index, (name, direction, title) in enumerate(
        (("ipf z", LAB_Z, "IPF out of plane (z)"), ("ipf x", LAB_X, "IPF in plane (x, down)"))
    ):
        axes = panel(index, name)
        axes.imshow(rgb_map(orientation_map, direction), **_image_style())
        _dress(axes, title, orientation_map)
    _draw_confidence(panel(2, "confidence"), orientation_map, place)
    if several:
        _draw_phases(panel(3, "phases"), orientation_map)
    left = columns * cell[0] + 0.25
    for index, crystal in enumerate(orientation_map.crystals):
        axes = place(
            left + 0.35, 0.75 + index * key_height, key_width - 0.8, key_height - 0.9, "key"
        )
        draw_key(axes, crystal)
    _draw_legend(
        place(left, 0.45 + keys * key_height, key_width, legend_height, "legend"), orientation_map
    )
    return picture


def draw_key(axes: Axes, crystal: Crystal) -> None:
    """The IPF colour key of a crystal: its sector, stereographic, corners labelled [uvw].

    A corner that no small indices describe as a lattice direction is labelled by the lattice plane
    that it is normal to, (hkl), else by its Cartesian components.
    """
    turn = setting_rotation(operations(crystal), crystal.laue_group)
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
        point = stereographic(corner)
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
        outline = stereographic(found.edges.unit.data.reshape(-1, 3))
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


def scale_bar(step: float, units: str, pixels: int) -> tuple[float, str]:
    """A round scale bar for a map `pixels` wide: its length in pixels and its label.

    1, 2 or 5 times a power of ten, about a quarter of the width, in the unit that suits it. A step
    in an unknown unit, or in none, gives a bar in scan positions.
    """
    metres = in_metres(step, units)
    if metres is None:
        length = _round_length(max(pixels / 4, 1))
        return length, f"{length:g} positions" if length != 1 else "1 position"
    length = _round_length(pixels * metres / 4)
    label = next(
        f"{round(length / size, 6):g} {name}"
        for name, size in (("mm", 1e-3), ("µm", 1e-6), ("nm", 1e-9), ("Å", 1e-10), ("pm", 1e-12))
        if length >= size * (1 - 1e-6) or name == "pm"
    )
    return length / metres, label


def in_metres(step: float, units: str) -> float | None:
    """A scan step in metres; None where the unit is none of length, or the step not positive."""
    metres = METRES.get(units.strip().lower().rstrip("."))
    return step * metres if metres and math.isfinite(step) and step > 0 else None


def _round_length(length: float) -> float:
    power = 10.0 ** math.floor(math.log10(length))
    return power * max(m for m in (1, 2, 5) if m * power <= length * (1 + 1e-9))


def load_orix() -> None:
    """Load what figures need of orix, a second's work that can be done beside other things."""
    from orix.plot import IPFColorKeyTSL  # noqa: F401
    from orix.vector import Vector3d  # noqa: F401


@contextlib.contextmanager
def quiet_orix():
    """Without the warnings of orix and of NumPy within it."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


def orix_group(laue_group: str):
    """orix's symmetry of a Laue group; InputError for a symbol that is not one of the eleven."""
    if laue_group not in ORIX_NAMES:
        raise InputError(
            f"{laue_group!r} is not a Laue group; give one of {', '.join(ORIX_NAMES)}."
        )
    from orix.quaternion import symmetry

    return getattr(symmetry, ORIX_NAMES[laue_group])


def _standard_operations(laue_group: str) -> Float[np.ndarray, "n 3 3"]:
    with quiet_orix():
        group = orix_group(laue_group)
        return group[~group.improper.astype(bool)].to_matrix().reshape(-1, 3, 3)


def _same_set(first: Float[np.ndarray, "n 3 3"], second: Float[np.ndarray, "m 3 3"]) -> bool:
    distance = np.abs(first[:, None] - second[None]).max((-1, -2))
    return len(first) == len(second) and bool((distance.min(1) < 1e-3).all())


def _axis_and_angle(rotation: Float[np.ndarray, "3 3"]) -> tuple[np.ndarray, float]:
    """Axis (either sense) and angle [rad] of a rotation; the axis is its eigenvector of value 1."""
    values, vectors = np.linalg.eig(rotation)
    axis = vectors[:, np.argmin(np.abs(values - 1))].real
    return axis / np.linalg.norm(axis), math.acos(np.clip((np.trace(rotation) - 1) / 2, -1, 1))


def _frame_candidates(
    symmetry: Float[np.ndarray, "n 3 3"], standard: Float[np.ndarray, "m 3 3"]
) -> list[Float[np.ndarray, "3 3"]]:
    """Rotations that lay a pair of rotation axes of one group onto such a pair of the other."""
    target = [_axis_and_angle(o) for o in standard if np.trace(o) < 3 - 1e-6]
    if not target:
        return []
    main, main_angle = min(target, key=lambda pair: pair[1])
    others = [pair for pair in target if abs(pair[0] @ main) < 0.99]
    signed = [
        (sign * axis, angle)
        for axis, angle in map(_axis_and_angle, symmetry)
        if angle > 1e-3
        for sign in (1, -1)
    ]
    mains = [axis for axis, angle in signed if abs(angle - main_angle) < 1e-3]
    if not others:
        return [_turn_onto(axis, main) for axis in mains if axis @ main > -0.5]
    side, side_angle = others[0]
    return [
        _frame(main, side) @ _frame(first, second).T
        for first in mains
        for second, angle in signed
        if abs(angle - side_angle) < 1e-3 and abs(first @ second - main @ side) < 1e-3
    ]


def _frame(first: Float[np.ndarray, " 3"], second: Float[np.ndarray, " 3"]) -> np.ndarray:
    """Right-handed orthonormal columns: along `first`, `second` in the plane of the first two."""
    second = second - (second @ first) * first
    second = second / np.linalg.norm(second)
    return np.stack([first, second, np.cross(first, second)], axis=1)


def _turn_onto(start: Float[np.ndarray, " 3"], end: Float[np.ndarray, " 3"]) -> np.ndarray:
    """The smallest rotation that brings one unit vector onto another (not its opposite)."""
    x, y, z = np.cross(start, end)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + cross + cross @ cross / (1 + start @ end)


def stereographic(direction: Float[np.ndarray, "... 3"]) -> Float[np.ndarray, "... 2"]:
    """Stereographic projection of unit vectors of the upper hemisphere into the unit circle."""
    return direction[..., :2] / (1 + direction[..., 2:])


def from_stereographic(point: Float[np.ndarray, "... 2"]) -> Float[np.ndarray, "... 3"]:
    """The inverse of `stereographic`; points outside the unit circle are of the lower half."""
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


def _image_style() -> dict:
    return {"origin": "upper", "interpolation": "nearest", "aspect": "auto"}


def _panel_size(shape: tuple[int, int]) -> tuple[float, float]:
    """Width and height [inches] of one map; a strip narrower than 0.4 inches is widened to that."""
    ny, nx = shape
    longest = 3.4
    scale = longest / max(ny, nx)
    return max(nx * scale, 0.4), max(ny * scale, 0.4)


def _resolution(picture: Figure, orientation_map: OrientationMap) -> float:
    """Dots per inch, some 300, at which every scan position covers a whole number of dots."""
    nx = orientation_map.phase.shape[1]
    width = picture.axes[0].get_position().width * picture.get_figwidth()
    return min(max(1, round(300 * width / nx)) * nx / width, 600)


def _heading(orientation_map: OrientationMap) -> str:
    ny, nx = orientation_map.phase.shape
    step, units = orientation_map.scan_step, orientation_map.scan_units
    known = units.strip().lower() in METRES
    shown = {"a": "Å", "angstrom": "Å", "angstroms": "Å", "um": "µm"}.get(units.lower(), units)
    return f"{ny} × {nx} positions, " + (f"step {step:g} {shown}" if known else "step not known")


def _dress(axes: Axes, title: str, orientation_map: OrientationMap) -> None:
    """Title, lab axes x (down), y (right) and z (out of the page), scale bar below the map."""
    axes.set_title(title, fontsize=10, pad=20)
    axes.set_xticks([])
    axes.set_yticks([])
    arrow = {"arrowstyle": "-|>", "color": "black", "linewidth": 1.0, "shrinkA": 0, "shrinkB": 0}
    for tip in ((28, 7), (-7, -28)):
        axes.annotate(
            "", tip, (-7, 7), xycoords=_corner(axes), textcoords=_corner(axes), arrowprops=arrow
        )
    for spot, letter in (((34, 7), "y"), ((-7, -35), "x"), ((-14, 14), "z")):
        axes.annotate(
            letter,
            spot,
            xycoords=_corner(axes),
            ha="center",
            va="center",
            fontsize=9,
            style="italic",
        )
    towards_reader = {"color": "black", "transform": _corner(axes), "clip_on": False}
    towards_reader |= {"scalex": False, "scaley": False}
    axes.plot(-7, 7, "o", markersize=7, markerfacecolor="white", **towards_reader)
    axes.plot(-7, 7, "o", markersize=2, **towards_reader)
    _draw_scale_bar(axes, orientation_map)


def _corner(axes: Axes):
    """Coordinates in points from the upper left corner of the axes."""
    origin = ScaledTranslation(0, 1, axes.transAxes)
    return Affine2D().scale(1 / 72) + axes.figure.dpi_scale_trans + origin


def _draw_scale_bar(axes: Axes, orientation_map: OrientationMap) -> None:
    nx = orientation_map.phase.shape[1]
    length, label = scale_bar(orientation_map.scan_step, orientation_map.scan_units, nx)
    below = axes.get_xaxis_transform()
    inches = axes.get_position().height * axes.figure.get_figheight()
    depth = -0.14 / inches
    axes.plot(
        [-0.5, length - 0.5],
        [depth, depth],
        transform=below,
        color="black",
        linewidth=3,
        solid_capstyle="butt",
        clip_on=False,
        scalex=False,
        scaley=False,
        label="scale bar",
    )
    axes.text(
        -0.5,
        depth - 0.08 / inches,
        label,
        transform=below,
        ha="left",
        va="top",
        fontsize=9,
    )


def _draw_confidence(axes: Axes, orientation_map: OrientationMap, place) -> None:
    """Confidence in viridis with its colour bar; white where it is ambiguous by 180°; other pixels
    as in the IPF maps.
    """
    assigned = orientation_map.phase >= 0
    image = axes.imshow(
        np.ma.masked_where(~assigned, orientation_map.confidence),
        cmap="viridis",
        vmin=0,
        vmax=1,
        **_image_style(),
    )
    others = np.zeros((*assigned.shape, 4))
    others[~assigned] = (*UNASSIGNED_COLOUR, 1)
    others[orientation_map.phase == NO_CRYSTAL] = (*NO_CRYSTAL_COLOUR, 1)
    others[orientation_map.ambiguous_180] = (*AMBIGUOUS_COLOUR, 1)
    axes.imshow(others, **_image_style())
    _dress(axes, "confidence", orientation_map)
    box = axes.get_position()
    picture = axes.figure
    across, up = picture.get_size_inches()
    bar_width = min(1.5, 0.6 * max(box.width * across, 1.9))
    left = max(box.x1 * across - bar_width, box.x0 * across + 0.75)
    bar = place(left, (1 - box.y0) * up + 0.08, bar_width, 0.12, "confidence scale")
    picture.colorbar(image, cax=bar, orientation="horizontal", ticks=[0, 0.5, 1])
    bar.tick_params(labelsize=8, length=2, pad=2)
    bar.set_xlabel("probability of < 5° error", fontsize=8, labelpad=1)


def _draw_phases(axes: Axes, orientation_map: OrientationMap) -> None:
    palette = [NO_CRYSTAL_COLOUR, UNASSIGNED_COLOUR, *phase_colours(orientation_map)]
    axes.imshow(
        orientation_map.phase + 2,
        cmap=ListedColormap(palette),
        vmin=-0.5,
        vmax=len(palette) - 0.5,
        **_image_style(),
    )
    _dress(axes, "phase", orientation_map)


def phase_colours(orientation_map: OrientationMap) -> list[tuple[float, float, float]]:
    """The colour (rgb 0 … 1) of each phase."""
    return list(itertools.islice(itertools.cycle(PHASE_COLOURS), len(orientation_map.crystals)))


def _draw_legend(axes: Axes, orientation_map: OrientationMap) -> None:
    """What colours outside the key mean, with the share of pixels of each."""
    phase, ambiguous = orientation_map.phase, orientation_map.ambiguous_180
    entries = [
        (phase == UNASSIGNED, "unassigned", UNASSIGNED_COLOUR),
        (phase == NO_CRYSTAL, "no crystal", NO_CRYSTAL_COLOUR),
    ]
    if ambiguous.any():
        entries.append((ambiguous, "ambiguous by 180°", AMBIGUOUS_COLOUR))
    names, colours = orientation_map.phase_names, phase_colours(orientation_map)
    if len(names) > 1:
        of_phase = [phase == index for index in range(len(names))]
        entries = [*zip(of_phase, names, colours, strict=True), *entries]
    axes.legend(
        handles=[
            Patch(
                facecolor=colour,
                edgecolor="black",
                linewidth=0.5,
                label=f"{name}  {100 * np.mean(pixels):.1f} %",
            )
            for pixels, name, colour in entries
        ],
        loc="upper left",
        frameon=False,
        fontsize=9,
        handlelength=1.2,
    )
    axes.set_axis_off()
