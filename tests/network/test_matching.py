# SPDX-License-Identifier: GPL-3.0-or-later
"""Matching: rates of the templates, the score, and all eleven Laue classes on clean patterns."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.accuracy.laue_classes import PROTOTYPES, written_crystal
from experiments.common.patterns import scan_of
from jaxstem.crystal.cell import reflections, symmetry_operations
from jaxstem.diffraction.geometry import Disks, Reflectors
from jaxstem.diffraction.kinematic import simulate
from jaxstem.diffraction.settings import Microscope, Specimen
from jaxstem.errors import InputError
from jaxstem.inference.config import InferConfig
from jaxstem.inference.step import scorer
from jaxstem.inference.stream import predict_scan
from jaxstem.maps.metrics import candidate_coverage
from jaxstem.network.matching import (
    MOST_INDICES,
    MOST_TEMPLATES,
    Matcher,
    match,
    matching_material,
    matching_model,
    summed_rates,
)
from jaxstem.network.model import Model
from jaxstem.network.templates import (
    MatchConfig,
    Raster,
    Templates,
    detection_rates,
    nearby_turns,
    rasterise,
)
from jaxstem.network.transformer import ModelConfig, init_params
from jaxstem.orientation import grids, rotations
from jaxstem.orientation.symmetry import misorientations
from jaxstem.runtime.parallel import make_mesh
from jaxstem.verification.config import ScoreConfig

pytestmark = pytest.mark.usefixtures("quick_compile")

COARSE = MatchConfig(n_samples=12, n_visible=64)
RASTER = Raster(1.5, 0.1)


def pattern(*points):
    """Disks at these (qx, qy), padded with two more."""
    qx, qy = (jnp.asarray([*column, 0.3, 0.0], jnp.float32) for column in zip(*points, strict=True))
    mask = jnp.arange(len(qx)) < len(points)
    return Disks(qx, qy, jnp.where(mask, 1.0, 0.0), mask)


def test_rates_are_summed_row_by_row_as_by_a_matrix_product(rng):
    """Also for disks on the edge, beyond the table, and with padding among them."""
    table = jnp.asarray(rng.normal(size=(len(RASTER.inside), 7)), jnp.float32)
    q = rng.uniform(-1.7, 1.7, (2, 30, 9))
    q[:, 0] = [[1.5, -1.5, 0, 0, 0.1, 0.15, 1.6, 99, 0.0], [0, 0, 1.5, -1.5, 0.1, 1.45, 0, 99, 0]]
    mask = rng.random((30, 9)) < 0.7
    disks = Disks(*jnp.asarray(q, jnp.float32), jnp.ones((30, 9)), jnp.asarray(mask))
    bins = jax.vmap(lambda d: rasterise(d.qx, d.qy, d.mask.astype(jnp.float32), RASTER))(disks)
    product = jnp.matmul(bins, table, precision="highest")
    np.testing.assert_allclose(summed_rates(disks, table, RASTER), product, atol=2e-5)


def test_score_is_the_poisson_likelihood(copper, copper_templates):
    """At the centre of a bin: the sum of log rates, less the number of disks expected."""
    points = [(0.5, 0.2), (-0.7, 0.1), (0.0, -0.8)]
    disks = jax.tree.map(lambda x: x[None], pattern(*points))
    config = MatchConfig(n_samples=12, n_visible=64, sureness=1.0)
    score = np.asarray(match(disks, copper_templates, [len(copper.grid)], RASTER, config))[0]
    flat = [
        int(np.argmin(np.abs(RASTER.axis - x))) * len(RASTER.axis)
        + int(np.argmin(np.abs(RASTER.axis - y)))
        for x, y in points
    ]
    bins = np.searchsorted(RASTER.inside, flat)
    table, weight = (np.asarray(x, float) for x in copper_templates[:2])
    likelihood = table[bins].sum(axis=0) + weight
    np.testing.assert_allclose(score, likelihood - np.log(np.exp(likelihood).sum()), atol=2e-3)
    np.testing.assert_allclose(np.exp(score.astype(float)).sum(), 1.0, rtol=1e-4)


def test_disks_that_cannot_be_seen_are_not_missed(copper, copper_templates, rng):
    """Within a reach the score is that of templates whose rates end there, to what a ring of bins
    holds; at the raster's end nothing changes, whether one reach is given or one for each pattern.
    """
    angle = rng.uniform(0, 2 * np.pi, 3)
    disks = jax.tree.map(lambda x: x[None], pattern(*0.6 * np.c_[np.cos(angle), np.sin(angle)]))
    config = MatchConfig(n_samples=12, n_visible=64, sureness=1.0)
    told = jax.jit(
        lambda reach: match(disks, copper_templates, [len(copper.grid)], RASTER, config, reach)
    )
    whole = match(disks, copper_templates, [len(copper.grid)], RASTER, config)
    np.testing.assert_allclose(told(RASTER.k_max), whole, atol=2e-3)
    np.testing.assert_allclose(told(2 * RASTER.k_max), whole, atol=2e-3)

    radius = np.hypot(*np.meshgrid(RASTER.axis, RASTER.axis, indexing="ij")).ravel()
    table, weight, beyond = (np.asarray(x, float) for x in copper_templates)
    rate = (np.exp(table) - np.exp(table[:, -1:])) * RASTER.pitch**2
    for place in rng.choice(np.arange(8, len(beyond) - 1), 3, replace=False):
        reach = RASTER.k_max * place / (len(beyond) - 1)
        outside = rate[radius[RASTER.inside] > reach].sum(axis=0)
        np.testing.assert_allclose(beyond[place], outside, atol=2e-3)
        summed = np.asarray(whole[0]) - weight  # but for a constant
        expected = summed + weight + outside
        expected -= np.log(np.exp(expected - expected.max()).sum()) + expected.max()
        np.testing.assert_allclose(told(reach)[0], expected, atol=5e-3)
        np.testing.assert_allclose(told(jnp.full(1, reach))[0], expected, atol=5e-3)


def test_sureness_flattens_orientations_and_not_phases(copper, copper_templates, rng):
    """The probability of no crystal does not change; the likeliest cell's falls."""
    angle = rng.uniform(0, 2 * np.pi, 3)
    disks = jax.tree.map(lambda x: x[None], pattern(*np.c_[np.cos(angle), np.sin(angle)]))
    n_cells = [len(copper.grid)]
    sure, doubtful = (
        np.asarray(match(disks, copper_templates, n_cells, RASTER, MatchConfig(sureness=sureness)))[
            0
        ]
        for sureness in (1.0, 0.4)
    )
    np.testing.assert_allclose(sure[-1], doubtful[-1], atol=1e-3)
    assert sure[:-1].max() > doubtful[:-1].max()
    assert sure[:-1].argmax() == doubtful[:-1].argmax()


