# SPDX-License-Identifier: GPL-3.0-or-later
"""What the intensities of a scan's disks mean: the incident beam and the weakest disks listed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxstem.files.scan import DiskScan
from jaxstem.verification.config import FARTHEST, Limit

MIN_DISKS = 2
"""A pattern with fewer disks fits too many orientations to be given any."""

_FALSE_FACTOR = 4.0
"""How much stronger than the detection limit a lone disk may be and still count as false."""

N_RADII = 41
"""Radii at which the detection limit is known."""


class Exposure(NamedTuple):
    """What the intensities of a scan's disks mean.

    Per position: intensity of the incident beam in the disks' units, how well its logarithm is
    known, and whether disks weaker than those given were left out. For the whole scan: the weakest
    disks that are listed.
    """

    incident: Float[np.ndarray, " positions"]
    incident_sigma: Float[np.ndarray, " positions"]
    is_cut: Bool[np.ndarray, " positions"]
    limit: Limit

    def at(self, index: Int[np.ndarray, " n"]) -> Exposure:
        """The same for some positions."""
        return Exposure(*(x[index] for x in self[:3]), self.limit)


def scan_exposure(
    scan: DiskScan,
    k_min: float,
    k_max: float,
    limit: Limit | None = None,
    beam: float | None = None,
) -> Exposure:
    """Incident intensity of every position of a scan, and its detection limit if none is given.

    Where the direct beam (a disk within `k_min`, 1/Å) is listed, the incident beam is the sum of
    all disks; elsewhere `beam`, the scan's (`typical_beam`), or all that is listed where that is
    more. Where the scan's is not known, the disks are taken to hold 30 % of it, give or take a
    factor of twenty. A direct beam whose counts cannot be told (`Instrument.beam_unseen`) counts as
    none.
    """
    total, has_direct, direct = _totals(scan, k_min)
    position = np.repeat(np.arange(len(total)), np.diff(scan.offsets))
    positive = np.maximum(scan.intensity, 0.0).astype(np.float64)
    radius = np.hypot(scan.qx, scan.qy)
    elsewhere = total / 0.3 if beam is None else np.maximum(total, beam)
    incident = np.where(has_direct, total, elsewhere)
    incident = np.where(incident > 0, incident, 1.0)
    if limit is None:
        share = positive / incident[position]
        usable = ~direct & (share > 0)
        limit = detection_limit(position[usable], radius[usable], share[usable], k_max)
    sigma = np.where(has_direct, 0.1, 3.0 if beam is None else _BEAM_SIGMA)
    whole = np.zeros(len(total), bool)
    return Exposure(incident.astype(np.float32), sigma.astype(np.float32), whole, limit)


def _totals(
    scan: DiskScan, k_min: float
) -> tuple[Float[np.ndarray, " n"], Bool[np.ndarray, " n"], Bool[np.ndarray, " disks"]]:
    """Of each position the sum of its disks and whether the direct beam is one; which disks are it.

    Each position by itself: what is read with it must not change its last digit.
    """
    n = len(scan.offsets) - 1
    position = np.repeat(np.arange(n), np.diff(scan.offsets))
    positive = np.maximum(scan.intensity, 0.0).astype(np.float64)
    direct = np.hypot(scan.qx, scan.qy) <= k_min
    if scan.instrument.beam_unseen:
        return np.bincount(position, positive * ~direct, minlength=n), np.zeros(n, bool), direct
    has_direct = np.bincount(position[direct], minlength=n) > 0
    return np.bincount(position, positive, minlength=n), has_direct, direct


def typical_beam(scan: DiskScan, k_min: float) -> float | None:
    """The incident beam of a scan in its disks' units: the median sum where the direct beam (within
    `k_min`, 1/Å) is listed. None where it is not in half of the patterns that have disks. Where it
    cannot be told, what else is known of it (`Instrument.incident`).
    """
    if scan.instrument.beam_unseen:
        return scan.instrument.incident
    total, has_direct, _ = _totals(scan, k_min)
    listed = total[has_direct]
    return float(np.median(listed)) if 2 * len(listed) >= max((total > 0).sum(), 1) else None


_BEAM_SIGMA = 0.3
"""How well the logarithm of the incident beam is known from other positions of a scan."""


def detection_limit(
    position: Int[np.ndarray, " n"],
    radius: Float[np.ndarray, " n"],
    share: Float[np.ndarray, " n"],
    k_max: float,
) -> Limit:
    """The weakest disks listed, from all disks: their position in the scan, radius [1/Å] and share
    of the beam.

    Either disks above some share of the beam were listed: that at a radius below which 4 % of the
    disks near it lie, for the diffuse background hides more of them near the direct beam (where
    disks are few, near it means all). Or all above some ratio to the strongest of their pattern:
    that which one pattern in a hundred spans, of those with four disks or more. If that ratio to
    the strongest is in most patterns brighter than the limit by share, it was what decided;
    otherwise it only tells how bright the brightest patterns are.
    """
    of_pattern = np.unique(position, return_inverse=True)[1]
    number = np.bincount(of_pattern)
    weakest, strongest = np.full(len(number), np.inf), np.zeros(len(number))
    np.minimum.at(weakest, of_pattern, share)
    np.maximum.at(strongest, of_pattern, share)
    weakest, strongest = weakest[number >= 4], strongest[number >= 4]
    if len(weakest) >= 20:
        ratio = np.percentile(weakest / strongest, 1.0)
        if np.median(ratio * strongest) > np.percentile(share, 4.0):
            lowest = np.full(N_RADII, np.log(share.min()), np.float32)
            return Limit(lowest, np.log(ratio).astype(np.float32), np.float32(k_max))
    order = np.argsort(radius)
    radius, share = radius[order], share[order]
    overall = np.percentile(share, 4.0) if len(share) else 1e-3
    limit = np.full(N_RADII, overall)
    for place, centre in enumerate(np.linspace(0.0, k_max, N_RADII)):
        near = share[
            slice(*np.searchsorted(radius, [centre - 0.06 * k_max, centre + 0.06 * k_max]))
        ]
        if len(near) >= 50:
            limit[place] = np.percentile(near, 4.0)
    return Limit(np.log(limit).astype(np.float32), np.float32(-np.inf), np.float32(k_max))


def scan_reach(scan: DiskScan, k_min: float, k_max: float) -> float:
    """Radius [1/Å] up to which a scan lists disks, as a rule: that which holds 99.5 % of the bright
    ones, for weak ones may be false and lie anywhere. At most `FARTHEST`; `k_max` where disks are
    few.
    """
    radius = np.hypot(scan.qx, scan.qy)
    usable = (radius > k_min) & (scan.intensity > 0)
    radius, intensity = radius[usable], scan.intensity[usable]
    if len(radius) < _ENOUGH:
        return k_max
    bright = radius[intensity >= _BRIGHT * np.percentile(intensity, 4.0)]
    if len(bright) < _ENOUGH:
        return k_max
    return float(min(_BEYOND * np.percentile(bright, 99.5), max(FARTHEST, k_max)))


_ENOUGH = 200
"""Disks from which the reach of a scan can be told."""

_BRIGHT = 2.0
"""How much stronger than the weakest disks those are that are hardly ever false."""

_BEYOND = 1.01
"""By how much the reach exceeds the radius of the outermost disks."""


def count_disks(scan: DiskScan, k_min: float, k_max: float) -> Int[np.ndarray, " positions"]:
    """Number of usable disks at each position: positive, with k_min < |q| <= k_max [1/Å]."""
    radius = np.hypot(scan.qx, scan.qy)
    usable = (radius > k_min) & (radius <= k_max) & (scan.intensity > 0)
    before = np.concatenate([[0], np.cumsum(usable)])
    return np.diff(before[scan.offsets])


def looks_empty(scan: DiskScan, k_min: float, exposed: Exposure) -> Bool[np.ndarray, " positions"]:
    """Where there is no crystal by the count of disks alone: one beyond `k_min` [1/Å] at most, and
    that within `_FALSE_FACTOR` of the detection limit. A brighter one comes from some crystal.
    """
    counts = count_disks(scan, k_min, np.inf)
    share = scan.intensity / np.repeat(exposed.incident, np.diff(scan.offsets))
    beyond = np.hypot(scan.qx, scan.qy) > k_min
    is_bright = beyond & (share > _FALSE_FACTOR * np.exp(exposed.limit.log_share.min()))
    bright = np.concatenate([[0], np.cumsum(is_bright)])
    return (counts <= 1) & (np.diff(bright[scan.offsets]) == 0)
