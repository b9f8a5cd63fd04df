# SPDX-License-Identifier: GPL-3.0-or-later
"""What the rounds of benchmark_speed.py say: rows for each size and method, figure and tables."""

from pathlib import Path

import numpy as np

from experiments.common.figures import drawn
from experiments.common.markdown import flowed, table
from experiments.speed.runner import spread

STAGES = ("load", "tokens", "inference", "neighbours", "map")
PUBLISHED = {
    "published, GPU": {1024**2: 199.5, 128**2: 5.8},
    "published, many-core CPU": {1024**2: 1450.0, 128**2: 24.0},
    "py4DSTEM, published": {1024**2: 21400.0, 128**2: 303.0},
}
"""Seconds for scans of so many positions, end to end (arXiv 2602.12420)."""


def summary(runs: dict[str, list[dict]], ready: dict | None) -> list[dict]:
    """A row for each size and method: seconds of the stages and of everything, and where both were
    timed how many times faster than py4DSTEM in the same rounds; sizes that did not fit in are
    worked out from the largest that did (`extrapolated_from`), in proportion to the positions.
    """
    rows = []
    for key, found in runs.items():
        *words, side = key.split()
        method, side = " ".join(words), int(side)
        row = {"method": method, "side": side, "positions": side**2}
        if method == "py4DSTEM":
            load = [run["read"] for run in found if "read" in run]
            each = np.array([run["match"] / run["matched"] for run in found])
            total = (ready["seconds"] + np.mean(load) + side**2 * each).tolist()
            row |= {"load": spread(load), "matched_positions": found[0]["matched"]}
            row |= {"plan": ready["plan"], "start": ready["seconds"] - ready["plan"]}
            row |= {"matching": spread((side**2 * each).tolist())}
        elif method.startswith("stages"):
            total = [sum(run[stage] for stage in STAGES) for run in found]
            row |= {stage: spread([run[stage] for run in found]) for stage in STAGES}
            rate = side**2 / np.mean([run["inference"] for run in found])
            row["inference_patterns_per_second"] = round(float(rate), 1)
        else:
            total = [run["seconds"] for run in found]
            row["peak_gib"] = round(max(run["peak_gib"] for run in found), 2)
            row["core_seconds"] = spread([run["core_seconds"] for run in found])
            row["cold_seconds"] = found[0]["cold"]["seconds"] if "cold" in found[0] else None
            theirs = runs.get(f"py4DSTEM {side}", [])
            if theirs:
                read = np.mean([run["read"] for run in theirs if "read" in run])
                paired = [
                    (ready["seconds"] + read + side**2 * b["match"] / b["matched"]) / a
                    for a, b in zip(total, theirs, strict=False)
                ]
                row["times_py4DSTEM"] = spread(paired)
        row["total"] = spread(total)
        row["patterns_per_second"] = round(side**2 / row["total"]["mean"], 1)
        rows.append(row)
    return sorted(rows, key=lambda row: (row["method"], row["side"]))


def extrapolated(rows: list[dict], sides: tuple[int, ...]) -> list[dict]:
    """Rows for the sizes that were not run, from the two largest that were: a start and a cost for
    each position.
    """
    added = []
    for method in sorted({row["method"] for row in rows}):
        if "packed" in method:
            continue
        own = [row for row in rows if row["method"] == method]
        large = own[-1]
        each = large["total"]["mean"] / large["positions"]
        if len(own) > 1:
            rise = large["total"]["mean"] - own[-2]["total"]["mean"]
            each = max(rise / (large["positions"] - own[-2]["positions"]), 0.0)
        for side in sides:
            if side > large["side"]:
                seconds = large["total"]["mean"] + each * (side**2 - large["positions"])
                row = {"method": method, "side": side, "positions": side**2}
                row["total"] = {"mean": seconds, "deviation": None, "runs": 0}
                row["patterns_per_second"] = round(side**2 / seconds, 1)
                added.append(row | {"extrapolated_from": large["side"]})
    return added


