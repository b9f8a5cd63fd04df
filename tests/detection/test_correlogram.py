# SPDX-License-Identifier: GPL-3.0-or-later
"""Disks by correlation, against the formulas in float64 NumPy, against py4DSTEM's disks, and in
synthetic patterns of a patterned aperture, none of it made by the code under test."""

import json
import re
from dataclasses import replace

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import FIXTURES
from scipy import ndimage

from jaxstem.app.main import main
from jaxstem.detection.config import Correlation, DetectConfig, read_probe
from jaxstem.detection.correlogram import (
    correlate_patterns,
    highest_point,
    upsampled,
    upsampled_steps,
    with_power,
    zero_sum,
)
from jaxstem.detection.estimates import vacuum_probe
from jaxstem.detection.plan import make_plan
from jaxstem.detection.scan import calibrated, find_disks
from jaxstem.errors import InputError
from jaxstem.files.csv import read_csv
from jaxstem.files.cube import cube_from_array
from jaxstem.files.emd import read_disks

pytestmark = pytest.mark.usefixtures("quick_compile")

SIZE = 64
CENTRE = np.array([31.7, 32.2])
RADIUS = 5.2
# with sharp structure in the disks the gain is not to be had from neighbouring pixels
CONFIG = DetectConfig(method="correlation", gain=1.0, n_disks=16, chunk=8)


def bullseye(centre, counts, shape=(SIZE, SIZE), finer=8):
    """The image of an aperture with a ring and a bar cut out, integrated over pixels."""
    lines = [(np.arange(n * finer) + 0.5) / finer - 0.5 for n in shape]
    dx, dy = lines[0][:, None] - centre[0], lines[1] - centre[1]
    r = np.hypot(dx, dy)
    open_ = (r < RADIUS) & ~((r > 1.8) & (r < 3.4)) & ~((np.abs(dx) < 0.6) & (r > 1.8))
    pixels = open_.reshape(shape[0], finer, shape[1], finer).sum((1, 3))
    return counts * pixels / pixels.sum()


def scene(rng, n=8, n_disks=4):
    """Counts of patterns, places of the disks and of the beam in them."""
    beams = CENTRE + rng.uniform(-0.4, 0.4, (n, 2))
    angle = rng.uniform(0, 2 * np.pi, (n, 1)) + np.arange(n_disks) * 2 * np.pi / n_disks
    radius = rng.uniform(18, 22, (n, n_disks))
    places = beams[:, None] + np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)
    counts = rng.uniform(2000, 8000, (n, n_disks))
    images = [
        bullseye(beam, 1e5) + sum(bullseye(c, w) for c, w in zip(where, what, strict=True))
        for beam, where, what in zip(beams, places, counts, strict=True)
    ]
    return rng.poisson(np.array(images) + 0.7).astype(np.uint16), places, counts, beams


@pytest.fixture(scope="module")
def eyes():
    seed = int(np.random.SeedSequence().entropy % 2**31)
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    config = replace(CONFIG, probe=rng.poisson(bullseye((20.4, 18.7), 1e6, (40, 42))))
    return *scene(rng), config


def detect(patterns, config):
    plan, layout = make_plan(patterns, config)
    return jax.tree.map(np.asarray, correlate_patterns(jnp.asarray(patterns), plan, layout=layout))


def nearest(found, places):
    """Distance [px] of each true place from the nearest disk, and which disk that is."""
    distance = np.hypot(
        found.row[:, None] - places[..., :1], found.column[:, None] - places[..., 1:]
    )
    distance = np.where(found.mask[:, None], distance, np.inf)
    return distance.min(-1), distance.argmin(-1)


@pytest.mark.parametrize("power", [1.0, 0.5, 0.0])
def test_the_correlogram_is_its_formula(rng, power):
    image, kernel = rng.random((2, 12, 15))
    product = np.fft.fft2(image) * np.fft.fft2(kernel).conj()
    expected = np.fft.ifft2(np.abs(product) ** power * np.exp(1j * np.angle(product))).real
    spectrum = jnp.fft.rfft2(jnp.asarray(image)) * jnp.fft.rfft2(jnp.asarray(kernel)).conj()
    found = np.fft.irfft2(np.asarray(with_power(spectrum, power)), s=image.shape)
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())
    assert not np.asarray(with_power(jnp.zeros((2, 2), jnp.complex64), power)).any()


