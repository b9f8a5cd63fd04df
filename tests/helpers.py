# SPDX-License-Identifier: GPL-3.0-or-later
"""Places and small makers that tests of several rooms share."""

import os
import re
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from jaxstem.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
FIXTURES = ROOT / "tests" / "fixtures"
EXPERIMENTS = ROOT / "experiments"


@contextmanager
def without_optimisation():
    """XLA compiles in a fraction of the time what runs for milliseconds only."""
    import jax

    name = "jax_disable_most_optimizations"
    before = jax.config.values[name]
    jax.config.update(name, True)
    try:
        yield
    finally:
        jax.config.update(name, before)


def random_matrices(rng, n, dtype=np.float32):
    """Rotation matrices (n, 3, 3), uniform."""
    return Rotation.random(n, random_state=rng.integers(2**31)).as_matrix().astype(dtype)


def turn_deg(vector):
    """The rotation matrix of a rotation vector in degrees, float32."""
    return Rotation.from_rotvec(np.deg2rad(vector)).as_matrix().astype(np.float32)


@cache
def _misorientation():
    import jax

    from jaxstem.orientation.symmetry import misorientation

    return jax.jit(misorientation)


def angle_deg(a, b, operations):
    """Misorientation of orientations in degrees."""
    a, b, operations = (np.asarray(x, np.float32) for x in (a, b, operations))
    return np.rad2deg(_misorientation()(a, b, operations))


@cache
def _log_probability(material):
    import jax
    import jax.numpy as jnp

    from jaxstem.orientation.rotations import quaternion_to_matrix
    from jaxstem.orientation.symmetry import misorientation

    @jax.jit
    def log_probability(orientation):
        cells = quaternion_to_matrix(jnp.asarray(material.grid))
        operations = jnp.asarray(material.operations, jnp.float32)
        angle = misorientation(orientation, cells, operations)
        return jax.nn.log_softmax(-0.5 * (angle / (0.55 * material.spacing)) ** 2)

    return log_probability


def log_probability_around(orientation, material):
    """Log-probabilities of a material's cells as a good network gives them: a peak as wide as the
    training labels.
    """
    return _log_probability(material)(orientation)


@cache
def _thick_foil(material, n_disks, cutoff):
    import jax

    from jaxstem.diffraction.geometry import excitation_error, strongest
    from jaxstem.diffraction.two_beam import expected_intensity
    from jaxstem.verification.config import ScoreConfig

    @jax.jit
    def disks(orientation):
        reflectors = material.reflectors()
        g_lab = reflectors.g @ orientation
        intensity = expected_intensity(
            excitation_error(g_lab, material.wavelength),
            reflectors.inverse_extinction,
            ScoreConfig().levels[-1].floor,
        )
        return strongest(g_lab[:, 0], g_lab[:, 1], intensity, n_disks, cutoff)

    return disks


def thick_foil_disks(orientation, material, n_disks=16, cutoff=1e-3):
    """The strongest disks of the model that verification assumes: averaged over thickness."""
    return _thick_foil(material, n_disks, cutoff)(orientation)


@cache
def _foil(material, n_disks):
    import jax

    from jaxstem.diffraction.geometry import strongest
    from jaxstem.diffraction.two_beam import two_beam_pattern

    @jax.jit
    def disks(orientation):
        reflectors = material.reflectors()
        beams = two_beam_pattern(orientation, reflectors, material.wavelength, 100.0)
        return strongest(*beams, n_disks, 1e-3)

    return disks


def foil_lists(orientations, material, n_disks, direct):
    """For each orientation the (n, 3) qx, qy [1/Å] and intensity of a foil of 100 Å by two-beam
    theory: the direct beam, of intensity `direct`, and the strongest disks.
    """
    disks = zip(*(np.asarray(x) for x in _foil(material, n_disks)(orientations)), strict=True)
    listed = [np.stack([qx, qy, direct * light], axis=-1)[mask] for qx, qy, light, mask in disks]
    return [np.concatenate([[[0.0, 0.0, direct]], one]) for one in listed]


def prepared_pattern(disks, power=0.25, limit=1e-3, incident_sigma=0.1):
    """What verification makes of a pattern whose incident beam is 1, every disk above `limit`
    being found; `power`: of the measured intensities.
    """
    import jax.numpy as jnp

    from jaxstem.verification.config import Limit
    from jaxstem.verification.search import pattern_of

    limits = Limit(jnp.full(41, np.log(limit), jnp.float32), jnp.float32(-jnp.inf), 2.0)
    return pattern_of(disks, 1.0, jnp.float32(incident_sigma), False, limits, power)


