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
and is left out; back-scattering is left out too, so intensities sum to one.

Absorption is optional. Thermal motion scatters electrons out of the beams into the background; what
remains in the beams obeys the same equation with the complex potential U + i U', of the Einstein
model: each atom, moving by itself, takes from the beams what it scatters beyond the mean of its
positions,

    f'(g) = (m / m0) λ / 2 · integral d²q f_e(|q|) f_e(|g-q|) [D(g) - D(q) D(|g-q|)]      (Å)

in the place of f_e D, D the Debye-Waller factor of an amplitude. U' is a few hundredths of U, so
that the decomposition of the Hermitian M still serves: to first order γ_j becomes γ_j + i q_j with
q_j = (C^+ M' C)_jj. Where eigenvalues lie close together that is not enough, and what M' mixes
between Bloch waves is added as the first term of its Dyson series, which knows no denominators.
U'_0 by itself attenuates all beams by exp(-2 pi λ U'_0 t) in intensity.

Its cost grows with the cube of the number of beams, and the many weak ones matter together. So only
the strong beams are solved for; the weak ones enter M as the potential that a wave sees which goes
from one strong beam to another by way of them (Bethe potentials, second-order perturbation):

    M_gh <- M_gh - sum_w M_gw M_wh / s_w

A convergent or precessing beam is an average over tilts, each with a matrix of its own. They differ
on the diagonal only, so that for the small tilts of an illumination cone one decomposition serves
all: the difference acts in between short steps of it (`propagate_cone`).

Sources: M. De Graef, Introduction to Conventional Transmission Electron Microscopy (2003), chapter
5; J. C. H. Spence & J. M. Zuo, Electron Microdiffraction (1992), chapter 3; J. M. Zuo & A. L.
Weickenmeier, Ultramicroscopy 57 (1995) 375 (choice of beams); S. E. Zeltmann et al.,
Ultramicroscopy 250 (2023) 113732 (Bloch waves in py4DSTEM). Absorption: C. R. Hall & P. B. Hirsch,
Proc. R. Soc. A 286 (1965) 158; D. M. Bird & Q. A. King, Acta Cryst. A46 (1990) 202; its first-order
treatment: P. B. Hirsch et al., Electron Microscopy of Thin Crystals (1965), chapter 9.

The beam runs along -z and the foil's normal is the beam. The crystal enters as `BlochTables`, a
pytree of arrays made once on the host by `prepare`; everything after that is pure and compiled.
Shapes: `N` reflections that may be beams, `B` strong beams, `W` weak beams, `T` thicknesses, `M`
orientations, `Q` tilts of the beam. All numbers have the precision of the tables.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Int

from jaxstem.crystal.cell import Crystal, reciprocal_lattice, reflections, structure_factors
from jaxstem.crystal.electron import ELECTRON_REST_ENERGY, electron_wavelength
from jaxstem.diffraction.absorption import absorptive_factors
from jaxstem.diffraction.geometry import excitation_error
from jaxstem.diffraction.illumination import Tilts, tilted
from jaxstem.diffraction.propagation import propagate, propagate_absorbing, propagate_cone
from jaxstem.errors import InputError

_WEAKEST = 0.02
"""Coupling, in units of U_0 / 2k, that counts as none in the choice of beams. Keeps reflections
that are only reached by two scatterings in the choice, and 1 / s_w finite."""


class BlochTables(NamedTuple):
    """What Bloch waves need of a crystal, with (000) as reflection 0.

    g: scattering vectors [1/Å, crystal Cartesian]; hkl: their Miller indices; strength: |U_g| / 2k
    [1/Å]; coupling: U / 2k [1/Å] for all differences of Miller indices, flattened, real where the
    crystal has an inversion centre; address: where a reflection lies in it, so that U_{g-h} is
    `coupling[address[g] - address[h] + P // 2]`; wavelength [Å]; absorption: U' / 2k in the same
    order, U'_0 included, None where nothing is absorbed.
    """

    g: Float[Array, "N 3"]
    hkl: Int[Array, "N 3"]
    strength: Float[Array, " N"]
    address: Int[Array, " N"]
    coupling: Float[Array, " P"] | Complex[Array, " P"]
    wavelength: Float[Array, ""]
    absorption: Float[Array, " P"] | Complex[Array, " P"] | None = None


