# SPDX-License-Identifier: GPL-3.0-or-later
"""The network's last word: its likeliest orientations, laid on the disks and then judged.

Of the distribution over a grid the modes are taken as candidates, each is aligned with the disks
(`alignment.py`), so that the grid's spacing no longer limits the answer, and judged by what it
predicts (`judge.py`). What the network thought of a candidate counts beside, times a trust that is
learned.

Shapes: `C` candidates of a pattern, `M` reflections that each may excite.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import flax
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from jaxstem.diffraction.geometry import Disks
from jaxstem.network.alignment import Alignment, Lattices
from jaxstem.network.judge import Judge, Predicted
from jaxstem.network.tokens import Sight

N_PREDICTED = 32
"""Reflections of a candidate that are looked at, the likeliest to be excited."""


def settle(
    params: Any,
    wavelength: Float[ArrayLike, ""],
    k_max: float,
    disks: Disks,
    seen: Sight,
    orientation: Float[Array, "C 3 3"],
    phase: Int[Array, " C"],
    predicted: Predicted,
    known: Lattices,
) -> tuple[Float[Array, "C 3 3"], Float[Array, " C"]]:
    """The candidates of one pattern (K,), aligned, and the evidence [nat] for each. `wavelength` in
    Å, `k_max` in 1/Å.
    """
    alignment, judge = Alignment(wavelength, k_max), Judge(wavelength, k_max)

    def align(start, phase):
        rounds = alignment.apply({"params": params["alignment"]}, disks, seen, start, phase, known)
        return rounds[-1].orientation

    aligned = jax.lax.stop_gradient(jax.vmap(align)(orientation, phase))
    of_judge = {"params": params["judge"]}
    evidence = jax.vmap(lambda *one: judge.apply(of_judge, disks, seen, *one))(aligned, predicted)
    return aligned, evidence


def packaged_finalists() -> tuple[Any, dict[str, Any]]:
    """Parameters that serve any crystal, and how they were taught
    (`experiments/training/any_crystal.py`).
    """
    folder = resources.files("jaxstem") / "data"
    record = json.loads((folder / "finalists.json").read_text(encoding="utf-8"))
    stored = flax.serialization.msgpack_restore((folder / "finalists.msgpack").read_bytes())
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), stored), record


def init_finalists(key: jax.Array) -> Any:
    """Fresh parameters, of whatever crystals: at first as the network has it."""
    disks = Disks(jnp.ones(4), jnp.zeros(4), jnp.ones(4), jnp.ones(4, bool))
    seen = Sight(jnp.ones(()), jnp.zeros(()), jnp.zeros(()))
    known = Lattices(jnp.ones((1, 3, 3)), jnp.ones((1, 3, 3)), jnp.ones((1, 3, 3, 3)))
    of_alignment, of_judge = jax.random.split(key)
    alignment, judge = Alignment(0.02, 2.0), Judge(0.02, 2.0)
    shown = disks, seen, jnp.eye(3)
    predicted = Predicted(jnp.ones((4, 3)), jnp.ones(4))
    return {
        "alignment": alignment.init(of_alignment, *shown, jnp.asarray(0), known)["params"],
        "judge": judge.init(of_judge, *shown, predicted)["params"],
        "trust": jnp.ones(()),
        "nothing": jnp.zeros(()),
    }
