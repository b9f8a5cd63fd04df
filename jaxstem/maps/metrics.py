# SPDX-License-Identifier: GPL-3.0-or-later
"""How good is a map: misorientation statistics against a known truth.

The error of a pixel is the smallest rotation angle between the map's orientation and the truth,
over all proper operations of the phase's Laue group. "Modulo 180°" also accepts the orientation
turned by 180° about the beam, which a pattern of the zero-order Laue zone cannot tell apart when
the zone axis lies along the beam. A pixel that the map leaves unassigned, or gives another phase,
is wrong by 180°: a method gains nothing by staying silent.

Pixels of one grain repeat one pattern with fresh noise, so they succeed or fail together. The
intervals are therefore made by drawing whole grains, with replacement (Efron & Tibshirani, An
Introduction to the Bootstrap, 1993, chapters 8 and 13), and are 95 % percentile intervals.

Shapes: `ny nx` scan positions; `m` patterns with `N` ranked candidates each; angles in degrees at
this module's surface.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped

from jaxstem.crystal.cell import symmetry_operations
from jaxstem.errors import InputError
from jaxstem.files.orientation_map import NO_CRYSTAL as EMPTY
from jaxstem.files.orientation_map import UNASSIGNED as UNKNOWN
from jaxstem.files.orientation_map import OrientationMap
from jaxstem.files.truth import Truth
from jaxstem.orientation.symmetry import misorientations

VACUUM_NAME = "vacuum"

_NO_CRYSTAL_NAME = "no crystal"

_UNASSIGNED_NAME = "unassigned"

_NOT_KNOWN = "–"

_WRONG = 180.0


@dataclasses.dataclass(frozen=True)
class ErrorStatistics:
    """Errors of one phase, in degrees; fractions in 0 … 1 with their 95 % intervals.

    Everything is NaN without pixels; the intervals are NaN with fewer than two grains.
    """

    median: float
    mean: float
    percentile_95: float
    within_2: float
    within_5: float
    within_2_interval: tuple[float, float]
    within_5_interval: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class PhaseEvaluation:
    """One phase of the truth: scored pixels `n` in `n_grains` grains (0: grains not known).

    `in_map` is False where the map does not know the phase; all its pixels are then wrong.
    """

    n: int
    n_grains: int
    in_map: bool
    plain: ErrorStatistics
    mod_180: ErrorStatistics


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores of a map: per phase of the truth, and phase against phase.

    `confusion[truth phase][map phase]` counts scored pixels; the map's columns end with
    "no crystal" and "unassigned", and the truth's "vacuum" is right when the map says
    "no crystal". Shares of scored pixels with the right phase: `phase_accuracy` of all,
    `crystal_phase_accuracy` of those that hold a crystal, `vacuum_accuracy` of the others (NaN
    where there are none). `ambiguous_180` is the share of those with a crystal whose orientation
    the map calls ambiguous by a turn of 180° about the beam.
    """

    n_pixels: int
    n_scored: int
    phases: dict[str, PhaseEvaluation]
    phase_accuracy: float
    crystal_phase_accuracy: float
    vacuum_accuracy: float
    ambiguous_180: float
    confusion: dict[str, dict[str, int]]


class Coverage(NamedTuple):
    """Share of patterns with the truth near one of the first 1, 2, … N candidates."""

    plain: Float[np.ndarray, " N"]
    mod_180: Float[np.ndarray, " N"]


def evaluate(
    orientation_map: OrientationMap, truth: Truth, resamples: int = 1000, seed: int = 0
) -> Evaluation:
    """Score the pixels with `boundary_weight == 0` of a map against the truth of the same scan.

    `resamples` is the number of bootstrap draws behind each interval, `seed` their random seed.
    Raises InputError when map and truth differ in shape, and when there is nothing to score.
    """
    check_shapes(orientation_map, truth)
    names = phase_names(truth)
    plain, mod_180 = pixel_errors(orientation_map, truth)
    crystalline = names != VACUUM_NAME
    known = ~crystalline | np.isfinite(plain)
    scored = known & (np.asarray(truth.boundary_weight) == 0)
    if not scored.any():
        raise InputError(_nothing_to_score(known))

    def phase_evaluation(name: str) -> PhaseEvaluation:
        pixels = scored & (names == name)
        grains = truth.grain[pixels] if (truth.grain[pixels] >= 0).all() else None
        return PhaseEvaluation(
            n=int(pixels.sum()),
            n_grains=0 if grains is None else len(np.unique(grains)),
            in_map=name in orientation_map.phase_names,
            plain=statistics(plain[pixels], grains, resamples, seed),
            mod_180=statistics(mod_180[pixels], grains, resamples, seed),
        )

    right = right_phase(orientation_map, names)
    share = lambda hits, pixels: float(hits[pixels].mean()) if pixels.any() else math.nan  # noqa: E731
    return Evaluation(
        n_pixels=names.size,
        n_scored=int(scored.sum()),
        phases={str(n): phase_evaluation(n) for n in np.unique(names[crystalline])},
        phase_accuracy=share(right, scored),
        crystal_phase_accuracy=share(right, scored & crystalline),
        vacuum_accuracy=share(right, scored & ~crystalline),
        ambiguous_180=share(orientation_map.ambiguous_180, scored & crystalline),
        confusion=phase_confusion(orientation_map, names, scored),
    )


