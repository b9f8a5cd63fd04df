# SPDX-License-Identifier: GPL-3.0-or-later
"""Raw scans as detectors and other programs store them.

EMPAD, Merlin (MIB), Digital Micrograph, Blockfile, TVIPS, MRC (Direct Electron's too), TIFF,
HyperSpy (`.hspy`, `.zspy`) and Velox files are opened by RosettaSciIO, lazily: it says where in the
file each pattern lies, and patterns are read when they are asked for, so that a scan need not fit
in memory. What it reads at once is read by others: Dectris masters (Arina) with h5py, the pages of
a TIFF with tifffile (`pictures.py`, which has PNG and plain Zarr as well).

Three things differ between formats, and are settled here:

*Axes.* A `Cube` has (scan rows, scan columns, detector rows, detector columns). RosettaSciIO's
arrays have the slow axis first, and that is the row: of the scan (y) as of the detector, whose rows
are lab x (`qx`). Digital Micrograph also stores scans the other way round, detector axes first;
the tag "Data Order Swapped" tells, or the axes' units.

*The scan's shape.* Cameras store one pattern after the other. Where the file does not state rows
and columns they must be given; they are never guessed. A file of one pattern is a scan of one
position.

*Units.* A detector axis in 1/nm, 1/Å, or mrad (with the voltage) gives the pixel size; any other
unit (cm, pixels) does not, and the size must then be given. So must that of TVIPS and MRC files.
docs/file-formats.md lists what each format was tested with.
"""

from __future__ import annotations

import importlib
import logging
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np

from jaxstem.errors import InputError
from jaxstem.files.cube import Cube
from jaxstem.files.dectris import dectris_cube
from jaxstem.files.formats import format_of
from jaxstem.files.hdf5 import is_number, open_hdf5, plain_value
from jaxstem.files.pictures import pages_end, picture_signal, tiff_pages, with_unit, zarr_signals
from jaxstem.files.stack import ALL_FRAMES, Frames, checked_cube, framed
from jaxstem.files.units import VOLTAGE_KEY, angle_in_inverse_angstroms, in_inverse_angstroms, in_kv

_PLAUSIBLE = 1e-6, 10.0
"""Sizes of a detector pixel [1/Å]; others come of scales that nobody set."""

_NAMES = {
    "blockfile": "Blockfiles",
    "digitalmicrograph": "Digital Micrograph files",
    "emd": "Velox files",
    "empad": "EMPAD files",
    "hspy": "HyperSpy files",
    "mrc": "MRC files",
    "picture": "",
    "quantumdetector": "Merlin frames, their rows reversed",
    "tiff": "",
    "tvips": "TVIPS files",
    "zarr": "",
    "zspy": "HyperSpy files",
}
"""What each reader reads, and what is known of the detector's axes there; "" for what has no axes
of its own but is read as stored.
"""

_OPTIONS: dict[str, dict[str, Any]] = {
    "blockfile": {"chunks": -1},  # a view of the mapped file, whatever sizes it claims
    "digitalmicrograph": {"chunks": -1},
    "emd": {"select_type": "images"},
    "zspy": {"mode": "r"},
}
"""Of RosettaSciIO's readers."""

_MERLIN_HEADER = 384

_EMPAD_FRAME = 4 * 130 * 128
"""Bytes of a frame: 128 × 128 numbers and two lines that follow them."""