def reordered(observed, order):
    """An observed pattern with its disks in another order."""
    shuffled = {name: getattr(observed, name)[order] for name in ("qx", "qy", "log_share", "mask")}
    return observed._replace(**shuffled)


def lengthened(observed, n):
    """With `n` more places of padding, filled with nonsense that the mask hides."""
    import jax.numpy as jnp

    add = lambda x, value: jnp.append(x, jnp.full(n, value, x.dtype))  # noqa: E731
    return observed._replace(
        qx=add(observed.qx, 0.7),
        qy=add(observed.qy, -0.4),
        log_share=add(observed.log_share, -1.0),
        mask=add(observed.mask, False),
    )


def random_lists(rng, n_positions, longest, intensity=(1, 2)):
    """So many arrays (n, 3) of qx, qy [1/Å] and intensity, of fewer than `longest` disks each."""
    lists = []
    for n in rng.integers(0, longest, n_positions):
        radius, angle = rng.uniform(0.35, 1.4, n), rng.uniform(0, 2 * np.pi, n)
        disks = [radius * np.cos(angle), radius * np.sin(angle), rng.uniform(*intensity, n)]
        lists.append(np.stack(disks, axis=-1))
    return lists


def scan_of_lists(lists, scan_shape=None):
    """A scan at 300 kV, of one row by default, from (n, 3) arrays of qx, qy [1/Å], intensity."""
    from jaxstem.files.scan import DiskScan

    disks = np.concatenate([np.zeros((0, 3)), *lists]).astype(np.float32)
    offsets = np.cumsum([0, *(len(one) for one in lists)]).astype(np.int64)
    return DiskScan(*disks.T, offsets, scan_shape or (1, len(lists)), 1.0, "nm", 300.0, "test")


@cache
def published_crystal(name):
    """A crystal of the literature or of the fixtures."""
    from pymatgen.core import Lattice, Structure

    from jaxstem.crystal.cell import from_structure
    from jaxstem.crystal.reading import read_cif

    published = {
        "Al": ("Fm-3m", 4.0495, {"Al": [0, 0, 0]}),
        "Au": ("Fm-3m", 4.0782, {"Au": [0, 0, 0]}),
        "ZnS": ("F-43m", 5.4093, {"Zn": [0, 0, 0], "S": [0.25, 0.25, 0.25]}),
    }
    if name not in published:
        return read_cif(FIXTURES / f"{name}.cif")
    group, a, atoms = published[name]
    return from_structure(
        Structure.from_spacegroup(group, Lattice.cubic(a), list(atoms), list(atoms.values())), name
    )


def near_zone_axis(axis, degrees):
    """An orientation that has a zone axis of a cubic crystal so far from the beam."""
    z = np.array(axis) / np.linalg.norm(axis)
    x = np.cross([0.31, 0.72, 0.18], z)
    x /= np.linalg.norm(x)
    orientation = np.stack([x, np.cross(z, x), z], axis=1)
    tilt = np.deg2rad(degrees) * np.array([0.8, 0.6, 0.0])
    return orientation @ Rotation.from_rotvec(tilt).as_matrix()


def intensities_by_hypothesis(s, inverse_extinction, q, thicknesses, config):
    """What the likelihood takes for intensities, by each thickness [Å] and then by each shape."""
    from jaxstem.diffraction.two_beam import (
        LEAST_CONE,
        LEAST_SHARE,
        kinematic_intensity,
        two_beam_intensity,
    )

    cone = max(config.semi_angle, LEAST_CONE)
    foils = [two_beam_intensity(s, inverse_extinction, q, t, cone) for t in thicknesses]
    thin = [kinematic_intensity(s, inverse_extinction, sigma) for sigma in config.shapes]
    return [intensity + LEAST_SHARE for intensity in foils + thin]


def likely_thickness(rng):
    """A thickness of the likelihood's grid, between 40 and 300 Å."""
    from jaxstem.verification.config import LikelihoodConfig

    thickness = np.asarray(LikelihoodConfig().thicknesses())
    return rng.choice(thickness[(thickness > 40) & (thickness < 300)])


