# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings of disk detection, and the images that they may name: detector mask, vacuum probe."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Shaped
from PIL import Image

from jaxstem.errors import InputError

Method = Literal["likelihood", "correlation"]

Subpixel = Literal["none", "poly", "upsampled"]


@dataclass(frozen=True)
class Correlation:
    """Settings of `method="correlation"`, steps 2 to 5 of `correlogram.py`.

    power: 1 cross-correlation, 0 phase correlation, between them hybrid; subpixel: how maxima are
    placed below a pixel; upsample: points a pixel of "upsampled"; blur: standard deviation of the
    correlogram's blur [px]; min_intensity: smallest height of a maximum, in electrons where power
    is 1; min_relative_intensity: the same as a share of the brightest disk's, or, with
    relative_to = n, of that of the disk which n are brighter than.
    """

    power: float = 1.0
    subpixel: str = "upsampled"
    upsample: int = 16
    blur: float = 0.0
    min_intensity: float = 0.0
    min_relative_intensity: float = 0.0
    relative_to: int = 0


@dataclass(frozen=True)
class DetectConfig:
    """Settings of the detection; None means: estimated from the data.

    method: "likelihood" (`likelihood.py`) for round, filled disks, "correlation"
    (`correlogram.py`) for any probe, with the settings `correlation`; radius, edge: of the
    aperture's image, and the width over which it falls to nothing [px]; probe: an image of the beam
    in vacuum instead, whose radial profile is taken, or by "correlation" all of it; mask: True for
    pixels to use (default: all that are alive); false_alarms: false disks a pattern that counting
    noise alone may make; threshold: smallest significance, instead; min_spacing: between disks
    [px]; border: disks nearer to the detector's edge are left out [px]; origin: the beam's centre
    (row, column) [px] where it cannot be seen; search: how far the beam may be from its mean place
    [px]; background_scale, roughness_scale: standard deviations of the blurs that estimate
    background and local spread [px]; structure: fit a slope across disks; gain: stored numbers per
    electron; pixel_size [1/Å] instead of the file's; n_disks: most disks a pattern, more where
    that is not enough; chunk: patterns at a time (default: 32 on a CPU, whose caches they fill, 512
    elsewhere); n_sample: patterns for the estimates.
    """

    method: str = "likelihood"
    correlation: Correlation = Correlation()
    radius: float | None = None
    edge: float | None = None
    probe: np.ndarray | None = None
    mask: np.ndarray | None = None
    false_alarms: float = 0.02
    threshold: float | None = None
    min_spacing: float | None = None
    border: float | None = None
    origin: tuple[float, float] | None = None
    search: float | None = None
    background_scale: float | None = None
    roughness_scale: float | None = None
    structure: bool = True
    gain: float | None = None
    pixel_size: float | None = None
    n_disks: int = 64
    chunk: int | None = None
    n_sample: int = 128


DEFAULT = DetectConfig()


def read_mask(path: str | Path) -> Bool[np.ndarray, "H W"]:
    """Detector pixels to use, as `DetectConfig.mask` takes them, from a file that marks those to
    leave out: dead pixels, a beam stop.

    An `.npy` array, or an image (PNG, TIFF, ...), in which everything but zero (black) is left out.
    Raises InputError for a file that is missing or is neither, and where nothing would be left.
    """
    marked = _image(path, "0 for those to use")
    if (marked != 0).all():
        raise InputError(
            f"{path} marks every pixel; mark those to leave out, and leave the rest 0."
        )
    return marked == 0


def read_probe(path: str | Path) -> Shaped[np.ndarray, "h w"]:
    """An image of the beam in vacuum, as `DetectConfig.probe` takes it, from an `.npy` array or an
    image of grey levels (PNG, TIFF, ...).

    Raises InputError for a file that is missing or is neither.
    """
    return _image(path, "the counts of the beam in vacuum")


def _image(path: str | Path, meaning: str) -> Shaped[np.ndarray, "h w"]:
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist; give an .npy array or an image.")
    try:
        if path.suffix.lower() == ".npy":
            image = np.load(path, allow_pickle=False)
        else:
            with Image.open(path) as opened:
                grey = opened.mode in ("I", "F") or opened.mode.startswith("I;16")
                image = np.asarray(opened if grey else opened.convert("L"))
    except Exception as error:  # Pillow and NumPy meet damage with errors of every kind
        raise InputError(
            f"{path} is neither an .npy array nor an image that can be read; save it again."
        ) from error
    if image.ndim != 2 or image.dtype.kind not in "biuf" or not np.isfinite(image).all():
        raise InputError(
            f"{path} holds an array of shape {image.shape} and kind {image.dtype}; give one "
            f"finite number for each detector pixel, {meaning}."
        )
    return image


def check_method(config: DetectConfig) -> None:
    """Raises InputError where the method or its settings are none, or belong to another method."""
    of = config.correlation
    for name, value, known in (
        ("method", config.method, Method),
        ("subpixel", of.subpixel, Subpixel),
    ):
        if value not in get_args(known):
            raise InputError(f"The {name} is {value!r}; give one of {', '.join(get_args(known))}.")
    if config.method != "correlation" and of != Correlation():
        raise InputError("Settings of the correlation need the method 'correlation'.")
    for name, value, low, high in (
        ("correlation power", of.power, 0, 1),
        ("upsampling", of.upsample, 2, 256),
        ("blur", of.blur, 0, 100),
        ("smallest intensity", of.min_intensity, 0, math.inf),
        ("smallest relative intensity", of.min_relative_intensity, 0, 1),
        ("number of the disk that intensities are relative to", of.relative_to, 0, 1000),
    ):
        if not low <= value <= high:
            raise InputError(f"The {name} is {value:g}; give a number from {low} to {high:g}.")
