# SPDX-License-Identifier: GPL-3.0-or-later
"""The demonstration: the sample scan that ships with jaxstem, mapped by the model that ships too.

The scan (samples/README.md) is a multislice simulation by another program, 64 × 64 positions, with
the truth beside it, so that the map can be scored.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from importlib import resources
from pathlib import Path
from typing import Any

from jaxstem.errors import InputError
from jaxstem.files.emd import read_disks
from jaxstem.files.map_file import write_map
from jaxstem.files.orientation_map import OrientationMap
from jaxstem.files.truth import read_truth
from jaxstem.mapping import map_scan
from jaxstem.maps.drawing import figure
from jaxstem.maps.metrics import Evaluation, evaluate, to_dict, to_text
from jaxstem.network.model import load_model
from jaxstem.runtime.paths import replace_file, told_of

MODEL = "cu"

FILES = ("map.h5", "map.png", "score.txt", "score.json")


def sample(name: str) -> Path:
    """Path of a file that ships in jaxstem/samples."""
    return Path(str(resources.files("jaxstem") / "samples" / name))


def check_folder(folder: str | Path) -> None:
    """Raise InputError unless `folder` can be written and is new, empty, or holds an earlier demo
    and nothing else.
    """
    folder = Path(folder)
    if not folder.parent.is_dir():
        raise InputError(f"{folder}: the folder {folder.parent} does not exist; make it first.")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give the name of a folder for the demo.")
    written = folder if folder.is_dir() else folder.parent
    if not os.access(written, os.W_OK):
        raise InputError(f"{folder}: the folder {written} cannot be written; choose another.")
    if folder.is_dir() and {path.name for path in folder.iterdir()} not in (set(), set(FILES)):
        raise InputError(f"{folder} holds other files; give a new folder for the demo.")


def run(
    folder: str | Path, attributes: dict[str, Any] | None = None, progress: bool | None = None
) -> tuple[OrientationMap, Evaluation]:
    """Map the sample scan, score it, and leave `FILES` in `folder`, an earlier demo's replaced.

    `attributes` are stored in the map. Raises InputError when `check_folder` does, or the packaged
    model is missing, and where there is no room.
    """
    folder = Path(folder)
    check_folder(folder)
    scan = read_disks(sample("cu_bragg.h5"))
    model = load_model(MODEL)
    found = map_scan(scan, model, attributes=attributes, progress=progress)
    score = evaluate(found, read_truth(sample("cu_truth.h5")))
    draft = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:12]}")
    try:
        with told_of(folder, draft):
            draft.mkdir()
            write_map(draft / "map.h5", found)
            figure(found, draft / "map.png")
            replace_file(draft / "score.txt", to_text(score) + "\n")
            replace_file(draft / "score.json", json.dumps(to_dict(score), indent=1) + "\n")
            folder.mkdir(exist_ok=True)
            for name in FILES:
                os.replace(draft / name, folder / name)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return found, score
