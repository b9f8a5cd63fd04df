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
    return table(*rows) + flowed(f"""

From raw patterns of `cu_cu2o` the phase is right at {two[fast]["right_phase"]:.1f} % of the pixels
inside grains, and {two[fast]["vacuum"]:.1f} % of the vacuum is called vacuum; from py4DSTEM's disks
{two[theirs]["right_phase"]:.1f} and {two[theirs]["vacuum"]:.1f} %. The expected calibration error
of the confidence is, in the order of the table, {doubt[fast]} from raw patterns and {doubt[theirs]}
from py4DSTEM's disks ([diagram](experiments/results/calibration.png)). With `--refine full` the
thickness is right to {thickness:.0f} % (median, `cu_random`).

Share of patterns, in per cent, with the truth within 5° of the best 16 cells of the distribution,
from raw patterns: {best}. Refinement puts right and spoils, of the answers without it: {changes}.
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


BLOCKS: dict[str, Callable[[], str]] = {"accuracy": accuracy, "kinematic": kinematic}


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
