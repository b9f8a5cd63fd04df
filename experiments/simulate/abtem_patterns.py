# SPDX-License-Identifier: GPL-3.0-or-later
"""Diffraction patterns of randomly oriented crystals by abTEM's multislice: run by
accuracy/multislice.py.

Runs in abTEM's own environment (experiments/fixtures/requirements-abtem.txt), or by hand:

    python -m experiments.simulate.abtem_patterns --cif Cu.cif --out runs/cu --rows 8 --seed 1

Writes OUT_cube.h5, raw counts as py4DSTEM writes a data cube, and OUT_truth.h5, orientations in
jaxstem's convention, phase, grain and thickness. Every pattern has an orientation and a thickness
of its own, which follow from the seed and its number alone, whatever the number of processes.

The crystal fills a box whose side is two detector pixels' reciprocal, so that pairs of samples of
the wave in reciprocal space are one pixel. Frozen phonons (R. F. Loane, P. Xu & J. Silcox, Acta
Cryst. A47 (1991) 267) are averaged; a diffuse background, exponential in the radius, and Poisson
noise are added. abTEM's beam runs along +z and ours along -z: the crystal is turned by 180 degrees
about lab x, and the pattern's second axis is reversed.
"""

import argparse
import multiprocessing
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import abtem
import ase.io
import h5py
import numpy as np
from scipy.spatial.transform import Rotation

BEAM_FRAME = np.diag([1.0, -1.0, -1.0])
SAMPLES = 2  # of the wave in reciprocal space to a detector pixel, along each axis
FREE = ("processes", "rows", "columns")  # settings that a run may go on with changed
BACKGROUND_RADIUS = 0.4  # 1/Å, over which the diffuse background falls to 1/e


def arguments():
    """The command line; defaults are those of the sample scans."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cif", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="files are OUT_cube.h5, ...")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--columns", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--thickness", type=float, nargs=2, default=(40.0, 300.0), help="Å")
    parser.add_argument("--voltage-kv", type=float, default=300.0)
    parser.add_argument("--semiangle-mrad", type=float, default=1.5)
    parser.add_argument("--phonons", type=int, default=8, help="frozen-phonon configurations")
    parser.add_argument("--sigma", type=float, default=0.08, help="Å, of each component")
    parser.add_argument("--slice", type=float, default=2.0, help="Å")
    parser.add_argument("--gpts", type=int, default=512, help="of the wave along each axis")
    parser.add_argument("--pixels", type=int, default=128, help="of the detector along each axis")
    parser.add_argument("--pixel-size", type=float, default=0.0328, help="1/Å")
    parser.add_argument("--background", type=float, default=0.12, help="share of the counts")
    parser.add_argument("--dose", type=float, default=200e3, help="electrons a pattern")
    parser.add_argument("--processes", type=int, default=1)
    return parser.parse_args()


def lattice_of(cell):
    """Rows a, b, c [Å] with a along x, b in the xy plane, from any orientation of the cell."""
    q, r = np.linalg.qr(np.asarray(cell).T)
    return (r * np.sign(np.diag(r))[:, None]).T


def filled_box(structure, orientation, side, thickness, rng):
    """Atoms of an oriented crystal, its origin anywhere, in a box [Å] of abTEM's frame."""
    lattice = lattice_of(structure.cell)
    size = np.array([side, side, thickness])
    to_box = BEAM_FRAME @ orientation.T
    reach = np.linalg.norm(size) / 2
    # cells in a sphere about the box: |index| <= reach / distance between lattice planes
    n = np.ceil(reach * np.linalg.norm(np.linalg.inv(lattice), axis=0)).astype(int) + 1
    index = np.stack(np.meshgrid(*[np.arange(-m, m + 1) for m in n], indexing="ij"), -1)
    basis = structure.get_scaled_positions() + rng.uniform(size=3)
    positions, numbers = [], []
    for point, number in zip(basis, structure.numbers, strict=True):
        placed = (index.reshape(-1, 3) + point) @ lattice @ to_box.T + size / 2
        inside = ((placed >= 0) & (placed < size)).all(axis=1)
        positions.append(placed[inside])
        numbers.append(np.full(inside.sum(), number))
    return ase.Atoms(np.concatenate(numbers), np.concatenate(positions), cell=size, pbc=True)


def pattern(job):
    """Counts (pixels, pixels), orientation and thickness [Å] of one position."""
    number, structure, options = job
    rng = np.random.default_rng([options.seed, number])
    orientation = Rotation.random(random_state=rng).as_matrix()
    thickness = rng.uniform(*options.thickness)
    side = SAMPLES / options.pixel_size
    atoms = filled_box(structure, orientation, side, thickness, rng)
    phonons = abtem.FrozenPhonons(
        atoms, options.phonons, options.sigma, seed=int(rng.integers(2**31))
    )
    potential = abtem.Potential(
        phonons, gpts=options.gpts, slice_thickness=options.slice, parametrization="lobato"
    )
    probe = abtem.Probe(energy=1e3 * options.voltage_kv, semiangle_cutoff=options.semiangle_mrad)
    probe.grid.match(potential)
    scan = abtem.CustomScan([(side / 2, side / 2)])
    waves = probe.multislice(potential, scan=scan, lazy=True)
    found = waves.diffraction_patterns(max_angle=None, fftshift=True).compute(
        progress_bar=False, scheduler="synchronous"
    )
    intensity = np.asarray(found.array)
    intensity = intensity.reshape(-1, *intensity.shape[-2:]).mean(axis=0)
    return counts(intensity[:, ::-1], options, rng), orientation, thickness


