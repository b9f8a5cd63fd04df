# SPDX-License-Identifier: GPL-3.0-or-later
"""Bragg disks in synthetic patterns: found where they are, weighed without bias, not invented.

The patterns are disks integrated over pixels on a finer grid, a background that falls off with the
radius, and Poisson counts: none of it made by the code under test.
"""

import itertools
import weakref
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from jaxstem.detection import scan
from jaxstem.detection.config import DetectConfig, read_mask
from jaxstem.detection.estimates import false_alarm_threshold
from jaxstem.detection.layout import FoundDisks, Layout
from jaxstem.detection.likelihood import correlate, detect_patterns
from jaxstem.detection.origin import smooth_origin
from jaxstem.detection.plan import make_plan
from jaxstem.detection.scan import calibrated, detect_in_cube, find_disks, stream_disks, write_bragg
from jaxstem.errors import InputError
from jaxstem.files.cube import cube_from_array
from jaxstem.files.emd import read_disks
from jaxstem.runtime.parallel import make_mesh

pytestmark = pytest.mark.usefixtures("quick_compile")

SIZE = 64
RADIUS = 2.3
CENTRE = np.array([31.6, 32.3])
# radius and edge given, so that all tests share one compiled program
CONFIG = DetectConfig(radius=RADIUS, edge=1.2, n_disks=16, chunk=32, n_sample=64)


def disk_image(centre, counts, slope=(0.0, 0.0), shape=(SIZE, SIZE), radius=RADIUS, finer=8):
    """A disk of `counts` counts, brightness 1 + slope · (x - centre), integrated over pixels."""
    lines = [(np.arange(n * finer) + 0.5) / finer - 0.5 for n in shape]
    dx, dy = lines[0][:, None] - centre[0], lines[1] - centre[1]
    inside = (np.hypot(dx, dy) < radius) * (1 + slope[0] * dx + slope[1] * dy)
    pixels = inside.reshape(shape[0], finer, shape[1], finer).sum((1, 3))
    return counts * pixels / pixels.sum()


def diffuse(centre=CENTRE, level=6.0, shape=(SIZE, SIZE)):
    r = np.hypot(np.arange(shape[0])[:, None] - centre[0], np.arange(shape[1]) - centre[1])
    return level * np.exp(-r / 20) + 1.0


def places(rng, n, spacing=9.0, border=5.0, size=SIZE, centre=CENTRE):
    """Disk centres at least `spacing` from each other and from the beam."""
    found = [centre]
    while len(found) <= n:
        new = rng.uniform(border, size - 1 - border, 2)
        if min(np.hypot(*(new - old)) for old in found) > spacing:
            found.append(new)
    return np.array(found[1:])


def scene(rng, n_patterns=32, n_disks=6, weakest=200.0, strongest=2e4, drift=0.3):
    """Expected counts (n, SIZE, SIZE) and the disks and beam centres in them."""
    images, centres, weights, beams = [], [], [], []
    for _ in range(n_patterns):
        beam = CENTRE + rng.uniform(-drift, drift, 2)
        where = places(rng, n_disks, centre=beam)
        what = np.exp(rng.uniform(np.log(weakest), np.log(strongest), n_disks))
        image = diffuse(beam) + disk_image(beam, 1e5)
        images.append(image + sum(disk_image(c, w) for c, w in zip(where, what, strict=True)))
        centres.append(where), weights.append(what), beams.append(beam)
    return np.array(images), np.array(centres), np.array(weights), np.array(beams)


def detect(patterns, config=CONFIG):
    plan, layout = make_plan(patterns, config)
    return jax.tree.map(np.asarray, detect_patterns(jnp.asarray(patterns), plan, layout=layout))


def match(found, centres, reach=1.0):
    """For each true disk the index of the one found within `reach` [px], -1 where there is none."""
    index = np.full(centres.shape[:2], -1)
    for p, where in enumerate(centres):
        d = (
            np.hypot(found.row[p] - where[:, :1], found.column[p] - where[:, 1:])
            + 1e3 * ~found.mask[p]
        )
        index[p] = np.where(d.min(1) < reach, d.argmin(1), -1)
    return index


@pytest.fixture(scope="module")
def crowd():
    """Patterns, truth and what was found in them."""
    seed = int(np.random.SeedSequence().entropy % 2**31)
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    expected, centres, weights, beams = scene(rng)
    patterns = rng.poisson(expected).astype(np.uint16)
    return patterns, centres, weights, beams, detect(patterns)


