# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading scans and truths, writing and reading maps, and refusing what cannot be used.

The scans in fixtures/bragg_*.h5, and the vectors to expect from them, are py4DSTEM's own
(experiments/fixtures/make_bragg_fixtures.py).
"""

import dataclasses
import os
import re
import shutil
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxstem.crystal.cell import Crystal
from jaxstem.errors import InputError
from jaxstem.files.emd import bragg_source, read_disks
from jaxstem.files.map_file import (
    MAP_DATASETS,
    MAP_VERSION,
    MapHeader,
    map_writer,
    read_map,
    write_map,
)
from jaxstem.files.orientation_map import OrientationMap
from jaxstem.files.scan import DiskScan, joined, pad_disks, source_of
from jaxstem.files.truth import read_truth
from jaxstem.runtime.paths import atomic_path

FIXTURES = Path(__file__).parent / "fixtures"
CALIBRATED = np.load(FIXTURES / "bragg_calibrated.npz")
CASES = sorted({name.split("/")[0] for name in CALIBRATED.files})
CALIBRATION = "film_root/metadatabundle/calibration"
DISKS = "film_root/disks/_v_uncal/data"


@pytest.fixture
def scan_file(tmp_path):
    """A copy of the fully calibrated scan, to be spoilt."""
    return Path(shutil.copy(FIXTURES / "bragg_all.h5", tmp_path / "scan.h5"))


def assert_refused(read, path, *words):
    """Reading ends in an InputError: one sentence with the file's name, a remedy and the words."""
    with pytest.raises(InputError) as caught:
        read(path)
    message = str(caught.value)
    assert str(path) in message
    assert message.endswith(".") and "\n" not in message and not re.search(r"\. [A-Z]", message)
    assert "; " in message
    for word in words:
        assert word in message


def replace(path, name, value):
    """Put the value in the place of a stored one, with its attributes."""
    with h5py.File(path, "r+") as file:
        attributes = dict(file[name].attrs) if name in file else {"type": "number"}
        if name in file:
            del file[name]
        if value is not None:
            file[name] = value
            file[name].attrs.update(attributes)


def set_disk(path, position, disk, name, value):
    with h5py.File(path, "r+") as file:
        disks = file[DISKS][position]
        disks[name][disk] = value
        file[DISKS][position] = disks


@pytest.mark.parametrize("case", CASES)
def test_disks_are_calibrated_as_py4dstem_does(case):
    scan = read_disks(FIXTURES / f"bragg_{case}.h5")
    counts, vectors = CALIBRATED[f"{case}/counts"], CALIBRATED[f"{case}/vectors"]
    assert scan.scan_shape == counts.shape
    np.testing.assert_array_equal(np.diff(scan.offsets), counts.ravel())
    np.testing.assert_allclose(np.stack([scan.qx, scan.qy], -1), vectors[:, :2], atol=2e-7)
    np.testing.assert_allclose(scan.intensity, vectors[:, 2], rtol=1e-6)
    assert scan.qx.dtype == scan.qy.dtype == scan.intensity.dtype == np.float32
    assert scan.voltage_kv is None
    has_step = case in ("all", "nested")
    assert (scan.scan_step, scan.scan_units) == ((12.5, "nm") if has_step else (1.0, "pixels"))


def test_fixtures_tell_the_calibrations_apart():
    """Every calibration moves the disks, except a flip without rotation (as in py4DSTEM)."""
    for case in CASES:
        path = FIXTURES / f"bragg_{case}.h5"
        with h5py.File(path) as file:
            raw = np.concatenate(list(next(find_disks(file))[()].ravel()))
            stored = file[CALIBRATION]
            centred = [
                np.concatenate(
                    [
                        np.full(n, o)
                        for n, o in zip(
                            CALIBRATED[f"{case}/counts"].ravel(),
                            np.broadcast_to(stored[name][()], (3, 4)).ravel(),
                            strict=True,
                        )
                    ]
                )
                for name in ("qx0", "qy0")
            ]
        plain = 0.0328 * (np.stack([raw["qx"], raw["qy"]], -1) - np.stack(centred, -1))
        shift = np.abs(plain - CALIBRATED[f"{case}/vectors"][:, :2]).max()
        if case in ("mean_origin", "origin", "flip"):
            assert shift < 1e-12
        else:
            assert shift > 0.05


