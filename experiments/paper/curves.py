# SPDX-License-Identifier: GPL-3.0-or-later
"""Curves of a training run."""

import json
from pathlib import Path
from typing import Any


def curves_of(arguments: Any) -> list[dict]:
    """Rows of metrics.jsonl in the folder `run`, or else the folder `model`; none without it."""
    metrics = (arguments.run or Path(arguments.model)) / "metrics.jsonl"
    return [json.loads(x) for x in metrics.read_text().splitlines()] if metrics.exists() else []


def draw_curves(panel: Any, curves: list[dict], labels: dict[str, str]) -> None:
    """Each of the labelled numbers against the step, where rows have it."""
    for key, label in labels.items():
        points = [(row["step"], row[key]) for row in curves if row.get(key) is not None]
        if points:
            panel.plot(*zip(*points, strict=True), label=label)
    panel.set(xlabel="step")
    panel.legend(fontsize=8)
