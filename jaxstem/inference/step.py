# SPDX-License-Identifier: GPL-3.0-or-later
"""From padded disks to phases and orientations: the jitted program of one batch.

Network, candidates, verification and confidence are one program of static shape, sharded over the
mesh, which `make_predict` makes for a model; a pattern's answer depends on that pattern alone.
Shapes: `B` patterns, `K` disks of each, `P` phases.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxstem.diffraction.bloch import prepare
from jaxstem.diffraction.geometry import Disks
from jaxstem.diffraction.material import Material, grid_content, phases_space
from jaxstem.files.light import Detector, Light
from jaxstem.files.orientation_map import UNASSIGNED
from jaxstem.inference.config import BY_BLOCH_WAVES, InferConfig
from jaxstem.inference.exposure import Exposure
from jaxstem.inference.verdict import Answer, Labels, answer_of, labels_of
from jaxstem.network import tokens
from jaxstem.network.alignment import lattices
from jaxstem.network.heads import HEADS, Head
from jaxstem.network.matching import Matcher, matcher
from jaxstem.network.model import NEVER, Model
from jaxstem.network.templates import Templates, cached_templates
from jaxstem.orientation import rotations
from jaxstem.orientation.space import OrientationSpace, half_angle_cosine, nearest_cells
from jaxstem.runtime import parallel
from jaxstem.runtime.cache import cached
from jaxstem.runtime.programs import cached_pmap
from jaxstem.runtime.rows import in_lots, map_rows
from jaxstem.verification.candidates import (
    CandidateTables,
    candidate_tables,
    modes,
    within_reach,
)
from jaxstem.verification.config import FARTHEST
from jaxstem.verification.counting import verify_by_counts
from jaxstem.verification.finalists import Finalists, find_finalists
from jaxstem.verification.ranking import Forward, Ranked
from jaxstem.verification.refinement import verify, verify_dynamically
from jaxstem.verification.search import pattern_of

BEAM_K_MAX = 3.0
"""Reflections [1/Å] that take part in dynamical scattering."""

_within_reach = jax.jit(within_reach)

Found = tuple[Answer, Labels | None]
"""What is found of a pattern, or of a batch."""

_UNKNOWN_BEAM = 1.0
"""Error of the incident beam's logarithm from which it is not known at all."""

_AT_ONCE = 16
"""Patterns whose modes are compared at once on a CPU: what fits its cache."""


def cells_near(
    output: Float[Array, " n_out"], head: Head, space: OrientationSpace
) -> Float[Array, " n_cells_plus_1"]:
    """Log-probabilities from a head without grid: the cells near its rotations share as a label
    does, several rotations by their logits.

    A logit for each phase follows the head's numbers where there are several phases; such a head
    does not know of patterns without a crystal.
    """
    found, logits = head.orientations(output, space)
    weight = jax.nn.log_softmax(logits)
    of_phase = jnp.zeros(1)
    if space.n_phases > 1:
        of_phase = jax.nn.log_softmax(output[head.numbers :])

    def shared(orientation, phase, operations, width):
        q = rotations.matrix_to_quaternion(orientation)
        cosine = half_angle_cosine(q, space.cells, operations)
        angle = 2.0 * jnp.arccos(jnp.minimum(cosine, 1.0))
        closeness = jnp.where(space.phase == phase, -0.5 * (angle / width) ** 2, -jnp.inf)
        return jax.nn.log_softmax(closeness)

    parts = []
    for phase, of in enumerate(zip(space.operation_quaternions, space.label_width, strict=True)):
        each = jnp.stack([shared(orientation, phase, *of) for orientation in found])
        parts.append(of_phase[phase] + jax.nn.logsumexp(weight[:, None] + each, axis=0))
    return jnp.append(jnp.stack(parts).max(axis=0), NEVER)


def joint_operations(materials: Sequence[Material]) -> Float[Array, "P n 3 3"]:
    """Each phase's symmetry, repeated to one number of operations for all."""
    n = max(len(m.operations) for m in materials)
    return jnp.asarray(
        np.stack([np.resize(m.operations, (n, 3, 3)) for m in materials]), jnp.float32
    )


