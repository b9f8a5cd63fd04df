# SPDX-License-Identifier: GPL-3.0-or-later
"""The counts that answers predict and those that the patterns hold, reflection by reflection.

What the judge of a map looked at (`verification.photometry`), once more for the answers that a
report keeps, and not summed: so one sees why an answer won. For every answer the reflections are
those that it is likeliest to excite, its thickness that at which it explains the counts best.

Shapes: `m` positions, `K` reflections of each answer.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxstem.crystal.cell import Crystal, reflections
from jaxstem.diffraction.geometry import excitation_error
from jaxstem.diffraction.material import direct_beam_radius, inverse_extinction
from jaxstem.diffraction.settings import Microscope, Specimen
from jaxstem.files.light import ScanLight, light_everywhere
from jaxstem.files.scan import DiskScan
from jaxstem.inference.exposure import scan_exposure, scan_reach, typical_beam
from jaxstem.maps.payload import COUNT_STEP, pack, pack_16, pack_counts
from jaxstem.runtime.reductions import turned
from jaxstem.runtime.rows import map_rows
from jaxstem.verification.config import FARTHEST, ScoreConfig
from jaxstem.verification.photometry import (
    account,
    likeliest_reflections,
    log_ratios,
    measured,
    over_thickness,
)
from jaxstem.verification.ranking import Forward

_CHUNK, _AT_ONCE = 64, 8
"""Positions of one call of the program, and of these that are looked at together."""

_WORTH = 2.0
"""Errors that predicted or measured counts must exceed for a reflection to be listed."""


class Counted(NamedTuple):
    """Reflections of one answer at each position, those of the most predicted counts first.

    hkl: zeros beyond the last; predicted, measured (above background), error (of these), all in
    electrons; deviation: measured less predicted over the error, that of the theory included;
    log_ratio: what the reflection adds to the evidence [nat]. Per position: thickness [Å], at which
    all this is, and evidence [nat], averaged over thicknesses; NaN where there is no answer.
    """

    hkl: Int[np.ndarray, "m K 3"]
    predicted: Float[np.ndarray, "m K"]
    measured: Float[np.ndarray, "m K"]
    error: Float[np.ndarray, "m K"]
    deviation: Float[np.ndarray, "m K"]
    log_ratio: Float[np.ndarray, "m K"]
    thickness: Float[np.ndarray, " m"]
    evidence: Float[np.ndarray, " m"]


class Exposed(NamedTuple):
    """What patterns are judged by: their counts, the incident beam of each in electrons, and the
    radius [1/Å] as far as which disks are thought of.
    """

    light: ScanLight
    incident: Float[np.ndarray, " m"]
    reach: float

    @classmethod
    def of(cls, disks: DiskScan, crystals: tuple[Crystal, ...], k_max: float) -> Exposed:
        """That of a scan whose counts were kept; `k_max` [1/Å] is the map's."""
        k_min = min(direct_beam_radius(crystal, k_max) for crystal in crystals)
        reach = scan_reach(disks, k_min, k_max)
        exposed = scan_exposure(disks, k_min, reach, beam=typical_beam(disks, k_min))
        return cls(disks.light, exposed.incident, reach)


