# SPDX-License-Identifier: GPL-3.0-or-later
"""Pixel size and ellipticity of a scan from a crystal that is known to be in it.

Whatever their orientation, grains of a known crystal put their disks at the crystal's ring radii
|g|. Disks found in detector pixels x, measured from the direct beam, must therefore lie on rings
after the map

    q = s (1 + E) x,      E = [[e1, e2], [e2, -e1]]

with s in 1/Å a pixel and a symmetric, traceless E: the ellipse into which the microscope's lenses
stretch the rings. It is found in two steps.

1. *Scale.* On an axis of ln r a change of scale is a shift. The disks' likelihood is looked up on a
   lattice of shifts under a mixture of the rings, each a normal peak of the width that disk
   positions have, and of a smooth background of false disks and other phases.
2. *Fit.* Each disk belongs to the nearest ring, unless two rings are too close to tell; s, e1 and
   e2 are those that minimise the distances to the rings, robustly (Tukey's biweight, as iterated
   least squares), and the disks' rings are found anew.

The uncertainty is that of a bootstrap over blocks of the scan, since neighbouring patterns of one
grain share their errors. The result is written in py4DSTEM's terms (`jaxstem.io.calibrate_disks`):
Q_pixel_size, and a, b, theta.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from jaxstem.crystal import Crystal, reflections
from jaxstem.errors import InputError
from jaxstem.io import DiskScan, atomic_path

FORMAT, VERSION = "jaxstem-calibration", 1
IN_PIXELS = {
    "Q_pixel_size": 1.0,
    "Q_pixel_units": "A^-1",
    "a": 1.0,
    "b": 1.0,
    "theta": 0.0,
    "QR_rotation": 0.0,
    "QR_flip": False,
}
"""A calibration with which a scan's disks stay in detector pixels, as `fit_rings` takes them."""
LEAST_DISKS = 30
REACH = 4.0
LEAST_CENTRED, LARGEST_SPREAD = 0.7, 0.9
"""Of disks that lie on their rings: share in the middle half, and spread [px]."""
BLOCKS = 5
"""Blocks along each side of the scan, among which the bootstrap draws."""


@dataclass(frozen=True)
class Calibration:
    """What `fit_rings` found; errors are standard deviations.

    pixel_size [1/Å a pixel] and its error: geometric mean over the directions; ellipticity:
    a/b - 1, how much longer rings are along theta than across it; theta [rad]: direction of their
    long axis from the qx axis; n_disks: disks that were fitted; share: of all disks beyond the
    beam; spread_px: robust standard deviation of the fitted disks' distances from their rings;
    phase: the crystals' names; rotation [rad]: from detector to scan axes, as given.
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

    def entries(self) -> dict[str, Any]:
        """Entries of a file's calibration as `jaxstem.disks.open_scan` takes them.

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
    rotation: float | None = None,
    seed: int = 0,
) -> Calibration:
    """Pixel size and ellipse from disks in detector pixels and the crystals in the scan.

    scan: read with the calibration `IN_PIXELS`; pixel_size [1/Å]: looked for within a quarter of
    it, elsewhere where None; rotation [rad] is handed on. Raises InputError where there are too few
    disks or they do not lie on the crystal's rings.
    """
    x, block = _disks(scan)
    if len(x) < LEAST_DISKS:
        raise InputError(
            f"{scan.source} has {len(x)} disks beyond the direct beam, too few to calibrate on; "
            f"give a scan with {LEAST_DISKS} or more."
        )
    scale = _scale(np.hypot(*x.T), crystals, pixel_size)
    radius = np.hypot(*x.T)
    parameters = np.array([scale, 0.0, 0.0])
    k_max = 1.1 * scale * radius.max()
    lengths, _, _ = rings(crystals, k_max)
    width = 0.03 * lengths[0] / scale  # pixels; the fit narrows it
    for _ in range(25):
        before = parameters
        near, residual = _nearest(x, parameters, lengths, max(6 * width, 1.0) * scale)
        if near.sum() < LEAST_DISKS:
            break
        distance = residual[near] / parameters[0]
        width = max(1.4826 * np.median(np.abs(distance)), 1e-3)
        weight = _biweight(distance / (4.7 * width))
        parameters = parameters - _step(x[near], residual[near], parameters, weight)
        if np.abs(parameters - before).max() < 1e-9:
            break
    phase = ", ".join(crystal.name for crystal in crystals)
    near, residual = _nearest(x, parameters, lengths, 4.7 * width * scale)
    centred = _centred(x, parameters, lengths)
    sharp = width < LARGEST_SPREAD and centred > LEAST_CENTRED
    if near.sum() < LEAST_DISKS or not sharp or not parameters[0] > 0:
        raise InputError(
            f"{scan.source}: the disks do not lie on the rings of {phase}, or not on them alone; "
            "check the crystal, give a rough pixel size, or a scan without other phases."
        )
    error = _bootstrap(x[near], residual[near], parameters, width, block[near], seed)
    ellipticity, theta = _ellipse(parameters)
    return Calibration(
        pixel_size=float(parameters[0]) * float(np.sqrt(1 - np.sum(parameters[1:] ** 2))),
        pixel_size_error=float(error[0]),
        ellipticity=ellipticity,
        ellipticity_error=float(2 * np.hypot(*error[1:]) / np.sqrt(2)),
        theta=theta,
        n_disks=int(near.sum()),
        share=float(near.mean()),
        spread_px=float(width),
        phase=phase,
        rotation=rotation,
    )


