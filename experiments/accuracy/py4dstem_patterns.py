# SPDX-License-Identifier: GPL-3.0-or-later
"""Disks and orientations of a raw scan by py4DSTEM: run in its own environment by multislice.py.

    python -m experiments.accuracy.py4dstem_patterns CUBE.h5 X.cif OUT.npz VOLTAGE_KV \
        SEMIANGLE_MRAD K_MAX

Disks are correlated with a synthetic probe whose sum is zero, with the settings of the sample
scans, and matched on 2° grids in the Laue group's range. Writes `orientation` (ny, nx, 3, 3), in
the frame of the CIF's own cell, and the seconds that detection and matching took.
"""

import sys
import time

import numpy as np
import py4DSTEM
from py4DSTEM.process.diffraction import Crystal
from pymatgen.io.cif import CifParser

from experiments.common.py4dstem import plan


def main(cube_file, cif, out, voltage_kv, semiangle_mrad, k_max):
    """Detect, calibrate, match, write."""
    cube = py4DSTEM.read(cube_file)
    pixel = cube.calibration.get_Q_pixel_size()
    crystal = Crystal.from_pymatgen_structure(
        CifParser(cif).parse_structures(primitive=False)[0], conventional_standard_structure=False
    )
    crystal.setup_diffraction(1e3 * float(voltage_kv))
    radius = 1e-3 * float(semiangle_mrad) / crystal.wavelength / pixel
    probe = py4DSTEM.Probe.generate_synthetic_probe(
        radius=radius, width=1.0, Qshape=tuple(cube.Qshape)
    )
    probe.get_kernel(
        mode="sigmoid", origin=tuple(n / 2 for n in cube.Qshape), radii=(radius, 3.5 * radius)
    )
    start = time.perf_counter()
    disks = cube.find_Bragg_disks(
        template=probe.kernel,
        minAbsoluteIntensity=3.5,
        minRelativeIntensity=0,
        minPeakSpacing=5,
        edgeBoundary=3,
        maxNumPeaks=90,
        sigma_cc=0,
        subpixel="poly",
    )
    disks.measure_origin()
    disks.fit_origin(plot=False, returncalc=False)
    disks.calibration.set_Q_pixel_size(pixel)
    disks.calibration.set_Q_pixel_units("A^-1")
    disks.setcal()
    found = time.perf_counter()
    crystal.calculate_structure_factors(float(k_max))
    plan(crystal)
    planned = time.perf_counter()
    matched = crystal.match_orientations(disks, min_number_peaks=3)
    np.savez(
        out,
        orientation=matched.matrix[:, :, 0],
        seconds=np.array([found - start, time.perf_counter() - planned]),
        version=py4DSTEM.__version__,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
