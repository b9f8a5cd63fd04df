# SPDX-License-Identifier: GPL-3.0-or-later
"""How strongly one atom scatters electrons.

The electron scattering factor f_e(g) of a neutral atom is a smooth, isotropic function of the
length g = 2 sin(theta) / lambda of the scattering vector (1/Å, without 2 pi). It is given in Å,
for an electron at rest: the relativistic mass enters only where a potential or an extinction
distance is made from it. Each element has five pairs of parameters (a, b), kept with their source
in `data/lobato.csv`; arrays of g of any shape go in, arrays of the same shape come out.
"""

from __future__ import annotations

import csv
import functools
from importlib import resources

import numpy as np
from jaxtyping import Float

from jaxstem.errors import InputError


@functools.cache
def lobato_parameters() -> dict[int, Float[np.ndarray, "2 5"]]:
    """Parameters of Lobato & Van Dyck by atomic number: row 0 is a (Å), row 1 is b (Å²)."""
    return {int(row[0]): np.array(row[2:], dtype=float).reshape(5, 2).T for row in _table()}


@functools.cache
def symbols() -> dict[int, str]:
    """Symbols of the elements by atomic number."""
    return {int(row[0]): row[1] for row in _table()}


def _table() -> list[list[str]]:
    text = resources.files("jaxstem").joinpath("data/lobato.csv").read_text(encoding="utf-8")
    return list(csv.reader(line for line in text.splitlines() if not line.startswith("#")))[1:]


def lobato_factor(number: int, g: float | Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Electron scattering factor f_e (Å) of the neutral atom `number` (Z) at |g| (1/Å).

    f_e(g) = sum_i a_i (2 + b_i g²) / (1 + b_i g²)², I. Lobato & D. Van Dyck,
    Acta Cryst. A70 (2014) 636, equation for f_e in terms of g = 2 sin(theta) / lambda.
    Raises InputError for an element that the table lacks.
    """
    try:
        a, b = lobato_parameters()[int(number)]
    except KeyError:
        raise InputError(
            f"No electron scattering factor is known for atomic number {number}: "
            "use elements from hydrogen (1) to lawrencium (103)."
        ) from None
    b_g2 = b * np.square(np.asarray(g, dtype=float))[..., None]
    return np.asarray(np.sum(a * (2 + b_g2) / (1 + b_g2) ** 2, axis=-1))
