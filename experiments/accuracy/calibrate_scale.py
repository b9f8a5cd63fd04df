# SPDX-License-Identifier: GPL-3.0-or-later
"""What `jaxstem calibrate` says of scans whose stated pixel size is wrong by up to 40 %.

    python -m experiments.accuracy.calibrate_scale [--n 200]    ten minutes
    python -m experiments.accuracy.calibrate_scale --quick      does all of it run?

Kinematic patterns of five crystals, rings stretched by up to a few percent, with a pixel size and a
stated one that is wrong. Of each crystal there are scans whose patterns show some grains each, so
that pooled disks lie on rings, of which texture leaves some out in every second; scans of four
grains of any orientation; and single patterns near a zone axis. Every tenth is drawn as images, in
which disks are found as in any scan: disks filled unevenly and blurred, the direct beam, a diffuse
background, counts by chance. The others are disks as detection lists them: those too faint for the
dose are missed, some of the others too, some are false, and places and intensities scatter. An
answer is wrong that is off by more than three of its own errors. Prints a table and writes
experiments/results/calibrate_scale.json.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Float, Int
from pymatgen.core import Lattice, Structure
from scipy import ndimage
from scipy.spatial.transform import Rotation

from experiments.accuracy.laue_classes import PROTOTYPES, Prototype
from experiments.common.markdown import flowed, heading, line, table
from experiments.common.results import results_file, save, settings
from jaxstem.crystal.cell import Crystal, from_structure, reflections
from jaxstem.detection.ring_fit import fit_rings
from jaxstem.detection.scan import calibrated, find_disks
from jaxstem.diffraction.geometry import Reflectors
from jaxstem.diffraction.kinematic import simulate
from jaxstem.diffraction.settings import Microscope
from jaxstem.errors import InputError
from jaxstem.files.cube import cube_from_array
from jaxstem.files.scan import DiskScan

VOLTAGE = 200.0  # kV
WAVELENGTH = Microscope(VOLTAGE).wavelength  # Å
SIDE = 160  # px
REACH = 2.4  # 1/Å: of the reflections drawn

CRYSTALS = {
    "Cu": Prototype(225, (3.615, 3.615, 3.615, 90, 90, 90), (("Cu", 0, 0, 0),)),
    "Mg": Prototype(194, (3.2094, 3.2094, 5.2105, 90, 90, 120), (("Mg", 1 / 3, 2 / 3, 0.25),)),
    "TiO2": PROTOTYPES["TiO2"],
    "MoO3": Prototype(  # mmm; Kihlborg, Ark. Kemi 21 (1963) 357, in the setting Pnma
        62,
        (13.855, 3.6964, 3.9628, 90, 90, 90),
        (
            ("Mo", 0.1016, 0.25, 0.0867),
            ("O", 0.4351, 0.25, 0.4994),
            ("O", 0.0866, 0.25, 0.5212),
            ("O", 0.2214, 0.25, 0.0373),
        ),
    ),
    "CuO": PROTOTYPES["CuO"],
}
"""Cubic, hexagonal, tetragonal, orthorhombic, monoclinic."""

KINDS = ("rings", "four grains", "one zone")
SCANS = {"rings": (5, 5), "four grains": (1, 4), "one zone": (1, 1)}


@dataclass(frozen=True)
class Arguments:
    """n: tries, dealt out to crystals and kinds in turn; seed: of all chance; quick: few tries,
    written nowhere unless `out` is given.
    """

    n: int = 200
    seed: int = 303  # others were looked at while it was made
    quick: bool = False
    out: Path | None = None


@dataclass(frozen=True)
class Truth:
    """How a scan is drawn.

    pixel_size [1/Å]: geometric mean over directions; ratio, theta [rad]: of the rings, how much
    longer along theta than across; radius, blur: of a disk [px]; dose: electrons a pattern;
    background: share of them that is diffuse; sigma: width of the shape function [1/Å]; stated:
    the pixel size that a file would state [1/Å].
    """

    pixel_size: float
    ratio: float
    theta: float
    radius: float
    blur: float
    dose: float
    background: float
    sigma: float
    stated: float


def drawn_truth(rng: np.random.Generator) -> Truth:
    """Any of them."""
    size = rng.uniform(0.9, 1.7) / (SIDE / 2)
    return Truth(
        pixel_size=size,
        ratio=1 + abs(rng.normal(0, 0.015)),
        theta=rng.uniform(-np.pi / 2, np.pi / 2),
        radius=rng.uniform(1.8, 3.2),
        blur=rng.uniform(0.3, 1.0),
        dose=10 ** rng.uniform(4.7, 6.3),
        background=rng.uniform(0.05, 0.4),
        sigma=rng.uniform(0.012, 0.03),
        stated=size * rng.uniform(0.6, 1.4) ** rng.choice([-1, 1]),
    )


def orientations(
    kind: str, crystal: Crystal, textured: bool, rng: np.random.Generator
) -> list[Float[np.ndarray, "n 3 3"]]:
    """For each position the orientations of its grains, crystal to detector turned as
    `diffraction.kinematic.simulate` takes them.
    """
    n = int(np.prod(SCANS[kind]))
    if kind == "four grains":
        return [_random(rng, 1) for _ in range(n)]
    if kind == "one zone":
        return [_near(_zone(crystal, rng), np.deg2rad(rng.uniform(0, 1.5)), 1, rng)]
    grains = _near(_zone(crystal, rng), 0.08, 60, rng) if textured else _random(rng, 60)
    return [grains[rng.choice(60, rng.integers(2, 5), replace=False)] for _ in range(n)]


def _random(rng, n: int) -> Float[np.ndarray, "n 3 3"]:
    return Rotation.random(n, random_state=rng.integers(2**31)).as_matrix()


def _zone(crystal: Crystal, rng) -> Float[np.ndarray, " 3"]:
    """A direction of low indices, in the crystal's Cartesian frame."""
    while True:
        uvw: Int[np.ndarray, " 3"] = rng.integers(-2, 3, 3)
        if uvw.any() and np.abs(uvw).sum() < 4:
            along = uvw @ crystal.lattice
            return along / np.linalg.norm(along)