@pytest.mark.parametrize("shape", [(12, 16), (11, 9)])
def test_upsampling_is_padding_the_transform(rng, shape):
    """At a few points of the whole upsampled image, and about places between its points."""
    factor = 4
    image = rng.random(shape)
    padded = image
    for axis, n in enumerate(shape):
        half = np.fft.fft(padded, axis=axis)
        frequency = np.fft.fftfreq(n, 1 / n).astype(int)
        wide = np.zeros(
            [factor * n if a == axis else m for a, m in enumerate(padded.shape)], complex
        )
        wide, half = np.moveaxis(wide, axis, 0), np.moveaxis(half, axis, 0)
        for f, line in zip(frequency, half, strict=True):
            both = (f, -f) if 2 * abs(f) == n else (f,)
            for g in both:
                wide[g] += factor * line / len(both)
        padded = np.moveaxis(np.fft.ifft(wide, axis=0), 0, axis).real
    spectrum = np.fft.rfft2(image)[None]
    parts = jnp.asarray(np.concatenate([spectrum.real, spectrum.imag], -1), jnp.float32)
    row, column = 5.25, 3.75
    place = jnp.array([row]), jnp.array([column])
    patch = jax.jit(upsampled, static_argnums=(3, 4))(parts, *place, shape, factor)[0]
    number = np.round(upsampled_steps(factor) * factor).astype(int)
    rows, columns = int(row * factor) + number, int(column * factor) + number
    expected = padded[np.ix_(rows % padded.shape[0], columns % padded.shape[1])]
    np.testing.assert_allclose(patch, expected, atol=1e-5)


def test_known_shifts_come_back(rng):
    """A smooth spot moved in Fourier space, refined from the nearest pixel."""
    d = np.hypot(*(np.indices((24, 20)) - np.array([12, 9])[:, None, None]))
    spot = np.fft.rfft2(np.exp(-0.5 * (d / 2.0) ** 2))
    shift = rng.uniform(-0.5, 0.5, (5, 2))
    moved = np.array([ndimage.fourier_shift(spot, s, n=20) for s in shift])
    parts = jnp.asarray(np.concatenate([moved.real, moved.imag], -1), jnp.float32)
    start = np.full(5, 12.0, np.float32), np.full(5, 9.0, np.float32)
    find = lambda parts, *at: highest_point(upsampled(parts, *at, (24, 20), 16), *at, 16)  # noqa: E731
    row, column, height = jax.jit(find)(parts, *start)
    np.testing.assert_allclose(row, 12 + shift[:, 0], atol=2e-3)
    np.testing.assert_allclose(column, 9 + shift[:, 1], atol=2e-3)
    np.testing.assert_allclose(height, 1.0, atol=1e-4)


def test_kernels(rng):
    """Nothing of a flat or sloping ground, and as many electrons as the disk has."""
    probe, radius = vacuum_probe(bullseye((17.2, 20.9), 1e5, (36, 40)), (SIZE, SIZE))
    assert radius == pytest.approx(RADIUS, rel=0.06)
    assert np.corrcoef(probe.ravel(), bullseye((32, 32), 1e5)[_from(32)].ravel())[0, 1] > 0.99
    kernel = zero_sum(probe, radius)
    slopes = rng.normal(size=2)
    rows, columns = (np.fft.fftfreq(SIZE, 1 / SIZE) for _ in range(2))
    ground = 3.0 + slopes[0] * rows[:, None] + slopes[1] * columns
    assert abs(np.sum(kernel * ground)) < 2e-3 * np.sum(np.abs(kernel * ground))
    assert np.sum(kernel * 700.0 * probe / probe.sum()) == pytest.approx(700.0)


def _from(middle):
    place = (np.arange(SIZE) + middle) % SIZE
    return np.ix_(place, place)


