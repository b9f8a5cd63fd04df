# SPDX-License-Identifier: GPL-3.0-or-later
"""What a scan's own disks say of its calibration: pixel size, ellipse and centre.

In patterns whose orientation is beyond doubt disks lie where the crystal puts them, but for what is
wrong with the calibration, which is the same in all (`Distortion`). It is fitted to the disks of
some positions by least squares, the turn of each pattern about the beam being free, with Student's
weights (K. L. Lange, R. J. A. Little & J. M. G. Taylor, J. Am. Stat. Assoc. 84 (1989) 881); its
errors are those of grains that are wrong as a whole (P. J. Huber, Proc. 5th Berkeley Symp. Math.
Stat. Prob. 1 (1967) 221), for dynamical diffraction fills disks unevenly, alike in a grain. Then
the positions are looked at again without it, until what is left is within its errors.

Before that the direct beam, where disks are listed and it is among them, says itself where the
centre is at each position (`beam_drift`), for other programs leave some of its drift.

Of pixel size and unit cell only the ratio is known, and a rotation between detector and scan not at
all, for every orientation absorbs it.

Shapes: `P` patterns, `K` disks of each.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from jaxstem.detection.origin import smooth_origin
from jaxstem.diffraction.geometry import Disks
from jaxstem.diffraction.material import grid_content
from jaxstem.files.distortion import Distortion, corrected, evenly, from_numbers, undistorted
from jaxstem.files.light import ScanLight
from jaxstem.files.scan import BY_FILE, DiskSource, pad_disks, source_of
from jaxstem.inference.batching import preview_scan
from jaxstem.inference.config import BY_BLOCH_WAVES, InferConfig
from jaxstem.inference.exposure import scan_exposure
from jaxstem.inference.step import PredictFor, all_reflections, make_predict_for
from jaxstem.inference.stream import predict_scan
from jaxstem.inference.verdict import Answer
from jaxstem.network.model import Model
from jaxstem.orientation.symmetry import alike_mod_180
from jaxstem.runtime import parallel
from jaxstem.runtime.programs import cached_pmap
from jaxstem.verification.candidates import padded
from jaxstem.verification.climb import begin
from jaxstem.verification.config import ScoreConfig
from jaxstem.verification.search import pattern_of

SAMPLE = (16, 16)
"""Rows and columns at whose crossings patterns are looked at, evenly over the scan."""

DRIFT = (128, 128)
"""Rows and columns, at most, at whose crossings the beam's drift is known."""

ROUNDS = 4
"""Times that patterns are looked at, at most."""

ENOUGH = 8
"""Grains from which a calibration can be told."""

OF_ONE_GRAIN = 3.0
"""Degrees, modulo 180° about the beam, by which patterns differ that may be wrong together."""

LEAST_PAIRS = 4
"""Disks of a pattern that must have a reflection of their own."""

BELIEVED = 0.5
"""Confidence, a turn by 180° about the beam not counting, of answers that are taken for right."""

DISKS = 32
"""Of a pattern that are compared, the strongest."""

FAULT = 2e-3
"""By how much a disk at 1 1/Å must be moved [1/Å] to be worth it: a sixth of its scatter."""

SIGMAS = 3.0
"""Standard errors by which a part of a calibration must be wrong to be corrected."""

LARGEST = 0.03
"""By which share a scale is corrected; where more would be needed, something else is wrong."""


class Offsets(NamedTuple):
    """Disks beside the reflections that explain them: x, y where these lie, dx, dy how far from
    there the disks are [1/Å]; paired: whether any does; present: whether there is a disk.
    """

    x: Float[np.ndarray, "P K"]
    y: Float[np.ndarray, "P K"]
    dx: Float[np.ndarray, "P K"]
    dy: Float[np.ndarray, "P K"]
    paired: Bool[np.ndarray, "P K"]
    present: Bool[np.ndarray, "P K"]


class Learned(NamedTuple):
    """What the disks of a scan say of its calibration.

    distortion: all that they say; errors: standard errors of scale, ellipse and shift [1/Å], along
    an axis; corrected: what of it is corrected; grains: from so many it is known; scatter: of disks
    about their places, along an axis [1/Å]; explained: share of the disks that have a reflection.
    """

    distortion: Distortion
    errors: tuple[float, float, float]
    corrected: Distortion
    grains: int
    scatter: float
    explained: float


