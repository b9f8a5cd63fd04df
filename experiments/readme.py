# SPDX-License-Identifier: GPL-3.0-or-later
"""The README's numbers, from the results of the other scripts.

    python experiments/readme.py            write them into README.md
    python experiments/readme.py --check    only say whether they are there

A block of README.md between `<!-- NAME -->` and `<!-- end of NAME -->` is what the function of that
name makes of `results/*.json`. To change a number run the script that measures it, then this one.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import tyro

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"

SETS = {
    "cu": "`cu`, 40 grains of Cu",
    "cu_random": "`cu_random`, Cu",
    "cu2o_random": "`cu2o_random`, Cu2O",
    "cu_cu2o, Cu": "`cu_cu2o`, 23 grains of Cu",
    "cu_cu2o, Cu2O": "`cu_cu2o`, 20 grains of Cu2O",
}
METHODS = {
    "py4DSTEM": "py4DSTEM",
    "py4DSTEM's disks, fast": "jaxstem, py4DSTEM's disks",
    "own disks, none": "jaxstem from raw patterns, `--refine none`",
    "own disks, fast": "**jaxstem from raw patterns**",
    "own disks, full": "the same, `--refine full`",
    "own disks, exact": "the same, `--refine exact`",
}


def results(name: str) -> Any:
    """What experiments/NAME.py wrote."""
    return json.loads((HERE / "results" / f"{name}.json").read_text())


def flowed(text: str) -> str:
    """Paragraphs with each on one line."""
    return re.sub(r"(?<!\n)\n(?!\n)", " ", text.rstrip("\n"))


def table(*rows: list[str]) -> str:
    """Markdown of a heading and its rows."""
    heading, *rest = rows
    return "\n".join("| " + " | ".join(r) + " |" for r in (heading, ["---"] * len(heading), *rest))


def accuracy() -> str:
    """Sample scans by each method, and what goes with them."""
    scans = results("sample_scans")
    rows = [["set", "method", "n", "median", "within 5°", "within 5° mod 180°"]]
    for key, name in SETS.items():
        methods = [method for method in METHODS if method in scans[key]]
        for method in methods:
            s, is_first = scans[key][method], method == methods[0]
            low, high = s["within_5_interval"]
            rows.append(
                [
                    name if is_first else "",
                    METHODS[method],
                    str(s["n"]) if is_first else "",
                    f"{s['median']:.2f}°",
                    f"{s['within_5']:.1f} % ({low:.0f}–{high:.0f})",
                    f"{s['within_5_mod_180']:.1f} %",
                ]
            )
    fast, theirs = "own disks, fast", "py4DSTEM's disks, fast"
    two = scans["cu_cu2o, Cu"]
    doubt = {
        way: ", ".join(
            f"{scans[k][way]['calibration']['expected_calibration_error']:.3f}" for k in SETS
        )
        for way in (fast, theirs)
    }
    best = "; ".join(f"{k} {scans[k]['candidates']['own disks']['best_of_16']:.1f}" for k in SETS)
    changes = "; ".join(
        f"{k} {c['put_right']} and {c['spoilt']} of {sum(c.values())}"
        for k, c in ((k, scans[k][fast]["changes"]) for k in SETS)
    )
    thickness = 100 * scans["cu_random"]["own disks, full"]["thickness_error"]
    fresh, rival = (results("multislice")[key] for key in ("jaxstem, cu, fast", "py4DSTEM"))

    def within(s: dict) -> str:
        low, high = (100 * x for x in s["within_5_interval"])
        return f"{100 * s['within_5']:.0f} % ({low:.0f}–{high:.0f})"

    return table(*rows) + flowed(f"""

From raw patterns of `cu_cu2o` the phase is right at {two[fast]["right_phase"]:.1f} % of the pixels
inside grains, and {two[fast]["vacuum"]:.1f} % of the vacuum is called vacuum; from py4DSTEM's disks
{two[theirs]["right_phase"]:.1f} and {two[theirs]["vacuum"]:.1f} %. The expected calibration error
of the confidence is, in the order of the table, {doubt[fast]} from raw patterns and {doubt[theirs]}
from py4DSTEM's disks ([diagram](experiments/results/calibration.png)). With `--refine full` the
thickness is right to {thickness:.0f} % (median, `cu_random`).

