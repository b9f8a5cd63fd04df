# SPDX-License-Identifier: GPL-3.0-or-later
"""From raw patterns to answers by their counts, whatever the batch."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import ROOT

import jaxstem
from jaxstem.files.cube_readers import read_cube
from jaxstem.files.packed import packed_source, write_packed
from jaxstem.files.scan import source_of
from jaxstem.mapping import map_scan
from jaxstem.verification.config import CountsConfig

pytestmark = pytest.mark.usefixtures("quick_compile")

DATA = ROOT / "experiments/data"
COUNTS = CountsConfig(n_candidates=(12,), n_final=4, n_thicknesses=8, steps=(0.25,), n_polished=2)


@pytest.fixture(scope="module")
def found():
    """The disks of 20 raw patterns of copper, and their counts."""
    patterns = read_cube(DATA / "cu_random_cube.h5").rows(0, 2)
    return jaxstem.detect_disks(patterns, pixel_size=0.0328, voltage_kv=300.0)


def test_counts_judge_where_patterns_are_at_hand(model, found, config, tmp_path):
    """Whatever the batch; a file of disks has none."""
    score = replace(config.score, counts=COUNTS)
    config = replace(config, score=score, lengths=(24,), counts_chance=-1e6)
    answer = map_scan(found, model, config, progress=False)
    assert answer.attributes["judge"] == "counts"
    assigned = answer.phase >= 0
    share = answer.explained_light[assigned]
    assert assigned.sum() >= 15 and np.isfinite(answer.log_evidence[assigned]).all()
    assert ((share >= 0) & (share <= 1)).all()
    assert np.isnan(answer.log_evidence[~assigned]).all()
    half = map_scan(source_of(found), model, replace(config, batch=4), progress=False)
    for name in ("phase", "orientation", "log_evidence", "confidence"):
        np.testing.assert_array_equal(getattr(half, name), getattr(answer, name))
    write_packed(tmp_path / "disks.h5", source_of(found))
    assert config.by_counts(source_of(found))
    assert not config.by_counts(packed_source(tmp_path / "disks.h5"))
    assert not replace(config, judge="list").by_counts(source_of(found))
    assert not replace(config, refine="none").by_counts(source_of(found))
