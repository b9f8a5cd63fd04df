# SPDX-License-Identifier: GPL-3.0-or-later
"""Model folders: round trip, copies, and one clear sentence for each way in which they break."""

import json
import shutil
from dataclasses import replace
from functools import partial

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstem.diffraction.geometry import Disks
from jaxstem.diffraction.material import (
    make_material,
)
from jaxstem.diffraction.settings import Specimen
from jaxstem.errors import InputError
from jaxstem.network.folders import MODEL_FILES, packaged_models
from jaxstem.network.model import (
    NEVER,
    Model,
    build_network,
    load_model,
    save_model,
)
from jaxstem.network.tokens import plain_sight
from jaxstem.network.transformer import init_params

pytestmark = pytest.mark.usefixtures("quick_compile")


def random_params(network):
    """Small numbers in place of those that a network begins with, which take seconds to compile."""
    rng = np.random.default_rng(2)
    shapes = jax.eval_shape(partial(init_params, network), jax.random.key(0))
    return jax.tree.map(lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), shapes)


@pytest.fixture(scope="module")
def model(copper, tiny):
    params = random_params(build_network(tiny.model, [copper]))
    return Model(tiny.model, (copper,), params, {"seed": 3, "validation": {"val_loss": 1.5}})


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "Cu"
    save_model(folder, model)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(saved, tmp_path / "copy of Cu")


def assert_same_material(one, other):
    assert one.crystal.to_dict() == other.crystal.to_dict()
    for name in ("voltage_kv", "k_max", "u_iso", "wavelength", "k_min", "spacing"):
        assert getattr(one, name) == getattr(other, name)
    np.testing.assert_array_equal(one.grid, other.grid)
    np.testing.assert_allclose(one.operations, other.operations, atol=1e-12)


def test_round_trip(model, saved):
    loaded = load_model(saved)
    assert loaded.config == model.config
    assert loaded.record == model.record
    assert_same_material(loaded.materials[0], model.materials[0])
    assert jax.tree.structure(loaded.params) == jax.tree.structure(model.params)
    for ours, original in zip(
        jax.tree.leaves(loaded.params), jax.tree.leaves(model.params), strict=True
    ):
        assert ours.dtype == jnp.float32 and ours.shape == original.shape
        np.testing.assert_allclose(ours, original, rtol=2**-10, atol=1e-6)


def test_loaded_model_answers_alike(model, saved, rng):
    q = rng.uniform(-1, 1, (2, 4, 12)).astype(np.float32)
    disks = Disks(
        q[0], q[1], rng.uniform(0.1, 1, (4, 12)).astype(np.float32), np.ones((4, 12), bool)
    )
    apply = jax.jit(lambda params: model.network.apply({"params": params}, disks))
    np.testing.assert_allclose(apply(model.params), apply(load_model(saved).params), atol=0.02)


def test_folder_is_complete_and_portable(saved, folder):
    assert {path.name for path in saved.iterdir()} == set(MODEL_FILES)
    assert load_model(str(folder)).record["seed"] == 3
    text = (folder / "model.json").read_text()
    assert str(saved) not in text and str(saved.parent) not in text


def test_saving_again_replaces(model, folder):
    save_model(folder, Model(model.config, model.materials, model.params, {"seed": 4}))
    assert load_model(folder).record == {"seed": 4}
    assert {path.name for path in folder.iterdir()} == set(MODEL_FILES)


def refused(folder):
    """The one sentence with which a folder is refused."""
    with pytest.raises(InputError) as caught:
        load_model(folder)
    message = str(caught.value)
    assert str(folder) in message and "\n" not in message
    assert message.endswith(".") and len(message) < 400
    return message


@pytest.mark.parametrize("name", MODEL_FILES)
def test_missing_file(folder, name):
    (folder / name).unlink()
    assert "not a complete jaxstem model" in refused(folder)


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("name", MODEL_FILES)
def test_truncated_file(folder, name):
    truncated(folder / name)
    assert "not a complete jaxstem model" in refused(folder)


@pytest.mark.parametrize("name", MODEL_FILES)
def test_empty_file(folder, name):
    (folder / name).write_bytes(b"")
    refused(folder)


