# SPDX-License-Identifier: GPL-3.0-or-later
"""Every way to read the spots of a pattern as those of one crystal, whatever the scale.

Two spots of a pattern and two reflections of the crystal, of like ratio of lengths and angle, say
how large a pixel is and how the crystal lies: its reflections g (1/Å) lie on the detector at

    x = P g + c,      P = (1/s) (1 + E)^-1 Q

with two rows of a rotation Q, the scale s and the ellipse E of `ring_fit`, and a shift c of the
beam. P is linear, so that it is fitted to all spots by least squares; its polar decomposition has
s and E. A *reading* is such a P, and how much better it explains the spots than chance does: each
reflection is seen with a probability that rises with its intensity, and then within the scatter of
the spots about its place; the other spots lie anywhere. What is predicted and not seen counts
against a reading as what is seen and not predicted does, lest dense nets explain all.

Shapes: `N` reflections, `M` spots, `H` readings.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jaxstem.crystal.cell import Crystal, reflections, symmetry_operations

MOST_SPOTS = 48
"""Of a pattern that are read, the strongest."""

_INNER = 10
"""Spots next to the beam by which readings are looked through."""

_PAIRS, _MOST_READINGS = 14, 6000
"""Pairs of spots from which readings start, and readings of each at most."""

_NEXT, _ONE_SPOT = 12, 1.5
"""Spots next to the beam of which pairs are made, and distance [px] below which two are one: in
nets of large cells neighbours lie close, of which one may be far out of the plane of the others.
"""

_REFINED, _KEPT = 300, 80
"""Readings that are fitted to all spots, and those of them that are fitted to the end."""

_OF_A_SCALE = 8
"""Readings of a scale, to 3 %, besides the best of all."""

_MOST_STRETCHED = 0.05
"""Largest |E| of a reading."""

_STRETCH = 0.012
"""|E| of a microscope as any, the width of a Cauchy distribution."""

_WIDTH = 0.025
"""Excitation error [1/Å] at which a reflection has half its intensity."""

_FARTHEST = 0.1
"""Excitation error [1/Å] beyond which no reflection is seen."""

_TILTS = {0: 3.0, 2: 1.5, 4: 0.7, 6: 0.4}
"""Rounds of the fit in which tilts are tried, and by how many degrees they differ."""

_LOOSELY = 0.06
"""Tilt [rad] by which the plane of two short reflections misses that across the beam."""

_SURELY, _FAINTER = 0.92, 0.75
"""Probability of the strongest reflections to be seen, and the power of the intensity in it."""

_MOST_REFLECTIONS = 5000


class Table(NamedTuple):
    """Reflections of a crystal, the shortest first: g [1/Å], intensity |F|² [Å²], and whether each
    stands for those that symmetry makes of it.
    """

    g: Float[np.ndarray, "N 3"]
    intensity: Float[np.ndarray, " N"]
    first: Bool[np.ndarray, " N"]


class _Fit(NamedTuple):
    """A reading while it is fitted: P, shift and spread [px], gain, and which spots it explains."""

    p: Float[np.ndarray, "2 3"]
    shift: Float[np.ndarray, " 2"] = np.zeros(2)
    spread: float = 2.0
    gain: float = -np.inf
    used: Bool[np.ndarray, " M"] | None = None


class Reading(NamedTuple):
    """One way to read a pattern.

    scale [1/Å a pixel]: geometric mean over directions; ellipse: (e1, e2) as of `ring_fit`; gain:
    log-likelihood above that of spots anywhere; explained: how many spots; spots: so many were
    there; spread: of the explained ones [px]; error: relative, of the scale, by their scatter.
    """

    scale: float
    ellipse: tuple[float, float]
    gain: float
    explained: int
    spots: int
    spread: float
    error: float


def table_of(crystal: Crystal, reach: float) -> Table:
    """Reflections up to `reach` [1/Å], fewer where there are too many. Raises InputError where
    there is none.
    """
    volume = abs(np.linalg.det(crystal.lattice))
    reach = min(reach, (3 * _MOST_REFLECTIONS / (4 * np.pi * volume)) ** (1 / 3))
    found = reflections(crystal, reach, u_iso=0.006)
    turned = np.round(np.einsum("oij,nj->noi", symmetry_operations(crystal), found.g), 4)
    turned = np.concatenate([turned, -turned], 1) @ np.array([1.0, 1e3, 1e6])
    return Table(
        found.g,
        np.abs(found.structure_factor) ** 2,
        turned[:, 0] >= turned.max(1) - 1e-6 * np.abs(turned).max(),
    )


def read_spots(
    x: Float[np.ndarray, "M 2"],
    strength: Float[np.ndarray, " M"],
    table: Table,
    wavelength: float,
    low: float,
    high: float,
) -> list[Reading]:
    """Readings of a pattern's spots [px from the beam] with scales from `low` to `high` [1/Å], the
    likeliest first. None where two spots do not span a plane. `wavelength` [Å] of the electrons.
    """
    x = x[np.argsort(-strength, kind="stable")[:MOST_SPOTS]]
    x = x[np.argsort(np.hypot(*x.T), kind="stable")]
    view = np.abs(x).max(0) + 1.0
    starts = [_starts(x, pair, table, low, high) for pair in _pairs(x)]
    starts = [p for p in starts if len(p)]
    if not starts:
        return []
    start = np.concatenate(starts)
    coarse = _looked_through(start, x, table, wavelength)
    fits = [_Fit(start[index]) for index in _various(coarse, _scales(start)[0], _REFINED)]
    for rounds, most in ((range(3), _KEPT), (range(3, 7), _KEPT)):
        fits = [_fitted(fit, rounds, x, view, table, wavelength) for fit in fits]
        fits = [fit for fit in fits if np.isfinite(fit.gain)]
        if not fits:
            return []
        gain, p = np.array([fit.gain for fit in fits]), np.array([fit.p for fit in fits])
        fits = [fits[index] for index in _various(gain, _scales(p)[0], most)]
    found = [_reading(fit, x) for fit in fits]
    found = [
        reading
        for reading in found
        if low <= reading.scale <= high and np.hypot(*reading.ellipse) < _MOST_STRETCHED
    ]
    return sorted(found, key=lambda reading: -reading.gain)


def _pairs(x: Float[np.ndarray, "M 2"]) -> list[tuple[int, int]]:
    """Pairs of spots near the beam, no spot twice as often as it must, none opposite another."""
    radius = np.hypot(*x.T)
    found = []
    for j in range(1, min(len(x), _NEXT)):
        for i in range(j):
            sine = abs(x[i, 0] * x[j, 1] - x[i, 1] * x[j, 0]) / (radius[i] * radius[j])
            if sine > 0.42:
                found.append((radius[i] * radius[j], i, j))
    chosen: list[tuple[int, int]] = []
    for _, i, j in sorted(found):
        alike = [
            all(
                min(np.hypot(*(x[a] - x[b])), np.hypot(*(x[a] + x[b]))) < _ONE_SPOT
                for a, b in zip((i, j), other, strict=True)
            )
            for other in chosen
        ]
        if not any(alike):
            chosen.append((i, j))
    return chosen[:_PAIRS]


def _starts(x, pair: tuple[int, int], table: Table, low: float, high: float):
    """P (H, 2, 3) of the pairs of reflections that two spots may be."""
    xi, xj = x[pair[0]], x[pair[1]]
    ri, rj = np.hypot(*xi), np.hypot(*xj)
    length = np.linalg.norm(table.g, axis=1)
    strong = table.intensity > 1e-3 * table.intensity.max()
    loose = 0.07 + 1.0 * (1 / ri + 1 / rj)
    inside_i = (length > 0.95 * low * ri) & (length < 1.05 * high * ri)
    inside_j = (length > 0.95 * low * rj) & (length < 1.05 * high * rj)
    first, other = (
        np.flatnonzero(strong & table.first & inside_i),
        np.flatnonzero(strong & inside_j),
    )
    if not (len(first) and len(other)):
        return np.zeros((0, 2, 3))
    ratio = np.log((length[other] / rj) / (length[first, None] / ri))
    cosine = table.g[first] @ table.g[other].T / (length[first, None] * length[other])
    seen = np.arccos(np.clip(xi @ xj / (ri * rj), -1, 1))
    off = np.arccos(np.clip(cosine, -1, 1)) - seen
    a, b = np.nonzero((np.abs(ratio) < loose) & (np.abs(off) < loose))
    a, b = first[a], other[b]
    if len(a) > _MOST_READINGS:
        likely = table.intensity[a] * table.intensity[b] / (length[a] * length[b]) ** 2
        keep = np.argsort(-likely, kind="stable")[:_MOST_READINGS]
        a, b = a[keep], b[keep]
    basis = np.stack([table.g[a], table.g[b]], -1)  # (H, 3, 2)
    p = np.stack([xi, xj], -1) @ np.linalg.pinv(basis)
    stretch = np.hypot(*_scales(p)[1].T)
    return p[stretch < _MOST_STRETCHED + loose / 2]


def _scales(p: Float[np.ndarray, "H 2 3"]):
    """Scale (H,), the geometric mean over directions, and ellipse (H, 2) of P."""
    square = p @ np.swapaxes(p, -1, -2)
    value, vector = np.linalg.eigh(square)
    # (1 + E) s is the inverse of the root of P P^T
    inverse = 1 / np.sqrt(np.maximum(value, 1e-12))
    mean = inverse.mean(-1)
    stretch = (inverse[..., 1] - inverse[..., 0]) / (2 * mean)
    along = vector[..., 1]
    e1 = stretch * (along[..., 0] ** 2 - along[..., 1] ** 2)
    e2 = 2 * stretch * along[..., 0] * along[..., 1]
    return np.sqrt(inverse.prod(-1)), np.stack([e1, e2], -1)


def _normal(p: Float[np.ndarray, "... 2 3"]) -> Float[np.ndarray, "... 3"]:
    """Along the beam, in the crystal's frame."""
    (a, b, c), (d, e, f) = (np.moveaxis(p[..., row, :], -1, 0) for row in (0, 1))
    n = np.stack([b * f - c * e, c * d - a * f, a * e - b * d], -1)
    return n / np.linalg.norm(n, axis=-1, keepdims=True)


