# SPDX-License-Identifier: GPL-3.0-or-later
"""One scan in every format: the same patterns, pixel size, step and voltage come back.

Patterns and calibration being equal to the last bit, so are the disks found in them. HyperSpy
files, Blockfile and TVIPS are written by RosettaSciIO, the others byte by byte from their published
layouts. Counts, scan and detector differ along every axis, so that no exchange of axes goes unseen.
"""

import importlib
import json
import string
import struct

import h5py
import numpy as np
import pytest
import tifffile
from helpers import assert_refused, read_or_refuse
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxstem.crystal.electron import electron_wavelength
from jaxstem.files.axes import turned
from jaxstem.files.calibration import calibrate_disks
from jaxstem.files.cube import chunks, sample
from jaxstem.files.cube_readers import read_cube
from jaxstem.files.stack import Frames

ROWS, COLUMNS, HEIGHT, WIDTH = 3, 5, 12, 10
PIXEL, STEP, KV = 0.025, 2.5, 200.0


@pytest.fixture
def data(rng):
    return rng.integers(0, 200, (ROWS, COLUMNS, HEIGHT, WIDTH)).astype(np.uint8)


def signal(data, units="1/nm", scale=10 * PIXEL, row_scale=None, lengths="nm"):
    """A scan as RosettaSciIO's writers take it."""
    names, sizes = ("y", "x", "ky", "kx"), data.shape
    scales = (STEP, STEP, row_scale or scale, scale)
    axes = [
        {
            "_type": "UniformDataAxis",
            "name": name,
            "size": size,
            "scale": step,
            "offset": 0.0,
            "units": unit,
            "navigate": i < 2,
            "is_binned": False,
            "index_in_array": i,
        }
        for i, (name, size, step, unit) in enumerate(
            zip(names, sizes, scales, (lengths, lengths, units, units), strict=True)
        )
    ]
    tem = {"beam_energy": KV}
    return {
        "data": data,
        "axes": axes,
        "metadata": {
            "General": {"title": "scan"},
            "Signal": {"signal_type": "electron_diffraction"},
            "Acquisition_instrument": {"TEM": tem},
        },
        "original_metadata": {},
        "attributes": {"_lazy": False, "ragged": False},
        "tmp_parameters": {},
        "learning_results": {},
        "package_info": {"package": "jaxstem", "package_version": "0"},
        "models": {},
    }


def write_hspy(path, data, **about):
    from rsciio.hspy import file_writer

    file_writer(str(path), signal(data, **about))
    return path


def write_zspy(path, data, **about):
    from rsciio.zspy import file_writer

    file_writer(str(path), signal(data, **about))
    return path


def write_tvips(path, data):
    from rsciio.tvips import file_writer

    file_writer(str(path), signal(data))
    return path.with_name(path.stem + "_000.tvips")


def write_blo(path, data):
    from rsciio.blockfile import file_writer

    content = signal(data, units="cm", scale=0.02)
    file_writer(str(path), content, navigator=np.zeros(data.shape[:2], np.uint8))
    return path


def write_mib(path, data, hdr=True, triggers=ROWS, scan=""):
    """Merlin: frames of a 384-byte header and big-endian numbers, the lowest detector row first."""
    height, width = data.shape[2:]
    frames = b""
    for number, pattern in enumerate(data.reshape(-1, height, width), 1):
        head = (
            f"MQ1,{number:06d},00384,01,{width:04d},{height:04d},U16,   1x1,01,"
            "2024-01-01 10:00:00.000000,0.001,0,0,0,1.0E+2,MQ1A,"
            "2024-01-01T10:00:00.000000Z,1000000ns,12,"
        )
        frames += head.ljust(384).encode() + pattern[::-1].astype(">u2").tobytes()
    path.write_bytes(frames)
    if hdr:
        lines = {
            "Frames in Acquisition": ROWS * COLUMNS,
            "Frames per Trigger": ROWS * COLUMNS // triggers,
        }
        text = "".join(f"{name} (Number):\t{value}\n" for name, value in lines.items())
        path.with_suffix(".hdr").write_text(f"HDR,\t\n{text}{scan}End\t\n")
    return path