def test_all_disks_are_found_and_few_others(crowd):
    _, centres, _, _, found = crowd
    index = match(found, centres)
    assert (index >= 0).mean() > 0.99
    extra = found.mask.sum(1) - 1 - (index >= 0).sum(1)
    assert extra.mean() < 1.0


def test_weights_are_unbiased_within_their_noise(crowd):
    _, centres, weights, _, found = crowd
    index = match(found, centres)
    p, k = np.nonzero(index >= 0)
    counts, sigma = (x[p, index[p, k]] for x in (found.counts, found.sigma))
    truth = weights[p, k]
    # the aperture model knows the disk to about 2 %
    pull = (counts - truth) / np.hypot(sigma, 0.02 * truth)
    assert abs(np.median(pull)) < 0.5
    assert 0.6 < np.quantile(np.abs(pull), 0.683) < 1.5
    assert abs(np.median(counts / truth) - 1) < 0.03


def test_positions_and_the_beam(crowd):
    _, centres, weights, beams, found = crowd
    index = match(found, centres)
    p, k = np.nonzero((index >= 0) & (weights > 2000))
    i = index[p, k]
    error = np.stack([found.row[p, i], found.column[p, i]], -1) - centres[p, k]
    assert np.abs(error.mean(0)).max() < 0.03
    assert np.quantile(np.hypot(*error.T), 0.9) < 0.12
    assert np.abs(found.origin - beams).max() < 0.05


def test_weights_do_not_depend_on_where_in_a_pixel(rng):
    """Twice as sharp a claim without noise: the same disk at 32 places within a pixel."""
    beam = CENTRE
    shifts = rng.uniform(-0.5, 0.5, (32, 2))
    centres = np.array([20.0, 44.0]) + shifts
    base = diffuse(beam) + disk_image(beam, 1e5)
    images = np.array([base + disk_image(c, 3000.0) for c in centres], np.float32)
    found = detect(images, DetectConfig(**vars(CONFIG) | {"gain": 1.0}))
    index = match(found, centres[:, None])[:, 0]
    assert (index >= 0).all()
    rows = np.arange(32)
    counts = found.counts[rows, index]
    assert counts.std() / counts.mean() < 0.015
    assert abs(counts.mean() / 3000 - 1) < 0.02
    error = np.hypot(
        found.row[rows, index] - centres[:, 0], found.column[rows, index] - centres[:, 1]
    )
    assert error.max() < 0.08


def test_a_slope_across_a_disk_does_not_move_it(rng):
    slopes = rng.uniform(-0.3, 0.3, (32, 2))
    centres = np.array([20.0, 44.0]) + rng.uniform(-0.5, 0.5, (32, 2))
    base = diffuse() + disk_image(CENTRE, 1e5)
    images = [base + disk_image(c, 5000.0, s) for c, s in zip(centres, slopes, strict=True)]
    patterns = rng.poisson(np.array(images)).astype(np.uint16)
    error = {}
    for structure in (True, False):
        found = detect(patterns, DetectConfig(**vars(CONFIG) | {"structure": structure}))
        index = match(found, centres[:, None], 2.0)[:, 0]
        assert (index >= 0).all()
        place = np.stack([x[np.arange(32), index] for x in (found.row, found.column)], -1)
        error[structure] = np.hypot(*(place - centres).T)
        counts = found.counts[np.arange(32), index]
        assert abs(np.median(counts) / 5000 - 1) < 0.04
    assert np.median(error[True]) < 0.5 * np.median(error[False])
    assert np.median(error[True]) < 0.08


@pytest.mark.parametrize("level", [0.3, 8.0])
def test_chance_makes_as_many_disks_as_was_asked(rng, level):
    """Poisson noise on a background alone; the direct beam is the one true disk."""
    asked = 0.5
    expected = level * diffuse() / 3 + disk_image(CENTRE, 1e5)
    patterns = rng.poisson(expected, (160, SIZE, SIZE)).astype(np.uint16)
    config = DetectConfig(**vars(CONFIG) | {"false_alarms": asked})
    found = detect(patterns[:32], config)
    plan, layout = make_plan(patterns, config)
    number = [
        np.asarray(
            detect_patterns(jnp.asarray(patterns[i : i + 32]), plan, layout=layout).mask
        ).sum(1)
        - 1
        for i in range(0, 160, 32)
    ]
    assert found.mask.sum(1).mean() < 4 * asked + 1
    assert asked / 3 < np.mean(number) < 2 * asked