def find_disks(group):
    for node in group.values():
        if isinstance(node, h5py.Dataset):
            if h5py.check_vlen_dtype(node.dtype) is not None and node.ndim == 2:
                yield node
        else:
            yield from find_disks(node)


@pytest.mark.parametrize("units", ["nm^-1", "1/nm", " nm^-1", "nm ^-1"])
def test_inverse_nanometres_are_converted(scan_file, units):
    replace(scan_file, f"{CALIBRATION}/Q_pixel_units", units.encode())
    scan = read_disks(scan_file)
    np.testing.assert_allclose(scan.qx, 0.1 * CALIBRATED["all/vectors"][:, 0], atol=2e-8)


@pytest.mark.parametrize("units", ["Å^-1", "\u212b^-1", "A\u030a^-1", "1/A", "1/Å", "1 / Å"])
def test_spellings_of_inverse_angstroms(scan_file, units):
    replace(scan_file, f"{CALIBRATION}/Q_pixel_units", units.encode())
    scan = read_disks(scan_file)
    np.testing.assert_allclose(scan.qx, CALIBRATED["all/vectors"][:, 0], atol=2e-7)


@pytest.mark.parametrize("units", ["pixels", "mrad", "m^-1", "", None])
def test_other_units_are_refused(scan_file, units):
    replace(scan_file, f"{CALIBRATION}/Q_pixel_units", units and units.encode())
    assert_refused(read_disks, scan_file, "pixel size", f"'{'pixels' if units is None else units}'")


def test_a_calibration_in_the_place_of_the_files(scan_file):
    """Entries given replace those stored; without ellipse, rotation and flip pixels remain."""
    from jaxstem.detection.calibration import IN_PIXELS
    from jaxstem.detection.opening import read_scan

    scan = read_scan(scan_file, calibration=IN_PIXELS)
    with h5py.File(scan_file) as file:
        raw = np.concatenate(list(file[DISKS][()].ravel()))
        origin = np.repeat(
            [file[f"{CALIBRATION}/{name}"][()].ravel() for name in ("qx0", "qy0")],
            np.diff(scan.offsets),
            axis=1,
        )
    np.testing.assert_allclose(scan.qx, raw["qx"] - origin[0], atol=1e-5)
    np.testing.assert_allclose(scan.qy, raw["qy"] - origin[1], atol=1e-5)


def test_milliradians_need_the_voltage(scan_file):
    """q = θ / λ, with λ of 200 kV electrons of 0.02508 Å."""
    before = read_disks(scan_file)
    replace(scan_file, f"{CALIBRATION}/Q_pixel_units", b"mrad")
    assert_refused(read_disks, scan_file, "'mrad'")
    scan = bragg_source(scan_file, voltage_kv=200.0).read(0, 3)
    np.testing.assert_allclose(scan.qx, before.qx * 1e-3 / 0.02508, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("size", [0.0, -0.03, np.nan, np.inf, None, [0.03, 0.03]])
def test_unusable_pixel_sizes_are_refused(scan_file, size):
    replace(scan_file, f"{CALIBRATION}/Q_pixel_size", size)
    assert_refused(read_disks, scan_file, "pixel size", "positive")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("qx0", None, ["no origin"]),
        ("qy0", None, ["no origin"]),
        ("qx0", np.nan, ["qx0", "not finite"]),
        ("qy0", np.full((3, 4), np.inf), ["qy0", "not finite"]),
        ("qx0", np.zeros((4, 3)), ["qx0", "shape (4, 3)"]),
        ("a", 0.0, ["ellipse", "positive"]),
        ("theta", np.nan, ["theta", "not finite"]),
        ("QR_rotation", np.nan, ["QR_rotation", "not finite"]),
        ("QR_rotation", np.zeros((3, 4)), ["QR_rotation", "one number"]),
    ],
)
def test_unusable_calibrations_are_refused(scan_file, name, value, words):
    replace(scan_file, f"{CALIBRATION}/{name}", value)
    assert_refused(read_disks, scan_file, *words)


def test_no_calibration_at_all_is_refused(scan_file):
    replace(scan_file, CALIBRATION, None)
    assert_refused(read_disks, scan_file, "no origin")


