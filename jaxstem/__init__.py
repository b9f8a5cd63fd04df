# SPDX-License-Identifier: GPL-3.0-or-later
"""Orientation and phase maps from 4D-STEM scans, in JAX.

    import jaxstem

    found = jaxstem.map_orientations("scan.h5", model="cu")   # an OrientationMap
    found.to_orix().plot()

The names below are all that most programs need; docs/python.md shows them. Each is imported, and
jax with it, when it is first used, and so are the modules, which have the rest.

Matrix products are in full single precision on every device. Left alone, jax multiplies float32
matrices in TF32 on a GPU and in bfloat16 on a TPU, with 10 and 7 bits of mantissa: rotations would
be off by 0.03° and excitation errors by as much as the width of a rocking curve. A program that has
set `jax_default_matmul_precision` itself is left its choice.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxstem.api import detect_disks as detect_disks
    from jaxstem.api import map_orientations as map_orientations
    from jaxstem.api import train as train
    from jaxstem.disks import read_scan as read_scan
    from jaxstem.io import OrientationMap as OrientationMap
    from jaxstem.io import read_disks as read_disks
    from jaxstem.model import load_model as load_model

__version__ = "0.1.0"

HOMES = {
    "read_disks": "jaxstem.io",
    "read_scan": "jaxstem.disks",
    "detect_disks": "jaxstem.api",
    "train": "jaxstem.api",
    "load_model": "jaxstem.model",
    "map_orientations": "jaxstem.api",
    "OrientationMap": "jaxstem.io",
}
"""The module that each name comes from."""

__all__ = ["__version__", *HOMES]  # noqa: PLE0604

if "jax" not in sys.modules:  # which reads it when it is loaded
    os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
elif sys.modules["jax"].config.jax_default_matmul_precision is None:
    sys.modules["jax"].config.update("jax_default_matmul_precision", "highest")


def __getattr__(name: str):
    if name in HOMES:
        globals()[name] = found = getattr(import_module(HOMES[name]), name)
        return found
    module = f"{__name__}.{name}"
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
    raise AttributeError(f"module 'jaxstem' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *HOMES})
