# SPDX-License-Identifier: GPL-3.0-or-later
"""What the experiments' arguments share: how they stand beside the results, where those go, and how
a script of `--quick` is made small.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


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
    return arguments.out or (None if arguments.quick else ROOT / f"experiments/results/{name}.json")


def tiny(arguments: Any) -> Any:
    """Arguments of a script that trains, for `--quick`: four steps of sixteen two-beam patterns up
    to 1.2 1/Å with a network of width 16, tested on sixteen.
    """
    width = dict(width=16, blocks=1, heads=2, feedforward=16)
    network = dataclasses.replace(arguments.network, **width)
    small = dict(steps=4, batch=16, n_test=16, physics="two_beam", k_max=1.2, network=network)
    return dataclasses.replace(arguments, **small)
