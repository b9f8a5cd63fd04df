# SPDX-License-Identifier: GPL-3.0-or-later
"""Simulated patterns as the scans that jaxstem reads, and how alike two of them are."""

import numpy as np

from jaxstem.diffraction.geometry import Disks
from jaxstem.files.scan import DiskScan


def scan_of(disks: Disks, voltage_kv: float) -> DiskScan:
    """Patterns (n, K) as a scan of one row; positions in 1/Å."""
    mask = np.asarray(disks.mask)
    flat = lambda x: np.asarray(x, np.float32)[mask]  # noqa: E731
    return DiskScan(
        flat(disks.qx),
        flat(disks.qy),
        flat(disks.intensity),
        np.concatenate([[0], np.cumsum(mask.sum(axis=1))]),
        (1, len(mask)),
        1.0,
        "pixels",
        voltage_kv,
        "simulated",
    )


def likeness(one: Disks, other: Disks, reach: float = 0.01) -> float:
    """Cosine of two patterns' amplitudes, disks within `reach` [1/Å] of each other being the same.

    0 … 1, of the patterns without the direct beam.
    """
    a, b = (np.sqrt(np.where(d.mask, np.maximum(d.intensity, 0), 0)) for d in (one, other))
    apart = np.hypot(
        np.asarray(one.qx)[:, None] - np.asarray(other.qx),
        np.asarray(one.qy)[:, None] - np.asarray(other.qy),
    )
    shared = (apart < reach) * a[:, None] * b
    return float(shared.max(axis=1).sum() / (np.linalg.norm(a) * np.linalg.norm(b)))