def raw_cube(
    path: str | Path,
    scan_shape: tuple[int, int] | None = None,
    voltage_kv: float | None = None,
    frames: Frames = ALL_FRAMES,
) -> Cube:
    """The scan in a file that `format_of` knows, without its patterns.

    scan_shape: (rows, columns), for files that do not state it; voltage_kv [kV] instead of the
    file's; frames: which of the file's are the scan. Raises InputError for a file that is missing,
    damaged or holds no scan, and where the scan's shape is not known or does not fit; `read` raises
    it for patterns that cannot be read.
    """
    path, reader = Path(path), format_of(path)
    if reader == "dectris":
        return dectris_cube(path, scan_shape, voltage_kv, frames)
    if not path.exists():
        raise InputError(f"{path} does not exist; check the name.")
    with _own_words(path):
        path, found, stated = _found(path, reader)
        data, axes = _ordered(found, reader)
        dtype, pages = np.dtype(data.dtype), None
        if reader == "tiff":
            pages, dtype = tiff_pages(path, found["number"])

    held = _sizes(path, reader)

    def fetch(*index: slice) -> np.ndarray:
        # a mapped file that has become shorter would end the process
        if _sizes(path, reader) != held:
            raise InputError(f"{path} has changed since it was opened; wait until it is written.")
        with _own_words(path):
            if pages is not None:
                return pages(index)
            return np.asarray(data[index].compute(scheduler="synchronous"))

    if data.ndim == 4:
        stated, read = data.shape[:2], fetch
    else:

        def read(rows: slice, columns: slice) -> np.ndarray:
            own = fetch(columns) if data.ndim == 3 else fetch()[None][columns]
            return own[None][rows]

    if voltage_kv is None:
        voltage_kv = _stated_voltage(found)
    if reader in ("tvips", "mrc"):  # a header that has pixels of a specimen [nm], if any
        axes = [*axes[:-2], *({key: a[key] for key in a if key != "units"} for a in axes[-2:])]
    pixel_size, calibration, pixel_units = _detector_scale(axes[-2:], voltage_kv)
    scan_step, scan_units = _scan_scale(axes[:-2])
    words = []
    with _own_words(path):  # tags may be of any kind
        if reader == "digitalmicrograph" and data.ndim > 2:
            turn, words = _digiscan(found, scan_step, scan_units)
            calibration |= turn
        elif found.get("of_information"):
            pixel_units, words = _of_information(found)
    order = f"as RosettaSciIO presents {_NAMES[reader]}" if _NAMES[reader] else "as stored"
    cube = Cube(
        shape=tuple(int(n) for n in ((1,) * 4 + data.shape)[-4:]),
        dtype=dtype,
        read=read,
        pixel_size=pixel_size,
        calibration=calibration,
        scan_step=scan_step,
        scan_units=scan_units,
        voltage_kv=voltage_kv,
        source=str(path),
        pixel_units=pixel_units,
        axes=", ".join([f"detector axes {order}", *words]),
    )
    return checked_cube(framed(cube, stated, scan_shape, frames))


def _sizes(path: Path, reader: str) -> list[int]:
    """Bytes of the files that hold the patterns; -1 of one that is not there any more."""
    files = [path]
    if reader == "empad":
        files += [path.with_suffix(".raw")]
    elif reader == "tvips":
        files = sorted(path.parent.glob(f"{escape(path.stem[:-3])}*.tvips"))
    return [each.stat().st_size if each.is_file() else -1 for each in files]


@contextmanager
def _own_words(path: Path) -> Iterator[None]:
    """Whatever a reader of foreign files trips over becomes one sentence."""
    try:
        yield
    except InputError:
        raise
    except PermissionError as error:
        raise InputError(f"{path} cannot be read; change its permissions.") from error
    except Exception as error:  # readers meet damage with errors of every kind
        raise InputError(
            f"{path} is cut short, damaged or of a kind that cannot be read; copy it again, or "
            "convert it to .hspy or py4DSTEM's HDF5."
        ) from error


