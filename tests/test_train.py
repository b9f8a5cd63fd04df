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
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstem.app.main import main
from jaxstem.diffraction.material import make_material
from jaxstem.diffraction.two_beam import two_beam
from jaxstem.errors import InputError
from jaxstem.network import losses
from jaxstem.network.model import MODEL_FILES, build_network, load_model
from jaxstem.network.transformer import ModelConfig
from jaxstem.runtime import parallel
from jaxstem.training import checkpoint, loop, step, validation
from jaxstem.training.acquisition import CLEAN
from jaxstem.training.config import TrainConfig, preset_config
from jaxstem.training.library import Library, TwoBeam, sample_pattern, zone_axis_orientations
from jaxstem.training.loop import Stopped, seconds_per_step, train
from jaxstem.training.patterns import (
    EXTRA_DISKS,
    MOST_IN_VACUUM,
    Sources,
    draw_position,
    make_sources,
    simulate_batch,
)
from jaxstem.training.step import (
    GROUP,
    LENGTHS,
    apply_with_dropout,
    in_groups,
    init_state,
    learning_rate_schedule,
    make_optimiser,
    make_train_step,
)
from jaxstem.training.validation import make_validation

STEPS = 60


@pytest.fixture(scope="module", autouse=True)
def step_programs(quick_compile, light_acquisition):
    """The jitted training steps made in this module; settings that only the loop reads share one"""
    made = {}
    make_train_step, make_validation = make_train_step, make_validation

    def memo(make, name, network, materials, config, *rest):
        shared = replace(config, steps=0, minutes=0.0, seed=0, physics="two_beam")
        mesh = next((r.size for r in rest if isinstance(r, jax.sharding.Mesh)), None)
        found = (name, repr(shared), mesh)
        if found not in made:
            made[found] = make(network, materials, config, *rest)
        return made[found]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "make_train_step", lambda *args: memo(make_train_step, "step", *args))
        patch.setattr(
            validation, "make_validation", lambda *args: memo(make_validation, "validation", *args)
        )
        patch.setattr(step, "init_state", memoised_init(init_state))
        yield made


def memoised_init(init_state):
    compiled = cache(lambda network, optimiser: jax.jit(partial(init_state, network, optimiser)))
    optimisers = cache(lambda: make_optimiser(TrainConfig()))
    return lambda network, _, seed, total: compiled(network, optimisers())(seed, total)


@pytest.fixture(scope="module")
def config(tiny):
    return replace(tiny, steps=STEPS, batch=32, n_validation=64)


