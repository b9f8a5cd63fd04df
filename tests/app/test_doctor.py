# SPDX-License-Identifier: GPL-3.0-or-later
"""`jaxstem doctor` and the cache: listed by kind, emptied, off with one setting."""

import json
import os

import numpy as np
import pytest
from helpers import run, run_process

from jaxstem import __version__
from jaxstem.app.doctor import advice
from jaxstem.app.main import main, settle_jax
from jaxstem.network.folders import packaged_models
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
    folder.chmod(0o775)
    assert main(["doctor", "--json"]) == 0
    told = capsys.readouterr()
    assert str(folder) in json.loads(told.out)["cache"]["trouble"]
    assert told.err.count("cannot be kept") == 1
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


def test_the_doctor_tells_what_there_is(capsys):
    import jax

    assert run("doctor") == 0
    out = capsys.readouterr().out
    for told in (__version__, jax.__version__, *packaged_models(), "300 kV"):
        assert told in out
    assert out.count("cpu") >= len(jax.devices())
    assert out.splitlines()[-2] == "" and out.splitlines()[-1].strip()
    assert run("doctor", "--json") == 0
    assert json.loads(capsys.readouterr().out)["advice"] == out.splitlines()[-1]


def test_the_doctor_knows_what_to_do(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    cpu, gpu = {"platform": "cpu"}, {"platform": "gpu"}
    well = {"devices": [gpu], "device_error": None, "gpu_present": "NVIDIA", "models": {"cu": {}}}
    well["cache"] = {"trouble": None}
    assert advice(well) == "All is well."
    assert "requirements-gpu.txt" in advice({**well, "devices": [cpu]})
    assert "processor" in advice({**well, "devices": [cpu], "gpu_present": None})
    assert "install" in advice({**well, "models": {}})
    assert "broke" in advice({**well, "devices": [], "device_error": "it broke"})
    well["cache"]["trouble"] = "/c cannot be written"
    assert "/c cannot be written" in advice(well) and "JAXSTEM_CACHE" in advice(well)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert "JAX_PLATFORMS" in advice({**well, "devices": [cpu]})


def test_a_broken_jax_does_not_upset_the_doctor(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "nonesuch")
    done = run_process("doctor")
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    assert "JAX_PLATFORMS" in done.stdout.splitlines()[-1]
