# SPDX-License-Identifier: GPL-3.0-or-later
"""Accuracy on the multislice sample scans, beside py4DSTEM's template matching.

    python -m experiments.accuracy.sample_scans [--full] [--sets cu_random ...] --cubes DIR

With the packaged models `cu` and `cu-cu2o`. Each set is mapped from the disks that py4DSTEM found
and from the raw patterns in DIR; without it those of the two large scans are not at hand, and the
lists of experiments/data/*_detected.h5 stand for them, which `jaxstem detect CUBE --out ...` wrote
and which hold no counts. By the network alone, refined by two-beam theory ("fast") and, with
`--full`, by Bloch waves. py4DSTEM's answers come from experiments/results/py4dstem.npz
(py4dstem_matching.py) and are scored by the same code. Prints tables, writes
experiments/results/sample_scans.json, and with `--maps DIR` keeps the maps for calibration.py.
About ten minutes on two cores, `--full` an hour.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from experiments.accuracy.calibration import reliability
from experiments.common.errors import errors, shares
from experiments.common.markdown import flowed, heading, line, table
from experiments.common.results import DATA, RESULTS, load, save
from jaxstem.app.demo import sample
from jaxstem.crystal.cell import symmetry_operations
from jaxstem.crystal.reading import read_cif
from jaxstem.detection.opening import read_scan
from jaxstem.files.map_file import write_map
from jaxstem.files.orientation_map import NO_CRYSTAL
from jaxstem.files.truth import read_truth
from jaxstem.inference.config import BY_BLOCH_WAVES, InferConfig
from jaxstem.inference.ranked_cells import likeliest_cells
from jaxstem.mapping import map_scan
from jaxstem.maps.metrics import candidate_coverage, grain_bootstrap
from jaxstem.maps.overruling import single_answers
from jaxstem.network.model import load_model
from jaxstem.runtime.cache import default_cache

CRYSTALS = {"Cu": read_cif(sample("Cu.cif")), "Cu2O": read_cif(DATA / "Cu2O.cif")}


@dataclass(frozen=True)
class Scan:
    """A sample scan: its model, its two lists of disks (or a cube), its truth."""

    model: str
    by_py4dstem: Path
    own: Path
    truth: Path


SETS = {
    "cu": Scan("cu", sample("cu_bragg.h5"), DATA / "cu_detected.h5", sample("cu_truth.h5")),
    **{
        name: Scan(
            model, DATA / f"{name}_bragg.h5", DATA / f"{name}_{own}.h5", DATA / f"{name}_truth.h5"
        )
        for name, model, own in (
            ("cu_random", "cu", "cube"),
            ("cu2o_random", "cu-cu2o", "cube"),
            ("cu_cu2o", "cu-cu2o", "detected"),
        )
    },
}


COLUMNS = ("set", "method", "n", "median", "within 5°", "within 5° mod 180°", "at boundaries")
TITLES = {
    "cu": "`cu`, 40 grains of Cu",
    "cu_random": "`cu_random`, Cu",
    "cu2o_random": "`cu2o_random`, Cu2O",
    "cu_cu2o, Cu": "`cu_cu2o`, 23 grains of Cu",
    "cu_cu2o, Cu2O": "`cu_cu2o`, 20 grains of Cu2O",
}
"""What the documents call the sets, a crystal of each."""
METHODS = {
    "py4DSTEM": "py4DSTEM",
    "py4DSTEM's disks, fast": "jaxstem, py4DSTEM's disks",
    "py4DSTEM's disks, fast, alone": "the same, each pattern alone",
    "own disks, none": "jaxstem from raw patterns, `--refine none`",
    "own disks, fast": "**jaxstem from raw patterns**",
    "own disks, fast, alone": "the same, each pattern alone",
    "own disks, full": "the same, `--refine full`",
    "own disks, exact": "the same, `--refine exact`",
}


EXTRA = ("right_phase", "vacuum", "grains_wrong")
"""What goes with a map's scores."""


@dataclass(frozen=True)
class Arguments:
    """sets: which scans; full: also by Bloch waves, from own disks; cubes: folder of raw patterns
    NAME_cube.h5, without which of the two large scans there are lists of disks alone; matching:
    py4DSTEM's answers; maps: folder to keep the maps in; out: JSON to write.
    """

    sets: tuple[str, ...] = tuple(SETS)
    full: bool = False
    cubes: Path | None = None
    matching: Path = RESULTS / "py4dstem.npz"
    maps: Path | None = None
    out: Path = RESULTS / "sample_scans.json"


