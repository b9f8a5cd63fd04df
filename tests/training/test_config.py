# SPDX-License-Identifier: GPL-3.0-or-later
"""The presets are what they are called; a loss brings its head."""

import json
from typing import get_args

import numpy as np
import pytest

from jaxstem.app.commands.train import LossName
from jaxstem.errors import InputError
from jaxstem.network.losses import LOSSES, Loss, chordal, loss_name
from jaxstem.training.config import TrainConfig, preset_config
from jaxstem.training.step import learning_rate_schedule


def test_presets():
    paper = preset_config("paper")
    assert (paper.batch, paper.learning_rate, paper.keep) == (1024, 7e-5, "best")
    assert paper.model.head == "matrix" and paper.chosen_loss is LOSSES["geodesic"]
    assert preset_config("default").chosen_loss is LOSSES["grid_cross_entropy"]
    rates = [float(learning_rate_schedule(paper, step, 265)) for step in (14, 265)]
    np.testing.assert_allclose(rates, [7e-5, 5e-7], rtol=1e-4)


def test_the_command_line_knows_every_loss():
    assert set(get_args(LossName)) == set(LOSSES)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_brings_its_head(name):
    config = TrainConfig().with_loss(name)
    assert config.model.head == LOSSES[name].head and config.chosen_loss is LOSSES[name]
    # only a grid can say that there is no crystal
    assert (config.no_crystal > 0) == (config.model.head == "grid")
    stored = json.loads(json.dumps(config.as_dict()))
    assert stored["loss"] == name and stored["model"]["head"] == config.model.head


def test_a_loss_of_ones_own_is_stored_by_its_name():
    config = preset_config("paper").with_loss(chordal)
    assert config.chosen_loss == Loss(chordal, "matrix") and config.as_dict()["loss"] == "chordal"

    def mine(output, label, space):
        return output[0]

    config = TrainConfig().with_loss(mine, "six")
    assert config.model.head == "six"
    assert config.as_dict()["loss"] == loss_name(Loss(mine, "six"))
    assert "mine" in config.as_dict()["loss"]


def test_losses_for_another_head_are_refused():
    with pytest.raises(InputError, match="loss geodesic is for the head matrix, not grid"):
        TrainConfig().with_loss("geodesic", "grid")
    with pytest.raises(InputError, match="loss geodesic wants the head matrix, not grid"):
        TrainConfig(loss="geodesic").as_dict()
    with pytest.raises(InputError, match="loss 'chorale' is not known"):
        TrainConfig().with_loss("chorale")