@pytest.fixture(scope="module")
def one_device():
    return parallel.make_mesh(jax.devices()[:1])


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
    assert [row["step"] for row in found] == list(range(STEPS // 10, STEPS + 1, STEPS // 10))
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
    make = make_train_step

    def after(number):
        def made(*arguments):
            step = make(*arguments)

            def stepped(state, *rest):
                result = step(state, *rest)
                if int(result[0].step) == number:
                    os.kill(os.getpid(), signal.SIGTERM)
                return result

            return stepped

        monkeypatch.setattr(step, "make_train_step", made)

    return after


@pytest.mark.parametrize("number", [1, 7, 12])
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
    assert len(rows(tmp_path / "stopped")) == number // (STEPS // 10)
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
    copper = Path(__file__).parent / "fixtures" / "Cu.cif"
    assert main(["train", "--cif", str(copper), "--out", str(tmp_path / "model")]) == 143
    said = capsys.readouterr()
    warning, sentence = said.err.splitlines()
    assert said.out == "" and warning == "jaxstem: a checkpoint is damaged"
    assert "stopped after step 7 of 20, by SIGTERM" in sentence and "same command" in sentence


def test_long_intervals_are_checkpointed_by_the_clock(go, config, tmp_path, monkeypatch):
    """Also between validations, and without a row of their own."""
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
    short = replace(config, steps=10)
    go(short, tmp_path / "run", stop_after=2)
    path = tmp_path / "run" / "checkpoints" / "2" / "notes" / "metadata"
    notes = json.loads(path.read_text())
    path.write_text(json.dumps(notes | {"seconds": 5000.0}))
    assert go(short, tmp_path / "run").record["seconds"] > 5000
    assert [row["seconds"] > 5000 for row in rows(tmp_path / "run")] == [False] * 2 + [True] * 8


def test_interrupted_run_guards_its_folder(go, config, tmp_path):
    out = tmp_path / "started"
    go(config, out, stop_after=6)
    first = rows(out)
    with pytest.raises(InputError, match="other settings"):
        go(replace(config, seed=9), out)
    assert rows(out) == first
    go(replace(config, seed=9), out, overwrite=True, stop_after=6)
    found = rows(out)
    assert [row["step"] for row in found] == [6] and found[0]["loss"] != first[0]["loss"]


def test_overwrite_replaces_a_finished_model(go, config, tmp_path):
    out = tmp_path / "again"
    short = replace(config, steps=2)
    go(short, out)
    go(replace(short, seed=1), out, overwrite=True)
    assert load_model(out).record["config"]["seed"] == 1
    assert [row["step"] for row in rows(out)] == [1, 2]


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
    step = make_train_step(network, [copper], config, optimiser, one_device)
    state = jax.device_put(init_state(network, optimiser, 0, 20), everywhere)
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


def test_resume_on_eight_devices(go, config, copper, tmp_path, monkeypatch):
    """State comes back onto every device of the mesh, also one of another size than before."""
    seen = []

    def step(state, key, source):
        seen.append(state)
        return state._replace(step=state.step + 1), jnp.zeros(())

    monkeypatch.setattr(step, "make_train_step", lambda *_: step)
    monkeypatch.setattr(validation, "make_validation", lambda *_: lambda _: {"val_median_deg": 1.0})
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


def test_learning_rate_warms_up_and_falls(config):
    rate = (
        np.array(
            [
                learning_rate_schedule(config, jnp.asarray(s), jnp.asarray(1000))
                for s in (0, 24, 49, 50, 525, 999, 1000)
            ]
        )
        / config.learning_rate
    )
    np.testing.assert_allclose(rate[:4], [0.02, 0.5, 1.0, 1.0], atol=1e-3)
    assert rate[4] == pytest.approx(0.505, abs=0.01)
    np.testing.assert_allclose(rate[5:], 0.01, atol=1e-3)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_groups_of_a_length_give_the_gradient_of_the_batch(copper, config, key, dropout):
    config = replace(config, model=replace(config.model, dropout=dropout))
    network = build_network(config.model, [copper])
    params = init_state(network, make_optimiser(config), 1, 1).params
    loss_fn, space, index = losses.batched(config.loss_name), copper.space(), jnp.arange(500, 628)
    batch = jax.jit(simulate_batch, static_argnums=(3, 4))(
        key, index, make_sources([copper], config), config, copper.k_max
    )
    few = jnp.arange(12) < 1 + index[:, None] * 7 % 12  # so that groups have several lengths
    batch = batch._replace(disks=batch.disks._replace(mask=batch.disks.mask & few))
    used = np.sort(np.asarray(batch.disks.mask).sum(1)).reshape(-1, GROUP).max(1)
    assert len(set(np.searchsorted(LENGTHS, used))) == 3

    def loss(params, batch, index):
        output = apply_with_dropout(network, params, batch, key, index)
        return loss_fn(output, batch.label, space).mean()

    differentiate = partial(jax.value_and_grad(loss), params)
    whole = jax.jit(differentiate)(batch, index)
    grouped = jax.jit(partial(in_groups, differentiate))(batch, index)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(whole[1]))
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(grouped), strict=True):
        closeness = 2e-5 * np.abs(one).max() + 1e-6 * largest
        np.testing.assert_allclose(one, other, rtol=0, atol=closeness)


def test_presets():
    paper = preset_config("paper")
    assert (paper.batch, paper.learning_rate) == (1024, 7e-5)
    assert paper.model.head == "matrix" and paper.loss_name == "geodesic"
    assert preset_config("default").loss_name == "grid_cross_entropy"


def test_patterns_belong_to_their_orientations(copper, config, key):
    """A pattern of the source is the two-beam pattern of the orientation that comes with it."""
    (source,) = make_sources([copper], config).phases
    assert isinstance(source, TwoBeam)
    disks, orientation = jax.jit(lambda k: sample_pattern(k, source, 12))(key)
    low, high = np.exp(source.log_thickness)
    thickness = np.geomspace(low, high, 4000)
    qx, qy, intensity = two_beam(
        jnp.tile(orientation, (4000, 1, 1)), source.reflectors, source.wavelength, thickness
    )
    position = np.stack([qx[0], qy[0]], axis=-1)
    found = np.stack([disks.qx, disks.qy], axis=-1)
    distance = np.linalg.norm(found[:, None] - position, axis=-1)
    assert distance.min(axis=1).max() < 1e-5
    of_disks = np.asarray(intensity)[:, distance.argmin(axis=1)]
    mismatch = np.abs(of_disks - np.asarray(disks.intensity)).max(axis=1)
    assert mismatch.min() < 0.02


@pytest.fixture(scope="module")
def two(copper, crystals):
    """Copper and magnesium: libraries of different sizes."""
    return copper, make_material(crystals["Mg"], 300.0, 1.5, 20.0, 0.0)


def drawn(key, n, sources, no_crystal, overlap=0.0):
    """Positions before acquisition, of 12 disks where the source does not give more."""
    config = TrainConfig(
        model=ModelConfig(n_disks=12 - EXTRA_DISKS),
        acquisition=replace(CLEAN, overlap=overlap),
        no_crystal=no_crystal,
    )
    draw = jax.vmap(lambda k: draw_position(k, sources, config, 1.5))
    disks, label = jax.jit(draw)(jax.random.split(key, n))
    return jax.tree.map(np.asarray, disks), np.asarray(label.phase), np.asarray(label.orientation)


