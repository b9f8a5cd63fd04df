# SPDX-License-Identifier: GPL-3.0-or-later
"""What earlier runs made, kept on disk under one rule.

Templates, tables, libraries of patterns and compiled programs take seconds to minutes to make and
come out the same the next time. Each is one entry: an .npz file of arrays, `kind-hash.npz`, in one
folder, where jax's own compiled programs lie too (`jax_folder`).

*Content-addressed.* The hash is over all that made the entry: what the caller names, and
`environment`, the package's text and data, the versions, jax's settings and the device. What has
changed is not found, and so made anew; no version is counted by hand.

*Trusted.* A compiled program runs, so nothing is read that another user could have written: folder
and file must be ours and no links, the folder open to nobody else (it is made with mode 0700).
Arrays are read without pickle.

*Bounded.* Where entries exceed `limit`, those that were not used for longest leave first.

*Harmless.* Entries are renamed into place when complete, so that processes may share a folder. One
that is damaged is made anew. Where a folder cannot be trusted or written, work goes on without it,
after one warning. JAXSTEM_CACHE=off keeps nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import stat
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxstem.errors import InputError
from jaxstem.runtime.paths import atomic_path

if TYPE_CHECKING:
    import numpy as np

_MEBIBYTE = 2**20

_USUAL_LIMIT = 2048 * _MEBIBYTE

_ENTRY = re.compile(
    r"\.?(?P<kind>.+)-[0-9a-f]{32,64}(-[0-9a-f]{12})?(\.(npz|bin|h5)|(?P<jax>-cache))"
)
"""Names of entries (.bin and .h5 are those of earlier versions), of unfinished ones that a killed
process left, and of jax's programs.
"""

_LONGEST_WRITE = 3600.0
"""Seconds after which an unfinished entry is taken for one that a killed process left."""

_told: set[Path] = set()
"""Folders about which a warning was given."""


class Entry(NamedTuple):
    """A file of the cache: its kind, bytes, and when it was last used [s]."""

    path: Path
    kind: str
    size: int
    used: float


def default_cache() -> Path | None:
    """$JAXSTEM_CACHE, or `jaxstem` in $XDG_CACHE_HOME (~/.cache); None where the first is `off`."""
    named = os.environ.get("JAXSTEM_CACHE", "")
    if named.lower() == "off":
        return None
    if named:
        return Path(named).expanduser()
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(caches) / "jaxstem"


def jax_folder() -> Path | None:
    """Where jax may keep what it compiles: within `default_cache`, apart for each kind of
    processor, since jax's own hash does not tell these apart; None where it may not.
    """
    folder = default_cache()
    if folder is None or not is_trusted(folder):
        return None
    folder = folder / f"jax-{processor()}"
    if not is_trusted(folder):
        return None
    for path in folder.iterdir():  # jax asks no file whose it is
        with suppress(FileNotFoundError):
            if not _is_own(path.lstat()):
                return _warn_once(folder, f"{path} belongs to another user: jax keeps nothing.")
    return folder


def limit() -> int:
    """Bytes that the cache may take: $JAXSTEM_CACHE_MIB mebibytes, 2048 of them by default."""
    told = os.environ.get("JAXSTEM_CACHE_MIB")
    if told is None:
        return _USUAL_LIMIT
    if not told.isdecimal():
        raise InputError(f"JAXSTEM_CACHE_MIB is {told}; give a whole number of mebibytes.")
    return int(told) * _MEBIBYTE


def cached(
    folder: Path | None, kind: str, content: dict[str, Any], make: Callable[[], Any], like: Any
) -> Any:
    """What `make` gives, a pytree of arrays, from the folder where an earlier run left it; if none
    did, made and left there. Made, too, where `folder` is None or cannot be trusted.

    `content` says, in what JSON can hold, all that decides it besides `environment`. `like` is a
    pytree of the same structure, with anything in the place of arrays; those that `make` leaves out
    are None.
    """
    import jax
    import numpy as np

    if folder is None or not is_trusted(folder):
        return make()
    path = entry_path(folder, kind, content)
    arrays = recall(path)
    if arrays is None:
        made, _ = jax.tree.flatten_with_path(jax.device_get(make()))
        arrays = {_name(place): np.asarray(x) for place, x in made}
        keep(path, arrays)
    return jax.tree.map_with_path(lambda place, _: arrays.get(_name(place)), like)


def _name(place: tuple) -> str:
    from jax.tree_util import keystr

    return keystr(place, simple=True, separator=".")


def entry_path(folder: Path, kind: str, content: dict[str, Any]) -> Path:
    """Where the entry lies that this content, in what JSON can hold, and the environment make."""
    key = content_key({"content": content, "environment": environment()})
    return Path(folder) / f"{kind}-{key[:32]}.npz"


def content_key(content: dict[str, Any]) -> str:
    """A hash (sha256) of what JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def environment() -> dict[str, Any]:
    """What decides how anything comes out: the code that runs, jax's settings and the device."""
    import jax

    device = jax.local_devices()[0]
    settings = {name: str(value) for name, value in jax.config.values.items()}
    variables = {
        name: value for name, value in os.environ.items() if name.startswith(("JAX_", "XLA_"))
    }
    return {
        "code": code(),
        "device": [device.platform, device.device_kind, device.client.platform_version],
        "settings": {
            name: value
            for name, value in (variables | settings).items()
            if "cache" not in name.lower()
        },
        # what a context manager such as `jax.enable_x64` sets is not among the values above
        "numbers": [str(jax.config.jax_enable_x64), str(jax.config.jax_default_matmul_precision)],
    }