@pytest.mark.slow
def test_a_patterned_aperture(eyes):
    """Every disk, at its place and with its counts; the beam; and nothing else."""
    patterns, places, counts, beams, config = eyes
    for subpixel, within in (("upsampled", 0.1), ("poly", 0.25)):
        found = detect(patterns, replace(config, correlation=Correlation(subpixel=subpixel)))
        distance, index = nearest(found, places)
        assert distance.max() < 2 * within and np.median(distance) < 0.5 * within
        assert np.abs(found.origin - beams).max() < 0.5 * within
        assert (found.mask.sum(1) == 5).all()
        # sharp edges that fall between pixels elsewhere than the probe's cost some of the height
        ratio = np.take_along_axis(found.counts, index, 1) / counts
        assert 0.92 < np.median(ratio) < 1.02 and ratio.std() < 0.06


def test_heights_scatter_as_their_sigma_says(eyes, rng):
    """The same pattern counted eight times."""
    patterns, places, *_, config = eyes
    again = rng.poisson(np.broadcast_to(patterns[0].astype(float), patterns.shape))
    plan, layout = make_plan(patterns, config)
    found = correlate_patterns(jnp.asarray(again, jnp.uint16), plan, layout=layout)
    found = jax.tree.map(np.asarray, found)
    _, index = nearest(found, np.broadcast_to(places[:1], places.shape))
    heights, sigma = (np.take_along_axis(x, index, 1) for x in (found.counts, found.sigma))
    scatter = np.sqrt(np.mean(heights.var(0, ddof=1) / (sigma**2).mean(0)))
    assert 0.55 < scatter < 1.5


def test_shifted_patterns_have_shifted_disks(eyes):
    patterns, *_, config = eyes
    found = detect(patterns, config)
    moved = detect(np.roll(patterns, (2, -1), (1, 2)), config)
    np.testing.assert_array_equal(moved.mask, found.mask)
    np.testing.assert_allclose(moved.row - 2 * moved.mask, found.row, atol=2e-3)
    np.testing.assert_allclose(moved.column + moved.mask, found.column, atol=2e-3)
    np.testing.assert_allclose(moved.counts, found.counts, rtol=1e-3)


def test_neither_the_batch_nor_padding_matters(eyes):
    patterns, *_, config = eyes
    plan, layout = make_plan(patterns, config)
    together = correlate_patterns(patterns, plan, layout=layout)
    alone = correlate_patterns(patterns[3:4], plan, layout=layout._replace(n_disks=40))
    for name in ("row", "column", "counts", "significance"):
        own = np.asarray(getattr(alone, name))[0, :16]
        np.testing.assert_allclose(
            own, np.asarray(getattr(together, name))[3], rtol=1e-3, atol=1e-3
        )
    assert not np.asarray(alone.mask)[0, 16:].any()


@pytest.mark.slow
def test_limits_are_kept(eyes, rng):
    """Spacing and intensities, on a crowd of spots of chance; none is missing that may stay."""
    patterns = rng.poisson(0.3, (4, SIZE, SIZE)) + (rng.random((4, SIZE, SIZE)) < 0.01) * 300
    patterns[:, 31:33, 31:34] += 5000
    settings = Correlation(subpixel="none", min_intensity=150.0, min_relative_intensity=0.02)
    config = DetectConfig(
        "correlation", settings, radius=1.5, edge=1.0, min_spacing=7.0, threshold=0.0, n_disks=32
    )
    found = detect(patterns, config)
    free = detect(patterns, replace(config, min_spacing=1.0, n_disks=200))
    for one, all_ in zip(zip(*found, strict=True), zip(*free, strict=True), strict=True):
        row, column, height = (x[one[5]] for x in one[:3])
        least = max(150.0, 0.02 * height.max())
        apart = np.hypot(row[:, None] - row, column[:, None] - column)
        assert (apart[~np.eye(len(row), dtype=bool)] >= 7).all() and height.min() >= least
        kept = []  # the same one after the other, strongest first
        for r, c, h, used in zip(*all_[:3], all_[5], strict=True):
            if used and all(np.hypot(r - a, c - b) >= 7 for a, b, _ in kept):
                kept.append((r, c, h))
        np.testing.assert_array_equal(np.stack([row, column, height], -1), kept[:32])