@jax.jit
def _offsets(cells, neighbours, operations):
    near = operations @ cells[neighbours]
    return rotations.matrix_to_rotation_vector(jnp.swapaxes(cells, -1, -2)[:, None] @ near)


def _mode_tables(material: Material, n_neighbours: int = 15) -> CandidateTables:
    """What of `candidate_tables` the modes of a distribution need: cells, neighbours, offsets."""
    grid = np.asarray(material.grid, np.float32)
    operations = jnp.asarray(material.operations, jnp.float32)
    turns = rotations.matrix_to_quaternion(operations)
    neighbours, operation = nearest_cells(grid, grid, turns, n_neighbours)
    cells = rotations.quaternion_to_matrix(grid)
    neighbours = jnp.asarray(neighbours, jnp.int32)
    offsets = _offsets(cells, neighbours, operations[operation])
    return CandidateTables(cells, None, None, neighbours, offsets, None, None)


def phase_table(material: Material, refine: str, cache: Path | None) -> CandidateTables:
    """What is tabulated of a phase's grid for this kind of refinement, from the folder `cache`
    where an earlier run left it. Its reflections go as far as a scan may reach.
    """
    modes_only, n_siblings = refine == "none", 2 if refine in BY_BLOCH_WAVES else 0

    def make() -> CandidateTables:
        if modes_only:
            return _mode_tables(material)
        return candidate_tables(
            material.grid,
            material.operations,
            material.reflectors(max(FARTHEST, material.k_max)),
            material.wavelength,
            material.crystal.lattice,
            n_siblings=n_siblings,
        )

    content = {
        "material": grid_content(material),
        "modes_only": modes_only,
        "n_siblings": n_siblings,
        "k_max": max(FARTHEST, material.k_max),
    }
    like = CandidateTables(*CandidateTables._fields)._replace(reflections=Forward(*Forward._fields))
    return cached(cache, "candidates", content, make, like)


def all_reflections(material: Material) -> Forward:
    """A crystal's reflections as far out as a scan may reach."""
    found = material.reflectors(max(FARTHEST, material.k_max))
    return Forward(found.g, found.inverse_extinction)


def predict_content(model: Model, config: InferConfig) -> dict[str, Any]:
    """What decides the program of `make_predict` besides the environment and the shapes of its
    arguments; in what JSON can hold.
    """
    unused = dict.fromkeys(("lengths", "batch", "least", "cache")) | {"geometry": "given"}
    settings = replace(config, score=config.scoring, **unused)
    return {
        "materials": list(map(grid_content, model.materials)),
        "network": repr(model.network),
        "settings": repr((model.config, model.matching, settings)),
    }


def scorer(
    model: Model, precision: str = "float32", cache: Path | None = None
) -> tuple[Callable[..., Float[Array, "B n_out"]], Templates | None]:
    """A function (params, templates, disks (B, K), seen) to the output of the model's head, with
    the network in this precision, and the templates that it corrects (`cached_templates` in
    `cache`); None where it stands alone. `seen` says which disks of each pattern could be seen.
    """
    network = model.network

    def alone(params, _, disks, seen=None):
        return network.apply({"params": params}, disks, None, seen)

    if isinstance(network, Matcher):
        return alone, None
    if precision == "bfloat16":
        network = network.clone(dtype=jnp.bfloat16)
    if not model.config.corrects_templates:
        return alone, None
    under = matcher(model.materials, model.matching)

    def corrected(params, templates, disks, seen=None):
        prior = under.apply({"params": templates}, disks, None, seen)
        return network.apply({"params": params}, disks, prior, seen)

    return corrected, cached_templates(model.materials, model.matching, cache)


def known_disks(disks: Disks, model: Model) -> Disks:
    """The strongest of the disks (B, K) that the model's network knows."""
    near = disks.mask & (disks.qx**2 + disks.qy**2 <= model.k_max**2)
    order = jnp.argsort(~near, axis=1, stable=True)[:, : model.config.n_disks]
    disks = jax.tree.map(lambda x: jnp.take_along_axis(x, order, axis=1), disks)
    return disks._replace(mask=jnp.take_along_axis(near, order, axis=1))


