# SPDX-License-Identifier: GPL-3.0-or-later
"""Where models lie; known without jax, so that a mistyped name is told at once."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

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


def model_cards() -> list[dict[str, Any]]:
    """What there is to know of each packaged model: name, phases, space groups, voltages_kv (from,
    to), k_max [1/Å], semi_angle_mrad, thickness [Å] (from, to), patterns that trained the network,
    validation (of the network alone, on spoilt patterns that no step drew), seconds of training,
    seed, and bytes on disk.
    """
    cards = []
    for name in packaged_models():
        folder = model_folder(name)
        about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        record, microscope = about["record"], about["microscope"]
        crystals = [phase["crystal"] for phase in about["phases"]]
        cards.append(
            {
                "name": name,
                "phases": [crystal["name"] for crystal in crystals],
                "space_groups": [crystal["space_group"] for crystal in crystals],
                "voltages_kv": about.get("voltages_kv") or [about["voltage_kv"]] * 2,
                "k_max": about["k_max"],
                "semi_angle_mrad": microscope["semi_angle_mrad"],
                "thickness": about["specimen"]["thickness"],
                "patterns": record["total_steps"] * record["config"]["batch"],
                "validation": record["validation"],
                "seconds": record["seconds"],
                "seed": record["config"]["seed"],
                "bytes": sum((folder / part).stat().st_size for part in MODEL_FILES),
            }
        )
    return cards