def test_an_origin_missing_at_an_empty_position_does_no_harm(scan_file):
    with h5py.File(scan_file, "r+") as file:
        file[CALIBRATION]["qx0"][0, 1] = np.nan
    assert np.isfinite(read_disks(scan_file).qx).all()


@pytest.mark.parametrize("case", CASES)
def test_a_source_reads_the_same_disks_row_by_row(case):
    """With the calibration of the rows that are read."""
    path = FIXTURES / f"bragg_{case}.h5"
    whole, source = read_disks(path), bragg_source(path)
    assert source.pieces(5) == [(0, 1), (1, 2), (2, 3)] and source.pieces(8) == [(0, 2), (2, 3)]
    for n_positions in (1, 8):
        scan = joined([source.read(*rows) for rows in source.pieces(n_positions)])
        for name in ("qx", "qy", "intensity", "offsets"):
            np.testing.assert_array_equal(getattr(scan, name), getattr(whole, name))
        assert scan.scan_shape == source.scan_shape == whole.scan_shape
    part, expected = source_of(whole).read(1, 3), source.read(1, 3)
    for name in ("qx", "qy", "intensity", "offsets"):
        np.testing.assert_array_equal(getattr(part, name), getattr(expected, name))


@pytest.mark.parametrize("name", ["qx", "qy", "intensity"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_disks_that_are_not_finite_are_refused(scan_file, name, value):
    set_disk(scan_file, (1, 2), 0, name, value)
    assert_refused(read_disks, scan_file, "not finite", "(1, 2)")


def test_a_scan_without_any_disk_is_refused(scan_file):
    with h5py.File(scan_file, "r+") as file:
        kind = file[DISKS].dtype
        del file[DISKS]
        file.create_dataset(DISKS, (3, 4), kind)
    assert_refused(read_disks, scan_file, "no disk")


@pytest.mark.parametrize("shape", [(12,), (3, 2, 2)])
def test_a_scan_of_another_rank_is_refused(scan_file, shape):
    with h5py.File(scan_file, "r+") as file:
        disks, kind = file[DISKS][()], file[DISKS].dtype
        del file[DISKS]
        file.create_dataset(DISKS, shape, kind)
        for position, values in zip(np.ndindex(shape), disks.ravel(), strict=True):
            file[DISKS][position] = values
    assert_refused(read_disks, scan_file, f"{len(shape)} scan axes")


def test_disk_lists_of_another_kind_are_refused(scan_file):
    replace(scan_file, DISKS, np.zeros((3, 4)))
    assert_refused(read_disks, scan_file, "no lists of qx, qy and intensity")


@pytest.mark.parametrize("step", [0.0, -1.0, np.nan, None])
def test_without_a_usable_scan_step_it_counts_pixels(scan_file, step):
    replace(scan_file, f"{CALIBRATION}/R_pixel_size", step)
    scan = read_disks(scan_file)
    assert (scan.scan_step, scan.scan_units) == (1.0, "pixels")


def test_several_sets_of_disks_are_listed(scan_file):
    with h5py.File(scan_file, "r+") as file:
        file.copy("film_root/disks", "film_root/others")
    assert_refused(read_disks, scan_file, "/film_root/disks", "/film_root/others")


def test_a_file_without_disks_is_refused(scan_file):
    replace(scan_file, "film_root/disks", None)
    assert_refused(read_disks, scan_file, "no Bragg vectors")


READERS = [read_disks, read_truth, read_map]


@pytest.mark.parametrize("read", READERS)
def test_files_that_cannot_be_opened_are_refused(read, tmp_path):
    assert_refused(read, tmp_path / "none.h5", "does not exist")
    assert_refused(read, tmp_path, "folder")
    for name, content in [("empty.h5", b""), ("text.h5", b"h k l\n" * 1000)]:
        (tmp_path / name).write_bytes(content)
        assert_refused(read, tmp_path / name, "not an HDF5 file")


def write_truth(path, **changes):
    rng = np.random.default_rng(0)
    arrays = {
        "orientation": rng.normal(size=(2, 3, 3, 3)),
        "phase": np.array([[b"Cu", b"Cu2O", b"vacuum"]] * 2),
        "boundary_weight": rng.uniform(size=(2, 3)),
        "grain": np.arange(6).reshape(2, 3),
        "thickness": rng.uniform(50, 300, (2, 3)),
    } | changes
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            if values is not None:
                file[name] = values
    return arrays


def test_truth_is_read(tmp_path):
    arrays = write_truth(tmp_path / "truth.h5")
    truth = read_truth(tmp_path / "truth.h5")
    for name in ("orientation", "boundary_weight", "grain", "thickness"):
        np.testing.assert_array_equal(getattr(truth, name), arrays[name])
    assert truth.phase.tolist() == [["Cu", "Cu2O", "vacuum"]] * 2


def test_truth_may_say_less(tmp_path):
    path = tmp_path / "truth.h5"
    write_truth(path, boundary_weight=None, grain=None, thickness=None)
    truth = read_truth(path)
    assert (truth.boundary_weight == 0).all() and (truth.grain == -1).all()
    assert np.isnan(truth.thickness).all() and truth.thickness.shape == (2, 3)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"orientation": None}, "'orientation'"),
        ({"phase": None}, "'phase'"),
        ({"orientation": np.zeros((2, 3, 4))}, ", 3, 3)"),
        ({"orientation": np.zeros(3)}, ", 3, 3)"),
        ({"phase": np.zeros((2, 3))}, "strings"),
        ({"phase": np.array([b"Cu"])}, "'phase' has shape (1,)"),
        ({"grain": np.zeros((3, 2), int)}, "'grain' has shape (3, 2)"),
        ({"thickness": np.array([[b"thin"] * 3] * 2)}, "not an array of numbers"),
    ],
)
def test_unusable_truths_are_refused(tmp_path, changes, word):
    write_truth(tmp_path / "truth.h5", **changes)
    assert_refused(read_truth, tmp_path / "truth.h5", word)


