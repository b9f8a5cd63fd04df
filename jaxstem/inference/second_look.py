# SPDX-License-Identifier: GPL-3.0-or-later
"""A second look at patterns: orientations that others propose, judged by the evidence of the first.

Shapes: `B` patterns, `K` disks of each, `M` orientations for each.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxstem.diffraction.geometry import Disks
from jaxstem.files.light import Detector, Light
from jaxstem.inference.config import InferConfig
from jaxstem.inference.exposure import Exposure
from jaxstem.inference.step import all_reflections, joint_operations, predict_content
from jaxstem.inference.verdict import Labels, labels_of
from jaxstem.network.model import Model
from jaxstem.orientation import rotations
from jaxstem.runtime import parallel
from jaxstem.runtime.programs import cached_pmap
from jaxstem.runtime.rows import in_lots, map_rows
from jaxstem.verification.climb import UNLIKELY
from jaxstem.verification.counting import recount
from jaxstem.verification.refinement import reverify
from jaxstem.verification.search import pattern_of


def make_second_look(
    model: Model, config: InferConfig, mesh: Mesh, detector: Detector | None = None
) -> Callable[..., Labels]:
    """The jitted `(disks (B, K), exposed, light, quaternion (B, M, 4), phase (B, M)) -> Labels`,
    sharded over B, the phase being -1 where there is nothing to judge; the rest as in
    `make_predict`, whose log-odds these compare with.

    The network is not asked: what nobody has thought of it thinks as little of as `unthought`
    says. Where counts judge, `counts_prior_weight` must be 0.
    """
    scoring, operations = config.scoring, joint_operations(model.materials)
    on_cpu = jax.default_backend() == "cpu"
    chunk = config.chunk if on_cpu else None
    reflections = [all_reflections(material) for material in model.materials]
    given = parallel.replicate((reflections, jax.tree.map(jnp.asarray, detector)), mesh)

    def step(given, disks, incident, incident_sigma, is_cut, light, q, phase, limit) -> Labels:
        reflections, detector = given
        exposed = Exposure(incident, incident_sigma, is_cut, limit)
        prepare_one = lambda row: pattern_of(*row, limit, scoring.measured_power)  # noqa: E731
        patterns = jax.vmap(prepare_one)((disks, *exposed[:3]))
        orientation, exists = rotations.quaternion_to_matrix(q), phase >= 0
        asked, reach = jnp.maximum(phase, 0), limit.reach
        if detector is None:
            prior = jnp.full(asked.shape, config.unthought)
            of_scan = (reflections, model.wavelength, reach, scoring, config.log_odds, chunk)
            ranked = reverify(patterns, orientation, asked, exists, prior, *of_scan)
        else:
            of_scan = (reflections, model.wavelength, reach, scoring, chunk)
            ranked = recount(patterns, light, incident, detector, orientation, asked, *of_scan)

        def labelled(row):
            ranked, exists = row
            # what fills up a list must not displace what was asked
            of_none = lambda x: None if x is None else jnp.where(exists, x, UNLIKELY)  # noqa: E731
            ranked = ranked._replace(
                log_likelihood=of_none(ranked.log_likelihood),
                log_evidence=of_none(ranked.log_evidence),
            )
            labels = labels_of(ranked, jnp.zeros(()), operations, config)
            exists &= labels.phase >= 0
            return labels._replace(
                phase=jnp.where(exists, labels.phase, -1),
                log_odds=jnp.where(exists, labels.log_odds, -jnp.inf),
            )

        return map_rows(labelled, (ranked, exists), None)

    def step_in_lots(given, *rows_and_limit) -> Labels:
        *rows, limit = rows_and_limit
        if not on_cpu:
            return step(given, *rows, limit)
        return in_lots(lambda lot: step(given, *lot, limit), tuple(rows), config.together)

    specs = (parallel.REPLICATED, *[parallel.SHARDED] * 7, parallel.REPLICATED)
    content = predict_content(model, config) | {"second_look": True}
    program = cached_pmap(
        step_in_lots, mesh, specs, parallel.SHARDED, content, config.cache, soon=True
    )

    def look(
        disks: Disks,
        exposed: Exposure,
        light: Light | None,
        quaternion: Float[Array, "B M 4"],
        phase: Int[Array, "B M"],
    ) -> Labels:
        return program(given, disks, *exposed[:3], light, quaternion, phase, exposed.limit)

    return look
