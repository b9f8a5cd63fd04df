# SPDX-License-Identifier: GPL-3.0-or-later
"""Batches that do not fit in a device's memory are worked on in parts.

How much a program needs is not known before it runs, and other programs may share the device. So a
batch is tried, and halved where XLA says that its memory is exhausted; what fitted once is the size
for all that follow.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxstem.errors import InputError


def is_exhausted(error: BaseException) -> bool:
    """Whether a device had no memory left for a program or its arrays."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def in_parts_that_fit(
    ask: Callable[[Any], Any],
    size: int,
    least: int,
    part: Callable[[Any, int, int], Any],
) -> Callable[[Any], Any]:
    """`ask`, which gives a pytree of arrays (size, ...) for a batch of `size` patterns, in as many
    parts as the device's memory makes necessary; its answers as NumPy arrays.

    least: patterns in the smallest part, of which the others are multiples; `part(batch, start,
    stop)`: some of a batch. Several threads may call it. Warns when batches first do not fit.
    Raises InputError where the smallest part does not.
    """
    fits, lock = [size], threading.Lock()

    def halve(tried: int) -> None:
        with lock:
            if fits[0] < tried:  # another thread has done so
                return
            if tried <= least:
                raise InputError(
                    f"The device's memory does not suffice for {tried} patterns at once; free some "
                    "of it, or set JAX_PLATFORMS=cpu."
                )
            if tried == size:
                warnings.warn(
                    f"{size} patterns at once do not fit in the device's memory; fewer are taken, "
                    "which may take longer.",
                    stacklevel=2,
                )
            fits[0] = max(least, tried // 2 // least * least)

    def answer(batch: Any, tried: int) -> Any:
        starts = range(0, size, tried)
        found = []
        for start in starts:
            # a last part that is shorter would be a program of its own
            first = min(start, size - tried)
            own = jax.device_get(ask(batch if tried == size else part(batch, first, first + tried)))
            found.append(jax.tree.map(lambda x, skip=start - first: x[skip:], own))
        if len(found) == 1:
            return found[0]
        return jax.tree.map(lambda *parts: np.concatenate(parts), *found)

    def call(batch: Any) -> Any:
        while True:
            tried = fits[0]
            try:
                return answer(batch, tried)
            except Exception as error:
                if not is_exhausted(error):
                    raise
            halve(tried)  # outside of the handler, which keeps the failed arrays alive

    return call