def _disks(scan: DiskScan) -> tuple[Float[np.ndarray, "n 2"], Int[np.ndarray, " n"]]:
    """Disks [px] beyond the direct beam, and the block of the scan in which each lies."""
    x = np.stack([scan.qx, scan.qy], -1).astype(np.float64)
    flat = np.repeat(np.arange(len(scan.offsets) - 1), np.diff(scan.offsets))
    row, column = np.divmod(flat, scan.scan_shape[1])
    blocks = [
        np.minimum(BLOCKS * place // n, BLOCKS - 1)
        for place, n in zip((row, column), scan.scan_shape, strict=True)
    ]
    beyond = np.hypot(*x.T) > 4.0
    return x[beyond], (BLOCKS * blocks[0] + blocks[1])[beyond]


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


def _mapped(x: Float[np.ndarray, "n 2"], parameters: Float[np.ndarray, " 3"]):
    """Scattering vectors q [1/Å] of disks [px]."""
    scale, e1, e2 = parameters
    return scale * x @ np.array([[1 + e1, e2], [e2, 1 - e1]])


def _nearest(x, parameters, lengths, reach: float):
    """Which disks lie within `reach` [1/Å] of one ring alone, and all distances [1/Å]; inf where
    two rings are as close to each other as disks scatter.
    """
    radius = np.hypot(*_mapped(x, parameters).T)
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
    last ring do not count, nor those whose borders are less than three pixels apart.
    """
    radius = np.hypot(*_mapped(x, parameters).T)
    borders = np.concatenate([[0.0], 0.5 * (lengths[1:] + lengths[:-1])])
    wide = np.diff(borders, append=np.inf) > 3 * parameters[0]
    index = np.searchsorted(borders, radius, side="right") - 1
    above = np.append(np.diff(lengths) / 2, np.inf)
    below = np.insert(np.diff(lengths) / 2, 0, lengths[0] / 2)
    own = radius - lengths[index]
    half = np.where(own > 0, above[index], below[index])
    counted = wide[index] & (index > 0) & (index < len(lengths) - 1)
    return float((np.abs(own) < half / 2)[counted].mean()) if counted.sum() > LEAST_DISKS else 1.0


def _biweight(u):
    return np.where(np.abs(u) < 1, (1 - u**2) ** 2, 0.0)


def _step(x, residual, parameters, weight):
    """Gauss-Newton step of (s, e1, e2): how far they are too large."""
    scale, e1, e2 = parameters
    q = _mapped(x, parameters)
    unit = q / np.hypot(*q.T)[:, None]
    columns = [
        (unit * q).sum(1) / scale,
        scale * (unit[:, 0] * x[:, 0] - unit[:, 1] * x[:, 1]),
        scale * (unit[:, 0] * x[:, 1] + unit[:, 1] * x[:, 0]),
    ]
    jacobian = np.stack(columns, -1)
    normal = (jacobian * weight[:, None]).T @ jacobian
    return np.linalg.lstsq(normal, jacobian.T @ (weight * residual), rcond=None)[0]


def _bootstrap(x, residual, parameters, width, block, seed: int, n: int = 200):
    """Standard deviations of the parameters when blocks of the scan are drawn anew."""
    rng = np.random.default_rng(seed)
    weight = _biweight(residual / parameters[0] / (4.7 * width))
    members = [np.flatnonzero(block == number) for number in np.unique(block)]
    if len(members) < 4:
        members = list(np.arange(len(x))[:, None])
    steps = []
    for _ in range(n):
        drawn = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
        steps.append(_step(x[drawn], residual[drawn], parameters, weight[drawn]))
    return np.std(steps, axis=0)


def _ellipse(parameters) -> tuple[float, float]:
    """(a/b - 1, direction theta [rad] of the long axis) of the rings on the detector."""
    _, e1, e2 = parameters
    stretch = float(np.hypot(e1, e2))
    # q is stretched most where the rings on the detector are shortest
    theta = 0.5 * float(np.arctan2(e2, e1)) + np.pi / 2
    return (1 + stretch) / (1 - stretch) - 1, (theta + np.pi / 2) % np.pi - np.pi / 2


def write_calibration(path: str | Path, found: Calibration, overwrite: bool = False) -> None:
    """Store a calibration as JSON. Raises InputError as `atomic_path` does."""
    with atomic_path(path, overwrite) as temporary:
        content = {"format": FORMAT, "version": VERSION, **asdict(found)}
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_calibration(path: str | Path) -> Calibration:
    """A calibration that `write_calibration` stored. Raises InputError for anything else."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist; check the name.")
    remedy = "make it again with 'jaxstem calibrate'"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format") != FORMAT or content.pop("version") != VERSION:
            raise InputError(f"{path} is no calibration of this version of jaxstem; {remedy}.")
        found = Calibration(**content)
        numbers = [found.pixel_size, found.ellipticity, found.theta, found.rotation or 0.0]
        usable = np.isfinite(numbers).all() and found.pixel_size > 0 and found.ellipticity > -1
    except InputError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OSError):
        raise InputError(f"{path} is no calibration that jaxstem wrote; {remedy}.") from None
    if not usable:
        raise InputError(f"{path}: a number of the calibration makes no sense; {remedy}.")
    return found


