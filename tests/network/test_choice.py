# SPDX-License-Identifier: GPL-3.0-or-later
"""The model that fits crystals: by their content, the voltage and the beam, the best one of all."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from jaxstem.app.demo import sample
from jaxstem.crystal.reading import read_cif
from jaxstem.diffraction.settings import Microscope
from jaxstem.network.choice import fitting_model, keep_model
from jaxstem.network.model import at_voltage, load_model


@pytest.fixture(scope="module")
def packaged():
    return {name: load_model(name) for name in ("cu", "cu-cu2o")}


@pytest.fixture
def cache(tmp_path):
    (tmp_path / "cache").mkdir(mode=0o700)
    return tmp_path / "cache"


def changed(model, quality=0.5, **microscope):
    """A model as if trained for another microscope, to so much within 5 degrees."""
    seen = replace(model.microscope, **microscope)
    materials = tuple(replace(material, microscope=seen) for material in model.materials)
    record = {**model.record, "validation": {"val_within_5deg": quality}}
    return replace(model, materials=materials, record=record, voltages_kv=None)


def test_packaged_models_are_found_by_their_crystals(crystals, packaged):
    found = fitting_model([read_cif(sample("Cu.cif"))], 300.0)
    assert found.origin == "cu (packaged)" and found.model.phase_names == ("Cu",)
    np.testing.assert_array_equal(found.model.materials[0].grid, packaged["cu"].materials[0].grid)
    # in the order of the model, by the names of the user
    oxide, copper = (replace(crystals[name], name=f"my {name}") for name in ("Cu2O", "Cu"))
    found = fitting_model([oxide, copper], 301.0, 1.4)
    assert found.origin == "cu-cu2o (packaged)"
    assert found.model.phase_names == ("my Cu", "my Cu2O")


@pytest.mark.parametrize(
    ("names", "voltage_kv", "semi_angle"),
    [
        (["Cu"], 78.0, None),
        (["Cu"], 304.0, None),
        (["Cu"], 300.0, 2.6),
        (["Cu"], 300.0, 0.9),
        (["Mg"], 300.0, None),
        (["Cu2O"], 300.0, None),
        (["Cu", "Mg"], 300.0, None),
    ],
)
def test_nothing_fits_other_crystals_or_beams(crystals, names, voltage_kv, semi_angle):
    assert fitting_model([crystals[name] for name in names], voltage_kv, semi_angle) is None


def test_packaged_models_serve_other_voltages(crystals, packaged):
    """Templates and physics are those of the voltage; the network is the same."""
    found = fitting_model([crystals["Cu"]], 120.0).model
    assert found.voltage_kv == 120.0 and found.wavelength == Microscope(120.0).wavelength
    np.testing.assert_array_equal(found.materials[0].grid, packaged["cu"].materials[0].grid)
    assert found.params.keys() == packaged["cu"].params.keys()
    assert at_voltage(packaged["cu"], 301.0) is packaged["cu"]
    assert at_voltage(packaged["cu"], 60.0) is packaged["cu"]
    assert at_voltage(packaged["cu"], None) is packaged["cu"]
    alone = replace(packaged["cu"], voltages_kv=None)
    assert at_voltage(alone, 200.0) is alone


def test_trained_models_are_kept_and_the_best_wins(crystals, packaged, cache):
    copper = [crystals["Cu"]]
    at_200 = changed(packaged["cu"], 0.4, voltage_kv=200.0)
    keep_model(cache, at_200)
    found = fitting_model(copper, 200.0, None, cache)
    assert found.origin.startswith("trained here for ")  # before one that serves many voltages
    for ours, theirs in zip(jnp_leaves(found.model.params), jnp_leaves(at_200.params), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-6)
    # a worse one of the same crystals and beam does not replace it, a better one does
    for quality, kept in ((0.3, 0.4), (0.6, 0.6)):
        keep_model(cache, changed(packaged["cu"], quality, voltage_kv=200.0))
        found = fitting_model(copper, 200.0, None, cache)
        assert found.model.record["validation"]["val_within_5deg"] == kept
    assert len(list(cache.glob("model-*.npz"))) == 1
    # beside a packaged one the better wins
    for quality, origin in ((0.01, "cu (packaged)"), (0.99, "trained here")):
        keep_model(cache, changed(packaged["cu"], quality))
        assert fitting_model(copper, 300.0, None, cache).origin.startswith(origin)


def test_what_serves_no_usual_scan_is_not_taken(crystals, packaged, cache):
    keep_model(cache, changed(packaged["cu"], 0.9, voltage_kv=60.0, precession_deg=1.0))
    assert fitting_model([crystals["Cu"]], 60.0, None, cache) is None
    alone = replace(packaged["cu"], config=replace(packaged["cu"].config, templates=False))
    keep_model(cache, changed(alone, voltage_kv=60.0))
    assert fitting_model([crystals["Cu"]], 60.0, None, cache) is None
    keep_model(None, packaged["cu"])


def test_damage_in_the_cache_is_passed_over(crystals, packaged, cache):
    keep_model(cache, changed(packaged["cu"], voltage_kv=60.0))
    (path,) = cache.glob("model-*.npz")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="is damaged"):
        assert fitting_model([crystals["Cu"]], 60.0, None, cache) is None


def jnp_leaves(tree):
    import jax

    return [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree)]