def _nothing_to_score(known: Bool[np.ndarray, "ny nx"]) -> str:
    if not known.any():
        return (
            f"There is nothing to score, for the truth has an orientation at none of {known.size} "
            "positions; give the truth of a scan that holds crystals."
        )
    return (
        f"There is nothing to score, for all {known.sum()} positions whose truth is known lie on "
        "boundaries; give a truth whose 'boundary_weight' is 0 inside grains."
    )


def check_shapes(orientation_map: OrientationMap, truth: Truth) -> None:
    """Raise InputError unless map and truth cover the same scan positions."""
    of_map = np.shape(orientation_map.phase)
    of_truth = np.shape(truth.orientation)[:-2]
    if of_map != of_truth:
        raise InputError(
            f"The map has {' x '.join(map(str, of_map))} positions and the truth "
            f"{' x '.join(map(str, of_truth))}: give the truth of the scan that was mapped."
        )


def phase_names(truth: Truth) -> Shaped[np.ndarray, "ny nx"]:
    """The truth's phase of each pixel as text."""
    names = np.asarray(truth.phase)
    return np.char.decode(names, "utf-8") if names.dtype.kind == "S" else names.astype(str)


def pixel_errors(
    orientation_map: OrientationMap, truth: Truth
) -> tuple[Float[np.ndarray, "ny nx"], Float[np.ndarray, "ny nx"]]:
    """Misorientation [degrees] of each pixel, plain and modulo 180° about the beam.

    180 where the map has no orientation or another phase; NaN where the truth has no orientation
    (vacuum).
    """
    names = phase_names(truth)
    truth_known = np.isfinite(truth.orientation).all((-1, -2)) & (names != VACUUM_NAME)
    map_known = np.isfinite(orientation_map.orientation).all((-1, -2))
    plain = np.where(truth_known, _WRONG, np.nan)
    mod_180 = plain.copy()
    for index, (name, crystal) in enumerate(
        zip(orientation_map.phase_names, orientation_map.crystals, strict=True)
    ):
        pixels = truth_known & map_known & (names == name) & (orientation_map.phase == index)
        plain[pixels], mod_180[pixels] = misorientations(
            orientation_map.orientation[pixels],
            truth.orientation[pixels],
            symmetry_operations(crystal),
        )
    return plain, mod_180


