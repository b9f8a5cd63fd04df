# SPDX-License-Identifier: GPL-3.0-or-later
"""From a scan and a model to an orientation map: what `jaxstem map` does, for use from Python.

    scan = read_disks("scan.h5")
    model = load_model("cu")
    write_map("map.h5", map_scan(scan, model))

A scan of shape (ny, nx) has flat positions p = row * nx + column. `map_scan` gives the map of a
scan that fits in memory, `map_to_file` streams a scan of any size from its file into that of the
map, and where jax runs as several processes, each works on a share of the scan's rows with its own
devices. Both say how the map was made. Doubtful answers can be left out: those of a confidence
below `least_confidence` are unassigned.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from jaxstem.crystal.identity import crystal_summary
from jaxstem.detection.reading import ReadOptions
from jaxstem.detection.scan import PlannedSearch
from jaxstem.diffraction.settings import VOLTAGE_TOLERANCE
from jaxstem.errors import InputError, require_between
from jaxstem.files.axes import told_axes
from jaxstem.files.distortion import Distortion, undistorted
from jaxstem.files.map_file import MapHeader, map_writer
from jaxstem.files.orientation_map import UNASSIGNED, OrientationMap, ambiguous_by_180
from jaxstem.files.scan import DiskScan, DiskSource, check_scan, no_disk_at_all, source_of
from jaxstem.inference.batching import PIECE, judged_source
from jaxstem.inference.config import InferConfig
from jaxstem.inference.step import PredictFor, make_predict_for
from jaxstem.inference.verdict import Answer, doubted, doubted_labels
from jaxstem.network.heads import HEADS
from jaxstem.network.model import Model
from jaxstem.runtime import parallel
from jaxstem.runtime.paths import check_target
from jaxstem.scan.alone import labels_alone, put, room_for_labels, single_blocks
from jaxstem.scan.context import in_context, made_ahead
from jaxstem.scan.pooling import patterns_needed
from jaxstem.scan.premises import Doubt, Examined, examined
from jaxstem.scan.unseen_beam import with_beam

Block = tuple[int, dict[str, np.ndarray]]
"""Some rows of a map: the first one, and the arrays by the names of `OrientationMap`."""


@dataclass(frozen=True)
class Overview:
    """What a map's summary needs, as in `OrientationMap`, its lines about the calibration and about
    what its patterns were weighed with, and the doubt about its premises.
    """

    phase: Int[np.ndarray, "ny nx"]
    confidence: Float[np.ndarray, "ny nx"]
    ambiguous_180: Bool[np.ndarray, "ny nx"]
    log_evidence: Float[np.ndarray, "ny nx"]
    explained_light: Float[np.ndarray, "ny nx"]
    n_disks: Int[np.ndarray, "ny nx"]
    phase_names: tuple[str, ...]
    geometry: str
    context: str
    doubt: Doubt | None


def map_scan(
    scan: DiskScan | DiskSource,
    model: Model,
    config: InferConfig | None = None,
    *,
    context: str = "scan",
    least_confidence: float = 0.0,
    options: ReadOptions | None = None,
    attributes: dict[str, Any] | None = None,
    mesh: Mesh | None = None,
    progress: bool | None = None,
) -> OrientationMap:
    """The orientation map (ny, nx) of a scan by a model of one or more phases.

    Positions with too few disks, and those whose confidence is known and below `least_confidence`,
    are unassigned: phase -1, orientation NaN; those without a crystal have phase -2. `options`, how
    the scan was opened, are stored in the map for those that open it again, and `attributes` beside
    those that say how the map was made; `mesh` (of this process's devices; all of them) and
    `progress` are `stream_answers`'s. Of several processes each gets the whole map. Raises
    InputError when the scan's voltage is not the model's, for a scan without positions or without
    any disk, for one whose arrays do not fit together, and as the scan's source does.
    """
    config = config or InferConfig()
    source = scan if isinstance(scan, DiskSource) else source_of(scan)
    _check(source, model, least_confidence)
    if isinstance(scan, DiskScan):
        check_scan(scan)
    if isinstance(scan, DiskScan) and not len(scan.qx):
        raise no_disk_at_all(source)
    context = usable_context(context, model, config)
    given = _prepared(source, model, config, context, mesh)
    header = map_header(given, model, config, context, least_confidence, options, attributes)
    source, said = given.source, given.said(model, config, least_confidence, progress, context)
    found = list(map_blocks(source, *said))
    found.sort(key=lambda block: block[0])
    names = {name for _, block in found for name in block}
    arrays = {
        name: np.concatenate([block[name] for _, block in found if name in block]) for name in names
    }
    if not (arrays["n_disks"] > 0).any() and _is_empty(source):
        raise no_disk_at_all(source)
    return OrientationMap(
        **arrays,
        phase_names=header.phase_names,
        crystals=header.crystals,
        scan_step=header.scan_step,
        scan_units=header.scan_units,
        attributes=header.attributes,
        settings=header.settings,
    )


def map_to_file(
    path: str | Path,
    source: DiskSource,
    model: Model,
    config: InferConfig | None = None,
    *,
    context: str = "scan",
    least_confidence: float = 0.0,
    options: ReadOptions | None = None,
    attributes: dict[str, Any] | None = None,
    overwrite: bool = False,
    mesh: Mesh | None = None,
    progress: bool | None = None,
) -> Overview:
    """`map_scan` into a file, row by row, so that neither scan nor map lies in memory.

    Of several processes the first one writes, and each gets the overview. Raises InputError also
    for a scan without any disk, and where the file exists and `overwrite` is False, or cannot be
    written.
    """
    config = config or InferConfig()
    _check(source, model, least_confidence)
    parallel.first_says(lambda: check_target(path, overwrite))
    context = usable_context(context, model, config)
    given = _prepared(source, model, config, context, mesh)
    source = given.source
    header = map_header(given, model, config, context, least_confidence, options, attributes)
    were_empty: set[bool] = set()

    def read(start: int, stop: int) -> DiskScan:
        scan = source.read(start, stop)
        were_empty.add(not len(scan.qx))
        return scan

    overview = Overview(
        phase=np.empty(source.scan_shape, np.int16),
        confidence=np.empty(source.scan_shape, np.float32),
        ambiguous_180=np.empty(source.scan_shape, bool),
        log_evidence=np.empty(source.scan_shape, np.float32),
        explained_light=np.empty(source.scan_shape, np.float32),
        n_disks=np.empty(source.scan_shape, np.int32),
        phase_names=model.phase_names,
        geometry=given.geometry,
        context=told_of_context(context, given.n_together),
        doubt=given.doubt,
    )
    target = map_writer(path, header, overwrite) if parallel.is_first() else nullcontext()
    with target as write:
        counted = replace(source, read=read)
        said = given.said(model, config, least_confidence, progress, context)
        for row, block in map_blocks(counted, *said):
            if write is not None:
                write(row, block)
            told = ("phase", "confidence", "confidence_mod180")
            if all(name in block for name in told):
                ambiguous = ambiguous_by_180(*(block[name] for name in told))
                block = {**block, "ambiguous_180": ambiguous}
            for name, values in block.items():
                if hasattr(overview, name):
                    getattr(overview, name)[row : row + len(values)] = values
        if were_empty == {True}:
            raise no_disk_at_all(source)
    return overview


class _Prepared(NamedTuple):
    """A scan as it was `examined`, how many of its patterns are added up, and by which devices and
    program it is mapped.
    """

    source: DiskSource
    distortion: Distortion
    geometry: str
    doubt: Doubt | None
    n_together: int
    mesh: Mesh
    predict: PredictFor

    def said(self, model, config, least_confidence, progress, context) -> tuple:
        """What `map_blocks` takes after the scan."""
        how = self.predict, self.n_together, self.doubt.against if self.doubt else 0.0
        return model, config, least_confidence, self.mesh, progress, context, *how


def _prepared(
    source: DiskSource, model: Model, config: InferConfig, context: str, mesh: Mesh | None
) -> _Prepared:
    """Raises InputError as `source.read` does."""
    mesh = mesh or parallel.make_mesh(jax.local_devices())
    ahead = made_ahead(source, model, config, mesh) if context == "scan" else None
    config = replace(config, keeps_labels=context == "scan")
    made = functools.cache(lambda: make_predict_for(model, config, mesh, ahead))
    predict = lambda detector: made()(detector)  # noqa: E731
    source = judged_source(with_beam(source, model, config, mesh, predict), model, config)
    found = Examined(source, undistorted(), "as given", None)
    if config.geometry == "scan":
        found = examined(source, model, config, mesh, predict)
    n_together = patterns_needed(found.source, model, config) if context == "scan" else 1
    return _Prepared(*found, n_together, mesh, predict)


def map_header(
    given: _Prepared,
    model: Model,
    config: InferConfig,
    context: str,
    least_confidence: float,
    options: ReadOptions | None,
    attributes: dict[str, Any] | None,
) -> MapHeader:
    """What a map says about itself."""
    source = given.source
    crystals, likelihood = tuple(m.crystal for m in model.materials), config.scoring.likelihood
    return MapHeader(
        scan_shape=source.scan_shape,
        phase_names=model.phase_names,
        crystals=crystals,
        scan_step=source.scan_step,
        scan_units=source.scan_units,
        attributes={
            "scan": source.source,
            "voltage_kv": model.voltage_kv,
            "k_max": model.k_max,
            "refine": config.refine,
            "judge": "counts" if config.by_counts(source) else "list",
            "context": context,
            "geometry": config.geometry,
            "precision": config.precision,
            "least_confidence": least_confidence,
            "symmetry": "Laue group",
            "symmetry_groups": ", ".join(crystal.laue_group for crystal in crystals),
            **understood(source, model, config),
            "about_geometry": given.geometry,
            "about_context": told_of_context(context, given.n_together),
            "doubt": given.doubt.said if given.doubt else "",
            **(attributes or {}),
        },
        settings={
            "microscope": asdict(replace(model.microscope, semi_angle_mrad=likelihood.semi_angle)),
            "specimen": asdict(replace(model.specimen, thickness=likelihood.thickness)),
            "read_options": (options or ReadOptions()).given(),
            "distortion": given.distortion.stored(),
            "beam": source.instrument.stored_beam(),
        },
        keeps_single=context == "scan",
    )


def usable_context(context: str, model: Model, config: InferConfig) -> str:
    """The context that can be had: none where the network alone says a rotation without a measure
    of its doubt.
    """
    numbers = HEADS[model.config.head].numbers
    return "none" if config.refine == "none" and numbers is not None else context


def told_of_context(context: str, n_together: int) -> str:
    """By what a pattern is judged besides itself, in a line."""
    if context == "none":
        return "each pattern alone"
    if n_together == 1:
        return "neighbours"
    return (
        f"neighbours, and where these are of a grain sums of up to {n_together} patterns, for one "
        "alone is weak"
    )


def understood(
    source: DiskSource | PlannedSearch, model: Model, config: InferConfig
) -> dict[str, str]:
    """What is taken for granted of crystals, microscope and beam, a line each, by the names of the
    map's attributes.
    """
    known = source.instrument
    voltage_kv = source.voltage_kv or model.voltage_kv
    unstated = "" if source.voltage_kv else " (the model's, not stated)"
    microscope = [f"{voltage_kv:g} kV{unstated}"]
    beam, semi_angle = [], config.scoring.likelihood.semi_angle
    if known.pixel_size is not None:
        microscope.append(f"{known.pixel_size:.4g} 1/Å a pixel ({known.pixel_size_from})")
    else:
        microscope.append("disks in 1/Å")
    microscope.append(f"semi-angle {semi_angle:g} mrad")
    microscope += told_axes(known)
    if known.centre is not None:
        beam.append("centre ({:.1f}, {:.1f}) px".format(*known.centre))
    if known.radius is not None:
        radius = f"radius {known.radius:.1f} px"
        if known.pixel_size is not None:
            wavelength = replace(model.microscope, voltage_kv=voltage_kv).wavelength
            radius += f" = {1e3 * known.radius * known.pixel_size * wavelength:.2f} mrad"
        beam.append(radius)
    if known.dose is not None:
        dose = float(f"{known.dose:.3g}")
        beam.append(f"{dose:,.{0 if dose >= 100 else 2}f} electrons a pattern")
    if known.n_masked is not None:
        beam.append(f"{known.n_masked} {'pixel' if known.n_masked == 1 else 'pixels'} masked")
    if known.pedestal:
        beam.append(f"{known.pedestal:.3g} taken off all numbers")
    if known.clipped_at is not None:
        beam.append(f"counts cut at {known.clipped_at:g}")
    if known.beam_unseen:
        beam.append("the direct beam's own counts not known")
    if known.incident is not None:
        beam.append(f"it has {float(f'{known.incident:.2g}'):,.0f} electrons by the scan's disks")
    return {
        "about_crystals": "; ".join(crystal_summary(m.crystal) for m in model.materials),
        "about_microscope": ", ".join(microscope),
        "about_beam": ", ".join(beam) or "nothing known, for disks are listed",
    }


def map_blocks(
    source: DiskSource,
    model: Model,
    config: InferConfig,
    least_confidence: float = 0.0,
    mesh: Mesh | None = None,
    progress: bool | None = None,
    context: str = "none",
    predict_for: PredictFor | None = None,
    n_together: int = 1,
    against: float = 0.0,
) -> Iterator[Block]:
    """The rows of a map, some at a time and not always in order, the same ones in each process.

    Process p of P works on the p-th of P ranges of rows. In the `context` of the scan each row
    comes twice: what its patterns say alone, by the names of `SINGLE` and with the number of disks,
    and when all are there what the scan says. `predict_for` as in `stream_answers`, `n_together` as
    in `in_context`; `against`: nat by which no crystal is likelier than patterns say.
    """
    with_labels = context == "scan"
    blocks = single_blocks(source, model, config, mesh, progress, with_labels, predict_for)
    if context == "none":
        for row, (answer, n_disks, _) in blocks:
            answer = doubted(answer, against)
            yield row, left_out(answer, least_confidence)._asdict() | {"n_disks": n_disks}
        return
    scan = room_for_labels(source, model, config)
    for row, (answer, n_disks, labels) in blocks:
        put(doubted_labels(labels, against), row, scan)
        answer = doubted(answer, against)
        alone = {
            f"single_{name}": getattr(answer, name)
            for name in ("orientation", "phase", "confidence")
        }
        yield row, alone | {"n_disks": n_disks}
    found = in_context(
        scan,
        source,
        model,
        config,
        mesh,
        progress,
        n_together=n_together,
        alone=lambda sums: labels_alone(sums, model, config, mesh, progress, predict_for),
    )
    for row, answer in found:
        yield row, left_out(answer, least_confidence)._asdict()


def left_out(answer: Answer, least_confidence: float) -> Answer:
    """The same, unassigned where it is less likely right than this."""
    doubtful = answer.confidence < least_confidence

    def without(x):
        wide = doubtful.reshape(*doubtful.shape, *[1] * (x.ndim - doubtful.ndim))
        return np.where(wide, np.float32(np.nan), x)

    taken = ("orientation", "thickness", "log_evidence", "explained_light")
    return answer._replace(
        phase=np.where(doubtful, UNASSIGNED, answer.phase),
        **{name: without(getattr(answer, name)) for name in taken},
    )


def _check(source: DiskSource, model: Model, least_confidence: float) -> None:
    """Raise InputError where there is nothing to map, or it does not fit the model."""
    require_between("--least-confidence", least_confidence, 0.0, 1.0)
    if 0 in source.scan_shape:
        rows, columns = source.scan_shape
        raise InputError(f"{source.source} holds {rows} × {columns} positions; give one at least.")
    require_between(f"{source.source}: scan_step", source.scan_step, 1e-12, 1e12)
    check_voltage(source, model)


def _is_empty(source: DiskSource) -> bool:
    """Whether no position has a disk, the direct beam included."""
    return not any(len(source.read(*rows).qx) for rows in source.pieces(PIECE))


def check_voltage(scan: DiskScan | DiskSource | PlannedSearch, model: Model) -> None:
    """Raise InputError when the scan was taken at another voltage than the model's, by over 1 %
    (`network.model.at_voltage` makes one of it).

    Nothing known of the scan's voltage passes.
    """
    taken_at, trained_for = scan.voltage_kv, model.voltage_kv
    if taken_at is None or abs(taken_at - trained_for) <= VOLTAGE_TOLERANCE * trained_for:
        return
    served = model.voltages_kv or (trained_for,)
    good_at = " to ".join(f"{kv:g}" for kv in served)
    raise InputError(
        f"{scan.source}: was taken at {taken_at:g} kV and the model is for {good_at} kV; "
        f"train a model with --voltage-kv {taken_at:g}, or state the scan's true voltage."
    )
