# SPDX-License-Identifier: GPL-3.0-or-later
"""The likeliest orientations of a network's distribution, settled by what it has learned of disks.

Quick verification, without any theory of scattering: `network.finalists` aligns and judges what
`candidates` proposes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from jaxstem.diffraction.geometry import Disks
from jaxstem.network.alignment import Lattices
from jaxstem.network.finalists import N_PREDICTED, settle
from jaxstem.network.judge import Predicted
from jaxstem.network.tokens import Sight
from jaxstem.verification.candidates import CandidateTables, propose
from jaxstem.verification.ranking import Candidates, angles_between, outdone

_SAME = np.deg2rad(3.0)
"""How close [rad] two aligned orientations are that are one."""

GONE = -1e4
"""Log-odds of a candidate that another one stands for."""


class Finalists(NamedTuple):
    """Candidates as they are settled: orientations, phases, log-odds, and those of no crystal."""

    orientation: Float[Array, "C 3 3"]
    phase: Int[Array, " C"]
    log_odds: Float[Array, " C"]
    nothing: Float[Array, ""]


def proposed(
    log_probability: Float[Array, " n_cells"], tables: Sequence[CandidateTables], n: int
) -> Candidates:
    """The `n` likeliest candidates of one pattern, with the reflections that are looked at, from
    its distribution over the cells of all phases.
    """
    few = [t._replace(visible=t.visible[:, :N_PREDICTED]) for t in tables]
    found = propose(log_probability, few, n)
    if len(tables) > 1:
        best = jax.lax.top_k(found.prior, n)[1]
        found = jax.tree.map(lambda x: x[best], found)
    return found


def settled(
    params: Any,
    wavelength: Float[ArrayLike, ""],
    k_max: float,
    found: Candidates,
    nothing: Float[ArrayLike, ""],
    disks: Disks,
    seen: Sight,
    known: Lattices,
    operations: Float[Array, "P n_operations 3 3"],
) -> Finalists:
    """The finalists of one pattern (K,) from what is `proposed`, `nothing` being the network's
    log-probability of no crystal. `wavelength` in Å, `k_max` in 1/Å.

    Of those that are aligned to the same orientation the likeliest stays, with what the network
    thought of all of them.
    """
    predicted = Predicted(found.forward.g, found.forward.inverse_extinction)
    given = disks, seen, found.orientation, found.phase, predicted, known
    orientation, evidence = settle(params, wavelength, k_max, *given)
    apart = angles_between(orientation, found.phase, operations)
    together = jnp.where(apart < _SAME, found.prior, -jnp.inf)
    log_odds = params["trust"] * jax.nn.logsumexp(together, axis=1) + evidence
    log_odds = jnp.where(outdone(apart, log_odds, _SAME), GONE, log_odds)
    of_none = params["trust"] * nothing + params["nothing"]
    return Finalists(orientation, found.phase, log_odds, of_none)


def find_finalists(
    params: Any,
    wavelength: float,
    k_max: float,
    n: int,
    log_probability: Float[Array, " n_cells_plus_1"],
    disks: Disks,
    seen: Sight,
    tables: Sequence[CandidateTables],
    known: Lattices,
    operations: Float[Array, "P n_operations 3 3"],
) -> Finalists:
    """The `n` finalists of one pattern (K,), from its distribution over the cells of all phases and
    no crystal: `settled` of what is `proposed`.
    """
    found = proposed(log_probability[:-1], tables, n)
    given = found, log_probability[-1], disks, seen, known, operations
    return settled(params, wavelength, k_max, *given)
