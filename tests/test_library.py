# SPDX-License-Identifier: GPL-3.0-or-later
"""The library: what is drawn from it is the Bloch pattern of the orientation that is named."""

import dataclasses
import warnings

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstem.diffraction.bloch import bloch_intensities, prepare
from jaxstem.diffraction.illumination import disk_tilts
from jaxstem.diffraction.propagation import cone_steps
from jaxstem.orientation import rotations
from jaxstem.training import library
from jaxstem.training.library import (
    LibraryConfig,
    _illumination,
    build_library,
    library_key,
    sample_pattern,
    zone_axis_orientations,
)

CONFIG = LibraryConfig(n_axes=80, n_thicknesses=3, n_beams=24, n_weak=40, beam_k_max=2.0)


@pytest.fixture(scope="module")
def library(copper):
    return build_library(copper, CONFIG, seed=3, progress=False)


def test_sampled_pattern_is_bloch_pattern_of_its_label(copper, library, key):
    tables = prepare(copper.crystal, copper.voltage_kv, 2.0, copper.u_iso)
    thickness = jnp.geomspace(*CONFIG.thickness, CONFIG.n_thicknesses)
    cone = disk_tilts(CONFIG.convergence_mrad)
    n_steps = cone_steps(thickness, cone, copper.k_max)
    for one in jax.random.split(key, 6):
        disks, orientation = sample_pattern(one, library, 99)
        np.testing.assert_allclose(orientation.T @ orientation, np.eye(3), atol=1e-5)
        assert float(jnp.linalg.det(orientation)) == pytest.approx(1.0, abs=1e-5)
        beams = bloch_intensities(
            orientation, thickness, tables, CONFIG.n_beams, CONFIG.n_weak, None, cone, n_steps
        )
        kept = np.asarray(disks.mask) & (np.asarray(disks.intensity) > 1e-3)
        drawn = np.stack([disks.qx, disks.qy], axis=-1)[kept]
        direct = np.stack([beams.qx, beams.qy], axis=-1)[1:]
        distance = np.linalg.norm(drawn[:, None] - direct, axis=-1)
        assert distance.min(axis=1).max() < 1e-4
        # the layer is not told: one of the thicknesses must fit all disks
        intensity = np.asarray(beams.intensity)[:, 1:][:, distance.argmin(axis=1)]
        misfit = np.abs(intensity - np.asarray(disks.intensity)[kept]).max(axis=1)
        assert misfit.min() < 5e-3


def test_disks_beyond_k_max_are_masked(copper, library):
    radius = np.hypot(library.qx, library.qy)
    np.testing.assert_array_equal(library.inside, radius <= copper.k_max + 1e-6)
    assert library.intensity.dtype == jnp.float16


def test_zone_axes_cover_the_sector(copper, key):
    """Every beam direction has an axis near it, modulo the proper operations."""
    found = np.asarray(zone_axis_orientations(key, copper.operations, 400))
    assert 360 < len(found) < 440
    axes = np.einsum("nij,aj->nai", copper.operations, found[:, :, 2]).reshape(-1, 3)
    wanted = np.asarray(rotations.random_rotations(key, (500,)))[:, :, 2]
    spacing = np.sqrt(4 * np.pi / (len(copper.operations) * 400))
    nearest = np.arccos(np.clip((wanted @ axes.T).max(axis=1), -1, 1))
    assert nearest.max() < 3 * spacing
    assert np.sqrt(np.mean(nearest**2)) < 0.7 * spacing


def test_layers_angles_and_axes_are_drawn_evenly(library, key):
    draw = jax.jit(jax.vmap(lambda k: sample_pattern(k, library, 99)))
    _, orientation = draw(jax.random.split(key, 4000))
    x = np.asarray(orientation)[:, :, 0]
    base = np.asarray(library.orientation)
    axis = np.abs(np.asarray(orientation)[:, None, :, 2] - base[None, :, :, 2]).max(-1).argmin(1)
    angle = np.arctan2(
        np.einsum("mi,mi->m", x, base[axis, :, 1]), np.einsum("mi,mi->m", x, base[axis, :, 0])
    )
    assert abs(np.exp(1j * angle).mean()) < 5 / np.sqrt(4000)
    counts = np.bincount(axis, minlength=len(base))
    expected = 4000 / len(base)
    assert ((counts - expected) ** 2 / expected).sum() < 2 * len(base)


