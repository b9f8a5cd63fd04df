# SPDX-License-Identifier: GPL-3.0-or-later
"""Disks on the rings of a crystal: the mixture of which their radii are drawn, and its fit.

Whatever their orientation, grains of a known crystal put their disks at the crystal's ring radii
|g|. Disks found in detector pixels x, measured from the direct beam, must therefore lie on rings
after the map

    q = s (1 + E) x,      E = [[e1, e2], [e2, -e1]]

with s in 1/Å a pixel and a symmetric, traceless E: the ellipse into which the microscope's lenses
stretch the rings. Their radii are drawn from a mixture: of the crystal's rings, each a normal peak
of the width that disk positions have, and of a smooth background of false disks and other phases.

1. *Scale.* On an axis of ln r a change of scale is a shift. The likelihood is looked up on a
   lattice of shifts, of which the highest peaks are tried; and about each on one of scales and
   ellipses.
2. *Fit.* Expectation maximisation (Dempster, Laird and Rubin, J. R. Stat. Soc. B 39, 1, 1977): each
   disk belongs to the rings next to it, and to the background, with the probabilities of the
   mixture; s, E, the width of the rings and the share of each are fitted to that, and so on. Where
   rings lie close together, to give each disk to the nearest would pull the fit towards wherever
   it began.
3. *Evidence.* Scales are compared by the likelihood of their mixtures above that of the background,
   the shares of the rings being integrated out under a Dirichlet prior, so that rings that are
   predicted and not seen count against a scale (Bishop, Pattern Recognition and Machine Learning,
   2006, section 10.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.ndimage import gaussian_filter1d
from scipy.special import gammaln

from jaxstem.crystal.cell import Crystal, reflections
from jaxstem.errors import InputError

_NEXT = 3
"""Rings below and above a disk to which it may belong."""

_LATTICE_DISKS, _MOST_STRETCHED = 3000, 0.03
"""Disks that are enough for the lattice, and how far it reaches along e1 and e2."""

_PEAKS = 7
"""Scales at which a fit begins."""

_STEP = 0.004
"""Of ln r in the histogram on which scales are tried."""


class Mixture(NamedTuple):
    """Density of disks over the radius: rings at `lengths` [1/Å] with `weights` (of sum 1), their
    width [px], and the background's density [1/px] at each disk; `share` of all lie on rings.
    """

    lengths: Float[np.ndarray, " n"]
    weights: Float[np.ndarray, " n"]
    background: Float[np.ndarray, " disks"]
    width: float
    share: float
    expected: Float[np.ndarray, " n"] | None = None


class RingFit(NamedTuple):
    """A fit: parameters (s [1/Å], e1, e2), its mixture, whether it came to an end, and evidence:
    log-likelihood above that of the background, 0.0 until it is asked for.
    """

    parameters: Float[np.ndarray, " 3"]
    mixture: Mixture
    settled: bool = True
    evidence: float = 0.0


def likely_scales(
    x: Float[np.ndarray, "n 2"], crystals: Sequence[Crystal], low: float, high: float
) -> list[float]:
    """Scales from `low` to `high` [1/Å] at which the disks [px] may lie on rings, the likeliest
    first: step 1 of the module's docstring, for any ellipse.
    """
    radius = np.hypot(*x.T)
    tries = np.exp(np.arange(np.log(low), np.log(high) + _STEP, _STEP))
    at = np.arange(np.log(radius.min()) - 0.2, np.log(radius.max()) + 0.2, _STEP)
    histogram = np.histogram(np.log(radius), np.append(at, at[-1] + _STEP))[0]
    smooth = gaussian_filter1d(histogram.astype(float), 0.25 / _STEP, mode="nearest") + 1e-9
    seen = histogram > 0
    background = (smooth / smooth.sum())[seen]
    lengths, weights, _ = rings(crystals, 1.2 * tries[-1] * radius.max())
    score = np.empty(len(tries))
    for number, size in enumerate(tries):
        # a position is known to about half a pixel; an ellipse makes rings broader
        own = lengths < 1.1 * size * radius.max()
        length, weight = lengths[own], weights[own]
        if not len(length):
            score[number] = -np.inf
            continue
        spread = np.hypot(np.maximum(0.5 * size / length, _STEP), 0.006)
        peaks = (at[seen, None] + np.log(size) - np.log(length)) / spread
        density = np.exp(-0.5 * peaks**2) @ (weight / spread)
        inside = weight[length < size * np.exp(at[-1])].sum()
        density *= _STEP / np.sqrt(2 * np.pi) / max(inside, 1e-12)
        score[number] = histogram[seen] @ np.log(0.3 * background + 0.7 * density)
    chosen: list[int] = []
    for number in np.argsort(-score, kind="stable"):
        if len(chosen) == _PEAKS or not np.isfinite(score[number]):
            break
        if all(abs(number - other) * _STEP > 0.02 for other in chosen):
            chosen.append(int(number))
    return [float(tries[number]) for number in chosen]


def fit_mixture(
    x: Float[np.ndarray, "n 2"],
    crystals: Sequence[Crystal],
    scale: float,
    start: Float[np.ndarray, " 3"] | None = None,
    rounds: int = 300,
    most: int | None = None,
    width: float = 0.5,
) -> RingFit:
    """Steps 1 and 2 of the module's docstring about a scale [1/Å]; `start`: parameters at which to
    begin instead; most: disks that are used, evenly chosen; width: of the rings at first [px].
    """
    if most:
        x = x[:: max(1, len(x) // most)]
    radius = np.hypot(*x.T)
    lengths, weights, _ = rings(crystals, 1.2 * scale * radius.max())
    background = _background(radius)
    mixture = Mixture(lengths, weights, background(radius), width, 0.7, weights)
    enough = min(most or _LATTICE_DISKS, _LATTICE_DISKS)
    parameters = _lattice(x, scale, mixture, background, enough) if start is None else start
    settled = False
    for _ in range(rounds):
        before = parameters
        belongs, index, distance = belonging(x, parameters, mixture)
        mixture = maximised(mixture, belongs, index, distance)
        gradient = radius_gradients(x, parameters)
        weight, pull = belongs.sum(1), (belongs * distance).sum(1) * parameters[0]
        normal = (gradient * weight[:, None]).T @ gradient
        parameters = parameters - np.linalg.lstsq(normal, gradient.T @ pull, rcond=None)[0]
        if not parameters[0] > 0:
            break
        if np.abs(parameters - before).max() < 1e-8:
            settled = True
            break
    return RingFit(parameters, mixture, settled)


def ring_evidence(x: Float[np.ndarray, "n 2"], fit: RingFit, weight: float) -> float:
    """Step 3 of the module's docstring; every disk counts as so much of one (`weight`)."""
    radius = np.hypot(*x.T)
    parameters, mixture = fit.parameters, fit.mixture
    mixture = mixture._replace(background=_background(radius)(radius))
    belongs, index, _ = belonging(x, parameters, mixture)
    false = np.clip(1 - belongs.sum(1), 1e-12, 1.0)
    # the background's share of the density is what does not belong to a ring
    gain = float(weight * np.sum(np.log((1 - mixture.share) / false)))
    size = float(np.hypot(*to_scattering_vectors(x, parameters).T).max())
    seen = mixture.lengths < size + parameters[0]
    counts = weight * np.bincount(index.ravel(), belongs.ravel(), len(mixture.lengths))[seen]
    # how disks grow fewer outwards is no matter of the scale: as the background has it
    length, expected = mixture.lengths[seen], mixture.expected[seen]
    apart = np.log(length[:, None] / length) / 0.25
    smooth = np.exp(-0.5 * apart**2) @ expected
    expected = expected * length * _background(radius)(length / parameters[0]) / smooth
    alpha = 0.7 * seen.sum() * expected / expected.sum()
    integrated = gammaln(alpha.sum()) - gammaln(alpha.sum() + counts.sum())
    integrated += np.sum(gammaln(alpha + counts) - gammaln(alpha))
    used = mixture.weights[seen]
    return gain + float(integrated - counts @ np.log(np.maximum(used, 1e-12)))


