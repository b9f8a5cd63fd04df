# SPDX-License-Identifier: GPL-3.0-or-later
"""What is kept of the counts: the light of the disks where they are, and little elsewhere."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import DISK_RADIUS, disk_image, sums_everywhere
from scipy.ndimage import map_coordinates

from jaxstem.detection import light as kept
from jaxstem.detection.plan import make_plan
from jaxstem.detection.scan import calibrated, detect_in_cube, find_disks, write_bragg
from jaxstem.errors import InputError
from jaxstem.files.cube import cube_from_array
from jaxstem.files.emd import bragg_source, read_disks
from jaxstem.files.light import decoded_factor

pytestmark = pytest.mark.usefixtures("quick_compile")

CALIBRATION = {
    "Q_pixel_size": 0.03,
    "Q_pixel_units": "A^-1",
    "QR_rotation": np.deg2rad(33.0),
    "QR_flip": True,
    "a": 1.05,
    "b": 0.97,
    "theta": 0.7,
}


@pytest.fixture(scope="module")
def cube(crowd):
    patterns, *_ = crowd
    cube = cube_from_array(patterns.reshape(4, 8, 64, 64), pixel_size=0.03)
    return replace(cube, calibration=CALIBRATION)


@pytest.fixture(scope="module")
def found(cube, settings):
    return find_disks(cube, settings, keep_light=True)


def background_of(light, detector, position, places):
    """The background within a disk at some places (n, 2), from what is kept of a position."""
    far = np.hypot(*(places - light.centre[position]).T) / detector.radius_step
    middle = ((places + 0.5) / detector.block - 0.5).T
    factor = np.asarray(decoded_factor(light.factor[position]))
    factor = map_coordinates(factor, middle, order=1, mode="nearest")
    return detector.background[np.round(far).astype(int)] * factor


def test_light_lies_where_disks_are(crowd, found):
    """Above the background of the place a disk's own counts, and far from disks none."""
    _, centres, weights, beams, _ = crowd
    light, detector = calibrated(found).light
    sums = sums_everywhere(calibrated(found).light)
    ratio, excess = [], []
    for p, (where, what) in enumerate(zip(centres, weights, strict=True)):
        there = map_coordinates(sums[p], where.T, order=1)
        there = (there - background_of(light, detector, p, where)) / detector.found
        ratio.extend(there / what)
        grid = np.stack(np.meshgrid(*[np.arange(6.0, 58)] * 2), -1).reshape(-1, 2)
        disks = np.concatenate([where, beams[p : p + 1]])
        far = np.linalg.norm(grid[:, None] - disks, axis=-1).min(1) > 3 * DISK_RADIUS
        base = background_of(light, detector, p, grid[far])
        there = map_coordinates(sums[p], grid[far].T, order=1)
        excess.extend((there - base) / np.sqrt(base))
    assert abs(np.median(ratio) - 1) < 0.05
    assert np.percentile(np.abs(np.array(ratio) - 1), 90) < 0.25
    assert abs(np.mean(excess)) < 0.5 and 0.6 < np.std(excess) < 1.6


def test_places_of_scattering_vectors_are_those_of_the_disks(found):
    """Backwards through ellipse, flip and rotation, to the pixel."""
    scan = calibrated(found)
    light, detector = scan.light
    position = np.repeat(np.arange(32), np.diff(scan.offsets))
    q = np.stack([scan.qx, scan.qy], -1)
    place = light.centre[position] + q @ detector.to_places.T
    np.testing.assert_allclose(place, np.stack([found.row, found.column], -1), atol=2e-3)
    stretch = CALIBRATION["b"] / CALIBRATION["a"]
    assert detector.disk == pytest.approx(DISK_RADIUS * 0.03 * np.sqrt(stretch), rel=0.1)


def test_dead_pixels_are_not_seen(crowd, settings):
    patterns, *_ = crowd
    cube = cube_from_array(patterns.reshape(4, 8, 64, 64), pixel_size=0.03)
    mask = np.ones((64, 64), bool)
    mask[10:14, 40:50] = False
    seen = detect_in_cube(cube, replace(settings, mask=mask)).light.detector.seen
    assert not seen[10:14, 40:50].any()
    border = int(np.ceil(DISK_RADIUS))
    assert not seen[:border].any() and not seen[:, -border:].any()
    assert seen[20:44, 10:30].all()


def test_much_light_lies_in_a_temporary_file(cube, found, settings, monkeypatch):
    monkeypatch.setattr(kept, "IN_MEMORY", 1000)
    on_disk = find_disks(cube, settings, keep_light=True).light
    assert isinstance(on_disk.sums, np.memmap)
    np.testing.assert_array_equal(on_disk.sums, found.light.sums)
    np.testing.assert_array_equal(on_disk.factor, found.light.factor)


def test_a_full_disk_is_told(cube, settings, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept, "IN_MEMORY", 1000)
    monkeypatch.setattr(kept.os, "posix_fallocate", full)
    with pytest.raises(InputError, match=r"no room for the .* GB .*No space left.*--judge list"):
        find_disks(cube, settings, keep_light=True)


def test_nothing_is_kept_unasked_or_where_the_ellipse_differs(cube, found, settings):
    assert find_disks(cube, settings).light is None
    assert detect_in_cube(cube, settings, keep_light=False).light is None
    each = {name: np.full((4, 8), CALIBRATION[name]) for name in ("a", "b", "theta")}
    varied = replace(found, cube=replace(cube, calibration=CALIBRATION | each))
    assert calibrated(varied).light is None


def test_wide_disks_are_kept_at_every_other_pixel(rng, settings):
    """So that a pattern takes no more room on a finer detector."""
    wide = sum(disk_image(c, 3e4, radius=5.0) for c in ((31.5, 31.5), (15.0, 44.0)))
    patterns = rng.poisson(wide + 2.0, (8, 64, 64)).astype(np.uint16)
    plan, _ = make_plan(patterns, replace(settings, radius=5.0))
    assert kept.places_apart(plan) == 2


def test_disk_files_hold_the_counts(found, tmp_path):
    """What `detect` stores is what a map sees of the raw patterns, to a step of the byte."""
    path = tmp_path / "disks.h5"
    write_bragg(path, found)
    raw, source = calibrated(found), bragg_source(path)
    stored = source.whole().light
    np.testing.assert_allclose(stored.light.centre, raw.light.light.centre, atol=1e-4)
    assert stored.detector.found < raw.light.detector.found
    for name in set(raw.light.detector._fields) - {"found"}:
        mine, theirs = getattr(stored.detector, name), getattr(raw.light.detector, name)
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-7)
    kept = slice(3, -3)
    apart = stored.light.sums.astype(int) - raw.light.light.sums[:, ::2, ::2]
    assert np.abs(apart[:, kept, kept]).max() <= 1
    row = source.read_light(1, 2)
    np.testing.assert_array_equal(row.sums, stored.light.sums[8:16])
    # a calibration that is changed later moves disks and counts alike
    wider = bragg_source(path, {"Q_pixel_size": 0.06}).detector
    np.testing.assert_allclose(2 * wider.to_places, raw.light.detector.to_places, rtol=1e-5)
    assert read_disks(path).light is not None


def test_disk_files_without_counts_stay_as_they_were(cube, settings, tmp_path):
    path = tmp_path / "disks.h5"
    write_bragg(path, find_disks(cube, settings))
    assert bragg_source(path).detector is None and read_disks(path).light is None