def _near(zone, tilt: float, n: int, rng) -> Float[np.ndarray, "n 3 3"]:
    """Orientations whose beam is `tilt` [rad, standard deviation along each axis] from a zone."""
    beam = zone + tilt * rng.normal(size=(n, 3))
    beam /= np.linalg.norm(beam, axis=1, keepdims=True)
    across = np.cross(beam, rng.normal(size=(n, 3)))
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    return np.stack([across, np.cross(beam, across), beam], -1)


@cache
def _reflectors(name: str) -> Reflectors:
    found = reflections(crystal_named(name), REACH, u_iso=0.008)
    intensity = np.abs(found.structure_factor).astype(np.float32) ** 2
    return Reflectors(*map(jnp.asarray, (found.g.astype(np.float32), intensity, 0 * intensity)))


def _diffracted(
    crystal: Crystal, grains: Float[np.ndarray, "n 3 3"], truth: Truth, rng
) -> tuple[Float[np.ndarray, "m 2"], Float[np.ndarray, " m"]]:
    """Where on the detector disks lie [px from the beam], and their shares of the beam."""
    stretch = (truth.ratio - 1) / (truth.ratio + 1)
    cos, sin = np.cos(2 * truth.theta), np.sin(2 * truth.theta)
    # on the detector rings are longer along theta, their geometric mean as the pixel size says
    matrix = np.eye(2) + stretch * np.array([[cos, sin], [sin, -cos]])
    matrix /= np.sqrt(1 - stretch**2) * truth.pixel_size
    places, strengths = [], []
    for orientation, part in zip(grains, rng.dirichlet(3 * np.ones(len(grains))), strict=True):
        disks = simulate(
            jnp.asarray(orientation, jnp.float32),
            _reflectors(crystal.name),
            WAVELENGTH,
            truth.sigma,
            160,
            1e-4,
        )
        seen = np.asarray(disks.mask)
        strength = np.asarray(disks.intensity)[seen] * rng.lognormal(0, 0.5, seen.sum())
        places.append(np.stack([disks.qx, disks.qy], -1)[seen] @ matrix)
        strengths.append(rng.uniform(0.2, 0.6) * part * strength / strength.sum())
    return np.concatenate(places), np.concatenate(strengths)


