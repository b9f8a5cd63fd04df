# SPDX-License-Identifier: GPL-3.0-or-later
"""Lists of disks that other programs made: CSV, and pyxem's `DiffractionVectors`.

Both hold calibrated disks already, centred on the direct beam: one line or one small array for each
disk or position. They become a `DiskScan` in memory; a disk takes some hundred bytes as text, so
that a scan too large to be read at once belongs into BraggVectors or a packed table instead.

A CSV has the columns y, x (scan row and column, from 0), qx, qy and intensity, named in its first
line; comments before it state what the numbers cannot:

    # units: 1/Å
    # scan_shape: 64 64
    # scan_step: 2.5 nm
    # voltage_kv: 300
    y,x,qx,qy,intensity
    0,0,0.4792,-0.0113,1204.5

`units` is needed, in 1/Å or 1/nm. Without `scan_shape` the scan ends with the last disk. Lines may
come in any order; a position without a line has no disks.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from jaxstem.errors import InputError
from jaxstem.files.scan import LARGEST, DiskScan, DiskSource, no_disk_at_all
from jaxstem.files.units import in_inverse_angstroms
from jaxstem.runtime.paths import atomic_path

COLUMNS = ("y", "x", "qx", "qy", "intensity")

_MOST_POSITIONS = 1 << 31

_STATEMENT = re.compile(r"#\s*([a-z_]+)\s*[:=]\s*(.*?)\s*$")

PIECE = 1 << 14
"""Positions written at once."""


def read_csv(path: str | Path) -> DiskScan:
    """The disks of a CSV file (see the module's docstring).

    Raises InputError for a file that is missing, is no text, lacks a column or its units, or holds
    a number that is not finite, not whole where it counts positions, or outside the scan.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist; check the name.")
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a file.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path} is no text in UTF-8; save it as CSV.") from None
    lines = text.splitlines()
    head = next((n for n, line in enumerate(lines) if line.strip() and line[0] != "#"), len(lines))
    names = [name.strip() for name in lines[head].split(",")] if head < len(lines) else []
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise InputError(
            f"{path} has no column '{missing[0]}'; name the columns {','.join(COLUMNS)} in the "
            "first line after the comments."
        )
    stated = dict(found.groups() for line in lines[:head] if (found := _STATEMENT.match(line)))
    factor = in_inverse_angstroms(stated.get("units", ""))
    if factor is None:
        raise InputError(
            f"{path} does not state its scattering vectors in 1/Å or 1/nm; begin it with the line "
            "'# units: 1/Å'."
        )
    body = [line for line in lines[head + 1 :] if line.strip() and line[0] != "#"]
    columns = [names.index(name) for name in COLUMNS]
    try:
        table = np.loadtxt(body, delimiter=",", usecols=columns, ndmin=2) if body else []
    except (ValueError, IndexError) as error:
        detail = str(error).split(";")[0].rstrip(".")
        raise InputError(
            f"{path}: after line {head + 1}, {detail}; give five numbers a line."
        ) from None
    table = np.asarray(table, np.float64).reshape(-1, len(COLUMNS))
    wrong = ~(np.abs(table) < LARGEST).all(1)
    wrong |= (table[:, :2] != np.floor(table[:, :2])).any(1) | (table[:, :2] < 0).any(1)
    if wrong.any():
        number = int(np.argmax(wrong))
        values = ",".join(f"{x:g}" for x in table[number])
        raise InputError(
            f"{path}: disk {number + 1} is {values}; give finite numbers, and scan positions "
            "counted from 0."
        )
    scan_shape = _stated_shape(stated.get("scan_shape"), table, path)
    row, column = (table[:, i].astype(np.int64) for i in (0, 1))
    step, units = _stated_step(stated.get("scan_step"), path)
    return flat_scan(
        row * scan_shape[1] + column,
        factor * table[:, 2:4],
        table[:, 4],
        scan_shape,
        step,
        units,
        _stated_voltage(stated.get("voltage_kv"), path),
        path,
    )


