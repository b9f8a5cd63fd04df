# SPDX-License-Identifier: GPL-3.0-or-later
"""The cache's rule: found by what made it, read only if it is our own, bounded, harmless."""

import os
import pickle
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import jax
import numpy as np
import pytest

from jaxstem.runtime import cache, parallel
from jaxstem.runtime.cache import (
    bound,
    cached,
    content_key,
    default_cache,
    entries,
    entry_path,
    jax_folder,
    keep,
    limit,
    recall,
)
from jaxstem.runtime.parallel import SHARDED
from jaxstem.runtime.programs import cached_pmap


class Pair(NamedTuple):
    x: np.ndarray
    y: np.ndarray | None
    rest: dict


LIKE = Pair("x", "y", {"z": "z"})


def pair(n=3):
    return Pair(np.arange(n, dtype=np.float16), None, {"z": np.eye(2, dtype=bool)})


def held(folder):
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@contextmanager
def one_warning(match):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        yield
    (only,) = told
    assert match in str(only.message)


def test_an_entry_is_made_once(tmp_path):
    folder, made = tmp_path / "a" / "b", []

    def make():
        made.append(1)
        return pair()

    for _ in range(2):
        found = cached(folder, "pairs", {"n": 3}, make, LIKE)
        assert found.y is None and found.x.dtype == np.float16 and found.rest["z"].dtype == bool
        np.testing.assert_array_equal(found.x, pair().x)
        np.testing.assert_array_equal(found.rest["z"], np.eye(2))
    assert len(made) == 1
    cached(folder, "pairs", {"n": 4}, make, LIKE)
    cached(folder, "pears", {"n": 3}, make, LIKE)
    assert len(made) == len(held(folder)) == 3
    cached(None, "pairs", {"n": 3}, make, LIKE)
    assert len(made) == 4
    assert folder.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in folder.iterdir())


def test_places(monkeypatch, tmp_path):
    monkeypatch.delenv("JAXSTEM_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "jaxstem"
    assert jax_folder().parent == tmp_path / "jaxstem"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "jaxstem"
    monkeypatch.setenv("JAXSTEM_CACHE", str(tmp_path / "elsewhere"))
    assert default_cache() == tmp_path / "elsewhere"
    monkeypatch.setenv("JAXSTEM_CACHE", "off")
    assert default_cache() is None and jax_folder() is None


def test_the_key_is_of_all_code_and_data(monkeypatch, tmp_path):
    """Another text, name or place of any module or data file is another content."""
    package = tmp_path / "jaxstem"
    files = ["api.py", "runtime/cache.py", "app/commands/map.py", "data/lobato.csv"]
    for name in files:
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("1")
    monkeypatch.setattr(cache, "__file__", str(package / "runtime" / "cache.py"))

    def key():
        return content_key(cache.code.__wrapped__())

    keys = [key()]
    assert key() == keys[0]
    (package / "notes.txt").write_text("decides nothing")
    assert key() == keys[0]
    for name in files:
        (package / name).write_text("2")
        keys.append(key())
    (package / "api.py").rename(package / "app" / "api.py")
    keys.append(key())
    assert len(set(keys)) == len(files) + 2


def test_the_key_is_of_versions_settings_and_device(monkeypatch, tmp_path):
    def path():
        return entry_path(tmp_path, "pairs", {})

    before = path()
    assert path() == before
    with jax.enable_x64(True):
        assert path() != before
    monkeypatch.setenv("XLA_FLAGS_OF_ANOTHER_RUN", "1")
    assert path() != before
    monkeypatch.undo()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "decides nothing")
    assert path() == before
    for name in ("jax", "jaxlib", "numpy"):
        with monkeypatch.context() as patch:
            version = cache.metadata.version
            other = lambda x, name=name, version=version: version(x) + "x" * (x == name)  # noqa: E731
            patch.setattr(cache.metadata, "version", other)
            assert content_key(cache.code.__wrapped__()) != content_key(cache.code())

    class Device:
        platform, device_kind, client = "tpu", "another", jax.local_devices()[0].client

    monkeypatch.setattr(jax, "local_devices", lambda: [Device])
    assert path() != before


