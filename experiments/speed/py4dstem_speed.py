# SPDX-License-Identifier: GPL-3.0-or-later
"""How long py4DSTEM's template matching takes, asked piece by piece by benchmark_speed.py.

Runs in py4DSTEM's own virtual environment (experiments/fixtures/requirements.txt):

    python -m experiments.speed.py4dstem_speed CIF ZONE_AXIS_STEP

First prints a line of JSON with the seconds that the orientation plan took. Then, for each line
`SCAN.h5 POSITIONS` of its input, it reads the scan, matches that many positions spread over it, and
prints the seconds of both. Settings as in py4dstem_matching.py (step 2°). A second line about the
same file does not read it again.
"""

import contextlib
import json
import os
import sys
import time

import numpy as np
import py4DSTEM

from experiments.common.py4dstem import crystal_of, plan


def planned(cif: str, step: float):
    """The crystal, ready to match, and the seconds for it."""
    start = time.perf_counter()
    crystal = crystal_of(cif)
    plan(crystal, step)
    return crystal, time.perf_counter() - start


def read(scan: str):
    """The calibrated disks of a scan, and the seconds for it."""
    start = time.perf_counter()
    bragg = py4DSTEM.read(scan)
    bragg.setcal()
    return bragg, time.perf_counter() - start


def match(crystal, bragg, n_positions: int) -> tuple[int, float]:
    """How many positions were matched, evenly spread over the scan, and the seconds for them."""
    shape = tuple(int(n) for n in bragg.shape)
    chosen = np.linspace(0, np.prod(shape), n_positions, endpoint=False).astype(int)
    chosen = np.unique(chosen)
    start = time.perf_counter()
    for flat in chosen:
        row, column = np.unravel_index(flat, shape)
        crystal.match_single_pattern(bragg.cal[row, column], min_number_peaks=3, verbose=False)
    return len(chosen), time.perf_counter() - start


def main(cif: str, step: float, answer) -> None:
    """Answer until the input ends."""
    crystal, seconds = planned(cif, step)
    answer({"plan": seconds, "version": py4DSTEM.__version__})
    known = None
    for line in sys.stdin:
        scan, n_positions = line.rsplit(maxsplit=1)
        found = {}
        if scan != known:
            bragg, found["read"] = read(scan)
            known = scan
        found["matched"], found["match"] = match(crystal, bragg, int(n_positions))
        answer(found)


if __name__ == "__main__":
    out = sys.stdout
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        main(sys.argv[1], float(sys.argv[2]), lambda x: print(json.dumps(x), file=out, flush=True))