def random_map(rng, shape=(3, 5), n_phases=2):
    """A map of noise, of the stored precision, with unassigned positions."""

    def floats(*extra):
        return rng.normal(size=(*shape, *extra)).astype(np.float32)

    orientation = floats(3, 3)
    phase = rng.integers(-2, n_phases, shape).astype(np.int16)
    orientation[phase < 0] = np.nan
    crystals = tuple(
        Crystal(
            name=f"phase {number} α",
            lattice=rng.normal(size=(3, 3)),
            positions=rng.uniform(size=(number + 1, 3)),
            numbers=rng.integers(1, 99, number + 1),
            occupancies=rng.uniform(size=number + 1),
            point_group="-43m",
            laue_group="m-3m",
            space_group=216,
        )
        for number in range(n_phases)
    )
    return OrientationMap(
        orientation=orientation,
        phase=phase,
        phase_names=tuple(crystal.name for crystal in crystals),
        confidence=floats(),
        confidence_mod180=floats(),
        phase_confidence=floats(),
        score=floats(),
        second_orientation=floats(3, 3),
        second_phase=rng.integers(-2, n_phases, shape).astype(np.int16),
        second_score=floats(),
        thickness=floats(),
        n_disks=rng.integers(0, 30, shape).astype(np.int32),
        crystals=crystals,
        scan_step=float(rng.uniform(0.1, 50)),
        scan_units="nm",
        attributes={"command": "jaxstem map ü.h5", "model": "Cu", "steps": 7, "minutes": 1.5},
    )


@given(
    seed=st.integers(0, 2**32 - 1),
    ny=st.integers(1, 6),
    nx=st.integers(1, 6),
    n_phases=st.integers(1, 3),
)
@settings(max_examples=15, deadline=None)
def test_map_round_trip(seed, ny, nx, n_phases):
    result = random_map(np.random.default_rng(seed), (ny, nx), n_phases)
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


def test_a_map_written_row_by_row_is_the_same(tmp_path):
    result = random_map(np.random.default_rng(8), (5, 3))
    write_map(tmp_path / "whole.h5", result)
    header = MapHeader(
        result.phase.shape,
        result.phase_names,
        result.crystals,
        result.scan_step,
        result.scan_units,
        result.attributes,
    )
    with map_writer(tmp_path / "rows.h5", header) as write:
        assert not (tmp_path / "rows.h5").exists()
        for rows in (slice(3, 5), slice(0, 3)):
            write(rows.start, {name: getattr(result, name)[rows] for name in MAP_DATASETS})
    with h5py.File(tmp_path / "whole.h5") as whole, h5py.File(tmp_path / "rows.h5") as rows:
        names = []
        whole.visit(names.append)
        assert set(names) == {*rows, *(f"second/{name}" for name in rows["second"])} | {
            name for name in names if name.startswith("phases/")
        }
        for name in names:
            if isinstance(whole[name], h5py.Dataset):
                np.testing.assert_array_equal(whole[name][()], rows[name][()])
        assert dict(whole.attrs) == dict(rows.attrs)


