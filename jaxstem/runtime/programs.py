# SPDX-License-Identifier: GPL-3.0-or-later
"""Compiled programs that the next run loads instead of tracing, lowering and compiling them again.

jax keeps what it compiled under a hash of the lowered program, so a program must be traced and
lowered before it is found: for a mapping program most of the time that a command takes. Here it is
an entry of the cache (`cache.py`), under a hash of what it is made from. Small programs are left to
jax.
"""

from __future__ import annotations

import contextlib
import functools
import pickle
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import serialize_executable
from jax.sharding import Mesh

from jaxstem.runtime import parallel
from jaxstem.runtime.cache import entry_path, is_trusted, keep, recall


def cached_pmap(
    step: Callable[..., Any],
    mesh: Mesh,
    in_specs: Any,
    out_specs: Any,
    content: dict[str, Any],
    folder: Path | None,
    *,
    soon: bool = False,
    meanwhile: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """`parallel.pmap` of `step`, loaded from `folder` where an earlier run left it compiled.

    `content` says, in what JSON can hold, all that decides the program but the environment, the
    devices and the shapes of its arguments. Nothing is kept where `folder` is None or cannot be
    trusted, where several processes share the mesh, or where jax cannot store the program. `soon`
    as in `pmap`. While a program is compiled, to be kept, `meanwhile` is called with its arguments
    on a thread, to compile what will be needed next: two threads that want one program make it
    once. What that raises is not heard of.
    """
    if folder is None or mesh.is_multi_process or not is_trusted(folder):
        return parallel.pmap(step, mesh, in_specs, out_specs, soon=soon)
    devices = [
        [device.id, device.device_kind, device.client.platform_version]
        for device in mesh.devices.flat
    ]
    known: dict[tuple, Callable[..., Any]] = {}

    def call(*arguments: Any) -> Any:
        shapes = tuple((x.shape, str(x.dtype)) for x in jax.tree.leaves(arguments))
        if shapes in known:
            return known[shapes](*arguments)
        decides = content | {"devices": devices, "shapes": shapes, "soon": soon}
        path = entry_path(folder, "program", decides)
        with _lock(path):
            found = _recalled(path, mesh, arguments)
            if not found:
                if meanwhile is not None:
                    threading.Thread(target=_unheard, args=(meanwhile, *arguments)).start()
                program = parallel.pmap(_renamed(step), mesh, in_specs, out_specs, soon=soon)
                found = _made(program, path, mesh, arguments)
        known[shapes], answer = found
        return answer

    return call


@functools.lru_cache(256)
def _lock(path: Path) -> threading.Lock:
    """Held by the thread that makes or loads the program of this entry."""
    return threading.Lock()


def _unheard(work: Callable[..., Any], *arguments: Any) -> None:
    # what is wrong is said where the answer is needed
    with contextlib.suppress(Exception):
        work(*arguments)


def _renamed(step: Callable[..., Any]) -> Callable[..., Any]:
    """The same under a name of its own, by which jax does not find it in its own cache: what it has
    from there it can store in part only.
    """

    def named(*arguments: Any) -> Any:
        return step(*arguments)

    named.__name__ = f"{step.__name__}_{uuid.uuid4().hex}"
    return named


Ran = tuple[Callable[..., Any], Any]
"""A program and its first answer."""


def _recalled(path: Path, mesh: Mesh, arguments: tuple) -> Ran | None:
    stored = recall(path)
    if stored is None:
        return None
    try:
        return _loaded(pickle.loads(stored["program"].tobytes()), mesh, arguments)
    except Exception:  # made by what cannot be told apart: compiled anew
        return None


def _loaded(stored: tuple, mesh: Mesh, arguments: tuple) -> Ran:
    devices = list(mesh.devices.flat)
    if any(b"lapack_" in part for part in stored if isinstance(part, bytes)):
        # jax looks LAPACK's routines up when a program that calls them is lowered, as this one is
        # not: it would call nothing, and the process would die
        jax.jit(jnp.linalg.eigh).lower(jax.ShapeDtypeStruct((1, 1), jnp.float32))
    program = serialize_executable.deserialize_and_load(
        *stored, backend=devices[0].client, execution_devices=devices
    )
    return program, jax.block_until_ready(program(*arguments))


def _made(program: Callable[..., Any], path: Path, mesh: Mesh, arguments: tuple) -> Ran:
    compiled = program.lower(*arguments).compile()
    try:
        stored = serialize_executable.serialize(compiled)
        found = _loaded(stored, mesh, arguments)
    except Exception:
        return compiled, compiled(*arguments)
    keep(path, {"program": np.frombuffer(pickle.dumps(stored), np.uint8)})
    return found