def _found(path: Path, reader: str) -> tuple[Path, dict[str, Any], tuple[int, int] | None]:
    """The file that was opened, the scan in it as RosettaSciIO has signals, and (rows, columns)
    where they are stated beside the patterns.
    """
    logging.getLogger("rsciio").setLevel(logging.ERROR)
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    stated, options = None, _OPTIONS.get(reader, {})
    if reader == "picture":
        return path, picture_signal(path), None
    if reader == "zarr":
        return path, _scan_in(zarr_signals(path), path), None
    if reader == "mrc":
        return path, _mrc_signal(path), None
    if reader == "empad":
        path = _empad_xml(path)
    elif reader == "quantumdetector":
        number, stated = _merlin_scan(path)
        options = {"navigation_shape": (number,), "chunks": -1}
    elif reader in ("emd", "hspy"):
        with open_hdf5(path, lists=True):  # RosettaSciIO opens it as it is
            pass
    elif reader == "tiff" and not pages_end(path):
        raise ValueError("pages that go round in a circle")
    module = importlib.import_module(f"rsciio.{reader}")
    signals = module.file_reader(str(path), lazy=True, **options)
    if reader == "tiff":
        signals = [with_unit(signal, number) for number, signal in enumerate(signals)]
    return path, _scan_in(signals, path), stated


def _scan_in(found: list[dict[str, Any]], path: Path) -> dict[str, Any]:
    """The only scan among the signals of a file: four axes, or else a stack of patterns, or else
    one pattern.
    """
    ranks = [np.ndim(signal["data"]) for signal in found]
    images = [not any(axis.get("navigate") for axis in signal["axes"]) for signal in found]
    for rank in (4, 3, 2):
        scans = [
            signal
            for signal, n, image in zip(found, ranks, images, strict=True)
            if n == rank and (rank > 2 or image)
        ]
        if len(scans) > 1:
            raise InputError(f"{path} holds {len(scans)} scans; save one alone.")
        if scans:
            return scans[0]
    held = f"; its largest array has {max(ranks)} axes" if ranks else ""
    raise InputError(
        f"{path} holds no 4D-STEM scan{held}; give a file of patterns over scan rows and columns."
    )


def _ordered(found: dict[str, Any], reader: str) -> tuple[Any, list[dict[str, Any]]]:
    """The data and its axes, the scan's before the detector's."""
    data, axes = found["data"], found["axes"]
    order = sorted(range(data.ndim), key=lambda i: not axes[i].get("navigate", i < data.ndim - 2))
    if reader == "digitalmicrograph" and data.ndim == 4 and _detector_first(found):
        order = [2, 3, 0, 1]
    if order != list(range(data.ndim)):
        data = data.transpose(order)
    return data, [axes[i] for i in order]


def _detector_first(found: dict[str, Any]) -> bool:
    """Whether a Digital Micrograph scan is stored with the scan's axes running fastest."""
    tags = found["original_metadata"].get("ImageList", {}).get("TagGroup0", {})
    meta = tags.get("ImageTags", {}).get("Meta Data", {})
    if "Data Order Swapped" in meta:
        return str(meta["Data Order Swapped"]).lower() in ("0", "false")
    reciprocal = [
        in_inverse_angstroms(axis["units"]) or angle_in_inverse_angstroms(axis["units"], 300.0)
        for axis in found["axes"]
    ]
    if any(reciprocal):
        return bool(reciprocal[0] and not reciprocal[-1])
    return True