LINES = {
    "py4DSTEM": ("py4DSTEM", "tab:red"),
    "command bragg fast": ("jaxstem, fast", "tab:blue"),
    "command bragg none": ("jaxstem, network alone", "tab:green"),
}


def draw(results: dict, path: Path) -> None:
    """Whole time against positions: measured points joined, what was worked out hollow."""
    with drawn(path, size=(5.2, 4.2)) as (_, axes):
        draw_times(axes, results)


def draw_times(axes, results: dict) -> None:
    """The panel of `draw`."""
    for method, (label, colour) in LINES.items():
        own = [row for row in results["table"] if row["method"] == method]
        if not own:
            continue
        own.sort(key=lambda row: row["side"])
        x = [row["positions"] for row in own]
        y = [row["total"]["mean"] for row in own]
        axes.plot(x, y, color=colour, lw=1.2, label=label)
        for row in own:
            part = row.get("matched_positions", row["positions"]) < row["positions"]
            hollow = "extrapolated_from" in row or part
            face = "white" if hollow else colour
            error = row["total"]["deviation"] or None
            at = row["positions"], row["total"]["mean"]
            axes.errorbar(*at, error, fmt="o", ms=4, color=colour, mfc=face, capsize=2)
    for (label, points), marker in zip(PUBLISHED.items(), "*DX", strict=True):
        axes.plot(*zip(*sorted(points.items()), strict=True), marker, color="0.4", label=label)
    axes.set(xscale="log", yscale="log", xlabel="scan positions", ylabel="whole time [s]")
    places = {row["positions"] for row in results["table"]}.union(*PUBLISHED.values())
    axes.set_xticks(sorted(places), [f"{round(n**0.5)}²" for n in sorted(places)], minor=False)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, frameon=False, loc="upper left")
    axes.set_title(f"{results['device']}; hollow: worked out", fontsize=8)


def seconds_text(value: dict | float | None) -> str:
    """Mean ± deviation with sensible digits."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3g}" if value < 1000 else f"{value:.0f}"
    mean, deviation = value["mean"], value["deviation"]
    if deviation is None:
        return seconds_text(mean)
    digits = f"{deviation:.2g}" if deviation < 10 else f"{deviation:.0f}"
    return f"{seconds_text(mean)} ± {digits}"


WAYS = ("py4DSTEM", "command bragg fast", "command bragg none")
COLUMNS = ("positions", "py4DSTEM", "`fast`", "`--refine none`", "times py4DSTEM", "runs")


def whole_seconds(row: dict | None) -> str:
    """A cell of `to_markdown`, in brackets what was worked out."""
    if row is None:
        return ""
    seconds = row["total"]["mean"]
    shown = f"{seconds:,.1f} s" if seconds < 100 else f"{seconds:,.0f} s"
    matched = row.get("matched_positions", row["positions"])
    return shown if row["total"]["runs"] and matched == row["positions"] else f"({shown})"


def ratio(times: dict) -> str:
    """How many times faster, and the deviation."""
    digits = 0 if times["mean"] > 10 else 1
    deviation = times["deviation"]
    return f"{times['mean']:.{digits}f}" + (f" ± {deviation:.{digits}f}" if deviation else "")


def to_markdown(results: dict) -> str:
    """Whole commands on scans of each size, beside py4DSTEM's matching in the same run."""
    of = {(row["method"], row["side"]): row for row in results["table"]}
    sides = sorted({side for method, side in of if method == WAYS[1]})
    rows = []
    for side in sides:
        timed = [of.get((way, side)) for way in WAYS]
        times = [row.get("times_py4DSTEM") for row in timed[1:] if row]
        ratios = [ratio(x) if x else "–" for x in times]
        cells = [*(whole_seconds(row) for row in timed), " and ".join(ratios)]
        runs = max(row["total"]["runs"] for row in timed[1:] if row)
        rows.append([f"{side} × {side}", *cells, runs])
    fast, none = (of[way, sides[-1]]["patterns_per_second"] for way in WAYS[1:])
    floor = results["floor"]
    figure = "[figure](experiments/results/benchmark_speed.png)"
    matched = max(row.get("matched_positions", 0) for row in results["table"])
    right = {name: 100 * x["within_5"] for name, x in results["accuracy"].items()}
    cold = [[row.get("cold_seconds") for (w, _), row in of.items() if w == way] for way in WAYS[1:]]
    ends = [(min(filter(None, c)), max(filter(None, c))) for c in cold]
    first = [" to ".join(map(seconds_text, pair)) for pair in ends]
    told = flowed(f"""
The whole command `jaxstem map` on Bragg disks, start, picture and writing included
(`experiments/speed/benchmark_speed.py`; {results["device"]}; {figure}). Times are warm: compiled
programs are in the cache. A first run, with an empty one, took {first[0]} s with `fast` and
{first[1]} s with `none`, from the smallest scan to the largest. In brackets what was worked out:
py4DSTEM matches {matched} positions of the same file, in turns with jaxstem.

Published for 1024 × 1024: 199.5 s on a GPU, 1,450 s on a many-core CPU. On the largest scan jaxstem
maps {fast:,.0f} patterns a second with `fast`
({right["fast, float32"]:.0f} % of the sample within 5°, from py4DSTEM's disks) and {none:,.0f} with
`none` ({right["none, float32"]:.0f} %; in bfloat16 {right["none, bfloat16"]:.0f} %). The arithmetic
alone, operations counted at the rates that this machine reaches, would take
{100 * floor["fast, float32"]["share_of_floor"]:.0f} and
{100 * floor["none, float32"]["share_of_floor"]:.0f} % of the time that a pattern takes.
""")
    return f"{table(COLUMNS, rows)}\n\n{told}"


