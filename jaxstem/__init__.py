# SPDX-License-Identifier: GPL-3.0-or-later
"""Orientation and phase maps from 4D-STEM scans, in JAX.

    import jaxstem

    found = jaxstem.map_orientations("scan.h5", model="cu")   # an OrientationMap
    found.to_orix().plot()

The names below are all that most programs need; docs/python.md shows them. The rest is in rooms,
each with its table of contents. A name is imported, and jax with it, when it is first used.

Matrix products are in full single precision on every device. Left alone, jax multiplies float32
matrices in TF32 on a GPU and in bfloat16 on a TPU, with 10 and 7 bits of mantissa: rotations would
be off by 0.03° and excitation errors by as much as the width of a rocking curve. A program that has
set `jax_default_matmul_precision` itself is left its choice.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from jaxstem.api import detect_disks as detect_disks
    from jaxstem.api import map_orientations as map_orientations
    from jaxstem.api import train as train
    from jaxstem.detection.opening import read_scan as read_scan
    from jaxstem.files.emd import read_disks as read_disks
    from jaxstem.files.orientation_map import OrientationMap as OrientationMap
    from jaxstem.network.model import load_model as load_model

FLOORS = (
    ("errors", "version"),
    ("orientation",),
    ("crystal",),
    ("runtime",),
    ("diffraction",),
    ("files",),
    ("detection",),
    ("network",),
    ("verification",),
    ("training",),
    ("inference",),
    ("scan",),
    ("maps",),
    ("mapping",),
    ("api",),
    ("app", "io", "match", "probe", "export"),
)
"""The rooms from the ground up: a room imports only from those on floors below it. `io`, `match`,
`probe` and `export` are names of earlier versions, kept for scripts.
"""

if "jax" not in sys.modules:  # which reads it when it is loaded
    os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
elif sys.modules["jax"].config.jax_default_matmul_precision is None:
    sys.modules["jax"].config.update("jax_default_matmul_precision", "highest")

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    [room for floor in FLOORS for room in floor],
    {
        "api": ["detect_disks", "map_orientations", "train"],
        "detection.opening": ["read_scan"],
        "files.emd": ["read_disks"],
        "files.orientation_map": ["OrientationMap"],
        "network.model": ["load_model"],
        "version": ["__version__"],
    },
)

__all__ = [
    "OrientationMap",
    "__version__",
    "detect_disks",
    "load_model",
    "map_orientations",
    "read_disks",
    "read_scan",
    "train",
]
