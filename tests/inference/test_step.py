# SPDX-License-Identifier: GPL-3.0-or-later
"""The step from disks to answers: one device or eight, by the network alone or by Bloch waves."""

from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import angle_deg, foil_lists, log_probability_around, random_matrices, scan_of_lists
from scipy.spatial.transform import Rotation

from jaxstem.diffraction.material import make_material
from jaxstem.files.orientation_map import NO_CRYSTAL, UNASSIGNED
from jaxstem.files.scan import pad_disks
from jaxstem.inference import step
from jaxstem.inference.config import InferConfig
from jaxstem.inference.exposure import MIN_DISKS
from jaxstem.inference.step import cells_near
from jaxstem.inference.verdict import Answer
from jaxstem.network.heads import HEADS, HYPOTHESES
from jaxstem.network.model import NEVER, Model
from jaxstem.orientation import rotations
from jaxstem.orientation.space import joint_space
from jaxstem.orientation.symmetry import misorientation_mod_180
from jaxstem.verification.candidates import candidate_tables
from jaxstem.verification.config import DynamicalConfig, FitConfig, ScoreConfig

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def answers(on_devices, model, scan, config):
    return cache(lambda n: on_devices(model, scan, config, n))


@pytest.mark.slow
def test_unassigned_positions(answers):
    answer, counts = answers(1)
    assert counts[3] == 1 and counts[7] == 0
    assert answer.phase[3] == UNASSIGNED and answer.phase[7] == NO_CRYSTAL
    unassigned = np.isin(np.arange(13), [3, 7])
    for values in (answer.orientation, answer.second_orientation):
        np.testing.assert_array_equal(np.isnan(values).any(axis=(1, 2))[unassigned], True)
    assert np.isnan(answer.score[unassigned]).all()
    for values in (answer.confidence, answer.confidence_mod180, answer.phase_confidence):
        np.testing.assert_array_equal(values[unassigned], [0, np.nan])
    np.testing.assert_array_equal(answer.second_phase[unassigned], UNASSIGNED)
    assert np.isfinite(answer.orientation[~unassigned]).all()
    assert np.isfinite(answer.score[~unassigned]).all()
    np.testing.assert_array_equal(answer.phase[~unassigned], 0)


def test_assigned_positions_have_rotations_and_probabilities(answers, copper):
    answer, counts = answers(1)
    assigned = counts >= MIN_DISKS
    r = answer.orientation[assigned]
    np.testing.assert_allclose(r @ r.transpose(0, 2, 1), np.tile(np.eye(3), (11, 1, 1)), atol=1e-5)
    np.testing.assert_allclose(np.linalg.det(r), 1, atol=1e-5)
    assert np.all((answer.score[assigned] > 0) & (answer.score[assigned] <= 1))
    confidence, modulo = answer.confidence[assigned], answer.confidence_mod180[assigned]
    assert np.all((confidence >= 0) & (confidence <= modulo + 1e-6) & (modulo <= 1 + 1e-6))
    assert np.all(modulo <= answer.phase_confidence[assigned] + 1e-6)
    second = answer.second_orientation[assigned]
    exists = ~np.isnan(second).any(axis=(1, 2))
    assert exists.any()
    assert angle_deg(r[exists], second[exists], copper.operations).min() > 4.99


@pytest.mark.parametrize("n", [pytest.param(2, marks=pytest.mark.slow), 8])
@pytest.mark.slow
def test_any_number_of_devices_answers_the_same(answers, n):
    (one, counts), (other, other_counts) = answers(1), answers(n)
    np.testing.assert_array_equal(counts, other_counts)
    for name in one._fields:
        np.testing.assert_allclose(
            getattr(one, name), getattr(other, name), atol=2e-6, err_msg=name
        )


def test_two_beam_theory_tells_no_thickness(answers):
    assert np.isnan(answers(1)[0].thickness).all()


@pytest.fixture(scope="module")
def by_bloch_waves(on_devices, model, scan, config):
    """("full" or "exact", n) to the answers by few Bloch waves, on so many devices."""
    waves = DynamicalConfig(
        thickness=(60.0, 140.0),
        n_thicknesses=9,
        steps=(0.1,),
        n_beams=16,
        n_weak=20,
        n_candidates=2,
        behind=1e3,
    )
    fits = FitConfig(
        n_candidates=1,
        thickness=(60.0, 140.0),
        thickness_step=20.0,
        spacing=0.1,
        half_width=0.1,
        rough_beams=(16, 20),
        n_starts=2,
        rough_steps=2,
        n_fine=1,
        beams=(16, 20),
        steps=2,
    )
    full = replace(config.score, n_final=4, dynamical=waves)
    scores = {"full": full, "exact": replace(full, fit=fits)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "BEAM_K_MAX", 1.5)
        yield cache(
            lambda refine, n: on_devices(
                model, scan, replace(config, refine=refine, score=scores[refine]), n
            )
        )