def write_empad(path, data):
    """128 × 128 float32 numbers a frame and two more lines, described by an .xml."""
    big = np.zeros((ROWS, COLUMNS, 130, 128), "<f4")
    big[:, :, :HEIGHT, :WIDTH] = data
    big[:, :, 128:] = -7.0
    path.with_suffix(".raw").write_bytes(big.tobytes())
    path.write_text(
        f"<root><raw_file filename='{path.stem}.raw'/>"
        f"<pix_x>{COLUMNS}</pix_x><pix_y>{ROWS}</pix_y><iom_measurements>"
        f"<calibrated_pixelsize>{1e-9 * 10 * PIXEL}</calibrated_pixelsize>"
        "</iom_measurements></root>"
    )
    return path


def write_dm(
    path,
    data,
    version=4,
    swapped=True,
    tagged=True,
    units="1/nm",
    scale=10 * PIXEL,
    rotation=None,
):
    """Digital Micrograph: a tree of tags, big-endian lengths, little-endian values. `swapped`: with
    the detector's axes running fastest; `rotation` [degrees]: DigiScan's.
    """
    word = ">q" if version == 4 else ">i"

    def number(*values):
        return b"".join(struct.pack(word, value) for value in values)

    def tag(kind, name, body):
        length = struct.pack(">q", len(body)) if version == 4 else b""
        return struct.pack(">bh", kind, len(name)) + name.encode() + length + body

    def value(name, code, letter, content):
        return tag(21, name, b"%%%%" + number(1, code) + struct.pack("<" + letter, content))

    def array(name, code, content):
        return tag(21, name, b"%%%%" + number(3, 20, code, content.size) + content.tobytes())

    def text(name, content):
        return array(name, 4, np.frombuffer(content.encode("utf-16-le"), "<u2"))

    def group(name, *tags):
        return tag(20, name, bytes([0, 0]) + number(len(tags)) + b"".join(tags))

    stored = data if swapped else data.transpose(2, 3, 0, 1)
    sizes = stored.shape[::-1]
    real, reciprocal = (STEP, "nm"), (scale, units)
    order = [reciprocal, reciprocal, real, real][: data.ndim]
    order = order if swapped else order[::-1]
    dimensions = [
        group("", value("Origin", 6, "f", 0), value("Scale", 6, "f", step), text("Units", unit))
        for step, unit in order
    ]
    brightness = [value("Origin", 6, "f", 0), value("Scale", 6, "f", 1), text("Units", "")]
    calibrations = group(
        "Calibrations", group("Brightness", *brightness), group("Dimension", *dimensions)
    )
    image = group(
        "ImageData",
        calibrations,
        array("Data", 4, np.ascontiguousarray(stored, "<u2")),
        value("DataType", 5, "I", 10),
        group("Dimensions", *(value("", 5, "I", size) for size in sizes)),
    )
    meta = [text("Format", "Diffraction image")]
    if tagged:
        meta.append(value("Data Order Swapped", 8, "B", swapped))
    about = group(
        "ImageTags",
        group("Meta Data", *meta),
        group("Microscope Info", value("Voltage", 6, "f", 1e3 * KV)),
        *([] if rotation is None else [group("DigiScan", value("Rotation", 7, "d", rotation))]),
    )
    body = group("ImageList", group("", image, about))
    root = bytes([0, 0]) + number(1) + body
    path.write_bytes(struct.pack(">i", version) + number(len(root)) + struct.pack(">i", 1) + root)
    return path


def read_all(path, scan_shape=None):
    """The whole scan of a cube, row by row; what is read has the shape that was promised."""
    cube = read_cube(path, scan_shape)
    assert np.prod(cube.shape, dtype=float) < 1e7, "the files here are small"
    for row in range(cube.shape[0]):
        assert cube.rows(row, row + 1).shape == (1, *cube.shape[1:])
    return cube


def scan_shape_of(suffix):
    """What must be said of a format that does not state its scan."""
    return (ROWS, COLUMNS) if suffix in (".tvips", ".mrc", ".tif") else None


def refused(path, *words, scan_shape=None):
    assert_refused(lambda path: read_all(path, scan_shape), path, *words)


