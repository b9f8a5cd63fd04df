# SPDX-License-Identifier: GPL-3.0-or-later
"""The README has the numbers of experiments/results, and what the documents point to is there."""

import re
import runpy
from pathlib import Path

import pytest

import jaxstem

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(jaxstem.__file__).resolve().parent
DOCUMENTS = [ROOT / "README.md", ROOT / "experiments/README.md", *sorted(ROOT.glob("docs/*.md"))]


def test_numbers_are_the_results():
    script = runpy.run_path(str(ROOT / "experiments" / "readme.py"))
    text = (ROOT / "README.md").read_text()
    assert script["filled"](text) == text
    # a number that differs is noticed
    changed = re.sub(r"(\d)\.(\d) %", r"\1.\2 % %", text, count=1)
    assert script["filled"](changed) == text


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    text = document.read_text()
    for link in re.findall(r"\]\(([^)#]+)", text):
        if not link.startswith("http"):
            target = (document.parent / link).resolve().relative_to(ROOT)
            in_package = target.parts[0] == "jaxstem"
            assert ((PACKAGE.parent if in_package else ROOT) / target).exists(), link
    for script in re.findall(r"`experiments/(\w+\.py)`", text):
        assert (ROOT / "experiments" / script).exists(), script
