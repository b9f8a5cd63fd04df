# SPDX-License-Identifier: GPL-3.0-or-later
"""A file is understood before its disks are looked for, and asked for all that it lacks at once."""

import math
from dataclasses import replace

import h5py
import numpy as np
import pytest
from helpers import BEAM, DISK_RADIUS, patterns_of_disks, sums_everywhere, write_scan
from scipy.ndimage import map_coordinates
from scipy.spatial import cKDTree

from jaxstem.detection.opening import disks_of, look_at, open_scan, searchable
from jaxstem.detection.reading import ReadOptions
from jaxstem.detection.scan import PlannedSearch, calibrated, find_disks, write_bragg
from jaxstem.errors import InputError
from jaxstem.files.axes import told_axes
from jaxstem.files.csv import write_csv
from jaxstem.files.scan import DiskSource


@pytest.fixture(scope="module")
def patterns():
    rng = np.random.default_rng()
    return rng.poisson(patterns_of_disks(rng, 6)[0]).astype(np.uint16)


def write_cube(path, patterns, **calibration):
    with h5py.File(path, "w") as file:
        file.create_group("datacube_root").attrs["emd_group_type"] = "root"
        file["datacube_root/datacube/data"] = patterns.reshape(2, 3, *patterns.shape[1:])
        group = file.create_group("datacube_root/metadatabundle/calibration")
        for name, value in calibration.items():
            group[name] = value
    return path


SIZE = "the detector's pixel size in 1/Å"


@pytest.mark.parametrize(
    ("calibration", "needs_voltage", "lacking", "options"),
    [
        ({}, True, [SIZE, "and the voltage;"], ["--pixel-size 1/Å", "and --voltage-kv KV"]),
        ({}, False, [SIZE + ";"], ["--pixel-size 1/Å", "'jaxstem calibrate'"]),
        ({"Q_pixel_size": 0.03, "Q_pixel_units": "A^-1"}, True, ["the voltage;"], ["--voltage-kv"]),
        ({"Q_pixel_size": 0.3, "Q_pixel_units": "mrad"}, True, ["the voltage (its"], ["-kv KV."]),
        ({"Q_pixel_size": 0.3, "Q_pixel_units": "mrad"}, False, ["the voltage (its"], ["-kv KV."]),
    ],
)
def test_a_cube_is_asked_for_all_at_once(
    tmp_path, patterns, calibration, needs_voltage, lacking, options
):
    path = write_cube(tmp_path / "cube.h5", patterns, **calibration)
    with pytest.raises(InputError) as refused:
        look_at(path, ReadOptions(), needs_voltage=needs_voltage)
    said = str(refused.value)
    assert said.startswith(f"{path} does not state ") and said.count(";") == 1
    for words in (*lacking, *options):
        assert words in said
    # and the answer suffices
    given = {"pixel_size": 0.03} if SIZE in said else {}
    given |= {"voltage_kv": 300.0} if "--voltage-kv" in said else {}
    opened = look_at(path, ReadOptions(**given), needs_voltage=needs_voltage)
    assert isinstance(opened, PlannedSearch) and opened.instrument.pixel_size > 0


def test_lists_are_asked_for_all_at_once(tmp_path):
    path = write_scan(tmp_path / "scan.h5", Q_pixel_size=1, Q_pixel_units="pixels")
    with pytest.raises(
        InputError, match="does not state the detector.* and the voltage; give --pix"
    ):
        look_at(path, ReadOptions(), needs_voltage=True)
    opened = look_at(path, ReadOptions(pixel_size=0.03, voltage_kv=300.0), needs_voltage=True)
    assert isinstance(opened, DiskSource) and opened.instrument.pixel_size_from == "as given"
    assert disks_of(opened) is opened
    # without need of a voltage it is not asked for
    opened = look_at(path, ReadOptions(pixel_size=0.03, rotation_deg=12.0))
    assert opened.instrument.rotation_deg == pytest.approx(12.0)


def test_what_is_understood_of_a_cube(tmp_path, patterns):
    calibration = {"Q_pixel_size": 0.03, "Q_pixel_units": "A^-1", "QR_rotation": math.pi / 6}
    path = write_cube(tmp_path / "cube.h5", patterns, **calibration)
    mask = np.ones(patterns.shape[1:], bool)
    mask[2:4, 5] = False
    opened = look_at(path, ReadOptions(mask=mask, voltage_kv=200.0))
    known = opened.instrument
    np.testing.assert_allclose(known.centre, BEAM, atol=1.0)
    assert known.radius == pytest.approx(DISK_RADIUS, abs=0.5)
    counts = np.where(mask, patterns, 0).sum((1, 2)) / float(opened.plan.gain)
    assert known.dose == pytest.approx(np.median(counts), rel=1e-5)
    assert known.n_masked == 2 and opened.voltage_kv == 200.0
    assert known.rotation_deg == pytest.approx(30.0) and not known.transposed
    assert known.flip == "none" and known.axes == "axes as stored"
    assert (known.pixel_size, known.pixel_size_from) == (0.03, "stated by the file")


MIRRORED = {
    "rows": (lambda x: x[..., ::-1, :], {"flip": "rows"}),
    "columns": (lambda x: x[..., ::-1], {"flip": "columns"}),
    "transposed": (lambda x: np.swapaxes(x, -1, -2), {"transpose": True}),
    "turned": (lambda x: np.rot90(x, 1, (-2, -1)), {"rotation_deg": -90.0}),
    "all": (
        lambda x: np.swapaxes(np.rot90(x, 1, (-2, -1)), -1, -2)[..., ::-1],
        {"flip": "columns", "transpose": True, "rotation_deg": -90.0},
    ),
}