def assert_same(cube, data, pixel_size=PIXEL, step=(STEP, "nm"), voltage_kv=KV):
    """All patterns, in any portion, and what is known of them."""
    assert cube.shape == data.shape
    for start, block in chunks(cube, 3):
        np.testing.assert_array_equal(
            block, data.reshape(-1, *data.shape[2:])[start:][: len(block)]
        )
    np.testing.assert_array_equal(cube.rows(0, len(data)), data)
    np.testing.assert_array_equal(cube.read(slice(1, None), slice(1, None, 2)), data[1:, 1::2])
    assert len(sample(cube, 4)) and cube.dtype.kind in "uf"
    assert cube.pixel_size == (pixel_size and pytest.approx(pixel_size, rel=1e-6))
    assert (cube.scan_step, cube.scan_units) == (pytest.approx(step[0]), step[1])
    assert cube.voltage_kv == (voltage_kv and pytest.approx(voltage_kv))


def test_hyperspy(tmp_path, data):
    assert_same(read_cube(write_hspy(tmp_path / "scan.hspy", data)), data)
    renamed = (tmp_path / "scan.hspy").rename(tmp_path / "scan.h5")
    assert_same(read_cube(renamed), data)


def test_zspy(tmp_path, data):
    pytest.importorskip("zarr", minversion="2", reason="RosettaSciIO's zspy extra")
    assert_same(read_cube(write_zspy(tmp_path / "scan.zspy", data)), data)


def test_blockfile(tmp_path, data):
    """Its pixels are centimetres on a screen, which say nothing without the camera's length."""
    square = data[..., :WIDTH, :]
    path = write_blo(tmp_path / "scan.blo", square)
    cube = read_cube(path)
    assert_same(cube, square, pixel_size=None, voltage_kv=cube.voltage_kv)
    assert cube.pixel_units == "cm"
    known = read_cube(path, calibration={"Q_pixel_size": 0.03, "Q_pixel_units": "A^-1"})
    assert known.pixel_size == 0.03
    path.write_bytes(path.read_bytes()[:-5])
    refused(path, "cut short")


def test_tvips(tmp_path, data):
    path = write_tvips(tmp_path / "scan.tvips", data)
    refused(path, f"{ROWS * COLUMNS} patterns", "--scan-shape ROWS COLUMNS")
    cube = read_cube(path, scan_shape=(ROWS, COLUMNS))
    assert_same(cube, data, pixel_size=None, step=(1.0, "pixels"))


def test_one_trigger_for_all_frames_of_merlin_says_no_shape(tmp_path, data):
    path = write_mib(tmp_path / "one.mib", data, triggers=1)
    refused(path, f"{ROWS * COLUMNS} patterns", "does not state the shape")
    path = write_mib(tmp_path / "scan.mib", data, triggers=1, scan="ScanX:\t5\nScanY:\t3\n")
    cube = read_cube(path)
    assert cube.scan_shape == (ROWS, COLUMNS) and "rows reversed" in cube.axes


@pytest.mark.parametrize("hdr", [True, False])
def test_merlin(tmp_path, data, hdr):
    path = write_mib(tmp_path / "scan.mib", data, hdr)
    about = {"pixel_size": None, "step": (1.0, "pixels"), "voltage_kv": None}
    if not hdr:
        refused(path, "does not state the shape")
    refused(path, "15 patterns", "4 × 4", scan_shape=(4, 4))
    assert_same(read_cube(path, None if hdr else (ROWS, COLUMNS)), data, **about)
    path.write_bytes(path.read_bytes()[:-100])
    refused(path, "14 patterns", scan_shape=(ROWS, COLUMNS))
    path.write_text("MQ1,no header")
    refused(path, "cut short, damaged")


def test_raw_frames_of_merlin_are_said_to_be_raw(tmp_path, data):
    path = write_mib(tmp_path / "scan.mib", data)
    path.write_bytes(path.read_bytes().replace(b",U16,", b",R64,"))
    refused(path, "raw (R64)", "convert it to counts")


def write_mrc(path, frames, mode=6):
    """MRC: a header of 1024 bytes, then the frames."""
    header = np.zeros(256, "<i4")
    header[[0, 1, 2, 3]] = frames.shape[2], frames.shape[1], frames.shape[0], mode
    header[[7, 8, 9]] = frames.shape[::-1]
    header[[10, 11, 12]] = np.ones(3, "<f4").view("<i4")
    header[[16, 17, 18]] = 1, 2, 3
    path.write_bytes(header.tobytes() + frames.astype("<u2").tobytes())
    return path


