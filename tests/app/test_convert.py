# SPDX-License-Identifier: GPL-3.0-or-later
"""`jaxstem convert`."""

import numpy as np
from helpers import assert_command_refused, run

from jaxstem.detection.opening import open_scan
from jaxstem.files.emd import read_disks


def test_disks_become_csv_and_come_back(here, capsys):
    assert run("convert", "scan.h5", "--out", "disks.csv") == 0
    assert run("convert", "disks.csv", "--out", "disks.h5") == 0
    before, after = read_disks("scan.h5"), open_scan("disks.h5").read(0, 3)
    np.testing.assert_array_equal(after.offsets, before.offsets)
    np.testing.assert_allclose(after.qx, before.qx, atol=1e-6)
    assert_command_refused(
        ["convert", "scan.h5", "--out", "disks.csv"], here, capsys, "disks.csv", "exists"
    )