def _merlin_scan(path: Path) -> tuple[int, tuple[int, int] | None]:
    """Number of whole patterns in a MIB file, and (rows, columns) where its .hdr states them."""
    with path.open("rb") as file:
        fields = file.read(_MERLIN_HEADER).decode("ascii").split(",")
    if fields[6] == "R64":
        raise InputError(
            f"{path} holds raw (R64) frames of the Merlin chips, which are not read; convert it to "
            "counts (U08, U16 or U32) with the detector's software."
        )
    header, width, height = int(fields[2]), int(fields[4]), int(fields[5])
    number = path.stat().st_size // (header + width * height * int(fields[6][1:]) // 8)
    about = path.with_suffix(".hdr")
    if not about.exists():
        return number, None
    text = about.read_text(errors="replace")
    names = (
        r"Frames in Acquisition \(Number\)",
        r"Frames per Trigger \(Number\)",
        "ScanY",
        "ScanX",
    )
    lines = [re.search(rf"^{name}:\s*(\d+)", text, re.MULTILINE) for name in names]
    frames, triggered, rows, columns = (int(match.group(1)) if match else 0 for match in lines)
    if rows > 0 and columns > 0:
        return number, (rows, columns)
    if frames > triggered > 1 and frames % triggered == 0:  # a trigger a row, and not one for all
        return number, (frames // triggered, triggered)
    return number, (frames, 1) if frames > number == 1 else None  # cut short: no single pattern


def _mrc_signal(path: Path) -> dict[str, Any]:
    """The patterns of an MRC file; of Direct Electron's as scan rows and columns where the
    information file beside it says so of as many patterns as there are.

    RosettaSciIO finds that file and the positions of other scans than rasters, but gives all axes a
    step of 1; the scan's is put in its place.
    """
    from rsciio.mrc import file_reader

    plain = file_reader(str(path), lazy=True, chunks=-1, metadata_file=None)[0]
    about = path.with_name(re.sub(r"_movie$", "", path.stem) + "_info.txt")
    found, said = plain, {}
    for information in ("auto", *([str(about)] if about.is_file() else [])):
        with suppress(Exception):  # an information file that says nothing of use is none
            found = file_reader(str(path), lazy=True, metadata_file=information)[0]
            said = said or found["original_metadata"].get("de_metadata", {})
        if said:
            break
    else:
        return plain
    same = math.prod(found["data"].shape[:-2]) == math.prod(plain["data"].shape[:-2])
    if not same and said.get("Scan - Type", "Raster") == "Raster":
        found = plain | {"original_metadata": found["original_metadata"]}
    axes = [dict(axis) for axis in found["axes"]]
    if len(axes) == 4:
        step = _said_number(said, "Specimen Pixel Size X (nanometers)")
        axes[1] = axes[1] | ({"scale": step, "units": "nm"} if step else {"units": ""})
    volts = _said_number(said, "Instrument Accelerating Voltage (V)")
    metadata = {"Acquisition_instrument": {"TEM": {"beam_energy": volts and volts / 1e3}}}
    return found | {"axes": axes, "metadata": metadata, "of_information": True}


def _said_number(said: dict[str, Any], name: str) -> float | None:
    """A number above 0 of an information file, -1 there standing for none."""
    value = _number(said.get(name))
    return value if 0 < value < np.inf else None


def _of_information(found: dict[str, Any]) -> tuple[str | None, list[str]]:
    """Of Direct Electron's information file: the pixel size's units that cannot be used, in words,
    and where the scan's shape and step come from.

    RosettaSciIO takes "Diffraction Pixel Size" for 1/nm, the maker's own client for mrad, and the
    file does not say: it is not used.
    """
    said = found["original_metadata"]["de_metadata"]
    stated = _said_number(said, "Diffraction Pixel Size X") is not None
    units = "a unit that its information file does not name" if stated else None
    return units, ["scan by its information file"] if found["data"].ndim == 4 else []


def _digiscan(found: dict[str, Any], step: float, units: str) -> tuple[dict[str, Any], list[str]]:
    """Of a Digital Micrograph scan: entries of the calibration for its rotation, and where step and
    rotation come from, in words.

    DigiScan's "Rotation" [degrees] turns the scan, and patterns against it the other way: the sense
    in which LiberTEM's microscope_calibration (util/jeol_dm4.py) takes it, tried there on one
    microscope. What the camera itself is turned by no tag says.
    """
    tags = found["original_metadata"].get("ImageList", {}).get("TagGroup0", {})
    angle = plain_value(tags.get("ImageTags", {}).get("DigiScan", {}).get("Rotation"))
    words = [] if units == "pixels" else [f"scan step {step:g} {units} by its calibration"]
    if not is_number(angle) or not np.isfinite(angle):
        return {}, words
    words.append(f"scan turned by {angle:g}° by its tag DigiScan.Rotation")
    return {"QR_rotation": math.radians(-angle), "QR_flip": False}, words


def _empad_xml(path: Path) -> Path:
    """The .xml of an EMPAD scan, given it or its .raw; InputError where the .raw is cut short."""
    xml = path.with_suffix(".xml")
    if not xml.exists():
        raise InputError(f"{path}: the file {xml.name} is missing; put it beside the .raw.")
    from rsciio.empad import file_reader

    try:
        found = file_reader(str(xml), lazy=True)[0]
    except FileNotFoundError:
        found = None
    text = xml.read_text(errors="replace")
    match = re.search(r"<raw_file[^>]*filename=['\"]([^'\"\n\r\v\f]+)['\"]", text)
    raw = xml.parent / match.group(1) if match else path.with_suffix(".raw")
    if not raw.is_file():
        raise InputError(f"{xml}: its data {raw.name} is missing; put it beside the .xml.")
    if found is not None:
        expected = int(np.prod(found["data"].shape[:-2]))
        held = raw.stat().st_size // _EMPAD_FRAME
        if held < expected:
            raise InputError(
                f"{raw} is cut short: it holds {held} of {expected} patterns; copy it again."
            )
    return xml


def _detector_scale(
    axes: list[dict[str, Any]], voltage_kv: float | None
) -> tuple[float | None, dict[str, Any], str | None]:
    """Pixel size [1/Å] or None, the calibration, and the units that could not be used.

    Pixels that are not square become the ellipse of the calibration (`calibrate_disks`).
    """
    units = [_text(axis.get("units")) for axis in axes]
    factors = [
        in_inverse_angstroms(unit) or angle_in_inverse_angstroms(unit, voltage_kv) for unit in units
    ]
    scales = [abs(_number(axis.get("scale"))) for axis in axes]
    if not all(factors) or not all(0 < scale < np.inf for scale in scales):
        return None, {}, units[1] if units[1] else None
    row_size, column_size = (f * s for f, s in zip(factors, scales, strict=True))
    if not all(_PLAUSIBLE[0] <= size <= _PLAUSIBLE[1] for size in (row_size, column_size)):
        return None, {}, None
    calibration = {"Q_pixel_size": column_size, "Q_pixel_units": "A^-1"}
    if abs(row_size / column_size - 1) > 1e-6:
        calibration |= {"a": 1.0, "b": row_size / column_size, "theta": 0.0}
    return column_size, calibration, None


def _scan_scale(axes: list[dict[str, Any]]) -> tuple[float, str]:
    """Distance of neighbouring positions along a row, and its unit."""
    of_row = axes[-1] if len(axes) == 2 else {}
    scale, units = _number(of_row.get("scale")), _text(of_row.get("units"))
    if not units or units in ("px", "1") or not np.isfinite(scale) or scale <= 0:
        return 1.0, "pixels"
    return scale, units


def _number(value: Any) -> float:
    """What a file says, 0.0 where that is no number."""
    with suppress(OverflowError, TypeError, ValueError):
        return float(value)
    return 0.0


def _text(units: Any) -> str:
    """A unit as text, "" for hyperspy's undefined ones."""
    return units if isinstance(units, str) and units != "<undefined>" else ""


def _stated_voltage(found: dict[str, Any]) -> float | None:
    """Accelerating voltage in kV from the metadata, None where it states none or several."""
    tem = found.get("metadata", {}).get("Acquisition_instrument", {}).get("TEM", {})
    energy = in_kv(plain_value(tem.get("beam_energy")), None)
    if energy is not None:
        return energy
    stated = set()

    def collect(fields: Any) -> None:
        for name, value in fields.items():
            match = VOLTAGE_KEY.fullmatch(str(name))
            if isinstance(value, dict):
                collect(value)
            elif match and (energy := in_kv(plain_value(value), match.group(2))):
                stated.add(round(energy, 3))

    collect(found.get("original_metadata") or {})
    likely = {energy for energy in stated if 20 <= energy <= 3000}
    return likely.pop() if len(likely) == 1 else None
