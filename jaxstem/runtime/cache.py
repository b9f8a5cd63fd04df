# SPDX-License-Identifier: GPL-3.0-or-later
"""What earlier runs made, kept on disk under a hash of everything that decides it.

Simulated libraries, templates and compiled programs take seconds to minutes to make and are the
same the next time. Each is a file in one folder (`default_cache`), named by its kind and the hash
of its content (`content_key`): what has changed is not found, and so made anew. Where the code
itself decides, as it does for compiled programs, its own text belongs to the content
(`written_by`). A file that is damaged counts as none.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import platform
import sys
import warnings
from collections.abc import Callable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any


def cache_home() -> Path:
    """$XDG_CACHE_HOME/jaxstem, or ~/.cache/jaxstem."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(caches) / "jaxstem"


def default_cache() -> Path:
    """The folder `libraries` in `cache_home`."""
    return cache_home() / "libraries"


def content_key(content: dict[str, Any]) -> str:
    """A hash (sha256) of what JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@cache
def written_by() -> dict[str, str]:
    """The code that runs, as content for `content_key`: jaxstem's own text, what it computes with,
    and the processor.
    """
    text = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        text.update(path.read_bytes())
    versions = {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "numpy")}
    return {"jaxstem": text.hexdigest(), "python": sys.version, "processor": processor()} | versions


def processor() -> str:
    """A short name for what this processor can execute."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    abilities = [line for line in lines if line.startswith(("flags", "Features", "model name"))][:2]
    text = "\n".join([platform.system(), platform.machine(), platform.processor(), *abilities])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def cached(folder: Path | None, kind: str, content: dict[str, Any], make: Callable[[], Any]) -> Any:
    """What `make` gives, from the folder where an earlier run left that of this kind and content;
    otherwise made, and left there. None: made.
    """
    if folder is None:
        return make()
    path = Path(folder) / f"{kind}-{content_key(content)[:32]}.bin"
    thing = recall(path)
    if thing is None:
        thing = make()
        keep(path, thing)
    return thing


def recall(path: Path) -> Any | None:
    """What `keep` left in this file; None if there is none, or none that can be read."""
    try:
        return pickle.loads(path.read_bytes())
    except Exception:  # damage shows as an error of any kind
        return None


def keep(path: Path, thing: Any) -> None:
    """Leave something that pickle can hold for the next time, with a warning if that cannot be."""
    from jaxstem.errors import InputError
    from jaxstem.runtime.paths import atomic_path

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path, overwrite=True) as part:
            part.write_bytes(pickle.dumps(thing))
    except (OSError, InputError) as error:
        warnings.warn(f"{path}: cannot be kept for the next time ({error}).", stacklevel=2)