def crystal_of(space_group, cell, name="test"):
    """A crystal with one atom in general position: its symmetry is that of the space group."""
    from pymatgen.core import Lattice, Structure

    from jaxstem.crystal.cell import from_structure

    structure = Structure.from_spacegroup(
        space_group, Lattice.from_parameters(*cell), ["Cu"], [[0.11, 0.23, 0.37]]
    )
    return from_structure(structure, name)


@cache
def crystal_in_setting(name):
    """A crystal in a setting that orix has, or has not; "zinc blende" has no inversion centre."""
    group, cell = {
        "cubic": ("Pm-3m", (8, 8, 8, 90, 90, 90)),
        "zinc blende": ("F-43m", (5, 5, 5, 90, 90, 90)),
        "monoclinic": ("P2_1/c", (5, 6, 7, 90, 101, 90)),
        "hexagonal": ("P6/mmm", (6, 6, 8, 90, 90, 120)),
        "P-3m1": ("P-3m1", (6, 6, 8, 90, 90, 120)),
        "P-31m": ("P-31m", (6, 6, 8, 90, 90, 120)),
        "rhombohedral": ("R-3m:R", (6, 6, 6, 70, 70, 70)),
        "triclinic": ("P-1", (5, 6, 7, 80, 95, 105)),
    }[name]
    return crystal_of(group, cell, name)


def make_map(orientation, phase, crystals, step=20.0, units="A"):
    """A map (ny, nx) of orientations and phases; scores and confidences rise along it."""
    from jaxstem.files.orientation_map import OrientationMap

    shape = phase.shape
    score = np.linspace(0, 1, phase.size, dtype=np.float32).reshape(shape)
    orientation = np.where((phase < 0)[..., None, None], np.nan, orientation).astype(np.float32)
    return OrientationMap(
        orientation=orientation,
        phase=phase.astype(np.int16),
        phase_names=tuple(crystal.name for crystal in crystals),
        confidence=np.where(phase < 0, np.nan, score).astype(np.float32),
        confidence_mod180=score,
        phase_confidence=np.ones(shape, np.float32),
        score=score,
        second_orientation=orientation,
        second_phase=phase.astype(np.int16),
        second_score=score,
        thickness=np.full(shape, np.nan, np.float32),
        n_disks=np.ones(shape, np.int32),
        crystals=tuple(crystals),
        scan_step=step,
        scan_units=units,
    )


def random_map(crystals, seed, shape=(4, 5), step=20.0, units="A"):
    """Random orientations of all crystals; the last two positions unassigned and empty."""
    n = shape[0] * shape[1]
    orientation = Rotation.random(n, random_state=seed).as_matrix().reshape(*shape, 3, 3)
    phase = (np.arange(n) % len(crystals)).reshape(shape)
    phase[-1, -2:] = -1, -2
    found = make_map(orientation, phase, crystals, step, units)
    return replace(found, attributes={"voltage_kv": 300.0, "k_max": 1.5})


def orix_colours(orientation, direction, laue_group):
    """The colours that orix itself gives to the orientations."""
    from orix.plot import IPFColorKeyTSL
    from orix.quaternion import Orientation, symmetry
    from orix.vector import Vector3d

    from jaxstem.crystal.setting import ORIX_NAMES

    group = getattr(symmetry, ORIX_NAMES[laue_group])
    key = IPFColorKeyTSL(group, direction=Vector3d(direction))
    return key.orientation2color(Orientation.from_matrix(orientation, symmetry=group))


def assert_one_sentence(error, path):
    """An error's message is one sentence with the file's name (its suffix may be that of its other
    half) and, after a semicolon, a remedy.
    """
    message, name = str(error), str(Path(path).with_suffix(""))
    assert name in message and "; " in message and message.endswith("."), message
    assert "\n" not in message and not re.search(r"\. [A-Z]", message), message


def assert_refused(read, path, *words):
    """Reading the file ends in an InputError of one sentence that holds the words."""
    with pytest.raises(InputError) as caught:
        read(path)
    assert_one_sentence(caught.value, path)
    for word in (str(path), *words):
        assert word in str(caught.value)


def read_or_refuse(read, path):
    """What the reader makes of a file, None where it refuses it in one sentence."""
    try:
        return read(path)
    except InputError as error:
        assert_one_sentence(error, path)
        return None


