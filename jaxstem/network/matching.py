# SPDX-License-Identifier: GPL-3.0-or-later
"""Matching as a network: templates in the place of parameters, log-probabilities out.

A batch of patterns times a table of log-rates gives the score of every cell (`templates.py` has the
theory). `Matcher` offers it with the network's `apply`, which a network corrects or which stands
alone in a `MatchingModel`, made from CIFs without any training.

Shapes: `B` patterns, `K` disks of each, `F` bins of the raster, `C` cells.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from jaxstem.crystal.cell import Crystal
from jaxstem.diffraction.geometry import Disks
from jaxstem.diffraction.material import Material, check_materials, make_material
from jaxstem.diffraction.settings import Microscope, Specimen
from jaxstem.network.finalists import packaged_finalists
from jaxstem.network.model import Model
from jaxstem.network.templates import MatchConfig, Raster, Templates, make_templates, rasterise
from jaxstem.network.tokens import Sight
from jaxstem.network.transformer import ModelConfig
from jaxstem.orientation import grids, rotations

N_FINALISTS = 8
"""Of a pattern: templates know less than a network which orientations are likely."""

MOST_INDICES = 128
"""Highest index of a reflection up to which there are finalists: a table of 68 MB."""

MOST_TEMPLATES = 40_000
"""Cells at most: 200 MB of templates at k_max = 2 1/Å. A network is held to fewer."""


def summed_rates(
    disks: Disks, log_rate: Float[Array, "F C"], raster: Raster
) -> Float[Array, "B C"]:
    """The log-rates of each cell at the disks of each pattern (B, K), summed; bilinear in between.

    On a processor row by row of the table, eight operations for each disk and cell, which its cache
    feeds. Elsewhere as one matrix product over all bins, 2 F C operations a pattern (11 million for
    3,700 cells up to 2 1/Å), nearly all of them with zero.
    """
    if jax.default_backend() != "cpu":
        bins = jax.vmap(lambda d: rasterise(d.qx, d.qy, d.mask.astype(d.qx.dtype), raster))(disks)
        return bins @ log_rate
    axis, n_cells = raster.axis, log_rate.shape[1]
    row_of = np.full(len(axis) ** 2, -1, np.int32)
    row_of[raster.inside] = np.arange(len(raster.inside))

    def one(disks: Disks) -> Float[Array, " C"]:
        x, y = ((q[:, None] - axis[0]) / raster.pitch for q in (disks.qx, disks.qy))
        corner = lambda x, up: jnp.clip(jnp.floor(x), 0, len(axis) - 2) + up  # noqa: E731
        i, j = corner(x, np.array([0, 0, 1, 1])), corner(y, np.array([0, 1, 0, 1]))
        share = jnp.maximum(1 - jnp.abs(x - i), 0) * jnp.maximum(1 - jnp.abs(y - j), 0)
        rows = jnp.asarray(row_of)[(i * len(axis) + j).astype(jnp.int32)]
        weight = jnp.where((rows >= 0) & disks.mask[:, None], share, 0.0)
        used = jnp.max(jnp.where(disks.mask, jnp.arange(1, len(disks.qx) + 1), 0))

        def add(k, total):
            for corner in range(4):
                at = jax.lax.dynamic_slice(log_rate, (rows[k, corner], 0), (1, n_cells))
                total += weight[k, corner] * at[0]
            return total

        return jax.lax.fori_loop(0, used, add, jnp.zeros(n_cells, log_rate.dtype))

    return jax.lax.map(one, disks)


def match(
    disks: Disks,
    templates: Templates,
    n_cells: Sequence[int],
    raster: Raster,
    config: MatchConfig,
    reach: Float[ArrayLike, "..."] | None = None,
) -> Float[Array, "B C"]:
    """Log-probability of each cell, and of no crystal, for each pattern (B, K).

    `n_cells` says how many cells each phase has. Between phases the likelihood counts in full;
    within one it is flattened by `config.sureness`. Beyond `reach` [1/Å], of each pattern or of
    all, no disk is expected (None: the raster's k_max).
    """
    likelihood = summed_rates(disks, templates.log_rate, raster) + templates.log_weight
    if reach is not None:
        likelihood += _expected_beyond(templates.beyond, reach, raster.k_max)
    *phases, nothing = jnp.split(likelihood, np.cumsum(n_cells), axis=1)
    evidence = [jax.nn.logsumexp(phase, axis=1, keepdims=True) for phase in phases]
    within = [jax.nn.log_softmax(config.sureness * phase) for phase in phases]
    # what is within a phase sums to one, so that the whole sums to the evidence
    total = jax.nn.logsumexp(jnp.concatenate([*evidence, nothing], axis=1), axis=1, keepdims=True)
    score = [w + (e - total) for w, e in zip(within, evidence, strict=True)]
    return jnp.concatenate([*score, nothing - total], axis=1)


def _expected_beyond(
    beyond: Float[Array, "R C"], reach: Float[ArrayLike, "..."], k_max: float
) -> Float[Array, "... C"]:
    """Disks expected beyond `reach`, linearly between the radii of the table."""
    last = len(beyond) - 1
    place = jnp.clip(jnp.asarray(reach, beyond.dtype) / k_max, 0.0, 1.0) * last
    below = jnp.minimum(place.astype(jnp.int32), last - 1)
    share = (place - below)[..., None]
    return (1.0 - share) * beyond[below] + share * beyond[below + 1]


@dataclass(frozen=True)
class Matcher:
    """Matching as a network: `apply({"params": templates}, disks, None, seen)` gives the scores.

    The place of the prior stays empty, for there is nothing to correct.
    """

    n_cells: tuple[int, ...]
    raster: Raster
    config: MatchConfig

    def apply(
        self,
        variables: dict[str, Any],
        disks: Disks,
        prior: None = None,
        seen: Sight | None = None,
    ) -> Float[Array, "B C"]:
        """`match` of the patterns (B, K), with the templates as parameters."""
        reach = None if seen is None else seen.reach
        return match(disks, variables["params"], self.n_cells, self.raster, self.config, reach)


def matcher(materials: Sequence[Material], config: MatchConfig) -> Matcher:
    """What matches patterns with the templates of these materials."""
    return Matcher(
        tuple(len(m.grid) for m in materials), Raster(materials[0].k_max, config.pitch), config
    )


@dataclass(frozen=True, eq=False)
class MatchingModel(Model):
    """A model whose parameters are templates, so that it needs CIFs and no training."""

    @property
    def network(self) -> Matcher:
        """What turns disks into scores."""
        return matcher(self.materials, self.matching)

    @property
    def finalists(self) -> Any:
        """Parameters that serve any crystal."""
        return packaged_finalists()[0]


def matching_model(
    crystals: Sequence[Crystal],
    voltage_kv: float,
    k_max: float = Microscope.k_max,
    spacing_deg: float = ModelConfig.spacing_deg,
    u_iso: float = Specimen.u_iso,
    config: MatchConfig | None = None,
) -> MatchingModel:
    """What `predict_scan` and `map_scan` need to map by matching, from crystals alone.

    voltage_kv [kV]; k_max [1/Å]; `spacing_deg`: of the grid [degrees], coarsened where the phases
    would have more than `MOST_TEMPLATES` cells together; u_iso: mean square displacement [Å^2].
    Raises InputError when no crystal is given, two have one name, k_max lies below the first
    reflection of one, or the voltage is not positive.
    """
    config = config or MatchConfig()
    microscope, specimen = Microscope(voltage_kv, k_max=k_max), Specimen(u_iso=u_iso)
    materials = tuple(
        matching_material(crystal, microscope, specimen, spacing_deg, len(crystals))
        for crystal in crystals
    )
    check_materials(materials)
    # alignment looks reflections up by index, in a cube of as many as the longest axis has
    longest = max(np.linalg.norm(m.crystal.lattice, axis=1).max() for m in materials)
    n_finalists = N_FINALISTS if longest * k_max < MOST_INDICES else 0
    return MatchingModel(
        ModelConfig(spacing_deg=spacing_deg, finalists=n_finalists),
        materials,
        make_templates(materials, config),
        {"method": "match"},
        config,
    )


def matching_material(
    crystal: Crystal,
    microscope: Microscope,
    specimen: Specimen,
    spacing_deg: float,
    n_phases: int = 1,
) -> Material:
    """A material whose grid keeps `spacing_deg` [degrees] where a network's would be coarsened,
    up to its share of `MOST_TEMPLATES` cells among `n_phases` phases.
    """
    coarse = make_material(crystal, microscope, specimen, spacing_deg)
    n_cells = MOST_TEMPLATES // n_phases
    finest = np.rad2deg(grids.volume_spacing(n_cells, len(coarse.operations)))
    if np.rad2deg(coarse.spacing) < 1.01 * max(spacing_deg, finest):
        return coarse
    grid = grids.so3_grid(coarse.operations, max(spacing_deg, finest))
    quaternions = np.asarray(rotations.matrix_to_quaternion(jnp.asarray(grid)), np.float32)
    return dataclasses.replace(coarse, grid=quaternions)