def test_mrc(tmp_path, data):
    """A stack, whose header says nothing of reciprocal space, and a single pattern."""
    path = write_mrc(tmp_path / "scan.mrc", data.reshape(-1, HEIGHT, WIDTH))
    refused(path, "15 patterns", "--scan-shape")
    about = {"pixel_size": None, "step": (1.0, "pixels"), "voltage_kv": None}
    cube = read_cube(path, (ROWS, COLUMNS))
    assert_same(cube, data, **about)
    assert cube.pixel_units is None
    one = read_cube(write_mrc(tmp_path / "one.mrc", data[1, 2:3]))
    assert_same(one, data[1:2, 2:3].astype(np.uint16), **about)
    path.write_bytes(path.read_bytes()[:-100])
    refused(path, "cut short", scan_shape=(ROWS, COLUMNS))


def write_tiff(path, data):
    """Compressed pages, the first of which a cut takes last."""
    tifffile.imwrite(path, data.reshape(-1, *data.shape[2:]), compression="zlib", metadata=None)
    return path


INFORMATION = {
    "Instrument Accelerating Voltage (V)": 1e3 * KV,
    "Diffraction Pixel Size X": 0.1,
    "Diffraction Pixel Size Y": 0.1,
    "Scan - Enable": "Enable",
    "Scan - Size X": COLUMNS,
    "Scan - Size Y": ROWS,
    "Scan - Type": "Raster",
    "Specimen Pixel Size X (nanometers)": STEP,
    "Specimen Pixel Size Y (nanometers)": STEP,
    "Image Size X (pixels)": WIDTH,
    "Image Size Y (pixels)": HEIGHT,
}
"""What Direct Electron writes beside a scan."""


def write_information(path, **changes):
    said = INFORMATION | {name.replace("_", " "): value for name, value in changes.items()}
    path.write_text("".join(f"{name:60} = {value}\n" for name, value in said.items()))


@pytest.mark.parametrize("name", ["20240101_00042_movie.mrc", "scan_movie.mrc", "scan.mrc"])
def test_direct_electron(tmp_path, data, name):
    """Rows, columns, step and voltage of the information file; its pixel size has no unit."""
    path = write_mrc(tmp_path / name, data.reshape(-1, HEIGHT, WIDTH))
    write_information(tmp_path / (name.split(".")[0].removesuffix("_movie") + "_info.txt"))
    cube = read_cube(path)
    assert_same(cube, data, pixel_size=None)
    assert "information file" in cube.axes and "does not name" in cube.pixel_units


def test_direct_electron_that_scans_to_and_fro(tmp_path, data):
    """Each frame at the column and row that the file of positions says."""
    there = [(x, y) for y in range(ROWS) for x in range(COLUMNS)[:: 1 if y % 2 else -1]]
    frames = np.stack([data[y, x] for x, y in there])
    path = write_mrc(tmp_path / "20240101_00042_movie.mrc", frames)
    write_information(tmp_path / "20240101_00042_info.txt", **{"Scan - Type": "Serpentine"})
    np.savetxt(tmp_path / "20240101_00042_scan_coordinates.csv", there, "%d", delimiter=",")
    assert_same(read_cube(path), data, pixel_size=None)


def test_direct_electron_of_other_numbers(tmp_path, data):
    """Several scans in one file, or one that was broken off, have no shape that is stated."""
    path = write_mrc(tmp_path / "scan.mrc", data.reshape(-1, HEIGHT, WIDTH))
    write_information(tmp_path / "scan_info.txt", **{"Scan - Size Y": 2})
    refused(path, "15 patterns", "--scan-shape")
    assert_same(read_cube(path, (ROWS, COLUMNS)), data, None, (1.0, "pixels"))
    write_information(tmp_path / "scan_info.txt", **{"Scan - Size X": "many"})
    refused(path, "15 patterns", "--scan-shape")