def edited(folder, **changes):
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "other"},
        {"network": {"depth": 3}},
        {"phases": [{"crystal": {"name": "Cu"}, "u_iso": 0.0, "n_cells": 357}]},
        {"phases": []},
        {"voltage_kv": "fast"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_nonsense_description(folder, changes):
    edited(folder, **changes)
    refused(folder)


def test_description_that_is_no_object(folder):
    (folder / "model.json").write_text("[1, 2]\n")
    refused(folder)


@pytest.mark.parametrize("with_fingerprint", [True, False], ids=["fingerprint", "shapes"])
def test_weights_of_another_network(folder, with_fingerprint):
    """Folders of older versions have no fingerprint; their shapes tell."""
    network = description(folder)["network"]
    edited(folder, network=network | {"width": 32})
    if not with_fingerprint:
        edited(folder, fingerprint=None)
    assert "does not fit the network" in refused(folder)


def test_damaged_weights(folder, rng):
    path = folder / "weights.msgpack"
    content = bytearray(path.read_bytes())
    content[-rng.integers(1, 100)] ^= 1 << rng.integers(8)
    path.write_bytes(content)
    assert "weights.msgpack" in refused(folder)


def test_newer_version(folder):
    edited(folder, version=99)
    assert "newer jaxstem" in refused(folder)


@pytest.fixture(scope="module")
def two(copper, crystals):
    """Copper and, on a coarser grid, magnesium: 24 and 12 operations."""
    return copper, make_material(crystals["Mg"], copper.microscope, Specimen(u_iso=0.005), 20.0)


@pytest.mark.parametrize("head", ["grid", "matrix"])
def test_round_trip_of_two_phases(two, tiny, head, tmp_path):
    config = replace(tiny.model, head=head, blocks=0)
    network = build_network(config, two)
    n_cells = sum(len(m.grid) for m in two)
    assert network.n_out == {"grid": n_cells + 1, "matrix": 9 + 2}[head]
    save_model(tmp_path / "two", Model(config, two, random_params(network)))
    loaded = load_model(tmp_path / "two")
    assert loaded.phase_names == ("Cu", "Mg")
    for ours, original in zip(loaded.materials, two, strict=True):
        assert_same_material(ours, original)
    assert loaded.k_min == min(m.k_min for m in two) < two[0].k_min
    assert loaded.network == network
    edited(tmp_path / "two", phases=description(tmp_path / "two")["phases"][:1])
    refused(tmp_path / "two")


def description(folder):
    return json.loads((folder / "model.json").read_text())


def as_version_1(folder):
    """A folder as jaxstem wrote it when it knew one crystal only and no logit for none."""
    found = description(folder)
    (phase,) = found.pop("phases")
    del found["fingerprint"]
    found |= {"version": 1, "crystal": phase["crystal"], "u_iso": phase["u_iso"]}
    (folder / "model.json").write_text(json.dumps(found))
    path = folder / "weights.msgpack"
    params = flax.serialization.msgpack_restore(path.read_bytes())
    if found["network"]["head"] == "grid":
        params["Dense_1"] = {k: x[..., :-1] for k, x in params["Dense_1"].items()}
        params.pop("trust", None)
    path.write_bytes(flax.serialization.msgpack_serialize(params))


def test_version_1_is_read(model, folder, tmp_path, rng):
    """The same cells, and a last logit that never wins; saved again, the same still."""
    as_version_1(folder)
    old = load_model(folder)
    assert_same_material(old.materials[0], model.materials[0])
    q = rng.uniform(-1, 1, (2, 4, 12)).astype(np.float32)
    disks = Disks(q[0], q[1], np.ones((4, 12), np.float32), np.ones((4, 12), bool))
    apply = jax.jit(lambda params: model.network.apply({"params": params}, disks))
    np.testing.assert_allclose(apply(old.params)[:, :-1], apply(model.params)[:, :-1], atol=0.02)
    np.testing.assert_allclose(apply(old.params)[:, -1], NEVER, rtol=1e-3)
    save_model(tmp_path / "new", old)
    again = load_model(tmp_path / "new")
    np.testing.assert_allclose(apply(again.params), apply(old.params), atol=0.02, rtol=1e-3)


def test_networks_of_before_version_4_know_no_reach(copper, tiny, tmp_path, rng):
    """Such a folder says nothing of it, and is read as it was made: no reach changes its answers,
    while those of a network that knows it change.
    """
    q = np.float32(rng.uniform(-1, 1, (2, 4, 12)))
    disks = Disks(*jax.tree.map(jnp.asarray, (*q, np.ones_like(q[0]), np.ones((4, 12), bool))))
    moved = {}
    for knows in (True, False):
        config = replace(tiny.model, blocks=0, knows_reach=knows)
        folder = tmp_path / str(knows)
        params = random_params(build_network(config, [copper]))
        save_model(folder, Model(config, (copper,), params))
        if not knows:
            found = description(folder)
            del found["network"]["knows_reach"], found["fingerprint"]
            (folder / "model.json").write_text(json.dumps(found | {"version": 3}))
        read = load_model(folder)
        assert read.config.knows_reach == knows
        apply = jax.jit(read.network.apply)
        near, far = (
            apply({"params": read.params}, disks, None, plain_sight(disks, reach))
            for reach in (0.8, 1.5)
        )
        moved[knows] = np.abs(np.subtract(near, far)).max()
    assert moved[True] > 1e-3 and moved[False] == 0


def test_version_1_of_nine_numbers_is_read(copper, tiny, tmp_path):
    config = replace(tiny.model, head="matrix", blocks=0)
    params = random_params(build_network(config, [copper]))
    save_model(tmp_path / "nine", Model(config, (copper,), params))
    as_version_1(tmp_path / "nine")
    assert load_model(tmp_path / "nine").network.n_out == 9


def test_an_empty_folder_hides_no_packaged_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("cu", "mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").touch()
    assert load_model("cu").phase_names == ("Cu",)
    lacking = "holds none of model.json, grid.npy, weights.msgpack; train one"
    for name in ("mine", "./cu", tmp_path / "cu"):
        assert lacking in refused(name)
    for sign in ("grid.npy", "run.json"):
        (tmp_path / "cu" / sign).touch()
        assert "not a complete jaxstem model" in refused("cu")
        (tmp_path / "cu" / sign).unlink()


def test_a_folder_with_a_model_wins_over_a_packaged_one(folder, model, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert "cu" in packaged_models()
    assert load_model(folder.rename(folder.parent / "cu").name).record == model.record


def test_unknown_name():
    with pytest.raises(InputError, match="neither a model folder nor a packaged model"):
        load_model("Unobtainium")


def test_packaged_models_load():
    for name in packaged_models():
        assert all(len(m.grid) > 100 for m in load_model(name).materials)


@pytest.mark.parametrize("value", [np.nan, 7.0, np.inf])
def test_a_grid_of_what_are_no_rotations_is_refused(folder, value):
    grid = np.load(folder / "grid.npy")
    grid[3, 1] = value
    np.save(folder / "grid.npy", grid)
    assert "unit quaternions" in refused(folder)
    (folder / "grid.npy").write_bytes(b"\x93NUMPY\x01\x00\x10\x00{'descr': ('<f4 \n")  # no end
    assert "not a complete jaxstem model" in refused(folder)
