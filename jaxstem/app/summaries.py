# SPDX-License-Identifier: GPL-3.0-or-later
"""What commands say of scans and maps, in numbers for programs and in one line for people."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxstem.files.orientation_map import OrientationMap
    from jaxstem.mapping import Overview


def disk_counts(out: Path, scan_shape: tuple[int, int], n_disks: int) -> dict[str, Any]:
    mean = n_disks / (scan_shape[0] * scan_shape[1])
    return {"files": [out], "scan_shape": scan_shape, "disks": n_disks, "disks_mean": mean}


def disk_summary(out: Path, scan_shape: tuple[int, int], n_disks: int) -> str:
    ny, nx = scan_shape
    return f"{ny} x {nx} positions, {n_disks / (ny * nx):.1f} disks each; wrote {out}"


def map_counts(found: OrientationMap | Overview) -> dict[str, Any]:
    """What there is to count in a map."""
    import numpy as np

    from jaxstem.files.orientation_map import NO_CRYSTAL

    assigned = found.phase >= 0

    def median(values: np.ndarray) -> float | None:
        known = values[assigned & np.isfinite(values)]
        return float(np.median(known)) if known.size else None

    return {
        "scan_shape": assigned.shape,
        "assigned": int(assigned.sum()),
        "no_crystal": int((found.phase == NO_CRYSTAL).sum()),
        "phases": {
            name: int((found.phase == index).sum()) for index, name in enumerate(found.phase_names)
        },
        "confidence_median": np.median(found.confidence[assigned]) if assigned.any() else None,
        "ambiguous_180": int(found.ambiguous_180.sum()),
        "explained_light_median": median(found.explained_light),
        "log_evidence_median": median(found.log_evidence),
    }


def map_summary(found: OrientationMap | Overview) -> str:
    """One line about a map, with a warning where no crystal was found."""
    from jaxstem.inference.exposure import MIN_DISKS

    told = map_counts(found)
    (ny, nx), assigned = told["scan_shape"], told["assigned"]
    parts = [f"{ny} x {nx} positions, {assigned} assigned ({100 * assigned / (ny * nx):.1f} %)"]
    if told["no_crystal"]:
        parts.append(f"{told['no_crystal']} without a crystal")
    if not assigned:
        if (found.n_disks < MIN_DISKS).all():
            parts.append("no position has enough disks within the model's k_max")
            parts.append("check the pixel size")
        return ", ".join(parts)
    if len(told["phases"]) > 1:
        shares = told["phases"].items()
        parts += [f"{name} {100 * count / assigned:.1f} %" for name, count in shares]
    if math.isfinite(told["confidence_median"]):
        parts.append(f"median confidence {told['confidence_median']:.2f}")
        parts.append(f"{told['ambiguous_180']} ambiguous by 180°")
    return ", ".join(parts)