def test_every_phase_is_drawn_as_often_and_some_positions_are_empty(two, config, key):
    disks, phase, orientation = drawn(key, 6000, make_sources(two, config), 0.2)
    share = np.bincount(phase, minlength=3) / 6000
    np.testing.assert_allclose(share, [0.4, 0.4, 0.2], atol=0.035)
    # what is drawn of one phase does not depend on the phase
    for p in (0, 1):
        assert np.abs(orientation[phase == p].mean(axis=0)).max() < 0.1
    assert (disks.mask[phase < 2].sum(axis=1) == 12).all()
    in_vacuum = disks.mask[phase == 2].sum(axis=1)
    assert (in_vacuum == 0).any() and (in_vacuum >= 4).any()
    assert in_vacuum.mean() == pytest.approx(MOST_IN_VACUUM / 2, abs=0.25)


def test_disks_of_a_pattern_are_its_phases(two, config, key):
    """Each disk of a pattern lies on a reflection of the crystal and orientation in the label."""
    disks, phase, orientation = drawn(key, 60, make_sources(two, config), 0.1)
    misfit = np.full((2, 60), np.inf)
    for p, m in enumerate(two):
        g_lab = np.asarray(m.reflectors().g) @ orientation
        found = np.stack([disks.qx, disks.qy], axis=-1)
        distance = np.linalg.norm(found[:, :, None] - g_lab[:, None, :, :2], axis=-1).min(axis=2)
        misfit[p] = np.where(disks.mask, distance, 0).max(axis=1)
    for p in (0, 1):
        assert misfit[p][phase == p].max() < 1e-4
        assert np.median(misfit[1 - p][phase == p]) > 0.01


def test_a_second_grain_leaves_the_label_to_the_first(two, config, key):
    """Its disks come on top, weaker; that they may be another phase's is the point."""
    sources = make_sources(two, config)
    pure, phase, orientation = drawn(key, 300, sources, 0.1)
    mixed, phase_mixed, orientation_mixed = drawn(key, 300, sources, 0.1, overlap=0.5)
    np.testing.assert_array_equal(phase, phase_mixed)
    np.testing.assert_array_equal(orientation, orientation_mixed)
    more = mixed.mask.sum(axis=1) > pure.mask.sum(axis=1)
    assert 0.3 < more[phase < 2].mean() < 0.7
    first = mixed.intensity[phase < 2][:, :12].sum(axis=1)
    second = mixed.intensity[phase < 2][:, 12:].sum(axis=1)
    assert np.median(second[more[phase < 2]] / first[more[phase < 2]]) < 1


def test_without_empty_positions_none_is_drawn(two, config, key):
    _, phase, _ = drawn(key, 500, make_sources(two, config), 0.0)
    assert set(phase) == {0, 1}


def test_libraries_of_two_phases_have_different_sizes(two, key):
    """Their patterns still come in one shape, padded."""
    sources = []
    for n_axes, n_beams, m in zip((40, 25), (16, 9), two, strict=True):
        draw = jax.random.split(jax.random.key(n_axes), 2)
        shape = (n_axes, n_beams)
        qx, qy = jax.random.uniform(draw[0], (2, *shape), minval=-1, maxval=1)
        sources.append(
            Library(
                zone_axis_orientations(draw[1], m.operations, n_axes)[:n_axes],
                qx[:n_axes],
                qy[:n_axes],
                jnp.ones(shape, bool),
                jnp.full((n_axes, 3, n_beams), 0.1 * n_beams, jnp.float16),
            )
        )
    n_axes = min(len(s.orientation) for s in sources)
    assert n_axes >= 20
    disks, phase, _ = drawn(key, 200, Sources(tuple(sources), None), 0.0)
    for p, n_beams in enumerate((16, 9)):
        assert (disks.mask[phase == p].sum(axis=1) == n_beams).all()
        of_phase = disks.intensity[phase == p][disks.mask[phase == p]]
        np.testing.assert_allclose(of_phase, 0.1 * n_beams, rtol=1e-3)


def test_two_phases_train(two, config, tmp_path, one_device):
    config = replace(config, model=replace(config.model, blocks=0), learning_rate=1e-2)
    options = {"mesh": one_device, "progress": False}
    model = train(two, config, tmp_path / "two", **options)
    found = rows(tmp_path / "two")
    assert found[-1]["loss"] < found[0]["loss"] - 0.2
    assert found[-1]["val_right_phase"] > 0.6
    assert model.phase_names == load_model(tmp_path / "two").phase_names == ("Cu", "Mg")
    with pytest.raises(InputError, match="2 phases are called Cu"):
        train([two[0], two[0]], config, tmp_path / "twins", **options)
    assert not (tmp_path / "twins").exists()


def test_nine_numbers_train_on_two_phases(two, config, tmp_path, one_device):
    network = replace(config.model, head="matrix", blocks=0)
    config = replace(config, model=network, steps=2)
    model = train(two, config, tmp_path / "nine", mesh=one_device, progress=False)
    found = rows(tmp_path / "nine")
    assert 0 < found[-1]["loss"] < 0.9 * np.pi and 0 < found[-1]["val_median_deg"] <= 180
    assert load_model(tmp_path / "nine").network == model.network
