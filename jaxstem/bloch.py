# SPDX-License-Identifier: GPL-3.0-or-later
"""Dynamical electron diffraction by Bloch waves: intensities for many thicknesses at once.

Inside the crystal the wave is a sum of beams, psi(r) = sum_g psi_g exp(2 pi i (k0 + g)·r), and
the beams exchange intensity while they travel down the depth z:

    d psi_g / dz = 2 pi i (s_g psi_g + sum_h U_{g-h} / (2 k) psi_h)

with the excitation error s_g (1/Å), the wave number k = 1/λ and the scaled potential

    U_g = (m / m0) / (pi V) sum_j o_j f_e,j(|g|) exp(-2 pi i g·r_j)        (1/Å²)

of a cell of volume V, m / m0 = 1 + E / (m0 c²). The right-hand side is 2 pi i M psi with a
Hermitian matrix M = C diag(γ) C^+, so that psi(t) = C diag(exp(2 pi i γ t)) C^+ psi(0): one
decomposition of M gives every thickness t. The constant U_0 turns the phase of all beams together
and is left out; back-scattering and absorption are left out too, so intensities sum to one.

Sources: M. De Graef, Introduction to Conventional Transmission Electron Microscopy (2003), chapter
5; J. C. H. Spence & J. M. Zuo, Electron Microdiffraction (1992), chapter 3; S. E. Zeltmann et al.,
Ultramicroscopy 250 (2023) 113732 (Bloch waves in py4DSTEM).

The beam runs along -z and the foil's normal is the beam. The crystal enters as `BlochTables`, a
pytree of arrays made once on the host by `prepare`; everything after that is pure and compiled.
Shapes: `N` reflections that may be beams, `B` beams in one calculation, `T` thicknesses,
`M` orientations. All numbers have the precision of the tables.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Int

from jaxstem.crystal import Crystal, reciprocal_lattice, reflections, structure_factors
from jaxstem.kinematic import excitation_error
from jaxstem.scattering import ELECTRON_REST_ENERGY, electron_wavelength


class BlochTables(NamedTuple):
    """What Bloch waves need of a crystal, with (000) as reflection 0.

    g: scattering vectors [1/Å, crystal Cartesian]; hkl: their Miller indices; strength: by how much
    a reflection couples to others, |U_g| / 2k [1/Å], in the choice of beams; coupling: U / 2k [1/Å]
    over all differences of Miller indices, index 0 in the middle of each axis, real where the
    crystal has an inversion centre; wavelength [Å].
    """

    g: Float[Array, "N 3"]
    hkl: Int[Array, "N 3"]
    strength: Float[Array, " N"]
    coupling: Float[Array, "H K L"] | Complex[Array, "H K L"]
    wavelength: Float[Array, ""]


class Beams(NamedTuple):
    """The beams of a pattern, the direct beam first.

    index: which reflections of the tables they are; qx, qy: where on the detector [1/Å];
    intensity: fraction of the incident beam at each thickness.
    """

    index: Int[Array, "... B"]
    qx: Float[Array, "... B"]
    qy: Float[Array, "... B"]
    intensity: Float[Array, "... T B"]


def prepare(
    crystal: Crystal,
    voltage_kv: float,
    k_max: float,
    u_iso: float = 0.0,
    dtype: type[np.floating] = np.float32,
) -> BlochTables:
    """Tables for the beams with |g| <= k_max [1/Å] of a crystal at `voltage_kv`.

    `u_iso` [Å²] is the mean square displacement of the atoms along one direction. Reflections that
    are absent by symmetry but reached by two scatterings are in the list. `dtype` is the precision
    of all that is computed from the tables; float64 needs `jax.enable_x64`. Raises InputError for a
    voltage or k_max that is not positive, and if no reflection lies below k_max.
    """
    energy = 1e3 * voltage_kv
    wavelength = electron_wavelength(energy)
    hkl = _beam_candidates(crystal, k_max)
    reach = 2 * np.max(np.abs(hkl), axis=0)
    axes = [np.arange(-n, n + 1) for n in reach]
    differences = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    # exp(-2 pi i g·r) in the potential, +2 pi i in the structure factor
    factor = structure_factors(crystal, differences.reshape(-1, 3), u_iso).conj()
    factor *= np.exp(2j * np.pi * (differences.reshape(-1, 3) @ _inversion_centre(crystal)))
    volume = abs(np.linalg.det(crystal.lattice))
    mass = 1 + energy / ELECTRON_REST_ENERGY
    coupling = (mass * factor / (np.pi * volume) * wavelength / 2).reshape(differences.shape[:3])
    strength = np.abs(coupling[tuple((hkl + reach).T)])
    if np.max(np.abs(coupling.imag)) < 1e-9 * np.max(np.abs(coupling)):
        coupling = coupling.real
    coupling[tuple(reach)] = 0.0
    return BlochTables(
        g=(hkl @ reciprocal_lattice(crystal.lattice)).astype(dtype),
        hkl=hkl.astype(np.int32),
        strength=strength.astype(dtype),
        coupling=coupling.astype(np.result_type(dtype, np.complex64))
        if np.iscomplexobj(coupling)
        else coupling.astype(dtype),
        wavelength=np.asarray(wavelength, dtype),
    )


def _beam_candidates(crystal: Crystal, k_max: float) -> Int[np.ndarray, "N 3"]:
    """(000), then by rising |g| the hkl with |g| <= k_max that one or two scatterings reach."""
    single = reflections(crystal, k_max).hkl
    double = (single[:, None] - single[None, :200]).reshape(-1, 3)
    hkl = np.unique(np.concatenate([single, double]), axis=0)
    length = np.linalg.norm(hkl @ reciprocal_lattice(crystal.lattice), axis=1)
    inside = length <= k_max + 1e-9
    hkl, length = hkl[inside], length[inside]
    return hkl[np.lexsort((-hkl[:, 2], -hkl[:, 1], -hkl[:, 0], np.round(length, 9)))]


def _inversion_centre(crystal: Crystal) -> Float[np.ndarray, " 3"]:
    """Fractional coordinates of an inversion centre, the origin if there is none.

    About it all structure factors are real. An inversion takes the first atom to one of its kind,
    so the centre, up to a lattice vector's half, is midway between the two.
    """
    alike = (crystal.numbers == crystal.numbers[0]) & (
        crystal.occupancies == crystal.occupancies[0]
    )
    centres = (crystal.positions[alike] + crystal.positions[0]) / 2
    hkl = np.stack(np.meshgrid(*[np.arange(-4, 5)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    factor = structure_factors(crystal, hkl)
    phase = np.exp(-2j * np.pi * (hkl @ centres.T))
    imaginary = np.max(np.abs((factor[:, None] * phase).imag), axis=0)
    best = np.argmin(imaginary)
    return centres[best] if imaginary[best] < 1e-6 * np.abs(factor).max() else np.zeros(3)


def choose_beams(
    g_lab: Float[Array, "N 3"], tables: BlochTables, n_beams: int
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """The reflections that matter most and their excitation errors [1/Å], (000) first.

    The most excited reflections come first: those with the smallest |s_g| for their strength.
    """
    s = excitation_error(g_lab, tables.wavelength)
    floor = 0.02 * tables.strength[0]
    weight = (tables.strength + floor) / (jnp.abs(s) + floor)
    _, index = jax.lax.top_k(weight.at[0].set(jnp.inf), min(n_beams, len(s)))
    return index, s[index]


def structure_matrix(
    index: Int[Array, " B"], s: Float[Array, " B"], tables: BlochTables
) -> Float[Array, "B B"] | Complex[Array, "B B"]:
    """M of the module's docstring [1/Å]: s_g on the diagonal, U_{g-h} / 2k elsewhere."""
    hkl = tables.hkl[index]
    centre = jnp.asarray([n // 2 for n in tables.coupling.shape], hkl.dtype)
    h, k, l = jnp.moveaxis(hkl[:, None] - hkl[None, :] + centre, -1, 0)  # noqa: E741
    return tables.coupling[h, k, l] + jnp.diag(s)


def propagate(
    matrix: Float[Array, "B B"] | Complex[Array, "B B"], thickness: Float[Array, " T"]
) -> Complex[Array, "T B"]:
    """Amplitudes psi_g at each thickness [Å], with all of the wave in beam 0 at the entrance."""
    eigenvalue, vector = jnp.linalg.eigh(matrix)
    phase = jnp.exp(2j * jnp.pi * thickness[:, None] * eigenvalue)
    return (phase * vector[0].conj()) @ vector.T


@functools.partial(jax.jit, static_argnames="n_beams")
def bloch_intensities(
    orientation: Float[Array, "3 3"],
    thickness: Float[Array, " T"],
    tables: BlochTables,
    n_beams: int = 64,
) -> Beams:
    """Dynamical intensities of the `n_beams` chosen beams of one orientation.

    `orientation` has the lab axes as columns in crystal coordinates (q_lab = R^T g); `thickness` in
    Å. With fewer reflections than `n_beams` in the tables, all are beams.
    """
    dtype = tables.g.dtype
    g_lab = tables.g @ jnp.asarray(orientation, dtype)
    index, s = choose_beams(g_lab, tables, n_beams)
    psi = propagate(structure_matrix(index, s, tables), jnp.asarray(thickness, dtype))
    intensity = psi.real**2 + psi.imag**2
    return Beams(index, g_lab[index, 0], g_lab[index, 1], intensity)


@functools.partial(jax.jit, static_argnames=("n_beams", "batch_size"))
def bloch_library(
    orientation: Float[Array, "M 3 3"],
    thickness: Float[Array, " T"],
    tables: BlochTables,
    n_beams: int = 64,
    batch_size: int = 16,
) -> Beams:
    """`bloch_intensities` of many orientations, `batch_size` of them at a time."""
    one = lambda r: bloch_intensities(r, thickness, tables, n_beams)  # noqa: E731
    return jax.lax.map(one, orientation, batch_size=batch_size)
