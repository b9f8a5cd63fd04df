# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that appear whole or not at all.

A file is written under a temporary name beside its place and renamed when it is complete, so that
an interrupted program leaves nothing half-written, and what is there is not replaced unasked.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxstem.errors import InputError

_NO_ROOM = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))

_CUT_SHORT = re.compile(r"\d+ requested and \d+ written")
"""What numpy says of a write that failed, whatever the reason."""


_LONGEST = 100
"""Letters of a file's name that its temporary one has too; most disks allow 255 in all."""


@contextmanager
def atomic_path(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it when the block ends without an error.

    The temporary name keeps the suffix, and is removed after an error. Raises InputError where the
    folder does not exist or cannot be written, or `path` exists and `overwrite` is False, and, in
    the place of an OSError within the block, where there is no room. Sentences of the block's own
    InputErrors get `path` in the place of the temporary one.
    """
    path = Path(path)
    check_target(path, overwrite)
    temporary = path.with_name(f".{path.stem[:_LONGEST]}-{uuid.uuid4().hex[:12]}{path.suffix}")
    try:
        with told_of(path, temporary):
            yield temporary
            _refuse_existing(path, overwrite)
            os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


@contextmanager
def told_of(path: Path, temporary: Path) -> Iterator[None]:
    """Within the block InputErrors about a temporary file or folder name `path` in its place, and
    failures to write there become InputErrors.
    """
    try:
        yield
    except InputError as error:
        error.args = (str(error).replace(temporary.name, path.name),)
        raise
    except Exception as error:
        problem = _write_problem(error, temporary)
        if problem is None:
            raise
        raise InputError(f"{path}: {problem}.") from error


def _write_problem(error: BaseException, temporary: Path) -> str | None:
    """Why the file could not be written, and what to do; None for an error of something else."""
    if not isinstance(error, OSError):  # one that followed, as where matplotlib tidies up
        return error.__context__ and _write_problem(error.__context__, temporary)
    reason = (error.strerror or "").lower()
    if error.errno in _NO_ROOM:
        return f"{reason}; make room there or choose another folder"
    if _CUT_SHORT.search(str(error)):
        return "only a part of it could be written; make room there or choose another folder"
    if error.filename is not None and os.fspath(error.filename) == os.fspath(temporary):
        return f"{reason}; choose another name or folder"
    return None


def replace_file(path: str | Path, content: bytes | str) -> None:
    """Write a file that appears whole, in the place of one that is there. Raises InputError as
    `atomic_path` does.
    """
    with atomic_path(path, overwrite=True) as temporary:
        if isinstance(content, bytes):
            temporary.write_bytes(content)
        else:
            temporary.write_text(content, encoding="utf-8")


def check_target(path: str | Path, overwrite: bool = False) -> None:
    """Raise InputError where a file could not be written to `path`, as `atomic_path` says."""
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist; make it first.")
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the name of a file to write.")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{path}: the folder {path.parent} cannot be written; choose another.")
    _refuse_existing(path, overwrite)


def check_there(*paths: str | Path | None) -> None:
    """Raise InputError for a file that is to be read and does not exist, before what reads it is
    loaded.
    """
    for path in paths:
        if path is not None and not Path(path).exists():
            raise InputError(f"{path} does not exist; check the name.")


def check_apart(path: str | Path, *read: str | Path) -> None:
    """Raise InputError where what is to be written to `path` would replace a file that is read."""
    path = Path(path)
    for given in map(Path, read):
        if path.exists() and given.exists() and path.samefile(given):
            raise InputError(
                f"{path} is itself read here; choose another name for what is written."
            )


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists already; choose another name or ask to overwrite it.")
