# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs kept for the next run: found again, made anew when what decides them changes."""

import subprocess
import sys
import threading
import warnings
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstem.inference import step
from jaxstem.inference.config import BY_BLOCH_WAVES, InferConfig
from jaxstem.inference.step import phase_table, predict_content
from jaxstem.network.model import Model
from jaxstem.network.transformer import ModelConfig
from jaxstem.runtime import parallel, programs
from jaxstem.runtime.cache import content_key, default_cache
from jaxstem.runtime.parallel import REPLICATED, SHARDED
from jaxstem.runtime.programs import cached_pmap


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


@pytest.mark.filterwarnings("ignore:.*it is made anew")
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


def test_what_is_needed_next_is_made_meanwhile(tmp_path, rng):
    """Once, though two threads want it, and only while something is compiled; faults in it are not
    those of the program that is asked for.
    """
    mesh = parallel.make_mesh(jax.devices()[:1])
    specs = ((REPLICATED, SHARDED), SHARDED)
    x = rng.normal(size=(8, 3)).astype(np.float32)
    traced, threads, ended = [], [], threading.Event()

    def after():
        return cached_pmap(step_of(traced), mesh, *specs, {"content": 1}, tmp_path)

    def meanwhile(given, same):
        np.testing.assert_array_equal(same, x)
        threads.append(threading.current_thread())
        check(after(), same)
        ended.set()
        raise ValueError("a fault")

    def first(folder=tmp_path):
        return cached_pmap(step_of([]), mesh, *specs, {}, folder, meanwhile=meanwhile)

    check(first(), x)
    check(after(), x)
    assert ended.wait(60) and len(traced) == len(threads) == 1
    assert threads[0] is not threading.current_thread()
    check(first(), x)  # which is loaded
    check(first(None), x)  # which is not kept
    assert len(threads) == 1


def test_an_option_that_the_compiler_has_no_more_is_left_out(monkeypatch, rng):
    def refuse(*_, compiler_options=None, **given):
        if compiler_options:
            raise jax.errors.JaxRuntimeError("No such compile option")
        return jit(*_, **given)

    mesh, jit = parallel.make_mesh(jax.devices()[:1]), jax.jit
    x = rng.normal(size=(8, 3)).astype(np.float32)
    specs = ((REPLICATED, SHARDED), SHARDED)
    parallel._sooner.cache_clear()
    check(parallel.pmap(step_of([]), mesh, *specs, soon=True), x)
    assert parallel._sooner() is not None
    parallel._sooner.cache_clear()
    monkeypatch.setattr(parallel.jax, "jit", refuse)
    check(parallel.pmap(step_of([]), mesh, *specs, soon=True), x)
    assert parallel._sooner() is None
    parallel._sooner.cache_clear()


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
    warmer = replace(material, specimen=replace(material.specimen, u_iso=0.01))
    models = [
        replace(model, materials=(turned,)),
        replace(model, materials=(warmer,)),
        replace(model, config=replace(model.config, width=2 * model.config.width)),
        replace(model, matching=replace(model.matching, sureness=0.1)),
    ]
    config = InferConfig()
    likelihood = replace(config.scoring.likelihood, semi_angle=0.5)
    configs = [
        InferConfig(refine="none"),
        InferConfig(refine="full"),
        InferConfig(precision="bfloat16"),
        InferConfig(chunk=2),
        InferConfig(prior_weight=0.1),
        replace(config, score=replace(config.scoring, likelihood=likelihood)),
    ]
    keys = [content_key(predict_content(m, config)) for m in models]
    keys += [content_key(predict_content(model, c)) for c in configs]
    assert len({reference, *keys}) == 1 + len(models) + len(configs)
    renamed = replace(material, crystal=replace(material.crystal, name="other"))
    same = predict_content(replace(model, materials=(renamed,)), config)
    assert content_key(same) == reference
    # what decides the shapes alone, or nothing
    for same in (
        InferConfig(lengths=(8,)),
        InferConfig(batch=99),
        InferConfig(least=3),
        InferConfig(cache=default_cache()),
    ):
        assert content_key(predict_content(model, same)) == reference


@pytest.mark.parametrize("refine", ["none", "fast", "full"])
def test_kept_tables_are_those_that_were_made(copper, tmp_path, monkeypatch, refine):
    made = phase_table(copper, refine, None)
    first = phase_table(copper, refine, tmp_path)
    for name in ("_mode_tables", "candidate_tables"):
        monkeypatch.setattr(step, name, None)  # must not be called again
    again = phase_table(copper, refine, tmp_path)
    assert jax.tree.structure(first) == jax.tree.structure(again)
    for found in (first, again):
        for one, other in zip(jax.tree.leaves(made), jax.tree.leaves(found), strict=True):
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype
    assert (again.sibling is None) == (refine not in BY_BLOCH_WAVES)
    phase_table(replace(copper, crystal=replace(copper.crystal, name="other")), refine, tmp_path)
    with pytest.raises(TypeError):
        phase_table(copper, "fast" if refine == "none" else "none", tmp_path)


def test_a_kept_program_finds_its_linear_algebra(tmp_path):
    """In a process that lowers nothing: there LAPACK's routines were once not looked up."""
    script = f"""
import sys, jax, jax.numpy as jnp, numpy as np
from pathlib import Path
from jaxstem.runtime import parallel, programs
kept = programs.cached_pmap(
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