def assert_whole(scan):
    """Every position's disks of a scan lie within the arrays, all of them finite."""
    assert len(scan.offsets) == scan.scan_shape[0] * scan.scan_shape[1] + 1
    assert scan.offsets[0] == 0 and (np.diff(scan.offsets) >= 0).all()
    for name in ("qx", "qy", "intensity"):
        assert len(getattr(scan, name)) == scan.offsets[-1]
        assert np.isfinite(getattr(scan, name)).all()


def in_precision(function, *arguments, dtype=np.float64):
    """The function, jitted, in the given precision; its result as numpy arrays of that precision.

    A function that is given again, with arguments of the same shapes, is not compiled again.
    """
    import jax
    import jax.numpy as jnp

    with jax.enable_x64(dtype == np.float64):
        result = jax.jit(function)(*(np.asarray(a, dtype) for a in arguments))
        for leaf in jax.tree.leaves(result):
            assert leaf.dtype == dtype or jnp.issubdtype(leaf.dtype, jnp.integer)
        return jax.tree.map(np.asarray, result)


BEAM = np.array([31.6, 32.3])
"""Place [px] of the direct beam in the synthetic patterns, of 64 x 64 pixels."""

DISK_RADIUS = 2.3


def disk_image(centre, counts, slope=(0.0, 0.0), shape=(64, 64), radius=DISK_RADIUS, finer=8):
    """A disk of `counts` counts, brightness 1 + slope · (x - centre), integrated over pixels."""
    first, last = (
        np.clip(np.round(np.add(centre, off)).astype(int), 0, shape)
        for off in (-radius - 1, radius + 2)
    )
    lines = [
        (np.arange(a * finer, b * finer) + 0.5) / finer - 0.5
        for a, b in zip(first, last, strict=True)
    ]
    dx, dy = lines[0][:, None] - centre[0], lines[1] - centre[1]
    inside = (np.hypot(dx, dy) < radius) * (1 + slope[0] * dx + slope[1] * dy)
    rows, columns = last - first
    pixels = np.zeros(shape)
    pixels[first[0] : last[0], first[1] : last[1]] = inside.reshape(
        rows, finer, columns, finer
    ).sum((1, 3))
    return counts * pixels / pixels.sum()


def diffuse(centre=BEAM, level=6.0, shape=(64, 64)):
    r = np.hypot(np.arange(shape[0])[:, None] - centre[0], np.arange(shape[1]) - centre[1])
    return level * np.exp(-r / 20) + 1.0


def disk_places(rng, n, spacing=9.0, border=5.0, size=64, centre=BEAM):
    """Disk centres at least `spacing` from each other and from the beam."""
    found = [centre]
    while len(found) <= n:
        new = rng.uniform(border, size - 1 - border, 2)
        if min(np.hypot(*(new - old)) for old in found) > spacing:
            found.append(new)
    return np.array(found[1:])


def patterns_of_disks(rng, n_patterns=32, n_disks=6, weakest=200.0, strongest=2e4, drift=0.3):
    """Expected counts (n, 64, 64) and the disks and beam centres in them."""
    images, centres, weights, beams = [], [], [], []
    for _ in range(n_patterns):
        beam = BEAM + rng.uniform(-drift, drift, 2)
        where = disk_places(rng, n_disks, centre=beam)
        what = np.exp(rng.uniform(np.log(weakest), np.log(strongest), n_disks))
        image = diffuse(beam) + disk_image(beam, 1e5)
        images.append(image + sum(disk_image(c, w) for c, w in zip(where, what, strict=True)))
        centres.append(where), weights.append(what), beams.append(beam)
    return np.array(images), np.array(centres), np.array(weights), np.array(beams)


@cache
def _sums_everywhere():
    import jax

    from jaxstem.files.light import light_everywhere

    of_all = lambda code, shape: jax.vmap(lambda one: light_everywhere(one, shape))(code)  # noqa: E731
    return jax.jit(of_all, static_argnums=1)


def sums_everywhere(scan_light):
    """The electrons (n, H, W) about all places of a scan's patterns."""
    return np.asarray(_sums_everywhere()(scan_light.light.sums, scan_light.detector.seen.shape))


def match_disks(found, centres, reach=1.0):
    """For each true disk the index of the one found within `reach` [px], -1 where there is none."""
    index = np.full(centres.shape[:2], -1)
    for p, where in enumerate(centres):
        d = (
            np.hypot(found.row[p] - where[:, :1], found.column[p] - where[:, 1:])
            + 1e3 * ~found.mask[p]
        )
        index[p] = np.where(d.min(1) < reach, d.argmin(1), -1)
    return index