Share of patterns, in per cent, with the truth within 5° of the best 16 cells of the distribution,
from raw patterns: {best}. Refinement puts right and spoils, of the answers without it: {changes}.

{fresh["n"]} fresh patterns of Cu, simulated in the same way after all choices were made
(`experiments/multislice.py`): {within(fresh)} within 5°, py4DSTEM {within(rival)}.
""")


def robustness() -> str:
    """Worse measurements, one factor at a time, and the hardest level of each."""
    found = results("robustness")
    methods, factors = found["methods"], found["factors"]
    share = lambda row, m: f"{row[m]['within_5']} % ({row[m]['within_5_mod_180']} %)"  # noqa: E731
    usual = next(row for row in factors["pixel_size"] if row["level"] == 0)
    rows = [
        ["measured with", *methods],
        ["the reference setting", *(share(usual, m) for m in methods)],
    ]
    for factor, levels in factors.items():
        hardest = min(levels, key=lambda row: row[methods[0]]["within_5"])
        title = f"{found['titles'][factor]}: {hardest['level']:g}"
        rows.append([title, *(share(hardest, m) for m in methods)])
    return table(*rows) + flowed(f"""

Within 5°, in brackets modulo 180°, {found["n"]:,} Bloch-wave patterns of random orientations each,
model `{found["model"]}`; of each factor the hardest level
([all](experiments/results/robustness.png), `experiments/robustness.py`).
""")


def kinematic() -> str:
    """Clean kinematic patterns."""
    rows = [
        [
            "crystal",
            "Laue group",
            "n",
            "median",
            "within 5°",
            "within 5° mod 180°",
            "of the others as good as the truth",
        ]
    ]
    for c in results("clean_kinematic").values():
        rows.append(
            [
                c["crystal"],
                c["laue_group"],
                str(c["n"]),
                f"{c['median']}°",
                f"{c['within_5']} %",
                f"{c['within_5_mod_180']} %",
                f"{c['wrong_but_the_same_pattern']} of {c['wrong_mod_180']}",
            ]
        )
    return table(*rows)


def laue() -> str:
    """A crystal of each Laue class."""
    found = results("laue_classes")
    told = found.pop("settings")
    rows = [["Laue class", "crystal", "by", "median", "within 5°", "within 5° mod 180°"]]
    for name, crystal in found.items():
        for way, label in (("matching", "templates"), ("network", "network")):
            s, is_first = crystal[way], way == "matching"
            rows.append(
                [
                    crystal["laue_group"] if is_first else "",
                    f"{name} ({crystal['point_group']})" if is_first else "",
                    label,
                    f"{s['median']}°",
                    f"{s['within_5']} %",
                    f"{s['within_5_mod_180']} %",
                ]
            )
    return table(*rows) + flowed(f"""