@pytest.mark.parametrize("said", ["?", "true", "nan", "1e400", "-2", "0"])
@pytest.mark.parametrize("axis", ["X", "Y"])
def test_direct_electron_of_steps_that_are_none(tmp_path, data, said, axis):
    path = write_mrc(tmp_path / "scan.mrc", data.reshape(-1, HEIGHT, WIDTH))
    sizes = {"X": STEP, "Y": STEP, axis: said}
    lines = [f"Specimen Pixel Size {x} (nanometers) = {size}" for x, size in sizes.items()]
    (tmp_path / "scan_info.txt").write_text("\n".join(["Scan - Type = Raster", *lines]))
    refused(path, "15 patterns", "--scan-shape")
    cube = read_cube(path, (ROWS, COLUMNS))
    assert_same(cube, data, None, (1.0, "pixels"), cube.voltage_kv)


def test_empad(tmp_path, data):
    path = write_empad(tmp_path / "scan_x5_y3.xml", data)
    big = np.zeros((ROWS, COLUMNS, 128, 128), np.float32)
    big[:, :, :HEIGHT, :WIDTH] = data
    for name in (path, path.with_suffix(".raw")):
        assert_same(read_cube(name), big, step=(1.0, "pixels"), voltage_kv=None)
    raw = path.with_suffix(".raw")
    raw.write_bytes(raw.read_bytes()[:-100])
    refused(raw, "cut short")
    raw.unlink()
    refused(path, "missing")


@pytest.mark.parametrize("version", [3, 4])
@pytest.mark.parametrize("swapped", [True, False])
@pytest.mark.parametrize("tagged", [True, False])
def test_digital_micrograph(tmp_path, data, version, swapped, tagged):
    """In both orders of the axes, which a tag tells, or else the units."""
    path = write_dm(tmp_path / f"scan.dm{version}", data, version, swapped, tagged)
    assert_same(read_cube(path), data)


def test_digital_micrograph_says_how_its_scan_is_turned(tmp_path, data):
    """A scan turned from its rows towards its columns sees patterns turned the other way."""
    cube = read_cube(write_dm(tmp_path / "scan.dm4", data, rotation=30.0))
    assert_same(cube, data)
    assert "2.5 nm" in cube.axes and "30° by its tag DigiScan.Rotation" in cube.axes
    qx, qy = turned(np.array([1.0]), np.array([0.0]), cube.calibration)
    assert (qx[0], qy[0]) == (pytest.approx(np.sqrt(0.75)), pytest.approx(-0.5))
    given = read_cube(tmp_path / "scan.dm4", calibration={"QR_rotation": 0.2})
    assert given.calibration["QR_rotation"] == 0.2
    plain = read_cube(write_dm(tmp_path / "plain.dm4", data))
    assert "QR_rotation" not in plain.calibration and "DigiScan" not in plain.axes


@pytest.mark.parametrize("version", [3, 4])
def test_single_patterns_and_stacks_of_digital_micrograph(tmp_path, data, version):
    one = read_cube(write_dm(tmp_path / f"one.dm{version}", data[1, 2], version))
    np.testing.assert_array_equal(one.rows(0, 1), data[1:2, 2:3])
    assert one.pixel_size == pytest.approx(PIXEL) and one.voltage_kv == pytest.approx(KV)
    stack = write_dm(tmp_path / f"stack.dm{version}", data[1], version)
    refused(stack, "5 patterns", "--scan-shape")
    np.testing.assert_array_equal(read_cube(stack, (5, 1)).rows(0, 5), data[1][:, None])


def test_digital_micrograph_in_milliradians(tmp_path, data):
    path = write_dm(tmp_path / "scan.dm4", data, units="mrad", scale=0.5)
    expected = 0.5e-3 / electron_wavelength(1e3 * KV)
    assert_same(read_cube(path), data, pixel_size=expected)
    path.write_bytes(path.read_bytes()[:-2000])
    refused(path, "damaged")


@pytest.mark.parametrize(("units", "expected"), [("$A^{-1}$", 10.0), ("1 / nm", 1.0)])
def test_units_of_reciprocal_length(tmp_path, data, units, expected):
    cube = read_cube(write_hspy(tmp_path / "scan.hspy", data, units=units))
    assert cube.pixel_size == pytest.approx(expected * PIXEL)


@pytest.mark.parametrize("units", ["px", "<undefined>"])
def test_other_units_give_no_pixel_size(tmp_path, data, units):
    assert read_cube(write_hspy(tmp_path / "scan.hspy", data, units=units)).pixel_size is None


