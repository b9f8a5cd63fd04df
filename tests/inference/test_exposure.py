# SPDX-License-Identifier: GPL-3.0-or-later
"""Counts, the incident beam and the detection limit of a scan, and which positions look empty."""

import dataclasses

import numpy as np
import pytest
from helpers import scan_of_lists

from jaxstem.files.scan import pad_disks
from jaxstem.inference.exposure import (
    N_RADII,
    count_disks,
    looks_empty,
    scan_exposure,
    scan_reach,
    typical_beam,
)
from jaxstem.verification.config import FARTHEST

pytestmark = pytest.mark.usefixtures("quick_compile")


def test_counts_are_those_of_padding(scan, copper):
    counts = count_disks(scan, copper.k_min, copper.k_max)
    *_, mask = pad_disks(scan, np.arange(13), copper.k_max, copper.k_min, 40)
    np.testing.assert_array_equal(counts, mask.sum(axis=1))


def test_counts_by_hand():
    far, near, direct, dark = [1.6, 0, 1], [0, 0.5, 1], [0.1, 0.1, 9], [0.5, 0.5, 0]
    scan = scan_of_lists(
        [np.array([far, near, direct]), np.zeros((0, 3)), np.array([dark, near, near])]
    )
    np.testing.assert_array_equal(count_disks(scan, 0.3, 1.5), [1, 0, 2])


def test_reach_is_that_of_bright_disks(rng):
    """Bright disks end at 1.3 1/Å, and false ones, as weak as any, lie anywhere."""
    radius = np.concatenate([1.3 * np.sqrt(rng.random(3000)), 3.0 * np.sqrt(rng.random(300))])
    angle = rng.uniform(0, 2 * np.pi, len(radius))
    weak = rng.uniform(1.0, 1.5, 300)
    intensity = np.concatenate([np.exp(rng.uniform(0, 5, 3000)), weak])
    disks = np.stack([radius * np.cos(angle), radius * np.sin(angle), intensity], -1)
    scan = scan_of_lists(np.split(disks[rng.permutation(len(disks))], 33))
    assert scan_reach(scan, 0.1, 2.0) == pytest.approx(1.3, abs=0.03)
    # farther than reflections are thought of, or hardly any disk to tell
    wide = dataclasses.replace(scan, qx=4 * scan.qx, qy=4 * scan.qy)
    assert scan_reach(wide, 0.1, 2.0) == FARTHEST
    assert scan_reach(scan_of_lists([disks[:50]]), 0.1, 2.0) == 2.0


def test_exposure_by_hand():
    """With the direct beam its share counts; without it the disks are 30 % of the beam, roughly."""
    lists = [
        np.array([[0, 0, 80.0], [0.5, 0, 15], [0, 0.5, 5]]),
        np.array([[0.5, 0, 15.0], [0, 0.5, 15]]),
        np.zeros((0, 3)),
    ]
    found = scan_exposure(scan_of_lists(lists), 0.3, 1.5)
    np.testing.assert_allclose(found.incident, [100, 100, 1])
    sigma = found.incident_sigma
    assert sigma[0] < 0.3 < 0.7 < sigma[1] == sigma[2]
    shares = [0.15, 0.05, 0.15, 0.15]
    assert found.limit.log_share.shape == (N_RADII,)
    np.testing.assert_allclose(np.exp(found.limit.log_share), np.percentile(shares, 4), rtol=1e-5)
    assert not found.is_cut.any()
    # one pattern in two lists the direct beam, so that the scan's beam is known
    assert typical_beam(scan_of_lists(lists), 0.3) == 100
    assert typical_beam(scan_of_lists(lists[1:]), 0.3) is None
    for beam, incident in ((100.0, 100.0), (20.0, 30.0)):
        known = scan_exposure(scan_of_lists(lists), 0.3, 1.5, found.limit, beam)
        np.testing.assert_allclose(known.incident, [100, incident, beam])
        assert sigma[0] < known.incident_sigma[1] == known.incident_sigma[2] < 0.7
    part = found.at(np.array([2, 0]))
    np.testing.assert_array_equal(part.incident, [1, 100])
    np.testing.assert_array_equal(part.incident_sigma, sigma[[2, 0]])
    np.testing.assert_array_equal(part.limit.log_share, found.limit.log_share)


