# SPDX-License-Identifier: GPL-3.0-or-later
"""What py4DSTEM does with a scan: run in its own environment by detection.py.

    python -m experiments.accuracy.py4dstem_detection find CUBE.h5 BRAGG.h5 SUBPIXEL OUT.npz
    python -m experiments.accuracy.py4dstem_detection open BRAGG.h5 OUT.npz

`find` detects the disks of the cube, which is in memory by then, with the template and the settings
that BRAGG.h5 was made with, but for SUBPIXEL: `poly`, or `multicorr`, upsampled 16 times. It writes
the seconds that it took (`seconds`, of the clock, and `cpu_seconds`) and the disks. `open` reads
Bragg vectors from a file, whoever wrote it, and writes the disks as py4DSTEM sees them: in detector
pixels (`row`, `column`, `intensity`) and calibrated (`qx`, `qy`), with the number at each position
(`counts`, of the scan's shape) and the units of the calibration.
"""

import sys
import time

import h5py
import numpy as np
import py4DSTEM


def flat(vectors, shape) -> dict:
    """The disks of all positions one after the other, and how many each has."""
    lists = [vectors[x, y] for x, y in np.ndindex(*shape)]
    names = {"row": "qx", "column": "qy", "intensity": "intensity"}
    disks = {ours: np.concatenate([x.data[name] for x in lists]) for ours, name in names.items()}
    return disks | {"counts": np.reshape([len(x.data) for x in lists], shape)}


def find(cube_file: str, bragg_file: str, subpixel: str, out: str) -> None:
    """Detect, take the time, write."""
    with h5py.File(bragg_file) as file:
        settings = file["datacube_root/braggvectors/metadatabundle/gen_params"]
        template = settings["template"][()]
        names = ("minAbsoluteIntensity", "minPeakSpacing", "edgeBoundary", "maxNumPeaks")
        names += ("sigma_cc", "sigma_dp", "corrPower", "minRelativeIntensity")
        chosen = {name: settings[name][()] for name in names}
    cube = py4DSTEM.read(cube_file)
    start, start_cpu = time.perf_counter(), time.process_time()
    found = cube.find_Bragg_disks(
        template=template, subpixel=subpixel, upsample_factor=16, **chosen
    )
    seconds = {"seconds": time.perf_counter() - start}
    seconds["cpu_seconds"] = time.process_time() - start_cpu
    np.savez(out, **flat(found.raw, cube.Rshape), **seconds)


def open_vectors(bragg_file: str, out: str) -> None:
    """Read, calibrate, write."""
    vectors = py4DSTEM.read(bragg_file)
    vectors.setcal()
    shape = vectors.Rshape
    calibrated = flat(vectors.cal, shape)
    units = vectors.calibration.get_Q_pixel_units()
    disks = flat(vectors.raw, shape)
    np.savez(out, qx=calibrated["row"], qy=calibrated["column"], units=units, **disks)


if __name__ == "__main__":
    {"find": find, "open": open_vectors}[sys.argv[1]](*sys.argv[2:])
