# SPDX-License-Identifier: GPL-3.0-or-later
"""Which scale explains a scan's disks, and which others explain as much.

Every scale in a range is tried in two ways. The disks of all patterns lie on the crystal's *rings*
(`ring_mixture`), whatever the grains are; the spots of a few patterns are *read* as those of one
crystal (`zone_fit`), of which lengths and angles count. Both say by how much a scale is likelier
than chance. Disks that lie at the same place in many patterns are of one grain and count once, for
a grain may show by chance what another scale would.

A scale is believed where it explains most, and none that differs from it explains nearly as much.
Others that are so near that they matter little widen its error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxstem.crystal.cell import Crystal
from jaxstem.crystal.electron import electron_wavelength
from jaxstem.detection.ring_mixture import (
    RingFit,
    belonging,
    fit_mixture,
    likely_scales,
    ring_evidence,
)
from jaxstem.detection.zone_fit import Reading, read_spots, table_of
from jaxstem.errors import InputError

READ = 4
"""Patterns whose spots are read."""

_SUFFICE = 2
"""Patterns that suffice where they agree."""

_LEAST_SPOTS, _INNER_SPOTS = 5, 20
"""Spots of a pattern that is read, and how many suffice near the beam."""

_ENOUGH, _SURE, _ALONE = 200, 40.0, 2.0
"""Disks at places of their own, and their evidence, with which rings alone decide, and how many
times the usual lead before rivals they need for that.
"""

_COUNTED = 150
"""Disks at most that count as independent on rings, of which errors of the model are not."""

_MARGIN, _SHARE = 10.0, 0.12
"""What a rival lacks in log-likelihood, at least and as a share of the best one's."""

_LEAST = 35.0
"""Log-likelihood above chance without which nothing is believed."""

_MOST_OF_THEM = 0.5
"""Share of a pattern's spots that a reading must explain."""

_SAME, _NEAR, _FAR = 0.0012, 0.015, 0.04
"""ln of scales that are one, of such as widen the error, and that are no longer near."""

_LACK = 0.25
"""What scales near the best one lack that may still be right, as a share of its evidence."""

_CLOSE = 3.0
"""Distance [px] of rings that may be taken for one another."""

_ALIKE = 0.006
"""By how much readings of one scale differ, in ln s and in E."""


class Candidate(NamedTuple):
    """A scale [1/Å] with its ellipse (e1, e2), log-likelihood above chance by rings and by spots,
    relative error, share of the disks that it explains, and the readings by pattern.
    """

    scale: float
    ellipse: tuple[float, float]
    on_rings: float
    by_spots: float
    error: float
    explained: float
    readings: tuple[Reading, ...]

    @property
    def evidence(self) -> float:
        """Log-likelihood above chance [nat], by rings and spots together."""
        return self.on_rings + self.by_spots


def independent(x: Float[np.ndarray, "n 2"]) -> int:
    """Disks [px] at places of their own, opposite ones being one."""
    half = np.where((x[:, :1] > 0) | ((x[:, :1] == 0) & (x[:, 1:] > 0)), x, -x)
    return len(np.unique(np.round(half / 3.0).astype(int), axis=0))


def search(
    x: Float[np.ndarray, "n 2"],
    strength: Float[np.ndarray, " n"],
    pattern: Int[np.ndarray, " n"],
    crystals: Sequence[Crystal],
    low: float,
    high: float,
    voltage_kv: float | None,
) -> list[Candidate]:
    """All scales from `low` to `high` [1/Å a pixel] that explain anything, the likeliest first.

    x [px from the beam] and strength of the disks, and in which pattern each lies.
    """
    places = independent(x)
    rings = _by_rings(x, crystals, low, high, places)
    if places >= _ENOUGH and (only := _candidates(rings, [], x)) and _decides(only, _ALONE):
        return only
    read = []
    for number in _chosen(pattern):
        inside = pattern == number
        readings = []
        for crystal in crystals:
            try:
                table = table_of(crystal, 1.05 * high * np.hypot(*x[inside].T).max())
            except InputError:
                continue
            # the scales are compared by spots that reflections of the table reach under each
            reached = inside & (np.hypot(*x.T) < np.linalg.norm(table.g, axis=1).max() / high)
            own = reached if reached.sum() >= _INNER_SPOTS else inside
            wavelength = electron_wavelength(1e3 * (voltage_kv or 200.0))
            readings += read_spots(x[own], strength[own], table, wavelength, low, high)
        read.append((number, sorted(readings, key=lambda reading: -reading.gain)))
        if len(read) >= _SUFFICE and all(found and _explains(found[0]) for _, found in read):
            if _decides(_candidates([], [found for _, found in read], x)):
                break
    # patterns of one grain say nothing more by their rings
    plain = [number for number, readings in read if readings and _explains(readings[0])]
    if plain:
        others = ~np.isin(pattern, plain)
        few = others.sum() < 30 or len(np.unique(pattern[others])) < len(plain)
        rings = [] if few else _by_rings(x[others], crystals, low, high, independent(x[others]))
    return _candidates(rings, [readings for _, readings in read], x)


