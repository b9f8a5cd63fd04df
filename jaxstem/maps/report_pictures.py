# SPDX-License-Identifier: GPL-3.0-or-later
"""The maps of a report as pictures of one pixel a position, with what their colours mean.

A picture is a mapping with its name, title, image (a data URI), swatches (label and colour) and
colour scale. Where the map keeps what each pattern says alone, pictures of orientation, phase and
confidence have a second image and its swatches under "alone", and one more shows where the scan
overruled the pattern.

Shapes: `ny nx` positions drawn, rgb 0 … 1 in the last axis.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from jaxtyping import Bool, Float

from jaxstem.files.orientation_map import NO_CRYSTAL, UNASSIGNED, OrientationMap
from jaxstem.maps.colours import (
    AMBIGUOUS_COLOUR,
    LAB_X,
    LAB_Y,
    LAB_Z,
    NO_CRYSTAL_COLOUR,
    PHASE_COLOURS,
    UNASSIGNED_COLOUR,
    phase_colours,
    rgb_map,
)
from jaxstem.maps.overruling import Overruled
from jaxstem.maps.payload import hex_colour, image_uri

_UNKNOWN = (0.85, 0.85, 0.85)

_OVERRULED_COLOURS = tuple(PHASE_COLOURS[i] for i in (5, 4, 2, 3))
"""Of `_of_overruled`'s kinds: none of the first two phases'."""

Swatches = Sequence[tuple[str, Sequence[float]]]


def pictures(
    drawn: OrientationMap,
    alone: OrientationMap | None = None,
    apart: Overruled | None = None,
) -> list[dict]:
    """The pictures of a map: of its orientations, phases and confidences, and of what else it has.

    alone: the map of what each pattern says alone, and apart: where the scan overruled these; both
    or neither.
    """
    shown = _of_answers(drawn)
    if alone is not None:
        for entry, other in zip(shown, _of_answers(alone), strict=True):
            entry["alone"] = {key: other[key] for key in ("image", "swatches")}
        shown.append(_of_overruled(apart))
    shown.append(_scalar(drawn, "score", "Score", drawn.score, (0.0, 1.0), "cosine score"))
    if np.isfinite(drawn.explained_light).any():
        label, light = "share of the light above background", drawn.explained_light
        shown.append(_scalar(drawn, "explained_light", "Explained light", light, (0.0, 1.0), label))
    if np.isfinite(drawn.thickness).any():
        thick = drawn.thickness
        low, high = (float(x) for x in np.nanpercentile(thick, [0, 100]).round(-1))
        limits = low, high
        shown.append(_scalar(drawn, "thickness", "Thickness", thick, limits, "Å", cmap="cividis"))
    return shown


def told_overruled(apart: Overruled) -> str:
    """How many positions the scan overruled, and in what, as one sentence."""
    n, total = int(apart.positions.sum()), apart.positions.size
    turned, phase = int(apart.half_turn.sum()), int(apart.other_phase.sum())
    crystal = int(_in_crystal(apart).sum())
    told = {
        "in the orientation by more than 5°": n - phase - crystal,
        "in the phase": phase,
        "in whether there is a crystal": crystal,
    }
    parts = [f"{what} at {count}" for what, count in told.items() if count]
    if turned:
        turn = "half a turn about the beam, which IPF colours do not show"
        parts[0] += f" ({turned} of them by {turn})"
    overruled = (
        f"The scan overruled the pattern at {n} of {total} positions ({100 * n / total:.1f} %)"
    )
    return f"{overruled}: {', '.join(parts)}." if n else f"{overruled}."


def _in_crystal(apart: Overruled) -> Bool[np.ndarray, "ny nx"]:
    """Where one of the two sees a crystal and the other none."""
    return apart.positions & np.isnan(apart.angle) & ~apart.other_phase


def _of_answers(drawn: OrientationMap) -> list[dict]:
    """Orientations, phases and confidences."""
    shown = [
        _picture(drawn, f"ipf-{letter}", title, rgb_map(drawn, axis))
        for letter, title, axis in (
            ("z", "IPF out of plane (z)", LAB_Z),
            ("x", "IPF in plane (x, down)", LAB_X),
            ("y", "IPF in plane (y, right)", LAB_Y),
        )
    ]
    colours = phase_colours(drawn)
    of_phase = np.array([*colours, NO_CRYSTAL_COLOUR, UNASSIGNED_COLOUR])
    share = [_with_share(n, drawn.phase == i) for i, n in enumerate(drawn.phase_names)]
    swatches = list(zip(share, colours, strict=True))
    shown.append(_picture(drawn, "phase", "Phase", of_phase[drawn.phase], swatches))
    over = ("ambiguous by 180°", drawn.ambiguous_180, AMBIGUOUS_COLOUR)
    label, values = "probability of < 5° error", drawn.confidence
    shown.append(_scalar(drawn, "confidence", "Confidence", values, (0.0, 1.0), label, over))
    return shown


def _of_overruled(apart: Overruled) -> dict:
    kinds = {
        "another orientation": apart.positions & np.isfinite(apart.angle) & ~apart.half_turn,
        "turned by 180°": apart.half_turn,
        "another phase": apart.other_phase,
        "a crystal or none": _in_crystal(apart),
    }
    rgb = np.empty((*apart.positions.shape, 3))
    rgb[...] = _UNKNOWN
    swatches = [(_with_share("not overruled", ~apart.positions), _UNKNOWN)]
    for (label, pixels), colour in zip(kinds.items(), _OVERRULED_COLOURS, strict=True):
        rgb[pixels] = colour
        swatches += [(_with_share(label, pixels), colour)] if pixels.any() else []
    return _entry("overruled", "Overruled by the scan", rgb, swatches)


def _with_share(label: str, pixels: Bool[np.ndarray, "ny nx"]) -> str:
    return f"{label} {100 * np.mean(pixels):.1f} %"


def _scalar(
    drawn: OrientationMap,
    name: str,
    title: str,
    values: Float[np.ndarray, "ny nx"],
    limits: tuple[float, float],
    label: str,
    over: tuple[str, Bool[np.ndarray, "ny nx"], Sequence[float]] | None = None,
    cmap: str = "viridis",
) -> dict:
    """A number of each position between two limits; `over` is painted over it."""
    (low, high), assigned = limits, drawn.phase >= 0
    known = np.isfinite(values) & assigned
    where = np.clip((np.where(known, values, low) - low) / max(high - low, 1e-9), 0, 1)
    rgb = np.where(known[..., None], matplotlib.colormaps[cmap](where)[..., :3], _UNKNOWN)
    swatches = [("not known", _UNKNOWN)] if (assigned & ~known).any() else []
    if over is not None and over[1].any():
        text, pixels, colour = over
        rgb[pixels] = colour
        swatches.append((text, colour))
    stops = [hex_colour(colour) for colour in matplotlib.colormaps[cmap](np.linspace(0, 1, 17))]
    ticks = [f"{x:g}" for x in (low, (low + high) / 2, high)]
    scale = {"stops": stops, "ticks": ticks, "label": label}
    return _picture(drawn, name, title, rgb, swatches, scale)


def _picture(
    drawn: OrientationMap,
    name: str,
    title: str,
    rgb: Float[np.ndarray, "ny nx 3"],
    swatches: Swatches = (),
    scale: dict | None = None,
) -> dict:
    """A picture in which positions without an orientation have the colours they have in all."""
    special = (
        ("unassigned", drawn.phase == UNASSIGNED, UNASSIGNED_COLOUR),
        ("no crystal", drawn.phase == NO_CRYSTAL, NO_CRYSTAL_COLOUR),
    )
    for _, pixels, colour in special:
        rgb[pixels] = colour
    others = [(label, colour) for label, pixels, colour in special if pixels.any()]
    return _entry(name, title, rgb, [*swatches, *others], scale)


def _entry(
    name: str,
    title: str,
    rgb: Float[np.ndarray, "ny nx 3"],
    swatches: Swatches,
    scale: dict | None = None,
) -> dict:
    return {
        "name": name,
        "title": title,
        "image": image_uri(np.uint8(np.round(255 * rgb))),
        "swatches": [(label, hex_colour(colour)) for label, colour in swatches],
        "scale": scale,
    }
