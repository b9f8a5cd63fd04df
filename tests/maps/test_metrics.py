# SPDX-License-Identifier: GPL-3.0-or-later
"""Scores of a map against a brute-force reference and against cases worked by hand."""

import dataclasses
import json
import math

import numpy as np
import pytest
from helpers import make_map
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from jaxstem.crystal.cell import Crystal, standard_lattice, symmetry_operations
from jaxstem.errors import InputError
from jaxstem.files.truth import Truth
from jaxstem.maps.metrics import (
    candidate_coverage,
    evaluate,
    grain_bootstrap,
    pixel_errors,
    statistics,
    to_dict,
    to_text,
)
from jaxstem.orientation.symmetry import misorientations

FCC = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
CU = Crystal("Cu", 3.615 * np.eye(3), FCC, np.full(4, 29), np.ones(4), "m-3m", "m-3m", 225)
MG = Crystal(
    "Mg",
    standard_lattice(3.209, 3.209, 5.211, 90, 90, 120),
    np.array([[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]]),
    np.full(2, 12),
    np.ones(2),
    "6/mmm",
    "6/mmm",
    194,
)
HALF_TURN = np.diag([-1.0, -1.0, 1.0])


def random_orientations(rng, shape):
    return Rotation.random(math.prod(shape), random_state=rng).as_matrix().reshape(*shape, 3, 3)


def small_turns(rng, degrees):
    axis = rng.normal(size=(*np.shape(degrees), 3))
    axis /= np.linalg.norm(axis, axis=-1, keepdims=True)
    vector = np.deg2rad(degrees)[..., None] * axis
    return Rotation.from_rotvec(vector.reshape(-1, 3)).as_matrix().reshape(*vector.shape[:-1], 3, 3)


def make_truth(orientation, phase=None, boundary_weight=None, grain=None):
    shape = orientation.shape[:-2]
    return Truth(
        orientation=orientation,
        phase=np.full(shape, "Cu") if phase is None else phase,
        boundary_weight=np.zeros(shape) if boundary_weight is None else boundary_weight,
        grain=np.arange(math.prod(shape)).reshape(shape) if grain is None else grain,
        thickness=np.full(shape, np.nan),
    )


@pytest.mark.parametrize("crystal", [CU, MG], ids=lambda crystal: crystal.name)
@pytest.mark.parametrize("seed", [0, 1])
def test_misorientations_agree_with_trying_every_operation(crystal, seed):
    rng = np.random.default_rng(seed)
    first, second = random_orientations(rng, (50,)), random_orientations(rng, (50,))
    symmetry = symmetry_operations(crystal)

    def expected(other):
        trace = np.einsum("mij,oik,mkj->mo", first, symmetry, other)
        return np.rad2deg(np.arccos(np.clip((trace - 1) / 2, -1, 1))).min(1)

    plain, mod_180 = misorientations(first, second, symmetry)
    np.testing.assert_allclose(plain, expected(second), atol=0.01)
    np.testing.assert_allclose(
        mod_180, np.minimum(expected(second), expected(second @ HALF_TURN)), atol=0.01
    )
    assert (mod_180 < plain - 1).any()


def test_misorientations_of_many_chunks_keep_their_order():
    rng = np.random.default_rng(5)
    truth = random_orientations(rng, (9000,))
    angle = np.linspace(0.0, 20.0, 9000)
    plain, _ = misorientations(truth @ small_turns(rng, angle), truth, symmetry_operations(CU))
    np.testing.assert_allclose(plain, angle, atol=0.01)


