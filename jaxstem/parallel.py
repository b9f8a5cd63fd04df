# SPDX-License-Identifier: GPL-3.0-or-later
"""One program on every device: the mesh, the data-parallel map and the global sample index.

`pmap(step, mesh, ...)` turns a per-device program, which may use collectives over the axis "data",
into one jitted function on whole arrays: `jax.pmap`'s idea through `shard_map`, without a leading
device axis. Inputs whose spec is `SHARDED` are cut along their first axis, those with `REPLICATED`
go whole to each device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Int

AXIS = "data"
SHARDED = PartitionSpec(AXIS)
REPLICATED = PartitionSpec()


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A one-dimensional mesh over `devices` (default: every device of every host)."""
    return Mesh(np.asarray(devices if devices is not None else jax.devices()), (AXIS,))


def pmap(
    step: Callable[..., Any],
    mesh: Mesh,
    in_specs: Any,
    out_specs: Any,
    donate: tuple[int, ...] = (),
) -> Callable[..., Any]:
    """Compile the per-device program `step` for `mesh`; `donate` names arguments to reuse.

    The replication check is off, so that a gradient taken inside `step` is the device's own and
    `jax.lax.pmean(..., "data")` averages it once.
    """
    sharded = jax.shard_map(
        step, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
    return jax.jit(sharded, donate_argnums=donate)


def sample_index(per_device: int) -> Int[Array, " per_device"]:
    """Indices, within the global batch, of this device's samples (inside `pmap` only)."""
    return jax.lax.axis_index(AXIS) * per_device + jnp.arange(per_device)
