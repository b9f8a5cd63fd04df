# SPDX-License-Identifier: GPL-3.0-or-later
"""The direct beam's centre over a scan, smoothed.

The drift of the beam is smooth, and a centre measured in one pattern is not certain: planes are
fitted about each position, as widely as predicts the measurements best.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from jaxtyping import Bool, Float
from scipy import fft

from jaxstem.errors import InputError


def smooth_origin(
    measured: Float[np.ndarray, "ny nx 2"], noise: float = np.inf
) -> Float[np.ndarray, "ny nx 2"]:
    """The beam's centre over the scan [px] from its noisy measurements, NaN where missing.

    Planes fitted about each position with normal weights. The width of the weights is the one
    that predicts measurements best from the others around them; measurements far from their
    prediction (a strong disk taken for the beam) do not take part. Where no prediction comes near
    the `noise` of the measurements [px] the beam jumps from a position to the next, and each keeps
    its own. Raises InputError where there is none at all.
    """
    known = np.isfinite(measured).all(-1)
    if not known.any():
        raise InputError("No direct beam was found at any position; give the origin in pixels.")
    departure = np.nan_to_num(np.abs(measured - _local_median(measured)).max(-1))
    known &= departure <= 8 * np.median(departure[known]) + 0.02
    widths = [0.7, 1.0, 1.5, 2.5, 4.0, 7.0, 12.0, 20.0, 40.0]
    widths = [w for w in widths if w <= max(1.0, max(measured.shape[:2]))]
    errors = []
    for width in widths:
        predicted, _ = _local_plane(measured, known, width, own=False)
        errors.append(np.median(np.abs(measured - predicted)[known], axis=0))
        if (errors[-1] > 2 * np.min(errors, axis=0)).all():
            break  # wider is worse still
    smoothed = np.empty_like(measured)
    for axis, best in enumerate(np.argmin(errors, axis=0)):
        width = widths[best]
        while True:  # widen until every position sees a few measurements
            result, seen = _local_plane(measured, known, width, own=True)
            if seen.min() >= min(3, known.sum()) or width > 4 * max(measured.shape[:2]):
                break
            width *= 2
        smoothed[..., axis] = result[..., axis]
        if errors[best][axis] > _STEADY + 3 * noise:
            smoothed[known, axis] = measured[known, axis]
    return smoothed


_STEADY = 0.1
"""How far [px] from its place by its neighbours a steady beam seems to be at most, for diffraction
takes light from one side of it."""


def _local_median(values: Float[np.ndarray, "ny nx 2"]) -> Float[np.ndarray, "ny nx 2"]:
    """Median over the 5 × 5 positions about each one, of those that are known."""
    padded = np.pad(values, ((2, 2), (2, 2), (0, 0)), constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(0, 1))
    windows = windows.reshape(*values.shape, 25)
    lonely = np.isnan(windows).all(-1, keepdims=True)
    return np.nanmedian(np.where(lonely, 0.0, windows), -1)


def _local_plane(
    values: Float[np.ndarray, "ny nx 2"], known: Bool[np.ndarray, "ny nx"], width: float, own: bool
) -> tuple[Float[np.ndarray, "ny nx 2"], Float[np.ndarray, "ny nx"]]:
    """Planes fitted with normal weights about each position, without its own value unless `own`,
    and the sum of the weights there.
    """
    line = lambda n: np.arange(-min(n - 1, math.ceil(3 * width)), min(n, math.ceil(3 * width) + 1))  # noqa: E731
    rows, columns = line(values.shape[0])[:, None] / width, line(values.shape[1])[None] / width
    weight = np.exp(-0.5 * (rows**2 + columns**2))
    if not own:
        weight[weight.shape[0] // 2, weight.shape[1] // 2] = 0
    basis = np.broadcast_arrays(1.0, rows, columns)
    pairs = list(itertools.combinations_with_replacement(range(3), 2))
    kernels = np.stack([weight * basis[i] * basis[j] for i, j in pairs])
    mean = values[known].mean(0)
    centred = np.moveaxis(np.where(known[..., None], values - mean, 0.0), -1, 0)
    right = _weighted_sums(centred[:, None], kernels[:3])
    normal = np.empty((*known.shape, 3, 3))
    for (i, j), total in zip(pairs, _weighted_sums(known.astype(float), kernels), strict=True):
        normal[..., i, j] = normal[..., j, i] = total
    seen = normal[..., 0, 0].copy()
    # slopes need support on both sides: a ridge of a tenth of a measurement
    normal += np.diag([1e-6, 0.1, 0.1])
    fitted = np.linalg.solve(normal, right.transpose(2, 3, 1, 0))[..., 0, :] + mean
    return fitted, seen


def _weighted_sums(
    fields: Float[np.ndarray, "... ny nx"], kernels: Float[np.ndarray, "... h w"]
) -> Float[np.ndarray, "... ny nx"]:
    """Sums about each position with the weights of a kernel, zeros outside."""
    (ny, nx), (h, w) = fields.shape[-2:], kernels.shape[-2:]
    shape = [fft.next_fast_len(a + b - 1, real=True) for a, b in ((ny, h), (nx, w))]
    flipped = fft.rfft2(kernels[..., ::-1, ::-1], shape)
    full = fft.irfft2(fft.rfft2(fields, shape) * flipped, shape)
    return full[..., h // 2 : h // 2 + ny, w // 2 : w // 2 + nx]
