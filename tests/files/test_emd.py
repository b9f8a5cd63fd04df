# SPDX-License-Identifier: GPL-3.0-or-later
"""Bragg vectors as py4DSTEM saves them: calibrated as there, or refused.

The scans in fixtures/bragg_*.h5, and the vectors to expect from them, are py4DSTEM's own
(experiments/fixtures/make_bragg_fixtures.py).
"""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import FIXTURES, assert_refused

from jaxstem.detection.calibration import IN_PIXELS
from jaxstem.detection.opening import read_scan
from jaxstem.files.emd import bragg_source, read_disks
from jaxstem.files.scan import joined, source_of

CALIBRATED = np.load(FIXTURES / "bragg_calibrated.npz")


CASES = sorted({name.split("/")[0] for name in CALIBRATED.files})


CALIBRATION = "film_root/metadatabundle/calibration"


DISKS = "film_root/disks/_v_uncal/data"


@pytest.fixture
def scan_file(tmp_path):
    """A copy of the fully calibrated scan, to be spoilt."""
    return Path(shutil.copy(FIXTURES / "bragg_all.h5", tmp_path / "scan.h5"))


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


@pytest.mark.parametrize("units", ["nm^-1", " 1/nm"])
def test_inverse_nanometres_are_converted(scan_file, units):
    replace(scan_file, f"{CALIBRATION}/Q_pixel_units", units.encode())
    scan = read_disks(scan_file)
    np.testing.assert_allclose(scan.qx, 0.1 * CALIBRATED["all/vectors"][:, 0], atol=2e-8)


@pytest.mark.parametrize("units", ["Å^-1", "1 / A"])
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
        ("qy0", -1e300, ["no usable numbers"]),
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
