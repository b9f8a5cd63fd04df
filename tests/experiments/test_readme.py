# SPDX-License-Identifier: GPL-3.0-or-later
"""The documents have the numbers of experiments/results, and what they point to is there.

Whether results are of the code that stands is not asked here: python -m experiments.stale.
"""

import ast
import re
from pathlib import Path

import pytest
from helpers import EXPERIMENTS, ROOT

import jaxstem
from experiments import readme
from experiments.common.results import RESULTS, load, numbers
from experiments.tables import script

PACKAGE = Path(jaxstem.__file__).resolve().parent
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    EXPERIMENTS / "README.md",
    *sorted(ROOT.glob("docs/*.md")),
]
ROOMS = ("accuracy", "speed", "paper", "training", "simulate", "common")
STATED = sorted(path.stem for path in RESULTS.glob("*.md"))
MEASURED = r"\d[\d,.]* ?(?:%|s\b|px\b|GiB|rad\b)|\d\.\d+ ?°|\d[\d,.]* (?:patterns|times) (?!of)"


@pytest.mark.parametrize("document", readme.DOCUMENTS, ids=lambda path: path.name)
def test_documents_have_the_numbers(document):
    text, date = document.read_text(), lambda name: "Measured one day."
    filled = readme.filled(text, document.parent, date)
    assert readme.undated(filled) == readme.undated(text) != text
    # a number that differs is noticed
    changed = re.sub(r"(\d)\.(\d) %", r"\1.\2 % %", text, count=1)
    assert changed != text and readme.filled(changed, document.parent, date) == filled
    # numbers that are measured stand in blocks alone
    assert not re.findall(MEASURED, readme.BLOCK.sub("", text))


@pytest.mark.parametrize("name", STATED)
def test_numbers_are_the_results(name):
    made = script(name).to_markdown(numbers(load(RESULTS / f"{name}.json")))
    assert (RESULTS / f"{name}.md").read_text() == made + "\n"


def test_all_that_is_stated_stands_in_a_document():
    assert sorted(readme.whole_blocks()) == STATED


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


def test_links_start_from_the_document():
    text = "[a](docs/losses.md), [b](experiments/results/b.png), [c](https://c.org/docs)"
    assert readme.relinked(text, ROOT) == text
    there = "[a](losses.md), [b](../experiments/results/b.png), [c](https://c.org/docs)"
    assert readme.relinked(text, ROOT / "docs") == there


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    text = document.read_text()
    for link in re.findall(r"\]\(([^)#]+)", text):
        if not link.startswith("http"):
            target = (document.parent / link).resolve().relative_to(ROOT)
            in_package = target.parts[0] == "jaxstem"
            assert ((PACKAGE.parent if in_package else ROOT) / target).exists(), link
    files = re.findall(r"(?<![\w/])experiments/[\w/]+\.py", text)
    files += [f"experiments/{x}" for x in re.findall(rf"`((?:{'|'.join(ROOMS)})/\w+\.py)`", text)]
    modules = re.findall(r"-m (experiments[\w.]*)", text)
    files += [module.rstrip(".").replace(".", "/") + ".py" for module in modules]
    for file in files:
        assert (ROOT / file).exists(), file


def test_every_script_is_told_of():
    told = (EXPERIMENTS / "README.md").read_text()
    for room in ROOMS:
        for path in (EXPERIMENTS / room).glob("[a-z]*.py"):
            assert f"`{room}/{path.name}`" in told or f"`{path.name}`" in told, path


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_share_by_common(room):
    """A room imports from itself, from common and from simulate; these from no other room."""
    allowed = {room, "common"} | ({"simulate"} if room != "common" else set())
    paths = list((EXPERIMENTS / room).glob("*.py"))
    assert len(paths) > 1
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [x.name for x in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                if name.split(".")[0] == "experiments":
                    assert name.split(".")[1] in allowed, f"{path.name}: {name}"
