# SPDX-License-Identifier: GPL-3.0-or-later
"""Scan files in, orientation maps out.

A 4D-STEM scan is a grid of beam positions with one diffraction pattern each; after disk detection
a pattern is a short list of disks (qx, qy, intensity). The lists differ in length, so a scan is
held *flat*: all disks of all positions in one array, and `offsets` that say where each position's
begin. Position p = (row, column) of a scan of shape (ny, nx) has the flat index row * nx + column
and owns the disks `offsets[p]:offsets[p + 1]`. `pad_disks` turns chosen positions into the
rectangular arrays with a mask that the network takes.

Files hold disks in detector pixels beside a calibration. `read_disks` applies it as py4DSTEM does
and hands back scattering vectors in 1/Å: qx along lab x (detector axis 0), qy along lab y. A scan
of millions of positions need not lie in memory: a `DiskSource` knows its shape and reads some scan
rows at a time, `bragg_source` from a file, `source_of` from a `DiskScan`.

Results are an `OrientationMap`, stored by `write_map` in the layout of docs/file-formats.md, or row
by row by `map_writer`. All files are written under a temporary name and renamed when complete
(`atomic_path`), so that an interrupted program leaves nothing half-written.
"""

import os
import re
import shutil
import unicodedata
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
from jaxtyping import Bool, Float, Int

from jaxstem import __version__
from jaxstem.crystal import Crystal
from jaxstem.errors import InputError
from jaxstem.scattering import electron_wavelength

if TYPE_CHECKING:
    from orix.crystal_map import CrystalMap

MAP_FORMAT = "jaxstem-map"
MAP_VERSION = 1
UNASSIGNED, NO_CRYSTAL = -1, -2
SURE, UNSURE = 0.9, 0.75
"""An answer is ambiguous by 180° when sure modulo 180° (0.9 or more) and unsure (below 0.75)."""

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
DISK_FIELDS = ("qx", "qy", "intensity")
LARGEST = 1e30  # values beyond it, which float32 can barely hold, are rubbish like infinities
RECIPROCAL_UNITS = {"A^-1": 1.0, "Å^-1": 1.0, "1/A": 1.0, "1/Å": 1.0, "nm^-1": 0.1, "1/nm": 0.1}
"""Lengths of units in 1/Å."""
ANGLES = {"mrad": 1e-3, "rad": 1.0}
RECALIBRATE = "calibrate it in py4DSTEM and save it again"
VOLTAGE_KEY = re.compile(
    r"(accelerating_?voltage|acceleration_?voltage|beam_?voltage|voltage|high_?tension"
    r"|beam_?energy)(_?(?:k?e?v))?",
    re.IGNORECASE,
)
VOLTAGE_TEXT = re.compile(r"\s*([-+0-9.eE]+?)\s*(k?e?V)?\s*", re.IGNORECASE)


@dataclass(frozen=True)
class DiskScan:
    """The calibrated disks of a scan, flat (see the module's docstring), direct beam included.

    qx, qy in 1/Å in the lab frame; intensity in the units of the disk detection; scan_step in
    scan_units; voltage_kv in kV, None where the file does not say.
    """

    qx: Float[np.ndarray, "total"]
    qy: Float[np.ndarray, "total"]
    intensity: Float[np.ndarray, "total"]
    offsets: Int[np.ndarray, "positions_plus_1"]
    scan_shape: tuple[int, int]
    scan_step: float
    scan_units: str
    voltage_kv: float | None
    source: str