def sight_of(disks: Disks, exposed: Exposure, k_max: float) -> tokens.Sight:
    """What can be seen of patterns (B, K) within k_max [1/Å]."""
    known = exposed.incident_sigma < _UNKNOWN_BEAM
    weakest = exposed.incident * jnp.exp(jnp.min(exposed.limit.log_share))
    strongest = jnp.where(disks.mask, disks.intensity, 0.0).max(axis=-1)
    weakest = jnp.maximum(weakest, strongest * jnp.exp(exposed.limit.log_ratio))
    reach = jnp.minimum(exposed.limit.reach, k_max)
    return tokens.sight(disks, reach, weakest, jnp.where(known, exposed.incident, 0.0))


Predict = Callable[..., Found]
"""What `make_predict` makes."""

PredictFor = Callable[[Detector | None], Predict]
"""What `make_predict_for` makes."""


def make_predict(
    model: Model, config: InferConfig, mesh: Mesh, detector: Detector | None = None
) -> Predict:
    """The jitted `(params, disks (B, K), exposed, light) -> (Answer, Labels)`, sharded over B; no
    labels (None) where `config` does not ask for them or a head without grid has none.

    `exposed` is the `Exposure` of the B positions; `light` what was kept of their counts, where a
    `detector` says that there is any, by which candidates are then judged. B must divide among the
    devices. One compilation for each K.
    """
    return make_predict_for(model, config, mesh)(detector)


Meanwhile = Callable[[Detector | None, Disks, Exposure, Light | None], Any]
"""What is done while a program is compiled for such arguments."""


