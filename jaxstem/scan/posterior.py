# SPDX-License-Identifier: GPL-3.0-or-later
"""Answers that the whole scan gives, strip by strip.

What neighbours say is weighed by `neighbours.propagated`. An answer is chosen by all that they say
and believed by a part of it (`ContextConfig.doubt`): patterns of one grain share its thickness and
so their mistakes, and add up to less than as many independent ones.

Shapes: a scan of `ny` × `nx` positions, `C` candidates of each.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxstem.inference.verdict import Answer, Labels, answer_of
from jaxstem.orientation import rotations
from jaxstem.scan.neighbours import (
    Coupling,
    PairSums,
    compatibility,
    misorientations,
    pair_sums,
    propagated,
)


@dataclass(frozen=True)
class ContextConfig:
    """How neighbours are weighed.

    rounds: of messages, each of which goes one position further; damping: share of the last round
    that each keeps; diagonal: what diagonal neighbours count; most: the largest log-odds that two
    neighbours are of one grain; spread: least and most of misorientations within a grain [degrees];
    doubt: share of what neighbours say by which an answer is believed; learning: times that the
    coupling is learned anew; sample: strips from which it is; strip: rows that are worked on at
    once.
    """

    rounds: int = 10
    damping: float = 0.5
    diagonal: float = 0.7
    most: float = 3.0
    spread: tuple[float, float] = (0.5, 4.0)
    doubt: float = 0.25
    learning: int = 4
    sample: int = 16
    strip: int = 32


AT_FIRST = 1.5, 1.0, 1.0
"""Spread [degrees] and log-odds from which the coupling is learned."""


class Strip(NamedTuple):
    """Labels of some rows, those first that processors do not work along (`neighbours`)."""

    quaternion: Float[Array, "C 4 ny nx"]
    phase: Float[Array, "C ny nx"]
    share: Float[Array, "L ny nx"]
    known: Float[Array, "ny nx"]


def strip_of(labels: Labels) -> Strip:
    """The labels (ny, nx) of some rows as propagation takes them."""
    known = ~jnp.isnan(labels.no_crystal)
    odds = jnp.append(labels.log_odds, labels.no_crystal[..., None], axis=-1)
    odds = jnp.where(known[..., None], odds, 0.0)
    last = lambda x: jnp.moveaxis(x, (0, 1), (-2, -1))  # noqa: E731
    phase = jnp.where(jnp.isfinite(labels.log_odds), labels.phase, -1)
    return Strip(last(labels.quaternion), last(phase), last(jax.nn.softmax(odds)), known)


def first_coupling() -> Coupling:
    """The coupling from which a scan's own is learned."""
    spread, same, nothing = AT_FIRST
    return Coupling(jnp.deg2rad(spread), jnp.float32(same), jnp.float32(nothing))


def coupling_of(sums: PairSums, config: ContextConfig) -> Coupling:
    """How alike neighbours are, from what beliefs say of pairs.

    Half a pair of either kind is added, so that few pairs say little; a squared angle about three
    axes is three times the spread's.
    """

    def log_odds(yes, no):
        return jnp.minimum(jnp.log1p((yes + 0.5) / (jnp.maximum(no, 0.0) + 0.5)), config.most)

    spread = jnp.sqrt(sums.squares / jnp.maximum(sums.same, 1e-9) * (2.0 / 3.0))
    spread = jnp.where(sums.same > 3.0, spread, jnp.deg2rad(AT_FIRST[0]))
    return Coupling(
        jnp.clip(spread, *jnp.deg2rad(jnp.asarray(config.spread))),
        log_odds(sums.same, sums.pairs - sums.same),
        log_odds(sums.both_nothing, sums.one_nothing),
    )


@functools.partial(jax.jit, static_argnames="config")
def _sums(strip: Strip, operations, coupling: Coupling, config: ContextConfig) -> PairSums:
    angle = misorientations(strip.quaternion, strip.phase, operations)
    factor = compatibility(angle, strip.known, coupling, config.diagonal)
    belief, messages = propagated(strip.share, factor, config.rounds, config.damping)
    return pair_sums(belief, messages, angle, factor, strip.known, coupling, config.diagonal)


@functools.partial(jax.jit, static_argnames="config")
def _answers(labels: Labels, matrices, coupling: Coupling, config: ContextConfig) -> Answer:
    strip = strip_of(labels)
    operations = rotations.matrix_to_quaternion(matrices)
    angle = misorientations(strip.quaternion, strip.phase, operations)
    factor = compatibility(angle, strip.known, coupling, config.diagonal)
    _, messages = propagated(strip.share, factor, config.rounds, config.damping)
    said = sum(jnp.log(x) for x in (*messages.forward, *messages.backward))
    said = jnp.moveaxis(said, 0, -1)
    own = jnp.append(labels.log_odds, labels.no_crystal[..., None], axis=-1)
    chosen, doubted = own + said, own + config.doubt * said
    labels = labels._replace(log_odds=chosen[..., :-1], no_crystal=chosen[..., -1])
    one = lambda labels, odds: answer_of(labels, matrices, (odds[:-1], odds[-1]))  # noqa: E731
    return jax.vmap(jax.vmap(one))(labels, doubted)


def learnt(labels: Labels, operations: Float[Array, "P n 3 3"], config: ContextConfig) -> Coupling:
    """How alike neighbours of this scan are: from strips of its rows, spread evenly over it."""
    turns = rotations.matrix_to_quaternion(operations)
    n_rows = labels.no_crystal.shape[0]
    height = min(config.strip, n_rows)
    starts = np.unique(np.linspace(0, n_rows - height, config.sample).astype(int))
    starts = starts[:: max(1, -(-height * len(starts) // n_rows))]
    strips = [strip_of(jax.tree.map(lambda x: x[i : i + height], labels)) for i in starts]  # noqa: B023
    coupling = first_coupling()
    for _ in range(config.learning):
        parts = [_sums(strip, turns, coupling, config) for strip in strips]
        coupling = coupling_of(jax.tree.map(lambda *x: sum(x), *parts), config)
    return coupling


def answers_in_context(
    labels: Labels, operations: Float[Array, "P n 3 3"], config: ContextConfig
) -> Iterator[tuple[int, Answer]]:
    """The answers (rows, nx) of a scan's labels (ny, nx), by the first row of each lot.

    Lots overlap by as many rows as messages go, and so the answers do not depend on how the scan
    was cut. Those of positions that were not looked at say nothing.
    """
    coupling = learnt(labels, operations, config)
    n_rows = labels.no_crystal.shape[0]
    rows = np.arange(-config.rounds, config.strip + config.rounds)
    for start in range(0, n_rows, config.strip):
        index = start + rows
        inside = (index >= 0) & (index < n_rows)
        lot = jax.tree.map(lambda x: x[np.clip(index, 0, n_rows - 1)], labels)  # noqa: B023
        outside = jnp.asarray(~inside)[:, None]
        lot = lot._replace(
            no_crystal=jnp.where(outside, jnp.nan, lot.no_crystal),
            log_odds=jnp.where(outside[..., None], -jnp.inf, lot.log_odds),
        )
        found = jax.device_get(_answers(lot, operations, coupling, config))
        stop = min(config.strip, n_rows - start)
        yield start, jax.tree.map(lambda x: x[config.rounds : config.rounds + stop], found)  # noqa: B023
