# SPDX-License-Identifier: GPL-3.0-or-later
"""The README has the numbers of experiments/results, and what the documents point to is there."""

import ast
import re
from pathlib import Path

import pytest
from helpers import EXPERIMENTS, ROOT

import jaxstem
from experiments.common.results import RESULTS, load
from experiments.readme import BLOCKS, filled
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


def test_readme_has_the_numbers():
    text = (ROOT / "README.md").read_text()
    assert filled(text) == text
    # a number that differs is noticed
    changed = re.sub(r"(\d)\.(\d) %", r"\1.\2 % %", text, count=1)
    assert filled(changed) == text


@pytest.mark.parametrize("name", STATED)
def test_numbers_are_the_results(name):
    made = script(name).to_markdown(load(RESULTS / f"{name}.json"))
    assert (RESULTS / f"{name}.md").read_text() == made + "\n"


def test_all_that_is_stated_stands_in_the_readme():
    texts = [*BLOCKS.values(), *((RESULTS / f"{name}.md").read_text() for name in STATED)]
    named = [name for text in texts for name in re.findall(r"<!-- (\w+) -->", text)]
    assert sorted(named) == STATED


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
