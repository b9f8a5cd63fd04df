# SPDX-License-Identifier: GPL-3.0-or-later
"""Training patterns: a phase and an orientation drawn, diffracted, and spoilt as instruments do.

Every phase is as frequent, and a few positions hold no crystal. Pattern number n of a step depends
on the step's key and n alone. Shapes: `B` patterns, `K` disks of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray

from jaxstem.diffraction.geometry import Disks
from jaxstem.diffraction.material import Material
from jaxstem.network.alignment import Lattices, lattices
from jaxstem.network.finalists import N_PREDICTED
from jaxstem.network.matching import matcher
from jaxstem.network.templates import MatchConfig, Templates, make_templates
from jaxstem.network.tokens import Sight, sight
from jaxstem.orientation.space import Label
from jaxstem.training.acquisition import (
    add_false_disks,
    detect,
    draw,
    exposure_told,
    keep_strongest,
    overlap,
    within,
)
from jaxstem.training.config import TrainConfig
from jaxstem.training.library import Library, TwoBeam, build_library, sample_pattern
from jaxstem.verification.candidates import CandidateTables, candidate_tables

EXTRA_DISKS = 8
"""Disks simulated beyond the network's limit, since acquisition loses some."""

MOST_IN_VACUUM = 4.0
"""Most false disks, on average, that an empty position has besides those of any pattern."""


class Sources(NamedTuple):
    """phases: where the patterns of each phase come from; templates: what the network corrects,
    None where it stands alone; tables, lattices: of each phase what proposals, and of all what
    alignments need, None where a network has no finalists.
    """

    phases: tuple[Library | TwoBeam, ...]
    templates: Templates | None
    tables: list[CandidateTables] | None = None
    lattices: Lattices | None = None


class TrainingBatch(NamedTuple):
    """Patterns, what they show, which disks could be seen, and what templates say of them, if there
    are any.
    """

    disks: Disks
    label: Label
    seen: Sight
    prior: Float[Array, "B n_out"] | None = None


def draw_crystal(key: PRNGKeyArray, sources: Sources, n_disks: int) -> tuple[Disks, Label]:
    """A perfect pattern of any phase, each as likely, and its label.

    Each source is asked, for they differ in their shapes, and one answer is taken; to ask costs
    little. Disks are padded to the longest answer.
    """
    key_phase, key_pattern = jax.random.split(key)
    drawn = [sample_pattern(key_pattern, source, n_disks) for source in sources.phases]
    longest = max(len(disks.qx) for disks, _ in drawn)
    lengthen = lambda x: jnp.pad(x, (0, longest - len(x)))  # noqa: E731
    of_phase = [(jax.tree.map(lengthen, disks), orientation) for disks, orientation in drawn]
    phase = jax.random.randint(key_phase, (), 0, len(sources.phases))
    disks, orientation = jax.tree.map(lambda *x: jnp.stack(x)[phase], *of_phase)
    return disks, Label(phase, orientation)


def draw_position(
    key: PRNGKeyArray, sources: Sources, config: TrainConfig, reach: Float[ArrayLike, ""]
) -> tuple[Disks, Label]:
    """The disks of a scan position before acquisition, and its label: that of the grain which has
    most of the beam, now and then with some of another one's, or of no crystal.

    None lies beyond `reach` [1/Å].
    """
    key_first, key_second, key_mix, key_empty, key_rate, key_false = jax.random.split(key, 6)
    n_disks = config.model.n_disks + EXTRA_DISKS
    disks, label = draw_crystal(key_first, sources, n_disks)
    if config.acquisition.overlap > 0:
        second, _ = draw_crystal(key_second, sources, n_disks)
        disks = overlap(key_mix, disks, second, config.acquisition)
    if config.no_crystal == 0:
        return within(disks, reach), label
    empty = jax.random.bernoulli(key_empty, config.no_crystal)
    rate = jax.random.uniform(key_rate, maxval=MOST_IN_VACUUM)
    nothing = jax.tree.map(lambda x: x[:0], disks)
    false = add_false_disks(key_false, nothing, rate, jnp.asarray(1e-3), reach, len(disks.qx))
    disks = jax.tree.map(lambda a, b: jnp.where(empty, a, b), false, disks)
    return within(disks, reach), label._replace(
        phase=jnp.where(empty, len(sources.phases), label.phase)
    )


def simulate_batch(
    key: PRNGKeyArray,
    index: Int[Array, " B"],
    sources: Sources,
    config: TrainConfig,
    k_max: float,
) -> TrainingBatch:
    """The spoilt patterns of these global sample indices, each from its own key.

    Of at most `config.model.n_disks` disks within k_max [1/Å] and the pattern's reach.
    """
    n_disks = config.model.n_disks

    def one(index):
        key_draw, key_acquire = jax.random.split(jax.random.fold_in(key, index))
        reach = k_max * draw(jax.random.fold_in(key_acquire, 1 << 20), config.acquisition.reach)
        perfect, label = draw_position(key_draw, sources, config, reach)
        detected, cutoff = detect(key_acquire, perfect, config.acquisition, reach)
        told = exposure_told(key_acquire, cutoff, config.acquisition)
        seen = sight(within(detected, reach), reach, *told)
        disks = keep_strongest(detected, n_disks, reach)
        return TrainingBatch(disks, label, seen)

    return jax.vmap(one)(index)


def make_sources(
    materials: Sequence[Material],
    config: TrainConfig,
    progress: bool | None = None,
    cache: Path | None = None,
) -> Sources:
    """Where the run's patterns come from: Bloch-wave libraries, or two-beam theory.

    `cache`: folder that keeps libraries for another run.
    """
    corrects = config.model.corrects_templates
    made = make_templates(materials, MatchConfig()) if corrects else None
    if config.physics == "bloch":
        phases = (build_library(m, config.library, config.seed, progress, cache) for m in materials)
    else:
        phases = (
            TwoBeam(
                m.reflectors(),
                jnp.asarray(m.wavelength, jnp.float32),
                jnp.log(jnp.asarray(m.specimen.thickness, jnp.float32)),
            )
            for m in materials
        )
    if not config.model.settles:
        return Sources(tuple(phases), made)
    return Sources(tuple(phases), made, finalists_tables(materials), lattices(materials))


def finalists_tables(materials: Sequence[Material]) -> list[CandidateTables]:
    """What proposals of each phase's cells need."""
    return [
        candidate_tables(
            m.grid,
            m.operations,
            m.reflectors(),
            m.wavelength,
            m.crystal.lattice,
            n_visible=N_PREDICTED,
            n_siblings=0,
        )
        for m in materials
    ]


def with_prior(
    batch: TrainingBatch, sources: Sources, materials: Sequence[Material]
) -> TrainingBatch:
    """The batch with what the templates of `sources` say of it."""
    if sources.templates is None:
        return batch
    say = matcher(materials, MatchConfig()).apply
    prior = say({"params": sources.templates}, batch.disks, None, batch.seen)
    return batch._replace(prior=prior)
