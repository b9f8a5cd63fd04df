# SPDX-License-Identifier: GPL-3.0-or-later
"""A map as one web page: each position with its pattern, its answer and the predicted disks.

`write_report` fills `data/report.html`, a page of plain HTML, CSS and JavaScript, with the map's
arrays and pictures. The file needs nothing else: no server, no network, no other file.

What it holds, and how much of it:

- maps, as pictures of one pixel a position (`report_pictures`), at most `most_drawn` positions
  along a side (of larger scans every other one, or every third, …), and the numbers of each of
  these positions;
- where the map keeps what each pattern says alone, the pictures of that too, and of positions that
  the scan overruled the other answer, with the disks that it predicts;
- of at most `most_kept` of them, on a regular grid of rows and columns, the measured pattern (of a
  raw scan), the measured disks and those predicted for the best and the second-best answer;
- of these, if counts judged the map and the scan holds them, the counts that both answers predict
  and those that the pattern holds, reflection by reflection (`counted`);
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

import html
import json
import math
from dataclasses import fields, replace
from importlib import metadata, resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from scipy.spatial.transform import Rotation

from jaxstem.crystal.cell import Crystal, reciprocal_lattice, reflections, symmetry_operations
from jaxstem.detection.reading import ReadOptions, stored
from jaxstem.diffraction.settings import Microscope, Specimen
from jaxstem.errors import InputError
from jaxstem.files.distortion import corrected_scan, stored_distortion
from jaxstem.files.map_file import read_map
from jaxstem.files.map_schema import SINGLE
from jaxstem.files.orientation_map import NO_CRYSTAL, UNASSIGNED, OrientationMap
from jaxstem.files.units import in_metres
from jaxstem.maps.colours import draw_key, phase_colours
from jaxstem.maps.counted import Exposed, count, packed_counts
from jaxstem.maps.drawing import thinned
from jaxstem.maps.grains import bunge_angles
from jaxstem.maps.measured import PATTERNS_AN_IMAGE, measured_patterns, packed_disks
from jaxstem.maps.overruling import Overruled, overruled, single_answers
from jaxstem.maps.payload import ABSENT, figure_uri, pack, pack_16, to_base64
from jaxstem.maps.predicted import ReportConfig, predict
from jaxstem.maps.report_pictures import pictures, told_overruled
from jaxstem.maps.texture import texture_plots, zone_axes
from jaxstem.orientation.symmetry import nearest_equivalents
from jaxstem.runtime.paths import atomic_path, check_target
from jaxstem.version import __version__

_UNITS = {"k_max": "k_max (1/Å)", "voltage_kv": "voltage (kV)"}

_ANSWERS = ("", "second_")
"""The best answer and the second best, by what the map's names of it begin with."""

_MOST_IN_TEXTURE = 1000


