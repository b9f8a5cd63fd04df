# SPDX-License-Identifier: GPL-3.0-or-later
"""Maps: what is written is read again, in the layout that is documented, or it is refused."""

import copy
import dataclasses
import os
import tempfile
from pathlib import Path

import h5py
import jax
import numpy as np
import pytest
from helpers import FIXTURES, assert_refused
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxstem.errors import InputError
from jaxstem.files.map_file import (
    MAP_VERSION,
    MapHeader,
    map_writer,
    read_map,
    write_map,
)
from jaxstem.files.map_schema import MAP_DATASETS


@given(
    seed=st.integers(0, 2**32 - 1),
    ny=st.integers(1, 6),
    nx=st.integers(1, 6),
    n_phases=st.integers(1, 3),
)
@settings(max_examples=15, deadline=None)
def test_map_round_trip(noise_map, seed, ny, nx, n_phases):
    result = noise_map(np.random.default_rng(seed), (ny, nx), n_phases)
    with tempfile.TemporaryDirectory() as folder:
        write_map(Path(folder) / "map.h5", result)
        again = read_map(Path(folder) / "map.h5")
    for name in MAP_DATASETS:
        stored = getattr(again, name)
        assert stored.dtype == getattr(result, name).dtype
        np.testing.assert_array_equal(stored, getattr(result, name))
    for crystal, expected in zip(again.crystals, result.crystals, strict=True):
        assert crystal.to_dict() == expected.to_dict()
    for name in ("phase_names", "scan_step", "scan_units"):
        assert getattr(again, name) == getattr(result, name)
    assert again.attributes.pop("jaxstem_version")
    assert again.attributes == result.attributes
    jax.tree.map(np.testing.assert_array_equal, again.settings, result.settings)


def test_a_map_written_row_by_row_is_the_same(tmp_path, noise_map):
    result = noise_map(np.random.default_rng(8), (5, 3))
    write_map(tmp_path / "whole.h5", result)
    header = MapHeader(
        result.phase.shape,
        result.phase_names,
        result.crystals,
        result.scan_step,
        result.scan_units,
        result.attributes,
        result.settings,
    )
    with map_writer(tmp_path / "rows.h5", header) as write:
        assert not (tmp_path / "rows.h5").exists()
        for rows in (slice(3, 5), slice(0, 3)):
            write(rows.start, {name: getattr(result, name)[rows] for name in MAP_DATASETS})
    with h5py.File(tmp_path / "whole.h5") as whole, h5py.File(tmp_path / "rows.h5") as rows:
        names, of_rows = [], []
        whole.visit(names.append)
        rows.visit(of_rows.append)
        assert names == of_rows
        for name in names:
            if isinstance(whole[name], h5py.Dataset):
                np.testing.assert_array_equal(whole[name][()], rows[name][()])
        assert dict(whole.attrs) == dict(rows.attrs)


def test_maps_of_earlier_versions_say_less(tmp_path, noise_map):
    write_map(tmp_path / "map.h5", noise_map(np.random.default_rng(2)))
    replace(tmp_path / "map.h5", "settings", None)
    assert read_map(tmp_path / "map.h5").settings == {}


def test_every_third_position_of_a_map(tmp_path, noise_map):
    result = noise_map(np.random.default_rng(9), (7, 5))
    write_map(tmp_path / "map.h5", result)
    part = read_map(tmp_path / "map.h5", every=3)
    for name in MAP_DATASETS:
        np.testing.assert_array_equal(getattr(part, name), getattr(result, name)[::3, ::3])
    assert part.scan_step == pytest.approx(3 * result.scan_step)


def test_map_layout(tmp_path, noise_map):
    """What other programs may rely on (docs/file-formats.md)."""
    result = noise_map(np.random.default_rng(1))
    write_map(tmp_path / "map.h5", result)
    with h5py.File(tmp_path / "map.h5") as file:
        assert file.attrs["format"] == "jaxstem-map" and file.attrs["version"] == 1
        assert {"command", "model", "jaxstem_version", "scan_step", "scan_units"} <= set(file.attrs)
        assert file["orientation"].shape == (3, 5, 3, 3)
        assert file["second/orientation"].shape == (3, 5, 3, 3)
        for name in ("confidence", "confidence_mod180", "score", "second/score", "thickness"):
            assert file[name].shape == (3, 5) and file[name].dtype == np.float32
        assert file["phase"].dtype == file["second/phase"].dtype == np.int16
        assert file["ambiguous_180"].dtype == bool
        np.testing.assert_array_equal(file["ambiguous_180"], result.ambiguous_180)
        assert file["n_disks"].dtype == np.int32
        assert [name.decode() for name in file["phase_names"]] == list(result.phase_names)
        assert file["phases/1/laue_group"][()] == b"m-3m"
        np.testing.assert_array_equal(file["phases/1/lattice"], result.crystals[1].lattice)