def fitted(
    offsets: Offsets, grain: Int[np.ndarray, " P"]
) -> tuple[Distortion, Float[np.ndarray, "5 5"], float]:
    """The distortion that fits best, the covariance of its numbers (`Distortion.numbers`), and the
    scatter of disks [1/Å]; each `grain` counts once, for its patterns are wrong together.
    """
    x, y, paired = (np.asarray(v, np.float64) for v in (offsets.x, offsets.y, offsets.paired))
    one, none = np.ones_like(x), np.zeros_like(x)
    # along qx and qy: stretch xx, xy, yy, shift, and the pattern's turn
    columns = np.stack([[x, y, none, one, none, -y], [none, x, y, none, one, x]])
    target = np.stack([offsets.dx, offsets.dy]).astype(np.float64)
    _, grain, size = np.unique(grain, return_inverse=True, return_counts=True)
    paired = paired / size[grain, None]

    def equations(weight):
        """Normal matrix and right side of each pattern without its turn, and what that leaves."""
        normal = np.einsum("capk,pk,cbpk->pab", columns, weight, columns)
        right = np.einsum("capk,pk,cpk->pa", columns, weight, target)
        turned, stiff = normal[:, :5, 5], normal[:, 5, 5, None] + 1e-9
        own = normal[:, :5, :5] - turned[:, :, None] * turned[:, None] / stiff[..., None]
        pull = right[:, :5] - turned * right[:, 5:] / stiff
        return own, pull, lambda best: (right[:, 5:] - turned @ best[:, None]) / stiff

    nearly_none = 1e-9 * np.eye(5)
    weight = paired
    for _ in range(_REWEIGHTED):
        own, pull, turn_of = equations(weight)
        best = np.linalg.solve(own.sum(axis=0) + nearly_none, pull.sum(axis=0))
        model = np.einsum("capk,a->cpk", columns[:, :5], best) + columns[:, 5] * turn_of(best)
        squared = ((target - model) ** 2).sum(axis=0)
        # the median of a squared distance is 2 ln 2 of the variance along an axis
        variance = np.median(squared[paired > 0]) / np.log(4.0) + 1e-12
        share = 1.0 / (1.0 + squared / (3.0 * variance))
        weight = paired * share
    each = np.zeros((len(size), 5))
    np.add.at(each, grain, pull - own @ best)
    # the curvature of Student's logarithm, over directions, is the square of its weight
    curvature = equations(paired * share**2)[0].sum(axis=0)
    inverse = np.linalg.inv(curvature + nearly_none)
    covariance = inverse @ (each.T @ each) @ inverse * len(size) / max(len(size) - 1, 1)
    return from_numbers(best), covariance, float(np.sqrt(variance))


_REWEIGHTED = 10
"""Times that disks are weighed anew."""


def spread_over(source: DiskSource, most: tuple[int, int] | None = None) -> DiskSource:
    """Positions evenly over the scan, so many rows and columns at most (None: `SAMPLE`)."""
    most = most or SAMPLE
    return source.at(*(evenly(n, min(n, m)) for n, m in zip(source.scan_shape, most, strict=True)))


def beam_drift(source: DiskSource, k_min: float) -> Float[np.ndarray, "m n 2"] | None:
    """Where the direct beam lies that should lie at 0, at `evenly` chosen rows and columns of a
    scan, smoothed [1/Å]; None where it is where it should be, or not listed (a disk within `k_min`,
    1/Å, the strongest) at half of them. Raises InputError as `source.read` does.
    """
    rows, columns = (evenly(n, min(n, m)) for n, m in zip(source.scan_shape, DRIFT, strict=True))
    if len(rows) == source.scan_shape[0]:
        pieces = [source.read(0, len(rows))]
    else:
        pieces = [source.read(row, row + 1) for row in rows]
    lines = []
    for scan in pieces:
        place = np.full((len(scan.offsets) - 1, 2), np.nan)
        position = np.repeat(np.arange(len(place)), np.diff(scan.offsets))
        near = np.flatnonzero((np.hypot(scan.qx, scan.qy) <= k_min) & (scan.intensity > 0))
        near = near[np.argsort(scan.intensity[near], kind="stable")]  # the strongest remains
        place[position[near]] = np.stack([scan.qx[near], scan.qy[near]], axis=-1)
        lines.append(place.reshape(*scan.scan_shape, 2)[:, columns])
    place = np.concatenate(lines)
    if 2 * np.isfinite(place[..., 0]).sum() < place[..., 0].size:
        return None
    drift = smooth_origin(place)
    return drift if drift_size(drift) > FAULT else None


def drift_size(drift: Float[np.ndarray, "m n 2"]) -> float:
    """Root mean square of a drift along an axis [1/Å]."""
    return float(np.sqrt(np.square(drift).mean()))


Pair = Callable[[DiskSource, Answer], Offsets]
"""The disks of a small scan, of `SAMPLE` positions at most, beside the reflections of its answers
(flat), in 1/Å. Raises InputError as `source.read` does."""


