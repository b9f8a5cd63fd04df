# SPDX-License-Identifier: GPL-3.0-or-later
"""From a scan and a model to an orientation map: what `jaxstem map` does, for use from Python.

    scan = read_disks("scan.h5")
    model = load_model("cu")
    write_map("map.h5", map_scan(scan, model))

A scan of shape (ny, nx) has flat positions p = row * nx + column; `predict_scan` answers for those,
and `map_scan` lays its answers out over the scan and says how they were made.
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
    voltage_kv: float | None = None,
    attributes: dict[str, Any] | None = None,
    mesh: Mesh | None = None,
    progress: bool | None = None,
) -> OrientationMap:
    """The orientation map (ny, nx) of a scan by a model of one phase.

    Assigned positions have phase 0; those with too few disks have phase -1, orientation NaN and
    confidence 0. `voltage_kv` [kV] is the scan's accelerating voltage where its file does not state
    it, or states a wrong one. `attributes` are stored beside those that say how the map was made;
    `mesh` and `progress` are `predict_scan`'s. Raises InputError when the scan's voltage is not the
    model's.
    """
    config = config or InferConfig()
    check_voltage(scan, model, voltage_kv)
    answer, n_disks = predict_scan(model, scan, config, mesh=mesh, progress=progress)

    def over_scan(values: np.ndarray) -> np.ndarray:
        values = np.asarray(values)
        return values.reshape(*scan.scan_shape, *values.shape[1:])

    orientation, second = over_scan(answer.orientation), over_scan(answer.second_orientation)
    material = model.material
    return OrientationMap(
        orientation=orientation,
        phase=_phase(orientation),
        phase_names=(material.crystal.name,),
        confidence=over_scan(answer.confidence),
        confidence_mod180=over_scan(answer.confidence_mod180),
        score=over_scan(answer.score),
        second_orientation=second,
        second_phase=_phase(second),
        second_score=over_scan(answer.second_score),
        n_disks=over_scan(n_disks),
        crystals=(material.crystal,),
        scan_step=scan.scan_step,
        scan_units=scan.scan_units,
        attributes={
            "scan": scan.source,
            "voltage_kv": material.voltage_kv,
            "k_max": material.k_max,
            "refined": int(config.refine),
            "symmetry": "Laue group",
            "symmetry_groups": ", ".join([material.crystal.laue_group]),
            **(attributes or {}),
        },
    )


def check_voltage(scan: DiskScan, model: Model, voltage_kv: float | None = None) -> None:
    """Raise InputError when the scan was taken at another voltage than the model's, by over 1 %.

    The scan's voltage is `voltage_kv` [kV] or else what its file states; nothing known passes.
    """
    taken_at = scan.voltage_kv if voltage_kv is None else voltage_kv
    trained_for = model.material.voltage_kv
    if taken_at is None or abs(taken_at - trained_for) <= VOLTAGE_TOLERANCE * trained_for:
        return
    raise InputError(
        f"{scan.source}: was taken at {taken_at:g} kV and the model is for {trained_for:g} kV; "
        f"train a model with --voltage-kv {taken_at:g}, or state the scan's true voltage."
    )


def _phase(orientation: np.ndarray) -> np.ndarray:
    """0 where there is an orientation, -1 where it is NaN."""
    known = np.isfinite(orientation).all(axis=(-1, -2))
    return np.where(known, 0, UNASSIGNED).astype(np.int16)