def test_pixels_that_are_not_square(tmp_path, data):
    """Detector rows 1.2 times as far apart: the calibration's ellipse takes it out."""

    path = write_hspy(tmp_path / "scan.hspy", data, row_scale=12 * PIXEL)
    cube = read_cube(path)
    disks = np.rec.fromarrays([[4.0, 7.0], [5.0, 3.0]], names="qx,qy")
    calibration = cube.calibration | {"qx0": 1.0, "qy0": 1.0}
    qx, qy = calibrate_disks(disks, np.array([2]), (1, 1), calibration, path)
    np.testing.assert_allclose(qx, 1.2 * PIXEL * np.array([3.0, 6.0]))
    np.testing.assert_allclose(qy, PIXEL * np.array([4.0, 2.0]))


def write_part(path, data, first, line=False):
    """A part of a scan that has its axes from the `first` on; a `line` of positions, if so said."""
    file_writer = importlib.import_module(f"rsciio.{path.suffix[1:]}").file_writer
    part = signal(np.zeros((ROWS, COLUMNS, HEIGHT, WIDTH)))
    axes = [dict(axis, index_in_array=i) for i, axis in enumerate(part["axes"][first:])]
    axes[0]["navigate"] |= line
    part["data"], part["axes"] = data, axes
    file_writer(str(path), part)
    return path


@pytest.mark.parametrize("suffix", [".hspy", ".zspy"])
def test_single_patterns_and_stacks(tmp_path, data, suffix):
    """A file of one pattern is a scan of one position; a stack is the scan that the user says."""
    one = read_cube(write_part(tmp_path / f"one{suffix}", data[1, 2], 2))
    np.testing.assert_array_equal(one.rows(0, 1), data[1:2, 2:3])
    assert one.pixel_size == pytest.approx(PIXEL) and one.voltage_kv == KV
    stack = write_part(tmp_path / f"stack{suffix}", data[1], 1)
    refused(stack, "5 patterns", "--scan-shape")
    np.testing.assert_array_equal(read_cube(stack, (1, 5)).rows(0, 1), data[1:2])
    middle = read_cube(stack, (1, 2), frames=Frames(1, 4, 1))
    np.testing.assert_array_equal(middle.rows(0, 1), data[1:2, 1:3])


def test_what_is_no_scan_is_refused(tmp_path, data):
    refused(tmp_path / "absent.mib", "does not exist")
    for name in ("a.mib", "a.dm3", "a.dm4", "a.blo", "a.xml", "a_000.tvips", "a.hspy"):
        (tmp_path / name).write_bytes(b"no scan at all" * 100)
        refused(tmp_path / name)
    profile = write_part(tmp_path / "profile.hspy", data[0, 0, 0], 3)
    refused(profile, "no 4D-STEM scan", "1 axes")
    # a line of spectra is no pattern
    refused(write_part(tmp_path / "line.hspy", data[0, 0], 2, line=True), "no 4D-STEM scan")
    path = write_hspy(tmp_path / "scan.hspy", data)
    refused(path, "3 × 5 positions, not 5 × 3", scan_shape=(5, 3))


def test_velox(tmp_path, data):
    """A stack of images in the layout of Velox: frames along the last axis."""
    frames = data.reshape(-1, HEIGHT, WIDTH).astype(np.uint16)
    about = {
        "Core": {"MetadataVersion": "7.9"},
        "Optics": {"AccelerationVoltage": str(1e3 * KV)},
        "BinaryResult": {
            "PixelSize": {"width": str(1e10 * PIXEL), "height": str(1e10 * PIXEL)},
            "PixelUnitX": "1/m",
            "PixelUnitY": "1/m",
            "Offset": {"x": "0", "y": "0"},
            "Detector": "Ceta",
        },
        "Scan": {"FrameTime": "0.1"},
        "Acquisition": {"AcquisitionStartDatetime": {"DateTime": "1700000000"}},
        "Detectors": {},
    }
    path = tmp_path / "scan.emd"
    with h5py.File(path, "w") as file:
        file["Version"] = np.array([json.dumps({"format": "Velox", "version": "1.1"})], "S")
        group = file.create_group("Data/Image/0123456789abcdef0123456789abcdef")
        group.create_dataset("Data", data=np.moveaxis(frames, 0, -1), chunks=True)
        text = np.frombuffer(json.dumps(about).encode().ljust(4096, b"\0"), np.uint8)
        group["Metadata"] = np.repeat(text[:, None], len(frames), axis=1)
    cube = read_cube(path, scan_shape=(ROWS, COLUMNS))
    np.testing.assert_array_equal(cube.rows(0, ROWS), data)


