# SPDX-License-Identifier: GPL-3.0-or-later
"""Colours, keys and labels of directions against orix called directly."""

import dataclasses

import numpy as np
import pytest
from helpers import crystal_in_setting, make_map, orix_colours
from matplotlib.figure import Figure
from scipy.spatial.transform import Rotation

from jaxstem.crystal.cell import standard_lattice, symmetry_operations
from jaxstem.crystal.setting import ORIX_NAMES
from jaxstem.errors import InputError
from jaxstem.maps.colours import (
    LAB_X,
    LAB_Z,
    direction_colours,
    direction_label,
    draw_key,
    ipf_colours,
    rgb_map,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:orix.*"),
]


@pytest.mark.parametrize("direction", np.eye(3), ids=["x", "y", "z"])
@pytest.mark.parametrize("laue_group", list(ORIX_NAMES))
def test_colours_are_those_of_orix(laue_group, direction):
    orientation = Rotation.random(40, random_state=1).as_matrix()
    ours = ipf_colours(orientation.reshape(8, 5, 3, 3), direction, laue_group)
    theirs = orix_colours(orientation, direction, laue_group)
    np.testing.assert_allclose(ours.reshape(40, 3), theirs, atol=1e-6)


def test_the_orientation_is_not_transposed():
    """[001], [101], [111] along z are red, green, blue: columns of R are the lab axes."""
    z_axes = np.array([[0, 0, 1.0], [1, 0, 1], [1, 1, 1]])
    orientation = []
    for z in z_axes:
        z = z / np.linalg.norm(z)
        x = np.cross([0.3, 1.0, 0.2], z)
        x /= np.linalg.norm(x)
        orientation.append(np.stack([x, np.cross(z, x), z], axis=1))
    colours = ipf_colours(np.array(orientation), LAB_Z, "m-3m")
    np.testing.assert_allclose(colours, np.eye(3), atol=0.02)


def test_directions_that_agree_are_coloured_once(rng, monkeypatch):
    """In any order, and no colour moves by what an eye could see."""
    from orix.plot.direction_color_keys import DirectionColorKeyTSL

    asked = []
    colour = DirectionColorKeyTSL.direction2color
    monkeypatch.setattr(
        DirectionColorKeyTSL,
        "direction2color",
        lambda self, v: asked.append(v.size) or colour(self, v),
    )
    few = rng.normal(size=(40, 3))
    few /= np.linalg.norm(few, axis=1, keepdims=True)
    which = rng.integers(0, 40, 5000)
    many = few[which] + rng.uniform(-1e-5, 1e-5, (5000, 3))
    alone = direction_colours(few, "m-3m")
    before = sum(asked)
    found = direction_colours(many, "m-3m")
    assert sum(asked) - before < 8 * 40 * 2
    np.testing.assert_allclose(found, alone[which], atol=0.01)


def test_unknown_orientations_have_no_colour():
    orientation = Rotation.random(6, random_state=2).as_matrix().reshape(2, 3, 3, 3)
    orientation[0, 1] = np.nan
    colours = ipf_colours(orientation, LAB_X, "4/mmm")
    assert np.isnan(colours[0, 1]).all()
    colours[0, 1] = 0
    assert ((colours >= 0) & (colours <= 1)).all()
    assert ipf_colours(np.full((2, 3, 3), np.nan), LAB_X, "-1").shape == (2, 3)
    with pytest.raises(InputError, match="4mm"):
        ipf_colours(orientation, LAB_X, "4mm")


def test_symmetric_equivalents_share_a_colour_in_every_setting():
    names = ("cubic", "monoclinic", "hexagonal", "P-3m1", "P-31m", "rhombohedral", "triclinic")
    for crystal in map(crystal_in_setting, names):
        symmetry = symmetry_operations(crystal)
        orientation = Rotation.random(30, random_state=4).as_matrix()
        phase = np.zeros((len(symmetry), 30))
        equivalents = symmetry[:, None] @ orientation
        rgb = rgb_map(make_map(equivalents, phase, [crystal]), LAB_Z)
        np.testing.assert_allclose(rgb, np.broadcast_to(rgb[:1], rgb.shape), atol=2e-3)
        assert np.ptp(rgb[0], axis=0).min() > 0.5


def test_the_crystal_decides_the_key_not_its_name():
    renamed = dataclasses.replace(crystal_in_setting("hexagonal"), name="cubic")
    orientation = Rotation.random(20, random_state=5).as_matrix().reshape(4, 5, 3, 3)
    rgb = rgb_map(make_map(orientation, np.zeros((4, 5)), [renamed]), LAB_Z)
    expected = orix_colours(orientation.reshape(-1, 3, 3), [0, 0, 1], "6/mmm")
    np.testing.assert_allclose(rgb.reshape(-1, 3), expected, atol=1e-3)


def test_key_corners_name_the_crystal_directions():
    def corners(name):
        key = Figure().add_subplot()
        draw_key(key, crystal_in_setting(name))
        return {text.get_text().replace(r"\,", "").strip("$") for text in key.texts}

    assert corners("cubic") == {"[001]", "[101]", "[111]"}
    assert corners("hexagonal") == {
        "[0001]",
        r"[2\overline{1}\overline{1}0]",
        r"[10\overline{1}0]",
    }
    assert {"[010]", "[100]"} <= corners("monoclinic")
    assert {"[100]", "(001)"} <= corners("triclinic")


def test_directions_are_labelled_by_small_indices():
    monoclinic = standard_lattice(5, 6, 7, 90, 101, 90)
    assert direction_label(monoclinic[2] / 7, monoclinic) == r"$[0\,0\,1]$"
    assert direction_label(np.array([0, 0, 1.0]), monoclinic) == r"$(0\,0\,1)$"
    assert direction_label(np.array([0.1, -0.7, 0.4]), monoclinic).startswith("xyz")
