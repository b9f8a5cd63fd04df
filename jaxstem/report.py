# SPDX-License-Identifier: GPL-3.0-or-later
"""A map as one web page: each position with its pattern, its answer and the predicted disks.

`write_report` fills `data/report.html`, a page of plain HTML, CSS and JavaScript, with the map's
arrays and pictures. The file needs nothing else: no server, no network, no other file.

What it holds, and how much of it:

- maps, as pictures of one pixel a position, at most `most_drawn` positions along a side (of larger
  scans every other one, or every third, …), and the numbers of each of these positions;
- of at most `most_kept` of them, on a regular grid of rows and columns, the measured pattern (of a
  raw scan), the measured disks and those predicted for the best and the second-best answer;
- pole figures and densities in the IPF, histograms, colour keys, how the map was made.

Predicted disks are those of two-beam theory averaged over the illumination cone
(`likelihood.two_beam_intensity`): at the thickness that the map states, or where it states none
averaged over the thicknesses that verification considers. Patterns are shown in the lab frame: qx
down and qy to the right, as the axes x and y of the maps.

Arrays travel as base64 of zlib-compressed little-endian numbers, quantised to 16 bits (angles to
0.006°), patterns as 8-bit grey PNGs of square roots of counts, which is where counting noise is
equally large everywhere.

Shapes: `ny nx` positions drawn, `kept` positions with patterns and disks, `K` disks predicted.
"""

from __future__ import annotations

import base64
import html
import io
import itertools
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata, resources
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from jaxtyping import Float, Int, Num
from matplotlib.figure import Figure
from PIL import Image
from scipy.spatial.transform import Rotation

from jaxstem import __version__, crystal, maps
from jaxstem.crystal import Crystal
from jaxstem.cubes import Cube, read_cube
from jaxstem.disks import calibrated, find_disks, open_scan, progress_bar
from jaxstem.errors import InputError
from jaxstem.grains import bunge_angles, nearest_equivalents
from jaxstem.io import (
    DiskScan,
    DiskSource,
    OrientationMap,
    atomic_path,
    calibrate_disks,
    check_target,
    joined,
    read_map,
    source_of,
)
from jaxstem.kinematic import excitation_error
from jaxstem.likelihood import LikelihoodConfig, two_beam_intensity
from jaxstem.model import inverse_extinction
from jaxstem.probe import DetectConfig
from jaxstem.scattering import electron_wavelength

U_ISO = 0.0064
"""Mean square displacement [Å²] of `jaxstem train`; a map does not state its model's."""
CHUNK = 512
ABSENT = 65535
"""Where a 16-bit number is not known."""
SMALL_INDEX = 3
UNITS = {"k_max": "k_max (1/Å)", "voltage_kv": "voltage (kV)"}
PATTERNS_AN_IMAGE = 64
MOST_SIDE = 256
FAMILIES = 3
MOST_IN_TEXTURE = 1000
DENSITY_GRID = 81


@dataclass(frozen=True)
class ReportConfig:
    """most_drawn: positions along a side of the maps; most_kept: positions with pattern and disks;
    pattern_pixels: of all patterns together, which are binned to it; n_predicted: disks predicted
    for an answer; weakest: of them, as a share of the incident beam.
    """

    most_drawn: int = 512
    most_kept: int = 4096
    pattern_pixels: int = 18_000_000
    n_predicted: int = 32
    weakest: float = 0.002


class Predicted(NamedTuple):
    """Disks that an orientation predicts, strongest first.

    reflection: number in `crystal.reflections` of its phase, `ABSENT` beyond the last; strength:
    0 … 255, the logarithm of the intensity from the weakest that counts to the whole beam.
    """

    reflection: Int[np.ndarray, "kept K"]
    strength: Int[np.ndarray, "kept K"]


class Patterns(NamedTuple):
    """Patterns as PNGs of `PATTERNS_AN_IMAGE` each side by side, and where they lie in q.

    side: (rows, columns) of a pattern; frame: q = M (row, column) + c of pixel centres, as
    (M00, M01, M10, M11, c0, c1) in 1/Å.
    """

    images: list[bytes]
    side: tuple[int, int]
    frame: Float[np.ndarray, "kept 6"]