{told["n"]} clean kinematic patterns of each up to {told["k_max"]} 1/Å, by templates alone and by a
network that corrects them, trained for {60 * told["minutes"]:.0f} seconds; both verified
(`experiments/laue_classes.py`). Crystals without inversion are told apart modulo the Laue class.
""")


def paper() -> str:
    """The published figures beside jaxstem's."""
    fast = results("paper_training")
    finer = [results(f"paper_training_{refine}") for refine in ("full", "exact")]
    exact = finer[1]["test, verified"]
    correlation, phases = results("paper_maps"), results("paper_phases")
    published, of_all = fast["published"], fast["test, verified"]
    sparse, image = correlation["sparse correlation"], correlation["Q"]
    angle = lambda x: f"{x:.4f} rad"  # noqa: E731
    share = lambda x: f"{100 * x:.1f} %"  # noqa: E731

    def row(name, theirs, key, show):
        of = ("test, network", "test, verified")
        ours = [show(fast[k][key]) for k in of if key in fast[k]]
        ours += [show(of_one["test, verified"][key]) for of_one in finer]
        return [name, theirs, *[""] * (4 - len(ours)), *ours]

    rows = [
        ["test set", "published", "`--refine none`", "`fast`", "`full`", "`exact`"],
        row("median", angle(published["median"]), "median", lambda x: f"{x:.2g} rad"),
        row("above 0.6 rad", share(published["above_0.6"]), "above_0.6", share),
        row("the same modulo 180°", "", "above_0.6_mod_180", share),
    ]
    both = [["`cu` sample", "jaxstem", "py4DSTEM", "truth"]]
    for name, score, digits in (
        ("sparse correlation, median", sparse, 2),
        ("normalised cross-correlation Q, median", image, 4),
    ):
        medians = [score["median"][who] for who in ("jaxstem", "py4DSTEM", "truth")]
        both.append([name, *(f"{x:.{digits}f}" for x in medians)])
    turns = results("half_turns")
    rival, judged = turns["fits"]["turned, answer wrong"], turns["ideal_judge_above_0.6"]
    shown = ("0.001", "0.01", "0.03", "0.1")
    errors_of, left = [f"{100 * float(e):g} %" for e in shown], [share(judged[e]) for e in shown]
    harsh = fast["validation, verified"]
    errors = fast["gross_errors"]
    here, led = (r for r in correlation["led"] if r["reach_deg"] in (0.0, 0.5))
    theirs = results("paper_training_paper")
    seen = theirs["curves"][-1]["patterns"]
    return (
        table(*rows)
        + flowed(f"""

{of_all["n"]} patterns ({finer[0]["test, verified"]["n"]} with `full`, {exact["n"]} with `exact`;
published: 65,536). Nearly all that is above 0.6 rad with `fast` is turned by 180° about the beam
({100 * errors["half_turn_about_beam"]:.1f} of {100 * of_all["above_0.6"]:.1f} points): disks of the
zero layer look the same from both, and intensities differ little: fitted by the very Bloch waves
that made the patterns, the best wrong orientation is off by R = {100 * rival["r_factor"][1]:.1f} %
in the median. `exact` makes that fit. A judge who knows all but orientation and thickness leaves
{", ".join(left[:-1])} and {left[-1]} above 0.6 rad where intensities are right to
{", ".join(errors_of[:-1])} and {errors_of[-1]} (`experiments/half_turns.py`): `exact` is for
intensities as good as that. The published validation mean, 0.0244 rad, is of patterns like those of
its training; jaxstem's are harsher (false disks, errors of centre and scale, overlapping grains):
{angle(harsh["mean"])} with `fast`, {angle(harsh["median"])} in the median. The published network
itself (`--preset paper`), trained on {seen:,} of these harsher patterns (published: 265 epochs of
millions), has a median of {angle(theirs["test, network"]["median"])} on the test set and
{share(theirs["test, network"]["above_0.6"])} above 0.6 rad
([figure](experiments/results/paper_training_paper.png)).
""")
        + "\n\n"
        + table(*both)
        + flowed(f"""

Where both answers agree within 5°, jaxstem's sparse correlation is at least py4DSTEM's on
{100 * sparse["jaxstem_at_least_where_both_agree"]:.0f} % of the patterns, that of the true
orientation on {100 * sparse["truth_at_least_where_both_agree"]:.0f} %: the score rewards strong
disks wherever they are predicted, and does not have its summit at the truth. Led uphill to where
it is highest within {led["reach_deg"]:g}° (`jaxstem.correlation.led_uphill`), jaxstem's answers
score at least py4DSTEM's on {100 * led["at_least_py4DSTEM"]:.0f} % of {led["n"]:,}, and their
median error grows from {here["median_error_deg"]["jaxstem"]:.2f}° to
{led["median_error_deg"]["jaxstem"]:.2f}° (py4DSTEM: {led["median_error_deg"]["py4DSTEM"]:.2f}°).
Right phase of `cu_cu2o`'s crystals: {100 * phases["cu_cu2o"]["right_phase_of_crystals"]:.1f} %;
of a synthetic polycrystal with the whole spread of training's noise:
{100 * phases["synthetic"]["right_phase_of_crystals"]:.1f} %.
""")
    )


def losses() -> str:
    """One encoder, one budget, each loss; mean and spread over the seeds that were run."""
    found = results("loss_variants")
    rows = [["loss", "seeds", "median", "within 5°", "within 5° mod 180°"]]
    runs_of = {name: runs for name, runs in found["results"].items() if runs}
    for name, runs in runs_of.items():
        last = [run[-1] for run in runs]

        def told(key: str, last: list[dict] = last) -> str:
            values = [row[key] for row in last]
            spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
            return f"{fmean(values):.1f}{spread}"

        rows.append(
            [
                f"`{name}`",
                str(len(last)),
                f"{told('median_deg')}°",
                f"{told('within_5')} %",
                f"{told('within_5_mod_180')} %",
            ]
        )
    patterns = next(iter(runs_of.values()))[0][-1]["patterns"]
    return table(*rows) + flowed(f"""

{patterns:,} patterns of training each, network alone, no templates, nothing verified
(`experiments/loss_variants.py`; [figure](experiments/results/loss_variants.png); what it teaches:
[docs/losses.md](docs/losses.md)).
""")


