# SPDX-License-Identifier: GPL-3.0-or-later
"""The settings of crystals' cells, turned into those that orix expects."""

import numpy as np
import pytest
from helpers import crystal_in_setting
from scipy.spatial.transform import Rotation

from jaxstem.crystal.cell import symmetry_operations
from jaxstem.crystal.setting import ORIX_NAMES, _standard_operations, setting_rotation
from jaxstem.errors import InputError

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:orix.*"),
]


@pytest.mark.parametrize("laue_group", list(ORIX_NAMES))
@pytest.mark.parametrize("seed", range(3))
def test_any_setting_is_turned_into_the_standard_one(laue_group, seed):
    standard = _standard_operations(laue_group)
    np.testing.assert_array_equal(setting_rotation(standard, laue_group), np.eye(3))
    turn = Rotation.random(random_state=seed).as_matrix()
    found = setting_rotation(turn.T @ standard @ turn, laue_group)
    assert np.linalg.det(found) == pytest.approx(1)
    back = found @ (turn.T @ standard @ turn) @ found.T
    distance = np.abs(back[:, None] - standard[None]).max((-1, -2)).min(1)
    assert distance.max() < 1e-6


def test_usual_settings_need_the_usual_turns():
    def angle(name):
        crystal = crystal_in_setting(name)
        turn = setting_rotation(symmetry_operations(crystal), crystal.laue_group)
        return turn, np.rad2deg(Rotation.from_matrix(turn).magnitude())

    for name in ("cubic", "hexagonal", "P-3m1", "triclinic"):
        assert angle(name)[1] == 0
    turn, degrees = angle("monoclinic")
    assert degrees == pytest.approx(90)
    np.testing.assert_allclose(np.abs(turn @ [0, 1, 0]), [0, 0, 1], atol=1e-9)
    np.testing.assert_allclose(turn @ [1, 0, 0], [1, 0, 0], atol=1e-9)
    assert angle("P-31m")[1] == pytest.approx(30)
    with pytest.raises(InputError, match="disagree"):
        setting_rotation(symmetry_operations(crystal_in_setting("monoclinic")), "mmm")
