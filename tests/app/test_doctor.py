# SPDX-License-Identifier: GPL-3.0-or-later
"""`jaxstem doctor` and the cache: listed by kind, emptied, off with one setting."""

import json
import os

import numpy as np
import pytest

from jaxstem.app.main import main, settle_jax
from jaxstem.runtime.cache import entry_path, jax_folder, keep


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A cache of two tables and a program of jax's, beside a file that is none of them."""
    monkeypatch.setenv("JAXSTEM_CACHE", str(tmp_path / "cache"))
    # for these to come back, whatever the command sets
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")
    (jax_folder() / f"jit_f-{64 * 'a'}-cache").write_bytes(bytes(70))
    for n in range(2):
        keep(entry_path(tmp_path / "cache", "templates", {"n": n}), {"x": np.zeros(9)})
    (tmp_path / "cache" / "notes.txt").write_text("mine")
    return tmp_path / "cache"


def facts(capsys, *options):
    assert main(["doctor", "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)["cache"]


def test_the_cache_is_listed_and_emptied(folder, capsys):
    found = facts(capsys)
    assert found["folder"] == str(folder) and found["trouble"] is None
    assert found["limit"] == 2048 * 2**20
    assert {kind: held["files"] for kind, held in found["kinds"].items()} == {
        "jax": 1,
        "templates": 2,
    }
    assert found["kinds"]["jax"]["bytes"] == 70
    assert os.path.dirname(found["kinds"]["jax"]["folder"]) == str(folder)
    assert main(["doctor"]) == 0
    told = capsys.readouterr().out
    assert str(folder) in told and "templates" in told and "2 files" in told
    assert facts(capsys, "--empty-cache")["kinds"] == {}
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["notes.txt"]


def test_a_cache_that_is_not_ours_is_told(folder, capsys):
    folder.chmod(0o755)
    with pytest.warns(UserWarning, match="cannot be kept") as told:
        assert str(folder) in facts(capsys)["trouble"]
    assert len(told) == 1
    folder.chmod(0o700)


def test_one_setting_turns_all_off(folder, capsys, monkeypatch):
    monkeypatch.setenv("JAXSTEM_CACHE", "off")
    found = facts(capsys, "--empty-cache")
    assert found["folder"] is None and found["kinds"] == {}
    assert os.environ["JAX_ENABLE_COMPILATION_CACHE"] == "false"
    assert len(list(folder.iterdir())) == 4


def test_jax_keeps_its_programs_in_the_cache(folder, monkeypatch):
    settle_jax()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "elsewhere"
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    settle_jax()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(jax_folder())
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("JAXSTEM_CACHE_MIB", "0")
    folder.chmod(0o770)
    with pytest.warns(UserWarning, match="cannot be kept"):
        settle_jax()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
    assert len(list(folder.iterdir())) == 4
    folder.chmod(0o700)
    settle_jax()  # brings it to its size
    assert {path.name for path in folder.iterdir()} == {"notes.txt", jax_folder().name}


def test_a_limit_that_is_none_is_refused(folder, capsys, monkeypatch):
    monkeypatch.setenv("JAXSTEM_CACHE_MIB", "much")
    assert main(["doctor"]) == 2
    assert "JAXSTEM_CACHE_MIB" in capsys.readouterr().err
