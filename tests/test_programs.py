# SPDX-License-Identifier: GPL-3.0-or-later
"""What is kept for the next run: found again, made anew when anything that decides it changes."""

import subprocess
import sys
import warnings
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstem.inference import step
from jaxstem.inference.config import InferConfig
from jaxstem.inference.step import cached_tables, predict_content
from jaxstem.network.model import Model
from jaxstem.network.transformer import ModelConfig
from jaxstem.runtime import cache, parallel
from jaxstem.runtime.cache import content_key, default_cache, keep, recall, written_by
from jaxstem.runtime.parallel import REPLICATED, SHARDED
from jaxstem.runtime.programs import cached_pmap


def test_the_cache_lies_where_caches_lie(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "jaxstem" / "libraries"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "jaxstem" / "libraries"


@pytest.mark.parametrize("damage", ["none", "truncated", "rubbish", "missing"])
def test_what_is_damaged_counts_as_none(tmp_path, damage):
    path = tmp_path / "folder" / "thing.bin"
    thing = {"a": np.arange(5), "b": "text"}
    keep(path, thing)
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage != "none":
        path.write_bytes(whole[: len(whole) // 2] if damage == "truncated" else b"rubbish" * 9)
    found = recall(path)
    if damage == "none":
        np.testing.assert_array_equal(found["a"], thing["a"])
        assert [file.name for file in path.parent.iterdir()] == ["thing.bin"]
    else:
        assert found is None


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.warns(UserWarning, match=r"file/thing\.bin: cannot be kept"):
        keep(tmp_path / "file" / "thing.bin", 1)


def test_the_code_belongs_to_the_content(monkeypatch, tmp_path):
    """Another text of any module is another content."""
    source = tmp_path / "jaxstem"
    source.mkdir()
    for name in ("kept.py", "refine.py"):
        (source / name).write_text("1")
    monkeypatch.setattr(cache, "__file__", str(source / "kept.py"))
    before = content_key(written_by.__wrapped__())
    assert content_key(written_by.__wrapped__()) == before
    (source / "refine.py").write_text("2")
    assert content_key(written_by.__wrapped__()) != before


@pytest.fixture(scope="module")
def model(copper):
    """A model whose parameters nobody asks for."""
    return Model(ModelConfig(width=16, n_disks=8), (copper,), None)


def step_of(counted, factor=2.0):
    def step(given, x):
        counted.append(x.shape)
        mean = jax.lax.pmean(x.mean(), "data")
        return {"y": factor * x + given, "mean": jnp.full(len(x), mean)}

    return step


def check(program, x):
    found = program(np.float32(1), x)
    np.testing.assert_allclose(found["y"], 2 * x + 1, rtol=1e-6)
    # a mean of numbers of either sign may come close to zero
    np.testing.assert_allclose(found["mean"], np.full(len(x), x.mean()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n_devices", [1, 8])
def test_a_kept_program_is_loaded_and_not_traced(tmp_path, rng, n_devices):
    """With the same answers, on one device and on eight, also where the file is damaged."""
    mesh = parallel.make_mesh(jax.devices()[:n_devices])
    specs = ((REPLICATED, SHARDED), SHARDED)
    x, longer = (rng.normal(size=(16, n)).astype(np.float32) for n in (3, 4))
    traced = []

    def kept_program(content=0, folder=tmp_path):
        return cached_pmap(step_of(traced), mesh, *specs, {"content": content}, folder)

    first = kept_program()
    check(first, x)
    check(first, x)
    assert len(traced) == len(list(tmp_path.iterdir())) == 1
    again = kept_program()
    check(again, x)
    check(again, rng.normal(size=(16, 3)).astype(np.float32))
    assert len(traced) == 1
    check(again, longer)  # other shapes are another program
    check(kept_program(content=1), x)
    assert len(traced) == len(list(tmp_path.iterdir())) == 3
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:-100])
    check(kept_program(), x)
    assert len(traced) == 4
    check(kept_program(), x)
    assert len(traced) == 4
    check(kept_program(folder=None), x)
    assert len(traced) == 5 and len(list(tmp_path.iterdir())) == 3


def test_a_program_that_jax_has_already_is_kept_whole(tmp_path, rng):
    """What jax loads from its own cache can be stored in part only, and would not run."""
    mesh = parallel.make_mesh(jax.devices()[:1])
    specs = ((REPLICATED, SHARDED), SHARDED)
    x = rng.normal(size=(8, 5)).astype(np.float32)
    traced = []
    for content in range(2):  # the second one's program is that of the first, to the letter
        program = cached_pmap(step_of(traced), mesh, *specs, {"content": content}, tmp_path)
        check(program, x)
    assert len(list(tmp_path.iterdir())) == 2
    for content in range(2):
        check(cached_pmap(step_of(traced), mesh, *specs, {"content": content}, tmp_path), x)
    assert len(traced) == 2


@pytest.mark.parametrize("how", ["environment", "jax"])
def test_settings_of_the_compiler_are_told_apart(tmp_path, rng, monkeypatch, how):
    mesh = parallel.make_mesh(jax.devices()[:1])
    specs = ((REPLICATED, SHARDED), SHARDED)
    x = rng.normal(size=(8, 3)).astype(np.float32)
    check(cached_pmap(step_of([]), mesh, *specs, {}, tmp_path), x)
    if how == "environment":
        monkeypatch.setenv("XLA_FLAGS_OF_ANOTHER_RUN", "1")
        check(cached_pmap(step_of([]), mesh, *specs, {}, tmp_path), x)
    else:
        with jax.default_matmul_precision("high"):
            check(cached_pmap(step_of([]), mesh, *specs, {}, tmp_path), x)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_program_that_cannot_be_stored_runs_all_the_same(tmp_path, rng, monkeypatch):
    def refuse(compiled):
        raise NotImplementedError("this device stores nothing")

    monkeypatch.setattr(programs.serialize_executable, "serialize", refuse)
    mesh = parallel.make_mesh(jax.devices()[:1])
    specs = ((REPLICATED, SHARDED), SHARDED)
    program = cached_pmap(step_of([]), mesh, *specs, {}, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(program, rng.normal(size=(8, 3)).astype(np.float32))
    assert not list(tmp_path.iterdir())


def test_whatever_decides_a_prediction_is_in_its_content(model, monkeypatch):
    reference = content_key(predict_content(model, InferConfig()))
    (material,) = model.materials
    turned = replace(material, grid=np.roll(material.grid, 1, axis=1))
    warmer = replace(material, u_iso=material.u_iso + 0.01)
    models = [
        replace(model, materials=(turned,)),
        replace(model, materials=(warmer,)),
        replace(model, config=replace(model.config, width=2 * model.config.width)),
        replace(model, matching=replace(model.matching, sureness=0.1)),
    ]
    config = InferConfig()
    likelihood = replace(config.rules.likelihood, semi_angle=0.5)
    configs = [
        InferConfig(refine="none"),
        InferConfig(refine="full"),
        InferConfig(precision="bfloat16"),
        InferConfig(chunk=2),
        InferConfig(prior_weight=0.1),
        replace(config, score=replace(config.rules, likelihood=likelihood)),
    ]
    keys = [content_key(predict_content(m, config)) for m in models]
    keys += [content_key(predict_content(model, c)) for c in configs]
    assert len({reference, *keys}) == 1 + len(models) + len(configs)
    # what decides the shapes alone, or nothing
    for same in (
        InferConfig(lengths=(8,)),
        InferConfig(least=3),
        InferConfig(cache=default_cache()),
    ):
        assert content_key(predict_content(model, same)) == reference


def test_kept_tables_are_those_that_were_made(model, tmp_path, monkeypatch):
    config = InferConfig(cache=tmp_path)
    content = predict_content(model, config)
    made = cached_tables(model, config, content)
    monkeypatch.setattr(step, "phase_tables", None)  # must not be called again
    for one, other in zip(
        jax.tree.leaves(made),
        jax.tree.leaves(cached_tables(model, config, content)),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


def test_a_kept_program_finds_its_linear_algebra(tmp_path):
    """In a process that lowers nothing: there LAPACK's routines were once not looked up."""
    script = f"""
import sys, jax, jax.numpy as jnp, numpy as np
from pathlib import Path
from jaxstem import parallel, programs
kept = programs.kept_pmap(
    lambda x: jnp.linalg.eigvalsh(x), parallel.make_mesh(jax.devices()[:1]),
    (parallel.SHARDED,), parallel.SHARDED, {{}}, Path({str(tmp_path)!r}),
)
if sys.argv[1] == "again":
    programs._made = None
print(np.asarray(kept(np.diag(np.float32([2, 1]))[None])))
"""
    for when in ("first", "again"):
        found = subprocess.run(
            [sys.executable, "-c", script, when], capture_output=True, text=True, check=False
        )
        assert (found.returncode, found.stdout) == (0, "[[1. 2.]]\n"), found.stderr