def rings(
    crystals: Sequence[Crystal], k_max: float
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"], list[str]]:
    """Radii [1/Å], weights (of sum 1) and names of the crystals' rings up to k_max [1/Å].

    The weight is how many disks a ring may be expected to show: its reflections, times the root of
    their amplitude, since faint disks are missed. All crystals count alike.
    """
    radii, weights, names = [], [], []
    for crystal in crystals:
        try:
            table = reflections(crystal, k_max)
        except InputError:
            continue
        length = np.linalg.norm(table.g, axis=1)
        first = np.flatnonzero(np.diff(length, prepend=-1.0) > 1e-4 * length)
        weight = np.add.reduceat(np.sqrt(np.abs(table.structure_factor)), first)
        radii.append(length[first])
        weights.append(weight / weight.sum())
        whose = f"{crystal.name} " if len(crystals) > 1 else ""
        names += [whose + "".join(str(abs(h)) for h in hkl) for hkl in table.hkl[first]]
    radius, weight = np.concatenate(radii), np.concatenate(weights)
    order = np.argsort(radius, kind="stable")
    return radius[order], weight[order] / weight.sum(), [names[i] for i in order]


def to_scattering_vectors(x: Float[np.ndarray, "n 2"], parameters: Float[np.ndarray, " 3"]):
    """Scattering vectors q [1/Å] of disks [px]."""
    scale, e1, e2 = parameters
    return scale * x @ np.array([[1 + e1, e2], [e2, 1 - e1]])


def first_ring(crystal: Crystal) -> float:
    """Radius [1/Å] of the innermost ring."""
    k_max = 0.1
    while True:
        try:
            return float(np.linalg.norm(reflections(crystal, k_max).g, axis=1)[0])
        except InputError:
            if k_max > 10:
                raise
            k_max *= 1.5


def _background(radius: Float[np.ndarray, " n"]):
    """The disks' density [1/px] over the radius [px], so smooth that no ring is seen in it."""
    step = 0.002
    at = np.arange(np.log(radius.min()) - 1.0, np.log(radius.max()) + 1.0, step)
    histogram = np.histogram(np.log(radius), np.append(at, at[-1] + step))[0].astype(float)
    smooth = gaussian_filter1d(histogram, 0.25 / step, mode="nearest") + 1e-9
    smooth /= smooth.sum() * step
    return lambda r: np.interp(np.log(r), at + step / 2, smooth) / r


def _lattice(x, scale: float, mixture: Mixture, background, most: int) -> Float[np.ndarray, " 3"]:
    """The likeliest scale and ellipse near a scale. Every so many disks are enough."""
    x = x[:: max(1, len(x) // most)]
    far = float(np.quantile(np.hypot(*x.T), 0.9))
    radius = np.arange(0.5, 1.2 * np.hypot(*x.T).max(), 0.1)
    peaks = (radius[:, None] - mixture.lengths / scale) / mixture.width
    on_rings = np.exp(-0.5 * peaks**2) @ mixture.weights / (mixture.width * np.sqrt(2 * np.pi))
    table = np.log(mixture.share * on_rings + (1 - mixture.share) * background(radius))
    step = 0.7 * mixture.width / far
    ellipse = step * np.arange(
        -np.ceil(_MOST_STRETCHED / step), np.ceil(_MOST_STRETCHED / step) + 1
    )
    stretch = 1 + step * np.arange(-3, 4)
    best, found = -np.inf, None
    for e1 in ellipse:
        for e2 in ellipse:
            r = np.hypot(*to_scattering_vectors(x, np.array([1.0, e1, e2])).T)
            for s in stretch:
                place = np.clip(((s * r - 0.5) * 10).astype(int), 0, len(table) - 1)
                value = table[place].sum()
                if value > best:
                    best, found = value, np.array([scale * s, e1, e2])
    return found


def belonging(
    x: Float[np.ndarray, "n 2"], parameters: Float[np.ndarray, " 3"], mixture: Mixture
) -> tuple[Float[np.ndarray, "n m"], Int[np.ndarray, "n m"], Float[np.ndarray, "n m"]]:
    """Probability that a disk belongs to each of the rings next to it, which they are, and how far
    [px] beyond them it lies.
    """
    radius = np.hypot(*to_scattering_vectors(x, parameters).T)
    n = len(mixture.lengths)
    index = np.searchsorted(mixture.lengths, radius)[:, None] + np.arange(-_NEXT, _NEXT)
    there = (index >= 0) & (index < n)
    index = np.clip(index, 0, n - 1)
    distance = (radius[:, None] - mixture.lengths[index]) / parameters[0]
    density = np.exp(-0.5 * (distance / mixture.width) ** 2) * mixture.weights[index] * there
    density *= mixture.share / (mixture.width * np.sqrt(2 * np.pi))
    false = (1 - mixture.share) * mixture.background
    return density / (density.sum(1) + false)[:, None], index, distance


def maximised(mixture: Mixture, belongs, index, distance) -> Mixture:
    """The mixture that makes such a belonging likeliest; a ring's weight leans on what was expected
    as if by one disk in ten, lest one without disks be lost.
    """
    total = belongs.sum()
    counts = np.bincount(index.ravel(), belongs.ravel(), len(mixture.lengths))
    weights = 0.9 * counts / max(total, 1e-9) + 0.1 * mixture.weights
    width = np.sqrt((belongs * distance**2).sum() / max(total, 1e-9))
    share = np.clip(total / len(belongs), 0.01, 0.99)
    return mixture._replace(weights=weights, width=max(float(width), 1e-3), share=float(share))


def radius_gradients(
    x: Float[np.ndarray, "n 2"], parameters: Float[np.ndarray, " 3"]
) -> Float[np.ndarray, "n 3"]:
    """Derivatives of the disks' radii [1/Å] by s, e1 and e2."""
    scale = parameters[0]
    q = to_scattering_vectors(x, parameters)
    unit = q / np.hypot(*q.T)[:, None]
    columns = [
        (unit * q).sum(1) / scale,
        scale * (unit[:, 0] * x[:, 0] - unit[:, 1] * x[:, 1]),
        scale * (unit[:, 0] * x[:, 1] + unit[:, 1] * x[:, 0]),
    ]
    return np.stack(columns, -1)