@dataclass(frozen=True)
class DiskSource:
    """A scan whose disks are read when asked for, and what is known of it before.

    read: `read(start, stop)` gives the scan rows `start` to `stop - 1` as a `DiskScan` of their own
    and raises InputError for disks that cannot be used. Nothing is kept. The rest is as in
    `DiskScan`.
    """

    scan_shape: tuple[int, int]
    scan_step: float
    scan_units: str
    voltage_kv: float | None
    source: str
    read: Callable[[int, int], DiskScan]

    def pieces(self, n_positions: int) -> list[tuple[int, int]]:
        """The scan cut into ranges of rows, each of about `n_positions` positions and one row at
        least.
        """
        n_rows, n_columns = self.scan_shape
        rows = max(1, n_positions // max(n_columns, 1))
        return [(start, min(start + rows, n_rows)) for start in range(0, n_rows, rows)]


def source_of(scan: DiskScan) -> DiskSource:
    """A scan in memory as a source; what it reads are views."""
    n_columns = scan.scan_shape[1]

    def read(start: int, stop: int) -> DiskScan:
        offsets = scan.offsets[start * n_columns : stop * n_columns + 1]
        own = slice(offsets[0], offsets[-1])
        return replace(
            scan,
            qx=scan.qx[own],
            qy=scan.qy[own],
            intensity=scan.intensity[own],
            offsets=offsets - offsets[0],
            scan_shape=(stop - start, n_columns),
        )

    return DiskSource(
        scan.scan_shape, scan.scan_step, scan.scan_units, scan.voltage_kv, scan.source, read
    )


def joined(scans: list[DiskScan]) -> DiskScan:
    """Scans of the same number of columns, one below the other, as one."""
    ends = np.cumsum([0, *(len(scan.qx) for scan in scans)])
    offsets = [scan.offsets[1:] + end for scan, end in zip(scans, ends[:-1], strict=True)]
    return replace(
        scans[0],
        qx=np.concatenate([scan.qx for scan in scans]),
        qy=np.concatenate([scan.qy for scan in scans]),
        intensity=np.concatenate([scan.intensity for scan in scans]),
        offsets=np.concatenate([np.zeros(1, np.int64), *offsets]),
        scan_shape=(sum(scan.scan_shape[0] for scan in scans), scans[0].scan_shape[1]),
    )


@dataclass(frozen=True)
class Truth:
    """What a scan really holds, over its positions; orientation NaN where there is no crystal.

    boundary_weight is 0 inside a grain; grain is -1 and thickness (Å) NaN where not known.
    """

    orientation: Float[np.ndarray, "*scan 3 3"]
    phase: np.ndarray
    boundary_weight: Float[np.ndarray, "*scan"]
    grain: Int[np.ndarray, "*scan"]
    thickness: Float[np.ndarray, "*scan"]


@dataclass(frozen=True)
class OrientationMap:
    """Orientation and phase over a scan, array axes as in the scan file.

    orientation: columns are the lab axes in crystal Cartesian coordinates, NaN where unassigned.
    phase: index into phase_names and crystals, -1 unassigned, -2 no crystal. confidence: posterior
    probability that the phase is right and the truth within 5 degrees; confidence_mod180 counts the
    turn by 180 degrees about the beam too; phase_confidence: that the phase is right. All three are
    that of "no crystal" where this is the answer, and NaN where not known. score: cosine score in
    0…1. second_*: the runner-up. thickness [Å]: NaN where nothing tells it. n_disks: disks used.
    attributes: how the map was made (command, model, jaxstem_version, ...), numbers or strings.
    """

    orientation: Float[np.ndarray, "ny nx 3 3"]
    phase: Int[np.ndarray, "ny nx"]
    phase_names: tuple[str, ...]
    confidence: Float[np.ndarray, "ny nx"]
    confidence_mod180: Float[np.ndarray, "ny nx"]
    phase_confidence: Float[np.ndarray, "ny nx"]
    score: Float[np.ndarray, "ny nx"]
    second_orientation: Float[np.ndarray, "ny nx 3 3"]
    second_phase: Int[np.ndarray, "ny nx"]
    second_score: Float[np.ndarray, "ny nx"]
    thickness: Float[np.ndarray, "ny nx"]
    n_disks: Int[np.ndarray, "ny nx"]
    crystals: tuple[Crystal, ...]
    scan_step: float = 1.0
    scan_units: str = "pixels"
    attributes: dict = field(default_factory=dict)

    @property
    def ambiguous_180(self) -> Bool[np.ndarray, "ny nx"]:
        """Where the orientation is known but for a turn by 180° about the beam."""
        return ambiguous_by_180(self.phase, self.confidence, self.confidence_mod180)

    def to_orix(self) -> "CrystalMap":
        """The map as an orix `CrystalMap`; see `jaxstem.export.to_orix`."""
        from jaxstem.export import to_orix

        return to_orix(self)


def ambiguous_by_180(
    phase: Int[np.ndarray, "..."],
    confidence: Float[np.ndarray, "..."],
    confidence_mod180: Float[np.ndarray, "..."],
) -> Bool[np.ndarray, "..."]:
    """Where an answer is sure modulo a turn by 180° about the beam, and only so."""
    return (confidence_mod180 >= SURE) & (confidence < UNSURE) & (phase >= 0)


# where each array of an OrientationMap lives in the file, and as what
MAP_DATASETS = {
    "orientation": ("orientation", np.float32),
    "phase": ("phase", np.int16),
    "confidence": ("confidence", np.float32),
    "confidence_mod180": ("confidence_mod180", np.float32),
    "phase_confidence": ("phase_confidence", np.float32),
    "score": ("score", np.float32),
    "second_orientation": ("second/orientation", np.float32),
    "second_phase": ("second/phase", np.int16),
    "second_score": ("second/score", np.float32),
    "thickness": ("thickness", np.float32),
    "n_disks": ("n_disks", np.int32),
}


def read_disks(path: str | Path) -> DiskScan:
    """Calibrated Bragg disks of an EMD 1.0 file as py4DSTEM 0.14 writes it, all at once.

    Flat arrays `qx`, `qy` [1/Å, lab frame, the direct beam among them] and `intensity`, and
    `offsets` (ny nx + 1): position p = row * nx + column has offsets[p] … offsets[p + 1] - 1.
    Raises InputError as `bragg_source` and its `read` do, and for a file without any disk.
    """
    source = bragg_source(path)
    scan = source.read(0, source.scan_shape[0])
    if not len(scan.qx):
        raise no_disk_at_all(source)
    return scan


def no_disk_at_all(source: DiskSource) -> InputError:
    """The complaint about a scan whose lists of disks are all empty."""
    return InputError(f"{source.source} holds no disk at any position; repeat the disk detection.")


def bragg_source(
    path: str | Path, calibration: Mapping | None = None, voltage_kv: float | None = None
) -> DiskSource:
    """Calibrated Bragg disks of an EMD 1.0 file as py4DSTEM 0.14 writes it, read when asked for.

    The vectors are those of py4DSTEM's `braggvectors.cal` after `setcal()`, in 1/Å. Entries of
    `calibration` replace those of the file, `voltage_kv` [kV] its voltage. Raises
    InputError for a file that is missing, damaged or not HDF5, that holds no BraggVectors or
    several, or whose origin or pixel size is missing or unusable; `read` raises it for disks that
    are not finite.
    """
    with open_hdf5(path) as file:
        group = _bragg_group(file, path)
        root = emd_root(group)
        stated = emd_calibration(root)
        lists = _bragg_lists(group, path)
        name, scan_shape, kind = lists.name, lists.shape, h5py.check_vlen_dtype(lists.dtype)
        voltage_kv = voltage_kv or stated_voltage_kv(root, path)
    calibration = without_angles(stated | dict(calibration or {}), voltage_kv)
    scan_step, scan_units = stated_scan_step(calibration)
    # without disks this judges the calibration alone
    nothing = np.zeros(int(np.prod(scan_shape)), np.int64)
    calibrate_disks(np.zeros(0, kind), nothing, scan_shape, calibration, path)

    def read(start: int, stop: int) -> DiskScan:
        with open_hdf5(path) as file:
            disks, counts = _joined_lists(list(file[name][start:stop].ravel()), kind)
        _check_finite(disks, counts, start, scan_shape, path)
        here = {
            key: value[start:stop] if np.shape(value) == tuple(scan_shape) else value
            for key, value in calibration.items()
        }
        shape = (stop - start, scan_shape[1])
        qx, qy = calibrate_disks(disks, counts, shape, here, path)
        return DiskScan(
            qx=qx.astype(np.float32),
            qy=qy.astype(np.float32),
            intensity=disks["intensity"].astype(np.float32),
            offsets=np.concatenate([[0], np.cumsum(counts)]),
            scan_shape=shape,
            scan_step=scan_step,
            scan_units=scan_units,
            voltage_kv=voltage_kv,
            source=str(path),
        )

    return DiskSource(scan_shape, scan_step, scan_units, voltage_kv, str(path), read)


def pad_disks(
    scan: DiskScan, index: Int[np.ndarray, "m"], k_max: float, k_min: float, n_max: int
) -> tuple[
    Float[np.ndarray, "m n_max"],
    Float[np.ndarray, "m n_max"],
    Float[np.ndarray, "m n_max"],
    Bool[np.ndarray, "m n_max"],
]:
    """(qx, qy, intensity, mask) of the strongest disks at the flat positions `index`.

    Takes disks of positive intensity with k_min < |q| <= k_max (1/Å), strongest first, at most
    n_max a position; padding is zero with mask False. k_min > 0 leaves the direct beam out.
    """
    index = np.asarray(index, dtype=np.int64)
    first, counts = scan.offsets[index], np.diff(scan.offsets)[index]
    row = np.repeat(np.arange(len(index)), counts)
    disk = np.arange(len(row)) + np.repeat(first - np.cumsum(counts) + counts, counts)
    radius = np.hypot(scan.qx[disk], scan.qy[disk])
    kept = (radius > k_min) & (radius <= k_max) & (scan.intensity[disk] > 0)
    row, disk = row[kept], disk[kept]
    order = np.lexsort((-scan.intensity[disk], row))
    row, disk = row[order], disk[order]
    column = np.arange(len(row)) - np.searchsorted(row, row)
    fits = column < n_max
    row, column, disk = row[fits], column[fits], disk[fits]

    def scatter(values):
        padded = np.zeros((len(index), n_max), dtype=values.dtype)
        padded[row, column] = values
        return padded

    mask = scatter(np.ones(len(disk), dtype=bool))
    return scatter(scan.qx[disk]), scatter(scan.qy[disk]), scatter(scan.intensity[disk]), mask


def read_truth(path: str | Path) -> Truth:
    """The known orientations and phases of a scan.

    Needs the datasets `orientation` (…, 3, 3) and `phase` (…); takes `boundary_weight`, `grain` and
    `thickness` (Å) where present. Raises InputError where they are missing or of unequal shape.
    """
    with open_hdf5(path) as file:
        for name in ("orientation", "phase"):
            if not isinstance(file.get(name), h5py.Dataset):
                raise InputError(
                    f"{path} has no dataset '{name}'; give a truth file with 'orientation' and "
                    "'phase' over the scan."
                )
        orientation = _numbers(file["orientation"], path).astype(np.float64)
        scan_shape = orientation.shape[:-2]
        if orientation.shape[-2:] != (3, 3):
            raise InputError(
                f"{path}: 'orientation' has shape {orientation.shape}; it must be (…, 3, 3)."
            )
        phase = np.asarray(file["phase"][()])
        if phase.dtype.kind not in "SO":
            raise InputError(f"{path}: 'phase' holds no strings; give the phases' names.")
        optional = {
            name: _numbers(file[name], path).astype(dtype)
            if name in file
            else np.full(scan_shape, absent, dtype=dtype)
            for name, absent, dtype in [
                ("boundary_weight", 0.0, np.float64),
                ("grain", -1, np.int64),
                ("thickness", np.nan, np.float64),
            ]
        }
    for name, values in {"phase": phase, **optional}.items():
        if values.shape != scan_shape:
            raise InputError(
                f"{path}: '{name}' has shape {values.shape} but the orientations cover "
                f"{scan_shape}; give one value a position."
            )
    names = [p.decode() if isinstance(p, bytes) else str(p) for p in phase.ravel()]
    return Truth(orientation, np.array(names, dtype=np.str_).reshape(scan_shape), **optional)


@contextmanager
def atomic_path(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it when the block ends without an error.

    The temporary name keeps the suffix, and is removed after an error. Raises InputError where the
    folder does not exist or cannot be written, or `path` exists and `overwrite` is False.
    """
    path = Path(path)
    check_target(path, overwrite)
    temporary = path.with_name(f".{path.stem}-{uuid.uuid4().hex[:12]}{path.suffix}")
    try:
        yield temporary
        _refuse_existing(path, overwrite)
        os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def check_target(path: str | Path, overwrite: bool = False) -> None:
    """Raise InputError where a file could not be written to `path`, as `atomic_path` says."""
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist; make it first.")
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the name of a file to write.")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{path}: the folder {path.parent} cannot be written; choose another.")
    _refuse_existing(path, overwrite)


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists already; choose another name or ask to overwrite it.")


def write_map(path: str | Path, result: OrientationMap, overwrite: bool = False) -> None:
    """Store a map (layout: docs/file-formats.md).

    Raises InputError where the file exists and `overwrite` is False, or cannot be written, and
    ValueError for a map whose arrays do not fit together.
    """
    arrays = {
        name: np.asarray(getattr(result, name), dtype) for name, (_, dtype) in MAP_DATASETS.items()
    }
    problem = _map_problem(arrays, result.phase_names)
    if problem or len(result.crystals) != len(result.phase_names):
        raise ValueError(problem or "a map needs one crystal for each phase name")
    about = MapHeader(
        result.phase.shape,
        result.phase_names,
        result.crystals,
        result.scan_step,
        result.scan_units,
        result.attributes,
    )
    with map_writer(path, about, overwrite) as write:
        write(0, arrays)


@dataclass(frozen=True)
class MapHeader:
    """What a map says besides its arrays; as in `OrientationMap`."""

    scan_shape: tuple[int, int]
    phase_names: tuple[str, ...]
    crystals: tuple[Crystal, ...]
    scan_step: float
    scan_units: str
    attributes: dict


@contextmanager
def map_writer(
    path: str | Path, header: MapHeader, overwrite: bool = False
) -> Iterator[Callable[[int, Mapping[str, np.ndarray]], None]]:
    """Write a map some scan rows at a time: gives `write(first_row, arrays)`, the arrays by the
    names of `MAP_DATASETS` and of shape (rows, nx, ...).

    The file appears under its name when the block ends without an error; by then every row must
    have been written. Raises InputError as `atomic_path` does.
    """
    with atomic_path(path, overwrite) as temporary, h5py.File(temporary, "w") as file:
        file.attrs.update({"jaxstem_version": __version__, **header.attributes})
        file.attrs.update({"format": MAP_FORMAT, "version": MAP_VERSION})
        file.attrs.update({"scan_step": header.scan_step, "scan_units": header.scan_units})
        stored = {
            name: file.create_dataset(
                location,
                (*header.scan_shape, *((3, 3) if "orientation" in name else ())),
                dtype,
            )
            for name, (location, dtype) in MAP_DATASETS.items()
        }
        ambiguous = file.create_dataset("ambiguous_180", header.scan_shape, bool)
        names = list(header.phase_names)
        file.create_dataset("phase_names", data=names, dtype=h5py.string_dtype())
        for number, crystal in enumerate(header.crystals):
            group = file.create_group(f"phases/{number}")
            for key, value in crystal.to_dict().items():
                group[key] = value

        def write(first_row: int, arrays: Mapping[str, np.ndarray]) -> None:
            rows = slice(first_row, first_row + len(arrays["phase"]))
            for name, dataset in stored.items():
                dataset[rows] = arrays[name]
            ambiguous[rows] = ambiguous_by_180(
                arrays["phase"], arrays["confidence"], arrays["confidence_mod180"]
            )

        yield write


def read_map(path: str | Path, every: int = 1) -> OrientationMap:
    """A map that `write_map` stored; of its rows and columns only each `every`-th.

    Raises InputError for a file that is missing, damaged, no jaxstem map, or made by a newer
    jaxstem.
    """
    with open_hdf5(path) as file:
        attributes = {name: _plain(value) for name, value in file.attrs.items()}
        if attributes.pop("format", None) != MAP_FORMAT:
            raise InputError(f"{path} is not a jaxstem map; give a file that 'jaxstem map' wrote.")
        version = attributes.pop("version", None)
        if version != MAP_VERSION:
            raise InputError(
                f"{path} is a jaxstem map of layout version {version}, and this jaxstem reads "
                f"version {MAP_VERSION}; update jaxstem."
            )
        locations = [location for location, _ in MAP_DATASETS.values()]
        missing = [x for x in [*locations, "phase_names", "phases"] if x not in file]
        if missing:
            raise InputError(
                f"{path} lacks '{missing[0]}' of a jaxstem map; make it again with 'jaxstem map'."
            )
        arrays = {
            name: _numbers(file[location], path, every).astype(dtype, copy=False)
            for name, (location, dtype) in MAP_DATASETS.items()
        }
        phase_names = tuple(_plain(name) for name in file["phase_names"][()])
        crystals = tuple(
            Crystal.from_dict({key: _plain(value[()]) for key, value in group.items()})
            for group in (file[f"phases/{number}"] for number in range(len(phase_names)))
        )
    scan_step = attributes.pop("scan_step", 1.0)
    problem = _map_problem(arrays, phase_names)
    if not _is_number(scan_step):
        problem = f"'scan_step' is {scan_step!r} and not a number"
    if problem:
        raise InputError(f"{path}: {problem}; make it again with 'jaxstem map'.")
    return OrientationMap(
        **arrays,
        phase_names=phase_names,
        crystals=crystals,
        scan_step=every * float(scan_step),
        scan_units=str(attributes.pop("scan_units", "pixels")),
        attributes=attributes,
    )


def _map_problem(arrays: dict[str, np.ndarray], phase_names: tuple[str, ...]) -> str | None:
    """What is wrong with the arrays of a map, or None."""
    scan_shape = arrays["phase"].shape
    if len(scan_shape) != 2:
        return f"'phase' has {len(scan_shape)} axes instead of the scan's two"
    for name, values in arrays.items():
        expected = scan_shape + ((3, 3) if "orientation" in name else ())
        if values.shape != expected:
            return f"'{name}' has shape {values.shape} instead of {expected}"
    for name in ("phase", "second_phase"):
        values = arrays[name]
        if values.size and (values.min() < NO_CRYSTAL or values.max() >= len(phase_names)):
            return f"'{name}' has values outside -2…{len(phase_names) - 1}"
    return None


@contextmanager
def open_hdf5(path: str | Path) -> Iterator[h5py.File]:
    """The file open for reading; failures of HDF5, also while it is read, become InputError."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist; check the name.")
    if path.is_dir():
        raise InputError(f"{path} is a folder; give an HDF5 file.")
    try:
        with path.open("rb") as file:
            signature = file.read(len(HDF5_SIGNATURE))
        if signature != HDF5_SIGNATURE and not h5py.is_hdf5(path):
            raise InputError(f"{path} is not an HDF5 file; give one, such as py4DSTEM saves.")
        with h5py.File(path, "r") as file:
            yield file
    except InputError:
        raise
    except PermissionError as error:
        raise InputError(f"{path} cannot be read; change its permissions.") from error
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError) as error:
        raise InputError(f"{path} is cut short or damaged; copy or save it again.") from error


