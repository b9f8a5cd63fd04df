# SPDX-License-Identifier: GPL-3.0-or-later
"""Template matching by py4DSTEM on the sample scans: the yardstick.

Runs in py4DSTEM's own virtual environment (experiments/fixtures/requirements.txt), not in
jaxstem's:

    python -m experiments.accuracy.py4dstem_matching experiments/results/py4dstem.npz

Writes the matched orientation matrices of each set and the seconds they took; sample_scans.py
scores them with the same code as jaxstem's own. The two-phase scan is matched with each crystal, to
be scored where that crystal is. Further arguments name the sets to match; the others are kept.
"""

import sys
import time
from pathlib import Path

import numpy as np
import py4DSTEM

from experiments.common.py4dstem import crystal_of, plan

ROOT = Path(__file__).resolve().parents[2]
SAMPLES, DATA = ROOT / "jaxstem/samples", ROOT / "experiments/data"
CU, CU2O = SAMPLES / "Cu.cif", DATA / "Cu2O.cif"
SETS = {
    "cu": (SAMPLES / "cu_bragg.h5", CU),
    "cu_random": (DATA / "cu_random_bragg.h5", CU),
    "cu2o_random": (DATA / "cu2o_random_bragg.h5", CU2O),
    "cu_cu2o:Cu": (DATA / "cu_cu2o_bragg.h5", CU),
    "cu_cu2o:Cu2O": (DATA / "cu_cu2o_bragg.h5", CU2O),
}


def match(bragg_file: Path, cif: Path):
    """Orientation matrices (ny, nx, 3, 3) of the best match, and seconds for the matching alone."""
    bragg = py4DSTEM.read(str(bragg_file))
    bragg.setcal()
    crystal = crystal_of(cif)
    plan(crystal)
    start = time.perf_counter()
    found = crystal.match_orientations(bragg, min_number_peaks=3)
    return np.asarray(found.matrix[:, :, 0]), time.perf_counter() - start


if __name__ == "__main__":
    out = Path(sys.argv[1])
    results = dict(np.load(out)) if out.exists() else {}
    for name in sys.argv[2:] or SETS:
        matrices, seconds = match(*SETS[name])
        results[f"{name}/orientation"], results[f"{name}/seconds"] = matrices, seconds
        print(name, f"{matrices[..., 0, 0].size / seconds:.1f} patterns/s", flush=True)
    results["version"] = py4DSTEM.__version__
    np.savez_compressed(out, **results)
