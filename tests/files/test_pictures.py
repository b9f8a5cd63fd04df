# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures and plain arrays as scans: each pattern in its place, colours refused."""

import numpy as np
import pytest
import tifffile
import zarr
from helpers import assert_refused, read_or_refuse
from PIL import Image

from jaxstem.detection.opening import open_cube
from jaxstem.detection.reading import ReadOptions
from jaxstem.files.cube_readers import read_cube
from jaxstem.files.stack import Frames

ROWS, COLUMNS = 3, 5
SHAPE = (ROWS, COLUMNS, 12, 10)


@pytest.fixture
def data(rng):
    return rng.integers(0, 60_000, SHAPE).astype(np.uint16)


@pytest.fixture
def stack(data):
    return data.reshape(-1, *SHAPE[2:])


def assert_same(cube, data):
    """All patterns, in any portion; nothing is known of them but what they are."""
    assert cube.shape == data.shape and cube.dtype == data.dtype
    np.testing.assert_array_equal(cube.rows(0, len(data)), data)
    np.testing.assert_array_equal(cube.read(slice(1, None), slice(1, None, 2)), data[1:, 1::2])
    assert cube.pixel_size is None and cube.voltage_kv is None and cube.calibration == {}


@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_pages_of_a_tiff(tmp_path, data, stack, compression, byteorder):
    path = tmp_path / "scan.tif"
    tifffile.imwrite(
        path, stack.astype(byteorder + "u2"), compression=compression, byteorder=byteorder
    )
    assert_refused(read_cube, path, "15 patterns", "--scan-shape ROWS COLUMNS")
    assert_same(read_cube(path, (ROWS, COLUMNS)), data)
    some = read_cube(path, (2, 3), frames=Frames(4, 12, 1))
    np.testing.assert_array_equal(some.rows(0, 2), stack[4:12].reshape(2, 4, *SHAPE[2:])[:, :3])


@pytest.mark.parametrize("written", ["page by page", "imagej", "four axes", "ome"])
def test_tiffs_of_other_programs(tmp_path, data, stack, written):
    path = tmp_path / ("scan.ome.tiff" if written == "ome" else "scan.TIFF")
    if written == "page by page":
        with tifffile.TiffWriter(path) as writer:
            for page in stack:
                writer.write(page, metadata=None, contiguous=False)
    elif written == "imagej":
        tifffile.imwrite(path, stack, imagej=True)
    elif written == "ome":
        tifffile.imwrite(path, stack, ome=True, metadata={"axes": "TYX"})
    else:
        tifffile.imwrite(path, data)
        assert_same(read_cube(path), data)
        assert_refused(lambda path: read_cube(path, (5, 3)), path, "3 × 5 positions, not 5 × 3")
        return
    assert_same(read_cube(path, (ROWS, COLUMNS)), data)


def test_the_size_of_a_pixel_in_a_tiff(tmp_path, stack):
    """As Digital Micrograph and ImageJ state it; a printer's resolution is none."""
    path = tmp_path / "pattern.tif"
    tifffile.imwrite(path, stack[0], imagej=True, resolution=(4, 4), metadata={"unit": "1/nm"})
    assert read_cube(path).pixel_size == pytest.approx(0.025)
    tifffile.imwrite(path, stack[0], resolution=(300, 300), resolutionunit="INCH")
    assert read_cube(path).pixel_size is None


@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_single_patterns(tmp_path, stack, suffix):
    """A scan of one position, with what is said of its pixels."""
    path = tmp_path / f"pattern{suffix}"
    Image.fromarray(stack[3]).save(path)
    assert_same(read_cube(path), stack[None, None, 3])
    known = open_cube(path, ReadOptions(pixel_size=0.01, voltage_kv=200.0))
    assert (known.pixel_size, known.voltage_kv) == (0.01, 200.0)
    assert_refused(lambda path: read_cube(path, (2, 2)), path, "1 patterns", "--scan-shape")


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P"])
def test_grey_levels_however_a_png_holds_them(tmp_path, stack, mode):
    path, levels = tmp_path / "pattern.png", (stack[0] >> 8).astype(np.uint8)
    Image.fromarray(levels).convert(mode).save(path)
    assert_same(read_cube(path), levels[None, None])


@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_colours_are_no_counts(tmp_path, stack, suffix):
    path, levels = tmp_path / f"pattern{suffix}", (stack[:3] >> 8).astype(np.uint8)
    Image.fromarray(np.moveaxis(levels, 0, -1)).save(path)
    assert_refused(read_cube, path, "colours")
    Image.fromarray(np.repeat(levels[0][..., None], 3, axis=-1)).save(path)
    assert_same(read_cube(path), levels[None, None, 0])


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_pictures_that_are_not_right_are_refused(tmp_path, stack, compression):
    path = tmp_path / "scan.tif"
    tifffile.imwrite(path, stack, compression=compression)
    content = path.read_bytes()
    for length in (0, 7, len(content) // 2, len(content) - 200):
        path.write_bytes(content[:length])
        cube = read_or_refuse(lambda path: read_cube(path, (ROWS, COLUMNS)), path)
        if cube is not None:  # what was cut off says nothing of the patterns
            assert length > len(content) / 2
            np.testing.assert_array_equal(cube.rows(0, ROWS).reshape(stack.shape), stack)
    with tifffile.TiffWriter(path) as writer:
        for page in stack, stack[:, 1:]:
            writer.write(page)
    assert_refused(read_cube, path, "holds 2 scans")
    film = [Image.fromarray((page >> 8).astype(np.uint8)) for page in stack]
    film[0].save(tmp_path / "film.png", save_all=True, append_images=film[1:])
    assert_refused(read_cube, tmp_path / "film.png", "film")
    (tmp_path / "text.png").write_text("no picture")
    assert_refused(read_cube, tmp_path / "text.png", "cannot be read")
    Image.new("L", (5, 5)).save(tmp_path / "small.png")
    assert_refused(read_cube, tmp_path / "small.png", "8 × 8 detector pixels")


def test_zarr(tmp_path, data, stack):
    """An array of four axes, or a stack, alone or the only one of its kind in a group."""
    path = tmp_path / "scan.zarr"
    zarr.open(str(path), mode="w", shape=SHAPE, chunks=(1, 2, 12, 10), dtype="u2")[:] = data
    assert_same(read_cube(path), data)
    path = tmp_path / "stack.zarr"
    group = zarr.open_group(str(path), mode="w")
    group.create_dataset("entry/frames", data=stack, chunks=(4, 12, 10))
    group["times"] = np.arange(15.0)
    assert_refused(read_cube, path, "15 patterns")
    assert_same(read_cube(path, (ROWS, COLUMNS)), data)
    group["more"] = stack[:2]
    assert_refused(read_cube, path, "2 scans")


def test_stores_that_are_not_right_are_refused(tmp_path, data):
    assert_refused(read_cube, tmp_path / "none.zarr", "does not exist")
    (tmp_path / "empty.zarr").mkdir()
    assert_refused(read_cube, tmp_path / "empty.zarr", "cannot be read")
    path = tmp_path / "scan.zarr"
    zarr.open(str(path), mode="w", shape=SHAPE, chunks=(1, 5, 12, 10), dtype="u2")[:] = data
    (path / "2.0.0.0").write_bytes(b"no chunk")
    assert_refused(read_cube, path, "damaged")
    (path / ".zarray").unlink()
    (path / "zarr.json").write_text("{}")
    assert_refused(read_cube, path, "format 3")