def errors_of(
    orientation, phase, truth, crystal: str, boundary: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Misorientations [degrees], plain and modulo 180°, where the truth is this crystal inside a
    grain, or with a `boundary` through the position; a wrong or missing answer counts as 180.
    """
    here = ((truth.boundary_weight > 0) == boundary) & (truth.phase == crystal)
    right = (phase[here] == crystal)[:, None, None]
    answer = np.where(right, orientation[here], np.nan)
    return errors(answer, truth.orientation[here], symmetry_operations(CRYSTALS[crystal]))


def score(plain, mod_180, grain) -> dict:
    """Statistics of errors [degrees]; intervals by bootstrap over grains."""
    interval = lambda a: [round(100 * x, 1) for x in grain_bootstrap(a < 5, grain)]  # noqa: E731
    right = plain < 5
    return {
        "n": len(plain),
        **shares(plain, mod_180),
        "within_5_interval": interval(plain),
        "median_mod_180": round(float(np.median(mod_180)), 3),
        "within_5_mod_180_interval": interval(mod_180),
        "median_of_right": round(float(np.median(plain[right])), 3) if right.any() else None,
    }


def score_of(found, truth, crystal: str, grain: np.ndarray) -> tuple[dict, np.ndarray]:
    """Statistics of a map, and its errors [degrees] inside grains."""
    phase = np.array([*found.phase_names, ""])[np.maximum(found.phase, -1)]
    plain, mod_180 = errors_of(found.orientation, phase, truth, crystal)
    row = score(plain, mod_180, grain) | phases(found, truth)
    at_boundary, _ = errors_of(found.orientation, phase, truth, crystal, boundary=True)
    if len(at_boundary):
        row["boundary_within_5"] = round(100 * float((at_boundary < 5).mean()), 1)
    # where the most of a grain's positions are wrong
    of_grain = [(plain[grain == number] >= 5).mean() for number in np.unique(grain)]
    row["grains_wrong"] = int((np.array(of_grain) > 0.5).sum())
    here = (truth.boundary_weight == 0) & (truth.phase == crystal)
    if np.isfinite(found.confidence[here]).any():
        row["calibration"] = reliability(np.nan_to_num(found.confidence[here]), plain < 5)
        del row["calibration"]["bins"]
    return row, plain


def print_row(name: str, method: str, s: dict) -> None:
    """One line of the table."""
    low, high = s["within_5_interval"]
    share = f"{s['within_5']:.1f} % ({low:.0f}–{high:.0f})"
    turned, of_right = f"{s['within_5_mod_180']:.1f} %", f"{s['median_of_right']}°"
    cells = (name, method, s["n"], f"{s['median']:.2f}°", share, turned, at_boundaries(s), of_right)
    print(line(cells), flush=True)


def at_boundaries(s: dict) -> str:
    """Share of right answers where a boundary runs through the position."""
    return f"{s['boundary_within_5']:.1f} %" if "boundary_within_5" in s else "–"


def changes(before: np.ndarray, after: np.ndarray) -> dict[str, int]:
    """How many answers [degrees of error] refinement put right, spoilt, or left as they were."""
    was, is_ = before < 5, after < 5
    return {
        "right_stayed": int((was & is_).sum()),
        "put_right": int((~was & is_).sum()),
        "spoilt": int((was & ~is_).sum()),
        "wrong_stayed": int((~was & ~is_).sum()),
    }


def phases(found, truth) -> dict[str, float]:
    """Share of right phases inside grains, and of vacuum called vacuum [%]."""
    inside = truth.boundary_weight == 0
    names = np.array([*found.phase_names, ""])
    vacuum, crystal = inside & (truth.phase == "vacuum"), inside & (truth.phase != "vacuum")
    named = names[np.maximum(found.phase, -1)]
    right = {"right_phase": 100 * float((named == truth.phase)[crystal].mean())}
    if vacuum.any():
        right["vacuum"] = 100 * float((found.phase == NO_CRYSTAL)[vacuum].mean())
    return {key: round(value, 2) for key, value in right.items()}


def coverage(model, disks, truth, crystal: str) -> dict[str, float]:
    """Share [%] of patterns with the truth within 5° of the network's best cells."""
    here = ((truth.boundary_weight == 0) & (truth.phase == crystal)).ravel()
    cells = likeliest_cells(model, disks)
    index = model.phase_names.index(crystal)
    own = np.where((cells.phase == index)[..., None, None], cells.orientation, np.eye(3))[here]
    known = np.isfinite(cells.orientation[here]).all((1, 2, 3))
    right = truth.orientation.reshape(-1, 3, 3)[here]
    share = candidate_coverage(own[known], right[known], symmetry_operations(CRYSTALS[crystal]))
    return {
        f"best_of_{k}": round(100 * float(known.mean() * share.plain[k - 1]), 1)
        for k in (1, 16, 64)
    }


def to_markdown(results: dict) -> str:
    """The share of right answers by three methods; then all methods, and what goes with them."""
    side_by_side = {
        "py4DSTEM": "py4DSTEM",
        "py4DSTEM's disks, fast": "jaxstem, py4DSTEM's disks",
        "own disks, fast": "**jaxstem, raw patterns**",
    }

    def share(s: dict) -> str:
        low, high = s["within_5_interval"]
        return f"{s['within_5']:.1f} % ({low:.0f}–{high:.0f}) / {s['within_5_mod_180']:.1f} %"

    short = [
        [name, of["py4DSTEM"]["n"], *(share(of[method]) for method in side_by_side)]
        for name, of in ((name, results[key]) for key, name in TITLES.items())
    ]
    rows = []
    for key, name in TITLES.items():
        methods = [method for method in METHODS if method in results[key]]
        for method in methods:
            s, is_first = results[key][method], method == methods[0]
            low, high = s["within_5_interval"]
            rows.append(
                [
                    name if is_first else "",
                    METHODS[method],
                    s["n"] if is_first else "",
                    f"{s['median']:.2f}°",
                    f"{s['within_5']:.1f} % ({low:.0f}–{high:.0f})",
                    f"{s['within_5_mod_180']:.1f} %",
                    at_boundaries(s),
                ]
            )
    fast, theirs = "own disks, fast", "py4DSTEM's disks, fast"
    two = results["cu_cu2o, Cu"]
    doubt = {
        way: ", ".join(
            f"{results[k][way]['calibration']['expected_calibration_error']:.3f}" for k in TITLES
        )
        for way in (fast, theirs)
    }
    random = ("cu_random", "cu2o_random")
    chance = {
        way: " and ".join(f"{results[k][way]['calibration']['by_chance']:.3f}" for k in random)
        for way in (fast, theirs)
    }
    best = "; ".join(
        f"{k} {results[k]['candidates']['own disks']['best_of_16']:.1f}" for k in TITLES
    )
    changed = "; ".join(
        f"{k} {c['put_right']} and {c['spoilt']} of {sum(c.values())}"
        for k, c in ((k, results[k][fast]["changes"]) for k in TITLES)
    )
    wrong = "; ".join(
        f"{k} {results[k][f'{way}, alone']['grains_wrong']} and {results[k][way]['grains_wrong']}"
        for k in ("cu", "cu_cu2o, Cu", "cu_cu2o, Cu2O")
        for way in (fast, theirs)
    )
    thick = ""
    if "own disks, full" in results["cu_random"]:
        error = 100 * results["cu_random"]["own disks, full"]["thickness_error"]
        thick = (
            f"With `--refine full` the thickness is right to {error:.0f} % (median, `cu_random`)."
        )
    read = flowed("""
Share of the positions inside grains whose orientation is within 5° of the truth, in brackets its
95 % interval over grains; behind the stroke the share modulo 180°, where an answer that is turned
by 180° about the beam passes too. No answer and a wrong phase count as wrong.
""")
    told = flowed(f"""
From raw patterns of `cu_cu2o` the phase is right at {two[fast]["right_phase"]:.1f} % of the pixels
inside grains, and {two[fast]["vacuum"]:.1f} % of the vacuum is called vacuum; from py4DSTEM's disks
{two[theirs]["right_phase"]:.1f} and {two[theirs]["vacuum"]:.1f} %. The expected calibration error
of the confidence is, in the order of the table, {doubt[fast]} from raw patterns and {doubt[theirs]}
from py4DSTEM's disks ([diagram](experiments/results/calibration.png)); of as few answers as the
random sets have, exactly calibrated ones would show {chance[fast]}, and {chance[theirs]}. {thick}

Whole grains that are wrong, patterns alone and in the context of the scan, from raw patterns and
from py4DSTEM's disks: {wrong}.

Share of patterns, in per cent, with the truth within 5° of the best 16 cells of the distribution,
from raw patterns: {best}. Refinement puts right and spoils, of the answers without it: {changed}.
""")
    head = f"{table(['set', 'positions', *side_by_side.values()], short)}\n\n{read}"
    return f"{head}\n\nWith all ways to run:\n\n{table(COLUMNS, rows)}\n\n{told}"


def main(arguments: Arguments) -> None:
    """Map, score, print, write."""
    matching = np.load(arguments.matching) if arguments.matching.exists() else {}
    results = load(arguments.out)
    print(heading(*COLUMNS, "median of right"))
    for name in arguments.sets:
        files = SETS[name]
        model, truth = load_model(files.model), read_truth(files.truth)
        inside = truth.boundary_weight == 0
        crystals = [c for c in CRYSTALS if (inside & (truth.phase == c)).any()]
        rows: dict[str, dict] = {crystal: {} for crystal in crystals}
        label = lambda c: name if len(crystals) == 1 else f"{name}, {c}"  # noqa: E731,B023
        grain = {c: truth.grain[inside & (truth.phase == c)] for c in crystals}
        for c in crystals:
            key = name if len(crystals) == 1 else f"{name}:{c}"
            if f"{key}/orientation" in matching:
                all_c = np.full(truth.phase.shape, c)
                rows[c]["py4DSTEM"] = score(
                    *errors_of(matching[f"{key}/orientation"], all_c, truth, c), grain[c]
                )
                print_row(label(c), "py4DSTEM", rows[c]["py4DSTEM"])
        raw = arguments.cubes and arguments.cubes / f"{name}_cube.h5"
        own = read_scan(raw or files.own, progress=False)
        runs = [
            ("py4DSTEM's disks, fast", read_scan(files.by_py4dstem), "fast"),
            ("own disks, none", own, "none"),
            ("own disks, fast", own, "fast"),
            *([(f"own disks, {r}", own, r) for r in BY_BLOCH_WAVES] if arguments.full else []),
        ]
        before: dict[str, np.ndarray] = {}
        for method, disks, refine in runs:
            start = time.perf_counter()
            config = InferConfig(refine=refine, cache=default_cache())
            found = map_scan(disks, model, config, progress=False)
            seconds = round(time.perf_counter() - start, 1)
            if arguments.maps:
                arguments.maps.mkdir(parents=True, exist_ok=True)
                file = f"{name}-{method.replace(', ', '-').replace(' ', '_')}.h5"
                write_map(arguments.maps / file.replace("'", ""), found, overwrite=True)
            for c in crystals:
                row, plain = score_of(found, truth, c, grain[c])
                row["seconds"], here = seconds, inside & (truth.phase == c)
                if refine == "fast":
                    rows[c][f"{method}, alone"], _ = score_of(
                        single_answers(found), truth, c, grain[c]
                    )
                if disks is own and refine == "none":
                    before[c] = plain
                elif disks is own:
                    row["changes"] = changes(before[c], plain)
                if refine in BY_BLOCH_WAVES:
                    ratio = found.thickness[here][plain < 5] / truth.thickness[here][plain < 5]
                    row["thickness_error"] = round(float(np.nanmedian(np.abs(ratio - 1))), 3)
                rows[c][method] = row
                for way in (method, f"{method}, alone"):
                    if way in rows[c]:
                        print_row(label(c), way, rows[c][way])
        for c in crystals:
            rows[c]["candidates"] = {
                "py4DSTEM's disks": coverage(model, runs[0][1], truth, c),
                "own disks": coverage(model, own, truth, c),
            }
            results[label(c)] = results.get(label(c), {}) | rows[c]
            for method, row in rows[c].items():
                extra = {
                    k: row[k]
                    for k in (*EXTRA, "calibration", "changes", "thickness_error")
                    if k in row
                }
                print(
                    f"  {label(c)}, {method}: {extra or row if method == 'candidates' else extra}"
                )
        save(arguments.out, results, to_markdown)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