@pytest.mark.parametrize("damage", ["truncated", "rubbish", "empty", "bit", "pickle"])
def test_a_damaged_entry_is_made_anew(tmp_path, damage):
    cached(tmp_path, "pairs", {}, lambda: pair(1000), LIKE)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    place = whole.index(pair(1000).x.tobytes()) + 999
    path.write_bytes(
        {
            "truncated": whole[: len(whole) // 2],
            "rubbish": b"rubbish" * 99,
            "empty": b"",
            "bit": whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :],
            "pickle": pickle.dumps(pair()),
        }[damage]
    )
    with one_warning("made anew"):
        found = cached(tmp_path, "pairs", {}, lambda: pair(5), LIKE)
    np.testing.assert_array_equal(found.x, pair(5).x)
    with no_warning():
        cached(tmp_path, "pairs", {}, pytest.fail, LIKE)
    assert held(tmp_path) == [path.name]


class Payload:
    """What runs when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows")
@pytest.mark.parametrize("whose", ["own", "file", "folder", "link to a file", "link", "open"])
def test_nothing_of_another_user_is_unpickled(tmp_path, monkeypatch, whose):
    """A program's entry with a payload runs it if it is our own, and never otherwise."""
    folder, mark, x = tmp_path / "cache", tmp_path / "payload ran", np.ones((4, 2), np.float32)
    mesh = parallel.make_mesh(jax.devices()[:1])

    def program():
        return cached_pmap(lambda x: 2 * x, mesh, (SHARDED,), SHARDED, {}, folder)

    program()(x)
    (path,) = folder.glob("program-*")
    status_of_folder = folder.stat()
    poison = {"program": np.frombuffer(pickle.dumps((Payload(mark), 0, 0)), np.uint8)}
    keep(path, poison)
    if whose == "file":
        status, own = os.fstat, status_of_folder.st_uid
        stranger = lambda fd: os.stat_result([*status(fd)[:4], own + 1, *status(fd)[5:10]])  # noqa: E731
        monkeypatch.setattr(os, "fstat", stranger)
    elif whose == "folder":
        monkeypatch.setattr(os, "geteuid", lambda: status_of_folder.st_uid + 1)
    elif whose == "link to a file":
        path.rename(tmp_path / "elsewhere.npz")
        path.symlink_to(tmp_path / "elsewhere.npz")
    elif whose == "link":
        folder.rename(tmp_path / "elsewhere")
        folder.symlink_to(tmp_path / "elsewhere")
    elif whose == "open":
        folder.chmod(0o770)
    before = path.read_bytes()
    why = {"link": "is a link", "link to a file": "is not read", "open": "others may write"}
    with no_warning() if whose == "own" else one_warning(why.get(whose, "another user")):
        for _ in range(2):
            np.testing.assert_array_equal(program()(x), 2 * x)
    assert mark.exists() == (whose == "own")
    if whose in ("folder", "link", "open"):
        assert held(folder) == [path.name] and path.read_bytes() == before