@pytest.mark.slow
def test_phases_are_told_apart(crystals, key):
    """Clean Cu and Cu2O patterns."""
    model = matching_model([crystals["Cu"], crystals["Cu2O"]], 300.0, 1.5, 12.0, config=COARSE)
    n_cells = [len(m.grid) for m in model.materials]
    truth = rotations.random_rotations(key, (64,))
    score = jax.jit(lambda d: model.network.apply({"params": model.params}, d))
    for phase, m in enumerate(model.materials):
        found = score(simulate(truth, m.reflectors(), m.wavelength, n_disks=24))
        assert found.shape == (64, sum(n_cells) + 1)
        cells = np.split(np.asarray(jnp.exp(found)), np.cumsum(n_cells), axis=1)
        likeliest = np.argmax([part.sum(axis=1) for part in cells], axis=0)
        assert (likeliest == phase).mean() > 0.75


@pytest.mark.slow
def test_grid_keeps_its_spacing_for_low_symmetry(tmp_path):
    """A network's grid is coarsened at 8,000 cells, matching's later."""
    crystal = written_crystal("CuO", tmp_path)
    under = Microscope(300.0, k_max=1.5), Specimen(u_iso=0.0)
    fine = matching_material(crystal, *under, 8.0)
    assert np.rad2deg(fine.spacing) == pytest.approx(8.0, rel=0.02)
    shared = matching_material(crystal, *under, 3.0, n_phases=4)
    assert len(shared.grid) == pytest.approx(MOST_TEMPLATES / 4, rel=0.03)


