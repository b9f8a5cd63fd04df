# SPDX-License-Identifier: GPL-3.0-or-later
"""Checkpoints of a training run through orbax: the newest few, written while training goes on.

Orbax writes under a temporary name and renames when all is there, so that a killed process leaves
either a whole checkpoint or none; on a cluster all processes take part, in one shared folder. With
the state goes a checksum of its numbers, since a file can be damaged later; a checkpoint that does
not pass is passed over for the one before.
"""

from __future__ import annotations

import gc
import os
import re
import shutil
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxstem.errors import InputError
from jaxstem.runtime import parallel

KEEP = 2


_SYSTEM = re.compile(r"os_error_code='(\d+)'")
"""How tensorstore, which orbax writes with, tells the number of the system's error."""


_UNFINISHED = "*.orbax-checkpoint-tmp*"
"""Names of checkpoints that are being written."""

_QUIET, _PATIENCE = 1.0, 10.0
"""Seconds without a word from writes that were under way after which they have ended, and the most
that are waited for that.
"""


@contextmanager
def told_where_they_cannot_be_written(folder: str | Path) -> Iterator[None]:
    """Within the block failures of the disk while checkpoints are written into
    `folder`/checkpoints, of which tensorstore tells in errors of its own, become InputErrors.

    What an error or a signal leaves unfinished there is removed at the end.
    """
    try:
        with _stragglers_passed_over() as wait:
            try:
                yield
            except Exception:
                wait()
                raise
    except BaseException as error:
        if parallel.is_first():
            for path in Path(folder).glob(f"checkpoints/{_UNFINISHED}"):
                shutil.rmtree(path, ignore_errors=True)
        found = _SYSTEM.search(str(error))
        number = int(found[1]) if found else getattr(error, "errno", None)
        if isinstance(error, InputError) or not isinstance(error, Exception) or not number:
            raise
        raise InputError(
            f"{folder}: no checkpoint could be written ({os.strerror(number).lower()}); make room "
            "there, and the same command goes on from the last one."
        ) from error


@contextmanager
def _stragglers_passed_over() -> Iterator[Callable[[], None]]:
    """Within the block nothing is said of what orbax no longer waits for; yields what waits for it.

    Orbax gives up at the first array that fails and closes its event loop. Writes under way want to
    tell that loop, from threads of tensorstore's, when they end, and reads are thrown away; of
    either Python prints an error that nobody could catch.
    """
    tell, last = sys.unraisablehook, [time.monotonic()]

    def pass_over(lost) -> None:
        closed = isinstance(lost.exc_value, RuntimeError) and "is closed" in str(lost.exc_value)
        if closed or "orbax" in getattr(getattr(lost.object, "cr_code", None), "co_filename", ""):
            last[0] = time.monotonic()
        else:
            tell(lost)

    def wait() -> None:
        start = last[0] = time.monotonic()
        while (now := time.monotonic()) - last[0] < _QUIET and now - start < _PATIENCE:
            time.sleep(0.02)

    sys.unraisablehook = pass_over
    try:
        yield wait
    finally:
        sys.unraisablehook = tell


def open_checkpoints(folder: str | Path) -> ocp.CheckpointManager:
    """The checkpoint manager of `folder` (made if missing); keeps the newest two steps.

    What a killed process left unfinished is removed.
    """
    options = ocp.CheckpointManagerOptions(
        max_to_keep=KEEP, create=True, cleanup_tmp_directories=True
    )
    return ocp.CheckpointManager(
        Path(folder).absolute(), options=options, item_names=("state", "notes")
    )


def save(manager: ocp.CheckpointManager, step: int, state: Any, notes: dict[str, Any]) -> None:
    """Write the pytree `state` (arrays) and `notes` (JSON) as the checkpoint of `step`.

    Returns as soon as the numbers are copied; the files are written in the background.
    """
    manager.save(
        step,
        args=ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            notes=ocp.args.JsonSave(notes | {"checksum": checksum(state)}),
        ),
    )


def restore_newest(manager: ocp.CheckpointManager, like: Any) -> tuple[Any, dict[str, Any]] | None:
    """State, shaped and placed as the pytree `like`, and notes of the newest sound checkpoint.

    None if there is no checkpoint at all. A damaged one is passed over with a warning, and removed
    once a sound one is found.
    Raises InputError when all are damaged.
    """
    steps = sorted(manager.all_steps(), reverse=True)
    damaged = {}
    for step in steps:
        found, problem = _restore(manager, step, like)
        if parallel.all_agree(problem is None):
            for other, reason in damaged.items():
                if parallel.is_first():
                    warnings.warn(
                        f"{manager.directory / str(other)} is damaged ({reason}); the checkpoint "
                        f"of step {step} takes its place.",
                        stacklevel=2,
                    )
                manager.delete(other)
            return found
        damaged[step] = problem or "as another process sees it"
    if not steps:
        return None
    raise InputError(
        f"{manager.directory}: no checkpoint there can be read (the newest: {damaged[steps[0]]}); "
        "start the run anew with --overwrite, or train into another folder."
    )


def _restore(manager: ocp.CheckpointManager, step: int, like: Any):
    """State and notes, and what is wrong with them (None: nothing)."""
    shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    arguments = ocp.args.Composite(
        state=ocp.args.StandardRestore(shapes), notes=ocp.args.JsonRestore()
    )
    problem = None
    with _stragglers_passed_over():
        try:
            found = manager.restore(step, args=arguments)
            state, notes = found["state"], found["notes"]
            stated = notes.pop("checksum")
        except Exception as error:  # noqa: BLE001  orbax and tensorstore raise what they like
            problem = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        if problem is not None:
            gc.collect()  # of reads that nobody waits for
            return None, problem
    if stated != checksum(state):
        return None, "its checksum is wrong"
    return (state, notes), None


def checksum(state: Any) -> int:
    """CRC-32 of the numbers of a pytree, leaf after leaf."""
    total = 0
    for leaf in jax.tree.leaves(state):
        total = zlib.crc32(np.ascontiguousarray(leaf), total)
    return total