def test_symmetric_equivalents_have_no_error_and_the_half_turn_only_modulo_180():
    rng = np.random.default_rng(2)
    truth = random_orientations(rng, (4, 6))
    equivalent = symmetry_operations(CU)[np.arange(24).reshape(4, 6)] @ truth
    plain, mod_180 = pixel_errors(make_map(equivalent, np.zeros((4, 6)), [CU]), make_truth(truth))
    assert plain.max() < 0.05
    turned = make_map(equivalent @ HALF_TURN, np.zeros((4, 6)), [CU])
    plain, mod_180 = pixel_errors(turned, make_truth(truth))
    assert plain.max() > 20
    assert mod_180.max() < 0.05


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None)
def test_known_turns_give_their_statistics(seed):
    rng = np.random.default_rng(seed)
    truth = random_orientations(rng, (8, 5))
    angle = rng.uniform(0, 10, (8, 5))
    orientation = truth @ small_turns(rng, angle)
    result = evaluate(make_map(orientation, np.zeros((8, 5)), [CU]), make_truth(truth)).phases["Cu"]
    assert result.n == 40
    assert result.plain.median == pytest.approx(np.median(angle), abs=0.01)
    assert result.plain.mean == pytest.approx(angle.mean(), abs=0.01)
    assert result.plain.percentile_95 == pytest.approx(np.percentile(angle, 95), abs=0.01)
    assert result.plain.within_5 == pytest.approx((angle <= 5).mean(), abs=0.026)
    assert result.plain.within_2 == pytest.approx((angle <= 2).mean(), abs=0.026)
    assert result.mod_180.mean <= result.plain.mean + 1e-6


def mixed_case():
    """Two rows: Cu right, Cu unassigned, Cu called Mg; Mg right, vacuum right, vacuum called Cu.

    A seventh pixel, in a third row with two more, is wrong and lies on a boundary.
    """
    rng = np.random.default_rng(3)
    truth = random_orientations(rng, (3, 3))
    names = np.array([["Cu", "Cu", "Cu"], ["Mg", "vacuum", "vacuum"], ["Cu", "Mg", "Mg"]])
    phase = np.array([[0, -1, 1], [1, -2, 0], [-1, 0, -1]])
    orientation = truth.copy()
    orientation[phase < 0] = np.nan
    boundary = np.zeros((3, 3))
    boundary[2] = 0.4
    truth[names == "vacuum"] = np.nan
    return make_map(orientation, phase, (CU, MG)), make_truth(truth, names, boundary)


def test_silence_and_the_wrong_phase_are_errors_of_180_degrees():
    result = evaluate(*mixed_case())
    plain, mod_180 = pixel_errors(*mixed_case())
    assert plain[0, 0] < 0.05
    assert plain[0, 1] == plain[0, 2] == mod_180[0, 1] == mod_180[0, 2] == 180
    assert np.isnan(plain[1, 1:]).all()
    assert (result.n_pixels, result.n_scored) == (9, 6)
    assert result.phases["Cu"].n == 3
    assert result.phases["Cu"].plain.within_5 == pytest.approx(1 / 3)
    assert result.phases["Cu"].plain.median == 180
    assert result.phases["Mg"].plain.within_2 == 1
    assert set(result.phases) == {"Cu", "Mg"}


def test_confusion_counts_every_scored_pixel_once():
    result = evaluate(*mixed_case())
    assert result.confusion == {
        "Cu": {"Cu": 1, "Mg": 1, "no crystal": 0, "unassigned": 1},
        "Mg": {"Cu": 0, "Mg": 1, "no crystal": 0, "unassigned": 0},
        "vacuum": {"Cu": 1, "Mg": 0, "no crystal": 1, "unassigned": 0},
    }
    assert result.phase_accuracy == pytest.approx(3 / 6)
    assert result.crystal_phase_accuracy == pytest.approx(2 / 4)
    assert result.vacuum_accuracy == pytest.approx(1 / 2)


def test_ambiguous_answers_are_counted():
    found, truth = mixed_case()
    sure = np.where(found.phase == 0, 0.95, 0.5)
    unsure = np.where(truth.boundary_weight == 0, 0.5, 0.9)
    found = dataclasses.replace(found, confidence=unsure, confidence_mod180=sure)
    # of Cu, called Cu: one of the four scored crystals and one of the vacuum's
    np.testing.assert_array_equal(found.ambiguous_180, [[1, 0, 0], [0, 0, 1], [0, 0, 0]])
    result = evaluate(found, truth)
    assert result.ambiguous_180 == pytest.approx(1 / 4)
    assert "ambiguous by 180° 25.0 %" in to_text(result)


