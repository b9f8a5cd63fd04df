# SPDX-License-Identifier: GPL-3.0-or-later
"""Simulated patterns as the scans that jaxstem reads; shared by the experiments."""

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