def write_report(
    map_file: str | Path,
    out: str | Path,
    scan: str | Path | None = None,
    overwrite: bool = False,
    options: ReadOptions | None = None,
    config: ReportConfig | None = None,
    progress: bool | None = None,
) -> None:
    """Write the page for a map that `jaxstem map` made, with what was measured if `scan` is given.

    `scan` is raw (patterns and disks are shown) or disks, as `jaxstem map` takes them. It is opened
    as it was for the map, and where `options` say something else, as these do; `progress`: show a
    bar while disks are found (None: on a terminal). Raises InputError where `out` exists and
    `overwrite` is False, for options without a scan to which they matter, for a map that does not
    state its voltage or k_max, for a scan of another shape than the map, and as `read_map` and the
    readers of scans do.
    """
    config = config or ReportConfig()
    out = Path(out)
    for given in (Path(map_file), *([Path(scan)] if scan else [])):
        if out.exists() and given.exists() and out.samefile(given):
            raise InputError(f"{out} is {given} itself; give the report another name.")
    check_target(out, overwrite)
    options = options or ReadOptions()
    if scan is None:
        every_option = tuple(field.name for field in fields(ReadOptions))
        options.refuse(every_option, "No scan is named whose reading could be changed")
    whole = read_map(map_file)
    microscope, specimen, mapped_with = _settings(whole, map_file)
    every = max(1, math.ceil(max(whole.phase.shape) / config.most_drawn))
    drawn = thinned(replace(whole, **dict.fromkeys(SINGLE)), every)
    apart = _grid_step(drawn.phase.shape, config.most_kept)
    kept = thinned(drawn, apart)
    single = _single(whole, every)
    answers = [(kept, which) for which in _ANSWERS]
    if single:
        answers.append((thinned(single.other, apart), ""))
    measured, patterns, counts = None, None, None
    if scan is not None:
        by_counts = whole.attributes.get("judge") == "counts"
        opened = options.over(mapped_with)
        measured, patterns = measured_patterns(
            scan, whole.phase.shape, every * apart, opened, config, progress, by_counts
        )
        found = stored_distortion(whole.settings.get("distortion", {}))
        lines = (np.arange(0, n, every * apart) for n in whole.phase.shape)
        drift = found.drift_at(*lines, whole.phase.shape)
        measured = corrected_scan(measured, found, drift)
        patterns = patterns and patterns.corrected(found, drift.reshape(-1, 2))
        if measured.light is not None:
            beam = measured.instrument.with_stored_beam(whole.settings.get("beam", {}))
            measured = replace(measured, instrument=beam)
            exposed = Exposed.of(measured, whole.crystals, microscope.k_max)
            counts = [
                packed_counts(
                    count(
                        *_answers(kept, which),
                        kept.crystals,
                        exposed,
                        microscope,
                        specimen,
                        config.n_counted,
                    )
                )
                for which in _ANSWERS
            ]
    data = {
        "about": _about(whole, map_file, scan),
        "shape": drawn.phase.shape,
        "every": every,
        "apart": apart,
        "step_nm": _step_nm(drawn),
        "k_max": microscope.k_max,
        "disk_radius": microscope.disk_radius,
        "phases": [_phase(c, microscope.k_max, specimen.u_iso) for c in whole.crystals],
        "maps": pictures(drawn, single and single.alone, single and single.apart),
        "numbers": _numbers(drawn) | (_numbers_alone(single) if single else {}),
        "predicted": [
            _packed_predictions(*answer, microscope, specimen, config) for answer in answers
        ],
        "overruled": single and told_overruled(single.of_all),
        "counts": counts,
        "absent": ABSENT,
        "per_image": PATTERNS_AN_IMAGE,
        "measured": measured and packed_disks(measured),
        "patterns": patterns
        and {
            "images": [to_base64(image) for image in patterns.images],
            "side": patterns.side,
            "frame": pack(patterns.frame, np.float32),
        },
        "figures": _figures(drawn, single and single.alone),
    }
    page = resources.files("jaxstem").joinpath("data/report.html").read_text(encoding="utf-8")
    # "<" would let a name in the data end the script element
    text = json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    page = page.replace("{{title}}", html.escape(Path(map_file).name)).replace("{{data}}", text)
    with atomic_path(out, overwrite) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _grid_step(shape: tuple[int, int], most: int) -> int:
    """Of how many rows and columns each the first is taken, so that at most `most` are."""
    step = 1
    while math.prod(-(-n // step) for n in shape) > most:
        step += 1
    return step


def _step_nm(orientation_map: OrientationMap) -> float | None:
    length = in_metres(orientation_map.scan_step, orientation_map.scan_units)
    return None if length is None else 1e9 * length


def _settings(
    whole: OrientationMap, map_file: str | Path
) -> tuple[Microscope, Specimen, ReadOptions]:
    """What the map was made with; of a map of before settings travelled, the usual ones."""
    for name in ("voltage_kv", "k_max"):
        if not isinstance(whole.attributes.get(name), int | float):
            raise InputError(f"{map_file} does not state its {name}; make it with 'jaxstem map'.")
    known = {name: whole.attributes[name] for name in ("voltage_kv", "k_max")}
    specimen = dict(whole.settings.get("specimen", {}))
    if "thickness" in specimen:
        specimen["thickness"] = tuple(specimen["thickness"])
    return (
        Microscope(**known | whole.settings.get("microscope", {})),
        Specimen(**specimen),
        stored(whole.settings.get("read_options", {})),
    )


class _Single(NamedTuple):
    """What each pattern says alone: the map of it, that of those answers alone which the scan
    overruled, and where these are, of the positions drawn and of all.
    """

    alone: OrientationMap
    other: OrientationMap
    apart: Overruled
    of_all: Overruled


def _single(whole: OrientationMap, every: int) -> _Single | None:
    """Of every so many rows and columns; None of a map that does not keep it."""
    if whole.single_phase is None:
        return None
    alone, of_all = thinned(single_answers(whole), every), overruled(whole)
    apart = Overruled(*(x[::every, ::every] for x in of_all))
    other = replace(
        alone,
        phase=np.where(apart.positions, alone.phase, UNASSIGNED),
        orientation=np.where(apart.positions[..., None, None], alone.orientation, np.nan),
    )
    return _Single(alone, other, apart, of_all)


def _numbers(drawn: OrientationMap) -> dict[str, dict]:
    """The numbers of each position: arrays of 16 bits with their unit, phases of 8."""
    apart = np.full(drawn.phase.shape, np.nan)
    for index, unit_cell in enumerate(drawn.crystals):
        both = (drawn.phase == index) & (drawn.second_phase == index)
        if both.any():
            first, second = (
                Rotation.from_matrix(matrix[both]).as_quat()
                for matrix in (drawn.orientation, drawn.second_orientation)
            )
            symmetry = symmetry_operations(unit_cell)
            apart[both] = nearest_equivalents(first, second, symmetry)[1]
    sixteen = {
        "confidence": (drawn.confidence, 2e-5),
        "confidence_mod180": (drawn.confidence_mod180, 2e-5),
        "phase_confidence": (drawn.phase_confidence, 2e-5),
        "score": (drawn.score, 2e-5),
        "second_score": (drawn.second_score, 2e-5),
        "thickness": (drawn.thickness, 0.1),
        "log_evidence": (np.maximum(drawn.log_evidence, 0.0), 0.05),
        "explained_light": (drawn.explained_light, 2e-5),
        "n_disks": (drawn.n_disks, 1),
        "second_angle": (apart, 0.005),
        **_zones("", drawn),
        **_euler("", drawn.orientation),
        **_euler("second_", drawn.second_orientation),
    }
    return _packed(sixteen, {name: getattr(drawn, name) for name in ("phase", "second_phase")})


def _numbers_alone(single: _Single) -> dict[str, dict]:
    """The numbers of what each pattern says alone, its orientation where it was overruled."""
    sixteen = {
        "single_confidence": (single.alone.confidence, 2e-5),
        "single_angle": (single.apart.angle, 0.005),
        **_zones("single_", single.other),
        **_euler("single_", single.other.orientation),
    }
    eight = {
        "single_phase": single.alone.phase,
        "overruled": single.apart.positions,
        "half_turn": single.apart.half_turn,
    }
    return _packed(sixteen, eight)


def _zones(prefix: str, drawn: OrientationMap) -> dict[str, tuple]:
    """The zone axis nearest to the beam by its number among the phase's, and its angle to it."""
    zone, angle = (np.full(drawn.phase.shape, np.nan) for _ in range(2))
    for index, unit_cell in enumerate(drawn.crystals):
        own = drawn.phase == index
        _, zone[own], angle[own] = zone_axes(drawn.orientation[own], unit_cell)
    return {f"{prefix}zone_angle": (angle, 0.005), f"{prefix}zone": (zone, 1)}


def _euler(prefix: str, orientation: np.ndarray) -> dict[str, tuple]:
    known = np.isfinite(orientation).all((-1, -2))
    euler = np.full((*known.shape, 3), np.nan)
    euler[known] = bunge_angles(orientation[known])
    names = ("phi1", "Phi", "phi2")
    return {prefix + name: (euler[..., axis], 0.0055) for axis, name in enumerate(names)}


def _packed(sixteen: dict[str, tuple], eight: dict[str, np.ndarray]) -> dict[str, dict]:
    """Numbers of 16 bits, each with its unit, and of 8."""
    return {
        name: {"data": pack_16(values, unit), "unit": unit}
        for name, (values, unit) in sixteen.items()
    } | {name: {"data": pack(values, np.int8)} for name, values in eight.items()}


def _phase(unit_cell: Crystal, k_max: float, u_iso: float) -> dict:
    found = reflections(unit_cell, k_max, u_iso)
    names, _, _ = zone_axes(np.zeros((0, 3, 3)), unit_cell)
    key = Figure(figsize=(2.6, 2.3), facecolor="white")
    draw_key(key.add_axes((0.21, 0.13, 0.58, 0.62)), unit_cell)
    return {
        "name": unit_cell.name,
        "group": unit_cell.laue_group,
        "zones": names,
        "g": pack(found.g, np.float32),
        "hkl": pack(found.hkl, np.int8),
        "reciprocal": reciprocal_lattice(unit_cell.lattice).ravel().tolist(),
        "key": figure_uri(key),
    }


def _answers(kept: OrientationMap, which: str) -> tuple[np.ndarray, np.ndarray]:
    """Orientations and phases of the kept positions, flat, of one of `_ANSWERS`."""
    phase = getattr(kept, f"{which}phase").ravel()
    return getattr(kept, f"{which}orientation").reshape(-1, 3, 3), phase


def _packed_predictions(
    kept: OrientationMap,
    which: str,
    microscope: Microscope,
    specimen: Specimen,
    config: ReportConfig,
) -> dict:
    """Predicted disks of the best ("") or second-best ("second_") answer of the kept positions."""
    orientation, phase = _answers(kept, which)
    reflection = np.full((len(phase), config.n_predicted), ABSENT)
    strength = np.zeros((len(phase), config.n_predicted), int)
    for index, unit_cell in enumerate(kept.crystals):
        own = (phase == index) & np.isfinite(orientation).all((-1, -2))
        found = predict(
            orientation[own],
            kept.thickness.ravel()[own],
            unit_cell,
            microscope,
            specimen,
            config,
        )
        n_disks = found.reflection.shape[1]
        reflection[own, :n_disks], strength[own, :n_disks] = found
    return {
        "size": config.n_predicted,
        "reflection": pack(reflection, np.uint16),
        "strength": pack(strength, np.uint8),
    }


def _figures(drawn: OrientationMap, alone: OrientationMap | None) -> list[dict]:
    """Histograms, where there is `alone` of its confidences too, and the texture of each phase."""
    figures = [{"title": "Scores and confidences", "image": figure_uri(_histograms(drawn, alone))}]
    for index, unit_cell in enumerate(drawn.crystals):
        own = drawn.orientation[drawn.phase == index]
        if len(own):
            picture = texture_plots(
                own[:: -(-len(own) // _MOST_IN_TEXTURE)].astype(float),
                unit_cell,
                drawn.attributes["k_max"],
            )
            title = f"{unit_cell.name}: pole figures, lab frame; density in the IPF for z"
            title += "" if alone is None else " (what the scan says)"
            figures.append({"title": title, "image": figure_uri(picture)})
    return figures


def _histograms(drawn: OrientationMap, alone: OrientationMap | None) -> Figure:
    label = "confidence (probability of < 5° error)"
    panels = [(drawn, drawn.score, "cosine score"), (drawn, drawn.confidence, label)]
    if alone is not None:
        panels.append((alone, alone.confidence, "confidence of each pattern alone"))
    picture = Figure(figsize=(4 * len(panels), 2.6), facecolor="white", layout="constrained")
    for axes, (of, values, label) in zip(picture.subplots(1, len(panels)), panels, strict=True):
        shown = [
            values[(of.phase == index) & np.isfinite(values)] for index in range(len(of.crystals))
        ]
        axes.hist(
            shown,
            bins=np.linspace(0, 1, 41),
            stacked=True,
            color=phase_colours(drawn),
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
        "no crystal": whole.phase == NO_CRYSTAL,
        "unassigned": whole.phase == UNASSIGNED,
        "ambiguous by 180°": whole.ambiguous_180,
    }
    versions = [f"{name} {metadata.version(name)}" for name in ("orix", "matplotlib", "jax")]
    return [
        ("map", f"{Path(map_file).name}: {ny} × {nx} positions{step}"),
        ("positions", ", ".join(f"{100 * np.mean(x):.1f} % {name}" for name, x in counts.items())),
        *(
            (_UNITS.get(name, name.replace("_", " ")), f"{x}")
            for name, x in whole.attributes.items()
        ),
        *([("patterns from", str(scan))] if scan else []),
        ("report by", f"jaxstem {__version__}, {', '.join(versions)}"),
    ]
