# SPDX-License-Identifier: GPL-3.0-or-later
"""Pixel size and ellipticity of a scan from a crystal that is known to be in it.

Scales are tried over a wide range, on rings and on the spots of single patterns (`scale_search`).
Where one explains the disks and no other does so nearly as well, it is fitted: to the rings of all
disks (`ring_mixture`), or, where single crystals say more than rings do, to their spots. Where two
scales explain about as much, both are named and none is chosen.

The uncertainty is that of blocks of the scan that err together, since neighbouring patterns of one
grain do, and of rings that do, since one may be taken for another and texture fills some only; of
spots, also the scatter between patterns. It is wider where other assignments lie near that explain
as much. The result is written in py4DSTEM's terms (`files.calibrate_disks`): Q_pixel_size,
and a, b, theta.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jaxstem.crystal.cell import Crystal
from jaxstem.detection.ring_mixture import (
    Mixture,
    belonging,
    first_ring,
    fit_mixture,
    maximised,
    radius_gradients,
    to_scattering_vectors,
)
from jaxstem.detection.scale_search import Candidate, believed, rivals, search, widened
from jaxstem.errors import InputError
from jaxstem.files.scan import DiskScan

_LEAST_DISKS = 30

_LEAST_SPOTS = 9
"""Disks without which nothing is tried."""

REACH = 4.0

WITHIN = 0.75
"""By which share a pixel size that is given or stated may be too small, or another too large."""

_LEAST_CENTRED, _LARGEST_SPREAD = 0.75, 0.9
"""Of disks that lie on their rings: share in the middle half, and spread [px]."""

_BLOCKS = 5
"""Blocks along each side of the scan, among which the bootstrap draws."""

_HALF_SQUARE = 2e-4
"""Half of the square [1/Å²] of excitation errors as they are, and how far it is from that: that of
thin foils and of disks that are just seen is several times that of thick ones.
"""

_ROUNDS = 100
"""In which rings become as much smaller as their disks say."""

_LARGEST_ERROR = 0.0085
"""Relative error of a pixel size that is of no use."""

_PLACES = 0.004
"""Error [px] that all disks may share, away from the beam."""

_TIMES = 1.3
"""By which errors are larger than their estimates say, which are drawn from few rings."""


@dataclass(frozen=True)
class Calibration:
    """What `fit_rings` found; errors are standard deviations.

    pixel_size [1/Å a pixel] and its error: geometric mean over the directions; ellipticity:
    a/b - 1, how much longer rings are along theta than across it; theta [rad]: direction of their
    long axis from the qx axis; n_disks: disks that were fitted; share: of all disks beyond the
    beam; spread_px: robust standard deviation of the fitted disks' distances from their rings;
    phase: the crystals' names; rotation [rad]: from detector to scan axes, transpose and flip: what
    comes before it (`files.axes`), as given. Pixel sizes from tried_from to tried_to were tried;
    rival: the next likely one that is another, None where there is none, and rival_evidence: its
    log-likelihood above chance as a share of that of the one found.
    """

    pixel_size: float
    pixel_size_error: float
    ellipticity: float
    ellipticity_error: float
    theta: float
    n_disks: int
    share: float
    spread_px: float
    phase: str
    rotation: float | None = None
    transpose: bool | None = None
    flip: str | None = None
    tried_from: float | None = None
    tried_to: float | None = None
    rival: float | None = None
    rival_evidence: float | None = None

    def entries(self) -> dict[str, Any]:
        """Entries of a file's calibration as `open_scan` takes them.

        In py4DSTEM's terms the component along theta is multiplied by b/a, then all by the pixel
        size: with a b = 1 that along theta is pixel_size (b/a), that across it pixel_size.
        """
        ratio = 1 + self.ellipticity
        entries = {
            "Q_pixel_size": self.pixel_size * float(np.sqrt(ratio)),
            "Q_pixel_units": "A^-1",
            "a": float(np.sqrt(ratio)),
            "b": float(1 / np.sqrt(ratio)),
            "theta": self.theta,
        }
        if self.rotation is not None:
            entries["QR_rotation"] = self.rotation
        if self.transpose is not None:
            entries["QR_flip"] = self.transpose
        if self.flip is not None:
            entries["Q_flip"] = self.flip
        return entries


def fit_rings(
    scan: DiskScan,
    crystals: Sequence[Crystal],
    pixel_size: float | None = None,
    within: float = WITHIN,
    stated: float | None = None,
) -> Calibration:
    """Pixel size and ellipse from disks in detector pixels and the crystals in the scan.

    scan: read with the calibration `IN_PIXELS`; pixel_size [1/Å]: about what it may be, looked for
    up to 1 + `within` times larger and smaller; where None about what is `stated`, if rings may be
    seen with that, else everywhere. Raises InputError where there are too few disks, they do not
    lie on the crystal's rings, with pixels of that size could not, or where pixel sizes that differ
    explain them about equally.
    """
    x, pattern, block, strength = _beyond_beam(scan)
    if len(x) < _LEAST_SPOTS:
        raise InputError(
            f"{scan.source} has {len(x)} disks beyond the direct beam, too few to calibrate on; "
            f"give a scan with {_LEAST_SPOTS} or more."
        )
    radius = np.hypot(*x.T)
    if pixel_size is not None:
        source = f"{scan.source}: --pixel-size {pixel_size:g}"
        _check_reach(pixel_size * radius.max(), crystals, source)
    low, high = _range(crystals, radius, pixel_size, within, stated)
    phase = ", ".join(crystal.name for crystal in crystals)
    found = search(x, strength, pattern, crystals, low, high, scan.voltage_kv)
    if not found or not believed(found[0]):
        tried = f"with pixels of {low:.2g} to {high:.2g} 1/Å"
        raise InputError(
            f"{scan.source}: the disks do not lie on the rings of {phase}, or not on them alone, "
            f"{tried}; check the crystal, give a rough pixel size, or a scan without other phases."
        )
    best, others = found[0], rivals(found)
    if others:
        raise InputError(_undecided(scan.source, phase, best, others))
    start = np.array([best.scale / np.sqrt(1 - np.sum(np.square(best.ellipse))), *best.ellipse])
    if best.by_spots > best.on_rings:
        fitted = _by_spots(x, best, start)
    else:
        fitted = _by_rings(scan, x, block, crystals, start, phase)
    error = np.hypot(fitted.pop("relative_error"), widened(found) / 1.5)
    if error > _LARGEST_ERROR:
        raise InputError(
            f"{scan.source}: readings of the disks as {phase} about {best.scale:.6f} 1/Å a pixel "
            f"differ by {100 * error:.1f} % and do not lie on one scale; give patterns of more "
            "orientations, of another crystal or at another camera length."
        )
    next_best = next((other for other in found[1:] if _differ(best, other) > 0.015), None)
    return Calibration(
        **fitted,
        pixel_size_error=float(error * fitted["pixel_size"]),
        phase=phase,
        tried_from=float(low),
        tried_to=float(high),
        rival=next_best and next_best.scale,
        rival_evidence=next_best and max(round(next_best.evidence / best.evidence, 3), 0.0),
    )


def _differ(one: Candidate, other: Candidate) -> float:
    return abs(np.log(one.scale / other.scale))


def _undecided(source: str, phase: str, best: Candidate, others: list[Candidate]) -> str:
    """Why no scale is chosen, and what would tell."""
    sizes = [f"{candidate.scale:.6f}" for candidate in (best, *others[:3])]
    more = f" (and {len(others) - 3} more)" if len(others) > 3 else ""
    named = f"{', '.join(sizes[:-1])} and {sizes[-1]}{more} 1/Å a pixel"
    return (
        f"{source}: {named} explain the disks as {phase} about equally; give --pixel-size and "
        "--within, so that one of them lies in the range, or patterns of other orientations, of "
        "another crystal or at another camera length."
    )


def _range(crystals, radius, pixel_size, within: float, stated) -> tuple[float, float]:
    """Scales [1/Å] that are tried."""
    inner = min(map(first_ring, crystals))
    if pixel_size is None and stated and inner < stated * radius.max() < REACH:
        pixel_size, within = stated, WITHIN
    if pixel_size is not None:
        return pixel_size / (1 + within), pixel_size * (1 + within)
    # no detector reaches farther than REACH, and hardly all of the disks lie within the first ring
    low = inner / np.quantile(radius, 0.7)
    return low, max(min(REACH / radius.max(), 4 * inner / np.quantile(radius, 0.03)), 1.1 * low)


def _by_spots(x, best: Candidate, start: Float[np.ndarray, " 3"]) -> dict[str, Any]:
    """What the readings of single patterns say."""
    ellipticity, theta = _ellipse(start)
    used = best.readings
    scatter = np.std([r.ellipse for r in used], axis=0).max() if len(used) > 1 else 0.0
    alone = float(np.sqrt(np.mean([r.error**2 for r in used])))
    return {
        "pixel_size": best.scale,
        "relative_error": best.error * _TIMES,
        "ellipticity": ellipticity,
        "ellipticity_error": float(2 * np.hypot(2 * alone, scatter) / np.sqrt(len(used))),
        "theta": theta,
        "n_disks": sum(r.explained for r in used),
        "share": best.explained,
        "spread_px": float(np.mean([r.spread for r in used])),
    }


def _by_rings(scan, x, block, crystals, start, phase: str) -> dict[str, Any]:
    """The fit to the rings of all disks, from where the search ended."""
    fit = fit_mixture(x, crystals, float(start[0]), start, width=0.25)
    parameters, mixture = fit.parameters, fit.mixture
    belongs, index, distance = belonging(x, parameters, mixture)
    near = belongs.sum(1) > 0.5
    centred = _centred(x, parameters, mixture.lengths)
    sharp = mixture.width < _LARGEST_SPREAD and centred > _LEAST_CENTRED
    away = abs(np.log(parameters[0] / start[0]))
    if near.sum() < _LEAST_DISKS or not sharp or not parameters[0] > 0 or away > 0.03:
        raise InputError(
            f"{scan.source}: the disks do not lie on the rings of {phase}, or not on them alone; "
            "check the crystal, give a rough pixel size, or a scan without other phases."
        )
    ring = np.where(near, index[np.arange(len(x)), belongs.argmax(1)], -1)
    parameters, error = _shortened(x, parameters, mixture, (block, ring))
    # nor are disks found without any error that grows with their distance
    radius = np.mean(np.hypot(*x[near].T))
    error[0] = np.hypot(error[0], parameters[0] * _PLACES / radius)
    error[0] = np.hypot(error[0], parameters[0] * away / 2)
    error *= _TIMES
    ellipticity, theta = _ellipse(parameters)
    return {
        "pixel_size": float(parameters[0] * np.sqrt(1 - np.sum(parameters[1:] ** 2))),
        "relative_error": float(error[0] / parameters[0]),
        "ellipticity": ellipticity,
        "ellipticity_error": float(2 * np.hypot(*error[1:]) / np.sqrt(2)),
        "theta": theta,
        "n_disks": int(near.sum()),
        "share": float(near.mean()),
        "spread_px": float(mixture.width),
    }


def _shortened(x, parameters: Float[np.ndarray, " 3"], mixture: Mixture, clusters):
    """Parameters and their standard deviations when rings may be a little smaller than |g|.

    A reflection that is excited at a distance s_g from the Ewald sphere puts its disk at
    |g| - s_g² / (2 |g|), to first order; the mean of s_g² / 2 is fitted along, about what it is in
    foils of usual thickness, and the scale is as uncertain as that makes a ring smaller. Errors are
    those of disks that err together, in each way to group them: the sandwich of their summed scores
    (Cameron & Miller, J. Human Resources 50 (2015) 317).
    """
    lengths, shift, prior = mixture.lengths, _HALF_SQUARE, np.diag([0, 0, 0, 1 / _HALF_SQUARE**2])
    for _ in range(_ROUNDS):
        # which ring a disk belongs to depends on how much smaller they are
        moved_in = mixture._replace(lengths=lengths - shift / lengths)
        belongs, index, distance = belonging(x, parameters, moved_in)
        mixture = maximised(mixture, belongs, index, distance)
        length, gradient = lengths[index], radius_gradients(x, parameters)
        share = belongs / (mixture.width * parameters[0]) ** 2
        inverse = (share / length).sum(1)
        hessian = prior.copy()
        hessian[:3, :3] = (gradient * share.sum(1)[:, None]).T @ gradient
        hessian[:3, 3] = hessian[3, :3] = gradient.T @ inverse
        hessian[3, 3] += (share / length**2).sum()
        residual = share * distance * parameters[0]
        score = np.column_stack([gradient * residual.sum(1)[:, None], (residual / length).sum(1)])
        towards = [0, 0, 0, (_HALF_SQUARE - shift) / _HALF_SQUARE**2]
        change = np.linalg.solve(hessian, towards - score.sum(0))
        parameters, shift = parameters + change[:3], shift + change[3]
        if np.abs(change).max() < 1e-8:
            break
    # doubt about a disk's ring makes information less than the Hessian says
    inverse = np.linalg.pinv(score.T @ score + prior)
    variance = np.diag(inverse)
    for cluster in clusters:
        numbers = np.unique(cluster[cluster >= 0])
        if len(numbers) > 3:
            sums = np.array([score[cluster == number].sum(0) for number in numbers])
            meat = len(numbers) / (len(numbers) - 1) * sums.T @ sums + prior
            variance = np.maximum(variance, np.diag(inverse @ meat @ inverse))
    error = np.sqrt(variance[:3])
    # a scale's own share of it: how s_g grows with |g| differs between textures
    shorter = shift * belongs.sum() / (belongs * length**2).sum()
    error[0] = np.hypot(error[0], parameters[0] * shorter)
    return parameters, error


def ring_disks(scan: DiskScan) -> tuple[Float[np.ndarray, "n 2"], Int[np.ndarray, " n"]]:
    """Disks [px] beyond the direct beam, and the block of the scan in which each lies."""
    x, _, block, _ = _beyond_beam(scan)
    return x, block


def _beyond_beam(scan: DiskScan):
    """Disks [px] beyond the direct beam; pattern and block in which each lies, its intensity."""
    x = np.stack([scan.qx, scan.qy], -1).astype(np.float64)
    flat = np.repeat(np.arange(len(scan.offsets) - 1), np.diff(scan.offsets))
    row, column = np.divmod(flat, scan.scan_shape[1])
    blocks = [
        np.minimum(_BLOCKS * place // n, _BLOCKS - 1)
        for place, n in zip((row, column), scan.scan_shape, strict=True)
    ]
    beyond = np.hypot(*x.T) > 4.0
    block = _BLOCKS * blocks[0] + blocks[1]
    return x[beyond], flat[beyond], block[beyond], np.asarray(scan.intensity)[beyond]


def _check_reach(reach: float, crystals: Sequence[Crystal], stated: str) -> None:
    """Raise InputError unless rings may lie within the outermost disk's radius [1/Å], which a
    rough pixel size tells to a quarter, and a detector may reach there.
    """
    inner = min(map(first_ring, crystals))
    if not inner / 0.9 < reach < 1.25 * REACH:
        raise InputError(
            f"{stated} puts the outermost disk at {reach:.3g} 1/Å, and the rings lie from "
            f"{inner:.3g} to {REACH:g} 1/Å; give a rough pixel size, or none."
        )


def nearest_ring(x, parameters, lengths, reach: float):
    """Which disks lie within `reach` [1/Å] of one ring alone, and all distances [1/Å]; inf where
    two rings are as close to each other as disks scatter.
    """
    radius = np.hypot(*to_scattering_vectors(x, parameters).T)
    index = np.clip(np.searchsorted(lengths, radius), 1, max(len(lengths) - 1, 1))
    if len(lengths) > 1:
        index -= radius - lengths[index - 1] < lengths[index] - radius
    else:
        index = np.zeros(len(radius), int)
    gaps = np.diff(lengths, prepend=-np.inf, append=np.inf)
    lonely = np.minimum(gaps[:-1], gaps[1:]) > 2 * reach / 3
    residual = np.where(lonely[index], radius - lengths[index], np.inf)
    return np.abs(residual) < reach, residual


def _centred(x, parameters, lengths) -> float:
    """Share of the disks that lie in the middle half between the borders of their ring, and the
    standard error of a half; a half where rings have nothing to do with the disks, 1 where too few
    can be judged. The first and the last ring do not count, nor those with another one less than
    three pixels away.
    """
    radius = np.hypot(*to_scattering_vectors(x, parameters).T)
    borders = np.concatenate([[0.0], 0.5 * (lengths[1:] + lengths[:-1])])
    gaps = np.diff(lengths, prepend=0.0, append=np.inf)
    wide = np.minimum(gaps[:-1], gaps[1:]) > 3 * parameters[0]
    index = np.searchsorted(borders, radius, side="right") - 1
    above = np.append(np.diff(lengths) / 2, np.inf)
    below = np.insert(np.diff(lengths) / 2, 0, lengths[0] / 2)
    own = radius - lengths[index]
    half = np.where(own > 0, above[index], below[index])
    counted = wide[index] & (index > 0) & (index < len(lengths) - 1)
    if counted.sum() <= _LEAST_DISKS:
        return 1.0
    return float((np.abs(own) < half / 2)[counted].mean() + 0.5 / np.sqrt(counted.sum()))


def _ellipse(parameters) -> tuple[float, float]:
    """(a/b - 1, direction theta [rad] of the long axis) of the rings on the detector."""
    _, e1, e2 = parameters
    stretch = float(np.hypot(e1, e2))
    # q is stretched most where the rings on the detector are shortest
    theta = 0.5 * float(np.arctan2(e2, e1)) + np.pi / 2
    return (1 + stretch) / (1 - stretch) - 1, (theta + np.pi / 2) % np.pi - np.pi / 2
