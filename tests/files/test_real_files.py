# SPDX-License-Identifier: GPL-3.0-or-later
"""Files from instruments, which lie beside a working copy and are not of the project: each is read
as RosettaSciIO reads it, or refused for what it is.
"""

import importlib
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_refused

from jaxstem.files.cube_readers import read_cube

REAL = Path(__file__).parents[3] / "shared" / "data" / "real"

pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason="the files are not here")


@pytest.fixture(scope="module")
def merlin(tmp_path_factory):
    """The Merlin files, unpacked."""
    folder = tmp_path_factory.mktemp("merlin")
    for name in ("Merlin_Single_Quad", "Merlin_navigation4x2_signalNx256_ROI"):
        with zipfile.ZipFile(REAL / f"{name}.zip") as packed:
            packed.extractall(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "shape", "pixel_size", "step", "voltage_kv"),
    [
        ("nanomegas_saturated.blo", (3, 2, 144, 144), None, (12.8, "nm"), 200.0),
        ("austenite_2x2.hspy", (2, 2, 256, 256), 0.01261, (2.0, "nm"), None),
        ("Amorphous.hspy", (1, 1, 512, 512), None, (1.0, "pixels"), 200.0),
        ("moo3_20cm.tif", (1, 1, 256, 256), None, (1.0, "pixels"), None),
        ("single_pattern.dm3", (1, 1, 87, 87), 0.0174433, (1.0, "pixels"), 200.0),
        ("arina/test_00_master.h5", (4, 4, 192, 192), None, (1.0, "pixels"), 300.0),
    ],
)
def test_what_is_understood(name, shape, pixel_size, step, voltage_kv):
    cube = read_cube(REAL / name)
    assert cube.shape == shape and (cube.scan_step, cube.scan_units) == step
    assert cube.pixel_size == (pixel_size and pytest.approx(pixel_size, rel=1e-4))
    assert cube.voltage_kv == voltage_kv
    assert np.isfinite(cube.rows(0, shape[0])).all()


def test_a_stack_has_the_shape_that_is_said():
    path = REAL / "sped_ag_5patterns.hspy"
    assert_refused(read_cube, path, "5 patterns", "--scan-shape")
    cube = read_cube(path, (1, 5))
    assert cube.shape == (1, 5, 112, 112) and cube.pixel_size == pytest.approx(0.02673, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "reader"),
    [
        ("nanomegas_saturated.blo", "blockfile"),
        ("sped_ag_5patterns.hspy", "hspy"),
        ("austenite_2x2.hspy", "hspy"),
        ("moo3_20cm.tif", "tiff"),
        ("single_pattern.dm3", "digitalmicrograph"),
    ],
)
def test_counts_are_those_of_rosettasciio(name, reader):
    expected = importlib.import_module(f"rsciio.{reader}").file_reader(str(REAL / name))
    expected = next(np.asarray(signal["data"]) for signal in expected if signal["data"].ndim > 1)
    cube = read_cube(REAL / name, (1, 5) if "5patterns" in name else None)
    np.testing.assert_array_equal(cube.rows(0, cube.shape[0]).reshape(expected.shape), expected)


def test_direct_electron_is_refused_for_its_few_pixels():
    """A file made for tests: 4 × 8 positions, as its information says, of 4 × 8 pixels."""
    assert_refused(read_cube, REAL / "20241021_00405_movie.mrc", "(4, 8, 4, 8)", "8 × 8 detector")


@pytest.mark.parametrize("chips", ["Single", "Quad"])
@pytest.mark.parametrize("depth", [1, 6, 12, 24])
def test_merlin_of_each_depth(merlin, chips, depth):
    """One frame is a scan of one position, and nine frames are a stack."""
    from rsciio.quantumdetector import file_reader

    for frames in (1, 9):
        path = merlin / f"{chips}_{frames}_Frame_CounterDepth_{depth}_Rows_256.mib"
        if frames == 9:
            assert_refused(read_cube, path, "9 patterns", "--scan-shape ROWS COLUMNS (3 3")
        cube = read_cube(path, (3, 3) if frames == 9 else None)
        expected = np.asarray(file_reader(str(path))[0]["data"])
        found = cube.rows(0, cube.shape[0])
        np.testing.assert_array_equal(found.reshape(expected.shape), expected)


@pytest.mark.parametrize("rows", [128, 64])
def test_merlin_of_fewer_rows(merlin, rows):
    """The file's name counts the hot pixel from the lowest row, which is stored first."""
    (path,) = merlin.glob(f"*sig256x{rows}_nav4x2*.mib")
    cube = read_cube(path)
    assert cube.shape == (2, 4, rows, 256)
    hot = np.unravel_index(cube.rows(0, 2).sum((0, 1)).argmax(), (rows, 256))
    assert hot == (rows - 1 - 39, 52)


def test_raw_frames_of_merlin_are_said_to_be_raw(merlin):
    raw = sorted(merlin.glob("*RAW.mib"))
    assert len(raw) == 4
    for path in raw:
        assert_refused(read_cube, path, "raw (R64)")
