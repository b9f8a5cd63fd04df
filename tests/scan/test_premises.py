# SPDX-License-Identifier: GPL-3.0-or-later
"""Premises that a scan's disks cannot fit are doubted, with their cause; those that they fit are
not.
"""

import warnings
from dataclasses import replace

import jax
import numpy as np
import pytest
from helpers import random_matrices, scan_of_lists

from jaxstem.diffraction.geometry import excitation_error
from jaxstem.files.axes import turned
from jaxstem.files.distortion import from_numbers
from jaxstem.files.scan import Instrument, source_of
from jaxstem.inference.batching import no_labels, unseen
from jaxstem.inference.config import InferConfig
from jaxstem.inference.verdict import doubted, doubted_labels
from jaxstem.runtime import parallel
from jaxstem.scan import premises, self_calibration
from jaxstem.scan.premises import AGAINST, FAR, LEAST, examined, stated

GIVEN = Instrument(0.03, pixel_size_from="as given")

pytestmark = pytest.mark.usefixtures("quick_compile", "compiled_once")


@pytest.fixture(scope="module")
def mesh():
    return parallel.make_mesh(jax.devices()[:1])


@pytest.fixture
def seen(model, mesh, rng, monkeypatch):
    """What is thought of a scan of `n` grains, stretched and with this instrument, by one who knows
    all its orientations; `strange`: share of the disks that lie anywhere.
    """
    material = model.materials[0]
    g, _, inverse_extinction = map(np.asarray, material.reflectors())
    monkeypatch.setattr(self_calibration, "SAMPLE", (4, 6))  # as large as the scans

    def look(stretch, n=24, strange=0.0, instrument=GIVEN):
        orientation = random_matrices(rng, n)
        lists = []
        for one in orientation:
            g_lab = g @ one
            s = np.asarray(excitation_error(g_lab, material.wavelength))
            share = 0.5 * inverse_extinction**2 / (s**2 + inverse_extinction**2)
            q = g_lab[share > 2e-4, :2] @ (np.eye(2) + from_numbers([*stretch, 0, 0]).stretch)
            anywhere = rng.random(len(q)) < strange
            q = np.where(anywhere[:, None], rng.uniform(-1.2, 1.2, q.shape), q)
            lists.append(np.column_stack([q, share[share > 2e-4]]))
        shape = (1, n) if n < 4 else (4, n // 4)
        scan = replace(scan_of_lists(lists, shape), instrument=instrument)
        answer = unseen(np.zeros(n, bool))._replace(
            orientation=orientation,
            phase=np.zeros(n, np.int16),
            confidence_mod180=np.ones(n, np.float32),
        )
        monkeypatch.setattr(self_calibration, "predict_scan", lambda *_, **__: (answer, None))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = examined(source_of(scan), model, InferConfig(), mesh, lambda _: None)
        said = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
        assert said == ([f"test: {found.doubt.said}"] if found.doubt else [])
        return found

    return look


def test_right_premises_are_not_doubted(seen):
    for stretch in (np.zeros(3), [0.012, 0.002, 0.01]):
        assert seen(stretch).doubt is None
    assert seen(np.zeros(3), strange=0.2).doubt is None
    assert seen(np.zeros(3), n=1).doubt is None


@pytest.mark.parametrize("scale", [1.12, 0.9, 1.2])
@pytest.mark.parametrize("n", [4, 24])
def test_a_wrong_scale_is_named_and_measured(seen, scale, n):
    found = seen(np.array([scale - 1, 0, scale - 1]), n)
    doubt = found.doubt
    assert doubt.cause == "scale" and not doubt.corrected and doubt.against == AGAINST
    assert doubt.size == pytest.approx(scale - 1, abs=0.005) and doubt.explained < LEAST
    word, number = doubt.correction.split()
    assert word == "--pixel-size" and float(number) == pytest.approx(0.03 / scale, rel=0.005)
    assert ("farther from" if scale > 1 else "nearer to") in doubt.said
    assert found.distortion.most == 0.0  # nothing is corrected by answers that are not right


def test_what_was_corrected_is_said_where_it_is_large(seen):
    doubt = seen([0.028, 0, 0.028], instrument=Instrument(0.03)).doubt
    assert (doubt.cause, doubt.corrected, doubt.against) == ("scale", True, 0.0)
    assert doubt.size == pytest.approx(0.028, abs=1e-3) and "(corrected)" in doubt.said
    doubt = seen([0.028, 0, 0.028]).doubt  # not where the user states the size
    assert not doubt.corrected and doubt.against == 0.0 and "(corrected)" not in doubt.said
    doubt = seen([0.028, 0, 0.028], instrument=Instrument()).doubt
    assert doubt.correction is None and "--pixel-size" not in doubt.said


# 6 % leave nearly all disks of few patterns near their reflections
@pytest.mark.parametrize(("share", "n"), [(0.06, 24), (0.12, 24), (0.12, 4)])
def test_an_ellipse_is_named_and_measured(seen, share, n):
    axis = np.array([np.cos(0.7), np.sin(0.7)])
    stretch = share * (np.outer(axis, axis) - 0.5 * np.eye(2))
    doubt = seen(stretch[[0, 0, 1], [0, 1, 1]], n).doubt
    assert doubt.cause == "ellipse" and doubt.size == pytest.approx(share, abs=0.005)
    assert "times as long as wide" in doubt.said and "40°" in doubt.said


@pytest.mark.parametrize("flip", ["none", "rows", "columns"])
@pytest.mark.parametrize("transposed", [False, True])
def test_the_option_of_an_ellipse_takes_it_out(seen, rng, flip, transposed):
    """Told in the detector's axes, whatever the way from there to the lab's."""
    axis = np.array([np.cos(0.7), np.sin(0.7)])
    stretch = 0.08 * (np.outer(axis, axis) - 0.5 * np.eye(2))
    found = from_numbers([*stretch[[0, 0, 1], [0, 1, 1]], 0, 0])
    known = replace(GIVEN, flip=flip, transposed=transposed, rotation_deg=25.0)
    source = replace(seen(np.zeros(3)).source, instrument=known)
    doubt = stated(found, from_numbers(np.zeros(5)), 0.4, source, "Cu")
    word, ratio, along = doubt.correction.split()
    assert word == "--ellipse" and doubt.correction in doubt.said
    steps = {"Q_flip": flip, "QR_flip": transposed, "QR_rotation": np.deg2rad(25.0)}
    turn = np.deg2rad(float(along))
    long = np.array([np.cos(turn), np.sin(turn)])
    # a ring's vectors on the detector, without the ellipse, in the lab
    true = rng.normal(size=(2, 50))
    on_detector = np.stack(turned(*np.eye(2), steps)).T @ (np.eye(2) + stretch) @ true
    squeezed = on_detector + np.outer(long, long @ on_detector) * (1 / float(ratio) - 1)
    lab = np.stack(turned(*squeezed, steps))
    np.testing.assert_allclose(
        lab / np.sqrt(np.linalg.det(np.eye(2) + stretch) / float(ratio)), true, atol=5e-3
    )
    stated_already = replace(source, instrument=replace(known, ellipse=(1.01, 0.0)))
    again = stated(found, from_numbers(np.zeros(5)), 0.4, stated_already, "Cu")
    assert again.correction is None


def test_disks_of_no_crystal_are_told(seen, monkeypatch):
    """After all premises were tried, with one program."""
    made, make_pair = [], premises.make_pair
    monkeypatch.setattr(premises, "make_pair", lambda *of: made.append(of) or make_pair(*of))
    monkeypatch.setattr(self_calibration, "make_pair", lambda *_: pytest.fail("made anew"))
    doubt = seen(np.zeros(3), strange=0.9).doubt
    assert len(made) == 1
    assert doubt.cause == "crystal" and doubt.correction is None and doubt.against == AGAINST
    assert doubt.size == pytest.approx(1 - doubt.explained) and doubt.explained < 0.5
    assert doubt.summary().keys() == {"cause", "size", "correction", "explained", "corrected"}


def test_scale_and_ellipse_are_told_together(seen):
    none = from_numbers(np.zeros(5))
    source = seen(np.zeros(3)).source
    both = from_numbers([0.08, 0.0, 0.02, 0.0, 0.0])
    doubt = stated(both, none, 0.4, source, "Cu")
    assert doubt.cause == "scale and ellipse" and doubt.size == pytest.approx(0.05)
    half = stated(both, both.parts[1], 0.9, source, "Cu")
    assert not half.corrected and half.said.count("(corrected)") == 1
    assert stated(from_numbers([FAR / 2, 0, 0, 0, 0]), none, 0.4, source, "Cu") is None


def test_doubt_weighs_against_every_crystal(rng):
    """By Bayes' rule: odds against no crystal fall by so many nat; answers turn where it wins."""
    phase = np.array([0, 0, 0, -2, -1])
    share = np.array([0.999, 0.9, 0.6, 0.7, 0.0])
    answer = unseen(phase == -2)
    answer = answer._replace(
        phase=phase,
        phase_confidence=share.astype(np.float32),
        confidence=(0.9 * share).astype(np.float32),
        confidence_mod180=share.astype(np.float32),
        orientation=random_matrices(rng, 5),
    )
    found = doubted(answer, 3.0)
    odds = share / (1 - share + 1e-12) * np.exp(np.where(phase == 0, -3.0, 3.0))
    left = odds / (1 + odds)
    np.testing.assert_array_equal(found.phase, [0, -2, -2, -2, -1])
    np.testing.assert_allclose(found.phase_confidence[[0, 3]], left[[0, 3]], rtol=1e-4)
    np.testing.assert_allclose(found.phase_confidence[1:3], 1 - left[1:3], rtol=1e-4)
    np.testing.assert_allclose(found.confidence[0], 0.9 * left[0], rtol=1e-4)
    assert found.confidence[4] == 0.0
    np.testing.assert_array_equal(np.isnan(found.orientation[:3, 0, 0]), [False, True, True])
    assert doubted(answer, 0.0) is answer


def test_doubted_labels_are_those_that_were_looked_at():
    phase = np.array([[0, -1], [-1, -1]])
    labels = no_labels(np.array([0, -2]), 2)._replace(phase=phase)
    found = doubted_labels(labels._replace(no_crystal=np.zeros(2, np.float32)), 3.0)
    np.testing.assert_array_equal(found.no_crystal, [3.0, 0.0])
    np.testing.assert_array_equal(found.log_odds, labels.log_odds)