def test_thresholds_rise_with_what_they_allow():
    """Fewer false disks, larger detectors and smaller disks (more places to err) ask for more."""
    kernels = {}
    for radius in (2, 4):
        d = np.minimum(np.arange(64), 64 - np.arange(64))
        kernels[radius] = (np.hypot(d[:, None], d) < radius + 0.3).astype(float)
    level = lambda rate, radius, n: false_alarm_threshold(rate, kernels[radius], n)  # noqa: E731
    assert 3 < level(0.1, 2, 1e4) < level(0.01, 2, 1e4) < level(0.001, 2, 1e4) < 6
    assert level(0.01, 4, 1e4) < level(0.01, 2, 1e4) < level(0.01, 2, 1e5)


def test_sums_over_small_and_wide_apertures(rng):
    """Both ways to sum the counts under an aperture, against a convolution."""
    counts = rng.poisson(5.0, (2, SIZE, SIZE)).astype(np.uint16)
    beam = disk_image(CENTRE, 1e4)
    for radius, wide in ((RADIUS, False), (6.0, True)):
        config = DetectConfig(radius=radius, edge=1.2, search=3)
        plan, _ = make_plan(counts + beam.astype(np.uint16), config)
        assert np.iscomplexobj(plan.kernel) == wide
        summed = np.asarray(correlate(jnp.asarray(counts, jnp.float32), plan.kernel))
        line = np.arange(-8, 9)
        weights = np.clip((radius - np.hypot(line[:, None], line)) / 1.2 + 0.5, 0, 1)
        expected = [ndimage.correlate(x.astype(float), weights) for x in counts]
        inner = np.s_[:, 9:-9, 9:-9]
        np.testing.assert_allclose(summed[inner], np.array(expected)[inner], rtol=2e-3)


def test_patterns_without_counts(crowd):
    patterns, *_ = crowd
    plan, layout = make_plan(patterns, CONFIG)
    nothing = patterns.copy()
    nothing[::2] = 0
    found = jax.tree.map(np.asarray, detect_patterns(jnp.asarray(nothing), plan, layout=layout))
    assert not found.mask[::2].any() and np.isnan(found.origin[::2]).all()
    assert found.mask[1::2].sum(1).min() >= 5
    for name in ("row", "column", "counts", "sigma", "significance"):
        assert np.isfinite(getattr(found, name)).all()
    with pytest.raises(InputError, match="no counts"):
        make_plan(np.zeros((4, SIZE, SIZE), np.uint16), CONFIG)


@pytest.mark.parametrize("how", ["mask", "zero", "hot", "nan"])
def test_dead_pixels_neither_hide_nor_make_disks(crowd, rng, how):
    """One pixel in a hundred is lost; the weights stay right."""
    patterns, centres, weights, *_ = crowd
    lost = rng.random((SIZE, SIZE)) < 0.01
    lost[28:37, 28:37] = False
    spoilt = patterns.astype(np.float32 if how == "nan" else np.uint16)
    spoilt[:, lost] = {"mask": 9, "zero": 0, "hot": 65535, "nan": np.nan}[how]
    config = DetectConfig(**vars(CONFIG) | ({"mask": ~lost} if how == "mask" else {}))
    found = detect(spoilt, config)
    index = match(found, centres)
    assert (index >= 0).mean() > 0.97
    p, k = np.nonzero(index >= 0)
    ratio = found.counts[p, index[p, k]] / weights[p, k]
    assert abs(np.median(ratio) - 1) < 0.04
    extra = found.mask.sum(1) - 1 - (index >= 0).sum(1)
    assert extra.mean() < 1.0


def test_masks_from_files(tmp_path, rng):
    """What is marked is left out, in an array and in an image."""
    marked = rng.random((9, 7)) < 0.3
    marked[0, 0] = False
    np.save(tmp_path / "mask.npy", marked)
    Image.fromarray((255 * marked).astype(np.uint8)).save(tmp_path / "mask.png")
    for name in ("mask.npy", "mask.png"):
        np.testing.assert_array_equal(read_mask(tmp_path / name), ~marked)
    np.save(tmp_path / "all.npy", np.ones((9, 7)))
    np.save(tmp_path / "cube.npy", np.zeros((2, 9, 7)))
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    (tmp_path / "text.png").write_text("no image")
    for name in ("none.npy", "all.npy", "cube.npy", "objects.npy", "text.png"):
        with pytest.raises(InputError, match=name):
            read_mask(tmp_path / name)


