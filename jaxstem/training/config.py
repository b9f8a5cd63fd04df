# SPDX-License-Identifier: GPL-3.0-or-later
"""What a training run is told: network, patterns, loss, schedule."""

from __future__ import annotations

from dataclasses import dataclass

from jaxstem.network import losses
from jaxstem.network.transformer import ModelConfig
from jaxstem.training.acquisition import Acquisition
from jaxstem.training.library import LibraryConfig


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a training run, besides the materials.

    physics: "bloch" (a library of dynamical patterns) or "two_beam"; no_crystal: share of empty
    positions among the patterns; steps: 0 means as many as fit into `minutes`; batch: patterns a
    step, over all devices; learning_rate: peak of a warm-up and cosine schedule; n_validation:
    patterns in each check.
    """

    model: ModelConfig = ModelConfig()
    acquisition: Acquisition = Acquisition()
    library: LibraryConfig = LibraryConfig()
    physics: str = "bloch"
    no_crystal: float = 0.05
    loss: str = ""
    steps: int = 0
    minutes: float = 15.0
    batch: int = 256
    learning_rate: float = 1.5e-3
    warmup: float = 0.05
    weight_decay: float = 0.02
    clip: float = 1.0
    seed: int = 0
    n_validation: int = 1024

    @property
    def loss_name(self) -> str:
        """The loss asked for, or the default one of the head."""
        return self.loss or losses.DEFAULT_LOSS[self.model.head]


def preset_config(name: str) -> TrainConfig:
    """The settings of a preset: "default", or "paper" for the published network and schedule."""
    if name == "paper":
        return TrainConfig(
            model=ModelConfig.paper(),
            no_crystal=0.0,
            batch=1024,
            learning_rate=7e-5,
            warmup=15 / 265,
        )
    return TrainConfig()