def _stated_shape(text: str | None, table: Float[np.ndarray, "n 5"], path: Path) -> tuple[int, int]:
    """Rows and columns of the scan, from the comment or the last positions with a disk."""
    largest = [int(x) + 1 for x in table[:, :2].max(0)] if len(table) else [0, 0]
    shape = [int(word) for word in re.findall(r"\d+", text or "")] if text else largest
    if len(shape) != 2 or min(shape) < 1 or np.prod(shape, dtype=float) > _MOST_POSITIONS:
        if not len(table) and text is None:
            raise InputError(f"{path} holds no disk at any position; repeat the disk detection.")
        raise InputError(
            f"{path}: a scan of {text or largest} positions makes no sense; write "
            "'# scan_shape: ROWS COLUMNS'."
        )
    if largest[0] > shape[0] or largest[1] > shape[1]:
        raise InputError(
            f"{path}: a disk lies at scan position ({largest[0] - 1}, {largest[1] - 1}) or beyond, "
            f"outside the stated {shape[0]} × {shape[1]}; correct the scan_shape."
        )
    return shape[0], shape[1]


def _stated_step(text: str | None, path: Path) -> tuple[float, str]:
    if text is None:
        return 1.0, "pixels"
    number, _, units = text.partition(" ")
    try:
        step = float(number)
    except ValueError:
        step = np.nan
    if not (np.isfinite(step) and step > 0 and units.strip()):
        raise InputError(f"{path}: the scan_step '{text}' is not like '2.5 nm'; correct it.")
    return step, units.strip()


def _stated_voltage(text: str | None, path: Path) -> float | None:
    if text is None:
        return None
    try:
        voltage_kv = float(text)
    except ValueError:
        voltage_kv = np.nan
    if not 1 <= voltage_kv <= 10_000:
        raise InputError(f"{path}: the voltage_kv '{text}' is no voltage in kV; correct it.")
    return voltage_kv


def flat_scan(
    position: Int[np.ndarray, " n"],
    vectors: Float[np.ndarray, "n 2"],
    intensity: Float[np.ndarray, " n"],
    scan_shape: tuple[int, int],
    scan_step: float,
    scan_units: str,
    voltage_kv: float | None,
    path: Path,
) -> DiskScan:
    """Disks in any order, sorted to their flat positions."""
    order = np.argsort(position, kind="stable")
    counts = np.bincount(position, minlength=scan_shape[0] * scan_shape[1])
    return DiskScan(
        qx=vectors[order, 0].astype(np.float32),
        qy=vectors[order, 1].astype(np.float32),
        intensity=intensity[order].astype(np.float32),
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        scan_shape=scan_shape,
        scan_step=scan_step,
        scan_units=scan_units,
        voltage_kv=voltage_kv,
        source=str(path),
    )


def write_csv(path: str | Path, source: DiskSource, overwrite: bool = False) -> int:
    """Store a scan as CSV, in 1/Å, some rows at a time; the number of disks.

    Raises InputError where the file exists and `overwrite` is False, or cannot be written, for a
    scan without any disk, and as the source does.
    """
    n_columns, total = source.scan_shape[1], 0
    statements = {
        "units": "1/Å",
        "scan_shape": "{} {}".format(*source.scan_shape),
        "scan_step": f"{source.scan_step!r} {source.scan_units}",
    }
    if source.voltage_kv is not None:
        statements["voltage_kv"] = f"{source.voltage_kv:g}"
    with atomic_path(path, overwrite) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(f"# {name}: {value}\n" for name, value in statements.items())
        file.write(",".join(COLUMNS) + "\n")
        for start, stop in source.pieces(PIECE):
            scan = source.read(start, stop)
            flat = np.repeat(np.arange(len(scan.offsets) - 1), np.diff(scan.offsets))
            columns = (start + flat // n_columns, flat % n_columns, scan.qx, scan.qy)
            table = np.column_stack([*columns, scan.intensity])
            np.savetxt(file, table, fmt=["%d", "%d", "%.7g", "%.7g", "%.7g"], delimiter=",")
            total += len(table)
        if not total:
            raise no_disk_at_all(source)
    return total