def test_masked_pixels_neither_hide_nor_make_disks(eyes, rng):
    """A dead line, lone dead pixels and pixels that are not finite."""
    patterns, places, _, _, config = eyes
    lost = rng.random((SIZE, SIZE)) < 0.01
    lost[:, 40] = True
    lost[25:39, 25:39] = False
    spoilt = patterns.astype(np.float32)
    spoilt[:, lost] = 60000.0
    whole = spoilt.copy()
    whole[:, lost] = np.nan
    found = detect(spoilt, replace(config, mask=~lost))
    unmasked = detect(whole, config)
    distance, _ = nearest(found, places)
    far = np.abs(places[..., 1] - 40) > 1
    # a disk whose middle is lost is left out
    assert np.median(distance) < 0.1 and np.mean(distance[far] < 0.4) > 0.85
    assert (found.mask.sum(1) <= 5).all()
    np.testing.assert_allclose(unmasked.row, found.row, atol=1e-3)
    pixels = np.round([found.row[found.mask], found.column[found.mask]]).astype(int)
    near = ndimage.binary_dilation(~lost, iterations=1)
    assert near[tuple(pixels)].all()


@pytest.mark.slow
def test_a_beam_stop(eyes):
    """The beam is hidden and its origin given: the other disks stay."""
    patterns, places, *_, config = eyes
    mask = np.ones((SIZE, SIZE), bool)
    mask[23:41, 23:41] = False
    stopped = np.where(mask, patterns, 0).astype(np.uint16)
    found = detect(stopped, replace(config, mask=mask, origin=tuple(CENTRE)))
    np.testing.assert_allclose(found.origin, np.broadcast_to(CENTRE, (8, 2)), rtol=1e-6)
    assert np.median(nearest(found, places)[0]) < 0.1
    assert (found.mask.sum(1) <= 5).all()


@pytest.fixture(scope="module")
def theirs():
    with np.load(FIXTURES / "disks_py4dstem.npz") as file:
        return dict(file)


@pytest.mark.parametrize(
    ("name", "power", "within"),
    [
        ("cross_poly", 1.0, 1e-3),
        pytest.param("cross_upsampled", 1.0, 0.02, marks=pytest.mark.slow),
        pytest.param("hybrid_poly", 0.9, 1e-3, marks=pytest.mark.slow),
        ("hybrid_upsampled", 0.9, 0.02),
        ("half_upsampled", 0.5, 0.02),
    ],
)
def test_py4dstem_finds_the_same_disks(theirs, name, power, within):
    """With its kernel and its limits: as many, the strong ones in the same place.

    py4DSTEM takes its correlogram for 0 where it is negative, which moves the weakest disks.
    """
    disks = theirs[f"{name}_disks"]
    least = {"cross": 0.0005, "hybrid": 0.002, "half": 0.03}[name.split("_")[0]]
    settings = Correlation(power, name.split("_")[1], min_relative_intensity=least)
    config = DetectConfig("correlation", settings, min_spacing=5.0, border=4, threshold=0.0)
    plan, layout = make_plan(theirs["patterns"], config)
    transform = jnp.fft.rfft2(jnp.asarray(theirs["kernel"])).conj()
    plan = plan._replace(kernel=transform)
    found = correlate_patterns(theirs["patterns"], plan, layout=layout)
    found = jax.tree.map(np.asarray, found)
    used = np.isfinite(disks[..., 0])
    np.testing.assert_array_equal(found.mask.sum(1), used.sum(1))
    distance, _ = nearest(found, disks[..., :2])
    strong = disks[..., 2] > 0.005 * np.nanmax(disks[..., 2], 1, keepdims=True)
    assert strong.sum() > 30 and distance[strong].max() < within
    assert np.quantile(distance[used], 0.8) < within


def test_the_kernel_is_py4dstems(theirs):
    """Of a vacuum probe with a ring, but for the scale."""
    probe, radius = vacuum_probe(theirs["ring_probe"], theirs["ring_probe"].shape)
    assert radius == pytest.approx(5.5, rel=0.06)
    kernel = zero_sum(probe, 5.5)
    scale = np.sum(kernel * theirs["ring_kernel"]) / np.sum(kernel**2)
    error = np.abs(scale * kernel - theirs["ring_kernel"]).max()
    assert error < 0.02 * np.abs(theirs["ring_kernel"]).max()


