# SPDX-License-Identifier: GPL-3.0-or-later
"""Lists of disks as pyxem saves them.

fixtures/pyxem_vectors.hspy is pyxem's own (experiments/fixtures/make_pyxem_fixtures.py).
"""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import FIXTURES, assert_refused

from jaxstem.detection.opening import read_scan

VECTORS = FIXTURES / "pyxem_vectors.hspy"


def test_vectors_of_pyxem():
    scan = read_scan(VECTORS)
    assert scan.scan_shape == (2, 3) and (scan.scan_step, scan.scan_units) == (5.0, "nm")
    assert scan.voltage_kv == 200.0
    np.testing.assert_array_equal(np.diff(scan.offsets), [2, 2, 2, 3, 3, 3])
    places = np.array([(10, 30), (25, 12), (33, 41)])
    truth = places * [0.2, 0.1] + [-4.0, -2.5]
    for position, (first, last) in enumerate(zip(scan.offsets[:-1], scan.offsets[1:], strict=True)):
        found = np.stack([scan.qx, scan.qy], -1)[first:last]
        order = np.argsort(-scan.intensity[first:last])
        expected = truth[[1, 0, 2][: last - first]]
        np.testing.assert_allclose(found[order], expected, atol=1e-6)
        strongest = 90 + position % 3
        assert scan.intensity[first:last].max() == pytest.approx(strongest, rel=1e-3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"_list_units": np.array([b"px", b"px", b"a.u."])}, ["'px, px'", "1/Å"]),
        ({"_list_column_names": np.array([b"ky", b"kx", b"height"])}, ["no intensities"]),
    ],
)
def test_unusable_vectors_are_refused(tmp_path, change, words):
    path = Path(shutil.copy(VECTORS, tmp_path / "vectors.hspy"))
    with h5py.File(path, "r+") as file:
        about = next(iter(file["Experiments"].values()))["metadata/VectorMetadata"]
        for name, value in change.items():
            del about[name]
            about[name] = value
    assert_refused(read_scan, path, *words)
