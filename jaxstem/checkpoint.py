# SPDX-License-Identifier: GPL-3.0-or-later
"""Checkpoints of a training run through orbax: the newest few, written step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

KEEP = 2


def open_checkpoints(folder: str | Path) -> ocp.CheckpointManager:
    """The checkpoint manager of `folder` (made if missing); keeps the newest two steps."""
    options = ocp.CheckpointManagerOptions(max_to_keep=KEEP, create=True)
    return ocp.CheckpointManager(Path(folder).absolute(), options=options)


def save(manager: ocp.CheckpointManager, step: int, state: Any) -> None:
    """Write the pytree `state` as the checkpoint of `step`, in the background."""
    manager.save(step, args=ocp.args.StandardSave(state))


def restore_newest(manager: ocp.CheckpointManager, like: Any) -> Any | None:
    """The newest checkpoint, shaped and placed as the pytree `like`; None if there is none."""
    step = manager.latest_step()
    if step is None:
        return None
    shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    return manager.restore(step, args=ocp.args.StandardRestore(shapes))
