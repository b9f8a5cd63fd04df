# SPDX-License-Identifier: GPL-3.0-or-later
"""Preferred orientation: pole figures, and the density of the beam in the inverse pole figure."""

from __future__ import annotations

import itertools
import math

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from jaxstem.crystal.cell import Crystal, reflections, symmetry_operations
from jaxstem.crystal.setting import setting_rotation
from jaxstem.maps.colours import four_indices, from_stereographic, has_hexagonal_axes, sector

CHUNK = 512
_SMALL_INDEX = 3
_FAMILIES = 3
_DENSITY_GRID = 81


def zone_axes(
    orientation: Float[np.ndarray, "m 3 3"], unit_cell: Crystal
) -> tuple[list[str], Int[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """The directions of small indices nearest to the beam: their names ⟨uvw⟩, the number of each
    orientation's, and the angle [degrees] between it and the beam.

    Symmetric equivalents share a name: the one with the fewest negative and the smallest indices.
    On hexagonal axes names have four indices.
    """
    span = range(-_SMALL_INDEX, _SMALL_INDEX + 1)
    index = np.array([i for i in itertools.product(span, repeat=3) if math.gcd(*i) == 1])
    direction = index @ unit_cell.lattice
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    symmetry = symmetry_operations(unit_cell)
    equivalent = np.einsum("nij,mj->mni", np.concatenate([symmetry, -symmetry]), direction)
    hexagonal = has_hexagonal_axes(unit_cell.lattice)
    names, of = [], np.zeros(len(index), int)
    for number, images in enumerate(equivalent):
        family = index[(images @ direction.T).max(axis=0) > 1 - 1e-6].tolist()
        best = min(family, key=lambda i: (sum(x < 0 for x in i), sum(map(abs, i)), i))
        name = "⟨" + " ".join(map(_barred, four_indices(*best) if hexagonal else best)) + "⟩"
        if name not in names:
            names.append(name)
        of[number] = names.index(name)
    nearest, cosine = np.zeros(len(orientation), int), np.zeros(len(orientation))
    for start in range(0, len(orientation), CHUNK):
        part = slice(start, start + CHUNK)
        closeness = orientation[part, :, 2] @ direction.T
        nearest[part], cosine[part] = of[closeness.argmax(axis=1)], closeness.max(axis=1)
    return names, nearest, np.rad2deg(np.arccos(np.clip(cosine, -1, 1)))


def _barred(index: int) -> str:
    return str(index) if index >= 0 else f"{-index}\u0305"


def texture_plots(
    orientation: Float[np.ndarray, "m 3 3"], unit_cell: Crystal, k_max: float
) -> Figure:
    """Pole figures of the planes of largest spacing, and the density of the beam's direction in
    the inverse pole figure; in multiples of a random distribution.

    Pole figures show the upper hemisphere, stereographic, lab x down and lab y to the right.
    """
    families = _families(unit_cell, k_max)
    picture = Figure(figsize=(2.7 * (len(families) + 1), 3.1), facecolor="white")
    panels = picture.subplots(1, len(families) + 1)
    symmetry = symmetry_operations(unit_cell)
    side = np.linspace(-1, 1, _DENSITY_GRID)
    circle = np.stack([np.cos(2 * np.pi * side), np.sin(2 * np.pi * side)], axis=-1)
    right, up = np.meshgrid(side, side)
    lab = from_stereographic(np.stack([-up, right], axis=-1))  # lab x down, lab y right
    for axes, (name, normal) in zip(panels[:-1], families, strict=True):
        poles = np.unique(np.round(symmetry @ normal, 6), axis=0)
        directions = np.einsum("mji,pj->mpi", orientation, poles).reshape(-1, 3)
        values = multiples_of_random(np.concatenate([directions, -directions]), lab)
        values[np.hypot(right, up) > 1] = np.nan
        _draw_density(picture, axes, values, (-1, 1, -1, 1), circle, name)
        axes.text(1.07, 0, "y", style="italic", va="center")
        axes.text(0, -1.07, "x", style="italic", ha="center", va="top")
    outline, normals, _ = sector(unit_cell.laue_group)
    low, high = outline.min(0), outline.max(0)
    right, up = np.meshgrid(*np.linspace(low, high, _DENSITY_GRID).T)
    standard = from_stereographic(np.stack([right, up], axis=-1))
    turn = setting_rotation(symmetry, unit_cell.laue_group)
    beam = np.einsum("nij,mj->nmi", turn @ symmetry, orientation[:, :, 2]).reshape(-1, 3)
    values = multiples_of_random(np.concatenate([beam, -beam]), standard)
    values[(standard @ normals.T < -1e-9).any(-1)] = np.nan
    extent = (low[0], high[0], low[1], high[1])
    _draw_density(picture, panels[-1], values, extent, outline, "IPF, z")
    return picture


def multiples_of_random(
    directions: Float[np.ndarray, "m 3"], at: Float[np.ndarray, "... 3"], sigma_deg: float = 4.0
) -> Float[np.ndarray, "..."]:
    """Density of unit vectors over the sphere, in multiples of that of evenly spread ones.

    With the kernel of von Mises and Fisher, κ exp(κ (cos − 1)) / (1 − exp(−2 κ)) × 2 with κ = 1/σ²
    (N. I. Fisher, T. Lewis & B. J. J. Embleton, Statistical Analysis of Spherical Data, 1987),
    which is round everywhere on the sphere.
    """
    kappa = 1 / np.deg2rad(sigma_deg) ** 2
    points = at.reshape(-1, 3).astype(np.float32)
    vectors = directions.astype(np.float32)
    total = np.zeros(len(points))
    for start in range(0, len(vectors), CHUNK):
        cosine = points @ vectors[start : start + CHUNK].T
        total += np.exp(kappa * (cosine - 1)).sum(axis=1)
    scale = 2 * kappa / (1 - np.exp(-2 * kappa)) / len(vectors)
    return (scale * total).reshape(at.shape[:-1])


def _draw_density(picture, axes, values, extent, outline, title) -> None:
    image = axes.imshow(
        values, cmap="magma_r", vmin=0, extent=extent, origin="lower", interpolation="bilinear"
    )
    axes.plot(*np.vstack([outline, outline[:1]]).T, color="black", linewidth=1.5, clip_on=False)
    axes.set_axis_off()
    axes.set_title(title, fontsize=10)
    bar = picture.colorbar(image, ax=axes, orientation="horizontal", shrink=0.7, pad=0.12)
    bar.ax.tick_params(labelsize=8)
    bar.set_label("multiples of random", fontsize=8)


def _families(unit_cell: Crystal, k_max: float) -> list[tuple[str, Float[np.ndarray, " 3"]]]:
    """The first reflections that are not of one direction, as names {hkl} and unit normals."""
    found = reflections(unit_cell, k_max)
    symmetry = symmetry_operations(unit_cell)
    families: list[tuple[str, np.ndarray]] = []
    for hkl, g in zip(found.hkl, found.g, strict=True):
        normal = g / np.linalg.norm(g)
        if all(np.abs(symmetry @ normal @ other).max() < 1 - 1e-6 for _, other in families):
            families.append(("{" + " ".join(map(_barred, hkl.tolist())) + "}", normal))
        if len(families) == _FAMILIES:
            break
    return families
