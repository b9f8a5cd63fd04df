# SPDX-License-Identifier: GPL-3.0-or-later
"""Maps and crystals as orix reads and understands them."""

import jax
import numpy as np
import pytest
from helpers import crystal_in_setting, random_map

from jaxstem.crystal.cell import symmetry_operations
from jaxstem.files.orientation_map import PROPERTIES
from jaxstem.files.orix import standard_cell
from jaxstem.maps.colours import LAB_X, LAB_Z, rgb_map
from jaxstem.orientation.symmetry import misorientation

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:orix.*"),
]


SETTINGS = "cubic", "monoclinic", "P-31m", "rhombohedral", "zinc blende", "triclinic"


def test_misorientations_and_colours_by_orix_are_ours(seed):
    from orix.plot import IPFColorKeyTSL
    from orix.vector import Vector3d

    apart = jax.jit(misorientation)
    for name in SETTINGS:
        crystal = crystal_in_setting(name)
        found = random_map([crystal], seed)
        converted = found.to_orix()
        orientations = converted["indexed"].orientations
        matrix = found.orientation[found.phase >= 0]
        angle = orientations[:-1].angle_with(orientations[1:])
        # of one shape for all crystals: an operation that is listed twice changes no minimum
        filled = np.resize(matrix, (20, 3, 3))
        operations = np.resize(symmetry_operations(crystal), (24, 3, 3))
        ours = apart(filled[:-1], filled[1:], operations)[: len(matrix) - 1]
        np.testing.assert_allclose(angle, ours, atol=2e-3, err_msg=name)
        for direction in (LAB_X, LAB_Z):
            key = IPFColorKeyTSL(orientations.symmetry, direction=Vector3d(direction))
            colours = rgb_map(found, direction)[found.phase >= 0]
            np.testing.assert_allclose(
                key.orientation2color(orientations), colours, atol=2e-3, err_msg=name
            )


def test_lattice_vectors_lie_in_the_lab_as_before(seed):
    """orix's cell, turned by orix's rotations, gives the lattice that our matrices give."""
    for name in SETTINGS:
        crystal = crystal_in_setting(name)
        found = random_map([crystal], seed)
        converted = found.to_orix()
        cell = converted.phases[0].structure.lattice.base
        turn, axes = standard_cell(crystal)
        by_orix = np.einsum("ij,njk->nik", cell, converted.rotations.to_matrix())
        ours = np.einsum("ij,njk->nik", axes @ crystal.lattice, found.orientation.reshape(-1, 3, 3))
        known = found.phase.ravel() >= 0
        np.testing.assert_allclose(by_orix[known], ours[known], atol=2e-5, err_msg=name)
        volume = abs(np.linalg.det(axes))
        assert len(converted.phases[0].structure) == round(volume) * len(crystal.numbers)
        np.testing.assert_allclose(np.linalg.det(turn), 1)


def test_positions_phases_and_properties():
    crystals = [crystal_in_setting("cubic"), crystal_in_setting("zinc blende")]
    found = random_map(crystals, 1)
    converted = found.to_orix()
    assert converted.shape == (4, 5) and converted.scan_unit == "nm"
    row, column = np.indices((4, 5))
    np.testing.assert_allclose(converted.y, 2.0 * row.ravel())
    np.testing.assert_allclose(converted.x, 2.0 * column.ravel())
    np.testing.assert_array_equal(converted.phase_id, np.maximum(found.phase, -1).ravel())
    np.testing.assert_array_equal(converted.is_indexed, found.phase.ravel() >= 0)
    np.testing.assert_array_equal(converted.prop["no_crystal"], found.phase.ravel() == -2)
    for name in PROPERTIES:
        np.testing.assert_array_equal(converted.prop[name], getattr(found, name).ravel())
    cubic, zinc_blende = converted.phases[0], converted.phases[1]
    assert cubic.space_group.number == 221 and cubic.point_group.name == "m-3m"
    # known modulo the Laue group only
    assert zinc_blende.space_group is None and zinc_blende.point_group.name == "m-3m"
    assert found.to_orix().phases[1].name == "zinc blende"
    assert random_map(crystals, 1, units="pixels").to_orix().scan_unit == "px"