def assert_equal_libraries(one, other):
    for name, first, second in zip(one._fields, one, other, strict=True):
        np.testing.assert_array_equal(first, second, err_msg=name)
        assert first.dtype == second.dtype


def test_a_kept_library_is_the_one_that_was_made(copper, library, tmp_path, monkeypatch):
    folder = tmp_path / "caches" / "libraries"
    made = build_library(copper, CONFIG, seed=3, progress=False, cache=folder)
    assert_equal_libraries(made, library)
    (kept,) = folder.iterdir()
    assert "library" in kept.name and kept.suffix == ".h5"
    monkeypatch.setattr(library, "_make_library", None)  # must not be called again
    assert_equal_libraries(build_library(copper, CONFIG, seed=3, cache=folder), made)


@pytest.mark.parametrize("damage", ["truncated", "rubbish", "incomplete"])
def test_a_damaged_library_is_made_anew(copper, library, tmp_path, monkeypatch, damage):
    monkeypatch.setattr(library, "_make_library", lambda *_: library)
    build_library(copper, CONFIG, seed=3, cache=tmp_path)
    (kept,) = tmp_path.iterdir()
    whole = kept.read_bytes()
    if damage == "incomplete":
        with h5py.File(kept, "a") as file:
            del file["qy"]
    else:
        kept.write_bytes(whole[: len(whole) // 2] if damage == "truncated" else b"rubbish" * 99)
    with pytest.warns(UserWarning, match="made anew"):
        again = build_library(copper, CONFIG, seed=3, cache=tmp_path)
    assert_equal_libraries(again, library)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_library(copper, CONFIG, seed=3, cache=tmp_path)
    assert list(tmp_path.iterdir()) == [kept]


def test_a_folder_that_cannot_be_written_does_no_harm(copper, library, tmp_path, monkeypatch):
    monkeypatch.setattr(library, "_make_library", lambda *_: library)
    (tmp_path / "file").write_text("not a folder")
    with pytest.warns(UserWarning, match="cannot be kept"):
        found = build_library(copper, CONFIG, cache=tmp_path / "file" / "libraries")
    assert found is library


def test_whatever_decides_a_library_is_in_its_key(copper, crystals):
    reference = library_key(copper, CONFIG, 0)
    assert library_key(dataclasses.replace(copper), dataclasses.replace(CONFIG), 0) == reference
    others = [
        (dataclasses.replace(copper, **{name: getattr(copper, name) + 0.01}), CONFIG, 0)
        for name in ("voltage_kv", "k_max", "u_iso")
    ]
    others.append((dataclasses.replace(copper, crystal=crystals["Cu2O"]), CONFIG, 0))
    others.append((copper, CONFIG, 1))
    for field in dataclasses.fields(LibraryConfig):
        value = getattr(CONFIG, field.name)
        changed = (31.0, 400.0) if field.name == "thickness" else value + 1
        others.append((copper, dataclasses.replace(CONFIG, **{field.name: changed}), 0))
    keys = {library_key(*other) for other in others}
    assert len(keys) == len(others) and reference not in keys


def test_memory_is_as_stated(library):
    m, t, b = library.intensity.shape
    assert sum(x.nbytes for x in library) == m * b * (2 * t + 9) + 36 * m


def test_illumination_is_that_of_the_configuration():
    thickness = np.geomspace(30, 400, 16)
    assert _illumination(LibraryConfig(convergence_mrad=0.0), thickness, 2.0) == (
        None,
        None,
        1,
    )
    ring, cone, n_steps = _illumination(LibraryConfig(), thickness, 2.0)
    assert ring is None and len(cone.x) == 7 and n_steps == 2
    ring, cone, n_steps = _illumination(
        LibraryConfig(precession_deg=1.0, convergence_mrad=3.0), thickness, 2.0
    )
    assert len(ring.x) == 24 and len(cone.x) == 19 and n_steps == 4
    np.testing.assert_allclose(np.hypot(ring.x, ring.y), np.deg2rad(1.0))
