# SPDX-License-Identifier: GPL-3.0-or-later
"""Is the confidence of a map what it says: reliability diagram and expected calibration error.

    python -m experiments.accuracy.calibration --maps map.h5 ... --truths truth.h5 ...

The event is "the truth lies within 5° of the answer, in the right phase", for `/confidence` as it
stands, for `/confidence_mod180` modulo a turn by 180° about the beam. Pixels on boundaries, of the
truth's vacuum and without an answer are left out (the last ones are counted). The error is the mean
over bins of confidence, weighted by their pixels, of |mean confidence - share right| (Guo et al.,
On Calibration of Modern Neural Networks, ICML 2017). Prints a table and writes JSON and PNG to
experiments/results/calibration.*.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from jaxtyping import Bool, Float

from experiments.common.figures import drawn
from experiments.common.markdown import heading, line
from experiments.common.results import RESULTS, save
from jaxstem.errors import InputError
from jaxstem.files.map_file import read_map
from jaxstem.files.orientation_map import OrientationMap
from jaxstem.files.truth import Truth, read_truth
from jaxstem.maps.metrics import VACUUM_NAME, check_shapes, phase_names, pixel_errors

WITHIN = 5.0
COLUMNS = (
    "map",
    "n",
    "unanswered",
    "calibration error",
    "mean confidence",
    "share right",
    "mod 180°",
)
DRAWS = 100
"""Draws that say what calibration error chance makes."""

FEWEST = 8
"""Pixels in a bin that is drawn."""


@dataclass(frozen=True)
class Arguments:
    """maps, truths: pairs in the same order; bins: of the confidence; out: JSON to write."""

    maps: tuple[Path, ...]
    truths: tuple[Path, ...]
    bins: int = 10
    out: Path = RESULTS / "calibration.json"


def reliability(
    confidence: Float[np.ndarray, " m"], right: Bool[np.ndarray, " m"], bins: int = 10
) -> dict:
    """Expected calibration error, and for each bin: share of the pixels, mean confidence, share
    right (empty bins left out). by_chance: the mean error of `DRAWS` draws of answers that are
    right as often as their confidence says, each by itself: what so few of them show at least.
    """
    place = np.clip((confidence * bins).astype(int), 0, bins - 1)
    _, place, n = np.unique(place, return_inverse=True, return_counts=True)
    in_bins = lambda values: np.bincount(place, values) / n  # noqa: E731
    share, said = n / len(confidence), in_bins(confidence)
    error = lambda right: float(np.sum(share * np.abs(said - in_bins(right))))  # noqa: E731
    rng = np.random.default_rng(0)
    drawn = [error(rng.random(len(confidence)) < confidence) for _ in range(DRAWS)]
    return {
        "n": len(confidence),
        "expected_calibration_error": round(error(right), 4),
        "by_chance": round(float(np.mean(drawn)), 4),
        "mean_confidence": round(float(np.mean(confidence)), 4),
        "share_right": round(float(np.mean(right)), 4),
        "bins": np.stack([share, said, in_bins(right)], axis=-1).tolist(),
    }


def of_map(found: OrientationMap, truth: Truth, bins: int) -> dict:
    """Reliability of both confidences of a map, and how many scored pixels have no answer."""
    check_shapes(found, truth)
    plain, mod_180 = pixel_errors(found, truth)
    scored = (np.asarray(truth.boundary_weight) == 0) & (phase_names(truth) != VACUUM_NAME)
    answered = scored & (np.asarray(found.phase) >= 0) & np.isfinite(found.confidence)
    return {
        "unanswered": int((scored & ~answered).sum()),
        "plain": reliability(found.confidence[answered], plain[answered] <= WITHIN, bins),
        "mod_180": reliability(
            found.confidence_mod180[answered], mod_180[answered] <= WITHIN, bins
        ),
    }


def draw(results: dict[str, dict], path: Path) -> None:
    """Share right against confidence, plain and modulo 180°; a marker's area is its pixels'.

    Bins with fewer than `FEWEST` pixels are not drawn: their shares are mostly chance.
    """
    titles = {"plain": "confidence", "mod_180": "confidence modulo 180°"}
    small = {"fontsize": "small", "title_fontsize": "small"}
    with drawn(path, 1, 2, (9, 4.6), sharey=True) as (_, panels):
        for panel, (which, title) in zip(panels, titles.items(), strict=True):
            panel.plot([0, 1], [0, 1], color="0.6", linewidth=1)
            for number, (name, result) in enumerate(results.items()):
                share, confidence, right = np.transpose(result[which]["bins"])
                many = share * result[which]["n"] >= FEWEST
                share, confidence, right = share[many], confidence[many], right[many]
                label = f"{name}: {result[which]['expected_calibration_error']:.3f}"
                colour = f"C{number}"
                panel.plot(confidence, right, colour, linewidth=1, label=label)
                panel.scatter(confidence, right, s=20 + 400 * share, color=colour, alpha=0.6)
            panel.set(xlabel=title, xlim=(0, 1), ylim=(-0.02, 1.02), aspect="equal")
            panel.legend(loc="lower right", title="calibration error", **small)
        panels[0].set_ylabel("share within 5°")


def main(arguments: Arguments) -> None:
    """Read, score, print, write, draw."""
    if len(arguments.maps) != len(arguments.truths):
        raise InputError("Give as many truths as maps, in the same order.")
    results = {}
    print(heading(*COLUMNS))
    for map_path, truth_path in zip(arguments.maps, arguments.truths, strict=True):
        result = of_map(read_map(map_path), read_truth(truth_path), arguments.bins)
        results[map_path.stem] = result
        plain, mod_180 = result["plain"], result["mod_180"]
        names = ("expected_calibration_error", "mean_confidence", "share_right")
        numbers = [*(plain[name] for name in names), mod_180[names[0]]]
        shown = [f"{number:.3f}" for number in numbers]
        print(line([map_path.stem, plain["n"], result["unanswered"], *shown]))
    save(arguments.out, results)
    draw(results, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
