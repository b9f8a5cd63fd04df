# SPDX-License-Identifier: GPL-3.0-or-later
"""`jaxstem doctor`."""

from __future__ import annotations

from jaxstem.app.console import Flag, Output


def doctor(json: Flag = False, empty_cache: Flag = False) -> None:
    """Print versions, devices, what the cache holds, and advice.

    Args:
        json: Print one JSON object.
        empty_cache: Remove first all that earlier runs left in the cache.
    """
    from jaxstem.app.doctor import examine, to_text
    from jaxstem.runtime.cache import bound, default_cache

    if empty_cache and (folder := default_cache()):
        bound(folder, 0)
    facts = examine()
    Output(json=json).tell(facts, to_text(facts))
    if facts["device_error"]:
        raise SystemExit(1)
