# SPDX-License-Identifier: GPL-3.0-or-later
"""A beam that is hidden or cut is where the rest of the light says."""

import numpy as np
import pytest
from helpers import BEAM, DISK_RADIUS, diffuse, disk_image

from jaxstem.detection.config import DetectConfig
from jaxstem.detection.hidden_beam import symmetry_centre
from jaxstem.detection.plan import make_plan
from jaxstem.detection.scan import find_disks, plan_search, write_bragg
from jaxstem.errors import InputError
from jaxstem.files.cube import cube_from_array
from jaxstem.files.emd import bragg_source


def pairs_of_disks(rng, beam, n=40, shape=(72, 64)):
    """Patterns with disks on both sides of the beam, not equally bright, and some on one alone."""
    images = []
    for _ in range(n):
        image = diffuse(beam, shape=shape) + disk_image(beam, 1e5, shape=shape)
        for _ in range(3):
            turn, length = rng.uniform(0, 2 * np.pi), rng.uniform(12, 24)
            g = length * np.array([np.cos(turn), np.sin(turn)])
            for sign, counts in ((1, rng.uniform(500, 3000)), (-1, rng.uniform(0, 2000))):
                image = image + disk_image(beam + sign * g, counts + 1, shape=shape)
        images.append(image)
    return rng.poisson(np.array(images)).astype(np.uint16)


@pytest.fixture
def patterns(rng):
    """Patterns, and where their beam is."""
    beam = BEAM + rng.uniform(-3, 3, 2) + [4, 0]
    return pairs_of_disks(rng, beam), beam


def about(beam, shape=(72, 64)):
    """Distances along both axes from the beam."""
    return np.abs(np.indices(shape) - beam[:, None, None])


def hidden(patterns, beam, how):
    """The patterns behind a dead cross, or a bar from the edge over the beam."""
    row, column = np.indices(patterns.shape[1:]) - np.round(beam)[:, None, None]
    if how == "cross":
        dead = (np.abs(row) <= 2) | (np.abs(column) <= 2)
    else:
        dead = (np.abs(column) <= 5) & (row <= 4)
    return np.where(dead, 0, patterns), ~dead


@pytest.mark.parametrize("how", ["cross", "bar"])
def test_light_on_both_sides_says_where_the_beam_is(patterns, how):
    """To a fraction of a pixel; what hides it, whose own middle is elsewhere, has no say."""
    counts, beam = patterns
    stopped, good = hidden(counts, beam, how)
    found = symmetry_centre(stopped.astype(np.float32), good)
    assert np.abs(found - beam).max() < 0.35


@pytest.mark.parametrize("how", ["cross", "bar"])
def test_a_hidden_beam_needs_no_options(patterns, how):
    """Mask, place and radius follow from the patterns; its counts are said not to be known."""
    counts, beam = patterns
    stopped, good = hidden(counts, beam, how)
    planned = plan_search(cube_from_array(stopped.reshape(5, 8, *stopped.shape[1:]), 0.03))
    np.testing.assert_array_equal(np.asarray(planned.plan.good), good)
    known = planned.instrument
    assert np.abs(np.array(known.centre) - beam).max() < 0.35
    assert known.radius == pytest.approx(DISK_RADIUS, abs=0.35)
    assert known.beam_unseen and planned.layout.fixed_origin


def test_what_is_told_goes_before_what_is_found(patterns):
    counts, beam = patterns
    stopped, good = hidden(counts, beam, "bar")
    config = DetectConfig(origin=tuple(beam), radius=DISK_RADIUS, mask=good)
    plan, layout = make_plan(stopped, config)
    np.testing.assert_allclose(plan.centre, beam, rtol=1e-6)
    assert layout.fixed_origin


@pytest.mark.parametrize("most", [255, 1500])
def test_a_beam_that_is_cut_is_used_for_its_place_alone(patterns, most):
    """Not as an aperture, which looks wider cut, nor for its counts."""
    counts, beam = patterns
    cut = np.minimum(counts, most).astype(np.uint16)
    known = plan_search(cube_from_array(cut.reshape(5, 8, *cut.shape[1:]), 0.03)).instrument
    assert known.n_masked == 0 and known.clipped_at == most and known.beam_unseen
    assert np.abs(np.array(known.centre) - beam).max() < 0.5
    assert known.radius == pytest.approx(DISK_RADIUS, abs=0.4)


def test_a_beam_that_is_seen_is_measured(patterns):
    counts, beam = patterns
    cube = cube_from_array(counts.reshape(5, 8, *counts.shape[1:]), 0.03)
    known = plan_search(cube).instrument
    assert not known.beam_unseen and known.clipped_at is None and known.pedestal == 0
    assert np.abs(np.array(known.centre) - beam).max() < 0.3
    # elsewhere on the detector a dead bar says nothing of it
    far = counts.copy()
    far[:, :, 3:9] = 0
    assert not plan_search(cube_from_array(far[None], 0.03)).instrument.beam_unseen


def test_a_hidden_beam_without_disks_is_asked_for(rng):
    light = diffuse() + disk_image(BEAM, 1e5)
    counts = rng.poisson(light, (8, 64, 64))
    counts[:, 24:40, :40] = 0
    with pytest.raises(InputError, match="no direct beam found.*--origin and --radius"):
        make_plan(counts)


@pytest.mark.usefixtures("quick_compile")
def test_files_of_disks_say_that_the_beam_is_unseen(patterns, tmp_path):
    counts, _ = patterns
    for name, these in (("cut", np.minimum(counts, 255)), ("whole", counts)):
        found = find_disks(
            cube_from_array(these[None], 0.03), DetectConfig(n_disks=16), keep_light=True
        )
        write_bragg(tmp_path / f"{name}.h5", found)
        assert bragg_source(tmp_path / f"{name}.h5").instrument.beam_unseen == (name == "cut")