def detection() -> str:
    """Disks of two scans of random orientations, by each program."""
    found = results("detection")
    rows = [["set", "program", "true disks", "false disks", "position, median", "from py4DSTEM's"]]
    programs = {
        "py4DSTEM": "py4DSTEM, `poly`",
        "py4DSTEM, multicorr 16": "py4DSTEM, `multicorr` 16",
        "jaxstem": "**jaxstem**",
        "jaxstem, no slopes": "jaxstem, `structure=False`",
        "jaxstem, correlation": "jaxstem, `--method correlation`",
    }
    for name in ("cu_random", "cu2o_random"):
        of = found[name]
        for program, label in programs.items():
            s, pair = of[program], of["positions"].get(f"{program} | py4DSTEM")
            rows.append(
                [
                    f"`{name}`" if program == "py4DSTEM" else "",
                    label,
                    f"{s['true_disks_mean']:.2f}",
                    f"{s['false_disks_mean']:.2f}",
                    f"{s['position_error_px_median']:.3f} px",
                    f"{pair['between']['q50']:.3f} px" if pair else "",
                ]
            )
    pair = found["cu_random"]["positions"]["jaxstem, correlation | py4DSTEM, multicorr 16"]
    apart, speed = pair["between"]["q50"], found["speed"]
    ratios = sorted(r["times_py4dstem"] for r in speed["rounds"])
    return table(*rows) + flowed(f"""

Disks are a mean per pattern. jaxstem's positions differ from py4DSTEM's by what py4DSTEM's differ
from the truth: diffraction fills disks unevenly, and jaxstem fits that slope. The correlation is
for probes that are no round, filled disks; from py4DSTEM's `multicorr` its positions differ by
{apart:.3f} px in `cu_random`. Speed on `cu_cube`,
{speed["cores"]} cores, same run: {speed["from_memory"]:,.0f} patterns a second,
{ratios[len(ratios) // 2]:.1f} times py4DSTEM's ({ratios[0]:.1f}–{ratios[-1]:.1f} in
{len(ratios)} rounds).
""")


def speed() -> str:
    """Whole commands on scans of several sizes, beside py4DSTEM's matching in the same run."""
    found = results("benchmark_speed")
    of = {(row["method"], row["side"]): row for row in found["table"]}
    rows = [["positions", "py4DSTEM", "`fast`", "`--refine none`", "times py4DSTEM", "runs"]]
    ways = ("py4DSTEM", "command bragg fast", "command bragg none")
    sides = sorted({side for method, side in of if method == ways[1]})
    for side in sides:
        cells, ratios = [], []
        for way in ways:
            row = of.get((way, side))
            seconds = row["total"]["mean"] if row else None
            matched = row and row.get("matched_positions", row["positions"])
            is_measured = row and row["total"]["runs"] and matched == row["positions"]
            shown = (
                "" if row is None else f"{seconds:,.1f} s" if seconds < 100 else f"{seconds:,.0f} s"
            )
            cells.append(shown if is_measured or not shown else f"({shown})")
            if row and "times_py4DSTEM" in row:
                ratio, spread = (row["times_py4DSTEM"][x] for x in ("mean", "deviation"))
                digits = 0 if ratio > 10 else 1
                ratios.append(f"{ratio:.{digits}f}" + (f" ± {spread:.{digits}f}" if spread else ""))
        runs = str(of[ways[1], side]["total"]["runs"])
        rows.append([f"{side} × {side}", *cells, " and ".join(ratios), runs])
    largest = of[ways[1], sides[-1]], of[ways[2], sides[-1]]
    fast, none = (row["patterns_per_second"] for row in largest)
    floor = found["floor"]
    figure = "[figure](experiments/results/benchmark_speed.png)"
    matched = max(row.get("matched_positions", 0) for row in found["table"])
    right = {name: 100 * x["within_5"] for name, x in found["accuracy"].items()}
    return table(*rows) + flowed(f"""

The whole command `jaxstem map` on Bragg disks, start, picture and writing included
(`experiments/benchmark_speed.py`; {found["device"]}; {figure}). In brackets what was worked out:
py4DSTEM matches {matched} positions of the same file, in turns with jaxstem. Published for
1024 × 1024: 199.5 s on a GPU, 1,450 s on a many-core CPU. On the largest scan that is
{fast:,.0f} patterns a second with `fast`
({right["fast, float32"]:.0f} % of the sample within 5°, from py4DSTEM's disks) and {none:,.0f} with
`none` ({right["none, float32"]:.0f} %; in bfloat16 {right["none, bfloat16"]:.0f} %). The arithmetic
alone, operations counted at the rates that this machine reaches, would take
{100 * floor["fast, float32"]["share_of_floor"]:.0f} and
{100 * floor["none, float32"]["share_of_floor"]:.0f} % of the time that a pattern takes.
""")