def count(
    orientation: Float[np.ndarray, "m 3 3"],
    phase: Int[np.ndarray, " m"],
    crystals: tuple[Crystal, ...],
    exposed: Exposed,
    microscope: Microscope,
    specimen: Specimen,
    n_listed: int,
) -> Counted:
    """The counts of answers, `phase` being the index of the crystal or negative.

    Of the reflections that the judge looks at the `n_listed` with the most counts, predicted or
    measured, that can be told from none.
    """
    m = len(phase)
    room = [np.zeros((m, n_listed, 3), int), *(np.zeros((m, n_listed)) for _ in range(5))]
    found = Counted(*room, np.full(m, np.nan), np.full(m, np.nan))
    for index, unit_cell in enumerate(crystals):
        own = np.flatnonzero((phase == index) & np.isfinite(orientation).all((-1, -2)))
        of = reflections(unit_cell, max(FARTHEST, microscope.k_max), specimen.u_iso)
        inverse = inverse_extinction(unit_cell, of.structure_factor, microscope.voltage_kv)
        forward = Forward(jnp.asarray(of.g, jnp.float32), jnp.asarray(inverse, jnp.float32))
        for start in range(0, len(own), _CHUNK):
            part = own[start : start + _CHUNK]
            # always as many, for one program
            filled = np.resize(part, _CHUNK)
            which, *values = _of_chunk(
                jnp.asarray(orientation[filled], jnp.float32),
                forward,
                exposed.light.at(filled),
                jnp.asarray(exposed.incident[filled]),
                exposed.reach,
                microscope.wavelength,
                ScoreConfig().under(microscope, specimen),
                n_listed,
            )
            which = np.asarray(which)[: len(part)]
            n = which.shape[1]
            found.hkl[part, :n] = np.where(which[..., None] < 0, 0, of.hkl[which])
            for into, value in zip(found[1:6], values[:5], strict=True):
                into[part, :n] = np.asarray(value)[: len(part)]
            for into, value in zip(found[6:], values[5:], strict=True):
                into[part] = np.asarray(value)[: len(part)]
    return found


@jax.jit(static_argnames=("wavelength", "config", "n_listed"))
def _of_chunk(orientation, forward, light, incident, reach, wavelength, config, n_listed):
    """`Counted`, with numbers in `forward`, negative where nothing is, in the place of hkl."""
    counts, semi_angle = config.counts, config.likelihood.damping_angle
    thicknesses = counts.thicknesses(config.likelihood.thickness)

    def one(row):
        orientation, light, incident = row
        of = likeliest_reflections(orientation, forward, wavelength, reach, detector.disk, counts)
        sums = jax.lax.optimization_barrier(light_everywhere(light.sums, detector.seen.shape))
        places = measured(of, sums, light, detector, incident, reach, counts)
        by_thickness = log_ratios(places, jnp.zeros((1, 2)), thicknesses, semi_angle, counts)[0]
        thickness = thicknesses[jnp.argmax(by_thickness)]
        each = account(places, thickness, semi_angle, incident, counts)
        most = jnp.maximum(each.expected, places.excess)
        most = jnp.where((places.weight > 0) & (most > _WORTH * each.error), most, -jnp.inf)
        value, listed = jax.lax.top_k(most, min(n_listed, len(most)))
        order = jnp.argsort(jnp.where(value > 0, -each.expected[listed], jnp.inf))
        listed, exists = listed[order], value[order] > 0
        columns = each.expected, places.excess, *each[1:]
        return (
            jnp.where(exists, _numbers(of, listed, orientation), -1),
            *(jnp.where(exists, column[listed], 0.0) for column in columns),
            thickness,
            over_thickness(by_thickness),
        )

    def _numbers(of, listed, orientation):
        """Which of all reflections these are: those that lie where they do."""
        g = turned(forward.g, orientation)
        everywhere = jnp.stack([g[:, 0], g[:, 1], excitation_error(g, wavelength)])
        here = jnp.stack([of.x, of.y, of.s])[:, listed]
        return jnp.argmin(jnp.square(everywhere[:, None] - here[..., None]).sum(axis=0), axis=1)

    detector = jax.tree.map(jnp.asarray, light.detector)
    return map_rows(one, (orientation, light.light, incident), _AT_ONCE)


def packed_counts(found: Counted) -> dict:
    """The same for the page."""

    def tenths(values: np.ndarray) -> str:
        return pack(np.clip(np.round(10 * np.nan_to_num(values)), -32768, 32767), np.int16)

    return {
        "size": found.predicted.shape[1],
        "step": COUNT_STEP,
        "hkl": pack(found.hkl, np.int8),
        **{name: pack_counts(getattr(found, name)) for name in ("predicted", "measured", "error")},
        "deviation": tenths(found.deviation),
        "log_ratio": pack(np.round(10 * found.log_ratio), np.int8),
        "thickness": pack_16(found.thickness, 0.1),
        "evidence": tenths(found.evidence),
    }