def test_stored_numbers_that_are_not_electrons(crowd):
    """A detector with a gain of 25 sees the same disks with the same weights."""
    patterns, centres, weights, _, found = crowd
    scaled = detect((25 * patterns.astype(np.float32)).round())
    for a, b in ((scaled, found),):
        i, j = match(a, centres), match(b, centres)
        both = (i >= 0) & (j >= 0)
        assert both.mean() > 0.97
        p, k = np.nonzero(both)
        ratio = a.counts[p, i[p, k]] / b.counts[p, j[p, k]]
        assert abs(np.median(ratio) - 1) < 0.2


def test_overlapping_disks_share_their_counts(rng):
    """Disks whose images touch: the nearest that a matched filter tells apart."""
    centres = np.array([[20.0, 40.0], [20.0, 45.4]]) + rng.uniform(-0.3, 0.3, (32, 1, 2))
    base = diffuse() + disk_image(CENTRE, 1e5)
    images = [base + disk_image(a, 4000.0) + disk_image(b, 6000.0) for a, b in centres]
    patterns = rng.poisson(np.array(images)).astype(np.uint16)
    config = DetectConfig(**vars(CONFIG) | {"min_spacing": 4.0, "structure": False})
    found = detect(patterns, config)
    index = match(found, centres)
    assert (index >= 0).all()
    counts = found.counts[np.arange(32)[:, None], index]
    np.testing.assert_allclose(np.median(counts, 0), [4000, 6000], rtol=0.05)


def test_a_hidden_beam_needs_an_origin_and_a_radius(crowd):
    patterns, centres, *_ = crowd
    stopped = patterns.copy()
    stopped[:, 26:38, 26:39] = 0
    mask = np.ones((SIZE, SIZE), bool)
    mask[26:38, 26:39] = False
    given = {"origin": tuple(CENTRE), "mask": mask}
    found = detect(stopped, DetectConfig(**vars(CONFIG) | given))
    np.testing.assert_allclose(found.origin, np.broadcast_to(CENTRE, (32, 2)), rtol=1e-6)
    outside = np.abs(centres - CENTRE).max(-1) > 10
    assert (match(found, centres)[outside] >= 0).mean() > 0.97
    with pytest.raises(InputError, match="radius"):
        make_plan(stopped, DetectConfig(**given))
    with pytest.raises(InputError, match="outside"):
        make_plan(stopped, DetectConfig(radius=2.0, origin=(-3.0, 5.0)))


def test_the_aperture_is_measured(rng):
    """Radius of the direct beam from the patterns, or from an image of the beam in vacuum."""
    expected, *_ = scene(rng, 24)
    patterns = rng.poisson(expected).astype(np.uint16)
    area = np.pi * RADIUS**2
    plan, _ = make_plan(patterns)
    assert float(plan.area) == pytest.approx(area, rel=0.06)
    vacuum = disk_image((10.2, 12.7), 1e6, shape=(24, 26))
    plan, _ = make_plan(patterns, DetectConfig(probe=vacuum))
    assert float(plan.area) == pytest.approx(area, rel=0.06)


def test_the_origin_is_smoothed_but_not_straightened(rng):
    """A wavy drift comes back; noise shrinks; wild values and gaps do no harm."""
    y, x = np.mgrid[:20, :24]
    drift = np.stack([0.5 * np.sin(x / 6) + 60, 0.4 * np.cos(y / 5) + 0.01 * x + 61], -1)
    error = []
    for _ in range(8):  # the width that is chosen hangs on the noise: now and then it is narrow
        measured = drift + rng.normal(0, 0.03, drift.shape)
        measured[rng.random((20, 24)) < 0.05] += 3.0
        measured[rng.random((20, 24)) < 0.05] = np.nan
        measured[5:9, 5:9] = np.nan
        error.append(np.abs(smooth_origin(measured) - drift))
    assert np.median(error) < 0.0195 and np.max(error) < 0.25
    constant = np.broadcast_to([60.0, 61.0], (4, 3, 2)) + rng.normal(0, 0.05, (4, 3, 2))
    assert np.abs(smooth_origin(constant) - [60, 61]).max() < 0.12
    np.testing.assert_allclose(smooth_origin(constant[:1, :1]), constant[:1, :1], atol=1e-6)
    with pytest.raises(InputError, match="No direct beam"):
        smooth_origin(np.full((2, 2, 2), np.nan))


@pytest.fixture(scope="module")
def cube(crowd):
    patterns, *_ = crowd
    return cube_from_array(patterns.reshape(4, 8, SIZE, SIZE), scan_step=2.0)


