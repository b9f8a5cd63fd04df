# SPDX-License-Identifier: GPL-3.0-or-later
"""How candidates are found and judged: the settings of every stage, as frozen dataclasses.

`Level` is one lattice of the search, `LikelihoodConfig` the measurement's statistics and the climb
by two-beam theory, `DynamicalConfig` the verdict by Bloch waves, `FitConfig` the fit of these, and
`ScoreConfig` holds them all for one kind of refinement.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxstem.diffraction.settings import Microscope, Specimen
from jaxstem.diffraction.two_beam import LEAST_CONE


@dataclass(frozen=True)
class LikelihoodConfig:
    """The measurement's statistics and the search's steps.

    thickness: lowest and highest [Å], `n_thicknesses` between them, evenly in the logarithm;
    n_likely: how many of them the later steps follow; shapes: widths σ [1/Å] of Gaussian shape
    functions that stand for thin, bent or mosaic crystals; semi_angle [mrad] of the illumination;
    n_reflections: those nearest to excitation that are simulated; steps [degrees]: of the tilt
    lattices, one after the other, two at least; position_sigma [1/Å];
    intensity_scatter: of ln I about the forward model; noise_at_limit: relative noise of a disk at
    the detection limit; false_rate: false disks a pattern; false_decay: by how much ln I of a false
    disk exceeds the limit on average; rare_false: density per nat of false disks far above it;
    detection: the most that a reflection can be certain to be found.
    """

    thickness: tuple[float, float] = Specimen.thickness
    n_thicknesses: int = 16
    n_likely: int = 8
    shapes: tuple[float, ...] = (0.02, 0.035)
    semi_angle: float = Microscope.semi_angle_mrad
    n_reflections: int = 32
    steps: tuple[float, ...] = (0.6, 0.3, 0.15, 0.07)
    position_sigma: float = 0.012
    intensity_scatter: float = 0.25
    noise_at_limit: float = 0.35
    false_rate: float = 2.0
    false_decay: float = 0.5
    rare_false: float = 0.007
    detection: float = 0.97

    def thicknesses(self) -> Float[Array, " T"]:
        """The grid of thicknesses [Å]."""
        low, high = jnp.log(self.thickness[0]), jnp.log(self.thickness[1])
        return jnp.exp(jnp.linspace(low, high, self.n_thicknesses))

    @property
    def damping_angle(self) -> float:
        """Semi-angle [mrad] by which fringes are damped."""
        return max(self.semi_angle, LEAST_CONE)


@dataclass(frozen=True)
class CountsConfig:
    """How counts at predicted places are judged (`photometry.py`).

    n_candidates: of one phase that enter each level of the search; n_final: that it hands on, each
    of which is looked at, and its turn by 180° about the beam; n_thicknesses: evenly between the
    likelihood's lowest and highest; n_likely: how many of them the later steps of a climb follow;
    n_reflections: those likeliest to be excited that are looked
    at; scatter: by which share two-beam intensities are wrong; floor: by which share of the beam
    they are always; outliers: share of places that hold anything; background_error: share by which
    the background may be wrong; read_noise: electrons in an aperture that no theory tells; steps
    [degrees]: of the tilt lattices; n_polished: candidates that climb; list_weight: of the
    likelihood of the listed disks beside that of the counts.
    """

    n_candidates: tuple[int, ...] = (96, 24, 16)
    n_final: int = 12
    n_thicknesses: int = 48
    n_likely: int = 8
    n_reflections: int = 48
    scatter: float = 0.4
    floor: float = 5e-5
    outliers: float = 0.03
    background_error: float = 0.05
    read_noise: float = 3.0
    steps: tuple[float, ...] = (0.5, 0.25, 0.12, 0.06)
    n_polished: int = 3
    list_weight: float = 0.2

    def thicknesses(self, within: tuple[float, float]) -> Float[Array, " T"]:
        """The grid of thicknesses [Å] between the lowest and the highest."""
        return jnp.linspace(*within, self.n_thicknesses)


@dataclass(frozen=True)
class DynamicalConfig:
    """thickness: lowest and highest [Å], `n_thicknesses` between them, evenly; steps [degrees] of
    the tilt lattices; n_beams, n_weak: strong beams and Bethe beams; intensity_scatter: of ln I
    about Bloch waves; damping [Å^2]: values of c in exp(-c q^2), by which intensities may be
    weakened, summed over, for vibrations and blur are not known; n_candidates: the likeliest that
    are judged; behind: log-likelihood [nat] by which a candidate may trail the best by two-beam
    theory and still be judged.
    """

    thickness: tuple[float, float] = Specimen.thickness
    n_thicknesses: int = 64
    steps: tuple[float, ...] = (0.15, 0.08, 0.04)
    n_beams: int = 48
    n_weak: int = 150
    intensity_scatter: float = 0.1
    damping: tuple[float, ...] = (0.0, 0.08, 0.16, 0.24)
    n_candidates: int = 5
    behind: float = 15.0


@dataclass(frozen=True)
class FitConfig:
    """n_candidates: the likeliest that are fitted; thickness: lowest and highest [Å];
    thickness_step [Å], spacing, half_width [degrees]: of the coarse fit and its tilts; softening:
    share of the strongest disk that is added to intensities in coarse and first fit, so that weak
    disks count little; rough_beams: strong and Bethe beams there; n_starts: points of the coarse
    fit that are fitted, at least `apart` [degrees, Å] from each other, in `rough_steps`; n_fine:
    the best of them that are fitted on, with `beams`, in `steps`; scatters: of ln I, that may be
    true, the first that of `climb_dynamically`.
    """

    n_candidates: int = 4
    thickness: tuple[float, float] = Specimen.thickness
    thickness_step: float = 4.0
    spacing: float = 0.06
    half_width: float = 1.0
    softening: float = 0.1
    rough_beams: tuple[int, int] = (32, 100)
    n_starts: int = 16
    apart: tuple[float, float] = (0.1, 12.0)
    rough_steps: int = 5
    n_fine: int = 3
    beams: tuple[int, int] = (80, 200)
    steps: int = 8
    scatters: tuple[float, ...] = (0.1, 0.03, 0.01, 0.003, 0.001)


@dataclass(frozen=True)
class Level:
    """One level of the search: kernel width σ [1/Å], width of the excitation-error floor [1/Å],
    most [degrees] that the crystal is turned in-plane, in `n_turns` steps of least squares,
    half-range [degrees] and number of tilts along each axis, how many of the cell's reflections are
    simulated, how many candidates enter the level, and how close [degrees] two of them lie after it
    that count as one (0: they are not compared).
    """

    kernel: float
    floor: float
    angle: float
    n_turns: int
    tilt: float
    n_tilts: int
    n_visible: int
    n_candidates: int
    same: float


@dataclass(frozen=True)
class ScoreConfig:
    """What counts as agreement, and how it is searched.

    measured_power, predicted_power: of the intensities in the cosine; n_modes: peaks of each
    phase's distribution that are verified; levels: of the search; n_final: candidates that come
    through it; n_climbing: the likeliest of these, which climb to the summit of their likelihood
    (these and the levels' numbers are for one phase, see `keep_best`); behind: log-odds by which
    one of them may trail the best of its pattern after `APPROACH` steps and climb on; likelihood,
    counts, dynamical: how they are judged; fit: how the likeliest by Bloch waves are then fitted,
    if they are.
    """

    measured_power: float = 0.25
    predicted_power: float = 0.5
    n_modes: int = 24
    levels: tuple[Level, ...] = (
        Level(0.06, 0.02, 4.0, 1, 3.2, 5, 48, 96, 0.0),
        Level(0.04, 0.008, 2.0, 2, 1.5, 7, 64, 12, 0.2),
        Level(0.03, 0.003, 1.0, 1, 0.5, 7, 64, 8, 0.4),
    )
    n_final: int = 8
    n_climbing: int = 4
    behind: float = 0.5
    likelihood: LikelihoodConfig = LikelihoodConfig()
    counts: CountsConfig = CountsConfig()
    dynamical: DynamicalConfig = DynamicalConfig()
    fit: FitConfig | None = None

    @property
    def by_counts(self) -> ScoreConfig:
        """The same where counts judge: more candidates come so far, for each is cheaply judged."""
        numbers = zip(self.levels, self.counts.n_candidates, strict=True)
        levels = tuple(replace(level, n_candidates=n) for level, n in numbers)
        return replace(self, levels=levels, n_final=self.counts.n_final)

    def under(self, microscope: Microscope, specimen: Specimen) -> ScoreConfig:
        """The same for these settings: semi-angle of the probe, range of thicknesses."""
        of = {"thickness": specimen.thickness}
        likelihood = replace(self.likelihood, semi_angle=microscope.semi_angle_mrad, **of)
        fit = self.fit and replace(self.fit, **of)
        dynamical = replace(self.dynamical, **of)
        return replace(self, likelihood=likelihood, dynamical=dynamical, fit=fit)


THOROUGH = ScoreConfig(
    n_modes=12,
    levels=tuple(
        replace(level, n_candidates=n)
        for level, n in zip(ScoreConfig().levels, (96, 20, 12), strict=True)
    ),
    n_final=8,
    n_climbing=8,
    behind=np.inf,
    likelihood=LikelihoodConfig(n_reflections=40),
)
"""For tables with siblings, and where Bloch waves judge, beside which the search costs little."""

EXACT = replace(THOROUGH, fit=FitConfig())
"""For intensities that Bloch waves explain to a per cent or two."""

APPROACH = 2
"""Steps of a climb after which candidates are compared, and those far behind left where they are.
"""

FARTHEST = 2.5
"""Radius [1/Å] up to which reflections are thought of when a scan lists disks as far out."""

LogOdds = Callable[[Array, Array], Array]
"""Log-odds of candidates from their log-likelihood [nat] and log-prior."""


class Limit(NamedTuple):
    """The weakest disks that a scan lists.

    log_share: logarithm of their share of the incident beam, at radii evenly spaced from 0 to
    `reach`; log_ratio: of their ratio to the strongest disk of their pattern, -inf where that did
    not decide; reach: radius [1/Å] beyond which none are listed.
    """

    log_share: Float[Array, " n_radii"]
    log_ratio: Float[Array, ""]
    reach: float | Float[Array, ""]