WRITERS = {
    ".hspy": write_hspy,
    ".mib": write_mib,
    ".xml": write_empad,
    ".dm4": write_dm,
    ".blo": lambda path, data: write_blo(path, data[..., :WIDTH, :]),
    ".tvips": write_tvips,
    ".mrc": lambda path, data: write_mrc(path, data.reshape(-1, HEIGHT, WIDTH)),
    ".tif": lambda path, data: write_tiff(path, data),
}


def put(path, content):
    """A new file of this name: HDF5 would go on reading one that is still open."""
    path.unlink()
    path.write_bytes(content)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """For each format the file that is damaged, and mended again."""
    folder = tmp_path_factory.mktemp("scans")
    data = np.random.default_rng(0).integers(0, 99, (ROWS, COLUMNS, HEIGHT, WIDTH))
    data = data.astype(np.uint8)
    found = {}
    for suffix, write in WRITERS.items():
        path = write(folder / f"scan{suffix}", data)
        path = path.with_suffix(".raw") if suffix == ".xml" else path
        found[suffix] = path
        assert read_all(path, scan_shape_of(suffix)).scan_shape == (ROWS, COLUMNS)
    return found


@pytest.mark.parametrize("suffix", WRITERS)
@settings(max_examples=8, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_scans_cut_short_are_refused(scans, suffix, share):
    path = scans[suffix]
    content = path.read_bytes()
    put(path, content[: min(int(share * len(content)), len(content) - 1)])
    try:
        assert read_or_refuse(lambda path: read_all(path, scan_shape_of(suffix)), path) is None
    finally:
        put(path, content)


@pytest.mark.parametrize("suffix", [".mib", ".blo", ".dm4", ".tvips", ".mrc", ".tif"])
@settings(max_examples=15, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 255)), max_size=4),
    stated=st.booleans(),
)
def test_scans_with_damaged_headers_are_read_or_refused(scans, suffix, changes, stated):
    """Formats whose headers are parsed in Python, their scan shape known or not."""
    path = scans[suffix]
    content = path.read_bytes()
    damaged = bytearray(content)
    for place, value in changes:
        damaged[place] = value
    put(path, damaged)
    scan_shape = (ROWS, COLUMNS) if stated else scan_shape_of(suffix)
    try:
        read_or_refuse(lambda path: read_all(path, scan_shape), path)
    finally:
        put(path, content)


@settings(max_examples=20, deadline=None)
@given(
    old=st.sampled_from(["<pix_x>5", "<pix_y>3", "<raw_file", "</root>", "scan.raw", "pixelsize"]),
    new=st.text(string.printable.replace(".", ""), max_size=6),
)
def test_empad_descriptions_are_read_or_refused(scans, old, new):
    path = scans[".xml"]
    xml = path.with_suffix(".xml")
    text = xml.read_text()
    xml.write_text(text.replace(old, new))
    try:
        read_or_refuse(read_all, path)
    finally:
        xml.write_text(text)


@pytest.mark.parametrize("suffix", [".mib", ".blo", ".xml", ".tvips"])
def test_a_file_that_becomes_shorter_while_it_is_read_is_refused(data, tmp_path, suffix):
    """It is mapped, and pages that are no more would end the process."""
    write = {".mib": write_mib, ".blo": write_blo, ".xml": write_empad, ".tvips": write_tvips}
    if suffix == ".blo":
        data = data[..., :10, :]
    path = write[suffix](tmp_path / f"scan{suffix}", data)
    cube = read_cube(path, scan_shape=scan_shape_of(path.suffix))
    held = path.with_suffix(".raw") if suffix == ".xml" else path
    held.write_bytes(held.read_bytes()[: held.stat().st_size // 2])
    assert_refused(lambda _: cube.rows(0, 3), path, "has changed")