def to_tables(results: dict) -> str:
    """All that was measured."""
    names = ("scan", "method", *(f"{stage} [s]" for stage in STAGES), "total [s]", "patterns/s")
    rows = []
    for row in sorted(results["table"], key=lambda row: (row["side"], row["method"])):
        cells = [f"{row['side']}²", row["method"]]
        cells += [seconds_text(row.get(stage)) for stage in STAGES]
        if row["method"] == "py4DSTEM" and "matching" in row:
            cells[4] = seconds_text(row["matching"]) + f" (from {row['matched_positions']})"
        total = seconds_text(row["total"])
        if "extrapolated_from" in row:
            total += f" (worked out from {row['extrapolated_from']}²)"
        cells += [total, f"{row['patterns_per_second']:.0f}"]
        rows.append([*cells, seconds_text(row.get("times_py4DSTEM"))])
    parts = [table([*names, "times py4DSTEM"], rows)]
    right = (
        [name, f"{x['within_5']:.1%}", f"{x['within_5_mod_180']:.1%}", f"{x['median_deg']:.2f}°"]
        for name, x in results["accuracy"].items()
    )
    parts.append(table(["run", "within 5°", "mod 180°", "median"], right))
    least = (
        [
            name,
            x["disks"],
            x["microseconds"],
            x["floor_microseconds"],
            f"{x['share_of_floor']:.0%}",
        ]
        for name, x in results["floor"].items()
    )
    names = ("run", "disks", "pattern [µs]", "floor [µs]", "share of floor")
    parts.append(table(names, least))
    if results["growth"]:
        names = ("model", "phases", "refine", "disks", "pattern [µs]")
        parts.append(table(names, (row.values() for row in results["growth"])))
    if "paper" in results:
        parts.append(f"published network: {results['paper']['patterns_per_second']} patterns/s")
    rate = results["rates"]
    parts.append(
        f"{results['device']}, load average {results['load_average']:.1f}; "
        f"{rate['matrix'] / 1e9:.0f} Gflop/s of matrix products, {rate['elementwise'] / 1e9:.1f} "
        f"elementwise, {rate['transcendental'] / 1e9:.2f} G exponentials/s. {results['cache']}"
    )
    return "\n\n".join(parts)
