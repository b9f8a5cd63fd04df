# SPDX-License-Identifier: GPL-3.0-or-later
"""What a training run is told: network, patterns, loss, schedule."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from jaxstem.errors import InputError
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
    patterns in each check; loss: a name of `LOSSES`, or one of one's own ("": that of the head);
    last_rate: the schedule's end as a share of its peak; keep: which parameters become the model,
    the "last" or those of the "best" validation, by its loss.
    """

    model: ModelConfig = ModelConfig()
    acquisition: Acquisition = Acquisition()
    library: LibraryConfig = LibraryConfig()
    physics: str = "bloch"
    no_crystal: float = 0.05
    loss: str | losses.Loss = ""
    steps: int = 0
    minutes: float = 15.0
    batch: int = 256
    learning_rate: float = 1.5e-3
    warmup: float = 0.05
    last_rate: float = 0.01
    weight_decay: float = 0.02
    clip: float = 1.0
    seed: int = 0
    n_validation: int = 1024
    keep: str = "last"

    @property
    def chosen_loss(self) -> losses.Loss:
        """The loss asked for, or the default one of the head. Raises InputError where it takes the
        output of another head.
        """
        loss = losses.find_loss(self.loss, self.model.head)
        if loss.head != self.model.head:
            raise InputError(
                f"The loss {losses.loss_name(loss)} wants the head {loss.head}, not "
                f"{self.model.head}: change one of them."
            )
        return loss

    def with_loss(self, loss: str | losses.Loss | losses.LossFn, head: str = "") -> TrainConfig:
        """These settings with another loss, a function of one's own for `head` ("": the present
        one), and its head. Raises InputError for a loss or a head that there is not.

        Only a grid can say that there is no crystal, so that other heads see no empty positions.
        """
        found = losses.find_loss(loss, head or self.model.head)
        if head and found.head != head:
            name = losses.loss_name(found)
            raise InputError(f"The loss {name} is for the head {found.head}, not {head}.")
        model = replace(self.model, head=found.head)
        no_crystal = self.no_crystal if found.head == "grid" else 0.0
        return replace(self, model=model, loss=found, no_crystal=no_crystal)

    def as_dict(self) -> dict[str, Any]:
        """The settings in what JSON can hold, the loss by its name."""
        named = replace(self, loss=losses.loss_name(self.chosen_loss))
        return asdict(named)


def preset_config(name: str) -> TrainConfig:
    """The settings of a preset: "default", or "paper" for the published network and schedule."""
    if name == "paper":
        return TrainConfig(
            model=ModelConfig.paper(),
            no_crystal=0.0,
            batch=1024,
            learning_rate=7e-5,
            warmup=15 / 265,
            last_rate=5e-7 / 7e-5,
            keep="best",
        )
    return TrainConfig()
