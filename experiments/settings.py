# SPDX-License-Identifier: GPL-3.0-or-later
"""The settings of a script, as they stand beside its results; shared by the experiments."""

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
