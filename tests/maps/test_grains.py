# SPDX-License-Identifier: GPL-3.0-or-later
"""Grains of maps whose grains are known, and mean orientations against orix."""

import numpy as np
import pytest
from helpers import make_map
from scipy import ndimage
from scipy.spatial.transform import Rotation

from jaxstem.crystal.cell import symmetry_operations
from jaxstem.errors import InputError
from jaxstem.maps.grains import bunge_angles, find_grains, mean_orientations, summary
from jaxstem.orientation.rotations import matrix_to_euler


def scrambled(orientation, symmetry, rng):
    """Each orientation as one of its equivalents, drawn at random."""
    return symmetry[rng.integers(len(symmetry), size=orientation.shape[:-2])] @ orientation


def grainy_map(crystals, rng, spread_deg=0.5):
    """12 x 10 positions of two phases: three Cu grains (0, 1 above; 3 below, apart), one of Mg."""
    grain = np.zeros((12, 10), int)
    grain[:5, 6:], grain[5:8], grain[8:] = 1, 2, 3
    phase = np.where(grain == 2, 1, 0)
    base = Rotation.random(4, random_state=int(rng.integers(2**31)))
    # neighbours that chance makes alike would be one grain
    base = Rotation.concatenate(
        [base[0], Rotation.from_rotvec([0.3, 0.2, 0.1]) * base[0], base[2:]]
    )
    wobble = Rotation.from_rotvec(np.deg2rad(spread_deg) * rng.normal(size=(120, 3)))
    orientation = (base[grain.ravel()] * wobble).as_matrix().reshape(12, 10, 3, 3)
    symmetry = {0: symmetry_operations(crystals["Cu"]), 1: symmetry_operations(crystals["Mg"])}
    for index, ops in symmetry.items():
        own = phase == index
        orientation[own] = scrambled(orientation[own], ops, rng)
    phase[0, 0], phase[11, 3] = -1, -2
    found = make_map(orientation, phase, [crystals["Cu"], crystals["Mg"]])
    return found, np.where(phase < 0, -1, grain), base


def test_grains_are_found_whatever_equivalent_stands_for_an_orientation(crystals, rng):
    found, truth, _ = grainy_map(crystals, rng)
    np.testing.assert_array_equal(find_grains(found), truth)
    # each pixel by itself at a threshold below the scatter, each phase's patches at 180°
    assert find_grains(found, 1e-3).max() + 1 == (truth >= 0).sum()
    patches = sum(ndimage.label(found.phase == index)[1] for index in (0, 1))
    assert find_grains(found, 180.0).max() + 1 == patches
    with pytest.raises(InputError, match="boundary"):
        find_grains(found, 0.0)


def test_mean_orientation_and_spread(crystals, rng):
    """Means against the orientation scattered about, angles against orix."""
    from orix.quaternion import Orientation
    from orix.quaternion.symmetry import Oh

    symmetry = symmetry_operations(crystals["Cu"])
    centre = Rotation.random(3, random_state=int(rng.integers(2**31)))
    grain = np.repeat(np.arange(3), 200)
    scattered = centre[grain] * Rotation.from_rotvec(0.03 * rng.normal(size=(600, 3)))
    members = scrambled(scattered.as_matrix(), symmetry, rng)
    mean, angle = mean_orientations(members, grain, symmetry)
    # orix by quaternions: its own from matrices are wrong by up to 0.001 degrees
    as_orix = [
        Orientation(np.roll(Rotation.from_matrix(m).as_quat(), 1, axis=1), symmetry=Oh)
        for m in (members, mean[grain])
    ]
    expected = np.rad2deg(as_orix[0].angle_with(as_orix[1]))
    np.testing.assert_allclose(angle, expected, atol=1e-5)
    turned = Orientation.from_matrix(mean, symmetry=Oh)
    truth = Orientation.from_matrix(centre.as_matrix(), symmetry=Oh)
    assert np.rad2deg(turned.angle_with(truth)).max() < 4 * np.rad2deg(0.03) * np.sqrt(3 / 200)


def test_summary(crystals, rng):
    found, truth, base = grainy_map(crystals, rng)
    table = summary(found, find_grains(found))
    sizes = [(truth == grain).sum() for grain in table["grain"]]
    assert sizes == sorted(sizes, reverse=True) == table["positions"].tolist()
    np.testing.assert_allclose(table["area_nm2"], np.array(sizes) * 4.0)  # steps of 20 Å
    np.testing.assert_allclose(table["diameter_nm"] ** 2 * np.pi / 4, table["area_nm2"], rtol=1e-3)
    for place, grain in enumerate(table["grain"]):
        own = truth == grain
        assert table["phase"][place] == found.phase_names[int(found.phase[own][0])]
        assert table["row"][place] == pytest.approx(np.nonzero(own)[0].mean(), abs=1e-3)
        assert table["column"][place] == pytest.approx(np.nonzero(own)[1].mean(), abs=1e-3)
        assert table["confidence"][place] == pytest.approx(found.confidence[own].mean(), abs=1e-3)
        # three normal components of 0.5° have a length of 0.80(34)°
        n = own.sum()
        expected = pytest.approx(0.798 * np.sqrt(1 - 1 / n), abs=5 * 0.337 / np.sqrt(n))
        assert table["spread_deg"][place] == expected
        angles = [table[name][place] for name in ("phi1_deg", "Phi_deg", "phi2_deg")]
        turn = Rotation.from_euler("ZXZ", angles, degrees=True).inv()
        symmetry = symmetry_operations(found.crystals[int(found.phase[own][0])])
        equivalents = Rotation.from_matrix(symmetry) * turn
        assert np.rad2deg((equivalents * base[grain].inv()).magnitude()).min() < 0.6


def test_a_map_without_grains_and_without_a_step(crystals):
    nothing = make_map(np.eye(3), np.full((2, 3), -1), [crystals["Cu"]], units="pixels")
    table = summary(nothing, find_grains(nothing))
    assert "area_positions" in table and all(len(column) == 0 for column in table.values())


@pytest.mark.slow
def test_angles_are_those_of_so3(seed):
    matrix = Rotation.random(50, random_state=seed).as_matrix()
    matrix[0] = np.eye(3)
    expected = np.rad2deg(np.asarray(matrix_to_euler(matrix.astype(np.float32)), float))
    difference = np.mod(bunge_angles(matrix) - expected + 180, 360) - 180
    np.testing.assert_allclose(difference, 0, atol=1e-2)
