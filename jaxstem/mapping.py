# SPDX-License-Identifier: GPL-3.0-or-later
"""From a scan and a model to an orientation map: what `jaxstem map` does, for use from Python.

    scan = read_disks("scan.h5")
    model = load_model("cu")
    write_map("map.h5", map_scan(scan, model))

A scan of shape (ny, nx) has flat positions p = row * nx + column; `predict_scan` answers for those,
and `map_scan` lays its answers out over the scan and says how they were made. Doubtful answers can
be left out: those of a confidence below `least_confidence` are unassigned.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jax.sharding import Mesh

from jaxstem.errors import InputError
from jaxstem.infer import InferConfig, predict_scan
from jaxstem.io import UNASSIGNED, DiskScan, OrientationMap
from jaxstem.model import Model

VOLTAGE_TOLERANCE = 0.01
"""Relative difference of voltage above which a model does not fit a scan."""


def map_scan(
    scan: DiskScan,
    model: Model,
    config: InferConfig | None = None,
    *,
    least_confidence: float = 0.0,
    voltage_kv: float | None = None,
    attributes: dict[str, Any] | None = None,
    mesh: Mesh | None = None,
    progress: bool | None = None,
) -> OrientationMap:
    """The orientation map (ny, nx) of a scan by a model of one or more phases.

    Positions with too few disks, and those whose confidence is known and below `least_confidence`,
    are unassigned: phase -1, orientation NaN; those without a crystal have phase -2. `voltage_kv`
    [kV] is the scan's accelerating voltage where its file does not state it, or states a wrong one.
    `attributes` are stored beside those that say how the map was made; `mesh` and `progress` are
    `predict_scan`'s. Raises InputError when the scan's voltage is not the model's.
    """
    config = config or InferConfig()
    check_voltage(scan, model, voltage_kv)
    answer, n_disks = predict_scan(model, scan, config, mesh=mesh, progress=progress)
    doubtful = answer.confidence < least_confidence
    answer = answer._replace(
        phase=np.where(doubtful, UNASSIGNED, answer.phase),
        orientation=np.where(doubtful[:, None, None], np.nan, answer.orientation),
        thickness=np.where(doubtful, np.nan, answer.thickness),
    )

    def over_scan(values: np.ndarray) -> np.ndarray:
        values = np.asarray(values)
        return values.reshape(*scan.scan_shape, *values.shape[1:])

    crystals = tuple(m.crystal for m in model.materials)
    return OrientationMap(
        **{name: over_scan(values) for name, values in answer._asdict().items()},
        n_disks=over_scan(n_disks),
        phase_names=model.phase_names,
        crystals=crystals,
        scan_step=scan.scan_step,
        scan_units=scan.scan_units,
        attributes={
            "scan": scan.source,
            "voltage_kv": model.voltage_kv,
            "k_max": model.k_max,
            "refine": config.refine,
            "least_confidence": least_confidence,
            "symmetry": "Laue group",
            "symmetry_groups": ", ".join(crystal.laue_group for crystal in crystals),
            **(attributes or {}),
        },
    )


def check_voltage(scan: DiskScan, model: Model, voltage_kv: float | None = None) -> None:
    """Raise InputError when the scan was taken at another voltage than the model's, by over 1 %.

    The scan's voltage is `voltage_kv` [kV] or else what its file states; nothing known passes.
    """
    taken_at = scan.voltage_kv if voltage_kv is None else voltage_kv
    trained_for = model.voltage_kv
    if taken_at is None or abs(taken_at - trained_for) <= VOLTAGE_TOLERANCE * trained_for:
        return
    raise InputError(
        f"{scan.source}: was taken at {taken_at:g} kV and the model is for {trained_for:g} kV; "
        f"train a model with --voltage-kv {taken_at:g}, or state the scan's true voltage."
    )
