# SPDX-License-Identifier: GPL-3.0-or-later
"""The training loop: it learns, resumes exactly, guards its folder, and compiles once.

The loop's two programs are compiled once for all tests here; everything else is the loop itself.
"""

import json
import os
import shutil
import signal
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import FIXTURES

from jaxstem.app.main import main
from jaxstem.errors import InputError
from jaxstem.network.folders import MODEL_FILES
from jaxstem.network.heads import HEADS
from jaxstem.network.losses import DEFAULT_LOSS
from jaxstem.network.model import build_network, load_model
from jaxstem.runtime import parallel
from jaxstem.training import checkpoint, loop
from jaxstem.training.config import TrainConfig
from jaxstem.training.loop import Stopped, seconds_per_step, train
from jaxstem.training.patterns import (
    make_sources,
)
from jaxstem.training.step import (
    make_optimiser,
)

STEPS = 60
CHECKS = 5
"""Validations of a run, each with a checkpoint."""


@pytest.fixture(scope="module", autouse=True)
def step_programs(quick_compile, light_acquisition):
    """The jitted training steps made in this module; settings that only the loop reads share one"""
    made = {}
    make_train_step, make_validation = loop.make_train_step, loop.make_validation

    def memo(make, name, network, materials, config, *rest):
        shared = replace(config, steps=0, minutes=0.0, seed=0, physics="two_beam")
        mesh = next((r.size for r in rest if isinstance(r, jax.sharding.Mesh)), None)
        found = (name, repr(network), repr(shared), mesh)
        if found not in made:
            made[found] = make(network, materials, config, *rest)
        return made[found]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_CHECKS", CHECKS)
        patch.setattr(loop, "make_train_step", lambda *args: memo(make_train_step, "step", *args))
        patch.setattr(
            loop, "make_validation", lambda *args: memo(make_validation, "validation", *args)
        )
        patch.setattr(loop, "init_state", memoised_init(loop.init_state))
        yield made


def memoised_init(init_state):
    @cache
    def compiled(network, optimiser, keep):
        return jax.jit(lambda seed, total: init_state(network, optimiser, seed, total, keep))

    optimisers = cache(lambda: make_optimiser(TrainConfig()))
    return lambda network, _, seed, total, keep="last": compiled(network, optimisers(), keep)(
        seed, total
    )


@pytest.fixture(scope="module")
def config(tiny):
    """Without attention: the loop does not care, and its programs compile twice as fast."""
    network = replace(tiny.model, blocks=0)
    return replace(tiny, model=network, steps=STEPS, batch=32, n_validation=64, learning_rate=1e-2)


@pytest.fixture(scope="module")
def go(copper, one_device):
    """`train` of the copper material on one device, without a bar."""
    return lambda config, out, **options: train(
        [copper], config, out, **{"mesh": one_device, "progress": False} | options
    )


@pytest.fixture(scope="module")
def finished(go, config, tmp_path_factory):
    """A finished run's model and folder."""
    folder = tmp_path_factory.mktemp("run") / "model"
    return go(config, folder), folder