def test_maps_whose_arrays_do_not_fit_are_not_written(tmp_path, noise_map):
    result = noise_map(np.random.default_rng(2))
    for changes in [
        {"score": np.zeros((5, 3))},
        {"phase": np.full((3, 5), 2)},
        {"phase": np.zeros(15, int)},
        {"crystals": ()},
    ]:
        broken = copy.copy(result)  # whose shapes nobody checks
        for name, values in changes.items():
            object.__setattr__(broken, name, values)
        with pytest.raises(ValueError):
            write_map(tmp_path / "map.h5", broken)
    assert not os.listdir(tmp_path)


def replace(path, name, value):
    """Put the value in the place of a stored one, or nothing."""
    with h5py.File(path, "r+") as file:
        del file[name]
        if value is not None:
            file[name] = value


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("score", None, "'score'"),
        ("second/phase", None, "'second/phase'"),
        ("phases", None, "'phases'"),
        ("score", np.zeros((5, 3)), "'score' has shape (5, 3)"),
        ("phase", np.full((3, 5), 9), "'phase' has values outside"),
        ("phase", np.zeros((0, 5), int), "no position"),
        ("confidence", np.full((3, 5), 1.5), "'confidence' has values outside 0…1"),
        ("phase_confidence", np.full((3, 5), -np.inf), "'phase_confidence' has values outside"),
        ("phases/1/numbers", np.array([29]), "damaged"),
        ("confidence", np.full((3, 5), b"high"), "not an array of numbers"),
    ],
)
def test_spoilt_maps_are_refused(tmp_path, noise_map, name, value, word):
    path = tmp_path / "map.h5"
    write_map(path, noise_map(np.random.default_rng(3)))
    replace(path, name, value)
    assert_refused(read_map, path, word)


@pytest.mark.parametrize(
    ("change", "words"),
    [(-1, "are mirrored"), (1.1, "are no rotations"), (np.nan, "are no rotations")],
)
@pytest.mark.parametrize("name", ["orientation", "second_orientation"])
def test_maps_of_what_is_no_rotation_are_refused(tmp_path, noise_map, name, change, words):
    path = tmp_path / "map.h5"
    found = noise_map(np.random.default_rng(3))
    phase = found.phase if name == "orientation" else found.second_phase
    spoilt = getattr(found, name).copy()
    spoilt[phase >= 0] *= np.float32(change)
    write_map(path, found)
    replace(path, name.replace("_", "/"), spoilt)
    count = (phase >= 0).sum()
    what = "orientations" if name == "orientation" else "runners-up"
    assert_refused(read_map, path, f"{count} of the map's {count} {what} {words}")
    with pytest.raises(InputError, match=words):
        dataclasses.replace(found, **{name: spoilt})
    getattr(found, name)[phase < 0] = np.nan  # which is as it should be
    write_map(path, found, overwrite=True)
    read_map(path)


@pytest.mark.parametrize("step", [np.nan, np.inf, 0.0, -2.0, "two"])
def test_steps_that_are_none_are_refused(tmp_path, noise_map, step):
    path = tmp_path / "map.h5"
    write_map(path, noise_map(np.random.default_rng(4)))
    with h5py.File(path, "r+") as file:
        file.attrs["scan_step"] = step
    assert_refused(read_map, path, "'scan_step' is", "positive number")


@pytest.mark.parametrize("number", ["phases/0", "phases/1/lattice"])
def test_maps_without_a_crystal_are_refused(tmp_path, noise_map, number):
    path = tmp_path / "map.h5"
    write_map(path, noise_map(np.random.default_rng(3)))
    replace(path, number, None)
    assert_refused(read_map, path)


def test_other_formats_and_newer_maps_are_refused(tmp_path, noise_map):
    path = tmp_path / "map.h5"
    assert_refused(read_map, FIXTURES / "bragg_all.h5", "not a jaxstem map")
    write_map(path, noise_map(np.random.default_rng(4)))
    with h5py.File(path, "r+") as file:
        file.attrs["version"] = MAP_VERSION + 1
    assert_refused(read_map, path, "version 2", "update jaxstem")


def test_maps_are_overwritten_only_when_asked(tmp_path, noise_map):
    path = tmp_path / "map.h5"
    first, second = (noise_map(np.random.default_rng(seed)) for seed in (5, 6))
    write_map(path, first)
    assert_refused(lambda p: write_map(p, second), path, "exists already")
    np.testing.assert_array_equal(read_map(path).score, first.score)
    write_map(path, second, overwrite=True)
    np.testing.assert_array_equal(read_map(path).score, second.score)
    assert os.listdir(tmp_path) == ["map.h5"]
