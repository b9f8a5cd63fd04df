# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the numbers of an experiment go: NAME.json, and beside it NAME.md with what the documents
say of them.

The script experiments/ROOM/NAME.py writes `results/NAME.json`. Where its numbers stand in README.md
or docs/results.md, its function `to_markdown(results)` says how: from what the JSON holds alone, so
that `python -m experiments.tables` can write NAME.md anew without measuring. Links in it start from
the repository's root.

Each JSON is stamped: `"measured"` has the hash of the code that it measured (provenance.py), the
date and versions. A script that adds to what earlier runs wrote loads that with its stamp. If this
is of other code it stays, under `"older"`, and the result counts as stale: move the file away and
run all parts anew for one of the code that stands.
"""

import dataclasses
import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.common import provenance
from experiments.common.provenance import ROOT
from jaxstem.runtime.paths import atomic_path

RESULTS = ROOT / "experiments" / "results"
DATA = ROOT / "experiments" / "data"

STAMP = "measured"

provenance.sources()  # who edits while a script measures does not change what it measured


def settings(arguments: Any) -> dict[str, Any]:
    """All fields of a dataclass of arguments as JSON knows them.

    Files of the repository stand with their path in it, others with their name alone.
    """

    def shown(value: Any) -> str:
        if not isinstance(value, Path):
            return str(value)
        path = value.resolve()
        return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name

    return json.loads(json.dumps(dataclasses.asdict(arguments), default=shown))


def results_file(arguments: Any, name: str) -> Path | None:
    """Where a script writes its JSON: `out`, else experiments/results; a quick one nowhere."""
    return arguments.out or (None if arguments.quick else RESULTS / f"{name}.json")


def load(out: Path | None) -> dict[str, Any]:
    """What earlier runs wrote there, and their stamp; nothing, if none did."""
    if not (out and out.exists()):
        return {}
    return {STAMP: provenance.UNKNOWN} | json.loads(out.read_text())


def numbers(results: dict[str, Any]) -> dict[str, Any]:
    """Results without their stamp: what `to_markdown` takes."""
    return {key: value for key, value in results.items() if key != STAMP}


def save(
    out: Path | None,
    results: dict[str, Any],
    to_markdown: Callable[[dict[str, Any]], str] | None = None,
) -> None:
    """`results`, stamped with the code of the script that calls, as JSON in `out`, NaN as null, and
    as Markdown beside it; no `out`: nowhere.

    Results of which a part is still to be measured leave the Markdown as it is.
    """
    if out is None:
        return
    script = inspect.stack(context=0)[1].filename
    measured = provenance.onto(results.get(STAMP), provenance.stamp(script))
    if "older" in measured:
        print(f"{out}: parts of it are of other code; for one of this, move it away and run all.")
    out.parent.mkdir(parents=True, exist_ok=True)
    content = {STAMP: measured} | numbers(results)
    _write(out, re.sub(r"\bNaN\b", "null", json.dumps(content, indent=1)))
    if to_markdown is None:
        return
    try:
        save_markdown(out, to_markdown)
    except (LookupError, StopIteration, ValueError) as missing:
        print(f"{out}: no Markdown yet, a part of it is not measured ({missing!r}).")


def save_markdown(out: Path, to_markdown: Callable[[dict[str, Any]], str]) -> None:
    """The Markdown beside the JSON `out`, of what stands there.

    Where a part is not measured yet it raises whatever `to_markdown` misses.
    """
    _write(out.with_suffix(".md"), to_markdown(numbers(load(out))))


def _write(path: Path, text: str) -> None:
    with atomic_path(path, overwrite=True) as temporary:
        temporary.write_text(text + "\n")