def test_without_vacuum_none_is_scored():
    truth = random_orientations(np.random.default_rng(4), (2, 2))
    result = evaluate(make_map(truth, np.zeros((2, 2)), [CU]), make_truth(truth))
    assert math.isnan(result.vacuum_accuracy) and result.crystal_phase_accuracy == 1
    assert to_dict(result)["vacuum_accuracy"] is None
    assert "vacuum" not in to_text(result)


def test_a_phase_that_the_map_does_not_know_is_wrong_everywhere():
    rng = np.random.default_rng(4)
    truth = random_orientations(rng, (2, 4))
    names = np.array([["Cu"] * 4, ["Ag"] * 4])
    result = evaluate(make_map(truth, np.zeros((2, 4)), [CU]), make_truth(truth, names))
    assert result.phases["Cu"].plain.within_5 == 1
    assert not result.phases["Ag"].in_map
    assert result.phases["Ag"].plain.within_5 == 0
    assert result.phases["Ag"].mod_180.mean == 180
    assert "Ag (not in the map)" in to_text(result)


def test_maps_of_another_shape_are_refused():
    rng = np.random.default_rng(4)
    orientation_map = make_map(random_orientations(rng, (2, 4)), np.zeros((2, 4)), [CU])
    for shape in [(4, 2), (8,), (2, 5)]:
        with pytest.raises(InputError, match="2 x 4 positions"):
            evaluate(orientation_map, make_truth(random_orientations(rng, shape)))


@pytest.mark.parametrize(
    ("share_known", "weight", "words"),
    [(1, 0.4, "all 4 positions.*boundaries"), (0, 0.0, "at none of 4"), (1, np.nan, "all 4")],
    ids=["boundaries", "no truth", "weights not known"],
)
def test_nothing_to_score_is_refused(share_known, weight, words):
    truth = random_orientations(np.random.default_rng(4), (2, 2))
    found = make_map(truth, np.zeros((2, 2)), [CU])
    known = np.where(share_known, truth, np.nan)
    with pytest.raises(InputError, match=f"nothing to score.*{words}"):
        evaluate(found, make_truth(known, boundary_weight=np.full((2, 2), weight)))


def test_a_map_without_an_answer_is_wrong_everywhere():
    truth = random_orientations(np.random.default_rng(4), (2, 2))
    result = evaluate(make_map(truth, np.full((2, 2), -1), [CU]), make_truth(truth))
    assert result.phases["Cu"].plain.median == 180 and result.phase_accuracy == 0


def test_what_is_not_known_of_a_phase_is_a_dash():
    truth = random_orientations(np.random.default_rng(4), (2, 2))
    names = np.array([["Cu", "Cu"], ["Mg", "Mg"]])
    boundary = np.array([[0.0, 0.0], [0.5, 0.5]])
    result = evaluate(
        make_map(truth, np.zeros((2, 2)), [CU]), make_truth(truth, names, boundary_weight=boundary)
    )
    text = to_text(result)
    assert "nan" not in text and text.count("–") == 10
    assert to_dict(result)["phases"]["Mg"]["plain"]["median"] is None


def test_of_vacuum_alone_the_table_is_left_out():
    nothing, names = np.full((2, 2, 3, 3), np.nan), np.full((2, 2), "vacuum")
    result = evaluate(make_map(nothing, np.full((2, 2), -2), [CU]), make_truth(nothing, names))
    text = to_text(result)
    assert "vacuum called no crystal 100.0 %" in text and "median" not in text