def figure(
    scan: DiskScan, crystals: Sequence[Crystal], found: Calibration, path: str | Path
) -> None:
    """Picture of a calibration (PNG or any format of matplotlib): how many disks lie at which
    radius, with the crystal's rings, before and after the ellipse is taken out; and the distance
    from the nearest ring against the direction.
    """
    x, _ = _disks(scan)
    stretch = found.ellipticity / (2 + found.ellipticity)
    turned = 2 * (found.theta - np.pi / 2)
    ellipse = stretch * np.array([np.cos(turned), np.sin(turned)])
    size = found.pixel_size / np.sqrt(1 - stretch**2)
    cases = {
        "round pixels": np.array([found.pixel_size, 0.0, 0.0]),
        "ellipse taken out": np.array([size, *ellipse]),
    }
    k_max = float(np.hypot(*_mapped(x, cases["ellipse taken out"]).T).max())
    lengths, _, names = rings(crystals, k_max)
    canvas = Figure(figsize=(10, 6.5), layout="constrained")
    panels = canvas.subplots(2, 2, width_ratios=(2, 1), sharex="col", sharey="col")
    for (left, right), (title, parameters) in zip(panels, cases.items(), strict=True):
        q = _mapped(x, parameters)
        radius = np.hypot(*q.T)
        bins = np.arange(0, k_max, 0.25 * found.pixel_size)
        left.hist(radius, bins, color="0.25", histtype="stepfilled")
        left.vlines(lengths, 0, 1, colors="tab:red", lw=0.8, transform=left.get_xaxis_transform())
        left.set(ylabel="disks", title=title, xlim=(0.6 * lengths[0], k_max))
        _, residual = _nearest(x, parameters, lengths, 3 * found.spread_px * found.pixel_size)
        near = np.abs(residual) < 2.0 * found.pixel_size
        direction = np.rad2deg(np.arctan2(x[:, 1], x[:, 0])) % 180
        percent = 100 * residual / np.where(near, radius - residual, 1.0)
        right.plot(direction[near], percent[near], ".", ms=1.5, alpha=0.25, color="0.25")
        at = np.arange(0, 180, 10)
        inside = [near & (direction >= low) & (direction < low + 10) for low in at]
        median = [np.median(percent[own]) if own.any() else np.nan for own in inside]
        right.plot(at + 5, median, "-", color="tab:red", lw=1.5)
        right.axhline(0, color="0.6", lw=0.8)
        limit = 4 * 100 * found.spread_px * found.pixel_size / lengths[0]
        right.set(ylabel="radius − ring (%)", ylim=(-limit, limit), xlim=(0, 180))
    top = panels[0, 0]
    last = -np.inf
    for length, name in zip(lengths, names, strict=True):
        if length - last > 0.025 * k_max:
            top.annotate(
                name,
                (length, 1.0),
                xycoords=top.get_xaxis_transform(),
                ha="left",
                va="top",
                rotation=90,
                fontsize=7,
                color="tab:red",
                xytext=(1, -2),
                textcoords="offset points",
            )
            last = length
    panels[1, 0].set_xlabel("|q| (1/Å)")
    panels[1, 1].set_xlabel("direction from qx (°)")
    canvas.suptitle(summary(found), fontsize=10)
    canvas.savefig(path, dpi=150)