def patterns(
    crystal: Crystal, grains: Iterable[Float[np.ndarray, "n 3 3"]], truth: Truth, rng
) -> Int[np.ndarray, "n H H"]:
    """Counts of one pattern for each position."""
    rows, columns = np.mgrid[:SIDE, :SIDE].astype(float)
    counts = []
    for own in grains:
        centre = SIDE / 2 + rng.uniform(-1.5, 1.5, 2)
        light = np.zeros((SIDE, SIDE))
        for place, share in zip(*_diffracted(crystal, own, truth, rng), strict=True):
            _add_disk(light, place + centre, share, truth.radius, rng)
        _add_disk(light, centre, max(1 - light.sum(), 0.3), truth.radius, rng)
        light = ndimage.gaussian_filter(light, truth.blur)
        halo = np.exp(-np.hypot(rows - centre[0], columns - centre[1]) / (0.2 * SIDE))
        light = (1 - truth.background) * light + truth.background * halo / halo.sum()
        counts.append(rng.poisson(truth.dose * light))
    return np.stack(counts).astype(np.uint32)


def _add_disk(light: Float[np.ndarray, "H H"], place, share: float, radius: float, rng) -> None:
    """A disk, filled by a random slope as diffraction fills it, cut at the detector's edges."""
    around = np.arange(-int(radius) - 2, int(radius) + 3)
    r, c = np.round(place[0]) + around, np.round(place[1]) + around
    dx, dy = r[:, None] - place[0], c[None] - place[1]
    slope = 0.25 * rng.normal(size=2) / radius
    disk = np.clip(radius + 0.5 - np.hypot(dx, dy), 0, 1) * np.clip(
        1 + slope[0] * dx + slope[1] * dy, 0, None
    )
    inside = np.ix_((r >= 0) & (r < SIDE), (c >= 0) & (c < SIDE))
    rows, columns = (x[(x >= 0) & (x < SIDE)].astype(int) for x in (r, c))
    light[np.ix_(rows, columns)] += share * (disk / disk.sum())[inside]


def found_in(counts: Int[np.ndarray, "n H H"], kind: str) -> DiskScan:
    """The disks [px] that are found in the patterns."""
    cube = cube_from_array(counts.reshape(*SCANS[kind], SIDE, SIDE), 1.0, voltage_kv=VOLTAGE)
    return calibrated(find_disks(cube, keep_light=False))


def listed(
    crystal: Crystal, grains: list[Float[np.ndarray, "n 3 3"]], truth: Truth, kind: str, rng
) -> DiskScan:
    """The disks [px] as detection might list them."""
    scatter, missed, false = rng.uniform(0.05, 0.35), rng.uniform(0, 0.15), rng.uniform(0, 0.15)
    patterns = []
    for own in grains:
        # a disk of some ten electrons above the background is seen
        places, strength = _diffracted(crystal, own, truth, rng)
        seen = truth.dose * strength > 30 + 200 * truth.background
        seen &= (np.abs(places) < SIDE / 2).all(1) & (rng.random(len(places)) > missed)
        places, strength = places[seen], strength[seen]
        n_false = rng.binomial(len(places), false)
        anywhere = rng.uniform(-SIDE / 2, SIDE / 2, (n_false, 2))
        places = np.concatenate([[[0.0, 0.0]], places, anywhere])
        faint = strength.min(initial=1e-4) * rng.uniform(1, 3, n_false)
        patterns.append((places, np.concatenate([[0.5], strength, faint])))
    counts = [len(places) for places, _ in patterns]
    x = np.concatenate([places for places, _ in patterns])
    x = x + rng.normal(0, scatter, x.shape)
    return DiskScan(
        qx=x[:, 0].astype(np.float32),
        qy=x[:, 1].astype(np.float32),
        intensity=np.concatenate([strength for _, strength in patterns]).astype(np.float32),
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        scan_shape=SCANS[kind],
        scan_step=1.0,
        scan_units="nm",
        voltage_kv=VOLTAGE,
        source="drawn",
    )


@cache
def crystal_named(name: str) -> Crystal:
    """The prototype with all its atoms."""
    prototype = CRYSTALS[name]
    species, *coordinates = zip(*prototype.atoms, strict=True)
    lattice, places = Lattice.from_parameters(*prototype.cell), np.transpose(coordinates)
    structure = Structure.from_spacegroup(prototype.space_group, lattice, species, places)
    return from_structure(structure, name)


