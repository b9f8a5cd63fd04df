# SPDX-License-Identifier: GPL-3.0-or-later
"""Bloch-wave patterns drawn as raw images without noise: disks, a diffuse background.

Each disk is filled unevenly, by a random slope, as diffraction fills it; the beam wanders over the
detector from pattern to pattern.
"""

from dataclasses import dataclass, replace

import jax
import numpy as np
from jaxtyping import Float

from experiments.simulate.random_test_set import THICKNESS, bloch_patterns
from jaxstem.diffraction.geometry import Disks
from jaxstem.diffraction.material import Material
from jaxstem.orientation import rotations


@dataclass(frozen=True)
class Drawing:
    """pixels: of the square detector's side; pixel_size [1/Å]; semi_angle [mrad]; dose: electrons a
    pattern; background: share of them that is diffuse; slope: standard deviation of the relative
    change of a disk's intensity from its centre to its rim; wander: amplitude of the beam's [px].
    """

    pixels: int = 128
    pixel_size: float = 0.0328
    semi_angle: float = 1.5
    dose: float = 2e5
    background: float = 0.12
    slope: float = 0.35
    wander: float = 0.8

    @property
    def reach(self) -> float:
        """The largest radius [1/Å] that is seen along the detector's axes."""
        return self.pixel_size * (self.pixels / 2 + 1)

    def radius(self, wavelength: float) -> float:
        """A disk's [px]; `wavelength` in Å."""
        return 1e-3 * self.semi_angle / wavelength / self.pixel_size


def random_patterns(
    material: Material, n: int, seed: int, drawing: Drawing
) -> tuple[Disks, Float[np.ndarray, "n 3 3"], Float[np.ndarray, " n"]]:
    """`n` patterns (n, K) of random orientations (n, 3, 3) and thicknesses (n,) [Å], and these two.

    Intensities are shares of the incident beam; disks go as far as the drawing reaches.
    """
    of_orientation, of_thickness = jax.random.split(jax.random.key(seed))
    orientation = rotations.random_rotations(of_orientation, (n,))
    low, high = THICKNESS
    thickness = jax.random.uniform(of_thickness, (n,), minval=low, maxval=high)
    seen = replace(material, microscope=replace(material.microscope, k_max=drawing.reach))
    disks = bloch_patterns(
        orientation, thickness, seen, drawing.semi_angle, threshold=1e-4, chunk=min(n, 128)
    )
    return disks, np.asarray(orientation), np.asarray(thickness)


def expected_counts(
    disks: Disks, wavelength: float, seed: int, drawing: Drawing
) -> tuple[Float[np.ndarray, "n H H"], Float[np.ndarray, "n H H"]]:
    """Electrons that each pixel should count of the disks (n, K), and of the background.

    `wavelength` in Å. Rows of the images lie along x. The background is no theory's: a falling
    exponential and a ring at 0.48 1/Å, of which a tenth varies with azimuth, as amorphous films
    give.
    """
    rng = np.random.default_rng(seed)
    side, size = drawing.pixels, drawing.pixel_size
    radius = drawing.radius(wavelength)
    around = np.arange(-int(radius) - 3, int(radius) + 4)
    rows, columns = np.mgrid[:side, :side]
    in_disks = np.zeros((len(disks.mask), side, side))
    diffuse = np.zeros_like(in_disks)
    for i, mask in enumerate(disks.mask):
        centre = side / 2 + drawing.wander * np.array([np.sin(i / 60), np.cos(i / 45)])
        x, y = disks.qx[i][mask] / size + centre[0], disks.qy[i][mask] / size + centre[1]
        slopes = drawing.slope * rng.normal(size=(len(x), 2))
        for a, b, share, slope in zip(x, y, disks.intensity[i][mask], slopes, strict=True):
            r, c = round(a) + around, round(b) + around
            dx, dy = r[:, None] - a, c[None] - b
            filling = np.clip(1 + (slope[0] * dx + slope[1] * dy) / radius, 0, None)
            disk = np.clip(radius + 0.5 - np.hypot(dx, dy), 0, 1) * filling
            disk *= share / disk.sum()
            r_in, c_in = (r >= 0) & (r < side), (c >= 0) & (c < side)
            in_disks[i][np.ix_(r[r_in], c[c_in])] += disk[np.ix_(r_in, c_in)]
        q = size * np.hypot(rows - centre[0], columns - centre[1])
        halo = np.exp(-q / 0.4) + 0.3 * np.exp(-(((q - 0.48) / 0.2) ** 2))
        angle = np.arctan2(columns - centre[1], rows - centre[0])
        halo *= 1 + 0.1 * np.cos(2 * (angle - rng.uniform(0, 2 * np.pi)))
        diffuse[i] = halo / halo.sum()
    return (
        (1 - drawing.background) * drawing.dose * in_disks,
        drawing.background * drawing.dose * diffuse,
    )