def summary(found: Calibration) -> str:
    """One line about a calibration."""
    sure = found.ellipticity > 3 * found.ellipticity_error
    turned = f" along {np.rad2deg(found.theta):.0f}° from qx" if sure else ""
    return (
        f"{found.phase}: {found.pixel_size:.6f} ± {found.pixel_size_error:.6f} 1/Å a pixel, rings "
        f"longer by {100 * found.ellipticity:.2f} ± {100 * found.ellipticity_error:.2f} %{turned}; "
        f"{found.n_disks} disks, {found.spread_px:.2f} px from their rings"
    )


def calibrate(
    open_in_pixels: Callable[[dict[str, Any]], DiskScan],
    crystals: Sequence[Crystal],
    out: str | Path,
    pixel_size: float | None = None,
    rotation: float | None = None,
    overwrite: bool = False,
) -> Calibration:
    """Fit, and write `out` (JSON) with its picture beside it.

    open_in_pixels: reads the scan with the calibration it is given. Raises InputError as
    `fit_rings` and `atomic_path` do.
    """
    out = Path(out)
    if out.suffix.lower() == ".png":
        raise InputError(f"{out} is the picture's name; name the calibration CALIBRATION.json.")
    with atomic_path(out.with_suffix(".png"), overwrite) as picture:
        scan = open_in_pixels(IN_PIXELS)
        found = fit_rings(scan, crystals, pixel_size, rotation)
        figure(scan, crystals, found, picture)
        write_calibration(out, found, overwrite)
    return found