def test_grain_bootstrap_is_wider_than_pixels_alone_allow():
    rng = np.random.default_rng(6)
    per_grain = rng.random(30) < 0.7
    grain = np.repeat(np.arange(30), 50)
    hits = per_grain[grain]
    low, high = grain_bootstrap(hits, grain)
    spread = 1.96 * np.sqrt(hits.mean() * (1 - hits.mean()) / 30)
    assert low < hits.mean() < high
    assert high - low == pytest.approx(2 * spread, rel=0.2)
    by_pixel = grain_bootstrap(hits, np.arange(len(hits)))
    assert by_pixel[1] - by_pixel[0] < 0.3 * (high - low)


def test_grain_bootstrap_weighs_grains_by_their_pixels():
    grain = np.repeat([7, 3], [900, 100])
    low, high = grain_bootstrap(grain == 7, grain, resamples=4000)
    assert (low, high) == (0.0, 1.0)
    assert grain_bootstrap(np.ones(1000, bool), grain) == (1.0, 1.0)


def test_intervals_need_two_known_grains():
    errors = np.array([1.0, 3.0])
    assert math.isnan(statistics(errors, np.array([4, 4])).within_5_interval[0])
    assert statistics(errors, np.array([4, 5])).within_5_interval == (1.0, 1.0)
    truth = random_orientations(np.random.default_rng(1), (2, 2))
    unknown = evaluate(
        make_map(truth, np.zeros((2, 2)), [CU]), make_truth(truth, grain=np.full((2, 2), -1))
    )
    assert unknown.phases["Cu"].n_grains == 0
    assert math.isnan(unknown.phases["Cu"].plain.within_5_interval[0])


def test_same_seed_same_intervals():
    truth = random_orientations(np.random.default_rng(8), (6, 6))
    grain = np.arange(36).reshape(6, 6) // 3
    turned = truth @ small_turns(np.random.default_rng(8), 8 * np.ones((6, 6)))
    rough = make_map(turned, grain * 0, [CU])
    rough.orientation[:3] = truth[:3]
    first, again, other = (
        evaluate(rough, make_truth(truth, grain=grain), seed=seed).phases["Cu"].plain
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first.within_5 == other.within_5 == 0.5


def test_coverage_rises_with_the_number_of_candidates():
    rng = np.random.default_rng(9)
    truth = random_orientations(rng, (20,))
    candidates = random_orientations(rng, (20, 6))
    symmetry = symmetry_operations(MG)
    apart = misorientations(candidates.reshape(-1, 3, 3), np.repeat(truth, 6, axis=0), symmetry)[
        1
    ].reshape(20, 6)
    assert (apart > 5).mean() > 0.8
    candidates[apart <= 5] = np.nan
    near = truth @ small_turns(rng, np.full(20, 4.0))
    candidates[:5, 0] = near[:5]
    candidates[5:15, 3] = symmetry[4] @ near[5:15]
    candidates[15:18, 5] = near[15:18] @ HALF_TURN
    candidates[18:, 1] = np.nan
    coverage = candidate_coverage(candidates, truth, symmetry)
    np.testing.assert_allclose(coverage.plain, np.array([5, 5, 5, 15, 15, 15]) / 20)
    np.testing.assert_allclose(coverage.mod_180, np.array([5, 5, 5, 15, 15, 18]) / 20)
    assert candidate_coverage(candidates, truth, symmetry, within=3.9).plain[-1] == 0


def test_reports_hold_the_numbers():
    result = evaluate(*mixed_case())
    as_json = json.loads(json.dumps(to_dict(result), allow_nan=False))
    assert as_json["phases"]["Cu"]["n"] == 3
    assert as_json["phases"]["Cu"]["plain"]["within_5"] == pytest.approx(1 / 3)
    assert as_json["confusion"]["vacuum"]["no crystal"] == 1
    assert set(as_json) == {field.name for field in dataclasses.fields(result)}
    text = to_text(result)
    assert "6 of 9 pixels scored" in text
    assert "33.3 %" in text and "mod 180°" in text
    assert "phase accuracy 50.0 %" in text
    assert "right phase of crystals 50.0 %, vacuum called no crystal 50.0 %" in text
    assert "no crystal" in text and "unassigned" in text
