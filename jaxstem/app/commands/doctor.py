# SPDX-License-Identifier: GPL-3.0-or-later
"""`jaxstem doctor`."""

from __future__ import annotations

from jaxstem.app.console import Flag, Output


def doctor(json: Flag = False) -> None:
    """Print versions, devices, caches, and one line of advice.

    Args:
        json: Print one JSON object.
    """
    from jaxstem.app.doctor import examine, to_text

    facts = examine()
    Output(json=json).tell(facts, to_text(facts))
    if facts["device_error"]:
        raise SystemExit(1)