def test_a_folder_that_others_could_only_look_into_is_closed(tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o755)
    with no_warning():
        assert cache.is_trusted(folder)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_arrays_are_read_without_pickle(tmp_path):
    """Not even of our own, under the name of an entry: its arrays are no programs."""
    path, mark = entry_path(tmp_path, "pairs", {}), tmp_path / "payload ran"
    np.savez(path, x=np.array([Payload(mark)], object))
    with one_warning("made anew"):
        assert recall(path) is None
    assert not mark.exists()


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows")
def test_jax_reads_nothing_of_another_user(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXSTEM_CACHE", str(tmp_path))
    folder = jax_folder()
    program = folder / f"jit_f-{64 * 'a'}-cache"
    program.touch()
    assert jax_folder() == folder
    real = type(folder).lstat

    def lstat(path):
        fields = list(real(path)[:10])
        fields[4] += path == program
        return os.stat_result(fields)

    monkeypatch.setattr(type(folder), "lstat", lstat)
    with one_warning(str(program)):
        assert jax_folder() is None and jax_folder() is None


def test_the_oldest_leave_first(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXSTEM_CACHE_MIB", "1")
    size = 300_000
    arrays = {"x": np.zeros(size, np.uint8)}
    paths = [entry_path(tmp_path, "pairs", {"n": n}) for n in range(5)]
    for age, path in zip((40, 10, 30), paths, strict=False):
        keep(path, arrays)
        os.utime(path, (1e9 - age, 1e9 - age))
    assert recall(paths[0]) is not None  # is no longer the oldest
    assert paths[0].stat().st_mtime > 1e9
    compiled = tmp_path / "jax-abc" / f"jit_f-{64 * 'a'}-cache"
    unfinished = tmp_path / f".pairs-{32 * 'a'}-{12 * 'b'}.npz"
    others = [tmp_path / "mine.npz", tmp_path / "jax-abc" / "notes", tmp_path / "scan-1.h5"]
    compiled.parent.mkdir()
    for path in (compiled, unfinished, *others):
        path.write_bytes(bytes(1000))
        os.utime(path, (0, 0))
    being_written = unfinished.with_stem(f".pairs-{32 * 'a'}-{12 * 'c'}")
    being_written.write_bytes(bytes(1000))
    target = tmp_path / "outside"
    (tmp_path / f"pairs-{32 * 'c'}.npz").symlink_to(target)
    target.write_bytes(bytes(2 * size))
    keep(paths[3], arrays)
    assert [path.exists() for path in paths] == [True, True, False, True, False]
    assert not compiled.exists() and not unfinished.exists()
    link = tmp_path.with_name("link")
    link.symlink_to(tmp_path)
    assert not entries(link) and not bound(link, 0)
    keep(paths[4], arrays)
    assert [path.exists() for path in paths] == [True, False, False, True, True]
    assert sum(entry.size for entry in entries(tmp_path)) <= limit() == 2**20
    assert len(bound(tmp_path, 0)) == 3 and not entries(tmp_path)
    assert all(path.exists() for path in (*others, target, being_written))


def test_kinds_and_sizes_are_told(tmp_path):
    keep(entry_path(tmp_path, "pairs", {}), {"x": np.zeros(5000)})
    (tmp_path / "jax-abc").mkdir()
    (tmp_path / "jax-abc" / f"jit_f_g-{64 * '0'}-cache").write_bytes(bytes(70))
    sizes = {entry.kind: entry.size for entry in entries(tmp_path)}
    assert sizes["jax"] == 70 and 40_000 < sizes.pop("pairs") < 41_000 and len(sizes) == 1


@pytest.mark.parametrize("text", ["much", "-1", "1.5", ""])
def test_a_limit_that_is_none_is_refused(monkeypatch, text):
    monkeypatch.setenv("JAXSTEM_CACHE_MIB", text)
    with pytest.raises(cache.InputError, match="JAXSTEM_CACHE_MIB"):
        limit()


def test_a_folder_that_cannot_be_made_is_told_once(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    for folder in (tmp_path / "file", tmp_path / "file" / "cache"):
        with one_warning("cannot be kept for the next time"):
            for n in range(3):
                assert cached(folder, "pairs", {"n": n}, pair, LIKE).rest["z"].all() == 0
    assert (tmp_path / "file").read_text() == "not a folder"


def test_a_disk_that_cannot_be_written_is_told_once(tmp_path, monkeypatch):
    keep(entry_path(tmp_path, "pairs", {"n": 0}), {".x": np.ones(1)})
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with one_warning("cannot be kept for the next time"):
        for n in range(3):
            assert len(cached(tmp_path, "pairs", {"n": n + 1}, pair, LIKE).x) == 3
    assert len(held(tmp_path)) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="the limit stands for a full disk")
def test_a_full_disk_is_told_once(tmp_path):
    script = f"""
import resource, numpy as np
from pathlib import Path
from jaxstem.runtime.cache import cached
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
for n in range(3):
    found = cached(Path({str(tmp_path)!r}), "pairs", {{"n": n}}, lambda: [np.ones(10**5)], ["x"])
    assert found[0].sum() == 10**5
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("cannot be kept for the next time") == 1
    assert held(tmp_path) == []


def test_many_may_write_and_read_at_once(tmp_path, monkeypatch):
    """Some make and some find the entry, some make room: all get the arrays, whole."""
    monkeypatch.setattr(cache, "limit", lambda: 100_000)  # for two of them

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(30):
            n = int(rng.integers(4))
            make = lambda n=n: [np.full(10_000, n, np.int32)]  # noqa: E731
            (found,) = cached(tmp_path, "pairs", {"n": n}, make, ["x"])
            np.testing.assert_array_equal(found, np.full(10_000, n))

    with no_warning(), ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert 1 <= len(entries(tmp_path)) == len(held(tmp_path)) <= 2


def test_two_processes_may_write_at_once(tmp_path):
    script = f"""
import numpy as np
from pathlib import Path
from jaxstem.runtime.cache import cached
for n in range(40):
    make = lambda: [np.full(50_000, n % 5)]
    (found,) = cached(Path({str(tmp_path)!r}), "pairs", {{"n": n % 5}}, make, ["x"])
    assert (found == n % 5).all()
"""
    words = [sys.executable, "-W", "error::UserWarning", "-c", script]
    running = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in running:
        _, told = process.communicate(timeout=300)
        assert process.returncode == 0, told
    assert len(held(tmp_path)) == 5