@pytest.fixture(scope="module")
def searched(crowd, settings):
    """What is found in a scan of raw patterns, counts kept, with some options."""

    def found(patterns, **options):
        given = ReadOptions(pixel_size=0.03, voltage_kv=300.0, **options)
        cube, config = searchable(patterns.reshape(4, 8, 64, 64), given, settings)
        return find_disks(cube, config, keep_light=True)

    return found


def light_at(scan, sums, q, position):
    """Electrons about the places of scattering vectors (n, 2) [1/Å] of a position, of `sums`
    everywhere.
    """
    light, detector = scan.light
    place = light.centre[position] + q @ detector.to_places.T
    return map_coordinates(sums[position], place.T, order=1)


def assert_alike(scan, other, n_positions=32, light_to=0.1):
    """The same disks, and as much light about each of them, to a share of it."""
    apart, light = [], []
    if scan.light is not None:
        sums, others = sums_everywhere(scan.light), sums_everywhere(other.light)
    for p in range(n_positions):
        mine, theirs = (slice(x.offsets[p], x.offsets[p + 1]) for x in (scan, other))
        q = np.stack([scan.qx[mine], scan.qy[mine]], -1)
        near = cKDTree(np.stack([other.qx[theirs], other.qy[theirs]], -1))
        sure = scan.intensity[mine] > 600
        apart.extend(near.query(q[sure])[0])
        if scan.light is not None:
            share = other.light.detector.found / scan.light.detector.found
            light.extend(light_at(scan, sums, q, p) / light_at(other, others, q, p) * share)
    # to a hundredth of a pixel, but for those whose fit begins at another pixel
    assert len(apart) > n_positions
    assert np.quantile(apart, 0.9) < 3e-4 and np.max(apart) < 3e-3
    if scan.light is not None:
        assert np.abs(np.log(light)).max() < light_to
        assert scan.light.detector.disk == pytest.approx(other.light.detector.disk, rel=0.02)


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("how", MIRRORED)
def test_a_mirrored_copy_with_its_option_is_the_scan(crowd, searched, tmp_path, how):
    """Raw patterns, the file that `detect` makes of them, and a table of that."""
    mirrored, options = MIRRORED[how]
    scan = calibrated(searched(crowd[0]))
    found = searched(np.ascontiguousarray(mirrored(crowd[0])), **options)
    assert_alike(scan, calibrated(found))
    path = tmp_path / "disks.h5"
    write_bragg(path, found)
    listed = open_scan(path).whole()
    in_file = {"light_to": 0.4}  # of every other place, in coarser steps
    assert_alike(scan, listed, **in_file)
    # what was told is still told apart
    known = listed.instrument
    assert (known.flip, known.transposed) == (
        options.get("flip", "none"),
        options.get("transpose", False),
    )
    assert ("no rotation stated" in told_axes(known)) == (how in ("rows", "columns"))
    # told of the lists alone
    plain = tmp_path / "plain.h5"
    write_bragg(plain, searched(np.ascontiguousarray(mirrored(crowd[0]))))
    assert_alike(scan, open_scan(plain, **options).whole(), **in_file)
    # or of what became of these
    write_csv(tmp_path / "plain.csv", open_scan(plain))
    told = open_scan(tmp_path / "plain.csv", **options)
    assert_alike(replace(scan, light=None), told.whole())
    # as py4DSTEM reads the file
    with h5py.File(path, "r+") as file:
        stored = file["datacube_root/metadatabundle/calibration"]
        assert ("Q_flip" in stored) == ("flip" in options)
        if "Q_flip" in stored:
            del stored["Q_flip"]
    assert_alike(scan, open_scan(path).whole(), **in_file)


def test_flyback_is_dropped_from_lists(tmp_path):
    path = write_scan(tmp_path / "scan.h5")
    whole, cut = open_scan(path), open_scan(path, flyback=1)
    assert cut.scan_shape == (whole.scan_shape[0], whole.scan_shape[1] - 1)
    row, part = whole.read(1, 2), cut.read(1, 2)
    np.testing.assert_array_equal(part.qx, row.qx[: row.offsets[-2]])
    assert "left out at the end of each row: 1" in ", ".join(told_axes(cut.instrument))
    with pytest.raises(InputError, match="--flyback 400 leaves none"):
        open_scan(path, flyback=400)
    with pytest.raises(InputError, match="lists disks.*leave out --skip-frames"):
        open_scan(path, skip_frames=2)


def test_who_says_how_the_axes_lie(tmp_path):
    path = write_scan(tmp_path / "scan.h5", QR_rotation=0.5, QR_flip=True)
    told = ", ".join(told_axes(open_scan(path, flip="rows").instrument))
    assert (
        "rows flipped (as given), transposed (stated by the file), turned by 28.6° (stated" in told
    )
    calibration = {"QR_flip": True, "QR_rotation": 0.1}
    known = open_scan(path, calibration=calibration, rotation_deg=3.0).instrument
    assert told_axes(known)[1:] == ["transposed (calibrated)", "turned by 3.0° (as given)"]
    assert not open_scan(path, transpose=False).instrument.transposed
