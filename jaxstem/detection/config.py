# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings of disk detection, and the images that they may name: detector mask, vacuum probe.

Numbers are checked here, when they are stated, and, as soon as the detector is known, against its
size (`DetectConfig.check_detector`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Shaped
from PIL import Image

from jaxstem.errors import InputError, require_between

Method = Literal["likelihood", "correlation"]

Subpixel = Literal["none", "poly", "upsampled"]


@dataclass(frozen=True)
class Correlation:
    """Settings of `method="correlation"`, steps 2 to 5 of `correlogram.py`.

    power: 1 cross-correlation, 0 phase correlation, between them hybrid; subpixel: how maxima are
    placed below a pixel; upsample: points a pixel of "upsampled"; blur: standard deviation of the
    correlogram's blur [px]; min_intensity: smallest height of a maximum, in electrons where power
    is 1; min_relative_intensity: the same as a share of the brightest disk's, or, with
    relative_to = n, of that of the disk which n are brighter than. Raises InputError for numbers
    that make no sense.
    """

    power: float = 1.0
    subpixel: str = "upsampled"
    upsample: int = 16
    blur: float = 0.0
    min_intensity: float = 0.0
    min_relative_intensity: float = 0.0
    relative_to: int = 0

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("correlation power", self.power, 0, 1),
            ("upsampling", self.upsample, 2, 256),
            ("blur", self.blur, 0, 100),
            ("smallest intensity", self.min_intensity, 0, 1e12),
            ("smallest relative intensity", self.min_relative_intensity, 0, 1),
            ("number of the disk that intensities are relative to", self.relative_to, 0, 1000),
        ):
            if not low <= value <= high:
                raise InputError(f"The {name} is {value:g}; give a number from {low} to {high:g}.")


@dataclass(frozen=True)
class DetectConfig:
    """Settings of the detection; None means: estimated from the data.

    method: "likelihood" (`likelihood.py`) for round, filled disks, "correlation"
    (`correlogram.py`) for any probe, with the settings `correlation`; radius, edge: of the
    aperture's image, and the width over which it falls to nothing [px]; probe: an image of the beam
    in vacuum instead, whose radial profile is taken, or by "correlation" all of it; mask: True for
    pixels to use (default: all that are alive); false_alarms: false disks a pattern that counting
    noise alone may make; threshold: smallest significance, instead (0: any); min_spacing: between
    disks [px]; border: disks nearer to the detector's edge are left out [px]; origin: the beam's
    centre (row, column) [px] where it cannot be seen; search: how far the beam may be from its mean
    place [px]; background_scale, roughness_scale: standard deviations of the blurs that estimate
    background and local spread [px]; structure: fit a slope across disks; gain: stored numbers per
    electron; pedestal: the stored number that stands for none; pixel_size [1/Å] instead of the
    file's; n_disks: most disks a pattern, more where that is not enough; chunk: patterns at a time
    (default: 32 on a CPU, whose caches they fill, 512 elsewhere); n_sample: patterns for the
    estimates. Raises InputError for numbers that make no sense.
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
    pedestal: float | None = None
    pixel_size: float | None = None
    n_disks: int = 64
    chunk: int | None = None
    n_sample: int = 128

    def __post_init__(self) -> None:
        for name, value, low, high, unit in (
            ("--radius", self.radius, 0.5, 1e4, "px"),
            ("edge", self.edge, 0.01, 1e4, "px"),
            ("--false-alarms", self.false_alarms, 1e-12, 100.0, "a pattern"),
            ("--threshold", self.threshold, 0.0, 1e4, "standard deviations"),
            ("min_spacing", self.min_spacing, 0.1, 1e4, "px"),
            ("border", self.border, 0.0, 1e4, "px"),
            ("search", self.search, 0.0, 1e4, "px"),
            ("background_scale", self.background_scale, 0.1, 1e4, "px"),
            ("roughness_scale", self.roughness_scale, 0.1, 1e4, "px"),
            ("--gain", self.gain, 1e-6, 1e6, ""),
            ("--pixel-size", self.pixel_size, 1e-6, 10.0, "1/Å"),
            ("n_disks", self.n_disks, 1, 10_000, ""),
            ("chunk", self.chunk, 1, 10**6, ""),
            ("n_sample", self.n_sample, 1, 10**6, ""),
        ):
            if value is not None:
                require_between(name, value, low, high, unit)
        check_pair("--origin", self.origin, 0.0, 1e6, "px")

    def check_detector(self, shape: tuple[int, int], source: str) -> None:
        """Raise InputError for lengths, an origin or a mask that do not fit a detector of (rows,
        columns), and for an origin without the size of a disk.

        A disk fits whose diameter is half of the smaller side at most: beside the direct beam there
        must be room for another one.
        """
        if self.origin is not None:
            row, column = self.origin
            if not (row < shape[0] and column < shape[1]):
                raise InputError(
                    f"{source}: --origin {row:g} {column:g} lies outside of the detector of "
                    f"{shape[0]} × {shape[1]} pixels; give the beam's row and column."
                )
            if self.radius is None and self.probe is None:
                raise InputError(
                    f"{source}: where the direct beam cannot be seen, the radius of a disk must be "
                    "given; set it in pixels."
                )
        if self.mask is not None and np.shape(self.mask) != tuple(shape):
            raise InputError(
                f"The mask has shape {np.shape(self.mask)} and the patterns of {source} {shape}; "
                "give one value for each detector pixel."
            )
        side = min(shape)
        for name, value, most in (
            ("--radius", self.radius, side / 4),
            ("edge", self.edge, side / 4),
            ("border", self.border, (side - 1) // 2),
            ("min_spacing", self.min_spacing, side),
        ):
            if value is not None and value > most:
                raise InputError(
                    f"{source}: {name} {value:g} is too large for a detector of {shape[0]} × "
                    f"{shape[1]} pixels; give {most:g} px at most."
                )


def check_pair(
    name: str, pair: tuple[float, float] | None, low: float, high: float, unit: str = ""
) -> None:
    """Raise InputError unless `pair` is None or two numbers from low to high."""
    if pair is None:
        return
    if np.shape(pair) != (2,):
        raise InputError(f"{name} {pair!r}: give two numbers.")
    for value in pair:
        require_between(name, value, low, high, unit)


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
        raise InputError(f"{path} is no file; give an .npy array or an image.")
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
    for name, value, known in (
        ("method", config.method, Method),
        ("subpixel", config.correlation.subpixel, Subpixel),
    ):
        if value not in get_args(known):
            raise InputError(f"The {name} is {value!r}; give one of {', '.join(get_args(known))}.")
    if config.method != "correlation" and config.correlation != Correlation():
        raise InputError("Settings of the correlation need the method 'correlation'.")
