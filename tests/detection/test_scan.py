# SPDX-License-Identifier: GPL-3.0-or-later
"""A whole scan: in pieces, on several devices, into files, and what is refused."""

import itertools
import weakref
from dataclasses import replace

import numpy as np
import pytest

from jaxstem.detection import scan
from jaxstem.detection.layout import FoundDisks
from jaxstem.detection.plan import make_plan
from jaxstem.detection.scan import calibrated, detect_in_cube, find_disks, stream_disks, write_bragg
from jaxstem.errors import InputError
from jaxstem.files.cube import cube_from_array
from jaxstem.files.emd import read_disks
from jaxstem.runtime.parallel import make_mesh

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def cube(crowd):
    patterns, *_ = crowd
    return cube_from_array(patterns.reshape(4, 8, 64, 64), scan_step=2.0)


def test_a_scan_on_one_device_and_on_eight(crowd, settings):
    patterns, *_, found = crowd
    cube = cube_from_array(np.concatenate([patterns, patterns]).reshape(8, 8, 64, 64))
    seen = []
    one = find_disks(cube, settings, progress=lambda *x: seen.append(x))
    assert seen == [(32, 64), (64, 64)]
    eight = find_disks(cube, settings, make_mesh())
    np.testing.assert_array_equal(one.offsets, eight.offsets)
    for name in ("row", "column", "counts", "sigma", "significance"):
        np.testing.assert_allclose(getattr(one, name), getattr(eight, name), rtol=2e-3, atol=2e-3)
    assert abs(len(one.row) - 2 * found.mask.sum()) <= 2


def test_numbers_of_another_order_of_bytes(cube, settings):
    """Counts stored big-endian, and signed, are the same counts."""
    same = find_disks(cube, settings)
    for dtype in (">u2", ">i4"):
        other = cube_from_array(cube.rows(0, 4).astype(dtype))
        np.testing.assert_array_equal(find_disks(other, settings).offsets, same.offsets)


@pytest.mark.slow  # test_correlogram.py asks it of the other method
def test_more_disks_than_expected_are_all_found(cube, settings):
    few = find_disks(cube, replace(settings, n_disks=4))
    many = find_disks(cube, settings)
    np.testing.assert_array_equal(few.offsets, many.offsets)


def test_calibrated_disks_survive_a_file(cube, tmp_path, settings):
    found = find_disks(cube, settings)
    with pytest.raises(InputError, match="size of a detector pixel"):
        calibrated(found)
    scan = detect_in_cube(cube, replace(settings, pixel_size=0.03))
    assert scan.scan_shape == (4, 8) and scan.scan_step == 2.0
    stated = cube_from_array(cube.rows(0, 4), pixel_size=0.03)
    np.testing.assert_array_equal(detect_in_cube(stated, settings).qx, scan.qx)
    path = tmp_path / "disks.h5"
    write_bragg(path, found, pixel_size=0.03)
    again = read_disks(path)
    for name in ("qx", "qy", "intensity"):
        np.testing.assert_allclose(getattr(again, name), getattr(scan, name), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(again.offsets, scan.offsets)
    radius = np.hypot(scan.qx, scan.qy)
    assert (radius < 0.02).sum() == 32  # the direct beam of each pattern, at the centre
    with pytest.raises(InputError, match="exists already"):
        write_bragg(path, found, pixel_size=0.03)
    write_bragg(path, found, pixel_size=0.03, overwrite=True)


@pytest.mark.parametrize("spoil", ["zero", "full", "nan", "negative", "constant"])
def test_scans_that_hold_nothing_are_refused(rng, spoil, settings):
    """One sentence with the name of the scan, whatever the counts are."""
    value = {"zero": 0, "full": 65535, "nan": np.nan, "negative": -1, "constant": 7}[spoil]
    kind = np.uint16 if spoil in ("zero", "full", "constant") else np.float32
    nothing = cube_from_array(np.full((2, 3, 64, 64), value, kind), source="scan.h5")
    with pytest.raises(InputError, match=r"scan\.h5") as caught:
        find_disks(nothing, settings)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_a_scan_larger_than_memory_is_read_in_pieces(crowd, monkeypatch, settings):
    """Of a scan of 16 GB, whose patterns exist only when read, a few pieces are held at a time."""
    patterns, *_ = crowd
    alive, most = set(), []

    def read(rows, columns):
        shape = [len(range(*x.indices(n))) for x, n in ((rows, 2048), (columns, 1024))]
        block = np.empty((*shape, 64, 64), np.uint16)
        alive.add(id(block))
        most.append(len(alive) * block.nbytes)
        weakref.finalize(block, alive.discard, id(block))
        return block

    def search(batch, plan, layout):
        fields = [np.zeros((len(batch), 4), np.float32)] * 5
        return FoundDisks(
            *fields, np.eye(4, dtype=bool)[np.zeros(len(batch), int)], fields[0][:, :2]
        )

    monkeypatch.setattr(scan, "detect_patterns", search)
    cube = replace(
        cube_from_array(patterns.reshape(4, 8, 64, 64)), read=read, shape=(2048, 1024, 64, 64)
    )
    plan, layout = make_plan(patterns, settings)
    found = itertools.islice(stream_disks(cube, plan, layout, 256), 400)
    assert sum(len(part.mask) for part in found) == 400 * 256
    assert max(most) <= 16 * 256 * 64 * 64 * 2


def test_noise_alone_is_refused(rng, settings):
    noise = cube_from_array(rng.poisson(1.0, (2, 3, 64, 64)).astype(np.uint16))
    with pytest.raises(InputError):
        find_disks(noise, settings)
