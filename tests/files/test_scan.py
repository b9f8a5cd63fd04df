# SPDX-License-Identifier: GPL-3.0-or-later
"""Disks of a scan: brought to one length for each position."""

import numpy as np
from helpers import random_lists, scan_of_lists
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxstem.files.scan import DiskScan, pad_disks, source_of


@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_padding_keeps_the_strongest_disks_in_range(data, seed):
    """The same as a loop over the positions."""
    rng = np.random.default_rng(seed)
    counts = np.array(data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=8)))
    index = data.draw(st.lists(st.integers(0, len(counts) - 1), max_size=10))
    n_max = data.draw(st.integers(1, 8))
    k_min, k_max = sorted(rng.uniform(0, 3, 2))
    total = counts.sum()
    scan = DiskScan(
        qx=rng.uniform(-2, 2, total).astype(np.float32),
        qy=rng.uniform(-2, 2, total).astype(np.float32),
        intensity=rng.uniform(-0.5, 3, total).astype(np.float32),
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        scan_shape=(1, len(counts)),
        scan_step=1.0,
        scan_units="nm",
        voltage_kv=None,
        source="none",
    )
    qx, qy, intensity, mask = pad_disks(scan, np.array(index, int), k_max, k_min, n_max)
    assert qx.shape == qy.shape == intensity.shape == mask.shape == (len(index), n_max)
    assert qx.dtype == qy.dtype == intensity.dtype == np.float32 and mask.dtype == bool
    for row, position in enumerate(index):
        here = [
            (-scan.intensity[d], scan.qx[d], scan.qy[d])
            for d in range(scan.offsets[position], scan.offsets[position + 1])
            if k_min < np.hypot(scan.qx[d], scan.qy[d]) <= k_max and scan.intensity[d] > 0
        ]
        expected = np.zeros((3, n_max), np.float32)
        for column, disk in enumerate(sorted(here)[:n_max]):
            expected[:, column] = disk
        np.testing.assert_array_equal([-intensity[row], qx[row], qy[row]], expected)
        np.testing.assert_array_equal(mask[row], np.arange(n_max) < len(here))


def test_chosen_positions_are_a_scan(with_light, rng):
    """With their disks and their counts, in whatever pieces they are read."""
    lists = random_lists(rng, 35, 6)
    scan = with_light(scan_of_lists(lists, (7, 5)))
    few = source_of(scan).at(range(1, 7, 2), [0, 3])
    assert few.scan_shape == (3, 2)
    chosen = np.arange(35).reshape(7, 5)[1:7:2, 0:5:3]
    for start, stop in ((0, 3), (1, 2), (2, 3)):
        part, positions = few.read(start, stop), chosen[start:stop].ravel()
        assert part.scan_shape == (stop - start, 2)
        expected = scan_of_lists([lists[i] for i in positions])
        np.testing.assert_array_equal(part.offsets, expected.offsets)
        np.testing.assert_array_equal(part.qx, expected.qx)
        np.testing.assert_array_equal(part.intensity, expected.intensity)
        light, whole = few.read_light(start, stop), scan.light.light
        for mine, all_of_them in zip(light, whole, strict=True):
            np.testing.assert_array_equal(mine, all_of_them[positions])
    assert source_of(scan_of_lists(lists, (7, 5))).at(range(2), range(5)).read_light is None