def test_matching_model_wants_crystals_that_differ(crystals):
    with pytest.raises(InputError, match="one crystal at least"):
        matching_model([], 300.0)
    with pytest.raises(InputError, match="2 phases"):
        matching_model([crystals["Cu"]] * 2, 300.0, 1.0, 20.0, config=COARSE)


LAUE_CLASSES = {
    "CuWO4": ("-1", "-1", 1),
    "CuO": ("2/m", "2/m", 2),
    "U": ("mmm", "mmm", 4),
    "BPO4": ("-4", "4/m", 4),
    "TiO2": ("4/mmm", "4/mmm", 8),
    "FeTiO3": ("-3", "-3", 3),
    "TiS2": ("-3m", "-3m", 6),
    "LaCl3": ("6/m", "6/m", 6),
    "ZnO": ("6mm", "6/mmm", 12),
    "FeSi": ("23", "m-3", 12),
    "SiC": ("-43m", "m-3m", 24),
}


def test_a_crystal_of_each_laue_class():
    assert list(LAUE_CLASSES) == list(PROTOTYPES)
    assert len({laue for _, laue, _ in LAUE_CLASSES.values()}) == 11


@pytest.mark.parametrize("name", LAUE_CLASSES)
def test_groups_of_every_laue_class(name, tmp_path):
    """As the space group says."""
    point_group, laue_group, order = LAUE_CLASSES[name]
    crystal = written_crystal(name, tmp_path)
    assert (crystal.point_group, crystal.laue_group) == (point_group, laue_group)
    assert len(symmetry_operations(crystal)) == order


@pytest.mark.parametrize(
    "name",
    [
        name if name == "FeSi" else pytest.param(name, marks=pytest.mark.slow)
        for name in LAUE_CLASSES
    ],
)
def test_every_laue_class(name, tmp_path, key):
    """The truth is near one of the best cells of a coarse grid."""
    crystal = written_crystal(name, tmp_path)
    operations = symmetry_operations(crystal)
    spacing = np.rad2deg(grids.volume_spacing(N_CELLS - 100, len(operations)))
    cells = np.resize(grids.so3_grid(operations, spacing), (N_CELLS, 3, 3)).astype(np.float32)
    truth = rotations.random_rotations(key, (96,))
    turns = nearby_turns(8, COARSE.spread * np.deg2rad(spacing))
    reach = 2 * COARSE.spread * np.deg2rad(spacing)
    best = np.asarray(best_cells(truth, cells, turns, reach, padded_reflectors(crystal)))
    operations = np.resize(operations, (24, 3, 3))
    coverage = candidate_coverage(cells[best], np.asarray(truth), operations, 1.1 * spacing)
    assert coverage.plain[63] > 0.75


N_CELLS, N_REFLECTIONS = 2000, 1600
"""One number for all crystals, so that what works on them is compiled once."""


def padded_reflectors(crystal):
    """Reflections up to 1.2 1/Å, filled up with some that nothing excites."""
    found = reflections(crystal, 1.2)
    short = N_REFLECTIONS - len(found.g)
    strength = np.abs(found.structure_factor)
    return Reflectors(
        jnp.asarray(np.pad(found.g, ((0, short), (0, 0)), constant_values=1e3), jnp.float32),
        jnp.asarray(np.pad(strength**2, (0, short)), jnp.float32),
        jnp.asarray(np.pad(0.005 * strength / strength.max(), (0, short)), jnp.float32),
    )


@jax.jit
def best_cells(truth, cells, turns, reach, reflectors):
    """The 64 likeliest cells of clean kinematic patterns at 300 kV."""
    raster, wavelength = Raster(1.2, 0.1), 0.0197
    found = detection_rates(cells, turns, reflectors, wavelength, reach, raster, COARSE)
    false = COARSE.false_rate / (np.pi * raster.k_max**2)
    log_rate = jnp.log(found.T / raster.pitch**2 + false)
    made = Templates(log_rate, -found.sum(axis=1), jnp.zeros((2, N_CELLS)))
    disks = simulate(truth, reflectors, wavelength, n_disks=24)
    nothing = Templates(
        jnp.zeros((made.log_rate.shape[0], 1)), jnp.full(1, -1e4), jnp.zeros((2, 1))
    )
    both = Templates(*(jnp.concatenate(x, axis=-1) for x in zip(made, nothing, strict=True)))
    score = Matcher((N_CELLS,), raster, COARSE).apply({"params": both}, disks)
    return jax.lax.top_k(score[:, :-1], 64)[1]


