# SPDX-License-Identifier: GPL-3.0-or-later
"""Zone axes and pole densities against directions that are known."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from jaxstem.maps.texture import multiples_of_random, zone_axes


def test_zone_axes(crystals, rng):
    for name, lattice_indices, expected in [
        ("Cu", (-1, 2, 1), "⟨1 1 2⟩"),
        ("Mg", (0, 0, -1), "⟨0 0 0 1⟩"),
        ("ZrO2", (1, 0, 0), "⟨1 0 0⟩"),
    ]:
        unit_cell = crystals[name]
        direction = np.array(lattice_indices) @ unit_cell.lattice
        z = direction / np.linalg.norm(direction)
        x = np.cross(rng.normal(size=3), z)
        x /= np.linalg.norm(x)
        on_axis = np.stack([x, np.cross(z, x), z], axis=1)
        turned = on_axis @ Rotation.from_rotvec([np.deg2rad(2.0), 0, 0]).as_matrix()
        names, index, angle = zone_axes(np.stack([on_axis, turned]), unit_cell)
        assert [names[i] for i in index] == [expected] * 2
        np.testing.assert_allclose(angle, [0, 2], atol=1e-3)


def test_densities_are_multiples_of_random(rng):
    even = rng.normal(size=(40_000, 3))
    even /= np.linalg.norm(even, axis=1, keepdims=True)
    at = even[:50]
    np.testing.assert_allclose(multiples_of_random(even[50:], at, 12.0), 1, atol=0.25)
    # of one direction, summed over the sphere; so many that their mean is known to 2 %
    many = rng.normal(size=(400_000, 3))
    many /= np.linalg.norm(many, axis=1, keepdims=True)
    values = multiples_of_random(np.array([[0.0, 0.6, 0.8]]), many)
    assert values.mean() == pytest.approx(1, abs=0.15)