def write_report(
    map_file: str | Path,
    out: str | Path,
    scan: str | Path | None = None,
    overwrite: bool = False,
    calibration: Mapping[str, Any] | None = None,
    config: ReportConfig | None = None,
    progress: bool | None = None,
) -> None:
    """Write the page for a map that `jaxstem map` made, with what was measured if `scan` is given.

    `scan` is raw (patterns and disks are shown) or disks, as `jaxstem map` takes them, and entries
    of `calibration` replace those of its file, as in `read_cube`; `progress`: show a bar while
    disks are found (None: on a terminal). Raises InputError where
    `out` exists and `overwrite` is False, for a map that does not state its voltage or k_max, for a
    scan of another shape than the map, and as `read_map` and the readers of scans do.
    """
    config = config or ReportConfig()
    out = Path(out)
    for given in (Path(map_file), *([Path(scan)] if scan else [])):
        if out.exists() and given.exists() and out.samefile(given):
            raise InputError(f"{out} is {given} itself; give the report another name.")
    check_target(out, overwrite)
    whole = read_map(map_file)
    for name in ("voltage_kv", "k_max"):
        if not isinstance(whole.attributes.get(name), int | float):
            raise InputError(f"{map_file} does not state its {name}; make it with 'jaxstem map'.")
    every = max(1, math.ceil(max(whole.phase.shape) / config.most_drawn))
    drawn = maps.thinned(whole, every)
    apart = _grid_step(drawn.phase.shape, config.most_kept)
    kept = maps.thinned(drawn, apart)
    measured, patterns = None, None
    if scan is not None:
        measured, patterns = _measured(
            scan, whole.phase.shape, every * apart, calibration or {}, config, progress
        )
    data = {
        "about": _about(whole, map_file, scan),
        "shape": drawn.phase.shape,
        "every": every,
        "apart": apart,
        "step_nm": _step_nm(drawn),
        "k_max": whole.attributes["k_max"],
        "disk_radius": _disk_radius(whole),
        "phases": [_phase(c, whole.attributes["k_max"]) for c in whole.crystals],
        "maps": _pictures(drawn),
        "numbers": _numbers(drawn),
        "predicted": [_packed_predictions(kept, which, config) for which in ("", "second_")],
        "absent": ABSENT,
        "per_image": PATTERNS_AN_IMAGE,
        "measured": measured and _packed_disks(measured),
        "patterns": patterns
        and {
            "images": [_base64(image) for image in patterns.images],
            "side": patterns.side,
            "frame": _pack(patterns.frame, np.float32),
        },
        "figures": _figures(drawn),
    }
    page = resources.files("jaxstem").joinpath("data/report.html").read_text(encoding="utf-8")
    # "<" would let a name in the data end the script element
    text = json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    page = page.replace("{{title}}", html.escape(Path(map_file).name)).replace("{{data}}", text)
    with atomic_path(out, overwrite) as temporary:
        temporary.write_text(page, encoding="utf-8")


def predict(
    orientation: Float[np.ndarray, "kept 3 3"],
    thickness: Float[np.ndarray, " kept"],
    unit_cell: Crystal,
    voltage_kv: float,
    k_max: float,
    config: ReportConfig,
) -> Predicted:
    """The disks of two-beam theory for orientations of one crystal.

    `thickness` [Å], NaN: averaged over those of `LikelihoodConfig`; `k_max` [1/Å].
    """
    found = crystal.reflections(unit_cell, k_max, U_ISO)
    g = jnp.asarray(found.g, jnp.float32)
    inverse = inverse_extinction(unit_cell, found.structure_factor, voltage_kv)
    inverse = jnp.asarray(inverse, jnp.float32)
    wavelength = electron_wavelength(1e3 * voltage_kv)
    several = np.asarray(LikelihoodConfig().thicknesses())
    thicknesses = np.where(np.isnan(thickness)[:, None], several, thickness[:, None])
    n_disks = min(config.n_predicted, len(g))
    index, value = [], []
    for start in range(0, len(orientation), CHUNK):
        part = slice(start, start + CHUNK)
        room = [(0, CHUNK - len(orientation[part]))]
        top, which = _strongest(
            jnp.asarray(np.pad(orientation[part], [*room, (0, 0), (0, 0)]), jnp.float32),
            jnp.asarray(np.pad(thicknesses[part], [*room, (0, 0)]), jnp.float32),
            g,
            inverse,
            wavelength,
            n_disks,
        )
        value.append(np.asarray(top)[: len(orientation[part])])
        index.append(np.asarray(which)[: len(orientation[part])])
    value = np.concatenate(value) if value else np.zeros((0, n_disks))
    index = np.concatenate(index) if index else np.zeros((0, n_disks), int)
    strength = 255 * (1 - np.log(np.maximum(value, 1e-9)) / np.log(config.weakest))
    seen = value >= config.weakest
    return Predicted(np.where(seen, index, ABSENT), np.where(seen, np.round(strength), 0))


