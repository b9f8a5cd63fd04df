# SPDX-License-Identifier: GPL-3.0-or-later
"""Answers that the whole scan gives, tile by tile (`tiles`).

What neighbours say is weighed by `neighbours.propagated`. An answer is chosen by all that they say
and believed by a part of it (`ContextConfig.doubt`): patterns of one grain share its thickness and
so their mistakes, and add up to less than as many independent ones.

Shapes: a scan of `ny` × `nx` positions, `C` candidates of each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from jaxstem.inference.verdict import Answer, Labels, answer_of
from jaxstem.orientation import rotations
from jaxstem.runtime import parallel
from jaxstem.runtime.programs import cached_pmap
from jaxstem.scan.neighbours import (
    Coupling,
    PairSums,
    compatibility,
    pair_sums,
    propagated,
    squared_misorientations,
)
from jaxstem.scan.proposals import different
from jaxstem.scan.tiles import Tile, Tiling, inside, over_tiles, stacked


@dataclass(frozen=True)
class ContextConfig:
    """How neighbours are weighed.

    rounds: of messages, each of which goes one position further; damping: share of the last round
    that each keeps; diagonal: what diagonal neighbours count; most: the largest log-odds that two
    neighbours are of one grain; spread: least and most of misorientations within a grain [degrees];
    doubt: share of what neighbours say by which an answer is believed; learning: times that the
    coupling is learned anew; sample: tiles from which it is.
    """

    rounds: int = 10
    damping: float = 0.5
    diagonal: float = 0.7
    most: float = 3.0
    spread: tuple[float, float] = (0.5, 4.0)
    doubt: float = 0.25
    learning: int = 4
    sample: int = 4


AT_FIRST = 1.5, 1.0, 1.0
"""Spread [degrees] and log-odds from which the coupling is learned."""


class Said(NamedTuple):
    """What the patterns of a tile say alone; labels come first, for processors work along the last
    axis (`neighbours`).
    """

    quaternion: Float[Array, "C 4 ny nx"]
    phase: Int[Array, "C ny nx"]
    share: Float[Array, "L ny nx"]
    known: Bool[Array, "ny nx"]


def said_of(labels: Labels) -> Said:
    """The labels (ny, nx) of a tile as propagation takes them."""
    known = ~jnp.isnan(labels.no_crystal)
    odds = jnp.append(labels.log_odds, labels.no_crystal[..., None], axis=-1)
    odds = jnp.where(known[..., None], odds, 0.0)
    last = lambda x: jnp.moveaxis(x, (0, 1), (-2, -1))  # noqa: E731
    phase = jnp.where(jnp.isfinite(labels.log_odds), labels.phase, -1)
    return Said(last(labels.quaternion), last(phase), last(jax.nn.softmax(odds)), known)


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
        log_odds(sums.both_nothing, sums.either_nothing),
    )


def make_programs(
    operations: Float[Array, "P n 3 3"],
    config: ContextConfig,
    tiling: Tiling,
    mesh: Mesh,
    cache: Path | None,
) -> tuple[Callable[..., Coupling], Callable[..., Answer]]:
    """The compiled `(labels, counted (T, side, side)) -> Coupling`, learned from all positions that
    are `counted`, and `(labels, coupling) -> Answer`, without margins; T tiles, as many on each
    device of the mesh. `cache`: a folder that keeps programs, if any.
    """
    matrices = parallel.replicate(operations, mesh)
    within = slice(tiling.margin, tiling.side - tiling.margin)

    def prepared(labels: Labels, matrices) -> tuple[Labels, Said, Float[Array, "4 C C ny nx"]]:
        turns = rotations.matrix_to_quaternion(matrices)
        labels = different(labels, turns)
        said = said_of(labels)
        return labels, said, squared_misorientations(said.quaternion, said.phase, turns)

    def weighed(said: Said, square, coupling: Coupling):
        factor = compatibility(square, said.known, coupling, config.diagonal)
        return factor, *propagated(said.share, factor, config.rounds, config.damping)

    def learn(matrices, labels, counted) -> Coupling:
        given = jax.lax.map(lambda tile: prepared(tile, matrices)[1:], labels)

        def once(_, coupling: Coupling) -> Coupling:
            def sums(tile) -> PairSums:
                (said, square), counted = tile
                pairs = weighed(said, square, coupling)
                return pair_sums(*pairs, square, said.known, counted, coupling, config.diagonal)

            of_tiles = jax.lax.map(sums, (given, counted))
            total = jax.tree.map(lambda x: jax.lax.psum(x.sum(), parallel.AXIS), of_tiles)
            return coupling_of(total, config)

        return jax.lax.fori_loop(0, config.learning, once, first_coupling())

    def answers(matrices, labels, coupling) -> Answer:
        def one(labels):
            labels, said, square = prepared(labels, matrices)
            _, _, messages = weighed(said, square, coupling)
            heard = jnp.log(jnp.concatenate(messages)).sum(axis=0)
            own = jnp.append(labels.log_odds, labels.no_crystal[..., None], axis=-1)
            trim = lambda x: x[within, within]  # noqa: E731
            labels, own, heard = jax.tree.map(trim, (labels, own, jnp.moveaxis(heard, 0, -1)))
            chosen, doubted = own + heard, own + config.doubt * heard
            labels = labels._replace(log_odds=chosen[..., :-1], no_crystal=chosen[..., -1])
            of_one = lambda labels, odds: answer_of(labels, matrices, (odds[:-1], odds[-1]))  # noqa: E731
            return jax.lax.map(lambda row: jax.vmap(of_one)(*row), (labels, doubted))

        return jax.lax.map(one, labels)

    content = {"context": asdict(config), "margin": tiling.margin}
    everywhere, shared = parallel.REPLICATED, parallel.SHARDED

    def compiled(step, name: str, last, result):
        specs = everywhere, shared, last
        return cached_pmap(step, mesh, specs, result, content | {"of": name}, cache)

    learned = compiled(learn, "coupling", shared, everywhere)
    told = compiled(answers, "answers", everywhere, shared)
    return functools.partial(learned, matrices), functools.partial(told, matrices)


def learnt(
    learn: Callable[..., Coupling],
    labels: Callable[[Tile], Labels],
    tiling: Tiling,
    config: ContextConfig,
    mesh: Mesh,
) -> Coupling:
    """How alike neighbours of this scan are: from some of its tiles, spread evenly over it."""
    tiles = tiling.tiles
    index = np.unique(np.linspace(0, len(tiles) - 1, config.sample).round().astype(int))
    chosen = [tiles[i] for i in index]
    # of one tile or of all that are asked for: no program for each number of tiles
    n = 1 if len(chosen) == 1 else config.sample
    n = -(-n // mesh.size) * mesh.size
    counted = np.zeros((n, tiling.side, tiling.side), bool)
    for own, tile in zip(counted, chosen, strict=False):
        own[:] = inside(tiling, tile)
    return learn(stacked(labels, chosen, n), counted)


def answers_in_context(
    labels: Callable[[Tile], Labels],
    tiling: Tiling,
    operations: Float[Array, "P n 3 3"],
    config: ContextConfig,
    mesh: Mesh,
    cache: Path | None = None,
) -> Iterator[tuple[int, Answer]]:
    """The answers of a scan, some rows (rows, nx) at a time by the first of them, from the labels
    (side, side) of its tiles, whose margin is `config.rounds`. Those of positions that were not
    looked at say nothing.
    """
    learn, tell = make_programs(operations, config, tiling, mesh, cache)
    coupling = learnt(learn, labels, tiling, config, mesh)
    yield from over_tiles(lambda lot: tell(lot, coupling), labels, tiling, mesh)