def counts(intensity, options, rng):
    """Detector pixels from samples of the wave, with background and noise.

    Axis 1 is reversed already, which moves the direct beam by one sample on it.
    """
    half = SAMPLES * options.pixels // 2
    centre = np.array([intensity.shape[0] // 2, (intensity.shape[1] - 1) // 2])
    rows, columns = (slice(c - half, c + half) for c in centre)
    cut = intensity[rows, columns].reshape(options.pixels, SAMPLES, options.pixels, SAMPLES)
    elastic = cut.sum(axis=(1, 3))
    q = options.pixel_size * (np.arange(options.pixels) - (options.pixels - 1 / SAMPLES) / 2)
    diffuse = np.exp(-np.hypot(q[:, None], q) / BACKGROUND_RADIUS)
    share = options.background
    expected = (1 - share) * elastic / intensity.sum() + share * diffuse / diffuse.sum()
    return rng.poisson(options.dose * expected).astype(np.uint16)


def text(attributes, **values):
    """Attributes of an HDF5 object."""
    attributes.update(values)


def write_cube(path, cube, options):
    """A data cube in the EMD 1.0 layout of py4DSTEM 0.14, with its calibration."""
    with h5py.File(path, "w") as file:
        text(file.attrs, emd_group_type="file", version_major=1, version_minor=0)
        root = file.create_group("datacube_root")
        text(root.attrs, emd_group_type="root", python_class="Root")
        array = root.create_group("datacube")
        text(array.attrs, emd_group_type="array", python_class="DataCube")
        array.create_dataset("data", data=cube, compression="gzip", chunks=(1, 1, *cube.shape[2:]))
        array["data"].attrs["units"] = "pixel intensity"
        steps = [(1, "pixels")] * 2 + [(options.pixel_size, "A^-1")] * 2
        for axis, (step, units) in enumerate(steps):
            array[f"dim{axis}"] = np.array([0, step])
            text(array[f"dim{axis}"].attrs, name=("Rx", "Ry", "Qx", "Qy")[axis], units=units)
        bundle = root.create_group("metadatabundle")
        bundle.attrs["emd_group_type"] = "metadatabundle"
        calibration = {
            "Q_pixel_size": options.pixel_size,
            "Q_pixel_units": "A^-1",
            "R_pixel_size": 1,
            "R_pixel_units": "pixels",
            "QR_flip": False,
        }
        microscope = {"accelerating_voltage": 1e3 * options.voltage_kv}
        microscope |= {"electrons": options.dose, "semiangle_mrad": options.semiangle_mrad}
        for name, kind, entries in (
            ("calibration", "Calibration", calibration),
            ("microscope", "Metadata", microscope),
        ):
            group = bundle.create_group(name)
            text(group.attrs, emd_group_type="metadata", python_class=kind)
            for key, value in entries.items():
                group[key] = value
                told = {bool: "bool", str: "string"}.get(type(value), "number")
                group[key].attrs["type"] = told


def write_truth(path, orientation, thickness, phase):
    """What the patterns show, as jaxstem reads a truth."""
    shape = thickness.shape
    with h5py.File(path, "w") as file:
        file["orientation"] = orientation
        file["phase"] = np.full(shape, phase.encode())
        file["grain"] = np.arange(thickness.size).reshape(shape)
        file["thickness"] = thickness
        file["boundary_weight"] = np.zeros(shape)
        file.attrs["orientation_convention"] = (
            "columns are the lab x, y, z axes in crystal Cartesian coordinates; "
            "q_lab = orientation.T @ g_crystal; lab x is detector axis 0 (rows)"
        )


def simulated(structure, options):
    """Counts, orientations and thicknesses of all positions; a run that was stopped goes on."""
    kept = Path(f"{options.out}_unfinished.npz")
    n = options.rows * options.columns
    settings = str(sorted((k, str(v)) for k, v in vars(options).items() if k not in FREE))
    found = []
    if kept.exists():
        with np.load(kept) as before:
            if str(before["settings"]) != settings:
                sys.exit(
                    f"{kept} was made with other settings: remove it, or choose another --out."
                )
            found = list(
                zip(*(before[k] for k in ("cube", "orientation", "thickness")), strict=True)
            )
    jobs = [(i, structure, options) for i in range(len(found), n)]
    start = time.perf_counter()
    with multiprocessing.Pool(options.processes) as pool:
        for one in pool.imap(pattern, jobs):
            found.append(one)
            arrays = [np.stack(x) for x in zip(*found, strict=True)]
            part = kept.with_suffix(".part.npz")
            np.savez_compressed(
                part, settings=settings, cube=arrays[0], orientation=arrays[1], thickness=arrays[2]
            )
            part.replace(kept)
            print(f"{len(found)} of {n}, {time.perf_counter() - start:.0f} s", flush=True)
    return [np.stack(x[:n]) for x in zip(*found, strict=True)], kept


def main():
    """Simulate all positions, write both files."""
    options = arguments()
    targets = [Path(f"{options.out}_{what}.h5") for what in ("cube", "truth")]
    for target in targets:
        if target.exists():
            sys.exit(f"{target} is there already: choose another --out.")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    (cube, orientation, thickness), kept = simulated(ase.io.read(options.cif), options)
    shape = (options.rows, options.columns)
    parts = [target.with_suffix(".part") for target in targets]
    write_cube(parts[0], cube.reshape(*shape, *cube.shape[1:]), options)
    write_truth(
        parts[1],
        orientation.reshape(*shape, 3, 3),
        thickness.reshape(shape),
        options.cif.stem,
    )
    for part, target in zip(parts, targets, strict=True):
        part.replace(target)
    kept.unlink()


if __name__ == "__main__":
    main()