def _looked_through(p, x, table: Table, wavelength: float) -> Float[np.ndarray, " H"]:
    """How well starting points explain the inner spots."""
    inner, p = x[:_INNER].astype(np.float32), p.astype(np.float32)
    radius = np.hypot(*inner.T)
    reach = radius.max() + 2.0
    scale = _scales(p.astype(float))[0]
    length = np.linalg.norm(table.g, axis=1)
    loose = (1.2 + 0.03 * radius).astype(np.float32)
    width = (1.5 * _WIDTH + _LOOSELY * length).astype(np.float32)
    gain = np.empty(len(p))
    order = np.argsort(scale, kind="stable")
    for chunk in np.array_split(order, max(1, len(p) // 64)):
        near = length < 1.1 * scale[chunk].max() * reach
        g, intensity = table.g[near].astype(np.float32), table.intensity[near].astype(np.float32)
        across, down = p[chunk, 0] @ g.T, p[chunk, 1] @ g.T  # (H, N)
        off = _normal(p[chunk]) @ g.T - 0.5 * wavelength * np.sum(g**2, 1)
        light = np.sqrt(intensity) / (1 + (off / width[near]) ** 2)
        light *= np.hypot(across, down) < reach
        total = np.maximum(light.sum(1), 1e-12)
        density = np.empty((len(inner), len(chunk)))
        for spot, (x0, x1) in enumerate(inner):
            # a kernel that is zero beyond its reach, which costs less than a normal distribution
            spread2 = loose[spot] ** 2
            peak = (across - x0) ** 2
            peak += (down - x1) ** 2
            peak *= -1 / (6 * spread2)
            peak += 1
            np.maximum(peak, 0, out=peak)
            peak *= peak
            density[spot] = np.vecdot(peak, light) / (2 * np.pi * spread2 * total)
        gain[chunk] = np.log(0.2 + 0.8 * np.pi * reach**2 * density).sum(0)
    return gain


def _various(gain, scale, most: int) -> list[int]:
    """The best readings, and of each scale the best ones; those that symmetry makes of one another
    (they have one scale and gain) once.
    """
    order = np.argsort(-gain, kind="stable")
    known = np.stack([np.round(np.log(scale), 4), np.round(gain, 2)], -1)[order]
    order = order[np.sort(np.unique(known, axis=0, return_index=True)[1])]
    chosen = list(order[: most // 2])
    bins = np.floor(np.log(scale) / 0.03).astype(int)
    count: dict[int, int] = {}
    for index in order[most // 2 :]:
        if len(chosen) >= most:
            break
        count[bins[index]] = count.get(bins[index], 0) + 1
        if count[bins[index]] <= _OF_A_SCALE:
            chosen.append(index)
    return chosen


def _fitted(fit: _Fit, rounds: range, x, view, table: Table, wavelength: float) -> _Fit:
    """A reading fitted to all spots, its gain -inf where it comes to nothing."""
    p, shift, spread, gain, used = fit
    nothing = fit._replace(gain=-np.inf)
    length2 = np.sum(table.g**2, 1)
    radius = np.hypot(*x.T)
    for turn in rounds:
        step_deg = _TILTS.get(turn, 0.0)
        scale, ellipse = _scales(p[None])
        if np.hypot(*ellipse[0]) > 1.6 * _MOST_STRETCHED:
            return nothing
        # what may be excited under any of the tilts
        short = np.searchsorted(length2, (1.15 * scale[0] * np.hypot(*view)) ** 2)
        off = np.abs(table.g[:short] @ _normal(p) - 0.5 * wavelength * length2[:short])
        farthest = _FARTHEST + np.deg2rad(3 * step_deg) * np.sqrt(length2[:short])
        near = np.flatnonzero(off < farthest)
        g, own2, intensity = table.g[near], length2[near], table.intensity[near]
        place = g @ p.T + shift
        far = np.hypot(*place.T)
        seen = (np.abs(place) < view).all(1) & (far > 4.0) & (far < radius.max() + 1)
        g, place, own2, intensity = g[seen], place[seen], own2[seen], intensity[seen]
        if len(g) < 2:
            return nothing
        tilted = _tilted(p, step_deg) if step_deg else p[None]
        off = _normal(tilted) @ g.T - 0.5 * wavelength * own2
        light = intensity / (1 + (off / _WIDTH) ** 2)
        reach = 3 * spread + (0.02 if turn < 3 else 0.0) * radius
        step = np.hypot(*(x[:, None] - place[None]).transpose(2, 0, 1))
        # of the reflections at one place (they differ along the beam) the brightest counts
        cost = np.where(step < reach[:, None], step / spread - 0.5 * np.log(light[0]), np.inf)
        match = cost.argmin(1)
        used = np.isfinite(cost[np.arange(len(x)), match])
        if used.sum() < 3:
            return nothing
        gains = _gains(step, light, match, used, spread, view)
        t = int(gains.argmax())
        p, gain = tilted[t], float(gains[t])
        misfit = np.sum((x[used] - place[match[used]]) ** 2, 1)
        new = float(np.clip(np.sqrt(np.median(misfit) / 1.386), 0.25, 2.5))
        if turn == 6:
            return _Fit(p, shift, new, gain, used)
        weight = 1 / (1 + misfit / (8 * new**2))
        shift, p = _solved(g[match[used]], x[used], weight, p, shift)
        spread = max(new, 0.7 * spread)
    return _Fit(p, shift, spread, gain, used)


def _reading(fit: _Fit, x) -> Reading:
    """What a fitted reading says."""
    scale, ellipse = _scales(fit.p[None])
    stretch = float(np.hypot(*ellipse[0]))
    n = int(fit.used.sum())
    inflated = np.sqrt(2 * n / max(2 * n - 6, 1))
    unlikely = np.log1p((stretch / _STRETCH) ** 2) + 0.5 * np.sum(fit.shift**2)
    return Reading(
        scale=float(scale[0]),
        ellipse=(float(ellipse[0, 0]), float(ellipse[0, 1])),
        gain=float(fit.gain - unlikely),
        explained=n,
        spots=len(x),
        spread=fit.spread,
        error=float(1.3 * fit.spread * inflated / np.sqrt(np.sum(x[fit.used] ** 2))),
    )


def _tilted(p: Float[np.ndarray, "2 3"], step_deg: float) -> Float[np.ndarray, "T 2 3"]:
    """P of crystals that are tilted a little, the untilted first."""
    steps = np.deg2rad(step_deg) * np.arange(-3, 4)
    n = _normal(p)
    across = p / np.linalg.norm(p, axis=1, keepdims=True)
    size = np.linalg.norm(p, axis=1, keepdims=True)
    a, b = (grid.ravel() for grid in np.meshgrid(steps, steps))
    order = np.argsort(a**2 + b**2, kind="stable")
    tilt = np.stack([a, b], -1)[order]
    moved = across + np.sin(tilt)[..., None] * n
    moved /= np.linalg.norm(moved, axis=-1, keepdims=True)
    return moved * size


def _solved(g, x, weight, p, shift):
    """Shift and P that take the reflections to their spots; along directions of which they say
    nothing P stays as it is.
    """
    root = np.sqrt(weight)[:, None]
    left = np.concatenate([g / np.abs(g).max(), 0.5 * np.ones((len(g), 1))], 1)
    target = x - g @ p.T - shift
    # the shift is known to be small
    rows = np.concatenate([root * left, np.array([[0, 0, 0, 0.5]])])
    aim = np.concatenate([root * target, -shift[None]])
    change = np.linalg.lstsq(rows, aim, rcond=0.06)[0]
    return shift + 0.5 * change[3], p + change[:3].T / np.abs(g).max()


def _gains(step, light, match, used, spread: float, view) -> Float[np.ndarray, " T"]:
    """Log-likelihood of the spots above that of as many anywhere (module's docstring), for each
    tilt's `light` (T, N).
    """
    area = min(4 * view[0] * view[1], np.pi * np.sum(view**2))
    n_spots = len(match)
    own, place = np.unique(match[used], return_inverse=True)
    n_false = n_spots - len(own)
    if len(own) < 2:
        return np.full(len(light), -np.inf)
    distance = np.full(len(own), np.inf)
    np.minimum.at(distance, place, step[np.flatnonzero(used), match[used]])
    peak = -0.5 * (distance / spread) ** 2 - np.log(2 * np.pi * spread**2)
    false = n_false * np.log(max(n_false, 0.5) / area) - n_false
    # the faintest reflections that are seen: as many as there are spots
    faint = np.sort(light, 1)[:, -min(len(own), light.shape[1]), None]
    levels = faint * 10.0 ** np.arange(-1.5, 1.01, 0.5)
    power = (light**_FAINTER)[:, None] / (levels**_FAINTER)[..., None]
    seen = _SURELY * power / (1 + power)
    unseen = np.log1p(-seen)
    bright = np.log(seen[..., own] + 1e-6).sum(2) + unseen.sum(2) - unseen[..., own].sum(2)
    null = n_spots * np.log(n_spots / area) - n_spots
    return peak.sum() + bright.max(1) + false - null
