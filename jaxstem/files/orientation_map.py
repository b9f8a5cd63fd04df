# SPDX-License-Identifier: GPL-3.0-or-later
"""The result: phase, orientation and confidence over a scan."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxstem.crystal.cell import Crystal
from jaxstem.errors import InputError
from jaxstem.orientation.rotations import rotation_fault

if TYPE_CHECKING:
    from orix.crystal_map import CrystalMap

UNASSIGNED, NO_CRYSTAL = -1, -2

_SURE, _UNSURE = 0.9, 0.75
"""An answer is ambiguous by 180° when sure modulo 180° (0.9 or more) and unsure (below 0.75)."""

PROPERTIES = (
    "confidence",
    "confidence_mod180",
    "phase_confidence",
    "score",
    "second_score",
    "thickness",
    "log_evidence",
    "explained_light",
    "n_disks",
)
"""What a pixel of an orix `CrystalMap` has besides phase and rotation."""


@dataclass(frozen=True)
class OrientationMap:
    """Orientation and phase over a scan, array axes as in the scan file.

    orientation: columns are the lab axes in crystal Cartesian coordinates, NaN where unassigned.
    phase: index into phase_names and crystals, -1 unassigned, -2 no crystal. confidence: posterior
    probability that the phase is right and the truth within 5 degrees; confidence_mod180 counts the
    turn by 180 degrees about the beam too; phase_confidence: that the phase is right. All three are
    that of "no crystal" where this is the answer, and NaN where not known. score: cosine score in
    0…1. second_*: the runner-up. thickness [Å]: NaN where nothing tells it. log_evidence [nat],
    explained_light in 0…1: what the counts say, NaN where they did not judge. n_disks: disks used.
    single_*: what the pattern says alone, where the rest is what the scan says; None where each
    was decided alone.
    attributes: how the map was made (command, model, jaxstem_version, ...), numbers or strings;
    settings: "microscope", "specimen" and "read_options" as mappings of plain values. Raises
    InputError for orientations and runners-up of a phase that are no rotation matrices.
    """

    orientation: Float[np.ndarray, "ny nx 3 3"]
    phase: Int[np.ndarray, "ny nx"]
    phase_names: tuple[str, ...]
    confidence: Float[np.ndarray, "ny nx"]
    confidence_mod180: Float[np.ndarray, "ny nx"]
    phase_confidence: Float[np.ndarray, "ny nx"]
    score: Float[np.ndarray, "ny nx"]
    second_orientation: Float[np.ndarray, "ny nx 3 3"]
    second_phase: Int[np.ndarray, "ny nx"]
    second_score: Float[np.ndarray, "ny nx"]
    thickness: Float[np.ndarray, "ny nx"]
    n_disks: Int[np.ndarray, "ny nx"]
    crystals: tuple[Crystal, ...]
    scan_step: float = 1.0
    scan_units: str = "pixels"
    attributes: dict = field(default_factory=dict)
    settings: dict[str, dict] = field(default_factory=dict)
    log_evidence: Float[np.ndarray, "ny nx"] | None = None
    explained_light: Float[np.ndarray, "ny nx"] | None = None
    single_orientation: Float[np.ndarray, "ny nx 3 3"] | None = None
    single_phase: Int[np.ndarray, "ny nx"] | None = None
    single_confidence: Float[np.ndarray, "ny nx"] | None = None

    def __post_init__(self) -> None:
        for name in ("log_evidence", "explained_light"):
            if getattr(self, name) is None:  # maps of before counts judged
                object.__setattr__(self, name, np.full(self.phase.shape, np.nan, np.float32))
        for name, phase, matrices in (
            ("orientations", self.phase, self.orientation),
            ("runners-up", self.second_phase, self.second_orientation),
            ("orientations of single patterns", self.single_phase, self.single_orientation),
        ):
            if phase is None and matrices is None:
                continue
            if np.shape(matrices) != (*np.shape(phase), 3, 3):
                raise InputError(
                    f"The map's {name} have shape {np.shape(matrices)} and their phases "
                    f"{np.shape(phase)}; give a matrix for each position."
                )
            if fault := rotation_fault(matrices[phase >= 0], f"the map's {{}} {name}"):
                raise InputError(
                    f"{fault}; give orthonormal matrices of determinant 1 where there is a phase."
                )

    @property
    def ambiguous_180(self) -> Bool[np.ndarray, "ny nx"]:
        """Where the orientation is known but for a turn by 180° about the beam."""
        return ambiguous_by_180(self.phase, self.confidence, self.confidence_mod180)

    def to_orix(self) -> CrystalMap:
        """The map as an orix `CrystalMap` (`crystal_map`): with the properties
        `PROPERTIES` (thickness in Å), `no_crystal` and `ambiguous_180`.
        """
        from jaxstem.files.orix import crystal_map

        values = {name: getattr(self, name) for name in PROPERTIES}
        values |= {"no_crystal": self.phase == NO_CRYSTAL, "ambiguous_180": self.ambiguous_180}
        step = self.scan_step, self.scan_units
        return crystal_map(self.orientation, self.phase, self.crystals, step, values)


def ambiguous_by_180(
    phase: Int[np.ndarray, "..."],
    confidence: Float[np.ndarray, "..."],
    confidence_mod180: Float[np.ndarray, "..."],
) -> Bool[np.ndarray, "..."]:
    """Where an answer is sure modulo a turn by 180° about the beam, and only so."""
    return (confidence_mod180 >= _SURE) & (confidence < _UNSURE) & (phase >= 0)