def test_every_third_position_of_a_map(tmp_path):
    result = random_map(np.random.default_rng(9), (7, 5))
    write_map(tmp_path / "map.h5", result)
    part = read_map(tmp_path / "map.h5", every=3)
    for name in MAP_DATASETS:
        np.testing.assert_array_equal(getattr(part, name), getattr(result, name)[::3, ::3])
    assert part.scan_step == pytest.approx(3 * result.scan_step)


def test_map_layout(tmp_path):
    """What other programs may rely on (docs/file-formats.md)."""
    result = random_map(np.random.default_rng(1))
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


def test_maps_whose_arrays_do_not_fit_are_not_written(tmp_path):
    result = random_map(np.random.default_rng(2))
    for changes in [
        {"score": np.zeros((5, 3))},
        {"phase": np.full((3, 5), 2)},
        {"phase": np.zeros(15, int)},
        {"crystals": ()},
    ]:
        with pytest.raises(ValueError):
            write_map(tmp_path / "map.h5", dataclasses.replace(result, **changes))
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("score", None, "'score'"),
        ("second/phase", None, "'second/phase'"),
        ("phases", None, "'phases'"),
        ("score", np.zeros((5, 3)), "'score' has shape (5, 3)"),
        ("phase", np.full((3, 5), 9), "'phase' has values outside"),
        ("confidence", np.full((3, 5), b"high"), "not an array of numbers"),
    ],
)
def test_spoilt_maps_are_refused(tmp_path, name, value, word):
    path = tmp_path / "map.h5"
    write_map(path, random_map(np.random.default_rng(3)))
    replace(path, name, value)
    assert_refused(read_map, path, word)


@pytest.mark.parametrize("number", ["phases/0", "phases/1/lattice"])
def test_maps_without_a_crystal_are_refused(tmp_path, number):
    path = tmp_path / "map.h5"
    write_map(path, random_map(np.random.default_rng(3)))
    replace(path, number, None)
    assert_refused(read_map, path)


def test_other_formats_and_newer_maps_are_refused(tmp_path):
    path = tmp_path / "map.h5"
    assert_refused(read_map, FIXTURES / "bragg_all.h5", "not a jaxstem map")
    write_map(path, random_map(np.random.default_rng(4)))
    with h5py.File(path, "r+") as file:
        file.attrs["version"] = MAP_VERSION + 1
    assert_refused(read_map, path, "version 2", "update jaxstem")


