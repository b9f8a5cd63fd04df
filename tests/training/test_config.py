# SPDX-License-Identifier: GPL-3.0-or-later
"""The presets are what they are called."""

from jaxstem.training.config import preset_config


def test_presets():
    paper = preset_config("paper")
    assert (paper.batch, paper.learning_rate) == (1024, 7e-5)
    assert paper.model.head == "matrix" and paper.loss_name == "geodesic"
    assert preset_config("default").loss_name == "grid_cross_entropy"