def checkpointed(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_loss_falls(finished):
    _, folder = finished
    found = rows(folder)
    assert found[-1]["loss"] < found[0]["loss"] - 0.2
    assert found[-1]["val_loss"] < found[0]["val_loss"]


def test_metrics_rows(finished, config):
    _, folder = finished
    found = rows(folder)
    assert [row["step"] for row in found] == list(
        range(STEPS // CHECKS, STEPS + 1, STEPS // CHECKS)
    )
    for row in found:
        assert row["patterns"] == row["step"] * config.batch
        assert np.isfinite(list(row.values())).all()
        assert (
            0 <= row["val_within_5deg"] <= 1
            and 0 <= row["val_right_phase"] <= 1
            and 0 <= row["val_best16_within_reach"] <= 1
        )
        assert 0 < row["val_median_deg"] < 63  # no two orientations of a cube are farther apart
    assert np.all(np.diff([row["seconds"] for row in found]) >= 0)


def test_folder_holds_the_model(finished, config):
    model, folder = finished
    assert set(MODEL_FILES) | {"run.json", "metrics.jsonl", "checkpoints"} == {
        path.name for path in folder.iterdir()
    }
    loaded = load_model(folder)
    assert loaded.config == config.model
    assert loaded.record["total_steps"] == STEPS
    assert loaded.record["config"]["seed"] == config.seed
    for ours, trained in zip(
        jax.tree.leaves(loaded.params), jax.tree.leaves(model.params), strict=True
    ):
        np.testing.assert_allclose(ours, trained, rtol=1e-3, atol=1e-4)


def test_finished_folder_is_not_overwritten(finished, go, config):
    _, folder = finished
    before = (folder / "model.json").read_bytes()
    with pytest.raises(InputError, match="finished model"):
        go(config, folder)
    assert (folder / "model.json").read_bytes() == before


def test_resumed_run_is_the_uninterrupted_one(finished, go, config, tmp_path):
    model, folder = finished
    out = tmp_path / "resumed"
    go(config, out, stop_after=STEPS // 2)
    assert not (out / "model.json").exists()
    resumed = go(config, out)
    jax.tree.map(np.testing.assert_array_equal, resumed.params, model.params)
    for row in (found := rows(out)) + (expected := rows(folder)):
        del row["seconds"]
    assert found == expected


@pytest.fixture
def stopping(step_programs, monkeypatch):
    """Has this process send itself SIGTERM when a step of that number is done."""
    make = loop.make_train_step

    def after(number):
        def made(*arguments):
            step = make(*arguments)

            def stepped(state, *rest):
                result = step(state, *rest)
                if int(result[0].step) == number:
                    os.kill(os.getpid(), signal.SIGTERM)
                return result

            return stepped

        monkeypatch.setattr(loop, "make_train_step", made)

    return after


@pytest.mark.parametrize("number", [pytest.param(1, marks=pytest.mark.slow), 15, 12])
def test_a_stopped_run_resumes_as_the_uninterrupted_one(
    number, finished, go, config, tmp_path, stopping
):
    """Between validations, or right at one; rows are those of the run that was not stopped."""
    model, folder = finished
    before = signal.getsignal(signal.SIGTERM)
    stopping(number)
    with pytest.raises(Stopped, match=f"step {number} of {STEPS}"):
        go(config, tmp_path / "stopped")
    assert signal.getsignal(signal.SIGTERM) == before
    assert checkpointed(tmp_path / "stopped")[-1] == number
    assert len(rows(tmp_path / "stopped")) == number // (STEPS // CHECKS)
    resumed = go(config, tmp_path / "stopped")
    jax.tree.map(np.testing.assert_array_equal, resumed.params, model.params)
    for row in (found := rows(tmp_path / "stopped")) + (expected := rows(folder)):
        del row["seconds"]
    assert found == expected


def test_a_signal_after_the_last_step_does_not_spoil_the_run(go, config, tmp_path, stopping):
    stopping(2)
    go(replace(config, steps=2), tmp_path / "done")
    assert (tmp_path / "done" / "model.json").exists()


def test_training_in_a_thread_leaves_signals_alone(go, config, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with ThreadPoolExecutor() as pool:
        pool.submit(go, replace(config, steps=2), tmp_path / "thread").result()
    assert (tmp_path / "thread" / "model.json").exists()
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_command_says_how_to_resume(tmp_path, monkeypatch, capsys):
    def stopped(*args, **options):
        warnings.warn("a checkpoint is damaged", stacklevel=1)
        raise Stopped(7, 20)

    monkeypatch.setattr(loop, "train", stopped)
    copper = FIXTURES / "Cu.cif"
    assert main(["train", "--cif", str(copper), "--out", str(tmp_path / "model")]) == 143
    said = capsys.readouterr()
    warning, sentence = said.err.splitlines()
    assert said.out == "" and warning == "jaxstem: a checkpoint is damaged"
    assert "stopped after step 7 of 20, by SIGTERM" in sentence and "same command" in sentence


def test_long_intervals_are_checkpointed_by_the_clock(go, config, tmp_path, monkeypatch):
    """Also between validations, and without a row of their own."""
    monkeypatch.setattr(loop, "_CHECKS", 10)
    monkeypatch.setattr(loop, "LOOK", 3)
    monkeypatch.setattr(loop, "CHECKPOINT_MINUTES", 0.0)
    saved = []
    save = checkpoint.save
    monkeypatch.setattr(
        checkpoint,
        "save",
        lambda manager, step, *rest: saved.append(step) or save(manager, step, *rest),
    )
    go(replace(config, steps=STEPS), tmp_path / "clock", stop_after=13)
    assert saved == [3, 6, 9, 12, 13]
    assert [row["step"] for row in rows(tmp_path / "clock")] == [6, 12]
    monkeypatch.setattr(loop, "CHECKPOINT_MINUTES", 1e6)
    go(replace(config, steps=STEPS), tmp_path / "clock", stop_after=20)
    assert saved[5:] == [18, 20]


def test_damaged_checkpoints_do_not_change_the_run(finished, go, config, tmp_path):
    model, folder = finished
    out = tmp_path / "damaged"
    go(config, out, stop_after=STEPS // 2)
    newest = out / "checkpoints" / str(STEPS // 2)
    shutil.rmtree(newest / "state")
    with pytest.warns(UserWarning, match="damaged"):
        resumed = go(config, out)
    jax.tree.map(np.testing.assert_array_equal, resumed.params, model.params)
    assert [row["step"] for row in rows(out)] == [row["step"] for row in rows(folder)]


def test_seconds_go_on_counting(go, config, tmp_path):
    short = replace(config, steps=CHECKS)
    go(short, tmp_path / "run", stop_after=2)
    path = tmp_path / "run" / "checkpoints" / "2" / "notes" / "metadata"
    notes = json.loads(path.read_text())
    path.write_text(json.dumps(notes | {"seconds": 5000.0}))
    assert go(short, tmp_path / "run").record["seconds"] > 5000
    assert [row["seconds"] > 5000 for row in rows(tmp_path / "run")] == [False] * 2 + [True] * 3


def test_interrupted_run_guards_its_folder(go, config, tmp_path):
    out = tmp_path / "started"
    go(config, out, stop_after=12)
    first = rows(out)
    with pytest.raises(InputError, match="other settings"):
        go(replace(config, seed=9), out)
    assert rows(out) == first
    go(replace(config, seed=9), out, overwrite=True, stop_after=12)
    found = rows(out)
    assert [row["step"] for row in found] == [12] and found[0]["loss"] != first[0]["loss"]


def test_overwrite_replaces_a_finished_model(go, config, tmp_path):
    out = tmp_path / "again"
    short = replace(config, steps=2)
    go(short, out)
    go(replace(short, seed=1), out, overwrite=True)
    assert load_model(out).record["config"]["seed"] == 1
    assert [row["step"] for row in rows(out)] == [1, 2]


def test_a_model_stays_until_the_one_that_replaces_it_is_there(go, config, tmp_path):
    """Which is resumed as any other, and is then the finished one."""
    out, other = tmp_path / "again", replace(config, steps=4, seed=1)
    go(replace(config, steps=2), out)
    go(other, out, overwrite=True, stop_after=2)
    assert load_model(out).record["config"]["seed"] == config.seed != 1
    with pytest.raises(InputError, match="other settings"):
        go(replace(other, seed=2), out)
    go(other, out)
    assert load_model(out).record["config"]["seed"] == 1
    assert [row["step"] for row in rows(out)] == [1, 2, 3, 4]
    with pytest.raises(InputError, match="finished model"):
        go(other, out)


def test_seed_decides_the_run(go, config, tmp_path):
    short = replace(config, steps=2)
    models = [go(replace(short, seed=s), tmp_path / f"{i}") for i, s in enumerate((4, 4, 5))]
    leaves = [np.concatenate([x.ravel() for x in jax.tree.leaves(m.params)]) for m in models]
    np.testing.assert_array_equal(leaves[0], leaves[1])
    assert np.abs(leaves[0] - leaves[2]).max() > 0.01


def test_minutes_become_steps(go, config, tmp_path, monkeypatch):
    timed = replace(config, steps=0, minutes=1.0)
    monkeypatch.setattr(loop, "seconds_per_step", lambda *_: 1e9)
    go(timed, tmp_path / "slow", stop_after=1)
    assert json.loads((tmp_path / "slow" / "run.json").read_text())["total_steps"] == 20
    monkeypatch.setattr(loop, "seconds_per_step", lambda *_: 1e-3)
    go(timed, tmp_path / "fast", stop_after=1)
    total = json.loads((tmp_path / "fast" / "run.json").read_text())["total_steps"]
    assert 20_000 < total <= 58_200
    # a resumed run keeps the number that was found
    monkeypatch.setattr(loop, "seconds_per_step", lambda *_: 1e9)
    go(timed, tmp_path / "fast", stop_after=2)
    assert json.loads((tmp_path / "fast" / "run.json").read_text())["total_steps"] == total


def test_measured_time_runs_on_compiled_steps(copper, config, one_device, step_programs):
    """More minutes than the least of steps needs, as measured, and no second compilation."""
    network, optimiser = (
        build_network(config.model, [copper]),
        make_optimiser(config),
    )
    everywhere = jax.NamedSharding(one_device, parallel.REPLICATED)
    source = jax.device_put(make_sources([copper], config), everywhere)
    key = jax.device_put(jax.random.key(0), everywhere)
    step = loop.make_train_step(network, [copper], config, optimiser, one_device)
    state = jax.device_put(loop.init_state(network, optimiser, 0, 20), everywhere)
    calls = []

    def counted(state):
        calls.append(int(state.step))
        return step(state, key, source)

    assert seconds_per_step(counted, state, n=3) > 0
    assert calls == [0, 1, 2, 3]


def test_one_compilation_serves_fresh_and_resumed_runs(finished, step_programs):
    """Every run above went through the same program, whatever its length, seed or beginning."""
    counts = [step._cache_size() for (name, *_), step in step_programs.items() if name == "step"]
    assert counts == [1] * len(counts)


@pytest.mark.slow
def test_resume_on_eight_devices(go, config, copper, tmp_path, monkeypatch):
    """State comes back onto every device of the mesh, also one of another size than before."""
    seen = []

    def step(state, key, source):
        seen.append(state)
        return state._replace(step=state.step + 1), jnp.zeros(())

    checked = "val_loss", "val_median_deg"
    monkeypatch.setattr(loop, "make_train_step", lambda *_: step)
    monkeypatch.setattr(loop, "make_validation", lambda *_: lambda _: dict.fromkeys(checked, 1.0))
    short = replace(config, steps=4)
    go(short, tmp_path / "run", stop_after=2)
    go(short, tmp_path / "run", mesh=parallel.make_mesh(), stop_after=3)
    assert [int(state.step) for state in seen] == [0, 1, 2]
    for leaf in jax.tree.leaves(seen[-1]):
        assert len(leaf.sharding.device_set) == 8 and leaf.is_fully_replicated


def test_batch_must_divide_before_anything_is_written(go, config, tmp_path):
    with pytest.raises(InputError, match="does not divide"):
        go(replace(config, batch=12), tmp_path / "none", mesh=parallel.make_mesh())
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_two_phases_train(two, config, tmp_path, one_device):
    options = {"mesh": one_device, "progress": False}
    model = train(two, config, tmp_path / "two", **options)
    found = rows(tmp_path / "two")
    assert found[-1]["loss"] < found[0]["loss"] - 0.2
    assert found[-1]["val_right_phase"] > 0.6
    assert model.phase_names == load_model(tmp_path / "two").phase_names == ("Cu", "Mg")
    with pytest.raises(InputError, match="2 phases are called Cu"):
        train([two[0], two[0]], config, tmp_path / "twins", **options)
    assert not (tmp_path / "twins").exists()


@pytest.mark.slow
@pytest.mark.parametrize("head", [head for head in HEADS if head != "grid"])
def test_every_head_trains_on_two_phases(two, config, tmp_path, one_device, head):
    """The loss that each head comes with; the model remembers both."""
    config = replace(config.with_loss("", head), steps=2)
    model = train(two, config, tmp_path / "m", mesh=one_device, progress=False)
    found = rows(tmp_path / "m")
    assert np.isfinite(found[-1]["loss"]) and 0 < found[-1]["val_median_deg"] <= 180
    assert found[-1]["val_within_5deg"] <= found[-1]["val_within_5deg_mod_180"]
    loaded = load_model(tmp_path / "m")
    assert loaded.network == model.network and loaded.config.head == head
    assert loaded.record["config"]["loss"] == DEFAULT_LOSS[head]


def test_the_best_validation_is_kept(copper, config, tmp_path, one_device, monkeypatch):
    """Not the last one, and also when the run is resumed in between."""
    config = replace(config, steps=20, keep="best")

    @jax.jit
    def step(state, key, sources):
        ahead = jax.tree.map(lambda x: x + 1, state.params)
        return state._replace(step=state.step + 1, params=ahead), jnp.zeros(())

    def steps_taken(params, fresh):
        return np.subtract(*(np.asarray(jax.tree.leaves(x)[0]) for x in (params, fresh)))

    network = build_network(config.model, [copper])
    fresh = loop.init_state(network, make_optimiser(config), config.seed, 20, "last").params
    loss = lambda params: abs(float(steps_taken(params, fresh).flat[0]) - 12)  # noqa: E731
    checks = lambda params: {"val_loss": loss(params), "val_median_deg": 1.0}  # noqa: E731
    monkeypatch.setattr(loop, "make_train_step", lambda *_: step)
    monkeypatch.setattr(loop, "make_validation", lambda *_: checks)
    options = {"mesh": one_device, "progress": False}
    train([copper], config, tmp_path / "m", stop_after=16, **options)
    model = train([copper], config, tmp_path / "m", **options)
    np.testing.assert_allclose(steps_taken(model.params, fresh), 12, atol=1e-4)
    assert model.record["validation"]["val_loss"] == pytest.approx(0, abs=1e-4)
    last = train([copper], replace(config, keep="last"), tmp_path / "last", **options)
    np.testing.assert_allclose(steps_taken(last.params, fresh), 20, atol=1e-4)
