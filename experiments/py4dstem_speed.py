# SPDX-License-Identifier: GPL-3.0-or-later
"""How long py4DSTEM's template matching takes for some rows of a scan, as one line of JSON.

Runs in py4DSTEM's own virtual environment (experiments/fixtures/requirements.txt):

    python experiments/py4dstem_speed.py SCAN.h5 CIF ROWS

Settings as in py4dstem_matching.py. Reading and the orientation plan are timed apart.
"""

import contextlib
import json
import os
import sys
import time

import py4DSTEM


def main(scan: str, cif: str, n_rows: int) -> dict[str, float]:
    """Seconds to read the scan, to make the plan, and to match `n_rows` of its rows."""
    start = time.perf_counter()
    bragg = py4DSTEM.read(scan)
    bragg.setcal()
    read = time.perf_counter()
    crystal = py4DSTEM.process.diffraction.Crystal.from_CIF(cif)
    crystal.setup_diffraction(300e3)
    crystal.calculate_structure_factors(2.0992)
    crystal.orientation_plan(
        angle_step_zone_axis=2,
        angle_step_in_plane=2,
        corr_kernel_size=0.08,
        zone_axis_range="auto",
    )
    plan = time.perf_counter()
    n_columns = int(bragg.shape[1])
    for row in range(n_rows):
        for column in range(n_columns):
            crystal.match_single_pattern(bragg.cal[row, column], min_number_peaks=3, verbose=False)
    done = time.perf_counter()
    return {
        "read_seconds": read - start,
        "plan_seconds": plan - read,
        "match_seconds": done - plan,
        "matched": n_rows * n_columns,
        "version": py4DSTEM.__version__,
    }


if __name__ == "__main__":
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        found = main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    print(json.dumps(found))