def emd_attribute(node: h5py.HLObject, name: str) -> str | None:
    """An attribute of a group or dataset as text, None where it is not there."""
    return _plain(node.attrs.get(name))


def _plain(value):
    """An HDF5 value as str, number, list or None."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, bytes):
        return value.decode()
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _numbers(dataset: h5py.Dataset, path: str | Path, every: int = 1) -> np.ndarray:
    if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in "iufb":
        raise InputError(f"{path}: '{dataset.name}' is not an array of numbers; save it again.")
    if every == 1 or dataset.ndim < 2:
        return np.asarray(dataset[()])
    # strided reads of HDF5 are slow: whole rows are read, one after the other
    rows = [dataset[row][::every] for row in range(0, len(dataset), every)]
    return np.stack(rows) if rows else dataset[:0, ::every]


def holds_disks(path: str | Path) -> bool:
    """Whether an HDF5 file holds BraggVectors. Raises InputError for a file it cannot read."""
    with open_hdf5(path) as file:
        return bool(_bragg_groups(file))


def _bragg_groups(file: h5py.File) -> list[h5py.Group]:
    found = []

    def collect(_, node):
        is_group = isinstance(node, h5py.Group)
        if is_group and emd_attribute(node, "python_class") == "BraggVectors":
            found.append(node)

    file.visititems(collect)
    return found


def _bragg_group(file: h5py.File, path: str | Path) -> h5py.Group:
    """The only BraggVectors of a file, whatever its name and depth."""
    found = _bragg_groups(file)
    if not found:
        raise InputError(
            f"{path} holds no Bragg vectors; find disks with 'jaxstem detect', or with py4DSTEM's "
            "find_Bragg_disks and save them to EMD 1.0."
        )
    if len(found) > 1:
        names = ", ".join(group.name for group in found)
        raise InputError(f"{path} holds several sets of Bragg vectors ({names}); save one alone.")
    return found[0]


def emd_root(group: h5py.Group) -> h5py.Group:
    """The root of the EMD tree that holds the group; the file itself where none is marked."""
    while group.name != "/" and emd_attribute(group, "emd_group_type") != "root":
        group = group.parent
    return group


def emd_calibration(root: h5py.Group) -> dict:
    """The values and arrays of the calibration of an EMD tree, {} where there is none."""
    group = root.get("metadatabundle/calibration")
    return emd_metadata(group) if isinstance(group, h5py.Group) else {}


def emd_metadata(group: h5py.Group) -> dict:
    """The entries of an EMD metadata group: arrays stay arrays; entries stored as None left out."""
    values = {}
    for key, node in group.items():
        if isinstance(node, h5py.Dataset) and emd_attribute(node, "type") != "None":
            values[key] = node[()] if node.shape else _plain(node[()])
    return values


def _bragg_lists(group: h5py.Group, path: str | Path) -> h5py.Dataset:
    """The lists of disks of a set of Bragg vectors, in detector pixels, one for each position."""
    dataset = group.get("_v_uncal/data")
    kind = h5py.check_vlen_dtype(dataset.dtype) if isinstance(dataset, h5py.Dataset) else None
    if kind is None or not set(DISK_FIELDS) <= set(kind.names or ()):
        raise InputError(
            f"{path}: {group.name} has no lists of qx, qy and intensity; save the Bragg vectors "
            "again with py4DSTEM 0.14."
        )
    if dataset.ndim != 2:
        raise InputError(
            f"{path}: the Bragg vectors cover {dataset.ndim} scan axes instead of two; reshape "
            "them to (rows, columns) in py4DSTEM and save them again."
        )
    return dataset


def _joined_lists(
    lists: list[np.ndarray], kind: np.dtype
) -> tuple[np.ndarray, Int[np.ndarray, "positions"]]:
    """All disks of some positions in one array, and how many each position has."""
    counts = np.fromiter(map(len, lists), dtype=np.int64, count=len(lists))
    # joining the buffers is some 15 times as fast as np.concatenate on many short record arrays
    return np.frombuffer(b"".join(lists), dtype=kind), counts


def _check_finite(
    disks: np.ndarray,
    counts: Int[np.ndarray, "positions"],
    first_row: int,
    scan_shape: tuple[int, int],
    path: str | Path,
) -> None:
    finite = np.logical_and.reduce([np.abs(disks[name]) < LARGEST for name in DISK_FIELDS])
    if finite.all():
        return
    position = np.searchsorted(np.cumsum(counts), np.argmin(finite), side="right")
    row, column = np.divmod(position + first_row * scan_shape[1], scan_shape[1])
    raise InputError(
        f"{path}: a disk at scan position ({row}, {column}) has a position or intensity that is "
        "not finite; repeat the disk detection."
    )


def calibrate_disks(
    disks: np.ndarray,
    counts: Int[np.ndarray, "positions"],
    scan_shape: tuple[int, int],
    calibration: dict,
    path: str | Path,
) -> tuple[Float[np.ndarray, "total"], Float[np.ndarray, "total"]]:
    """(qx, qy) in 1/Å from detector pixels, in the order of py4DSTEM 0.14's `braggvectors.cal`.

    1. The origin (`qx0`, `qy0`: a number, or one for each position) is subtracted.
    2. Ellipse `a`, `b`, `theta` (rad, from the qx axis): the component along theta times b/a.
    3. The pixel size.
    4. `QR_rotation` (rad): with `QR_flip` qx and qy are exchanged first, then the vectors are
       turned by the angle from qx to qy. Without a rotation stored a flip has no effect.
    """

    def each_disk(name):
        value = calibration[name]
        if np.shape(value) not in [(), tuple(scan_shape)]:
            raise InputError(
                f"{path}: the calibration's {name} has shape {np.shape(value)} but the scan "
                f"{tuple(scan_shape)}; {RECALIBRATE}."
            )
        values = np.asarray(value)
        used = values if values.ndim == 0 else values.ravel()[counts > 0]
        if values.dtype.kind not in "iuf" or not np.isfinite(used).all():
            raise InputError(f"{path}: the calibration's {name} is not finite; {RECALIBRATE}.")
        return np.repeat(values.ravel(), counts) if values.ndim else values.astype(np.float64)

    def number(name):
        value = each_disk(name)
        if value.ndim:
            raise InputError(f"{path}: the calibration's {name} must be one number; {RECALIBRATE}.")
        return float(value)

    if "qx0" not in calibration or "qy0" not in calibration:
        raise InputError(
            f"{path} has no origin of the diffraction patterns; fit it in py4DSTEM "
            "(braggvectors.fit_origin) and save it again."
        )
    scale = stated_pixel_size(calibration, path)
    qx = disks["qx"].astype(np.float64) - each_disk("qx0")
    qy = disks["qy"].astype(np.float64) - each_disk("qy0")
    if {"a", "b", "theta"} <= calibration.keys():
        a, b, theta = each_disk("a"), each_disk("b"), each_disk("theta")
        if np.any(a <= 0) or np.any(b <= 0):
            raise InputError(f"{path}: the ellipse's axes are not positive; {RECALIBRATE}.")
        cos, sin = np.cos(theta), np.sin(theta)
        excess = (b / a - 1) * (qx * cos + qy * sin)
        qx, qy = qx + excess * cos, qy + excess * sin
    qx, qy = qx * scale, qy * scale
    if "QR_rotation" in calibration:
        angle = number("QR_rotation")
        if calibration.get("QR_flip"):
            qx, qy = qy, qx
        cos, sin = np.cos(angle), np.sin(angle)
        qx, qy = cos * qx - sin * qy, sin * qx + cos * qy
    return qx, qy


def stated_scan_step(calibration: dict) -> tuple[float, str]:
    """Distance of neighbouring positions and its unit; (1.0, "pixels") where none is stated."""
    step = calibration.get("R_pixel_size")
    if _is_number(step) and np.isfinite(step) and step > 0:
        return float(step), str(calibration.get("R_pixel_units") or "pixels")
    return 1.0, "pixels"


def stated_pixel_size(calibration: dict, path: str | Path) -> float:
    """Size of a detector pixel in 1/Å."""
    units = str(calibration.get("Q_pixel_units", "pixels"))
    factor = in_inverse_angstroms(units)
    remedy = (
        "give --pixel-size in 1/Å, or set calibration.set_Q_pixel_size(size) and "
        "set_Q_pixel_units('A^-1') in py4DSTEM and save it again"
    )
    if factor is None:
        raise InputError(
            f"{path}: the detector's pixel size is in '{units}' and not in 1/Å; {remedy}."
        )
    size = calibration.get("Q_pixel_size")
    if not _is_number(size) or not np.isfinite(size) or size <= 0:
        raise InputError(
            f"{path}: the detector's pixel size is {size} and not a positive number; {remedy}."
        )
    return factor * size


def in_inverse_angstroms(units: str) -> float | None:
    """A unit of reciprocal length (no 2π) in 1/Å, in any usual spelling; None for another unit."""
    plain = unicodedata.normalize("NFC", str(units)).replace("⁻¹", "^-1")
    return RECIPROCAL_UNITS.get(re.sub(r"[\s${}]", "", plain))


def angle_in_inverse_angstroms(units: str, voltage_kv: float | None) -> float | None:
    """A unit of scattering angle in 1/Å, θ / λ; None for another unit or without a voltage."""
    if units not in ANGLES or voltage_kv is None:
        return None
    return ANGLES[units] / electron_wavelength(1e3 * voltage_kv)


def without_angles(calibration: dict, voltage_kv: float | None) -> dict:
    """The calibration with a pixel size in 1/Å in the place of one in mrad, if it can be known."""
    factor = angle_in_inverse_angstroms(str(calibration.get("Q_pixel_units")), voltage_kv)
    size = calibration.get("Q_pixel_size")
    if factor is None or not _is_number(size):
        return calibration
    return calibration | {"Q_pixel_size": factor * size, "Q_pixel_units": "A^-1"}


def stated_voltage_kv(root: h5py.Group, path: str | Path) -> float | None:
    """Accelerating voltage in kV that any metadata of the EMD tree states, or None.

    py4DSTEM has no fixed place for it. Entries are known by name (voltage, beam_energy and the
    like); a unit in the name or the text counts, else numbers from 10,000 up are volts.
    """
    stated = {}

    def collect(_, node):
        match = VOLTAGE_KEY.fullmatch(node.name.rsplit("/", 1)[-1])
        if match and isinstance(node, h5py.Dataset) and node.shape == ():
            if "/metadatabundle/" in node.name:
                value = in_kv(_plain(node[()]), match.group(2))
                if value is not None:
                    stated[node.name] = value

    root.visititems(collect)
    if not stated:
        return None
    values = list(stated.values())
    if max(values) > 1.001 * min(values):
        texts = ", ".join(f"{value:g} kV in {name}" for name, value in stated.items())
        raise InputError(f"{path} states several voltages ({texts}); correct its metadata.")
    return values[0]


def in_kv(value, unit: str | None) -> float | None:
    """A stated voltage or energy in kV; None where it is no positive number."""
    if isinstance(value, str):
        match = VOLTAGE_TEXT.fullmatch(value)
        try:
            value = float(match.group(1)) if match else None
        except ValueError:
            value = None
        unit = (match and match.group(2)) or unit
    if not _is_number(value) or not np.isfinite(value) or value <= 0:
        return None
    in_kv = "k" in unit.lower() if unit else value < 1e4
    return float(value) if in_kv else value / 1e3
