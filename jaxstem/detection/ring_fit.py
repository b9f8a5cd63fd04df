# SPDX-License-Identifier: GPL-3.0-or-later
"""Pixel size and ellipticity of a scan from a crystal that is known to be in it.

Whatever their orientation, grains of a known crystal put their disks at the crystal's ring radii
|g|. Disks found in detector pixels x, measured from the direct beam, must therefore lie on rings
after the map

    q = s (1 + E) x,      E = [[e1, e2], [e2, -e1]]

with s in 1/Å a pixel and a symmetric, traceless E: the ellipse into which the microscope's lenses
stretch the rings. Their radii are drawn from a mixture: of the crystal's rings, each a normal peak
of the width that disk positions have, and of a smooth background of false disks and other phases.

1. *Scale.* On an axis of ln r a change of scale is a shift. The likelihood is looked up on a
   lattice of shifts; then on one of scales and ellipses about the best.
2. *Fit.* Expectation maximisation (Dempster, Laird and Rubin, J. R. Stat. Soc. B 39, 1, 1977): each
   disk belongs to the rings next to it, and to the background, with the probabilities of the
   mixture; s, E, the width of the rings and the share of each are fitted to that, and so on. Where
   rings lie close together, to give each disk to the nearest would pull the fit towards wherever
   it began.

The uncertainty is that of a bootstrap over blocks of the scan, since neighbouring patterns of one
grain share their errors. The result is written in py4DSTEM's terms (`files.calibrate_disks`):
Q_pixel_size, and a, b, theta.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxstem.crystal.cell import Crystal, reflections
from jaxstem.errors import InputError
from jaxstem.files.scan import DiskScan

_LEAST_DISKS = 30

REACH = 4.0

_LEAST_CENTRED, _LARGEST_SPREAD = 0.75, 0.9
"""Of disks that lie on their rings: share in the middle half, and spread [px]."""

_BLOCKS = 5
"""Blocks along each side of the scan, among which the bootstrap draws."""

_ITERATIONS = 300

_NEXT = 3
"""Rings below and above a disk to which it may belong."""

_LATTICE_DISKS, _MOST_STRETCHED = 3000, 0.03
"""Disks that are enough for the lattice, and how far it reaches along e1 and e2."""


@dataclass(frozen=True)
class Calibration:
    """What `fit_rings` found; errors are standard deviations.

    pixel_size [1/Å a pixel] and its error: geometric mean over the directions; ellipticity:
    a/b - 1, how much longer rings are along theta than across it; theta [rad]: direction of their
    long axis from the qx axis; n_disks: disks that were fitted; share: of all disks beyond the
    beam; spread_px: robust standard deviation of the fitted disks' distances from their rings;
    phase: the crystals' names; rotation [rad]: from detector to scan axes, transpose and flip: what
    comes before it (`files.axes`), as given.
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


def fit_rings(
    scan: DiskScan,
    crystals: Sequence[Crystal],
    pixel_size: float | None = None,
    seed: int = 0,
) -> Calibration:
    """Pixel size and ellipse from disks in detector pixels and the crystals in the scan.

    scan: read with the calibration `IN_PIXELS`; pixel_size [1/Å]: looked for within a quarter of
    it, elsewhere where None. Raises InputError where there are too few
    disks, they do not lie on the crystal's rings, or with pixels of that size could not.
    """
    x, block = ring_disks(scan)
    if len(x) < _LEAST_DISKS:
        raise InputError(
            f"{scan.source} has {len(x)} disks beyond the direct beam, too few to calibrate on; "
            f"give a scan with {_LEAST_DISKS} or more."
        )
    radius = np.hypot(*x.T)
    if pixel_size is not None:
        stated = f"{scan.source}: --pixel-size {pixel_size:g}"
        _check_reach(pixel_size * radius.max(), crystals, stated)
    scale = _scale(radius, crystals, pixel_size)
    lengths, weights, _ = rings(crystals, 1.2 * scale * radius.max())
    background = _background(radius)
    mixture = _Mixture(lengths, weights, background(radius), 0.5, 0.7)
    parameters = _lattice(x, scale, mixture, background)
    for _ in range(_ITERATIONS):
        before = parameters
        belongs, index, distance = _belonging(x, parameters, mixture)
        mixture = _maximised(mixture, belongs, index, distance)
        gradient = _gradients(x, parameters)
        weight, pull = belongs.sum(1), (belongs * distance).sum(1) * parameters[0]
        normal = (gradient * weight[:, None]).T @ gradient
        parameters = parameters - np.linalg.lstsq(normal, gradient.T @ pull, rcond=None)[0]
        if np.abs(parameters - before).max() < 1e-8:
            break
    phase = ", ".join(crystal.name for crystal in crystals)
    belongs, index, distance = _belonging(x, parameters, mixture)
    near = belongs.sum(1) > 0.5
    centred = _centred(x, parameters, lengths)
    sharp = mixture.width < _LARGEST_SPREAD and centred > _LEAST_CENTRED
    if near.sum() < _LEAST_DISKS or not sharp or not parameters[0] > 0:
        raise InputError(
            f"{scan.source}: the disks do not lie on the rings of {phase}, or not on them alone; "
            "check the crystal, give a rough pixel size, or a scan without other phases."
        )
    pull = (belongs * distance).sum(1) / (mixture.width**2 * parameters[0])
    error = _bootstrap(_gradients(x, parameters) * pull[:, None], block, seed)
    ellipticity, theta = _ellipse(parameters)
    return Calibration(
        pixel_size=float(parameters[0]) * float(np.sqrt(1 - np.sum(parameters[1:] ** 2))),
        pixel_size_error=float(error[0]),
        ellipticity=ellipticity,
        ellipticity_error=float(2 * np.hypot(*error[1:]) / np.sqrt(2)),
        theta=theta,
        n_disks=int(near.sum()),
        share=float(near.mean()),
        spread_px=float(mixture.width),
        phase=phase,
    )


