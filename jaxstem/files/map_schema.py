# SPDX-License-Identifier: GPL-3.0-or-later
"""The arrays of a map, stated once: writer, reader, answers and documentation follow this table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


class MapDataset(NamedTuple):
    """An array over the scan, of shape (ny, nx, *cell).

    location: in the file; dtype: of the stored numbers; cell: shape of what a position has; unit:
    of the numbers, "" where there is none; meaning: for the documentation.
    """

    location: str
    dtype: type
    cell: tuple[int, ...]
    unit: str
    meaning: str

    def shape(self, *scan: int) -> tuple[int, ...]:
        """The shape over so many positions."""
        return (*scan, *self.cell)


UNKNOWN = (
    "NaN where not known (a nine-number network without verification; no crystal because there are "
    "no disks)"
)

MAP_DATASETS: Mapping[str, MapDataset] = {
    "orientation": MapDataset(
        "orientation",
        np.float32,
        (3, 3),
        "",
        "columns are the lab x, y, z axes in crystal Cartesian coordinates "
        "(`q_lab = R.T @ g_crystal`); NaN where unassigned",
    ),
    "phase": MapDataset(
        "phase",
        np.int16,
        (),
        "",
        "index into `/phase_names`; −1 unassigned, −2 no crystal (vacuum, amorphous)",
    ),
    "confidence": MapDataset(
        "confidence",
        np.float32,
        (),
        "",
        "probability, 0…1, that the phase is right and the truth within 5° of the orientation; "
        f'that of "no crystal" where this is the answer; {UNKNOWN}',
    ),
    "confidence_mod180": MapDataset(
        "confidence_mod180",
        np.float32,
        (),
        "",
        "the same, its turn by 180° about the beam counting too",
    ),
    "phase_confidence": MapDataset(
        "phase_confidence",
        np.float32,
        (),
        "",
        'probability of the phase, or of "no crystal"; NaN as above',
    ),
    "score": MapDataset(
        "score",
        np.float32,
        (),
        "",
        "cosine score of the orientation against its simulated disks",
    ),
    "second_orientation": MapDataset(
        "second/orientation",
        np.float32,
        (3, 3),
        "",
        "the runner-up: the best candidate of another phase or more than 5° away",
    ),
    "second_phase": MapDataset("second/phase", np.int16, (), "", "its phase"),
    "second_score": MapDataset("second/score", np.float32, (), "", "its score"),
    "thickness": MapDataset(
        "thickness",
        np.float32,
        (),
        "Å",
        "likeliest thickness by Bloch waves (`--refine full` or `exact`), else NaN",
    ),
    "log_evidence": MapDataset(
        "log_evidence",
        np.float32,
        (),
        "nat",
        "ln of how much likelier the answer makes the pattern's counts than no crystal; NaN where "
        "nothing is assigned or counts did not judge",
    ),
    "explained_light": MapDataset(
        "explained_light",
        np.float32,
        (),
        "",
        "share, 0…1, of the light above background that the answer explains; NaN as above",
    ),
    "n_disks": MapDataset("n_disks", np.int32, (), "", "disks used"),
}
"""By the names of `OrientationMap`'s arrays; all but the last are those of `inference.Answer`."""

SINGLE: Mapping[str, MapDataset] = {
    "single_orientation": MapDataset(
        "single/orientation",
        np.float32,
        (3, 3),
        "",
        "what the pattern says alone; only where neighbours were asked (`--context scan`)",
    ),
    "single_phase": MapDataset("single/phase", np.int16, (), "", "its phase"),
    "single_confidence": MapDataset("single/confidence", np.float32, (), "", "its confidence"),
}
"""What maps keep of each pattern's own answer beside that of the scan."""

LATER = {name: MAP_DATASETS[name] for name in ("log_evidence", "explained_light")}
"""Arrays that maps of before they were introduced lack."""

DERIVED: Mapping[str, MapDataset] = {
    "ambiguous_180": MapDataset(
        "ambiguous_180",
        np.bool_,
        (),
        "",
        "`/confidence_mod180` is at least 0.9 and `/confidence` below 0.75: the orientation is "
        "known but for a turn by 180° about the beam",
    ),
}
"""Arrays that follow from the others, stored for other programs."""


def unassigned(n: int, dataset: MapDataset) -> np.ndarray:
    """The array of `n` positions of which nothing is known yet: NaN, or −1."""
    absent = np.nan if np.issubdtype(dataset.dtype, np.floating) else -1
    return np.full(dataset.shape(n), absent, dataset.dtype)


def markdown() -> str:
    """The rows of the table in docs/file-formats.md."""
    rows = []
    for dataset in (*MAP_DATASETS.values(), *DERIVED.values(), *SINGLE.values()):
        shape = ", ".join(("ny", "nx", *map(str, dataset.cell)))
        kind = f"{np.dtype(dataset.dtype).name} ({shape})"
        unit = f"{dataset.unit}: " if dataset.unit else ""
        rows.append(f"| `/{dataset.location}` | {kind} | {unit}{dataset.meaning} |")
    return "\n".join(rows)
