# SPDX-License-Identifier: GPL-3.0-or-later
"""Where models lie; known without jax, so that a mistyped name is told at once."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from jaxstem.errors import InputError

MODEL_FILES = ("model.json", "grid.npy", "weights.msgpack")


def model_folder(name: str | Path) -> Path:
    """The folder of a model, or of a packaged one by its name ("cu", "cu-cu2o").

    A folder of that name wins where it holds a model, be it in part or in training. Raises
    InputError when there is no such model.
    """
    folder = Path(name)
    if any((folder / part).exists() for part in (*MODEL_FILES, "run.json")):
        return folder
    if str(name) in packaged_models():
        return Path(str(resources.files("jaxstem") / "models" / str(name)))
    what = (
        f"holds none of {', '.join(MODEL_FILES)}"
        if folder.is_dir()
        else "is neither a model folder nor a packaged model"
    )
    raise InputError(
        f"{name}: {what}; train one with `jaxstem train`, or name one of: "
        f"{', '.join(packaged_models()) or 'none'}."
    )


def packaged_models() -> list[str]:
    """Names of the models that ship with jaxstem."""
    root = resources.files("jaxstem") / "models"
    return sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
