# SPDX-License-Identifier: GPL-3.0-or-later
"""The README's numbers, from the results of the other scripts.

    python -m experiments.readme            write them into README.md
    python -m experiments.readme --check    only say whether they are there

What stands in README.md between `<!-- NAME -->` and `<!-- end of NAME -->` is the Markdown in
results/, which the scripts that measure write. To change a number run its script, then this one.
"""

import re
import sys
from pathlib import Path

import tyro

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"

BLOCKS = {
    "accuracy": "<!-- sample_scans -->\n\n<!-- multislice -->",
    "robustness": "<!-- robustness -->",
    "kinematic": "<!-- clean_kinematic -->",
    "laue": "<!-- laue_classes -->",
    "paper": "<!-- paper_training -->\n\n<!-- paper_maps --> <!-- paper_phases -->",
    "losses": "<!-- loss_variants -->",
    "detection": "<!-- detection -->",
    "speed": "<!-- benchmark_speed -->",
    "large": "<!-- large_scan -->",
    "training": "<!-- training_profile -->",
    "accelerator": "<!-- accelerator -->",
}
"""What each block is made of: `<!-- NAME -->` is where results/NAME.md goes."""


def inserted(text: str) -> str:
    """A text with the Markdown that it names; that may name more."""
    return re.sub(
        r"<!-- (\w+) -->",
        lambda name: inserted((HERE / "results" / f"{name[1]}.md").read_text().rstrip("\n")),
        text,
    )


def filled(text: str) -> str:
    """README's text with every block put in anew."""
    for name, parts in BLOCKS.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        block = re.compile(f"{begin}.*?{end}", re.DOTALL)
        if not block.search(text):
            raise SystemExit(f"README.md has no block {begin} … {end}.")
        content = f"{begin}\n{inserted(parts)}\n{end}"
        text = block.sub(lambda _, content=content: content, text)
    return text


def main(check: bool = False) -> None:
    """Fill README.md, or only look whether it is filled."""
    text = README.read_text()
    new = filled(text)
    if check:
        sys.exit("README.md: run python -m experiments.readme." if new != text else 0)
    README.write_text(new)


if __name__ == "__main__":
    tyro.cli(main)