def make_predict_for(
    model: Model, config: InferConfig, mesh: Mesh, meanwhile: Meanwhile | None = None
) -> PredictFor:
    """`make_predict` for one detector after the other, whose programs are the same; `meanwhile` as
    in `cached_pmap`.
    """
    scores, made = scorer(model, config.precision, config.cache)
    scoring, head = config.scoring, HEADS[model.config.head]
    space = None if head.numbers is None else phases_space(model.materials)
    operations = joint_operations(model.materials)
    settles = model.config.settles and config.refine == "none"
    known = (lattices(model.materials), model.finalists) if settles else None
    # as an argument, for a program that holds tables as constants is slow to compile and to load
    kind = "fast" if settles else config.refine
    phases = [phase_table(m, kind, config.cache) for m in model.materials]

    dynamical = (
        [prepare(m.crystal, m.voltage_kv, BEAM_K_MAX, m.u_iso) for m in model.materials]
        if config.refine in BY_BLOCH_WAVES
        else None
    )

    def verified(disks: Disks, exposed: Exposure, light, log_probability, tables) -> Found:
        """Answers for a batch; `at_once` of its patterns are looked at in turn on a CPU."""
        phases, _, detector, _ = tables
        on_cpu = jax.default_backend() == "cpu"
        prepare_one = lambda row: pattern_of(*row, exposed.limit, scoring.measured_power)  # noqa: E731
        patterns = jax.vmap(prepare_one)((disks, *exposed[:3]))
        reach, chunk = exposed.limit.reach, config.chunk if on_cpu else None
        of_scan = (log_probability, phases, operations, model.wavelength, reach, scoring)
        if detector is None:
            ranked = verify(patterns, *of_scan, config.log_odds, chunk)
        else:
            ranked = verify_by_counts(patterns, light, exposed.incident, detector, *of_scan, chunk)

        def judged(row):
            pattern, ranked, no_crystal = row
            if dynamical is not None:
                ranked = verify_dynamically(
                    pattern, ranked, dynamical, operations, model.k_min, reach, scoring
                )
            labels = labels_of(ranked, no_crystal, operations, config)
            return answer_of(labels, operations), labels if config.keeps_labels else None

        # by Bloch waves one by one, so that lost candidates cost nothing
        at_once = 1 if dynamical is not None else _AT_ONCE
        rows = (patterns, ranked, log_probability[:, -1])
        return map_rows(judged, rows, at_once if on_cpu else None)

    def spread_out(output):
        if space is None:
            return jax.nn.log_softmax(output)
        return cells_near(output, head, space)

    def by_mass(log_probability, phases):
        """The modes of each phase, in place of finalists."""
        ends = np.cumsum([len(tables.cells) for tables in phases])
        found = [
            modes(part, tables, scoring.n_modes)[1:]
            for part, tables in zip(jnp.split(log_probability[:-1], ends[:-1]), phases, strict=True)
        ]
        phase = np.concatenate([np.full(len(r), p) for p, (r, _) in enumerate(found)])
        orientation, prior = (jnp.concatenate(x) for x in zip(*found, strict=True))
        return Finalists(orientation, jnp.asarray(phase), prior, log_probability[-1])

    def network_alone(row, params, phases, known) -> Found:
        output, *seen = row
        log_probability = spread_out(output)
        if settles:
            known, taught = known
            taught = params["finalists"] if taught is None else taught
            of_all = taught, model.wavelength, model.k_max, model.config.finalists
            found = find_finalists(*of_all, log_probability, *seen, phases, known, operations)
        else:
            found = by_mass(log_probability, phases)
        nothing = jnp.zeros_like(found.log_odds)
        unknowns = jnp.full_like(nothing, jnp.nan)
        ranked = Ranked(found.orientation, found.phase, nothing, nothing, found.log_odds, unknowns)
        by_prior = replace(config, likelihood_weight=0.0, prior_weight=1.0)
        labels = labels_of(ranked, found.nothing, operations, by_prior)
        labels = labels._replace(score=unknowns)
        answer = answer_of(labels, operations)
        if space is None:
            return answer, labels if config.keeps_labels else None
        unknown = answer.score
        # rotations come without a measure of their own doubt
        alone = answer._replace(
            orientation=head.orientation(output, space),
            confidence=unknown,
            confidence_mod180=unknown,
            second_orientation=jnp.full_like(answer.second_orientation, jnp.nan),
            second_phase=jnp.full_like(answer.second_phase, UNASSIGNED),
        )
        return alone, None

    def step(given, disks: Disks, incident, incident_sigma, is_cut, light, limit) -> Found:
        params, tables = given
        phases, made, _, known = tables
        if config.verifies:
            seen = known_disks(disks, model)
        else:
            seen = jax.tree.map(lambda x: x[:, : model.config.n_disks], disks)
        exposed = Exposure(incident, incident_sigma, is_cut, limit)
        sight = sight_of(seen, exposed, model.k_max)
        output = scores(params, made, seen, sight)
        on_cpu = jax.default_backend() == "cpu"
        if config.refine == "none":
            alone = lambda row: network_alone(row, params, phases, known)  # noqa: E731
            return map_rows(alone, (output, seen, sight), _AT_ONCE if on_cpu else None)
        log_probability = map_rows(spread_out, output, _AT_ONCE if on_cpu else None)
        return verified(disks, exposed, light, log_probability, tables)

    def step_in_lots(given, disks, incident, incident_sigma, is_cut, light, limit) -> Found:
        rows = (disks, incident, incident_sigma, is_cut, light)
        if jax.default_backend() != "cpu":
            return step(given, *rows, limit)
        return in_lots(lambda lot: step(given, *lot, limit), rows, config.together)

    sharded, replicated = parallel.SHARDED, parallel.REPLICATED
    specs = (replicated, *[sharded] * 5, replicated)
    content = predict_content(model, config)

    def then(given, disks, incident, incident_sigma, is_cut, light, limit) -> None:
        _, (_, _, detector, _) = given
        meanwhile(detector, disks, Exposure(incident, incident_sigma, is_cut, limit), light)

    program = cached_pmap(
        step_in_lots,
        mesh,
        specs,
        sharded,
        content,
        config.cache,
        soon=config.verifies,
        meanwhile=then if meanwhile else None,
    )

    def predict_for(detector: Detector | None) -> Predict:
        @functools.lru_cache(1)
        def tables_within(reach: float):
            """What the program takes besides patterns, of a scan that lists disks as far as it."""
            near = phases
            if config.verifies or settles:
                near = [_within_reach(tables, reach) for tables in phases]
            given = near, made, jax.tree.map(jnp.asarray, detector), known
            return parallel.replicate(given, mesh)

        def predict(params, disks: Disks, exposed: Exposure, light: Light | None = None) -> Found:
            given = params, tables_within(float(exposed.limit.reach))
            return program(given, disks, *exposed[:3], light, exposed.limit)

        return predict

    return predict_for
