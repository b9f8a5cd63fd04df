# SPDX-License-Identifier: GPL-3.0-or-later
"""How fast py4DSTEM finds disks: run in its own environment by detection.py.

    python experiments/py4dstem_detection.py CUBE.h5 BRAGG.h5 OUT.npz

Finds the disks of the cube with the settings and the template that BRAGG.h5 was made with, the cube
being in memory, and writes the seconds taken and the number of patterns.
"""

import sys
import time

import h5py
import numpy as np
import py4DSTEM


def main(cube_file: str, bragg_file: str, out: str) -> None:
    """Detect, take the time, write."""
    with h5py.File(bragg_file) as file:
        settings = file["datacube_root/braggvectors/metadatabundle/gen_params"]
        template = settings["template"][()]
        names = ("minAbsoluteIntensity", "minPeakSpacing", "edgeBoundary", "maxNumPeaks")
        names += ("sigma_cc", "sigma_dp", "corrPower", "minRelativeIntensity")
        chosen = {name: settings[name][()] for name in names}
    cube = py4DSTEM.read(cube_file)
    start = time.perf_counter()
    found = cube.find_Bragg_disks(
        template=template,
        subpixel="poly",
        **chosen,
    )
    seconds = time.perf_counter() - start
    counts = [len(found.raw[x, y].qx) for x, y in np.ndindex(*cube.Rshape)]
    np.savez(out, seconds=seconds, patterns=len(counts), disks=sum(counts))


if __name__ == "__main__":
    main(*sys.argv[1:])
