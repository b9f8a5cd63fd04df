# SPDX-License-Identifier: GPL-3.0-or-later
"""Model folders: round trip, copies, and one clear sentence for each way in which they break."""

import json
import shutil
from dataclasses import replace

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import constants

from jaxstem.crystal.cell import reflections, symmetry_operations
from jaxstem.diffraction.geometry import Disks
from jaxstem.diffraction.material import (
    MOST_CELLS,
    check_materials,
    inverse_extinction,
    make_material,
)
from jaxstem.errors import InputError
from jaxstem.network.model import (
    MODEL_FILES,
    NEVER,
    Model,
    build_network,
    load_model,
    packaged_models,
    save_model,
)
from jaxstem.network.transformer import init_params

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def model(copper, tiny):
    network = build_network(tiny.model, [copper])
    params = jax.jit(lambda key: init_params(network, key))(jax.random.key(2))
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
    return copper, make_material(crystals["Mg"], 300.0, 1.5, 20.0, 0.005)


@pytest.mark.parametrize("head", ["grid", "matrix"])
def test_round_trip_of_two_phases(two, tiny, head, tmp_path):
    config = replace(tiny.model, head=head, blocks=0)
    network = build_network(config, two)
    n_cells = sum(len(m.grid) for m in two)
    assert network.n_out == {"grid": n_cells + 1, "matrix": 9 + 2}[head]
    params = init_params(network, jax.random.key(0))
    save_model(tmp_path / "two", Model(config, two, params))
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


def test_version_1_of_nine_numbers_is_read(copper, tiny, tmp_path):
    config = replace(tiny.model, head="matrix", blocks=0)
    params = init_params(build_network(config, [copper]), jax.random.key(0))
    save_model(tmp_path / "nine", Model(config, (copper,), params))
    as_version_1(tmp_path / "nine")
    assert load_model(tmp_path / "nine").network.n_out == 9


def test_phases_that_do_not_go_together(two, copper, crystals):
    check_materials(two)
    with pytest.raises(InputError, match="2 phases are called Cu"):
        check_materials([copper, two[1], copper])
    with pytest.raises(InputError, match="k_max"):
        check_materials([copper, make_material(crystals["Mg"], 300.0, 1.2, 20.0, 0.0)])
    with pytest.raises(InputError, match="one crystal at least"):
        check_materials([])


def test_unknown_name():
    with pytest.raises(InputError, match="neither a model folder nor a packaged model"):
        load_model("Unobtainium")


def test_packaged_models_load():
    for name in packaged_models():
        assert all(len(m.grid) > 100 for m in load_model(name).materials)


def test_material_is_refused_below_the_first_reflection(crystals):
    with pytest.raises(InputError, match="k_max"):
        make_material(crystals["Cu"], 300.0, 0.3, 12.0, 0.0)
    with pytest.raises(InputError):
        make_material(crystals["Cu"], -5.0, 1.5, 12.0, 0.0)


def test_grid_of_low_symmetry_is_coarsened(crystals):
    coarse = make_material(crystals["ZrO2"], 300.0, 1.0, 3.0, 0.0)
    assert 0.8 * MOST_CELLS < len(coarse.grid) < 1.2 * MOST_CELLS
    assert coarse.spacing > np.deg2rad(8)


def test_material_of_copper(copper, crystals):
    assert len(copper.operations) == len(symmetry_operations(crystals["Cu"])) == 24
    assert np.rad2deg(copper.spacing) == pytest.approx(12.0, rel=0.05)
    # {111} lies at sqrt(3) / a
    assert copper.k_min == pytest.approx(0.6 * np.sqrt(3) / 3.615, rel=1e-3)
    assert copper.wavelength == pytest.approx(0.0196875, rel=1e-4)
    assert float(copper.space().label_width[0]) == pytest.approx(0.55 * copper.spacing, rel=1e-5)


def test_extinction_distance_of_copper(crystals):
    """ξ = h v / (2 e V_g), with V_g the Fourier coefficient of the potential in volt.

    About 25 to 29 nm for (111) at 100 kV in the textbooks, by the scattering factors they took.
    """
    found = reflections(crystals["Cu"], 0.6)
    volume = 3.615**3 * constants.angstrom**2  # F / V in Å^-2, as m^-2
    potential = constants.h**2 / (2 * np.pi * constants.m_e * constants.e)
    potential = potential * np.abs(found.structure_factor) / volume
    for kv in (100.0, 300.0):
        rest = constants.m_e * constants.c**2 / (1e3 * constants.e)
        velocity = constants.c * np.sqrt(1 - (rest / (rest + kv)) ** 2)
        expected = constants.h * velocity / (2 * constants.e * potential) / constants.angstrom
        distance = 1 / inverse_extinction(crystals["Cu"], found.structure_factor, kv)
        np.testing.assert_allclose(distance, expected, rtol=1e-3)
        if kv == 100.0:
            assert np.all((distance[:8] > 240) & (distance[:8] < 300))