def large() -> str:
    """Whole commands on millions of positions."""
    rows = [["positions", "`--refine`", "time", "a second", "peak memory"]]
    for key, found in sorted(results("large_scan").items(), key=lambda x: x[1]["side"]):
        side, ran = found["side"], found["map"]
        seconds = ran.get("seconds_extrapolated")
        rows.append(
            [
                f"{side} × {side}",
                key.split(", ")[1],
                f"({seconds:,.0f} s)" if seconds else f"{ran['seconds']:,.0f} s",
                f"{ran['positions_per_second']:,.0f}",
                f"{ran['peak_gib']:.1f} GiB",
            ]
        )
    return table(*rows)


def training() -> str:
    """How fast models train."""
    found = results("training_profile")
    rows = [["`--preset`", "parameters", "patterns a step", "patterns/s", "of the matrix rate"]]
    for name, ran in found["presets"].items():
        share = f"{100 * ran['share_of_matrix_rate']:.0f} %"
        rate = f"{ran['patterns_per_second']:,.0f}"
        size = f"{ran['parameters'] / 1e6:.1f} million"
        rows.append([f"`{name}`", size, str(ran["batch"]), rate, share])
    return table(*rows) + flowed(f"""

Training, the simulation of its patterns included (`experiments/training_profile.py`;
{found["device"]}): floating-point operations in matrix products, counted in the step's program, as
a share of the rate at which the machine multiplies two large matrices.
""")


def accelerator() -> str:
    """Inference alone, and what else was measured on a GPU."""
    found = results("accelerator")
    rows = [
        ["network", "`--refine`", "precision", "patterns/s", "with copies from and to the host"]
    ]
    for key, ran in found["inference"].items():
        name, how, precision = key.split(", ")
        label = "published (width 384)" if name == "paper" else "packaged `cu`"
        rate, whole = ran["patterns_per_second"], ran["patterns_per_second_from_host"]
        rows.append([label, how, precision, f"{rate:,}", f"{whole:,}"])
    disks = next(iter(found["inference"].values()))["disks"]
    return table(*rows) + flowed(f"""

Patterns of {disks} disks on {found["device"]} (`experiments/accelerator.py`), from arrays that are
there, and with copies of disks to the device and of answers back; published: 19,000 patterns a
second.
""")


BLOCKS: dict[str, Callable[[], str]] = {
    "accuracy": accuracy,
    "robustness": robustness,
    "kinematic": kinematic,
    "laue": laue,
    "paper": paper,
    "losses": losses,
    "detection": detection,
    "speed": speed,
    "large": large,
    "training": training,
    "accelerator": accelerator,
}


def filled(text: str) -> str:
    """README's text with every block made anew."""
    for name, make in BLOCKS.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        block = re.compile(f"{begin}.*?{end}", re.DOTALL)
        if not block.search(text):
            raise SystemExit(f"README.md has no block {begin} … {end}.")
        content = f"{begin}\n{make()}\n{end}"
        text = block.sub(lambda _, content=content: content, text)
    return text


def main(check: bool = False) -> None:
    """Fill README.md, or only look whether it is filled."""
    text = README.read_text()
    new = filled(text)
    if check:
        sys.exit("README.md: run experiments/readme.py." if new != text else 0)
    README.write_text(new)


if __name__ == "__main__":
    tyro.cli(main)
