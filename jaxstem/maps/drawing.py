# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures of an orientation map.

A map is drawn as its arrays lie: axis 0 (lab x) runs down, axis 1 (lab y) to the right, so lab z
points out of the page, towards the electron source; the reader looks along the beam. docs/maps.md
has the table. Shapes: `ny nx` scan positions.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.transforms import Affine2D, ScaledTranslation

from jaxstem.errors import InputError
from jaxstem.files.map_schema import MAP_DATASETS, SINGLE
from jaxstem.files.orientation_map import NO_CRYSTAL, UNASSIGNED, OrientationMap
from jaxstem.files.units import METRES, in_metres
from jaxstem.maps.colours import (
    AMBIGUOUS_COLOUR,
    LAB_X,
    LAB_Z,
    NO_CRYSTAL_COLOUR,
    UNASSIGNED_COLOUR,
    draw_key,
    phase_colours,
    rgb_map,
)
from jaxstem.runtime.paths import atomic_path

FIGURE_SUFFIXES = (".png", ".svg", ".pdf")

_MOST_DRAWN = 1024
"""Positions along a side of a picture."""


def figure(orientation_map: OrientationMap, path: str | Path, overwrite: bool = False) -> None:
    """Write the map as PNG, SVG or PDF, by the suffix: IPF colours for lab z and x, confidence,
    phases, keys, scale bar.

    Each position covers a whole number of dots, about 300 an inch. Of a map with more than
    `_MOST_DRAWN` positions along a side every other one is drawn, or every third, and so on. Text
    in SVG and PDF is outlines and embedded TrueType. Appears whole under its name or not at all.
    Raises InputError for another suffix, and when the file exists and `overwrite` is False.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in FIGURE_SUFFIXES:
        raise InputError(f"{path}: give a name that ends in {', '.join(FIGURE_SUFFIXES)}.")
    with atomic_path(path, overwrite) as temporary:
        every = -(-max(orientation_map.phase.shape) // _MOST_DRAWN)
        drawn = thinned(orientation_map, max(every, 1))
        picture = draw(drawn)
        with rc_context({"pdf.fonttype": 42, "svg.hashsalt": "jaxstem"}):
            picture.savefig(temporary, format=suffix[1:], dpi=_resolution(picture, drawn))


def thinned(orientation_map: OrientationMap, every: int) -> OrientationMap:
    """The map at each `every`-th row and column, its step as much larger."""
    if every == 1:
        return orientation_map
    arrays = {name: getattr(orientation_map, name) for name in (*MAP_DATASETS, *SINGLE)}
    arrays = {name: x[::every, ::every] for name, x in arrays.items() if x is not None}
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


def _round_length(length: float) -> float:
    power = 10.0 ** math.floor(math.log10(length))
    return power * max(m for m in (1, 2, 5) if m * power <= length * (1 + 1e-9))


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