def ring_disks(scan: DiskScan) -> tuple[Float[np.ndarray, "n 2"], Int[np.ndarray, " n"]]:
    """Disks [px] beyond the direct beam, and the block of the scan in which each lies."""
    x = np.stack([scan.qx, scan.qy], -1).astype(np.float64)
    flat = np.repeat(np.arange(len(scan.offsets) - 1), np.diff(scan.offsets))
    row, column = np.divmod(flat, scan.scan_shape[1])
    blocks = [
        np.minimum(_BLOCKS * place // n, _BLOCKS - 1)
        for place, n in zip((row, column), scan.scan_shape, strict=True)
    ]
    beyond = np.hypot(*x.T) > 4.0
    return x[beyond], (_BLOCKS * blocks[0] + blocks[1])[beyond]


def _check_reach(reach: float, crystals: Sequence[Crystal], stated: str) -> None:
    """Raise InputError unless rings may lie within the outermost disk's radius [1/Å], which a
    rough pixel size tells to a quarter, and a detector may reach there.
    """
    inner = min(map(_first_ring, crystals))
    if not inner / 0.9 < reach < 1.25 * REACH:
        raise InputError(
            f"{stated} puts the outermost disk at {reach:.3g} 1/Å, and the rings lie from "
            f"{inner:.3g} to {REACH:g} 1/Å; give a rough pixel size, or none."
        )


def _scale(
    radius: Float[np.ndarray, " n"], crystals: Sequence[Crystal], pixel_size: float | None
) -> float:
    """Step 1 of the module's docstring: the likeliest size of a pixel [1/Å]."""
    step = 0.002
    if pixel_size is None:
        # some disks lie on the innermost ring, and no detector reaches farther than REACH
        inner = min(map(_first_ring, crystals))
        low, high = inner / np.quantile(radius, 0.7), 1.3 * inner / np.quantile(radius, 0.03)
        high = min(high, max(REACH / radius.max(), 1.1 * low))
    else:
        low, high = 0.75 * pixel_size, 1.25 * pixel_size
    tries = np.exp(np.arange(np.log(low), np.log(high), step))
    at = np.arange(np.log(radius.min()) - 0.2, np.log(radius.max()) + 0.2, step)
    histogram = np.histogram(np.log(radius), np.append(at, at[-1] + step))[0]
    smooth = _blurred(histogram.astype(float), 0.25 / step) + 1e-9
    background = smooth / smooth.sum()
    lengths, weights, _ = rings(crystals, 1.2 * tries[-1] * radius.max())
    seen = histogram > 0
    score = []
    for size in tries:
        # a position is known to about half a pixel
        spread = np.maximum(0.5 * size / lengths, 0.004)
        peaks = (at[seen, None] + np.log(size) - np.log(lengths)) / spread
        density = np.exp(-0.5 * peaks**2) @ (weights / spread)
        inside = weights[lengths < size * np.exp(at[-1])].sum()
        density *= step / np.sqrt(2 * np.pi) / max(inside, 1e-12)
        score.append(histogram[seen] @ np.log(0.3 * background[seen] + 0.7 * density))
    return float(tries[int(np.argmax(score))])


def _background(radius: Float[np.ndarray, " n"]):
    """The disks' density [1/px] over the radius [px], so smooth that no ring is seen in it."""
    step = 0.002
    at = np.arange(np.log(radius.min()) - 1.0, np.log(radius.max()) + 1.0, step)
    histogram = np.histogram(np.log(radius), np.append(at, at[-1] + step))[0].astype(float)
    smooth = _blurred(histogram, 0.25 / step) + 1e-9
    smooth /= smooth.sum() * step
    return lambda r: np.interp(np.log(r), at + step / 2, smooth) / r


def _lattice(x, scale: float, mixture: _Mixture, background) -> Float[np.ndarray, " 3"]:
    """The likeliest scale and ellipse near a scale. Every so many disks are enough."""
    x = x[:: max(1, len(x) // _LATTICE_DISKS)]
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


def _first_ring(crystal: Crystal) -> float:
    """Radius [1/Å] of the innermost ring."""
    k_max = 0.1
    while True:
        try:
            return float(np.linalg.norm(reflections(crystal, k_max).g, axis=1)[0])
        except InputError:
            if k_max > 10:
                raise
            k_max *= 1.5


def _blurred(values: Float[np.ndarray, " n"], scale: float) -> Float[np.ndarray, " n"]:
    from scipy.ndimage import gaussian_filter1d

    return gaussian_filter1d(values, scale, mode="nearest")


def to_scattering_vectors(x: Float[np.ndarray, "n 2"], parameters: Float[np.ndarray, " 3"]):
    """Scattering vectors q [1/Å] of disks [px]."""
    scale, e1, e2 = parameters
    return scale * x @ np.array([[1 + e1, e2], [e2, 1 - e1]])


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
    """Share of the disks that lie in the middle half between the borders of their ring; a half
    where rings have nothing to do with the disks, 1 where too few can be judged. The first and the
    last ring do not count, nor those with another one less than three pixels away.
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
    return float((np.abs(own) < half / 2)[counted].mean()) if counted.sum() > _LEAST_DISKS else 1.0


class _Mixture(NamedTuple):
    """Density of disks over the radius: rings at `lengths` [1/Å] with `weights` (of sum 1), their
    width [px], and the background's density [1/px] at each disk; `share` of all lie on rings.
    """

    lengths: Float[np.ndarray, " n"]
    weights: Float[np.ndarray, " n"]
    background: Float[np.ndarray, " disks"]
    width: float
    share: float


def _belonging(
    x: Float[np.ndarray, "n 2"], parameters: Float[np.ndarray, " 3"], mixture: _Mixture
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


def _maximised(mixture: _Mixture, belongs, index, distance) -> _Mixture:
    """The mixture that makes such a belonging likeliest; a ring's weight leans on what was expected
    as if by one disk in ten, lest one without disks be lost.
    """
    total = belongs.sum()
    counts = np.bincount(index.ravel(), belongs.ravel(), len(mixture.lengths))
    weights = 0.9 * counts / max(total, 1e-9) + 0.1 * mixture.weights
    width = np.sqrt((belongs * distance**2).sum() / max(total, 1e-9))
    share = np.clip(total / len(belongs), 0.01, 0.99)
    return mixture._replace(weights=weights, width=max(float(width), 1e-3), share=float(share))


def _gradients(
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


def _bootstrap(
    score: Float[np.ndarray, "n 3"], block: Int[np.ndarray, " n"], seed: int, n: int = 200
) -> Float[np.ndarray, " 3"]:
    """Standard deviations of the parameters when blocks of the scan are drawn anew: one step each
    along the disks' scores, the derivatives of their log-likelihoods. The information is that of
    the scores, in which doubt about a disk's ring counts.
    """
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(block == number) for number in np.unique(block)]
    if len(members) < 4:
        members = list(np.arange(len(score))[:, None])
    sums = np.array([score[own].sum(0) for own in members])
    drawn = rng.integers(len(members), size=(n, len(members)))
    information = np.linalg.pinv(score.T @ score)
    return np.std(sums[drawn].sum(1) @ information, axis=0)


def _ellipse(parameters) -> tuple[float, float]:
    """(a/b - 1, direction theta [rad] of the long axis) of the rings on the detector."""
    _, e1, e2 = parameters
    stretch = float(np.hypot(e1, e2))
    # q is stretched most where the rings on the detector are shortest
    theta = 0.5 * float(np.arctan2(e2, e1)) + np.pi / 2
    return (1 + stretch) / (1 - stretch) - 1, (theta + np.pi / 2) % np.pi - np.pi / 2