@jax.jit(static_argnames="n_disks")
def _strongest(orientation, thickness, g, inverse, wavelength, n_disks):
    g_lab = jnp.einsum("...ji,nj->...ni", orientation, g, precision="highest")
    s = excitation_error(g_lab, wavelength)
    q = jnp.hypot(g_lab[..., 0], g_lab[..., 1])
    semi_angle = LikelihoodConfig().semi_angle
    at = lambda t: two_beam_intensity(s, inverse, q, t[:, None], semi_angle)  # noqa: E731
    return jax.lax.top_k(jax.lax.map(at, thickness.T).mean(axis=0), n_disks)


def zone_axes(
    orientation: Float[np.ndarray, "m 3 3"], unit_cell: Crystal
) -> tuple[list[str], Int[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """The directions of small indices nearest to the beam: their names ⟨uvw⟩, the number of each
    orientation's, and the angle [degrees] between it and the beam.

    Symmetric equivalents share a name: the one with the fewest negative and the smallest indices.
    On hexagonal axes names have four indices.
    """
    span = range(-SMALL_INDEX, SMALL_INDEX + 1)
    index = np.array([i for i in itertools.product(span, repeat=3) if math.gcd(*i) == 1])
    direction = index @ unit_cell.lattice
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    symmetry = crystal.operations(unit_cell)
    equivalent = np.einsum("nij,mj->mni", np.concatenate([symmetry, -symmetry]), direction)
    hexagonal = maps.has_hexagonal_axes(unit_cell.lattice)
    names, of = [], np.zeros(len(index), int)
    for number, images in enumerate(equivalent):
        family = index[(images @ direction.T).max(axis=0) > 1 - 1e-6].tolist()
        best = min(family, key=lambda i: (sum(x < 0 for x in i), sum(map(abs, i)), i))
        name = "⟨" + " ".join(map(_barred, maps.four_indices(*best) if hexagonal else best)) + "⟩"
        if name not in names:
            names.append(name)
        of[number] = names.index(name)
    nearest, cosine = np.zeros(len(orientation), int), np.zeros(len(orientation))
    for start in range(0, len(orientation), CHUNK):
        part = slice(start, start + CHUNK)
        closeness = orientation[part, :, 2] @ direction.T
        nearest[part], cosine[part] = of[closeness.argmax(axis=1)], closeness.max(axis=1)
    return names, nearest, np.rad2deg(np.arccos(np.clip(cosine, -1, 1)))


def _barred(index: int) -> str:
    return str(index) if index >= 0 else f"{-index}\u0305"


def _grid_step(shape: tuple[int, int], most: int) -> int:
    """Of how many rows and columns each the first is taken, so that at most `most` are."""
    step = 1
    while math.prod(-(-n // step) for n in shape) > most:
        step += 1
    return step


def _step_nm(orientation_map: OrientationMap) -> float | None:
    length = maps.in_metres(orientation_map.scan_step, orientation_map.scan_units)
    return None if length is None else 1e9 * length


def _disk_radius(orientation_map: OrientationMap) -> float:
    """Radius [1/Å] of a disk: the convergence semi-angle by the wavelength."""
    wavelength = electron_wavelength(1e3 * orientation_map.attributes["voltage_kv"])
    return 1e-3 * LikelihoodConfig().semi_angle / wavelength


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _pack(values: np.ndarray, kind: type) -> str:
    little = np.ascontiguousarray(values, np.dtype(kind).newbyteorder("<"))
    return _base64(zlib.compress(little.tobytes(), 9))


def _pack_16(values: np.ndarray, unit: float) -> str:
    """Multiples of `unit` as 16-bit numbers; `ABSENT` where not finite."""
    finite = np.isfinite(values)
    scaled = np.round(np.where(finite, values, 0) / unit)
    return _pack(np.where(finite, np.clip(scaled, 0, ABSENT - 1), ABSENT), np.uint16)


def _numbers(drawn: OrientationMap) -> dict[str, dict]:
    """The numbers of each position: arrays of 16 bits with their unit, phases of 8."""
    shape = drawn.phase.shape
    zone = np.full(shape, ABSENT)
    zone_angle, apart = np.full(shape, np.nan), np.full(shape, np.nan)
    for index, unit_cell in enumerate(drawn.crystals):
        own = drawn.phase == index
        _, zone[own], zone_angle[own] = zone_axes(drawn.orientation[own], unit_cell)
        both = own & (drawn.second_phase == index)
        if both.any():
            first, second = (
                Rotation.from_matrix(matrix[both]).as_quat()
                for matrix in (drawn.orientation, drawn.second_orientation)
            )
            symmetry = crystal.operations(unit_cell)
            apart[both] = nearest_equivalents(first, second, symmetry)[1]
    sixteen = {
        "confidence": (drawn.confidence, 2e-5),
        "confidence_mod180": (drawn.confidence_mod180, 2e-5),
        "phase_confidence": (drawn.phase_confidence, 2e-5),
        "score": (drawn.score, 2e-5),
        "second_score": (drawn.second_score, 2e-5),
        "thickness": (drawn.thickness, 0.1),
        "n_disks": (drawn.n_disks, 1),
        "zone_angle": (zone_angle, 0.005),
        "second_angle": (apart, 0.005),
        "zone": (np.where(zone == ABSENT, np.nan, zone), 1),
    }
    for prefix, matrix in (("", drawn.orientation), ("second_", drawn.second_orientation)):
        known = np.isfinite(matrix).all((-1, -2))
        euler = np.full((*shape, 3), np.nan)
        euler[known] = bunge_angles(matrix[known])
        for axis, name in enumerate(("phi1", "Phi", "phi2")):
            sixteen[prefix + name] = (euler[..., axis], 0.0055)
    packed = {
        name: {"data": _pack_16(*values), "unit": values[1]} for name, values in sixteen.items()
    }
    for name in ("phase", "second_phase"):
        packed[name] = {"data": _pack(getattr(drawn, name), np.int8)}
    return packed


def _phase(unit_cell: Crystal, k_max: float) -> dict:
    found = crystal.reflections(unit_cell, k_max, U_ISO)
    names, _, _ = zone_axes(np.zeros((0, 3, 3)), unit_cell)
    key = Figure(figsize=(2.6, 2.3), facecolor="white")
    maps.draw_key(key.add_axes((0.21, 0.13, 0.58, 0.62)), unit_cell)
    return {
        "name": unit_cell.name,
        "group": unit_cell.laue_group,
        "zones": names,
        "g": _pack(found.g, np.float32),
        "hkl": _pack(found.hkl, np.int8),
        "key": _png(key),
    }


def _pictures(drawn: OrientationMap) -> list[dict]:
    """Each map as a PNG of one pixel a position, with its title and what its colours mean."""
    assigned = drawn.phase >= 0
    colours = maps.phase_colours(drawn)
    special = {
        "unassigned": (drawn.phase == maps.UNASSIGNED, maps.UNASSIGNED_COLOUR),
        "no crystal": (drawn.phase == maps.NO_CRYSTAL, maps.NO_CRYSTAL_COLOUR),
    }
    unknown = (0.85, 0.85, 0.85)

    def picture(name, title, rgb, swatches=(), scale=None):
        for pixels, colour in special.values():
            rgb[pixels] = colour
        others = [(label, colour) for label, (pixels, colour) in special.items() if pixels.any()]
        return {
            "name": name,
            "title": title,
            "image": _image(np.uint8(np.round(255 * rgb))),
            "swatches": [(label, _hex(colour)) for label, colour in [*swatches, *others]],
            "scale": scale,
        }

    def scalar(name, title, values, low, high, label, cmap="viridis", over=()):
        known = np.isfinite(values) & assigned
        where = np.clip((np.where(known, values, low) - low) / max(high - low, 1e-9), 0, 1)
        rgb = np.where(known[..., None], matplotlib.colormaps[cmap](where)[..., :3], unknown)
        swatches = [("not known", unknown)] if (assigned & ~known).any() else []
        for text, pixels, colour in over:
            rgb[pixels] = colour
            swatches += [(text, colour)] if pixels.any() else []
        stops = [_hex(colour) for colour in matplotlib.colormaps[cmap](np.linspace(0, 1, 17))]
        ticks = [f"{x:g}" for x in (low, (low + high) / 2, high)]
        scale = {"stops": stops, "ticks": ticks, "label": label}
        return picture(name, title, rgb, swatches, scale)

    pictures = [
        picture(f"ipf-{letter}", title, maps.rgb_map(drawn, axis))
        for letter, title, axis in (
            ("z", "IPF out of plane (z)", maps.LAB_Z),
            ("x", "IPF in plane (x, down)", maps.LAB_X),
            ("y", "IPF in plane (y, right)", maps.LAB_Y),
        )
    ]
    of_phase = np.array([*colours, maps.NO_CRYSTAL_COLOUR, maps.UNASSIGNED_COLOUR])
    share = [
        f"{n} {100 * np.mean(drawn.phase == i):.1f} %" for i, n in enumerate(drawn.phase_names)
    ]
    swatches = list(zip(share, colours, strict=True))
    pictures.append(picture("phase", "Phase", of_phase[drawn.phase], swatches))
    ambiguous = [("ambiguous by 180°", drawn.ambiguous_180, maps.AMBIGUOUS_COLOUR)]
    label = "probability of < 5° error"
    pictures.append(
        scalar("confidence", "Confidence", drawn.confidence, 0, 1, label, over=ambiguous)
    )
    pictures.append(scalar("score", "Score", drawn.score, 0, 1, "cosine score"))
    if np.isfinite(drawn.thickness).any():
        low, high = np.nanpercentile(drawn.thickness, [0, 100]).round(-1)
        title = "Thickness"
        pictures.append(scalar("thickness", title, drawn.thickness, low, high, "Å", "cividis"))
    return pictures


def _packed_predictions(kept: OrientationMap, which: str, config: ReportConfig) -> dict:
    """Predicted disks of the best ("") or second-best ("second_") answer of the kept positions."""
    phase = getattr(kept, f"{which}phase").ravel()
    orientation = getattr(kept, f"{which}orientation").reshape(-1, 3, 3)
    reflection = np.full((len(phase), config.n_predicted), ABSENT)
    strength = np.zeros((len(phase), config.n_predicted), int)
    for index, unit_cell in enumerate(kept.crystals):
        own = (phase == index) & np.isfinite(orientation).all((-1, -2))
        found = predict(
            orientation[own],
            kept.thickness.ravel()[own],
            unit_cell,
            kept.attributes["voltage_kv"],
            kept.attributes["k_max"],
            config,
        )
        n_disks = found.reflection.shape[1]
        reflection[own, :n_disks], strength[own, :n_disks] = found
    return {
        "size": config.n_predicted,
        "reflection": _pack(reflection, np.uint16),
        "strength": _pack(strength, np.uint8),
    }


def _packed_disks(disks: DiskScan) -> dict:
    """Measured disks; positions to 0.0001 1/Å, intensities as shares of all at the position."""
    position = np.repeat(np.arange(len(disks.offsets) - 1), np.diff(disks.offsets))
    positive = np.maximum(disks.intensity, 0)
    total = np.bincount(position, positive, minlength=len(disks.offsets) - 1)
    order = np.lexsort((-positive, position))
    clipped = [np.clip(np.round(1e4 * q[order]), -32768, 32767) for q in (disks.qx, disks.qy)]
    share = positive / np.maximum(total[position], 1e-30)
    return {
        "offsets": _pack(disks.offsets, np.uint32),
        "qx": _pack(clipped[0], np.int16),
        "qy": _pack(clipped[1], np.int16),
        "share": _pack_16(share[order], 2e-5),
        "unit": 2e-5,
    }


def _measured(
    scan: str | Path,
    shape: tuple[int, int],
    every: int,
    calibration: Mapping[str, Any],
    config: ReportConfig,
    progress: bool | None,
) -> tuple[DiskScan, Patterns | None]:
    """Measured disks, and patterns of a raw scan, at each `every`-th row and column."""
    opened = _opened(scan, shape, calibration)
    if tuple(opened.scan_shape) != tuple(shape):
        raise InputError(
            f"{scan} has {' × '.join(map(str, opened.scan_shape))} positions and the map "
            f"{' × '.join(map(str, shape))}; give the scan that was mapped."
        )
    if isinstance(opened, DiskSource):
        return _thinned_disks(opened, every), None
    cube = thinned_cube(opened, every)
    with progress_bar(cube, progress) as advance:
        detections = find_disks(cube, DetectConfig(), progress=advance)
    disks = calibrated(detections)
    return disks, _patterns(cube, detections.origin, config)


def _opened(
    scan: str | Path, shape: tuple[int, int], calibration: Mapping[str, Any]
) -> Cube | DiskSource:
    """The patterns of a file if it has any, else its disks."""
    # some formats do not state the scan's shape, and others refuse to be told
    for given in (None, shape):
        try:
            return read_cube(scan, given, calibration)
        except InputError:
            pass
    return open_scan(scan, calibration=calibration)


def thinned_cube(cube: Cube, every: int) -> Cube:
    """The cube at each `every`-th scan row and column."""
    if every == 1:
        return cube
    n_rows, n_columns = (-(-n // every) for n in cube.scan_shape)

    def read(rows: slice, columns: slice) -> np.ndarray:
        chosen = range(*rows.indices(n_rows))
        lines = [
            cube.read(slice(r * every, r * every + 1), slice(None))[0, ::every][columns]
            for r in chosen
        ]
        return np.stack(lines)

    calibration = {
        name: value[::every, ::every] if np.shape(value) == cube.scan_shape else value
        for name, value in cube.calibration.items()
    }
    return replace(
        cube, shape=(n_rows, n_columns, *cube.detector_shape), read=read, calibration=calibration
    )


def _thinned_disks(source: DiskSource, every: int) -> DiskScan:
    rows = []
    for row in range(0, source.scan_shape[0], every):
        line = source.read(row, row + 1)
        if every > 1:
            columns = [
                source_of(replace(line, scan_shape=(line.scan_shape[1], 1))).read(j, j + 1)
                for j in range(0, line.scan_shape[1], every)
            ]
            line = replace(joined(columns), scan_shape=(1, len(columns)))
        rows.append(line)
    return joined(rows)


def _patterns(
    cube: Cube, origin: Float[np.ndarray, "rows columns 2"], config: ReportConfig
) -> Patterns:
    """The patterns of a cube, binned and rooted, and their frames in q."""
    n_positions = math.prod(cube.scan_shape)
    most_side = min(MOST_SIDE, math.sqrt(config.pattern_pixels / n_positions))
    binning = max(1, math.ceil(max(cube.detector_shape) / most_side))
    side = tuple(n // binning for n in cube.detector_shape)
    rooted = np.empty((n_positions, *side), np.float32)
    for row, line in enumerate(rooted.reshape(*cube.scan_shape, *side)):
        line[:] = _binned(cube.rows(row, row + 1)[0], binning)
    rooted -= max(0.0, float(np.percentile(rooted[:: max(1, n_positions // 256)], 1)))
    np.sqrt(np.maximum(rooted, 0, out=rooted), out=rooted)
    rooted *= 255 / max(float(rooted.max()), 1e-9)
    grey = np.round(rooted).astype(np.uint8)
    groups = range(0, n_positions, PATTERNS_AN_IMAGE)
    images = [_grey_png(np.hstack(grey[g : g + PATTERNS_AN_IMAGE])) for g in groups]
    return Patterns(images, side, _frames(cube, origin, binning))


def _binned(patterns: Num[np.ndarray, "n height width"], binning: int) -> np.ndarray:
    height, width = (n // binning for n in patterns.shape[1:])
    cut = np.asarray(patterns[:, : height * binning, : width * binning], np.float32)
    return cut.reshape(-1, height, binning, width, binning).sum(axis=(2, 4))


def _frames(
    cube: Cube, origin: Float[np.ndarray, "rows columns 2"], binning: int
) -> Float[np.ndarray, "kept 6"]:
    """`Patterns.frame`, by the calibration that disks undergo."""
    centre = origin.reshape(-1, 1, 2)
    corners = centre + np.array([[0, 0], [1, 0], [0, 1]])
    points = np.rec.fromarrays([corners[..., 0].ravel(), corners[..., 1].ravel()], names="qx,qy")
    calibration = {**cube.calibration, "qx0": origin[..., 0], "qy0": origin[..., 1]}
    counts = np.full(len(centre), 3)
    q = calibrate_disks(points, counts, cube.scan_shape, calibration, cube.source)
    q = np.stack(q, axis=-1).reshape(-1, 3, 2)
    matrix = np.stack([q[:, 1] - q[:, 0], q[:, 2] - q[:, 0]], axis=-1)
    # the centre of binned pixel 0 is that of pixel (binning − 1) / 2
    first = np.full(2, (binning - 1) / 2) - origin.reshape(-1, 2)
    offset = np.einsum("nij,nj->ni", matrix, first)
    return np.concatenate([binning * matrix.reshape(-1, 4), offset], axis=1)


def _figures(drawn: OrientationMap) -> list[dict]:
    figures = [{"title": "Scores and confidences", "image": _png(_histograms(drawn))}]
    for index, unit_cell in enumerate(drawn.crystals):
        own = drawn.orientation[drawn.phase == index]
        if len(own):
            picture = texture(
                own[:: -(-len(own) // MOST_IN_TEXTURE)].astype(float),
                unit_cell,
                drawn.attributes["k_max"],
            )
            title = f"{unit_cell.name}: pole figures, lab frame; density in the IPF for z"
            figures.append({"title": title, "image": _png(picture)})
    return figures


def texture(orientation: Float[np.ndarray, "m 3 3"], unit_cell: Crystal, k_max: float) -> Figure:
    """Pole figures of the planes of largest spacing, and the density of the beam's direction in
    the inverse pole figure; in multiples of a random distribution.

    Pole figures show the upper hemisphere, stereographic, lab x down and lab y to the right.
    """
    families = _families(unit_cell, k_max)
    picture = Figure(figsize=(2.7 * (len(families) + 1), 3.1), facecolor="white")
    panels = picture.subplots(1, len(families) + 1)
    symmetry = crystal.operations(unit_cell)
    side = np.linspace(-1, 1, DENSITY_GRID)
    circle = np.stack([np.cos(2 * np.pi * side), np.sin(2 * np.pi * side)], axis=-1)
    right, up = np.meshgrid(side, side)
    lab = maps.from_stereographic(np.stack([-up, right], axis=-1))  # lab x down, lab y right
    for axes, (name, normal) in zip(panels[:-1], families, strict=True):
        poles = np.unique(np.round(symmetry @ normal, 6), axis=0)
        directions = np.einsum("mji,pj->mpi", orientation, poles).reshape(-1, 3)
        values = multiples_of_random(np.concatenate([directions, -directions]), lab)
        values[np.hypot(right, up) > 1] = np.nan
        _draw_density(picture, axes, values, (-1, 1, -1, 1), circle, name)
        axes.text(1.07, 0, "y", style="italic", va="center")
        axes.text(0, -1.07, "x", style="italic", ha="center", va="top")
    outline, normals, _ = maps.sector(unit_cell.laue_group)
    low, high = outline.min(0), outline.max(0)
    right, up = np.meshgrid(*np.linspace(low, high, DENSITY_GRID).T)
    standard = maps.from_stereographic(np.stack([right, up], axis=-1))
    turn = maps.setting_rotation(symmetry, unit_cell.laue_group)
    beam = np.einsum("nij,mj->nmi", turn @ symmetry, orientation[:, :, 2]).reshape(-1, 3)
    values = multiples_of_random(np.concatenate([beam, -beam]), standard)
    values[(standard @ normals.T < -1e-9).any(-1)] = np.nan
    extent = (low[0], high[0], low[1], high[1])
    _draw_density(picture, panels[-1], values, extent, outline, "IPF, z")
    return picture


def multiples_of_random(
    directions: Float[np.ndarray, "m 3"], at: Float[np.ndarray, "... 3"], sigma_deg: float = 4.0
) -> Float[np.ndarray, "..."]:
    """Density of unit vectors over the sphere, in multiples of that of evenly spread ones.

    With the kernel of von Mises and Fisher, κ exp(κ (cos − 1)) / (1 − exp(−2 κ)) × 2 with κ = 1/σ²
    (N. I. Fisher, T. Lewis & B. J. J. Embleton, Statistical Analysis of Spherical Data, 1987),
    which is round everywhere on the sphere.
    """
    kappa = 1 / np.deg2rad(sigma_deg) ** 2
    points = at.reshape(-1, 3).astype(np.float32)
    vectors = directions.astype(np.float32)
    total = np.zeros(len(points))
    for start in range(0, len(vectors), CHUNK):
        cosine = points @ vectors[start : start + CHUNK].T
        total += np.exp(kappa * (cosine - 1)).sum(axis=1)
    scale = 2 * kappa / (1 - np.exp(-2 * kappa)) / len(vectors)
    return (scale * total).reshape(at.shape[:-1])


def _draw_density(picture, axes, values, extent, outline, title) -> None:
    image = axes.imshow(
        values, cmap="magma_r", vmin=0, extent=extent, origin="lower", interpolation="bilinear"
    )
    axes.plot(*np.vstack([outline, outline[:1]]).T, color="black", linewidth=1.5, clip_on=False)
    axes.set_axis_off()
    axes.set_title(title, fontsize=10)
    bar = picture.colorbar(image, ax=axes, orientation="horizontal", shrink=0.7, pad=0.12)
    bar.ax.tick_params(labelsize=8)
    bar.set_label("multiples of random", fontsize=8)


def _families(unit_cell: Crystal, k_max: float) -> list[tuple[str, Float[np.ndarray, " 3"]]]:
    """The first reflections that are not of one direction, as names {hkl} and unit normals."""
    found = crystal.reflections(unit_cell, k_max)
    symmetry = crystal.operations(unit_cell)
    families: list[tuple[str, np.ndarray]] = []
    for hkl, g in zip(found.hkl, found.g, strict=True):
        normal = g / np.linalg.norm(g)
        if all(np.abs(symmetry @ normal @ other).max() < 1 - 1e-6 for _, other in families):
            families.append(("{" + " ".join(map(_barred, hkl.tolist())) + "}", normal))
        if len(families) == FAMILIES:
            break
    return families


def _histograms(drawn: OrientationMap) -> Figure:
    picture = Figure(figsize=(8, 2.6), facecolor="white", layout="constrained")
    of_phase = [drawn.phase == index for index in range(len(drawn.crystals))]
    for axes, values, label in zip(
        picture.subplots(1, 2),
        (drawn.score, drawn.confidence),
        ("cosine score", "confidence (probability of < 5° error)"),
        strict=True,
    ):
        shown = [values[own & np.isfinite(values)] for own in of_phase]
        axes.hist(
            shown,
            bins=np.linspace(0, 1, 41),
            stacked=True,
            color=maps.phase_colours(drawn),
            label=drawn.phase_names,
        )
        axes.set_xlabel(label)
        axes.set_ylabel("positions")
        axes.spines[["top", "right"]].set_visible(False)
        if len(shown) > 1:
            axes.legend(frameon=False, fontsize=9)
    return picture


def _about(whole: OrientationMap, map_file, scan) -> list[tuple[str, str]]:
    """How map and report were made, as rows of a table."""
    ny, nx = whole.phase.shape
    step = f", step {whole.scan_step:g} {whole.scan_units}" if _step_nm(whole) else ""
    counts = {
        "assigned": whole.phase >= 0,
        "no crystal": whole.phase == maps.NO_CRYSTAL,
        "unassigned": whole.phase == maps.UNASSIGNED,
        "ambiguous by 180°": whole.ambiguous_180,
    }
    versions = [f"{name} {metadata.version(name)}" for name in ("orix", "matplotlib", "jax")]
    return [
        ("map", f"{Path(map_file).name}: {ny} × {nx} positions{step}"),
        ("positions", ", ".join(f"{100 * np.mean(x):.1f} % {name}" for name, x in counts.items())),
        *(
            (UNITS.get(name, name.replace("_", " ")), f"{x}")
            for name, x in whole.attributes.items()
        ),
        *([("patterns from", str(scan))] if scan else []),
        ("report by", f"jaxstem {__version__}, {', '.join(versions)}"),
    ]


def _hex(colour: Sequence[float]) -> str:
    return "#" + "".join(f"{round(255 * c):02x}" for c in colour[:3])


def _png(picture: Figure) -> str:
    buffer = io.BytesIO()
    picture.savefig(buffer, format="png", dpi=160)
    return _image(np.asarray(Image.open(buffer).convert("RGB")))


def _image(rgb: Int[np.ndarray, "height width 3"]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "PNG")
    return "data:image/png;base64," + _base64(buffer.getvalue())


def _grey_png(grey: Int[np.ndarray, "height width"]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "PNG")
    return buffer.getvalue()