def _explains(reading: Reading) -> bool:
    return reading.gain > max(30, 3 * reading.spots) and reading.explained > 0.7 * reading.spots


def _decides(found: list[Candidate], lead: float = 1.0) -> bool:
    return bool(found) and found[0].evidence > _SURE and not rivals(found, lead)


def _by_rings(x, crystals, low, high, own) -> list[RingFit]:
    """Ring fits at all likely scales."""
    if len(x) < 10:
        return []
    x = x[:: max(1, len(x) // 3000)]
    weight = min(1.0, _COUNTED / len(x), own / len(x))
    fits = [
        fit_mixture(x, crystals, scale, rounds=18, most=1000)
        for scale in likely_scales(x, crystals, low, high)
    ]
    evident = lambda fit: fit._replace(evidence=ring_evidence(x, fit, weight))  # noqa: E731
    found = [evident(fit) for fit in fits if low < fit.parameters[0] < high]
    if not found:
        return []
    # where rings lie close together a fit ends at the next best of them
    scale, *ellipse = max(found, key=lambda fit: fit.evidence).parameters
    best = max(found, key=lambda fit: fit.evidence)
    if np.median(np.diff(best.mixture.lengths)) < _CLOSE * scale:
        for step in _finely(x, best):
            start = np.array([scale * (1 + step), *ellipse])
            fit = fit_mixture(x, crystals, scale, start, rounds=18, most=1000, width=0.25)
            if fit.parameters[0] > 0:
                found.append(evident(fit))
    # where rings are many and mostly empty even the true scale is less likely than a background
    # without rings: what counts is by how much it is likelier than others
    best = max(found, key=lambda fit: fit.evidence, default=None)
    others = [f.evidence for f in found if _apart(f, best) > _FAR]
    chance = min(float(np.median(others)) if others else 0.0, 0.0)
    return [fit._replace(evidence=fit.evidence - chance) for fit in found]


def _finely(x, fit: RingFit) -> list[float]:
    """Steps of a fit's scale at which another fit may begin: peaks of the likelihood near it."""
    steps = np.arange(-0.035, 0.0351, 0.001)
    mixture = fit.mixture._replace(weights=fit.mixture.expected, width=0.3)
    x = x[:: max(1, len(x) // 1000)]
    mixture = mixture._replace(background=mixture.background[: len(x)])
    likely = []
    for step in steps:
        parameters = fit.parameters * np.array([1 + step, 1, 1])
        belongs, _, _ = belonging(x, parameters, mixture)
        likely.append(-np.sum(np.log(np.maximum(1 - belongs.sum(1), 1e-9))))
    likely = np.array(likely)
    peaks = np.flatnonzero((likely >= np.roll(likely, 1)) & (likely >= np.roll(likely, -1)))
    return steps[peaks[np.argsort(-likely[peaks])][:9]].tolist()


def _apart(one: RingFit, other: RingFit) -> float:
    return abs(_of_ring(one)[0] - _of_ring(other)[0])


def _chosen(pattern: Int[np.ndarray, " n"]) -> list[int]:
    """Patterns to be read: of middling numbers of spots, in which few grains overlap."""
    numbers, counts = np.unique(pattern, return_counts=True)
    usable = counts >= _LEAST_SPOTS
    numbers, counts = numbers[usable], counts[usable]
    order = numbers[np.argsort(counts, kind="stable")]
    if len(order) <= READ:
        return order.tolist()
    return order[np.round(np.linspace(0.35, 0.95, READ) * (len(order) - 1)).astype(int)].tolist()


def _candidates(
    rings: list[RingFit], read: list[list[Reading]], x: Float[np.ndarray, "n 2"]
) -> list[Candidate]:
    """Scales by what rings and readings say together, the likeliest first, each one once."""
    # what explains some of the spots only is of grains that overlap, or none at all
    read = [[r for r in readings if r.explained > _MOST_OF_THEM * r.spots] for readings in read]
    places = [(_of_ring(fit), fit) for fit in rings]
    places += [((np.log(r.scale), *r.ellipse), r) for readings in read for r in readings]
    found = []
    for place, own in places:
        at = np.array(place)
        # of its own pattern a reading stands for itself, however good another near it is
        near = [
            max(
                (_agreed(r, at) for r in ([own] if any(r is own for r in readings) else readings)),
                default=None,
                key=_first,
            )
            for readings in read
        ]
        used = [(gain, r) for gain, r in (pair for pair in near if pair) if gain > 0]
        by_rings = [
            (_agreed_ring(fit, at), fit) for fit in ([own] if isinstance(own, RingFit) else rings)
        ]
        ring = max(by_rings, key=_first, default=(0.0, None))
        if not used and ring[1] is None:
            continue
        found.append(_together(at, ring, [r for _, r in used], sum(gain for gain, _ in used)))
    found.sort(key=lambda candidate: -candidate.evidence)
    apart: list[Candidate] = []
    for candidate in found:
        if all(abs(np.log(candidate.scale / other.scale)) > _SAME for other in apart):
            apart.append(candidate)
    return apart


def _first(pair):
    return pair[0]


def _of_ring(fit: RingFit) -> tuple[float, float, float]:
    scale, e1, e2 = fit.parameters
    return float(np.log(scale * np.sqrt(1 - e1**2 - e2**2))), float(e1), float(e2)


def _agreed(reading: Reading, at) -> tuple[float, Reading]:
    """What is left of a reading's gain at another scale and ellipse."""
    off = np.array([np.log(reading.scale), *reading.ellipse]) - at
    return reading.gain - 0.5 * float(np.sum((off / _ALIKE) ** 2)), reading


def _agreed_ring(fit: RingFit, at) -> float:
    off = np.array(_of_ring(fit)) - at
    return max(fit.evidence - 0.5 * float(np.sum((off / _ALIKE) ** 2)), 0.0)


def _together(at, ring, used: list[Reading], by_spots: float) -> Candidate:
    """One candidate: scale and ellipse by its readings, where spots say more, else by the rings."""
    on_rings, fit = ring
    if used and by_spots > on_rings:
        weight = np.array([r.explained / r.error**0.5 for r in used])
        values = np.array([(np.log(r.scale), *r.ellipse) for r in used])
        mean = weight @ values / weight.sum()
        share = weight / weight.sum()
        scatter = np.sqrt(np.sum(share**2 * (values[:, 0] - mean[0]) ** 2)) if len(used) > 1 else 0
        alone = np.sqrt(np.sum(share**2 * np.array([r.error**2 + 0.0015**2 for r in used])))
        error = float(np.hypot(alone, 1.3 * scatter))
        explained = sum(r.explained for r in used) / sum(r.spots for r in used)
    else:
        mean, error, explained = _of_ring(fit), 0.001, float(fit.mixture.share)
    ellipse = float(mean[1]), float(mean[2])
    scale = float(np.exp(mean[0]))
    return Candidate(scale, ellipse, on_rings, by_spots, error, explained, tuple(used))


def rivals(found: list[Candidate], lead: float = 1.0) -> list[Candidate]:
    """Scales that explain about as much as the best one, and are not near it; `lead`: how many
    times as far behind as usual others have to be.
    """
    best = found[0]
    lacking = [best.evidence - other.evidence for other in found]
    off = [abs(np.log(other.scale / best.scale)) for other in found]
    return [
        other
        for other, lack, far in zip(found, lacking, off, strict=True)
        if far > _NEAR
        and lack < lead * max(_MARGIN, (_SHARE if far > _FAR else 1.5 * _SHARE) * best.evidence)
    ]


def widened(found: list[Candidate]) -> float:
    """Relative error of the best scale's assignment: how far others are that explain as much."""
    best = found[0]
    least = best.evidence - max(_MARGIN, _LACK * best.evidence)
    off = [abs(np.log(other.scale / best.scale)) for other in found[1:] if other.evidence > least]
    return max((far for far in off if far <= _NEAR), default=0.0)


def believed(best: Candidate) -> bool:
    """Whether a scale explains more than chance would, and most of the spots that were read."""
    if best.by_spots > best.on_rings:
        return best.evidence > _LEAST and best.explained > _MOST_OF_THEM
    return best.evidence > _LEAST