def test_a_scan_on_one_device_and_on_eight(crowd):
    patterns, *_, found = crowd
    cube = cube_from_array(np.concatenate([patterns, patterns]).reshape(8, 8, SIZE, SIZE))
    seen = []
    one = find_disks(cube, CONFIG, progress=lambda *x: seen.append(x))
    assert seen == [(32, 64), (64, 64)]
    eight = find_disks(cube, CONFIG, make_mesh())
    np.testing.assert_array_equal(one.offsets, eight.offsets)
    for name in ("row", "column", "counts", "sigma", "significance"):
        np.testing.assert_allclose(getattr(one, name), getattr(eight, name), rtol=2e-3, atol=2e-3)
    assert abs(len(one.row) - 2 * found.mask.sum()) <= 2


def test_more_disks_than_expected_are_all_found(cube):
    few = find_disks(cube, DetectConfig(**vars(CONFIG) | {"n_disks": 4}))
    many = find_disks(cube, CONFIG)
    np.testing.assert_array_equal(few.offsets, many.offsets)


def test_calibrated_disks_survive_a_file(cube, tmp_path):
    found = find_disks(cube, CONFIG)
    with pytest.raises(InputError, match="size of a detector pixel"):
        calibrated(found)
    scan = detect_in_cube(cube, DetectConfig(**vars(CONFIG) | {"pixel_size": 0.03}))
    assert scan.scan_shape == (4, 8) and scan.scan_step == 2.0
    stated = cube_from_array(cube.rows(0, 4), pixel_size=0.03)
    np.testing.assert_array_equal(detect_in_cube(stated, CONFIG).qx, scan.qx)
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
def test_scans_that_hold_nothing_are_refused(rng, spoil):
    """One sentence with the name of the scan, whatever the counts are."""
    value = {"zero": 0, "full": 65535, "nan": np.nan, "negative": -1, "constant": 7}[spoil]
    kind = np.uint16 if spoil in ("zero", "full", "constant") else np.float32
    nothing = cube_from_array(np.full((2, 3, SIZE, SIZE), value, kind), source="scan.h5")
    with pytest.raises(InputError, match=r"scan\.h5") as caught:
        find_disks(nothing, CONFIG)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_a_saturated_beam_does_no_harm(crowd):
    """The middle of the direct beam is at the largest number in every pattern."""
    patterns, centres, weights, beams, _ = crowd
    row, column = np.round(CENTRE).astype(int)
    spoilt = patterns.copy()
    spoilt[:, row - 1 : row + 2, column - 1 : column + 2] = 65535
    found = detect(spoilt)
    index = match(found, centres)
    assert (index >= 0).mean() > 0.97
    p, k = np.nonzero(index >= 0)
    assert abs(np.median(found.counts[p, index[p, k]] / weights[p, k]) - 1) < 0.05
    assert np.abs(found.origin - beams).max() < 0.5


def test_a_scan_larger_than_memory_is_read_in_pieces(crowd, monkeypatch):
    """Of a scan of 16 GB, whose patterns exist only when read, a few pieces are held at a time."""
    patterns, *_ = crowd
    alive, most = set(), []

    def read(rows, columns):
        shape = [len(range(*x.indices(n))) for x, n in ((rows, 2048), (columns, 1024))]
        block = np.empty((*shape, SIZE, SIZE), np.uint16)
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
        cube_from_array(patterns.reshape(4, 8, SIZE, SIZE)), read=read, shape=(2048, 1024, 64, 64)
    )
    plan, layout = make_plan(patterns, CONFIG)
    found = itertools.islice(stream_disks(cube, plan, layout, 256), 400)
    assert sum(len(part.mask) for part in found) == 400 * 256
    assert max(most) <= 16 * 256 * SIZE * SIZE * 2


def test_noise_alone_is_refused(rng):
    noise = cube_from_array(rng.poisson(1.0, (2, 3, SIZE, SIZE)).astype(np.uint16))
    with pytest.raises(InputError):
        find_disks(noise, CONFIG)


def test_layouts_are_shared():
    """The shape of the program depends on settings, not on the counts of a scan."""
    rng = np.random.default_rng(0)
    layouts = set()
    for level in (0.5, 5.0):
        expected = diffuse(level=level) + disk_image(CENTRE, 1e5)
        layouts.add(make_plan(rng.poisson(expected, (8, SIZE, SIZE)), CONFIG)[1])
    assert len(layouts) == 1 and isinstance(layouts.pop(), Layout)