@pytest.mark.slow
@pytest.mark.parametrize("refine", ["full", "exact"])
def test_bloch_waves_tell_the_thickness(refine, by_bloch_waves):
    answer, counts = by_bloch_waves(refine, 8)
    assigned = counts >= MIN_DISKS
    assert np.isnan(answer.thickness[~assigned]).all()
    assert np.all((answer.thickness[assigned] >= 60) & (answer.thickness[assigned] <= 140))
    r = answer.orientation[assigned]
    np.testing.assert_allclose(r @ r.transpose(0, 2, 1), np.tile(np.eye(3), (11, 1, 1)), atol=1e-5)
    for values in (answer.score, answer.confidence, answer.confidence_mod180):
        assert np.all((values[assigned] >= 0) & (values[assigned] <= 1 + 1e-6))


@pytest.mark.slow
def test_eight_devices_give_the_verdict_of_one(by_bloch_waves):
    one_device, eight = (by_bloch_waves("full", n)[0] for n in (1, 8))
    for name, one, other in zip(Answer._fields, one_device, eight, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6, err_msg=name)


@pytest.fixture(scope="module")
def unverified(on_devices, model, scan, config):
    return on_devices(model, scan, replace(config, refine="none"), 1)


def test_network_alone(unverified, copper, likeliest):
    answer, counts = unverified
    assigned = counts >= MIN_DISKS
    assert np.isnan(answer.score).all() and np.isnan(answer.second_score).all()
    assert np.isnan(answer.thickness).all()
    assert np.all(answer.confidence[assigned] > 0)
    # near one of the likeliest cells
    angle = angle_deg(
        answer.orientation[assigned][:, None], likeliest.orientation[assigned], copper.operations
    )
    assert np.all(angle.min(axis=1) < np.rad2deg(copper.spacing))


@pytest.mark.slow
def test_half_precision_is_the_networks_alone(unverified, on_devices, model, scan, config):
    """Answers are nearly those of float32; verification has the same candidates to judge."""
    config = replace(config, refine="none")
    exact, _ = unverified
    rough, _ = on_devices(model, scan, replace(config, precision="bfloat16"), 1)
    assigned = exact.phase == 0
    difference = np.abs(exact.phase_confidence - rough.phase_confidence)[assigned]
    assert 0 < difference.max() < 0.02
    with pytest.raises(ValueError, match="float16"):
        on_devices(model, scan, replace(config, precision="float16"), 1)


@pytest.mark.slow
def test_nine_numbers_spread_over_their_phase(copper, crystals, rng):
    mg = make_material(crystals["Mg"], copper.microscope, copper.specimen, 20.0)
    space = joint_space([copper.space(), mg.space()])
    rotation = random_matrices(rng, 1)[0]
    output = jnp.concatenate([2 * rotation.reshape(9), np.array([0.0, 1.0], np.float32)])
    spread_out = jax.jit(lambda output, space: cells_near(output, HEADS["matrix"], space))
    found = np.asarray(spread_out(output, space))
    assert found.shape == (len(copper.grid) + len(mg.grid) + 1,) and found[-1] == NEVER
    share = np.exp(found[:-1])
    of_phase = [share[np.asarray(space.phase) == p].sum() for p in (0, 1)]
    np.testing.assert_allclose(of_phase, [1 / (1 + np.e), np.e / (1 + np.e)], rtol=1e-4)
    nearest = rotations.quaternion_to_matrix(jnp.asarray(mg.grid))[
        np.argmax(found[len(copper.grid) : -1])
    ]
    assert angle_deg(nearest, rotation, mg.operations) < np.rad2deg(mg.spacing)
    one = np.asarray(spread_out(output[:9], copper.space()))
    assert np.exp(one[:-1]).sum() == pytest.approx(1, rel=1e-4)


def test_hypotheses_share_by_their_logits(copper, rng):
    """Two rotations, the second e times as likely as the first, and six that are not."""
    quaternions = rng.normal(size=(HYPOTHESES, 4)).astype(np.float32)
    quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
    logits = np.full(HYPOTHESES, -40.0, np.float32)
    logits[:2] = 0.0, 1.0
    output = jnp.concatenate([quaternions.ravel(), logits])
    space = copper.space()
    spread_out = jax.jit(lambda output: cells_near(output, HEADS["hypotheses"], space))
    share = np.exp(np.asarray(spread_out(output))[:-1])
    expected = 0
    for quaternion, weight in zip(quaternions, (1 / (1 + np.e), np.e / (1 + np.e)), strict=False):
        w_last = Rotation.from_quat(np.roll(quaternion, -1))
        equivalents = np.roll((Rotation.from_matrix(copper.operations) * w_last).as_quat(), 1, -1)
        cosine = np.abs(equivalents @ np.asarray(space.cells).T).max(axis=0)
        angle = 2 * np.arccos(np.minimum(cosine, 1))
        closeness = np.exp(-0.5 * (angle / float(space.label_width[0])) ** 2)
        expected = expected + weight * closeness / closeness.sum()
    np.testing.assert_allclose(share, expected, atol=1e-4)