class Beams(NamedTuple):
    """The strong beams of a pattern, the direct beam first.

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
    k_max: float = 3.0,
    u_iso: float = 0.0,
    dtype: type[np.floating] = np.float32,
    absorption: float = 0.0,
) -> BlochTables:
    """Tables for the beams with |g| <= k_max [1/Å] of a crystal at `voltage_kv`.

    `u_iso` [Å²] is the mean square displacement of the atoms along one direction. Near zone axes
    beams up to 3 1/Å matter for those within 2 1/Å (more still if u_iso is 0). Reflections that are
    absent by symmetry but reached by two scatterings are in the list. The potential takes about
    (4 k_max)³ numbers for each Å³ of the cell. `dtype` is the precision of all that is computed
    from the tables; float64 needs jax's 64-bit mode. `absorption` multiplies the Einstein model's
    U': 1 for all of it, 0 for none; without thermal motion there is none. Raises InputError for a
    voltage or k_max that is not positive, an absorption that is negative, and if no reflection lies
    below k_max.
    """
    if not (np.isfinite(absorption) and absorption >= 0):
        raise InputError(f"absorption is {absorption}: give a number that is not negative.")
    energy = 1e3 * voltage_kv
    wavelength = electron_wavelength(energy)
    hkl = _beam_candidates(crystal, k_max)
    reach = 2 * np.max(np.abs(hkl), axis=0)
    axes = [np.arange(-n, n + 1) for n in reach]
    difference = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)

    to_centre = np.exp(2j * np.pi * (difference @ _inversion_centre(crystal)))
    mass = 1 + energy / ELECTRON_REST_ENERGY
    volume = abs(np.linalg.det(crystal.lattice))

    def coupled(factor):
        # exp(-2 pi i g·r) in the potential, exp(+2 pi i g·r) in the structure factor
        coupling = mass * factor.conj() * to_centre / (np.pi * volume) * wavelength / 2
        is_real = np.max(np.abs(coupling.imag)) < 1e-9 * np.max(np.abs(coupling))
        return coupling.real if is_real else coupling

    coupling = coupled(structure_factors(crystal, difference, u_iso))
    absorbed = None
    if absorption > 0 and u_iso > 0:
        absorbed = absorption * coupled(absorptive_factors(crystal, difference, u_iso, energy))

    shape = tuple(2 * reach + 1)
    address = np.ravel_multi_index(tuple((hkl + reach).T), shape) - len(difference) // 2
    strength = np.abs(coupling[address + len(difference) // 2])
    coupling[len(difference) // 2] = 0.0
    number = lambda x: np.result_type(dtype, np.complex64) if np.iscomplexobj(x) else dtype  # noqa: E731
    return BlochTables(
        g=jnp.asarray(hkl @ reciprocal_lattice(crystal.lattice), dtype),
        hkl=jnp.asarray(hkl, jnp.int32),
        strength=jnp.asarray(strength, dtype),
        address=jnp.asarray(address, jnp.int32),
        coupling=jnp.asarray(coupling, number(coupling)),
        wavelength=jnp.asarray(wavelength, dtype),
        absorption=None if absorbed is None else jnp.asarray(absorbed, number(absorbed)),
    )


def _beam_candidates(crystal: Crystal, k_max: float) -> Int[np.ndarray, "N 3"]:
    """(000), then by rising |g| the hkl with |g| <= k_max that one or two scatterings reach."""
    single = reflections(crystal, k_max).hkl
    reach = 2 * np.max(np.abs(single), axis=0)
    is_reached = np.zeros(2 * reach + 1, dtype=bool)
    is_reached[tuple((single + reach).T)] = True
    for step in single[:200]:
        is_reached[tuple((single + reach - step).T)] = True
    hkl = np.argwhere(is_reached) - reach
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
    s: Float[Array, "Q N"], tables: BlochTables, n_beams: int
) -> tuple[Int[Array, " B"], Float[Array, "Q B"]]:
    """The `n_beams` reflections that matter most, in falling order, and their s [1/Å].

    `s` are the excitation errors of all reflections for each tilt of the beam. A beam takes part as
    far as its coupling is no smaller than its excitation error at the best tilt; (000) is first.
    """
    floor = _WEAKEST * tables.strength[0]
    weight = (tables.strength + floor) / (jnp.min(jnp.abs(s), axis=0) + floor)
    _, index = jax.lax.top_k(weight.at[0].set(jnp.inf), min(n_beams, s.shape[-1]))
    # XLA sees through slices of the index and sorts all N reflections, at ten times the cost
    index = jax.lax.optimization_barrier(index)
    return index, s[:, index]


def structure_matrix(
    index: Int[Array, " B_and_W"], s: Float[Array, " B_and_W"], tables: BlochTables, n_strong: int
) -> Float[Array, "B B"] | Complex[Array, "B B"]:
    """M of the module's docstring [1/Å] among the first `n_strong` beams, the rest being weak."""
    address = tables.address[index]
    middle = tables.coupling.size // 2
    rows = tables.coupling[address[:n_strong, None] - address + middle]
    strong, weak = rows[:, :n_strong], rows[:, n_strong:]
    floor = _WEAKEST * tables.strength[0]
    inverse = s[n_strong:] / (s[n_strong:] ** 2 + floor**2)
    return strong + jnp.diag(s[:n_strong]) - (weak * inverse) @ weak.conj().T