def scan_on_rings(rng, crystal, pixel_size, ratio=1.0, theta=0.0, n=40, noise=0.15, false=0.15):
    """A scan [px] of n × n positions with disks on a crystal's rings at random azimuths, rings
    longer by `ratio` along theta, and some disks anywhere.
    """
    from jaxstem.detection.ring_mixture import rings
    from jaxstem.files.scan import DiskScan

    radius, weight, _ = rings([crystal], 1.6)
    counts = rng.integers(0, 9, n * n)
    total = counts.sum()
    length = rng.choice(radius, total, p=weight / weight.sum())
    length = np.where(rng.random(total) < false, rng.uniform(0.2, 1.6, total), length)
    azimuth = rng.uniform(-np.pi, np.pi, total)
    x = length[:, None] / pixel_size * np.stack([np.cos(azimuth), np.sin(azimuth)], -1)
    along = np.array([np.cos(theta), np.sin(theta)])
    x = x / np.sqrt(ratio)
    x = x + (ratio - 1) * (x @ along)[:, None] * along
    x = x + rng.normal(0, noise, x.shape)
    return DiskScan(
        qx=x[:, 0].astype(np.float32),
        qy=x[:, 1].astype(np.float32),
        intensity=np.ones(total, np.float32),
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        scan_shape=(n, n),
        scan_step=1.0,
        scan_units="nm",
        voltage_kv=None,
        source="rings.h5",
    )


CALIBRATION = "datacube_root/metadatabundle/calibration"
DISKS = "datacube_root/braggvectors/_v_uncal/data"
CORNER = (3, 4)
"""Rows and columns of the corner of the sample scan that the commands are run on."""

EMPTY = (1, 2)
"""The position of it without a disk."""


def write_scan(path, **changes):
    """A corner of the sample scan, 8 disks a position besides the beam; one position is empty.

    `changes` replace entries of the calibration; None removes one.
    """
    import h5py

    from jaxstem.app.demo import sample

    rows, columns = CORNER
    with h5py.File(sample("cu_bragg.h5")) as whole, h5py.File(path, "w") as file:
        whole.copy("datacube_root", file)
        disks = whole[DISKS][:rows, :columns]
        del file[DISKS]
        stored = file.create_dataset(DISKS, CORNER, whole[DISKS].dtype)
        for position in np.ndindex(CORNER):
            if position != EMPTY:
                strongest = np.argsort(-disks[position]["intensity"])[:9]
                stored[position] = disks[position][strongest]
        group = file[CALIBRATION]
        for name in ("qx0", "qy0"):
            centre = group[name][:rows, :columns]
            del group[name]
            group[name] = centre
        for name, value in changes.items():
            if name in group:
                del group[name]
            if value is not None:
                group[name] = value
    return path


def write_truth(path):
    import h5py

    from jaxstem.app.demo import sample

    rows, columns = CORNER
    with h5py.File(sample("cu_truth.h5")) as whole, h5py.File(path, "w") as file:
        for name in whole:
            file[name] = whole[name][:rows, :columns]
    return path


@contextmanager
def files_of_at_most(size):
    """Within the block a write beyond so many bytes of a file fails, as on a full disk."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def run(*argv):
    from jaxstem.app.main import main

    return main([str(argument) for argument in argv])


def run_process(*argv):
    """The command in a process of its own, which finds the package that this one imported."""
    import jaxstem

    return subprocess.run(
        [sys.executable, "-m", "jaxstem", *map(str, argv)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(jaxstem.__file__).parent.parent)},
    )


def assert_command_refused(argv, folder, capsys, *words):
    """Exit code 2, one sentence that holds the words on stderr, and nothing on disk changed."""
    from jaxstem.app.main import main

    before = contents(folder)
    capsys.readouterr()
    code = main([str(argument) for argument in argv])
    out, err = capsys.readouterr()
    assert code == 2
    # what was understood of the scan may have been said before it proved unusable
    understood = ("crystals: ", "microscope: ", "beam: ", "model: ")
    assert all(line.startswith(understood) for line in out.splitlines())
    assert re.fullmatch(r"jaxstem: [^\n]+\.\n", err)
    for word in words:
        assert str(word) in err
    assert contents(folder) == before