def test_a_scan(eyes):
    """`find_disks` smooths the beam's place, calibrates and keeps every disk, however many."""
    patterns, places, *_, config = eyes
    cube = cube_from_array(patterns.reshape(2, 4, SIZE, SIZE), pixel_size=0.03)
    config = replace(config, false_alarms=1e-5)  # a false one would be counted
    found = find_disks(cube, config)
    few = find_disks(cube, replace(config, n_disks=4))
    np.testing.assert_array_equal(found.offsets, few.offsets)
    scan = calibrated(found)
    assert len(scan.qx) == 8 * (1 + places.shape[1])
    beam = np.hypot(scan.qx, scan.qy) < 0.03
    assert beam.sum() == 8 and np.isfinite(scan.intensity).all()


@pytest.mark.slow
def test_the_command_line(eyes, tmp_path, capsys):
    """Disks by correlation with a probe from a file; what does not go together is refused."""
    patterns, places, *_, config = eyes
    cube, probe, bragg = (tmp_path / name for name in ("cube.h5", "probe.npy", "bragg.h5"))
    with h5py.File(cube, "w") as file:
        file["cube"] = patterns.reshape(2, 4, SIZE, SIZE)
    np.save(probe, config.probe)
    detection = ["detect", str(cube), "--out", str(bragg), "--pixel-size", "0.03"]
    by_correlation = [*detection, "--method", "correlation", "--probe", str(probe)]
    assert main([*by_correlation, "--subpixel", "poly", "--min-intensity", "150", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["disks"] == 8 * (1 + places.shape[1])
    kept = read_disks(bragg)
    assert (np.hypot(kept.qx, kept.qy) < 0.03).sum() == 8
    table = tmp_path / "disks.csv"
    told = ["convert", str(cube), "--out", str(table), "--disk-method", "correlation"]
    assert main([*told, "--probe", str(probe), "--pixel-size", "0.03", "--quiet"]) == 0
    np.testing.assert_array_equal(read_csv(table).offsets, kept.offsets)
    for wrong, says in (
        ([*detection, "--overwrite", "--subpixel", "poly"], "need the method 'correlation'"),
        ([*by_correlation, "--overwrite", "--correlation-power", "2"], "from 0 to 1"),
        ([*by_correlation, "--overwrite", "--probe", str(cube)], "neither an .npy array nor an"),
    ):
        assert main(wrong) == 2
        assert re.search(says, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"power": 1.5}, "correlation power"),
        ({"subpixel": "spline"}, "subpixel"),
        ({"upsample": 1}, "upsampling"),
        ({"min_intensity": -1.0}, "smallest intensity"),
        ({"min_relative_intensity": np.nan}, "relative intensity"),
        ({"blur": -0.1}, "blur"),
    ],
)
def test_settings_that_make_no_sense(eyes, change, says):
    patterns, *_, config = eyes
    with pytest.raises(InputError, match=says):
        make_plan(patterns, replace(config, correlation=Correlation(**change)))


def test_methods_and_probes_that_make_no_sense(eyes, tmp_path):
    patterns, *_, config = eyes
    with pytest.raises(InputError, match="method is 'magic'"):
        make_plan(patterns, DetectConfig("magic"))
    with pytest.raises(InputError, match="need the method"):
        make_plan(patterns, DetectConfig(correlation=Correlation(power=0.5)))
    for probe in (np.zeros((9, 9)), np.ones(5), np.full((9, 9), np.nan)):
        with pytest.raises(InputError, match="image of the probe"):
            make_plan(patterns, replace(config, probe=probe))
    wide = np.zeros((200, 200))
    wide[50:150, 50:150] = 1.0
    with pytest.raises(InputError, match="wide"):
        make_plan(patterns, replace(config, probe=wide))
    np.save(tmp_path / "probe.npy", config.probe)
    np.testing.assert_array_equal(read_probe(tmp_path / "probe.npy"), config.probe)
    np.save(tmp_path / "stack.npy", np.ones((2, 9, 9)))
    for name in ("none.npy", "stack.npy"):
        with pytest.raises(InputError, match=name):
            read_probe(tmp_path / name)