@cache
def code() -> dict[str, str]:
    """The package's modules and data, what they compute with, and the processor."""
    package = Path(__file__).parents[1]
    text = hashlib.sha256()
    for path in sorted([*package.rglob("*.py"), *(package / "data").rglob("*")]):
        if path.is_file():
            content = path.read_bytes()
            text.update(f"{path.relative_to(package)} {len(content)} ".encode() + content)
    names = ("jax", "jaxlib", "flax", "numpy", "scipy", "spglib")
    versions = {name: metadata.version(name) for name in names}
    return {"jaxstem": text.hexdigest(), "python": sys.version, "processor": processor()} | versions


@cache
def processor() -> str:
    """A short name for what this processor can execute."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    abilities = [line for line in lines if line.startswith(("flags", "Features", "model name"))][:2]
    text = "\n".join([platform.system(), platform.machine(), platform.processor(), *abilities])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def is_trusted(folder: Path) -> bool:
    """Whether this folder, made where it is missing, is ours alone; the first time that it is not,
    a warning says why.
    """
    wrong = trouble(folder)
    if wrong:
        _warn_once(folder, f"What is made cannot be kept for the next time: {wrong}.")
    return not wrong


def trouble(folder: Path) -> str | None:
    """Why nothing may be kept in this folder, which is made where it is missing."""
    try:
        Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        status = Path(folder).lstat()
    except OSError as error:
        return f"{folder} cannot be made ({error.strerror})"
    if not stat.S_ISDIR(status.st_mode):
        return f"{folder} is a link"
    if not _is_own(status):
        return f"{folder} belongs to another user"
    if hasattr(os, "geteuid") and status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others may write in {folder} (empty it, and chmod 700 closes it)"
    if hasattr(os, "geteuid") and status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        # of before folders were closed: others could look into it, and not write
        Path(folder).chmod(0o700)
    return None


def recall(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays that `keep` left in this file; None if there is none, or none to be trusted."""
    import numpy as np

    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except FileNotFoundError:
        return None
    except OSError as error:
        return _warn_once(path.parent, f"{path} is not read ({error.strerror}).")
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not (stat.S_ISREG(status.st_mode) and _is_own(status)):
            return _warn_once(path.parent, f"{path} is not read: it belongs to another user.")
        try:
            with np.load(file, allow_pickle=False) as stored:
                arrays = dict(stored)
        except Exception as error:  # damage shows as an error of any kind
            warnings.warn(f"{path} is damaged ({error}); it is made anew.", stacklevel=2)
            return None
    with suppress(OSError):
        os.utime(path)
    return arrays


def keep(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Leave arrays for the next time; those used longest ago make room for them."""
    import numpy as np

    try:
        with atomic_path(path, overwrite=True) as part:
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                np.savez(file, **arrays)
        bound(path.parent)
    except (OSError, InputError) as error:
        reason = str(error).removeprefix(f"{path}: ").rstrip(".")
        _warn_once(path.parent, f"{path} cannot be kept for the next time ({reason}).")


def entries(folder: Path) -> list[Entry]:
    """The cache's files in a folder and those below, our own and no links, oldest use first."""
    found = []
    for root, _, names in () if folder.is_symlink() else os.walk(folder):
        for name in names:
            path, match = Path(root) / name, _ENTRY.fullmatch(name)
            with suppress(OSError):  # another process may remove it
                status = path.lstat()
                # jax touches nothing, but many file systems note when a file was read
                used = max(status.st_atime, status.st_mtime)
                is_written = name.startswith(".") and time.time() - used < _LONGEST_WRITE
                if match and stat.S_ISREG(status.st_mode) and _is_own(status) and not is_written:
                    kind = "jax" if match["jax"] else match["kind"]
                    found.append(Entry(path, kind, status.st_size, used))
    return sorted(found, key=lambda entry: entry.used)


def bound(folder: Path, most: int | None = None) -> list[Entry]:
    """Remove entries, oldest use first, until `most` bytes are left (None: `limit`); those gone."""
    there = entries(folder)
    excess = sum(entry.size for entry in there) - (limit() if most is None else most)
    gone = []
    for entry in there:
        if excess <= 0:
            break
        with suppress(OSError):  # another process removed it, or nobody can
            entry.path.unlink()
            gone.append(entry)
            excess -= entry.size
    return gone


def _is_own(status: os.stat_result) -> bool:
    return not hasattr(os, "geteuid") or status.st_uid == os.geteuid()  # Windows has no such number


def _warn_once(folder: Path, sentence: str) -> None:
    """One warning for each folder and process."""
    if folder not in _told:
        _told.add(folder)
        warnings.warn(sentence, stacklevel=3)
