# SPDX-License-Identifier: GPL-3.0-or-later
"""Calibrations in files and pictures, and the fit of one from a scan (`ring_fit.py`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxstem.crystal.cell import Crystal
from jaxstem.detection.opening import open_cube, open_disks
from jaxstem.detection.reading import ReadOptions
from jaxstem.detection.ring_fit import (
    WITHIN,
    Calibration,
    fit_rings,
    nearest_ring,
    ring_disks,
)
from jaxstem.detection.ring_mixture import rings, to_scattering_vectors
from jaxstem.errors import InputError
from jaxstem.files.axes import FLIPS
from jaxstem.files.scan import DiskScan
from jaxstem.runtime.paths import atomic_path, check_target

_FORMAT, _VERSION = "jaxstem-calibration", 1

IN_PIXELS = {
    "Q_pixel_size": 1.0,
    "Q_pixel_units": "A^-1",
    "a": 1.0,
    "b": 1.0,
    "theta": 0.0,
    "QR_rotation": 0.0,
    "QR_flip": False,
    "Q_flip": "none",
}
"""A calibration with which a scan's disks stay in detector pixels, as `fit_rings` takes them."""


def write_calibration(path: str | Path, found: Calibration, overwrite: bool = False) -> None:
    """Store a calibration as JSON. Raises InputError as `atomic_path` does."""
    with atomic_path(path, overwrite) as temporary:
        content = {"format": _FORMAT, "version": _VERSION, **asdict(found)}
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_calibration(path: str | Path) -> Calibration:
    """A calibration that `write_calibration` stored. Raises InputError for anything else."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is no file; check the name.")
    remedy = "make it again with 'jaxstem calibrate'"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format") != _FORMAT or content.pop("version") != _VERSION:
            raise InputError(f"{path} is no calibration of this version of jaxstem; {remedy}.")
        found = Calibration(**content)
        numbers = [found.pixel_size, found.ellipticity, found.theta, found.rotation or 0.0]
        usable = np.isfinite(numbers).all() and found.pixel_size > 0 and found.ellipticity > -1
        usable &= found.flip in (None, *FLIPS) and found.transpose in (None, True, False)
    except InputError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OSError):
        raise InputError(f"{path} is no calibration that jaxstem wrote; {remedy}.") from None
    if not usable:
        raise InputError(f"{path}: a number of the calibration makes no sense; {remedy}.")
    return found


def draw_calibration(
    scan: DiskScan, crystals: Sequence[Crystal], found: Calibration, path: str | Path
) -> None:
    """Picture of a calibration (PNG or any format of matplotlib): how many disks lie at which
    radius, with the crystal's rings, before and after the ellipse is taken out; and the distance
    from the nearest ring against the direction.
    """
    from matplotlib.figure import Figure  # which maps need not load

    x, _ = ring_disks(scan)
    stretch = found.ellipticity / (2 + found.ellipticity)
    turned = 2 * (found.theta - np.pi / 2)
    ellipse = stretch * np.array([np.cos(turned), np.sin(turned)])
    size = found.pixel_size / np.sqrt(1 - stretch**2)
    cases = {
        "round pixels": np.array([found.pixel_size, 0.0, 0.0]),
        "ellipse taken out": np.array([size, *ellipse]),
    }
    k_max = float(np.hypot(*to_scattering_vectors(x, cases["ellipse taken out"]).T).max())
    lengths, _, names = rings(crystals, k_max)
    canvas = Figure(figsize=(10, 6.5), layout="constrained")
    panels = canvas.subplots(2, 2, width_ratios=(2, 1), sharex="col", sharey="col")
    for (left, right), (title, parameters) in zip(panels, cases.items(), strict=True):
        q = to_scattering_vectors(x, parameters)
        radius = np.hypot(*q.T)
        bins = np.arange(0, k_max, 0.25 * found.pixel_size)
        left.hist(radius, bins, color="0.25", histtype="stepfilled")
        left.vlines(lengths, 0, 1, colors="tab:red", lw=0.8, transform=left.get_xaxis_transform())
        left.set(ylabel="disks", title=title, xlim=(0.6 * lengths[0], k_max))
        _, residual = nearest_ring(x, parameters, lengths, 3 * found.spread_px * found.pixel_size)
        near = np.abs(residual) < 2.0 * found.pixel_size
        direction = np.rad2deg(np.arctan2(x[:, 1], x[:, 0])) % 180
        percent = 100 * residual / np.where(near, radius - residual, 1.0)
        right.plot(direction[near], percent[near], ".", ms=1.5, alpha=0.25, color="0.25")
        at = np.arange(0, 180, 10)
        inside = [near & (direction >= low) & (direction < low + 10) for low in at]
        median = [np.median(percent[own]) if own.any() else np.nan for own in inside]
        right.plot(at + 5, median, "-", color="tab:red", lw=1.5)
        right.axhline(0, color="0.6", lw=0.8)
        limit = 4 * 100 * found.spread_px * found.pixel_size / lengths[0]
        right.set(ylabel="radius − ring (%)", ylim=(-limit, limit), xlim=(0, 180))
    top = panels[0, 0]
    last = -np.inf
    for length, name in zip(lengths, names, strict=True):
        if length - last > 0.025 * k_max:
            top.annotate(
                name,
                (length, 1.0),
                xycoords=top.get_xaxis_transform(),
                ha="left",
                va="top",
                rotation=90,
                fontsize=7,
                color="tab:red",
                xytext=(1, -2),
                textcoords="offset points",
            )
            last = length
    panels[1, 0].set_xlabel("|q| (1/Å)")
    panels[1, 1].set_xlabel("direction from qx (°)")
    canvas.suptitle(summary(found), fontsize=10)
    canvas.savefig(path, dpi=150)


def summary(found: Calibration) -> str:
    """One line about a calibration."""
    sure = found.ellipticity > 3 * found.ellipticity_error
    turned = f" along {np.rad2deg(found.theta):.0f}° from qx" if sure else ""
    return (
        f"{found.phase}: {found.pixel_size:.6f} ± {found.pixel_size_error:.6f} 1/Å a pixel, rings "
        f"longer by {100 * found.ellipticity:.2f} ± {100 * found.ellipticity_error:.2f} %{turned}; "
        f"{found.n_disks} disks, {found.spread_px:.2f} px from their rings"
    )


def about_rivals(found: Calibration) -> str:
    """One line about the other scales that were tried."""
    tried = f"pixel sizes from {found.tried_from:.6f} to {found.tried_to:.6f} 1/Å were tried"
    if found.rival is None:
        return f"{tried}, and no other than this explains the disks"
    share = f"{100 * found.rival_evidence:.0f} %"
    return f"{tried}; the next best, {found.rival:.6f}, has {share} of its evidence"


def stated_size(path: str | Path, options: ReadOptions) -> float | None:
    """The size of a pixel [1/Å] that a file states, None where it states none that can be used."""
    try:
        listed = open_disks(path, options)
        if listed is not None:
            return listed.instrument.pixel_size
        return open_cube(path, options).pixel_size
    except InputError:
        return None


def calibrate(
    open_in_pixels: Callable[[dict[str, Any]], DiskScan],
    crystals: Sequence[Crystal],
    out: str | Path,
    pixel_size: float | None = None,
    overwrite: bool = False,
    within: float = WITHIN,
    stated: float | None = None,
    **handed_on: Any,
) -> Calibration:
    """Fit, and write `out` (JSON) with its picture beside it.

    open_in_pixels: reads the scan with the calibration it is given; pixel_size, within and stated:
    as `fit_rings` takes them; handed_on: rotation [rad], transpose and flip, as a `Calibration`
    holds them. Raises InputError as `fit_rings` and `atomic_path` do.
    """
    out = Path(out)
    if out.suffix.lower() == ".png":
        raise InputError(f"{out} is the picture's name; name the calibration CALIBRATION.json.")
    check_target(out, overwrite)
    with atomic_path(out.with_suffix(".png"), overwrite) as picture:
        scan = open_in_pixels(IN_PIXELS)
        found = fit_rings(scan, crystals, pixel_size, within, stated)
        found = replace(found, **handed_on)
        draw_calibration(scan, crystals, found, picture)
        write_calibration(out, found, overwrite)
    return found