def statistics(
    errors: Float[np.ndarray, " m"],
    grain: Shaped[np.ndarray, " m"] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> ErrorStatistics:
    """Summary of errors [degrees]; `grain` labels the pixels that are resampled together."""
    nothing = (math.nan, math.nan)
    if len(errors) == 0:
        return ErrorStatistics(*[math.nan] * 5, nothing, nothing)
    within_2, within_5 = errors <= 2.0, errors <= 5.0
    return ErrorStatistics(
        median=float(np.median(errors)),
        mean=float(np.mean(errors)),
        percentile_95=float(np.percentile(errors, 95)),
        within_2=float(within_2.mean()),
        within_5=float(within_5.mean()),
        within_2_interval=grain_bootstrap(within_2, grain, resamples, seed),
        within_5_interval=grain_bootstrap(within_5, grain, resamples, seed),
    )


def grain_bootstrap(
    hits: Bool[np.ndarray, " m"],
    grain: Shaped[np.ndarray, " m"] | None,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % interval of the share of hits when whole grains are drawn with replacement.

    A large grain weighs as many pixels as it has. NaN with fewer than two grains.
    """
    if grain is None:
        return math.nan, math.nan
    _, index = np.unique(grain, return_inverse=True)
    pixels = np.bincount(index.ravel())
    n_grains = len(pixels)
    if n_grains < 2:
        return math.nan, math.nan
    hits_of_grain = np.bincount(index.ravel(), weights=hits)
    draws = np.random.default_rng(seed).multinomial(
        n_grains, np.full(n_grains, 1.0 / n_grains), size=resamples
    )
    low, high = np.percentile((draws @ hits_of_grain) / (draws @ pixels), [2.5, 97.5])
    return float(low), float(high)


def right_phase(
    orientation_map: OrientationMap, names: Shaped[np.ndarray, "ny nx"]
) -> Bool[np.ndarray, "ny nx"]:
    """Where the map has the truth's phase: of the same name, or no crystal in vacuum."""
    right = (names == VACUUM_NAME) & (orientation_map.phase == EMPTY)
    for index, name in enumerate(orientation_map.phase_names):
        right |= (names == name) & (orientation_map.phase == index)
    return right


def phase_confusion(
    orientation_map: OrientationMap,
    names: Shaped[np.ndarray, "ny nx"],
    scored: Bool[np.ndarray, "ny nx"],
) -> dict[str, dict[str, int]]:
    """Scored pixels of each truth phase by what the map says of them."""
    columns = {name: index for index, name in enumerate(orientation_map.phase_names)}
    columns |= {_NO_CRYSTAL_NAME: EMPTY, _UNASSIGNED_NAME: UNKNOWN}
    return {
        str(name): {
            column: int((scored & (names == name) & (orientation_map.phase == index)).sum())
            for column, index in columns.items()
        }
        for name in np.unique(names[scored])
    }


def candidate_coverage(
    candidates: Float[np.ndarray, "m N 3 3"],
    truth: Float[np.ndarray, "m 3 3"],
    symmetry: Float[np.ndarray, "n 3 3"],
    within: float = 5.0,
) -> Coverage:
    """Share of patterns whose truth lies within `within` degrees of one of the first candidates.

    Entry k-1 of the result counts the best k candidates of each pattern, ranked best first. A
    candidate that is NaN is a miss. It tells apart errors of ranking (the truth is among the
    candidates, not in front) from candidates that are missing. `symmetry`: proper operations.
    """
    count, ranks = candidates.shape[:2]
    pairs = np.broadcast_to(truth[:, None], candidates.shape).reshape(-1, 3, 3)
    flat = candidates.reshape(-1, 3, 3)
    known = np.isfinite(flat).all((-1, -2))

    def share(angles: Float[np.ndarray, " known"]) -> Float[np.ndarray, " N"]:
        hit = np.zeros(count * ranks, bool)
        hit[known] = angles <= within
        return np.logical_or.accumulate(hit.reshape(count, ranks), axis=1).mean(0)

    plain, mod_180 = misorientations(flat[known], pairs[known], symmetry)
    return Coverage(share(plain), share(mod_180))


def to_dict(evaluation: Evaluation) -> dict[str, Any]:
    """The evaluation as plain dicts, lists and numbers for JSON; None for what is undefined."""
    return _json_able(dataclasses.asdict(evaluation))


def _json_able(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _json_able(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_able(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_text(evaluation: Evaluation) -> str:
    """The evaluation as a table for people."""
    lines = [
        f"{evaluation.n_scored} of {evaluation.n_pixels} pixels scored "
        "(away from boundaries, truth known)",
        "",
        *(_phase_lines(evaluation) if evaluation.phases else []),
        *_confusion_lines(evaluation),
    ]
    return "\n".join(lines)


def _phase_lines(evaluation: Evaluation) -> list[str]:
    rows = [["phase", "n", "", "median", "mean", "95 %", "within 2°", "within 5°"]]
    for name, phase in evaluation.phases.items():
        label = name if phase.in_map else f"{name} (not in the map)"
        rows.append([label, str(phase.n), "plain", *_cells(phase.plain)])
        rows.append(["", "", "mod 180°", *_cells(phase.mod_180)])
    intervals = f"[ ]: 95 % interval over grains ({_grain_counts(evaluation)})"
    return [*_aligned(rows), "", intervals, ""]


def _grain_counts(evaluation: Evaluation) -> str:
    return ", ".join(f"{name} {phase.n_grains}" for name, phase in evaluation.phases.items())


def _cells(errors: ErrorStatistics) -> list[str]:
    if math.isnan(errors.median):
        return [_NOT_KNOWN] * 5

    def share(value: float, interval: tuple[float, float]) -> str:
        if math.isnan(interval[0]):
            return f"{100 * value:.1f} %"
        return f"{100 * value:.1f} % [{100 * interval[0]:.0f}, {100 * interval[1]:.0f}]"

    return [
        *(f"{value:.2f}°" for value in (errors.median, errors.mean, errors.percentile_95)),
        share(errors.within_2, errors.within_2_interval),
        share(errors.within_5, errors.within_5_interval),
    ]


def _confusion_lines(evaluation: Evaluation) -> list[str]:
    columns = list(next(iter(evaluation.confusion.values()), {}))
    rows = [["truth \\ map", *columns]]
    rows += [[t, *(str(row[c]) for c in columns)] for t, row in evaluation.confusion.items()]
    shares = {
        "phase accuracy": evaluation.phase_accuracy,
        "right phase of crystals": evaluation.crystal_phase_accuracy,
        "vacuum called no crystal": evaluation.vacuum_accuracy,
        "ambiguous by 180°": evaluation.ambiguous_180,
    }
    told = [f"{name} {100 * x:.1f} %" for name, x in shares.items() if not math.isnan(x)]
    return [", ".join(told), "", *_aligned(rows)]


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
