# SPDX-License-Identifier: GPL-3.0-or-later
"""How good a network is while it trains: patterns that no step draws, the same ones each time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxstem.diffraction.material import Material, phases_space
from jaxstem.network import losses
from jaxstem.network.heads import HEADS
from jaxstem.network.transformer import OrientationTransformer
from jaxstem.orientation import rotations, symmetry
from jaxstem.runtime import parallel
from jaxstem.training.config import TrainConfig
from jaxstem.training.finalists import finalists_of
from jaxstem.training.patterns import Sources, simulate_batch, with_prior


def make_validation(
    network: OrientationTransformer,
    materials: Sequence[Material],
    config: TrainConfig,
    sources: Sources,
    mesh: Mesh,
) -> Callable[[Any], dict[str, float]]:
    """A function of the parameters: loss, angles and phases on fixed random spoilt patterns, which
    the devices of the mesh share.

    Angles in degrees, modulo the Laue group (and, `mod_180`, half turns about the beam), of the
    patterns that show a crystal, 180 where the phase is wrong; for the grid head those of the best
    cell, or finalist where there are some, and the share with the truth's neighbourhood (within
    1.2 spacings) among the best 16 cells. Of all patterns the share with the right phase (no
    crystal being one) on top.
    """
    space = phases_space(materials)
    n_phases = space.n_phases
    per_device = -(-config.n_validation // mesh.size)
    loss_fn = losses.batched(config.chosen_loss)
    head = HEADS[config.model.head]
    cells = rotations.quaternion_to_matrix(space.cells)
    spacing = jnp.asarray([m.spacing for m in materials])

    def rotations_read(output):
        answer = jax.vmap(lambda one: head.orientation(one, space))(output)[:, None]
        logits = output[:, head.numbers :]
        phase = jnp.argmax(logits, -1) if n_phases > 1 else jnp.zeros(len(output), int)
        return answer, phase[:, None], phase

    def distribution(output):
        best = jax.lax.top_k(output[:, :-1], 16)[1]
        of_outcome = jnp.append(space.phase, n_phases)
        mass = jax.nn.softmax(output) @ jax.nn.one_hot(of_outcome, n_phases + 1)
        return cells[best], space.phase[best], jnp.argmax(mass, axis=-1)

    def measure(params, sources):
        key, index = jax.random.key(20_260_101), parallel.sample_index(per_device)
        batch = simulate_batch(key, index, sources, config, materials[0].k_max)
        batch = with_prior(batch, sources, materials)
        truth, orientation = batch.label
        output = network.apply({"params": params}, batch.disks, batch.prior, batch.seen)
        loss = loss_fn(output, batch.label, space)
        read = distribution if head.numbers is None else rotations_read
        answer, phase, likeliest = read(output)
        if config.model.settles:
            of = params["finalists"], materials[0], config.model.finalists
            final = finalists_of(*of, batch, output, space, sources.tables, sources.lattices)
            best = jnp.argmax(final.log_odds, axis=1)
            chosen = jax.tree.map(lambda x: x[jnp.arange(len(best)), best], final[:2])
            answer, phase = answer.at[:, 0].set(chosen[0]), phase.at[:, 0].set(chosen[1])
        operations = space.operations[jnp.minimum(truth, n_phases - 1)]
        pair = answer, orientation[:, None], operations
        angle = jax.vmap(symmetry.misorientation)(*pair)
        angle = jnp.where(phase == truth[:, None], angle, jnp.pi)
        turned = jax.vmap(symmetry.misorientation_mod_180)(answer[:, :1], *pair[1:])[:, 0]
        turned = jnp.where(phase[:, 0] == truth, turned, jnp.pi)
        near = angle.min(axis=1) < 1.2 * spacing[truth]
        degrees = jnp.rad2deg(angle[:, 0]), jnp.rad2deg(turned)
        found = (loss, *degrees, near, truth < n_phases, likeliest == truth)
        return jax.lax.all_gather(found, parallel.AXIS, tiled=True)

    program = parallel.pmap(measure, mesh, parallel.REPLICATED, parallel.REPLICATED)

    def validate(params) -> dict[str, float]:
        found = [np.asarray(x)[: config.n_validation] for x in program(params, sources)]
        loss, angle, turned, near, crystal, right_phase = found
        angle, turned, near = angle[crystal], turned[crystal], near[crystal]
        return {
            "val_loss": float(loss.mean()),
            "val_median_deg": float(np.median(angle)),
            "val_within_5deg": float((angle < 5).mean()),
            "val_within_5deg_mod_180": float((turned < 5).mean()),
            "val_best16_within_reach": float(near.mean()),
            "val_right_phase": float(right_phase.mean()),
        }

    return validate