def make_pair(model: Model, config: InferConfig, mesh: Mesh) -> Pair:
    """What pairs disks with reflections, compiled once. Bloch waves, which move no disk, are not
    asked.
    """
    scoring = _fast(config) if config.refine in BY_BLOCH_WAVES else config.scoring
    forwards = padded([all_reflections(material) for material in model.materials])
    everything = jax.tree.map(lambda *x: jnp.stack(x), *forwards)

    def of_rows(given, disks, incident, incident_sigma, is_cut, orientation, phase):
        everything, limit = given

        def one(row):
            disks, incident, incident_sigma, is_cut, orientation, phase = row
            pattern = pattern_of(
                disks, incident, incident_sigma, is_cut, limit, scoring.measured_power
            )
            whole = jax.tree.map(lambda x: x[phase], everything)
            ascent = begin(
                orientation,
                pattern.observed,
                *whole,
                model.wavelength,
                limit.reach,
                scoring.likelihood,
            )
            pairing = ascent.pairing
            place = ascent.x[pairing.reflection], ascent.y[pairing.reflection]
            return Offsets(*place, pairing.dx, pairing.dy, pairing.paired, disks.mask)

        rows = (disks, incident, incident_sigma, is_cut, orientation, phase)
        return jax.vmap(one)(rows)

    most = -(-np.prod(SAMPLE) // mesh.size) * mesh.size
    content = {
        "offsets": repr((scoring.likelihood, scoring.measured_power)),
        "materials": [grid_content(material) for material in model.materials],
    }
    sharded, replicated = parallel.SHARDED, parallel.REPLICATED
    specs = (replicated, *[sharded] * 6)
    program = cached_pmap(of_rows, mesh, specs, sharded, content, config.cache)

    def pair(source: DiskSource, answer: Answer) -> Offsets:
        known = preview_scan(source, model, config)
        scan = source.read(0, source.scan_shape[0])
        reach = float(known.limit.reach)
        exposed = scan_exposure(scan, model.k_min, reach, known.limit, known.beam)
        n = len(answer.phase)
        disks = Disks(*pad_disks(scan, np.arange(n), reach, model.k_min, DISKS))
        exists = answer.phase >= 0
        orientation = np.where(exists[:, None, None], answer.orientation, np.eye(3))
        phase = np.maximum(answer.phase, 0)
        rows = (disks, *exposed[:3], orientation.astype(np.float32), phase)
        rows = jax.tree.map(lambda x: np.resize(x, (most, *x.shape[1:])), rows)
        given = parallel.replicate((everything, known.limit), mesh)
        found = Offsets(*(x[:n] for x in jax.device_get(program(given, *rows))))
        return found._replace(paired=found.paired & found.present & exists[:, None])

    return pair


def explained_share(offsets: Offsets) -> float:
    """Share of the disks that have a reflection, 1 where there are none."""
    return (
        float(offsets.paired.sum() / max(offsets.present.sum(), 1))
        if offsets.present.any()
        else 1.0
    )


Look = Callable[[Distortion], tuple[Answer, Offsets]]
"""The answers (flat) of a sample of a scan (`spread_over`) and its disks beside their reflections,
if the scan is distorted by so much."""


def learned_distortion(
    source: DiskSource, model: Model, look: Look, start: Distortion, enough: int | None = None
) -> Learned | None:
    """What the disks of a scan say of its calibration; None where they are too few to say it.

    `look` by the `looker` of the scan; `start`: the distortion to begin with; `enough`: grains from
    which it can be told (None: `ENOUGH`). The scale is not corrected where the pixel size was given
    or calibrated. Raises InputError as `source.read` does.
    """
    total, enough = start, enough or ENOUGH
    if math.prod(source.scan_shape) < enough:
        return None
    for _ in range(ROUNDS):
        answer, offsets = look(total)
        believed = (answer.phase >= 0) & ~(answer.confidence_mod180 < BELIEVED)
        chosen = believed & (offsets.paired.sum(axis=1) >= LEAST_PAIRS)
        grain = grains_of(answer.orientation[chosen], answer.phase[chosen], model)
        n_grains = len(np.unique(grain))
        if n_grains < enough:
            return None
        more, covariance, scatter = fitted(Offsets(*(x[chosen] for x in offsets)), grain)
        total = total.after(more)
        is_settled = (more.numbers**2 < np.diag(covariance)).all()
        if is_settled or to_correct(total, covariance, True).most == 0.0:
            break
    free = source.instrument.pixel_size_from == BY_FILE
    moved, errors = to_correct(total, covariance, free), standard_errors(covariance)
    return Learned(total, errors, moved, n_grains, scatter, explained_share(offsets))


def looker(
    source: DiskSource,
    model: Model,
    config: InferConfig,
    mesh: Mesh,
    predict_for: PredictFor | None = None,
    most: tuple[int, int] | None = None,
    pair: Pair | None = None,
) -> Look:
    """What looks at a scan; `predict_for` as in `stream_answers`, `most` as in `spread_over`;
    `pair`: of this model, configuration and mesh, if there is one.
    Raises InputError, then too, as `source.read` does.
    """
    if config.refine in BY_BLOCH_WAVES:  # which move no disk
        config, predict_for = replace(config, refine="fast", score=_fast(config)), None
    predict_for = predict_for or make_predict_for(model, config, mesh)
    # programs that the whole scan needs as well
    config = replace(config, lengths=preview_scan(source, model, config).lengths)
    few = spread_over(source, most)
    light = few.read_light and ScanLight(few.read_light(0, few.scan_shape[0]), few.detector)
    few = replace(
        source_of(replace(few.read(0, few.scan_shape[0]), light=light)), instrument=few.instrument
    )

    pair = pair or make_pair(model, config, mesh)

    def look(distortion: Distortion) -> tuple[Answer, Offsets]:
        seen = corrected(few, distortion)
        answer, _ = predict_scan(
            model, seen, config, mesh=mesh, progress=False, predict_for=predict_for
        )
        return answer, pair(seen, answer)

    as_it_is = functools.cache(lambda: look(undistorted()))  # which several questions begin with
    return lambda distortion: look(distortion) if distortion.most else as_it_is()


def _fast(config: InferConfig) -> ScoreConfig:
    """The usual settings for the same probe and specimen."""
    given, usual = config.scoring.likelihood, ScoreConfig()
    of = {"semi_angle": given.semi_angle, "thickness": given.thickness}
    return replace(usual, likelihood=replace(usual.likelihood, **of))


def grains_of(
    orientation: Float[np.ndarray, "P 3 3"], phase: Int[np.ndarray, " P"], model: Model
) -> Int[np.ndarray, " P"]:
    """The same number for patterns whose orientations are alike, modulo 180° about the beam, be it
    by way of others.
    """
    alike = np.zeros((len(phase),) * 2, bool)
    for index, material in enumerate(model.materials):
        of = np.flatnonzero(phase == index)
        alike[np.ix_(of, of)] = alike_mod_180(orientation[of], material.operations, OF_ONE_GRAIN)
    grain = np.arange(len(phase))
    while True:
        lowest = np.where(alike, grain, len(phase)).min(axis=1, initial=len(phase))
        if (lowest == grain).all():
            return grain
        grain = lowest


# scale, the two numbers of the ellipse, shift, of the numbers of a distortion
_PARTS = (
    np.array([[0.5, 0.0, 0.5, 0.0, 0.0]]),
    np.array([[0.5, 0.0, -0.5, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0, 0.0]]),
    np.array([[0.0, 0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0, 1.0]]),
)


_NEARLY_NONE = 1e-14
"""What keeps the covariance of one grain, which none contradict, from being singular."""


def standard_errors(covariance: Float[np.ndarray, "5 5"]) -> tuple[float, float, float]:
    """Of scale, ellipse and shift, along an axis on average."""
    squares = (np.trace(part @ covariance @ part.T) / len(part) for part in _PARTS)
    return tuple(float(np.sqrt(square)) for square in squares)


def to_correct(
    found: Distortion, covariance: Float[np.ndarray, "5 5"], scale_is_free: bool
) -> Distortion:
    """What of a distortion is corrected, by the covariance of its numbers: scale, ellipse, shift,
    each where it is too large for chance; the scale where it is free and off by `LARGEST` at most.
    """
    moved = undistorted()
    for number, (part, which) in enumerate(zip(found.parts, _PARTS, strict=True)):
        values = which @ found.numbers
        chance = which @ covariance @ which.T + _NEARLY_NONE * np.eye(len(which))
        squared = values @ np.linalg.solve(chance, values)
        is_free = number > 0 or (scale_is_free and part.most <= LARGEST)
        if is_free and squared > len(which) * SIGMAS**2:
            moved = from_numbers(moved.numbers + part.numbers)
    return moved if moved.most > FAULT else undistorted()


_ROUNDING = 1e-9
"""What sums of a distortion's parts leave of one that is not among them."""


def told(learned: Learned) -> str:
    """What was learned, in a line."""
    found, done, errors = learned.distortion, learned.corrected, learned.errors
    share, angle = found.ellipse
    x, y = found.shift
    parts = (
        f"distances {100 * (found.scale - 1.0):+.2f} ± {100 * errors[0]:.2f} %",
        f"ellipse {100 * share:.2f} ± {200 * errors[1]:.2f} % at {angle:.0f}°",
        f"centre ({x:+.4f}, {y:+.4f}) ± {errors[2]:.4f} 1/Å",
    )
    are_done = [part.most > _ROUNDING for part in done.parts]
    said = [
        f"{part}{' (corrected)' if is_done else ''}"
        for part, is_done in zip(parts, are_done, strict=True)
    ]
    return f"{', '.join(said)}, by {learned.grains} grains"
