# SPDX-License-Identifier: GPL-3.0-or-later
"""Which trained model fits some crystals: of those that ship, and those that were trained here.

A model that was trained is left in the cache too (`keep_model`), the best one of its crystals and
microscope, so that whoever has trained once need only name the crystals again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxstem.crystal.cell import Crystal
from jaxstem.crystal.identity import same_crystal
from jaxstem.diffraction.settings import VOLTAGE_TOLERANCE
from jaxstem.errors import InputError
from jaxstem.network.folders import packaged_models
from jaxstem.network.model import (
    Model,
    StoredModel,
    at_voltage,
    described_microscope,
    described_voltages,
    load_model,
    read_description,
    restored_model,
    stored_model,
)
from jaxstem.runtime.cache import content_key, is_trusted, keep, recall

_SEMI_ANGLES = 1.5
"""Factor between two semi-angles beyond which disks look different to a network."""

_KIND = "model"


class Fitting(NamedTuple):
    """A model whose phases are called as the crystals asked for, and where it came from."""

    model: Model
    origin: str


def fitting_model(
    crystals: Sequence[Crystal],
    voltage_kv: float,
    semi_angle_mrad: float | None = None,
    cache: Path | None = None,
) -> Fitting | None:
    """The best model of exactly these crystals at this voltage [kV] and about this semi-angle
    [mrad] (None: any), by its validation; None where there is none.

    One that was trained at this voltage comes before one that serves it as well. Of the packaged
    models and those in the folder `cache`, whose phases may be in another order.
    """
    best = None
    for description, load, origin in (*_packaged(), *_kept(cache)):
        order = _order(description, crystals)
        if order is None or not _same_microscope(description, voltage_kv, semi_angle_mrad):
            continue
        worth = _is_of(description, voltage_kv), _quality(description)
        if best is None or worth > best[0]:
            best = worth, load, origin, order
    if best is None:
        return None
    _, load, origin, order = best
    model = load()
    names = [crystals[i].name for i in order]
    materials = tuple(
        replace(material, crystal=replace(material.crystal, name=name))
        for material, name in zip(model.materials, names, strict=True)
    )
    return Fitting(at_voltage(replace(model, materials=materials), voltage_kv), origin)


def keep_model(cache: Path | None, model: Model) -> None:
    """Leave a model for `fitting_model`, unless a better one of its crystals is there.

    Only networks that correct templates are left: others are no better than matching.
    """
    if cache is None or not model.config.corrects_templates or not is_trusted(cache):
        return
    stored = stored_model(model)
    content = [m.crystal.to_dict() | {"name": None, "u_iso": m.u_iso} for m in model.materials]
    about = {name: stored.description[name] for name in ("microscope", "specimen")}
    path = Path(cache) / f"{_KIND}-{content_key(about | {'crystals': content})[:32]}.npz"
    there = _read(path)
    if there is not None and _quality(there.description) > _quality(stored.description):
        return
    text = json.dumps(stored.description).encode()
    keep(
        path,
        {
            "description": np.frombuffer(text, np.uint8),
            "grid": stored.grid,
            "weights": np.frombuffer(stored.weights, np.uint8),
        },
    )


def _packaged() -> Iterator[tuple[dict[str, Any], Any, str]]:
    for name in packaged_models():
        folder = resources.files("jaxstem") / "models" / name
        yield (
            read_description(str(folder)),
            lambda name=name: load_model(name),
            f"{name} (packaged)",
        )


def _kept(cache: Path | None) -> Iterator[tuple[dict[str, Any], Any, str]]:
    if cache is None or not Path(cache).is_dir() or not is_trusted(cache):
        return
    for path in sorted(Path(cache).glob(f"{_KIND}-*.npz")):
        stored = _read(path)
        if stored is not None:
            minutes = stored.description.get("record", {}).get("seconds", 0) / 60
            origin = f"trained here for {minutes:.0f} minutes"
            yield stored.description, lambda s=stored, p=path: restored_model(s, p), origin


def _read(path: Path) -> StoredModel | None:
    """A model that `keep_model` left, None where it is not to be had."""
    arrays = recall(path)
    try:
        description = json.loads(arrays["description"].tobytes())
        return StoredModel(description, arrays["grid"], arrays["weights"].tobytes())
    except (TypeError, LookupError, ValueError):
        return None


def _quality(description: dict[str, Any]) -> float:
    """The share of validation patterns within 5°."""
    return float(description["record"].get("validation", {}).get("val_within_5deg", 0.0))


def _is_of(description: dict[str, Any], voltage_kv: float) -> bool:
    """Whether a model was trained at this voltage."""
    own = described_microscope(description).voltage_kv
    return abs(own - voltage_kv) <= VOLTAGE_TOLERANCE * own


def _same_microscope(
    description: dict[str, Any], voltage_kv: float, semi_angle_mrad: float | None
) -> bool:
    """Whether a model is for a still beam, and good at this voltage and about this angle."""
    trained_for = described_microscope(description)
    low, high = described_voltages(description) or (np.inf, -np.inf)
    if not (low <= voltage_kv <= high or _is_of(description, voltage_kv)):
        return False
    if trained_for.precession_deg:
        return False
    if semi_angle_mrad is None:
        return True
    low, high = sorted((semi_angle_mrad, trained_for.semi_angle_mrad))
    return high <= _SEMI_ANGLES * low


def _order(description: dict[str, Any], crystals: Sequence[Crystal]) -> list[int] | None:
    """Which of the crystals each phase of a model is; None where they are not the same."""
    try:
        phases = [Crystal.from_dict(phase["crystal"]) for phase in description["phases"]]
    except (LookupError, TypeError, ValueError):
        return None
    if len(phases) != len(crystals):
        return None
    left, order = list(range(len(crystals))), []
    for phase in phases:
        alike = [i for i in left if _alike(phase, crystals[i])]
        if not alike:
            return None
        order.append(alike[0])
        left.remove(alike[0])
    return order


def _alike(a: Crystal, b: Crystal) -> bool:
    try:
        return same_crystal(a, b)
    except InputError:  # a cell without reflections fits no model
        return False
