# SPDX-License-Identifier: GPL-3.0-or-later
"""The experiments' `--quick` runs: each goes through, prints its table, and writes nothing."""

import re
import runpy
import sys
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"

pytestmark = pytest.mark.usefixtures("quick_compile")


def contents():
    return {p: p.stat().st_mtime_ns for p in EXPERIMENTS.rglob("*") if "__pycache__" not in str(p)}


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("loss_variants.py", r"\| quaternion \| quaternion \| 64 \|"),
        ("multislice.py", r"\| jaxstem, cu, none \| 20 \|"),
        ("paper_maps.py", r"sparse correlation: medians .* of 256"),
        ("paper_phases.py", r"\| synthetic \| Cu2O \| \d+ \| [\d.]+ % \|"),
        ("paper_training.py", r"\| test, network \| 16 \|"),
    ],
)
def test_quick(script, expected, monkeypatch, capsys):
    before = contents()
    monkeypatch.setattr(sys, "argv", [script, "--quick"])
    monkeypatch.syspath_prepend(EXPERIMENTS)
    runpy.run_path(str(EXPERIMENTS / script), run_name="__main__")
    assert re.search(expected, capsys.readouterr().out)
    assert contents() == before