def test_maps_are_overwritten_only_when_asked(tmp_path):
    path = tmp_path / "map.h5"
    first, second = (random_map(np.random.default_rng(seed)) for seed in (5, 6))
    write_map(path, first)
    assert_refused(lambda p: write_map(p, second), path, "exists already")
    np.testing.assert_array_equal(read_map(path).score, first.score)
    write_map(path, second, overwrite=True)
    np.testing.assert_array_equal(read_map(path).score, second.score)
    assert os.listdir(tmp_path) == ["map.h5"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_interrupted_writing_leaves_all_as_it_was(tmp_path, overwrite):
    path = tmp_path / "figure.png"
    if overwrite:
        path.write_text("before")
    with pytest.raises(KeyboardInterrupt), atomic_path(path, overwrite) as temporary:
        assert temporary.parent == path.parent and temporary.suffix == ".png"
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == (["figure.png"] if overwrite else [])
    assert not overwrite or path.read_text() == "before"


def test_a_file_that_appears_meanwhile_is_kept(tmp_path):
    path = tmp_path / "map.h5"
    with pytest.raises(InputError, match="exists already"), atomic_path(path) as temporary:
        temporary.write_text("mine")
        path.write_text("theirs")
    assert path.read_text() == "theirs" and os.listdir(tmp_path) == ["map.h5"]


def test_unusable_targets_are_refused(tmp_path):
    def write(path):
        with atomic_path(path, overwrite=True):
            pytest.fail("began to write")

    assert_refused(write, tmp_path / "missing" / "map.h5", "does not exist")
    assert_refused(write, tmp_path, "folder")


MAP_BYTES = []


def map_bytes():
    if not MAP_BYTES:
        with tempfile.TemporaryDirectory() as folder:
            write_map(Path(folder) / "map.h5", random_map(np.random.default_rng(7)))
            MAP_BYTES.append((Path(folder) / "map.h5").read_bytes())
    return MAP_BYTES[0]


@given(share=st.floats(0, 1, exclude_max=True), map_file=st.booleans())
@settings(max_examples=300, deadline=None)
def test_truncated_files_are_refused(share, map_file):
    content = map_bytes() if map_file else (FIXTURES / "bragg_all.h5").read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cut.h5"
        path.write_bytes(content[: int(share * len(content))])
        assert_refused(read_map if map_file else read_disks, path)


@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_padding_keeps_the_strongest_disks_in_range(data, seed):
    """The same as a loop over the positions."""
    rng = np.random.default_rng(seed)
    counts = np.array(data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=8)))
    index = data.draw(st.lists(st.integers(0, len(counts) - 1), max_size=10))
    n_max = data.draw(st.integers(1, 8))
    k_min, k_max = sorted(rng.uniform(0, 3, 2))
    total = counts.sum()
    scan = DiskScan(
        qx=rng.uniform(-2, 2, total).astype(np.float32),
        qy=rng.uniform(-2, 2, total).astype(np.float32),
        intensity=rng.uniform(-0.5, 3, total).astype(np.float32),
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        scan_shape=(1, len(counts)),
        scan_step=1.0,
        scan_units="nm",
        voltage_kv=None,
        source="none",
    )
    qx, qy, intensity, mask = pad_disks(scan, index, k_max, k_min, n_max)
    assert qx.shape == qy.shape == intensity.shape == mask.shape == (len(index), n_max)
    assert qx.dtype == qy.dtype == intensity.dtype == np.float32 and mask.dtype == bool
    for row, position in enumerate(index):
        here = [
            (-scan.intensity[d], scan.qx[d], scan.qy[d])
            for d in range(scan.offsets[position], scan.offsets[position + 1])
            if k_min < np.hypot(scan.qx[d], scan.qy[d]) <= k_max and scan.intensity[d] > 0
        ]
        expected = np.zeros((3, n_max), np.float32)
        for column, disk in enumerate(sorted(here)[:n_max]):
            expected[:, column] = disk
        np.testing.assert_array_equal([-intensity[row], qx[row], qy[row]], expected)
        np.testing.assert_array_equal(mask[row], np.arange(n_max) < len(here))


@pytest.mark.parametrize(
    ("name", "value", "voltage_kv"),
    [
        ("accelerating_voltage", 200_000, 200.0),
        ("accelerating_voltage", 300.0, 300.0),
        ("voltage", b"80 kV", 80.0),
        ("beam_energy", 60e3, 60.0),
        ("Beam_Energy_eV", 120e3, 120.0),
        ("voltage_kV", 300, 300.0),
        ("high_tension", b"200000", 200.0),
        ("voltage", b"_None", None),
        ("voltage", 0, None),
        ("voltage", np.nan, None),
        ("voltage", b"high", None),
        ("stage_voltage_offset", 300, None),
    ],
)
def test_stated_voltage(scan_file, name, value, voltage_kv):
    with h5py.File(scan_file, "r+") as file:
        file[f"film_root/metadatabundle/microscope/{name}"] = value
    assert read_disks(scan_file).voltage_kv == voltage_kv


def test_contradicting_voltages_are_refused(scan_file):
    with h5py.File(scan_file, "r+") as file:
        file["film_root/metadatabundle/microscope/voltage"] = 300
        file["film_root/metadatabundle/session/beam_energy"] = 300e3
    assert read_disks(scan_file).voltage_kv == 300
    with h5py.File(scan_file, "r+") as file:
        file["film_root/metadatabundle/other/voltage"] = 200
    assert_refused(read_disks, scan_file, "200 kV", "300 kV")
