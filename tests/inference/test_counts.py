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
from jaxstem.inference.batching import judged_source, preview_scan
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
    answer = map_scan(found, model, config, context="none", progress=False)
    assert answer.attributes["judge"] == "counts"
    assigned = answer.phase >= 0
    share = answer.explained_light[assigned]
    assert assigned.sum() >= 15 and np.isfinite(answer.log_evidence[assigned]).all()
    assert ((share >= 0) & (share <= 1)).all()
    assert np.isnan(answer.log_evidence[~assigned]).all()
    half = replace(config, batch=4)
    half = map_scan(source_of(found), model, half, context="none", progress=False)
    for name in ("phase", "orientation", "log_evidence", "confidence"):
        np.testing.assert_array_equal(getattr(half, name), getattr(answer, name))
    write_packed(tmp_path / "disks.h5", source_of(found))
    assert config.by_counts(source_of(found))
    assert not config.by_counts(packed_source(tmp_path / "disks.h5"))
    assert not replace(config, judge="list").by_counts(source_of(found))
    assert not replace(config, refine="none").by_counts(source_of(found))


def test_counts_do_not_judge_where_the_beam_is_not_seen(model, found, config):
    """As behind a beam stop: the disks decide, and it is said; a beam that a few patterns lack is
    that of the others.
    """
    direct = np.hypot(found.qx, found.qy) <= model.k_min
    position = np.repeat(np.arange(20), np.diff(found.offsets))

    def without(positions):
        left = ~(direct & np.isin(position, positions))
        disks = {name: getattr(found, name)[left] for name in ("qx", "qy", "intensity")}
        lengths = np.bincount(position[left], minlength=20)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(found.offsets.dtype)
        return source_of(replace(found, **disks, offsets=offsets))

    with pytest.warns(UserWarning, match="direct beam is not found in most patterns"):
        hidden = judged_source(without(np.arange(20)), model, config)
    assert hidden.detector is None and preview_scan(hidden, model, config).light is None
    some = judged_source(without([3, 4]), model, config)
    assert some.detector is not None
    beam = preview_scan(some, model, config).beam
    assert beam == pytest.approx(found.intensity[position == 5].sum(), rel=0.1)


def test_counts_have_one_length_where_lists_have_several(model, found, config):
    """Counts at predicted places cost the same however many disks are listed."""
    config = replace(config, lengths=(8, 16, 24), least=1)
    n_disks = np.diff(found.offsets)
    assert (n_disks <= 9).any() and (n_disks > 17).any()
    by_list = preview_scan(source_of(found), model, replace(config, judge="list")).lengths
    by_counts = preview_scan(source_of(found), model, config).lengths
    assert len(by_list) > 1 and by_counts == by_list[-1:]