def absorption_matrix(
    index: Int[Array, " B"], tables: BlochTables
) -> Float[Array, "B B"] | Complex[Array, "B B"]:
    """M' of the module's docstring [1/Å] among these beams: its uniform part is the diagonal."""
    address = tables.address[index]
    return tables.absorption[address[:, None] - address + tables.absorption.size // 2]


@functools.partial(jax.jit, static_argnames=("n_beams", "n_weak", "n_steps"))
def bloch_intensities(
    orientation: Float[Array, "3 3"],
    thickness: Float[Array, " T"],
    tables: BlochTables,
    n_beams: int = 64,
    n_weak: int = 200,
    tilts: Tilts | None = None,
    cone: Tilts | None = None,
    n_steps: int = 2,
) -> Beams:
    """Dynamical intensities of the `n_beams` strong beams of one orientation.

    `orientation` has the lab axes as columns in crystal coordinates (q_lab = R^T g); `thickness` in
    Å. The next `n_weak` beams act on the strong ones (Bethe potentials). With too few reflections
    in the tables there are fewer beams.

    Intensities are averages over the `tilts` of the beam, with a decomposition for each, and over
    the small tilts of a `cone` around each of these (`kinematic.ring_tilts`, `disk_tilts`), for
    which that decomposition serves in `n_steps` from each thickness to the next (`cone_steps`).
    Beams and positions are those of the untilted beam. With `tilts` intensities are differentiable
    everywhere, with a `cone` not on zone axes.
    """
    dtype = tables.g.dtype
    n_beams = min(n_beams, len(tables.g))
    orientation = jnp.asarray(orientation, dtype)
    thickness = jnp.asarray(thickness, dtype)
    if tilts is None:
        seen = orientation[None]
    else:
        seen = tilted(orientation, tilts.x, tilts.y)
    s = excitation_error(tables.g @ seen, tables.wavelength)
    index, s = choose_beams(s, tables, n_beams + n_weak)
    strong = index[:n_beams]
    g = tables.g[strong]
    absorption = None if tables.absorption is None else absorption_matrix(strong, tables)

    def intensity(seen, s):
        matrix = structure_matrix(index, s, tables, n_beams)
        if cone is not None:
            nearby = excitation_error(g @ tilted(seen, cone.x, cone.y), tables.wavelength)
            psi = propagate_cone(matrix, nearby - s[:n_beams], thickness, n_steps, absorption)
            share = jnp.asarray(cone.weight, dtype)
            return jnp.einsum("q,tqb->tb", share, psi.real**2 + psi.imag**2)
        if absorption is None:
            psi = propagate(matrix, thickness)
        else:
            psi = propagate_absorbing(matrix, absorption, thickness)
        return psi.real**2 + psi.imag**2

    if tilts is None:
        mean = intensity(seen[0], s[0])
    else:
        weight = jnp.asarray(tilts.weight, dtype)
        mean = jnp.tensordot(weight, jax.vmap(intensity)(seen, s), axes=1)
    q = g @ orientation
    return Beams(strong, q[:, 0], q[:, 1], mean)


@functools.partial(jax.jit, static_argnames=("n_beams", "n_weak", "batch_size", "n_steps"))
def bloch_library(
    orientation: Float[Array, "M 3 3"],
    thickness: Float[Array, " T"],
    tables: BlochTables,
    n_beams: int = 64,
    n_weak: int = 200,
    batch_size: int | None = None,
    tilts: Tilts | None = None,
    cone: Tilts | None = None,
    n_steps: int = 2,
) -> Beams:
    """`bloch_intensities` of many orientations: one after the other, or `batch_size` at a time."""
    one = lambda r: bloch_intensities(  # noqa: E731
        r, thickness, tables, n_beams, n_weak, tilts, cone, n_steps
    )
    return jax.lax.map(one, orientation, batch_size=batch_size)