def tried(number: int, seed: int) -> dict[str, Any]:
    """One try: what was drawn, and what is said of it."""
    rng = np.random.default_rng([seed, number])
    name, kind = list(CRYSTALS)[number % 5], KINDS[(number // 5) % 3]
    textured, drawn = (number // 15) % 2 == 1, number % 10 == (number // 10) % 10
    crystal, truth = crystal_named(name), drawn_truth(rng)
    row = {"crystal": name, "kind": kind, "textured": textured and kind == "rings"}
    row |= {"images": drawn, "pixel_size": truth.pixel_size, "stated": truth.stated}
    begin = time.perf_counter()
    try:
        grains = orientations(kind, crystal, textured, rng)
        if drawn:
            scan = found_in(patterns(crystal, grains, truth, rng), kind)
        else:
            scan = listed(crystal, grains, truth, kind, rng)
        row["disks"] = len(scan.qx)
        begin = time.perf_counter()
        found = fit_rings(scan, [crystal], truth.stated)
    except InputError as error:
        return row | {"refused": str(error), "seconds": time.perf_counter() - begin}
    off = found.pixel_size - truth.pixel_size
    return row | {
        "found": found.pixel_size,
        "off": off / truth.pixel_size,
        "errors": off / found.pixel_size_error,
        "seconds": time.perf_counter() - begin,
    }


COLUMNS = (
    "crystal",
    "kind",
    "tries",
    "found",
    "refused",
    "wrong",
    "largest error, of its error bar",
    "median error",
    "seconds",
)


def counted(what: Sequence[str], rows: list[dict[str, Any]]) -> list[str]:
    """A row of the table."""
    given = [row for row in rows if "off" in row]
    wrong = [row for row in given if abs(row["errors"]) > 3]
    share = lambda part: f"{100 * len(part) / len(rows):.0f} %"  # noqa: E731
    refused = [row for row in rows if "refused" in row]
    right = [row for row in given if abs(row["errors"]) <= 3]
    most = f"{max(abs(row['errors']) for row in given):.2f}" if given else "–"
    median = f"{100 * np.median([abs(row['off']) for row in given]):.3f} %" if given else "–"
    seconds = f"{np.median([row['seconds'] for row in rows]):.1f}"
    numbers = [share(right), share(refused), share(wrong), most, median, seconds]
    return [*what, str(len(rows)), *numbers]


def table_rows(tries: list[dict[str, Any]]) -> list[list[str]]:
    """Each crystal and kind, each kind, and all."""
    groups = {(name, kind): [] for kind in KINDS for name in CRYSTALS}
    groups |= {("all", kind): [] for kind in KINDS} | {("all", "all"): []}
    for row in tries:
        for key in ((row["crystal"], row["kind"]), ("all", row["kind"]), ("all", "all")):
            groups[key].append(row)
    return [counted(key, rows) for key, rows in groups.items() if rows]


def to_markdown(results: dict[str, Any]) -> str:
    """The table, and what it is of."""
    tries = results["tries"]
    n_images = sum(row["images"] for row in tries)
    words = flowed(f"""
{len(tries)} scans whose stated pixel size is wrong by up to 40 %, {n_images} of them drawn as
images (`experiments/accuracy/calibrate_scale.py`). Wrong is what is off by more than three of its
own errors; refused, what is said to be undecided.
""")
    return f"{table(COLUMNS, table_rows(tries))}\n\n{words}"


def main(arguments: Arguments) -> None:
    """Draw, calibrate, print, write."""
    n = 15 if arguments.quick else arguments.n
    tries = []
    for number in range(n):
        tries.append(tried(number, arguments.seed))
        row = tries[-1]
        said = row.get("refused") or f"{100 * row['off']:.3f} %, {row['errors']:.2f} errors"
        print(
            line([number, row["crystal"], row["kind"], f"{row['seconds']:.1f} s", said]), flush=True
        )
    print(heading(*COLUMNS))
    for cells in table_rows(tries):
        print(line(cells))
    save(
        results_file(arguments, "calibrate_scale"),
        {"settings": settings(arguments), "tries": tries},
        to_markdown,
    )


if __name__ == "__main__":
    main(tyro.cli(Arguments))
