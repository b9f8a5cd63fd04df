# SPDX-License-Identifier: GPL-3.0-or-later
"""The library: what is drawn from it is the Bloch pattern of the orientation that is named."""

from dataclasses import fields, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstem.diffraction.bloch import bloch_intensities, prepare
from jaxstem.diffraction.illumination import disk_tilts
from jaxstem.diffraction.propagation import cone_steps
from jaxstem.diffraction.settings import Microscope
from jaxstem.diffraction.two_beam import two_beam_pattern
from jaxstem.orientation import rotations
from jaxstem.runtime.cache import content_key
from jaxstem.training import library as module
from jaxstem.training.library import (
    LibraryConfig,
    TwoBeam,
    _illumination,
    build_library,
    library_content,
    sample_pattern,
    zone_axis_orientations,
)
from jaxstem.training.patterns import make_sources

pytestmark = pytest.mark.usefixtures("quick_compile")

CONFIG = LibraryConfig(n_axes=80, n_thicknesses=3, n_beams=24, n_weak=40, beam_k_max=2.0)


@pytest.fixture(scope="module")
def library(copper):
    return build_library(copper, CONFIG, seed=3, progress=False)


def test_sampled_pattern_is_bloch_pattern_of_its_label(copper, library, key):
    tables = prepare(copper.crystal, copper.voltage_kv, 2.0, copper.u_iso)
    thickness = jnp.geomspace(*copper.specimen.thickness, CONFIG.n_thicknesses)
    cone = disk_tilts(copper.microscope.semi_angle_mrad)
    n_steps = cone_steps(thickness, cone, copper.k_max)
    sample = jax.jit(lambda k: sample_pattern(k, library, 99))
    for one in jax.random.split(key, 6):
        disks, orientation = sample(one)
        np.testing.assert_allclose(orientation.T @ orientation, np.eye(3), atol=1e-5)
        assert float(jnp.linalg.det(orientation)) == pytest.approx(1.0, abs=1e-5)
        # the quadrature of the cone turns with the pattern
        axis = jnp.argmax(library.orientation[:, :, 2] @ orientation[:, 2])
        turn = (library.orientation[axis].T @ orientation)[:2, :2].T
        x, y = turn @ jnp.stack([cone.x, cone.y])
        beams = bloch_intensities(
            orientation,
            thickness,
            tables,
            CONFIG.n_beams,
            CONFIG.n_weak,
            cone=cone._replace(x=x, y=y),
            n_steps=n_steps,
        )
        kept = np.asarray(disks.mask) & (np.asarray(disks.intensity) > 1e-3)
        drawn = np.stack([disks.qx, disks.qy], axis=-1)[kept]
        direct = np.stack([beams.qx, beams.qy], axis=-1)[1:]
        distance = np.linalg.norm(drawn[:, None] - direct, axis=-1)
        assert distance.min(axis=1).max() < 1e-4
        # the layer is not told: one of the thicknesses must fit all disks, to a float16's rounding
        intensity = np.asarray(beams.intensity)[:, 1:][:, distance.argmin(axis=1)]
        misfit = np.abs(intensity - np.asarray(disks.intensity)[kept]).max(axis=1)
        assert misfit.min() < 5e-4


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
    monkeypatch.setattr(module, "_make_library", lambda *_: library)
    made = build_library(copper, CONFIG, seed=3, progress=False, cache=folder)
    assert_equal_libraries(made, library)
    (kept,) = folder.iterdir()
    assert kept.name.startswith("library-")
    monkeypatch.setattr(module, "_make_library", None)  # must not be called again
    assert_equal_libraries(build_library(copper, CONFIG, seed=3, cache=folder), made)


def test_whatever_decides_a_library_is_in_its_content(copper, crystals):
    key = lambda *decided: content_key(library_content(*decided))  # noqa: E731
    reference = key(copper, CONFIG, 0)
    assert key(replace(copper), replace(CONFIG), 0) == reference
    others = [(replace(copper, crystal=crystals["Cu2O"]), CONFIG, 0), (copper, CONFIG, 1)]
    for field in fields(Microscope):
        changed = {field.name: getattr(copper.microscope, field.name) + 0.01}
        others.append(
            (replace(copper, microscope=replace(copper.microscope, **changed)), CONFIG, 0)
        )
    for changed in ({"thickness": (31.0, 400.0)}, {"u_iso": 0.01}):
        others.append((replace(copper, specimen=replace(copper.specimen, **changed)), CONFIG, 0))
    for field in fields(LibraryConfig):
        changed = {field.name: getattr(CONFIG, field.name) + 1}
        others.append((copper, replace(CONFIG, **changed), 0))
    keys = {key(*other) for other in others}
    assert len(keys) == len(others) and reference not in keys


def test_memory_is_as_stated(library):
    m, t, b = library.intensity.shape
    assert sum(x.nbytes for x in library) == m * b * (2 * t + 9) + 36 * m


def test_illumination_is_that_of_the_microscope():
    thickness = np.geomspace(30, 400, 16)
    assert _illumination(Microscope(300.0, semi_angle_mrad=0.0), thickness) == (None, None, 1)
    ring, cone, n_steps = _illumination(Microscope(300.0, k_max=2.0), thickness)
    assert ring is None and len(cone.x) == 7 and n_steps == 2
    precessing = Microscope(300.0, precession_deg=1.0, semi_angle_mrad=3.0, k_max=2.0)
    ring, cone, n_steps = _illumination(precessing, thickness)
    assert len(ring.x) == 24 and len(cone.x) == 19 and n_steps == 4
    np.testing.assert_allclose(np.hypot(ring.x, ring.y), np.deg2rad(1.0))


def test_patterns_belong_to_their_orientations(copper, tiny, key):
    """A pattern of the source is the two-beam pattern of the orientation that comes with it."""
    (source,) = make_sources([copper], tiny).phases
    assert isinstance(source, TwoBeam)
    disks, orientation = jax.jit(lambda k: sample_pattern(k, source, 12))(key)
    low, high = np.exp(source.log_thickness)
    thickness = np.geomspace(low, high, 4000)
    qx, qy, intensity = two_beam_pattern(
        jnp.tile(orientation, (4000, 1, 1)), source.reflectors, source.wavelength, thickness
    )
    position = np.stack([qx[0], qy[0]], axis=-1)
    found = np.stack([disks.qx, disks.qy], axis=-1)
    distance = np.linalg.norm(found[:, None] - position, axis=-1)
    assert distance.min(axis=1).max() < 1e-5
    of_disks = np.asarray(intensity)[:, distance.argmin(axis=1)]
    mismatch = np.abs(of_disks - np.asarray(disks.intensity)).max(axis=1)
    assert mismatch.min() < 0.02