def test_finalists_serve_crystals_that_they_never_saw(crystals, key):
    """Without verification: nearer than a grid of 9 degrees, and nearer than its peaks."""
    model = matching_model([crystals["Cu2O"]], 200.0, 1.5, 9.0, 0.0, COARSE)
    assert model.config.settles
    (m,) = model.materials
    truth = rotations.random_rotations(key, (96,))
    scan = scan_of(simulate(truth, m.reflectors(), m.wavelength, n_disks=24), 200.0)
    config, mesh = InferConfig(refine="none", batch=96), make_mesh(jax.devices()[:1])
    peaks = dataclasses.replace(model, config=dataclasses.replace(model.config, finalists=0))
    found = [predict_scan(one, scan, config, mesh=mesh)[0] for one in (peaks, model)]
    turned = [misorientations(x.orientation, np.asarray(truth), m.operations)[1] for x in found]
    assert np.median(turned[1]) < 0.75 < np.median(turned[0])
    assert (turned[1] < 5).mean() > 0.8


def test_crystals_of_long_axes_have_no_finalists(crystals):
    """A table of indices would not fit: their peaks are as they are."""
    cell = crystals["Cu2O"]
    long = dataclasses.replace(cell, lattice=np.asarray(cell.lattice) * [[60.0], [1.0], [1.0]])
    model = matching_model([long], 200.0, MOST_INDICES / 250.0, 40.0, 0.0, COARSE)
    assert not model.config.settles


@pytest.mark.slow
def test_matching_and_refinement_from_a_cif_alone(tmp_path, key):
    """A monoclinic crystal on a grid of 12 degrees: half of the answers within two degrees."""
    model = matching_model([written_crystal("CuO", tmp_path)], 300.0, 1.5, 12.0, 0.0, COARSE)
    (m,) = model.materials
    truth = rotations.random_rotations(key, (64,))
    scan = scan_of(simulate(truth, m.reflectors(), m.wavelength, n_disks=24), 300.0)
    config = InferConfig(score=ScoreConfig(levels=ScoreConfig().levels[:2]), batch=64)
    answer, _ = predict_scan(model, scan, config, mesh=make_mesh(jax.devices()[:1]))
    plain, mod_180 = misorientations(answer.orientation, np.asarray(truth), m.operations)
    assert np.median(plain) < 2.0
    assert (mod_180 < 5).mean() > 0.75


@pytest.mark.slow
def test_a_network_with_cells_corrects_templates(tmp_path, rng):
    """Before training a head over cells says what templates say, plus logits that leave the rest
    alone; a matcher needs no second one, and nine numbers have no use for them.
    """
    crystal = written_crystal("CuO", tmp_path)
    matching = matching_model([crystal], 300.0, 1.2, 30.0, 0.0, COARSE)
    config = ModelConfig(width=16, blocks=1, heads=2, feedforward=32)
    fresh = Model(config, matching.materials, {}, {}, COARSE)
    q = rng.uniform(-0.8, 0.8, (2, 4, 6)).astype(np.float32)
    disks = Disks(q[0], q[1], np.ones((4, 6), np.float32), np.ones((4, 6), bool))
    params = jax.jit(partial(init_params, fresh.network))(jax.random.key(0))
    output, made = scorer(fresh)

    @jax.jit
    def answers(params, made):
        say = matching.network.apply({"params": matching.params}, disks)
        alone = fresh.network.apply({"params": params}, disks)
        return output(params, made, disks), alone + say, say

    together, summed, say = answers(params, made)
    np.testing.assert_allclose(together, summed, rtol=1e-4, atol=1e-3)
    assert scorer(matching)[1] is None
    matched = jax.jit(lambda params: scorer(matching)[0](params, None, disks))(matching.params)
    np.testing.assert_allclose(matched, say, rtol=1e-5, atol=1e-4)
    for config in (ModelConfig(head="matrix"), ModelConfig(templates=False)):
        assert scorer(dataclasses.replace(fresh, config=config))[1] is None