class Oracle(Model):
    """A model whose network knows the answers: log-probabilities by a pattern's strongest disk."""

    @property
    def network(self):
        def apply(variables, disks, prior=None, reach=None):
            qx, log_probability = variables["params"]
            return log_probability[jnp.argmin(jnp.abs(qx - disks.qx[:, :1]), axis=1)]

        return SimpleNamespace(apply=apply)


@pytest.fixture(scope="module")
def two_phases(copper, tables, crystals, tiny):
    """A scan of four patterns of copper, four of magnesium and four of vacuum; phases and
    orientations; an oracle for the orientation in either phase; the tables of the phases.
    """
    mg = make_material(crystals["Mg"], copper.microscope, copper.specimen, 16.0)
    materials = (copper, mg)
    rng = np.random.default_rng(5)
    lists, phases, orientations, answers = [], [], random_matrices(rng, 12), []
    for number, orientation in enumerate(orientations):
        phase = number // 4 if number < 8 else NO_CRYSTAL
        if phase == NO_CRYSTAL:
            n = number - 8
            angle, radius = rng.uniform(0, 2 * np.pi, n), rng.uniform(1.0, 1.4, n)
            found = [radius * np.cos(angle), radius * np.sin(angle), rng.uniform(1e-3, 2e-3, n)]
            found = np.concatenate([[[0.0, 0.0, 1.0]], np.stack(found, axis=-1)])
        else:
            (found,) = foil_lists(orientation[None], materials[phase], 15, 1.0)
        lists.append(found)
        phases.append(phase)
        either = [log_probability_around(orientation, m) for m in materials]
        answers.append(np.concatenate([*either, [0.0]]))
    scan = scan_of_lists(lists)
    disks = pad_disks(scan, np.arange(12), 1.5, min(m.k_min for m in materials), 16)
    params = jnp.asarray(disks[0][:, 0]), jnp.asarray(np.stack(answers), jnp.float32)
    arguments = (mg.grid, mg.operations, mg.reflectors(), mg.wavelength, mg.crystal.lattice)
    both = [tables, candidate_tables(*arguments)]
    return scan, (np.array(phases), orientations), Oracle(tiny.model, materials, params), both


@pytest.fixture
def answers_of(on_devices, config, monkeypatch):
    """`two_phases` to the answers, with no crystal as likely as it is, and the truth."""

    def answer(two_phases, **changes):
        scan, truth, model, both = two_phases
        left = iter(both)
        monkeypatch.setattr(step, "candidate_tables", lambda *_, **__: next(left))
        score = replace(config.score, levels=ScoreConfig().levels[:2])
        as_usual = replace(config, score=score, chance=InferConfig().chance, **changes)
        found, _ = on_devices(model, scan, as_usual, 1)
        return found, truth

    return answer


@pytest.mark.slow
def test_verification_tells_phases_and_vacuum_apart(two_phases, answers_of):
    """The network gives both phases, and none, the same probability."""
    answer, (phase, orientation) = answers_of(two_phases)
    print(answer.phase, answer.phase_confidence)
    assert (answer.phase == phase).sum() >= 11
    np.testing.assert_array_equal(np.isfinite(answer.orientation[:, 0, 0]), answer.phase >= 0)
    assert np.median(answer.phase_confidence[2:8]) > 0.8
    assert np.all(answer.phase_confidence[:8] >= answer.confidence_mod180[:8] - 1e-6)
    angle = [
        misorientation_mod_180(*map(jnp.asarray, (r, truth, m.operations.astype(np.float32))))
        for r, truth, m in zip(
            answer.orientation[:8],
            orientation[:8],
            np.repeat(two_phases[2].materials, 4),
            strict=True,
        )
    ]
    assert np.nanmedian(np.rad2deg(angle)) < 3


@pytest.mark.slow
def test_the_network_alone_says_what_it_thinks(two_phases, answers_of):
    scan, truth, model, both = two_phases
    n_copper = len(model.materials[0].grid)
    for phase, shift in ((0, (3.0, 0.0)), (1, (0.0, 3.0)), (NO_CRYSTAL, (0.0, 0.0))):
        qx, logits = model.params
        logits = logits.at[:, :n_copper].add(shift[0]).at[:, n_copper:-1].add(shift[1])
        logits = logits.at[:, -1].set(3.0 if phase == NO_CRYSTAL else -3.0)
        biased = (scan, truth, replace(model, params=(qx, logits)), both)
        answer, _ = answers_of(biased, refine="none")
        np.testing.assert_array_equal(answer.phase[:8], phase)
        assert np.isnan(answer.score).all()
        assert answer.phase_confidence[:8].min() > 0.5