def test_the_detection_limit_follows_the_radius(rng):
    """Near the direct beam only disks above a hundredth of it are listed, farther out weaker ones;
    where there are few disks the limit is that of all.
    """
    lists = []
    for _ in range(60):
        radius, angle = rng.uniform(0.3, 1.2, 30), rng.uniform(0, 2 * np.pi, 30)
        share = np.exp(rng.uniform(np.log(1e-4), np.log(1e-1), 30))
        listed = share > np.where(radius < 0.6, 1e-2, 1e-3)
        disks = np.stack([radius * np.cos(angle), radius * np.sin(angle), share], axis=-1)[listed]
        lists.append(np.concatenate([[[0.0, 0.0, 1.0 - disks[:, 2].sum()]], disks]))
    limit = np.exp(scan_exposure(scan_of_lists(lists), 0.25, 1.5).limit.log_share)
    radii = np.linspace(0, 1.5, N_RADII)
    near, far, beyond = (radii > 0.3) & (radii < 0.5), (radii > 0.7) & (radii < 1.1), radii > 1.35
    assert np.all((limit[near] >= 1e-2) & (limit[near] < 1.6e-2))
    assert np.all((limit[far] >= 1e-3) & (limit[far] < 1.9e-3))
    assert len(set(limit[beyond])) == 1 and 1e-3 <= limit[-1] < 2e-3


@pytest.mark.parametrize("by_ratio", [False, True])
def test_lists_cut_by_share_or_by_ratio_to_the_strongest(rng, by_ratio):
    """Patterns of very different brightness, without disks under a share of the beam, or without
    those under a hundredth of the strongest one.
    """
    lists = []
    for _ in range(300):
        place = rng.uniform(-1, 1, (40, 2))
        share = np.exp(rng.normal(-5, 1.5)) * np.exp(rng.uniform(np.log(1e-4), 0, 40))
        least = 0.01 * share.max() if by_ratio else 1e-4
        disks = np.column_stack([place, share])[share > least]
        lists.append(np.concatenate([[[0.0, 0.0, 1.0]], disks]))
    limit = scan_exposure(scan_of_lists(lists), 1e-6, 2.0).limit
    if by_ratio:
        assert 0.01 <= np.exp(limit.log_ratio) < 0.011
        assert np.all(limit.log_share <= np.log(min(rows[:, 2].min() for rows in lists)) + 0.1)
    else:
        assert limit.log_ratio == -np.inf
        # bright patterns have more than the direct beam in all, and so smaller shares
        assert np.all((np.exp(limit.log_share) > 0.7e-4) & (np.exp(limit.log_share) < 2e-4))


@pytest.mark.parametrize("n_positions", [0, 3])
def test_exposure_of_nothing(n_positions):
    found = scan_exposure(scan_of_lists([np.zeros((0, 3))] * n_positions), 0.3, 1.5)
    assert found.incident.shape == found.incident_sigma.shape == (n_positions,)
    assert np.isfinite(found.limit.log_share).all() and np.all(found.incident > 0)


def test_lone_disks():
    """One weak disk is noise and one strong one a crystal; beyond k_max disks count as well."""
    direct, many = [0, 0, 1000.0], [[0.5 * np.cos(a), 0.5 * np.sin(a), 1.0] for a in range(8)]
    positions = [[direct, *many], [direct], [direct, [0.5, 0, 1.5]], [direct, [0.5, 0, 50.0]]]
    positions += [[direct, [2.5, 0, 1.0], [0, 2.5, 1.0]], np.zeros((0, 3))]
    scan = scan_of_lists([np.array(one) for one in positions])
    empty = looks_empty(scan, 0.3, scan_exposure(scan, 0.3, 1.5))
    np.testing.assert_array_equal(empty, [False, True, True, False, False, True])
